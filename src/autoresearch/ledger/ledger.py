"""The append-only record of a lab: one JSON object per line, fsynced. All else is a view of it."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from autoresearch.base import atomic
from autoresearch.base.errors import UserError
from autoresearch.ledger import lines
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import (
    CampaignStarted,
    ChosenByHand,
    Confirmation,
    Event,
    GuidanceGiven,
    Ordered,
    ProposalRefused,
    RunEnded,
    TrialDropped,
    TrialProposed,
    Verdict,
)
from autoresearch.ledger.records import Status

BUFFER = 2**20  # bytes that are read at a time
REMEMBERED = 512  # bytes at the end of what was read, by which a changed file is told
CONTROL = "noop"  # the researcher of `aa`, whose campaigns are not searches


@dataclass(frozen=True)
class Mark:
    """How far a ledger was read: which file, how many bytes and lines of it, and the last bytes of those."""

    inode: int = 0
    read: int = 0
    lines: int = 0
    end: bytes = b""


class Ledger:
    """Reads and appends events. One writer at a time: the loop holds the lab's lock while it appends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()  # a researcher's thread reads too
        self._seen: tuple[int, int, int] | None = None  # the file's state when all of it was read
        self._start_over()

    def append(self, event: Event) -> None:
        """Write one event and force it to the disk before returning.

        Raises:
            UserError: the ledger was there and is gone, or is a directory.
        """
        line = lines.encode(event)
        is_new = not self._is_there()
        atomic.make_directory(self.path.parent)
        with self.path.open("ab") as file:
            file.write(line + b"\n")
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
            if lines.is_json(torn):
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
        every = self._lines()
        garbled = [(number, line) for number, line in enumerate(every, start=1) if line and not is_readable(line)]
        if garbled:
            with self.damaged.open("ab") as file:
                file.writelines(line + b"\n" for _, line in garbled)
                file.flush()
                os.fsync(file.fileno())
            gone = {number for number, _ in garbled}
            atomic.write(
                self.path, b"\n".join(line for number, line in enumerate(every, start=1) if number not in gone)
            )
        return garbled

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().split(b"\n") if self._is_there() else []

    def _is_there(self) -> bool:
        if self.path.is_dir():
            raise UserError(f"{self.path} is a directory, but should be the lab's ledger: move it away or restore it")
        if self.path.exists():
            return True
        if self._mark.read:
            raise UserError(f"{self.path} is gone, with what it recorded: restore it, then run this again")
        return False

    def times(self) -> dict[int, float]:
        """When each trial was proposed, in seconds since 1970."""
        records = (json.loads(line) for line in self._lines() if is_readable(line))
        return {each["trial"]: float(each["time"]) for each in records if each["type"] == lines.NAMES[TrialProposed]}

    def events(self) -> Iterator[Event]:
        """Every event, oldest first. Skips a torn last line.

        Raises:
            UserError: a line before the last cannot be read.
        """
        if self._is_there():
            with self.path.open("rb") as file:
                yield from self._events(file, 1)

    def _events(self, file: BinaryIO, number: int) -> Iterator[Event]:
        """The events of the rest of a file, whose next line has that number."""
        for at, line in enumerate(whole_lines(file), start=number):
            if event := self._read(line, at):
                yield event

    def _read(self, line: bytes, number: int) -> Event | None:
        """The event of a line; None if the line is empty."""
        try:
            return None if line.isspace() else lines.decode(line)
        except lines.UnreadableError as error:
            raise UserError(
                f"cannot read line {number} of {self.path} ({error}): restore the file from a backup, or run "
                "`autoresearch doctor --repair`, which says what is lost and moves such lines aside"
            ) from error

    def campaigns(self) -> tuple[Campaign, ...]:
        """The events gathered into campaigns and their trials, oldest first. Reads only what is new since last time."""
        with self._lock:
            self._catch_up()
            return self._gathered.campaigns()

    @property
    def mark(self) -> Mark:
        """How far it was read."""
        return self._mark

    def since(self, mark: Mark) -> list[Event] | None:
        """The events after a mark; None if there are very many, or this is not the file that was read then.

        Raises:
            UserError: a line cannot be read.
        """
        if not self._is_there():
            return None
        with self.path.open("rb") as file:
            if not _continues(file, mark) or os.fstat(file.fileno()).st_size > mark.read + BUFFER:
                return None
            return list(self._events(file, mark.lines + 1))

    def _start_over(self) -> None:
        self._gathered, self._mark, self._seen = Gathered(), Mark(), None

    def _catch_up(self) -> None:
        """Take the events that were appended. Starts over if the file is another one, or not what it was."""
        if self._seen is not None and _state_of(self.path) == self._seen:
            return
        if not self._is_there():
            self._start_over()
            return
        state = _state_of(self.path)
        with self.path.open("rb", BUFFER) as file, contextlib.ExitStack() as stack:
            if not _continues(file, self._mark):
                self._start_over()
                file.seek(0)
            if os.fstat(file.fileno()).st_size > self._mark.read + BUFFER:
                stack.enter_context(without_collecting())
            read, number = self._mark.read, self._mark.lines
            try:
                for line in whole_lines(file):
                    if not line.startswith(lines.RUN_STARTED) and (event := self._read(line, number + 1)):
                        self._gathered.add(event)
                    read += len(line)
                    number += line.endswith(b"\n")
            finally:
                file.seek(max(read - REMEMBERED, 0))
                self._mark = Mark(os.fstat(file.fileno()).st_ino, read, number, file.read(min(read, REMEMBERED)))
        self._seen = state

    def campaign(self, tag: str | None = None) -> Campaign | None:
        """The campaign with that tag, or the latest search; None if there is none."""
        every = self.campaigns()
        found = [each for each in every if (each.started.researcher != CONTROL if tag is None else each.tag == tag)]
        return found[-1] if found else None

    def trial(self, number: int) -> Trial | None:
        """The trial with that number, in any campaign; None if there is none."""
        with self._lock:
            self._catch_up()
            return self._gathered.trials.get(number)

    def next_trial(self) -> int:
        """The number of the next trial. Numbers continue across all campaigns."""
        with self._lock:
            self._catch_up()
            return max(self._gathered.trials, default=-1) + 1


def _state_of(path: Path) -> tuple[int, int, int] | None:
    """Tells a file from what it was before, without opening it, since it is asked for again and again."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _continues(file: BinaryIO, mark: Mark) -> bool:
    """Whether a file is the one that was read up to a mark. Then it is at that place."""
    file.seek(max(mark.read - len(mark.end), 0))
    return os.fstat(file.fileno()).st_ino == mark.inode and file.read(len(mark.end)) == mark.end


class Gathered:
    """Events folded into campaigns, one after the other. A run that started and never ended leaves no trace."""

    def __init__(self) -> None:
        self._started: dict[str, CampaignStarted] = {}
        self.trials: dict[int, Trial] = {}
        self._by_tag: dict[str, dict[int, Trial]] = {}  # the same trials, by campaign
        self._refused: dict[str, list[ProposalRefused]] = {}
        self._guidance: dict[str, str] = {}
        self._confirmations: dict[str, list[Confirmation]] = {}
        self._chosen: dict[str, list[ChosenByHand]] = {}
        self._orders: dict[str, list[Ordered]] = {}
        self._made: dict[str, Campaign] = {}  # campaigns as they were last asked for, unless something changed since

    def add(self, event: Event) -> None:
        """Take the next event."""
        match event:
            case RunEnded() | Verdict() | TrialDropped():
                if trial := self.trials.get(event.trial):  # its own line may have been set aside
                    self._set(event.trial, after(trial, event))
            case TrialProposed():
                self._set(event.trial, Trial(event))
            case CampaignStarted():
                self._started[event.tag] = event
                self._changed(event.tag)
            case ProposalRefused():
                self._refused.setdefault(event.tag, []).append(event)
                self._changed(event.tag)
            case GuidanceGiven():
                self._guidance[event.tag] = event.text
                self._changed(event.tag)
            case Confirmation():
                self._confirmations.setdefault(event.tag, []).append(event)
                self._changed(event.tag)
            case ChosenByHand():
                self._chosen.setdefault(event.tag, []).append(event)
                self._changed(event.tag)
            case Ordered():
                self._orders.setdefault(event.tag, []).append(event)
                self._changed(event.tag)
            case _:
                pass

    def campaigns(self) -> tuple[Campaign, ...]:
        """The campaigns so far, oldest first."""
        return tuple(self._made.get(tag) or self._make(tag) for tag in self._started)

    def _set(self, number: int, trial: Trial) -> None:
        tag = trial.proposed.tag
        self.trials[number] = self._by_tag.setdefault(tag, {})[number] = trial
        self._changed(tag)

    def _changed(self, tag: str) -> None:
        self._made.pop(tag, None)

    def _make(self, tag: str) -> Campaign:
        made = self._made[tag] = Campaign(
            self._started[tag],
            trials=tuple(self._by_tag.get(tag, {}).values()),
            refused=tuple(self._refused.get(tag, ())),
            guidance=self._guidance.get(tag, ""),
            confirmations=tuple(self._confirmations.get(tag, ())),
            chosen=tuple(self._chosen.get(tag, ())),
            orders=tuple(self._orders.get(tag, ())),
        )
        return made


def after(trial: Trial, event: RunEnded | Verdict | TrialDropped) -> Trial:
    """A trial after what happened to it."""
    match event:
        case RunEnded():
            return trial.having(event)
        case Verdict():
            return Trial(trial.proposed, trial.runs, event, trial.disturbed)
        case TrialDropped():
            dropped = Verdict(event.trial, Status.INVALID, event.reason, None, None, "")
            return Trial(trial.proposed, (), dropped, trial.disturbed)


def whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines with their ends, without a last one that is torn, or being written."""
    for line in file:
        if not line.endswith(b"\n") and not lines.is_json(line):
            return  # what is read after it would be the rest of this line, written meanwhile
        yield line


def is_readable(line: bytes) -> bool:
    try:
        lines.decode(line)
        return True
    except lines.UnreadableError:
        return False


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Hold Python's garbage collector: it would look through a growing heap of records again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what was read stays: it need not be looked through either
        if was:
            gc.enable()
