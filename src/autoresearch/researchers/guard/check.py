"""Decides whether a proposal may become a trial: it follows the rules and was not tried before."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from autoresearch.ledger.campaign import Trial
from autoresearch.ledger.records import Proposal
from autoresearch.researchers.guard.duplicates import near_duplicate, outcome
from autoresearch.researchers.guard.rules import broken_rule

Files = Mapping[str, str]


def refusal(
    proposal: Proposal,
    incumbent: Files,
    trials: Sequence[Trial],
    files_of: Callable[[int], Files],
    editable: Collection[str],
) -> str | None:
    """Why a proposal on the incumbent's files may not run, with the earlier trial's result; None if it may.

    `files_of` gives the editable files that a trial ran with, or nothing if they are unknown.
    """
    by_fingerprint = {trial.proposed.fingerprint: trial for trial in trials}

    def tried(mark: str) -> str | None:
        return outcome(by_fingerprint[mark]) if mark in by_fingerprint else None

    if problem := broken_rule(proposal, incumbent, tried, editable):
        return problem
    if proposal.repairs is not None:
        return None
    candidate = {**incumbent, **proposal.files}
    return near_duplicate(candidate, trials, files_of)
