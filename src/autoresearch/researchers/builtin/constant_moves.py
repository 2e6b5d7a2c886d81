"""Moves of a file's constants: which there are, and how far the chosen one goes, by Optuna."""

from __future__ import annotations

import dataclasses
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from autoresearch.researchers.builtin.history import Move, Past
from autoresearch.researchers.source import constants
from autoresearch.researchers.source.constants import CONTINUOUS, Constant, Kind

# Classes of ideas by a word in a constant's name; the first match counts.
KINDS = {
    "BATCH": "batch",
    "WARM|FINAL": "schedule",
    "_LR|LR_": "learning rate",
    "WEIGHT_DECAY": "decay",
    "BETA|MOMENTUM": "momentum",
    "INIT": "initialization",
    "DEPTH|ASPECT|HEAD_DIM|MLP": "size",
    "WINDOW|ROPE|QK": "attention",
    "LAMBDA": "residual",
    "EMBED|GATE": "embedding",
    "SOFTCAP": "head",
}
UNFOUNDED = -0.0005  # the expected gain of a move without any evidence
OPPOSITE = -0.5  # of the gain of a move, for the one in the other direction
ASKS = 24  # of Optuna's answers, tried for one proposal
REACH = 2.0  # how far Optuna looks around the current value, in doublings
FALLBACKS = 120  # random steps tried after those, with more and more digits


def kind_of(name: str) -> str:
    return next((kind for words, kind in KINDS.items() if re.search(words, name)), "other")


def arms(knobs: Mapping[str, Constant], gains: Mapping[str, float]) -> list[Move]:
    """Each constant up and down, with the expected gain. `gains` holds what is known, by arm."""
    moves = []
    for name in sorted(knobs):
        known = {way: gains.get(f"{name} {way}") for way in ("up", "down")}
        for way, other in (("up", "down"), ("down", "up")):
            opposite = known[other]
            gain = known[way] if known[way] is not None else UNFOUNDED if opposite is None else OPPOSITE * opposite
            moves.append(Move(f"{name} {way}", kind_of(name), gain if gain is not None else UNFOUNDED, knob=name))
    return moves


def steps(old: Constant, way: float, pasts: Sequence[Past], seed: int) -> Iterator[tuple[float, int | None]]:
    """(step, digits) for `constants.moved`, best first: a round one, and Optuna's once some are known."""
    positions = known_levels(old, pasts)
    if old.kind not in CONTINUOUS:
        yield from ((way * step, None) for step in (0.5, 1.0))
        return
    if not any(position * way > 0 for position, _ in positions):
        yield way, None
    if len(positions) > 1:
        yield from ((step, 2) for step in optunas_steps(positions, seed) if step * way > 0)
    yield from ((way * step, None) for step in (0.5, 1.0))
    draw = random.Random(seed)
    yield from ((way * draw.uniform(0.1, 1.0), 2 + attempt // 30) for attempt in range(FALLBACKS))


def known_levels(old: Constant, pasts: Sequence[Past]) -> list[tuple[float, float]]:
    """What is known about a constant's values: (doublings from the current one, relative val_bpb); a crash counts as
    worst."""
    levels = {old.text: 0.0}
    for past in pasts:
        move = past.moves[0]
        if len(past.moves) == 1 and move.knob == old.name and move.after:
            change = 1.0 if past.crashed or past.change is None else past.change
            levels[move.after] = levels.setdefault(move.before, 0.0) + change
    found = []
    for text, level in levels.items():
        position = distance(old, text)
        found += [(position, level)] if position is not None and abs(position) <= REACH else []
    return found


def distance(old: Constant, text: str) -> float | None:
    """Doublings from the constant's value to another one's; None if there is no such number."""
    try:
        value, here = float(text), float(old.value)
    except ValueError:
        return None
    if old.kind is Kind.DECAY:
        value, here = 1 - value, 1 - here
    return math.log2(value / here) if value * here > 0 else None


def optunas_steps(positions: Sequence[tuple[float, float]], seed: int) -> Iterator[float]:
    """Steps that Optuna's estimator proposes, given what is known about the constant's values."""
    known = [({"position": min(max(position, -REACH), REACH)}, level) for position, level in positions]
    for asked in suggestions({"position": Scale(-REACH, REACH)}, known, seed, startup=1, asks=ASKS):
        if abs(asked["position"]) <= 1:
            yield asked["position"]


@dataclass(frozen=True)
class Scale:
    """The limits of a value. Two whole numbers make it whole."""

    low: float
    high: float
    log: bool = False


def suggestions(
    scales: Mapping[str, Scale],
    known: Iterable[tuple[Mapping[str, float], float]],
    seed: int,
    *,
    startup: int,
    asks: int,
) -> Iterator[Mapping[str, float]]:
    """Values that Optuna's estimator (TPE) proposes for a lower score, given what is known: (values, score).

    The first are random until `startup` scores are known. The same arguments give the same values.
    """
    import optuna  # heavy, and not needed for most proposals

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions: dict[str, optuna.distributions.BaseDistribution] = {}
    for name, scale in scales.items():
        if isinstance(scale.low, int) and isinstance(scale.high, int):
            distributions[name] = optuna.distributions.IntDistribution(scale.low, scale.high, log=scale.log)
        else:
            distributions[name] = optuna.distributions.FloatDistribution(scale.low, scale.high, log=scale.log)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup))
    for values, score in known:
        study.add_trial(optuna.trial.create_trial(params=dict(values), distributions=distributions, value=score))
    for _ in range(asks):
        trial = study.ask(distributions)
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        yield trial.params


def variant(old: Constant, step: float, digits: int | None) -> Constant | None:
    """The constant after a step; None if that leads nowhere."""
    value = constants.moved(old, step, digits)
    if value is None or value == old.value:
        return None
    return dataclasses.replace(old, value=value, text=constants.write(value, old.text))
