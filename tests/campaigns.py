"""Campaigns made up from proposals and scores, as a researcher would find them in its brief."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping

from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import CampaignStarted, RunEnded, TrialProposed, Verdict
from autoresearch.ledger.records import Proposal, Score, Status
from autoresearch.researchers.guard.fingerprint import fingerprint
from autoresearch.researchers.interface import Brief, Researcher

Files = Mapping[str, str]
Objective = Callable[[Files], float | None]  # val_bpb of a program; None for a crash


def empty() -> Campaign:
    return Campaign(CampaignStarted("t", "c0", "any", "greedy", "local", "none", {}, 60.0))


def begun(files: Files, val_bpb: float = 1.0) -> Brief:
    """The brief after a baseline was kept."""
    return after(Brief("Lower it.", files, empty()), Proposal("baseline", {}), val_bpb)


def after(brief: Brief, proposal: Proposal, val_bpb: float | None) -> Brief:
    """The next brief, once the proposal was tried and judged by the published rule; None is a crash."""
    campaign = brief.campaign
    number, best = len(campaign.trials), campaign.incumbent
    bar = best.val_bpb if best else None
    kept = val_bpb is not None and (bar is None or val_bpb < bar)
    status = Status.CRASH if val_bpb is None else Status.KEEP if kept else Status.DISCARD
    files = {**brief.files, **proposal.files}
    proposed = TrialProposed(
        trial=number,
        tag="t",
        parent=best.proposed.commit if best else "c0",
        commit=f"c{number}",
        idea=proposal.idea,
        researcher="any",
        fingerprint=fingerprint(files),
        lines_changed=1,
        note=json.loads(json.dumps(dict(proposal.note))),
    )
    incumbent = proposed.commit if kept or best is None else best.proposed.commit
    verdict = Verdict(number, status, "", val_bpb, None, incumbent)
    trial = Trial(proposed, (run_of(number, val_bpb),), verdict)
    longer = dataclasses.replace(campaign, trials=(*campaign.trials, trial))
    return Brief(brief.program, files if kept else brief.files, longer)


def run_of(number: int, val_bpb: float | None) -> RunEnded:
    score = None if val_bpb is None else Score(val_bpb, val_bpb, 1, 1)
    return RunEnded(
        trial=number,
        run=0,
        seed=42,
        commit=f"c{number}",
        score=score,
        crash=None,
        exit_code=0,
        wall_seconds=1.0,
        startup_seconds=None,
        training_seconds=None,
        memory_gb=None,
        summary={},
        environment={},
        frozen_sha256={},
        log="",
        curve="",
    )


def driven(researcher: Researcher, brief: Brief, objective: Objective, trials: int) -> Brief:
    """The brief after so many proposals were tried."""
    for _ in range(trials):
        proposal = researcher.propose(brief)
        brief = after(brief, proposal, objective({**brief.files, **proposal.files}))
    return brief
