"""The parent's rows are those that prepare.py itself would score on."""

from __future__ import annotations

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import grading_lab
from autoresearch.base.errors import UserError
from autoresearch.grading import splits
from autoresearch.lab import presets
from grading_lab import CONTEXT, ROWS, VOCABULARY, GradingLab
from lab_files import LAB
from toy_lab import PREPARE


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> GradingLab:
    return grading_lab.make(tmp_path_factory.mktemp("splits"))


def test_the_rows_are_those_of_prepare_py_itself(lab: GradingLab) -> None:
    data = lab.data()
    for split, rows in (("val", data.val), ("holdout", data.holdout)):
        own = np.stack(list(itertools.islice(lab.module.pack_epoch(split, 1, CONTEXT + 1), ROWS)))
        assert np.array_equal(rows, own)
    assert (data.context, data.vocabulary) == (CONTEXT, VOCABULARY)
    assert np.array_equal(data.byte_lengths, lab.module.Tokenizer.from_directory().byte_lengths)
    assert [path.name for path in data.train] == ["train.npy", "train_offsets.npy"]
    assert all(len(digest) == 64 for digest in data.fingerprints.values())


def test_a_seed_in_the_environment_changes_nothing(lab: GradingLab, monkeypatch: pytest.MonkeyPatch) -> None:
    before = lab.data().val
    monkeypatch.setenv("AUTORESEARCH_SEED", "7")
    splits._read_once.cache_clear()
    assert np.array_equal(lab.data().val, before)


def test_they_areread_and_leave_no_module_behind(lab: GradingLab) -> None:
    assert lab.data() is lab.data()
    assert not any(name.startswith("_autoresearch_prepare") for name in sys.modules)


def test_without_prepared_data_the_sentence_is_prepare_pys_own(lab: GradingLab) -> None:
    with pytest.raises(
        UserError, match=r"prepare\.py: .*tokenizer.* is missing or damaged: run `python prepare.py`|run"
    ):
        splits.read(lab.prepare.replace("PIECE_CHARS = 1024", "PIECE_CHARS = 1000"))


def test_a_prepare_py_that_fails_is_named() -> None:
    with pytest.raises(UserError, match="ZeroDivisionError"):
        splits.read("1 / 0")


def test_labs_that_speak_to_a_grader_are_told_from_others() -> None:
    shipped = (LAB / "prepare.py").read_text()
    assert splits.can_be_graded(shipped)
    assert splits.can_be_graded(presets.fill(shipped, presets.presets()["cpu"].prepare))
    assert not splits.can_be_graded(PREPARE)
    assert not splits.can_be_graded(shipped.replace("def pack_epoch", "def other"))
    assert not splits.can_be_graded("def broken(:")


def test_the_file_is_read_from_a_text_and_not_from_a_place(
    lab: GradingLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    splits._read_once.cache_clear()
    assert len(lab.data().holdout) == ROWS


def test_runs_side_by_side_read_them_at_the_same_time(lab: GradingLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(lab.root / "cache"))
    splits._read_once.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: splits.read(lab.prepare), range(8)))
    assert all(each is found[0] for each in found), "read once for all of them"
