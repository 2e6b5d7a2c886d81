"""Rules that the judge is measured against, behind the same interface. Each knows the true noise of a run."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from autoresearch.judging.judge import BASELINE
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import Confirmation
from autoresearch.ledger.records import Decision, Status, Wanted


class Unconfirmed:
    """Nothing is ever confirmed, and a trial is asked for run after run."""

    def runs_needed(self, campaign: Campaign, candidate: Trial) -> int:
        return 1

    def confirmation(
        self, campaign: Campaign, *, asked: bool, flying: Collection[Wanted] = ()
    ) -> Wanted | Confirmation | None:
        return None


class ThresholdJudge(Unconfirmed):
    """Keeps a candidate whose one run is better by two standard deviations of a run."""

    name = "threshold"

    def __init__(self, sigma: float) -> None:
        self.needed = 2 * sigma

    def decide(self, campaign: Campaign, candidate: Trial) -> Decision:
        if campaign.incumbent is None:
            return BASELINE
        return kept_if(campaign.incumbent.scores[0] - candidate.scores[0] > self.needed)


class StrictJudge(Unconfirmed):
    """A paired test at 5 % over three seeds for each trial. A candidate that is behind after any seed is dropped."""

    name = "strict"
    SEEDS, QUANTILE = 3, 1.645

    def __init__(self, sigma: float) -> None:
        self.needed = self.QUANTILE * sigma * math.sqrt(2 / self.SEEDS)

    def decide(self, campaign: Campaign, candidate: Trial) -> Decision:
        ran = len(candidate.scores)
        if campaign.incumbent is None:
            return Decision(Status.KEEP, "", rerun=ran < self.SEEDS)
        gain = sum(campaign.incumbent.scores[:ran]) / ran - sum(candidate.scores) / ran
        if ran < self.SEEDS:
            return Decision(Status.DISCARD, "", rerun=gain > 0)
        return kept_if(gain > self.needed)


class OracleJudge(Unconfirmed):
    """Knows how the effects are distributed, and keeps what is better on average, with one run each.

    It models the incumbent as a Gaussian, like the judge, but the effects as a sample of the true ones. It runs no
    baseline seeds and confirms nothing: about the best that a rule with one run per trial could reach.
    """

    name = "oracle"

    def __init__(self, effects: Sequence[float], sigma: float) -> None:
        self.effects, self.variance = np.array(effects), sigma**2
        self.mean = self.known = 0.0

    def decide(self, campaign: Campaign, candidate: Trial) -> Decision:
        score = candidate.scores[0]
        if campaign.incumbent is None:
            self.mean, self.known = score, self.variance
            return BASELINE
        total = self.known + self.variance
        surprise = score - (self.mean - self.effects)
        weights = np.exp(-(surprise**2) / (2 * total) + np.min(surprise**2) / (2 * total))
        weights /= weights.sum()
        parents = self.mean + self.known / total * surprise
        keep = float(weights @ self.effects) > 0
        values = parents - self.effects if keep else parents
        self.mean = float(weights @ values)
        self.known = self.known * self.variance / total + float(weights @ (values - self.mean) ** 2)
        return kept_if(keep)


def kept_if(better: bool) -> Decision:
    return Decision(Status.KEEP if better else Status.DISCARD, "")
