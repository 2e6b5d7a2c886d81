"""What an agent or a command asks about a lab: status, history, one trial, guidance."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

from autoresearch.agents import in_short, overview
from autoresearch.agents.overview import Overview
from autoresearch.base.errors import UserError
from autoresearch.judging import comparability
from autoresearch.lab import past_trials
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger import report
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.ledger import Ledger

TAIL_LINES = 15
CURVE_POINTS = 20


@dataclass(frozen=True)
class Answers:
    """A lab as an agent sees it. All answers are plain data, ready for JSON."""

    workspace: Workspace

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.workspace.ledger)

    def campaign(self, tag: str | None = None) -> Campaign:
        """The campaign with that tag, or the latest.

        Raises:
            UserError: there is none.
        """
        found = self.ledger.campaign(tag)
        if found is None:
            names = ", ".join(item.tag for item in self.ledger.campaigns())
            if names and tag is None:
                raise UserError(f"{self.workspace.root} has only controls ({names}): name one with --tag")
            known = f"it has {names}" if names else "start one with `autoresearch run` or `autoresearch try`"
            raise UserError(f"{self.workspace.root} has no campaign{f' {tag}' if tag else ''} yet: {known}")
        return found

    def overview(self, tag: str | None = None) -> Overview:
        """Where the campaign with that tag stands, or the latest.

        Raises:
            UserError: there is none, or its runs are of several classes.
        """
        path = self.workspace.overview
        return overview.read(path, self.ledger, tag) or overview.save(path, self.ledger, self.campaign(tag))

    def campaigns(self) -> list[dict[str, object]]:
        """Every campaign, newest last: its tag, what it is, and what it has reached.

        Raises:
            UserError: there is none.
        """
        every = self.ledger.campaigns()
        current = self.ledger.campaign() or (every[-1] if every else self.campaign())
        return [in_short.campaign(each, is_current=each is current) for each in every]

    def status(self, tag: str | None = None, *, full: bool = False) -> dict[str, object]:
        """Where the campaign stands, and whether a loop is running; in short, or everything that is known."""
        found, running = self.overview(tag), self.workspace.is_locked()
        if not full:
            return in_short.status(found, running=running)
        return {
            "tag": found.started.tag,
            "class": str(found.comparable) if found.comparable else None,
            "running": running,
            "spent": {"tokens": found.tokens, "usd": round(found.usd, 4), "refused": found.refused},
            "summary": dataclasses.asdict(found.report),
            "standing": dataclasses.asdict(found.standing) if found.standing else None,
        }

    def history(self, limit: int | None = 20, tag: str | None = None, *, full: bool = False) -> list[dict[str, object]]:
        """The last trials (all if there is no limit), newest last; in full with the class of each val_bpb."""
        campaign = self.campaign(tag)
        rows = report.rows(campaign, limit)
        both = zip(rows, campaign.finished[len(campaign.finished) - len(rows) :], strict=True)
        if not full:
            return [in_short.row(row, trial) for row, trial in both]
        return [
            {
                **dataclasses.asdict(row),
                **dataclasses.asdict(report.pace(trial)),
                "class": comparability.names(campaign, trial),
                "disturbed": [run.disturbed for run in trial.every_run if run.disturbed],
            }
            for row, trial in both
        ]

    def show(self, number: int, *, full: bool = False) -> dict[str, object]:
        """One trial: idea, reason, verdict, numbers, patch, the end of its log and a few points of its curve.

        In full it also has everything that was recorded of it.

        Raises:
            UserError: there is no such trial.
        """
        trial = self.trial(number)
        past = past_trials.of_lab(self.workspace, self.ledger, ())
        curve = past.curve(number)
        found: dict[str, object] = {
            "patch": past.patch(number),
            "log": "\n".join(past.log(number).splitlines()[-TAIL_LINES:]),
            "curve": [dict(point) for point in curve[:: max(1, len(curve) // CURVE_POINTS)]],
        }
        if not full:
            return in_short.trial(self.campaign(trial.proposed.tag), trial) | in_short.trimmed(found)
        whole = {**dataclasses.asdict(trial.sealed), "val_bpb": trial.val_bpb, "memory_gb": trial.memory_gb}
        return {**whole, "class": self.class_of(trial), **found}

    def trial(self, number: int) -> Trial:
        """The trial with that number.

        Raises:
            UserError: there is none.
        """
        trial = self.ledger.trial(number)
        if trial is None:
            if not self.ledger.campaigns():
                self.campaign()
            raise UserError(f"there is no trial {number} in {self.workspace.root}: `autoresearch log` lists them")
        return trial

    def class_of(self, trial: Trial) -> str | None:
        """The class of a trial's val_bpb; None if it has none."""
        return comparability.names(self.campaign(trial.proposed.tag), trial)

    def guide(self, text: str) -> str:
        """Append to the guidance, which is read before every proposal. Returns all of it.

        Raises:
            UserError: there is nothing to append.
        """
        if not text.strip():
            raise UserError('the guidance is empty: say something, as in `autoresearch guide "try fewer heads"`')
        return self.workspace.add_guidance(text)

    def guidance(self) -> str:
        return self.workspace.read_guidance()
