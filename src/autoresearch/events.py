"""The events of which the ledger is made; plain data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoresearch.records import Crash, Estimate, Outcome, Purpose, Scalar, Score, Status


@dataclass(frozen=True)
class CampaignStarted:
    """A search on the branch `autoresearch/<tag>` began at the commit `base`.

    `preset` names the sizes that the lab was made with; None where its program.md does not tell.
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


@dataclass(frozen=True)
class TrialProposed:
    """A proposal passed the guard and was committed; trial numbers run on through all campaigns of a lab.

    `fingerprint` identifies the editable files' syntax, so that nothing is tried twice, `skeleton` the same without
    its numbers; `nodes` is how many syntax nodes they have. A `stale` one was written for an earlier incumbent and
    rebased. The rest is the proposal's own.
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


@dataclass(frozen=True)
class ProposalRefused:
    """A proposal that never became a trial, and why: the guard refused it or the researcher failed."""

    tag: str
    idea: str
    reason: str
    researcher: str = ""
    tokens: int | None = None
    usd: float | None = None


@dataclass(frozen=True)
class GuidanceGiven:
    """What the person has written for the researcher, as it stands from here on."""

    tag: str
    text: str


@dataclass(frozen=True)
class RunStarted:
    """`train.py` was started; a start without an end is a run that was cut short, to be done again."""

    trial: int
    run: int
    seed: int
    purpose: Purpose = Purpose.TRIAL


@dataclass(frozen=True)
class RunEnded:
    """One run's record. `training_seconds` is the parent's clock from first real batch to request for grading.

    `summary` holds what `train.py` printed: for people, deciding nothing. Paths are relative to the lab. `pruned` is
    the share of its budget at which it was ended as hopeless, `spared` the one at which it would have been, had it
    not been let finish to see whether that is right. `device` is what the parent found to run on; what the run said
    itself is in `environment`.
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


@dataclass(frozen=True)
class Verdict:
    """The judge's word on a trial, and the incumbent that the next proposal starts from: see `Decision`."""

    trial: int
    status: Status
    reason: str
    val_bpb: float | None
    memory_gb: float | None
    incumbent: str
    estimate: Estimate | None = None
    simpler: bool = False


@dataclass(frozen=True)
class Contrast:
    """The gain of the tested trial over a `reference` trial, in bits per byte, over so many pairs of runs on fresh
    seeds, and half the width of its interval at the level of the test."""

    reference: int
    gain: float
    margin: float
    pairs: int


@dataclass(frozen=True)
class Confirmation:
    """What a test on fresh seeds says of the keeps since the last confirmed one: of `trial`, the incumbent then.

    `incumbent` is the trial that the next proposal starts from, `after` the last trial before this was decided.
    """

    tag: str
    trial: int
    outcome: Outcome
    reason: str
    contrasts: tuple[Contrast, ...]
    incumbent: int
    after: int


@dataclass(frozen=True)
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
    | Stopped
)
