"""The loop: propose, guard, commit, run, grade, judge, keep or revert, record. The only place where the stages meet."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from autoresearch.base.errors import UserError
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import Confirmation, ProposalRefused, RunEnded, Stopped
from autoresearch.ledger.records import Purpose
from autoresearch.loop import steering
from autoresearch.loop.asking.proposals import Answer
from autoresearch.loop.driver import Driver, drive
from autoresearch.loop.parts.stages import Stages
from autoresearch.loop.run import FIRST_SEED, run_once
from autoresearch.loop.slots import Slots
from autoresearch.loop.start import begin, caught_up, check_researcher
from autoresearch.loop.trial import commit, publish, run_trial


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
    if paused := stages.campaign(tag).paused:
        steering.say(stages, f"this search was told to {paused.words}: `autoresearch resume` lets it go on")
    with Slots(stages) as slots:
        return drive(Driver(stages, tag, slots, enough, hurry, confirming=confirming), slots)


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
