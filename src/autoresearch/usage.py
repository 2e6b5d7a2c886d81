"""Adds up what the processes of a run hold in memory, and its directories on disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

MOST_FILES = 100_000  # in a run's directories; beyond that it takes long to add them up
SHARED_MEMORY = "/dev/shm"


def memory(family: Sequence[psutil.Process], enough: float) -> int:
    """The bytes that processes hold together, found out more exactly where that seems to be more than `enough`.

    What they share counts once for each, which is fast to find out; only then is it divided among them. Shared memory
    that none of them has mapped counts where it lies in a /dev/shm of their own.
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


def tasks() -> int:
    """How many threads the whole machine has, which takes no time to find out; 0 where it does not say."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    except (OSError, ValueError, IndexError):
        return 0


def disk(places: Iterable[Path]) -> tuple[int, int]:
    """The bytes that the files in some directories take on disk, and how many files those are, up to the limit."""
    used = files = 0
    waiting = [str(place) for place in places]
    while waiting and files <= MOST_FILES:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:  # it may be gone meanwhile
            for entry in entries:
                files += 1
                with contextlib.suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    used += getattr(found, "st_blocks", found.st_size // 512) * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    return used, files
