from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable

import pytest
from scipy import stats  # type: ignore[import-untyped]

from autoresearch.judging import confirmation
from autoresearch.judging.confirmation import LOOKS
from autoresearch.judging.judge import measured, scored
from autoresearch.judging.noise import Noise
from autoresearch.ledger.campaign import Campaign
from autoresearch.ledger.events import Confirmation
from autoresearch.ledger.records import Outcome, Purpose, Status, Wanted
from judged import a_campaign, a_run, a_trial, confirmed_by, kept, posterior_judge, with_run, with_trials

ERROR_RATE = 0.05
KNOWN = Noise(0.001, 1_000_000)


def concluded(campaign: Campaign, score: Callable[[int, int], float | None], noise: Noise = KNOWN) -> Confirmation:
    """The end of a test in which the noise is known."""
    while True:
        step = confirmation.next_step(campaign, lambda _: noise, error_rate=ERROR_RATE, walk_back=False)
        assert step
        if isinstance(step, Confirmation):
            return step
        run = a_run(score(step.trial, step.seed), step.seed, purpose=Purpose.CONFIRM)
        campaign = with_run(campaign, step.trial, run)


def noisy(draw: random.Random, gain: float, sigma: float = 0.001) -> Callable[[int, int], float]:
    return lambda trial, seed: draw.gauss(1.0 - gain * trial, sigma)


def test_without_a_true_gain_no_more_are_confirmed_than_the_error_rate() -> None:
    campaign, draw, count = kept(1.0, 0.997), random.Random(1), 2000
    wrong = sum(concluded(campaign, noisy(draw, 0.0)).outcome is Outcome.CONFIRMED for _ in range(count))
    assert wrong <= stats.binom.ppf(0.999, count, ERROR_RATE)
    assert wrong >= 0.2 * ERROR_RATE * count  # else the test would be too shy to be of use


def test_the_error_rate_holds_with_the_noise_measured_along_the_way_too() -> None:
    campaign, draw, count = kept(1.0, 0.997), random.Random(2), 400
    judge, confirmed = posterior_judge(error_rate=ERROR_RATE), 0
    for _ in range(count):
        baseline = a_trial(0, *(draw.gauss(1.0, 0.004) for _ in range(3)), status=Status.KEEP)
        after, _runs = confirmed_by(judge, a_campaign(baseline, *campaign.trials[1:]), noisy(draw, 0.0, 0.004))
        confirmed += after.confirmations[-1].outcome is Outcome.CONFIRMED
    assert confirmed <= stats.binom.ppf(0.999, count, ERROR_RATE)


def test_a_large_gain_is_confirmed_at_the_first_look_and_a_large_harm_refuted() -> None:
    campaign, draw = kept(1.0, 0.99), random.Random(3)
    for gain, outcome in ((0.01, Outcome.CONFIRMED), (-0.01, Outcome.REFUTED)):
        ends = [concluded(campaign, noisy(draw, gain)) for _ in range(50)]
        assert all(end.outcome is outcome and end.contrasts[0].pairs == LOOKS[0] for end in ends)


def test_a_gain_of_two_sigma_is_mostly_confirmed_and_takes_more_pairs() -> None:
    campaign, draw = kept(1.0, 0.998), random.Random(4)
    ends = [concluded(campaign, noisy(draw, 0.002)) for _ in range(300)]
    confirmed = [end for end in ends if end.outcome is Outcome.CONFIRMED]
    assert len(confirmed) > 0.9 * len(ends)
    assert {end.contrasts[0].pairs for end in confirmed} == set(LOOKS)


def test_every_program_runs_on_the_same_seeds_which_no_trial_had() -> None:
    judge, score = posterior_judge(), noisy(random.Random(5), 0.002, 0.004)
    _, wanted = confirmed_by(judge, kept(1.0, 0.997), score)
    seeds = {number: [step.seed for step in wanted if step.trial == number] for number in (0, 1)}
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == len(seeds[0]) in LOOKS
    assert set(seeds[0]).isdisjoint(range(42, 900))


def test_later_confirmations_are_against_the_last_one_confirmed_too_and_on_other_seeds() -> None:
    judge, draw = posterior_judge(), random.Random(6)
    campaign, first = confirmed_by(judge, kept(1.0, 0.97), noisy(draw, 0.03))
    campaign = with_trials(campaign, [a_trial(2, 0.94, parent=1, status=Status.KEEP)])
    campaign, second = confirmed_by(judge, campaign, noisy(draw, 0.03))
    assert [each.reference for each in campaign.confirmations[1].contrasts] == [0, 1]
    assert {step.seed for step in first}.isdisjoint(step.seed for step in second)
    assert [step.trial for step in second[:3]] == [0, 1, 2]


def test_better_than_the_baseline_but_worse_than_the_last_confirmed_is_refuted() -> None:
    judge, draw = posterior_judge(), random.Random(7)
    campaign, _ = confirmed_by(judge, kept(1.0, 0.97), noisy(draw, 0.03))
    campaign = with_trials(campaign, [a_trial(2, 0.94, parent=1, status=Status.KEEP)])
    truth = {0: 1.0, 1: 0.97, 2: 0.985}
    campaign, _ = confirmed_by(judge, campaign, lambda trial, seed: draw.gauss(truth[trial], 0.001))
    last = campaign.confirmations[-1]
    assert (last.outcome, last.trial, last.incumbent) == (Outcome.REFUTED, 2, 1)
    assert "back to #1" in last.reason


def search(truth: dict[int, float]) -> tuple[Campaign, Callable[[int, int], float]]:
    """Keeps that looked better each time, and what they are really like."""
    draw = random.Random(8)
    return kept(1.0, 0.95, 0.90, 0.85), lambda trial, seed: draw.gauss(truth[trial], 0.0005)


def test_a_rewind_goes_to_the_last_confirmed_and_a_walk_back_to_the_newest_keep_that_holds() -> None:
    for policy, back in (("rewind", 0), ("ablate", 2)):
        campaign, score = search({0: 1.0, 1: 0.95, 2: 0.94, 3: 1.05})
        after, _ = confirmed_by(posterior_judge(refuted=policy), campaign, score)
        assert after.incumbent
        assert after.incumbent.number == after.confirmations[-1].incumbent == back


def test_a_walk_back_from_keeps_of_which_none_holds_ends_at_the_last_confirmed() -> None:
    campaign, score = search({0: 1.0, 1: 1.05, 2: 1.05, 3: 1.05})
    after, _ = confirmed_by(posterior_judge(refuted="ablate"), campaign, score)
    assert (after.confirmations[-1].outcome, after.confirmations[-1].incumbent) == (Outcome.REFUTED, 0)


def test_a_confirmation_that_was_cut_short_anywhere_goes_on_where_it_was() -> None:
    """The next run follows from the campaign alone; a run that is asked for twice is the same."""
    judge, campaign = posterior_judge(), kept(1.0, 0.997)
    draw = random.Random(9)
    scores = {(trial, 1000 + n): draw.gauss(1.0 - 0.001 * trial, 0.004) for trial in (0, 1) for n in range(LOOKS[-1])}
    whole, wanted = confirmed_by(judge, campaign, lambda trial, seed: scores[trial, seed])
    for step in wanted:
        assert judge.confirmation(campaign, asked=True) == judge.confirmation(campaign, asked=True) == step
        run = a_run(scores[step.trial, step.seed], step.seed, purpose=Purpose.CONFIRM)
        campaign = with_run(campaign, step.trial, run)
        assert judge.confirmation(campaign, asked=False) == judge.confirmation(campaign, asked=True)  # it is under way
    assert judge.confirmation(campaign, asked=False) == whole.confirmations[-1]


def test_runs_that_crash_are_not_asked_for_again_and_what_always_crashes_is_refuted() -> None:
    after, wanted = confirmed_by(posterior_judge(), kept(1.0, 0.997), lambda trial, seed: None if trial else 1.0)
    assert after.confirmations[-1].outcome is Outcome.REFUTED
    assert after.confirmations[-1].contrasts[0].pairs == 0
    assert len(wanted) == 2 * LOOKS[-1]


def test_a_pair_counts_only_where_both_runs_have_a_score() -> None:
    after, _ = confirmed_by(
        posterior_judge(), kept(1.0, 0.9), lambda trial, seed: None if trial == seed % 2 == 1 else 1.0 - 0.1 * trial
    )
    last = after.confirmations[-1]
    assert last.outcome is Outcome.CONFIRMED
    assert last.contrasts[0].pairs == LOOKS[0] // 2


def test_pairing_narrows_the_margin_only_as_far_as_seeds_were_found_to_matter_to_both() -> None:
    campaign = kept(1.0, 0.99)
    margins = []
    for shared in (0.0, 0.75):
        end = concluded(campaign, noisy(random.Random(10), 0.01), Noise(0.001, 50, shared))
        margins.append(end.contrasts[0].margin)
    assert margins[1] == pytest.approx(margins[0] / 2)


def test_luck_that_seeds_share_is_found_as_a_search_confirms() -> None:
    draw, judge, campaign = random.Random(11), posterior_judge(), kept(1.0, 0.999)
    common = {1000 + n: draw.gauss(0, 0.004) for n in range(LOOKS[-1])}
    after, _ = confirmed_by(judge, campaign, lambda trial, seed: draw.gauss(1.0, 0.0001) + common[seed])
    assert measured(scored(after)).shared > 0.9
    alone, _ = confirmed_by(judge, campaign, lambda trial, seed: draw.gauss(1.0, 0.004))
    assert measured(scored(alone)).shared == 0.0


def test_there_is_nothing_to_confirm_before_anything_is_kept() -> None:
    for campaign in (kept(1.0), a_campaign()):
        assert confirmation.next_step(campaign, lambda _: KNOWN, error_rate=ERROR_RATE, walk_back=False) is None


def test_the_reason_says_the_numbers_with_the_sign_of_val_bpb() -> None:
    end = concluded(kept(1.0, 0.99), lambda trial, seed: 1.0 - 0.01 * trial)
    bound = KNOWN.quantile(1 - ERROR_RATE / len(LOOKS)) * 0.001 * math.sqrt(2 / LOOKS[0])
    assert end.contrasts[0].margin == pytest.approx(bound)
    assert end.reason == f"confirmed: -0.0100 ± {bound:.4f} against the baseline over {LOOKS[0]} paired seeds"


def test_a_confirmation_measures_the_gain_without_the_luck_that_it_was_kept_for() -> None:
    draw = random.Random(12)
    ends = [concluded(kept(1.0, 0.98), noisy(draw, 0.005)) for _ in range(200)]
    assert statistics.fmean(end.contrasts[0].gain for end in ends) == pytest.approx(0.005, abs=0.0003)
    assert all(isinstance(each, Wanted | Confirmation) for each in ends)


def test_a_look_is_not_taken_again_with_what_later_runs_say_of_the_noise() -> None:
    """Every walked-back keep has its runs on the same looks, however the noise turns out to be later."""
    for seed in range(40):
        draw = random.Random(seed)
        spread = {number: draw.uniform(0.0005, 0.01) for number in range(4)}
        _, wanted = confirmed_by(
            posterior_judge(refuted="ablate"),
            kept(1.0, 0.99, 0.98, 0.97),
            lambda trial, _, draw=draw, spread=spread: draw.gauss(1.0, spread[trial]),  # type: ignore[misc]
        )
        runs = {number: sum(step.trial == number for step in wanted) for number in range(4)}
        assert set(runs.values()) <= {0, *LOOKS}
        tested = [step.trial for step in wanted if step.trial]
        assert tested == sorted(tested, reverse=True)  # none is taken up again
