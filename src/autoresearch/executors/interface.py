"""What an executor is: the part that carries out a run, on this machine or another."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

from autoresearch.ledger.records import RunEvent, RunRequest, RunResult

Progress = Callable[[RunEvent], None]
Serve = Callable[[socket.socket], None]


class Executor(Protocol):
    """Carries out one run, and returns when no process of it is left.

    `sandbox` names what confines a run; it is "none" if nothing does.
    """

    name: str
    sandbox: str

    def end_leftovers(self) -> int:
        """End what an earlier, killed program left running. Returns the number of processes."""
        ...

    def run(self, request: RunRequest, progress: Progress, serve: Serve) -> RunResult:
        """Run `train.py`. `progress` receives each event, each line of the curve and each `load`, and may raise
        `EndRun`.

        `serve` is called once, in a thread, with this side's end of the run's channel.
        """
        ...

    def busy_share(self, seconds: float) -> float:
        """The share of the processors that other programs use during the next seconds, from 0 to 1."""
        ...
