from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoresearch.judging import posterior
from autoresearch.judging.noise import Noise
from autoresearch.judging.posterior import Bar, Gaussian, Mixture, Observation

SIGMA = 0.001
SCORES = st.floats(0.5, 2.0)
VARIANCES = st.floats(1e-8, 1e-2)
GAUSSIANS = st.builds(Gaussian, SCORES, VARIANCES)


def alone(effects: Gaussian) -> Mixture:
    return Mixture(((1.0, effects),))


EFFECTS = st.builds(Gaussian, st.floats(-0.1, 0.0), VARIANCES).map(alone)
MIXED = st.floats(1e-4, 1e-1).map(lambda sigma: posterior.learned((), sigma))


def seen(mean: float, variance: float = SIGMA**2, key: str = "b", parent: str | None = "a") -> Observation:
    return Observation(key, parent, mean, variance)


@settings(max_examples=200)
@given(GAUSSIANS, EFFECTS | MIXED, SCORES, VARIANCES)
def test_a_gain_is_the_difference_of_what_is_believed_of_both(
    parent: Gaussian, effects: Mixture, mean: float, variance: float
) -> None:
    observed = seen(mean, variance)
    if posterior.is_far(parent, effects, observed):
        return  # such a candidate says nothing of its parent
    before, after = posterior.updated(parent, effects, observed)
    assert posterior.gain(parent, effects, observed).mean == pytest.approx(before.mean - after.mean, abs=1e-9)
    if len(effects.parts) == 1:  # of two kinds of effect, a run can leave it more doubtful than before which it is
        assert 0 <= before.variance <= parent.variance
        assert 0 <= after.variance <= variance * (1 + 1e-9)


@pytest.mark.parametrize("score", [0.9985, 0.996])
def test_it_is_bayes_rule_as_drawing_says(score: float) -> None:
    """Of many drawn worlds those in which the candidate scored about that have the gain that the formula says."""
    draw, parent, effects = random.Random(1), Gaussian(1.0, 0.5 * SIGMA**2), posterior.learned((), SIGMA)
    gains = []
    for _ in range(400_000):
        kind = draw.choices([part for _, part in effects.parts], [weight for weight, _ in effects.parts])[0]
        truth, effect = draw.gauss(parent.mean, parent.spread), draw.gauss(kind.mean, kind.spread)
        if abs(draw.gauss(truth - effect, SIGMA) - score) < 0.0002:
            gains.append(effect)
    expected = posterior.gain(parent, effects, seen(score))
    assert statistics.fmean(gains) == pytest.approx(expected.mean, abs=0.06 * SIGMA)
    assert statistics.stdev(gains) == pytest.approx(expected.spread, rel=0.06)
    above = sum(gain > 0.001 for gain in gains) / len(gains)
    assert expected.above(0.001, statistics.NormalDist().cdf) == pytest.approx(above, abs=0.03)


def test_a_large_effect_is_believed_even_if_it_is_the_first() -> None:
    """The published log's first large gain was 0.0119, with a noise of 0.0005 a run."""
    sigma, parent = 0.0005, Gaussian(0.9979, 0.0005**2)
    found = posterior.gain(parent, posterior.learned((), sigma), seen(0.9979 - 0.0119, sigma**2))
    assert found.mean == pytest.approx(0.0119, rel=0.05)
    small = posterior.gain(parent, posterior.learned((), sigma), seen(0.9979 - 0.0005, sigma**2))
    assert small.mean < 0.6 * 0.0005, "a small one is not"


@settings(max_examples=300)
@given(GAUSSIANS, MIXED, st.floats(-0.1, 0.1), VARIANCES, st.integers(2, 50), st.integers(2, 30))
def test_more_evidence_of_the_same_gain_never_flips_a_keep(
    parent: Gaussian, effects: Mixture, shown: float, variance: float, runs: int, freedom: int
) -> None:
    level, needed, advance = Noise(1.0, freedom), 0.0002, 0.75
    few, many = (
        posterior.gain(parent, effects, seen(parent.mean - shown, variance / n)).above(needed, level.at_most)
        for n in (1, runs)
    )
    if few > advance and shown > needed:
        assert many > advance - 1e-9


@settings(max_examples=300)
@given(GAUSSIANS, MIXED, st.floats(-0.1, 0.1), st.floats(0, 0.05), VARIANCES)
def test_a_better_score_is_never_believed_less(
    parent: Gaussian, effects: Mixture, shown: float, more: float, variance: float
) -> None:
    low, high = (posterior.gain(parent, effects, seen(parent.mean - each, variance)) for each in (shown, shown + more))
    assert high.mean >= low.mean - 1e-12


@given(GAUSSIANS, EFFECTS, SCORES, VARIANCES, st.integers(2, 50))
def test_more_runs_of_the_same_mean_move_the_gain_towards_what_they_show(
    parent: Gaussian, effects: Mixture, mean: float, variance: float, runs: int
) -> None:
    few, many = (posterior.gain(parent, effects, seen(mean, variance / n)) for n in (1, runs))
    shown = parent.mean - mean
    assert abs(shown - many.mean) <= abs(shown - few.mean) + 1e-9
    assert many.spread <= few.spread * (1 + 1e-9)


def test_a_discarded_candidate_still_says_something_of_its_parent() -> None:
    history = [seen(1.0, key="a", parent=None), *(seen(1.004, key=f"b{n}") for n in range(5))]
    beliefs = posterior.believe(history, SIGMA)
    assert 1.0 < beliefs.programs["a"].mean < 1.004
    assert beliefs.programs["a"].variance < SIGMA**2


def test_a_program_that_broke_the_model_says_nothing_of_its_parent_and_little_of_the_next_proposal() -> None:
    """In the published log one scored 3.2 where the others scored 0.97."""
    usual = [seen(1.0, key="a", parent=None), *(seen(1.0 + 0.0005 * n, key=f"b{n}") for n in range(8))]
    before, after = (posterior.believe(history, SIGMA) for history in (usual, [*usual, seen(3.2, key="broken")]))
    assert after.programs["a"].mean == pytest.approx(before.programs["a"].mean, abs=0.5 * SIGMA)
    assert after.effects.spread < 3 * before.effects.spread
    assert after.programs["broken"].mean > 3.0


def test_the_spread_of_the_next_gain_is_learned_from_the_gains_of_the_search() -> None:
    draw = random.Random(2)
    for spread in (0.002, 0.004):
        gains = [Gaussian(draw.gauss(-0.001, math.hypot(spread, SIGMA)), SIGMA**2) for _ in range(400)]
        _, usual = posterior.learned(gains, SIGMA).parts[0]
        assert usual.spread == pytest.approx(spread, rel=0.2)


def test_a_lucky_incumbent_does_not_make_the_next_proposal_look_harmful() -> None:
    """All gains are measured against it, so that its luck is in all of them."""
    gains = [0.001 * (n % 5) for n in range(40)]
    fair, lucky = (
        posterior.learned([Gaussian(each - luck, SIGMA**2) for each in gains], SIGMA) for luck in (0.0, 0.005)
    )
    assert lucky.mean == pytest.approx(fair.mean)


def test_a_proposal_is_never_presumed_to_help() -> None:
    assert posterior.learned([Gaussian(0.01, SIGMA**2)] * 50, SIGMA).mean < 0


def test_gains_that_are_all_alike_leave_room_for_one_that_is_not() -> None:
    assert posterior.learned([Gaussian(0.0, SIGMA**2)] * 500, SIGMA).spread > 0.2 * SIGMA


def test_before_anything_was_tried_the_next_proposal_is_believed_to_be_more_likely_bad_than_good() -> None:
    effects = posterior.believe([seen(1.0, key="a", parent=None)], SIGMA).effects
    assert effects.mean < 0 < effects.spread


@given(GAUSSIANS, st.floats(0.5, 2.0))
def test_the_parts_above_and_below_a_bar_make_the_mean(belief: Gaussian, bar: float) -> None:
    below = -Gaussian(-belief.mean, belief.variance).part_above(-bar)
    assert belief.part_above(bar) + below == pytest.approx(belief.mean, abs=1e-9)
    assert Gaussian(0.0, belief.variance).part_above(0.0) == pytest.approx(belief.spread / math.sqrt(2 * math.pi))


def test_what_is_certain_is_above_a_bar_as_a_whole_or_not_at_all() -> None:
    assert Gaussian(0.5, 0.0).part_above(0.4) == 0.5
    assert Gaussian(0.5, 0.0).part_above(0.6) == 0.0


PARENT, BAR = Gaussian(1.0, 0.3 * SIGMA**2), Bar(0.0002, 0.9)
PRIOR = alone(Gaussian(-0.5 * SIGMA, (1.5 * SIGMA) ** 2))


def test_a_further_run_is_worth_nothing_where_it_could_change_nothing() -> None:
    close = 1.0 - 0.001
    worth = [posterior.worth_of_a_run(PARENT, PRIOR, seen(close + n * SIGMA), SIGMA**2, BAR) for n in range(9)]
    assert worth == sorted(worth, reverse=True)
    assert worth[0] > 100 * worth[-1] > 0


def test_the_worth_of_a_proposal_is_what_keeping_by_its_run_brings() -> None:
    """Drawn many times: an effect, its parent, a run, and the verdict by the bar."""
    draw, brought = random.Random(3), 0.0
    for _ in range(100_000):
        effect = draw.gauss(PRIOR.mean, PRIOR.spread)
        score = draw.gauss(PARENT.mean, PARENT.spread) - effect + draw.gauss(0, SIGMA)
        found = posterior.gain(PARENT, PRIOR, seen(score))
        brought += effect * (found.mean > BAR.at(found))
    expected = posterior.worth_of_a_proposal(PARENT, PRIOR, SIGMA**2, BAR)
    assert brought / 100_000 == pytest.approx(expected, rel=0.05)


def test_a_fresh_proposal_is_worth_less_where_less_of_it_can_be_seen() -> None:
    clear, noisy = (posterior.worth_of_a_proposal(PARENT, PRIOR, (n * SIGMA) ** 2, BAR) for n in (0.1, 3))
    assert clear > noisy > 0
