"""The frozen records that cross stage boundaries; plain data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum

Scalar = str | int | float | bool | None
NEWS = "news"  # the name of a `RunEvent` of no trial: its text is news of a machine


class Status(StrEnum):
    """How a trial ended, with the words of results.tsv."""

    KEEP = "keep"
    DISCARD = "discard"
    CRASH = "crash"
    INVALID = "invalid"  # scored, but the score cannot be trusted; a discard in results.tsv


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

    TRIAL = "trial"  # decide its trial
    CONFIRM = "confirm"  # confirm a kept trial on a fresh seed
    REPLAY = "replay"  # check whether the result repeats


class Order(StrEnum):
    """What somebody can tell a search while it runs, or while it rests."""

    PAUSE = "pause"  # start nothing more once the runs in flight have ended
    RESUME = "resume"
    KEEP = "keep"  # a trial by hand
    DROP = "drop"  # a kept trial
    CONFIRM = "confirm"  # test the keeps on fresh seeds now
    STOP = "stop"  # the runs of a trial
    LIMIT = "limit"  # what the researcher may spend


class Outcome(StrEnum):
    """How a confirmation ended."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Comparable:
    """The class of a val_bpb. Two scores can be compared only if all of it is the same.

    `device` is the parent's word, not the run's. `preset` names the sizes that the lab was created with. `frozen` is a
    digest of the frozen files except prose: they set budget, context, vocabulary and what is evaluated. `data` is a
    digest of the text. None means unknown: in records of earlier versions, and in labs that do not say.
    """

    device: str | None
    preset: str | None
    frozen: str
    data: str | None

    def __str__(self) -> str:
        head = f"{self.device or 'unknown device'} · {self.preset or 'unknown preset'} · files {self.frozen[:7]}"
        return f"{head} · data {self.data[:7] if self.data else 'unknown'}"

    def differing(self, other: Comparable) -> tuple[str, ...]:
        """The parts that differ, including those known on one side only."""
        names = (field.name for field in fields(self))
        return tuple(name for name in names if getattr(self, name) != getattr(other, name))

    def contradicting(self, other: Comparable) -> tuple[str, ...]:
        """The parts that are known on both sides and differ."""
        return tuple(name for name in self.differing(other) if getattr(self, name) and getattr(other, name))


# ---------------------------------------------------------------- what passes between stages
@dataclass(frozen=True, slots=True)
class Proposal:
    """A change of the editable files, as complete new texts, with its one-line idea.

    `why` is the researcher's reason, `expects` the result it expects. `note` is its memory: the ledger stores it and
    returns it unchanged. `tokens` and `usd` are what it spent; None if not counted. `repairs` is the crashed trial that
    this one fixes.
    """

    idea: str
    files: Mapping[str, str]
    note: Mapping[str, Scalar] = field(default_factory=dict)
    tokens: int | None = None
    usd: float | None = None
    why: str = ""
    expects: str = ""
    repairs: int | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Which trial's program a proposal starts from if that is not the incumbent, and why."""

    trial: int
    why: str


@dataclass(frozen=True, slots=True)
class Place:
    """A slot's own part of a machine: processors and a GPU, by their numbers. An empty one is all of it.

    In a cluster it is on the machine `node`, where it is the slot number `share`.
    """

    processors: tuple[int, ...] = ()
    gpu: int | None = None
    node: str = ""
    share: int = 0


@dataclass(frozen=True, slots=True)
class RunRequest:
    """One execution of `train.py` as plain data: everything another machine would need to carry it out.

    A researcher wrote the files in `editable`. A `baseline` is entirely the user's own work. `run` is the number of the
    run in its trial.
    """

    run_id: str
    commit: str
    files: Mapping[str, bytes]
    seed: int
    budget_seconds: float
    deadline_seconds: float
    editable: tuple[str, ...] = ()
    baseline: bool = False
    place: Place = Place()
    run: int = 0


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One line that a run reported to its parent. `at` is the parent's own clock, in seconds since the run started."""

    name: str
    at: float
    values: Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class Load:
    """What a run and its machine have done so far; counts in seconds. `at` is the parent's clock since the run started.

    `used` is the processor time that the run's threads had, `waited` the time they were ready and had no processor
    (None if the system does not say). `busy` is the time that the processors worked for anyone, `own` for this program,
    `stolen` what the host of a virtual machine took. `gpu_others` is the time that others computed on the run's GPU,
    `gpu_slowed` the time that heat or power lowered its clock.
    """

    at: float
    processors: int
    used: float
    waited: float | None
    busy: float
    own: float
    stolen: float
    gpu_others: float = 0.0
    gpu_slowed: float = 0.0


@dataclass(frozen=True, slots=True)
class RunResult:
    """What an executor saw of a run. `exit_code` is None if the deadline ended it. Times are in seconds.

    `tampered` lists the frozen files that the run changed. `ended` says why it was ended before its deadline, if it
    was. `steps` is the number of optimizer steps it claims. `load` samples what its machine did meanwhile. `grading` is
    what its grader found. If its machine was `lost`, nothing is known of it, and that says how.
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
    load: tuple[Load, ...] = ()
    grading: Grading | None = None
    lost: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """A graded run: total nats and bytes over the split's scored tokens. `parts` has the score of equal parts."""

    val_bpb: float
    nats: float
    tokens: int
    bytes: int
    parts: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Clock:
    """The parent's clock, in seconds since the run started: first real batch, request for grading, first logits.

    The usual and the slowest answer are the times it took for a batch of grading after the first; `answers` is the time
    it took for all of them, which were `rows` rows.
    """

    first_batch: float | None = None
    grade_requested: float | None = None
    first_logits: float | None = None
    usual_answer: float | None = None
    slowest_answer: float | None = None
    answers: float | None = None
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Graded:
    """A trusted score, and the sealed holdout's if it was asked for."""

    score: Score
    holdout: Score | None = None


@dataclass(frozen=True, slots=True)
class Invalid:
    """A run whose score cannot be trusted, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Crash:
    """Why a run has no score: its kind and what the log says, cut to its last frames."""

    kind: CrashKind
    detail: str


@dataclass(frozen=True, slots=True)
class Grading:
    """What a grader found of a run. `environment` is what the run said of its device, versions and kernels. `answers`
    is a file of what it answered at secret places, for a second examination; None if that is unknown."""

    outcome: Graded | Crash | Invalid
    clock: Clock
    environment: Mapping[str, Scalar]
    answers: bytes | None = None


@dataclass(frozen=True, slots=True)
class Worth:
    """What a run's score makes worth having: the score of the sealed split, and the model."""

    holdout: bool
    model: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a judge estimates of a candidate: its gain over the incumbent in bits per byte (positive is better), its
    standard error, and the probability that the gain is large enough to keep."""

    gain: float
    error: float
    probability: float


@dataclass(frozen=True, slots=True)
class Decision:
    """A judge's answer. `rerun` asks for one more seed; then `status` does not count yet.

    A `simpler` candidate is kept for being no worse with less code. The change of one to `carry` over is better than
    the trial that it was made on, which is not the incumbent any more.
    """

    status: Status
    reason: str
    rerun: bool = False
    estimate: Estimate | None = None
    simpler: bool = False
    carry: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """One more run of an already decided trial, which a confirmation needs."""

    trial: int
    seed: int
