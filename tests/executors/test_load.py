"""What the meter counts of real processes, and of a stand-in for NVIDIA's library."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import psutil
import pytest

from autoresearch.executors import disturbance
from autoresearch.executors.sandbox import load

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the scheduler's counts are Linux's")


@contextlib.contextmanager
def spinning(count: int) -> Iterator[list[psutil.Process]]:
    """Processes that want all of one and the same processor."""
    processor = min(os.sched_getaffinity(0))
    script = f"import os; os.sched_setaffinity(0, {{{processor}}})\nwhile True: pass"
    children = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(count)]
    try:
        time.sleep(0.3)
        yield [psutil.Process(child.pid) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()


@linux
def test_time_that_a_run_waits_while_another_works_is_counted() -> None:
    meter = load.Meter()
    with spinning(2) as (run, _):
        samples = [meter.sample(0.0, [run])]
        start = time.monotonic()
        while (at := time.monotonic() - start) < 6.0:
            time.sleep(0.5)
            samples.append(meter.sample(at, [run]))
    used, waited = samples[-1].used - samples[0].used, (samples[-1].waited or 0) - (samples[0].waited or 0)
    assert used + waited == pytest.approx(samples[-1].at, abs=1.0), "it always wanted the processor"
    assert waited > 0.3 * samples[-1].at
    found = disturbance.lost(samples)
    assert found is not None
    assert found.reason(0.03) is not None


@linux
def test_an_ended_processs_time_stays_counted() -> None:
    meter = load.Meter()
    with spinning(1) as run:
        time.sleep(0.2)
        before = meter.sample(0.0, run)
    assert before.used > 0
    assert meter.sample(1.0, run).used == before.used


def test_a_busy_machine_is_seen() -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("no processor to pin a process to")
    with spinning(1):
        assert load.busy_share(1.0) > 0.5 / len(os.sched_getaffinity(0))


class Library:
    """As much of pynvml as the meter uses: one GPU, on which process 7 computes, and process 8 of somebody else."""

    NVMLError = RuntimeError
    reasons = 4  # the power cap, which is usual

    def __getattr__(self, name: str) -> int:
        bits = {"HwThermalSlowdown": 64, "SwThermalSlowdown": 32, "HwPowerBrakeSlowdown": 128, "HwSlowdown": 8}
        return bits[name.removeprefix("nvmlClocksThrottleReason")]

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, number: int) -> str:  # noqa: N802
        return "gpu"

    def nvmlDeviceGetComputeRunningProcesses(self, device: str) -> list[SimpleNamespace]:  # noqa: N802
        return [SimpleNamespace(pid=7), SimpleNamespace(pid=8)]

    def nvmlDeviceGetProcessUtilization(self, device: str, since: int) -> list[SimpleNamespace]:  # noqa: N802
        if since >= 3_000_000:
            raise self.NVMLError("nothing since")
        use = {7: 60, 8: 30}
        return [SimpleNamespace(pid=pid, smUtil=use[pid], timeStamp=since + 1_000_000) for pid in use]

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, device: str) -> int:  # noqa: N802
        return self.reasons


def gpu_counts(pids: set[int], reasons: int = 4) -> tuple[float, float]:
    meter = load.GpuMeter()
    meter._library = Library()
    meter._library.reasons = reasons
    for at in (1.0, 2.0, 3.0, 4.0):
        found = meter.sample(at, pids)
    return found


def test_others_on_the_gpu_and_a_lowered_clock_are_counted_in_seconds() -> None:
    assert gpu_counts({7}) == (pytest.approx(0.9), 0.0)
    assert gpu_counts({7}, reasons=4 | 32) == (pytest.approx(0.9), pytest.approx(4.0))


def test_in_a_container_nobody_can_be_told_apart() -> None:
    assert gpu_counts({70_001}) == (0.0, 0.0)
