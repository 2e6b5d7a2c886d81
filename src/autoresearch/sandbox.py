"""Confines a run: by bubblewrap where that works, else by Linux' Landlock, else not at all; and watches what it uses.

A run may write its scratch directory, read what it was given and what Python needs, and reach no network. Its home
and its temporary directory lie in the scratch. What each of the three does not hold is said with its class. It is the
parent that watches memory, processes and disk: RLIMIT_AS breaks CUDA, and RLIMIT_NPROC counts threads, all of a
person's and none of root's.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from autoresearch import landlock, process, usage
from autoresearch.errors import EndRun, UserError
from autoresearch.interpreter import Interpreter, interpreter, program

GIBIBYTE = 2**30
PRIVATE = ".private"  # within the scratch: the run's home and its temporary directory
USER = "autoresearch"  # programs ask who runs them, and the list of users is hidden
WATCH_SECONDS = 0.5
SPARE_MEMORY_GB = 0.25  # with less the machine is about to kill something itself
SPARE_DISK_GB = 0.25

# What every program needs of a Linux system, and nothing that is a person's.
SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/opt/rocm", "/run/opengl-driver"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime"),
    "/sys/devices/system",  # the number of cores
)
GPU = ("nvidia*", "dri", "kfd", "dxg")  # in /dev
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


@dataclass(frozen=True)
class Limits:
    """What a run may use; None is no limit but the machine's own. `file_gb` is for one file, `disk_gb` for all."""

    memory_gb: float | None = None
    processes: int | None = 512
    file_gb: float | None = 16.0
    disk_gb: float | None = 32.0


@dataclass(frozen=True)
class Rules:
    """What a run may touch. It starts in `directory`, and may write there and in `writable`.

    `readable` are files or directories that it may read besides Python's and the system's; `hidden` lie within some of
    them and it may not; `frozen` lie within the directory and it may not write them. `pass_fds` stay open.
    """

    directory: Path
    writable: tuple[Path, ...] = ()
    readable: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()
    frozen: tuple[Path, ...] = ()
    pass_fds: tuple[int, ...] = ()
    limits: Limits = Limits()


class Sandbox(Protocol):
    """Turns a command, the first word of which is a Python interpreter, into one that starts it confined."""

    name: str

    def command(self, words: Sequence[str], rules: Rules) -> list[str]:
        """Return the confined command; the scratch is made ready for it.

        Raises:
            FileNotFoundError: there is no such interpreter.
        """
        ...


class Bubblewrap:
    """Namespaces of its own: a run sees neither other files than those named, nor a network, nor other processes.

    Its processes end with it. Where a signal n ends it, bubblewrap's exit code is 128 + n.
    """

    name = "bubblewrap"

    def command(self, words: Sequence[str], rules: Rules) -> list[str]:
        python = interpreter(program(words[0]))
        private = _private(rules.directory)
        variables = {**python.environment, "HOME": str(private / "home"), "TMPDIR": "/tmp", "USER": USER}
        return _launch(
            [
                *(program("bwrap"), "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
                *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/dev/shm"),
                *(word for device in _gpus() for word in ("--dev-bind-try", device, device)),
                *_mounts(python, rules, private / "tmp"),
                *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", str(rules.directory)),
                *(word for name, value in variables.items() for word in ("--setenv", name, value)),
                *("--", *words),
            ],
            rules.limits,
        )


class Landlock:
    """The kernel refuses every other file, TCP, and signals to processes outside; nothing has to be installed.

    Not held: named Unix sockets that others listen at; the names, sizes and modes of files, and the list of processes,
    can be seen; where the kernel lets it make no namespaces, UDP is open and there is no /dev/shm, which semaphores
    between processes need. There is no /tmp of its own: TMPDIR lies in the scratch. Rights to a directory cannot be
    taken back below it: for frozen files to stay as they are, no new file can be made in the directories that hold
    them, and within a `writable` directory they are not protected. Before Linux 6.2 files can be truncated, before 6.7
    TCP is held by the namespace alone, before 6.12 other processes can be signalled.
    """

    name = "landlock"

    def command(self, words: Sequence[str], rules: Rules) -> list[str]:
        python = interpreter(program(words[0]))
        private = _private(rules.directory)
        readable = [
            *map(Path, (*_system(), "/proc")),
            *python.visible(rules.directory),
            rules.directory,
            *rules.readable,
        ]
        writable = [*without(rules.directory, rules.frozen), *rules.writable]
        directories = {"HOME": str(private / "home"), "TMPDIR": str(private / "tmp"), "USER": USER}
        return _launch(
            words,
            rules.limits,
            supervise=True,
            confine=True,
            readable=[str(path) for wide in readable for path in without(wide, rules.hidden)],
            writable=[str(path) for wide in writable for path in without(wide, rules.hidden)],
            devices=[*DEVICES, *_gpus()],
            environment={**python.environment, **directories},
        )


class Nothing:
    """No confinement: a run has the person's rights. On Linux its end and its files' size are held all the same."""

    name = "none"

    def command(self, words: Sequence[str], rules: Rules) -> list[str]:
        words = [program(words[0]), *words[1:]]
        if not sys.platform.startswith("linux"):
            return words
        return _launch(words, rules.limits, supervise=True)


# ---------------------------------------------------------------- which one

SANDBOXES: Mapping[str, Sandbox] = {each.name: each for each in (Bubblewrap(), Landlock(), Nothing())}  # best first


def choose(name: str = "auto") -> Sandbox:
    """The sandbox of that name, or the best that works here.

    Raises:
        UserError: the one that was named does not work here.
    """
    if name == "auto":
        return next(each for each in SANDBOXES.values() if failure(each.name) is None)
    if name not in SANDBOXES:
        raise UserError(f"there is no sandbox {name!r}: choose one of auto, {', '.join(SANDBOXES)}")
    why = failure(name)
    if why:
        raise UserError(f"the sandbox `{name}` does not work here ({why}): {remedy()}, or set `sandbox: auto`")
    return SANDBOXES[name]


@functools.cache
def failure(name: str) -> str | None:
    """Why a sandbox does not work here, found out by starting Python in it; None where it works."""
    if name == Nothing.name:
        return None
    if not sys.platform.startswith("linux"):
        return "it needs Linux"
    try:
        with tempfile.TemporaryDirectory(prefix="autoresearch-sandbox-") as directory:
            words = SANDBOXES[name].command([sys.executable, "-c", "print('works')"], Rules(Path(directory)))
            said = process.output(words)
    except FileNotFoundError as error:
        return str(error)
    return None if said == "works" else (said.splitlines() or ["it says nothing"])[-1]


def remedy() -> str:
    """What a person can do to get the best sandbox."""
    if not sys.platform.startswith("linux"):
        return "run it on Linux"
    if not shutil.which("bwrap"):
        return "install bubblewrap (`apt install bubblewrap`, `dnf install bubblewrap`)"
    return "let bubblewrap make user namespaces (`sysctl kernel.apparmor_restrict_unprivileged_userns=0` on Ubuntu)"


# ---------------------------------------------------------------- what the run sees


def without(path: Path, holes: Iterable[Path]) -> list[Path]:
    """The path, or what lies in it where some of that is left out; rights hold for all below a path."""
    inner = [hole for hole in holes if hole.is_relative_to(path)]
    if not inner:
        return [path]
    if path in inner:
        return []
    return [kept for child in path.iterdir() if not child.is_symlink() for kept in without(child, inner)]


def _mounts(python: Interpreter, rules: Rules, temporary: Path) -> list[str]:
    """Bubblewrap's words for every path that a run sees, the outer ones first, since a later one covers an earlier."""
    readable = (*map(Path, _system()), *python.visible(rules.directory), *rules.readable)
    mounts: dict[Path, tuple[str, ...]] = {Path("/tmp"): ("--bind", str(temporary), "/tmp")}
    mounts |= {path: ("--ro-bind-try", str(path), str(path)) for path in readable}
    links = [path for path in (*map(Path, _system()), *python.links) if path.is_symlink()]
    mounts |= {path: ("--symlink", os.readlink(path), str(path)) for path in links if not _within(path, mounts)}
    mounts |= {path: ("--bind", str(path), str(path)) for path in (*rules.writable, rules.directory)}
    mounts |= {path: ("--ro-bind-try", str(path), str(path)) for path in rules.frozen}
    mounts |= {path: _cover(path) for path in rules.hidden if _within(path, mounts) and path.exists()}
    return [word for path in sorted(mounts, key=lambda path: len(path.parts)) for word in mounts[path]]


def _within(path: Path, places: Iterable[Path]) -> bool:
    return any(path.is_relative_to(place) for place in places if place != path and place != Path("/tmp"))


def _cover(path: Path) -> tuple[str, ...]:
    if path.is_dir():
        return "--tmpfs", str(path), "--remount-ro", str(path)
    return "--ro-bind", "/dev/null", str(path)


def _private(directory: Path) -> Path:
    for name in ("home", "tmp"):
        (directory / PRIVATE / name).mkdir(parents=True, exist_ok=True)
    return directory / PRIVATE


def _system() -> tuple[str, ...]:
    return (*SYSTEM, "/sys") if _gpus() else SYSTEM


def _gpus() -> list[str]:
    return sorted(str(path) for pattern in GPU for path in Path("/dev").glob(pattern))


def _launch(words: Sequence[str], limits: Limits, **rules: Any) -> list[str]:
    rules["file_bytes"] = int(limits.file_gb * GIBIBYTE) if limits.file_gb else None
    return [sys.executable, "-I", "-S", str(landlock.__file__), json.dumps(rules), "--", *words]


# ---------------------------------------------------------------- what it uses


class Watch:
    """Adds up what a run's processes and directories use, twice a second, and ends it where that is too much.

    `places` are the directories that it may write: its scratch, where /tmp lies too, and what is in `Rules.writable`.
    `seen` are its processes by number, those that have ended too.
    """

    def __init__(self, mark: str, limits: Limits, places: Sequence[Path]) -> None:
        self.mark = mark
        self.limits = limits
        self.places = places
        self.seen: dict[int, psutil.Process] = {}
        self._due = 0.0
        self._tasks = usage.tasks()

    def __call__(self, elapsed: float) -> None:
        """To be called often with the seconds since the start.

        Raises:
            EndRun: it uses more than its limits, or so much that the machine has next to nothing left.
        """
        tasks, most = usage.tasks(), self.limits.processes
        if elapsed < self._due and (most is None or tasks - self._tasks <= most):
            return  # a fork bomb is heard of before its due time, when it can still be ended
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
            return f"disk full: less than {SPARE_DISK_GB:g} GiB is left on it"
        return None
