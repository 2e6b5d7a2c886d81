from __future__ import annotations

import pytest

from autoresearch.grading.diagnosis import diagnose, last_frames
from autoresearch.ledger.records import CrashKind

TRACE = """step 1
Traceback (most recent call last):
  File "a.py", line 1, in <module>
    one()
  File "b.py", line 2, in one
    two()
  File "c.py", line 3, in two
    three()
  File "d.py", line 4, in three
    raise {error}
{error}
"""


@pytest.mark.parametrize(
    ("code", "log", "kind"),
    [
        (None, "step 1", CrashKind.TIME_OUT),
        (1, TRACE.format(error="torch.OutOfMemoryError: CUDA out of memory."), CrashKind.OUT_OF_MEMORY),
        (1, TRACE.format(error="RuntimeError: DefaultCPUAllocator: can't allocate memory"), CrashKind.OUT_OF_MEMORY),
        (-9, "step 1", CrashKind.OUT_OF_MEMORY),
        # Triton's word for a kernel that needs more registers or shared memory than the GPU has.
        (1, TRACE.format(error="OutOfMemoryError: out of resource: shared memory"), CrashKind.PYTHON_ERROR),
        (1, "step 3\nFAIL: loss is inf at step 3", CrashKind.NOT_FINITE),
        (1, TRACE.format(error="ValueError: bad"), CrashKind.PYTHON_ERROR),
        (2, "usage", CrashKind.EXITED),
        (-11, "", CrashKind.EXITED),
        (-15, "", CrashKind.EXITED),
        (0, "all went well", CrashKind.NO_SCORE),
        (0, "an idea about running out of memory", CrashKind.NO_SCORE),
    ],
)
def test_each_end_has_its_kind(code: int | None, log: str, kind: CrashKind) -> None:
    assert diagnose(code, log, 60).kind is kind


def test_the_last_frames_and_the_error_are_told() -> None:
    frames = last_frames(TRACE.format(error="ValueError: bad"))
    assert frames.startswith('File "b.py"')
    assert frames.endswith("ValueError: bad")


def test_a_log_without_a_traceback_gives_its_last_lines() -> None:
    assert last_frames("a\nb\nc\nd\n") == "b\nc\nd"


def test_a_traceback_without_frames_is_told_as_it_stands() -> None:
    log = "step 1\nTraceback (most recent call last):\n"
    assert diagnose(1, log, 60).detail == log.strip()
