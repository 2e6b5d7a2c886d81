from __future__ import annotations

from typing import Any

import pytest

from autoresearch.records import Clock
from autoresearch.timing import first_answer_seconds, training_seconds, void


def said(first: float | None = 3.0, asked: float | None = 63.5, answered: float | None = 64.5, **changes: Any) -> str:
    parts = {"budget_seconds": 60.0, "startup_seconds": 30.0, "steps": 72, "baseline_first_answer": 1.0}
    return void(Clock(first, asked, answered), **{**parts, **changes}) or ""


def test_an_honest_run_is_not_void() -> None:
    assert said() == ""


def test_a_run_without_a_clock_is_somebody_elses_business() -> None:
    assert said(first=None) == said(asked=None) == ""


def test_one_step_beyond_the_budget_is_allowed_and_no_more() -> None:
    assert said(asked=3.0 + 60.0 + 0.8 + 1.0 + 0.3) == ""
    assert "it trained for 64.5 s: the budget of 60 s and one step allow 62.2" in said(asked=67.5)


def test_a_run_that_claims_long_steps_gains_a_tenth_of_the_budget_at_most() -> None:
    assert said(asked=3.0 + 67.0, steps=1) == ""
    assert "it trained for 68.0 s" in said(asked=3.0 + 68.0, steps=1)
    assert "it trained for 68.0 s" in said(asked=3.0 + 68.0, steps=0)


def test_a_start_up_beyond_its_allowance_is_void() -> None:
    assert "start-up took 31.0 s" in said(first=31.0, asked=91.0, answered=92.0)


def test_training_on_between_the_request_and_the_first_logits_is_void() -> None:
    assert said(answered=63.5 + 5.9) == ""
    assert "its first logits came 6.1 s after" in said(answered=63.5 + 6.1)
    assert said(answered=63.5 + 6.1, baseline_first_answer=None) == "", "the baseline itself is the person's own"


def test_training_on_over_a_later_batch_of_grading_is_void() -> None:
    def answers(usual: float, slowest: float) -> str:
        clock = Clock(3.0, 63.0, 64.0, usual, slowest)
        told = void(clock, budget_seconds=60.0, startup_seconds=30.0, steps=72, baseline_first_answer=1.0)
        return told or ""

    assert answers(0.5, 4.4) == ""
    assert "took 4.6 s over a batch of grading, where 0.50 s is usual" in answers(0.5, 4.6)


@pytest.mark.parametrize(("clock", "seconds"), [(Clock(3.0, 63.5, 64.5), (60.5, 1.0)), (Clock(3.0), (None, None))])
def test_what_the_clock_says(clock: Clock, seconds: tuple[float | None, float | None]) -> None:
    assert (training_seconds(clock), first_answer_seconds(clock)) == seconds
