"""Estimates moves: a Gaussian process over everything a campaign has measured predicts what each next move may gain.

Each program's val_bpb is modeled as the sum of the effects of its moves, so that a lucky keep does not spoil what comes
after it. Effects of the same class of ideas, the same constant and the same move have parts in common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoresearch.researchers.builtin.history import Move, Past

Array = npt.NDArray[np.float64]

# Shares of an effect's variance; they sum to 1.
OF_KIND, OF_SUBJECT, OF_ARM, OF_MOVE = 0.15, 0.25, 0.3, 0.3
LEAST_SPREAD, MOST_SPREAD = 0.005, 0.1  # standard deviation of effects before anything is known, relative
BOLDNESS = 0.25  # share of a deviation that is sampled; 1 is Thompson sampling, too bold for a few dozen trials


@dataclass(frozen=True)
class Belief:
    """The estimate of a candidate's effect, relative to the program it changes. `drawn` is one sample from it."""

    mean: float
    deviation: float
    drawn: float


def covariance(a: Sequence[Move], b: Sequence[Move]) -> Array:
    """Of the effects of moves, in units of the prior variance."""

    def same(left: Sequence[object], right: Sequence[object]) -> Array:
        codes: dict[object, int] = {}
        coded = [np.array([codes.setdefault(x, len(codes)) for x in side]) for side in (left, right)]
        equal: Array = (coded[0][:, None] == coded[1][None, :]).astype(np.float64)
        return equal

    ways = np.outer([m.subject[1] for m in a], [m.subject[1] for m in b]).astype(np.float64)
    shared = OF_KIND * same([m.kind for m in a], [m.kind for m in b])
    shared += OF_SUBJECT * ways * same([m.subject[0] for m in a], [m.subject[0] for m in b])
    shared += OF_ARM * same([m.arm for m in a], [m.arm for m in b])
    identities = [[(m.arm, m.before, m.after) for m in side] for side in (a, b)]
    shared += OF_MOVE * same(*identities)
    result: Array = shared * np.outer([m.size for m in a], [m.size for m in b])
    return result


def beliefs(pasts: Sequence[Past], candidates: Sequence[Sequence[Move]], noise: float, seed: int) -> list[Belief]:
    """The estimate for each candidate (moves made together)."""
    if not candidates:
        return []
    scored = [past for past in pasts if past.level is not None]
    own = {past.trial: past.moves for past in pasts}
    spread = spread_of(scored, noise)
    seen = [move for past in pasts for move in past.moves]
    features = incidence([past.chain for past in scored], own)
    new = [move for moves in candidates for move in moves]
    picks = np.zeros((len(candidates), len(new)))
    place = 0
    for row, moves in enumerate(candidates):
        picks[row, place : place + len(moves)] = 1
        place += len(moves)
    prior = picks @ np.array([move.expected for move in new])
    variance = spread**2 * picks @ covariance(new, new) @ picks.T
    if scored:
        levels = np.array([past.level for past in scored], dtype=np.float64)
        levels -= features @ np.array([move.expected for move in seen])
        inner = spread**2 * features @ covariance(seen, seen) @ features.T
        # The baseline's own luck is in every level; more runs of a trial have less noise.
        inner += noise**2 * (1 + np.diag([1 / past.runs for past in scored]))
        outer = spread**2 * picks @ covariance(new, seen) @ features.T
        solved = np.linalg.solve(inner, np.column_stack((levels, outer.T)))
        prior, variance = prior + outer @ solved[:, 0], variance - outer @ solved[:, 1:]
    return drawn(prior, variance, seed)


def drawn(mean: Array, variance: Array, seed: int) -> list[Belief]:
    deviation = np.sqrt(np.clip(np.diag(variance), 0, None))
    noise = np.random.default_rng(seed).standard_normal(len(mean))
    sample = mean + BOLDNESS * deviation * noise
    return [Belief(*(float(x) for x in row)) for row in zip(mean, deviation, sample, strict=True)]


def incidence(chains: Sequence[Sequence[int]], own: Mapping[int, Sequence[Move]]) -> Array:
    """Which of all moves (columns, by trial) each chain (row) contains."""
    places: dict[int, list[int]] = {}
    for trial, moves in own.items():
        first = sum(len(before) for before in places.values())
        places[trial] = list(range(first, first + len(moves)))
    result = np.zeros((len(chains), sum(len(moves) for moves in own.values())))
    for row, chain in enumerate(chains):
        result[row, [place for trial in chain for place in places[trial]]] = 1
    return result


def spread_of(scored: Sequence[Past], noise: float) -> float:
    """How far effects of moves spread in this campaign: what single trials changed, minus the noise."""
    changes = np.array([past.change for past in scored if past.change is not None], dtype=np.float64)
    if len(changes) < 4:
        return LEAST_SPREAD
    size = float(np.sqrt(max(np.median(changes**2) * 2.2 - 2 * noise**2, 0)))
    return min(max(size, LEAST_SPREAD), MOST_SPREAD)
