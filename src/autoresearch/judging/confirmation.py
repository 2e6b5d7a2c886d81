"""Whether kept trials are really better: a sequential test on fresh seeds, which selected nothing before.

The incumbent runs against the baseline and against the last confirmed commit, all on the same seeds that no trial had.
After 2, 4 and 8 seeds both contrasts are tested, one-sided by Student's t with the noise that the whole search has
shown so far. The error rate is divided evenly among the three looks (Bonferroni, as in Dunn 1961, over the looks of a
group-sequential plan, Pocock 1977). Both contrasts must pass, which needs no further correction (Berger 1982).

Pure: a campaign in, the next run or the conclusion out.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Collection, Sequence

from autoresearch.judging.noise import Noise
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import Confirmation, Contrast, RunEnded
from autoresearch.ledger.records import Outcome, Purpose, Wanted

LOOKS = (2, 4, 8)  # pairs of runs
FIRST_FRESH_SEED, SEEDS_OF_ONE = 1000, 100


def next_step(
    campaign: Campaign,
    measure: Callable[[Campaign], Noise],
    *,
    error_rate: float,
    walk_back: bool,
    flying: Collection[Wanted] = (),
) -> Wanted | Confirmation | None:
    """The next run that the confirmation needs, or its conclusion; None if nothing is provisional, or all that it
    needs now is in flight.

    `measure` estimates the noise from what a campaign has run. With `walk_back`, a refuted incumbent's provisional
    keeps are tested one by one, the latest first, on the same seeds; otherwise the search returns to the last confirmed
    commit.
    """
    provisional, confirmed = campaign.provisional, campaign.confirmed
    if not provisional or confirmed is None:
        return None
    seeds = [FIRST_FRESH_SEED + SEEDS_OF_ONE * len(campaign.confirmations) + index for index in range(LOOKS[-1])]
    references = (campaign.lineage[0], *([confirmed] if confirmed is not campaign.lineage[0] else []))
    candidates = list(reversed(provisional)) if walk_back else [provisional[-1]]
    for index, candidate in enumerate(candidates):
        known = _until(campaign, seeds, {trial.number for trial in candidates[index + 1 :]})
        step = _test(known, candidate, references, seeds, measure, error_rate, flying)
        if step is None or isinstance(step, Wanted):
            return step
        outcome, contrasts = step
        if outcome is not Outcome.REFUTED:
            return _conclusion(campaign, candidate, outcome, contrasts)
    return _conclusion(campaign, provisional[-1], Outcome.REFUTED, contrasts, back_to=confirmed)


def begun(campaign: Campaign) -> bool:
    """Whether a confirmation has started and has no conclusion yet."""
    first = FIRST_FRESH_SEED + SEEDS_OF_ONE * len(campaign.confirmations)
    return any(first <= run.seed < first + SEEDS_OF_ONE for trial in campaign.trials for run in fresh(trial))


def pair_of(seed: int) -> int:
    """Which pair of its confirmation a run on a fresh seed belongs to: 1 to the last look's."""
    return (seed - FIRST_FRESH_SEED) % SEEDS_OF_ONE + 1


def fresh(trial: Trial) -> list[RunEnded]:
    """Its runs on fresh seeds."""
    return [run for run in trial.runs if run.purpose is Purpose.CONFIRM]


def paired(one: Trial, other: Trial) -> list[tuple[RunEnded, RunEnded]]:
    """Their runs on the same fresh seed, in the order of the seeds, if both have a trusted score."""
    first, second = ({run.seed: run for run in fresh(t) if run.score and not run.invalid} for t in (one, other))
    return [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]


def _test(
    campaign: Campaign,
    candidate: Trial,
    references: Sequence[Trial],
    seeds: Sequence[int],
    measure: Callable[[Campaign], Noise],
    error_rate: float,
    flying: Collection[Wanted],
) -> Wanted | tuple[Outcome, tuple[Contrast, ...]] | None:
    """The next run of a candidate's test, or its conclusion; None if it waits for runs in flight."""
    had = {trial.number: {run.seed for run in fresh(trial)} for trial in (*references, candidate)}
    for look in LOOKS:
        wanted = [Wanted(number, seed) for seed in seeds[:look] for number in had if seed not in had[number]]
        if wanted:
            return next((step for step in wanted if step not in flying), None)
        noise = measure(_until(campaign, seeds[look:]))
        bound = noise.quantile(1 - error_rate / len(LOOKS))
        contrasts = tuple(_contrast(candidate, each, seeds[:look], noise, bound) for each in references)
        if all(each.gain > each.margin for each in contrasts):
            return Outcome.CONFIRMED, contrasts
        if any(each.gain < -each.margin for each in contrasts):
            return Outcome.REFUTED, contrasts
    silent = not any(run.score and not run.invalid for run in fresh(candidate))
    failed = silent or any(each.pairs and each.gain <= 0 for each in contrasts)
    return Outcome.REFUTED if failed else Outcome.UNDECIDED, contrasts


def _until(campaign: Campaign, seeds: Collection[int], trials: Collection[int] | None = None) -> Campaign:
    """The campaign without its runs on these seeds, of these trials or of all.

    A look uses the noise as it was then; otherwise each later run would be one more look.
    """

    def earlier(trial: Trial) -> Trial:
        runs = tuple(run for run in trial.runs if run.seed not in seeds)
        dropped = len(runs) < len(trial.runs) and (trials is None or trial.number in trials)
        return dataclasses.replace(trial, runs=runs) if dropped else trial

    return dataclasses.replace(campaign, trials=tuple(earlier(trial) for trial in campaign.trials))


def _contrast(candidate: Trial, reference: Trial, seeds: Sequence[int], noise: Noise, bound: float) -> Contrast:
    """Paired by seed: what a seed does to both alike cancels, as far as it was found to."""
    pairs = [(a, b) for a, b in paired(reference, candidate) if a.seed in seeds]
    gains = [a.score.val_bpb - b.score.val_bpb for a, b in pairs if a.score and b.score]
    if not gains:
        return Contrast(reference.number, 0.0, 0.0, 0)
    error = noise.sigma * math.sqrt(2 * (1 - noise.shared) / len(gains))
    return Contrast(reference.number, statistics.fmean(gains), bound * error, len(gains))


def _conclusion(
    campaign: Campaign,
    tested: Trial,
    outcome: Outcome,
    contrasts: tuple[Contrast, ...],
    back_to: Trial | None = None,
) -> Confirmation:
    incumbent = back_to or tested
    return Confirmation(
        tag=campaign.tag,
        trial=tested.number,
        outcome=outcome,
        reason=_reason(outcome, contrasts, incumbent if back_to else None),
        contrasts=contrasts,
        incumbent=incumbent.number,
        after=campaign.trials[-1].number,
        verdicts=len(campaign.finished),
    )


def _reason(outcome: Outcome, contrasts: tuple[Contrast, ...], back_to: Trial | None) -> str:
    names = ["the baseline", *(f"#{each.reference}, the last one confirmed" for each in contrasts[1:])]
    found = " and ".join(
        f"{-each.gain:+.4f} ± {each.margin:.4f} against {name}" for each, name in zip(contrasts, names, strict=True)
    )
    after = f": back to #{back_to.number}" if back_to else ""
    return f"{outcome.value}: {found} over {contrasts[0].pairs} paired seeds{after}"
