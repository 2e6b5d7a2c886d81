"""Reads what a run writes as it goes: events, curve and log. Also sets the environment that a run gets."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from autoresearch.grading.protocol import CURVE, EVENTS, RUN_DIR, SEED
from autoresearch.ledger.records import RunEvent, Scalar

CURVE_SECONDS = 0.5  # between two points of a run's curve that are passed on
LARGEST_PART = 2**20  # bytes of a run's file that are read at once


def run_environment(base: Mapping[str, str], directory: Path, seed: int) -> dict[str, str]:
    """The environment of a run: the user's allowed variables and the protocol's own."""
    return {**base, SEED: str(seed), RUN_DIR: str(directory), "PYTHONUNBUFFERED": "1"}


def read_part(path: Path, offset: int, limit: int = LARGEST_PART) -> bytes:
    """At most `limit` bytes of a file that a run may have created; nothing if it is not a regular file.

    A run can put anything in its place: a link out of its sandbox, or a pipe that would block the reader.
    """
    careful = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
    try:
        descriptor = os.open(path, os.O_RDONLY | careful)
    except OSError:
        return b""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        return b""
    with os.fdopen(descriptor, "rb") as file:
        file.seek(offset if offset >= 0 else max(0, status.st_size + offset))
        return file.read(limit)


def tail(log: Path, limit: int) -> str:
    """The last `limit` bytes of a log, as text; empty if there is none, because a run may delete its own."""
    return read_part(log, -limit, limit).decode(errors="replace")


class Tail:
    """Follows a file of JSON lines that a run appends to. Returns each complete line once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0

    def lines(self) -> Iterator[Mapping[str, Scalar]]:
        """The lines since the last call. A half-written one waits; one that is not an object is skipped."""
        fresh = read_part(self.path, self.offset)
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self.offset += len(whole)
        if not whole and len(fresh) == LARGEST_PART:  # no valid line is that long
            self.offset += len(fresh)
        for line in whole.splitlines():
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(values, dict):
                yield values


class RunWatch:
    """Turns what a run writes into events stamped with the parent's clock."""

    def __init__(self, directory: Path) -> None:
        self._events = Tail(directory / EVENTS)
        self._curve = Tail(directory / CURVE)

    def events(self, at: float) -> tuple[RunEvent, ...]:
        """New protocol events, seen `at` seconds after the start of the run."""
        return tuple(RunEvent(str(values.get("event")), at, values) for values in self._events.lines())

    def curve(self, at: float) -> RunEvent | None:
        """The newest line of the training curve, if there is a new one."""
        lines = list(self._curve.lines())
        return RunEvent("curve", at, lines[-1]) if lines else None
