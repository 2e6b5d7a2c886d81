"""Beliefs in moves: evidence first, then what was measured, shared among moves that have something in common."""

from __future__ import annotations

from autoresearch.researchers.builtin.bandit import Belief, beliefs
from autoresearch.researchers.builtin.history import Move, Past

UP, DOWN = Move("RATE up", "learning rate"), Move("RATE down", "learning rate")
SMEAR = Move("smear", "token mixing", 0.004, patch="smear")
OTHER = Move("backout", "residual", 0.001, patch="backout")
NOISE = 0.001


def past(trial: int, level: float | None, *moves: Move, before: tuple[int, ...] = (), base: float = 0.0) -> Past:
    change = None if level is None else level - base
    return Past(trial, moves, (*before, trial), level, change, level is not None and level < base, level is None, 1)


def believed(pasts: list[Past], *moves: Move) -> list[Belief]:
    return beliefs(pasts, [(move,) for move in moves], NOISE, seed=0)


def test_before_anything_is_known_the_evidence_is_believed() -> None:
    smear, other = believed([], SMEAR, OTHER)
    assert (smear.mean, other.mean) == (-0.004, -0.001)
    assert smear.deviation == other.deviation > 0


def test_a_measured_gain_is_believed_more_of_its_own_arm_than_of_its_class_or_of_others() -> None:
    cousin, stranger = Move("HEAD_LR up", "learning rate"), Move("DEPTH up", "size")
    up, same_kind, none = believed([past(1, -0.02, UP)], UP, cousin, stranger)
    assert up.mean < same_kind.mean < none.mean == 0


def test_what_hurts_one_way_speaks_for_the_other_way() -> None:
    up, down = believed([past(1, 0.02, UP)], UP, DOWN)
    assert up.mean > down.mean


def test_more_is_known_after_a_trial_than_before() -> None:
    assert believed([past(1, -0.02, UP)], UP)[0].deviation < believed([], UP)[0].deviation


def test_moves_that_are_made_together_add_up() -> None:
    pair = beliefs([], [(SMEAR, OTHER)], NOISE, seed=0)[0]
    assert abs(pair.mean + 0.005) < 1e-12


def test_crashes_and_an_empty_past_are_no_obstacle() -> None:
    assert beliefs([past(1, None, UP)], [], NOISE, seed=0) == []
    assert believed([past(1, None, UP)], UP)[0].mean == 0
