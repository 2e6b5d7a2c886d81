"""Decides whether a proposal may become a trial: it follows the rules and was not tried before."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from autoresearch.ledger.campaign import Trial
from autoresearch.ledger.records import Proposal
from autoresearch.researchers.guard.duplicates import near_duplicate, outcome
from autoresearch.researchers.guard.rules import broken_rule

Files = Mapping[str, str]


@dataclass(frozen=True)
class Refusal:
    """Why a proposal may not run, and the trial that it repeats, if it does."""

    reason: str
    earlier: int | None = None


def refusal(
    proposal: Proposal,
    incumbent: Files,
    trials: Sequence[Trial],
    files_of: Callable[[int], Files],
    editable: Collection[str],
    *,
    nearly: bool = True,
) -> Refusal | None:
    """Why a proposal on the incumbent's files may not run, with the earlier trial's result; None if it may.

    If not `nearly`, only the same program counts as tried before. `files_of` gives the editable files that a trial ran
    with, or nothing if they are unknown.
    """
    by_fingerprint = {trial.proposed.fingerprint: trial for trial in trials}
    found: list[int] = []

    def tried(mark: str) -> str | None:
        if mark not in by_fingerprint:
            return None
        found.append(by_fingerprint[mark].number)
        return outcome(by_fingerprint[mark])

    if problem := broken_rule(proposal, incumbent, tried, editable):
        return Refusal(problem, *found)
    if proposal.repairs is not None or not nearly:
        return None
    near = near_duplicate({**incumbent, **proposal.files}, trials, files_of)
    return Refusal(near.reason, near.trial) if near else None
