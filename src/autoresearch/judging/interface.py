"""What a judge is: the part that decides from numbers alone."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import Confirmation
from autoresearch.ledger.records import Decision, Wanted


class Judge(Protocol):
    """Decides from numbers alone: the same campaign gives the same decision."""

    name: str

    def decide(self, campaign: Campaign, candidate: Trial) -> Decision:
        """The decision on a trial, beside the incumbent of now. Without an incumbent it is the baseline."""
        ...

    def runs_needed(self, campaign: Campaign, candidate: Trial) -> int:
        """How many runs a trial is certain to need before it can be decided."""
        ...

    def confirmation(
        self, campaign: Campaign, *, asked: bool, flying: Collection[Wanted] = ()
    ) -> Wanted | Confirmation | None:
        """The next run, or the conclusion, of a confirmation that is due, running or asked for; otherwise None.

        None also if it has to wait for its runs in flight.
        """
        ...
