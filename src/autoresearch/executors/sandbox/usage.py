"""Adds up what a run's processes hold in memory, on GPUs (even after their end), and in files on disk."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import psutil

MOST_FILES = 100_000  # in a run's directories; adding up more takes long
SHARED_MEMORY = "/dev/shm"
GIBIBYTE = 2**30
GPU_SECONDS = 5.0  # in which the driver may reclaim the memory of ended processes
GPU_POLL_SECONDS = 0.1


def memory(family: Sequence[psutil.Process], enough: float) -> int:
    """The bytes that processes hold together, measured more precisely if that seems to be more than `enough`.

    What they share counts once for each, which is fast to find out; only if needed is it divided among them. Shared
    memory that none of them has mapped counts if it is in their own /dev/shm.
    """
    files = _shared(family)
    used = files + sum(_resident(each, exactly=False) for each in family)
    return used if used <= enough else files + sum(_resident(each, exactly=True) for each in family)


def _resident(one: psutil.Process, *, exactly: bool) -> int:
    try:
        resident = int(one.memory_info().rss)
        return int(getattr(one.memory_full_info(), "pss", resident)) if exactly else resident
    except (psutil.Error, OSError):  # it ended meanwhile
        return 0


def _shared(family: Iterable[psutil.Process]) -> int:
    """The bytes in each /dev/shm that these processes have and this one has not: a sandbox's."""
    found: dict[int, int] = {}
    with contextlib.suppress(OSError, AttributeError):  # there is none, as on Windows
        found[os.stat(SHARED_MEMORY).st_dev] = 0
        for one in family:
            with contextlib.suppress(OSError):
                path = f"/proc/{one.pid}/root{SHARED_MEMORY}"
                system = os.statvfs(path)
                found.setdefault(os.stat(path).st_dev, (system.f_blocks - system.f_bfree) * system.f_frsize)
    return sum(found.values())


def gpu_memory() -> Mapping[int, int]:
    """Bytes of GPU memory by the process that computes with it; empty without NVIDIA's driver or an answer from it.

    The process numbers are those of the whole machine: in a container, which has its own, they match none.
    """
    import pynvml  # type: ignore[import-untyped]

    used: Counter[int] = Counter()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return used
    try:
        for number in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(number)
            for one in pynvml.nvmlDeviceGetComputeRunningProcesses(device):
                used[int(one.pid)] += int(one.usedGpuMemory or 1)  # None if it does not say how much
    except pynvml.NVMLError:
        return used
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return used


def left_on_gpu(
    ended: Iterable[psutil.Process],
    read: Callable[[], Mapping[int, int]] = gpu_memory,
    patience_seconds: float = GPU_SECONDS,
) -> int:
    """Bytes of GPU memory that ended processes still hold after some patience; 0 as soon as they hold none."""
    ours, until = {process.pid: process for process in ended}, time.monotonic() + patience_seconds
    while ours:
        left = sum(size for pid, size in read().items() if pid in ours and not _is_another(ours[pid]))
        if not left or time.monotonic() > until:
            return left
        time.sleep(GPU_POLL_SECONDS)
    return 0


def _is_another(process: psutil.Process) -> bool:
    """Whether a later process has its number by now."""
    return psutil.pid_exists(process.pid) and not process.is_running()


def tasks() -> int:
    """How many threads the whole machine has, which is quick to find out; 0 if it does not say."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    except (OSError, ValueError, IndexError):
        return 0


def disk(places: Iterable[Path]) -> tuple[int, int]:
    """The bytes that the files in some directories take on disk, and how many files there are, up to the limit."""
    used = files = 0
    waiting = [str(place) for place in places]
    while waiting and files <= MOST_FILES:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:  # it may be gone by now
            for entry in entries:
                files += 1
                with contextlib.suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    used += getattr(found, "st_blocks", found.st_size // 512) * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    return used, files
