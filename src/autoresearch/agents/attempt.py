"""One trial of the edits in the working tree, as `try` and the MCP server run it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from autoresearch.agents.answers import Answers
from autoresearch.base.errors import UserError
from autoresearch.judging import claims
from autoresearch.lab import config
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import Event, FileSaved, ProposalRefused, RunStarted
from autoresearch.ledger.records import Proposal, RunEvent, Status
from autoresearch.loop import compose, proposals
from autoresearch.loop.loop import try_once
from autoresearch.loop.proposals import Answer
from autoresearch.loop.stages import Stages
from autoresearch.researchers.interface import Brief

Say = Callable[[str], None]
Progress = Callable[[float, str], None]


class InteractiveLab(Answers):
    """A lab as an agent works in it: it answers questions, and runs trials of the edits in the working tree."""

    def attempt(self, idea: str, *, why: str = "", say: Say, progress: Progress) -> dict[str, object]:
        """Like `try_edits`, but reports as text. `progress` receives the share of the budget that is spent (0 to 1)."""
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
        """Run one trial of the edits in the working tree. Blocks until it is done, and prints nothing.

        Starts a campaign if there is none, with the last commit as its baseline.

        Raises:
            UserError: the edits cannot be tried, and why.
        """
        if not idea.strip():
            raise UserError('the idea is empty: say in one line what you changed, as in `autoresearch try -m "deeper"`')
        settings = config.load(self.workspace.program)[0]
        with self.workspace.lock():
            ledger = self.ledger
            ledger.repair()
            tag = compose.tag_of(tag, ledger, self.workspace)
            stages = compose.compose(self.workspace, ledger, settings, tag, announce, progress, agent=_Agent())
            trial = try_once(stages, tag, lambda campaign: _from_working_tree(stages, campaign, idea, why))
            return {
                **_result(stages, tag, trial),
                "notice": compose.notice(stages.campaign(tag), self.workspace, ("prepare.py",)),
            }

    def papers(self, query: str) -> str:
        """What the literature says about a query."""
        return compose.literature(self.workspace, config.load(self.workspace.program)[0], query)


class _Agent:
    """Takes the researcher's place in the loop. Here the agent calls, and is never asked."""

    name = "try"

    def propose(self, brief: Brief) -> Proposal:
        raise AssertionError("the interactive agent is never asked for a proposal")


@dataclass(frozen=True)
class _Hearing:
    """Turns the loop's events into text and a share of the budget."""

    say: Say
    tell: Progress

    def event(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.say(f"trial {event.trial} is running, seed {event.seed}")
        elif isinstance(event, FileSaved):
            self.say(event.words)

    def run(self, trial: int, event: RunEvent) -> None:
        share, loss, step = (event.values.get(name) for name in ("progress", "loss", "step"))
        if isinstance(share, int | float) and isinstance(loss, int | float):
            self.tell(min(1.0, float(share)), f"trial {trial}: step {step}, loss {loss:.4f}")
        elif event.name == "grade_requested":
            self.tell(1.0, f"trial {trial}: trained, now being graded")


# ---------------------------------------------------------------- the working tree


def _from_working_tree(stages: Stages, campaign: Campaign, idea: str, why: str) -> Answer | ProposalRefused | None:
    """The editable files of the checkout as a proposal on the incumbent; None if they are the same."""
    assert campaign.incumbent is not None
    files = {path: _read(stages, path) for path in stages.editable}
    incumbent = stages.texts(campaign.incumbent.proposed.commit)
    if files == incumbent:
        return None
    frozen = sorted(set(stages.workspace.changed_paths()) - set(stages.editable) - {"program.md"})
    tracked = [path for path in frozen if path in stages.workspace.files(campaign.started.base)]
    if tracked:
        raise UserError(
            f"{', '.join(tracked)} may not change: a trial edits {', '.join(stages.editable)} and nothing else. Put "
            f"it back with `git restore {' '.join(tracked)}`, then try again"
        )
    proposal = proposals.sound(stages, Proposal(idea, files, why=why))
    return proposals.admit(stages, campaign, proposal, _Agent.name, written_for=incumbent)


def _read(stages: Stages, path: str) -> str:
    try:
        return (stages.workspace.root / path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}): fix it, then try again") from error


# ---------------------------------------------------------------- the answer


def _result(stages: Stages, tag: str, trial: Trial | None) -> dict[str, object]:
    campaign = stages.campaign(tag)
    best = claims.best_of(campaign)
    assert best is not None
    restore = f"`git restore --source={stages.workspace.branch(tag)} -- {' '.join(stages.editable)}`"
    if trial is None:
        after = "the working tree is the best version so far: change it, then run `autoresearch try -m IDEA`"
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
    """What the agent should do now, in one line."""
    assert trial.verdict is not None
    if trial.verdict.status is Status.CRASH:
        return (
            f"look at `autoresearch show {trial.number}`; if it is a slip, fix it and try again, otherwise go back "
            f"with {restore}"
        )
    if trial.verdict.status is Status.INVALID:
        return f"its score cannot be trusted: go back to the best version with {restore}, then change that"
    if trial.verdict.status is Status.DISCARD:
        return f"go back to the best version with {restore}, then change that"
    return "this is the best version now: continue from here"
