"""Decides a trial from numbers alone: the same campaign, the same decision."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from autoresearch.judging import confirmation, noise, posterior
from autoresearch.judging.noise import Noise
from autoresearch.judging.posterior import Bar, Beliefs, Gaussian, Mixture, Observation
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import Confirmation
from autoresearch.ledger.records import Decision, Estimate, Status, Wanted

AGAIN = 1.5  # a fresh proposal may be run again too, which its own worth does not include
BLOCK = 256  # trials that are settled together
MOST_BLOCKS = 64  # that are remembered
MOST_REPLICATED = 256  # programs that the noise of a run is measured on
REMEMBERED = 4  # campaigns whose estimates are kept: the latest state is asked for again and again
BASELINE = Decision(Status.KEEP, "baseline")


@dataclass(frozen=True)
class Terms:
    """The user's policy, as set in program.md. Gains are in bits per byte.

    A candidate is kept if P(gain > `smallest_effect`) exceeds `advance`. Growth beyond `soft_memory_gb` must bring
    `memory_price` more per GiB. With `simplicity`, a candidate with less code only has to be no worse than by the
    smallest effect. A trial has at most `max_runs` runs, the baseline `baseline_seeds`. After `confirm_every` keeps
    they are confirmed at `error_rate`; `refuted` says what happens to them if that fails.
    """

    advance: float
    error_rate: float
    smallest_effect: float
    confirm_every: int
    refuted: Literal["rewind", "ablate"]
    max_runs: int
    baseline_seeds: int
    soft_memory_gb: float | None
    memory_price: float
    simplicity: bool


def unfit(candidate: Trial) -> Decision | None:
    """The decision on a trial whose runs show that it cannot be kept, whatever its score; None if it can."""
    if candidate.invalid:
        return Decision(Status.INVALID, candidate.invalid)
    if candidate.crash:
        return Decision(Status.CRASH, f"{candidate.crash.kind.value}: {candidate.crash.detail}")
    pruned = next((run.pruned for run in candidate.runs if run.pruned is not None), None)
    if pruned is not None:
        return Decision(
            Status.DISCARD, f"pruned at {100 * pruned:.0f} %: its loss was far outside the band of past runs"
        )
    return None if candidate.scores else Decision(Status.CRASH, "no score")


class GreedyJudge:
    """The published rule: a lower val_bpb is kept, after one run each, whatever the noise. Nothing is confirmed."""

    name = "greedy"

    def __init__(self, terms: Terms | None = None) -> None:
        """It has no settings."""

    def decide(self, campaign: Campaign, candidate: Trial) -> Decision:
        """See `judging.interface.Judge`. Without an incumbent the candidate is the baseline."""
        if decision := unfit(candidate):
            return decision
        incumbent = campaign.incumbent
        if incumbent is None or not incumbent.scores:
            return BASELINE
        gain = incumbent.scores[0] - candidate.scores[0]
        if gain > 0:
            return Decision(Status.KEEP, f"val_bpb fell by {gain:.6f}")
        said = f"val_bpb rose by {-gain:.6f}" if gain else "val_bpb did not change"
        parent = campaign.parent_of(candidate) or incumbent
        if parent is not incumbent and parent.scores and parent.scores[0] > candidate.scores[0]:
            return Decision(Status.DISCARD, f"{said}, {_carried(parent, incumbent)}", carry=True)
        return Decision(Status.DISCARD, said)

    def runs_needed(self, campaign: Campaign, candidate: Trial) -> int:
        """See `judging.interface.Judge`."""
        return candidate.proposed.seeds

    def confirmation(
        self, campaign: Campaign, *, asked: bool, flying: Collection[Wanted] = ()
    ) -> Wanted | Confirmation | None:
        return None


class PosteriorJudge:
    """Keeps what is probably better, given everything the search has seen, and confirms it later on fresh seeds.

    See `posterior` for the estimates, `noise` for the size of a run's luck, `confirmation` for the test.
    """

    name = "posterior"

    def __init__(self, terms: Terms) -> None:
        self.terms = terms

    def decide(self, campaign: Campaign, candidate: Trial) -> Decision:
        """See `judging.interface.Judge`. Without an incumbent the candidate is the baseline."""
        if campaign.incumbent is None:
            return self._baseline(campaign, candidate)
        if decision := unfit(candidate):
            return decision
        level = noise_of(campaign)  # its own scatter does not decide about it
        beliefs = believed(campaign)
        made_on = campaign.parent_of(candidate)
        if made_on is None or made_on.proposed.commit not in beliefs.programs:
            made_on = campaign.incumbent
        parent = beliefs.programs[made_on.proposed.commit]
        seen = observed(candidate, level, campaign.trials[0])
        own = gain = posterior.gain(parent, beliefs.effects, seen)
        if made_on is not campaign.incumbent:
            rival = beliefs.programs[campaign.incumbent.proposed.commit]
            gain = posterior.gain_over(rival, parent, beliefs.effects, seen)
        estimate, needed = self._estimate(campaign.incumbent, candidate, gain, level)
        said = self._explained(estimate, f"better by {needed:.4f}" if needed else "better")
        if estimate.probability > self.terms.advance:
            return Decision(Status.KEEP, f"kept, provisional: {said}", estimate=estimate)
        if (no_worse := self._no_worse(campaign.incumbent, candidate, gain, level)) > self.terms.advance:
            kept = dataclasses.replace(estimate, probability=no_worse)
            said = self._explained(kept, f"no worse by {self.terms.smallest_effect:.4f}")
            return Decision(Status.KEEP, f"kept, simpler: {said}", estimate=kept, simpler=True)
        if made_on is not campaign.incumbent:
            better, _ = self._estimate(made_on, candidate, own, level)
            if better.probability > self.terms.advance:
                said = f"not kept: {said}, {_carried(made_on, campaign.incumbent)}"
                return Decision(Status.DISCARD, said, estimate=estimate, carry=True)
        bar = Bar(needed, level.quantile(self.terms.advance))
        again = len(candidate.scores) < self.terms.max_runs and is_worth_a_run(parent, beliefs, seen, level, bar)
        return Decision(Status.DISCARD, f"not kept: {said}", rerun=again, estimate=estimate)

    def runs_needed(self, campaign: Campaign, candidate: Trial) -> int:
        """See `judging.interface.Judge`."""
        is_first = campaign.incumbent is None and not (candidate.runs and unfit(candidate))
        return self.terms.baseline_seeds if is_first else candidate.proposed.seeds

    def confirmation(
        self, campaign: Campaign, *, asked: bool, flying: Collection[Wanted] = ()
    ) -> Wanted | Confirmation | None:
        """See `judging.interface.Judge`."""
        due = asked or len(campaign.untested) >= self.terms.confirm_every or confirmation.begun(campaign)
        if not due or not campaign.provisional:
            return None
        walk_back = self.terms.refuted == "ablate"
        rate = self.terms.error_rate
        return confirmation.next_step(campaign, noise_of, error_rate=rate, walk_back=walk_back, flying=flying)

    def _baseline(self, campaign: Campaign, candidate: Trial) -> Decision:
        if len(candidate.runs) < self.runs_needed(campaign, candidate):
            return dataclasses.replace(BASELINE, rerun=True)
        if not candidate.scores:
            return unfit(candidate) or BASELINE
        sigma = measured([candidate]).sigma
        seeds = f"{len(candidate.scores)} seed{'s' * (len(candidate.scores) > 1)}"
        return Decision(Status.KEEP, f"baseline: the noise of a run is {sigma:.4f} by {seeds}")

    def _estimate(self, incumbent: Trial, candidate: Trial, gain: Mixture, level: Noise) -> tuple[Estimate, float]:
        """The gain with the probability that it is large enough, and how large that is."""
        needed = self.terms.smallest_effect + self._price(incumbent, candidate)
        probability = gain.above(needed, level.at_most)
        return Estimate(gain.mean, gain.spread, probability), needed

    def _price(self, incumbent: Trial, candidate: Trial) -> float:
        """The gain that memory beyond the soft limit must bring, in bits per byte."""
        if self.terms.soft_memory_gb is None or candidate.memory_gb is None:
            return 0.0
        free = max(self.terms.soft_memory_gb, incumbent.memory_gb or 0.0)
        return self.terms.memory_price * max(0.0, candidate.memory_gb - free)

    def _no_worse(self, incumbent: Trial, candidate: Trial, gain: Mixture, level: Noise) -> float:
        """The probability that it is no worse by the smallest effect, with less code (non-inferiority); otherwise 0."""
        before, after = incumbent.proposed.nodes, candidate.proposed.nodes
        has_less = before is not None and after is not None and after < before
        if not (self.terms.simplicity and has_less) or self._price(incumbent, candidate):
            return 0.0
        return gain.above(-self.terms.smallest_effect, level.at_most)

    def _explained(self, estimate: Estimate, event: str) -> str:
        """The numbers of a decision, for a person. Minus means that val_bpb falls."""
        return (
            f"posterior {-estimate.gain:+.4f} ± {estimate.error:.4f}, P({event}) {estimate.probability:.2f}, "
            f"needs {self.terms.advance:.2f}"
        )


def _carried(parent: Trial, incumbent: Trial) -> str:
    """Why the change of a trial that was made on another one than the incumbent is made again on that."""
    return f"but better than #{parent.number}, which it changed: its change is carried over to #{incumbent.number}"


def is_worth_a_run(parent: Gaussian, beliefs: Beliefs, seen: Observation, level: Noise, bar: Bar) -> bool:
    """Whether one more run of the candidate is expected to bring more than a fresh proposal."""
    one = level.sigma**2
    again = posterior.worth_of_a_run(parent, beliefs.effects, seen, one, bar)
    return again > AGAIN * posterior.worth_of_a_proposal(parent, beliefs.effects, one, bar)


# ---------------------------------------------------------------- from a campaign to numbers


@functools.lru_cache(maxsize=REMEMBERED)
def scored(campaign: Campaign) -> tuple[Trial, ...]:
    """Its finished trials with a trusted score. If a run after a keep is invalid, that does not affect the others."""
    return tuple(t for t in campaign.finished if t.evidence and t.verdict and t.verdict.status is not Status.INVALID)


@functools.lru_cache(maxsize=REMEMBERED)
def noise_of(campaign: Campaign) -> Noise:
    """The noise of a run, from everything the campaign has run."""
    return measured(scored(campaign))


def measured(trials: Sequence[Trial]) -> Noise:
    """The noise of a run, from the runs of these trials: the first, and the latest of those with more than one."""
    replicated = [trial.evidence for trial in trials[1:] if len(trial.evidence) > 1]
    return noise.pooled([*(trial.evidence for trial in trials[:1]), *replicated[-MOST_REPLICATED:]])


@functools.lru_cache(maxsize=REMEMBERED)
def believed(campaign: Campaign) -> Beliefs:
    """What the campaign's scored trials say about each program, by its commit, and about the next proposal.

    What the whole blocks of the past say is settled, so that the next decision does not take longer and longer.
    """
    trials, level, first = scored(campaign), noise_of(campaign), campaign.trials[0]
    whole = len(trials) // BLOCK * BLOCK
    before = _settled(trials[:whole], first) if whole else None
    return posterior.believe([observed(trial, level, first) for trial in trials[whole:]], level.sigma, before)


@functools.lru_cache(maxsize=MOST_BLOCKS)
def _settled(trials: tuple[Trial, ...], first: Trial) -> Beliefs:
    """What whole blocks of trials said when the last of them was over."""
    before = _settled(trials[:-BLOCK], first) if len(trials) > BLOCK else None
    level = measured(trials)
    return posterior.believe([observed(trial, level, first) for trial in trials[-BLOCK:]], level.sigma, before)


def observed(trial: Trial, level: Noise, baseline: Trial) -> Observation:
    """A trial's runs as one observation, minus what its seeds did to the baseline, as far as programs share that."""
    if trial.number == baseline.number or not level.shared or len(baseline.scores) < 2:
        parent = None if trial.number == baseline.number else trial.proposed.parent
        count = len(trial.scores)
        return Observation(trial.proposed.commit, parent, math.fsum(trial.scores) / count, level.sigma**2 / count)
    usual, known = math.fsum(baseline.scores) / len(baseline.scores), dict(baseline.evidence)
    # A run whose luck is partly known is worth more than one on a seed that the baseline did not have.
    worth = [1 / (1 - level.shared**2) if seed in known else 1.0 for seed, _ in trial.evidence]
    fair = [score - level.shared * (known.get(seed, usual) - usual) for seed, score in trial.evidence]
    total = math.fsum(worth)
    mean = math.fsum(each * score for each, score in zip(worth, fair, strict=True)) / total
    return Observation(trial.proposed.commit, trial.proposed.parent, mean, level.sigma**2 / total)
