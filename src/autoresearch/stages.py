"""The parts of which a campaign is made, composed elsewhere, and the policy that they work by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from autoresearch.brief import Archive
from autoresearch.campaign import Campaign
from autoresearch.errors import UserError
from autoresearch.events import Event
from autoresearch.interfaces import Executor, Grader, Judge, Researcher
from autoresearch.ledger import Ledger
from autoresearch.records import RunEvent
from autoresearch.workspace import Workspace


@dataclass(frozen=True)
class Policy:
    """How the loop deals with its researcher; what is None is without limit.

    `ahead`: proposals written while a run trains. `repairs`: attempts to mend one crash. `propose_seconds`: the
    longest that a proposal may take. `max_tokens` and `max_usd` are for the whole campaign. After `patience` failed
    proposals in a row the fallback, where there is one, makes one; the pause before the next grows up to
    `longest_pause_seconds`.
    """

    ahead: int = 0
    repairs: int = 2
    propose_seconds: float = 900.0
    max_tokens: int | None = None
    max_usd: float | None = None
    patience: int = 3
    longest_pause_seconds: float = 60.0

    def overspent(self, campaign: Campaign) -> str | None:
        """Which cap the campaign's researcher has reached, in words; None where it may go on."""
        if self.max_usd is not None and campaign.usd >= self.max_usd:
            return f"`max_usd` of {self.max_usd:g} is reached: the researcher has spent {campaign.usd:.2f} USD"
        if self.max_tokens is not None and campaign.tokens >= self.max_tokens:
            return f"`max_tokens` of {self.max_tokens} is reached: the researcher has used {campaign.tokens}"
        return None


@dataclass(frozen=True)
class Stages:
    """Everything that a campaign is made of.

    `program` and `guidance` read the person's texts afresh for each proposal; `prepare` makes the data of a commit's
    files ready; `redact` takes keys out of a text. With `prune`, hopeless runs are ended early. `device` is what runs
    run on, `preset` what sizes the lab was made with.
    """

    workspace: Workspace
    ledger: Ledger
    researcher: Researcher
    fallback: Researcher | None
    executor: Executor
    grader: Grader
    judge: Judge
    policy: Policy
    archive: Archive
    editable: tuple[str, ...]
    budget_seconds: float
    deadline_seconds: float
    startup_seconds: float
    min_free_gb: float
    prune: bool
    device: str
    preset: str | None
    program: Callable[[], str]
    guidance: Callable[[], str]
    redact: Callable[[str], str]
    prepare: Callable[[Mapping[str, bytes]], None]
    announce: Callable[[Event], None]
    progress: Callable[[int, RunEvent], None]

    def record(self, event: Event) -> None:
        """Write an event to the ledger, then show it."""
        self.ledger.append(event)
        self.announce(event)

    def campaign(self, tag: str) -> Campaign:
        """The campaign as the ledger has it now."""
        campaign = self.ledger.campaign(tag)
        assert campaign is not None, f"campaign {tag} was begun"
        return campaign

    def decoded(self, commit: str) -> dict[str, str]:
        """Every file of a commit, as text."""
        return {path: data.decode(errors="replace") for path, data in self.workspace.files(commit).items()}

    def texts(self, commit: str) -> dict[str, str]:
        """The editable files of a commit."""
        return self.editable_of(self.decoded(commit))

    def editable_of(self, files: Mapping[str, str]) -> dict[str, str]:
        """Of all files of a commit those that a trial may change."""
        missing = [path for path in self.editable if path not in files]
        if missing:
            names = ", ".join(missing)
            raise UserError(f"{names} of `editable` in program.md is not in the repository: commit it first")
        return {path: files[path] for path in self.editable}

    def frozen_sha256(self, files: Mapping[str, bytes]) -> dict[str, str]:
        """A digest of each file that a trial may not change."""
        frozen = sorted(set(files) - set(self.editable))
        return {path: hashlib.sha256(files[path]).hexdigest() for path in frozen}
