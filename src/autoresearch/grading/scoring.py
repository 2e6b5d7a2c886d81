"""Turns the logits that a run writes into shared memory into nats, and its answers to probes into a verdict."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import mmap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from autoresearch.grading import probes
from autoresearch.grading.memory import CPU, Offer, Refused, SharedMemory, offer, working_device
from autoresearch.grading.protocol import DeviceMemory
from autoresearch.grading.splits import SplitData
from autoresearch.ledger.records import Score

Array = npt.NDArray[Any]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SLOTS = 2
SHARES = 16  # shares of an exam; a batch is at most one of them
PARTS = 16  # of a split, whose scores are recorded separately
LARGEST_SLOT = 2**30  # bytes of logits
PLACES = 2000  # secret places of val whose answers are kept, for a second examination


@functools.cache
def seconds_per_row(context: int, vocabulary: int) -> float:
    """How long this process takes to score a row: (T, V) logits on the device it would use.

    The first row warms the device up, which would otherwise happen while a run waits for its second batch.
    """
    device = working_device()
    logits = torch.zeros((context, vocabulary), device=device)
    targets = torch.zeros(context, dtype=torch.int64, device=device)
    seconds = math.inf
    for _ in range(2):
        start = time.perf_counter()
        torch.aminmax(logits)
        float(torch.nn.functional.cross_entropy(logits, targets, reduction="none").sum())
        seconds = min(seconds, time.perf_counter() - start)
    return seconds


@dataclass(frozen=True)
class Answers:
    """What a run answered at secret places of val: the rows and the token before each place, both int32 (N,), and the
    nats of the token that followed, float32 (N,)."""

    rows: Array
    places: Array
    nats: Array

    def packed(self) -> bytes:
        """The content of a file that `load` reads."""
        buffer = io.BytesIO()
        np.savez(buffer, rows=self.rows, places=self.places, nats=self.nats)
        return buffer.getvalue()

    @classmethod
    def load(cls, path: Path) -> Answers:
        """Raises OSError or ValueError if there are none."""
        with np.load(path, allow_pickle=False) as found:
            return cls(found["rows"], found["places"], found["nats"])


def secret_places(counted: Array) -> Array:
    """Some counted tokens of rows (N, T), as pairs of row and place, int32, in order.

    Drawn from all tokens, and twice as many as are wanted, since listing those that count takes seconds on a GPU's
    exam of millions, while the run waits.
    """
    drawn = np.random.default_rng().choice(counted.size, min(2 * PLACES, counted.size), replace=False)
    chosen = drawn[counted.flat[drawn]][:PLACES]
    return np.stack(np.unravel_index(np.sort(chosen), counted.shape), axis=1).astype(np.int32)


class Exam:
    """One split's rows and probes: which are still to be asked, and the answers to the others."""

    def __init__(self, rows: Array, byte_lengths: Array) -> None:
        sizes = byte_lengths[rows[:, 1:]]
        self.counted = torch.from_numpy(sizes > 0)
        self.targets = torch.from_numpy(rows[:, 1:].astype(np.int64))
        self.sizes = sizes.sum(axis=1, dtype=np.int64)  # bytes of each row
        self.plan = probes.plan(rows, np.random.default_rng())  # seeded by the system, so that no run can know it
        self.comparison = probes.Comparison(self.plan, np.pad(sizes > 0, ((0, 0), (1, 0))))
        self.left: list[int] = self.plan.order.tolist()
        self.device = working_device()
        self.nats: dict[int, float] = {}
        self.shown: dict[int, int] = {}  # the batch in which the run first saw a row
        self.secret = secret_places(self.counted.numpy())
        self.losses: dict[int, Array] = {}  # of the rows with secret places, there

    def take(self, count: int) -> list[int]:
        """The next rows to ask for, at most `count`."""
        rows, self.left = self.left[:count], self.left[count:]
        return rows

    def filled(self, rows: list[int], count: int) -> Array:
        """The tokens of a batch (count, T), filled up with rows that are ignored. All batches have one shape, so that a
        compiled model is not compiled again."""
        others = np.resize(self.plan.order, count - len(rows))
        asked: Array = self.plan.asked[np.concatenate([np.array(rows, np.int64), others])]
        return asked

    def answered(self, row: int, logits: torch.Tensor) -> None:
        """Take the logits (T, V) of a row: float32 cross-entropy, summed in float64."""
        try:
            logits = logits.to(self.device)
            nats = self._nats(row, logits)
        except RuntimeError:  # the run itself may have filled the GPU
            if self.device == CPU:
                raise
            self.device, logits = CPU, logits.cpu()
            waiting = self.comparison.waiting.items()
            self.comparison.waiting = {number: (batch, first.cpu(), nats) for number, (batch, first, nats) in waiting}
            nats = self._nats(row, logits)
        self.comparison.hear(row, self.shown[row], logits)
        if row < len(self.targets):
            self.nats[row] = nats

    def _nats(self, row: int, logits: torch.Tensor) -> float:
        """The nats of a scored row; 0 for a probe."""
        low, high = torch.aminmax(logits)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise Refused("its logits are not finite")
        if row >= len(self.targets):
            return 0.0
        targets = self.targets[row].to(logits.device)
        losses = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none").cpu()
        first, last = np.searchsorted(self.secret[:, 0], [row, row + 1])
        if last > first:
            self.losses[row] = losses[torch.from_numpy(self.secret[first:last, 1].astype(np.int64))].numpy()
        return float((losses * self.counted[row]).sum(dtype=torch.float64))

    def answers(self) -> Answers:
        """What was answered at the secret places, once all rows were."""
        rows, places = self.secret.T
        return Answers(rows, places, np.concatenate([self.losses[row] for row in np.unique(rows)]))

    def score(self) -> Score:
        by_row = np.array([self.nats[row] for row in range(len(self.targets))])
        if not np.isfinite(by_row).all():
            raise Refused("its cross-entropy is not finite")
        nats, size = math.fsum(by_row), int(self.sizes.sum())
        pairs = zip(*(np.array_split(rows, min(PARTS, len(by_row))) for rows in (by_row, self.sizes)), strict=True)
        parts = tuple(float(part.sum() / (math.log(2) * sizes.sum())) for part, sizes in pairs if sizes.sum())
        return Score(nats / (math.log(2) * size), nats, int(self.counted.sum()), size, parts)


@dataclass
class Slot:
    """A part of the shared memory: the rows in it, if any, and how many fit."""

    tokens_at: int
    logits_at: int
    rows: list[int] | None = None
    size: int = 0


@dataclass
class Scoring:
    """The grading of one run, message by message: val first, then perhaps holdout."""

    data: SplitData
    batch_size: int
    wants_holdout: Callable[[Score], bool]
    offer: Callable[[int], Offer | None] = offer
    exam: Exam = field(init=False)
    score: Score | None = None
    holdout: Score | None = None
    answers: Answers | None = None

    def __post_init__(self) -> None:
        # more threads would wait for each other, row after row, on the cores that the run needs
        torch.set_num_threads(1)
        context, vocabulary = self.data.context, self.data.vocabulary
        largest = max(1, LARGEST_SLOT // (context * vocabulary * 4))
        self.exam = Exam(self.data.val, self.data.byte_lengths)
        # A run that sees much of the exam at once could tell probes from what they probe before it answers any.
        share = max(1, len(self.exam.plan.asked) // SHARES)
        self.size = min(self.batch_size, largest, share, self.data.most_rows)
        page = mmap.ALLOCATIONGRANULARITY
        tokens, logits = (-(-self.size * context * each // page) * page for each in (8, vocabulary * 4))
        self.slots = [Slot(i * tokens, SLOTS * tokens + i * logits) for i in range(SLOTS)]
        self.memory = SharedMemory(SLOTS * (tokens + logits))
        self.bytes, self.batches, self.dtype = SLOTS * (tokens + logits), 0, "float32"
        self.done: Slot | None = None
        self.row = {name: torch.empty((context, vocabulary), dtype=dtype) for name, dtype in DTYPES.items()}
        # At the same offsets, although the rows themselves travel through host memory.
        self.offered = self.offer(self.bytes)
        self.logits: SharedMemory | DeviceMemory = self.memory

    @property
    def descriptors(self) -> list[int]:
        """The descriptors a run receives with the layout."""
        return [self.memory.descriptor, *([self.offered.descriptor] if self.offered else [])]

    def take_up(self) -> bool:
        """Look for logits in the offered memory from now on, if the run has opened it. Returns whether it has."""
        with contextlib.suppress(OSError, RuntimeError):
            if self.offered and self.offered.is_taken():
                self.row = {name: row.to(self.offered.device) for name, row in self.row.items()}
                self.logits = self.offered.memory
        return self.logits is not self.memory

    def close(self) -> None:
        self.memory.close()
        self.row = {}
        with contextlib.suppress(RuntimeError):
            if self.offered:
                self.offered.close()
            torch.cuda.empty_cache()  # the next run may need it; does nothing if CUDA is not in use

    def layout(self) -> dict[str, Any]:
        return {
            "context": self.data.context,
            "vocabulary": self.data.vocabulary,
            "device": self.offered and self.offered.layout(),
            "bytes": self.bytes,
            "tokens_at": [slot.tokens_at for slot in self.slots],
            "logits_at": [slot.logits_at for slot in self.slots],
        }

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request for a batch. Call `digest` after sending it."""
        if message.get("done") is not None:
            self._take_back(message)
        while True:
            free = next((number for number, slot in enumerate(self.slots) if slot.rows is None), None)
            if self.exam.left and free is not None:
                return self._hand_out(free)
            if self.done:
                self.digest()
            elif any(slot.rows is not None for slot in self.slots):
                return {"slot": None, "rows": 0}
            elif not self._go_on():
                assert self.score is not None
                return {"val_bpb": self.score.val_bpb}

    def _hand_out(self, number: int) -> dict[str, Any]:
        slot = self.slots[number]
        slot.rows, slot.size = self.exam.take(self.size), self.size
        for row in slot.rows:
            self.exam.shown.setdefault(row, self.batches)
        self.batches += 1
        self.memory.write(slot.tokens_at, self.exam.filled(slot.rows, slot.size))
        return {"slot": number, "rows": slot.size}

    def size_of(self, message: Mapping[str, Any]) -> int:
        """The rows in the slot that a message answers, including those that fill it up; 0 if there is no such slot."""
        number = message.get("done")
        return self.slots[number].size if type(number) is int and 0 <= number < SLOTS else 0

    def _take_back(self, message: Mapping[str, Any]) -> None:
        """Record what a run says about a slot that it has filled, or has no memory for."""
        number = message["done"]
        if type(number) is not int or not 0 <= number < SLOTS or self.slots[number].rows is None:
            raise Refused("it answered a batch that it was not asked for")
        slot = self.slots[number]
        if message.get("failed") is not None:
            if slot.size == 1:
                raise Refused("it runs out of memory on a single row")
            self.exam.left[:0] = slot.rows or []
            slot.rows, self.size = None, max(1, min(self.size, slot.size // 2))
            return
        shape, wanted = message.get("shape"), [slot.size, self.data.context, self.data.vocabulary]
        if shape != wanted:
            raise Refused(
                f"its logits have the shape {str(shape)[:60]} but should have {wanted} (rows, tokens, vocabulary)"
            )
        if str(message.get("dtype")) not in DTYPES:
            raise Refused(
                f"its logits are of type {str(message.get('dtype'))[:60]}, which is not one of {', '.join(DTYPES)}"
            )
        self.dtype, self.done = str(message["dtype"]), slot

    def digest(self) -> None:
        """Score the slot that the run filled last, if that is not done yet."""
        if self.done is None or self.done.rows is None:
            return
        slot, rows, row = self.done, self.done.rows, self.row[self.dtype]
        for place, number in enumerate(rows):
            self.logits.read(slot.logits_at + place * row.nbytes, row)
            self.exam.answered(number, row)
        self.done = slot.rows = None

    def _go_on(self) -> bool:
        """Finish a split's exam. Returns whether another one follows."""
        score = self.exam.score()
        if failed := self.exam.comparison.failure(self.dtype, score.nats / score.tokens):
            raise Refused(failed)
        if self.score is not None:
            self.holdout = score
            return False
        self.score, self.answers = score, self.exam.answers()
        if not self.wants_holdout(score):
            return False
        self.exam = Exam(self.data.holdout, self.data.byte_lengths)
        return True
