"""What is kept of a trial as a model, and which trials have one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import toy_lab
from autoresearch import models
from autoresearch.errors import UserError
from autoresearch.loop import run_campaign
from conftest import proposal, stages
from sampling_lab import SamplingLab, make

SAVES = """
import os, pathlib
pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"], "checkpoint.safetensors").write_bytes(b"weights")
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SamplingLab:
    return make(tmp_path_factory.mktemp("models"))


def test_a_keep_is_a_folder_to_be_carried_away(trained: SamplingLab) -> None:
    told = json.loads((trained.folder / "config.json").read_text())
    workspace = trained.workspace
    files = workspace.files(told["commit"])
    for name in ("train.py", "prepare.py"):
        assert (trained.folder / name).read_bytes() == files[name]
    assert (trained.folder / "tokenizer.tiktoken").read_text().startswith("AA== 0\n")
    assert (told["tag"], told["trial"], told["idea"], told["seed"]) == ("t", 0, "baseline", 42)
    assert (told["context"], told["vocabulary"]) == (32, 300)
    assert told["files"] == ["prepare.py", "tokenizer.tiktoken", "train.py"]
    assert 0 < told["val_bpb"] < 8


def test_a_keep_of_an_older_lab_is_made_whole_when_it_is_wanted(
    trained: SamplingLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(trained.cache))
    before = trained.model()
    for name in ("config.json", "train.py", "prepare.py", "tokenizer.tiktoken"):
        (trained.folder / name).unlink()
    assert trained.model() == before


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    return toy_lab.make(tmp_path / "lab", train=SAVES + toy_lab.TRAIN)


def test_a_discarded_trial_has_no_model_and_it_is_said_which_have(lab: Path) -> None:
    parts = stages(lab, [proposal(9.0, extra=SAVES), proposal(2.0, extra=SAVES)])
    run_campaign(parts, "t", lambda made: None)
    campaign = parts.campaign("t")
    with pytest.raises(UserError, match="trial 1 has no weights, only keeps have: choose one of 0, 2"):
        models.of_trial(parts.workspace, campaign, 1)


def test_a_lab_without_a_tokenizer_has_no_model(lab: Path) -> None:
    parts = stages(lab)
    run_campaign(parts, "t", lambda made: None)
    assert not list(parts.workspace.trials.glob("*/run0/config.json"))
    with pytest.raises(UserError, match="has no tokenizer that is known here"):
        models.of_trial(parts.workspace, parts.campaign("t"))
