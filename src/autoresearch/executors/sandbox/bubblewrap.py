"""Confines a run with bubblewrap, in its own namespaces."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from autoresearch.executors.sandbox.interpreter import Interpreter, interpreter, program
from autoresearch.executors.sandbox.rules import (
    USER,
    Rules,
    gpu_devices,
    launched,
    private_directories,
    system_paths,
)


class Bubblewrap:
    """Its own namespaces: a run sees only the files named, no network and no other processes.

    Its processes end with it. If signal n ends it, bubblewrap's exit code is 128 + n.
    """

    name = "bubblewrap"

    def command(self, words: Sequence[str], rules: Rules) -> list[str]:
        python = interpreter(program(words[0]))
        private = private_directories(rules.directory)
        variables = {**python.environment, "HOME": str(private / "home"), "TMPDIR": "/tmp", "USER": USER}
        return launched(
            [
                *(program("bwrap"), "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
                *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/dev/shm"),
                *(word for device in gpu_devices() for word in ("--dev-bind-try", device, device)),
                *_mounts(python, rules, private / "tmp"),
                *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", str(rules.directory)),
                *(word for name, value in variables.items() for word in ("--setenv", name, value)),
                *("--", *words),
            ],
            rules.limits,
        )


def _mounts(python: Interpreter, rules: Rules, temporary: Path) -> list[str]:
    """Bubblewrap's arguments for every path that a run sees, outer ones first: later ones cover earlier ones."""
    readable = (*map(Path, system_paths()), *python.visible(rules.directory), *rules.readable)
    mounts: dict[Path, tuple[str, ...]] = {Path("/tmp"): ("--bind", str(temporary), "/tmp")}
    mounts |= {path: ("--ro-bind-try", str(path), str(path)) for path in readable}
    links = [path for path in (*map(Path, system_paths()), *python.links) if path.is_symlink()]
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
