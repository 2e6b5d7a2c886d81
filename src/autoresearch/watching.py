"""The parent's reading of what a run writes as it goes: its events and its curve; and the environment that it gets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from autoresearch.records import RunEvent, Scalar
from autoresearch.trial import CURVE, EVENTS, RUN_DIR, SEED


def run_environment(base: Mapping[str, str], directory: Path, seed: int) -> dict[str, str]:
    """The environment of a run: the person's allowed variables and the protocol's own."""
    return {**base, SEED: str(seed), RUN_DIR: str(directory), "PYTHONUNBUFFERED": "1"}


def tail(log: Path, limit: int) -> str:
    """The last so many bytes of a log, as text; empty where there is none, for a run may delete its own."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - limit))
            return file.read(limit).decode(errors="replace")
    except FileNotFoundError:
        return ""


class Tail:
    """Follows a file of JSON lines that a run appends to; each whole line is returned once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0

    def lines(self) -> Iterator[Mapping[str, Scalar]]:
        """The lines that came since the last call; a half-written one waits, one that is no object is skipped."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.splitlines():
            try:
                values = json.loads(line)
            except ValueError:
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
        """The newest line of the training curve, where there is a new one."""
        lines = list(self._curve.lines())
        return RunEvent("curve", at, lines[-1]) if lines else None
