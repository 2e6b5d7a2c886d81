"""The loop: propose, guard, commit, run, grade, judge, keep or leave, record; the only place where the stages meet."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from autoresearch import atomic, grader, guard, report
from autoresearch.errors import Exhausted, UserError
from autoresearch.interfaces import Executor, Grader, Judge, Researcher
from autoresearch.ledger import Ledger
from autoresearch.records import (
    Brief,
    Campaign,
    CampaignStarted,
    Crash,
    Decision,
    Event,
    Proposal,
    ProposalRefused,
    RunEnded,
    RunEvent,
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
from autoresearch.trial import CHECKPOINT, ENTRY
from autoresearch.workspace import Workspace

FIRST_SEED = 42
FREE_REFUSALS = 3
LONGEST_PAUSE_SECONDS = 60.0


@dataclass(frozen=True)
class Stages:
    """Everything that a campaign is made of.

    `program` reads the person's prose afresh for each proposal; `prepare` makes the data of a commit's files ready.
    """

    workspace: Workspace
    ledger: Ledger
    researcher: Researcher
    executor: Executor
    grader: Grader
    judge: Judge
    editable: tuple[str, ...]
    budget_seconds: float
    deadline_seconds: float
    min_free_gb: float
    program: Callable[[], str]
    prepare: Callable[[Mapping[str, bytes]], None]
    announce: Callable[[Event], None]
    progress: Callable[[int, RunEvent], None]

    def record(self, event: Event) -> None:
        """Write an event to the ledger, then show it."""
        self.ledger.append(event)
        self.announce(event)

    def campaign(self, tag: str) -> Campaign:
        """The campaign as the ledger has it now."""
        campaign = self.ledger.campaign(tag)
        assert campaign is not None, f"campaign {tag} was begun"
        return campaign

    def decoded(self, commit: str) -> dict[str, str]:
        """Every file of a commit, as text."""
        return {path: data.decode(errors="replace") for path, data in self.workspace.files(commit).items()}

    def texts(self, commit: str) -> dict[str, str]:
        """The editable files of a commit."""
        return self.editable_of(self.decoded(commit))

    def editable_of(self, files: Mapping[str, str]) -> dict[str, str]:
        """Of all files of a commit those that a trial may change."""
        missing = [path for path in self.editable if path not in files]
        if missing:
            names = ", ".join(missing)
            raise UserError(f"{names} of `editable` in program.md is not in the repository: commit it first")
        return {path: files[path] for path in self.editable}

    def frozen_sha256(self, files: Mapping[str, bytes]) -> dict[str, str]:
        """A digest of each file that a trial may not change."""
        frozen = sorted(set(files) - set(self.editable))
        return {path: hashlib.sha256(files[path]).hexdigest() for path in frozen}


# ---------------------------------------------------------------- the loop


def run_campaign(stages: Stages, tag: str, enough: Callable[[int], str | None]) -> str:
    """Run trials on a campaign, new or begun, until `enough(trials made)` gives a reason; returns the reason."""
    try:
        reason = _run_campaign(stages, tag, enough)
    except (KeyboardInterrupt, UserError) as stop:
        with contextlib.suppress(OSError):
            stages.record(Stopped(tag, str(stop) or "stopped by hand"))
        raise
    stages.record(Stopped(tag, reason))
    return reason


def _run_campaign(stages: Stages, tag: str, enough: Callable[[int], str | None]) -> str:
    begin(stages, tag)
    made = 0
    refusals: list[str] = []
    while (reason := enough(made)) is None:
        stages.workspace.check_space(stages.min_free_gb)
        campaign = stages.campaign(tag)
        try:
            trial = next_trial(stages, campaign, refusals)
        except Exhausted as end:
            return str(end) or "the researcher has nothing more to propose"
        if trial:
            run_trial(stages, campaign, trial)
            made += campaign.incumbent is not None
            refusals.clear()
        else:
            pause(len(refusals), lambda: enough(made) is not None)  # noqa: B023
    return reason


def run_trial(stages: Stages, campaign: Campaign, trial: Trial) -> None:
    """Run a trial until the judge has decided it, and record the verdict."""
    while True:
        if trial.runs:
            decision = stages.judge.decide(campaign.incumbent, trial)
            if not decision.rerun:
                break
        trial = dataclasses.replace(trial, runs=(*trial.runs, run_once(stages, trial)))
    settle(stages, campaign, trial, decision)


# ---------------------------------------------------------------- its steps


def begin(stages: Stages, tag: str) -> None:
    """Start a campaign, or take one up where it was left, whatever ended it."""
    stages.workspace.check_checkout(tag)
    stages.executor.end_leftovers()
    campaign = stages.ledger.campaign(tag)
    if campaign is None:
        stages.record(new_campaign(stages, tag))
    elif campaign.finished and campaign.incumbent is None:
        raise UserError(
            f"the baseline of campaign {tag} crashed: mend train.py, commit it, and start anew with `--tag NAME`"
        )
    campaign = stages.campaign(tag)
    publish(stages, campaign)
    stages.prepare(stages.workspace.files(campaign.started.base))


def new_campaign(stages: Stages, tag: str) -> CampaignStarted:
    base = stages.workspace.base(tag)
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
    )


def next_trial(stages: Stages, campaign: Campaign, refusals: list[str]) -> Trial | None:
    """The trial that was cut short, else the baseline, else a new proposal; None where that was refused."""
    for trial in campaign.trials:
        if trial.verdict is None:
            return trial
    if campaign.incumbent is None:
        base = campaign.started.base
        return enter(stages, campaign.tag, stages.ledger.next_trial(), Proposal("baseline", {}), base, base)
    return propose(stages, campaign, campaign.incumbent.proposed.commit, refusals)


def propose(stages: Stages, campaign: Campaign, parent: str, refusals: list[str]) -> Trial | None:
    """Ask for a change and commit it; a refused one is recorded, its reason is added to `refusals`."""
    files = stages.decoded(parent)
    editable = stages.editable_of(files)
    frozen = {path: text for path, text in files.items() if path not in editable}
    brief = Brief(stages.program(), editable, campaign, refusals[-1] if refusals else None, frozen)
    answer = ask(stages, brief)
    if isinstance(answer, ProposalRefused):
        refusals.append(answer.reason)
        stages.record(answer)
        return None
    number = stages.ledger.next_trial()
    commit = stages.workspace.commit(campaign.tag, number, parent, answer.files, answer.idea)
    return enter(stages, campaign.tag, number, answer, parent, commit)


def ask(stages: Stages, brief: Brief) -> Proposal | ProposalRefused:
    """The researcher's proposal, if the guard lets it pass; a researcher that fails does not end the loop."""
    tag, trials = brief.campaign.tag, brief.campaign.trials
    try:
        proposal = stages.researcher.propose(brief)
    except (Exhausted, UserError):
        raise
    except Exception as error:
        return ProposalRefused(tag, "", f"the researcher failed: {type(error).__name__}: {error}")
    tried = {trial.proposed.fingerprint: trial.number for trial in trials}
    problem = guard.refusal(proposal, brief.files, tried, stages.editable)
    return ProposalRefused(tag, proposal.idea, problem) if problem else proposal


def enter(stages: Stages, tag: str, number: int, proposal: Proposal, parent: str, commit: str) -> Trial:
    """Record a committed proposal as a trial; from here on it is never lost."""
    patch = stages.workspace.patch(parent, commit)
    directory = stages.workspace.trial_directory(number)
    directory.mkdir(parents=True, exist_ok=True)
    atomic.write(directory / "patch.diff", patch.encode())
    proposed = TrialProposed(
        trial=number,
        tag=tag,
        parent=parent,
        commit=commit,
        idea=" ".join(proposal.idea.split()),
        researcher=stages.researcher.name,
        fingerprint=guard.fingerprint(stages.texts(commit)),
        lines_changed=sum(line[:1] in "+-" and line[:3] not in ("+++", "---") for line in patch.splitlines() if line),
        note=proposal.note,
        tokens=proposal.tokens,
        usd=proposal.usd,
    )
    stages.record(proposed)
    return Trial(proposed)


def run_once(stages: Stages, trial: Trial) -> RunEnded:
    """Execute and grade one run of a trial, on the next seed."""
    run, commit = len(trial.runs), trial.proposed.commit
    request = RunRequest(
        run_id=f"{trial.number:04d}/run{run}",
        commit=commit,
        files=stages.workspace.files(commit),
        seed=FIRST_SEED + run,
        budget_seconds=stages.budget_seconds,
        deadline_seconds=stages.deadline_seconds,
    )
    stages.record(RunStarted(trial.number, run, request.seed))
    result = stages.executor.run(request, lambda event: stages.progress(trial.number, event))
    outcome = stages.grader.grade(request, result)
    ended = run_record(stages, trial, request, result, outcome)
    stages.record(ended)
    return ended


def run_record(
    stages: Stages, trial: Trial, request: RunRequest, result: RunResult, outcome: Score | Crash
) -> RunEnded:
    summary = grader.printed_summary(result.log_tail)
    first = grader.first_event(result.events, "first_batch")
    return RunEnded(
        trial=trial.number,
        run=len(trial.runs),
        seed=request.seed,
        commit=request.commit,
        score=outcome if isinstance(outcome, Score) else None,
        crash=outcome if isinstance(outcome, Crash) else None,
        exit_code=result.exit_code,
        wall_seconds=result.wall_seconds,
        startup_seconds=first.at if first else None,
        training_seconds=grader.training_seconds(result.events),
        memory_gb=grader.memory_gb(summary),
        summary=summary,
        environment={name: value for name, value in first.values.items() if name != "event"} if first else {},
        frozen_sha256=stages.frozen_sha256(request.files),
        log=stages.workspace.relative(result.log_path),
        curve=stages.workspace.relative(result.curve_path),
    )


def settle(stages: Stages, campaign: Campaign, trial: Trial, decision: Decision) -> None:
    """Record the verdict, then let the branch and results.tsv follow it.

    Raises:
        UserError: the baseline crashed, so that there is nothing to search from.
    """
    kept = decision.status is Status.KEEP
    if not kept:
        for checkpoint in stages.workspace.trial_directory(trial.number).rglob(f"{Path(CHECKPOINT).stem}.*"):
            checkpoint.unlink()
    standing = campaign.incumbent.proposed.commit if campaign.incumbent else campaign.started.base
    incumbent = trial.proposed.commit if kept else standing
    stages.record(Verdict(trial.number, decision.status, decision.reason, trial.val_bpb, trial.memory_gb, incumbent))
    publish(stages, stages.campaign(campaign.tag))
    if campaign.incumbent is None and not kept:
        raise UserError(
            f"the baseline crashed ({report.reason(trial)}): see `autoresearch show {trial.number}`, mend {ENTRY}, "
            "commit it, and run this again"
        )


def publish(stages: Stages, campaign: Campaign) -> None:
    """Bring the branch and results.tsv to where the ledger says they are; doing it again changes nothing."""
    base, best = campaign.started.base, campaign.incumbent
    known = {base, *(trial.proposed.commit for trial in campaign.trials)}
    stages.workspace.advance(campaign.tag, best.proposed.commit if best else base, known)
    atomic.write(stages.workspace.results, report.to_tsv(report.rows(campaign)).encode())


def pause(refusals: int, stop: Callable[[], bool]) -> None:
    """Wait after a refused proposal: not at all after the first few, then longer and longer, up to a minute."""
    seconds = min(2.0 ** (refusals - FREE_REFUSALS), LONGEST_PAUSE_SECONDS) if refusals > FREE_REFUSALS else 0.0
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stop():
        time.sleep(0.1)
