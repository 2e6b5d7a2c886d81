"""Where a campaign stands by its judge: what is confirmed, what is provisional, and how much of it may be luck.

Pure: a campaign in, numbers and a few words out. Nothing here decides.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from autoresearch import confirming, judge, report
from autoresearch.campaign import Campaign, Trial
from autoresearch.noise import Noise
from autoresearch.records import Outcome
from autoresearch.report import Gain, Generalisation

CONFIDENCE = 0.975  # quantile: intervals are two-sided, at 95 %
RESOLVABLE = 0.005  # share of val_bpb: a gain that a search should be able to tell from luck
POWER = 0.8


@dataclass(frozen=True)
class Measured:
    """A val_bpb: the mean of so many runs after those that it was chosen by, and half its 95 % interval.

    With `runs` 0 it was never run again, and the value is what is believed of it by all runs of the search.
    """

    trial: int
    val_bpb: float
    margin: float
    runs: int


@dataclass(frozen=True)
class Pruning:
    """How many runs were ended as hopeless, the seconds that this saved, and of those let finish how many were kept."""

    runs: int
    saved_seconds: float
    spared: int
    false_kills: int


@dataclass(frozen=True)
class Standing:
    """`sigma` is the noise of one run in bits per byte, with its 95 % interval and degrees of freedom; `advice` says
    what to do where it is too large. `claim` is the last confirmation in words. `false_keeps` is how many of the
    keeps that the incumbent is made of are expected to be none: the sum of 1 - P, None where one has no P."""

    best: Measured | None
    claim: str | None
    provisional: tuple[int, ...]
    false_keeps: float | None
    sigma: float
    sigma_interval: tuple[float, float]
    freedom: int
    advice: str | None
    pruning: Pruning | None
    generalisation: Generalisation | None


def of(campaign: Campaign) -> Standing | None:
    """Where it stands; None until the baseline has a score."""
    best = campaign.incumbent
    if best is None or not best.scores:
        return None
    level = judge.noise_of(campaign)
    claims = [each for each in campaign.confirmations if each.outcome is Outcome.CONFIRMED]
    return Standing(
        best=_measured(campaign, best, level),
        claim=claims[-1].reason if claims else None,
        provisional=tuple(trial.number for trial in campaign.provisional),
        false_keeps=_false_keeps(campaign.lineage[1:]),
        sigma=level.sigma,
        sigma_interval=level.interval(),
        freedom=level.freedom,
        advice=_advice(level, campaign.lineage[0]),
        pruning=_pruning(campaign),
        generalisation=_generalisation(campaign, level),
    )


def expected(campaign: Campaign, trial: Trial) -> tuple[float, float] | None:
    """Where one more run of a trial should land: mean of its runs and half a 95 % prediction interval."""
    if not trial.scores or not judge.scored(campaign):
        return None
    level = judge.noise_of(campaign)
    error = level.sigma * math.sqrt(1 + 1 / len(trial.scores))
    return statistics.fmean(trial.scores), level.quantile(CONFIDENCE) * error


def _false_keeps(kept: Sequence[Trial]) -> float | None:
    estimates = [trial.verdict.estimate for trial in kept if trial.verdict]
    doubts = [1 - estimate.probability for estimate in estimates if estimate]
    return sum(doubts) if len(doubts) == len(kept) else None


def _measured(campaign: Campaign, trial: Trial, level: Noise) -> Measured:
    """The mean of the runs that it was not chosen by; all of a baseline's, which nobody chose."""
    again = trial.scores if trial.number == campaign.trials[0].number else trial.unchosen
    bound = level.quantile(CONFIDENCE)
    if again:
        return Measured(trial.number, statistics.fmean(again), bound * level.sigma / math.sqrt(len(again)), len(again))
    belief = judge.believed(campaign, level).programs[trial.proposed.commit]
    return Measured(trial.number, belief.mean, bound * belief.spread, 0)


def _advice(level: Noise, baseline: Trial) -> str | None:
    """What to do where even a confirmation with all its pairs is likely to miss a gain worth having."""
    assert baseline.val_bpb is not None
    error = level.sigma * math.sqrt(2 / confirming.LOOKS[-1])
    seen = (level.quantile(1 - 0.05 / len(confirming.LOOKS)) + level.quantile(POWER)) * error
    if seen <= RESOLVABLE * baseline.val_bpb:
        return None
    return (
        f"a gain of {100 * RESOLVABLE:g} % cannot be told from luck here, {100 * seen / baseline.val_bpb:.1f} % can: a "
        "longer budget (TIME_BUDGET), more evaluation tokens (EVAL_TOKENS) or a quieter machine would help"
    )


def _pruning(campaign: Campaign) -> Pruning | None:
    runs = [run for trial in campaign.finished for run in trial.runs]
    pruned = [run for run in runs if run.pruned is not None]
    spared = [trial for trial in campaign.finished if any(run.spared is not None for run in trial.runs)]
    if not pruned and not spared:
        return None
    kept = {trial.number for trial in campaign.kept}
    saved = sum((1 - (run.pruned or 0.0)) * campaign.started.budget_seconds for run in pruned)
    return Pruning(len(pruned), saved, len(spared), sum(trial.number in kept for trial in spared))


def _generalisation(campaign: Campaign, level: Noise) -> Generalisation | None:
    """The incumbent's gain on val and holdout over fresh seeds, else of the one run that it was kept by."""
    best = campaign.incumbent
    assert best is not None
    baseline = campaign.lineage[0]
    pairs = [(a, b) for a, b in confirming.paired(baseline, best) if a.holdout and b.holdout]
    if not pairs or baseline.number == best.number:
        return report.generalisation(campaign)
    margin = level.quantile(CONFIDENCE) * level.sigma * math.sqrt(2 / len(pairs))
    search = statistics.fmean(a.score.val_bpb - b.score.val_bpb for a, b in pairs if a.score and b.score)
    holdout = statistics.fmean(a.holdout.val_bpb - b.holdout.val_bpb for a, b in pairs if a.holdout and b.holdout)
    return Generalisation(Gain(search, margin), Gain(holdout, margin), seeds=len(pairs))
