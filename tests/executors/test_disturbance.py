"""What disturbed a run, from counts alone."""

from __future__ import annotations

import dataclasses

import pytest

from autoresearch.executors import disturbance
from autoresearch.executors.disturbance import Loss
from autoresearch.ledger.records import Load
from campaigns import run_of


def load(seconds: float = 20.0, **rates: float | None) -> list[Load]:
    """A sample a second, of a run on two processors; a rate is what is added a second."""
    every = {"used": 2.0, "waited": 0.0, "busy": 2.0, "own": 0.0, "stolen": 0.0} | rates
    names = ("used", "waited", "busy", "own", "stolen", "gpu_others", "gpu_slowed")
    return [
        Load(at=at, processors=2, **{name: every[name] and at * every[name] for name in names if name in every})
        for at in range(int(seconds) + 1)
    ]


def test_an_idle_machine_disturbs_nobody() -> None:
    assert disturbance.lost(load()) == Loss()
    assert Loss().reason(0.03) is None


def test_a_neighbor_that_takes_a_processor_is_told() -> None:
    loss = disturbance.lost(load(used=1.2, waited=0.9, busy=2.0))
    assert loss is not None
    assert loss.taken == pytest.approx(0.8 / 2.0)  # what others worked; it waited longer, partly for itself
    assert loss.reason(0.03) == "other programs took 40 % of its processor time"
    assert loss.most == loss.taken


def test_a_program_that_waits_for_itself_is_not_disturbed() -> None:
    assert disturbance.lost(load(used=2.0, waited=14.0, busy=2.02, own=0.02)) == Loss()


def test_others_on_processors_that_it_does_not_want_do_not_disturb_it() -> None:
    assert disturbance.lost(load(used=2.0, waited=0.0, busy=30.0)) == Loss()


def test_this_programs_own_work_is_not_somebody_elses() -> None:
    loss = disturbance.lost(load(used=1.9, waited=0.1, busy=2.0, own=0.1))
    assert loss is not None
    assert loss.taken == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({"stolen": 0.5}, "the host of this virtual machine took 20 %"),
        ({"gpu_others": 0.25}, "other programs used its GPU for 25 % of the time"),
        ({"gpu_slowed": 0.6}, "heat or lack of power slowed its GPU for 60 %"),
    ],
)
def test_each_cause_is_named(rates: dict[str, float], said: str) -> None:
    loss = disturbance.lost(load(**rates))
    assert loss is not None
    reason = loss.reason(0.03)
    assert reason is not None
    assert reason.startswith(said)


def test_where_the_system_does_not_say_who_waits_only_a_full_machine_is_disturbed() -> None:
    full = disturbance.lost(load(used=1.0, waited=None, busy=2.0))
    spare = disturbance.lost(load(used=1.0, waited=None, busy=1.5))
    assert full is not None
    assert full.taken == pytest.approx(0.5)
    assert spare == Loss()


def test_only_the_time_of_training_counts() -> None:
    busy = load(10, used=0.5, waited=1.5)
    quiet = [
        dataclasses.replace(each, at=10 + each.at, used=5 + each.used, waited=15, busy=20 + each.busy)
        for each in load(20)
    ]
    whole, training = (disturbance.lost([*busy, *quiet[1:]], start) for start in (None, 10))
    assert whole is not None
    assert training is not None
    assert whole.taken == pytest.approx(15 / 60)
    assert training.taken == 0.0


def test_a_short_run_cannot_be_told() -> None:
    assert disturbance.lost(load(4)) is None
    assert disturbance.lost([]) is None


def test_a_run_slower_than_the_same_program_before_is_told() -> None:
    def run(steps: int | None, seconds: float = 20.0):
        return dataclasses.replace(run_of(0, 1.0), steps=steps, training_seconds=seconds)

    earlier = [run(100), run(104), run(98)]
    assert disturbance.slower(run(95), earlier) is None
    assert disturbance.slower(run(80), earlier) == "it was 20 % slower than earlier runs of the same program"
    assert disturbance.slower(run(80), []) is None
    assert disturbance.slower(run(None), earlier) is None
    assert disturbance.slower(run(1, 0.5), earlier) is None, "too short to say"


def test_a_machine_that_stood_still_is_told() -> None:
    running = load(10)
    later = [dataclasses.replace(each, at=each.at + 60) for each in running]
    assert disturbance.stopped(running) is None
    assert disturbance.stopped([*running, *later]) == "the machine or this program stood still for 50 s"
    assert disturbance.stopped([]) is None
