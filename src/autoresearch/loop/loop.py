"""The loop: propose, guard, commit, run, grade, judge, keep or revert, record. The only place where the stages meet."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from autoresearch.base.errors import Exhausted, UserError
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import (
    ChosenByHand,
    Confirmation,
    ProposalRefused,
    RunEnded,
    Stopped,
)
from autoresearch.ledger.records import Purpose, Status
from autoresearch.loop.proposals import Answer, Desk
from autoresearch.loop.run import FIRST_SEED, run_once
from autoresearch.loop.stages import Stages
from autoresearch.loop.start import begin, caught_up, check_researcher, unfinished
from autoresearch.loop.trial import commit, publish, run_trial

FREE_REFUSALS = 3


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


def _run_campaign(
    stages: Stages, tag: str, enough: Callable[[int], str | None], hurry: Callable[[], bool], *, confirming: bool
) -> str:
    begin(stages, tag)
    desk, made = Desk(stages), 0

    def over() -> bool:
        return enough(made) is not None

    while (reason := enough(made)) is None:
        stages.workspace.check_space(stages.min_free_gb)
        if confirming and (made or not is_new_here(stages, tag)):
            confirm(stages, tag, over, asked=False)
        if over():
            continue
        campaign = stages.campaign(tag)
        try:
            trial = next_trial(stages, campaign, desk, over)
        except Exhausted as end:
            reason = str(end) or "the researcher has nothing more to propose"
            break
        if trial is None:
            pause(stages, len(desk.refusals), over)
            continue
        desk.made(trial)
        if enough(made + 1) is None:
            desk.ask_ahead(stages.campaign(tag))
        run_trial(stages, campaign, trial)
        made += campaign.incumbent is not None
    desk.leave(stages.campaign(tag))
    confirm(stages, tag, hurry, asked=bool(stages.campaign(tag).untested))
    return reason


def is_new_here(stages: Stages, tag: str) -> bool:
    """Whether another researcher made the latest proposal. Then this one's first proposal comes before what is due."""
    latest = stages.campaign(tag).trials[-1:]
    return bool(latest) and latest[0].proposed.researcher != stages.researcher.name


def confirm(stages: Stages, tag: str, stop: Callable[[], bool] = lambda: False, *, asked: bool) -> None:
    """Test on fresh seeds whether the kept trials are really better, if that is due or `asked` for."""
    while (step := stages.judge.confirmation(campaign := stages.campaign(tag), asked=asked)) and not stop():
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
        confirm(stages, tag, stop, asked=True)
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
        confirm(stages, tag, asked=False)
        return stages.campaign(tag).trials[-1]


def choose(stages: Stages, tag: str, number: int, *, keep: bool, by: str, why: str) -> ChosenByHand:
    """Keep a trial by hand, or drop a keep: the search continues from it, or from what it was made of.

    Raises:
        UserError: this cannot be done, and why.
    """
    campaign = stages.campaign(tag)
    if open_trial := next((each for each in campaign.trials if each.verdict is None), None):
        raise UserError(f"trial {open_trial.number} has no verdict yet: let it finish first")
    trial = next(each for each in campaign.trials if each.number == number)
    problem = _unkeepable(campaign, trial) if keep else _undroppable(campaign, trial)
    if problem:
        raise UserError(problem)
    parent = next(each for each in campaign.trials if each.proposed.commit == trial.proposed.parent)
    chosen = ChosenByHand(
        tag=tag,
        trial=number,
        kept=keep,
        incumbent=(trial if keep else parent).number,
        by=by,
        why=why,
        after=campaign.trials[-1].number,
        confirmations=len(campaign.confirmations),
    )
    stages.record(chosen)
    publish(stages, stages.campaign(tag))
    return chosen


def _unkeepable(campaign: Campaign, trial: Trial) -> str | None:
    if trial is campaign.incumbent:
        return f"trial {trial.number} is the best version already"
    if campaign.status_of(trial) in (Status.CRASH, Status.INVALID) or trial.val_bpb is None:
        return f"trial {trial.number} has no score that counts, so it cannot be kept"
    return None


def _undroppable(campaign: Campaign, trial: Trial) -> str | None:
    if trial is campaign.trials[0]:
        return "the baseline cannot be dropped: start another search with `--tag NAME`"
    if trial.number not in campaign.standing:
        return f"trial {trial.number} is not among the keeps that lead to the best version, so there is nothing to drop"
    return None


def next_trial(stages: Stages, campaign: Campaign, desk: Desk, stop: Callable[[], bool]) -> Trial | None:
    """The interrupted trial, else the baseline, else a new proposal; None if there is none this time."""
    if trial := unfinished(stages, campaign):
        return trial
    if reason := stages.policy.overspent(campaign):
        raise Exhausted(reason)
    answer = desk.propose(campaign, stop)
    return commit(stages, campaign, answer) if answer else None


def pause(stages: Stages, refusals: int, stop: Callable[[], bool]) -> None:
    """Wait after a refused proposal: not at all after the first few, then longer and longer, up to a limit."""
    seconds = 2.0 ** min(refusals - FREE_REFUSALS, 16) if refusals > FREE_REFUSALS else 0.0
    until = time.monotonic() + min(seconds, stages.policy.longest_pause_seconds)
    while time.monotonic() < until and not stop():
        time.sleep(0.1)
