"""What this machine can train on, and which preset fits. Imports torch only when asked."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import psutil

from autoresearch.base import process

CPUINFO = Path("/proc/cpuinfo")
GIBIBYTE = 2**30
H100_GB = 70
CARD_24_GB = 20


@dataclass(frozen=True)
class Device:
    """The device that a run would use, and its memory in GiB (the machine's, if the device shares it)."""

    kind: str
    name: str
    memory_gb: float

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


def gpus() -> int:
    """How many GPUs runs can be spread over."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device(cores_of_a_run: int | None = None) -> Device:
    """The best device of this machine: CUDA (or ROCm), Apple's MPS, else the CPU, of which a run may have a few cores.

    Its name distinguishes it from devices of other speed, as far as the system says. An existing campaign is tied to
    that name: if it were written differently, the campaign would have to be started again.
    """
    cores = usable_cores()
    import torch

    # OMP_PROC_BIND binds whatever imports torch to one core, and with it the runs it starts
    if usable_cores() != cores:
        os.sched_setaffinity(0, cores)
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Device("cuda", properties.name, properties.total_memory / GIBIBYTE)
    memory = psutil.virtual_memory().total / GIBIBYTE
    if torch.backends.mps.is_available():
        return Device("mps", f"{processor()}, {memory:.0f} GB", memory)
    count = cores_of_a_run or len(cores)
    return Device("cpu", f"{processor()}, {count} core{'s' if count > 1 else ''}", memory)


def processor() -> str:
    """The CPU's model (on a Mac the chip's) if the system reports it, else its architecture."""
    if platform.system() == "Darwin":
        return process.output(["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"])
    found = re.search(r"^model name\s*:(.+)$", CPUINFO.read_text(), re.MULTILINE) if CPUINFO.exists() else None
    return " ".join(found[1].split()) if found else platform.processor() or platform.machine()


def usable_cores() -> set[int]:
    """The logical cores that this process, and so a run that it starts, may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def preset_for(found: Device) -> str:
    """The name of the preset that fits a device."""
    if found.kind == "cpu":
        return "cpu"
    if found.kind == "mps" or found.memory_gb < CARD_24_GB:
        return "laptop"
    return "h100" if found.memory_gb >= H100_GB else "gpu-24gb-full"
