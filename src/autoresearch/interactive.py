"""One trial of the edits in the working tree, and the answers that an interactive agent needs: for `try` and `mcp`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from autoresearch import archive, compose, config, proposing, report
from autoresearch.errors import UserError
from autoresearch.ledger import Ledger
from autoresearch.loop import try_once
from autoresearch.proposing import Answer
from autoresearch.records import Brief, Campaign, Event, Proposal, ProposalRefused, RunEvent, RunStarted, Status, Trial
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
        summary = report.summarise(report.rows(campaign), report.run_seconds(campaign))
        spent = {"tokens": campaign.tokens, "usd": round(campaign.usd, 4), "refused": len(campaign.refused)}
        running = self.workspace.is_locked()
        return {"tag": campaign.tag, "running": running, "spent": spent, "summary": dataclasses.asdict(summary)}

    def history(self, limit: int = 20, tag: str | None = None) -> list[dict[str, object]]:
        """The last trials, the newest last."""
        return [dataclasses.asdict(row) for row in report.rows(self.campaign(tag))[-limit:]]

    def show(self, number: int) -> dict[str, object]:
        """One trial: idea, reason, verdict, numbers, patch, the end of its log and a few points of its curve.

        Raises:
            UserError: there is no such trial.
        """
        trial = self.trial(number)
        past = archive.of_lab(self.workspace, self.ledger, ())
        curve = past.curve(number)
        return {
            **dataclasses.asdict(trial),
            "val_bpb": trial.val_bpb,
            "memory_gb": trial.memory_gb,
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
            tag = compose.checked_tag(tag) if tag else compose.default_tag(ledger, self.workspace)
            stages = compose.compose(self.workspace, ledger, settings, tag, announce, progress, agent=_Agent())
            trial = try_once(stages, tag, lambda campaign: _from_working_tree(stages, campaign, idea, why))
            return _result(stages, tag, trial)


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
    base = _written_for(stages, files, incumbent)
    answer = proposing.check(stages, campaign, Proposal(idea, files, why=why), _Agent.name, written_for=base)
    if isinstance(answer, ProposalRefused) and base is not incumbent:
        hint = f"fetch the best version by {_restore(stages, campaign.tag)} and make your change on that"
        return dataclasses.replace(answer, reason=f"{answer.reason}: {hint}")
    return answer


def _read(stages: Stages, path: str) -> str:
    try:
        return (stages.workspace.root / path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): mend it, then try again") from error


def _written_for(stages: Stages, files: Mapping[str, str], incumbent: Mapping[str, str]) -> Mapping[str, str]:
    """What the edits were made on: the incumbent, or the checkout's own commit where nothing tells of the incumbent."""
    head = stages.workspace.head()
    committed = stages.texts(head) if head else incumbent
    new = {line for path in files for line in set(incumbent[path].splitlines()) - set(committed[path].splitlines())}
    traces = any(new & set(text.splitlines()) for text in files.values())
    return committed if not traces and _distance(files, committed) < _distance(files, incumbent) else incumbent


def _distance(new: Mapping[str, str], old: Mapping[str, str]) -> int:
    """Lines that differ."""
    lines = (difflib.unified_diff(old[path].splitlines(), new[path].splitlines(), n=0) for path in new)
    return sum(line[:1] in "+-" for each in lines for line in each)


# ---------------------------------------------------------------- the answer


def _result(stages: Stages, tag: str, trial: Trial | None) -> dict[str, object]:
    best = stages.campaign(tag).incumbent
    assert best is not None
    restore = _restore(stages, tag)
    if trial is None:
        after = "the working tree is the best version so far: change it, then `autoresearch try -m IDEA`"
        return {"tag": tag, "trial": None, "status": None, "val_bpb": None, "best": best.val_bpb, "next": after}
    assert trial.verdict is not None
    return {
        "tag": tag,
        "trial": trial.number,
        "status": trial.verdict.status.value,
        "reason": trial.verdict.reason,
        "val_bpb": trial.val_bpb,
        "best": best.val_bpb,
        "memory_gb": trial.memory_gb,
        "rebased": trial.proposed.stale,
        "commit": trial.proposed.commit,
        "next": _next_step(trial, restore),
    }


def _restore(stages: Stages, tag: str) -> str:
    """The command that puts the best version into the working tree."""
    return f"`git restore --source={stages.workspace.branch(tag)} -- {' '.join(stages.editable)}`"


def _next_step(trial: Trial, restore: str) -> str:
    """What the agent does now, in one line."""
    assert trial.verdict is not None
    if trial.verdict.status is Status.CRASH:
        return f"see `autoresearch show {trial.number}`; a slip: mend it and try again; else go back by {restore}"
    if trial.verdict.status is Status.DISCARD:
        return f"go back to the best version by {restore}, then change that"
    if trial.proposed.stale:
        return f"it was carried over to the best version: fetch the two together by {restore}, then go on from there"
    return "the working tree is the best version now: go on from here"
