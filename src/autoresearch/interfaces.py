"""The Protocols behind which researchers, executors, graders and judges are exchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from autoresearch.records import (
    Brief,
    Crash,
    Decision,
    Proposal,
    RunEvent,
    RunRequest,
    RunResult,
    Score,
    Trial,
)

Progress = Callable[[RunEvent], None]


class Researcher(Protocol):
    """Proposes a change; keeps no state that it could not rebuild from the brief."""

    name: str

    def propose(self, brief: Brief) -> Proposal:
        """Return the next change.

        Raises:
            Exhausted: there is nothing more to propose.
        """
        ...


class Executor(Protocol):
    """Carries out one run and comes back when no process of it is left.

    `sandbox` says in a word what confines a run: "none" where nothing does.
    """

    name: str
    sandbox: str

    def end_leftovers(self) -> int:
        """End what an earlier, killed program left running; returns the number of processes."""
        ...

    def run(self, request: RunRequest, progress: Progress) -> RunResult:
        """Run `train.py`; `progress` hears of each event and each line of the curve as it happens."""
        ...


class Grader(Protocol):
    """Says what a run is worth."""

    def grade(self, request: RunRequest, result: RunResult) -> Score | Crash: ...


class Judge(Protocol):
    """Decides from numbers alone: the same trials give the same decision."""

    name: str

    def decide(self, incumbent: Trial | None, candidate: Trial) -> Decision: ...
