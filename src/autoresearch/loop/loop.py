"""The loop: propose, guard, commit, run, grade, judge, keep or revert, record. The only place where the stages meet."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

from autoresearch.base.errors import Exhausted, UserError
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import (
    Confirmation,
    ProposalRefused,
    RunEnded,
    Stopped,
)
from autoresearch.ledger.records import Purpose
from autoresearch.loop.asking.desk import Desk
from autoresearch.loop.asking.proposals import Answer, carried_over, to_carry_over
from autoresearch.loop.parts.stages import Stages
from autoresearch.loop.run import FIRST_SEED, run_once
from autoresearch.loop.slots import Slots
from autoresearch.loop.start import baseline, begin, caught_up, check_researcher
from autoresearch.loop.trial import commit, conclude, decided, enter, is_to_be_examined, publish, run_trial

POLL_SECONDS = 0.02


def run_campaign(
    stages: Stages,
    tag: str,
    enough: Callable[[int], str | None],
    hurry: Callable[[], bool] = lambda: False,
    *,
    confirming: bool = True,
) -> str:
    """Run trials on a campaign, new or existing, until `enough(trials made)` gives a reason. Returns the reason.

    Then confirms what was kept, unless there is a hurry. If not `confirming`, it confirms nothing at all.
    """
    check_researcher(stages, tag)
    with recorded_stop(stages, tag):
        reason = _run_campaign(stages, tag, enough, hurry if confirming else lambda: True, confirming=confirming)
    stages.record(Stopped(tag, reason))
    return reason


@contextlib.contextmanager
def recorded_stop(stages: Stages, tag: str) -> Iterator[None]:
    """If it stops because of an error or Ctrl-C, record why; and leave no process of this lab behind.

    Raises:
        UserError: the lab is gone.
    """
    try:
        yield
    except (KeyboardInterrupt, UserError, OSError) as stop:
        root = stages.workspace.root
        if stages.ledger.mark.read and not stages.ledger.path.exists():
            raise UserError(f"{root} was moved or deleted while its loop ran: put it back, then continue") from stop
        if not isinstance(stop, OSError):
            with contextlib.suppress(OSError, UserError):
                stages.record(Stopped(tag, str(stop) or "stopped by hand"))
        raise
    finally:
        stages.executor.end_leftovers()
        stages.executor.close()


def _run_campaign(
    stages: Stages, tag: str, enough: Callable[[int], str | None], hurry: Callable[[], bool], *, confirming: bool
) -> str:
    begin(stages, tag)
    with Slots(stages) as slots:
        return drive(Driver(stages, tag, slots, enough, hurry, confirming=confirming), slots)


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
        """Record the verdicts of the trials whose runs have ended."""
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
        if campaign is not self._known:  # otherwise there is nothing new but what the researcher answers
            if self._start_known(campaign):
                return True
            self._known = campaign
        return self.reason is None and campaign.incumbent is not None and self._propose(campaign)

    def _start_known(self, campaign: Campaign) -> bool:
        """Start what the campaign itself asks for. Whether there was anything."""
        for trial in self._unfinished():
            if trial.number in self._to_examine:
                self._to_examine.discard(trial.number)
                self._slots.examine(trial)
                return True
            if (seed := self._next_seed(campaign, trial)) is not None:
                return self._start(trial, Purpose.TRIAL, seed)
        if self.reason is not None:
            return self._finish()
        if campaign.incumbent is None:
            return not campaign.trials and self._enter(baseline(self._stages))
        if self._confirming and (self._made or not is_new_here(self._stages, self._tag)) and self._confirm(asked=False):
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
        if self._has_room():
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


def confirm(stages: Stages, tag: str) -> None:
    """Test on fresh seeds whether the kept trials are really better, if that is due."""
    while step := stages.judge.confirmation(campaign := stages.campaign(tag), asked=False):
        stages.workspace.check_space(stages.min_free_gb)
        if isinstance(step, Confirmation):
            stages.record(step)
            publish(stages, stages.campaign(tag))
            return
        trial = next(each for each in campaign.trials if each.number == step.trial)
        run_once(stages, campaign, trial, Purpose.CONFIRM, step.seed)


def confirm_now(stages: Stages, tag: str, stop: Callable[[], bool]) -> Confirmation | None:
    """Confirm what a campaign has kept so far; None if there is nothing to confirm, or it was stopped."""
    with recorded_stop(stages, tag):
        before = len(caught_up(stages, tag).confirmations)
        with Slots(stages) as slots:
            drive(Driver(stages, tag, slots, lambda made: "it only confirms", stop, asked=True), slots)
        made = stages.campaign(tag).confirmations
        return made[-1] if len(made) > before else None


def replay(stages: Stages, tag: str, number: int) -> RunEnded:
    """Run a trial again, on the seed of its first run."""
    with recorded_stop(stages, tag):
        campaign = caught_up(stages, tag)
        trial = next(each for each in campaign.trials if each.number == number)
        seed = trial.runs[0].seed if trial.runs else FIRST_SEED
        return run_once(stages, campaign, trial, Purpose.REPLAY, seed).runs[-1]


def try_once(
    stages: Stages, tag: str, write: Callable[[Campaign], Answer | ProposalRefused | Trial | None]
) -> Trial | ProposalRefused | None:
    """Run one trial of what `write` makes from the incumbent, after the baseline and any interrupted trial.

    If `write` refuses it, returns why; if it names a trial that was just made of it, that one; if it has nothing to
    try, None.
    """
    with recorded_stop(stages, tag):
        campaign = caught_up(stages, tag, dirty=stages.editable)
        answer = write(campaign)
        if isinstance(answer, ProposalRefused):
            stages.record(answer)
        if not isinstance(answer, Answer):
            return answer
        trial = commit(stages, campaign, answer)
        run_trial(stages, campaign, trial)
        confirm(stages, tag)
        return stages.campaign(tag).trials[-1]
