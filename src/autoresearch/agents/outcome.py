"""What `try` answers, whatever happened: a verdict with all that is needed to judge it, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from autoresearch.base.errors import UserError
from autoresearch.judging import claims, judge
from autoresearch.ledger import report
from autoresearch.ledger.campaign import Campaign, Move, Trial
from autoresearch.ledger.events import ProposalRefused
from autoresearch.ledger.records import Status

LUCK = 0.95  # of changes that do nothing gain less than what is called luck
REFUSED, ERROR, RUNNING, INTERRUPTED, UNCHANGED = "refused", "error", "running", "interrupted", "unchanged"
CHANGE = "change it, then run `autoresearch try -m IDEA`"
WAIT = "`autoresearch try --wait --timeout 540` waits for its verdict"


class NotTried(UserError):
    """The edits were not tried: why, which earlier trial they repeat, and what the agent should do now."""

    def __init__(self, reason: str, then: str, *, status: str = REFUSED, earlier: int | None = None) -> None:
        super().__init__(reason)
        self._answer: dict[str, object] = {
            "status": status,
            "reason": reason,
            "trial": None,
            "earlier": earlier,
            "next": then,
        }

    @property
    def answer(self) -> dict[str, object]:
        return self._answer


@dataclass(frozen=True)
class Place:
    """What an answer names: the campaign's branch, and the files that a trial may change."""

    branch: str
    editable: tuple[str, ...]

    @property
    def restore(self) -> str:
        """The command that brings the best version back."""
        return f"`git restore --source={self.branch} -- {' '.join(self.editable)}`"


def refused(event: ProposalRefused, place: Place) -> NotTried:
    """Why a proposal is no trial, with what to do about it."""
    then = f"change something else and try again, or go back to the best version with {place.restore}"
    return NotTried(event.reason, then, earlier=event.earlier)


def unchanged(campaign: Campaign) -> dict[str, object]:
    """The answer if the files are those of the best version, and that is not new."""
    best = claims.best_of(campaign)
    assert best is not None
    return {
        "tag": campaign.tag,
        "trial": None,
        "status": UNCHANGED,
        "reason": f"nothing to try: your files are the same as the best version, trial {best.trial}",
        "val_bpb": None,
        "best": best.val_bpb,
        "next": f"the working tree is the best version so far: {CHANGE}",
    }


def judged(campaign: Campaign, trial: Trial, place: Place) -> dict[str, object]:
    """The answer after a verdict."""
    best, verdict = claims.best_of(campaign), trial.verdict
    assert best is not None
    assert verdict is not None
    status, taken_back = campaign.status_of(trial), campaign.taken_back.get(trial.number)
    assert status is not None
    return {
        "tag": campaign.tag,
        "trial": trial.number,
        "status": status.value,
        "reason": f"{verdict.reason}; then {_words(taken_back)}" if taken_back else verdict.reason,
        "val_bpb": trial.val_bpb,
        "best": best.val_bpb,
        "memory_gb": trial.memory_gb,
        "commit": trial.proposed.commit,
        **_comparison(campaign, trial),
        "disturbed": [run.disturbed for run in trial.every_run if run.disturbed],
        "next": _next_step(trial, status, place),
    }


def _words(move: Move) -> str:
    return f"#{move.number} was better" if isinstance(move, Trial) else move.words


# ---------------------------------------------------------------- what it is compared with


def _comparison(campaign: Campaign, trial: Trial) -> dict[str, object]:
    """The noise, the trial's parent as it is believed to be, and how fast both were."""
    level = judge.noise_of(campaign)
    parent = campaign.parent_of(trial)
    runs = max(len(trial.scores), 1)
    luck = level.quantile(LUCK) * level.sigma * math.sqrt(1 / runs + 1 / max(len(parent.scores), 1) if parent else 1)
    found: dict[str, object] = {
        "runs": len(trial.runs),
        "pace": asdict(report.pace(trial)),
        "noise": {"sigma": level.sigma, "luck": luck},
        "compared_with": None,
    }
    if parent is None or parent.val_bpb is None:
        return found
    belief = judge.believed(campaign).programs.get(parent.proposed.commit)
    value, spread = (belief.mean, belief.spread) if belief else (parent.val_bpb, level.sigma)
    margin = level.quantile(claims.CONFIDENCE) * spread
    compared = {"trial": parent.number, "val_bpb": value, "margin": margin, "pace": asdict(report.pace(parent))}
    status = campaign.status_of(trial)
    return {**found, "compared_with": compared, "explained": _explained(trial, status, parent, value, margin, luck)}


def _explained(
    trial: Trial, status: Status | None, parent: Trial, value: float, margin: float, luck: float
) -> str | None:
    """The comparison in a sentence, above all if a lower val_bpb was discarded."""
    if trial.val_bpb is None or status not in (Status.KEEP, Status.DISCARD):
        return None
    runs = "one run" if len(trial.scores) == 1 else f"{len(trial.scores)} runs"
    compared = (
        f"it is compared with {value:.4f} ± {margin:.4f}, which is what #{parent.number} is believed to be after "
        f"everything that was run, not with its luckiest run; {runs} of a change that does nothing would gain up to "
        f"{luck:.4f} in 95 of 100 cases"
    )
    gain = value - trial.val_bpb
    if status is Status.DISCARD and gain > 0:
        return f"it scored {gain:.4f} lower and is discarded all the same, since that may be luck: {compared}"
    return compared


def _next_step(trial: Trial, status: Status, place: Place) -> str:
    """What the agent should do now, in one line."""
    if status is Status.CRASH:
        return (
            f"look at `autoresearch show {trial.number}`; if it is a slip, fix it and try again, otherwise go back "
            f"with {place.restore}"
        )
    if status is Status.INVALID:
        return f"its score cannot be trusted: go back to the best version with {place.restore}, then change that"
    if status is Status.DISCARD:
        return f"go back to the best version with {place.restore}, then change that"
    if trial.proposed.commit == trial.proposed.parent:
        return f"this is what to beat: {CHANGE}"
    return "this is the best version now: continue from here"


def exit_code(answer: Mapping[str, object]) -> int:
    """What a shell is told: 0 for a verdict, or if there was nothing to try; 4 while it is still running."""
    return {RUNNING: 4, REFUSED: 1, ERROR: 1, INTERRUPTED: 1}.get(str(answer["status"]), 0)
