"""Carries out one run of a trial's commit, graded from outside, and makes its record."""

from __future__ import annotations

import itertools
from dataclasses import replace

from autoresearch import pruning, timing
from autoresearch.campaign import Campaign, Trial
from autoresearch.errors import EndRun
from autoresearch.events import RunEnded, RunStarted
from autoresearch.grader import memory_gb, printed_summary
from autoresearch.interfaces import Session
from autoresearch.records import Crash, Graded, Invalid, Purpose, RunEvent, RunRequest, RunResult, Score, Status
from autoresearch.stages import Stages
from autoresearch.watching import CURVE_SECONDS, Tail

FIRST_SEED = 42
MOST_CURVES = 100  # of past runs, to learn from: to read more takes longer than it teaches


def run_once(
    stages: Stages, campaign: Campaign, trial: Trial, purpose: Purpose = Purpose.TRIAL, seed: int | None = None
) -> RunEnded:
    """Execute, grade and record one run of a trial; to decide it, on the next seed."""
    run, commit = len(trial.runs), trial.proposed.commit
    request = RunRequest(
        run_id=f"{trial.number:04d}/run{run}",
        commit=commit,
        files=stages.workspace.files(commit),
        seed=FIRST_SEED + run if seed is None else seed,
        budget_seconds=stages.budget_seconds,
        deadline_seconds=stages.deadline_seconds,
        editable=stages.editable,
        baseline=commit == campaign.started.base,
    )
    stages.record(RunStarted(trial.number, run, request.seed, purpose))
    unfinished = unscored(stages, trial, request, purpose)

    def wants_holdout(score: Score) -> bool:
        if purpose is not Purpose.TRIAL:
            return purpose is Purpose.CONFIRM
        scored = replace(trial, runs=(*trial.runs, replace(unfinished, score=score)))
        return stages.judge.decide(campaign, scored).status is Status.KEEP

    session = stages.grader.session(request, wants_holdout)
    is_first = purpose is Purpose.TRIAL and run == 0 and campaign.incumbent is not None
    listener = _Listener(stages, trial, band(stages, campaign) if is_first and stages.prune else pruning.Band())
    result = stages.executor.run(request, listener, session.serve)
    ended = listener.marked(run_record(stages, campaign, unfinished, session, result))
    stages.record(ended)
    if purpose is not Purpose.TRIAL:
        stages.workspace.drop_checkpoints(trial.number, run)  # those of the run that it was kept by are enough
    return ended


# ---------------------------------------------------------------- hopeless runs


class _Listener:
    """Passes on what a run tells, and ends it where that is hopeless, unless it is one of those let finish."""

    def __init__(self, stages: Stages, trial: Trial, band: pruning.Band) -> None:
        self._stages, self._trial = stages, trial
        self._watch = pruning.Watch(band)
        self._spared = pruning.spared(trial.number, trial.proposed.tag)
        self._hopeless: pruning.Hopeless | None = None

    def __call__(self, event: RunEvent) -> None:
        self._stages.progress(self._trial.number, event)
        if found := self._watch.hear(event):
            self._hopeless = found
            if not self._spared:
                raise EndRun(str(found))

    def marked(self, ended: RunEnded) -> RunEnded:
        """The run's record, with what was found of it."""
        if self._hopeless is None:
            return ended
        share = self._hopeless.percent / 100
        return replace(ended, spared=share) if self._spared else replace(ended, pruned=share, crash=None)


def band(stages: Stages, campaign: Campaign) -> pruning.Band:
    """Where a run that has to beat the incumbent is hopeless, by the curves of the campaign's last runs."""
    assert campaign.incumbent is not None
    by_commit = {trial.proposed.commit: trial for trial in campaign.finished}
    recent = [trial for trial in campaign.finished[1:] if trial.scores][-MOST_CURVES:]
    pairs = [(trial, by_commit[trial.proposed.parent]) for trial in recent]
    concerned = {trial.number: trial for trial in (*itertools.chain.from_iterable(pairs), campaign.incumbent)}
    pasts = {number: _past(stages, trial) for number, trial in concerned.items()}  # each curve is read once
    both = [(pasts[trial.number], pasts[rival.number]) for trial, rival in pairs]
    finished = [(one, other) for one, other in both if one and other]
    incumbent = pasts[campaign.incumbent.number]
    return pruning.learn(finished, incumbent.losses) if incumbent else pruning.Band()


def _past(stages: Stages, trial: Trial) -> pruning.Past | None:
    """A trial's first run, as it would have been heard while it went on; None where that has no score."""
    first = trial.runs[0]
    if first.score is None or first.invalid:
        return None
    curve = Tail(stages.workspace.root / first.curve)
    points = itertools.chain.from_iterable(iter(lambda: list(curve.lines()), []))
    return pruning.Past(pruning.smoothed(points, CURVE_SECONDS / stages.budget_seconds), first.score.val_bpb)


# ---------------------------------------------------------------- records


def unscored(stages: Stages, trial: Trial, request: RunRequest, purpose: Purpose) -> RunEnded:
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
        purpose=purpose,
        device=stages.device,
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
    return replace(
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
