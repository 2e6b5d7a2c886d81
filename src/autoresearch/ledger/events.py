"""The events that make up the ledger. Plain data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoresearch.ledger.records import Crash, Estimate, Order, Outcome, Purpose, Scalar, Score, Start, Status


@dataclass(frozen=True, slots=True)
class CampaignStarted:
    """A search on the branch `autoresearch/<tag>` started at the commit `base`.

    `preset` names the sizes that the lab was created with; None if its program.md does not say. `model` is the language
    model that the researcher asks, if it says so.
    """

    tag: str
    base: str
    researcher: str
    judge: str
    executor: str
    sandbox: str
    frozen_sha256: Mapping[str, str]
    budget_seconds: float
    grader: str = ""
    preset: str | None = None
    model: str = ""


@dataclass(frozen=True, slots=True)
class TrialProposed:
    """A proposal passed the guard and was committed. Trial numbers continue across all campaigns of a lab.

    `fingerprint` identifies the editable files' syntax, so that nothing is tried twice; `skeleton` is the same without
    numbers; `nodes` counts their syntax nodes. `moved` says which numbers differ from the parent's, as places and new
    values; None if more than numbers do. A `stale` proposal was written for an earlier incumbent and rebased. It is not
    judged before it has run on so many `seeds`. `model` is the language model that was asked. `carries` is the trial
    whose change this makes again, on the incumbent of today. `start` says why it was not made on the incumbent. The
    other fields are the proposal's own.
    """

    trial: int
    tag: str
    parent: str
    commit: str
    idea: str
    researcher: str
    fingerprint: str
    lines_changed: int
    note: Mapping[str, Scalar] = field(default_factory=dict)
    tokens: int | None = None
    usd: float | None = None
    why: str = ""
    expects: str = ""
    repairs: int | None = None
    stale: bool = False
    skeleton: str = ""
    nodes: int | None = None
    moved: tuple[tuple[int, int | float], ...] | None = None
    seeds: int = 1
    model: str = ""
    carries: int | None = None
    start: Start | None = None

    @property
    def proposer(self) -> str:
        """Who made it, with the language model that was asked."""
        return f"{self.researcher} ({self.model})" if self.model else self.researcher


@dataclass(frozen=True, slots=True)
class ProposalRefused:
    """A proposal that never became a trial, and why: the guard refused it, or the researcher `failed` to make one.

    `earlier` is the trial that it repeats, `carries` the one whose change could not be made on the incumbent of today.
    """

    tag: str
    idea: str
    reason: str
    researcher: str = ""
    tokens: int | None = None
    usd: float | None = None
    failed: bool = False
    earlier: int | None = None
    carries: int | None = None


@dataclass(frozen=True, slots=True)
class GuidanceGiven:
    """What the user has written for the researcher, as it stands from here on."""

    tag: str
    text: str


@dataclass(frozen=True, slots=True)
class RunStarted:
    """`train.py` was started. A start without an end means that the run was interrupted and must be repeated."""

    trial: int
    run: int
    seed: int
    purpose: Purpose = Purpose.TRIAL


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The record of one run. `training_seconds` is the parent's clock from the first real batch to the request for
    grading.

    `summary` holds what `train.py` printed; it is for people and decides nothing. Paths are relative to the lab.
    `pruned` is the share of its budget at which it was ended as hopeless; `spared` the share at which it would have
    been, had it not been allowed to finish as a check. `device` is what the parent found; what the run itself reported
    is in `environment`. `disturbed` says what disturbed it. A disturbed run is `set_aside`, which means that it is no
    evidence and is run again, unless the machine did not get quiet. `steps` are its own claim. `answer_per_row` is the
    time in seconds that it took to answer a row of its exam. A run whose machine was `lost` is set aside, and that says
    how it was lost.
    """

    trial: int
    run: int
    seed: int
    commit: str
    score: Score | None
    crash: Crash | None
    exit_code: int | None
    wall_seconds: float
    startup_seconds: float | None
    training_seconds: float | None
    memory_gb: float | None
    summary: Mapping[str, float]
    environment: Mapping[str, Scalar]
    frozen_sha256: Mapping[str, str]
    log: str
    curve: str
    invalid: str | None = None
    holdout: Score | None = None
    first_logits_seconds: float | None = None
    purpose: Purpose = Purpose.TRIAL
    pruned: float | None = None
    spared: float | None = None
    device: str | None = None
    disturbed: str | None = None
    set_aside: bool = False
    steps: int | None = None
    answer_per_row: float | None = None
    lost: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judge's verdict on a trial, and the incumbent that the next proposal starts from. See `Decision`.

    `place` is the number of verdicts in the campaign before this one: with several slots they come in any order. None
    in records of earlier versions, which had one slot.
    """

    trial: int
    status: Status
    reason: str
    val_bpb: float | None
    memory_gb: float | None
    incumbent: str
    estimate: Estimate | None = None
    simpler: bool = False
    carry: bool = False
    place: int | None = None


@dataclass(frozen=True, slots=True)
class Contrast:
    """The gain of the tested trial over a `reference` trial, in bits per byte, over `pairs` pairs of runs on fresh
    seeds. `margin` is half the width of its interval at the level of the test."""

    reference: int
    gain: float
    margin: float
    pairs: int


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The result of a test on fresh seeds of the keeps since the last confirmed one. `trial` was the incumbent then.

    `incumbent` is the trial that the next proposal starts from, `after` the last trial before this was decided.
    `verdicts` is the number of verdicts before it, None in records of earlier versions.
    """

    tag: str
    trial: int
    outcome: Outcome
    reason: str
    contrasts: tuple[Contrast, ...]
    incumbent: int
    after: int
    verdicts: int | None = None

    @property
    def words(self) -> str:
        return f"#{self.trial} was {self.reason}"


@dataclass(frozen=True, slots=True)
class ChosenByHand:
    """Somebody kept or dropped a trial against the judge's verdict: who did it `by` which way, and why.

    `incumbent` is the trial that the next proposal starts from. `verdicts` and `confirmations` say how many of them
    there were before this.
    """

    tag: str
    trial: int
    kept: bool
    incumbent: int
    by: str
    why: str
    verdicts: int
    confirmations: int

    @property
    def words(self) -> str:
        return f"#{self.trial} was {'kept' if self.kept else 'dropped'} by hand ({self.by}: {self.why})"


@dataclass(frozen=True, slots=True)
class Ordered:
    """What somebody told a search to do, and why. `trial` is the one that it is about. None leaves a limit as it is.

    `confirmations` counts those before it.
    """

    tag: str
    order: Order
    by: str
    why: str
    trial: int | None = None
    max_usd: float | None = None
    max_tokens: int | None = None
    confirmations: int = 0

    @property
    def words(self) -> str:
        about = "" if self.trial is None else f" #{self.trial}"
        limits = {"max_usd": self.max_usd, "max_tokens": self.max_tokens}
        about += "".join(f" {name} {value:g}" for name, value in limits.items() if value is not None)
        return f"{self.order.value}{about} ({self.by}{f': {self.why}' if self.why else ''})"


@dataclass(frozen=True, slots=True)
class TrialDropped:
    """A trial that counts for nothing any more, and why: its commit was lost."""

    trial: int
    reason: str


@dataclass(frozen=True, slots=True)
class FileSaved:
    """A file of the lab that this program did not write stood where it writes one. It has another name now."""

    tag: str
    path: str
    saved_as: str

    @property
    def words(self) -> str:
        return f"{self.path} was not written by autoresearch: it is now {self.saved_as}"


@dataclass(frozen=True, slots=True)
class Stopped:
    """The loop ended, and why."""

    tag: str
    reason: str


Event = (
    CampaignStarted
    | TrialProposed
    | ProposalRefused
    | GuidanceGiven
    | RunStarted
    | RunEnded
    | Verdict
    | Confirmation
    | ChosenByHand
    | Ordered
    | TrialDropped
    | FileSaved
    | Stopped
)
