"""Runs and examinations side by side: each in a thread of its own, on its own part of the machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType

from autoresearch.base.errors import EndRun
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.records import Place, Purpose, RunEvent, Wanted
from autoresearch.loop.parts.stages import Stages
from autoresearch.loop.run import run_once
from autoresearch.loop.trial import examined


class Grounded(Exception):
    """Ends a run whose loop is being stopped: it is not recorded, and made again when the loop continues."""


@dataclass
class Flight:
    """A run that was started: of which trial, what for, on which seed, and where. One without a seed is an examination
    of the trial's model."""

    trial: int
    purpose: Purpose
    seed: int | None
    place: Place
    error: BaseException | None = None
    thread: threading.Thread = field(default_factory=threading.Thread)


class Slots:
    """The runs in flight. On leaving, the runs that are still in flight are ended.

    `examined` says of each trial whose model was examined once more what is wrong with it; None if nothing is.
    """

    def __init__(self, stages: Stages) -> None:
        self._stopped: dict[int, str] = {}  # trials whose runs are stopped by hand, and why
        self._stages = replace(stages, progress=self._hear, stopped=self._stopped.get)
        self._tell = stages.progress
        self._places = stages.places()
        self._flights: list[Flight] = []
        self._numbers: dict[int, int] = {}  # the next run's of each trial
        self._lock = threading.Lock()
        self._news, self._over = threading.Event(), threading.Event()
        self.examined: dict[int, str | None] = {}

    def __enter__(self) -> Slots:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._flights:
            self._stages.executor.end_leftovers()
        for flight in self._flights:
            flight.thread.join()

    @property
    def free(self) -> int:
        """How many more runs can start now."""
        return len(self._free())

    @property
    def flights(self) -> Sequence[Flight]:
        return self._flights

    @property
    def wanted(self) -> list[Wanted]:
        """What is in flight for a confirmation."""
        return [Wanted(each.trial, each.seed or 0) for each in self._flights if each.purpose is Purpose.CONFIRM]

    def of(self, trial: Trial) -> list[Flight]:
        """The flights that are to decide a trial."""
        return [each for each in self._flights if each.trial == trial.number and each.purpose is Purpose.TRIAL]

    def start(self, campaign: Campaign, trial: Trial, purpose: Purpose, seed: int) -> None:
        """Start a run in a free slot."""
        flight = Flight(trial.number, purpose, seed, self._free()[0])
        self._start(
            flight,
            lambda: run_once(self._stages, campaign, trial, purpose, seed, self._number, flight.place),
        )

    def stop(self, trial: int, why: str) -> bool:
        """End the runs that are to decide a trial. Whether there is one."""
        flying = any(each.trial == trial and each.purpose is Purpose.TRIAL and each.seed for each in self._flights)
        if flying:
            self._stopped[trial] = why
        return flying

    def examine(self, trial: Trial) -> None:
        """Start the examination of a trial's model in a free slot, as it needs one's share of the machine."""

        def work() -> None:
            self.examined[trial.number] = examined(self._stages, trial, self._check)

        self._start(Flight(trial.number, Purpose.TRIAL, None, self._free()[0]), work)

    def _start(self, flight: Flight, work: Callable[[], object]) -> None:
        flight.thread = threading.Thread(target=self._fly, args=(flight, work), name="run", daemon=True)
        self._flights.append(flight)
        flight.thread.start()

    def land(self) -> bool:
        """Free the slots of the runs that have ended. Whether there was one. Raises what went wrong in it."""
        landed = [each for each in self._flights if not each.thread.is_alive()]
        for flight in landed:
            self._flights.remove(flight)
        for flight in landed:
            if flight.error is not None:
                raise flight.error
        return bool(landed)

    def _free(self) -> list[Place]:
        free = list(self._places)
        for flight in self._flights:
            if flight.place in free:  # otherwise its machine is gone
                free.remove(flight.place)
        return free

    def wait(self, seconds: float) -> None:
        """Wait for a run to end, or for some seconds. Then see which places there are."""
        self._news.wait(seconds)
        self._news.clear()
        self._places = self._stages.places()

    def _fly(self, flight: Flight, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # raised again in the loop's own thread
            flight.error = error
        self._news.set()

    def _check(self) -> None:
        if self._over.is_set():
            raise Grounded

    def _hear(self, trial: int, event: RunEvent) -> None:
        self._check()
        self._tell(trial, event)
        if event.name == "load" and (why := self._stopped.get(trial)):
            raise EndRun(why)

    def _number(self, trial: Trial) -> int:
        """The number of a trial's next run, which no other has."""
        with self._lock:
            number = max(self._numbers.get(trial.number, 0), len(trial.every_run))
            self._numbers[trial.number] = number + 1
            return number
