from __future__ import annotations

import dataclasses

import pytest

from autoresearch import standing
from autoresearch.campaign import Campaign
from autoresearch.records import Estimate, Purpose, Score, Status
from judged import a_campaign, a_run, a_trial, confirmed_by, kept, posterior_judge, with_run


def doubted(campaign: Campaign, *probabilities: float) -> Campaign:
    """The campaign with these probabilities of being better on its keeps after the baseline."""
    first, *rest = campaign.trials
    trials = [
        dataclasses.replace(trial, verdict=dataclasses.replace(trial.verdict, estimate=Estimate(0.1, 0.1, probability)))
        for trial, probability in zip(rest, probabilities, strict=True)
        if trial.verdict
    ]
    return dataclasses.replace(campaign, trials=(first, *trials))


def of(campaign: Campaign) -> standing.Standing:
    found = standing.of(campaign)
    assert found is not None
    return found


def test_without_a_scored_baseline_there_is_none() -> None:
    assert standing.of(a_campaign()) is None
    assert standing.of(a_campaign(a_trial(0, None, status=Status.CRASH))) is None


def test_the_expected_number_of_false_keeps_is_the_sum_of_their_doubts() -> None:
    assert of(doubted(kept(1.0, 0.9, 0.8), 0.9, 0.75)).false_keeps == pytest.approx(0.35)
    assert of(kept(1.0)).false_keeps == 0
    assert of(kept(1.0, 0.9)).false_keeps is None


def test_the_best_is_measured_by_the_runs_that_it_was_not_chosen_by() -> None:
    lucky = kept(1.0, 0.9)
    believed = of(lucky).best
    assert believed is not None
    assert believed.runs == 0
    for seed, score in ((1000, 0.92), (1001, 0.94)):
        lucky = with_run(lucky, 1, a_run(score, seed, purpose=Purpose.CONFIRM))
    measured = of(lucky).best
    assert measured is not None
    assert (measured.runs, measured.val_bpb) == (2, pytest.approx(0.93))
    assert measured.margin > 0


def test_all_runs_of_a_baseline_count_for_nobody_chose_it() -> None:
    best = of(kept(1.0)).best
    assert best is not None
    assert (best.runs, best.val_bpb) == (3, pytest.approx(1.0))


def test_a_confirmed_gain_is_claimed_in_words_and_nothing_is_provisional_then() -> None:
    campaign, _ = confirmed_by(posterior_judge(), kept(1.0, 0.9), lambda trial, seed: 1.0 - 0.1 * trial)
    found = of(campaign)
    assert found.claim is not None
    assert found.claim.startswith("confirmed: -0.1000 ± ")
    assert found.provisional == ()
    assert of(kept(1.0, 0.9)).claim is None
    assert of(kept(1.0, 0.9)).provisional == (1,)


def test_noise_that_hides_half_a_per_cent_is_said_with_what_would_help() -> None:
    loud = a_campaign(a_trial(0, 1.0, 1.02, 0.98, status=Status.KEEP))
    advice = of(loud).advice
    assert advice is not None
    assert "TIME_BUDGET" in advice
    assert "EVAL_TOKENS" in advice
    quiet = a_campaign(a_trial(0, *[1.0, 1.0001, 0.9999] * 3, status=Status.KEEP))
    assert of(quiet).advice is None


def test_pruned_and_spared_runs_are_counted_with_the_time_saved() -> None:
    pruned = a_trial(1, a_run(None, crash=None, pruned=0.4), status=Status.DISCARD)
    right = a_trial(2, a_run(1.1, spared=0.4), status=Status.DISCARD)
    wrong = a_trial(3, a_run(0.9, spared=0.4), status=Status.KEEP)
    found = of(a_campaign(kept(1.0).trials[0], pruned, right, wrong)).pruning
    assert found == standing.Pruning(runs=1, saved_seconds=pytest.approx(36.0), spared=2, false_kills=1)
    assert of(kept(1.0)).pruning is None


def test_search_gain_and_holdout_gain_are_of_the_same_fresh_runs() -> None:
    def graded(score: float, holdout: float, seed: int) -> object:
        return {"val_bpb": score, "seed": seed, "purpose": Purpose.CONFIRM, "holdout": Score(holdout, 1.0, 1, 1)}

    campaign = kept(1.0, 0.8)
    for number, score, holdout in ((0, 1.0, 1.1), (1, 0.9, 1.05)):
        for seed in (1000, 1001):
            campaign = with_run(campaign, number, a_run(**graded(score, holdout, seed)))  # type: ignore[arg-type]
    found = of(campaign).generalisation
    assert found is not None
    assert found.seeds == 2
    assert found.search.bpb == pytest.approx(0.1)
    assert found.holdout.bpb == pytest.approx(0.05)


def test_one_more_run_should_land_within_the_noise() -> None:
    campaign = kept(1.0, 0.9)
    expected = standing.expected(campaign, campaign.trials[1])
    assert expected is not None
    mean, margin = expected
    assert mean == 0.9
    assert 0 < margin < 0.1
    assert standing.expected(campaign, a_trial(2, None)) is None
