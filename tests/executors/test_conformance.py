"""What every executor does alike: on this machine, and on a node of a real Ray cluster."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import grading_lab
import toy_lab
from autoresearch.base import variables
from autoresearch.base.errors import EndRun
from autoresearch.base.process import MARK
from autoresearch.executors.interface import Equipment, Executor
from autoresearch.executors.machine import here
from autoresearch.grading.protocol import CHECKPOINT
from autoresearch.ledger.records import (
    Crash,
    CrashKind,
    Graded,
    RunEvent,
    RunRequest,
    RunResult,
    Score,
    Worth,
)
from orders import order

BOTH = [pytest.param("local"), pytest.param("ray", marks=pytest.mark.cluster)]
ALL = Worth(holdout=True, model=True)
NONE = Worth(holdout=False, model=False)
CURVE = """
import json, os, time
for step in range(3):
    with open(os.path.join(os.environ["AUTORESEARCH_RUN_DIR"], "curve.jsonl"), "a") as file:
        print(json.dumps({"step": step}), file=file)
    time.sleep(0.6)
"""


@pytest.fixture(scope="module", params=BOTH)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def graded_lab(tmp_path_factory: pytest.TempPathFactory) -> grading_lab.GradingLab:
    return grading_lab.make(tmp_path_factory.mktemp("graded"))


@pytest.fixture(scope="module")
def address(kind: str, graded_lab: grading_lab.GradingLab) -> Iterator[str]:
    if kind == "local":
        yield ""
        return
    import ray_cluster

    with ray_cluster.cluster(graded_lab.root / "cache", "one") as made:
        yield str(made.address)


def made(kind: str, lab: Path, address: str, equipment: Equipment) -> Executor:
    (lab / ".autoresearch").mkdir(exist_ok=True)
    wanted = order(lab, equipment, slots=1, address=address)
    if kind == "local":
        return here(wanted).executor
    from autoresearch.executors.cluster.site import there

    return there(wanted).executor


@pytest.fixture
def executor(kind: str, lab: Path, address: str, graded_lab: grading_lab.GradingLab) -> Iterator[Executor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variables.CACHE, str(graded_lab.root / "cache"))
        executor = made(kind, lab, address, Equipment(toy_lab.PREPARE, graded=False, sandbox="none"))
        yield executor
        executor.close()


def request(train: str, *, deadline: float = 60.0, prepare: str = toy_lab.PREPARE) -> RunRequest:
    files = {"train.py": train.encode(), "prepare.py": prepare.encode()}
    return RunRequest("0001/run0", "c", files, 42, 2.0, deadline, editable=("train.py",))


def run(executor: Executor, wanted: RunRequest, heard: list[RunEvent] | None = None) -> RunResult:
    return executor.run(wanted, (heard if heard is not None else []).append, lambda score: NONE)


def test_a_run_has_its_score_its_files_and_its_events(executor: Executor) -> None:
    heard: list[RunEvent] = []
    result = run(executor, request(toy_lab.train_with(2.0, CURVE)), heard)
    assert result.grading is not None
    assert isinstance(result.grading.outcome, Graded)
    assert result.grading.outcome.score.val_bpb == 2.0
    assert (result.exit_code, result.ended, result.lost, result.tampered) == (0, "", None, ())
    assert "peak_vram_mb" in result.log_tail
    assert Path(result.log_path).read_text().strip() == result.log_tail.strip()
    assert Path(result.curve_path).read_text().splitlines() == [json.dumps({"step": step}) for step in range(3)]
    names = [event.name for event in heard]
    assert names[-1] in ("load", "score")
    assert {"first_batch", "grade_requested", "score", "curve", "load"} <= set(names)
    assert [event.name for event in result.events] == ["first_batch", "grade_requested", "score"]
    assert result.load
    assert result.steps


def test_the_seed_and_the_environment_are_the_runs_own(executor: Executor) -> None:
    tell = "import os; print('SEED', os.environ['AUTORESEARCH_SEED'], [n for n in os.environ if 'SECRET' in n])\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_SECRET", "x")
        result = run(executor, dataclasses.replace(request(toy_lab.train_with(2.0, tell)), seed=77))
    assert "SEED 77 []" in result.log_tail


@pytest.mark.parametrize(
    ("extra", "kind_of_crash", "says"),
    [("raise ValueError('no such thing')\n", CrashKind.PYTHON_ERROR, "no such thing")],
)
def test_a_crash_is_told_with_its_log(executor: Executor, extra: str, kind_of_crash: CrashKind, says: str) -> None:
    result = run(executor, request(toy_lab.train_with(2.0, extra)))
    assert result.grading is not None
    assert isinstance(result.grading.outcome, Crash)
    assert result.grading.outcome.kind is kind_of_crash
    assert says in result.grading.outcome.detail
    assert result.exit_code == 1


def test_a_deadline_ends_it_and_nothing_of_it_is_left(lab: Path, executor: Executor) -> None:
    began = time.monotonic()
    result = run(executor, request(toy_lab.train_with(2.0, "import time; time.sleep(60)\n"), deadline=2.0))
    assert result.exit_code is None
    assert result.grading is not None
    assert isinstance(result.grading.outcome, Crash)
    assert result.grading.outcome.kind is CrashKind.TIME_OUT
    assert time.monotonic() - began < 30
    assert not running(lab)


def test_who_listens_can_end_it(lab: Path, executor: Executor) -> None:
    def enough(event: RunEvent) -> None:
        raise EndRun("enough of that")

    wanted = request(toy_lab.train_with(2.0, "import time; time.sleep(60)\n"))
    result = executor.run(wanted, enough, lambda score: NONE)
    assert result.ended == "enough of that"
    assert result.wall_seconds < 20
    assert not running(lab)


def test_a_frozen_file_that_it_changed_is_named(executor: Executor) -> None:
    change = "import os; os.chmod('prepare.py', 0o644); open('prepare.py', 'a').write('# mine')\n"
    assert run(executor, request(toy_lab.train_with(2.0, change))).tampered == ("prepare.py",)


def test_how_busy_the_machine_is_is_a_share(executor: Executor) -> None:
    assert 0 <= executor.busy_share(0.2) <= 1


def running(lab: Path) -> list[psutil.Process]:
    """The living processes of a lab's runs, wherever they are. Other tests have runs of their own."""
    found = []
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(MARK, "")
            found += [process] if str(lab) in mark or f"cluster/{lab.parent.name}/" in mark else []
        except psutil.Error:
            continue
    return found


# ---------------------------------------------------------------- graded from outside

SAVES = """
from safetensors.torch import save_model
next(loader)
save_model(model, os.path.join(os.environ["AUTORESEARCH_RUN_DIR"], "checkpoint.safetensors"))
evaluate(model)
"""


@pytest.mark.parametrize("worth", [ALL, NONE])
def test_the_grader_stands_beside_the_run(
    kind: str, lab: Path, address: str, graded_lab: grading_lab.GradingLab, worth: Worth
) -> None:
    """The score, the sealed split's and the model come back from wherever it ran, if they are worth having."""
    scores: list[Score] = []

    def weigh(score: Score) -> Worth:
        scores.append(score)
        return worth

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variables.CACHE, str(graded_lab.root / "cache"))
        executor = made(kind, lab, address, Equipment(graded_lab.prepare, graded=True, sandbox="none"))
        assert executor.grader.fingerprints()["val_sha256"]
        result = executor.run(request(grading_lab.HEAD + SAVES, prepare=graded_lab.prepare), lambda event: None, weigh)
        executor.close()
    expected = graded_lab.run(lab.parent, SAVES).score.val_bpb
    assert result.grading is not None
    assert isinstance(result.grading.outcome, Graded), (result.grading.outcome, result.log_tail)
    assert [score.val_bpb for score in scores] == [result.grading.outcome.score.val_bpb]
    assert abs(scores[0].val_bpb - expected) < 1e-6
    assert (result.grading.outcome.holdout is not None) is worth.holdout
    assert result.grading.answers
    assert result.grading.clock.first_batch is not None
    model = Path(result.log_path).with_name(CHECKPOINT)
    assert model.is_file() or not worth.model
    if worth.model:
        assert model.read_bytes() == (lab.parent / CHECKPOINT).read_bytes()
