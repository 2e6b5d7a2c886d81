"""One run's record, and how a run that is hopeless is ended, with real processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import toy_lab
from autoresearch.base import variables
from autoresearch.base.errors import EndRun, UserError
from autoresearch.executors.local import LocalExecutor
from autoresearch.executors.sandbox.sandboxes import Nothing
from autoresearch.grading.grader import SelfReported
from autoresearch.judging import pruning
from autoresearch.ledger.records import Proposal, Purpose, RunEvent, RunRequest, Status, Worth
from autoresearch.loop.loop import run_campaign
from conftest import stages

BUDGET = 20.0
# Each run's loss falls to its X; a slow one writes a line each tenth of a second, as long as a real one would.
CURVE = """
import json, os, pathlib, time
X, SLOW = 3.0, False
from prepare import evaluate, tell
tell(event="first_batch", device="toy")
with open(pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"]) / "curve.jsonl", "a") as file:
    for step in range(200):
        progress = step / 200
        file.write(json.dumps({"step": step, "progress": progress, "loss": X + 2 * (1 - progress)}) + "\\n")
        file.flush()
        time.sleep(0.1 if SLOW else 0)
"""
TRAIN = CURVE + 'evaluate(X)\nprint("---")\n'


def change(x: float, *, slow: bool = False) -> Proposal:
    # A number of its own, lest the guard finds two changes too near each other.
    text = TRAIN.replace("X, SLOW = 3.0, False", f"X, SLOW = {x}, {slow}\nNUMBER = {round(100 * x)}")
    return Proposal(f"X to {x}", {"train.py": text})


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    return toy_lab.make(tmp_path / "lab", train=TRAIN)


def test_who_listens_to_a_run_can_end_it(tmp_path: Path) -> None:
    executor = LocalExecutor(
        tmp_path / "runs", Path(sys.executable), variables.for_run(), "test:", Nothing(), SelfReported()
    )
    files = {"train.py": TRAIN.replace("False", "True").encode(), "prepare.py": toy_lab.PREPARE.encode()}

    def enough(event: RunEvent) -> None:
        raise EndRun("enough")

    result = executor.run(
        RunRequest("r", "c", files, 42, BUDGET, 60.0), enough, lambda score: Worth(holdout=False, model=False)
    )
    assert result.ended == "enough"
    assert result.wall_seconds < 10


@pytest.mark.slow
def test_a_hopeless_run_is_ended_and_says_when(lab: Path) -> None:
    past = [change(3.0 + number / 100) for number in range(1, 13)]
    spared = next(number for number in range(13, 99) if pruning.spared(number, "t"))
    hopeless = 13 if spared != 13 else 14
    more = [change(3.2 + number / 100) for number in range(hopeless - 13)]
    parts = stages(lab, [*past, *more, change(9.0, slow=True)], budget_seconds=BUDGET, deadline_seconds=60.0)
    run_campaign(parts, "t", lambda made: None)
    trial = parts.campaign("t").trials[-1]
    (run,) = trial.runs
    assert run.pruned is not None
    assert 0.3 <= run.pruned <= 0.5
    assert run.wall_seconds < 0.6 * BUDGET
    assert (run.score, run.crash, run.purpose) == (None, None, Purpose.TRIAL)
    assert trial.verdict is not None
    assert trial.verdict.status is Status.DISCARD
    assert trial.verdict.reason.startswith(f"pruned at {100 * run.pruned:.0f} %")
    assert "pruned at" in (lab / "results.tsv").read_text()


@pytest.mark.slow
def test_nothing_is_ended_where_that_is_switched_off(lab: Path) -> None:
    past = [change(3.0 + number / 100) for number in range(1, 13)]
    lines = [*past, change(9.0, slow=True)]
    parts = stages(lab, lines, budget_seconds=BUDGET, deadline_seconds=60.0, prune=False)
    run_campaign(parts, "t", lambda made: None)
    assert parts.campaign("t").trials[-1].val_bpb == 9.0


def test_a_band_is_learned_from_the_curves_of_past_runs(lab: Path) -> None:
    from autoresearch.loop.run import band

    parts = stages(lab, [change(3.0 + number / 100) for number in range(1, 13)], budget_seconds=BUDGET)
    run_campaign(parts, "t", lambda made: None)
    limits = band(parts, parts.campaign("t")).limits
    assert list(limits) == list(pruning.MARKS)
    assert all(limit > 3.0 + 2 * (1 - mark / 100) for mark, limit in limits.items())


def slow_lab(tmp_path: Path, *, always: bool) -> Path:
    """A lab whose step takes longer than its budget: in its first run, or in every run."""
    mark = tmp_path / "mark"
    wait = f"m = pathlib.Path({str(mark)!r})\n    time.sleep(1.2 if {always} or not m.exists() else 0)\n    m.touch()"
    prepare = toy_lab.PREPARE.replace("TIME_BUDGET = 2", "TIME_BUDGET = 0.3").replace(
        'tell(event="grade_requested")', f"import time\n    {wait}\n    tell(event='grade_requested')"
    )
    return toy_lab.make(tmp_path / "lab", prepare=prepare)


def test_a_baseline_that_overran_its_budget_is_run_once_more(tmp_path: Path) -> None:
    parts = stages(slow_lab(tmp_path, always=False), [], budget_seconds=0.3)
    run_campaign(parts, "t", lambda made: "enough")
    run_campaign(parts, "t", lambda made: "enough" if parts.campaign("t").incumbent else None)
    baseline = parts.campaign("t").trials[0]
    assert baseline.verdict is not None
    assert baseline.verdict.status is Status.KEEP
    assert [run.set_aside for run in baseline.every_run] == [False, True]
    assert "but the budget is 0.3 s" in str(baseline.disturbed[0].disturbed)


def test_a_baseline_that_overruns_again_is_told_why_and_not_called_invalid(tmp_path: Path) -> None:
    parts = stages(slow_lab(tmp_path, always=True), [], budget_seconds=0.3)
    with pytest.raises(UserError, match=r"the baseline crashed \(time-out: it trained for 1\.\d s, but .*doctor --fit"):
        run_campaign(parts, "t", lambda made: "enough" if made else None)
    baseline = parts.campaign("t").trials[0]
    assert len(baseline.every_run) == 2
    assert baseline.invalid is None
