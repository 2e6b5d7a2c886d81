"""The frozen records that cross stage boundaries; plain data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
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


class Purpose(StrEnum):
    """What a run is for."""

    TRIAL = "trial"  # to decide its trial
    CONFIRM = "confirm"  # to confirm, on a fresh seed, what was kept
    REPLAY = "replay"  # to see whether it comes out again


class Outcome(StrEnum):
    """How a confirmation ended."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Comparable:
    """The class of a val_bpb: two are compared only where all of it is the same.

    `device` is the parent's word, not the run's. `preset` names the sizes that the lab was made with. `frozen` is a
    digest of the frozen files but for prose: they set budget, context, vocabulary and what is evaluated. `data` is one
    of the text. None stands for what is not known: of records by earlier versions, and of labs that do not tell.
    """

    device: str | None
    preset: str | None
    frozen: str
    data: str | None

    def __str__(self) -> str:
        head = f"{self.device or 'unknown device'} · {self.preset or 'unknown preset'} · files {self.frozen[:7]}"
        return f"{head} · data {self.data[:7] if self.data else 'unknown'}"

    def differing(self, other: Comparable) -> tuple[str, ...]:
        """The parts that are not the same, one that is known on one side only among them."""
        names = (field.name for field in fields(self))
        return tuple(name for name in names if getattr(self, name) != getattr(other, name))

    def contradicting(self, other: Comparable) -> tuple[str, ...]:
        """The parts that are known on both sides and not the same."""
        return tuple(name for name in self.differing(other) if getattr(self, name) and getattr(other, name))


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
class Estimate:
    """What a judge believes of a candidate: its gain over the incumbent in bits per byte (positive is better), the
    standard error of that, and the probability that the gain is as large as it must be to be kept."""

    gain: float
    error: float
    probability: float


@dataclass(frozen=True)
class Decision:
    """A judge's answer; `rerun` asks for one more seed, and then `status` does not count yet.

    A `simpler` candidate is kept for being no worse, with less code.
    """

    status: Status
    reason: str
    rerun: bool = False
    estimate: Estimate | None = None
    simpler: bool = False


@dataclass(frozen=True)
class Wanted:
    """One more run of a trial that was decided before, which a confirmation needs."""

    trial: int
    seed: int
