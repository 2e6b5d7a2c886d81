"""A line of the ledger: an event as JSON, and back."""

from __future__ import annotations

import dataclasses
import json
import time

import msgspec

from autoresearch.ledger.events import (
    CampaignStarted,
    ChosenByHand,
    Confirmation,
    Event,
    FileSaved,
    GuidanceGiven,
    Ordered,
    ProposalRefused,
    RunEnded,
    RunStarted,
    Stopped,
    TrialDropped,
    TrialProposed,
    Verdict,
)

VERSION = 1
EVENTS: dict[str, type[Event]] = {
    "campaign": CampaignStarted,
    "proposed": TrialProposed,
    "refused": ProposalRefused,
    "guidance": GuidanceGiven,
    "run_started": RunStarted,
    "run_ended": RunEnded,
    "verdict": Verdict,
    "confirmation": Confirmation,
    "chosen": ChosenByHand,
    "ordered": Ordered,
    "dropped": TrialDropped,
    "file_saved": FileSaved,
    "stopped": Stopped,
}
NAMES = {event: name for name, event in EVENTS.items()}
TIME = b', "time": '  # where a line's head ends
RUN_STARTED = b'{"type": "run_started", '  # how a line begins that says nothing about a campaign
DECODERS: dict[bytes, msgspec.json.Decoder[Event]] = {
    f'{{"type": "{name}", "version": {VERSION}'.encode(): msgspec.json.Decoder(kind) for name, kind in EVENTS.items()
}


class UnreadableError(Exception):
    """A line that is no event of this version, and why."""


def encode(event: Event) -> bytes:
    """The event as a line without its end, with the time it is now."""
    head = {"type": NAMES[type(event)], "version": VERSION, "time": time.time()}
    return json.dumps(head | dataclasses.asdict(event)).encode()


def decode(line: bytes) -> Event:
    """The event of a line.

    Raises:
        UnreadableError: it is no event, or of another version.
    """
    if decoder := DECODERS.get(line[: line.find(TIME)]):
        try:
            return decoder.decode(line)
        except msgspec.DecodeError:
            pass  # it may contain NaN, which only Python's JSON has
    try:
        record = json.loads(line)
        if record["version"] != VERSION:
            raise UnreadableError("written by another version of autoresearch")
        return msgspec.convert(record, EVENTS[record["type"]])
    except (ValueError, KeyError, TypeError, AttributeError, msgspec.ValidationError) as error:
        raise UnreadableError(str(error)) from error


def is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
