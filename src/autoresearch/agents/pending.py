"""The latest trial that an agent asked for, on the disk: which edits, which process, and its answer once it has one.

A call that lost its connection, or another one that asks for the same edits, finds here what became of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from autoresearch.base import atomic

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Pending:
    """A trial of edits with this digest. `process` began at `created`, in seconds since 1970, the trial at `since`."""

    edits: str
    idea: str
    process: int
    created: float
    since: float
    answer: dict[str, Any] | None = None

    @property
    def is_at_work(self) -> bool:
        """Whether its process is still there and has not answered."""
        if self.answer is not None:
            return False
        with contextlib.suppress(psutil.Error):
            return psutil.Process(self.process).create_time() == self.created
        return False


def digest(edits: Mapping[str, str]) -> str:
    """What tells edits apart: complete files by path."""
    return hashlib.sha256(json.dumps(dict(edits), sort_keys=True).encode()).hexdigest()


def begin(path: Path, edits: str, idea: str) -> None:
    """Record that this process is about to try these edits."""
    me = psutil.Process(os.getpid())
    _write(path, Pending(edits, idea, me.pid, me.create_time(), time.time()))


def end(path: Path, answer: dict[str, Any]) -> None:
    """Record the answer of what was begun."""
    if found := read(path):
        _write(path, replace(found, answer=answer))


def read(path: Path) -> Pending | None:
    """The latest one; None if there is none, or none that can be read."""
    try:
        return Pending(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def wait(path: Path, seconds: float | None, found: Callable[[Pending | None], bool]) -> Pending | None:
    """The latest one as soon as this is `found` of it, or as it is after some seconds; None waits without end."""
    end = None if seconds is None else time.monotonic() + seconds
    while not found(latest := read(path)) and (end is None or time.monotonic() < end):
        time.sleep(POLL_SECONDS)
    return latest


def _write(path: Path, pending: Pending) -> None:
    atomic.write(path, json.dumps(asdict(pending), default=str).encode())
