"""Gets a proposal out of a researcher, whatever it does: asked in a thread, checked, rebased."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from autoresearch.base.errors import Exhausted, NoProposal
from autoresearch.ledger import report
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import GuidanceGiven, ProposalRefused
from autoresearch.ledger.records import CrashKind, Proposal, Start, Status
from autoresearch.loop.asking import search
from autoresearch.loop.parts.stages import Stages
from autoresearch.researchers.guard import check, rules
from autoresearch.researchers.guard.check import Refusal
from autoresearch.researchers.interface import Brief, Failure, Researcher

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
    `carries` is the trial whose change it makes again, `start` what it was made on if not the incumbent.
    """

    proposal: Proposal
    researcher: str
    stale: bool = False
    seeds: int = 1
    model: str = ""
    carries: int | None = None
    start: Start | None = None


# ---------------------------------------------------------------- what a researcher is given


def brief(
    stages: Stages, campaign: Campaign, refusal: str | None = None, *, mend: bool = True, before: int = 0
) -> Brief:
    """Everything the next proposal is made from, with a crash to `mend` if there is one. Records new guidance.

    `before` counts the questions that are open already.
    """
    crash = failure(stages, campaign) if mend else None
    number = stages.ledger.next_trial()
    program = crashed_on(campaign, crash) or search.start(campaign, stages.policy.search, number + before)
    files = stages.decoded(program.proposed.commit)
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
        failure=crash,
        trial=number,
        archive=stages.archive,
        start=search.why(campaign, program),
        near=search.near_misses(campaign),
    )


def failure(stages: Stages, campaign: Campaign) -> Failure | None:
    """The latest crash, if it may still be fixed: on a program that the search may still start from, with a repair that
    is still allowed."""
    answered = {trial.proposed.repairs for trial in campaign.trials}
    for trial in reversed(campaign.finished[-1 - stages.policy.ahead :]):
        crashed = trial.verdict is not None and trial.verdict.status is Status.CRASH
        attempt = 1 + repairs_before(campaign, trial)
        if not (crashed and trial.crash and trial.number not in answered and is_open(stages, campaign, trial)):
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


def is_open(stages: Stages, campaign: Campaign, trial: Trial) -> bool:
    """Whether the search may still start from the program that a trial was made on."""
    parent = campaign.parent_of(trial)
    return parent is campaign.incumbent or (stages.policy.search == "tree" and parent in search.promising(campaign))


def crashed_on(campaign: Campaign, crash: Failure | None) -> Trial | None:
    """The trial that a crashed one was made on."""
    found = next((trial for trial in campaign.trials if crash and trial.number == crash.trial), None)
    return found and campaign.parent_of(found)


def repairs_before(campaign: Campaign, trial: Trial) -> int:
    """How many repairs led to this trial, including itself."""
    by_number = {each.number: each for each in campaign.trials}
    count = 0
    while trial.proposed.repairs in by_number:
        count, trial = count + 1, by_number[trial.proposed.repairs or 0]
    return count


class Question:
    """One proposal, asked for in a daemon thread: a researcher that never returns holds up nothing."""

    def __init__(self, researcher: Researcher, brief: Brief, clock: Callable[[], float] = time.monotonic) -> None:
        self.researcher, self.brief, self._clock = researcher, brief, clock
        self.was_told = False  # that it takes too long
        self._began = clock()
        self._ended: float | None = None
        self._outcome: Proposal | BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="researcher", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._outcome = read(self.researcher.propose(self.brief))
        except BaseException as error:  # a plug-in can raise anything, even SystemExit
            self._outcome = error
        self._ended = self._clock()

    @property
    def seconds(self) -> float:
        """How long it took, or takes so far."""
        return (self._clock() if self._ended is None else self._ended) - self._began

    def wait(self, seconds: float) -> bool:
        """Whether it is answered, after waiting at most that many seconds."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def outcome(self) -> Proposal | BaseException | None:
        return self._outcome


def read(proposal: Proposal) -> Proposal:
    """A proposal whose syntax is known, and remembered, before the loop asks for it."""
    files = proposal.files if isinstance(proposal, Proposal) and isinstance(proposal.files, Mapping) else {}
    for path, text in files.items():
        if isinstance(path, str) and isinstance(text, str):
            rules.syntax_problem(path, text)
    return proposal


# ---------------------------------------------------------------- what becomes of its answer


def answered(stages: Stages, campaign: Campaign, question: Question) -> Answer | ProposalRefused:
    name, outcome = question.researcher.name, question.outcome()
    if isinstance(outcome, Exhausted) and question.researcher is stages.researcher:
        raise outcome
    if isinstance(outcome, Proposal):
        try:
            asked = question.brief
            answer = admit(stages, campaign, sound(stages, outcome), name, written_for=asked.files, start=asked.start)
            model = getattr(question.researcher, "model", "")
            return dataclasses.replace(answer, model=model) if isinstance(answer, Answer) else answer
        except Exception as error:  # a plug-in's proposal can contain anything
            problem = f"the proposal cannot be used: {type(error).__name__}: {error}"
            return refused(stages, campaign, "", problem, name)
    if isinstance(outcome, BaseException):
        known = outcome if isinstance(outcome, NoProposal) else NoProposal("")
        reason = str(outcome) or type(outcome).__name__
        return refused(stages, campaign, "", reason, name, known.tokens, known.usd, failed=known.failed)
    return refused(stages, campaign, "", f"the researcher returned {type(outcome).__name__}, not a proposal", name)


def carried_over(stages: Stages, campaign: Campaign, trial: Trial) -> Answer | ProposalRefused:
    """The change of a trial that was made on another one than the incumbent, made again on that."""
    parent, incumbent = campaign.parent_of(trial), campaign.incumbent
    assert parent is not None
    assert incumbent is not None
    before, after = stages.texts(parent.proposed.commit), stages.texts(incumbent.proposed.commit)
    proposal = Proposal(trial.proposed.idea, stages.texts(trial.proposed.commit), trial.proposed.note)
    rebased = rebase(stages, proposal, before, after)
    conflict = f"it is better than #{parent.number}, but does not merge with #{incumbent.number}: make it again on that"
    problem: Refusal | None = Refusal(conflict)
    if rebased is not None:
        tried = (campaign.trials, stages.archive.files)
        problem = check.refusal(rebased, after, *tried, stages.editable, nearly=False)
        if problem is None:
            return Answer(rebased, trial.proposed.researcher, carries=trial.number, model=trial.proposed.model)
    assert problem is not None
    told = refused(stages, campaign, proposal.idea, problem.reason, trial.proposed.researcher)
    return dataclasses.replace(told, carries=trial.number)


def to_carry_over(campaign: Campaign) -> Trial | None:
    """The first trial whose change is to be made again on the incumbent: better than its parent, but made on another
    one, or part of a line that a better one took the place of."""
    done = {trial.proposed.carries for trial in campaign.trials} | {each.carries for each in campaign.refused}
    replaced = {number for number, step in campaign.taken_back.items() if isinstance(step, Trial)}
    out = done | campaign.standing
    for trial in campaign.finished:
        better = trial.verdict is not None and trial.verdict.carry
        if (better or trial.number in replaced) and trial.number not in out:
            return trial
    return None


def admit(
    stages: Stages,
    campaign: Campaign,
    proposal: Proposal,
    researcher: str,
    *,
    written_for: Mapping[str, str],
    start: Start | None = None,
) -> Answer | ProposalRefused:
    """The proposal on what it starts from, else on the current incumbent, if the guard and the lab's memory accept
    it."""
    files = stages.texts(base_of(campaign, start).proposed.commit)
    stale = files != dict(written_for)
    rebased = rebase(stages, proposal, written_for, files) if stale else proposal
    problem: Refusal | None = Refusal("it was written for an earlier incumbent and does not fit the new one")
    if rebased is not None:
        proposal, problem = rebased, refusal(stages, campaign, rebased, files)
    if problem:
        made = refused(stages, campaign, proposal.idea, problem.reason, researcher, proposal.tokens, proposal.usd)
        return dataclasses.replace(made, earlier=problem.earlier)
    return Answer(proposal, researcher, stale, start=start)


def base_of(campaign: Campaign, start: Start | None) -> Trial:
    """The trial that a proposal is committed on: the one that it starts from, else the incumbent."""
    found = campaign.incumbent
    if start is not None:
        found = next(trial for trial in campaign.trials if trial.number == start.trial)
    assert found is not None, "a proposal needs a baseline"
    return found


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


def refused(
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
