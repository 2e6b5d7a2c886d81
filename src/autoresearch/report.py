"""What a campaign amounts to: the rows of results.tsv, written and read, and the summary made of them.

Pure: text and records in, text and records out. It reads no file and draws nothing.
"""

from __future__ import annotations

import math
import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from autoresearch.campaign import Campaign, Trial
from autoresearch.errors import UserError
from autoresearch.records import CrashKind, Score, Status

COLUMNS = ("commit", "val_bpb", "memory_gb", "status", "description")
BASELINE = "baseline"
REASON_LENGTH = 160  # characters of a crash's reason that a description carries
PARTS = 16  # equal parts of a split, by whose differences an interval is made; as many as are noted
T_QUANTILE = 2.131  # of Student's t with PARTS - 1 degrees of freedom, for a two-sided 95 % interval
LISTED = 5  # biggest keeps and near misses that a report names

# Whole terminal escapes: control sequences (colours, cursor), strings with their end (titles), short ones.
CONTROL_SEQUENCE = r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
CONTROL_STRING = r"\x1b[\]PX^_][^\x07\x1b]{0,2000}(?:\x07|\x1b\\)"
ESCAPE = re.compile(rf"{CONTROL_SEQUENCE}|{CONTROL_STRING}|\x1b[ -/]*[0-~]")
# Unicode categories: control, format (direction of text, zero width), lone surrogate.
INVISIBLE = {"Cc", "Cf", "Cs"}


# ---------------------------------------------------------------- records


@dataclass(frozen=True)
class Row:
    """One line of results.tsv; `val_bpb` (bits per byte) and `memory_gb` are None where there is none."""

    number: int
    commit: str
    val_bpb: float | None
    memory_gb: float | None
    status: Status
    description: str


@dataclass(frozen=True)
class Step:
    """A scored row and its gain: how far it lies below the best kept before it; the baseline's is 0."""

    number: int
    commit: str
    val_bpb: float
    gain: float
    description: str


@dataclass(frozen=True)
class Report:
    """The summary of a campaign; `gain` is of `best` over `baseline`, in bits per byte.

    `frontier` are the steps of the running best, `biggest` the largest of them, `near_misses` the discards
    that came closest to the best of their time, best first. Without a kept trial all are empty or None.
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


@dataclass(frozen=True)
class Gain:
    """A fall of bits per byte, and half the width of its 95 % interval over the split's text; None where unknown."""

    bpb: float
    margin: float | None


@dataclass(frozen=True)
class Generalisation:
    """The best's gain on the split that decides and on the one that nobody has seen.

    Over so many fresh `seeds`; with 0, of the one run that it was kept by, so that seeds are left out of the margins.
    """

    search: Gain
    holdout: Gain
    seeds: int = 0


# ---------------------------------------------------------------- text from elsewhere


def plain(text: str) -> str:
    """Return text that no terminal acts upon: no escapes or invisible characters, line ends as newlines."""
    text = ESCAPE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = re.sub("[\x0b\x0c\x85\u2028\u2029]", "\n", text).expandtabs(4)
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) not in INVISIBLE)


def one_line(text: str) -> str:
    """Return the text made plain, on one line, with single spaces."""
    return " ".join(plain(text).split())


def last_line(text: str) -> str:
    """Return the last line that has something on it, made plain; of a traceback, that is the error."""
    lines = [line for line in plain(text).splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else ""


def shorten(text: str, length: int) -> str:
    """Return at most `length` characters of the text, the end of a cut one marked."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


# ---------------------------------------------------------------- rows


def rows(campaign: Campaign) -> tuple[Row, ...]:
    """Return one row a finished trial, in order; the campaign's first is described as the baseline.

    A keep that a confirmation took back is a discard.
    """
    first, gone = campaign.trials[0].number if campaign.trials else 0, campaign.taken_back
    found = (row_of(trial, BASELINE if trial.number == first else None) for trial in campaign.finished)
    return tuple(_taken_back(row) if row.number in gone else row for row in found)


def _taken_back(row: Row) -> Row:
    return replace(row, status=Status.DISCARD, description=f"{row.description} (kept at first, not confirmed)")


def reason(trial: Trial) -> str:
    """Return why the trial has no score, on one line: the kind of its crash and the error's own words."""
    if trial.crash is None:
        return one_line(trial.verdict.reason) if trial.verdict else ""
    said = last_line(trial.crash.detail)
    return shorten(f"{trial.crash.kind.value}: {said}" if said else trial.crash.kind.value, REASON_LENGTH)


def row_of(trial: Trial, description: str | None = None) -> Row:
    """Return a finished trial's row; `description` takes the place of its idea."""
    assert trial.verdict is not None, "only finished trials have a row"
    status = trial.verdict.status
    val_bpb = unbelieved(trial) if status is Status.INVALID else trial.verdict.val_bpb
    scored = status in (Status.KEEP, Status.DISCARD) and val_bpb is not None
    # A quote at the start of a field makes CSV readers, with which people open results.tsv, swallow lines.
    text = one_line(description or trial.proposed.idea).replace('"', "'")
    why = "" if scored else reason(trial).replace('"', "'")
    return Row(
        number=trial.number,
        commit=trial.proposed.commit[:7],
        val_bpb=None if status is Status.CRASH else val_bpb,
        memory_gb=None if status is Status.CRASH else trial.verdict.memory_gb,
        status=status,
        description=f"{text} ({why})" if why else text,
    )


def unbelieved(trial: Trial) -> float | None:
    """The score of an invalid trial, which counts for nothing."""
    return next((run.score.val_bpb for run in trial.runs if run.score), None)


# ---------------------------------------------------------------- results.tsv


def to_tsv(rows: Iterable[Row]) -> str:
    """Return results.tsv as the published project writes it."""
    lines = ["\t".join(COLUMNS), *map(_line, rows)]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    """A line; the published table knows no invalid trials: one is a discard, or a crash where it has no number."""
    description, status = one_line(row.description), row.status
    if status is Status.INVALID:
        status = Status.CRASH if row.val_bpb is None else Status.DISCARD
    numbers = f"{row.val_bpb or 0:.6f}\t{row.memory_gb or 0:.1f}"
    return f"{row.commit}\t{numbers}\t{status.value}\t{description}"


def from_tsv(text: str, name: str) -> tuple[Row, ...]:
    """Read a results.tsv, ours or one of the published project; rows are numbered from 0, which is the baseline.

    A val_bpb or memory of 0 stands for none.

    Raises:
        UserError: naming the file and the line, where it is no such table.
    """
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    if [column.strip() for column in lines[0].split("\t")] != list(COLUMNS):
        raise UserError(
            f"{name} is not a results.tsv: line 1 should be the header `{' '.join(COLUMNS)}` "
            f"with tabs between, and is {shorten(one_line(lines[0]), 60)!r}"
        )
    numbered = [(number, line) for number, line in enumerate(lines[1:], start=2) if line.strip()]
    return tuple(_parse(line, f"{name} line {at}", row) for row, (at, line) in enumerate(numbered))


def _parse(line: str, where: str, number: int) -> Row:
    fields = [field.strip() for field in line.split("\t")]
    if len(fields) != len(COLUMNS):
        raise UserError(
            f"{where}: expected {len(COLUMNS)} columns ({', '.join(COLUMNS)}) with tabs between, found {len(fields)}"
        )
    commit, val_bpb, memory_gb, status, description = fields
    if status not in [known.value for known in Status]:
        known = ", ".join(s.value for s in Status)
        raise UserError(f"{where}: unknown status {shorten(one_line(status), 40)!r}, expected one of {known}")
    return Row(
        number=number,
        commit=one_line(commit),
        val_bpb=_number(val_bpb, f"{where}: val_bpb"),
        memory_gb=_number(memory_gb, f"{where}: memory_gb"),
        status=Status(status),
        description=one_line(description),
    )


def _number(text: str, where: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where} should be a number and is {shorten(one_line(text), 40)!r}")
    return value or None


# ---------------------------------------------------------------- summary


def summarise(rows: Iterable[Row], seconds: float | None = None) -> Report:
    """Return the summary; `seconds` is the time that the rows' runs took, where known."""
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
        biggest=_largest(frontier[1:]),
        near_misses=_largest(discarded),
        crash_kinds=dict(crashed.most_common()),
        trials_per_hour=3600 * len(table) / seconds if seconds else None,
    )


# ---------------------------------------------------------------- search gain against holdout gain


def generalisation(campaign: Campaign) -> Generalisation | None:
    """Return the best's gain over the baseline on val and on the sealed holdout; None until both were graded on it."""
    first, best = campaign.trials[:1], campaign.incumbent
    if not first or best is None or best.number == first[0].number:
        return None
    graded = [next((run for run in trial.runs if run.score and run.holdout), None) for trial in (first[0], best)]
    before, after = graded
    if before is None or after is None:
        return None
    return Generalisation(_gain(before.score, after.score), _gain(before.holdout, after.holdout))


def _gain(before: Score | None, after: Score | None) -> Gain:
    """Return the fall of bits per byte, with what the choice of text makes of it: paired over parts of the split."""
    assert before is not None
    assert after is not None
    falls = [a - b for a, b in zip(before.parts, after.parts, strict=False)]
    if len(falls) != PARTS:
        return Gain(before.val_bpb - after.val_bpb, None)
    error = statistics.stdev(falls) / math.sqrt(PARTS)
    return Gain(before.val_bpb - after.val_bpb, T_QUANTILE * error)


def of_campaign(campaign: Campaign) -> Report:
    """Return the summary of a campaign's finished trials, with their pace.

    Its best is the incumbent, by the mean of the runs that it was not chosen by, where there are any.
    """
    made, best = summarise(rows(campaign), run_seconds(campaign)), campaign.incumbent
    if best is None or not best.scores or made.baseline is None or made.baseline.val_bpb is None:
        return made
    if best.number == campaign.trials[0].number:
        return replace(made, best=made.baseline, gain=0.0, gain_percent=0.0)
    value = statistics.fmean(best.unchosen or best.scores)
    gain = made.baseline.val_bpb - value
    row = replace(row_of(best), val_bpb=value)
    return replace(made, best=row, gain=gain, gain_percent=100 * gain / made.baseline.val_bpb)


def run_seconds(campaign: Campaign) -> float:
    """Return the wall time of all runs of the campaign's finished trials, for `summarise`."""
    return sum(run.wall_seconds for trial in campaign.finished for run in trial.runs)


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


def _largest(steps: Iterable[Step]) -> tuple[Step, ...]:
    return tuple(sorted(steps, key=lambda step: step.gain, reverse=True)[:LISTED])


def _crash_kind(row: Row) -> str:
    """Return the kind that the row's description names; descriptions written by others name none of ours."""
    return next((kind.value for kind in CrashKind if f"({kind.value}" in row.description), "other")
