"""Secret rows mixed among the scored ones, and what their answers tell of a model that looks ahead or remembers."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]

NEAR = 8  # positions just before a splice that are compared, besides FAR random ones
FAR = 16
# In nats, see `drift`; benchmarks/probes.py measures honest models and leaks against them.
LARGEST = 0.5  # what rounding may do to one answer
FLOOR = {"float32": 1e-3, "float16": 2e-3, "bfloat16": 2e-3}  # mean of answers, where repeats agree exactly
NOISIER = 8.0  # mean of answers before a splice against that of repeats
NOISIEST = 0.03  # mean of repeats
SURPRISE_ERRORS = 6.0  # standard errors
LEAST_SURPRISES = 16


@dataclass(frozen=True)
class Twin:
    """An asked row that must be answered like an original up to `position`, where it goes on otherwise.

    Both are indices into the asked rows; `compared` are the positions looked at, those just before it included.
    """

    original: int
    twin: int
    position: int
    compared: Array
    spliced: bool


@dataclass(frozen=True)
class Plan:
    """All rows to ask for, int64 (N, T), the scored ones first; in what order; and which are to agree."""

    asked: Array
    order: Array
    twins: tuple[Twin, ...]


def plan(rows: Array, random: np.random.Generator) -> Plan:
    """Mix spliced and repeated rows among the scored ones (N, T + 1), in random order."""
    inputs = rows[:, :-1].astype(np.int64)
    count, context = inputs.shape
    spliced = min(256, max(64, count // 8)) if context > 1 and count > 1 else 0
    repeated = min(64, max(4, count // 32))
    twins, extra = list[Twin](), list[Array]()
    for original in _choose(count, spliced, random):
        row, position = splice(inputs, original, random)
        near = np.arange(max(0, position - NEAR), position)
        far = random.choice(position, min(position, FAR), replace=False)
        twins.append(Twin(original, count + len(extra), position, np.union1d(near, far), True))
        extra.append(row)
    for original in _choose(count, repeated, random):
        compared = random.choice(context, min(context, NEAR + FAR), replace=False)
        twins.append(Twin(original, count + len(extra), context, np.sort(compared), False))
        extra.append(inputs[original])
    asked = np.concatenate([inputs, np.stack(extra)])
    return Plan(asked, random.permutation(len(asked)), tuple(twins))


def _choose(count: int, wanted: int, random: np.random.Generator) -> list[int]:
    return [int(number) for number in random.choice(count, wanted, replace=wanted > count)]


def splice(inputs: Array, original: int, random: np.random.Generator) -> tuple[Array, int]:
    """A row that begins as the original and from a random position on is another real one; and that position."""
    position = int(random.integers(1, inputs.shape[1]))
    donors = np.flatnonzero(inputs[:, position] != inputs[original, position])
    if not len(donors):  # all rows agree there
        return inputs[original].copy(), position
    donor = inputs[random.choice(donors)]
    return np.concatenate([inputs[original, :position], donor[position:]]), position


def drift(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """How far apart two answers (n, V) are: the root of the symmetric Kullback-Leibler divergence, in nats.

    It is the size of the change of log probability where the probability is, so that no logit which hardly matters
    can hide or feign a change.
    """
    a, b = first.double().log_softmax(-1), second.double().log_softmax(-1)
    return ((a.exp() - b.exp()) * (a - b)).sum(-1).clamp_min(0).sqrt()


class Comparison:
    """Collects the answers to twins and their originals, and keeps no more of them than it compares."""

    def __init__(self, plan: Plan, counted: Array) -> None:
        self.plan, self.counted = plan, counted
        self.rows: dict[int, list[int]] = defaultdict(list)
        for number, twin in enumerate(plan.twins):
            self.rows[twin.original].append(number)
            self.rows[twin.twin].append(number)
        self.waiting: dict[int, tuple[int, torch.Tensor, float]] = {}
        self.drifts: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self.surprises: list[float] = []

    def hear(self, row: int, batch: int, logits: torch.Tensor) -> None:
        """Take the answer (T, V) to a row, which came in the batch of this number."""
        for number in self.rows.get(row, ()):
            twin = self.plan.twins[number]
            answer = logits[torch.from_numpy(twin.compared)]
            if number not in self.waiting:
                self.waiting[number] = batch, answer, self._surprise(twin, row, answer)
                continue
            earlier, first, surprise = self.waiting.pop(number)
            if surprise >= 0 and batch >= earlier + 2:
                self.surprises.append(surprise)
            for position, far in zip(twin.compared.tolist(), drift(first, answer).tolist(), strict=True):
                before = twin.position - position
                kind = "repeated" if not twin.spliced else f"{before} before" if before <= NEAR else "far before"
                self.drifts[kind].append((far, position))

    def _surprise(self, twin: Twin, row: int, answer: torch.Tensor) -> float:
        """Nats for the original's token at the splice, of a model that was not shown it yet; -1 where it was."""
        if not twin.spliced or row == twin.original or not self.counted[twin.original, twin.position]:
            return -1.0
        token = int(self.plan.asked[twin.original, twin.position])
        return float(-answer[-1].double().log_softmax(-1)[token])

    def failure(self, dtype: str, mean_nats: float) -> str | None:
        """Why this is no model that sees the past alone, in words; `mean_nats` is what it scored by token."""
        repeated = [far for far, _ in self.drifts["repeated"]]
        noise = float(np.mean(repeated))
        if noise > NOISIEST or max(repeated) > LARGEST:
            return (
                f"a row asked again is answered otherwise (by {max(repeated):.3g} nats): the model keeps state between "
                "calls, or mixes the rows of a batch"
            )
        for kind, drifts in self.drifts.items():
            far, position = max(drifts)
            mean = float(np.mean([far for far, _ in drifts]))
            if kind != "repeated" and (far > LARGEST or mean > FLOOR[dtype] + NOISIER * noise):
                sees = "the model sees the future"
                return f"position {position} changes when a later token does (by {far:.3g} nats): {sees}"
        return self._memory(mean_nats)

    def _memory(self, mean_nats: float) -> str | None:
        """A model that knows a token only after it was shown it, and answers old prefixes as before, tells by this."""
        if len(self.surprises) < LEAST_SURPRISES:
            return None
        found = float(np.mean(self.surprises))
        error = float(np.std(self.surprises, ddof=1)) / len(self.surprises) ** 0.5
        if found - mean_nats <= SURPRISE_ERRORS * error:
            return None
        return (
            f"tokens that it was not shown yet take {found:.2f} nats on average, and all others {mean_nats:.2f}: the "
            "model sees the future and remembers what it answered"
        )
