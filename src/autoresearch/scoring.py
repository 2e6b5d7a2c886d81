"""Turns the logits that a run writes into shared memory into nats, and its answers to probes into a verdict."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import struct
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from autoresearch import probes
from autoresearch.records import Score
from autoresearch.splits import SplitData
from autoresearch.trial import DeviceMemory, current, driver, gpu

Array = npt.NDArray[Any]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SLOTS = 2
SHARES = 16  # of an exam, each of which is a batch at most
PARTS = 16  # of a split, whose scores are noted apart
LARGEST_SLOT = 2**30  # bytes of logits
SPARE = 3  # times the size of what is shared of a GPU's memory that must be free: the run needs some too
PATTERN = 32  # bytes that a run writes into it, to show that both sides see the same
CPU = torch.device("cpu")


class Refused(Exception):
    """Why a run is not graded, in words."""


class SharedMemory:
    """Memory shared with a run by a file descriptor. It is read and written as a file, never mapped here: a run that
    cuts the file short cannot hurt, and what is read is a copy that the run cannot change afterwards."""

    def __init__(self, size: int) -> None:
        if hasattr(os, "memfd_create"):
            self.descriptor = os.memfd_create("logits", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        else:
            with tempfile.TemporaryFile() as file:  # has no name by now
                self.descriptor = os.dup(file.fileno())
        os.ftruncate(self.descriptor, size)
        with contextlib.suppress(ImportError, AttributeError, OSError):  # sizes can be sealed on Linux alone
            import fcntl

            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)

    def write(self, offset: int, array: Array) -> None:
        data = memoryview(array.tobytes())
        while len(data):
            written = os.pwrite(self.descriptor, data, offset)
            data, offset = data[written:], offset + written

    def read(self, offset: int, into: torch.Tensor) -> None:
        data = memoryview(into.view(torch.uint8).numpy().data).cast("B")
        while len(data):
            if not (count := os.preadv(self.descriptor, [data], offset)):
                raise Refused("the shared memory was cut short")
            data, offset = data[count:], offset + count

    def close(self) -> None:
        os.close(self.descriptor)


class Offer:
    """Memory of a GPU that is offered to a run, which has it by a file descriptor.

    Such a descriptor reaches into a sandbox with processes of its own, and leads to this piece alone: what cudaIpc
    shares lies in a larger one, with whatever else is there. It is made here and opened by the run, never the other way
    round: what a run made could be of another size or kind, or gone while it is read.
    """

    def __init__(self, device: torch.device, size: int) -> None:
        """Make `size` bytes of zeros, or some more, on a device.

        Raises:
            OSError, AttributeError: see `trial.driver`.
            RuntimeError: PyTorch cannot use the device.
        """
        unit, handle, exported = ctypes.c_size_t(), ctypes.c_uint64(), ctypes.c_int(-1)
        # Of CUmemAllocationProp: pinned, to be had as a descriptor, on a device, which; and nothing else.
        kind = struct.pack("=4iQ8x", 1, 1, 1, device.index or 0, 0)
        with current(device) as stream, contextlib.ExitStack() as undo:
            driver("cuMemGetAllocationGranularity", ctypes.byref(unit), kind, ctypes.c_int(0))
            self.size = -(-size // unit.value) * unit.value
            length, none = ctypes.c_size_t(self.size), ctypes.c_uint64()
            driver("cuMemCreate", ctypes.byref(handle), length, kind, none)
            self.memory = DeviceMemory(device, self.size, handle)
            undo.callback(self.memory.close)
            # Another exam's targets may have been where this is.
            driver("cuMemsetD8Async", ctypes.c_uint64(self.memory.address), ctypes.c_ubyte(0), length, stream)
            self.memory.wait()
            driver("cuMemExportToShareableHandle", ctypes.byref(exported), handle, ctypes.c_int(1), none)
            self.descriptor, self.device, self.pattern = exported.value, device, os.urandom(PATTERN)
            undo.callback(os.close, exported.value)
            self.close = undo.pop_all().close

    def layout(self) -> dict[str, Any]:
        return {"gpu": gpu(self.device), "bytes": self.size, "pattern": list(self.pattern)}

    def is_taken(self) -> bool:
        """Whether the run has written the pattern where it is looked for."""
        seen = torch.empty(PATTERN, dtype=torch.uint8, device=self.device)
        self.memory.read(0, seen)
        return bytes(seen.tolist()) == self.pattern


def offer(size: int) -> Offer | None:
    """GPU memory to share, where there is a GPU with enough to spare, and a driver that shares it."""
    with contextlib.suppress(OSError, AttributeError, RuntimeError):  # the host's memory does it too
        if (device := working_device()) != CPU and torch.cuda.mem_get_info(device)[0] >= SPARE * size:
            return Offer(device, size)
    return None


def working_device() -> torch.device:
    """The GPU, which makes short work of what a CPU takes minutes for at a large vocabulary, if there is one that
    works: after some errors it does not any more in this process."""
    if not torch.cuda.is_available():
        return CPU
    try:
        found = torch.zeros(1, device="cuda")
        found.cpu()
    except RuntimeError:
        return CPU
    return found.device


class Exam:
    """One split's rows and probes: which are still to be asked, and what came of the others."""

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
        self.shown: dict[int, int] = {}  # the batch in which the run saw a row first

    def take(self, count: int) -> list[int]:
        """The next rows to ask for, at most so many."""
        rows, self.left = self.left[:count], self.left[count:]
        return rows

    def filled(self, rows: list[int], count: int) -> Array:
        """The tokens of a batch (count, T), filled up with rows that are ignored: all batches have one shape, lest a
        compiled model be compiled again."""
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
        """What a scored row takes, 0 for a probe."""
        low, high = torch.aminmax(logits)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise Refused("its logits are not finite")
        if row >= len(self.targets):
            return 0.0
        targets = self.targets[row].to(logits.device)
        losses = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        return float((losses.cpu() * self.counted[row]).sum(dtype=torch.float64))

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
    """A part of the shared memory: the rows that are in it, if any, and for how many there is room."""

    tokens_at: int
    logits_at: int
    rows: list[int] | None = None
    size: int = 0


@dataclass
class Scoring:
    """The grading of one run, val first and then perhaps holdout, message by message."""

    data: SplitData
    batch_size: int
    wants_holdout: Callable[[Score], bool]
    offer: Callable[[int], Offer | None] = offer
    exam: Exam = field(init=False)
    score: Score | None = None
    holdout: Score | None = None

    def __post_init__(self) -> None:
        torch.set_num_threads(1)  # more would wait for each other, row after row, on the cores that the run needs
        context, vocabulary = self.data.context, self.data.vocabulary
        largest = max(1, LARGEST_SLOT // (context * vocabulary * 4))
        self.exam = Exam(self.data.val, self.data.byte_lengths)
        # A run that saw much of the exam at once could tell probes from what they probe before it answers any.
        self.size = min(self.batch_size, largest, max(1, len(self.exam.plan.asked) // SHARES))
        page = mmap.ALLOCATIONGRANULARITY
        tokens, logits = (-(-self.size * context * each // page) * page for each in (8, vocabulary * 4))
        self.slots = [Slot(i * tokens, SLOTS * tokens + i * logits) for i in range(SLOTS)]
        self.memory = SharedMemory(SLOTS * (tokens + logits))
        self.bytes, self.batches, self.dtype = SLOTS * (tokens + logits), 0, "float32"
        self.done: Slot | None = None
        self.row = {name: torch.empty((context, vocabulary), dtype=dtype) for name, dtype in DTYPES.items()}
        # At the same offsets; the rows go through the host's memory all the same.
        self.offered = self.offer(self.bytes)
        self.logits: SharedMemory | DeviceMemory = self.memory

    @property
    def descriptors(self) -> list[int]:
        """What a run gets beside the layout."""
        return [self.memory.descriptor, *([self.offered.descriptor] if self.offered else [])]

    def take_up(self) -> bool:
        """Look for logits in the offered memory from here on, where the run has taken it; whether that is so."""
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
            torch.cuda.empty_cache()  # the next run may need it; where CUDA is not in use it does nothing

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
        """What to say to a request for a batch. `digest` is to be called after that has been said."""
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

    def _take_back(self, message: Mapping[str, Any]) -> None:
        """Note what a run says of a slot that it has filled, or has no memory for."""
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
                f"its logits have the shape {str(shape)[:60]} where {wanted} is wanted (rows, tokens, vocabulary)"
            )
        if str(message.get("dtype")) not in DTYPES:
            raise Refused(
                f"its logits are of type {str(message.get('dtype'))[:60]}, which is none of {', '.join(DTYPES)}"
            )
        self.dtype, self.done = str(message["dtype"]), slot

    def digest(self) -> None:
        """Score the slot that the run has filled last, where that is still to be done."""
        if self.done is None or self.done.rows is None:
            return
        slot, rows, row = self.done, self.done.rows, self.row[self.dtype]
        for place, number in enumerate(rows):
            self.logits.read(slot.logits_at + place * row.nbytes, row)
            self.exam.answered(number, row)
        self.done = slot.rows = None

    def _go_on(self) -> bool:
        """Close a split's exam; whether there is another one to be held."""
        score = self.exam.score()
        if failed := self.exam.comparison.failure(self.dtype, score.nats / score.tokens):
            raise Refused(failed)
        if self.score is not None:
            self.holdout = score
            return False
        self.score = score
        if not self.wants_holdout(score):
            return False
        self.exam = Exam(self.data.holdout, self.data.byte_lengths)
        return True
