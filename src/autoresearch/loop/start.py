"""Starts a campaign, or continues one where it stopped, whatever stopped it."""

from __future__ import annotations

from collections.abc import Collection

from autoresearch.base.errors import UserError
from autoresearch.base.git import GitError
from autoresearch.judging import comparability
from autoresearch.lab import recovery
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import (
    CampaignStarted,
)
from autoresearch.ledger.records import Proposal
from autoresearch.loop.asking.proposals import Answer
from autoresearch.loop.parts.stages import Stages
from autoresearch.loop.trial import enter, publish, publish_older, run_trial
from autoresearch.researchers.guard import rules
from autoresearch.researchers.interface import Checked


def caught_up(stages: Stages, tag: str, dirty: Collection[str] = ()) -> Campaign:
    """The campaign, new or continued, once its baseline and any interrupted trial have their verdicts."""
    begin(stages, tag, dirty)
    stages.workspace.check_space(stages.min_free_gb)
    while trial := unfinished(stages, stages.campaign(tag)):
        run_trial(stages, stages.campaign(tag), trial)
    return stages.campaign(tag)


def begin(stages: Stages, tag: str, dirty: Collection[str] = ()) -> None:
    """Start a campaign, or continue one where it stopped. Files in `dirty` may have uncommitted edits."""
    recovery.check_ledger(stages.workspace, stages.ledger)
    stages.workspace.check_checkout(tag)
    stages.executor.end_leftovers()
    stages.workspace.clear()
    campaign = stages.ledger.campaign(tag)
    if campaign is None:
        started = new_campaign(stages, tag, dirty)
        claim_branch(stages, started)
        stages.record(started)
    elif campaign.finished and campaign.incumbent is None:
        raise UserError(
            f"the baseline of campaign {tag} has no score: fix train.py, commit it, and start a new campaign with "
            "`--tag NAME`"
        )
    campaign = stages.campaign(tag)
    stages.texts(campaign.started.base)  # before anything runs that could not be continued
    recovery.check(stages.workspace, campaign)
    comparability.check(campaign, stages.device, {})  # before anything is fetched for nothing
    publish(stages, campaign)
    publish_older(stages, campaign)
    stages.prepare(stages.workspace.files(campaign.started.base))
    if campaign.classes():
        comparability.check(campaign, stages.device, stages.executor.grader.fingerprints())


def check_researcher(stages: Stages, tag: str) -> None:
    """Make sure that a researcher who is new to a campaign can be reached. Later that would be an outage, which passes.

    Raises:
        UserError: it cannot, and what to start or set.
    """
    campaign = stages.ledger.campaign(tag)
    known = {trial.proposed.researcher for trial in campaign.trials[1:]} if campaign else set()
    if stages.researcher.name not in known and isinstance(stages.researcher, Checked):
        stages.researcher.check()


def claim_branch(stages: Stages, started: CampaignStarted) -> None:
    """Make the campaign's branch before anything names it in the ledger.

    Raises:
        UserError: git refuses the name, as where a branch is called `autoresearch`.
    """
    try:
        stages.workspace.advance(started.tag, started.base, {started.base})
    except GitError as error:
        raise UserError(
            f"the branch {stages.workspace.branch(started.tag)} cannot be made ({error}): choose another `--tag NAME`, "
            "or rename a branch called `autoresearch` with `git branch -m autoresearch NAME`"
        ) from error


def new_campaign(stages: Stages, tag: str, dirty: Collection[str]) -> CampaignStarted:
    base = stages.workspace.base(tag, dirty)
    for path, text in stages.texts(base).items():
        if problem := rules.syntax_problem(path, text):
            raise UserError(f"{problem}: fix it and commit it, because the search starts from it")
    return CampaignStarted(
        tag=tag,
        base=base,
        researcher=stages.researcher.name,
        model=getattr(stages.researcher, "model", ""),
        executor=stages.executor.name,
        judge=stages.judge.name,
        sandbox=stages.executor.sandbox,
        frozen_sha256=stages.frozen_sha256(stages.workspace.files(base)),
        budget_seconds=stages.budget_seconds,
        grader=stages.executor.grader.name,
        preset=stages.preset,
    )


def unfinished(stages: Stages, campaign: Campaign) -> Trial | None:
    """What must run before anything is proposed: a trial without a verdict, or the baseline."""
    for trial in campaign.trials:
        if trial.verdict is None:
            return trial
    if campaign.incumbent is None:
        return enter(stages, campaign.tag, stages.ledger.next_trial(), baseline(stages), campaign.started.base)
    return None


def baseline(stages: Stages) -> Answer:
    """The user's own program as a proposal."""
    return Answer(Proposal("baseline", {}), stages.researcher.name)
