"""Confines a run with Linux Landlock, if bubblewrap does not work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autoresearch.executors.sandbox.interpreter import interpreter, program
from autoresearch.executors.sandbox.rules import (
    DEVICES,
    USER,
    Rules,
    gpu_devices,
    launched,
    private_directories,
    system_paths,
    without,
)


class Landlock:
    """The kernel refuses every other file, TCP, and signals to processes outside. Nothing has to be installed.

    What it does not hold: named Unix sockets of others can be used; names, sizes and modes of files and the list of
    processes can be seen. If the kernel does not let it create namespaces, UDP is open. It has no /tmp of its own:
    TMPDIR is in the scratch. Rights to a directory cannot be taken back below it: to protect frozen files, no new file
    can be created in the directories that hold them, and within a `writable` directory they are not protected. Before
    Linux 6.2 files can be truncated, before 6.7 only the namespace blocks TCP, before 6.12 other processes can be
    signaled.
    """

    name = "landlock"

    def command(self, words: Sequence[str], rules: Rules) -> list[str]:
        python = interpreter(program(words[0]))
        private = private_directories(rules.directory)
        readable = [
            *map(Path, (*system_paths(), "/proc")),
            *python.visible(rules.directory),
            rules.directory,
            *rules.readable,
        ]
        writable = [*without(rules.directory, rules.frozen), *rules.writable]
        directories = {"HOME": str(private / "home"), "TMPDIR": str(private / "tmp"), "USER": USER}
        return launched(
            words,
            rules.limits,
            supervise=True,
            confine=True,
            readable=[str(path) for wide in readable for path in without(wide, rules.hidden)],
            writable=[str(path) for wide in writable for path in without(wide, rules.hidden)],
            devices=[*DEVICES, *gpu_devices()],
            environment={**python.environment, **directories},
        )
