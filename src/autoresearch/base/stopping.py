"""When a campaign ends: number of trials, hours, or Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence

from autoresearch.base import interrupt

NOTICE = "stopping after the current trial; Ctrl-C again stops right away, and loses only that run"


def enough(trials: int | None, hours: float | None, interrupted: Callable[[], bool]) -> Callable[[int], str | None]:
    """A function of the number of trials made: why to stop now, or None to continue."""
    end = time.monotonic() + hours * 3600 if hours is not None else None

    def reason(made: int) -> str | None:
        if interrupted():
            return "stopped by Ctrl-C"
        if trials is not None and made >= trials:
            return f"made {made} trial{'s' if made > 1 else ''}"
        return f"{hours:g} hours have passed" if end is not None and time.monotonic() >= end else None

    return reason


@contextlib.contextmanager
def ended_as_by_hand() -> Iterator[None]:
    """Make SIGTERM and a closed terminal raise KeyboardInterrupt, so that nothing is left running."""
    with _handled(interrupt.raise_once, _ends()):
        yield


@contextlib.contextmanager
def _handled(handler: Callable[[int, object], None], numbers: Sequence[signal.Signals]) -> Iterator[None]:
    """Let a handler hear signals. Not undone once the program has decided to end, when it ignores them all."""
    old = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in old.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, before)


def _ends() -> list[signal.Signals]:
    """SIGTERM, and the signal of a closed terminal unless it is ignored, as under nohup."""
    hangs_up = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGTERM, *([signal.SIGHUP] if hangs_up else [])]


@contextlib.contextmanager
def interrupts(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Yield whether Ctrl-C was pressed; a second one, SIGTERM or a closed terminal raises KeyboardInterrupt."""
    pressed = False

    def hear(number: int, frame: object) -> None:
        nonlocal pressed
        if pressed or number != signal.SIGINT:
            interrupt.raise_once(number, frame)
            return
        pressed = True
        say(NOTICE)

    with _handled(hear, (signal.SIGINT, *_ends())):
        yield lambda: pressed
