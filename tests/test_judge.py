from __future__ import annotations

import pytest

from autoresearch.judge import GreedyJudge
from autoresearch.records import Crash, CrashKind, RunEnded, Score, Status, Trial, TrialProposed


def trial(val_bpb: float | None) -> Trial:
    score = None if val_bpb is None else Score(val_bpb, 1.0, 1, 1)
    crash = Crash(CrashKind.TIME_OUT, "too slow") if val_bpb is None else None
    run = RunEnded(0, 0, 42, "c", score, crash, 0, 1.0, 1.0, 1.0, 1.0, {}, {}, {}, "", "")
    return Trial(TrialProposed(0, "t", "p", "c", "idea", "r", "f", 1), (run,))


@pytest.mark.parametrize(
    ("candidate", "status"),
    [(1.0, Status.KEEP), (1.999999, Status.KEEP), (2.0, Status.DISCARD), (2.1, Status.DISCARD), (None, Status.CRASH)],
)
def test_only_a_lower_val_bpb_is_kept(candidate: float | None, status: Status) -> None:
    assert GreedyJudge().decide(trial(2.0), trial(candidate)).status is status


def test_the_baseline_is_kept_unless_it_crashed() -> None:
    assert GreedyJudge().decide(None, trial(9.0)).status is Status.KEEP
    decision = GreedyJudge().decide(None, trial(None))
    assert decision.status is Status.CRASH
    assert decision.reason == "time-out: too slow"
