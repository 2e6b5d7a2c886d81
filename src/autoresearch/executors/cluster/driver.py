"""The driver's side of a run in a Ray cluster: sends it to a worker, and writes down what it is told."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from autoresearch.base.errors import EndRun
from autoresearch.executors.cluster import wire
from autoresearch.executors.cluster.pool import LOST, CannotError, Pool, Slot
from autoresearch.executors.cluster.worker import FILES
from autoresearch.executors.interface import Progress, Weigh
from autoresearch.executors.sandbox import load
from autoresearch.grading.protocol import CHECKPOINT, CURVE, LOG
from autoresearch.ledger.records import (
    Clock,
    Crash,
    CrashKind,
    Grading,
    Place,
    RunRequest,
    RunResult,
)

SILENCE_SECONDS = 120.0  # after which a worker that says nothing is given up
ASIDE_SECONDS = 0.5  # between two looks for a free slot
AHEAD = 8  # parts of a model that are asked for at once
STOPPED = "its loop was stopped"


class RayExecutor:
    """Sends each run to a slot of the cluster, and writes what is told of it into the same files as on this machine."""

    name = "ray"

    def __init__(self, pool: Pool, runs: Path) -> None:
        self._pool, self._runs = pool, runs
        self.grader = pool.grader
        self._flying: set[Slot] = set()
        self._lock = threading.Lock()

    @property
    def sandbox(self) -> str:
        return self._pool.sandbox

    def end_leftovers(self) -> int:
        """End the runs in flight. Those of a driver that was killed have ended with it. See `interface.Executor`."""
        with self._lock:
            flying = list(self._flying)
        for slot in flying:
            with contextlib.suppress(*LOST):
                ray.get(slot.worker.stop.remote(STOPPED), timeout=load.SAMPLE_SECONDS * 5)
        return len(flying)

    def close(self) -> None:
        """End the workers, so that others can use their machines. See `interface.Executor`."""
        self._pool.close()

    def busy_share(self, seconds: float) -> float:
        """It is not known what else the machines do before a run is there. See `interface.Executor`."""
        time.sleep(seconds)
        return 0.0

    def run(self, request: RunRequest, progress: Progress, weigh: Weigh) -> RunResult:
        """See `interface.Executor`. If the machine is lost, the result says so.

        Raises:
            UserError: no machine is left that could carry it out.
        """
        directory = self._runs / request.run_id
        shutil.rmtree(directory, ignore_errors=True)
        self._runs.mkdir(exist_ok=True)  # not its parents: a lab that was deleted is not made again
        directory.mkdir(parents=True)
        began = time.monotonic()
        with self._slot(request.place) as slot:
            if slot is None:
                return lost("its machine was lost before it began", directory, began)
            try:
                result = Flight(slot, request, directory, progress, weigh).result()
            except LOST as error:
                return lost(self._pool.lost(slot, error), directory, began)
        self._pool.landed(slot)
        return result

    @contextlib.contextmanager
    def _slot(self, place: Place) -> Iterator[Slot | None]:
        """The slot of a place, or any free one if none is named; None if it is gone."""
        while True:
            with self._lock:
                slot = self._pool.slot(place) if place.node else self._pool.any(self._flying)
                if slot:
                    self._flying.add(slot)
            if slot or place.node:
                break
            time.sleep(ASIDE_SECONDS)
        try:
            yield slot
        finally:
            with self._lock:
                self._flying -= {slot}


@dataclass
class Flight:
    """One run on a worker, from sending it to having its result and its files."""

    slot: Slot
    request: RunRequest
    directory: Path
    progress: Progress
    weigh: Weigh
    wants_model: bool = False
    is_stopped: bool = False

    def result(self) -> RunResult:
        """Raises one of `LOST` if the worker is gone or cannot do it, and what `progress` and `weigh` raise."""
        worker = self.slot.worker
        ran = worker.run.remote(*wire.parts(wire.packed(self.request)))
        try:
            ended = self._followed(ran)
        except BaseException:
            worker.stop.remote(STOPPED)  # nobody waits for it any more
            raise
        if ended.model is not None and self.wants_model:
            self._fetch(ended.model)
        worker.clear.remote(self.request.run_id)
        ended.environment["machine"] = self.slot.name
        return wire.result(ended, str(self.directory / LOG), str(self.directory / CURVE))

    def _followed(self, ran: Any) -> wire.Ended:
        """Take in what the worker tells of the run until it has ended."""
        lines, heard = wire.Lines(), time.monotonic()
        while True:
            part = ray.get(self.slot.worker.news.remote(), timeout=SILENCE_SECONDS)
            if part:
                heard = time.monotonic()
            elif time.monotonic() - heard > SILENCE_SECONDS:
                raise TimeoutError(f"it has told nothing for {SILENCE_SECONDS:.0f} s")
            for told in lines(part):
                if isinstance(told, wire.Ended):
                    ray.get(ran)
                    return told
                self._take_in(told)

    def _take_in(self, told: wire.Told) -> None:
        match told:
            case wire.Event() if not self.is_stopped:
                try:
                    self.progress(wire.run_event(told))
                except EndRun as end:
                    self.is_stopped = True
                    self.slot.worker.stop.remote(str(end))
            case wire.Written(file, content) if file in FILES:
                with (self.directory / file).open("ab") as copy:
                    copy.write(content)
            case wire.Scored(score):
                worth = self.weigh(score)
                self.wants_model = worth.model
                self.slot.worker.value.remote(wire.packed(worth))
            case wire.Failed(why):
                raise CannotError(why)

    def _fetch(self, size: int) -> None:
        """Copy the model that the run left, part by part."""
        model = self.slot.worker.model
        with (self.directory / CHECKPOINT).open("wb") as copy:
            for first in range(0, size, wire.PART * AHEAD):
                offsets = range(first, min(size, first + wire.PART * AHEAD), wire.PART)
                asked = [model.remote(self.request.run_id, offset) for offset in offsets]
                copy.write(b"".join(ray.get(asked, timeout=SILENCE_SECONDS)))
            if copy.tell() != size:
                raise CannotError(f"of its model only {copy.tell():,} of {size:,} bytes are there")


def lost(why: str, directory: Path, began: float) -> RunResult:
    """What there is to say of a run whose machine was lost."""
    return RunResult(
        exit_code=None,
        wall_seconds=time.monotonic() - began,
        events=(),
        log_tail="",
        log_path=str(directory / LOG),
        curve_path=str(directory / CURVE),
        grading=Grading(Crash(CrashKind.NO_SCORE, why), Clock(), {}),
        lost=why,
    )
