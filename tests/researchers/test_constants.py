"""Constants are found by syntax, moved by what they are, and rewritten without touching anything else."""

from __future__ import annotations

import pytest

from autoresearch.researchers.source import constants
from autoresearch.researchers.source.constants import Constant, Kind, Value, changes, find, moved, replace, shown
from lab_files import LAB

TEXT = """\
# Größe
SIZE = 2**19  # tokens
RATE: float = 0.6  # a rate
BETAS = (0.8, 0.95)
NAME, OTHER = "SSSL", 3
PATTERN = 'SSSL'
LIMIT = -1.5
LONG = 10_000.0
DEEP = 8
SEED = 42
lower = 3
TWICE = 1
TWICE = 2
UNREAD = 5
MANY = (1, 2)
FLAG = True
COMPUTED = DEEP * 2
print(SIZE, RATE, BETAS, NAME, OTHER, PATTERN, LIMIT, LONG, DEEP, SEED, lower, TWICE, MANY, FLAG, COMPUTED)
"""


def constant(name: str, value: Value, text: str | None = None) -> Constant:
    return Constant(name, value, text if text is not None else repr(value), 0, 0)


def test_module_level_literals_are_found_that_are_set_once_and_read() -> None:
    values = {name: found.value for name, found in find(TEXT).items()}
    assert values == {
        "SIZE": 2**19,
        "RATE": 0.6,
        "BETAS[0]": 0.8,
        "BETAS[1]": 0.95,
        "PATTERN": "SSSL",
        "LIMIT": -1.5,
        "LONG": 10_000.0,
        "DEEP": 8,
        "SEED": 42,
        "FLAG": True,
    }


def test_every_constant_keeps_its_own_text() -> None:
    assert {found.text for found in find(TEXT).values()} >= {"2**19", "0.6", "'SSSL'", "-1.5", "10_000.0"}


def test_only_the_literal_is_rewritten() -> None:
    values: dict[str, Value] = {"SIZE": 2**18, "BETAS[1]": 0.9, "PATTERN": "L", "LONG": 200_000.0}
    expected = TEXT.replace("2**19", "2**18").replace("0.95", "0.9").replace("'SSSL'", "'L'")
    assert replace(TEXT, values) == expected.replace("10_000.0", "200_000.0")


def test_windows_line_endings_survive() -> None:
    text = TEXT.replace("\n", "\r\n")
    assert replace(text, {"RATE": 0.7}) == text.replace("0.6", "0.7")


def test_a_huge_power_is_not_computed() -> None:
    assert find("A = 9**9**9**9\nprint(A)\n") == {}


def test_an_impossible_expression_is_no_constant() -> None:
    assert find("A = 1 / 0\nB = 2.0**64.0**3\nprint(A, B)\n") == {}


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("TOTAL_BATCH_SIZE", 2**19, Kind.DOUBLE),
        ("DEVICE_BATCH_SIZE", 6, Kind.DOUBLE),
        ("HEAD_DIM", 128, Kind.DOUBLE),
        ("ASPECT_RATIO", 64, Kind.SCALE),
        ("MOMENTUM_STEPS", 300, Kind.SCALE),
        ("DEPTH", 8, Kind.COUNT),
        ("EMBEDDING_LR", 0.6, Kind.SCALE),
        ("ROPE_BASE", 10_000.0, Kind.SCALE),
        ("FINAL_LR_FRAC", 0.0, Kind.FRACTION),
        ("MLP_RATIO", 4.0, Kind.SCALE),
        ("ADAM_BETAS[1]", 0.95, Kind.DECAY),
        ("WINDOW_PATTERN", "SSSL", Kind.PATTERN),
        ("TIE_WEIGHTS", True, Kind.FLAG),
        ("SEED", 42, None),
        ("DATA_SEED", 42, None),
        ("LOG_INTERVAL", 0.5, None),
        ("MAX_LOSS", 100.0, None),
        ("ADAM_EPS", 1e-10, None),
        ("ATTENTION_BLOCK", 128, None),
        ("OPTIMIZER", "muon", None),
        ("NOTHING", float("inf"), None),
    ],
)
def test_how_a_constant_moves_follows_from_its_name_and_value(name: str, value: Value, kind: Kind | None) -> None:
    assert constant(name, value).kind is kind


@pytest.mark.parametrize(
    ("name", "value", "step", "digits", "expected"),
    [
        ("TOTAL_BATCH_SIZE", 2**19, -0.2, None, 2**18),
        ("TOTAL_BATCH_SIZE", 2**19, 0.2, None, 2**20),
        ("DEVICE_BATCH_SIZE", 1, -1, None, 1),
        ("DEPTH", 8, 0.9, None, 9),
        ("DEPTH", 1, -0.9, None, 1),
        ("EVERY", 0, -0.9, None, 0),
        ("EMBEDDING_LR", 0.6, 0.5, None, 0.84),
        ("EMBEDDING_LR", 0.6, -0.4, None, 0.42),
        ("EMBEDDING_LR", 0.6, 0.0, None, None),
        ("EMBEDDING_LR", 0.6, 0.1, 2, 0.64),
        ("EMBEDDING_LR", 0.6, 0.1, 3, 0.643),
        ("EMBEDDING_LR", 0.6, 0.01, 3, None),
        ("LIMIT", -1.5, 1, None, -3.0),
        ("MOMENTUM_STEPS", 300, -0.5, None, 210),
        ("WARMDOWN_RATIO", 0.7, 1, None, 1.0),
        ("FINAL_LR_FRAC", 0.0, 0.0, None, 0.05),
        ("EMBEDDING_WEIGHT_DECAY", 0.0, -1.0, None, 0.001),
        ("BETA1", 0.8, 0.5, None, 0.72),
        ("BETA2", 0.95, -1.0, None, 0.975),
        ("MOMENTUM", 0.3, 1.0, None, 0.3),
        ("WINDOW_PATTERN", "SSSL", 0.5, None, "SSSSL"),
        ("WINDOW_PATTERN", "SSSL", -0.9, None, "SL"),
        ("WINDOW_PATTERN", "LSSL", 0.5, None, "SSL"),
        ("WINDOW_PATTERN", "L", -0.5, None, "L"),
        ("TIE_WEIGHTS", True, 0.3, None, False),
        ("SEED", 42, 1.0, None, None),
    ],
)
def test_a_step_leads_to_a_natural_value(
    name: str, value: Value, step: float, digits: int | None, expected: Value | None
) -> None:
    assert moved(constant(name, value), step, digits) == expected


def test_a_step_is_read_back_from_what_it_made() -> None:
    for name, value, step in (("LR", 0.6, 0.5), ("BETA", 0.8, -1.0), ("BATCH", 64, 1.0), ("N", 3, -1.0)):
        old = constant(name, value)
        new = moved(old, step, 6)
        assert new is not None
        assert constants.step_between(old, constant(name, new)) == pytest.approx(step, abs=0.01)


def test_every_constant_of_the_shipped_file_that_can_be_moved_moves_both_ways_or_has_an_end() -> None:
    source = (LAB / "train.py").read_text()
    movable = [found for found in find(source).values() if found.kind]
    assert len(movable) > 30
    for found in movable:
        values = [value for step in (-1.0, 1.0) if (value := moved(found, step, None)) is not None]
        made = [replace(source, {found.name: value}) for value in values if value != found.value]
        assert made, found.name
        assert all(list(changes(source, text)) == [found.name] for text in made)


@pytest.mark.parametrize(
    ("value", "words"),
    [(16384, "16K"), (200_000.0, "200K"), (0.84, "0.84"), (1e-10, "1e-10"), (9, "9"), ("SSL", "SSL"), (True, "True")],
)
def test_values_are_shown_short(value: Value, words: str) -> None:
    assert shown(value) == words
