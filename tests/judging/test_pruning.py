from __future__ import annotations

import math
import random
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.judging.pruning import (
    ENOUGH,
    MARKS,
    STEP,
    Band,
    Hopeless,
    Past,
    Watch,
    farthest,
    learn,
    smoothed,
    spared,
)
from autoresearch.ledger.records import RunEvent, Scalar

BUDGET = 60.0  # seconds
RESIDUAL = 0.02  # bits per byte: what a mid-run gap leaves open of the final one, in the labs below
BPB = 0.4  # of final gap for a nat of mid-run gap
LEVEL = Past({mark: 4.0 - mark / 100 for mark in MARKS}, 1.4)

Point = Mapping[str, Scalar]


def gap(chance: random.Random, *, tells: bool = True) -> tuple[float, float]:
    """A run's mid-run gap in nats and its final gap: most changes do little, some do harm."""
    middle = chance.gauss(0, 0.03) if chance.random() < 0.6 else chance.expovariate(2)
    return middle, BPB * middle * tells + chance.gauss(0, RESIDUAL)


def past(middle: float, end: float) -> Past:
    return Past({mark: loss + middle for mark, loss in LEVEL.losses.items()}, LEVEL.val_bpb + end)


def lab(chance: random.Random, runs: int = 60, *, tells: bool = True) -> Band:
    return learn([(past(*gap(chance, tells=tells)), LEVEL) for _ in range(runs)], LEVEL.losses)


def curve(middle: float = 0.0, steps: int = 120, noise: float = 0.02, seed: int = 1) -> list[Point]:
    """The curve of a run that is behind the incumbent's by a number of nats, all the way."""
    chance = random.Random(seed)
    at = [step / steps for step in range(1, steps + 1)]
    return [{"progress": p, "loss": 4.0 - p + middle + chance.gauss(0, noise), "lr": 1.0} for p in at]


def heard(band: Band, points: list[Point], budget: float = BUDGET) -> list[Hopeless]:
    watch = Watch(band)
    count = len(points)
    events = [RunEvent("curve", budget * (n + 1) / count, point) for n, point in enumerate(points)]
    return [found for event in events if (found := watch.hear(event))]


# ---------------------------------------------------------------- smoothing


def test_the_loss_at_a_mark_is_that_of_the_points_just_before_it() -> None:
    points = curve(noise=0.0)
    losses = smoothed(points)
    assert list(losses) == list(MARKS)
    for mark, loss in losses.items():
        assert loss == pytest.approx(4.0 - (mark - 5) / 100, abs=0.01)


def test_a_few_wild_points_do_not_move_the_loss() -> None:
    points = curve()
    calm = smoothed(points)
    points[50] = {**points[50], "loss": 900_000.0}
    points[51] = {**points[51], "loss": -900_000.0}
    assert smoothed(points) == pytest.approx(calm, abs=0.05)


NONSENSE: list[Point] = [
    {"progress": None, "loss": 3.0},
    {"progress": "0.5", "loss": 3.0},
    {"progress": 0.5, "loss": None},
    {"progress": 0.5, "loss": math.nan},
    {"progress": math.inf, "loss": 3.0},
    {"progress": 0.5, "loss": math.inf},
    {"progress": 7.0, "loss": 3.0},
    {"progress": -0.5, "loss": 3.0},
    {"progress": 0.5, "loss": 10**400},
    {"progress": True, "loss": 3.0},
    {"loss": 3.0},
    {"progress": 0.5},
    {},
]


@pytest.mark.parametrize("nonsense", NONSENSE, ids=str)
def test_what_is_no_number_or_out_of_range_is_left_out(nonsense: Point) -> None:
    points = curve()
    assert smoothed([*points[:70], nonsense, *points[70:]]) == smoothed(points)


def test_progress_that_goes_back_is_left_out() -> None:
    points = curve()
    assert smoothed([*points[:70], *curve(5.0)[20:70], *points[70:]]) == smoothed(points)


def test_a_mark_with_no_point_close_before_it_has_no_loss() -> None:
    points = [point for point in curve() if not 0.41 < float(str(point["progress"])) < 0.66]
    assert list(smoothed(points)) == [30, 35, 40, 45, *range(70, 91, STEP)]


def test_a_run_of_few_steps_has_no_losses() -> None:
    assert smoothed(curve(steps=4)) == smoothed(curve(steps=15)) == {}


def test_points_that_a_live_watch_would_not_hear_can_be_left_out() -> None:
    dense, sparse = curve(steps=1_000), curve(steps=1_000)[::10]
    assert smoothed(dense, apart=0.0099) == smoothed(sparse)


values = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "0.5", "nan"])


@given(st.lists(st.fixed_dictionaries({}, optional={"progress": values | st.floats(0, 1), "loss": values})))
def test_no_curve_whatever_breaks_anything(points: list[Point]) -> None:
    assert all(math.isfinite(loss) for loss in smoothed(points).values())
    heard(Band(dict.fromkeys(MARKS, 3.0)), points)


# ---------------------------------------------------------------- the band


def test_there_is_no_band_without_enough_runs() -> None:
    chance = random.Random(1)
    pairs = [(past(x / 10, x / 20 + chance.gauss(0, 0.001)), LEVEL) for x in range(ENOUGH)]
    assert learn(pairs[1:], LEVEL.losses).limits == {}
    assert list(learn(pairs, LEVEL.losses).limits) == list(MARKS)


def test_a_run_without_a_curve_does_not_count() -> None:
    pairs = [(past(x / 10, x / 20), LEVEL) for x in range(ENOUGH - 1)]
    assert learn([*pairs, (Past({}, 1.5), LEVEL)], LEVEL.losses).limits == {}


def test_the_limit_is_where_the_favorable_end_of_the_prediction_is_level() -> None:
    chance = random.Random(2)
    gaps = [gap(chance) for _ in range(2_000)]
    limit = farthest(gaps)
    assert limit is not None
    normal = 3.09 * RESIDUAL / BPB
    assert normal < limit < 1.4 * normal  # not much beyond: what has come out well before may be


def test_where_mid_run_gaps_do_not_tell_nothing_is_hopeless() -> None:
    assert all(lab(random.Random(seed), tells=False).limits == {} for seed in range(20))


def test_where_runs_that_are_behind_come_out_better_nothing_is_hopeless() -> None:
    chance = random.Random(2)
    assert farthest([(x, -y) for x, y in [gap(chance) for _ in range(200)]]) is None


def test_equal_runs_and_absurd_scores_teach_nothing() -> None:
    assert farthest([(0.0, 0.0)] * 20) is None
    assert farthest([(0.1, math.nan)] * 20) is None
    assert farthest([(1e-160, 5.0)] * 20) is None
    assert farthest([(x / 10, 1e300 * x) for x in range(20)]) in (None, 0.0)


def test_one_disaster_teaches_nothing_and_a_few_do() -> None:
    chance = random.Random(3)
    small = [(chance.gauss(0, 0.05), chance.gauss(0, 0.02)) for _ in range(20)]
    assert farthest([*small, (4.0, 2.0)]) is None
    assert farthest([*small, (4.0, 2.0), (5.0, 1.5), (3.0, 2.5)]) is not None


def test_a_gap_that_came_out_well_before_is_not_hopeless() -> None:
    chance = random.Random(4)
    gaps = [gap(chance) for _ in range(500)]
    limit = farthest([*gaps, (0.5, -0.001)])
    assert limit is None or limit >= 0.5


def test_a_loss_of_another_scale_in_the_past_widens_the_band() -> None:
    chance = random.Random(5)
    gaps = [gap(chance) for _ in range(60)]
    before, after = farthest(gaps), farthest([*gaps, (1.0, 0.01), (1.1, 0.02)])
    assert before is not None
    assert after is None or after > 1.5 * before


def test_the_same_runs_give_the_same_band() -> None:
    assert lab(random.Random(6)) == lab(random.Random(6))


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), max_size=40))
def test_a_limit_is_never_on_the_better_side(gaps: list[tuple[float, float]]) -> None:
    limit = farthest(gaps)
    assert limit is None or limit >= 0


# ---------------------------------------------------------------- a run under way


def test_a_hopeless_run_is_ended_at_the_second_mark() -> None:
    [found] = heard(lab(random.Random(7)), curve(1.0))
    assert found.percent == 35
    assert str(found).startswith("pruned at 35 %: smoothed training loss 4.7")


def test_a_run_that_turns_bad_later_is_ended_later() -> None:
    points = curve()[:60] + curve(1.0)[60:]
    [found] = heard(lab(random.Random(7)), points)
    assert 55 <= found.percent <= 65


def test_a_run_that_is_bad_for_a_while_only_is_not_ended() -> None:
    points = curve()[:60] + curve(1.0)[60:69] + curve()[69:]
    assert heard(lab(random.Random(7)), points) == []


def test_a_run_like_the_incumbents_or_better_is_not_ended() -> None:
    band = lab(random.Random(7))
    assert heard(band, curve()) == heard(band, curve(-2.0)) == heard(band, curve(0.05)) == []


def test_nothing_is_ended_without_a_band_or_by_other_events() -> None:
    assert heard(Band(), curve(9.0)) == []
    watch = Watch(lab(random.Random(7)))
    assert not any(watch.hear(RunEvent("note", 30.0, point)) for point in curve(9.0))


def test_a_run_of_a_few_seconds_or_steps_is_not_ended() -> None:
    band = lab(random.Random(7))
    assert heard(band, curve(9.0), budget=4.0) == []
    assert heard(band, curve(9.0, steps=15)) == []


def test_progress_that_leaps_ends_nothing() -> None:
    points = curve(9.0)
    assert heard(lab(random.Random(7)), points[:30] + points[-1:]) == []


@pytest.mark.parametrize("runs", [12, 60, 300])
def test_of_two_thousand_better_runs_hardly_any_is_ended(runs: int) -> None:
    """With the residual that the lab has: runs drawn from it that are better in the end than the incumbent."""
    chance = random.Random(runs)
    ended = better = 0
    while better < 2_000:
        band = lab(chance, runs)
        for middle, end in [gap(chance) for _ in range(100)]:
            if end < 0:
                better += 1
                ended += bool(heard(band, curve(middle, steps=40)))
    assert ended <= 0.01 * better


def test_most_runs_that_are_far_worse_are_ended() -> None:
    chance = random.Random(8)
    bands = [lab(chance) for _ in range(20)]
    assert sum(bool(heard(band, curve(0.4))) for band in bands) >= 15


# ---------------------------------------------------------------- the random tenth


def test_a_tenth_is_spared_and_always_the_same_tenth() -> None:
    chosen = [trial for trial in range(10_000) if spared(trial, "mar5")]
    assert 900 < len(chosen) < 1_100
    assert chosen == [trial for trial in range(10_000) if spared(trial, "mar5")]
    assert chosen != [trial for trial in range(10_000) if spared(trial, "mar6")]
