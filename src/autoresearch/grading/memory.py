"""The memory that a run writes its logits into: shared with the host, or offered on its own GPU."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import tempfile
from typing import Any

import numpy.typing as npt
import torch

from autoresearch.grading.protocol import DeviceMemory, current, driver, gpu

Array = npt.NDArray[Any]
SPARE = 3  # times the shared size that must be free on the GPU, since the run needs some too
PATTERN = 32  # bytes that a run writes into it, to show that both sides see the same memory
CPU = torch.device("cpu")


class Refused(Exception):
    """Why a run is not graded."""


class SharedMemory:
    """Memory shared with a run through a file descriptor. It is read and written as a file, never mapped here: a run
    that truncates it does no harm, and what is read is a copy that the run cannot change afterwards."""

    def __init__(self, size: int) -> None:
        if hasattr(os, "memfd_create"):
            self.descriptor = os.memfd_create("logits", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        else:
            with tempfile.TemporaryFile() as file:  # it has no name at this point
                self.descriptor = os.dup(file.fileno())
        os.ftruncate(self.descriptor, size)
        with contextlib.suppress(ImportError, AttributeError, OSError):  # sizes can only be sealed on Linux
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
    """GPU memory offered to a run, which receives it as a file descriptor.

    Such a descriptor reaches into a sandbox with its own processes, and leads to this piece alone; what cudaIpc shares
    is part of a larger allocation, with whatever else is there. It is created here and opened by the run, never the
    other way round: memory created by a run could have another size or kind, or disappear while it is read.
    """

    def __init__(self, device: torch.device, size: int) -> None:
        """Allocate `size` bytes of zeros, rounded up, on a device.

        Raises:
            OSError, AttributeError: see `protocol.driver`.
            RuntimeError: PyTorch cannot use the device.
        """
        unit, handle, exported = ctypes.c_size_t(), ctypes.c_uint64(), ctypes.c_int(-1)
        # CUmemAllocationProp: pinned, exportable as a descriptor, located on a device, its number; nothing else.
        kind = struct.pack("=4iQ8x", 1, 1, 1, device.index or 0, 0)
        with current(device) as stream, contextlib.ExitStack() as undo:
            driver("cuMemGetAllocationGranularity", ctypes.byref(unit), kind, ctypes.c_int(0))
            self.size = -(-size // unit.value) * unit.value
            length, none = ctypes.c_size_t(self.size), ctypes.c_uint64()
            driver("cuMemCreate", ctypes.byref(handle), length, kind, none)
            self.memory = DeviceMemory(device, self.size, handle)
            undo.callback(self.memory.close)
            # Another exam's targets may have been in this memory.
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
    """GPU memory to share, if there is a GPU with enough free memory and a driver that can share it."""
    with contextlib.suppress(OSError, AttributeError, RuntimeError):  # host memory works too
        if (device := working_device()) != CPU and torch.cuda.mem_get_info(device)[0] >= SPARE * size:
            return Offer(device, size)
    return None


def work_on(number: int | None) -> None:
    """Let this thread use the GPU with that number, the one that its run has, if it is given."""
    if number is not None and torch.cuda.is_available():
        torch.cuda.set_device(number)


def working_device() -> torch.device:
    """This thread's GPU, if there is one that works, because at a large vocabulary a CPU takes minutes. After some
    errors a GPU no longer works in this process."""
    if not torch.cuda.is_available():
        return CPU
    try:
        found = torch.zeros(1, device="cuda")
        found.cpu()
    except RuntimeError:
        return CPU
    return found.device
