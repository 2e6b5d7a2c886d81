"""What a grader is: the part that says what a run is worth."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Protocol

from autoresearch.ledger.records import Clock, Crash, Graded, Invalid, RunRequest, RunResult, Scalar, Score


class Session(Protocol):
    """The grading of one run: answers its requests while it runs, then says what it is worth."""

    def serve(self, channel: socket.socket) -> None:
        """Answer the run until it hangs up."""
        ...

    def clock(self, result: RunResult) -> Clock:
        """When it drew its first real batch, asked for grading and gave its first logits."""
        ...

    def environment(self, result: RunResult) -> Mapping[str, Scalar]:
        """What the run said about its environment: device, versions, kernels."""
        ...

    def outcome(self, result: RunResult) -> Graded | Crash | Invalid: ...

    def answers(self) -> bytes | None:
        """A file of what it answered at secret places, for a second examination; None if that is unknown."""
        ...


class Grader(Protocol):
    """Says what runs are worth. `name` is "trusted", or "self-reported" if a run's own word counts."""

    name: str

    def fingerprints(self) -> Mapping[str, str]:
        """What identifies the text of the splits once it is prepared; empty if the parent does not know it."""
        ...

    def session(self, request: RunRequest, wants_holdout: Callable[[Score], bool]) -> Session:
        """Start grading a run. `wants_holdout` decides from its score whether the sealed split is graded too."""
        ...
