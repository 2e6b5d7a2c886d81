"""What a driver and its workers tell each other, as lines of JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from autoresearch.executors.interface import Equipment
from autoresearch.ledger.records import (
    Clock,
    Crash,
    Graded,
    Grading,
    Invalid,
    Load,
    RunEvent,
    RunRequest,
    RunResult,
    Scalar,
    Score,
    Worth,
)

PART = 60_000  # bytes that are sent at once: Ray sends up to 100,000 without its object store, which may be full
OUTCOMES: dict[str, type[Graded | Invalid | Crash]] = {"graded": Graded, "invalid": Invalid, "crash": Crash}


@dataclass(frozen=True)
class Plan:
    """What a worker has to know of a lab and its campaign. `versions` are the driver's own, which it compares with its
    own. `cores` are the processors that a run has, None for a run with a GPU. `share` of `shares` is the worker's slot
    on its machine. `python` runs the lab's files: a name on the PATH or a path there; None: the worker's own."""

    lab: str
    equipment: Equipment
    versions: dict[str, str]
    python: str | None = None
    cores: int | None = None
    share: int = 0
    shares: int = 1


@dataclass(frozen=True)
class Found:
    """What a worker found of its machine: its device and sandbox, what identifies the text of its data, or why it
    cannot be used, in a few words."""

    machine: str
    device: str = ""
    sandbox: str = ""
    data: dict[str, str] = field(default_factory=dict)
    problem: str | None = None


# What a worker tells of a run. Each is one line.


@dataclass(frozen=True)
class Event:
    """A run's event, or a sample of its load."""

    name: str
    at: float
    values: dict[str, Scalar]


@dataclass(frozen=True)
class Written:
    """More of a file that a run writes."""

    file: str
    content: bytes


@dataclass(frozen=True)
class Scored:
    """It has a score. The worker waits to hear what that makes worth having."""

    score: Score


@dataclass(frozen=True)
class Ended:
    """It has ended: its result, and the outcome of its grading by name."""

    exit_code: int | None
    wall_seconds: float
    events: tuple[Event, ...]
    log_tail: str
    tampered: tuple[str, ...]
    ended: str
    steps: int
    load: tuple[Load, ...]
    outcome: str
    what: dict[str, Any]
    clock: Clock
    environment: dict[str, Scalar]
    answers: bytes | None
    model: int | None  # bytes of the model that it left


@dataclass(frozen=True)
class Failed:
    """It could not be carried out or graded there, and why. It is nothing that the run did."""

    why: str


Told = Event | Written | Scored | Ended | Failed
KINDS: dict[str, type[Told]] = {
    "event": Event,
    "written": Written,
    "scored": Scored,
    "ended": Ended,
    "failed": Failed,
}
NAMES = {kind: name for name, kind in KINDS.items()}


def line(told: Told) -> bytes:
    return _json([NAMES[type(told)], told]) + b"\n"


def told(text: bytes) -> Told:
    """The other way round.

    Raises:
        ValueError: it is no such line.
    """
    try:
        name, rest = msgspec.json.decode(text, type=tuple[str, msgspec.Raw])
        return msgspec.json.decode(rest, type=KINDS[name])
    except (msgspec.DecodeError, KeyError) as error:
        raise ValueError(f"a worker says what no worker of this version says: {text[:60]!r}") from error


class Lines:
    """Puts lines together that arrive in parts."""

    def __init__(self) -> None:
        self._rest = b""

    def __call__(self, part: bytes) -> Iterator[Told]:
        *whole, self._rest = (self._rest + part).split(b"\n")
        return map(told, whole)


def event(told: RunEvent) -> Event:
    return Event(told.name, told.at, dict(told.values))


def run_event(told: Event) -> RunEvent:
    return RunEvent(told.name, told.at, told.values)


def ended(result: RunResult, model: int | None) -> Ended:
    """A result as it is told. Its paths are the worker's own, and are left out. `model` is the size of its model."""
    grading = result.grading
    assert grading is not None, "an executor grades what it runs"
    return Ended(
        exit_code=result.exit_code,
        wall_seconds=result.wall_seconds,
        events=tuple(map(event, result.events)),
        log_tail=result.log_tail,
        tampered=result.tampered,
        ended=result.ended,
        steps=result.steps,
        load=result.load,
        outcome=next(name for name, kind in OUTCOMES.items() if isinstance(grading.outcome, kind)),
        what=msgspec.to_builtins(grading.outcome, enc_hook=dict),
        clock=grading.clock,
        environment=dict(grading.environment),
        answers=grading.answers,
        model=model,
    )


def result(told: Ended, log: str, curve: str) -> RunResult:
    """The result that was told, with the paths of the driver's copies."""
    outcome = msgspec.convert(told.what, OUTCOMES[told.outcome])
    grading = Grading(outcome, told.clock, told.environment, told.answers)
    return RunResult(
        exit_code=told.exit_code,
        wall_seconds=told.wall_seconds,
        events=tuple(map(run_event, told.events)),
        log_tail=told.log_tail,
        log_path=log,
        curve_path=curve,
        tampered=told.tampered,
        ended=told.ended,
        steps=told.steps,
        load=told.load,
        grading=grading,
    )


def parts(text: bytes) -> list[bytes]:
    return [text[at : at + PART] for at in range(0, len(text), PART)]


def packed(each: RunRequest | Plan | Found | Worth) -> bytes:
    return _json(each)


def _json(each: object) -> bytes:
    return msgspec.json.encode(each, enc_hook=dict)  # a read-only mapping is written like any other


def request(text: bytes) -> RunRequest:
    return msgspec.json.decode(text, type=RunRequest)


def plan(text: bytes) -> Plan:
    return msgspec.json.decode(text, type=Plan)


def found(text: bytes) -> Found:
    return msgspec.json.decode(text, type=Found)


def worth(text: bytes) -> Worth:
    return msgspec.json.decode(text, type=Worth)
