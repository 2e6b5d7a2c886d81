"""Moves of constants: both ways, in their class, as far as what is known of them says."""

from __future__ import annotations

import itertools

from autoresearch.researchers.builtin import constant_moves
from autoresearch.researchers.builtin.history import Move, Past
from autoresearch.researchers.source import constants
from lab_files import LAB

SHIPPED = constants.find((LAB / "train.py").read_text())
RATE = constants.find("RATE = 1.0\nprint(RATE)\n")["RATE"]


def past(before: str, after: str, change: float | None) -> Past:
    way = "up" if float(after) > float(before) else "down"
    move = Move(f"RATE {way}", "learning rate", knob="RATE", before=before, after=after)
    return Past(1, (move,), (1,), change, change, False, change is None, 1)


def test_every_movable_constant_goes_up_and_down_in_a_class_of_its_own() -> None:
    movable = {name: constant for name, constant in SHIPPED.items() if constant.kind}
    moves = constant_moves.arms(movable, {})
    assert len(moves) == 2 * len(movable) > 70
    assert {move.kind for move in moves} >= {"batch", "schedule", "learning rate", "decay", "momentum", "size"}


def test_evidence_for_one_way_speaks_against_the_other() -> None:
    up, down = constant_moves.arms({"RATE": RATE}, {"RATE up": 0.004})
    assert (up.gain, down.gain) == (0.004, -0.002)


def test_the_first_move_is_a_round_one() -> None:
    assert next(constant_moves.steps(RATE, -1.0, [], 0)) == (-1.0, None)


def test_levels_of_a_constants_values_add_up_along_its_moves() -> None:
    pasts = [past("4.0", "2.0", -0.02), past("2.0", "1.0", -0.01), past("1.0", "0.5", None)]
    known = dict(constant_moves.known_levels(RATE, pasts))
    assert {position: round(level, 6) for position, level in known.items()} == {2: 0.0, 1: -0.02, 0: -0.03, -1: 0.97}


def test_optuna_looks_where_it_was_good() -> None:
    pasts = [past("1.0", "2.0", 0.05), past("1.0", "0.7", -0.03), past("1.0", "0.6", -0.04), past("1.0", "0.25", 0.05)]
    found = [step for step, digits in itertools.islice(constant_moves.steps(RATE, -1.0, pasts, 0), 5) if digits]
    assert found
    assert all(-1 <= step < 0 for step in found)


def test_a_step_that_leads_nowhere_is_no_variant() -> None:
    assert constant_moves.variant(RATE, 0.01, 2) is None
    longer = constant_moves.variant(RATE, 1.0, None)
    assert longer is not None
    assert (longer.value, longer.text) == (2.0, "2.0")
