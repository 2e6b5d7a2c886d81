"""What this machine has to train on, and which preset suits it; torch is imported only when it is asked."""

from __future__ import annotations

from dataclasses import dataclass

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


def device() -> Device:
    """The best device of this machine: CUDA (or ROCm), Apple's MPS, else the CPU."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Device("cuda", properties.name, properties.total_memory / GIBIBYTE)
    memory = psutil.virtual_memory().total / GIBIBYTE
    if torch.backends.mps.is_available():
        return Device("mps", "Apple GPU", memory)
    return Device("cpu", f"{psutil.cpu_count(logical=False) or psutil.cpu_count()} cores", memory)


def preset_for(found: Device) -> str:
    """The name of the preset that suits a device."""
    if found.kind == "cpu":
        return "cpu"
    if found.kind == "mps" or found.memory_gb < CARD_24_GB:
        return "laptop"
    return "h100" if found.memory_gb >= H100_GB else "gpu-24gb-full"
