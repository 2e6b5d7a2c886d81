"""One trial of the edits in the working tree, as `try` and the MCP server run it."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from autoresearch.agents import edits, outcome, pending
from autoresearch.agents.answers import Answers
from autoresearch.agents.edits import Wish
from autoresearch.agents.outcome import ERROR, INTERRUPTED, RUNNING, WAIT, NotTried, Place
from autoresearch.agents.pending import Pending
from autoresearch.base import atomic, process
from autoresearch.base.errors import BusyError, UserError
from autoresearch.grading.protocol import LOG
from autoresearch.lab import config, inbox
from autoresearch.ledger import report
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import ChosenByHand, Event, FileSaved, Ordered, ProposalRefused, RunStarted
from autoresearch.ledger.ledger import Mark
from autoresearch.ledger.records import Order, Proposal, RunEvent
from autoresearch.loop import steering
from autoresearch.loop.asking import proposals
from autoresearch.loop.asking.proposals import Answer
from autoresearch.loop.loop import try_once
from autoresearch.loop.parts import compose
from autoresearch.loop.parts.stages import Stages
from autoresearch.researchers.interface import Brief

Say = Callable[[str], None]
Progress = Callable[[float, str], None]
OBEYED_SECONDS, LOOK_SECONDS = 5.0, 0.1  # for which an order is waited for, and between two looks
START_SECONDS = 60.0  # in which a detached trial has begun or says why not; preparing data may take longer
AGAIN = "put that right, then run the same command again"


class InteractiveLab(Answers):
    """A lab as an agent works in it: it answers questions, and runs trials of the edits in the working tree."""

    def attempt(self, wish: Wish, *, say: Say, progress: Progress) -> dict[str, object]:
        """Like `try_edits`, but reports as text. `progress` receives the share of the budget that is spent (0 to 1)."""
        hear = _Hearing(say, progress)
        return self.try_edits(wish, announce=hear.event, progress=hear.run)

    def try_edits(
        self, wish: Wish, *, announce: Callable[[Event], None], progress: Callable[[int, RunEvent], None]
    ) -> dict[str, object]:
        """Run one trial of the edits in the working tree. Blocks until it is done, and prints nothing.

        Starts a campaign if there is none, with the last commit as its baseline. If another process is trying the same
        edits, waits for its verdict. The edits are read once, now.

        Raises:
            NotTried: the edits are refused, and why.
            UserError: they cannot be tried.
        """
        settings = config.load(self.workspace.program)[0]
        files = edits.read(self.workspace, settings, wish)
        mark = pending.digest(files)

        def tried() -> dict[str, object]:
            self.ledger.repair()
            tag = compose.tag_of(wish.tag, self.ledger, self.workspace)
            parts = self.workspace, self.ledger, settings, tag, announce, progress
            stages = compose.compose(*parts, agent=Agent(), alone=True)
            return self._tried(stages, tag, wish, files)

        pending.wait(
            self.workspace.pending, None, lambda found: not (found and found.edits == mark and found.is_at_work)
        )
        try:
            with self.workspace.lock():
                pending.begin(self.workspace.pending, mark, wish.idea)
                return self._answered(tried, wish.idea)
        except BusyError as error:
            raise self._busy(error) from error

    def _answered(self, tried: Callable[[], dict[str, object]], idea: str) -> dict[str, object]:
        """The answer, which is also left on the disk, whatever it is."""
        path = self.workspace.pending
        try:
            answer = tried()
        except NotTried as error:
            pending.end(path, error.answer)
            raise
        except UserError as error:
            failed = NotTried(str(error), AGAIN, status=ERROR)
            pending.end(path, failed.answer)
            raise failed from error
        except KeyboardInterrupt:
            pending.end(path, interrupted(idea))
            raise
        pending.end(path, answer)
        return answer

    def _tried(self, stages: Stages, tag: str, wish: Wish, files: Mapping[str, str]) -> dict[str, object]:
        made = try_once(stages, tag, lambda campaign: _proposed(stages, campaign, wish, files))
        campaign, place = stages.campaign(tag), Place(self.workspace.branch(tag), stages.editable)
        if isinstance(made, ProposalRefused):
            raise outcome.refused(made, place)
        answer = outcome.judged(campaign, made, place) if made else outcome.unchanged(campaign)
        return {**answer, "notice": edits.notice(self.workspace, campaign, stages.editable)}

    def _busy(self, error: BusyError) -> NotTried:
        found = pending.read(self.workspace.pending)
        if found and found.is_at_work:
            reason = f"another trial is running ({found.idea}), of other edits than yours"
            return NotTried(reason, f"{WAIT}; then try again", status=ERROR)
        return NotTried(str(error), "wait until `autoresearch status` says that no loop is at work", status=ERROR)

    # ------------------------------------------------------------ trials that outlive the call

    def detach(self, wish: Wish) -> dict[str, object]:
        """Start the trial as a process of its own. Returns its answer if it has one soon, else what it is doing.

        Raises:
            NotTried: the edits are refused, and why.
            UserError: they cannot be tried.
        """
        mark = pending.digest(edits.read(self.workspace, config.load(self.workspace.program)[0], wish))
        found = pending.read(self.workspace.pending)
        if found and found.edits == mark and found.is_at_work:
            return self._running(found)
        if self.workspace.is_locked():
            raise self._busy(BusyError(f"another loop is running in {self.workspace.root}"))
        atomic.make_directory(self.workspace.state)
        before = self.ledger.mark if self.ledger.campaigns() else None
        child = process.detach(self._command(wish), self.workspace.detached)

        def is_known(found: Pending | None) -> bool:
            own = found is not None and found.process == child.pid
            return child.poll() is not None or (own and self._has_begun(before))

        found = pending.wait(self.workspace.pending, START_SECONDS, is_known)
        if found is None or found.process != child.pid:
            if child.poll() is not None:
                raise UserError(f"the trial ended before it began: {self.workspace.detached} says why")
            found = Pending(mark, wish.idea, child.pid, created=0.0, since=time.time())
        return self._running(found) if child.poll() is None else self._said(found)

    def _has_begun(self, before: object) -> bool:
        """Whether a run has started since then."""
        events = self.ledger.since(before) if isinstance(before, Mark) else self.ledger.events()
        return any(isinstance(event, RunStarted) for event in events or ())

    def _command(self, wish: Wish) -> list[str]:
        """The command that makes this trial."""
        tag = ["--tag", wish.tag] if wish.tag else []
        asked = ["--message", wish.idea, "--why", wish.why, "--seeds", str(wish.seeds), *tag]
        return [sys.executable, "-m", "autoresearch", "try", *asked, "--lab", str(self.workspace.root)]

    def wait(self, seconds: float | None) -> dict[str, object]:
        """The answer of the latest trial of edits, as soon as there is one, or what it is doing after some seconds.

        Raises:
            UserError: there was none.
        """
        path = self.workspace.pending
        return self._said(pending.wait(path, seconds, lambda found: not (found and found.is_at_work)))

    def _said(self, found: Pending | None) -> dict[str, object]:
        if found is None:
            raise UserError("nothing was tried here yet: change train.py, then run `autoresearch try -m IDEA`")
        if found.is_at_work:
            return self._running(found)
        return found.answer or interrupted(found.idea)

    def _running(self, found: Pending) -> dict[str, object]:
        """What a trial is doing."""
        campaign = self.ledger.campaign()
        trial = next((each for each in campaign.trials if each.verdict is None), None) if campaign else None
        run = self.workspace.run_directory(trial.number, len(trial.every_run)) if trial else None
        return {
            "trial": trial.number if trial else None,
            "status": RUNNING,
            "reason": f"{found.idea}: it is running",
            "seconds": round(time.time() - found.since),
            "runs": len(trial.every_run) if trial else 0,
            "log": self.workspace.relative(str(run / LOG)) if run else None,
            "next": WAIT,
        }

    # ------------------------------------------------------------ by hand

    def choose(self, number: int, *, keep: bool, why: str, by: str) -> ChosenByHand | None:
        """Keep a trial by hand, or drop a keep. None if a loop is at work that will do it once no trial is open.

        Raises:
            UserError: this cannot be done, and why.
        """
        if not why.strip():
            raise UserError("the reason is empty: say why in one line, for the record")
        tag = self.trial(number).proposed.tag
        order = Ordered(tag, Order.KEEP if keep else Order.DROP, by, why, number)
        return self.campaign(tag).chosen[-1] if self.order(order) else None

    def ordered(
        self,
        order: str,
        *,
        by: str,
        why: str = "",
        trial: int | None = None,
        tag: str | None = None,
        max_usd: float | None = None,
        max_tokens: int | None = None,
    ) -> Ordered:
        """An order to a campaign, to that of a trial, or to the latest.

        Raises:
            UserError: something that it needs is missing.
        """
        kind = Order(order)
        if kind is Order.STOP and trial is None:
            raise UserError("name the trial whose runs are to stop: `autoresearch status` says what is under way")
        if kind is Order.LIMIT and max_usd is None and max_tokens is None:
            raise UserError("name a limit: dollars or tokens that the researcher may spend in the whole campaign")
        campaign = self.campaign(tag) if trial is None else self.campaign(self.trial(trial).proposed.tag)
        return Ordered(campaign.tag, kind, by, why, trial, max_usd, max_tokens)

    def order(self, told: Ordered) -> bool:
        """Tell a search something. A loop at work does it; if none is, it is done now. Whether it is done already.

        Raises:
            UserError: it cannot be done, and why.
        """
        path = inbox.put(self.workspace, dataclasses.replace(told, why=config.redact(report.printable_line(told.why))))
        until = time.monotonic() + OBEYED_SECONDS
        while path.exists() and time.monotonic() < until:
            if self.workspace.is_locked():
                time.sleep(LOOK_SECONDS)
                continue
            with contextlib.suppress(BusyError), self.workspace.lock():
                self._obey(told.tag)
        if refusal := inbox.refusal(path):
            raise UserError(refusal)
        return not path.exists()

    def _obey(self, tag: str) -> None:
        settings = config.load(self.workspace.program)[0].model_copy(update={"executor": "local"})  # nothing is run
        self.ledger.repair()
        ignore = lambda *_: None  # noqa: E731
        stages = compose.compose(self.workspace, self.ledger, settings, tag, ignore, ignore, agent=Agent())
        steering.obey_all(stages, tag)

    def papers(self, query: str) -> str:
        """What the literature says about a query."""
        return compose.literature(self.workspace, config.load(self.workspace.program)[0], query)


def interrupted(idea: str) -> dict[str, object]:
    """The answer of a trial whose process ended, or was ended, before its verdict."""
    reason = f"{idea}: stopped before its verdict; what was finished is in the ledger"
    then = "run the same command with the same edits again: it continues, and nothing is counted twice"
    return {"trial": None, "status": INTERRUPTED, "reason": reason, "next": then}


class Agent:
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


def _proposed(
    stages: Stages, campaign: Campaign, wish: Wish, files: Mapping[str, str]
) -> Answer | ProposalRefused | Trial | None:
    """The edits as a proposal on the incumbent. If the latest trial is of the same files, that one; None if they are
    the incumbent's."""
    assert campaign.incumbent is not None
    latest = campaign.trials[-1]
    if files == stages.texts(latest.proposed.commit):
        return latest
    incumbent = stages.texts(campaign.incumbent.proposed.commit)
    if files == incumbent:
        return None
    proposal = proposals.sound(stages, Proposal(wish.idea, files, why=wish.why))
    made = proposals.admit(stages, campaign, proposal, Agent.name, written_for=incumbent)
    return dataclasses.replace(made, seeds=wish.seeds) if isinstance(made, Answer) else made
