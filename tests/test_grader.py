from __future__ import annotations

import pytest

from autoresearch.grader import InProcessGrader, memory_gb, printed_summary, training_seconds
from autoresearch.records import Crash, CrashKind, RunEvent, RunRequest, RunResult, Score

REQUEST = RunRequest("0001/run0", "c", {}, 42, 60.0, 120.0)
TOLD = {"event": "score", "split": "val", "val_bpb": 1.25, "nats": 10.0, "tokens": 4, "bytes": 8}


def grade(values: dict[str, object] | None, code: int | None = 0) -> Score | Crash:
    events = () if values is None else (RunEvent("score", 61.0, values),)  # type: ignore[arg-type]
    return InProcessGrader().grade(REQUEST, RunResult(code, 62.0, events, "log", "run.log", "curve.jsonl"))


def test_a_told_score_is_taken() -> None:
    assert grade(dict(TOLD)) == Score(1.25, 10.0, 4, 8)


@pytest.mark.parametrize(
    "change", [{"val_bpb": "low"}, {"val_bpb": None}, {"nats": []}, {"tokens": "x"}, {"tokens": float("nan")}]
)
def test_a_score_that_is_no_number_is_a_crash(change: dict[str, object]) -> None:
    assert isinstance(grade({**TOLD, **change}), Crash)


def test_an_infinite_score_is_a_crash() -> None:
    crash = grade({**TOLD, "val_bpb": float("inf")})
    assert isinstance(crash, Crash)
    assert crash.kind is CrashKind.NOT_FINITE


def test_what_train_py_prints_is_not_a_score() -> None:
    result = RunResult(0, 1.0, (), "---\nval_bpb: 0.1\n", "run.log", "curve.jsonl")
    assert isinstance(InProcessGrader().grade(REQUEST, result), Crash)


def test_a_run_that_fails_after_its_score_is_a_crash() -> None:
    assert isinstance(grade(dict(TOLD), code=1), Crash)


def test_the_clock_is_the_parents() -> None:
    events = (RunEvent("first_batch", 3.0, {"at": 0.0}), RunEvent("grade_requested", 63.5, {"at": 1.0}))
    assert training_seconds(events) == 60.5
    assert training_seconds(events[:1]) is None


def test_the_summary_block_is_read_and_noise_around_it_is_not() -> None:
    text = (
        "depth: 99\n---\nval_bpb:          1.250000\nmfu_percent:      n/a\npeak_vram_mb:     1024.0\nbye: no number\n"
    )
    assert printed_summary(text) == {"val_bpb": 1.25, "peak_vram_mb": 1024.0}
    assert memory_gb(printed_summary(text)) == 1.0
    assert printed_summary("no block\ndepth: 4\n") == {}
    assert memory_gb({}) is None
