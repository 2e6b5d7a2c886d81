"""Ctrl-C as one KeyboardInterrupt, however often it is pressed, so that cleaning up is not interrupted."""

from __future__ import annotations

import signal
import time

QUIET_SECONDS = 2.0  # after an interrupt, in which more of them are taken for the same one
_last = -QUIET_SECONDS


def raise_once(number: int, frame: object) -> None:
    """A signal handler: raise KeyboardInterrupt, unless it was just raised."""
    global _last
    now = time.monotonic()
    if now - _last >= QUIET_SECONDS:
        _last = now
        raise KeyboardInterrupt


def handle() -> None:
    """Let Ctrl-C call `raise_once`, unless it is ignored, as in a background job."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, raise_once)


def ignore() -> None:
    """Ignore Ctrl-C from here on: the program is about to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
