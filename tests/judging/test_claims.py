from __future__ import annotations

import pytest

from autoresearch.judging import claims
from autoresearch.ledger.campaign import Campaign
from autoresearch.ledger.records import Purpose, Score, Status
from autoresearch.ledger.report import Certainty
from autoresearch.views.lines import gain_text
from judged import a_campaign, a_run, a_trial, confirmed_by, kept, posterior_judge, with_run


def of(campaign: Campaign) -> claims.Standing:
    found = claims.of(campaign)
    assert found is not None
    return found


def test_without_a_scored_baseline_there_is_none() -> None:
    assert claims.of(a_campaign()) is None
    assert claims.of(a_campaign(a_trial(0, None, status=Status.CRASH))) is None


def test_false_keeps_are_expected_by_what_is_known_today() -> None:
    assert of(kept(1.0)).false_keeps == 0
    clear, close = (of(kept(1.0, score)).false_keeps for score in (0.9, 0.9999))
    assert clear < 0.05 < 0.3 < close < 1
    louder = with_run(kept(1.0, 0.9), 0, a_run(1.2, 45))
    assert of(louder).false_keeps > 2 * clear, "its noise turned out to be larger than it seemed when it was kept"


# ---------------------------------------------------------------- the one number


def test_the_baseline_is_the_mean_of_all_its_runs() -> None:
    best = of(a_campaign(a_trial(0, 1.0, 1.02, 0.98, 1.04, status=Status.KEEP))).best
    assert best is not None
    assert (best.val_bpb, best.gain) == (pytest.approx(1.01), 0.0)
    assert claims.summary(a_campaign(a_trial(0, 1.0, 1.03, status=Status.KEEP))).baseline.val_bpb == pytest.approx(
        1.015
    )  # type: ignore[union-attr]


def test_an_unconfirmed_gain_is_the_believed_one_and_called_provisional() -> None:
    campaign = a_campaign(a_trial(0, 1.0, 1.02, 0.98, status=Status.KEEP), a_trial(1, 0.95, status=Status.KEEP))
    best = of(campaign).best
    assert best is not None
    assert best.certainty is Certainty.PROVISIONAL
    assert 0 < best.gain < 0.05, "less than it seems, since it was selected for that"
    assert best.margin > 0.02
    fresh = with_run(with_run(campaign, 1, a_run(1.0, 1000, purpose=Purpose.CONFIRM)), 1, a_run(1.01, 1001))
    again = of(fresh).best
    assert again is not None
    assert again.gain < best.gain / 2, "what was run later counts"


def test_a_confirmed_gain_is_the_confirmations() -> None:
    campaign, _ = confirmed_by(posterior_judge(), kept(1.0, 0.9), lambda trial, seed: 1.0 - 0.07 * trial)
    best = of(campaign).best
    assert best is not None
    assert best.certainty is Certainty.CONFIRMED
    assert best.gain == pytest.approx(0.07)
    assert best.margin == campaign.confirmations[-1].contrasts[0].margin


def test_every_view_of_a_gain_shows_that_number() -> None:
    campaign, _ = confirmed_by(posterior_judge(), kept(1.0, 0.9, 0.85), lambda trial, seed: 1.0 - 0.07 * trial)
    best, report = of(campaign).best, claims.summary(campaign)
    assert best is not None
    assert report.best is not None
    assert report.gain == best.gain == pytest.approx(0.14)
    assert (report.margin, report.certainty) == (best.margin, best.certainty)
    assert report.best.val_bpb == report.frontier[-1].val_bpb == best.val_bpb
    assert report.gain_percent == pytest.approx(100 * best.gain / report.frontier[0].val_bpb)
    assert gain_text(report).startswith(f"-0.1400 ± {best.margin:.4f} (-14.")
    assert gain_text(report).endswith("confirmed")


def test_a_keep_whose_run_was_unlucky_is_a_step_down_all_the_same() -> None:
    """Kept for being simpler, or for its reruns: its dot lies above the line, and the line does not go up with it."""
    baseline = a_trial(0, 1.0, 1.02, 0.98, status=Status.KEEP)
    campaign = a_campaign(baseline, a_trial(1, 1.005, 0.95, 0.94, status=Status.KEEP))
    first, second = claims.progress(campaign)
    assert second.val_bpb < first.val_bpb
    assert second.gain == pytest.approx(first.val_bpb - second.val_bpb)


def test_a_gain_of_one_run_each_has_the_luck_of_seeds_in_its_margin() -> None:
    def graded(score: float) -> object:
        return {"val_bpb": score, "holdout": Score(score, 1.0, 1, 1)}

    loud = a_campaign(
        a_trial(0, a_run(**graded(1.0)), 1.06, 0.94, status=Status.KEEP),  # type: ignore[arg-type]
        a_trial(1, a_run(**graded(0.98)), status=Status.KEEP),  # type: ignore[arg-type]
    )
    found = of(loud).generalization
    assert found is not None
    assert found.seeds == 0
    assert found.search.margin is not None
    assert found.search.margin > 0.1


# ---------------------------------------------------------------- claims


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
    assert found == claims.Pruning(runs=1, saved_seconds=pytest.approx(36.0), spared=2, false_kills=1)
    assert of(kept(1.0)).pruning is None


def test_search_gain_and_holdout_gain_are_of_the_same_fresh_runs() -> None:
    def graded(score: float, holdout: float, seed: int) -> object:
        return {"val_bpb": score, "seed": seed, "purpose": Purpose.CONFIRM, "holdout": Score(holdout, 1.0, 1, 1)}

    campaign = kept(1.0, 0.8)
    for number, score, holdout in ((0, 1.0, 1.1), (1, 0.9, 1.05)):
        for seed in (1000, 1001):
            campaign = with_run(campaign, number, a_run(**graded(score, holdout, seed)))  # type: ignore[arg-type]
    found = of(campaign).generalization
    assert found is not None
    assert found.seeds == 2
    assert found.search.bpb == pytest.approx(0.1)
    assert found.holdout.bpb == pytest.approx(0.05)


def test_one_more_run_should_land_within_the_noise() -> None:
    campaign = kept(1.0, 0.9)
    expected = claims.expected(campaign, campaign.trials[1])
    assert expected is not None
    mean, margin = expected
    assert mean == 0.9
    assert 0 < margin < 0.1
    assert claims.expected(campaign, a_trial(2, None)) is None
