"""What a table of results is worth: which of its keeps stand out from the luck of a run, by the judge's filter.

Pure: rows in, numbers out. Gains are falls of val_bpb, in bits per byte. Each row counts as one run.
"""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from autoresearch.base.errors import UserError
from autoresearch.judging import judge, posterior
from autoresearch.judging.noise import Noise, special
from autoresearch.judging.posterior import Observation
from autoresearch.ledger.campaign import Campaign
from autoresearch.ledger.records import Outcome, Status
from autoresearch.ledger.report import Row, shorten

CONFIDENCE = 0.95  # of the plain test, one-sided
EXACT = 1_000_000  # degrees of freedom of a given sigma: Student's t is then the normal distribution
# Descriptions of rows that compute the same as the row they start from.
SAME_PROGRAM = re.compile(
    r"\b(no-?ops?|re-?runs?|replicat\w+|repeat(ed)?|same (program|code|config\w*)|unchanged|refactor\w*|clean-?ups?"
    r"|cosmetic|precompute\w*|(random|other|another|new|change|different) seeds?|seeds?[ =:]*\d+)\b",
    re.IGNORECASE,
)
# an outcome at the end of a description; `(with WD)` is a different change
REMARK = re.compile(r"\((?!with\b)[^()]*\)")


@dataclass(frozen=True)
class Keep:
    """A kept row against the one kept before it.

    `gain` is what the table shows. `believed` and `error` are the judge's mean and standard deviation of the true gain,
    `probability` is its probability that the gain is large enough, `survives` whether it would have kept the row. `z`
    is the gain in standard deviations of the difference of two runs, and `clear` whether that alone is beyond chance.
    """

    number: int
    val_bpb: float
    gain: float
    believed: float
    error: float
    probability: float
    survives: bool
    z: float
    clear: bool
    description: str


@dataclass(frozen=True)
class Audit:
    """A table's keeps, judged again.

    `sigma` is the standard deviation of one run's val_bpb and `interval` its 95 % interval. `freedom` and `evidence`
    say what it was estimated from; they are None and empty if it was given. `luck` is the gain between two runs of one
    program that 95 % stay below. `needed` and `advance` are the judge's smallest gain and its threshold.
    """

    rows: int
    sigma: float
    interval: tuple[float, float] | None
    freedom: int | None
    evidence: tuple[str, ...]
    luck: float
    needed: float
    advance: float
    keeps: tuple[Keep, ...]
    survivors: int
    clear: int


def audit(rows: Iterable[Row], sigma: float | None = None, *, needed: float, advance: float) -> Audit:
    """Judge a table's keeps again, by the policy's smallest effect and the probability it must exceed.

    If sigma (of one run, in bits per byte) is None, it is estimated from the rows.

    Raises:
        UserError: sigma is not a positive number, or no rows reveal it.
    """
    table = [row for row in rows if row.val_bpb is not None and row.status in (Status.KEEP, Status.DISCARD)]
    level, evidence = (given(sigma), ()) if sigma is not None else estimated(table)
    keeps = tuple(_judged(table, level, needed, advance))
    return Audit(
        rows=len(table),
        sigma=level.sigma,
        interval=None if sigma is not None else level.interval(),
        freedom=None if sigma is not None else level.freedom,
        evidence=evidence,
        luck=_luck(level),
        needed=needed,
        advance=advance,
        keeps=keeps,
        survivors=sum(keep.survives for keep in keeps),
        clear=sum(keep.clear for keep in keeps),
    )


def _judged(table: Sequence[Row], level: Noise, needed: float, advance: float) -> Iterator[Keep]:
    """Each keep after the first as the judge would have seen it, with the table's own keeps as its incumbents."""
    history = [
        Observation(str(row.number), str(parent.number) if parent else None, score(row), level.sigma**2)
        for row, parent in stepwise(table)
    ]
    for index, (row, parent) in enumerate(stepwise(table)):
        if parent is None or row.status is not Status.KEEP:
            continue
        beliefs = posterior.believe(history[:index], level.sigma)
        gain = posterior.gain(beliefs.programs[str(parent.number)], beliefs.effects, history[index])
        probability = gain.above(needed, level.at_most)
        shown = score(parent) - score(row)
        yield Keep(
            number=row.number,
            val_bpb=score(row),
            gain=shown,
            believed=gain.mean,
            error=gain.spread,
            probability=probability,
            survives=probability > advance,
            z=shown / (level.sigma * math.sqrt(2)),
            clear=shown > _luck(level),
            description=row.description,
        )


def _luck(level: Noise) -> float:
    return level.quantile(CONFIDENCE) * level.sigma * math.sqrt(2)


def stepwise(table: Iterable[Row]) -> Iterator[tuple[Row, Row | None]]:
    """Each row with the row kept last before it; None until one was kept."""
    incumbent: Row | None = None
    for row in table:
        yield row, incumbent
        if row.status is Status.KEEP:
            incumbent = row


def score(row: Row) -> float:
    """Its val_bpb. Rows without one were removed from the table."""
    assert row.val_bpb is not None
    return row.val_bpb


# ---------------------------------------------------------------- the noise of a run


def given(sigma: float) -> Noise:
    """A sigma that the user knows.

    Raises:
        UserError: it is not a positive number.
    """
    if not (math.isfinite(sigma) and sigma > 0):
        raise UserError(
            f"a sigma of {sigma:g} cannot be the noise: give the standard deviation of one run, as in --sigma 0.0005"
        )
    return Noise(sigma, EXACT)


def estimated(table: Sequence[Row]) -> tuple[Noise, tuple[str, ...]]:
    """The noise by a table's near-duplicates, and a description of those rows.

    Rows that say that they compute the same (another seed, a no-op) are runs of the program that was kept last before
    them. The same change applied to several incumbents should gain the same each time, and a gain has twice the
    variance of a run. What it really gains more on one than on another makes sigma larger.

    Raises:
        UserError: there are none, or they do not differ.
    """
    squares, freedom, evidence = 0.0, 0, list[str]()
    for runs, said in itertools.chain(_same_programs(table), _same_changes(table)):
        squares += statistics.variance(runs) * (len(runs) - 1)
        freedom += len(runs) - 1
        evidence.append(said)
    if not squares > 0:
        raise UserError(
            "no two rows are runs of one program (another seed, a no-op, the same change twice), so the noise is "
            "unknown: give the standard deviation of one run's val_bpb, as in --sigma 0.0005"
        )
    return Noise(math.sqrt(squares / freedom), freedom), tuple(evidence)


def noise_of(rows: Iterable[Row]) -> float:
    """The noise of a run by a table's near-duplicates, as its standard deviation; 0 if no rows reveal it."""
    try:
        return audit(rows, needed=0.0, advance=0.5).sigma
    except UserError:
        return 0.0


def _same_programs(table: Sequence[Row]) -> Iterator[tuple[list[float], str]]:
    """The scores of each program that was run more than once, according to the rows' descriptions."""
    programs, first = defaultdict[int, list[Row]](list), dict[int, int]()
    for row, parent in stepwise(table):
        if parent is not None and SAME_PROGRAM.search(row.description):
            first[row.number] = number = first.get(parent.number, parent.number)
            programs[number] = [*(programs[number] or [parent]), row]
    for kept, *others in programs.values():
        names = ", ".join(f'#{row.number} "{shorten(row.description, 40)}"' for row in others)
        yield [score(row) for row in (kept, *others)], f"the program of #{kept.number} again: {names}"


def _same_changes(table: Sequence[Row]) -> Iterator[tuple[list[float], str]]:
    """The gains of each change that was applied to more than one incumbent, divided by √2: as noisy as a run."""
    changes = defaultdict[str, dict[int, tuple[Row, float]]](dict)
    for row, parent in stepwise(table):
        if parent is not None and not SAME_PROGRAM.search(row.description):
            changes[bare(row.description)].setdefault(parent.number, (row, score(parent) - score(row)))
    for change, found in changes.items():
        if change and len(found) > 1:
            rows, gains = zip(*found.values(), strict=True)
            names = ", ".join(f"#{row.number} {-gain:+.6f}" for row, gain in zip(rows, gains, strict=True))
            name = shorten(rows[0].description, 40)
            yield [gain / math.sqrt(2) for gain in gains], f'the same change "{name}": {names}'


def bare(description: str) -> str:
    """A description in lower case, without the outcome that it mentions in parentheses."""
    return " ".join(REMARK.sub("", description).casefold().split())


# ---------------------------------------------------------------- changes that change nothing


def binomial_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Where the probability of a success lies: exact, two-sided (Clopper and Pearson 1934).

    Raises:
        ValueError: there are more successes than trials, or fewer than none.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    tail, failures = (1 - confidence) / 2, trials - successes
    low = float(special().betaincinv(successes, failures + 1, tail)) if successes else 0.0
    high = float(special().betaincinv(successes + 1, failures, 1 - tail)) if failures else 1.0
    return low, high


def greedy_keeps(scores: Sequence[float | None]) -> list[bool]:
    """Which of the trials after the first the published rule keeps: lower than the lowest so far wins. None is a crash.

    If the first has no score, the first that has one takes its place and is not a keep.
    """
    best = itertools.accumulate((math.inf if score is None else score for score in scores), min)
    pairs = zip(best, scores[1:], strict=False)
    return [score is not None and math.isfinite(lowest) and score < lowest for lowest, score in pairs]


@dataclass(frozen=True)
class Control:
    """How many no-ops with a score a judge kept, and how many the published rule would have kept.

    The intervals are of the probability, two-sided at 95 %. `sigma` is in bits per byte.
    """

    judge: str
    trials: int
    kept: int
    interval: tuple[float, float]
    greedy_kept: int
    greedy_interval: tuple[float, float]
    confirmed: int
    sigma: float
    freedom: int


def control(campaign: Campaign) -> Control:
    """What a campaign of no-ops says about its judge.

    Raises:
        UserError: none of them has a score.
    """
    baseline, *tried = judge.scored(campaign) or (None,)
    if baseline is None or not tried:
        raise UserError("no trial of the control has a score: look at `autoresearch log`, then run it again")
    numbers = {trial.number for trial in tried}
    kept = sum(trial.number in numbers for trial in campaign.kept)
    greedy = sum(
        greedy_keeps([trial.runs[0].score.val_bpb if trial.runs[0].score else None for trial in (baseline, *tried)])
    )
    level = judge.measured([baseline, *tried])
    return Control(
        judge=campaign.started.judge,
        trials=len(tried),
        kept=kept,
        interval=binomial_interval(kept, len(tried)),
        greedy_kept=greedy,
        greedy_interval=binomial_interval(greedy, len(tried)),
        confirmed=sum(each.outcome is Outcome.CONFIRMED for each in campaign.confirmations),
        sigma=level.sigma,
        freedom=level.freedom,
    )
