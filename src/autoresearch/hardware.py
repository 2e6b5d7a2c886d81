"""What this machine has to train on, and which preset suits it; torch is imported only when it is asked."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import psutil

GIBIBYTE = 2**30
H100_GB = 70
CARD_24_GB = 20


@dataclass(frozen=True)
class Device:
    """The device that a run would use, and its memory in GiB (of the machine, where the device shares it)."""

    kind: str
    name: str
    memory_gb: float

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


def device() -> Device:
    """The best device of this machine: CUDA (or ROCm), Apple's MPS, else the CPU.

    Its name tells it from others of other speed, as far as the system says.
    """
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Device("cuda", properties.name, properties.total_memory / GIBIBYTE)
    memory = psutil.virtual_memory().total / GIBIBYTE
    if torch.backends.mps.is_available():
        return Device("mps", f"Apple GPU, {usable_cores()} cores, {memory:.0f} GB", memory)
    return Device("cpu", f"{processor()}, {usable_cores()} cores", memory)


def processor() -> str:
    """The CPU's model where Linux tells it, else its architecture."""
    about = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:(.+)$", about.read_text(), re.MULTILINE) if about.exists() else None
    return " ".join(found[1].split()) if found else platform.processor() or platform.machine()


def usable_cores() -> int:
    """How many logical cores this process may use, and so a run that it starts."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def preset_for(found: Device) -> str:
    """The name of the preset that suits a device."""
    if found.kind == "cpu":
        return "cpu"
    if found.kind == "mps" or found.memory_gb < CARD_24_GB:
        return "laptop"
    return "h100" if found.memory_gb >= H100_GB else "gpu-24gb-full"
