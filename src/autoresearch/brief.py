"""What a researcher is given for each proposal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from autoresearch.campaign import Campaign
from autoresearch.records import CrashKind, Scalar


@dataclass(frozen=True)
class Archive:
    """Reads what past trials left behind, each by its number; empty where there is nothing.

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

    `attempt` counts from 1 up to `attempts`, the repairs that the lab allows; `advice` is what to try first.
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
    """All that a researcher is given. `files` are those of the incumbent that it may edit, `frozen` the rest.

    `refusal`: why its last proposal was not taken; `failure`: a crash to mend; `trial`: the number it would get.
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
