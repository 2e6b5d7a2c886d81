"""What a researcher is, what it gets and what it returns: everything your own researcher needs to import."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from autoresearch.base.errors import Exhausted, NoProposal
from autoresearch.ledger.campaign import Campaign
from autoresearch.ledger.records import CrashKind, Proposal, Scalar, Start

__all__ = ["Archive", "Brief", "Exhausted", "Failure", "Kit", "NoProposal", "Proposal", "Researcher", "Start"]


@dataclass(frozen=True)
class Archive:
    """Reads what past trials left behind, each by its number; empty if there is nothing.

    `files` are the editable files that it ran with, `patch` its diff, `log` the end of its last run's log, `curve` the
    points of that run's training curve (step, progress, loss, lr, tokens_per_second).
    """

    files: Callable[[int], Mapping[str, str]] = lambda trial: {}
    patch: Callable[[int], str] = lambda trial: ""
    log: Callable[[int], str] = lambda trial: ""
    curve: Callable[[int], Sequence[Mapping[str, Scalar]]] = lambda trial: ()


@dataclass(frozen=True)
class Failure:
    """A crash that may be repaired: the trial, what went wrong, and the files that crashed.

    `attempt` counts from 1 to `attempts`, the repairs that the lab allows. `advice` is what to try first.
    """

    trial: int
    idea: str
    kind: CrashKind
    detail: str
    patch: str
    files: Mapping[str, str]
    attempt: int
    attempts: int
    advice: str = ""


@dataclass(frozen=True)
class Brief:
    """Everything a researcher gets. `files` are those that it may edit, `frozen` the others.

    They are the incumbent's, unless `start` says which other trial's, and why. `refusal`: why its last proposal was not
    accepted. `failure`: a crash to fix. `trial`: the number it would get. `question`: which it is of those that were
    asked at the same time. `near`: discards of different lines that came
    close, closest first, by their numbers: two that lost alone may gain together.
    """

    program: str
    files: Mapping[str, str]
    campaign: Campaign
    refusal: str | None = None
    frozen: Mapping[str, str] = field(default_factory=dict)
    guidance: str = ""
    failure: Failure | None = None
    trial: int = 0
    archive: Archive = Archive()
    start: Start | None = None
    near: tuple[int, ...] = ()
    question: int = 0

    @property
    def transcript(self) -> str:
        """The name of this question's file among `Kit.transcripts`."""
        return f"{self.trial:04d}-{self.question}.log"


@dataclass(frozen=True)
class Kit:
    """What the program gives a researcher when it is created, in addition to each brief. A researcher is
    `make(argument, kit)`.

    `root` is the lab's, where relative paths in an argument are looked up first. `environment` is the user's own,
    including keys: only for the researcher, never for a run. `transcripts` is a directory for what was asked and
    answered, a file for each question, and `scratch` one for temporary files. `namespace` marks the processes that it
    starts. `papers` searches the literature. `redact` removes keys from a text. `supervised` is a command with a
    supervisor that ends what it leaves behind, where the system has such a thing. The limits are per proposal; None
    means no limit.
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
    papers: Callable[[str], str] = lambda query: "the literature cannot be searched here"
    redact: Callable[[str], str] = lambda text: text
    supervised: Callable[[Sequence[str]], list[str]] = list

    def path(self, name: str) -> Path:
        """A file that an argument names: in the lab, or else relative to where the user is."""
        path = Path(name).expanduser()
        return self.root / path if (self.root / path).exists() else path


@runtime_checkable
class Checked(Protocol):
    """A researcher that can say beforehand whether it can be reached."""

    def check(self, *, online: bool = False) -> None:
        """Find out whether it can be reached, without asking anything, or `online` with one short question.

        Raises:
            UserError: it cannot, and what to start or set.
        """
        ...


class Researcher(Protocol):
    """Proposes a change. Keeps no state that it could not rebuild from the brief.

    One with an attribute `side_by_side` that is true is asked several questions at the same time, each in a thread of
    its own, when several runs can be made at the same time.
    """

    name: str

    def propose(self, brief: Brief) -> Proposal:
        """Return the next change. It may be called from a thread, and is abandoned after the deadline.

        Raises:
            NoProposal: it has none this time, and why.
            Exhausted: there is nothing more to propose.
        """
        ...
