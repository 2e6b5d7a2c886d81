"""A disturbed run is no evidence: it is set aside, made again, and in the end judged with a word about it."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

import toy_lab
from autoresearch.executors import disturbance, local
from autoresearch.executors.interface import Executor, Progress, Weigh
from autoresearch.executors.sandbox import watch
from autoresearch.judging import judge
from autoresearch.ledger.ledger import Ledger
from autoresearch.ledger.records import Load, RunEvent, RunRequest, RunResult, Status
from autoresearch.loop import run
from autoresearch.loop.loop import run_campaign
from autoresearch.loop.parts.stages import Policy, Stages
from autoresearch.views.live import LiveView
from conftest import never, proposal, stages

QUIET = tuple(Load(at=at, processors=2, used=2.0 * at, waited=0.0, busy=2.0 * at, own=0, stolen=0) for at in (0, 9))
BUSY = tuple(Load(at=at, processors=2, used=1.0 * at, waited=1.0 * at, busy=2.0 * at, own=0, stolen=0) for at in (0, 9))


SPIN = """
import json, os, pathlib, time
from prepare import evaluate, tell
tell(event="first_batch", device="toy")
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
X, start = 3.0, time.monotonic()
with open(pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"]) / "curve.jsonl", "a") as curve:
    while time.monotonic() - start < 20:
        curve.write(json.dumps({"progress": 0.5, "loss": 1.0}) + "\\n")
        curve.flush()
        sum(range(10**6))
evaluate(1 + (X - 1) ** 2)
print("---")
"""


class Machine:
    """The real executor on a machine that is busy (1) or quiet (0) in turn, run by run, then as in the last one."""

    def __init__(self, executor: Executor, busy: Sequence[int]) -> None:
        self._executor, self._busy = executor, list(busy)
        self.name, self.sandbox, self.grader = executor.name, executor.sandbox, executor.grader
        self.waits = 0
        self.runs: list[tuple[str, int]] = []

    def end_leftovers(self) -> int:
        return self._executor.end_leftovers()

    def close(self) -> None:
        self._executor.close()

    def run(self, request: RunRequest, progress: Progress, weigh: Weigh) -> RunResult:
        self.runs.append((request.run_id, request.seed))
        result = self._executor.run(request, progress, weigh)
        busy = self._busy.pop(0) if len(self._busy) > 1 else self._busy[0]
        return dataclasses.replace(result, load=BUSY if busy else QUIET)

    def busy_share(self, seconds: float) -> float:
        self.waits += 1
        return 1.0


@pytest.fixture(autouse=True)
def whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Toy runs are over at once: their whole scripted load counts."""
    lost = disturbance.lost
    monkeypatch.setattr(disturbance, "lost", lambda load, start=None, end=None: lost(load))
    monkeypatch.setattr(run, "QUIET_SECONDS", 0.01)


def on(lab: Path, busy: Sequence[int], xs: Sequence[float], quiet_seconds: float = 0.05) -> tuple[Stages, Machine]:
    parts = stages(lab, [proposal(x) for x in xs], policy=Policy(quiet_seconds=quiet_seconds))
    machine = Machine(parts.executor, busy)
    return dataclasses.replace(parts, executor=machine), machine


def test_a_disturbed_run_is_made_again_on_its_seed_and_both_are_on_record(lab: Path) -> None:
    parts, machine = on(lab, [0, 1, 0], [2.0])
    run_campaign(parts, "t", never)
    trial = parts.campaign("t").trials[1]
    assert machine.runs == [("0000/run0", 42), ("0001/run0", 42), ("0001/run1", 42)]
    assert [each.run for each in trial.runs] == [1]
    assert [(each.run, each.set_aside) for each in trial.disturbed] == [(0, True)]
    assert trial.disturbed[0].disturbed == "other programs took 50 % of its processor time"
    assert trial.scores == (2.0,)
    assert trial.verdict is not None
    assert trial.verdict.status is Status.KEEP
    assert "although" not in trial.verdict.reason
    assert machine.waits == 0


def test_a_machine_that_stays_busy_is_waited_for_and_then_judged_with_a_word_about_it(lab: Path) -> None:
    parts, machine = on(lab, [0, 1], [2.0, 1.5])
    run_campaign(parts, "t", never)
    first, second = parts.campaign("t").trials[1:]
    assert (len(first.disturbed), len(first.runs)) == (3, 1)
    assert machine.waits >= 1
    assert first.runs[0].disturbed is not None
    assert first.verdict is not None
    assert first.verdict.status is Status.KEEP
    assert "it was judged although other programs took 50 %" in first.verdict.reason
    assert (len(second.disturbed), len(second.runs)) == (0, 1), "this machine is always like that"


def test_once_the_machine_is_quiet_again_disturbances_count_again(lab: Path) -> None:
    parts, _ = on(lab, [0, 1, 1, 1, 1, 0, 1, 0], [2.0, 1.5, 1.2])
    run_campaign(parts, "t", never)
    assert [len(trial.disturbed) for trial in parts.campaign("t").trials] == [0, 3, 0, 1]


def test_the_noise_never_sees_a_disturbed_run(lab: Path) -> None:
    parts, _ = on(lab, [0, 1, 0], [2.0])
    run_campaign(parts, "t", never)
    campaign = parts.campaign("t")
    assert judge.noise_of(campaign).freedom == 1  # nothing was replicated: two runs of one seed would be
    assert len(campaign.disturbed) == 1


def test_a_crash_is_a_crash_on_a_busy_machine_too(lab: Path) -> None:
    parts = stages(lab, [proposal(2.0, extra="raise ValueError('no')")])
    machine = Machine(parts.executor, [0, 1])
    run_campaign(dataclasses.replace(parts, executor=machine), "t", never)
    trial = parts.campaign("t").trials[1]
    assert (len(trial.runs), trial.disturbed) == (1, ())
    assert trial.verdict is not None
    assert trial.verdict.status is Status.CRASH


@pytest.mark.parametrize("ended", [watch.FILLED_BY_OTHERS, ""])
def test_what_others_did_to_a_run_is_no_crash_of_the_idea(lab: Path, ended: str) -> None:
    """A disk filled by somebody else, and a laptop that slept beyond the deadline: the next try counts."""
    parts = stages(lab, [proposal(2.0)], policy=Policy(quiet_seconds=0.05))
    slept = (QUIET[0], dataclasses.replace(QUIET[1], at=60.0))

    class Unlucky(Machine):
        def run(self, request: RunRequest, progress: Progress, weigh: Weigh) -> RunResult:
            result = super().run(request, progress, weigh)
            if len(self.runs) != 2:
                return result
            result = dataclasses.replace(result, exit_code=None, ended=ended, load=slept, events=())
            session = self.grader.session(request, lambda score: False)
            return dataclasses.replace(result, grading=local.graded(session, result))

    run_campaign(dataclasses.replace(parts, executor=Unlucky(parts.executor, [0])), "t", never)
    trial = parts.campaign("t").trials[1]
    assert (len(trial.disturbed), len(trial.runs)) == (1, 1)
    assert trial.disturbed[0].disturbed == (ended or "the machine or this program stood still for 60 s")
    assert trial.verdict is not None
    assert trial.verdict.status is Status.KEEP


def test_after_a_kill_the_runs_set_aside_before_still_count_as_tries(lab: Path) -> None:
    parts, _ = on(lab, [0, 1, 1, 1, 1], [2.0])
    run_campaign(parts, "t", never)
    ledger = lab / ".autoresearch/ledger.jsonl"
    lines = ledger.read_text().splitlines()
    ends = [number for number, line in enumerate(lines) if json.loads(line)["type"] == "run_ended"]
    ledger.write_text("\n".join(lines[: ends[3] + 1]) + "\n")  # as if it had been killed after two tries and a third
    again, machine = on(lab, [1], [2.0])
    run_campaign(again, "t", never)
    trial = Ledger(ledger).campaigns()[0].trials[1]
    assert (len(trial.disturbed), len(trial.runs)) == (3, 1)
    assert machine.waits >= 1


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says who waits")
def test_a_real_neighbor_ends_a_real_run_early_and_the_next_one_counts(tmp_path: Path) -> None:
    lab = toy_lab.make(tmp_path / "lab", train=SPIN)
    parts = stages(lab, [], budget_seconds=20.0, deadline_seconds=60.0, policy=Policy(quiet_seconds=60))
    processor = min(os.sched_getaffinity(0))
    burn = f"import os; os.sched_setaffinity(0, {{{processor}}})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", burn]) as neighbor:
        threading.Timer(12.0, neighbor.kill).start()
        run_campaign(parts, "t", never)
    baseline = parts.campaign("t").trials[0]
    assert [run.score for run in baseline.disturbed] == [None] * len(baseline.disturbed)
    assert baseline.disturbed[0].wall_seconds < 15
    assert baseline.disturbed[0].crash is None
    assert "other programs took" in str(baseline.disturbed[0].disturbed)
    assert baseline.val_bpb == 5.0


def test_the_live_view_says_it_at_once() -> None:
    out = io.StringIO()
    view = LiveView(Console(file=out, width=200))
    view.progress(3, RunEvent("curve", 1.0, {"progress": 0.5, "loss": 2.0}))
    view.progress(3, RunEvent("load", 2.0, {"lost": 0.4}))
    assert view._works[3] is not None
    assert "40% taken by other programs" in view._works[3].numbers()
    view.progress(3, RunEvent("waiting", 2.0, {"busy": 0.5}))
    assert "waiting for a quiet machine" in view._works[3].numbers()


def test_status_log_report_and_show_tell_it(lab: Path) -> None:
    parts, _ = on(lab, [0, 1, 0], [2.0])
    run_campaign(parts, "t", never)

    def said(*words: str) -> str:
        command = [sys.executable, "-m", "autoresearch", *words, "--lab", str(lab)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "1 run was made again" in said("status")
    assert "1 run was made again" in said("report")
    assert "1 disturbed run made again" in said("log")
    assert "run 0: other programs took 50 % of its processor time; set aside" in said("show", "1")
    assert json.loads(said("log", "--json"))[1]["disturbed"] == ["other programs took 50 % of its processor time"]
    assert json.loads(said("report", "--json"))["disturbed"] == 1
