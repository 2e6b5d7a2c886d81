"""The parts that a campaign is made of, composed elsewhere, and the policy they follow."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from autoresearch.base.errors import UserError
from autoresearch.executors.interface import Executor
from autoresearch.judging.interface import Judge
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import Event
from autoresearch.ledger.ledger import Ledger
from autoresearch.ledger.records import Place, RunEvent
from autoresearch.ledger.results_file import ResultsFile
from autoresearch.loop.asking.search import Search
from autoresearch.researchers.interface import Archive, Researcher


@dataclass(frozen=True)
class Policy:
    """How the loop deals with its researcher. None means no limit.

    `ahead`: proposals written while a run trains. `repairs`: attempts to fix one crash. `propose_seconds`: the longest
    a proposal may take. `max_tokens` and `max_usd` are for the whole campaign. After `patience` failed proposals in a
    row the fallback, if there is one, makes one. The pause before the next grows up to `longest_pause_seconds`. A run
    that loses more than the share `max_disturbance` to other programs is made again; after a few times the loop waits
    for quiet, at most `quiet_seconds`. A run's exam may take `grading_factor` times as long as the baseline's. `search`
    says which program a proposal starts from.
    """

    ahead: int = 0
    repairs: int = 2
    propose_seconds: float = 900.0
    max_tokens: int | None = None
    max_usd: float | None = None
    patience: int = 3
    longest_pause_seconds: float = 60.0
    max_disturbance: float = 0.03
    quiet_seconds: float = 600.0
    grading_factor: float = 3.0
    search: Search = "line"

    def overspent(self, campaign: Campaign) -> str | None:
        """Which cap the campaign's researcher has reached; None if it may continue. An ordered limit replaces a cap."""
        max_usd, max_tokens = campaign.limit("max_usd"), campaign.limit("max_tokens")
        usd = self.max_usd if max_usd is None else max_usd
        tokens = self.max_tokens if max_tokens is None else max_tokens
        if usd is not None and campaign.usd >= usd:
            return f"`max_usd` of {usd:g} is reached: the researcher has spent {campaign.usd:.2f} USD"
        if tokens is not None and campaign.tokens >= tokens:
            return f"`max_tokens` of {tokens:g} is reached: the researcher has used {campaign.tokens}"
        return None


@dataclass(frozen=True)
class Stages:
    """Everything that a campaign is made of.

    `program` and `guidance` read the user's texts again for each proposal. `prepare` makes the data of a commit's files
    ready. `examine` says why a kept trial's model is not the one that was graded; None if it is. It calls a function
    meanwhile, which may raise. `redact` removes keys
    from a text. With `prune`, hopeless runs are ended early. `device` is what runs run on, `preset` the sizes the lab
    was created with. `places` gives the slots, in which runs are side by side: in a cluster they come and go. `clock`
    tells the seconds by which the questions to a researcher are timed. `stopped` says why a trial's runs were stopped
    by hand; None if they were not.
    """

    workspace: Workspace
    results: ResultsFile
    ledger: Ledger
    researcher: Researcher
    fallback: Researcher | None
    executor: Executor
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
    examine: Callable[[Trial, Callable[[], None]], str | None]
    announce: Callable[[Event], None]
    progress: Callable[[int, RunEvent], None]
    places: Callable[[], tuple[Place, ...]] = lambda: (Place(),)
    clock: Callable[[], float] = time.monotonic
    stopped: Callable[[int], str | None] = lambda trial: None
    recording: threading.RLock = field(default_factory=threading.RLock)

    def record(self, event: Event) -> None:
        """Write an event to the ledger, then show it. Runs side by side do so one after the other."""
        with self.recording:
            self.ledger.append(event)
            self.announce(event)

    def campaign(self, tag: str) -> Campaign:
        """The campaign as the ledger has it now."""
        campaign = self.ledger.campaign(tag)
        assert campaign is not None, f"campaign {tag} was started"
        return campaign

    def decoded(self, commit: str) -> dict[str, str]:
        """Every file of a commit, as text."""
        return {path: data.decode(errors="replace") for path, data in self.workspace.files(commit).items()}

    def texts(self, commit: str) -> dict[str, str]:
        """The editable files of a commit."""
        return self.editable_of(self.decoded(commit))

    def editable_of(self, files: Mapping[str, str]) -> dict[str, str]:
        """The files of a commit that a trial may change."""
        missing = [path for path in self.editable if path not in files]
        if missing:
            names = ", ".join(missing)
            raise UserError(f"{names} of `editable` in program.md is not in the repository: commit it first")
        return {path: files[path] for path in self.editable}

    def frozen_sha256(self, files: Mapping[str, bytes]) -> dict[str, str]:
        """A digest of each file that a trial may not change."""
        frozen = sorted(set(files) - set(self.editable))
        return {path: hashlib.sha256(files[path]).hexdigest() for path in frozen}
