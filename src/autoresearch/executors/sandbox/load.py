"""Measures, while a run works, the processor time it had and waited for, and what else used the machine and its GPU.

Counts only; what they mean is decided in `executors.disturbance`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import psutil

from autoresearch.ledger.records import Load

SAMPLE_SECONDS = 1.0
NANOSECOND = 1e-9


class Meter:
    """Adds up what a run's processes and the machine have done. Call `sample` with the run's processes, now and then.

    Processor time and waiting come from the kernel's scheduler (`/proc/PID/task/TID/schedstat`, Linux); elsewhere only
    processor time is known.
    """

    def __init__(self) -> None:
        self._threads: dict[tuple[int, int], tuple[float, float]] = {}  # seconds used and waited, also of ended ones
        self._used: dict[int, float] = {}  # by process, where the scheduler does not say
        self._gpu = GpuMeter()

    def sample(self, at: float, processes: Collection[psutil.Process]) -> Load:
        """The counts so far. `at` is the time on the run's clock, in seconds."""
        for one in processes:
            self._count(one)
        scheduled = bool(self._threads)
        used = sum(used for used, _ in self._threads.values()) if scheduled else sum(self._used.values())
        busy, stolen, processors = machine_seconds()
        others, slowed = self._gpu.sample(at, {one.pid for one in processes})
        return Load(
            at=at,
            processors=processors,
            used=used,
            waited=sum(waited for _, waited in self._threads.values()) if scheduled else None,
            busy=busy,
            own=time.process_time(),
            stolen=stolen,
            gpu_others=others,
            gpu_slowed=slowed,
        )

    def _count(self, one: psutil.Process) -> None:
        with contextlib.suppress(OSError, ValueError):  # it ended, or this is not Linux
            for task in Path(f"/proc/{one.pid}/task").iterdir():
                with contextlib.suppress(OSError, ValueError):
                    used, waited, _ = map(int, (task / "schedstat").read_text().split())
                    self._threads[one.pid, int(task.name)] = used * NANOSECOND, waited * NANOSECOND
            return
        with contextlib.suppress(psutil.Error):
            times = one.cpu_times()
            self._used[one.pid] = times.user + times.system


def machine_seconds() -> tuple[float, float, int]:
    """Seconds that the processors this program may use have worked, for anyone; that a host took away; and how many
    processors those are."""
    every = psutil.cpu_times(percpu=True)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(len(every)))
    mine = [times for number, times in enumerate(every) if number in allowed] or every
    names = ("user", "nice", "system", "irq", "softirq")
    busy = sum(getattr(times, name, 0.0) for times in mine for name in names)
    return busy, sum(getattr(times, "steal", 0.0) for times in mine), len(mine)


def busy_share(seconds: float) -> float:
    """The share of this machine's processors that programs use during the next seconds, this one left out."""
    (busy, stolen, processors), own, start = machine_seconds(), time.process_time(), time.monotonic()
    time.sleep(seconds)
    later_busy, later_stolen, _ = machine_seconds()
    spent = (later_busy - busy) + (later_stolen - stolen) - (time.process_time() - own)
    return min(1.0, max(0.0, spent / ((time.monotonic() - start) * processors)))


class GpuMeter:
    """Seconds in which other programs computed on a run's NVIDIA GPU, and in which heat or power lowered its clock.

    Both stay 0 without NVIDIA's driver. In a container, which does not see the machine's process numbers, nobody's
    computing can be told apart, and counts as the run's.
    """

    def __init__(self) -> None:
        self._device: Any = None
        self._library: Any = None
        self._others = self._slowed = 0.0
        self._last = 0.0
        self._seen = 0  # time stamp of the last sample of use
        with contextlib.suppress(Exception):  # there is no driver, or an old one
            import pynvml  # type: ignore[import-untyped]

            pynvml.nvmlInit()
            self._library = pynvml

    def sample(self, at: float, pids: Collection[int]) -> tuple[float, float]:
        """Both counts so far, in seconds."""
        if self._library is None:
            return 0.0, 0.0
        span, self._last = at - self._last, at
        with contextlib.suppress(self._library.NVMLError):
            self._device = self._device or self._device_of(pids)
            if self._device is not None:
                self._others += span * self._use_by_others(pids)
                self._slowed += span * self._is_slowed()
        return self._others, self._slowed

    def _device_of(self, pids: Collection[int]) -> Any:
        nvml = self._library
        for number in range(nvml.nvmlDeviceGetCount()):
            device = nvml.nvmlDeviceGetHandleByIndex(number)
            if any(each.pid in pids for each in nvml.nvmlDeviceGetComputeRunningProcesses(device)):
                return device
        return None

    def _use_by_others(self, pids: Collection[int]) -> float:
        try:
            samples = self._library.nvmlDeviceGetProcessUtilization(self._device, self._seen)
        except self._library.NVMLError:  # nobody used it since
            return 0.0
        self._seen = max((each.timeStamp for each in samples), default=self._seen)
        percent: dict[int, int] = {each.pid: each.smUtil for each in samples if each.pid not in pids}
        return min(1.0, sum(percent.values()) / 100)

    def _is_slowed(self) -> bool:
        nvml = self._library
        reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._device)
        heat = nvml.nvmlClocksThrottleReasonHwThermalSlowdown | nvml.nvmlClocksThrottleReasonSwThermalSlowdown
        power = nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown | nvml.nvmlClocksThrottleReasonHwSlowdown
        return bool(reasons & (heat | power))
