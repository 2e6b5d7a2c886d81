"""What a judge is: the part that decides from numbers alone."""

from __future__ import annotations

from typing import Protocol

from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import Confirmation
from autoresearch.ledger.records import Decision, Wanted


class Judge(Protocol):
    """Decides from numbers alone: the same campaign gives the same decision."""

    name: str

    def decide(self, campaign: Campaign, candidate: Trial) -> Decision:
        """The decision on a trial that ran on the campaign's incumbent. Without one it is the baseline."""
        ...

    def confirmation(self, campaign: Campaign, *, asked: bool) -> Wanted | Confirmation | None:
        """The next run, or the conclusion, of a confirmation that is due, running or asked for; otherwise None."""
        ...
