"""Tells the reasons for a crash apart by what a run left: its exit code and the end of its log."""

from __future__ import annotations

import re
import signal

from autoresearch.ledger.records import Crash, CrashKind

OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError(?!: out of resource)|out of memory|\bMemoryError|can't allocate memory|Cannot allocate memory",
    re.IGNORECASE,
)
NOT_FINITE = re.compile(r"^FAIL: loss .*$", re.MULTILINE)
TRACEBACK = "Traceback (most recent call last):"
FRAMES = 3
LONGEST_LINE = 500  # characters of a log quoted in a reason


def diagnose(exit_code: int | None, log_tail: str, deadline_seconds: float, ended: str = "") -> Crash:
    """Why a run has no score. `exit_code` is None if it was ended, either for the reason `ended` or by its deadline."""
    if ended:
        return Crash(CrashKind.OUT_OF_MEMORY if OUT_OF_MEMORY.search(ended) else CrashKind.EXITED, ended)
    if exit_code is None:
        return Crash(CrashKind.TIME_OUT, f"no score after {deadline_seconds:.0f} s, so the run was ended")
    if failed := NOT_FINITE.search(log_tail):
        return Crash(CrashKind.NOT_FINITE, failed.group().removeprefix("FAIL: "))
    if exit_code and OUT_OF_MEMORY.search(log_tail):
        return Crash(CrashKind.OUT_OF_MEMORY, last_frames(log_tail))
    if exit_code == -signal.SIGTERM.value:
        return Crash(CrashKind.EXITED, "something outside ended the run with SIGTERM")
    if exit_code == -9:
        return Crash(CrashKind.OUT_OF_MEMORY, "the system killed it (SIGKILL), as it does when memory runs out")
    if exit_code and TRACEBACK in log_tail:
        return Crash(CrashKind.PYTHON_ERROR, last_frames(log_tail))
    if exit_code:
        return Crash(CrashKind.EXITED, f"exit code {exit_code}: {_last_line(log_tail)}")
    return Crash(CrashKind.NO_SCORE, f"exited without a score from evaluate_bpb: {_last_line(log_tail)}")


def last_frames(log_tail: str) -> str:
    """The last traceback's last frames and its error, or the last lines if there is none with frames."""
    _, found, trace = log_tail.rpartition(TRACEBACK)
    if not found or not trace.strip():
        return "\n".join(log_tail.strip().splitlines()[-FRAMES:])
    lines = trace.strip("\n").splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    return "\n".join(line.rstrip() for line in lines[starts[-FRAMES] if len(starts) >= FRAMES else 0 :]).strip()


def _last_line(log_tail: str) -> str:
    lines = log_tail.strip().splitlines()
    return lines[-1][:LONGEST_LINE] if lines else "the log is empty"
