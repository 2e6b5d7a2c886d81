"""The Protocols behind which researchers, executors, graders and judges are exchanged."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from autoresearch.brief import Brief
from autoresearch.campaign import Campaign, Trial
from autoresearch.events import Confirmation
from autoresearch.records import (
    Clock,
    Crash,
    Decision,
    Graded,
    Invalid,
    Proposal,
    RunEvent,
    RunRequest,
    RunResult,
    Scalar,
    Score,
    Wanted,
)

Progress = Callable[[RunEvent], None]
Serve = Callable[[socket.socket], None]


@dataclass(frozen=True)
class Kit:
    """What the program lends a researcher when it is made, besides each brief; a researcher is `make(argument, kit)`.

    `root` is the lab's, where relative paths of an argument are looked for first. `environment` is the person's own,
    keys included: for the researcher alone, never for a run. `transcripts` has a directory for each trial,
    `<number, four digits>`, and `scratch` is for what is thrown away. `namespace` marks the processes that it starts.
    `papers` searches the literature. `redact` takes keys out of a text. The limits are for one proposal; None is no
    limit.
    """

    seed: int = 0
    root: Path = Path()
    deadline_seconds: float = 900.0
    max_tokens: int | None = None
    max_usd: float | None = None
    model: str | None = None
    base_url: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    transcripts: Path = Path(tempfile.gettempdir()) / "autoresearch-transcripts"
    scratch: Path = Path(tempfile.gettempdir()) / "autoresearch-scratch"
    namespace: str = "researcher:"
    papers: Callable[[str], str] = lambda query: "no literature can be searched here"
    redact: Callable[[str], str] = lambda text: text

    def path(self, name: str) -> Path:
        """A file that an argument names: from the lab, or else from where the person is."""
        path = Path(name).expanduser()
        return self.root / path if (self.root / path).exists() else path


class Researcher(Protocol):
    """Proposes a change; keeps no state that it could not rebuild from the brief."""

    name: str

    def propose(self, brief: Brief) -> Proposal:
        """Return the next change; it may be called from a thread, and is abandoned after the deadline.

        Raises:
            NoProposal: none came of it this time, and why.
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

    def run(self, request: RunRequest, progress: Progress, serve: Serve) -> RunResult:
        """Run `train.py`; `progress` hears of each event and each line of the curve, and may raise `EndRun`.

        `serve` is called once, in a thread, with this side's end of the run's channel.
        """
        ...


class Session(Protocol):
    """The grading of one run: answers its questions while it runs, then says what it is worth."""

    def serve(self, channel: socket.socket) -> None:
        """Answer the run until it hangs up."""
        ...

    def clock(self, result: RunResult) -> Clock:
        """When it drew its first real batch, asked for grading and gave its first logits."""
        ...

    def environment(self, result: RunResult) -> Mapping[str, Scalar]:
        """What the run said that it runs on: device, versions."""
        ...

    def outcome(self, result: RunResult) -> Graded | Crash | Invalid: ...


class Grader(Protocol):
    """Says what runs are worth. `name` is "trusted", or "self-reported" where a run's own word is taken."""

    name: str

    def fingerprints(self) -> Mapping[str, str]:
        """What identifies the text of the splits, once it is prepared; empty where the parent does not know it."""
        ...

    def session(self, request: RunRequest, wants_holdout: Callable[[Score], bool]) -> Session:
        """Begin the grading of a run; `wants_holdout` says of its score whether the sealed split is to be graded."""
        ...


class Judge(Protocol):
    """Decides from numbers alone: the same campaign gives the same decision."""

    name: str

    def decide(self, campaign: Campaign, candidate: Trial) -> Decision:
        """What becomes of a trial that ran on the campaign's incumbent; without one it is the baseline."""
        ...

    def confirmation(self, campaign: Campaign, *, asked: bool) -> Wanted | Confirmation | None:
        """The next run, or else the conclusion, of a confirmation that is due, under way or asked for; else None."""
        ...
