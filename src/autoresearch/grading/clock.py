"""Whether a run kept to its time: the parent's clock against the budget, the start-up allowance and the exam's time."""

from __future__ import annotations

from autoresearch.ledger.records import Clock

SLACK_SECONDS = 0.5  # until the parent receives the event; the checkpoint is saved afterwards
SLACK_SHARE = 0.005  # of the budget, for a last step that took longer than the one before it; the larger one counts
SPARE_SECONDS = 1.0  # of the whole exam: a short one cannot be timed more precisely
SLOWER = 3.0  # logits may take this many times what the baseline's took, or what is usual
EVEN_SLOWER_SECONDS = 3.0  # in addition


def void(
    clock: Clock,
    *,
    budget_seconds: float,
    startup_seconds: float,
    baseline_first_answer: float | None,
    baseline_answer_per_row: float | None,
    grading_factor: float,
) -> str | None:
    """Why a run's time does not count as within the budget; None if it does.

    Nothing that a run says of itself buys time. Between the request for grading and its first logits, when it saves its
    checkpoint, a run could continue training. It may take no longer there than a few times what the baseline took,
    which is the user's own code (None if that is unknown). It could also continue during any later batch, which may
    take no longer than a few times what is usual, or compute more for every answer, which may take no longer per row
    than `grading_factor` times the baseline's.
    """
    trained = training_seconds(clock)
    if trained is None or clock.first_batch is None:
        return None
    if clock.first_batch > startup_seconds:
        return (
            f"start-up took {clock.first_batch:.1f} s before the first training batch, but `startup_seconds` allows "
            f"{startup_seconds:g}"
        )
    allowed = longest_training(budget_seconds)
    if trained > allowed:
        return (
            f"it trained for {trained:.1f} s, but the budget of {budget_seconds:g} s allows {allowed:.1f}: stop before "
            "the step that would exceed the budget"
        )
    answer = first_answer_seconds(clock)
    if answer is not None and baseline_first_answer is not None:
        patience = SLOWER * baseline_first_answer + EVEN_SLOWER_SECONDS
        if answer > patience:
            return (
                f"its first logits came {answer:.1f} s after it asked for grading, but only {patience:.1f} s are "
                "allowed: compile everything that grading needs before the first training batch, on "
                "warmup_batch(grading_rows(DEVICE_BATCH_SIZE))"
            )
    if clock.usual_answer is not None and clock.slowest_answer is not None:
        patience = SLOWER * clock.usual_answer + EVEN_SLOWER_SECONDS
        if clock.slowest_answer > patience:
            return (
                f"it took {clock.slowest_answer:.1f} s for a batch of grading, where {clock.usual_answer:.2f} s is "
                "usual, so it could have continued training"
            )
    if clock.answers is not None and clock.rows and baseline_answer_per_row is not None:
        patience = grading_factor * baseline_answer_per_row * clock.rows + SPARE_SECONDS
        if clock.answers > patience:
            return (
                f"it took {clock.answers:.1f} s to answer its exam, but only {patience:.1f} s are allowed: "
                f"{grading_factor:g} times what the baseline took (`grading_factor` in program.md)"
            )
    return None


def longest_training(budget_seconds: float) -> float:
    """The most seconds that the parent's clock may show for a budget."""
    return budget_seconds + max(SLACK_SECONDS, SLACK_SHARE * budget_seconds)


def answer_per_row(clock: Clock) -> float | None:
    """Seconds that a run took to answer a row of its exam, on average."""
    return clock.answers / clock.rows if clock.answers is not None and clock.rows else None


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
