"""What is to be believed of programs that had one noisy run each: a Gaussian filter along the search.

The incumbent's true val_bpb is carried as a Gaussian. A proposal's true gain over it has a Gaussian prior, whose mean
and spread are learned from the gains that this search has seen. Each run updates both, as Bayes' rule for Gaussians
has it (the Kalman filter of a random walk); a discarded candidate's run still says something of the incumbent.

Pure: numbers in, numbers out, in bits per byte; a gain is positive where the candidate is better.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

NORMAL = statistics.NormalDist()
# The prior of a proposal's gain: its spread in units of the noise before any was seen, and the number of proposals
# that this weighs as much as; its mean in units of the spread, whatever was seen, since most proposals do harm.
DEFAULT_SPREAD, DEFAULT_WEIGHT = 1.5, 20
MEAN = -0.3
LEAST_SPREAD = 0.5  # of the noise: what is learned from few gains must not rule out that one helps
OUTLYING = 5.0  # robust standard deviations beyond which a gain, of a proposal that broke the model, is drawn in
FAR = 3.0  # standard deviations beyond which a candidate's runs say nothing of its parent, nor the prior of it
FEWEST = 3  # gains to learn from
PASSES = 2  # the gains that the effects are learned from depend on the effects, but little


@dataclass(frozen=True)
class Gaussian:
    mean: float
    variance: float

    @property
    def spread(self) -> float:
        return math.sqrt(self.variance)

    def part_above(self, bar: float) -> float:
        """Its mean where it is above the bar, times the probability of that."""
        if self.variance <= 0:
            return self.mean if self.mean > bar else 0.0
        ratio = (self.mean - bar) / self.spread
        return self.mean * NORMAL.cdf(ratio) + self.spread * NORMAL.pdf(ratio)


@dataclass(frozen=True)
class Bar:
    """What is kept: a gain whose mean exceeds what is `needed` by so many `errors`, of its standard error each."""

    needed: float
    errors: float

    def at(self, gain: Gaussian) -> float:
        return self.needed + self.errors * gain.spread


@dataclass(frozen=True)
class Observation:
    """A program's runs: their mean and the variance of that; `parent` is the program that it changed, by its key."""

    key: str
    parent: str | None
    mean: float
    variance: float


@dataclass(frozen=True)
class Beliefs:
    """What is believed after a search: of each program by its key, and of the next proposal's gain."""

    programs: dict[str, Gaussian]
    effects: Gaussian


def believe(history: Sequence[Observation], sigma: float) -> Beliefs:
    """Filter a search's observations, in order; the first is the baseline, and later ones know their parent's key."""
    effects = learned((), sigma)
    for _ in range(PASSES):
        programs, gains = _filter(history, effects)
        effects = learned(gains, sigma)
    return Beliefs(programs, effects)


def _filter(history: Sequence[Observation], effects: Gaussian) -> tuple[dict[str, Gaussian], list[Gaussian]]:
    programs: dict[str, Gaussian] = {}
    gains = []
    for seen in history:
        parent = programs.get(seen.parent) if seen.parent is not None else None
        if seen.parent is None or parent is None:
            programs[seen.key] = Gaussian(seen.mean, seen.variance)
            continue
        gains.append(Gaussian(parent.mean - seen.mean, parent.variance + seen.variance))
        programs[seen.parent], programs[seen.key] = updated(parent, effects, seen)
    return programs, gains


def updated(parent: Gaussian, effects: Gaussian, seen: Observation) -> tuple[Gaussian, Gaussian]:
    """What is believed of parent and candidate after the candidate's runs.

    One that broke the model would otherwise take its parent along: the effects have heavier tails than the Gaussian.
    """
    expected = parent.mean - effects.mean
    total = parent.variance + effects.variance + seen.variance
    surprise = (seen.mean - expected) / total
    if abs(surprise) * math.sqrt(total) > FAR:
        return parent, Gaussian(seen.mean, seen.variance)
    before, rest = parent.variance + effects.variance, (effects.variance + seen.variance) / total
    return (
        Gaussian(parent.mean + parent.variance * surprise, parent.variance * rest),
        Gaussian(expected + before * surprise, before * seen.variance / total),
    )


def gain(parent: Gaussian, effects: Gaussian, seen: Observation) -> Gaussian:
    """The candidate's gain over its parent, after its runs."""
    total = parent.variance + effects.variance + seen.variance
    share = effects.variance / total
    rest = (parent.variance + seen.variance) / total  # 1 - share, but never rounded to 0
    return Gaussian(effects.mean + share * (parent.mean - seen.mean - effects.mean), effects.variance * rest)


def learned(gains: Sequence[Gaussian], sigma: float) -> Gaussian:
    """The prior of the next gain: its spread by those seen, without their noise, drawn towards the default.

    Their mean is not learned: all are measured against the same incumbents, and a lucky one looks like much harm.
    """
    variance = (DEFAULT_SPREAD * sigma) ** 2
    if len(gains) >= FEWEST:
        own = len(gains) / (len(gains) + DEFAULT_WEIGHT)
        variance = own * _variance(gains, sigma) + (1 - own) * variance
    return Gaussian(MEAN * math.sqrt(variance), variance)


def _variance(gains: Sequence[Gaussian], sigma: float) -> float:
    seen = [each.mean for each in gains]
    middle = statistics.median(seen)
    reach = OUTLYING * 1.4826 * statistics.median(abs(each - middle) for each in seen)
    seen = [min(max(each, middle - reach), middle + reach) for each in seen]
    mean, noise = statistics.fmean(seen), statistics.fmean(each.variance for each in gains)
    total = math.fsum((each - mean) ** 2 for each in seen) / (len(seen) - 1)
    return max(total - noise, (LEAST_SPREAD * sigma) ** 2)


def worth_of_a_run(parent: Gaussian, effects: Gaussian, seen: Observation, variance: float, bar: Bar) -> float:
    """The true gain that one more run, of this variance, of a candidate that is not kept as it is may bring.

    See Raiffa and Schlaifer 1961 on the expected value of sample information.
    """
    now = gain(parent, effects, seen)
    more = Observation(seen.key, seen.parent, seen.mean, 1 / (1 / seen.variance + 1 / variance))
    then = gain(parent, effects, more)
    return Gaussian(now.mean, max(now.variance - then.variance, 0.0)).part_above(bar.at(then))


def worth_of_a_proposal(parent: Gaussian, effects: Gaussian, variance: float, bar: Bar) -> float:
    """The true gain that a fresh proposal with one run of this variance is expected to bring."""
    then = gain(parent, effects, Observation("", None, parent.mean, variance))
    return Gaussian(effects.mean, max(effects.variance - then.variance, 0.0)).part_above(bar.at(then))
