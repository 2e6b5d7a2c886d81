"""Watches what a run uses: memory, processes and disk. A run that uses too much is ended."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil

from autoresearch.base import process
from autoresearch.base.errors import EndRun
from autoresearch.executors.sandbox import usage
from autoresearch.executors.sandbox.rules import GIBIBYTE, Limits

WATCH_SECONDS = 0.5
SPARE_MEMORY_GB = 0.25  # with less, the machine is about to kill something itself
SPARE_DISK_GB = 0.25
FULL = f"disk full: less than {SPARE_DISK_GB:g} GiB is left on it"
FILLED_BY_OTHERS = f"{FULL}, and others filled it"


class Watch:
    """Adds up what a run's processes and directories use, twice a second, and ends the run if that is too much.

    `places` are the directories that it may write: its scratch, which contains /tmp, and `Rules.writable`. `seen` are
    its processes by number, including those that have ended.
    """

    def __init__(self, mark: str, limits: Limits, places: Sequence[Path]) -> None:
        self.mark = mark
        self.limits = limits
        self.places = places
        self.seen: dict[int, psutil.Process] = {}
        self._due = 0.0
        self._tasks = usage.tasks()

    def __call__(self, elapsed: float) -> None:
        """Call it often, with the seconds since the start.

        Raises:
            EndRun: the run exceeds its limits, or leaves the machine with almost nothing.
        """
        tasks, most = usage.tasks(), self.limits.processes
        if elapsed < self._due and (most is None or tasks - self._tasks <= most):
            return  # a fork bomb must be noticed before the next regular check, while it can still be ended
        reason = self._over()
        self._due, self._tasks = elapsed + WATCH_SECONDS, tasks
        if reason:
            raise EndRun(reason)

    def _over(self) -> str | None:
        family = process.processes_of(self.mark)
        self.seen.update((one.pid, one) for one in family)
        limits = self.limits
        if limits.processes is not None and len(family) > limits.processes:
            return f"too many processes: {len(family)} of the {limits.processes} that the sandbox allows"
        return self._over_memory(family) or self._over_disk()

    def _over_memory(self, family: Sequence[psutil.Process]) -> str | None:
        allowed = self.limits.memory_gb
        if allowed is not None and (used := usage.memory(family, allowed * GIBIBYTE) / GIBIBYTE) > allowed:
            return f"out of memory: used {used:.2f} of the {allowed:g} GiB that the sandbox allows"
        if family and psutil.virtual_memory().available < SPARE_MEMORY_GB * GIBIBYTE:
            return f"out of memory: it left the machine less than {SPARE_MEMORY_GB:g} GiB"
        return None

    def _over_disk(self) -> str | None:
        allowed = self.limits.disk_gb
        used, files = usage.disk(self.places)
        if files > usage.MOST_FILES:
            return f"too many files: more than the {usage.MOST_FILES:,} that the sandbox allows"
        if allowed is not None and used / GIBIBYTE > allowed:
            return f"disk full: used {used / GIBIBYTE:.2f} of the {allowed:g} GiB that the sandbox allows"
        if any(shutil.disk_usage(place).free < SPARE_DISK_GB * GIBIBYTE for place in self.places if place.exists()):
            return FULL if used / GIBIBYTE > SPARE_DISK_GB else FILLED_BY_OTHERS
        return None
