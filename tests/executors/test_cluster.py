"""A campaign on a real Ray cluster of several node processes, to which everything happens that can happen to one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import grading_lab
import toy_lab
from autoresearch.base import variables
from autoresearch.base.errors import UserError
from autoresearch.base.process import MARK
from autoresearch.executors.interface import Equipment, Site
from autoresearch.ledger.campaign import Campaign
from autoresearch.ledger.events import Event, RunEnded, RunStarted
from autoresearch.ledger.ledger import Ledger
from autoresearch.ledger.records import Proposal, Status
from autoresearch.loop.loop import run_campaign
from conftest import never, proposal, stages
from orders import order

ray = pytest.importorskip("ray")
import ray_cluster  # noqa: E402
from autoresearch.executors.cluster.site import there  # noqa: E402

pytestmark = pytest.mark.cluster
SLOW = "import time; time.sleep({})\n"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(variables.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def cluster(cache: Path) -> Iterator[Any]:
    with ray_cluster.cluster(cache, "one", "two") as made:
        yield made


def joined(lab: Path, cluster: Any, told: list[str] | None = None, **changes: Any) -> Site:
    (lab / ".autoresearch").mkdir(exist_ok=True)
    equipment = changes.pop("equipment", ray_cluster.plain((lab / "prepare.py").read_text()))
    tell = (told if told is not None else []).append
    return there(order(lab, equipment, address=cluster.address, tell=tell, **changes))


def searched(lab: Path, site: Site, lines: list[Proposal], events: list[Event] | None = None) -> Campaign:
    class Side:
        name, side_by_side = "scripted", True

        def __init__(self) -> None:
            self.left = list(lines)

        def propose(self, brief: object) -> Proposal:
            from autoresearch.base.errors import Exhausted

            if not self.left:
                raise Exhausted("that was all")
            return self.left.pop(0)

    parts = stages(lab, events=events, researcher=Side(), executor=site.executor, places=site.places)
    run_campaign(parts, "t", never)
    return parts.campaign("t")


def worker_of(lab: Path) -> list[psutil.Process]:
    """The runs in flight, by their process, wherever they are."""
    found = []
    for process in psutil.process_iter():
        try:
            if f"cluster/{lab.parent.name}/" in process.environ().get(MARK, "") and "train.py" in process.cmdline()[-1]:
                found.append(process)
        except (psutil.Error, IndexError):
            continue
    return found


def in_background(lab: Path, site: Site, lines: list[Proposal]) -> tuple[threading.Thread, list[Any]]:
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(searched(lab, site, lines)), daemon=True)
    thread.start()
    return thread, got


def judged(found: Campaign) -> dict[str, Status]:
    return {trial.proposed.idea: trial.verdict.status for trial in found.trials if trial.verdict}


# ---------------------------------------------------------------- the machines


def test_trials_run_on_all_machines_and_are_judged_as_here(lab: Path, cluster: Any) -> None:
    told: list[str] = []
    site = joined(lab, cluster, told)
    assert told[-1].startswith("cluster: 2 slots of [cpu: ")
    lines = [proposal(x, extra=SLOW.format(1.5)) for x in (2.5, 2.0, 4.0, 1.5)]
    events: list[Event] = []
    found = searched(lab, site, lines, events)
    statuses = Counter(judged(found).values())
    assert statuses[Status.KEEP] >= 3
    assert found.incumbent is not None
    assert found.incumbent.val_bpb == 1.25
    flying = most = 0
    for event in events:
        flying += isinstance(event, RunStarted) - isinstance(event, RunEnded)
        most = max(most, flying)
    assert most == 2
    assert all(Path(lab / trial.runs[0].log).read_text() for trial in found.trials)


def lost_once(lab: Path, cluster: Any, hit: Any) -> Campaign:
    """A campaign in which something happens to the machine of a run, and the run is made again."""
    told: list[str] = []
    site = joined(lab, cluster, told)
    thread, got = in_background(lab, site, [proposal(2.0, extra=SLOW.format(3))])
    ray_cluster.until(lambda: Ledger(lab / ".autoresearch/ledger.jsonl").campaign() is not None, "a campaign")
    ray_cluster.until(lambda: len(trials(lab)) > 1 and worker_of(lab), "a run of the first trial")
    hit(worker_of(lab)[0])
    thread.join(90)
    assert got, "the campaign ends"
    found: Campaign = got[0]
    assert judged(found) == {"baseline": Status.KEEP, "X to 2.0": Status.KEEP}
    trial = found.trials[1]
    assert [run.lost is not None for run in trial.every_run] == [False, True]
    assert trial.runs[0].crash is None
    assert trial.runs[0].seed == trial.disturbed[0].seed
    assert any("was lost" in line for line in told), told
    return found


def trials(lab: Path) -> list[Any]:
    found = Ledger(lab / ".autoresearch/ledger.jsonl").campaign()
    return list(found.trials) if found else []


def test_a_run_whose_worker_is_killed_is_made_again_and_is_no_crash(lab: Path, cluster: Any) -> None:
    def kill(run: psutil.Process) -> None:
        worker = next(each for each in run.parents() if "ray::" in " ".join(each.cmdline()))
        worker.kill()

    lost_once(lab, cluster, kill)


def test_a_run_whose_machine_is_lost_is_made_again_elsewhere(lab: Path, cluster: Any) -> None:
    def kill(run: psutil.Process) -> None:
        raylet = {node.node_id: node for node in cluster.worker_nodes}
        worker = next(each for each in run.parents() if "ray::" in " ".join(each.cmdline()))
        node = next(n for n in raylet.values() if n.all_processes["raylet"][0].process.pid == worker.ppid())
        cluster.remove_node(node, allow_graceful=False)

    lost_once(lab, cluster, kill)


def test_a_machine_that_is_added_is_used(lab: Path, cache: Path) -> None:
    with ray_cluster.cluster(cache, "one") as made:
        told: list[str] = []
        site = joined(lab, made, told)
        lines = [proposal(x, extra=SLOW.format(4)) for x in (2.5, 2.0, 1.5, 1.2)]
        thread, got = in_background(lab, site, lines)
        ray_cluster.until(lambda: worker_of(lab), "a run")
        ray_cluster.add(made, cache, "late")
        ray_cluster.until(lambda: len(worker_of(lab)) == 2, "two runs side by side")
        thread.join(90)
        assert got
        assert got[0].incumbent.val_bpb == pytest.approx(1.04)


def test_a_run_sees_its_own_gpu_and_machines_without_one_are_left_alone(lab: Path, cache: Path) -> None:
    tell = "import os; print('GPU', os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'])\n"
    with ray_cluster.cluster(cache, "without") as made:
        ray_cluster.add(made, cache, "with", gpus=2)
        site = joined(lab, made, gpus_per_run=None, cpus_per_run=None)
        assert {ray_cluster.name_of(place.node) for place in site.places()} == {"with"}
        found = searched(lab, site, [proposal(x, extra=tell + SLOW.format(3)) for x in (2.5, 2.0)])
        logs = [(lab / trial.runs[0].log).read_text().splitlines() for trial in found.trials[1:]]
        assert sorted(line for log in logs for line in log if line.startswith("GPU")) == ["GPU 0 1", "GPU 1 1"]
        assert {trial.runs[0].environment["machine"] for trial in found.trials} == {"with"}


def test_a_full_object_store_is_no_obstacle(lab: Path, cache: Path) -> None:
    with ray_cluster.cluster(cache, "one", memory=80_000_000) as made:
        site = joined(lab, made)
        held = [ray.put(os.urandom(9_000_000)) for _ in range(8)]
        noise = "print('x' * 3_000_000)\n"
        found = searched(lab, site, [proposal(2.0, extra=noise)])
        assert judged(found)["X to 2.0"] is Status.KEEP
        assert len((lab / found.trials[1].runs[0].log).read_text()) > 3_000_000
        del held


# ---------------------------------------------------------------- machines that do not fit


def test_a_machine_of_another_version_or_without_the_package_is_named_and_avoided(
    lab: Path, cache: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    (old / "torch-2.0.1.dist-info").mkdir(parents=True)
    (old / "torch-2.0.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.0.1\n")
    without = tmp_path / "without" / "autoresearch"
    without.mkdir(parents=True)
    (without / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'autoresearch'\")\n")
    with ray_cluster.cluster(cache, "good") as made:
        ray_cluster.add(made, cache, "old", PYTHONPATH=str(old))
        ray_cluster.add(made, cache, "bare", PYTHONPATH=str(without.parent))
        told: list[str] = []
        site = joined(lab, made, told)
        assert judged(searched(lab, site, [proposal(2.0)]))["X to 2.0"] is Status.KEEP
        assert [line for line in told if line.startswith("old is not used: it has torch 2.0.1, not ")]
        assert "bare is not used: autoresearch is not installed there" in told


def test_a_machine_with_another_text_is_named_and_avoided(lab: Path, tmp_path: Path, cache: Path) -> None:
    made_lab = grading_lab.make(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(cache, other)
    for meta in other.rglob("meta.json"):
        facts = json.loads(meta.read_text())
        facts["splits"]["val"]["sha256"] = "0" * 64
        meta.write_text(json.dumps(facts))
        meta.with_name("meta.json.verified").unlink()  # otherwise it is prepared again
    with ray_cluster.cluster(cache, "same") as made:
        ray_cluster.add(made, other, "strange")
        told: list[str] = []
        site = joined(lab, made, told, equipment=Equipment(made_lab.prepare, graded=True, sandbox="none"))
        assert [ray_cluster.name_of(place.node) for place in site.places()] == ["same"]
        assert [line for line in told if line.startswith("strange is not used: its prepare.py gives another text")]
        site.executor.close()


@pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not installed")
def test_a_machine_without_the_sandbox_is_named_and_avoided(lab: Path, tmp_path: Path, cache: Path) -> None:
    made_lab = grading_lab.make(tmp_path)
    with ray_cluster.cluster(cache, "good") as made:
        ray_cluster.add(made, cache, "open", PATH=str(Path(sys.executable).parent))
        told: list[str] = []
        site = joined(lab, made, told, equipment=Equipment(made_lab.prepare, graded=True, sandbox="bubblewrap"))
        assert [ray_cluster.name_of(place.node) for place in site.places()] == ["good"]
        assert [line for line in told if line.startswith("open is not used: the sandbox `bubblewrap` does not work")]
        site.executor.close()


def test_a_machine_of_another_class_is_named_and_avoided(lab: Path, cluster: Any) -> None:
    told: list[str] = []
    with pytest.raises(UserError, match=r"no machine of the cluster .*two: it is \[cpu: .*\], but the campaign's"):
        joined(lab, cluster, told, device="cuda: another card", sandbox="none")
    assert [line for line in told if "but the campaign's runs are on [cuda: another card]" in line]


# ---------------------------------------------------------------- the driver


def started(lab: Path, cluster: Any, *options: str, **environment: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "autoresearch", "run", "--lab", str(lab), *options]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, **pipes, env={**os.environ, **environment})


def searched_before(lab: Path) -> Campaign:
    found = Ledger(lab / ".autoresearch/ledger.jsonl").campaign()
    assert found is not None
    return found


def settings(lab: Path, **values: object) -> None:
    """Add settings to the lab's program.md, and commit it."""
    path = lab / "program.md"
    more = "".join(f"{name}: {value}\n" for name, value in values.items())
    path.write_text(path.read_text().replace("---\n", f"---\nexecutor: ray\n{more}", 1))
    subprocess.run(
        ["git", "-C", str(lab), "-c", "user.name=x", "-c", "user.email=x", "commit", "-qam", "ray"], check=True
    )


def script(lab: Path, seconds: float, *values: float) -> str:
    lines = [{"idea": f"X to {x}", "files": {"train.py": toy_lab.train_with(x, SLOW.format(seconds))}} for x in values]
    path = lab.parent / "script.json"
    path.write_text(json.dumps(lines))
    return f"scripted:{path}"


def test_a_killed_driver_takes_its_runs_along_and_the_next_one_continues(lab: Path, cluster: Any) -> None:
    settings(lab, ray_address=cluster.address, cpus_per_run=1, max_disturbance=1.0)
    who = script(lab, 4.0, 2.0, 1.5)
    driver = started(lab, cluster, "--researcher", who)
    ray_cluster.until(lambda: len(trials(lab)) > 1 and runs_of_any_lab(), "a run of the first trial")
    driver.kill()
    driver.communicate()
    ray_cluster.until(lambda: not runs_of_any_lab(), "no run is left", 30)
    out, _ = started(lab, cluster, "--researcher", who).communicate(timeout=120)
    found = Ledger(lab / ".autoresearch/ledger.jsonl").campaign()
    assert found is not None, out
    assert judged(found) == {"baseline": Status.KEEP, "X to 2.0": Status.KEEP, "X to 1.5": Status.KEEP}, out
    assert [len(trial.runs) for trial in found.trials] == [1, 1, 1]


def runs_of_any_lab() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if "/cluster/" in process.environ().get(MARK, "") and "train.py" in process.cmdline()[-1]:
                found.append(process)
        except (psutil.Error, IndexError):
            continue
    return found


def test_ctrl_c_once_lets_the_run_finish_and_twice_ends_it(lab: Path, cluster: Any) -> None:
    settings(lab, ray_address=cluster.address, cpus_per_run=1, max_disturbance=1.0)
    for presses, verdicts in ((2, 1), (1, 2)):
        driver = started(lab, cluster, "--researcher", script(lab, 4.0, 2.0, 1.5))
        ray_cluster.until(lambda: len(trials(lab)) > 1 and runs_of_any_lab(), "a run of the first trial")
        for _ in range(presses):
            driver.send_signal(signal.SIGINT)
            threading.Event().wait(0.5)
        out, _ = driver.communicate(timeout=60)
        assert driver.returncode == (0 if presses == 1 else 130), out
        assert len([each for each in trials(lab) if each.verdict]) >= verdicts, out
        ray_cluster.until(lambda: not runs_of_any_lab(), "no run is left", 20)


def test_a_cluster_whose_head_is_lost_ends_the_loop_in_a_sentence_and_the_next_one_continues(
    lab: Path, cache: Path
) -> None:
    settings(lab, cpus_per_run=1, max_disturbance=1.0)
    who = script(lab, 30.0, 2.0)
    with ray_cluster.cluster(cache, "one") as made:
        driver = started(lab, made, "--researcher", who, RAY_ADDRESS=made.address)
        ray_cluster.until(lambda: len(trials(lab)) > 1 and runs_of_any_lab(), "a run of the first trial")
        made.head_node.kill_gcs_server()
        out, _ = driver.communicate(timeout=150)
    assert driver.returncode == 1, out
    assert "the head of the Ray cluster is gone" in out.strip().splitlines()[-1]
    ray_cluster.until(lambda: not runs_of_any_lab(), "no run is left", 30)
    with ray_cluster.cluster(cache, "one") as made:
        out, _ = started(lab, made, "--researcher", who, RAY_ADDRESS=made.address).communicate(timeout=120)
    assert judged(searched_before(lab)) == {"baseline": Status.KEEP, "X to 2.0": Status.KEEP}, out


# ---------------------------------------------------------------- one sentence


def refused(lab: Path, *options: str, **environment: str) -> str:
    words = [sys.executable, "-m", "autoresearch", "run", "--lab", str(lab), "--trials", "1", "--researcher", "builtin"]
    words += options
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})
    assert done.returncode == 1, done.stdout + done.stderr
    said = done.stderr.strip().splitlines()
    assert len(said) == 1, said
    assert not trials(lab)
    return said[0]


def test_an_address_where_no_ray_is(lab: Path) -> None:
    settings(lab, ray_address="127.0.0.1:9")
    assert "no Ray cluster answers at 127.0.0.1:9" in refused(lab)


def test_an_address_that_is_none(lab: Path) -> None:
    settings(lab)
    assert "'nowhere' is not the address of a Ray cluster" in refused(lab, RAY_ADDRESS="nowhere")


def test_a_ray_of_another_version(lab: Path, cluster: Any, tmp_path: Path) -> None:
    settings(lab, ray_address=cluster.address)
    (tmp_path / "sitecustomize.py").write_text("import ray\nray.__version__ = '1.2.3'\n")
    said = refused(lab, PYTHONPATH=str(tmp_path))
    assert "cannot join the Ray cluster" in said
    assert "ersion" in said


def test_more_slots_than_there_are(lab: Path, cluster: Any) -> None:
    settings(lab, ray_address=cluster.address, cpus_per_run=1)
    assert "3 slots are more than the 2 that the cluster has room for" in refused(lab, "--slots", "3")


def test_gpus_that_no_machine_has(lab: Path, cluster: Any) -> None:
    settings(lab, ray_address=cluster.address, gpus_per_run=2)
    assert "it has 0 GPUs and 1 processors, but a run needs 2 and 1" in refused(lab)


def test_a_prepare_that_the_machines_cannot_run(tmp_path: Path, cluster: Any) -> None:
    text = toy_lab.PREPARE.replace('print("the data is ready")', 'raise SystemExit("no text at /mnt/texts")')
    lab = toy_lab.make(tmp_path / "other", prepare=text)
    settings(lab, ray_address=cluster.address, cpus_per_run=1)
    assert "prepare.py fails there: no text at /mnt/texts" in refused(lab)


def test_a_second_driver_on_the_same_lab(lab: Path, cluster: Any) -> None:
    """As from another machine with the same disk, where this machine's lock may not hold."""
    site = joined(lab, cluster)
    script = (
        "import orders, pathlib, ray_cluster\n"
        "from autoresearch.executors.cluster import joining, site\n"
        "joining.RELEASE_SECONDS = 2.0\n"
        f"lab = pathlib.Path({str(lab)!r})\n"
        f"site.there(orders.order(lab, ray_cluster.plain(''), address={cluster.address!r}))\n"
    )
    tests = str(Path(__file__).parents[1])
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": tests})
    assert f"another autoresearch works on this lab in this cluster ({os.uname().nodename}, process" in done.stderr
    site.executor.close()
