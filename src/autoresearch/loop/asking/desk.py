"""Keeps the questions to a campaign's researcher: who is asked when, and for how long nothing is."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections import deque

from autoresearch.base.errors import Exhausted
from autoresearch.ledger import report
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import ProposalRefused
from autoresearch.loop.asking.proposals import Answer, Question, answered, brief, refused
from autoresearch.loop.parts.stages import Stages
from autoresearch.researchers.interface import Researcher

GRACE_SECONDS = 30.0  # beyond the deadline that a researcher enforces itself
FREE_REFUSALS = 3
RECENT = 32  # answers and trials whose times say how many questions to have open


class Desk:
    """Asks the campaign's researcher, and keeps the open questions: asked ahead, or not answered yet.

    `refusals` are the failed proposals in a row since the last one that became a trial. While the researcher's server
    or program fails, the fallback makes the next trial, and then the researcher is asked again.
    """

    def __init__(self, stages: Stages) -> None:
        self.refusals: list[ProposalRefused] = []
        self._stages = stages
        self._open: list[Question] = []
        self._took: deque[float] = deque(maxlen=RECENT)  # seconds until the latest answers
        self._numbers = itertools.count()
        for left in sorted(stages.workspace.transcripts.glob("*")):  # by a loop that was ended while it asked
            self._keep_transcript(left.name)
        self._is_away = False
        self._not_before = 0.0  # on the monotonic clock

    def ask_ahead(self, campaign: Campaign) -> None:
        """Let the researcher write while the runs train, if the policy says so and it is not working already."""
        policy = self._stages.policy
        if campaign.incumbent and len(self._open) < (most := self._ahead(campaign)) and not policy.overspent(campaign):
            self._open += [self._ask(self._stages.researcher, campaign) for _ in range(most - len(self._open))]

    def _ahead(self, campaign: Campaign) -> int:
        """How many questions to have open while every slot is busy: none if the policy says so, one to a researcher
        that takes one at a time, else as many as slots become free until an answer comes."""
        stages = self._stages
        if not stages.policy.ahead or not getattr(stages.researcher, "side_by_side", False):
            return min(stages.policy.ahead, 1)
        run = report.usual_seconds(campaign.finished[-RECENT:])
        return 1 + math.ceil(len(stages.places()) * min(max(self._took, default=0.0) / run, 1.0)) if run else 1

    def ask(self, campaign: Campaign, free: int) -> None:
        """Have questions open: one for each free slot and some ahead, but one at a time to a researcher that is not
        made for more.

        After some refusals in a row it waits before it asks again: longer and longer, up to a limit.
        """
        if self._stages.clock() < self._not_before:
            return
        self._open = [each for each in self._open if not each.was_told or each.wait(0)]
        stages, patience = self._stages, self._stages.policy.patience
        stands_in = stages.fallback and (self._is_away or len(self.refusals) % (patience + 1) == patience)
        who = stages.fallback if stages.fallback and stands_in else stages.researcher
        most = max(free, self._ahead(campaign)) if getattr(who, "side_by_side", False) else 1
        if stands_in and not any(each.researcher is who for each in self._open):
            self._open.append(self._ask(who, campaign))
        while len([each for each in self._open if not each.was_told]) < most:
            self._open.append(self._ask(who, campaign))

    def answer(self, campaign: Campaign) -> Answer | None:
        """A proposal that may run, if one is there. What is refused, or does not come in time, is recorded.

        Raises:
            Exhausted: the researcher has nothing more to propose.
        """
        deadline = self._stages.policy.propose_seconds + GRACE_SECONDS
        for question in tuple(self._open):
            if question.wait(0):
                self._open.remove(question)
                self._keep_transcript(question.brief.transcript)
                self._took.append(question.seconds)
                answer = answered(self._stages, campaign, question)
                if isinstance(answer, Answer):
                    return answer
                self._failed(answer)
            elif question.seconds > deadline and not question.was_told:
                question.was_told = True
                reason = f"the researcher has not answered for {question.seconds:.0f} s"
                self._failed(ProposalRefused(campaign.tag, "", reason, question.researcher.name, failed=True))
        return None

    def made(self, trial: Trial) -> None:
        """A proposal has become a trial. A fallback's does not bring its colleague back: one more failure is enough."""
        own = trial.proposed.researcher == self._stages.researcher.name
        del self.refusals[0 if own else self._stages.policy.patience - 1 :]
        self._is_away = False

    def leave(self, campaign: Campaign) -> None:
        """Record the cost of answers that came too late to be used."""
        for question in self._open:
            if question.wait(0):
                self._keep_transcript(question.brief.transcript)
                with contextlib.suppress(Exhausted):
                    self._stages.record(self._unused(question, campaign))
        self._open = []

    def _unused(self, question: Question, campaign: Campaign) -> ProposalRefused:
        answer = answered(self._stages, campaign, question)
        if isinstance(answer, ProposalRefused):
            return answer
        proposal, reason = answer.proposal, "not used: the loop was stopped"
        spent = (proposal.tokens, proposal.usd)
        return refused(self._stages, campaign, proposal.idea, reason, answer.researcher, *spent)

    def _ask(self, researcher: Researcher, campaign: Campaign) -> Question:
        own = [each.reason for each in self.refusals if each.researcher == researcher.name and not each.failed]
        failing = len(self.refusals) >= self._stages.policy.patience
        told, before = own[-1] if own else None, len(self._open)
        asked = brief(self._stages, campaign, told, mend=not failing, before=before)
        asked = dataclasses.replace(asked, question=next(self._numbers))
        return Question(researcher, asked, self._stages.clock)

    def _keep_transcript(self, name: str) -> None:
        self._stages.workspace.keep_transcript(name, self._stages.ledger.next_trial())

    def _failed(self, refused: ProposalRefused) -> None:
        self.refusals.append(refused)
        self._is_away = refused.failed and refused.researcher == self._stages.researcher.name
        self._not_before = self._stages.clock() + pause_seconds(self._stages, len(self.refusals))
        self._stages.record(refused)


def pause_seconds(stages: Stages, refusals: int) -> float:
    """How long to wait after refused proposals: not at all after the first few, then longer and longer."""
    seconds = 2.0 ** min(refusals - FREE_REFUSALS, 16) if refusals > FREE_REFUSALS else 0.0
    return min(seconds, stages.policy.longest_pause_seconds)
