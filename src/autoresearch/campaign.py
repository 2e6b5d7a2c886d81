"""The ledger's events, gathered: a campaign, its trials, and where its search stands."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from autoresearch.events import CampaignStarted, Confirmation, ProposalRefused, RunEnded, TrialProposed, Verdict
from autoresearch.records import Comparable, Crash, Outcome, Purpose, Scalar, Status

DATA = ("train_sha256", "val_sha256")  # by which a run's environment identifies the text
PROSE = (".md", ".gitignore")  # endings of the frozen files that change no number


@dataclass(frozen=True)
class Trial:
    """A proposal with the runs and the verdict that it has had so far; the first of a campaign is its baseline."""

    proposed: TrialProposed
    runs: tuple[RunEnded, ...] = ()
    verdict: Verdict | None = None

    @property
    def number(self) -> int:
        return self.proposed.trial

    @property
    def val_bpb(self) -> float | None:
        """The mean over the scored runs, in bits per byte; None where there is none."""
        scores = self.scores
        return math.fsum(scores) / len(scores) if scores else None

    @functools.cached_property
    def evidence(self) -> tuple[tuple[int, float], ...]:
        """Seed and val_bpb of each run that says something; a replay has its seed's luck once more, and does not."""
        return tuple(
            (run.seed, run.score.val_bpb)
            for run in self.runs
            if run.score and not run.invalid and run.purpose is not Purpose.REPLAY and math.isfinite(run.score.val_bpb)
        )

    @functools.cached_property
    def scores(self) -> tuple[float, ...]:
        """The val_bpb of each run of the evidence."""
        return tuple(score for _, score in self.evidence)

    @property
    def unchosen(self) -> tuple[float, ...]:
        """The val_bpb of the runs that it was not chosen by, so that no luck is in their mean."""
        chosen_by = {run.seed for run in self.runs if run.purpose is Purpose.TRIAL}
        return tuple(score for seed, score in self.evidence if seed not in chosen_by)

    @property
    def memory_gb(self) -> float | None:
        """The largest peak of its runs, in GiB."""
        peaks = [run.memory_gb for run in self.runs if run.memory_gb is not None]
        return max(peaks, default=None)

    @property
    def sealed(self) -> Trial:
        """The same without the holdout's scores."""
        return replace(self, runs=tuple(replace(run, holdout=None) for run in self.runs))

    @property
    def crash(self) -> Crash | None:
        return next((run.crash for run in reversed(self.runs) if run.crash), None)

    @property
    def invalid(self) -> str | None:
        return next((run.invalid for run in reversed(self.runs) if run.invalid), None)


@dataclass(frozen=True)
class Campaign:
    """One unbroken search: its start and its trials, in order, the baseline first, and what was refused."""

    started: CampaignStarted
    trials: tuple[Trial, ...] = ()
    refused: tuple[ProposalRefused, ...] = ()
    guidance: str = ""
    confirmations: tuple[Confirmation, ...] = ()

    @property
    def tag(self) -> str:
        return self.started.tag

    @property
    def finished(self) -> tuple[Trial, ...]:
        return tuple(trial for trial in self.trials if trial.verdict)

    @property
    def incumbent(self) -> Trial | None:
        """The trial whose commit the next proposal starts from; None until the baseline is kept."""
        return self.lineage[-1] if self.lineage else None

    @property
    def lineage(self) -> tuple[Trial, ...]:
        """The kept trials of which the incumbent is made, the baseline first."""
        return tuple(trial for trial in self.kept if trial.number not in self.taken_back)

    @cached_property
    def kept(self) -> tuple[Trial, ...]:
        """All trials that were kept, in order, those included that a confirmation took back."""
        return tuple(t for t in self.trials if t.verdict and t.verdict.status is Status.KEEP)

    @cached_property
    def taken_back(self) -> frozenset[int]:
        """The kept trials that a confirmation took back."""
        gone = ((each.incumbent, each.after) for each in self.confirmations)
        return frozenset(t.number for first, last in gone for t in self.kept if first < t.number <= last)

    @property
    def confirmed(self) -> Trial | None:
        """The last trial of the lineage that was confirmed, else the baseline; what was kept since is provisional."""
        sure = {each.trial for each in self.confirmations if each.outcome is Outcome.CONFIRMED}
        lineage = self.lineage
        return next((t for t in reversed(lineage) if t.number in sure), lineage[0] if lineage else None)

    @property
    def provisional(self) -> tuple[Trial, ...]:
        """The keeps of the lineage since the last confirmed one."""
        lineage, confirmed = self.lineage, self.confirmed
        return lineage[lineage.index(confirmed) + 1 :] if confirmed else ()

    @property
    def untested(self) -> tuple[Trial, ...]:
        """The provisional keeps that no confirmation has looked at."""
        last = self.confirmations[-1].after if self.confirmations else -1
        return tuple(trial for trial in self.provisional if trial.number > last)

    def class_of(self, run: RunEnded) -> Comparable:
        """The class in which a run's val_bpb may be compared."""
        is_trusted = self.started.grader == "trusted"  # else the environment is the run's own word
        return comparable(self.started, run.device, run.environment if is_trusted else {})

    def classes(self, *trials: Trial) -> tuple[Comparable, ...]:
        """The classes of the scored runs of these trials (else of all), in order and each once."""
        runs = (run for trial in trials or self.trials for run in trial.runs if run.score)
        return tuple(dict.fromkeys(map(self.class_of, runs)))

    @property
    def sealed(self) -> Campaign:
        """The same without the holdout's scores, for whoever proposes."""
        return replace(self, trials=tuple(trial.sealed for trial in self.trials))

    @property
    def spendings(self) -> tuple[TrialProposed | ProposalRefused, ...]:
        """All that its researcher may have spent tokens or money on, refused proposals included."""
        return (*(trial.proposed for trial in self.trials), *self.refused)

    @property
    def tokens(self) -> int:
        return sum(spent.tokens or 0 for spent in self.spendings)

    @property
    def usd(self) -> float:
        return sum(spent.usd or 0.0 for spent in self.spendings)


def comparable(started: CampaignStarted, device: str | None, fingerprints: Mapping[str, Scalar]) -> Comparable:
    """The class of a campaign's run on a device, with the fingerprints of its text where they are known.

    Of the frozen files all but prose count: prepare.py may read any other.
    """
    code = {path: digest for path, digest in started.frozen_sha256.items() if not path.endswith(PROSE)}
    data = {name: fingerprints[name] for name in DATA if name in fingerprints}
    return Comparable(device, started.preset, _digest(code), _digest(data) if data else None)


def _digest(table: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
