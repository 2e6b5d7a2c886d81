"""What a campaign amounts to: its rows, and the summary of them. Pure: records in, records out."""

from __future__ import annotations

import functools
import itertools
import math
import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from autoresearch.ledger.campaign import Campaign, Move, Trial
from autoresearch.ledger.events import Confirmation, RunEnded
from autoresearch.ledger.records import CrashKind, Score, Status

BASELINE = "baseline"
REASON_LENGTH = 160  # characters of a crash's reason in a description
PARTS = 16  # equal parts of a split, whose differences give an interval; as many as are recorded
T_QUANTILE = 2.131  # of Student's t with PARTS - 1 degrees of freedom, for a two-sided 95 % interval
MOST_ROWS = 2**15  # that are kept: they are asked for after every trial
LISTED = 5  # biggest keeps and near misses in a report

# Whole terminal escapes: control sequences (colors, cursor), strings with their terminator (titles), short ones.
CONTROL_SEQUENCE = r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
CONTROL_STRING = r"\x1b[\]PX^_][^\x07\x1b]{0,2000}(?:\x07|\x1b\\)"
ESCAPE = re.compile(rf"{CONTROL_SEQUENCE}|{CONTROL_STRING}|\x1b[ -/]*[0-~]")
# Unicode categories: control, format (direction of text, zero width), lone surrogate.
INVISIBLE = {"Cc", "Cf", "Cs"}


# ---------------------------------------------------------------- records


@dataclass(frozen=True)
class Row:
    """One line of results.tsv. `val_bpb` (bits per byte) and `memory_gb` are None if unknown."""

    number: int
    commit: str
    val_bpb: float | None
    memory_gb: float | None
    status: Status
    description: str


@dataclass(frozen=True)
class Step:
    """A scored row and its gain: how far it is below the best kept before it. The baseline's gain is 0.

    `margin` is half the 95 % interval of `val_bpb`; None if it is one run's own score.
    """

    number: int
    commit: str
    val_bpb: float
    gain: float
    description: str
    margin: float | None = None


class Certainty(StrEnum):
    """How a gain is known."""

    CONFIRMED = "confirmed"  # on fresh seeds
    PROVISIONAL = "provisional"  # believed, given everything that was run
    SINGLE = "one run each"  # from a table, which says nothing else


@dataclass(frozen=True)
class Report:
    """The summary of a campaign. `gain` is of `best` over `baseline`, in bits per byte, `margin` half its 95 % interval
    and `certainty` how it is known.

    `frontier` holds the steps of the running best, `biggest` the largest of them, `near_misses` the discards that came
    closest to the best of their time, best first: within the noise of a run, and none if that is unknown. Without a
    kept trial all are empty or None. `disturbed` counts the runs that were made again, `proposers` the trials that each
    researcher proposed.
    """

    trials: int
    counts: Mapping[str, int]
    baseline: Row | None
    best: Row | None
    gain: float | None
    gain_percent: float | None
    frontier: tuple[Step, ...]
    biggest: tuple[Step, ...]
    near_misses: tuple[Step, ...]
    crash_kinds: Mapping[str, int]
    trials_per_hour: float | None = None
    disturbed: int = 0
    margin: float | None = None
    certainty: Certainty = Certainty.SINGLE
    proposers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Gain:
    """A fall in bits per byte, and half the width of its 95 % interval; None if unknown."""

    bpb: float
    margin: float | None


@dataclass(frozen=True)
class Generalization:
    """The best trial's gain on the split that decides and on the one that nobody has seen.

    Measured over `seeds` fresh seeds. With 0, it comes from the one run that selected the trial.
    """

    search: Gain
    holdout: Gain
    seeds: int = 0


# ---------------------------------------------------------------- text from elsewhere


def plain(text: str) -> str:
    """Return text that cannot control a terminal: no escapes, no invisible characters, line ends as newlines."""
    if text.isascii() and text.isprintable():
        return text
    text = ESCAPE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = re.sub("[\x0b\x0c\x85\u2028\u2029]", "\n", text).expandtabs(4)
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) not in INVISIBLE)


def one_line(text: str) -> str:
    """Return the text without control characters, on one line, with single spaces."""
    return " ".join(plain(text).split())


def printable_line(text: str) -> str:
    """Return the text's printable characters on one line, with a space for all others."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def last_line(text: str) -> str:
    """Return the last line that is not empty, without control characters. In a traceback that is the error."""
    lines = [line for line in plain(text).splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else ""


def shorten(text: str, length: int) -> str:
    """Return at most `length` characters of the text, with a mark at the end if it was cut."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


# ---------------------------------------------------------------- rows


def rows(campaign: Campaign, limit: int | None = None) -> tuple[Row, ...]:
    """Return one row per finished trial, in order, or the last few. The campaign's first is described as the baseline.

    A keep that was taken back is a discard.
    """
    first, gone = campaign.trials[0].number if campaign.trials else 0, campaign.taken_back
    asked = campaign.finished[-limit:] if limit else campaign.finished
    found = (row_of(trial, BASELINE if trial.number == first else None) for trial in asked)
    line, kept, chosen = campaign.lineage, set(campaign.kept), campaign.chosen
    how = {
        a.number: f"kept with #{b.number}, which was made on it" for a, b in itertools.pairwise(line) if a not in kept
    }
    how |= {each.trial: f"kept by hand: {one_line(each.why)}" for each in chosen if each.trial in campaign.standing}
    return tuple(
        _taken_back(row, gone[row.number]) if row.number in gone else _kept(row, how.get(row.number)) for row in found
    )


def _taken_back(row: Row, step: Move) -> Row:
    if isinstance(step, Trial):
        how = f"until #{step.number}, made without it, was better"
    elif isinstance(step, Confirmation):
        how = step.outcome.value
    elif step.trial == row.number:
        how = f"dropped by hand: {one_line(step.why)}"
    else:
        how = f"then {'kept' if step.kept else 'dropped'} #{step.trial} by hand"
    return replace(row, status=Status.DISCARD, description=f"{row.description} (kept at first, {how})")


def _kept(row: Row, why: str | None) -> Row:
    """Return the row of a trial that may have been kept against its own verdict."""
    if why is None:
        return row
    return replace(row, status=Status.KEEP, description=f"{row.description} ({why})")


def reason(trial: Trial) -> str:
    """Return why the trial has no score, on one line: the kind of its crash and the error's own words."""
    if trial.crash is None:
        return one_line(trial.verdict.reason) if trial.verdict else ""
    said = last_line(trial.crash.detail)
    return shorten(f"{trial.crash.kind.value}: {said}" if said else trial.crash.kind.value, REASON_LENGTH)


@functools.lru_cache(maxsize=MOST_ROWS)
def row_of(trial: Trial, description: str | None = None) -> Row:
    """Return a finished trial's row. `description` replaces its idea."""
    assert trial.verdict is not None, "only finished trials have a row"
    status = trial.verdict.status
    val_bpb = unbelieved(trial) if status is Status.INVALID else trial.verdict.val_bpb
    scored = status in (Status.KEEP, Status.DISCARD) and val_bpb is not None
    # A quote at the start of a field makes CSV readers, which people open results.tsv with, swallow lines.
    text = one_line(description or trial.proposed.idea).replace('"', "'")
    if trial.proposed.carries is not None:
        text = f"{text} (carried over from #{trial.proposed.carries})"
    if trial.proposed.start is not None:
        text = f"{text} (on #{trial.proposed.start.trial})"
    why = "" if scored else reason(trial).replace('"', "'")
    return Row(
        number=trial.number,
        commit=trial.proposed.commit[:7],
        val_bpb=None if status is Status.CRASH else val_bpb,
        memory_gb=None if status is Status.CRASH else trial.verdict.memory_gb,
        status=status,
        description=f"{text} ({why})" if why else text,
    )


@dataclass(frozen=True)
class Pace:
    """How fast a trial's first complete run was, by its own word: optimizer steps, and tokens trained a second."""

    steps: int | None = None
    tokens_per_second: float | None = None


def pace(trial: Trial) -> Pace:
    """Return how fast a trial trained."""
    run = next((run for run in trial.runs if run.score), None)
    return pace_of(run) if run else Pace()


def pace_of(run: RunEnded) -> Pace:
    """Return how fast a run trained."""
    steps, tokens = (run.summary.get(name) for name in ("num_steps", "total_tokens_M"))
    speed = 1e6 * tokens / run.training_seconds if tokens and run.training_seconds else None
    return Pace(round(steps) if steps else run.steps, speed)


def unbelieved(trial: Trial) -> float | None:
    """The score of an invalid trial, which counts for nothing."""
    return next((run.score.val_bpb for run in trial.runs if run.score), None)


# ---------------------------------------------------------------- summary


def summarize(rows: Iterable[Row], seconds: float | None = None, noise: float = 0.0) -> Report:
    """Return the summary. `seconds` is the time that the rows' runs took, if known, `noise` the standard deviation of a
    run's val_bpb."""
    table = tuple(rows)
    kept, discarded = _steps(table)
    frontier = tuple(step for index, step in enumerate(kept) if index == 0 or step.gain > 0)
    baseline = _find(table, frontier[0]) if frontier else None
    best = _find(table, frontier[-1]) if frontier else None
    gain = frontier[0].val_bpb - frontier[-1].val_bpb if frontier else None
    counts = {status: sum(row.status is status for row in table) for status in Status}
    crashed = Counter(_crash_kind(row) for row in table if row.status is Status.CRASH)
    return Report(
        trials=len(table),
        counts={status.value: n for status, n in counts.items() if n or status is not Status.INVALID},
        baseline=baseline,
        best=best,
        gain=gain,
        gain_percent=None if gain is None else 100 * gain / frontier[0].val_bpb,
        frontier=frontier,
        biggest=largest(frontier[1:]),
        near_misses=largest(step for step in discarded if step.gain > -noise),
        crash_kinds=dict(crashed.most_common()),
        trials_per_hour=3600 * len(table) / seconds if seconds else None,
    )


# ---------------------------------------------------------------- search gain against holdout gain


def generalization(campaign: Campaign) -> Generalization | None:
    """Return the best trial's gain over the baseline on val and on the sealed holdout; None until both were graded on
    it."""
    first, best = campaign.trials[:1], campaign.incumbent
    if not first or best is None or best.number == first[0].number:
        return None
    graded = [next((run for run in trial.runs if run.score and run.holdout), None) for trial in (first[0], best)]
    before, after = graded
    if before is None or after is None:
        return None
    return Generalization(_gain(before.score, after.score), _gain(before.holdout, after.holdout))


def _gain(before: Score | None, after: Score | None) -> Gain:
    """Return the fall in bits per byte, and what the choice of text adds to it: paired over parts of the split."""
    assert before is not None
    assert after is not None
    falls = [a - b for a, b in zip(before.parts, after.parts, strict=False)]
    if len(falls) != PARTS:
        return Gain(before.val_bpb - after.val_bpb, None)
    error = statistics.stdev(falls) / math.sqrt(PARTS)
    return Gain(before.val_bpb - after.val_bpb, T_QUANTILE * error)


def usual_seconds(trials: Iterable[Trial]) -> float | None:
    """Return how long a run of these trials takes: the median wall time in seconds, if one has a score."""
    seconds = [run.wall_seconds for trial in trials for run in trial.every_run if run.score]
    return statistics.median(seconds) if seconds else None


def run_seconds(campaign: Campaign) -> float:
    """Return the wall time of all runs of the campaign's finished trials, for `summarize`."""
    return sum(run.wall_seconds for trial in campaign.finished for run in trial.every_run)


def _steps(rows: tuple[Row, ...]) -> tuple[list[Step], list[Step]]:
    """Return the kept and the discarded rows that have a score, each against the best kept before it."""
    kept: list[Step] = []
    discarded: list[Step] = []
    best: float | None = None
    for row in rows:
        if row.val_bpb is None or row.status in (Status.CRASH, Status.INVALID):
            continue
        gain = 0.0 if best is None else best - row.val_bpb
        step = Step(row.number, row.commit, row.val_bpb, gain, row.description)
        if row.status is Status.KEEP:
            kept.append(step)
            best = row.val_bpb if best is None else min(best, row.val_bpb)
        elif best is not None:
            discarded.append(step)
    return kept, discarded


def _find(rows: tuple[Row, ...], step: Step) -> Row:
    return next(row for row in rows if row.number == step.number)


def largest(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Return the steps with the largest gains, the largest first."""
    return tuple(sorted(steps, key=lambda step: step.gain, reverse=True)[:LISTED])


def _crash_kind(row: Row) -> str:
    """Return the kind of crash that the row's description names; descriptions by others name none of ours."""
    return next((kind.value for kind in CrashKind if f"({kind.value}" in row.description), "other")
