"""Ctrl-C as one KeyboardInterrupt, however often it is pressed, so that cleaning up is not interrupted."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

QUIET_SECONDS = 2.0  # after an interrupt, in which more of them are taken for the same one
_last = -QUIET_SECONDS
_held = _pressed = False


def raise_once(number: int, frame: object) -> None:
    """A signal handler: raise KeyboardInterrupt, unless it was just raised. In `held`, raise it later."""
    global _last, _pressed
    now = time.monotonic()
    if now - _last >= QUIET_SECONDS:
        _last = now
        if _held:
            _pressed = True
        else:
            raise KeyboardInterrupt


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let Ctrl-C wait for the end of a block: a child process that is started in it is never lost half-way."""
    global _held, _pressed
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
        yield
        return
    _held = True
    try:
        yield
    finally:
        _held = False
        if _pressed:
            _pressed = False
            raise KeyboardInterrupt


def handle() -> None:
    """Let Ctrl-C call `raise_once`, unless it is ignored, as in a background job."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, raise_once)


def ignore() -> None:
    """Ignore Ctrl-C from here on: the program is about to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
