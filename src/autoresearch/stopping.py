"""When a campaign ends: a number of trials, hours, or Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

NOTICE = "stopping after the trial under way; Ctrl-C again stops at once, and loses nothing but that run"


def enough(trials: int | None, hours: float | None, interrupted: Callable[[], bool]) -> Callable[[int], str | None]:
    """A function that says, of the number of trials made, why to stop now; None to go on."""
    end = time.monotonic() + hours * 3600 if hours is not None else None

    def reason(made: int) -> str | None:
        if interrupted():
            return "stopped by Ctrl-C"
        if trials is not None and made >= trials:
            return f"made {made} trial{'s' if made > 1 else ''}"
        return f"{hours:g} hours are over" if end is not None and time.monotonic() >= end else None

    return reason


@contextlib.contextmanager
def ended_as_by_hand() -> Iterator[None]:
    """Make SIGTERM and a closed terminal raise KeyboardInterrupt, so that nothing is left running."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    old = {number: signal.signal(number, interrupt) for number in _ends()}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _ends() -> list[signal.Signals]:
    """SIGTERM, and a closed terminal's signal unless it is ignored, as under nohup."""
    hangs_up = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGTERM, *([signal.SIGHUP] if hangs_up else [])]


@contextlib.contextmanager
def interrupts(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Yield whether Ctrl-C was pressed; a second one, SIGTERM or a closed terminal raises KeyboardInterrupt."""
    pressed = False

    def interrupt(number: int, frame: object) -> None:
        nonlocal pressed
        if pressed or number != signal.SIGINT:
            raise KeyboardInterrupt
        pressed = True
        say(NOTICE)

    old = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, *_ends())}
    try:
        yield lambda: pressed
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
