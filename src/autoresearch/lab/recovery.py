"""Finds what a power cut or a failing disk took from a lab, and puts back what can be put back."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from autoresearch.base import git
from autoresearch.base.errors import UserError
from autoresearch.lab.workspace import NAMESPACES, Workspace
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import TrialDropped
from autoresearch.ledger.ledger import Ledger

SECONDS_BEFORE = 60  # a commit is at most so much older than the event that names it
LOST = "its commit was lost with the disk's contents, and its patch does not give it back"


def check_ledger(workspace: Workspace, ledger: Ledger) -> None:
    """Raise a UserError if the ledger is gone although there are trials: a new one would write over them."""
    if not ledger.path.exists() and any(workspace.trials.glob("[0-9]*")):
        raise UserError(
            f"{ledger.path} is missing, but there are trials in {workspace.trials}: restore it from a backup, or move "
            f"{workspace.state} away to start anew"
        )


def check(workspace: Workspace, campaign: Campaign) -> None:
    """Raise a UserError if the commit of a trial that the search continues from cannot be read."""
    open_trials = [trial for trial in campaign.trials if trial.verdict is None]
    for trial in (*campaign.lineage[-2:], *open_trials):
        if not git.is_whole(workspace.root, trial.proposed.commit):
            raise UserError(
                f"the commit {trial.proposed.commit[:7]} of trial {trial.number} cannot be read, as after a power cut: "
                f"run `autoresearch doctor --repair --lab {workspace.root}`, which rebuilds it from its patch"
            )


def repair(workspace: Workspace, ledger: Ledger, say: Callable[[str], None]) -> None:
    """Make a lab readable again: its ledger, its references and the commits of its trials. Says what it does.

    Raises:
        UserError: the commit that a campaign started from is gone, which only the user has.
    """
    ledger.repair()
    for number, line in ledger.set_aside_garbled():
        say(f"line {number} of the ledger cannot be read and is now in {ledger.damaged.name}: {line[:80]!r}")
    for path in git.sweep(workspace.root, NAMESPACES):
        say(f"removed {path}, which was empty or left locked")
    for campaign in ledger.campaigns():
        base = campaign.started.base
        if not git.is_whole(workspace.root, base):
            raise UserError(
                f"the commit {base[:7]} that campaign {campaign.tag} started from is gone: fetch it from a clone or a "
                "backup of this repository, then run this again"
            )
        _repair_trials(workspace, ledger, campaign.trials[1:], say)
    for campaign in ledger.campaigns():
        best = campaign.incumbent
        branch = f"refs/heads/{workspace.branch(campaign.tag)}"
        if best and git.resolve(workspace.root, branch) is None:
            git.set_ref(workspace.root, branch, best.proposed.commit)
    say("the lab is whole: `autoresearch run` and `autoresearch try` continue where it stopped")


def _repair_trials(workspace: Workspace, ledger: Ledger, trials: Iterable[Trial], say: Callable[[str], None]) -> None:
    times = ledger.times()
    for trial in trials:
        proposed, name = trial.proposed, f"refs/autoresearch/{trial.proposed.tag}/{trial.number}"
        if not git.is_whole(workspace.root, proposed.commit):
            if not _rebuilt(workspace, trial, times.get(trial.number)):
                ledger.append(TrialDropped(trial.number, LOST))
                say(f"dropped trial {trial.number} ({proposed.idea}): {LOST}")
                continue
            say(f"rebuilt the commit {proposed.commit[:7]} of trial {trial.number} from its patch")
        if git.resolve(workspace.root, name) is None:
            git.set_ref(workspace.root, name, proposed.commit)


def _rebuilt(workspace: Workspace, trial: Trial, at: float | None) -> bool:
    """Whether the same commit, with the same id, could be made again from its parent and its patch."""
    patch, proposed = workspace.trial_directory(trial.number) / "patch.diff", trial.proposed
    if at is None or not patch.is_file() or not git.is_whole(workspace.root, proposed.parent):
        return False
    moments = range(int(at), int(at) - SECONDS_BEFORE, -1)
    return git.rebuild(workspace.root, proposed.commit, proposed.parent, patch, proposed.idea, moments)
