"""Whether a run kept to its time: the parent's clock against budget, start-up allowance and first answer."""

from __future__ import annotations

from autoresearch.records import Clock

SLACK_SECONDS = 1.0  # for the parent to hear of the run, on a busy machine too; the checkpoint is saved afterwards
SLACK_SHARE = 0.005  # of the budget, for what the run's own clock leaves out
LONGEST_STEP = 0.1  # of the budget: the most that the step under way at its end may add, whatever the run says
SLOWER = 3.0  # times that logits may take what the baseline's took, or what is usual
EVEN_SLOWER_SECONDS = 3.0  # beyond that


def void(
    clock: Clock,
    *,
    budget_seconds: float,
    startup_seconds: float,
    steps: int,
    baseline_first_answer: float | None,
) -> str | None:
    """Why a run's time does not count as the budget's, in words; None where it does.

    `steps` is what the run says of itself, so it is trusted within LONGEST_STEP alone. Between the request for grading
    and its first logits, when it saves its checkpoint, a run could go on training: it may take no longer there than a
    few times what the baseline took, which is the person's own code (None where that is not known). So it could over
    any later batch, which may take no longer than a few times what is usual.
    """
    trained = training_seconds(clock)
    if trained is None or clock.first_batch is None:
        return None
    if clock.first_batch > startup_seconds:
        return (
            f"start-up took {clock.first_batch:.1f} s before the first training batch, and `startup_seconds` allows "
            f"{startup_seconds:g}"
        )
    step = min(trained / max(steps, 1), LONGEST_STEP * budget_seconds)
    allowed = budget_seconds * (1 + SLACK_SHARE) + step + SLACK_SECONDS
    if trained > allowed:
        return f"it trained for {trained:.1f} s: the budget of {budget_seconds:g} s and one step allow {allowed:.1f}"
    answer = first_answer_seconds(clock)
    if answer is not None and baseline_first_answer is not None:
        patience = SLOWER * baseline_first_answer + EVEN_SLOWER_SECONDS
        if answer > patience:
            return (
                f"its first logits came {answer:.1f} s after it asked for grading, and {patience:.1f} s are allowed: "
                "what has to be compiled for it is to be compiled before the first training batch, on warmup_batch"
            )
    if clock.usual_answer is not None and clock.slowest_answer is not None:
        patience = SLOWER * clock.usual_answer + EVEN_SLOWER_SECONDS
        if clock.slowest_answer > patience:
            return (
                f"it took {clock.slowest_answer:.1f} s over a batch of grading, where {clock.usual_answer:.2f} s is "
                "usual, and could have trained on"
            )
    return None


def training_seconds(clock: Clock) -> float | None:
    """From the first real training batch to the request for grading."""
    if clock.first_batch is None or clock.grade_requested is None:
        return None
    return clock.grade_requested - clock.first_batch


def first_answer_seconds(clock: Clock) -> float | None:
    """From the request for grading to the first logits."""
    if clock.first_logits is None or clock.grade_requested is None:
        return None
    return clock.first_logits - clock.grade_requested
