"""What may be claimed about a campaign: what is confirmed, what is provisional, and how much may be luck.

Pure: a campaign in, numbers and a few words out. Nothing here decides.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from dataclasses import dataclass, replace

from autoresearch.judging import confirmation, judge, posterior
from autoresearch.judging.noise import Noise
from autoresearch.ledger import report
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import Confirmation
from autoresearch.ledger.records import Outcome, Status
from autoresearch.ledger.report import Certainty, Gain, Generalization, Report, Step

CONFIDENCE = 0.975  # quantile: intervals are two-sided, at 95 %
RESOLVABLE = 0.005  # share of val_bpb: a gain that a search should be able to tell from luck
POWER = 0.8
LIKELY = 0.3  # a discard with a higher probability of being large enough is a near miss


@dataclass(frozen=True)
class Measured:
    """The best trial's val_bpb with half its 95 % interval, how it is known, and the gain over the baseline.

    The gain is confirmed if there is a confirmation, else believed. The baseline's val_bpb is the mean of all its runs.
    """

    trial: int
    val_bpb: float
    margin: float
    gain: float
    certainty: Certainty


@dataclass(frozen=True)
class Pruning:
    """How many runs were ended as hopeless, the seconds saved, and how many of those allowed to finish were kept."""

    runs: int
    saved_seconds: float
    spared: int
    false_kills: int


@dataclass(frozen=True)
class Standing:
    """`sigma` is the noise of one run in bits per byte, with its 95 % interval and degrees of freedom; `advice` says
    what to do if it is too large. `claim` is the last confirmation as text, `tested` the last test if it confirmed
    nothing. `false_keeps` is how many of the keeps that lead to the incumbent are expected to be false: the sum of
    1 - P(better), by what is known today."""

    baseline: int
    best: Measured | None
    claim: str | None
    tested: str | None
    provisional: tuple[int, ...]
    false_keeps: float
    sigma: float
    sigma_interval: tuple[float, float]
    freedom: int
    advice: str | None
    pruning: Pruning | None
    generalization: Generalization | None


# ---------------------------------------------------------------- the one number


def progress(campaign: Campaign) -> tuple[Step, ...]:
    """The trials that lead to the incumbent, each with its val_bpb as far as it is known: the only place that says so.

    The baseline's is the mean of all its runs. Another's is the baseline's less its confirmed gain, or what is believed
    of it given everything that was run; never one run's own score, which was selected for being lucky. Empty until the
    baseline has a score.
    """
    lineage = campaign.lineage
    if not lineage or not lineage[0].scores:
        return ()
    level = judge.noise_of(campaign)
    beliefs = judge.believed(campaign).programs
    sure = {
        each.trial: contrast
        for each in campaign.confirmations
        for contrast in each.contrasts
        if each.outcome is Outcome.CONFIRMED and contrast.reference == lineage[0].number
    }
    bound, error = level.quantile(CONFIDENCE), level.sigma / math.sqrt(len(lineage[0].scores))
    start = statistics.fmean(lineage[0].scores)
    steps = [Step(lineage[0].number, lineage[0].proposed.commit[:7], start, 0.0, report.BASELINE, bound * error)]
    for trial in lineage[1:]:
        if contrast := sure.get(trial.number):
            value, margin = start - contrast.gain, contrast.margin
        elif trial.proposed.commit in beliefs:
            belief = beliefs[trial.proposed.commit]
            value, margin = belief.mean, bound * math.hypot(belief.spread, error)
        else:
            continue
        row = report.row_of(trial)
        steps.append(Step(row.number, row.commit, value, steps[-1].val_bpb - value, row.description, margin))
    return tuple(steps)


def summary(campaign: Campaign) -> Report:
    """The campaign's summary. Its best is the incumbent, and every gain is that of `progress`."""
    made = report.summarize(report.rows(campaign), report.run_seconds(campaign))
    proposers = Counter(trial.proposed.proposer for trial in campaign.finished[1:])
    made = replace(
        made,
        disturbed=len(campaign.disturbed),
        near_misses=_near_misses(campaign),
        proposers=dict(proposers.most_common()),
    )
    steps = progress(campaign)
    best = _last(campaign, steps)
    if best is None or made.baseline is None:
        return made
    row = next(trial for trial in campaign.lineage if trial.number == best.trial)
    return replace(
        made,
        baseline=replace(made.baseline, val_bpb=steps[0].val_bpb),
        best=replace(report.row_of(row), val_bpb=best.val_bpb),
        gain=best.gain,
        gain_percent=100 * best.gain / steps[0].val_bpb if steps[0].val_bpb else None,
        margin=best.margin,
        certainty=best.certainty,
        frontier=steps,
        biggest=report.largest(step for step in steps[1:] if step.gain > 0),
    )


def _near_misses(campaign: Campaign) -> tuple[Step, ...]:
    """The discards that may be as good as what they were compared with, the most promising first.

    Their believed gain is less than a run's noise below zero, or the probability that it is large enough is not small.
    A trial that a test on fresh seeds has refuted is none.
    """
    if not judge.scored(campaign):
        return ()
    sigma, found = judge.noise_of(campaign).sigma, []
    refuted = {each.trial for each in campaign.confirmations if each.outcome is Outcome.REFUTED}
    for trial in campaign.finished:
        estimate = trial.verdict.estimate if trial.verdict else None
        if estimate is None or campaign.status_of(trial) is not Status.DISCARD or trial.val_bpb is None:
            continue
        if trial.number in refuted or isinstance(campaign.taken_back.get(trial.number), Confirmation):
            continue
        if estimate.gain > -sigma or estimate.probability > LIKELY:
            row = report.row_of(trial)
            found.append(Step(row.number, row.commit, trial.val_bpb, estimate.gain, row.description))
    return report.largest(found)


def best_of(campaign: Campaign) -> Measured | None:
    """The campaign's best trial and its gain; None until the baseline has a score."""
    return _last(campaign, progress(campaign))


def _last(campaign: Campaign, steps: tuple[Step, ...]) -> Measured | None:
    """The last of the campaign's steps, and how its gain is known."""
    if not steps:
        return None
    first, last = steps[0], steps[-1]
    confirmed = campaign.confirmed
    is_sure = confirmed is not None and confirmed.number == last.number != first.number
    certainty = Certainty.CONFIRMED if is_sure else Certainty.PROVISIONAL
    assert last.margin is not None
    return Measured(last.number, last.val_bpb, last.margin, first.val_bpb - last.val_bpb, certainty)


# ---------------------------------------------------------------- claims


def of(campaign: Campaign) -> Standing | None:
    """The claims; None until the baseline has a score."""
    best = campaign.incumbent
    if best is None or not best.scores:
        return None
    level = judge.noise_of(campaign)
    sure = (each for each in campaign.confirmations if each.outcome is Outcome.CONFIRMED)
    latest = campaign.confirmations[-1:]
    claims = [each for each in sure if each.trial in campaign.standing]
    return Standing(
        baseline=campaign.lineage[0].number,
        best=best_of(campaign),
        claim=claims[-1].reason if claims else None,
        tested=latest[0].words if latest and latest[0].outcome is not Outcome.CONFIRMED else None,
        provisional=tuple(trial.number for trial in campaign.provisional),
        false_keeps=_false_keeps(campaign, level),
        sigma=level.sigma,
        sigma_interval=level.interval(),
        freedom=level.freedom,
        advice=_advice(level, campaign.lineage[0]),
        pruning=_pruning(campaign),
        generalization=_generalization(campaign, level),
    )


def expected(campaign: Campaign, trial: Trial) -> tuple[float, float] | None:
    """Where one more run of a trial should land: the mean of its runs and half a 95 % prediction interval."""
    if not trial.scores or not judge.scored(campaign):
        return None
    level = judge.noise_of(campaign)
    error = level.sigma * math.sqrt(1 + 1 / len(trial.scores))
    return statistics.fmean(trial.scores), level.quantile(CONFIDENCE) * error


def _false_keeps(campaign: Campaign, level: Noise) -> float:
    """How many keeps that lead to the incumbent are expected to be no better than what they replaced, by today's noise
    and everything that was run since."""
    beliefs = judge.believed(campaign)
    doubt = 0.0
    for before, trial in itertools.pairwise(campaign.lineage):
        if trial.scores and before.proposed.commit in beliefs.programs:
            seen = judge.observed(trial, level, campaign.trials[0])
            gain = posterior.gain(beliefs.programs[before.proposed.commit], beliefs.effects, seen)
            doubt += 1 - gain.above(0.0, level.at_most)
    return doubt


def _advice(level: Noise, baseline: Trial) -> str | None:
    """What to do if even a confirmation with all its pairs is likely to miss a gain worth having."""
    assert baseline.val_bpb is not None
    error = level.sigma * math.sqrt(2 / confirmation.LOOKS[-1])
    seen = (level.quantile(1 - 0.05 / len(confirmation.LOOKS)) + level.quantile(POWER)) * error
    if seen <= RESOLVABLE * baseline.val_bpb:
        return None
    return (
        f"a gain of {100 * RESOLVABLE:g} % cannot be told from luck here, one of {100 * seen / baseline.val_bpb:.1f} "
        "% can: use a longer budget (TIME_BUDGET), more evaluation tokens (EVAL_TOKENS) or a quieter machine"
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


def _generalization(campaign: Campaign, level: Noise) -> Generalization | None:
    """The incumbent's gain on val and holdout over fresh seeds, or else of the one run that selected it."""
    best = campaign.incumbent
    assert best is not None
    baseline = campaign.lineage[0]
    pairs = [(a, b) for a, b in confirmation.paired(baseline, best) if a.holdout and b.holdout]
    if not pairs or baseline.number == best.number:
        found = report.generalization(campaign)
        luck = level.quantile(CONFIDENCE) * level.sigma * math.sqrt(2)
        return found and replace(found, search=_with(found.search, luck), holdout=_with(found.holdout, luck))
    margin = level.quantile(CONFIDENCE) * level.sigma * math.sqrt(2 / len(pairs))
    search = statistics.fmean(a.score.val_bpb - b.score.val_bpb for a, b in pairs if a.score and b.score)
    holdout = statistics.fmean(a.holdout.val_bpb - b.holdout.val_bpb for a, b in pairs if a.holdout and b.holdout)
    return Generalization(Gain(search, margin), Gain(holdout, margin), seeds=len(pairs))


def _with(gain: Gain, luck: float) -> Gain:
    """A gain of one run over another, with the luck of both in its margin."""
    return replace(gain, margin=math.hypot(gain.margin or 0.0, luck))
