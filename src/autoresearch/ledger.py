"""The append-only record of a lab: one JSON object a line, fsynced; the only truth, of which all else is a view."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import time
import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path

from autoresearch.campaign import Campaign, Trial
from autoresearch.errors import UserError
from autoresearch.events import (
    CampaignStarted,
    Confirmation,
    Event,
    GuidanceGiven,
    ProposalRefused,
    RunEnded,
    RunStarted,
    Stopped,
    TrialProposed,
    Verdict,
)

VERSION = 1
CONTROL = "noop"  # the researcher of `aa`, whose campaigns are no search
EVENTS: dict[str, type[Event]] = {
    "campaign": CampaignStarted,
    "proposed": TrialProposed,
    "refused": ProposalRefused,
    "guidance": GuidanceGiven,
    "run_started": RunStarted,
    "run_ended": RunEnded,
    "verdict": Verdict,
    "confirmation": Confirmation,
    "stopped": Stopped,
}
NAMES = {event: name for name, event in EVENTS.items()}


class Ledger:
    """Reads and appends events. One writer at a time: the loop holds the lab's lock while it appends."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: Event) -> None:
        """Write one event and force it to the disk before returning."""
        fields = dataclasses.asdict(event)
        line = json.dumps({"type": NAMES[type(event)], "version": VERSION, "time": time.time(), **fields})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def mend(self) -> None:
        """Cut off a last line that a kill or a power cut left half-written: its event was never acted upon."""
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        if not data or data.endswith(b"\n"):
            return
        whole, torn = data[: data.rfind(b"\n") + 1], data[data.rfind(b"\n") + 1 :]
        with self.path.open("r+b") as file:
            if _is_json(torn):
                file.seek(0, os.SEEK_END)
                file.write(b"\n")
            else:
                file.truncate(len(whole))
            file.flush()
            os.fsync(file.fileno())

    def events(self) -> Iterator[Event]:
        """Every event, oldest first; a torn last line is passed over.

        Raises:
            UserError: a line within the file cannot be read.
        """
        lines = self.path.read_bytes().split(b"\n") if self.path.exists() else []
        for number, line in enumerate(lines, start=1):
            torn = number == len(lines) and not _is_json(line)
            if line and not torn:
                yield self._read(line, number)

    def _read(self, line: bytes, number: int) -> Event:
        try:
            return _decode(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"line {number} of {self.path} cannot be read ({error}): restore the file from a backup, "
                f"or move all of {self.path.parent} away and start a new campaign with `autoresearch run --tag NAME`"
            ) from error

    def campaigns(self) -> tuple[Campaign, ...]:
        """The events gathered into campaigns and their trials, oldest first."""
        return gather(self.events())

    def campaign(self, tag: str | None = None) -> Campaign | None:
        """The campaign of that tag, or the latest search; None where there is none."""
        every = self.campaigns()
        found = [each for each in every if (each.started.researcher != CONTROL if tag is None else each.tag == tag)]
        return found[-1] if found else None

    def trial(self, number: int) -> Trial | None:
        """The trial of that number, in whichever campaign; None where there is none."""
        trials = (trial for campaign in self.campaigns() for trial in campaign.trials)
        return next((trial for trial in trials if trial.number == number), None)

    def next_trial(self) -> int:
        """The number of the next trial: they run on through all campaigns."""
        return sum(len(campaign.trials) for campaign in self.campaigns())


def gather(events: Iterator[Event]) -> tuple[Campaign, ...]:
    """Fold events into campaigns; a run that was started and never ended leaves no mark on its trial."""
    started: dict[str, CampaignStarted] = {}
    trials: dict[int, Trial] = {}
    refused: list[ProposalRefused] = []
    guidance: dict[str, str] = {}
    confirmations: list[Confirmation] = []
    for event in events:
        match event:
            case CampaignStarted():
                started[event.tag] = event
            case TrialProposed():
                trials[event.trial] = Trial(event)
            case ProposalRefused():
                refused.append(event)
            case GuidanceGiven():
                guidance[event.tag] = event.text
            case RunEnded():
                trial = trials[event.trial]
                trials[event.trial] = dataclasses.replace(trial, runs=(*trial.runs, event))
            case Verdict():
                trials[event.trial] = dataclasses.replace(trials[event.trial], verdict=event)
            case Confirmation():
                confirmations.append(event)
            case _:
                pass
    return tuple(
        Campaign(
            start,
            trials=tuple(trial for trial in trials.values() if trial.proposed.tag == tag),
            refused=tuple(event for event in refused if event.tag == tag),
            guidance=guidance.get(tag, ""),
            confirmations=tuple(event for event in confirmations if event.tag == tag),
        )
        for tag, start in started.items()
    )


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _decode(record: dict[str, object]) -> Event:
    if record.pop("version") != VERSION:
        raise ValueError("written by another version of autoresearch")
    record.pop("time")
    event = _build(EVENTS[str(record.pop("type"))], record)
    return typing.cast(Event, event)


_hints = functools.cache(typing.get_type_hints)  # the ledger is read several times a trial, and hints are slow


def _build(kind: type, value: object) -> object:
    """Rebuild a dataclass from what `asdict` and JSON made of it."""
    hints = _hints(kind)
    fields = typing.cast(dict[str, object], value)
    return kind(**{name: _restore(hints[name], item) for name, item in fields.items()})


def _restore(hint: object, value: object) -> object:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next((kind for kind in typing.get_args(hint) if dataclasses.is_dataclass(kind)), hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _build(hint, value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(value)
    if typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        return tuple(_restore(kind, item) for item in typing.cast(list[object], value))
    if typing.get_origin(hint) is Mapping:
        return dict(typing.cast(dict[str, object], value))
    return value
