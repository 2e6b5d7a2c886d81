"""Trials and campaigns made up from scores, as a judge would find them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from autoresearch.judging.interface import Judge
from autoresearch.judging.judge import PosteriorJudge
from autoresearch.lab.settings import Config
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import CampaignStarted, Confirmation, RunEnded, TrialProposed, Verdict
from autoresearch.ledger.records import Crash, CrashKind, Decision, Purpose, Score, Status, Wanted
from autoresearch.loop.parts.compose import terms

STARTED = CampaignStarted("t", "c0", "any", "posterior", "local", "none", {}, 60.0)


def posterior_judge(**changes: Any) -> PosteriorJudge:
    return PosteriorJudge(terms(Config(**changes)))


def a_run(val_bpb: float | None, seed: int = 42, **changes: Any) -> RunEnded:
    """A run with that score; without one it crashed."""
    score = None if val_bpb is None else Score(val_bpb, 1.0, 1, 1)
    crash = Crash(CrashKind.TIME_OUT, "too slow") if val_bpb is None else None
    run = RunEnded(0, 0, seed, "c", score, crash, 0, 1.0, 1.0, 1.0, 1.0, {}, {}, {}, "", "")
    return dataclasses.replace(run, **changes)


def a_trial(
    number: int, *runs: RunEnded | float | None, parent: int = 0, status: Status | None = None, nodes: int | None = None
) -> Trial:
    """A trial with these runs, or runs of these scores on seeds 42, 43 and so on; decided if a status is given."""
    made = tuple(
        run if isinstance(run, RunEnded) else a_run(run, 42 + index, trial=number, run=index)
        for index, run in enumerate(runs)
    )
    proposed = TrialProposed(number, "t", f"c{parent}", f"c{number}", "idea", "r", f"f{number}", 1, nodes=nodes)
    trial = Trial(proposed, made)
    return trial if status is None else decided(trial, Decision(status, "said so"))


def decided(trial: Trial, decision: Decision) -> Trial:
    verdict = Verdict(trial.number, decision.status, decision.reason, trial.val_bpb, None, "", decision.estimate)
    return dataclasses.replace(trial, verdict=verdict)


def a_campaign(*trials: Trial, confirmations: Sequence[Confirmation] = ()) -> Campaign:
    return Campaign(STARTED, trials, confirmations=tuple(confirmations))


def kept(*values: float) -> Campaign:
    """A campaign in which every trial was kept, each made of the one before it; the baseline has three runs."""
    baseline = a_trial(0, values[0], values[0] + 0.0005, values[0] - 0.0005, status=Status.KEEP)
    later = [a_trial(n, v, parent=n - 1, status=Status.KEEP) for n, v in enumerate(values[1:], start=1)]
    return a_campaign(baseline, *later)


def with_run(campaign: Campaign, number: int, run: RunEnded) -> Campaign:
    """The campaign after one more run of a trial of it."""
    trials = [
        dataclasses.replace(t, runs=(*t.runs, dataclasses.replace(run, trial=number, run=len(t.runs))))
        if t.number == number
        else t
        for t in campaign.trials
    ]
    return dataclasses.replace(campaign, trials=tuple(trials))


def with_trials(campaign: Campaign, trials: Iterable[Trial]) -> Campaign:
    return dataclasses.replace(campaign, trials=(*campaign.trials, *trials))


def confirmed_by(
    judge: Judge, campaign: Campaign, score: Callable[[int, int], float | None], *, asked: bool = True
) -> tuple[Campaign, list[Wanted]]:
    """The campaign after its confirmation, each run of which scores `score(trial, seed)`, and the runs in order."""
    wanted = []
    while step := judge.confirmation(campaign, asked=asked):
        if isinstance(step, Confirmation):
            return dataclasses.replace(campaign, confirmations=(*campaign.confirmations, step)), wanted
        wanted.append(step)
        run = a_run(score(step.trial, step.seed), step.seed, purpose=Purpose.CONFIRM)
        campaign = with_run(campaign, step.trial, run)
    return campaign, wanted
