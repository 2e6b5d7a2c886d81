"""The run's side of a trial's protocol, and the names that both sides know it by.

It stands alone: the executor copies it beside train.py as `autoresearch_trial.py`, and prepare.py imports it there.
Nothing in it is trusted: what a run must not do is prevented by the parent.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import mmap
import os
import re
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

SEED = "AUTORESEARCH_SEED"
RUN_DIR = "AUTORESEARCH_RUN_DIR"
CHANNEL = "AUTORESEARCH_CHANNEL"
ENTRY = "train.py"
LOG = "run.log"
EVENTS = "events.jsonl"
CURVE = "curve.jsonl"
CHECKPOINT = "checkpoint.safetensors"
RUN_SIDE = "autoresearch_trial.py"  # what this file is called in a run's directory

LARGEST_MESSAGE = 2**20
FLOAT16_LEAST = -65504.0
OUT_OF_MEMORY = "out of memory"


class ProtocolError(ValueError):
    """The other side sent what is no message, or not in its turn."""


# ---------------------------------------------------------------- messages: a length, JSON, file descriptors beside it


def send(channel: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    text = json.dumps(message).encode()
    data = struct.pack(">I", len(text)) + text
    sent = socket.send_fds(channel, [data], list(descriptors)) if descriptors else 0
    channel.sendall(data[sent:])


def receive(channel: socket.socket, descriptors: int = 0) -> tuple[dict[str, Any], list[int]]:
    """The next message and up to so many file descriptors; those that are not waited for are closed by the system.

    Raises:
        EOFError: the other side hung up.
        ProtocolError: what came is no message.
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
        raise ProtocolError("a message that is no JSON object")
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
    """The .npy file behind a descriptor, mapped read-only: it has no path here."""
    import numpy as np

    with os.fdopen(descriptor, "rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, dtype, shape[0], file.tell())


def evaluate(model: Callable[[Any], Any], device: Any, batch_size: int, context: int, vocabulary: int) -> float:
    """val_bpb as the parent computes it from the logits that `model` gives for the rows it sends."""
    asked = {"ask": "grade", "batch_size": batch_size, "context": context, "vocabulary": vocabulary}
    answer, found = ask(asked, 1)
    if "val_bpb" in answer:  # graded before
        return float(answer["val_bpb"])
    slots, waiting = _Slots(answer, found[0], device), list[tuple[dict[str, Any], Any]]()
    told: dict[str, Any] = {"done": None}
    while "val_bpb" not in (answer := ask({"ask": "batch", **told})[0]):
        told = {"done": None}
        if answer["slot"] is not None:
            try:
                waiting.append(slots.fill(model, **answer))
            except RuntimeError as error:
                if answer["rows"] == 1 or not re.search(f"{OUT_OF_MEMORY}|can't allocate memory", str(error)):
                    raise
                told = {"done": answer["slot"], "failed": OUT_OF_MEMORY}
                continue
        if answer["slot"] is None or len(waiting) == slots.ahead:
            told, copied = waiting.pop(0)
            if copied:
                copied.synchronize()
    return float(answer["val_bpb"])


class _Slots:
    """The shared memory: token rows of a batch come in a slot, and its logits go back in the same one.

    On CUDA it is page-locked, so that the device copies into one slot while the model computes the next one.
    """

    def __init__(self, layout: dict[str, Any], descriptor: int, device: Any) -> None:
        import torch

        with os.fdopen(descriptor, "rb+") as file:
            self.memory = mmap.mmap(file.fileno(), layout["bytes"])
        self.layout, self.device, self.ahead, self.locked = layout, device, 1, False
        if device.type == "cuda":
            self.ahead, self.stream = 2, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            whole = torch.frombuffer(self.memory, dtype=torch.uint8)
            with contextlib.suppress(RuntimeError):  # each copy waits for the device then
                runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
                self.locked = int(runtime.cudaHostRegister(whole.data_ptr(), len(whole), 0)) == 0

    def fill(self, model: Callable[[Any], Any], slot: int, rows: int) -> tuple[dict[str, Any], Any]:
        """Compute and write the logits of a slot; what to tell the parent, and what to wait for before that."""
        import torch

        shape = (rows, self.layout["context"], self.layout["vocabulary"])
        tokens = self._view(torch.int64, self.layout["tokens_at"][slot], shape[:2])
        logits = model(tokens.to(self.device, copy=True))
        dtype = travelling_dtype(logits)
        told = {"done": slot, "dtype": str(dtype).removeprefix("torch."), "shape": list(logits.shape)}
        if logits.shape != shape:
            return told, None
        target = self._view(dtype, self.layout["logits_at"][slot], shape)
        if self.device.type == "cuda":
            return told, self._copy_beside(target, logits)
        target.copy_(logits)
        return told, None

    def _view(self, dtype: Any, offset: int, shape: tuple[int, ...]) -> Any:
        import torch

        return torch.frombuffer(self.memory, dtype=dtype, count=math.prod(shape), offset=offset).view(shape)

    def _copy_beside(self, target: Any, logits: Any) -> Any:
        """Queue the copy of logits out of the device beside its computations; the event after it."""
        import torch

        current = torch.cuda.current_stream(self.device)
        for place, row in zip(target, logits, strict=True):  # by row, since a second copy of all takes memory
            ready = shifted(row) if place.dtype != row.dtype else row
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                place.copy_(ready, non_blocking=self.locked)
            ready.record_stream(self.stream)
        return self.stream.record_event()


def travelling_dtype(logits: Any) -> Any:
    """What logits travel as: bit for bit what the model gave, but float32 from a CUDA device as `shifted` float16."""
    import torch

    if logits.dtype == torch.float32 and logits.device.type == "cuda":
        return torch.float16
    return logits.dtype if logits.dtype in (torch.float16, torch.bfloat16) else torch.float32


def shifted(logits: Any) -> Any:
    """Float16 logits of the same probabilities: the largest is 0, which is where float16 is most precise.

    What lies more than 65504 below it has no probability in either type, and must not become infinite.
    """
    import torch

    return (logits - logits.amax(-1, keepdim=True)).clamp_min(FLOAT16_LEAST).to(torch.float16)
