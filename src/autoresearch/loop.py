"""The loop: propose, guard, commit, run, grade, judge, keep or leave, record; the only place where the stages meet."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterator

from autoresearch import atomic, comparing, guard, models, report
from autoresearch.campaign import Campaign, Trial
from autoresearch.errors import Exhausted, UserError
from autoresearch.events import (
    CampaignStarted,
    Confirmation,
    ProposalRefused,
    RunEnded,
    Stopped,
    TrialProposed,
    Verdict,
)
from autoresearch.ledger import CONTROL
from autoresearch.proposing import Answer, Desk
from autoresearch.records import Decision, Proposal, Purpose, Status
from autoresearch.running import FIRST_SEED, run_once
from autoresearch.stages import Stages
from autoresearch.trial import ENTRY

FREE_REFUSALS = 3
REASON_LENGTH = 200  # characters


# ---------------------------------------------------------------- the loop


def run_campaign(
    stages: Stages, tag: str, enough: Callable[[int], str | None], hurry: Callable[[], bool] = lambda: False
) -> str:
    """Run trials on a campaign, new or begun, until `enough(trials made)` gives a reason; returns the reason.

    What was kept is then confirmed, unless there is a hurry.
    """
    with recorded_stop(stages, tag):
        reason = _run_campaign(stages, tag, enough, hurry)
    stages.record(Stopped(tag, reason))
    return reason


@contextlib.contextmanager
def recorded_stop(stages: Stages, tag: str) -> Iterator[None]:
    """Record why it stopped where that is by an error or by hand, and leave no process of this lab behind."""
    try:
        yield
    except (KeyboardInterrupt, UserError) as stop:
        with contextlib.suppress(OSError):
            stages.record(Stopped(tag, str(stop) or "stopped by hand"))
        raise
    finally:
        stages.executor.end_leftovers()


def _run_campaign(stages: Stages, tag: str, enough: Callable[[int], str | None], hurry: Callable[[], bool]) -> str:
    begin(stages, tag)
    desk, made = Desk(stages), 0

    def over() -> bool:
        return enough(made) is not None

    while (reason := enough(made)) is None:
        stages.workspace.check_space(stages.min_free_gb)
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


def run_trial(stages: Stages, campaign: Campaign, trial: Trial) -> None:
    """Run a trial until the judge has decided it, and record the verdict."""
    while True:
        if trial.runs:
            decision = stages.judge.decide(campaign, trial)
            if not decision.rerun:
                break
        trial = dataclasses.replace(trial, runs=(*trial.runs, run_once(stages, campaign, trial)))
    settle(stages, campaign, trial, decision)


def confirm(stages: Stages, tag: str, stop: Callable[[], bool] = lambda: False, *, asked: bool) -> None:
    """Test on fresh seeds whether what was kept is really better, where that is due or `asked` for."""
    while (step := stages.judge.confirmation(campaign := stages.campaign(tag), asked=asked)) and not stop():
        stages.workspace.check_space(stages.min_free_gb)
        if isinstance(step, Confirmation):
            stages.record(step)
            publish(stages, stages.campaign(tag))
            return
        trial = next(each for each in campaign.trials if each.number == step.trial)
        run_once(stages, campaign, trial, Purpose.CONFIRM, step.seed)


def confirm_now(stages: Stages, tag: str, stop: Callable[[], bool]) -> Confirmation | None:
    """Confirm what a campaign has kept so far; None where there is nothing to confirm, or it was stopped."""
    with recorded_stop(stages, tag):
        before = len(caught_up(stages, tag).confirmations)
        confirm(stages, tag, stop, asked=True)
        made = stages.campaign(tag).confirmations
        return made[-1] if len(made) > before else None


def replay(stages: Stages, tag: str, number: int) -> RunEnded:
    """Run a trial once more, on the seed of its first run."""
    with recorded_stop(stages, tag):
        campaign = caught_up(stages, tag)
        trial = next(each for each in campaign.trials if each.number == number)
        return run_once(stages, campaign, trial, Purpose.REPLAY, trial.runs[0].seed if trial.runs else FIRST_SEED)


def try_once(stages: Stages, tag: str, write: Callable[[Campaign], Answer | ProposalRefused | None]) -> Trial | None:
    """Run one trial of what `write` makes on the incumbent, after the baseline and any trial that was cut short.

    Returns None where `write` has nothing to try.

    Raises:
        UserError: the proposal is refused, and why.
    """
    with recorded_stop(stages, tag):
        campaign = caught_up(stages, tag, dirty=stages.editable)
        answer = write(campaign)
        if isinstance(answer, ProposalRefused):
            stages.record(answer)
            raise UserError(answer.reason)
        if answer is None:
            return None
        trial = commit(stages, campaign, answer)
        run_trial(stages, campaign, trial)
        confirm(stages, tag, asked=False)
        return stages.campaign(tag).trials[-1]


# ---------------------------------------------------------------- its steps


def caught_up(stages: Stages, tag: str, dirty: Collection[str] = ()) -> Campaign:
    """The campaign, begun or taken up, once its baseline and any trial that was cut short have their verdicts."""
    begin(stages, tag, dirty)
    stages.workspace.check_space(stages.min_free_gb)
    while trial := unfinished(stages, stages.campaign(tag)):
        run_trial(stages, stages.campaign(tag), trial)
    return stages.campaign(tag)


def begin(stages: Stages, tag: str, dirty: Collection[str] = ()) -> None:
    """Start a campaign, or take one up where it was left, whatever ended it; files in `dirty` may be half edited."""
    stages.workspace.check_checkout(tag)
    stages.executor.end_leftovers()
    stages.workspace.clear()
    campaign = stages.ledger.campaign(tag)
    if campaign is None:
        stages.record(new_campaign(stages, tag, dirty))
    elif campaign.finished and campaign.incumbent is None:
        raise UserError(
            f"the baseline of campaign {tag} has no score: mend train.py, commit it, and start anew with `--tag NAME`"
        )
    campaign = stages.campaign(tag)
    comparing.check(campaign, stages.device, {})  # before anything is fetched in vain
    publish(stages, campaign)
    stages.prepare(stages.workspace.files(campaign.started.base))
    if campaign.classes():
        comparing.check(campaign, stages.device, stages.grader.fingerprints())


def new_campaign(stages: Stages, tag: str, dirty: Collection[str]) -> CampaignStarted:
    base = stages.workspace.base(tag, dirty)
    for path, text in stages.texts(base).items():
        if problem := guard.syntax_problem(path, text):
            raise UserError(f"{problem}: mend it and commit it, for the search starts from it")
    return CampaignStarted(
        tag=tag,
        base=base,
        researcher=stages.researcher.name,
        executor=stages.executor.name,
        judge=stages.judge.name,
        sandbox=stages.executor.sandbox,
        frozen_sha256=stages.frozen_sha256(stages.workspace.files(base)),
        budget_seconds=stages.budget_seconds,
        grader=stages.grader.name,
        preset=stages.preset,
    )


def next_trial(stages: Stages, campaign: Campaign, desk: Desk, stop: Callable[[], bool]) -> Trial | None:
    """The trial that was cut short, else the baseline, else a new proposal; None where there is none this time."""
    if trial := unfinished(stages, campaign):
        return trial
    if reason := stages.policy.overspent(campaign):
        raise Exhausted(reason)
    answer = desk.propose(campaign, stop)
    return commit(stages, campaign, answer) if answer else None


def unfinished(stages: Stages, campaign: Campaign) -> Trial | None:
    """What is to run before anything is proposed: a trial without a verdict, or the baseline."""
    for trial in campaign.trials:
        if trial.verdict is None:
            return trial
    if campaign.incumbent is None:
        baseline = Answer(Proposal("baseline", {}), stages.researcher.name)
        return enter(stages, campaign.tag, stages.ledger.next_trial(), baseline, campaign.started.base)
    return None


def commit(stages: Stages, campaign: Campaign, answer: Answer) -> Trial:
    """Commit a proposal on the incumbent and make it a trial."""
    assert campaign.incumbent is not None
    number, parent = stages.ledger.next_trial(), campaign.incumbent.proposed.commit
    proposal = answer.proposal
    made = stages.workspace.commit(campaign.tag, number, parent, proposal.files, proposal.idea)
    return enter(stages, campaign.tag, number, answer, parent, made)


def enter(stages: Stages, tag: str, number: int, answer: Answer, parent: str, commit: str | None = None) -> Trial:
    """Record a committed proposal as a trial; from here on it is never lost. The baseline is its own parent."""
    commit, proposal = commit or parent, answer.proposal
    patch = stages.workspace.patch(parent, commit)
    directory = stages.workspace.trial_directory(number)
    directory.mkdir(parents=True, exist_ok=True)
    atomic.write(directory / "patch.diff", patch.encode())
    texts = stages.texts(commit)
    proposed = TrialProposed(
        trial=number,
        tag=tag,
        parent=parent,
        commit=commit,
        idea=proposal.idea,
        researcher=answer.researcher,
        fingerprint=guard.fingerprint(texts),
        lines_changed=sum(line[:1] in "+-" and line[:3] not in ("+++", "---") for line in patch.splitlines() if line),
        note=proposal.note,
        tokens=proposal.tokens,
        usd=proposal.usd,
        why=proposal.why,
        expects=proposal.expects,
        repairs=proposal.repairs,
        stale=answer.stale,
        skeleton=guard.skeleton(texts)[0],
        nodes=guard.size(texts),
    )
    stages.record(proposed)
    return Trial(proposed)


def settle(stages: Stages, campaign: Campaign, trial: Trial, decision: Decision) -> None:
    """Record the verdict, then let the branch and results.tsv follow it.

    Raises:
        UserError: the baseline has no score that counts, so that there is nothing to search from.
    """
    kept = decision.status is Status.KEEP
    standing = campaign.incumbent.proposed.commit if campaign.incumbent else campaign.started.base
    incumbent = trial.proposed.commit if kept else standing
    stages.record(
        Verdict(
            trial=trial.number,
            status=decision.status,
            reason=decision.reason,
            val_bpb=trial.val_bpb,
            memory_gb=trial.memory_gb,
            incumbent=incumbent,
            estimate=decision.estimate,
            simpler=decision.simpler,
        )
    )
    if not kept:
        stages.workspace.drop_checkpoints(trial.number)
    publish(stages, stages.campaign(campaign.tag))
    if kept:
        with contextlib.suppress(OSError, UserError):  # `sample` does it, or says why not, when a model is wanted
            models.save(stages.workspace, campaign, trial)
    if campaign.incumbent is None and not kept:
        what = "crashed" if decision.status is Status.CRASH else f"is {decision.status.value}"
        why = report.shorten(report.last_line(decision.reason), REASON_LENGTH)
        raise UserError(
            f"the baseline {what} ({why}): see `autoresearch show {trial.number}`, mend {ENTRY} (or program.md, where "
            "that sets a limit), commit it, and begin anew with `--tag NAME`"
        )


def publish(stages: Stages, campaign: Campaign) -> None:
    """Bring the branch and results.tsv to where the ledger says they are; doing it again changes nothing."""
    base, best = campaign.started.base, campaign.incumbent
    known = {base, *(trial.proposed.commit for trial in campaign.trials)}
    stages.workspace.advance(campaign.tag, best.proposed.commit if best else base, known)
    if campaign.started.researcher != CONTROL:
        atomic.write(stages.workspace.results, report.to_tsv(report.rows(campaign)).encode())


def pause(stages: Stages, refusals: int, stop: Callable[[], bool]) -> None:
    """Wait after a refused proposal: not at all after the first few, then longer and longer, up to a limit."""
    seconds = 2.0 ** min(refusals - FREE_REFUSALS, 16) if refusals > FREE_REFUSALS else 0.0
    until = time.monotonic() + min(seconds, stages.policy.longest_pause_seconds)
    while time.monotonic() < until and not stop():
        time.sleep(0.1)
