"""Batches that fit each other, and edits that compute the same."""

from __future__ import annotations

import pytest

from autoresearch.researchers.source import constants
from autoresearch.researchers.source.constants import Value
from autoresearch.researchers.source.device_batch import fit_batches, halved_device_batch, is_idle
from lab_files import LAB

SHIPPED = (LAB / "train.py").read_text()
SMALL = "RATE = 0.5\nDEPTH = 3\nPATTERN = 'SL'\nprint(RATE, DEPTH, PATTERN)\n"


def batches(total: int, device: int) -> str:
    return f"TOTAL_BATCH_SIZE = {total}\nDEVICE_BATCH_SIZE = {device}\nprint(TOTAL_BATCH_SIZE, DEVICE_BATCH_SIZE)\n"


@pytest.mark.parametrize(
    ("old", "new", "context", "expected"),
    [
        ((4096, 8), (2048, 8), 256, (2048, 8)),
        ((2048, 8), (1024, 8), 256, (1024, 4)),
        ((2048, 8), (1024, 8), None, (1024, 4)),
        ((2048, 8), (4096, 8), None, (4096, 8)),
        ((2048, 1), (1024, 1), None, (1024, 1)),
        ((512, 2), (256, 2), 256, (256, 1)),
        ((256, 1), (128, 1), 256, None),
        ((2048, 8), (2048, 16), 256, None),
        ((4096, 8), (4096, 16), 256, (4096, 16)),
        ((4096, 8), (4096, 16), None, None),
        ((4096, 8), (4096, 4), None, (4096, 4)),
    ],
)
def test_the_device_batch_always_divides_the_total_batch(
    old: tuple[int, int], new: tuple[int, int], context: int | None, expected: tuple[int, int] | None
) -> None:
    assert fit_batches(batches(*old), batches(*new), context) == (batches(*expected) if expected else None)


def test_a_file_without_batches_is_left_as_it_was_edited() -> None:
    assert fit_batches(SMALL, SMALL.replace("0.5", "0.7"), None) == SMALL.replace("0.5", "0.7")


def test_half_the_device_batch_is_half_of_an_even_one() -> None:
    assert halved_device_batch(batches(4096, 8)) == batches(4096, 4)
    assert halved_device_batch(batches(4096, 1)) is None
    assert halved_device_batch(SMALL) is None


# ---------------------------------------------------------------- edits of no effect


@pytest.mark.parametrize(
    ("before", "change", "idle"),
    [
        ({"DEPTH": 8}, {"ASPECT_RATIO": 63}, True),  # 504 channels are rounded up to 512, as 512 are
        ({"DEPTH": 8}, {"ASPECT_RATIO": 48}, False),
        ({"WINDOW_PATTERN": "L"}, {"SHORT_WINDOW_DIVISOR": 8}, True),
        ({"WINDOW_PATTERN": "SSSL"}, {"SHORT_WINDOW_DIVISOR": 8}, False),
        ({"DEPTH": 3, "WINDOW_PATTERN": "SSSL"}, {"WINDOW_PATTERN": "SSL"}, True),
        ({"DEPTH": 4, "WINDOW_PATTERN": "SSSL"}, {"WINDOW_PATTERN": "SSL"}, False),
        ({"VALUE_EMBEDDING_EVERY": 0}, {"VALUE_GATE_CHANNELS": 16}, True),
        ({}, {"VALUE_GATE_CHANNELS": 16}, False),
        ({}, {"ASPECT_RATIO": 63, "MATRIX_LR": 0.03}, False),
        ({}, {}, False),
    ],
)
def test_a_constant_that_changes_nothing_is_found_out(
    before: dict[str, Value], change: dict[str, Value], idle: bool
) -> None:
    source = constants.replace(SHIPPED, before)
    assert is_idle(source, constants.replace(source, change)) is idle


def test_an_edit_of_more_than_constants_is_never_idle() -> None:
    edited = constants.replace(SHIPPED, {"ASPECT_RATIO": 63}).replace("F.relu(", "F.gelu(")
    assert not is_idle(SHIPPED, edited)
