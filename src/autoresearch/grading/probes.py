"""Secret rows mixed in with the scored ones, and how their answers reveal a model that looks ahead or remembers.

Rows that are asked again must be answered as before. Rows that begin alike and continue differently (spliced at a
position) must be answered alike up to there, in four respects:

- drift: no answer before the splice may change by more than repeats do.
- gain: noise hides a change, but not its sign. A row's own next token may not be likelier if the row itself follows
  than if another does: the mean of that difference is what a leak gains, and 0 for a model that only sees the past.
- surprise: a model that answers old beginnings from memory passes both. It does not know the token at the splice if it
  was shown the other row first, however well it knows all others.
- rest: it may look ahead without being compared after the splice of a row whose beginning it knows. There it may do no
  better than in rows where the original came first.

The last two compare parts of the text with other parts, so they only find large leaks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]

NEAR = 8  # positions just before a splice that are compared, in addition to FAR random ones
FAR = 16
NAMES = ("repeated", *(f"{before} before" for before in range(1, NEAR + 1)), "far before")
LONG = 4  # minimum number of tokens after a splice for their mean to count
# In nats, see `drift`. benchmarks/probes.py measures honest models and leaks against these values.
LARGEST = 0.5  # what rounding may do to one answer
FLOOR = {"float32": 1e-3, "float16": 2e-3, "bfloat16": 2e-3}  # mean of answers, if repeats agree exactly
NOISIER = 8.0  # mean of answers before a splice, relative to that of repeats
NOISIEST = 0.03  # mean of repeats
GAIN = 1e-3  # mean of gains, in addition to the standard errors
GAIN_ERRORS = 5.0  # standard errors
LARGEST_GAIN = 0.1  # limit for a single gain: rare large noise would hide a small leak at every token
MEMORY_ERRORS = 6.0  # standard errors of surprises, and of the rest
LEAST = 12  # of each kind compared by standard errors


@dataclass(frozen=True)
class Twin:
    """An asked row that must be answered like an original up to `position`, where it continues differently.

    Both are indices into the asked rows. `compared` are the positions compared, including those just before it.
    """

    original: int
    twin: int
    position: int
    compared: Array
    spliced: bool


@dataclass(frozen=True)
class Plan:
    """All rows to ask for, int64 (N, T), the scored ones first; their order; and which must agree."""

    asked: Array
    order: Array
    twins: tuple[Twin, ...]


def plan(rows: Array, random: np.random.Generator) -> Plan:
    """Mix spliced and repeated rows in with the scored ones (N, T + 1), in random order."""
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
    """A row that begins like the original and is another real row from a random position on; and that position."""
    position = int(random.integers(1, inputs.shape[1]))
    donors = np.flatnonzero(inputs[:, position] != inputs[original, position])
    if not len(donors):  # all rows agree there
        return inputs[original].copy(), position
    donor = inputs[random.choice(donors)]
    return np.concatenate([inputs[original, :position], donor[position:]]), position


def drift(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """How far apart two answers (n, V) are: the root of the symmetric Kullback-Leibler divergence, in nats.

    It measures the change of log probability where the probability is, so that logits that hardly matter can neither
    hide nor fake a change.
    """
    a, b = first.double().log_softmax(-1), second.double().log_softmax(-1)
    return ((a.exp() - b.exp()) * (a - b)).sum(-1).clamp_min(0).sqrt()


def gain(original: torch.Tensor, twin: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """How much likelier the original's next tokens (n) are by its own answer (n, V) than by its twin's, in nats."""
    own, other = (answer.double().log_softmax(-1) for answer in (original, twin))
    return (own - other).gather(-1, tokens[:, None].to(own.device))[:, 0].clamp(-LARGEST_GAIN, LARGEST_GAIN)


def mean_and_error(samples: Sequence[float]) -> tuple[float, float]:
    """Of independent samples: their mean and its standard error."""
    return float(np.mean(samples)), float(np.std(samples, ddof=1)) / len(samples) ** 0.5


class Comparison:
    """Collects the answers to twins and their originals. Keeps only the parts that it compares."""

    def __init__(self, plan: Plan, counted: Array) -> None:
        self.plan, self.counted = plan, counted
        self.rows: dict[int, list[int]] = defaultdict(list)
        for number, twin in enumerate(plan.twins):
            self.rows[twin.original].append(number)
            self.rows[twin.twin].append(number)
        self.waiting: dict[int, tuple[int, torch.Tensor, float]] = {}
        self.drifts: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self.gains: dict[str, list[float]] = defaultdict(list)
        self.surprises: list[float] = []
        self.rests: dict[bool, list[float]] = defaultdict(list)  # by whether the twin came first

    def hear(self, row: int, batch: int, logits: torch.Tensor) -> None:
        """Take the answer (T, V) to a row, which came in the batch with this number."""
        for number in self.rows.get(row, ()):
            twin = self.plan.twins[number]
            answer = logits[torch.from_numpy(twin.compared)]
            known = number in self.waiting and batch >= self.waiting[number][0] + 2  # it sees two batches at once
            if twin.spliced and row == twin.original and known == (number in self.waiting):
                self._rest(twin, logits, known=known)
            if number not in self.waiting:
                self.waiting[number] = batch, answer, self._surprise(twin, row, answer)
                continue
            _, first, surprise = self.waiting.pop(number)
            if surprise >= 0 and known:
                self.surprises.append(surprise)
            self._compare(twin, *((answer, first) if row == twin.original else (first, answer)))

    def _compare(self, twin: Twin, original: torch.Tensor, other: torch.Tensor) -> None:
        before = twin.position - twin.compared
        far = drift(original, other).cpu().numpy()
        kinds = np.where(before <= NEAR, before, NEAR + 1) if twin.spliced else 0 * before
        for kind, change, position in zip(kinds.tolist(), far.tolist(), twin.compared.tolist(), strict=True):
            self.drifts[NAMES[kind]].append((change, position))
        if twin.spliced:
            tokens = torch.from_numpy(self.plan.asked[twin.original, twin.compared + 1])
            gains = gain(original, other, tokens).cpu().numpy()
            counted = self.counted[twin.original, twin.compared + 1]
            # noise can be shared within a row, so each row gives one sample
            for kind in np.unique(kinds[counted]).tolist():
                self.gains[NAMES[kind]].append(float(gains[counted & (kinds == kind)].mean()))

    def _rest(self, twin: Twin, logits: torch.Tensor, *, known: bool) -> None:
        """Record the nats of the original's tokens after the splice."""
        tokens = self.plan.asked[twin.original, twin.position + 1 :]
        counted = self.counted[twin.original, twin.position + 1 : twin.position + 1 + len(tokens)]
        if counted.sum() >= LONG:
            answers, wanted = logits[twin.position : -1].float(), torch.from_numpy(tokens).to(logits.device)
            nats = torch.nn.functional.cross_entropy(answers, wanted, reduction="none").cpu().numpy()
            self.rests[known].append(float(nats[counted].mean()))

    def _surprise(self, twin: Twin, row: int, answer: torch.Tensor) -> float:
        """Nats for the original's token at the splice, if the model had not been shown it yet; -1 if it had."""
        if not twin.spliced or row == twin.original or not self.counted[twin.original, twin.position]:
            return -1.0
        token = int(self.plan.asked[twin.original, twin.position])
        return float(-answer[-1].double().log_softmax(-1)[token])

    def failure(self, dtype: str, mean_nats: float) -> str | None:
        """Why this is not a model that only sees the past; None if it may be. `mean_nats` is its score per token."""
        repeated = [far for far, _ in self.drifts["repeated"]]
        noise = float(np.mean(repeated))
        if noise > NOISIEST or max(repeated) > LARGEST:
            return (
                f"a row that is asked again is answered differently (by {max(repeated):.3g} nats): the model keeps "
                "state between calls, or mixes the rows of a batch"
            )
        return self._leak(dtype, noise) or self._memory(mean_nats)

    def _leak(self, dtype: str, noise: float) -> str | None:
        for kind, drifts in self.drifts.items():
            far, position = max(drifts)
            mean = float(np.mean([far for far, _ in drifts]))
            if kind != "repeated" and (far > LARGEST or mean > FLOOR[dtype] + NOISIER * noise):
                sees = "the model sees the future"
                return f"position {position} changes when a later token does (by {far:.3g} nats): {sees}"
        for kind, gains in self.gains.items():
            if len(gains) < LEAST:
                continue
            mean, error = mean_and_error(gains)
            if mean > GAIN + GAIN_ERRORS * error:
                return (
                    f"tokens are likelier (by {mean:.2g} nats or more, {mean / max(error, 1e-9):.0f} standard "
                    f"errors) if the true row follows, {kind} that shows: the model sees the future"
                )
        return None

    def _memory(self, mean_nats: float) -> str | None:
        """This reveals a model that knows a token only after it was shown it, and answers old prefixes as before."""
        remembers = "the model sees the future and remembers what it answered"
        if len(self.surprises) >= LEAST:
            found, error = mean_and_error(self.surprises)
            if found - mean_nats > MEMORY_ERRORS * error:
                others = f"and all others {mean_nats:.2f}"
                return f"tokens that it was not shown yet take {found:.2f} nats on average, {others}: {remembers}"
        if min(len(self.rests[False]), len(self.rests[True])) >= LEAST:
            (new, one), (old, other) = (mean_and_error(self.rests[known]) for known in (False, True))
            if new - old > MEMORY_ERRORS * float(np.hypot(one, other)):
                return (
                    f"rows whose beginning it saw before take {old:.2f} nats after that, others {new:.2f}: {remembers}"
                )
        return None
