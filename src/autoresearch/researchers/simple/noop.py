"""A researcher whose every proposal computes the same as the incumbent. Whatever is kept of it is kept by mistake."""

from __future__ import annotations

import re

from autoresearch.base.errors import Exhausted, UserError
from autoresearch.ledger.records import Proposal
from autoresearch.researchers.interface import Brief, Kit

MARK = re.compile(r"^_NOOP = \d+\n?\Z", re.MULTILINE)


class NoopResearcher:
    """Sets an unused constant at the end of the first Python file: new to the guard, but without effect on training."""

    name = "noop"

    def __init__(self, argument: str = "", kit: Kit = Kit()) -> None:
        """It needs nothing.

        Raises:
            UserError: something was given after a colon.
        """
        if argument:
            raise UserError(f"noop takes nothing after a colon, but got {argument!r}")
        self._last = 0

    def propose(self, brief: Brief) -> Proposal:
        """Return a number that no trial has had.

        Raises:
            Exhausted: the lab has no Python file to edit.
        """
        path = next((path for path in sorted(brief.files) if path.endswith(".py")), None)
        if path is None:
            raise Exhausted("there is no Python file to edit")
        number = first_unused(brief)
        if brief.refusal is not None:
            number = max(number, self._last) + 1
        self._last = number
        text = MARK.sub("", brief.files[path]).rstrip("\n")
        return Proposal(f"no-op {number}", {path: f"{text}\n_NOOP = {number}\n"}, note={"noop": number})


def first_unused(brief: Brief) -> int:
    """One more than the largest number of a past no-op; 1 for the first."""
    notes = (trial.proposed.note.get("noop") for trial in brief.campaign.trials)
    return max((number for number in notes if isinstance(number, int)), default=0) + 1
