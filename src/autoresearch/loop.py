"""The loop: propose, guard, commit, run, grade, judge, keep or leave, record; the only place where the stages meet."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterator

from autoresearch import atomic, guard, report, timing
from autoresearch.errors import Exhausted, UserError
from autoresearch.grader import memory_gb, printed_summary
from autoresearch.interfaces import Session
from autoresearch.proposing import Answer, Desk
from autoresearch.records import (
    Campaign,
    CampaignStarted,
    Crash,
    Decision,
    Graded,
    Invalid,
    Proposal,
    ProposalRefused,
    RunEnded,
    RunRequest,
    RunResult,
    RunStarted,
    Score,
    Status,
    Stopped,
    Trial,
    TrialProposed,
    Verdict,
)
from autoresearch.stages import Stages
from autoresearch.trial import ENTRY

FIRST_SEED = 42
FREE_REFUSALS = 3
REASON_LENGTH = 200  # characters


# ---------------------------------------------------------------- the loop


def run_campaign(stages: Stages, tag: str, enough: Callable[[int], str | None]) -> str:
    """Run trials on a campaign, new or begun, until `enough(trials made)` gives a reason; returns the reason."""
    with recorded_stop(stages, tag):
        reason = _run_campaign(stages, tag, enough)
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


def _run_campaign(stages: Stages, tag: str, enough: Callable[[int], str | None]) -> str:
    begin(stages, tag)
    desk, made = Desk(stages), 0

    def over() -> bool:
        return enough(made) is not None

    while (reason := enough(made)) is None:
        stages.workspace.check_space(stages.min_free_gb)
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
    return reason


def run_trial(stages: Stages, campaign: Campaign, trial: Trial) -> None:
    """Run a trial until the judge has decided it, and record the verdict."""
    while True:
        if trial.runs:
            decision = stages.judge.decide(campaign.incumbent, trial)
            if not decision.rerun:
                break
        trial = dataclasses.replace(trial, runs=(*trial.runs, run_once(stages, campaign, trial)))
    settle(stages, campaign, trial, decision)


def try_once(stages: Stages, tag: str, write: Callable[[Campaign], Answer | ProposalRefused | None]) -> Trial | None:
    """Run one trial of what `write` makes on the incumbent, after the baseline and any trial that was cut short.

    Returns None where `write` has nothing to try.

    Raises:
        UserError: the proposal is refused, and why.
    """
    with recorded_stop(stages, tag):
        begin(stages, tag, dirty=stages.editable)
        stages.workspace.check_space(stages.min_free_gb)
        while trial := unfinished(stages, stages.campaign(tag)):
            run_trial(stages, stages.campaign(tag), trial)
        campaign = stages.campaign(tag)
        answer = write(campaign)
        if isinstance(answer, ProposalRefused):
            stages.record(answer)
            raise UserError(answer.reason)
        if answer is None:
            return None
        trial = commit(stages, campaign, answer)
        run_trial(stages, campaign, trial)
        return stages.campaign(tag).trials[-1]


# ---------------------------------------------------------------- its steps


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
    publish(stages, campaign)
    stages.prepare(stages.workspace.files(campaign.started.base))


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
    )
    stages.record(proposed)
    return Trial(proposed)


def run_once(stages: Stages, campaign: Campaign, trial: Trial) -> RunEnded:
    """Execute and grade one run of a trial, on the next seed."""
    run, commit = len(trial.runs), trial.proposed.commit
    request = RunRequest(
        run_id=f"{trial.number:04d}/run{run}",
        commit=commit,
        files=stages.workspace.files(commit),
        seed=FIRST_SEED + run,
        budget_seconds=stages.budget_seconds,
        deadline_seconds=stages.deadline_seconds,
        editable=stages.editable,
        baseline=commit == campaign.started.base,
    )
    stages.record(RunStarted(trial.number, run, request.seed))
    unfinished = unscored(stages, trial, request)

    def would_keep(score: Score) -> bool:
        scored = dataclasses.replace(trial, runs=(*trial.runs, dataclasses.replace(unfinished, score=score)))
        return stages.judge.decide(campaign.incumbent, scored).status is Status.KEEP

    session = stages.grader.session(request, would_keep)
    result = stages.executor.run(request, lambda event: stages.progress(trial.number, event), session.serve)
    ended = run_record(stages, campaign, unfinished, session, result)
    stages.record(ended)
    return ended


def unscored(stages: Stages, trial: Trial, request: RunRequest) -> RunEnded:
    """A run's record before there is anything to say of it."""
    return RunEnded(
        trial=trial.number,
        run=len(trial.runs),
        seed=request.seed,
        commit=request.commit,
        score=None,
        crash=None,
        exit_code=None,
        wall_seconds=0.0,
        startup_seconds=None,
        training_seconds=None,
        memory_gb=None,
        summary={},
        environment={},
        frozen_sha256=stages.frozen_sha256(request.files),
        log="",
        curve="",
    )


def run_record(
    stages: Stages, campaign: Campaign, unfinished: RunEnded, session: Session, result: RunResult
) -> RunEnded:
    """The record of a run that has ended: what it is worth, unless its time or a frozen file says otherwise."""
    outcome, clock, summary = session.outcome(result), session.clock(result), printed_summary(result.log_tail)
    graded = outcome if isinstance(outcome, Graded) else None
    invalid = outcome.reason if isinstance(outcome, Invalid) else None
    if graded:
        baseline = campaign.trials[0].runs[:1] if campaign.trials else ()
        changed = f"it changed {', '.join(result.tampered)}, which no trial may" if result.tampered else None
        invalid = changed or timing.void(
            clock,
            budget_seconds=stages.budget_seconds,
            startup_seconds=stages.startup_seconds,
            steps=result.steps,
            baseline_first_answer=baseline[0].first_logits_seconds if baseline else None,
        )
    return dataclasses.replace(
        unfinished,
        score=graded.score if graded else None,
        holdout=graded.holdout if graded and not invalid else None,
        crash=outcome if isinstance(outcome, Crash) else None,
        invalid=invalid,
        exit_code=result.exit_code,
        wall_seconds=result.wall_seconds,
        startup_seconds=clock.first_batch,
        training_seconds=timing.training_seconds(clock),
        first_logits_seconds=timing.first_answer_seconds(clock),
        memory_gb=memory_gb(summary),
        summary=summary,
        environment=session.environment(result),
        log=stages.workspace.relative(result.log_path),
        curve=stages.workspace.relative(result.curve_path),
    )


def settle(stages: Stages, campaign: Campaign, trial: Trial, decision: Decision) -> None:
    """Record the verdict, then let the branch and results.tsv follow it.

    Raises:
        UserError: the baseline has no score that counts, so that there is nothing to search from.
    """
    kept = decision.status is Status.KEEP
    standing = campaign.incumbent.proposed.commit if campaign.incumbent else campaign.started.base
    incumbent = trial.proposed.commit if kept else standing
    stages.record(Verdict(trial.number, decision.status, decision.reason, trial.val_bpb, trial.memory_gb, incumbent))
    if not kept:
        stages.workspace.drop_checkpoints(trial.number)
    publish(stages, stages.campaign(campaign.tag))
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
    atomic.write(stages.workspace.results, report.to_tsv(report.rows(campaign)).encode())


def pause(stages: Stages, refusals: int, stop: Callable[[], bool]) -> None:
    """Wait after a refused proposal: not at all after the first few, then longer and longer, up to a limit."""
    seconds = 2.0 ** min(refusals - FREE_REFUSALS, 16) if refusals > FREE_REFUSALS else 0.0
    until = time.monotonic() + min(seconds, stages.policy.longest_pause_seconds)
    while time.monotonic() < until and not stop():
        time.sleep(0.1)
