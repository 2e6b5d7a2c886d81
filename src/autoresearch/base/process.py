"""Starts a command in its own process group, enforces its deadline, and leaves no process behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from autoresearch.base import interrupt
from autoresearch.base.errors import EndRun

MARK = "AUTORESEARCH_RUN"
POLL_SECONDS = 0.05
GRACE_SECONDS = 5.0
ANSWER_SECONDS = 20.0
STANDARD_ERROR = 2  # what a child inherits under this number, whatever Python's own stderr is


@dataclass(frozen=True)
class Ended:
    """How a command ended. `exit_code` is None if the deadline ended it, negative if a signal did."""

    exit_code: int | None
    seconds: float


def run_group(
    command: Sequence[str],
    *,
    directory: Path,
    environment: Mapping[str, str],
    log: Path,
    deadline_seconds: float,
    mark: str,
    poll: Callable[[float], None],
    stdin: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> Ended:
    """Run a command with its output in a log file, until it ends or its deadline passes. It reads the file `stdin`.

    `poll` is called about twenty times a second with the seconds since the start. Afterwards every process that the
    command left is ended, including those that left its group: they carry `mark` in their environment, or descend from
    a process that does.

    Raises:
        EndRun: `poll` raised it.
        FileNotFoundError: there is no such program.
    """
    start = time.monotonic()
    child: subprocess.Popen[bytes] | None = None
    grace = GRACE_SECONDS
    try:
        with log.open("wb") as output, (stdin or Path(os.devnull)).open("rb") as source, interrupt.held():
            child = subprocess.Popen(
                command,
                cwd=directory,
                env={**environment, MARK: mark},
                stdin=source,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=os.name == "posix",
                pass_fds=tuple(pass_fds),
            )
        code = _wait(child, start, deadline_seconds, poll)
    except EndRun:
        grace = 0.0
        raise
    finally:
        if child:
            end_marked(mark, child.pid, grace)
            child.wait()
    poll(time.monotonic() - start)
    return Ended(code, time.monotonic() - start)


def _wait(child: subprocess.Popen[bytes], start: float, deadline: float, poll: Callable[[float], None]) -> int | None:
    while (elapsed := time.monotonic() - start) < deadline:
        poll(elapsed)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(POLL_SECONDS)
    return None


def end_marked(mark: str, group: int | None = None, grace: float | None = None) -> int:
    """End every process that carries a mark (or one that begins with it and a slash), and the group of a child.

    Sends TERM, then KILL after five seconds (or `grace`), repeatedly for what is forked meanwhile. Returns how many
    processes there were.
    """
    grace = GRACE_SECONDS if grace is None else grace
    found = processes_of(mark)
    if grace and (found or (group and psutil.pid_exists(group))):
        _signal_group(group, signal.SIGTERM)
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        psutil.wait_procs(found, timeout=grace)
    until = time.monotonic() + GRACE_SECONDS
    while (left := processes_of(mark)) and time.monotonic() < until:
        _kill(left)
    if os.name == "posix":
        _signal_group(group, signal.SIGKILL)
    return len(found)


def _kill(family: Sequence[psutil.Process]) -> None:
    """Kill processes, the first of each family last: its orphans remain its descendants, and so can be found."""
    pids: set[int | None] = {process.pid for process in family}
    elders = [process for process in family if _parent(process) not in pids]
    rest = [process for process in family if process not in elders]
    for process in elders:
        with contextlib.suppress(psutil.Error):
            process.suspend() if rest else process.kill()
    if os.name == "posix":  # all at once if they stay together, since a fork bomb outruns one kill after the other
        for group in {_group(process) for process in rest} & pids:
            _signal_group(group, signal.SIGKILL)
    for process in rest:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(rest or elders, timeout=0.2)


def _group(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except OSError:
        return None


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def _signal_group(group: int | None, signal_number: int) -> None:
    if group is None or os.name != "posix":
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal_number)


def processes_of(mark: str) -> list[psutil.Process]:
    """The living processes that carry a mark, and all their descendants, whatever their environment."""
    parents: dict[int, int] = {}
    living: list[psutil.Process] = []
    family: set[int] = set()
    for process in psutil.process_iter(["ppid", "status"]):
        parents[process.pid] = process.info["ppid"]
        if process.info["status"] != psutil.STATUS_ZOMBIE:
            living.append(process)
            if _carries(process, mark):
                family.add(process.pid)
    while family and (born := {pid for pid, parent in parents.items() if parent in family and pid not in family}):
        family |= born
    return [process for process in living if process.pid in family]


def _carries(process: psutil.Process, mark: str) -> bool:
    try:
        found = process.environ().get(MARK, "")
    except (psutil.Error, OSError):
        return False
    return found == mark or found.startswith(mark + "/")


def output(command: Sequence[str], seconds: float = ANSWER_SECONDS) -> str:
    """What a short command prints, including errors. It gets an empty directory, no environment, and a deadline."""
    with tempfile.TemporaryDirectory(prefix="autoresearch-") as name:
        directory = Path(name)
        run_group(
            command,
            directory=directory,
            environment={"PATH": os.defpath},
            log=directory / "log",
            deadline_seconds=seconds,
            mark=f"output:{directory}",
            poll=lambda elapsed: None,
        )
        return (directory / "log").read_text(errors="replace").strip()


def run_attached(
    command: Sequence[str],
    directory: Path,
    environment: Mapping[str, str],
    *,
    shielded: bool = False,
    to_stderr: bool = False,
) -> int:
    """Run a command on the user's own terminal and return its exit code.

    A `shielded` one does not receive the terminal's Ctrl-C: it continues until this program has to stop right away.
    With `to_stderr` it leaves standard input and output alone, for a program that talks to another one through them.
    """
    child: subprocess.Popen[bytes] | None = None
    try:
        with interrupt.held():
            child = subprocess.Popen(
                command,
                cwd=directory,
                env=dict(environment),
                stdin=subprocess.DEVNULL if to_stderr else None,
                stdout=STANDARD_ERROR if to_stderr else None,
                start_new_session=shielded and os.name == "posix",
            )
        return child.wait()
    finally:
        if child:
            child.kill()
            child.wait()


def detach(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command that outlives this program and its terminal, with its output in a log file."""
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=os.name == "posix",
            creationflags=getattr(subprocess, "DETACHED_PROCESS", 0),
        )
