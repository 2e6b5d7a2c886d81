"""Starts a command as a process group of its own, holds it to a deadline, and leaves nothing of it behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "AUTORESEARCH_RUN"
POLL_SECONDS = 0.05
GRACE_SECONDS = 5.0
STANDARD_ERROR = 2  # the file that a child inherits under this number, whatever Python's own stderr is


@dataclass(frozen=True)
class Ended:
    """How a command ended; `exit_code` is None where the deadline ended it, negative where a signal did."""

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
) -> Ended:
    """Run a command with its output in a log file, until it ends or its deadline does; it reads the file `stdin`.

    `poll` is called about twenty times a second with the seconds since the start. Every process that the command
    leaves is ended, those too that left its group: they carry `mark` in their environment.

    Raises:
        FileNotFoundError: there is no such program.
    """
    start = time.monotonic()
    with log.open("wb") as output, (stdin or Path(os.devnull)).open("rb") as source:
        child = subprocess.Popen(
            command,
            cwd=directory,
            env={**environment, MARK: mark},
            stdin=source,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=os.name == "posix",
        )
    try:
        code = _wait(child, start, deadline_seconds, poll)
    finally:
        end_marked(mark, child.pid)
        child.wait()
    poll(time.monotonic() - start)
    return Ended(code, time.monotonic() - start)


def _wait(child: subprocess.Popen[bytes], start: float, deadline: float, poll: Callable[[float], None]) -> int | None:
    while (elapsed := time.monotonic() - start) < deadline:
        poll(elapsed)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(POLL_SECONDS)
    return None


def end_marked(mark: str, group: int | None = None) -> int:
    """End every process that carries a mark (or one beginning with it and a slash), and the group of a child.

    TERM first, five seconds later KILL, again and again for what is forked meanwhile. Returns how many there were.
    """
    found = _marked(mark)
    if found or (group and psutil.pid_exists(group)):
        _signal_group(group, signal.SIGTERM)
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        psutil.wait_procs(found, timeout=GRACE_SECONDS)
    if os.name == "posix":
        _signal_group(group, signal.SIGKILL)
    until = time.monotonic() + GRACE_SECONDS
    while (left := _marked(mark)) and time.monotonic() < until:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=0.2)
    return len(found)


def _signal_group(group: int | None, signal_number: int) -> None:
    if group is None or os.name != "posix":
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal_number)


def _marked(mark: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if _carries(process, mark)]


def _carries(process: psutil.Process, mark: str) -> bool:
    try:
        found = process.environ().get(MARK, "")
    except (psutil.Error, OSError):
        return False
    alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return alive and (found == mark or found.startswith(mark + "/"))


def run_attached(
    command: Sequence[str],
    directory: Path,
    environment: Mapping[str, str],
    *,
    shielded: bool = False,
    to_stderr: bool = False,
) -> int:
    """Run a command on the person's own terminal and return its exit code.

    A `shielded` one does not hear the terminal's Ctrl-C: it goes on until this program is made to stop at once.
    With `to_stderr` it leaves standard input and output alone, for a program that speaks to another by them.
    """
    done = subprocess.run(
        command,
        cwd=directory,
        env=dict(environment),
        stdin=subprocess.DEVNULL if to_stderr else None,
        stdout=STANDARD_ERROR if to_stderr else None,
        start_new_session=shielded and os.name == "posix",
    )
    return done.returncode
