"""Carries out a run as a process group on this machine."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from autoresearch import process
from autoresearch.errors import NoInterpreterError
from autoresearch.interfaces import Progress
from autoresearch.records import RunEvent, RunRequest, RunResult
from autoresearch.trial import CURVE, ENTRY, LOG, RunWatch, run_environment, tail

TAIL_BYTES = 16_384
CURVE_SECONDS = 0.5


class LocalExecutor:
    """Lays a commit's files into a scratch directory, runs `train.py` there, and removes the directory.

    What a run leaves (log, curve, events, checkpoint) goes to `<runs>/<run_id>/`. `namespace` marks this lab's
    processes, so that those which a killed program left behind are found again.
    """

    name = "local"
    sandbox = "none"

    def __init__(self, runs: Path, python: Path, environment: Mapping[str, str], namespace: str) -> None:
        self.runs = runs
        self.python = python
        self.environment = environment
        self.namespace = namespace

    def end_leftovers(self) -> int:
        """End what an earlier, killed program left running; returns the number of processes."""
        return process.end_marked(self.namespace)

    def run(self, request: RunRequest, progress: Progress) -> RunResult:
        """See `interfaces.Executor`.

        Raises:
            NoInterpreterError: the lab's Python is gone since the campaign was begun.
        """
        directory = self.runs / request.run_id
        shutil.rmtree(directory, ignore_errors=True)
        scratch = directory / "files"
        _write(request.files, scratch)
        watch = _Watcher(directory, progress)
        try:
            ended = process.run_group(
                [str(self.python), ENTRY],
                directory=scratch,
                environment=run_environment(self.environment, directory, request.seed),
                log=directory / LOG,
                deadline_seconds=request.deadline_seconds,
                mark=f"{self.namespace}/{request.run_id}",
                poll=watch,
            )
        except FileNotFoundError as error:
            raise NoInterpreterError(self.python) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return RunResult(
            exit_code=ended.exit_code,
            wall_seconds=ended.seconds,
            events=tuple(watch.seen),
            log_tail=tail(directory / LOG, TAIL_BYTES),
            log_path=str(directory / LOG),
            curve_path=str(directory / CURVE),
        )


class _Watcher:
    """Collects a run's events as they come, and passes them and the curve on."""

    def __init__(self, directory: Path, progress: Progress) -> None:
        self.watch = RunWatch(directory)
        self.progress = progress
        self.seen: list[RunEvent] = []
        self.curve_due = 0.0

    def __call__(self, at: float) -> None:
        for event in self.watch.events(at):
            self.seen.append(event)
            self.progress(event)
        if time.monotonic() >= self.curve_due:
            self.curve_due = time.monotonic() + CURVE_SECONDS
            point = self.watch.curve(at)
            if point:
                self.progress(point)


def _write(files: Mapping[str, bytes], directory: Path) -> None:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
