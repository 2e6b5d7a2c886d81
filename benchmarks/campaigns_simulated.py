"""Campaigns of simulated runs: proposals with known effects, records like a ledger's, and a judge as in the loop."""

from __future__ import annotations

import dataclasses
import math
import random
from dataclasses import dataclass

from autoresearch.judging.confirmation import LOOKS
from autoresearch.judging.interface import Judge
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import CampaignStarted, Confirmation, RunEnded, TrialProposed, Verdict
from autoresearch.ledger.records import Decision, Outcome, Purpose, Score, Status

BASELINE = 1.0  # bits per byte
FIRST_SEED = 42


@dataclass(frozen=True)
class World:
    """The true gain of each proposal in turn, in bits per byte, and the luck of each run; the same for every judge."""

    number: int
    gains: tuple[float, ...]
    sigma: float
    luck: tuple[float, ...]

    def noise(self, trial: int, run: int) -> float:
        """A measured residual, blurred: a smoothed bootstrap (Silverman and Young 1987), with Silverman's bandwidth.

        Without the blur, two runs with so few residuals would often be equal, and none would be far out.
        """
        draw = random.Random((self.number * 10_000 + trial) * 1_000 + run)
        width = 1.06 / math.pow(len(self.luck), 0.2)
        return self.sigma * (draw.choice(self.luck) + width * draw.gauss(0, 1)) / math.hypot(1, width)


@dataclass(frozen=True)
class Played:
    """A campaign's end. Gains are true ones, in bits per byte. `idle` proposals have no effect."""

    gain: float
    trials: int
    idle: int
    idle_kept: int
    reruns: int
    confirming: int
    claims: int
    false_claims: int


class Search:
    """A campaign of `runs` runs, counting all of them, played as `loop` does it."""

    def __init__(self, world: World, judge: Judge, runs: int) -> None:
        self.world, self.judge, self.left = world, judge, runs
        self.campaign = Campaign(CampaignStarted("t", "c0", "any", judge.name, "local", "none", {}, 60.0))
        self.truth = [BASELINE]

    def play(self) -> Played:
        self._try(0.0)
        for gain in self.world.gains:
            self._confirm(asked=False)
            if self.left <= self._reserve():
                break
            self._try(gain)
        self._confirm(asked=bool(self.campaign.untested))
        return self._played()

    def _reserve(self) -> int:
        """The runs that the confirmation at the end needs for its first look."""
        tested = 3 if self.campaign.confirmations else 2
        if self.left > tested * LOOKS[0] or not self.campaign.untested:
            return 0
        return tested * LOOKS[0] if self.judge.confirmation(self.campaign, asked=True) else 0

    def _try(self, gain: float) -> None:
        number, incumbent = len(self.campaign.trials), self.campaign.incumbent
        parent = incumbent.number if incumbent else 0
        if incumbent:
            self.truth.append(self.truth[parent] - gain)
        trial = Trial(TrialProposed(number, "t", f"c{parent}", f"c{number}", "", "any", "", 1))
        while True:
            trial = dataclasses.replace(trial, runs=(*trial.runs, self._run(trial, FIRST_SEED + len(trial.runs))))
            decision = self.judge.decide(self.campaign, trial)
            if not decision.rerun or self.left <= self._reserve():
                break
        trial = dataclasses.replace(trial, verdict=verdict(trial, decision))
        self.campaign = dataclasses.replace(self.campaign, trials=(*self.campaign.trials, trial))

    def _confirm(self, *, asked: bool) -> None:
        while step := self.judge.confirmation(self.campaign, asked=asked):
            if isinstance(step, Confirmation):
                made = (*self.campaign.confirmations, step)
                self.campaign = dataclasses.replace(self.campaign, confirmations=made)
                return
            if not self.left:
                return
            trial = self.campaign.trials[step.trial]
            run = self._run(trial, step.seed, Purpose.CONFIRM)
            trials = list(self.campaign.trials)
            trials[step.trial] = dataclasses.replace(trial, runs=(*trial.runs, run))
            self.campaign = dataclasses.replace(self.campaign, trials=tuple(trials))

    def _run(self, trial: Trial, seed: int, purpose: Purpose = Purpose.TRIAL) -> RunEnded:
        self.left -= 1
        index = len(trial.runs)
        score = self.truth[trial.number] + self.world.noise(trial.number, index)
        return run_ended(trial.number, index, seed, purpose, score)

    def _played(self) -> Played:
        baseline, *tried = self.campaign.trials
        # A proposal that changes nothing has exactly its parent's score.
        idle = [t for t in tried if self.truth[t.number] == self.truth[int(t.proposed.parent[1:])]]
        claims = [each for each in self.campaign.confirmations if each.outcome is Outcome.CONFIRMED]
        runs = [run for trial in self.campaign.trials for run in trial.runs]
        confirming = sum(run.purpose is Purpose.CONFIRM for run in runs)
        incumbent = self.campaign.incumbent
        assert incumbent
        return Played(
            gain=BASELINE - self.truth[incumbent.number],
            trials=len(tried),
            idle=len(idle),
            idle_kept=sum(trial.verdict is not None and trial.verdict.status is Status.KEEP for trial in idle),
            reruns=len(runs) - confirming - len(tried) - sum(run.purpose is Purpose.TRIAL for run in baseline.runs),
            confirming=confirming,
            claims=len(claims),
            false_claims=sum(map(self._is_false, claims)),
        )

    def _is_false(self, claim: Confirmation) -> bool:
        """Whether what was confirmed is no better than something it was tested against."""
        return any(self.truth[claim.trial] >= self.truth[each.reference] for each in claim.contrasts)


def run_ended(trial: int, run: int, seed: int, purpose: Purpose, val_bpb: float) -> RunEnded:
    return RunEnded(
        trial=trial,
        run=run,
        seed=seed,
        commit=f"c{trial}",
        score=Score(val_bpb, val_bpb, 1, 1),
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
        purpose=purpose,
    )


def verdict(trial: Trial, decision: Decision) -> Verdict:
    return Verdict(
        trial.number, decision.status, decision.reason, trial.val_bpb, None, "", decision.estimate, decision.simpler
    )
