"""Decides from numbers alone when a run is hopeless: so far behind that it has no chance of a better score.

The question is asked at marks, every 5 % of the budget from 30 % on. At each, the band is learned from the lab's own
finished runs: how far a run's smoothed loss was behind that of the run it had to beat, and how far behind its val_bpb
was in the end. The final gap as a function of the gap at the mark is a straight line through the origin: no gap
predicts no gap. A gap is hopeless if even the favorable end of the line's prediction interval is worse than a tie (see
`farthest`). This is the idea of extrapolating learning curves (Domhan, Springenberg and Hutter, 2015: end a run when
its predicted chance of beating the best falls below a threshold), with a line across runs instead of their curve
models.

A change that is bad for the loss halfway and good in the end (a longer warmdown, a loss on another scale) widens the
interval once such a run has been seen; the first of its kind can be ended wrongly. `spared` runs show how often.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from autoresearch.judging import noise
from autoresearch.ledger.records import RunEvent, Scalar

STEP = 5  # % of the budget between marks
MARKS = range(30, 91, STEP)  # before this a change may not show yet; later there is nothing left to save
WINDOW = 2 * STEP  # % of the budget over which the loss is smoothed
FEWEST = 3  # points in a window: with fewer, the median does not protect against a spike
ENOUGH = 10  # finished runs; with fewer, the noise itself is hardly known
CHANCE = 0.001  # of a better score; below this a run is hopeless
TAIL = 10.0  # median gaps: what is farther out counts as this far, so that a few disasters do not dominate
EQUAL = 1e-12  # square nats, of all gaps together: below this, the runs do not differ
SHORTEST = 5.0  # seconds; with less, the parent receives too few points
LARGEST = 1e6  # the largest number from a run that is accepted
SPARED = 10  # one in this many


# ---------------------------------------------------------------- one run's loss


class Smoother:
    """The loss of one run at each mark: the median of the points in the window before it.

    A median, because a few wild points must not end a run. At a mark with too few points, or none close before it, the
    loss is unknown. Points closer together than `apart`, a share of the budget, are skipped.
    """

    def __init__(self, apart: float = 0.0) -> None:
        self._apart = 100 * apart
        self._last = -math.inf
        self._recent: list[tuple[float, float]] = []  # (% of the budget, loss in nats)
        self._mark = MARKS[0]

    def add(self, point: Mapping[str, Scalar]) -> dict[int, float]:
        """Take one line of a run's curve. Returns the loss in nats at those marks (in %) that it is the first to pass.

        Skips anything that is not a number, out of range or back in time.
        """
        at, loss = 100 * number(point.get("progress")), number(point.get("loss"))
        if math.isnan(loss) or not (0 <= at <= 100 and at > self._last and at >= self._last + self._apart):
            return {}
        passed = {}
        while self._mark in MARKS and self._mark < at:
            if (there := self._loss(self._mark)) is not None:
                passed[self._mark] = there
            self._mark += STEP
        self._recent.append((at, loss))
        self._last = at
        return passed

    def _loss(self, mark: int) -> float | None:
        self._recent = [point for point in self._recent if point[0] > mark - WINDOW]
        known = self._last > mark - STEP and len(self._recent) >= FEWEST
        return median(loss for _, loss in self._recent) if known else None


def smoothed(points: Iterable[Mapping[str, Scalar]], apart: float = 0.0) -> dict[int, float]:
    """A whole curve's loss in nats by mark (in % of the budget). See `Smoother`.

    To compare with a live run, `apart` is the distance between the points received from it. Past losses smoothed over
    more points would be less noisy, and the band would be too narrow for it.
    """
    smoother = Smoother(apart)
    return {mark: loss for point in points for mark, loss in smoother.add(point).items()}


def number(value: Scalar) -> float:
    """A value that a run wrote, as a float; NaN if it is not a number or too large."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        return math.nan
    return float(value)


# ---------------------------------------------------------------- what the lab's runs teach


@dataclass(frozen=True)
class Past:
    """A finished run: its loss in nats by mark, as `smoothed` gives it, and its val_bpb in bits per byte."""

    losses: Mapping[int, float]
    val_bpb: float


@dataclass(frozen=True)
class Band:
    """By mark, in % of the budget: the smoothed loss in nats above which a run is hopeless. No mark, no pruning."""

    limits: Mapping[int, float] = field(default_factory=dict)


def learn(finished: Iterable[tuple[Past, Past]], incumbent: Mapping[int, float]) -> Band:
    """The band for a run that has to beat the incumbent, given the incumbent's losses by mark.

    `finished` holds runs, each with the one it had to beat. Pairing all of them with today's incumbent would work too,
    but in a chain of keeps it would hide those that looked bad halfway and were good in the end.
    """
    pairs, limits = list(finished), {}
    for mark in MARKS:
        both = [(run, rival) for run, rival in pairs if mark in run.losses and mark in rival.losses]
        gaps = [(run.losses[mark] - rival.losses[mark], run.val_bpb - rival.val_bpb) for run, rival in both]
        limit = farthest(gaps)
        if limit is not None and mark in incumbent:
            limits[mark] = incumbent[mark] + limit
    return Band(limits)


def farthest(gaps: Sequence[tuple[float, float]]) -> float | None:
    """The gap at a mark (nats) beyond which the chance that the final gap (bits per byte) is below 0 is under CHANCE.

    `gaps` are (at the mark, final) of past runs; positive is worse. None if there are too few, or if gaps at the mark
    predict nothing. The line y = b x has least squares. Its scale s is that of the errors it makes on each run when
    fitted to the others (PRESS, Allen 1974), so that a single disaster, which would pull the line toward itself, counts
    little until a second one agrees. The favorable end of Student's prediction interval, b x - t s sqrt(1 + x² / Σx²),
    is above 0 for x beyond t s / sqrt(b² - t² s² / Σx²), and nowhere if the slope itself is uncertain. Beyond the
    farthest run seen nothing is predicted, so the limit has to lie within.
    """
    if len(gaps) < ENOUGH or not all(math.isfinite(gap) for pair in gaps for gap in pair):
        return None
    middle, end = drawn_in([x for x, _ in gaps]), drawn_in([y for _, y in gaps])
    spread = sum(x * x for x in middle)
    if spread < EQUAL:
        return None
    slope = sum(x * y for x, y in zip(middle, end, strict=True)) / spread
    errors = [(y - slope * x) / (1 - x * x / spread) for x, y in zip(middle, end, strict=True)]
    reach = noise.student(1 - CHANCE, len(gaps) - 1) ** 2 * sum(e * e for e in errors) / (len(gaps) - 1)
    certain = slope * slope - reach / spread
    if slope <= 0 or not certain > 0 or not (found := math.sqrt(reach / certain)) <= max(middle):
        return None  # also if numbers were too large to tell
    return max(found, *(x for x, y in gaps if y <= 0), 0.0)  # nor is a run hopeless if one like it came out well before


def drawn_in(gaps: Sequence[float]) -> list[float]:
    """The same gaps, but none farther from 0 than TAIL times their median distance."""
    farthest_off = TAIL * median(abs(gap) for gap in gaps)
    return [max(-farthest_off, min(farthest_off, gap)) for gap in gaps]


# ---------------------------------------------------------------- a run under way


@dataclass(frozen=True)
class Hopeless:
    """Where a run was found hopeless: % of the budget, smoothed loss and the band's limit there, both in nats."""

    percent: int
    loss: float
    limit: float

    def __str__(self) -> str:
        return f"pruned at {self.percent} %: smoothed training loss {self.loss:.4f}, hopeless above {self.limit:.4f}"


class Watch:
    """Watches one run and says once that it is hopeless: if it is so at two marks in a row.

    Only for a candidate's first run: the baseline has nothing to beat, and a replicate is there to measure noise. The
    caller decides what happens to the run; see `spared`.
    """

    def __init__(self, band: Band) -> None:
        self._limits = band.limits
        self._smoother = Smoother()
        self._suspect: int | None = None  # the last mark at which the run was beyond the limit
        self._said = False

    def hear(self, event: RunEvent) -> Hopeless | None:
        """Take an event of the run. The answer comes with the first point of its curve beyond the second mark."""
        if event.name != "curve" or self._said:
            return None
        for mark, loss in self._smoother.add(event.values).items():
            limit = self._limits.get(mark, math.inf)
            if loss > limit and self._suspect == mark - STEP and event.at >= SHORTEST:
                self._said = True
                return Hopeless(mark, loss, limit)
            self._suspect = mark if loss > limit else None
        return None


def spared(trial: int, tag: str) -> bool:
    """Whether a trial is one of the tenth that finish although they look hopeless, to check that they were.

    By hash, so it is the same in each reading of a ledger, and no researcher can influence it.
    """
    return int.from_bytes(hashlib.sha256(f"{tag}/{trial}".encode()).digest()) % SPARED == 0
