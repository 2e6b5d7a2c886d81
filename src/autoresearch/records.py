"""The frozen records that cross stage boundaries, and the events of which the ledger is made; plain data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

Scalar = str | int | float | bool | None


class Status(StrEnum):
    """How a trial ended, in the words of results.tsv."""

    KEEP = "keep"
    DISCARD = "discard"
    CRASH = "crash"
    INVALID = "invalid"  # scored, but not to be believed; a discard in results.tsv


class CrashKind(StrEnum):
    """Why a run gave no score."""

    OUT_OF_MEMORY = "out of memory"
    NOT_FINITE = "loss not finite"
    TIME_OUT = "time-out"
    PYTHON_ERROR = "Python error"
    EXITED = "exited early"
    NO_SCORE = "no score"


# ---------------------------------------------------------------- what passes between stages
@dataclass(frozen=True)
class Proposal:
    """A change of the editable files, as whole new texts, and its one-line idea.

    `why` is the researcher's reason, `expects` what it thinks will come of it. `note` is its memory: the ledger keeps
    it and hands it back untouched. `tokens` and `usd` are what it spent; None where nothing is counted. `repairs` is
    the crashed trial that this is a mended form of.
    """

    idea: str
    files: Mapping[str, str]
    note: Mapping[str, Scalar] = field(default_factory=dict)
    tokens: int | None = None
    usd: float | None = None
    why: str = ""
    expects: str = ""
    repairs: int | None = None


@dataclass(frozen=True)
class RunRequest:
    """One execution of `train.py`, as plain data: all that another machine would need to carry it out.

    The files in `editable` are a researcher's; a `baseline` is the person's own work, and nobody else's.
    """

    run_id: str
    commit: str
    files: Mapping[str, bytes]
    seed: int
    budget_seconds: float
    deadline_seconds: float
    editable: tuple[str, ...] = ()
    baseline: bool = False


@dataclass(frozen=True)
class RunEvent:
    """One line that a run told its parent; `at` is the parent's own clock, in seconds since the run was started."""

    name: str
    at: float
    values: Mapping[str, Scalar]


@dataclass(frozen=True)
class RunResult:
    """What an executor saw of a run; `exit_code` is None where the deadline ended it. Times are in seconds.

    `tampered` are the frozen files that the run changed, `ended` says why it was ended before its deadline, if it was;
    `steps` is the number of optimizer steps by its own account.
    """

    exit_code: int | None
    wall_seconds: float
    events: tuple[RunEvent, ...]
    log_tail: str
    log_path: str
    curve_path: str
    tampered: tuple[str, ...] = ()
    ended: str = ""
    steps: int = 0


@dataclass(frozen=True)
class Score:
    """A graded run: total nats and bytes over the split's scored tokens; `parts` is the same of equal parts of it."""

    val_bpb: float
    nats: float
    tokens: int
    bytes: int
    parts: tuple[float, ...] = ()


@dataclass(frozen=True)
class Clock:
    """The parent's clock, in seconds since the run was started: first real batch, request for grading, first logits.

    The answers are what it took over a batch of grading after the first.
    """

    first_batch: float | None = None
    grade_requested: float | None = None
    first_logits: float | None = None
    usual_answer: float | None = None
    slowest_answer: float | None = None


@dataclass(frozen=True)
class Graded:
    """A trusted score, and the sealed holdout's where it was asked for."""

    score: Score
    holdout: Score | None = None


@dataclass(frozen=True)
class Invalid:
    """A run whose score is not to be believed, and why, in words."""

    reason: str


@dataclass(frozen=True)
class Crash:
    """Why a run has no score: its kind and what the log says, cut to its last frames."""

    kind: CrashKind
    detail: str


@dataclass(frozen=True)
class Decision:
    """A judge's answer; `rerun` asks for one more seed, and then `status` does not count yet."""

    status: Status
    reason: str
    rerun: bool = False


# ---------------------------------------------------------------- events of the ledger


@dataclass(frozen=True)
class CampaignStarted:
    """A search on the branch `autoresearch/<tag>` began at the commit `base`."""

    tag: str
    base: str
    researcher: str
    judge: str
    executor: str
    sandbox: str
    frozen_sha256: Mapping[str, str]
    budget_seconds: float
    grader: str = ""


@dataclass(frozen=True)
class TrialProposed:
    """A proposal passed the guard and was committed; trial numbers run on through all campaigns of a lab.

    `fingerprint` identifies the editable files' syntax, so that nothing is tried twice, `skeleton` the same without
    its numbers. A `stale` one was written for an earlier incumbent and rebased. The rest is the proposal's own.
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


@dataclass(frozen=True)
class RunEnded:
    """One run's record. `training_seconds` is the parent's clock from first real batch to request for grading.

    `summary` holds what `train.py` printed: for people, deciding nothing. Paths are relative to the lab.
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


@dataclass(frozen=True)
class Verdict:
    """The judge's word on a trial, and the incumbent that the next proposal starts from."""

    trial: int
    status: Status
    reason: str
    val_bpb: float | None
    memory_gb: float | None
    incumbent: str


@dataclass(frozen=True)
class Stopped:
    """The loop ended, and why."""

    tag: str
    reason: str


Event = CampaignStarted | TrialProposed | ProposalRefused | GuidanceGiven | RunStarted | RunEnded | Verdict | Stopped


# ---------------------------------------------------------------- the ledger's events, gathered


@dataclass(frozen=True)
class Trial:
    """A proposal with the runs and the verdict that it has had so far; the first of a campaign is its baseline."""

    proposed: TrialProposed
    runs: tuple[RunEnded, ...] = ()
    verdict: Verdict | None = None

    @property
    def number(self) -> int:
        return self.proposed.trial

    @property
    def val_bpb(self) -> float | None:
        """The mean over the scored runs, in bits per byte; None where there is none."""
        scores = [run.score.val_bpb for run in self.runs if run.score and not run.invalid]
        return sum(scores) / len(scores) if scores else None

    @property
    def memory_gb(self) -> float | None:
        """The largest peak of its runs, in GiB."""
        peaks = [run.memory_gb for run in self.runs if run.memory_gb is not None]
        return max(peaks, default=None)

    @property
    def crash(self) -> Crash | None:
        return next((run.crash for run in reversed(self.runs) if run.crash), None)

    @property
    def invalid(self) -> str | None:
        return next((run.invalid for run in reversed(self.runs) if run.invalid), None)


@dataclass(frozen=True)
class Campaign:
    """One unbroken search: its start and its trials, in order, the baseline first, and what was refused."""

    started: CampaignStarted
    trials: tuple[Trial, ...] = ()
    refused: tuple[ProposalRefused, ...] = ()
    guidance: str = ""

    @property
    def tag(self) -> str:
        return self.started.tag

    @property
    def finished(self) -> tuple[Trial, ...]:
        return tuple(trial for trial in self.trials if trial.verdict)

    @property
    def incumbent(self) -> Trial | None:
        """The trial whose commit the next proposal starts from; None until the baseline is kept."""
        kept = [t for t in self.trials if t.verdict and t.verdict.status is Status.KEEP]
        return kept[-1] if kept else None

    @property
    def spendings(self) -> tuple[TrialProposed | ProposalRefused, ...]:
        """All that its researcher may have spent tokens or money on, refused proposals included."""
        return (*(trial.proposed for trial in self.trials), *self.refused)

    @property
    def tokens(self) -> int:
        return sum(spent.tokens or 0 for spent in self.spendings)

    @property
    def usd(self) -> float:
        return sum(spent.usd or 0.0 for spent in self.spendings)
