"""Whether numbers may be compared: classes of real and of made-up campaigns, and where the program refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import grading_lab
import toy_lab
from autoresearch.agents.answers import Answers
from autoresearch.base import process, variables
from autoresearch.base.errors import UserError
from autoresearch.executors import hardware
from autoresearch.executors.local import LocalExecutor
from autoresearch.executors.sandbox.sandboxes import Nothing
from autoresearch.grading.grader import TrustedGrader
from autoresearch.grading.splits import SplitData
from autoresearch.judging import comparability
from autoresearch.lab import config, presets
from autoresearch.lab.settings import Config
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.campaign import Campaign
from autoresearch.ledger.events import CampaignStarted, Event, RunEnded, Stopped
from autoresearch.ledger.ledger import Ledger
from autoresearch.ledger.records import Comparable
from autoresearch.ledger.results_tsv import COLUMNS
from autoresearch.loop.loop import confirm_now, replay, run_campaign
from autoresearch.loop.parts.stages import Stages
from command_line import Cli, call, refused, script
from conftest import never, proposal, stages
from judged import a_run, kept

__all__ = ["call"]  # a fixture

HERE, ELSEWHERE = "cpu: a toy", "cpu: another toy"
FILES = {"prepare.py": "00", "program.md": "11", ".gitignore": "22"}
TEXT = {"train_sha256": "33", "val_sha256": "44", "device": "what the run says", "torch": "2.9"}


def started(**changes: object) -> CampaignStarted:
    begun = CampaignStarted("t", "c0", "any", "greedy", "local", "none", FILES, 60.0, "trusted", "cpu")
    return dataclasses.replace(begun, **changes)  # type: ignore[arg-type]


def class_of(begun: CampaignStarted, run: RunEnded) -> Comparable:
    return Campaign(begun).class_of(run)


def scored(device: str | None = HERE, environment: Mapping[str, str] = TEXT) -> RunEnded:
    return a_run(1.5, device=device, environment=environment)


# ---------------------------------------------------------------- what a class is

NAMES = st.sampled_from([None, "a", "b"])
PARTS = st.tuples(NAMES, NAMES, st.sampled_from(["0", "1"]), st.sampled_from([None, "0", "1"]))


@given(PARTS, PARTS)
def test_two_runs_are_of_one_class_just_where_device_preset_files_and_data_are_the_same(
    one: tuple[str | None, ...], other: tuple[str | None, ...]
) -> None:
    def made(device: str | None, preset: str | None, prepare: str | None, text: str | None) -> Comparable:
        begun = started(preset=preset, frozen_sha256={"prepare.py": prepare})
        return class_of(begun, scored(device, {"val_sha256": text} if text else {}))

    first, second = made(*one), made(*other)
    assert (first == second) == (one == other)
    assert (str(first) == str(second)) == (one == other)
    assert (first.differing(second) == ()) == (one == other)
    assert set(first.contradicting(second)) <= set(first.differing(second))


def test_every_frozen_file_counts_but_for_prose() -> None:
    same = class_of(started(), scored())
    prose = started(frozen_sha256={**FILES, "program.md": "other", "README.md": "new", ".gitignore": "other"})
    assert class_of(prose, scored()) == same
    for path in ("helper.py", "config.yaml", "data/pairs.json"):
        read = started(frozen_sha256={**FILES, path: "new"})
        assert class_of(read, scored()).differing(same) == ("frozen",)


def test_what_a_run_says_of_itself_does_not_count() -> None:
    told = {**TEXT, "device": "cuda: NVIDIA H100", "torch": "9", "holdout_sha256": "x"}
    assert class_of(started(), scored(environment=told)) == class_of(started(), scored())
    own_word = started(grader="self-reported")
    assert class_of(own_word, scored()).data is None


def test_what_is_unknown_contradicts_nothing_and_equals_nothing_known() -> None:
    old, new = class_of(started(preset=None), scored(None)), class_of(started(), scored())
    assert new.contradicting(old) == ()
    assert new.differing(old) == ("device", "preset")
    assert str(old).startswith("unknown device · unknown preset · files ")
    assert str(new).startswith(f"{HERE} · cpu · files ")
    assert str(class_of(started(), scored(environment={}))).endswith(" · data unknown")


# ---------------------------------------------------------------- the device, by a name that must stay as it is

XEON = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R)  CPU @ 2.20GHz\ncache size\t: 1\n"


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine of which torch finds no GPU, whatever this one has."""
    for gpu in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(gpu, "is_available", lambda: False)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    return monkeypatch


@pytest.mark.parametrize(
    ("cores", "name"),
    [
        ({3}, "cpu: Intel(R) Xeon(R) CPU @ 2.20GHz, 1 core"),
        ({0, 1, 5}, "cpu: Intel(R) Xeon(R) CPU @ 2.20GHz, 3 cores"),
    ],
)
def test_a_cpu_is_named_by_its_model_and_the_cores_that_may_be_used(
    cores: set[int], name: str, tmp_path: Path, no_gpu: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(XEON * 8)
    no_gpu.setattr(hardware, "CPUINFO", tmp_path / "cpuinfo")
    no_gpu.setattr(os, "sched_getaffinity", lambda pid: cores, raising=False)
    assert str(hardware.device()) == name


def test_a_gpu_is_named_by_its_model(no_gpu: pytest.MonkeyPatch) -> None:
    h100 = SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=79 * 2**30)
    no_gpu.setattr(torch.cuda, "is_available", lambda: True)
    no_gpu.setattr(torch.cuda, "get_device_properties", lambda device: h100)
    assert str(hardware.device()) == "cuda: NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize("chip", ["Apple M1", "Apple M2 Pro"])
def test_a_mac_is_named_by_its_chip_and_memory(chip: str, no_gpu: pytest.MonkeyPatch) -> None:
    answers = {("/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"): chip}
    no_gpu.setattr(torch.backends.mps, "is_available", lambda: True)
    no_gpu.setattr(platform, "system", lambda: "Darwin")
    no_gpu.setattr(process, "output", lambda command: answers[tuple(command)])
    no_gpu.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=16 * 2**30))
    assert str(hardware.device()) == f"mps: {chip}, 16 GB"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no cores of its own")
def test_to_find_the_device_takes_no_core_from_the_runs() -> None:
    cores = "len(os.sched_getaffinity(0))"
    program = f"import os\nfrom autoresearch.executors import hardware\nprint({cores}, hardware.device() and {cores})"
    environment = {**os.environ, "OMP_PROC_BIND": "true", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True, timeout=100
    )
    before, after = done.stdout.split()
    assert before == after == str(len(os.sched_getaffinity(0)))


# ---------------------------------------------------------------- the record


def test_runs_and_campaigns_record_what_makes_their_class(lab: Path) -> None:
    made = stages(lab, [proposal(2.0)], preset="cpu")
    run_campaign(made, "t", never)
    campaign = made.campaign("t")
    assert {run.device for trial in campaign.trials for run in trial.runs} == {HERE}
    assert campaign.started.preset == "cpu"
    assert len(campaign.classes()) == 1
    assert comparability.text(campaign) == str(campaign.classes()[0])


def without_new_fields(ledger: Path) -> None:
    """Make a ledger what an earlier version wrote."""
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    for line in lines:
        for name in {"run_ended": ("device",), "campaign": ("preset",)}.get(line["type"], ()):
            del line[name]
    ledger.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_a_ledger_of_an_earlier_version_is_read_and_gone_on_with(lab: Path) -> None:
    run_campaign(stages(lab, [proposal(2.0)]), "t", never)
    ledger = lab / ".autoresearch/ledger.jsonl"
    without_new_fields(ledger)
    old = Ledger(ledger).campaign()
    assert old is not None
    assert [each.device for each in old.classes()] == [None]
    run_campaign(stages(lab, [proposal(2.0), proposal(1.5)]), "t", never)
    campaign = Ledger(ledger).campaign()
    assert campaign is not None
    assert len(campaign.finished) == 3
    assert [each.device for each in campaign.classes()] == [None, HERE]
    found = comparability.class_of(campaign)
    assert found is not None
    assert found.device is None
    with pytest.raises(UserError, match="would continue as"):
        run_campaign(stages(lab, [proposal(1.2)], device=ELSEWHERE), "t", never)


# ---------------------------------------------------------------- the loop


def test_a_campaign_is_not_gone_on_with_on_another_device(lab: Path) -> None:
    run_campaign(stages(lab, [proposal(2.0)]), "t", never)
    ledger = lab / ".autoresearch/ledger.jsonl"
    before = list(Ledger(ledger).events())
    fetched: list[object] = []
    moved = stages(lab, [proposal(2.0), proposal(1.5)], device=ELSEWHERE, prepare=fetched.append)
    for take_up in (
        lambda: run_campaign(moved, "t", never),
        lambda: confirm_now(moved, "t", lambda: False),
        lambda: replay(moved, "t", 1),
    ):
        with pytest.raises(UserError) as refusal:
            take_up()
        for words in (HERE, ELSEWHERE, "another device", "`autoresearch run --tag NAME`"):
            assert words in str(refusal.value)
        assert "\n" not in str(refusal.value)
    assert {type(event) for event in list(Ledger(ledger).events())[len(before) :]} == {Stopped}
    assert fetched == []
    run_campaign(moved, "new", never)
    assert fetched
    assert [each.device for each in moved.campaign("new").classes()] == [ELSEWHERE]


def test_a_campaign_is_not_gone_on_with_on_another_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variables.CACHE, str(tmp_path / "one" / "cache"))
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    prepared, other = grading_lab.make(tmp_path / "one", TIME_BUDGET=20), grading_lab.make(tmp_path / "other", 2000)
    train = (Path(__file__).parents[1] / "redteam" / "lab" / "honest.py").read_text()
    lab = toy_lab.make(tmp_path / "lab", prepare=prepared.prepare, train=f"{train}\n\nmain()\n")
    environment = {**variables.for_run(), variables.CACHE: str(tmp_path / "one" / "cache")}

    def parts(data: Callable[[], SplitData]) -> Stages:
        executor = LocalExecutor(
            lab / ".autoresearch" / "trials",
            Path(sys.executable),
            environment,
            f"lab:{lab}:",
            Nothing(),
            TrustedGrader(data),
        )
        limits = {"budget_seconds": 20.0, "deadline_seconds": 200.0, "startup_seconds": 180.0}
        return stages(lab, executor=executor, **limits)

    run_campaign(parts(prepared.data), "t", never)
    campaign = parts(prepared.data).campaign("t")
    assert campaign.incumbent is not None
    assert campaign.classes()[0].data is not None
    run_campaign(parts(prepared.data), "t", never)
    with pytest.raises(UserError, match="of another data: continue"):
        run_campaign(parts(other.data), "t", never)


# ---------------------------------------------------------------- reports


def rewrite(lab: Path, change: Callable[[Event], Event]) -> None:
    """Write the lab's ledger anew, each event changed."""
    ledger = Ledger(lab / ".autoresearch/ledger.jsonl")
    events = list(ledger.events())
    ledger.path.unlink()
    for event in events:
        ledger.append(change(event))


def elsewhere(first_trial: int) -> Callable[[Event], Event]:
    """Runs from this trial on were made on another device."""

    def change(event: Event) -> Event:
        is_run = isinstance(event, RunEnded) and event.trial >= first_trial
        return dataclasses.replace(event, device=ELSEWHERE) if is_run else event

    return change


@pytest.fixture
def two(lab: Path) -> Path:
    """A lab with the campaigns a (best 2.0) and b (best 1.25), each of a baseline and a keep."""
    run_campaign(stages(lab, [proposal(2.0)]), "a", never)
    run_campaign(stages(lab, [proposal(1.5)]), "b", never)
    return lab


def test_every_view_shows_the_class(two: Path, call: Cli) -> None:
    ledger = Ledger(two / ".autoresearch/ledger.jsonl")
    campaign = ledger.campaign("b")
    assert campaign is not None
    name = comparability.text(campaign)
    assert name is not None
    for command in (["status"], ["report"], ["log"], ["show", 3]):
        code, out, _ = call(*command, "--lab", two)
        assert code == 0
        assert [line.split(maxsplit=1)[1] for line in out.splitlines() if line.startswith("class ")] == [name]
        found = json.loads(call(*command, "--lab", two, "--json")[1])
        assert (found[-1] if command == ["log"] else found)["class"] == name
    beside = Answers(Workspace.open(two))
    assert {row["class"] for row in beside.history(full=True)} == {name}
    assert beside.status()["class"] == name


def test_a_results_tsv_has_its_five_columns_and_no_class(two: Path, call: Cli) -> None:
    table = two / "results.tsv"
    assert table.read_text().splitlines()[0].split("\t") == list(COLUMNS)
    for command in (["report", table], ["audit", table, "--sigma", 0.1]):
        assert "a results.tsv does not say" in call(*command)[1]
        assert json.loads(call(*command, "--json")[1])["class"] is None
    refused(call("report", table, "--against", "a", "--lab", two), "does not say how its scores were measured")


def test_two_campaigns_of_one_class_are_compared_by_their_bests(two: Path, call: Cli) -> None:
    found = json.loads(call("report", "--tag", "b", "--against", "a", "--lab", two, "--json")[1])
    assert (found["best"]["tag"], found["against"]["tag"]) == ("b", "a")
    gains = [found[name]["measured"]["gain"] for name in ("best", "against")]
    assert found["difference"] == pytest.approx(gains[1] - gains[0]), "both started from one commit"
    assert found["difference"] < 0 < found["margin"]
    code, out, _ = call("report", "--tag", "b", "--against", "a", "--lab", two)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["class", "best", "against", "control", "difference"]
    for unknown in ("unknown preset", "data unknown"):  # what is compared without being known is said
        assert unknown in out


def test_a_machine_that_drifted_is_told_by_the_commit_that_both_started_from() -> None:
    def campaign(tag: str, drift: float) -> Campaign:
        made = kept(1.0 + drift, 0.9 + drift)
        runs = [dataclasses.replace(trial, runs=tuple(map(on_a_device, trial.runs))) for trial in made.trials]
        return dataclasses.replace(made, started=dataclasses.replace(made.started, tag=tag), trials=tuple(runs))

    def on_a_device(run: RunEnded) -> RunEnded:
        return dataclasses.replace(run, device="cpu: this")

    found = comparability.against(campaign("a", 0.3), campaign("b", 0.0))
    assert found.drift == pytest.approx(0.3)
    assert abs(found.difference) < found.margin < 0.1


def test_campaigns_of_several_classes_are_not_compared_and_the_difference_is_named(two: Path, call: Cli) -> None:
    def compare() -> tuple[int, str, str]:
        return call("report", "--tag", "b", "--against", "a", "--lab", two)

    rewrite(two, elsewhere(2))
    refused(compare(), f"b and a cannot be compared because they differ in device ({ELSEWHERE}, {HERE})")

    def of_a_preset(event: Event) -> Event:
        is_b = isinstance(event, CampaignStarted) and event.tag == "b"
        return dataclasses.replace(event, preset="h100", frozen_sha256={"prepare.py": "00"}) if is_b else event

    rewrite(two, of_a_preset)
    refused(compare(), "device (", "preset (h100, unknown)", "frozen files (")
    refused(call("report", "--against", "none", "--lab", two), "no campaign none")


def test_campaigns_of_an_earlier_version_are_not_compared(two: Path, call: Cli) -> None:
    without_new_fields(two / ".autoresearch/ledger.jsonl")
    refused(call("report", "--against", "a", "--lab", two), "earlier version", "did not record their device")
    assert call("report", "--lab", two)[0] == 0


def test_a_campaign_with_runs_of_two_devices_is_not_summed_up(two: Path, call: Cli) -> None:
    rewrite(two, elsewhere(3))
    for command in (["status"], ["report"], ["chart"]):
        for options in ([], ["--json"] if command != ["chart"] else []):
            refused(call(*command, *options, "--lab", two), HERE, ELSEWHERE, "another device", "log --json")
    with pytest.raises(UserError, match="another device"):
        run_campaign(stages(two, [proposal(1.5), proposal(1.2)]), "b", never)
    rows = json.loads(call("log", "--lab", two, "--json")[1])
    assert [row["class"].partition(" · ")[0] for row in rows] == [HERE, ELSEWHERE]
    assert call("report", "--tag", "a", "--lab", two)[0] == 0


def test_a_campaign_without_a_score_is_compared_with_nothing(lab: Path, call: Cli) -> None:
    run_campaign(stages(lab, [proposal(2.0)]), "a", never)
    Ledger(lab / ".autoresearch/ledger.jsonl").append(started(tag="b"))
    refused(call("report", "--tag", "b", "--against", "a", "--lab", lab), "campaign b has no score yet", "--tag b")


# ---------------------------------------------------------------- the preset


def test_a_new_lab_tells_its_preset_and_an_old_one_none(tmp_path: Path, call: Cli) -> None:
    for name in presets.presets():
        presets.create(tmp_path / name, presets.presets()[name])
        assert config.load(tmp_path / name / "program.md")[0].preset == name
    assert Config().preset is None


def test_the_command_line_records_this_machine_and_the_preset(tmp_path: Path, call: Cli) -> None:
    program = toy_lab.PROGRAM.replace("---\n", "---\npreset: cpu\n", 1)
    lab = toy_lab.make(tmp_path / "lab", program=program)
    assert call("run", "--lab", lab, "--researcher", script(lab, 2.0))[0] == 0
    campaign = Ledger(lab / ".autoresearch/ledger.jsonl").campaign()
    assert campaign is not None
    assert [(each.device, each.preset) for each in campaign.classes()] == [(str(hardware.device()), "cpu")]
    rewrite(lab, elsewhere(0))
    again = call("run", "--lab", lab, "--researcher", script(lab, 2.0, 1.5))
    refused(again, ELSEWHERE, str(hardware.device()), "run --tag NAME")


def test_other_kernels_than_the_baselines_are_named() -> None:
    known = {"attention": "flash_attention_2", "dtype": "torch.bfloat16", "device": "cuda: x"}
    baseline = a_run(1.0, environment=known)
    same = a_run(1.0, environment={**known, "device": "cuda: y"})
    assert comparability.other_kernels(same, baseline) == ""
    other = a_run(1.0, environment={**known, "attention": "flash_attention_3"})
    assert comparability.other_kernels(other, baseline) == "attention flash_attention_3, not flash_attention_2"
    assert comparability.other_kernels(a_run(1.0), baseline) == ""  # a lab that does not say
