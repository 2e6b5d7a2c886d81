"""Where a campaign stands, in a few numbers. A copy on the disk spares reading and judging a long ledger again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from autoresearch import __version__
from autoresearch.base import atomic
from autoresearch.judging import claims, comparability
from autoresearch.judging.claims import Standing
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import CampaignStarted, Event, FileSaved, RunStarted, Stopped, TrialProposed
from autoresearch.ledger.ledger import Ledger, Mark
from autoresearch.ledger.records import Comparable, RunEvent, Status
from autoresearch.ledger.report import Report

RECENT = 3  # verdicts


@dataclass(frozen=True)
class Glimpse:
    """A trial by its idea. One without a status is under way."""

    trial: int
    idea: str
    status: Status | None = None


@dataclass(frozen=True)
class Overview:
    """Where a campaign stands. `tokens`, `usd` and `refused` are what its researcher spent, and what was not taken.

    `researcher` made the latest proposal. `paused` says who paused it, and why.
    """

    started: CampaignStarted
    report: Report
    standing: Standing | None
    comparable: Comparable | None
    tokens: int
    usd: float
    refused: int
    recent: tuple[Glimpse, ...]
    under_way: Glimpse | None
    researcher: str
    paused: str | None = None


def of(campaign: Campaign) -> Overview:
    """The overview of a campaign, without the holdout's scores.

    Raises:
        UserError: its runs are of several classes.
    """
    sealed = campaign.sealed
    under_way = next((trial for trial in campaign.trials if trial.verdict is None), None)
    return Overview(
        started=campaign.started,
        report=claims.summary(sealed),
        standing=claims.of(sealed),
        comparable=comparability.class_of(campaign),
        tokens=campaign.tokens,
        usd=campaign.usd,
        refused=len(campaign.refused),
        recent=tuple(_glimpse(campaign, trial) for trial in campaign.finished[-RECENT:]),
        under_way=_glimpse(campaign, under_way) if under_way else None,
        researcher=campaign.trials[-1].proposed.researcher if campaign.trials else campaign.started.researcher,
        paused=campaign.paused.words if campaign.paused else None,
    )


def _glimpse(campaign: Campaign, trial: Trial) -> Glimpse:
    return Glimpse(trial.number, trial.proposed.idea, campaign.status_of(trial))


# ---------------------------------------------------------------- the copy


@dataclass(frozen=True)
class _Copy:
    """An overview as of a mark in the ledger. `latest`: its campaign was the latest search then."""

    version: str
    mark: Mark
    latest: bool
    overview: Overview


def save(path: Path, ledger: Ledger, campaign: Campaign) -> Overview:
    """The overview of a campaign, of which a copy is put on the disk if that can be written."""
    made = of(campaign)
    copy = _Copy(__version__, ledger.mark, campaign is ledger.campaign(), made)
    with contextlib.suppress(OSError):
        atomic.write(path, msgspec.msgpack.encode(copy))
    return made


def read(path: Path, ledger: Ledger, tag: str | None) -> Overview | None:
    """The copy, if it is of the campaign with that tag (or the latest), and nothing that it tells has changed since."""
    try:
        copy = msgspec.msgpack.decode(path.read_bytes(), type=_Copy)
    except (OSError, msgspec.DecodeError):
        return None
    is_wanted = copy.latest if tag is None else copy.overview.started.tag == tag
    since = ledger.since(copy.mark) if is_wanted and copy.version == __version__ else None
    return None if since is None else _after(copy.overview, since)


def _after(overview: Overview, events: Iterable[Event]) -> Overview | None:
    """The overview after some events; None if they change more than what is under way."""
    for event in events:
        match event:
            case TrialProposed(tag=overview.started.tag):
                overview = replace(overview, under_way=Glimpse(event.trial, event.idea), researcher=event.researcher)
            case RunStarted() | FileSaved() | Stopped():
                pass
            case _:
                return None
    return overview


class Refresher:
    """Keeps the copy up to date while a loop works. It does so when a run has started: then there is time."""

    def __init__(self, path: Path, ledger: Ledger, tag: str) -> None:
        self._path, self._ledger, self._tag = path, ledger, tag
        self._size = 0

    def hear(self, event: RunEvent) -> None:
        """Take what a run reports."""
        if event.name == "load" and self._size != (size := self._ledger.path.stat().st_size):
            self._size = size
            if campaign := self._ledger.campaign(self._tag):
                save(self._path, self._ledger, campaign)
