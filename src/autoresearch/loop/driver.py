"""Drives a campaign: which trial, confirmation or question fills a free slot next."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from autoresearch.base.errors import Exhausted, UserError
from autoresearch.lab import inbox
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import Confirmation
from autoresearch.ledger.records import Order, Purpose
from autoresearch.loop import steering
from autoresearch.loop.asking.desk import Desk
from autoresearch.loop.asking.proposals import Answer, carried_over, to_carry_over
from autoresearch.loop.parts.stages import Stages
from autoresearch.loop.run import FIRST_SEED
from autoresearch.loop.slots import Slots
from autoresearch.loop.start import baseline
from autoresearch.loop.trial import commit, conclude, decided, enter, is_to_be_examined, publish

POLL_SECONDS = 0.02
INBOX_SECONDS = 0.5


def drive(driver: Driver, slots: Slots) -> str:
    """Let a driver fill its slots until it is done. Returns why it ended."""
    while not driver.is_done():
        if slots.land():
            driver.look_again()
        driver.conclude()
        if not driver.start_next():
            slots.wait(POLL_SECONDS)  # a run's end is heard at once; an answer, or Ctrl-C, is looked for
    return driver.reason or ""


class Driver:
    """Fills the free slots of a campaign: unfinished trials first, then confirmations, changes to carry over, and
    proposals. With one slot they come one after the other."""

    def __init__(
        self,
        stages: Stages,
        tag: str,
        slots: Slots,
        enough: Callable[[int], str | None],
        hurry: Callable[[], bool],
        *,
        confirming: bool = True,
        asked: bool | None = None,
    ) -> None:
        self._stages, self._tag, self._slots = stages, tag, slots
        self._enough, self._hurry, self._confirming = enough, hurry, confirming
        self._desk = Desk(stages)
        self._made = 0
        self._begun: set[int] = set()  # trials with a run that was started here
        self._to_examine: set[int] = set()  # trials that are decided, if nothing is wrong with their models
        self._asked = asked  # whether the last confirmation is asked for, once nothing else is to do
        self._is_over = False
        self._known: Campaign | None = None  # in which nothing was found to start
        self._concluded: Campaign | None = None  # in which every trial that could be decided was
        self._listed: tuple[Campaign | None, list[Trial]] = (None, [])  # its unfinished trials
        self._orders_at = 0.0  # on the monotonic clock: when the inbox is looked into again
        self._is_held = False  # nothing new is started until what is open has ended, since an order waits for that
        self.reason: str | None = None  # why it ends

    @property
    def _campaign(self) -> Campaign:
        return self._stages.campaign(self._tag)

    def is_done(self) -> bool:
        """Whether it is over, with everything that was started."""
        return self._is_over and not self._slots.flights

    def look_again(self) -> None:
        """Forget that there was nothing to do."""
        self._known = self._concluded = None

    def conclude(self) -> None:
        """Record the verdicts of the trials whose runs have ended, and obey what was ordered."""
        self._obey()
        self._check_enough()
        if self._concluded is self._campaign:
            return
        for trial in self._unfinished():
            campaign = self._campaign
            if self._slots.of(trial) or (decision := decided(self._stages, campaign, trial)) is None:
                continue
            if is_to_be_examined(campaign, decision) and trial.number not in self._slots.examined:
                self._to_examine.add(trial.number)
                continue
            conclude(self._stages, campaign, trial, decision, self._slots.examined.get(trial.number))
            self._made += campaign.incumbent is not None
        self._concluded = self._campaign
        self._check_enough()

    def _obey(self) -> None:
        """Carry out what people have ordered. A decision by hand waits until no trial is open."""
        if (now := time.monotonic()) < self._orders_at:
            return
        self._orders_at, self._is_held = now + INBOX_SECONDS, False
        for path, told in inbox.waiting(self._stages.workspace):
            if told.tag != self._tag:
                continue
            if told.order in steering.BY_HAND and any(each.verdict is None for each in self._campaign.trials):
                self._is_held = True
                continue
            try:
                if told.order is Order.STOP and not self._slots.stop(told.trial or 0, f"it was {told.words}"):
                    raise UserError(f"trial {told.trial} has no run in flight")
                steering.obey(self._stages, told)
                inbox.obeyed(path)
            except UserError as error:
                inbox.refuse(path, str(error))
                steering.say(self._stages, f"{told.words}: {error}")
            self.look_again()

    def _check_enough(self) -> None:
        if self.reason is None and (reason := self._enough(self._made)):
            self._end(reason)

    def _end(self, reason: str) -> None:
        """Start nothing new from here on."""
        self.reason, self._known = reason, None

    def start_next(self) -> bool:
        """Start a run in a free slot, or do what has to come before one. Whether there was anything to do."""
        if not self._slots.free:
            self._ask_ahead()
            return False
        campaign = self._campaign
        if self._examine():
            return True
        if campaign.paused and campaign.incumbent:
            self._is_over = self._is_over or (self.reason is not None and not self._slots.flights)
            return False
        if campaign is not self._known:  # otherwise there is nothing new but what the researcher answers
            if self._start_known(campaign):
                return True
            self._known = campaign
        may_propose = self.reason is None and campaign.incumbent is not None and not self._is_held
        return may_propose and self._propose(campaign)

    def _examine(self) -> bool:
        """Start the examination of a trial that is decided but for that. Whether there was one."""
        trial = next((trial for trial in self._unfinished() if trial.number in self._to_examine), None)
        if trial is None:
            return False
        self._to_examine.discard(trial.number)
        self._slots.examine(trial)
        return True

    def _start_known(self, campaign: Campaign) -> bool:
        """Start what the campaign itself asks for. Whether there was anything."""
        for trial in self._unfinished():
            if (seed := self._next_seed(campaign, trial)) is not None:
                return self._start(trial, Purpose.TRIAL, seed)
        if self.reason is not None:
            return self._finish()
        if campaign.incumbent is None:
            return not campaign.trials and self._enter(baseline(self._stages))
        if self._is_held:
            return False
        is_due = self._confirming and (self._made or not is_new_here(self._stages, self._tag))
        if (campaign.is_to_confirm or is_due) and self._confirm(asked=campaign.is_to_confirm):
            return True
        better = to_carry_over(campaign) if self._has_room() else None
        return better is not None and self._carry_over(better)

    def _finish(self) -> bool:
        """Once nothing new is to be started: confirm what was kept. Whether there was anything to do."""
        if self._asked is None and not self._unfinished():
            self._desk.leave(self._campaign)
            self._asked = bool(self._campaign.untested)
        if self._slots.flights and self._asked is None:
            return False
        if self._asked is None or self._hurry() or not self._confirm(asked=self._asked):
            self._is_over = self._is_over or not self._slots.wanted or self._hurry()
            return False
        return True

    def _unfinished(self) -> list[Trial]:
        """The trials without a verdict; once it is to end, only those that were begun."""
        campaign = self._campaign
        if self._listed[0] is not campaign:
            self._listed = (campaign, [trial for trial in campaign.trials if trial.verdict is None])
        return [trial for trial in self._listed[1] if self.reason is None or trial.number in self._begun]

    def _next_seed(self, campaign: Campaign, trial: Trial) -> int | None:
        """The seed of the next run that a trial needs now; None if it needs none, or waits for those in flight."""
        flying = self._slots.of(trial)
        certain = self._stages.judge.runs_needed(campaign, trial)
        if flying and len(trial.runs) + len(flying) >= certain:
            return None
        used = {run.seed for run in trial.runs} | {each.seed for each in flying}
        return next(seed for seed in itertools.count(FIRST_SEED) if seed not in used)

    def _start(self, trial: Trial, purpose: Purpose, seed: int) -> bool:
        self._stages.workspace.check_space(self._stages.min_free_gb)
        self._begun.add(trial.number)
        self._slots.start(self._campaign, trial, purpose, seed)
        return True

    def _confirm(self, *, asked: bool) -> bool:
        """Start the next run of a confirmation that is due, or conclude it. Whether more of it may follow."""
        campaign = self._campaign
        step = self._stages.judge.confirmation(campaign, asked=asked, flying=self._slots.wanted)
        if isinstance(step, Confirmation):
            self._stages.record(step)
            publish(self._stages, self._campaign)
            return self.reason is None
        if step is None:
            return False
        trial = next(each for each in campaign.trials if each.number == step.trial)
        return self._start(trial, Purpose.CONFIRM, step.seed)

    def _carry_over(self, trial: Trial) -> bool:
        answer = carried_over(self._stages, self._campaign, trial)
        if isinstance(answer, Answer):
            self._enter(answer)
        else:
            self._stages.record(answer)
        return True

    def _propose(self, campaign: Campaign) -> bool:
        """Make the next proposal a trial, if there is one. Whether there was."""
        if not self._has_room():
            return False
        try:
            if answer := self._desk.answer(campaign):
                return self._enter(answer)
            if not self._has_room():
                return False
            if reason := self._stages.policy.overspent(campaign):
                raise Exhausted(reason)
            self._desk.ask(campaign, self._slots.free)
        except Exhausted as end:
            self._end(str(end) or "the researcher has nothing more to propose")
        return False

    def _ask_ahead(self) -> None:
        if self._has_room() and not self._campaign.paused and not self._is_held:
            self._desk.ask_ahead(self._campaign)

    def _has_room(self) -> bool:
        """Whether one more trial may begin, beside those that have no verdict yet."""
        return self._enough(self._made + len(self._unfinished())) is None

    def _enter(self, answer: Answer) -> bool:
        """Make an answer a trial. Its first run starts next."""
        campaign = self._campaign
        if campaign.incumbent is None:
            enter(self._stages, self._tag, self._stages.ledger.next_trial(), answer, campaign.started.base)
        else:
            self._desk.made(commit(self._stages, campaign, answer))
        return True


def is_new_here(stages: Stages, tag: str) -> bool:
    """Whether another researcher made the latest proposal. Then this one's first proposal comes before what is due."""
    latest = stages.campaign(tag).trials[-1:]
    return bool(latest) and latest[0].proposed.researcher != stages.researcher.name
