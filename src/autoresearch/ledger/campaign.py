"""The ledger's events gathered into a campaign, its trials, and where its search stands."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Union

from autoresearch.ledger.events import (
    CampaignStarted,
    ChosenByHand,
    Confirmation,
    Ordered,
    ProposalRefused,
    RunEnded,
    TrialProposed,
    Verdict,
)
from autoresearch.ledger.records import Comparable, Crash, Order, Outcome, Purpose, Scalar, Status

Move = Union["Trial", Confirmation, ChosenByHand]  # what moves the incumbent
DATA = ("train_sha256", "val_sha256")  # identify the text in a run's environment
PROSE = (".md", ".gitignore")  # endings of frozen files that cannot change a number


@dataclass(frozen=True, eq=False)
class Trial:
    """A proposal with the runs and the verdict it has so far. The first trial of a campaign is its baseline.

    `runs` are evidence. Runs that were set aside because something disturbed them are only in `disturbed`. A trial that
    has one more run or a verdict is another object; one is equal to itself only.
    """

    proposed: TrialProposed
    runs: tuple[RunEnded, ...] = ()
    verdict: Verdict | None = None
    disturbed: tuple[RunEnded, ...] = ()

    def having(self, run: RunEnded) -> Trial:
        """The same with one more run. The only place that decides where a run belongs. One told twice counts once."""
        if any(run.run == each.run for each in self.every_run):
            return self
        if run.set_aside:
            return Trial(self.proposed, self.runs, self.verdict, (*self.disturbed, run))
        runs = tuple(sorted((*self.runs, run), key=lambda each: each.run))  # in whatever order they ended
        return Trial(self.proposed, runs, self.verdict, self.disturbed)

    @property
    def every_run(self) -> tuple[RunEnded, ...]:
        """Its runs, and those that were set aside."""
        return (*self.runs, *self.disturbed)

    @property
    def number(self) -> int:
        return self.proposed.trial

    @property
    def val_bpb(self) -> float | None:
        """The mean over the scored runs, in bits per byte; None if there is none."""
        scores = self.scores
        return math.fsum(scores) / len(scores) if scores else None

    @cached_property
    def evidence(self) -> tuple[tuple[int, float], ...]:
        """Seed and val_bpb of each run that counts. A replay does not: it repeats the luck of its seed."""
        return tuple(
            (run.seed, run.score.val_bpb)
            for run in self.runs
            if run.score and not run.invalid and run.purpose is not Purpose.REPLAY and math.isfinite(run.score.val_bpb)
        )

    @cached_property
    def scores(self) -> tuple[float, ...]:
        """The val_bpb of each run that counts."""
        return tuple(score for _, score in self.evidence)

    @property
    def memory_gb(self) -> float | None:
        """The largest peak of its runs, in GiB."""
        peaks = [run.memory_gb for run in self.runs if run.memory_gb is not None]
        return max(peaks, default=None)

    @cached_property
    def sealed(self) -> Trial:
        """The same without the holdout's scores."""
        if not any(run.holdout for run in self.every_run):
            return self
        runs, disturbed = (tuple(replace(run, holdout=None) for run in each) for each in (self.runs, self.disturbed))
        return replace(self, runs=runs, disturbed=disturbed)

    @property
    def crash(self) -> Crash | None:
        return next((run.crash for run in reversed(self.runs) if run.crash), None)

    @property
    def invalid(self) -> str | None:
        return next((run.invalid for run in reversed(self.runs) if run.invalid), None)


@dataclass(frozen=True, eq=False)
class Campaign:
    """One unbroken search: its start, its trials in order (the baseline first), and what was refused.

    It never changes, and what is computed from it is kept: one is equal to itself only.
    """

    started: CampaignStarted
    trials: tuple[Trial, ...] = ()
    refused: tuple[ProposalRefused, ...] = ()
    guidance: str = ""
    confirmations: tuple[Confirmation, ...] = ()
    chosen: tuple[ChosenByHand, ...] = ()
    orders: tuple[Ordered, ...] = ()

    @property
    def tag(self) -> str:
        return self.started.tag

    @cached_property
    def finished(self) -> tuple[Trial, ...]:
        return tuple(trial for trial in self.trials if trial.verdict)

    @property
    def incumbent(self) -> Trial | None:
        """The trial whose commit the next proposal starts from; None until the baseline is kept."""
        return self.lineage[-1] if self.lineage else None

    @cached_property
    def lineage(self) -> tuple[Trial, ...]:
        """The kept trials that lead to the incumbent, the baseline first."""
        return self._path[0]

    @property
    def taken_back(self) -> Mapping[int, Move]:
        """The kept trials that do not lead to the incumbent any more, each with what took its place or reverted it."""
        return self._path[1]

    @cached_property
    def _path(self) -> tuple[tuple[Trial, ...], Mapping[int, Move]]:
        line: list[Trial] = []
        gone: dict[int, Move] = {}
        for step in self._steps:
            if isinstance(step, Trial) and self._is_on_top(step, line):
                line.append(step)
                gone.pop(step.number, None)
                continue
            before, line = line, self._after(step, line)
            gone |= {trial.number: step for trial in before if trial not in line}
            gone = {number: why for number, why in gone.items() if all(trial.number != number for trial in line)}
        kept = {trial.number for trial in self.kept}
        return tuple(line), {number: why for number, why in gone.items() if number in kept}

    def _is_on_top(self, trial: Trial, line: list[Trial]) -> bool:
        """Whether a trial was made on the end of a lineage."""
        parent = trial.proposed.parent
        return not line or parent == line[-1].proposed.commit or parent not in self.by_commit

    def _after(self, step: Move, line: list[Trial]) -> list[Trial]:
        """The lineage after a step that shortens it or leads it elsewhere."""
        if isinstance(step, Trial):
            return self._made_of(step.number)
        numbers = [trial.number for trial in line]
        if step.incumbent in numbers:
            return line[: numbers.index(step.incumbent) + 1]
        return self._made_of(step.incumbent) if isinstance(step, ChosenByHand) else line

    @property
    def _steps(self) -> list[Move]:
        """What moved the incumbent, in the order in which it happened."""
        placed: list[tuple[tuple[int, int, int], Move]] = [
            *(((self._place(trial), -1, 0), trial) for trial in self.finished if _was_kept(trial)),
            *(((self.verdicts_before(each) - 1, nth, 1), each) for nth, each in enumerate(self.confirmations)),
            *(((each.verdicts - 1, each.confirmations, 0), each) for each in self.chosen),
        ]
        return [step for _, step in sorted(placed, key=lambda both: both[0])]

    def _place(self, trial: Trial) -> int:
        """The number of verdicts before a finished trial's own."""
        known = trial.verdict.place if trial.verdict else None
        return self._order[trial] if known is None else known

    @cached_property
    def _order(self) -> Mapping[Trial, int]:
        """The finished trials, each with its place among them: that of its verdict, where there was one slot."""
        return {trial: nth for nth, trial in enumerate(self.finished)}

    def verdicts_before(self, confirmation: Confirmation) -> int:
        """How many verdicts there were before a confirmation was concluded."""
        if confirmation.verdicts is not None:
            return confirmation.verdicts
        return sum(trial.number <= confirmation.after for trial in self.finished)

    def _made_of(self, number: int) -> list[Trial]:
        """A trial and what it was made from, the baseline first."""
        line = [next(trial for trial in self.trials if trial.number == number)]
        while (before := self.parent_of(line[-1])) is not None and before not in line:
            line.append(before)
        return line[::-1]

    @cached_property
    def by_commit(self) -> Mapping[str, Trial]:
        """Its trials by their commits."""
        return {trial.proposed.commit: trial for trial in self.trials}

    def parent_of(self, trial: Trial) -> Trial | None:
        """The trial that a trial was made on; None for the baseline."""
        return None if trial.number == self.trials[0].number else self.by_commit.get(trial.proposed.parent)

    @cached_property
    def kept(self) -> tuple[Trial, ...]:
        """All trials that were kept, in order, including those that were taken back later."""
        by_hand = {each.trial for each in self.chosen if each.kept}
        return tuple(t for t in self.trials if t.verdict and (t.verdict.status is Status.KEEP or t.number in by_hand))

    @cached_property
    def standing(self) -> frozenset[int]:
        """The numbers of the lineage."""
        return frozenset(trial.number for trial in self.lineage)

    @property
    def confirmed(self) -> Trial | None:
        """The last confirmed trial of the lineage, else the baseline. What was kept after it is provisional."""
        sure = {each.trial for each in self.confirmations if each.outcome is Outcome.CONFIRMED}
        lineage = self.lineage
        return next((t for t in reversed(lineage) if t.number in sure), lineage[0] if lineage else None)

    @property
    def provisional(self) -> tuple[Trial, ...]:
        """The kept trials of the lineage after the last confirmed one."""
        lineage, confirmed = self.lineage, self.confirmed
        return lineage[lineage.index(confirmed) + 1 :] if confirmed else ()

    @property
    def untested(self) -> tuple[Trial, ...]:
        """The provisional keeps that no confirmation has tested."""
        known = self.verdicts_before(self.confirmations[-1]) if self.confirmations else 0
        since = {each.trial for each in self.chosen if each.kept and each.confirmations == len(self.confirmations)}
        return tuple(trial for trial in self.provisional if self._place(trial) >= known or trial.number in since)

    @property
    def paused(self) -> Ordered | None:
        """The order to pause, if it is not resumed since."""
        latest = next((each for each in reversed(self.orders) if each.order in (Order.PAUSE, Order.RESUME)), None)
        return latest if latest and latest.order is Order.PAUSE else None

    @property
    def is_to_confirm(self) -> bool:
        """Whether somebody ordered a confirmation that has not ended yet."""
        return any(e.order is Order.CONFIRM and e.confirmations == len(self.confirmations) for e in self.orders)

    def limit(self, name: str) -> float | None:
        """The latest limit of that name that somebody ordered; None if nobody did."""
        found = (getattr(each, name) for each in reversed(self.orders) if each.order is Order.LIMIT)
        return next((value for value in found if value is not None), None)

    def status_of(self, trial: Trial) -> Status | None:
        """What a trial counts as today: its verdict, unless it was taken back or kept by hand since."""
        if trial.number in self.standing:
            return Status.KEEP
        if trial.number in self.taken_back:
            return Status.DISCARD
        return trial.verdict.status if trial.verdict else None

    def since(self, trial: Trial) -> list[str]:
        """What became of a trial after its verdict, in words: tests on fresh seeds, decisions by hand, a better one."""
        told = [each.words for each in self.confirmations if each.trial == trial.number]
        told += [each.words for each in self.chosen if each.trial == trial.number]
        gone = self.taken_back.get(trial.number)
        if isinstance(gone, Trial):
            told.append(f"#{gone.number}, made without it, was better")
        elif gone is not None and gone.trial != trial.number:
            told.append(gone.words)
        return told

    def class_of(self, run: RunEnded) -> Comparable:
        """The class within which a run's val_bpb can be compared."""
        is_trusted = self.started.grader == "trusted"  # otherwise the environment is the run's own word
        return comparable(self.started, run.device, run.environment if is_trusted else {})

    def classes(self, *trials: Trial) -> tuple[Comparable, ...]:
        """The classes of the scored runs of these trials (default: of all), in order, each once."""
        runs = (run for trial in trials or self.trials for run in trial.runs if run.score)
        unlike = {(run.device, *map(run.environment.get, DATA)): run for run in runs}
        return tuple(dict.fromkeys(map(self.class_of, unlike.values())))

    @cached_property
    def disturbed(self) -> tuple[RunEnded, ...]:
        """The runs that were set aside and made again, because something disturbed them."""
        return tuple(run for trial in self.trials for run in trial.disturbed)

    @cached_property
    def sealed(self) -> Campaign:
        """The same without the holdout's scores, for whoever proposes."""
        return replace(self, trials=tuple(trial.sealed for trial in self.trials))

    @property
    def spendings(self) -> tuple[TrialProposed | ProposalRefused, ...]:
        """Everything its researcher may have spent tokens or money on, including refused proposals."""
        return (*(trial.proposed for trial in self.trials), *self.refused)

    @property
    def tokens(self) -> int:
        return sum(spent.tokens or 0 for spent in self.spendings)

    @property
    def usd(self) -> float:
        return sum(spent.usd or 0.0 for spent in self.spendings)


def _was_kept(trial: Trial) -> bool:
    return trial.verdict is not None and trial.verdict.status is Status.KEEP


def comparable(started: CampaignStarted, device: str | None, fingerprints: Mapping[str, Scalar]) -> Comparable:
    """The class of a campaign's run on a device, with the fingerprints of its text if known.

    All frozen files count except prose, since prepare.py may read any of them.
    """
    code = {path: digest for path, digest in started.frozen_sha256.items() if not path.endswith(PROSE)}
    data = {name: fingerprints[name] for name in DATA if name in fingerprints}
    return Comparable(device, started.preset, _digest(code), _digest(data) if data else None)


def _digest(table: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
