"""Estimates of programs that had one noisy run each: a Gaussian filter along the search.

The incumbent's true val_bpb is a Gaussian. A proposal's true gain over it has a prior with heavy tails: most proposals
do little, a few do much. It is a scale mixture of two Gaussians (Andrews and Mallows 1974), whose narrower spread is
learned from the gains this search has seen. Each run updates both by Bayes' rule (the Kalman filter of a random walk),
for each of the two; the result is taken for a Gaussian with the same mean and variance (a Gaussian sum filter, Sorenson
and Alspach 1971, collapsed at each step). A large effect is therefore believed almost as measured, a small one is
pulled toward nothing. A discarded candidate's run still says something about the incumbent.

Pure: numbers in, numbers out, in bits per byte. A gain is positive if the candidate is better.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

NORMAL = statistics.NormalDist()
# The prior of a proposal's gain: its spread in units of the noise before any gain was seen, and the number of proposals
# that this counts as; its mean in units of the spread, whatever was seen, since most proposals do harm.
DEFAULT_SPREAD, DEFAULT_WEIGHT = 1.5, 20
MEAN = -0.3
LEAST_SPREAD = 0.5  # of the noise: what is learned from few gains must not rule out that one helps
# robust standard deviations; a gain beyond them comes from a broken model and is moved in to this distance
OUTLYING = 5.0
# The wide part of the prior: the share of proposals, and its spread in units of the narrow one's.
WIDE_SHARE, WIDE = 0.1, 8.0
# standard deviations of the wide part; beyond them a candidate's runs say nothing about its parent, nor does the prior
# about it
FAR = 3.0
FEWEST = 3  # gains to learn from
MOST_GAINS = 1024  # the latest ones, so that it does not take longer and longer
PASSES = 2  # the gains that the effects are learned from depend on the effects, but only a little


class Gaussian(NamedTuple):
    mean: float
    variance: float

    @property
    def spread(self) -> float:
        return math.sqrt(self.variance)

    def part_above(self, bar: float) -> float:
        """Its mean above the bar, times the probability of being there."""
        if self.variance <= 0:
            return self.mean if self.mean > bar else 0.0
        ratio = (self.mean - bar) / self.spread
        return self.mean * NORMAL.cdf(ratio) + self.spread * NORMAL.pdf(ratio)


@dataclass(frozen=True)
class Mixture:
    """A weighted sum of Gaussians. The weights add up to 1."""

    parts: tuple[tuple[float, Gaussian], ...]

    @property
    def mean(self) -> float:
        return math.fsum(weight * part.mean for weight, part in self.parts)

    @property
    def variance(self) -> float:
        mean = self.mean
        return math.fsum(weight * (part.variance + (part.mean - mean) ** 2) for weight, part in self.parts)

    @property
    def spread(self) -> float:
        return math.sqrt(self.variance)

    def above(self, bar: float, at_most: Callable[[float], float]) -> float:
        """The probability of being above the bar. `at_most` gives it for a distance in standard errors."""
        return math.fsum(weight * at_most((part.mean - bar) / part.spread) for weight, part in self.parts)


@dataclass(frozen=True)
class Bar:
    """Whether it is kept: its mean exceeds what is `needed` by `errors` of its standard errors."""

    needed: float
    errors: float

    def at(self, gain: Gaussian | Mixture) -> float:
        return self.needed + self.errors * gain.spread


class Observation(NamedTuple):
    """A program's runs: their mean and its variance. `parent` is the key of the program that it changed."""

    key: str
    parent: str | None
    mean: float
    variance: float


@dataclass(frozen=True)
class Beliefs:
    """The estimates after a search: of each program by its key, and of the next proposal's gain. That one is learned
    from the latest `gains`."""

    programs: dict[str, Gaussian]
    effects: Mixture
    gains: tuple[Gaussian, ...] = ()


def believe(history: Sequence[Observation], sigma: float, before: Beliefs | None = None) -> Beliefs:
    """Filter a search's observations in order. The first is the baseline; later ones name their parent's key.

    If the history is only the end of one, `before` is what was believed until then.
    """
    known, earlier = (before.programs, before.gains) if before else ({}, ())
    gains, effects = earlier, learned(earlier, sigma)
    for _ in range(PASSES):
        programs, found = _filter(history, effects, known)
        gains = (*earlier, *found)[-MOST_GAINS:]
        effects = learned(gains, sigma)
    return Beliefs(programs, effects, gains)


def _filter(
    history: Sequence[Observation], effects: Mixture, known: dict[str, Gaussian]
) -> tuple[dict[str, Gaussian], list[Gaussian]]:
    programs, gains = dict(known), []
    for seen in history:
        parent = programs.get(seen.parent) if seen.parent is not None else None
        if seen.parent is None or parent is None:
            programs[seen.key] = Gaussian(seen.mean, seen.variance)
            continue
        gains.append(Gaussian(parent.mean - seen.mean, parent.variance + seen.variance))
        programs[seen.parent], programs[seen.key] = updated(parent, effects, seen)
    return programs, gains


def updated(parent: Gaussian, effects: Mixture, seen: Observation) -> tuple[Gaussian, Gaussian]:
    """The estimates of parent and candidate after the candidate's runs.

    A broken model does not drag its parent along: it is explained by the wide part of the prior, or by nothing.
    """
    if is_far(parent, effects, seen):
        return parent, Gaussian(seen.mean, seen.variance)
    parents, candidates = [], []
    for weight, prior in weighed(parent, effects, seen):
        before = parent.variance + prior.variance
        total, expected = before + seen.variance, parent.mean - prior.mean
        surprise, rest = (seen.mean - expected) / total, prior.variance + seen.variance
        parents.append((weight, parent.mean + parent.variance * surprise, parent.variance * rest / total))
        candidates.append((weight, expected + before * surprise, before * seen.variance / total))
    return collapsed(parents), collapsed(candidates)


def collapsed(parts: Sequence[tuple[float, float, float]]) -> Gaussian:
    """The Gaussian with the mean and variance of a mixture, whose parts are weight, mean and variance."""
    mean = sum([weight * mean for weight, mean, _ in parts])
    return Gaussian(mean, sum([weight * (variance + (each - mean) ** 2) for weight, each, variance in parts]))


def is_far(parent: Gaussian, effects: Mixture, seen: Observation) -> bool:
    """Whether even the wide part of the prior cannot explain a candidate's runs."""
    _, wide = effects.parts[-1]
    distance = abs(parent.mean - seen.mean - wide.mean)
    return distance > FAR * math.sqrt(parent.variance + wide.variance + seen.variance)


def gain(parent: Gaussian, effects: Mixture, seen: Observation) -> Mixture:
    """The candidate's gain over its parent, after its runs."""
    noise, found = parent.variance + seen.variance, []
    for weight, prior in weighed(parent, effects, seen):
        total = prior.variance + noise
        share, rest = prior.variance / total, noise / total  # rest is 1 - share, but never rounded to 0
        found.append(
            (weight, Gaussian(prior.mean + share * (parent.mean - seen.mean - prior.mean), prior.variance * rest))
        )
    return Mixture(tuple(found))


def gain_over(rival: Gaussian, parent: Gaussian, effects: Mixture, seen: Observation) -> Mixture:
    """The candidate's gain over another program than its parent, after its runs.

    The two are taken for independent, which makes it less sure than it is: they have a common ancestor.
    """
    if is_far(parent, effects, seen):
        return Mixture(((1.0, Gaussian(rival.mean - seen.mean, rival.variance + seen.variance)),))
    found = []
    for weight, prior in weighed(parent, effects, seen):
        before, expected = parent.variance + prior.variance, parent.mean - prior.mean
        total = before + seen.variance
        mean = expected + before * (seen.mean - expected) / total
        found.append((weight, Gaussian(rival.mean - mean, rival.variance + before * seen.variance / total)))
    return Mixture(tuple(found))


def weighed(parent: Gaussian, effects: Mixture, seen: Observation) -> list[tuple[float, Gaussian]]:
    """The parts of the prior, each with the probability that the candidate's effect is of that kind."""
    noise, difference, logs = parent.variance + seen.variance, parent.mean - seen.mean, []
    for weight, prior in effects.parts:
        total = prior.variance + noise
        logs.append(math.log(weight) - (math.log(total) + (difference - prior.mean) ** 2 / total) / 2)
    most = max(logs)
    weights = [math.exp(each - most) for each in logs]
    whole = sum(weights)
    return [(weight / whole, prior) for weight, (_, prior) in zip(weights, effects.parts, strict=True)]


def learned(gains: Sequence[Gaussian], sigma: float) -> Mixture:
    """The prior of the next gain: the spread of those seen, without their noise, pulled toward the default.

    Their mean is not learned: all are measured against the same incumbents, and a lucky one looks like much harm.
    """
    variance = (DEFAULT_SPREAD * sigma) ** 2
    if len(gains) >= FEWEST:
        own = len(gains) / (len(gains) + DEFAULT_WEIGHT)
        variance = own * _variance(gains, sigma) + (1 - own) * variance
    mean = MEAN * math.sqrt(variance)
    return Mixture(((1 - WIDE_SHARE, Gaussian(mean, variance)), (WIDE_SHARE, Gaussian(mean, WIDE**2 * variance))))


def _variance(gains: Sequence[Gaussian], sigma: float) -> float:
    seen = [each.mean for each in gains]
    middle = statistics.median(seen)
    reach = OUTLYING * 1.4826 * statistics.median(abs(each - middle) for each in seen)
    seen = [min(max(each, middle - reach), middle + reach) for each in seen]
    mean, noise = statistics.fmean(seen), statistics.fmean(each.variance for each in gains)
    total = math.fsum((each - mean) ** 2 for each in seen) / (len(seen) - 1)
    return max(total - noise, (LEAST_SPREAD * sigma) ** 2)


def worth_of_a_run(parent: Gaussian, effects: Mixture, seen: Observation, variance: float, bar: Bar) -> float:
    """The true gain expected from one more run, with this variance, of a candidate that would not be kept now.

    See Raiffa and Schlaifer 1961 on the expected value of sample information.
    """
    now = gain(parent, effects, seen)
    more = Observation(seen.key, seen.parent, seen.mean, 1 / (1 / seen.variance + 1 / variance))
    then = gain(parent, effects, more)
    return Gaussian(now.mean, max(now.variance - then.variance, 0.0)).part_above(bar.at(then))


def worth_of_a_proposal(parent: Gaussian, effects: Mixture, variance: float, bar: Bar) -> float:
    """The true gain expected from a fresh proposal of the usual kind with one run of this variance.

    The rare large effects are left out: they will be found whether or not a close candidate is run again.
    """
    _, usual = effects.parts[0]
    noise = parent.variance + variance
    then = Gaussian(usual.mean, usual.variance * noise / (usual.variance + noise))
    return Gaussian(usual.mean, usual.variance - then.variance).part_above(bar.at(then))
