"""What a run may touch and use, as plain data; and what every sandbox needs from the system."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from autoresearch.executors.sandbox import launcher

GIBIBYTE = 2**30
PRIVATE = ".private"  # in the scratch: the run's home and its temporary directory
USER = "autoresearch"  # programs ask who runs them, but the list of users is hidden
# What every program needs from a Linux system; none of it belongs to a user.
SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/opt/rocm", "/run/opengl-driver"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime"),
    "/sys/devices/system",  # the number of cores
)
GPU = ("nvidia*", "dri", "kfd", "dxg")  # in /dev
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


@dataclass(frozen=True)
class Limits:
    """What a run may use. None means no limit except the machine's own. `file_gb` is per file, `disk_gb` in total."""

    memory_gb: float | None = None
    processes: int | None = 512
    file_gb: float | None = 16.0
    disk_gb: float | None = 32.0


@dataclass(frozen=True)
class Rules:
    """What a run may touch. It starts in `directory`, and may write there and in `writable`.

    `readable` are files or directories that it may read in addition to Python's and the system's. `hidden` are inside
    some of them, but may not be read. `frozen` are inside the directory, but may not be written. `pass_fds` stay open.
    """

    directory: Path
    writable: tuple[Path, ...] = ()
    readable: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()
    frozen: tuple[Path, ...] = ()
    pass_fds: tuple[int, ...] = ()
    limits: Limits = Limits()


class Sandbox(Protocol):
    """Turns a command, whose first word is a Python interpreter, into one that starts it confined."""

    name: str

    def command(self, words: Sequence[str], rules: Rules) -> list[str]:
        """Return the confined command, and prepare the scratch for it.

        Raises:
            FileNotFoundError: there is no such interpreter.
        """
        ...


def python_path(environment: Mapping[str, str], directory: Path) -> tuple[Path, ...]:
    """The directories of PYTHONPATH that a run in a directory may read: none that contain it, and so other runs."""
    named = (Path(word) for word in environment.get("PYTHONPATH", "").split(os.pathsep) if word)
    return tuple(path for path in named if path.is_absolute() and not directory.is_relative_to(path))


def without(path: Path, holes: Iterable[Path]) -> list[Path]:
    """The path, or its contents if some of it is left out, since rights apply to everything below a path."""
    inner = [hole for hole in holes if hole.is_relative_to(path)]
    if not inner:
        return [path]
    if path in inner:
        return []
    return [kept for child in path.iterdir() if not child.is_symlink() for kept in without(child, inner)]


def private_directories(directory: Path) -> Path:
    for name in ("home", "tmp"):
        (directory / PRIVATE / name).mkdir(parents=True, exist_ok=True)
    return directory / PRIVATE


def system_paths() -> tuple[str, ...]:
    return (*SYSTEM, "/sys") if gpu_devices() else SYSTEM


def gpu_devices() -> list[str]:
    return sorted(str(path) for pattern in GPU for path in Path("/dev").glob(pattern))


def launched(words: Sequence[str], limits: Limits, **rules: Any) -> list[str]:
    rules["file_bytes"] = int(limits.file_gb * GIBIBYTE) if limits.file_gb else None
    return [sys.executable, "-I", "-S", str(launcher.__file__), json.dumps(rules), "--", *words]
