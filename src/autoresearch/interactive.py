"""One trial of the edits in the working tree, and the answers that an interactive agent needs: for `try` and `mcp`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from autoresearch import archive, comparing, compose, config, proposing, report, standing
from autoresearch.brief import Brief
from autoresearch.campaign import Campaign, Trial
from autoresearch.errors import UserError
from autoresearch.events import Event, ProposalRefused, RunStarted
from autoresearch.ledger import Ledger
from autoresearch.loop import try_once
from autoresearch.proposing import Answer
from autoresearch.records import Proposal, RunEvent, Status
from autoresearch.stages import Stages
from autoresearch.workspace import Workspace

TAIL_LINES = 15
CURVE_POINTS = 20

Say = Callable[[str], None]
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Lab:
    """A lab as an agent beside it sees it; all answers are plain data, ready for JSON."""

    workspace: Workspace

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.workspace.ledger)

    def campaign(self, tag: str | None = None) -> Campaign:
        """The campaign of that tag, or the latest.

        Raises:
            UserError: there is none.
        """
        found = self.ledger.campaign(tag)
        if found is None:
            names = ", ".join(item.tag for item in self.ledger.campaigns())
            known = f"it has {names}" if names else "begin one with `autoresearch run` or `autoresearch try`"
            raise UserError(f"{self.workspace.root} has no campaign{f' {tag}' if tag else ''} yet: {known}")
        return found

    def status(self, tag: str | None = None) -> dict[str, object]:
        """Where the campaign stands, and whether a loop is at work."""
        campaign = self.campaign(tag)
        summary = report.of_campaign(campaign)
        spent = {"tokens": campaign.tokens, "usd": round(campaign.usd, 4), "refused": len(campaign.refused)}
        running = self.workspace.is_locked()
        found = standing.of(campaign.sealed)
        return {
            "tag": campaign.tag,
            "class": comparing.text(campaign),
            "running": running,
            "spent": spent,
            "summary": dataclasses.asdict(summary),
            "standing": dataclasses.asdict(found) if found else None,
        }

    def history(self, limit: int | None = 20, tag: str | None = None) -> list[dict[str, object]]:
        """The last trials (without a limit all), the newest last, each with the class of its val_bpb."""
        campaign = self.campaign(tag)
        both = list(zip(report.rows(campaign), campaign.finished, strict=True))[-limit if limit else None :]
        return [{**dataclasses.asdict(row), "class": comparing.names(campaign, trial)} for row, trial in both]

    def show(self, number: int) -> dict[str, object]:
        """One trial: idea, reason, verdict, numbers, patch, the end of its log and a few points of its curve.

        Raises:
            UserError: there is no such trial.
        """
        trial = self.trial(number)
        past = archive.of_lab(self.workspace, self.ledger, ())
        curve = past.curve(number)
        return {
            **dataclasses.asdict(trial.sealed),
            "val_bpb": trial.val_bpb,
            "memory_gb": trial.memory_gb,
            "class": self.class_of(trial),
            "patch": past.patch(number),
            "log": "\n".join(past.log(number).splitlines()[-TAIL_LINES:]),
            "curve": [dict(point) for point in curve[:: max(1, len(curve) // CURVE_POINTS)]],
        }

    def trial(self, number: int) -> Trial:
        """The trial of that number.

        Raises:
            UserError: there is none.
        """
        trial = self.ledger.trial(number)
        if trial is None:
            raise UserError(f"there is no trial {number} in {self.workspace.root}: `autoresearch log` lists them")
        return trial

    def class_of(self, trial: Trial) -> str | None:
        """The class of a trial's val_bpb; None where it has none."""
        return comparing.names(self.campaign(trial.proposed.tag), trial)

    def guide(self, text: str) -> str:
        """Add to the guidance, which is read before every proposal; returns all of it.

        Raises:
            UserError: there is nothing to add.
        """
        if not text.strip():
            raise UserError('the guidance is empty: say something, as in `autoresearch guide "try fewer heads"`')
        return self.workspace.add_guidance(text)

    def guidance(self) -> str:
        return self.workspace.read_guidance()

    def papers(self, query: str) -> str:
        """What the literature says to a query."""
        return compose.literature(self.workspace, config.load(self.workspace.program)[0], query)

    def attempt(self, idea: str, *, why: str = "", say: Say, progress: Progress) -> dict[str, object]:
        """Like `try_edits`, told in words: `progress` hears the share of the budget that is spent (0 to 1)."""
        hear = _Hearing(say, progress)
        return self.try_edits(idea, why=why, announce=hear.event, progress=hear.run)

    def try_edits(
        self,
        idea: str,
        *,
        why: str = "",
        tag: str | None = None,
        announce: Callable[[Event], None],
        progress: Callable[[int, RunEvent], None],
    ) -> dict[str, object]:
        """Run one trial of the edits in the working tree; blocks for as long as it takes, and prints nothing.

        Without a campaign one is begun, whose baseline is the last commit.

        Raises:
            UserError: the edits cannot be tried, and why.
        """
        if not idea.strip():
            raise UserError('the idea is empty: say in one line what you changed, as in `autoresearch try -m "deeper"`')
        settings = config.load(self.workspace.program)[0]
        with self.workspace.lock():
            ledger = self.ledger
            ledger.mend()
            tag = compose.tag_of(tag, ledger, self.workspace)
            stages = compose.compose(self.workspace, ledger, settings, tag, announce, progress, agent=_Agent())
            trial = try_once(stages, tag, lambda campaign: _from_working_tree(stages, campaign, idea, why))
            return {
                **_result(stages, tag, trial),
                "notice": compose.notice(stages.campaign(tag), self.workspace, ("prepare.py",)),
            }


class _Agent:
    """Stands where a loop has its researcher: here it is the agent itself that calls, and nobody asks it."""

    name = "try"

    def propose(self, brief: Brief) -> Proposal:
        raise AssertionError("the interactive agent calls; it is not asked")


@dataclass(frozen=True)
class _Hearing:
    """Turns what the loop announces into words and a share of the budget."""

    say: Say
    tell: Progress

    def event(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.say(f"trial {event.trial} runs, seed {event.seed}")

    def run(self, trial: int, event: RunEvent) -> None:
        share, loss, step = (event.values.get(name) for name in ("progress", "loss", "step"))
        if isinstance(share, int | float) and isinstance(loss, int | float):
            self.tell(min(1.0, float(share)), f"trial {trial}: step {step}, loss {loss:.4f}")
        elif event.name == "grade_requested":
            self.tell(1.0, f"trial {trial}: trained, is being graded")


# ---------------------------------------------------------------- the working tree


def _from_working_tree(stages: Stages, campaign: Campaign, idea: str, why: str) -> Answer | ProposalRefused | None:
    """The editable files as they lie in the checkout, as a proposal on the incumbent; None where they are its own."""
    assert campaign.incumbent is not None
    files = {path: _read(stages, path) for path in stages.editable}
    incumbent = stages.texts(campaign.incumbent.proposed.commit)
    if files == incumbent:
        return None
    frozen = sorted(set(stages.workspace.changed_paths()) - set(stages.editable) - {"program.md"})
    tracked = [path for path in frozen if path in stages.workspace.files(campaign.started.base)]
    if tracked:
        raise UserError(
            f"{', '.join(tracked)} may not be changed, a trial edits {', '.join(stages.editable)} and nothing else: "
            f"put it back with `git restore {' '.join(tracked)}`, then try again"
        )
    proposal = proposing.sound(stages, Proposal(idea, files, why=why))
    return proposing.check(stages, campaign, proposal, _Agent.name, written_for=incumbent)


def _read(stages: Stages, path: str) -> str:
    try:
        return (stages.workspace.root / path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): mend it, then try again") from error


# ---------------------------------------------------------------- the answer


def _result(stages: Stages, tag: str, trial: Trial | None) -> dict[str, object]:
    campaign = stages.campaign(tag)
    best = campaign.incumbent
    assert best is not None
    restore = f"`git restore --source={stages.workspace.branch(tag)} -- {' '.join(stages.editable)}`"
    if trial is None:
        after = "the working tree is the best version so far: change it, then `autoresearch try -m IDEA`"
        return {"tag": tag, "trial": None, "status": None, "val_bpb": None, "best": best.val_bpb, "next": after}
    assert trial.verdict is not None
    verdict = trial.verdict
    if trial.number in campaign.taken_back:
        verdict = dataclasses.replace(verdict, status=Status.DISCARD, reason=campaign.confirmations[-1].reason)
        trial = dataclasses.replace(trial, verdict=verdict)
    return {
        "tag": tag,
        "trial": trial.number,
        "status": verdict.status.value,
        "reason": verdict.reason,
        "val_bpb": trial.val_bpb,
        "best": best.val_bpb,
        "memory_gb": trial.memory_gb,
        "commit": trial.proposed.commit,
        "next": _next_step(trial, restore),
    }


def _next_step(trial: Trial, restore: str) -> str:
    """What the agent does now, in one line."""
    assert trial.verdict is not None
    if trial.verdict.status is Status.CRASH:
        return f"see `autoresearch show {trial.number}`; a slip: mend it and try again; else go back by {restore}"
    if trial.verdict.status is Status.INVALID:
        return f"its score is not to be believed: go back to the best version by {restore}, then change that"
    if trial.verdict.status is Status.DISCARD:
        return f"go back to the best version by {restore}, then change that"
    return "this is the best version now: go on from here"
