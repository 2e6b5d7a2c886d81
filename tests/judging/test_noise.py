from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.judging import noise
from autoresearch.judging.noise import Noise

RUNS = st.lists(st.floats(0.5, 2.0), min_size=1, max_size=6)


def numbered(scores: list[float]) -> list[tuple[int, float]]:
    return list(enumerate(scores, start=42))


def test_the_noise_of_many_replicates_is_their_scatter() -> None:
    draw = random.Random(1)
    programs = [numbered([draw.gauss(1 + n, 0.001) for _ in range(3)]) for n in range(200)]
    assert noise.pooled(programs).sigma == pytest.approx(0.001, rel=0.1)
    assert noise.pooled(programs).freedom == 400


def test_without_replicates_the_noise_is_a_share_of_the_score() -> None:
    level = noise.pooled([numbered([2.0]), numbered([1.5])])
    assert level.sigma == pytest.approx(2.0 * noise.PRIOR_SHARE)
    assert level.freedom == 1


def test_scores_that_are_all_alike_leave_some_of_the_prior() -> None:
    level = noise.pooled([numbered([1.0] * 9)])
    assert 0 < level.sigma < noise.PRIOR_SHARE
    assert level.shared == 0.0


def test_three_seeds_say_more_of_the_noise_than_the_prior_does() -> None:
    for scale in (0.0005, 0.005):
        scores = [1.0, 1.0 + scale, 1.0 - scale]
        assert noise.pooled([numbered(scores)]).sigma == pytest.approx(scale, rel=0.2)


def test_a_program_that_had_no_run_does_not_count() -> None:
    assert noise.pooled([[], numbered([1.0, 1.1]), []]) == noise.pooled([numbered([1.0, 1.1])])
    with pytest.raises(ValueError, match="no run"):
        noise.pooled([[]])


@given(st.lists(RUNS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_runs_does_not_change_the_noise(programs: list[list[float]], draw: random.Random) -> None:
    runs = [numbered(scores) for scores in programs]
    mixed = [draw.sample(program, len(program)) for program in runs]
    assert noise.pooled(runs) == noise.pooled(mixed)


@given(st.lists(st.floats(0, 1e38), min_size=1, max_size=6))
def test_any_score_that_a_run_can_have_gives_a_finite_noise(scores: list[float]) -> None:
    level = noise.pooled([numbered(scores)])
    assert math.isfinite(level.sigma)
    assert level.sigma >= 0


def luck(shared: float, programs: int, seeds: int, draw: random.Random) -> list[list[tuple[int, float]]]:
    common = [draw.gauss(0, math.sqrt(shared)) for _ in range(seeds)]
    own = math.sqrt(1 - shared)
    return [[(seed, n + common[seed] + draw.gauss(0, own)) for seed in range(seeds)] for n in range(programs)]


def test_what_a_seed_does_to_all_programs_alike_is_found() -> None:
    found = [noise.pooled(luck(0.8, 6, 4, random.Random(n))).shared for n in range(20)]
    assert statistics.median(found) == pytest.approx(0.8, abs=0.1)


def test_seeds_that_have_nothing_in_common_are_seldom_found_to_have() -> None:
    found = [noise.pooled(luck(0.0, 4, 4, random.Random(n))).shared for n in range(300)]
    assert sum(share > 0 for share in found) <= 0.1 * len(found)


def test_nothing_is_shared_where_no_two_programs_ran_on_the_same_seeds() -> None:
    assert noise.pooled([[(1, 1.0), (2, 2.0)], [(3, 1.0), (4, 2.0)]]).shared == 0.0
    assert noise.pooled([[(1, 1.0), (2, 2.0), (3, 1.5)], [(1, 1.0)]]).shared == 0.0


def test_programs_that_a_seed_moves_exactly_alike_leave_some_noise_between_them() -> None:
    runs = [(seed, 1 + 0.01 * seed) for seed in range(5)]
    assert 0.9 < noise.pooled([runs, [(seed, score + 1) for seed, score in runs]]).shared < 1


def test_little_evidence_of_the_noise_makes_a_judge_more_careful() -> None:
    few, many = Noise(0.001, 2), Noise(0.001, 1000)
    assert few.at_most(2.0) < many.at_most(2.0) == pytest.approx(statistics.NormalDist().cdf(2.0), abs=0.001)
    assert few.quantile(0.95) > many.quantile(0.95) == pytest.approx(1.645, abs=0.01)
    assert few.at_most(few.quantile(0.9)) == pytest.approx(0.9)


def test_the_interval_of_the_noise_holds_it_as_often_as_it_says() -> None:
    draw, held = random.Random(4), 0
    for _ in range(500):
        sigma = statistics.stdev(draw.gauss(0, 1) for _ in range(6))
        low, high = Noise(sigma, 5).interval(0.9)
        held += low < 1 < high
    assert 0.86 * 500 < held < 0.94 * 500


def test_one_program_that_diverged_on_a_seed_does_not_make_all_else_noise() -> None:
    quiet = [(42, 1.500), (43, 1.504), (44, 1.497)]
    alone = noise.pooled([quiet])
    assert noise.pooled([quiet, [(42, 1.494), (43, 3.1)]]) == alone
    assert noise.pooled([quiet, [(42, 1.494), (43, 1.510)]]).sigma > alone.sigma


def test_a_lab_that_scores_nothing_has_some_noise_all_the_same() -> None:
    assert noise.pooled([[(42, 0.0), (43, 0.0)]]).sigma > 0
