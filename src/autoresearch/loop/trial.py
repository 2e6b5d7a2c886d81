"""One trial: commit a proposal, run it until the judge has decided, publish the verdict, or one by hand."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

from autoresearch.base import atomic
from autoresearch.base.errors import UserError
from autoresearch.grading.protocol import ENTRY
from autoresearch.judging.judge import unfit
from autoresearch.ledger import report
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import ChosenByHand, FileSaved, TrialProposed, Verdict
from autoresearch.ledger.ledger import CONTROL, Ledger
from autoresearch.ledger.records import Decision, RunEvent, Status
from autoresearch.ledger.results_file import ResultsFile
from autoresearch.loop.asking.proposals import Answer, base_of
from autoresearch.loop.parts.stages import Stages
from autoresearch.loop.run import run_once
from autoresearch.models import saved_model
from autoresearch.researchers.guard import duplicates, fingerprint

REASON_LENGTH = 200  # characters


def run_trial(stages: Stages, campaign: Campaign, trial: Trial) -> None:
    """Run a trial until the judge has decided it, and record the verdict."""
    while (decision := decided(stages, campaign, trial)) is None:
        trial = run_once(stages, campaign, trial)
    problem = examined(stages, trial, lambda: None) if is_to_be_examined(campaign, decision) else None
    conclude(stages, campaign, trial, decision, problem)


def decided(stages: Stages, campaign: Campaign, trial: Trial) -> Decision | None:
    """The judge's decision on a trial; None if it needs one more run."""
    if not trial.runs or (len(trial.scores) < trial.proposed.seeds and not unfit(trial)):
        return None
    decision = stages.judge.decide(campaign, trial)
    return None if decision.rerun else decision


def is_to_be_examined(campaign: Campaign, decision: Decision) -> bool:
    """Whether a trial's model is examined once more before its verdict: a keep's, unless it is the baseline."""
    return decision.status is Status.KEEP and campaign.incumbent is not None


def examined(stages: Stages, trial: Trial, poll: Callable[[], None]) -> str | None:
    """Examine a trial's model once more. Returns why it is not the one that was graded; None if it is."""
    stages.progress(trial.number, RunEvent("examined_again", 0.0, {}))
    return stages.examine(trial, poll)


def conclude(stages: Stages, campaign: Campaign, trial: Trial, decision: Decision, problem: str | None) -> None:
    """Record the verdict on a trial: the decision, unless a `problem` was found when its model was examined."""
    if problem and is_to_be_examined(campaign, decision):
        decision = Decision(Status.INVALID, problem)
    for run in trial.runs:
        stages.workspace.answers(trial.number, run.run).unlink(missing_ok=True)
    if disturbed := next((run.disturbed for run in trial.runs if run.disturbed), None):
        decision = dataclasses.replace(decision, reason=f"{decision.reason}; it was judged although {disturbed}")
    settle(stages, campaign, trial, decision)


def commit(stages: Stages, campaign: Campaign, answer: Answer) -> Trial:
    """Commit a proposal on what it starts from and make it a trial."""
    number, parent = stages.ledger.next_trial(), base_of(campaign, answer.start).proposed.commit
    proposal = answer.proposal
    made = stages.workspace.commit(campaign.tag, number, parent, proposal.files, proposal.idea)
    return enter(stages, campaign.tag, number, answer, parent, made)


def enter(stages: Stages, tag: str, number: int, answer: Answer, parent: str, commit: str | None = None) -> Trial:
    """Record a committed proposal as a trial. From here on it is never lost. The baseline is its own parent."""
    commit, proposal = commit or parent, answer.proposal
    patch = stages.workspace.patch(parent, commit)
    directory = stages.workspace.trial_directory(number)
    atomic.make_directory(directory)
    atomic.write(directory / "patch.diff", patch.encode())
    texts = stages.texts(commit)
    syntax = fingerprint.syntax(texts)
    proposed = TrialProposed(
        trial=number,
        tag=tag,
        parent=parent,
        commit=commit,
        idea=proposal.idea,
        researcher=answer.researcher,
        fingerprint=syntax.fingerprint,
        lines_changed=sum(line[:1] in "+-" and line[:3] not in ("+++", "---") for line in patch.splitlines() if line),
        note=proposal.note,
        tokens=proposal.tokens,
        usd=proposal.usd,
        why=proposal.why,
        expects=proposal.expects,
        repairs=proposal.repairs,
        stale=answer.stale,
        seeds=answer.seeds,
        model=answer.model,
        carries=answer.carries,
        start=answer.start,
        skeleton=syntax.skeleton,
        nodes=syntax.nodes,
        moved=None if commit == parent else duplicates.moved(stages.texts(parent), texts),
    )
    stages.record(proposed)
    return Trial(proposed)


def settle(stages: Stages, campaign: Campaign, trial: Trial, decision: Decision) -> None:
    """Record the verdict, then let the branch and results.tsv follow it.

    Raises:
        UserError: the baseline has no valid score, so there is nothing to search from.
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
            carry=decision.carry,
            place=len(campaign.finished),
        )
    )
    if not kept:
        stages.workspace.drop_checkpoints(trial.number)
    publish(stages, stages.campaign(campaign.tag))
    if kept:
        with contextlib.suppress(OSError, UserError):  # `sample` does it, or says why not, when a model is wanted
            saved_model.save(stages.workspace, campaign, trial)
    if campaign.incumbent is None and not kept:
        what = "crashed" if decision.status is Status.CRASH else f"is {decision.status.value}"
        why = report.shorten(report.last_line(decision.reason), REASON_LENGTH)
        raise UserError(
            f"the baseline {what} ({why}): look at `autoresearch show {trial.number}`, fix {ENTRY} (or program.md, "
            "if that sets a limit), commit it, and start a new campaign with `--tag NAME`"
        )


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
    incumbent = trial if keep else campaign.parent_of(trial)
    assert incumbent is not None, "the baseline is not dropped"
    chosen = ChosenByHand(
        tag=tag,
        trial=number,
        kept=keep,
        incumbent=incumbent.number,
        by=by,
        why=why,
        verdicts=len(campaign.finished),
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


def publish(stages: Stages, campaign: Campaign) -> None:
    """Bring the branch and results.tsv to where the ledger says they are. Doing it again changes nothing."""
    base, best = campaign.started.base, campaign.incumbent
    known = {base, *(trial.proposed.commit for trial in campaign.trials)}
    stages.workspace.advance(campaign.tag, best.proposed.commit if best else base, known)
    if campaign.started.researcher != CONTROL:
        rows, results = report.rows(campaign), stages.results
        if saved := results.write(rows, lambda: commits_of(stages.ledger)):
            stages.record(FileSaved(campaign.tag, results.path.name, saved.name))


def publish_older(stages: Stages, campaign: Campaign) -> None:
    """Give every other search of the lab its own table, since results.tsv is this one's."""
    for each in stages.ledger.campaigns():
        if each.tag != campaign.tag and each.started.researcher != CONTROL and each.finished:
            table = ResultsFile(stages.workspace.older_results(each.tag))
            if saved := table.write(report.rows(each), lambda: commits_of(stages.ledger)):
                stages.record(FileSaved(campaign.tag, table.path.name, saved.name))


def commits_of(ledger: Ledger) -> set[str]:
    """The first 7 digits of every trial's commit."""
    return {trial.proposed.commit[:7] for each in ledger.campaigns() for trial in each.trials}
