"""Carries out one run of a trial's commit, graded from outside, and records it."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import replace

from autoresearch.base import atomic
from autoresearch.base.errors import EndRun
from autoresearch.executors import disturbance
from autoresearch.executors.run_output import CURVE_SECONDS, Tail
from autoresearch.executors.sandbox.watch import FILLED_BY_OTHERS
from autoresearch.grading.clock import answer_per_row, first_answer_seconds, longest_training, training_seconds, void
from autoresearch.grading.grader import memory_gb, printed_summary
from autoresearch.judging import pruning
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import RunEnded, RunStarted
from autoresearch.ledger.records import (
    Clock,
    Crash,
    CrashKind,
    Graded,
    Grading,
    Invalid,
    Load,
    Place,
    Purpose,
    RunEvent,
    RunRequest,
    RunResult,
    Score,
    Status,
    Worth,
)
from autoresearch.loop.parts.stages import Stages

FIRST_SEED = 42
ANYWHERE = Place()
AGAIN = 2  # times that a disturbed run is made again at once
QUIET_SECONDS = 5.0  # for which the machine must be quiet before the next try
MOST_CURVES = 100  # of past runs, to learn from: reading more takes longer than it is worth


def run_once(
    stages: Stages,
    campaign: Campaign,
    trial: Trial,
    purpose: Purpose = Purpose.TRIAL,
    seed: int | None = None,
    number: Callable[[Trial], int] = lambda trial: len(trial.every_run),
    place: Place | None = None,
) -> Trial:
    """The trial with one more run that counts, executed, graded and recorded. To decide it, use the next seed.

    `number` gives the number of a trial's next run, `place` is the slot to use, by default the first or any one.

    A run that something disturbs is ended, recorded, set aside and made again: twice at once, then whenever the machine
    is quiet. After the policy's `quiet_seconds` of that, the next run counts, disturbed or not. A run whose machine was
    lost is set aside too. If a `place` was given, the trial comes back without it, to be run elsewhere.
    """
    seed = FIRST_SEED + len(trial.runs) if seed is None else seed
    patience = math.inf
    while True:
        if trial.disturbed:
            stages.workspace.check_space(stages.min_free_gb)
        if sum(run.seed == seed and run.purpose is purpose for run in trial.disturbed if not run.lost) > AGAIN:
            patience = min(patience, time.monotonic() + stages.policy.quiet_seconds)
            wait_for_quiet(stages, trial, patience)
        is_last = time.monotonic() >= patience or was_never_quiet(campaign)
        request = requested(stages, campaign, trial, number(trial), seed, place or any_place(stages))
        ended = _run(stages, campaign, trial, purpose, request, is_last=is_last)
        trial = trial.having(ended)
        if not ended.set_aside or (ended.lost and place):
            return trial


def any_place(stages: Stages) -> Place:
    """Where to run if nobody says: in this machine's first slot, or in whichever is free in a cluster."""
    first = next(iter(stages.places()), ANYWHERE)
    return ANYWHERE if first.node else first


def was_never_quiet(campaign: Campaign) -> bool:
    """Whether the last trial had to be judged by a disturbed run: then this machine is always like that."""
    runs = campaign.finished[-1].runs if campaign.finished else ()
    return bool(runs) and runs[-1].disturbed is not None


def wait_for_quiet(stages: Stages, trial: Trial, until: float) -> None:
    """Wait until other programs leave the machine alone, or until a time on the monotonic clock."""
    start = time.monotonic()
    while (now := time.monotonic()) < until:
        busy = stages.executor.busy_share(min(QUIET_SECONDS, until - now))
        if busy <= stages.policy.max_disturbance:
            return
        stages.progress(trial.number, RunEvent("waiting", now - start, {"busy": busy}))


def requested(stages: Stages, campaign: Campaign, trial: Trial, run: int, seed: int, place: Place) -> RunRequest:
    """A run of a trial as plain data."""
    commit = trial.proposed.commit
    return RunRequest(
        run=run,
        run_id=f"{trial.number:04d}/run{run}",
        commit=commit,
        files=stages.workspace.files(commit),
        seed=seed,
        budget_seconds=stages.budget_seconds,
        deadline_seconds=stages.deadline_seconds,
        editable=stages.editable,
        baseline=commit == campaign.started.base,
        place=place,
    )


def _run(
    stages: Stages, campaign: Campaign, trial: Trial, purpose: Purpose, request: RunRequest, *, is_last: bool
) -> RunEnded:
    run = request.run
    stages.record(RunStarted(trial.number, run, request.seed, purpose))
    unfinished = unscored(stages, trial, request, purpose)

    def weigh(score: Score) -> Worth:
        if purpose is not Purpose.TRIAL:
            return Worth(holdout=purpose is Purpose.CONFIRM, model=False)
        scored = replace(trial, runs=(*trial.runs, replace(unfinished, score=score)))
        decision = stages.judge.decide(campaign, scored)
        kept = decision.status is Status.KEEP
        return Worth(holdout=kept, model=kept or decision.rerun or len(scored.scores) < trial.proposed.seeds)

    is_first = purpose is Purpose.TRIAL and not trial.runs and campaign.incumbent is not None
    hopeless = band(stages, campaign) if is_first and stages.prune else pruning.Band()
    listener = _Listener(stages, trial, hopeless, gives_up=not is_last)
    result = stages.executor.run(request, listener, weigh)
    assert result.grading is not None, "an executor grades what it runs"
    stages.progress(trial.number, RunEvent("ended", result.wall_seconds, {}))
    ended = listener.marked(run_record(stages, campaign, unfinished, result, result.grading))
    reason = listener.disturbed or disturbed(stages, trial, ended, result, result.grading.clock)
    ended = replace(ended, disturbed=reason, set_aside=reason is not None and not is_last)
    if stopped := stages.stopped(trial.number):
        ended = replace(ended, crash=None, score=None, invalid=stopped, disturbed=None, set_aside=False)
    elif result.lost:
        ended = replace(unfinished, wall_seconds=result.wall_seconds, lost=result.lost, set_aside=True)
    elif request.baseline and purpose is Purpose.TRIAL and (slow := overran(stages, ended)):
        ended = once_more(trial, ended, slow)
    if purpose is Purpose.TRIAL and not ended.set_aside and result.grading.answers:
        atomic.write(stages.workspace.answers(trial.number, run), result.grading.answers)
    stages.record(ended)
    if purpose is not Purpose.TRIAL or ended.set_aside:
        stages.workspace.drop_checkpoints(trial.number, run)  # those of the run that selected it are enough
    return ended


def disturbed(stages: Stages, trial: Trial, ended: RunEnded, result: RunResult, clock: Clock) -> str | None:
    """What disturbed a run while it trained; None if nothing did, or if its outcome does not depend on that."""
    if ended.crash:
        if result.ended == FILLED_BY_OTHERS:
            return result.ended
        return disturbance.stopped(result.load) if ended.crash.kind is CrashKind.TIME_OUT else None
    until = None if ended.invalid else clock.grade_requested  # a busy machine can also make grading too slow
    loss = disturbance.lost(result.load, clock.first_batch, until)
    reason = loss.reason(stages.policy.max_disturbance) if loss else None
    return reason or disturbance.slower(ended, trial.runs)


def overran(stages: Stages, ended: RunEnded) -> str | None:
    """Why the user's own program trained for too long, with what to do about it; None if it did not."""
    trained, budget = ended.training_seconds, stages.budget_seconds
    if ended.set_aside or trained is None or trained <= longest_training(budget):
        return None
    step = f", and a step takes {trained / ended.steps:.1f} s" if ended.steps else ""
    return (
        f"it trained for {trained:.1f} s, but the budget is {budget:g} s{step}: find sizes with shorter steps with "
        "`autoresearch doctor --fit`, or set a longer TIME_BUDGET in prepare.py"
    )


def once_more(trial: Trial, ended: RunEnded, slow: str) -> RunEnded:
    """The record of a baseline's run that took too long: the machine may have been slow, so it is made once more."""
    if any(run.seed == ended.seed for run in trial.disturbed):
        return replace(ended, score=None, holdout=None, invalid=None, crash=Crash(CrashKind.TIME_OUT, slow))
    return replace(ended, disturbed=slow, set_aside=True)


# ---------------------------------------------------------------- hopeless runs


class _Listener:
    """Passes on what a run reports, and ends it if it is hopeless (unless it is one of those allowed to finish) or, if
    it `gives_up` on that, as soon as others have taken more than a whole run may lose."""

    def __init__(self, stages: Stages, trial: Trial, band: pruning.Band, *, gives_up: bool) -> None:
        self._stages, self._trial, self._gives_up = stages, trial, gives_up
        self._watch = pruning.Watch(band)
        self._spared = pruning.spared(trial.number, trial.proposed.tag)
        self._hopeless: pruning.Hopeless | None = None
        self._training_since: float | None = None
        self._load: list[Load] = []  # since then
        self._loss = disturbance.Loss()  # so far
        self.disturbed: str | None = None  # why it was given up

    def __call__(self, event: RunEvent) -> None:
        if event.name == "load":
            self._hear_load(event)
            return
        if event.name == "curve" and self._training_since is None:
            self._training_since = event.at
        self._stages.progress(self._trial.number, event)
        if (found := self._watch.hear(event)) and self._loss.most <= self._stages.policy.max_disturbance:
            self._hopeless = found
            if not self._spared:
                raise EndRun(str(found))

    def _hear_load(self, event: RunEvent) -> None:
        if self._training_since is not None:
            self._load.append(Load(**event.values))  # type: ignore[arg-type]
            self._loss = disturbance.lost(self._load) or self._loss
        self._stages.progress(self._trial.number, replace(event, values={"lost": self._loss.most}))
        trained, most = event.at - (self._training_since or event.at), self._stages.policy.max_disturbance
        spent = trained / self._stages.budget_seconds
        if self._gives_up and spent < 1 and self._loss.most * spent > most:
            self.disturbed = self._loss.reason(most)
            raise EndRun(str(self.disturbed))

    def marked(self, ended: RunEnded) -> RunEnded:
        """The run's record, with what was found about it."""
        if self.disturbed:
            return replace(ended, crash=None)
        if self._hopeless is None:
            return ended
        share = self._hopeless.percent / 100
        return replace(ended, spared=share) if self._spared else replace(ended, pruned=share, crash=None)


def band(stages: Stages, campaign: Campaign) -> pruning.Band:
    """Where a run that has to beat the incumbent is hopeless, from the curves of the campaign's last runs."""
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
    """A trial's first run, as it would have been received live; None if it has no score."""
    first = trial.runs[0]
    if first.score is None or first.invalid:
        return None
    curve = Tail(stages.workspace.root / first.curve)
    points = itertools.chain.from_iterable(iter(lambda: list(curve.lines()), []))
    return pruning.Past(pruning.smoothed(points, CURVE_SECONDS / stages.budget_seconds), first.score.val_bpb)


# ---------------------------------------------------------------- records


def unscored(stages: Stages, trial: Trial, request: RunRequest, purpose: Purpose) -> RunEnded:
    """A run's record before there is anything to say about it."""
    return RunEnded(
        trial=trial.number,
        run=request.run,
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
    stages: Stages, campaign: Campaign, unfinished: RunEnded, result: RunResult, grading: Grading
) -> RunEnded:
    """The record of a finished run: its score, unless its time or a frozen file says otherwise."""
    outcome, clock, summary = grading.outcome, grading.clock, printed_summary(result.log_tail)
    graded = outcome if isinstance(outcome, Graded) else None
    invalid = outcome.reason if isinstance(outcome, Invalid) else None
    if graded:
        baseline = campaign.trials[0].runs if campaign.trials else ()
        changed = f"it changed {', '.join(result.tampered)}, which no trial may change" if result.tampered else None
        invalid = changed or void(
            clock,
            budget_seconds=stages.budget_seconds,
            startup_seconds=stages.startup_seconds,
            baseline_first_answer=baseline[0].first_logits_seconds if baseline else None,
            baseline_answer_per_row=max((run.answer_per_row for run in baseline if run.answer_per_row), default=None),
            grading_factor=stages.policy.grading_factor,
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
        training_seconds=training_seconds(clock),
        first_logits_seconds=first_answer_seconds(clock),
        answer_per_row=answer_per_row(clock),
        memory_gb=memory_gb(summary),
        summary=summary,
        environment=grading.environment,
        log=stages.workspace.relative(result.log_path),
        curve=stages.workspace.relative(result.curve_path),
        steps=result.steps or None,
    )
