from __future__ import annotations

import json
import math

import pytest

from autoresearch.ledger import lines
from autoresearch.ledger.events import Event, RunEnded, TrialProposed
from autoresearch.ledger.records import Purpose, Score

PROPOSED = TrialProposed(1, "t", "a", "b", "an idea → with more", "builtin", "f", 4, {"x": None, "y": 1, "z": 0.5})
ENDED = RunEnded(
    *(1, 0, 42, "b", Score(1.5, 1.0, 2, 3, (1.0, 2.0)), None, 0, 70, 3.0, 60.0, 0.5),
    *({"loss": math.inf}, {"device": "cpu", "compiled": True}, {"prepare.py": "00"}, "run.log", "curve.jsonl"),
    purpose=Purpose.CONFIRM,
)


@pytest.mark.parametrize(
    "event",
    [
        PROPOSED,
        TrialProposed(1, "t", "a", "b", "i", "r", "f", 4, moved=((0, 2), (7, 0.25), (8, 2**70), (9, math.inf))),
        ENDED,
    ],
)
def test_an_event_comes_back_from_its_line(event: Event) -> None:
    line = lines.encode(event)
    assert b"\n" not in line
    assert lines.decode(line) == event
    assert lines.decode(line + b"\n") == event


def test_whole_numbers_stay_whole_and_a_missing_field_has_its_default() -> None:
    record = json.loads(lines.encode(TrialProposed(1, "t", "a", "b", "i", "r", "f", 4, moved=((0, 2), (1, 2.0)))))
    del record["stale"]
    event = lines.decode(json.dumps(record, separators=(",", ":")).encode())
    assert isinstance(event, TrialProposed)
    assert [type(value) for _, value in event.moved or ()] == [int, float]
    assert event.stale is False


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"123", b"null", b"[]", b"{}", b"{", b'{"type": "proposed"}'),
        lines.encode(PROPOSED)[:-9],
        lines.encode(PROPOSED).replace(b'"trial": 1', b'"trial": "one"'),
        lines.encode(PROPOSED).replace(b"proposed", b"dreamed"),
        lines.encode(PROPOSED).replace(b'"version": 1', b'"version": 9'),
    ],
)
def test_a_line_that_is_no_event_is_told(line: bytes) -> None:
    with pytest.raises(lines.UnreadableError):
        lines.decode(line)
