"""The stopwatch, run beside the shipped train.py with tiny sizes, as `fitting` does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autoresearch.lab.sizing import stopwatch
from autoresearch.lab.sizing.planner import Measurement
from lab_files import write_lab

PREPARE = {"MAX_SEQ_LEN": 32, "VOCAB_SIZE": 260, "TIME_BUDGET": 5}
TRAIN = {"DEPTH": 2, "ASPECT_RATIO": 16, "HEAD_DIM": 32, "DEVICE_BATCH_SIZE": 4, "TOTAL_BATCH_SIZE": 128}


def measure(directory: Path, train: str | None = None, *options: str) -> dict[str, Any]:
    """What the stopwatch writes in a lab of tiny sizes, or beside another train.py."""
    write_lab(directory, PREPARE, TRAIN)
    if train is not None:
        (directory / "train.py").write_text(train)
    shutil.copy(stopwatch.__file__, directory / stopwatch.FILE)
    subprocess.run(
        [sys.executable, stopwatch.FILE, *(options or ("inf",))], cwd=directory, check=True, capture_output=True
    )
    found: dict[str, Any] = json.loads((directory / stopwatch.RESULT).read_text())
    return found


@pytest.mark.slow
def test_it_measures_speed_memory_and_evaluation_of_the_shipped_train_py_without_any_data(tmp_path: Path) -> None:
    found = Measurement(**measure(tmp_path, None, "2048", stopwatch.EVALUATE))
    assert found.tokens == 4 * 32
    assert found.parameters == 2 * 12 * 32**2 + 3 * 260 * 32 + 32 + 4  # blocks, three tables, a gate, lambdas
    assert 100 < found.memory_mb < found.free_mb == 2048  # what was allowed
    assert found.pass_seconds > 0
    assert found.optimizer_seconds > 0
    assert found.evaluation_seconds is not None
    assert found.evaluation_seconds > 0


def test_a_train_py_without_what_is_needed_has_the_names_told(tmp_path: Path) -> None:
    assert measure(tmp_path, "DEVICE_BATCH_SIZE = 4\nbuild = warm_up = count_parameters = print\n") == {
        "missing": ["peak_memory_mb"]
    }


@pytest.mark.parametrize("error", ["MemoryError()", "RuntimeError('CUDA out of memory. Tried to allocate 2 GiB')"])
def test_want_of_memory_is_told_as_such(tmp_path: Path, error: str) -> None:
    names = "warm_up = count_parameters = peak_memory_mb = print\nDEVICE_BATCH_SIZE = 4\n"
    found = measure(tmp_path, f"{names}def build(device, vocabulary):\n    raise {error}\n")
    assert found == {"problem": "out of memory"}


def test_the_size_of_the_validation_split_is_read_where_it_is_prepared(tmp_path: Path) -> None:
    assert stopwatch.validation_tokens(tmp_path) is None
    (tmp_path / "meta.json").write_text(json.dumps({"splits": {"val": {"tokens": 12_345}}}))
    assert stopwatch.validation_tokens(tmp_path) == 12_345
