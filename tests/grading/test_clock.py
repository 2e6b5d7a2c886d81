from __future__ import annotations

from typing import Any

import pytest

from autoresearch.grading.clock import first_answer_seconds, longest_training, training_seconds, void
from autoresearch.ledger.records import Clock

USUAL = {
    "budget_seconds": 60.0,
    "startup_seconds": 30.0,
    "baseline_first_answer": 1.0,
    "baseline_answer_per_row": 0.01,
    "grading_factor": 3.0,
}


def said(first: float | None = 3.0, asked: float | None = 63.5, answered: float | None = 64.5, **changes: Any) -> str:
    return void(Clock(first, asked, answered), **{**USUAL, **changes}) or ""


def test_an_honest_run_is_not_void() -> None:
    assert said() == ""


def test_a_run_without_a_clock_is_somebody_elses_business() -> None:
    assert said(first=None) == said(asked=None) == ""


@pytest.mark.parametrize(("budget", "slack"), [(20.0, 0.5), (60.0, 0.5), (300.0, 1.5)])
def test_half_a_second_or_half_a_percent_beyond_the_budget_is_allowed_and_no_more(budget: float, slack: float) -> None:
    assert longest_training(budget) == budget + slack
    end = 3.0 + budget + slack
    assert said(asked=end - 0.01, answered=end, budget_seconds=budget) == ""
    told = said(asked=end + 0.1, answered=end + 0.2, budget_seconds=budget)
    assert told.startswith(f"it trained for {budget + slack + 0.1:.1f} s, but the budget of {budget:g} s allows")
    assert "stop before the step that would exceed the budget" in told


def test_a_start_up_beyond_its_allowance_is_void() -> None:
    assert "start-up took 31.0 s" in said(first=31.0, asked=91.0, answered=92.0)


def test_training_on_between_the_request_and_the_first_logits_is_void() -> None:
    assert said(answered=63.5 + 5.9) == ""
    assert "its first logits came 6.1 s after" in said(answered=63.5 + 6.1)
    assert said(answered=63.5 + 6.1, baseline_first_answer=None) == "", "the baseline itself is the person's own"


def test_training_on_over_a_later_batch_of_grading_is_void() -> None:
    def answers(usual: float, slowest: float) -> str:
        clock = Clock(3.0, 63.0, 64.0, usual, slowest)
        return void(clock, **USUAL) or ""

    assert answers(0.5, 4.4) == ""
    assert "took 4.6 s for a batch of grading, where 0.50 s is usual" in answers(0.5, 4.6)


def test_an_exam_that_takes_longer_in_all_is_void_however_evenly() -> None:
    def exam(seconds: float, rows: int = 200, **changes: Any) -> str:
        clock = Clock(3.0, 63.0, 64.0, seconds / 20, seconds / 20, seconds, rows)
        return void(clock, **{**USUAL, **changes}) or ""

    assert exam(6.9) == ""
    assert "it took 7.1 s to answer its exam, but only 7.0 s are allowed: 3 times what the baseline took" in exam(7.1)
    assert exam(7.1, rows=400) == "", "the holdout was graded too"
    assert exam(7.1, grading_factor=4.0) == ""
    assert exam(700.0, baseline_answer_per_row=None) == "", "the baseline itself is the user's own"


@pytest.mark.parametrize(("clock", "seconds"), [(Clock(3.0, 63.5, 64.5), (60.5, 1.0)), (Clock(3.0), (None, None))])
def test_what_the_clock_says(clock: Clock, seconds: tuple[float | None, float | None]) -> None:
    assert (training_seconds(clock), first_answer_seconds(clock)) == seconds
