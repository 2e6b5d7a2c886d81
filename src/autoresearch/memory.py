"""What a campaign remembers of its trials: whether a proposal was tried before, or as good as, and what came of it.

Pure: records in, a sentence out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from autoresearch import guard, report
from autoresearch.campaign import Trial
from autoresearch.records import Proposal

Files = Mapping[str, str]


def refusal(
    proposal: Proposal,
    incumbent: Files,
    trials: Sequence[Trial],
    files_of: Callable[[int], Files],
    editable: Collection[str],
) -> str | None:
    """Why a proposal on the incumbent's files may not run, with the earlier trial's result; None where it may.

    `files_of` gives the editable files that a trial ran with, or nothing where they are not known.
    """
    tried = {trial.proposed.fingerprint: outcome(trial) for trial in trials}
    if problem := guard.refusal(proposal, incumbent, tried, editable):
        return problem
    if proposal.repairs is not None:
        return None
    candidate = {**incumbent, **proposal.files}
    return guard.near_duplicate(candidate, alike(candidate, trials, files_of))


def alike(candidate: Files, trials: Sequence[Trial], files_of: Callable[[int], Files]) -> Iterator[tuple[str, Files]]:
    """Past scored programs that differ from this one in numbers alone, the newest first, with what came of them."""
    shape = guard.skeleton(candidate)[0]
    for trial in reversed(trials):
        if trial.proposed.skeleton == shape and trial.val_bpb is not None:
            yield outcome(trial), files_of(trial.number)


def outcome(trial: Trial) -> str:
    """A trial's number and what became of it, as in `3 (discard, val_bpb 1.402113)`."""
    if trial.verdict is None:
        return f"{trial.number} (not judged yet)"
    score = f"val_bpb {trial.val_bpb:.6f}" if trial.val_bpb is not None else report.reason(trial)
    return f"{trial.number} ({trial.verdict.status.value}, {score})"
