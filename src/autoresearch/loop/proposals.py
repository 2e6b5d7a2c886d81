"""Gets the next proposal out of a researcher, whatever it does: in a thread, with a deadline, checked, rebased."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from autoresearch.base.errors import Exhausted, NoProposal
from autoresearch.ledger import report
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import GuidanceGiven, ProposalRefused
from autoresearch.ledger.records import CrashKind, Proposal, Status
from autoresearch.loop.stages import Stages
from autoresearch.researchers.guard import check, rules
from autoresearch.researchers.guard.check import Refusal
from autoresearch.researchers.interface import Brief, Failure, Researcher

POLL_SECONDS = 0.05
GRACE_SECONDS = 30.0  # beyond the deadline that a researcher enforces itself
LONGEST_REASON = 2_000  # characters
LONGEST_IDEA = 300
KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("idea", "why", "expects"), (str,)),
    **dict.fromkeys(("files", "note"), (Mapping,)),
    **dict.fromkeys(("tokens", "repairs"), (int, type(None))),
    "usd": (int, float, type(None)),
}
OUT_OF_MEMORY_ADVICE = (
    "halve DEVICE_BATCH_SIZE first: with the same TOTAL_BATCH_SIZE the gradient accumulation doubles by itself"
)


@dataclass(frozen=True)
class Answer:
    """A proposal that may run, and who made it. A `stale` one was written for an earlier incumbent.

    It is not judged before it has run on so many `seeds`. `model` is the language model that was asked, if one was.
    """

    proposal: Proposal
    researcher: str
    stale: bool = False
    seeds: int = 1
    model: str = ""


class Desk:
    """Asks the campaign's researcher, and keeps the one open question: asked ahead, or not answered yet.

    `refusals` are the failed proposals in a row since the last one that became a trial. While the researcher's server
    or program fails, the fallback makes the next trial, and then the researcher is asked again.
    """

    def __init__(self, stages: Stages) -> None:
        self.refusals: list[ProposalRefused] = []
        self._stages = stages
        self._open: _Question | None = None
        self._is_away = False

    def ask_ahead(self, campaign: Campaign) -> None:
        """Let the researcher write while the run trains, if the policy says so and it is not working already."""
        policy = self._stages.policy
        if policy.ahead and campaign.incumbent and self._open is None and not policy.overspent(campaign):
            self._open = self._ask(self._stages.researcher, campaign)

    def propose(self, campaign: Campaign, stop: Callable[[], bool]) -> Answer | None:
        """The next proposal; None if there is none this time: the reason is recorded, or `stop` ended the wait.

        Raises:
            Exhausted: the researcher has nothing more to propose.
        """
        stages, patience = self._stages, self._stages.policy.patience
        deadline = stages.policy.propose_seconds + GRACE_SECONDS
        if self._open and self._open.seconds > deadline and not self._open.wait(0):
            self._open = None  # it was reported once, and is left alone now
        if stages.fallback and (self._is_away or len(self.refusals) % (patience + 1) == patience):
            question = self._ask(stages.fallback, campaign)
        else:
            question = self._open = self._open or self._ask(stages.researcher, campaign)
        while not question.wait(POLL_SECONDS):
            if stop():
                return None
            if question.seconds > deadline:
                reason = f"the researcher has not answered for {question.seconds:.0f} s"
                self._failed(ProposalRefused(campaign.tag, "", reason, question.researcher.name, failed=True))
                return None
        if question is self._open:
            self._open = None
        answer = _answer(stages, campaign, question)
        if isinstance(answer, Answer):
            return answer
        self._failed(answer)
        return None

    def made(self, trial: Trial) -> None:
        """A proposal has become a trial. A fallback's does not bring its colleague back: one more failure is enough."""
        own = trial.proposed.researcher == self._stages.researcher.name
        del self.refusals[0 if own else self._stages.policy.patience - 1 :]
        self._is_away = False

    def leave(self, campaign: Campaign) -> None:
        """Record the cost of an answer that came too late to be used."""
        if self._open is None or not self._open.wait(0):
            return
        with contextlib.suppress(Exhausted):
            answer = _answer(self._stages, campaign, self._open)
            if isinstance(answer, Answer):
                proposal, reason = answer.proposal, "not used: the loop was stopped"
                answer = _refused(
                    self._stages, campaign, proposal.idea, reason, answer.researcher, proposal.tokens, proposal.usd
                )
            self._stages.record(answer)

    def _ask(self, researcher: Researcher, campaign: Campaign) -> _Question:
        own = [each.reason for each in self.refusals if each.researcher == researcher.name and not each.failed]
        failing = len(self.refusals) >= self._stages.policy.patience
        return _Question(researcher, brief(self._stages, campaign, own[-1] if own else None, mend=not failing))

    def _failed(self, refused: ProposalRefused) -> None:
        self.refusals.append(refused)
        self._is_away = refused.failed and refused.researcher == self._stages.researcher.name
        self._stages.record(refused)


class _Question:
    """One proposal, asked for in a daemon thread: a researcher that never returns holds up nothing."""

    def __init__(self, researcher: Researcher, brief: Brief) -> None:
        self.researcher = researcher
        self.brief = brief
        self._began = time.monotonic()
        self._outcome: Proposal | BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="researcher", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._outcome = self.researcher.propose(self.brief)
        except BaseException as error:  # a plug-in can raise anything, even SystemExit
            self._outcome = error

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def wait(self, seconds: float) -> bool:
        """Whether it is answered, after waiting at most that many seconds."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def outcome(self) -> Proposal | BaseException | None:
        return self._outcome


# ---------------------------------------------------------------- what a researcher is given


def brief(stages: Stages, campaign: Campaign, refusal: str | None = None, *, mend: bool = True) -> Brief:
    """Everything the next proposal is made from, with a crash to `mend` if there is one. Records new guidance."""
    assert campaign.incumbent is not None, "a proposal needs a baseline"
    files = stages.decoded(campaign.incumbent.proposed.commit)
    editable = stages.editable_of(files)
    guidance = stages.guidance()
    if guidance != campaign.guidance:
        stages.record(GuidanceGiven(campaign.tag, guidance))
    return Brief(
        program=stages.program(),
        files=editable,
        campaign=campaign.sealed,
        refusal=refusal,
        frozen={path: text for path, text in files.items() if path not in editable},
        guidance=guidance,
        failure=failure(stages, campaign) if mend else None,
        trial=stages.ledger.next_trial(),
        archive=stages.archive,
    )


def failure(stages: Stages, campaign: Campaign) -> Failure | None:
    """The latest crash, if it may still be fixed: on the current incumbent, with a repair that is still allowed."""
    answered = {trial.proposed.repairs for trial in campaign.trials}
    standing = campaign.incumbent.proposed.commit if campaign.incumbent else None
    for trial in reversed(campaign.finished[-1 - stages.policy.ahead :]):
        crashed = trial.verdict is not None and trial.verdict.status is Status.CRASH
        attempt = 1 + repairs_before(campaign, trial)
        if not (crashed and trial.crash and trial.number not in answered and trial.proposed.parent == standing):
            continue
        if attempt <= stages.policy.repairs:
            out_of_memory = trial.crash.kind is CrashKind.OUT_OF_MEMORY
            return Failure(
                trial=trial.number,
                idea=trial.proposed.idea,
                kind=trial.crash.kind,
                detail=trial.crash.detail,
                patch=stages.archive.patch(trial.number),
                files=stages.texts(trial.proposed.commit),
                attempt=attempt,
                attempts=stages.policy.repairs,
                advice=OUT_OF_MEMORY_ADVICE if out_of_memory else "",
            )
    return None


def repairs_before(campaign: Campaign, trial: Trial) -> int:
    """How many repairs led to this trial, including itself."""
    by_number = {each.number: each for each in campaign.trials}
    count = 0
    while trial.proposed.repairs in by_number:
        count, trial = count + 1, by_number[trial.proposed.repairs or 0]
    return count


# ---------------------------------------------------------------- what becomes of its answer


def _answer(stages: Stages, campaign: Campaign, question: _Question) -> Answer | ProposalRefused:
    name, outcome = question.researcher.name, question.outcome()
    if isinstance(outcome, Exhausted) and question.researcher is stages.researcher:
        raise outcome
    if isinstance(outcome, Proposal):
        try:
            answer = admit(stages, campaign, sound(stages, outcome), name, written_for=question.brief.files)
            model = getattr(question.researcher, "model", "")
            return dataclasses.replace(answer, model=model) if isinstance(answer, Answer) else answer
        except Exception as error:  # a plug-in's proposal can contain anything
            problem = f"the proposal cannot be used: {type(error).__name__}: {error}"
            return _refused(stages, campaign, "", problem, name)
    if isinstance(outcome, BaseException):
        known = outcome if isinstance(outcome, NoProposal) else NoProposal("")
        reason = str(outcome) or type(outcome).__name__
        return _refused(stages, campaign, "", reason, name, known.tokens, known.usd, failed=known.failed)
    return _refused(stages, campaign, "", f"the researcher returned {type(outcome).__name__}, not a proposal", name)


def admit(
    stages: Stages, campaign: Campaign, proposal: Proposal, researcher: str, *, written_for: Mapping[str, str]
) -> Answer | ProposalRefused:
    """The proposal on the current incumbent, if the guard and the lab's memory accept it."""
    assert campaign.incumbent is not None
    files = stages.texts(campaign.incumbent.proposed.commit)
    stale = files != dict(written_for)
    rebased = rebase(stages, proposal, written_for, files) if stale else proposal
    problem: Refusal | None = Refusal("it was written for an earlier incumbent and does not fit the new one")
    if rebased is not None:
        proposal, problem = rebased, refusal(stages, campaign, rebased, files)
    if problem:
        made = _refused(stages, campaign, proposal.idea, problem.reason, researcher, proposal.tokens, proposal.usd)
        return dataclasses.replace(made, earlier=problem.earlier)
    return Answer(proposal, researcher, stale)


def sound(stages: Stages, proposal: Proposal) -> Proposal:
    """The proposal with its text free of control characters and keys.

    Raises:
        TypeError: a part of it has the wrong type.
    """
    for part, kinds in KINDS.items():
        value = getattr(proposal, part)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise TypeError(f"its {part} is of type {type(value).__name__}")
    files = {str(path): text for path, text in proposal.files.items()}
    if not all(isinstance(text, str) for text in files.values()):
        raise TypeError("its files are not all text")
    note = {
        str(name): clean(stages, value) if isinstance(value, str) else value for name, value in proposal.note.items()
    }
    if not all(value is None or isinstance(value, str | int | float) for value in note.values()):
        raise TypeError("its note contains more than texts and numbers")
    idea = report.shorten(clean(stages, report.one_line(proposal.idea)), LONGEST_IDEA)
    why, expects = (clean(stages, text) for text in (proposal.why, proposal.expects))
    return dataclasses.replace(proposal, idea=idea, files=files, note=note, why=why, expects=expects)


def clean(stages: Stages, text: str) -> str:
    """The text without control characters, then without keys, since an invisible character could hide one."""
    return stages.redact(report.plain(text))


def rebase(stages: Stages, proposal: Proposal, old: Mapping[str, str], new: Mapping[str, str]) -> Proposal | None:
    """The proposal's change of the old files, applied to the new ones; None if they conflict."""
    merged = {}
    for path, text in proposal.files.items():
        if path not in old or path not in new:
            merged[path] = text  # the guard will refuse it
            continue
        whole = stages.workspace.merge(old[path], new[path], text)
        if whole is None:
            return None
        merged[path] = whole
    return dataclasses.replace(proposal, files=merged)


def refusal(stages: Stages, campaign: Campaign, proposal: Proposal, files: Mapping[str, str]) -> Refusal | None:
    """Why a proposal may not run, for its researcher; None if it may."""
    for path, text in proposal.files.items():
        if rules.reveals(text, files.get(path, ""), stages.redact):
            return Refusal("the proposal contains one of the user's keys")
    return check.refusal(proposal, files, campaign.trials, stages.archive.files, stages.editable)


def _refused(
    stages: Stages,
    campaign: Campaign,
    idea: str,
    reason: str,
    researcher: str,
    tokens: int | None = None,
    usd: float | None = None,
    *,
    failed: bool = False,
) -> ProposalRefused:
    idea = report.shorten(clean(stages, report.one_line(idea)), LONGEST_IDEA)
    reason = report.shorten(clean(stages, reason), LONGEST_REASON)
    return ProposalRefused(campaign.tag, idea, reason, researcher, tokens, usd, failed)
