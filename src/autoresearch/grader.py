"""The parent's reading of a run: its score, its clock, and what it printed.

The score itself is still computed by `prepare.py` within the run; printed numbers decide nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from autoresearch.diagnosis import diagnose
from autoresearch.records import Crash, CrashKind, RunEvent, RunRequest, RunResult, Scalar, Score

SUMMARY_LINE = re.compile(r"^(\w+):\s+(\S+)\s*$")
MEBIBYTES_PER_GIBIBYTE = 1024
SCORE = ("val_bpb", "nats", "tokens", "bytes")


class InProcessGrader:
    """Takes the score that the frozen `evaluate_bpb` reported from within the run."""

    def grade(self, request: RunRequest, result: RunResult) -> Score | Crash:
        """See `interfaces.Grader`; a run that failed after it was scored is a crash all the same."""
        told = first_event(result.events, "score")
        if told is None or result.exit_code != 0:
            return diagnose(result.exit_code, result.log_tail, request.deadline_seconds)
        return _score(told.values)


def _score(values: Mapping[str, Scalar]) -> Score | Crash:
    numbers = [float(value) for name in SCORE if isinstance(value := values.get(name), int | float)]
    if len(numbers) != len(SCORE):
        return Crash(CrashKind.NO_SCORE, f"the reported score lacks one of {', '.join(SCORE)}")
    val_bpb, nats, tokens, total_bytes = numbers
    if not all(map(math.isfinite, numbers)):
        return Crash(CrashKind.NOT_FINITE, f"val_bpb is {val_bpb} ({nats} nats, {tokens} tokens, {total_bytes} bytes)")
    return Score(val_bpb, nats, int(tokens), int(total_bytes))


def first_event(events: tuple[RunEvent, ...], name: str) -> RunEvent | None:
    return next((event for event in events if event.name == name), None)


def training_seconds(events: tuple[RunEvent, ...]) -> float | None:
    """From the first real training batch to the request for grading, in seconds on the parent's clock."""
    first, last = first_event(events, "first_batch"), first_event(events, "grade_requested")
    return last.at - first.at if first and last else None


def printed_summary(log_tail: str) -> dict[str, float]:
    """The numbers of the block that `train.py` prints after a line `---`; those that are no numbers are left out."""
    _, found, block = f"\n{log_tail}".rpartition("\n---\n")
    if not found:
        return {}
    numbers = {}
    for line in block.splitlines():
        if match := SUMMARY_LINE.match(line):
            try:
                numbers[match[1]] = float(match[2])
            except ValueError:
                continue
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def memory_gb(summary: Mapping[str, float]) -> float | None:
    """The peak memory that the run printed, in GiB."""
    peak = summary.get("peak_vram_mb")
    return peak / MEBIBYTES_PER_GIBIBYTE if peak is not None else None
