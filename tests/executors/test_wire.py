"""What a driver and its workers tell each other arrives as it was sent, in whatever parts."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from autoresearch.executors.cluster import wire
from autoresearch.executors.interface import Equipment
from autoresearch.ledger.records import (
    Clock,
    Crash,
    CrashKind,
    Graded,
    Grading,
    Invalid,
    Load,
    Place,
    RunEvent,
    RunRequest,
    RunResult,
    Score,
    Worth,
)

SCORE = Score(1.5, 30.0, 20, 40, (1.25, 1.75))
REQUEST = RunRequest("0001/run0", "c", MappingProxyType({"train.py": b"\xff\x00 = 1\n"}), 42, 2.0, 60.0, ("train.py",))


@pytest.mark.parametrize(
    "outcome",
    [Graded(SCORE), Graded(SCORE, SCORE), Invalid("it looked ahead"), Crash(CrashKind.OUT_OF_MEMORY, "20 GiB →")],
)
def test_a_result_arrives_as_it_was_sent(outcome: Graded | Invalid | Crash) -> None:
    grading = Grading(outcome, Clock(1.0, 2.0), {"device": "a card", "compiled": True}, b"\x93NUMPY")
    load = Load(at=1.0, processors=2, used=1.0, waited=None, busy=2.0, own=1.0, stolen=0.0)
    event = RunEvent("first_batch", 0.5, MappingProxyType({"event": "first_batch", "nothing": None}))
    sent = RunResult(-9, 3.5, (event,), "the end", "/there/run.log", "/there/curve", ("a.py",), "", 7, (load,), grading)
    (told,) = wire.Lines()(wire.line(wire.ended(sent, 3)))
    assert isinstance(told, wire.Ended)
    got = wire.result(told, "/here/run.log", "/here/curve")
    assert (got.log_path, got.curve_path, told.model) == ("/here/run.log", "/here/curve", 3)
    assert (got.exit_code, got.wall_seconds, got.log_tail) == (-9, 3.5, "the end")
    assert (got.tampered, got.steps, got.load, got.grading) == (("a.py",), 7, (load,), grading)
    assert [(each.name, each.at, dict(each.values)) for each in got.events] == [("first_batch", 0.5, event.values)]


def test_lines_that_come_in_parts_are_whole() -> None:
    told = [wire.Written("run.log", b"\n\n\x00"), wire.Event("load", 1.0, {"a": "\n"}), wire.Scored(SCORE)]
    text = b"".join(map(wire.line, told))
    for size in (1, 7, len(text)):
        lines = wire.Lines()
        assert [each for at in range(0, len(text), size) for each in lines(text[at : at + size])] == told


def test_a_request_and_what_else_a_worker_is_told() -> None:
    parts = wire.parts(wire.packed(REQUEST))
    assert wire.request(b"".join(parts)) == REQUEST
    large = RunRequest("r", "c", {"train.py": b"x" * 200_000}, 42, 2.0, 60.0, place=Place(processors=(0, 1)))
    assert max(map(len, wire.parts(wire.packed(large)))) <= wire.PART
    assert wire.request(b"".join(wire.parts(wire.packed(large)))) == large
    plan = wire.Plan(
        "lab", Equipment("text", graded=True, memory_gb=3.0), {"torch": "2.13.0"}, cores=2, share=1, shares=4
    )
    assert wire.plan(wire.packed(plan)) == plan
    found = wire.Found("a machine", problem="it is too small")
    assert wire.found(wire.packed(found)) == found
    assert wire.worth(wire.packed(Worth(holdout=True, model=False))) == Worth(holdout=True, model=False)


@pytest.mark.parametrize("text", [b"", b"hello", b'["said", {}]', b'["ended", {}]'])
def test_what_no_worker_says_is_named(text: bytes) -> None:
    with pytest.raises(ValueError, match="no worker of this version says"):
        wire.told(text)
