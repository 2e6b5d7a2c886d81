"""How far the scores of one program scatter from run to run, measured from everything that was run more than once.

Pure: scores in, numbers out. Scores are val_bpb, in bits per byte.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Before anything is replicated, the noise is assumed to be this share of the score: on an H100 a seed moves val_bpb by
# 0.07 %, on two CPU cores by 0.4 %. It weighs little once there are replicates; three seeds outweigh it.
PRIOR_SHARE = 0.001
PRIOR_WEIGHT = 0.2  # degrees of freedom
FARTHEST = 100.0  # times the usual variance: a score ten times as far out is not noise, but a run that diverged
LEAST = 1e-18  # variance, if a lab scores 0 and its prior is 0 too
SURE = 0.05  # error rate at which runs on one seed are found to have something in common


@dataclass(frozen=True)
class Noise:
    """The standard deviation of one run's score, and its degrees of freedom: 1 if nothing was replicated.

    `shared` is the part of the variance that runs of different programs on the same seed have in common.
    """

    sigma: float
    freedom: int
    shared: float = 0.0

    def at_most(self, value: float) -> float:
        """The probability that noise in standard errors stays below `value`: Student's t, not the normal."""
        return float(special().stdtr(self.freedom, value))

    def quantile(self, probability: float) -> float:
        """The value that the noise stays below with this probability, in standard errors."""
        return student(probability, self.freedom)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The interval of sigma itself, by the chi-squared distribution."""
        tail = (1 - confidence) / 2
        low, high = (float(special().chdtri(self.freedom, p)) for p in (tail, 1 - tail))  # upper tails
        return self.sigma * math.sqrt(self.freedom / low), self.sigma * math.sqrt(self.freedom / high)


def pooled(programs: Iterable[Sequence[tuple[int, float]]]) -> Noise:
    """The noise of the programs' runs, each a (seed, score). The first program's mean sets the prior's scale.

    Raises:
        ValueError: no program has a run.
    """
    groups = [runs for runs in programs if runs]
    if not groups:
        raise ValueError("there is no run to measure the noise from")
    spreads = [(statistics.variance(s for _, s in runs), len(runs) - 1) for runs in groups if len(runs) > 1]
    usual = statistics.median_low(variance for variance, _ in spreads) if spreads else 0.0
    spreads = [(variance, free) for variance, free in spreads if variance <= FARTHEST * usual or not usual]
    squares, freedom = math.fsum(variance * free for variance, free in spreads), sum(free for _, free in spreads)
    prior = PRIOR_SHARE * abs(statistics.fmean(score for _, score in groups[0]))
    variance = (squares + PRIOR_WEIGHT * prior**2) / (freedom + PRIOR_WEIGHT)
    return Noise(math.sqrt(max(variance, LEAST)), max(freedom, 1), shared([dict(runs) for runs in groups]))


def shared(programs: Sequence[Mapping[int, float]]) -> float:
    """The share of the variance that a seed causes in two programs alike; 0 if their runs do not show that.

    It is the correlation of paired runs, pooled over pairs of programs, and must differ from 0 by a t test.
    """
    products, squares, freedom = 0.0, 0.0, 0
    replicated = [program for program in programs if len(program) > 1]
    for one, other in itertools.pairwise(sorted(replicated, key=len, reverse=True)):
        seeds = sorted(one.keys() & other.keys())
        if len(seeds) < 2:
            continue
        a, b = (
            [program[seed] - statistics.fmean(program[s] for s in seeds) for seed in seeds] for program in (one, other)
        )
        products += math.fsum(x * y for x, y in zip(a, b, strict=True))
        squares += (math.fsum(x * x for x in a) + math.fsum(y * y for y in b)) / 2
        freedom += len(seeds) - 1
    if freedom < 2 or squares <= 0:
        return 0.0
    found = min(products / squares, 0.99)
    sure = found > 0 and found * math.sqrt((freedom - 1) / (1 - found**2)) > student(1 - SURE, freedom - 1)
    return found if sure else 0.0


def student(probability: float, freedom: int) -> float:
    """The value that Student's t stays below with this probability."""
    return float(special().stdtrit(freedom, probability))


@functools.cache
def special() -> Any:
    """scipy's special functions. Importing them takes half a second, and most commands do not need them."""
    return importlib.import_module("scipy.special")
