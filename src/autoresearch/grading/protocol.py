"""The run's side of the grading protocol, and the names that both sides use.

It stands alone: the executor copies it next to train.py as `autoresearch_trial.py`, and prepare.py imports it there.
Nothing in it is trusted; the parent prevents what a run must not do.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import math
import mmap
import os
import re
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

SEED = "AUTORESEARCH_SEED"
RUN_DIR = "AUTORESEARCH_RUN_DIR"
CHANNEL = "AUTORESEARCH_CHANNEL"
ENTRY = "train.py"
LOG = "run.log"
EVENTS = "events.jsonl"
CURVE = "curve.jsonl"
CHECKPOINT = "checkpoint.safetensors"
RUN_SIDE = "autoresearch_trial.py"  # the name of this file in a run's directory

LARGEST_MESSAGE = 2**20
FLOAT16_LEAST = -65504.0
OUT_OF_MEMORY = "out of memory"
SHORT_OF_MEMORY = re.compile(r"\bMemoryError|out of memory|allocate memory|ALLOC_FAILED")  # in the repr of an error
DRIVER = "libcuda.so.1"
_library = functools.cache(ctypes.CDLL)
Model = Callable[[Any], Any]  # from tokens (B, T) to logits (B, T, V)


class ProtocolError(ValueError):
    """The other side sent something that is not a message, or not its turn."""


# ---------------------------------------------------------------- messages: a length, JSON, file descriptors beside it


def send(channel: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    text = json.dumps(message).encode()
    data = struct.pack(">I", len(text)) + text
    sent = socket.send_fds(channel, [data], list(descriptors)) if descriptors else 0
    channel.sendall(data[sent:])


def receive(channel: socket.socket, descriptors: int = 0) -> tuple[dict[str, Any], list[int]]:
    """The next message and up to `descriptors` file descriptors. The system closes those that are not expected.

    Raises:
        EOFError: the other side hung up.
        ProtocolError: it sent something that is not a message.
    """
    head, found = b"", list[int]()
    if descriptors:
        head, found, _, _ = socket.recv_fds(channel, 4, descriptors)
    (size,) = struct.unpack(">I", head + _exactly(channel, 4 - len(head)))
    if size > LARGEST_MESSAGE:
        raise ProtocolError(f"a message of {size} bytes")
    text = _exactly(channel, size)
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise ProtocolError("a message that is not a JSON object")
    return message, found


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        if not (part := channel.recv(size - len(data))):
            raise EOFError("the other side hung up")
        data += part
    return bytes(data)


# ---------------------------------------------------------------- what a run asks for


@functools.cache
def _channel() -> socket.socket:
    return socket.socket(fileno=int(os.environ[CHANNEL]))


def ask(message: dict[str, Any], descriptors: int = 0) -> tuple[dict[str, Any], list[int]]:
    send(_channel(), message)
    answer, found = receive(_channel(), descriptors)
    if "refused" in answer:
        raise SystemExit(f"this run is not graded: {answer['refused']}")
    return answer, found


_train: list[Any] = []  # tokens and offsets, once they were asked for


def train_data() -> tuple[Any, Any]:
    """Tokens and offsets of the train split. The first call starts the parent's clock; later ones ask for nothing."""
    if not _train:
        _train.extend(map(_mapped_array, ask({"ask": "train"}, 2)[1]))
    return _train[0], _train[1]


def _mapped_array(descriptor: int) -> Any:
    """The .npy file behind a descriptor, mapped read-only. It has no path here."""
    import numpy as np

    with os.fdopen(descriptor, "rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, dtype, shape[0], file.tell())


_begun: list[Any] = []  # the parent's answer to the last request for grading


def ask_for_grading(batch_size: int, context: int, vocabulary: int) -> None:
    """Stop the parent's clock. `evaluate` continues from there; what happens in between counts as grading."""
    asked = {"ask": "grade", "batch_size": batch_size, "context": context, "vocabulary": vocabulary}
    _begun[:] = [ask(asked, 2)]


def evaluate(model: Model, device: Any, batch_size: int, context: int, vocabulary: int) -> float:
    """val_bpb as the parent computes it from `model`'s logits for the rows it sends."""
    if not _begun:
        ask_for_grading(batch_size, context, vocabulary)
    answer, found = _begun.pop()
    if "val_bpb" in answer:  # graded before
        return float(answer["val_bpb"])
    slots, waiting = _Slots(answer, found, device), list[tuple[dict[str, Any], Any]]()
    told: dict[str, Any] = {"done": None}
    while "val_bpb" not in (answer := ask({"ask": "batch", **told})[0]):
        told = {"done": None}
        if answer["slot"] is not None:
            try:
                waiting.append(slots.fill(model, **answer))
            except (RuntimeError, MemoryError) as error:
                if answer["rows"] == 1 or not SHORT_OF_MEMORY.search(repr(error)):
                    raise
                told = {"done": answer["slot"], "failed": OUT_OF_MEMORY}
        if "failed" in told:  # by now nothing holds the memory of the failed batch
            slots.make_room()
        elif answer["slot"] is None or len(waiting) == slots.ahead:
            told, copied = waiting.pop(0)
            if copied:
                copied.synchronize()
    return float(answer["val_bpb"])


class _Slots:
    """The shared memory: a batch's token rows arrive in a slot, and its logits go back in the same slot.

    If the parent offers memory on the model's own GPU, the logits stay there, bit for bit. Otherwise they go through
    host memory. On CUDA that is page-locked, so the device copies into one slot while the model computes the next.
    """

    def __init__(self, layout: dict[str, Any], descriptors: Sequence[int], device: Any) -> None:
        import torch

        with os.fdopen(descriptors[0], "rb+") as file:
            self.memory = mmap.mmap(file.fileno(), layout["bytes"])
        self.layout, self.device, self.ahead, self.locked = layout, device, 1, False
        self.shared = _opened(layout.get("device"), descriptors[1:], device)
        if device.type == "cuda":
            self.ahead, self.stream = 2, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        if device.type == "cuda" and self.shared is None:
            whole = torch.frombuffer(self.memory, dtype=torch.uint8)
            with contextlib.suppress(RuntimeError):  # then each copy waits for the device
                runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
                self.locked = int(runtime.cudaHostRegister(whole.data_ptr(), len(whole), 0)) == 0

    def make_room(self) -> None:
        """Return PyTorch's reserved memory: cuBLAS, for example, allocates its own outside of it."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def fill(self, model: Model, slot: int, rows: int) -> tuple[dict[str, Any], Any]:
        """Compute and write the logits of a slot. Returns what to tell the parent, and what to wait for before that."""
        import torch

        shape = (rows, self.layout["context"], self.layout["vocabulary"])
        tokens = self._view(torch.int64, self.layout["tokens_at"][slot], shape[:2])
        logits = model(tokens.to(self.device, copy=True))
        dtype = travelling_dtype(logits, copied=self.shared is None)
        told = {"done": slot, "dtype": str(dtype).removeprefix("torch."), "shape": list(logits.shape)}
        if logits.shape != shape:
            return told, None
        offset = self.layout["logits_at"][slot]
        if self.shared:
            for row in logits:  # row by row, since a second copy of everything takes memory
                offset = self.shared.write(offset, row.to(self.shared.device, dtype).contiguous())
            return told, self.shared.mark()
        target = self._view(dtype, offset, shape)
        if self.device.type == "cuda":
            return told, self._copy_beside(target, logits)
        target.copy_(logits)
        return told, None

    def _view(self, dtype: Any, offset: int, shape: tuple[int, ...]) -> Any:
        import torch

        return torch.frombuffer(self.memory, dtype=dtype, count=math.prod(shape), offset=offset).view(shape)

    def _copy_beside(self, target: Any, logits: Any) -> Any:
        """Queue the copy of logits off the device, in parallel to its computations. Returns the event after it."""
        import torch

        current = torch.cuda.current_stream(self.device)
        for place, row in zip(target, logits, strict=True):  # row by row, as above
            ready = shifted(row) if place.dtype != row.dtype else row
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                place.copy_(ready, non_blocking=self.locked)
            ready.record_stream(self.stream)
        return self.stream.record_event()


def travelling_dtype(logits: Any, *, copied: bool = True) -> Any:
    """The type that logits travel as: exactly what the model gave, except that float32 copied off a CUDA device becomes
    `shifted` float16, which halves the traffic."""
    import torch

    if copied and logits.dtype == torch.float32 and logits.device.type == "cuda":
        return torch.float16
    return logits.dtype if logits.dtype in (torch.float16, torch.bfloat16) else torch.float32


def shifted(logits: Any) -> Any:
    """Float16 logits with the same probabilities: the largest is 0, where float16 is most precise.

    What is more than 65504 below it has no probability in either type, and must not become infinite.
    """
    import torch

    return (logits - logits.amax(-1, keepdim=True)).clamp_min(FLOAT16_LEAST).to(torch.float16)


# ---------------------------------------------------------------- memory of a GPU that both sides have


def gpu(device: Any) -> str:
    """Which GPU a device is, whatever number a process knows it by. If it is not a GPU: the device's type."""
    import torch

    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else str(device.type)


def driver(name: str, *arguments: Any) -> None:
    """Call a function of CUDA's driver.

    Raises:
        OSError: there is no driver, or it refuses.
        AttributeError: the driver is too old to have it.
    """
    if error := getattr(_library(DRIVER), name)(*arguments):
        raise OSError(f"{name}: CUDA error {error}")


@contextlib.contextmanager
def current(device: Any) -> Iterator[ctypes.c_void_p]:
    """Make a device the current one, and yield PyTorch's stream there. The driver reads both from the thread."""
    import torch

    if device.type != "cuda":  # with a stand-in for the driver
        yield ctypes.c_void_p()
        return
    torch.zeros(1, device=device)  # creates its context if needed
    with torch.cuda.device(device):
        yield ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)


class DeviceMemory:
    """GPU memory behind a driver handle, which it consumes. `memory.Offer` says who allocates it, and why."""

    def __init__(self, device: Any, size: int, handle: ctypes.c_uint64) -> None:
        self.device, length, address, none = device, ctypes.c_size_t(size), ctypes.c_uint64(), ctypes.c_uint64()
        access = struct.pack("=3i", 1, device.index or 0, 3)  # CUmemAccessDesc: a device, its number, read and write
        with current(device), contextlib.ExitStack() as undo:
            undo.callback(driver, "cuMemRelease", handle)
            driver("cuMemAddressReserve", ctypes.byref(address), length, ctypes.c_size_t(), none, none)
            undo.callback(driver, "cuMemAddressFree", address, length)
            driver("cuMemMap", address, length, ctypes.c_size_t(), handle, none)
            undo.callback(driver, "cuMemUnmap", address, length)
            driver("cuMemSetAccess", address, length, access, ctypes.c_size_t(1))
            self.address, self._undo = int(address.value), undo.pop_all()

    def write(self, offset: int, tensor: Any) -> int:
        """Queue the copy of a contiguous tensor on the device to an offset in bytes. Returns the offset after it."""
        self._copy(self.address + offset, tensor.data_ptr(), tensor.nbytes)
        return offset + int(tensor.nbytes)

    def read(self, offset: int, into: Any) -> None:
        """Fill a contiguous tensor on the device from an offset in bytes, and wait until that is done."""
        self._copy(into.data_ptr(), self.address + offset, into.nbytes)
        self.wait()

    def _copy(self, target: int, source: int, size: int) -> None:
        with current(self.device) as stream:
            driver("cuMemcpyAsync", ctypes.c_uint64(target), ctypes.c_uint64(source), ctypes.c_size_t(size), stream)

    def mark(self) -> Any:
        """The event after everything that is queued; None on a CPU, where nothing is queued."""
        import torch

        return torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None

    def wait(self) -> None:
        with current(self.device) as stream:
            driver("cuStreamSynchronize", stream)

    def close(self) -> None:
        with contextlib.suppress(OSError, RuntimeError), current(self.device):
            self._undo.close()


def _opened(offer: dict[str, Any] | None, descriptors: Sequence[int], device: Any) -> DeviceMemory | None:
    """The memory that the parent offers, if the model is on that GPU and the parent sees what is written there."""
    import torch

    handle, memory = ctypes.c_uint64(), None
    try:
        if offer and descriptors and offer["gpu"] == gpu(device):
            with current(device):
                found = ctypes.c_void_p(descriptors[0])
                driver("cuMemImportFromShareableHandle", ctypes.byref(handle), found, ctypes.c_int(1))
            memory = DeviceMemory(device, offer["bytes"], handle)
            memory.write(0, torch.tensor(offer["pattern"], dtype=torch.uint8).to(device))
            memory.wait()
            if ask({"ask": "device"})[0]["device"]:
                return memory
    except (OSError, AttributeError, RuntimeError):  # host memory works too
        pass
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    if memory:
        memory.close()
    return None
