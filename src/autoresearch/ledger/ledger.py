"""The append-only record of a lab: one JSON object per line, fsynced. All else is a view of it."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import threading
import time
import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path

from autoresearch.base import atomic
from autoresearch.base.errors import UserError
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import (
    CampaignStarted,
    Confirmation,
    Event,
    FileSaved,
    GuidanceGiven,
    ProposalRefused,
    RunEnded,
    RunStarted,
    Stopped,
    TrialDropped,
    TrialProposed,
    Verdict,
)
from autoresearch.ledger.records import Status

VERSION = 1
REMEMBERED = 256  # bytes at the end of what was read, by which a changed file is told
CONTROL = "noop"  # the researcher of `aa`, whose campaigns are not searches
EVENTS: dict[str, type[Event]] = {
    "campaign": CampaignStarted,
    "proposed": TrialProposed,
    "refused": ProposalRefused,
    "guidance": GuidanceGiven,
    "run_started": RunStarted,
    "run_ended": RunEnded,
    "verdict": Verdict,
    "confirmation": Confirmation,
    "dropped": TrialDropped,
    "file_saved": FileSaved,
    "stopped": Stopped,
}
NAMES = {event: name for name, event in EVENTS.items()}


class Ledger:
    """Reads and appends events. One writer at a time: the loop holds the lab's lock while it appends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()  # a researcher's thread reads too
        self._start_over()

    def append(self, event: Event) -> None:
        """Write one event and force it to the disk before returning."""
        fields = dataclasses.asdict(event)
        line = json.dumps({"type": NAMES[type(event)], "version": VERSION, "time": time.time(), **fields})
        is_new = not self.path.exists()
        atomic.make_directory(self.path.parent)
        with self.path.open("ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            atomic.sync_directory(self.path.parent)

    def repair(self) -> None:
        """Cut off a last line that a kill or a power cut left half-written. Nothing has acted on its event."""
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

    @property
    def damaged(self) -> Path:
        """Where lines go that cannot be read."""
        return self.path.with_name("ledger.damaged.jsonl")

    def set_aside_garbled(self) -> list[tuple[int, bytes]]:
        """Move lines that cannot be read to another file. Returns them with their numbers."""
        lines = self._lines()
        garbled = [(number, line) for number, line in enumerate(lines, start=1) if line and not self._is_readable(line)]
        if garbled:
            with self.damaged.open("ab") as file:
                file.writelines(line + b"\n" for _, line in garbled)
                file.flush()
                os.fsync(file.fileno())
            gone = {number for number, _ in garbled}
            atomic.write(
                self.path, b"\n".join(line for number, line in enumerate(lines, start=1) if number not in gone)
            )
        return garbled

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().split(b"\n") if self._is_there() else []

    def _is_there(self) -> bool:
        if self.path.is_dir():
            raise UserError(f"{self.path} is a directory, but should be the lab's ledger: move it away or restore it")
        return self.path.exists()

    def _is_readable(self, line: bytes) -> bool:
        try:
            self._read(line, 0)
            return True
        except UserError:
            return False

    def times(self) -> dict[int, float]:
        """When each trial was proposed, in seconds since 1970."""
        records = (json.loads(line) for line in self._lines() if self._is_readable(line))
        return {each["trial"]: float(each["time"]) for each in records if each["type"] == NAMES[TrialProposed]}

    def events(self) -> Iterator[Event]:
        """Every event, oldest first. Skips a torn last line.

        Raises:
            UserError: a line before the last cannot be read.
        """
        data = self.path.read_bytes() if self._is_there() else b""
        for number, line in enumerate(_whole_lines(data), start=1):
            if line:
                yield self._read(line, number)

    def _read(self, line: bytes, number: int) -> Event:
        try:
            return _decode(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"cannot read line {number} of {self.path} ({error}): restore the file from a backup, or run "
                "`autoresearch doctor --repair`, which says what is lost and moves such lines aside"
            ) from error

    def campaigns(self) -> tuple[Campaign, ...]:
        """The events gathered into campaigns and their trials, oldest first. Reads only what is new since last time."""
        with self._lock:
            self._catch_up()
            return self._gathered.campaigns()

    def _start_over(self) -> None:
        self._gathered, self._numbered = Gathered(), 0
        self._inode, self._read_bytes, self._end = 0, 0, b""

    def _catch_up(self) -> None:
        """Take the events that were appended. Starts over if the file is another one, or not what it was."""
        if not self._is_there():
            self._start_over()
            return
        with self.path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            file.seek(self._read_bytes - len(self._end))
            if inode != self._inode or file.read(len(self._end)) != self._end:
                self._start_over()
                file.seek(0)
            data = file.read()
        lines = _whole_lines(data)
        events = [self._read(line, self._numbered + number) for number, line in enumerate(lines, start=1) if line]
        for event in events:
            self._gathered.add(event)
        taken = b"\n".join(lines)
        self._inode, self._read_bytes = inode, self._read_bytes + len(taken)
        self._numbered += taken.count(b"\n")
        self._end = (self._end + taken)[-REMEMBERED:]

    def campaign(self, tag: str | None = None) -> Campaign | None:
        """The campaign with that tag, or the latest search; None if there is none."""
        every = self.campaigns()
        found = [each for each in every if (each.started.researcher != CONTROL if tag is None else each.tag == tag)]
        return found[-1] if found else None

    def trial(self, number: int) -> Trial | None:
        """The trial with that number, in any campaign; None if there is none."""
        trials = (trial for campaign in self.campaigns() for trial in campaign.trials)
        return next((trial for trial in trials if trial.number == number), None)

    def next_trial(self) -> int:
        """The number of the next trial. Numbers continue across all campaigns."""
        return sum(len(campaign.trials) for campaign in self.campaigns())


class Gathered:
    """Events folded into campaigns, one after the other. A run that started and never ended leaves no trace."""

    def __init__(self) -> None:
        self._started: dict[str, CampaignStarted] = {}
        self._trials: dict[int, Trial] = {}
        self._refused: dict[str, list[ProposalRefused]] = {}
        self._guidance: dict[str, str] = {}
        self._confirmations: dict[str, list[Confirmation]] = {}
        self._made: dict[str, Campaign] = {}  # campaigns as they were last asked for, unless something changed since

    def add(self, event: Event) -> None:
        """Take the next event."""
        match event:
            case CampaignStarted():
                self._started[event.tag] = event
                self._changed(event.tag)
            case TrialProposed():
                self._trials[event.trial] = Trial(event)
                self._changed(event.tag)
            case ProposalRefused():
                self._refused.setdefault(event.tag, []).append(event)
                self._changed(event.tag)
            case GuidanceGiven():
                self._guidance[event.tag] = event.text
                self._changed(event.tag)
            case RunEnded():
                self._replace(self._trials[event.trial].having(event))
            case Verdict():
                self._replace(dataclasses.replace(self._trials[event.trial], verdict=event))
            case TrialDropped():
                dropped = Verdict(event.trial, Status.INVALID, event.reason, None, None, "")
                self._replace(dataclasses.replace(self._trials[event.trial], runs=(), verdict=dropped))
            case Confirmation():
                self._confirmations.setdefault(event.tag, []).append(event)
                self._changed(event.tag)
            case _:
                pass

    def campaigns(self) -> tuple[Campaign, ...]:
        """The campaigns so far, oldest first."""
        return tuple(self._made.get(tag) or self._make(tag) for tag in self._started)

    def _replace(self, trial: Trial) -> None:
        self._trials[trial.number] = trial
        self._changed(trial.proposed.tag)

    def _changed(self, tag: str) -> None:
        self._made.pop(tag, None)

    def _make(self, tag: str) -> Campaign:
        made = self._made[tag] = Campaign(
            self._started[tag],
            trials=tuple(trial for trial in self._trials.values() if trial.proposed.tag == tag),
            refused=tuple(self._refused.get(tag, ())),
            guidance=self._guidance.get(tag, ""),
            confirmations=tuple(self._confirmations.get(tag, ())),
        )
        return made


def _whole_lines(data: bytes) -> list[bytes]:
    """The lines, without a last one that is torn; joined again they are the bytes before it."""
    *lines, last = data.split(b"\n")
    return [*lines, last if not last or _is_json(last) else b""]


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


# the ledger is read several times per trial, and type hints are slow to resolve
_hints = functools.cache(typing.get_type_hints)


def _build(kind: type, value: object) -> object:
    """Rebuild a dataclass from what `asdict` and JSON turned it into."""
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
