"""What is kept of a trial as a model, and which trials have one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import toy_lab
from autoresearch.base.errors import UserError
from autoresearch.grading.protocol import CHECKPOINT
from autoresearch.ledger.records import Decision, Status
from autoresearch.loop.loop import run_campaign
from autoresearch.loop.trial import settle
from autoresearch.models import saved_model
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
    (run,) = trained.trial.runs
    assert run.score
    assert told["val_bpb"] == run.score.val_bpb
    names = {"checkpoint.safetensors", "config.json", "prepare.py", "tokenizer.tiktoken", "train.py"}
    assert {path.name for path in trained.folder.iterdir()} == names
    assert not list(trained.workspace.trial_directory(0).glob("run*/checkpoint*"))


@pytest.fixture
def unsaved(trained: SamplingLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SamplingLab:
    """The lab as its run left it."""
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(trained.cache))
    lab = replace(trained, root=shutil.copytree(trained.root, tmp_path / "lab"))
    (lab.folder / CHECKPOINT).rename(lab.run / CHECKPOINT)
    shutil.rmtree(lab.folder)
    return lab


def test_a_keep_that_was_not_saved_is_saved_when_it_is_wanted(trained: SamplingLab, unsaved: SamplingLab) -> None:
    found = unsaved.model()
    assert found == replace(trained.model(), checkpoint=unsaved.folder / CHECKPOINT)
    assert found.checkpoint.read_bytes() == trained.model().checkpoint.read_bytes()


def test_nothing_is_believed_that_lies_where_the_run_could_write(trained: SamplingLab, unsaved: SamplingLab) -> None:
    (unsaved.run / "config.json").write_text('{"files": ["a/../../x"], "val_bpb": 0.1}')
    (unsaved.run / "train.py").write_text("forged")
    (unsaved.run / CHECKPOINT).chmod(0)
    found = unsaved.model()
    assert found == replace(trained.model(), checkpoint=unsaved.folder / CHECKPOINT)
    assert found.checkpoint.stat().st_mode & 0o777 == 0o644


def test_a_link_in_the_weights_place_is_no_model(unsaved: SamplingLab) -> None:
    (unsaved.run / CHECKPOINT).unlink()
    (unsaved.run / CHECKPOINT).symlink_to(unsaved.root / "train.py")
    with pytest.raises(UserError, match="trial 0 has no weights"):
        unsaved.model()


def test_a_search_goes_on_where_a_model_cannot_be_saved(unsaved: SamplingLab, monkeypatch: pytest.MonkeyPatch) -> None:
    unsaved.folder.write_text("in the way")
    with pytest.raises(OSError, match="model"):
        saved_model.save(unsaved.workspace, unsaved.campaign, unsaved.trial)
    settle(stages(unsaved.root), unsaved.campaign, unsaved.trial, Decision(Status.KEEP, "it is better"))
    assert (unsaved.run / CHECKPOINT).is_file()
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(unsaved.root / "nowhere"))
    unsaved.folder.unlink()
    settle(stages(unsaved.root), unsaved.campaign, unsaved.trial, Decision(Status.KEEP, "it is better"))
    assert (unsaved.root / "results.tsv").is_file()


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    return toy_lab.make(tmp_path / "lab", train=SAVES + toy_lab.TRAIN)


def test_a_discarded_trial_has_no_model_and_it_is_said_which_have(lab: Path) -> None:
    parts = stages(lab, [proposal(9.0, extra=SAVES), proposal(2.0, extra=SAVES)])
    run_campaign(parts, "t", lambda made: None)
    campaign = parts.campaign("t")
    with pytest.raises(UserError, match="trial 1 has no weights; only kept trials do: choose one of 0, 2"):
        saved_model.of_trial(parts.workspace, campaign, 1)


def test_a_lab_without_a_tokenizer_has_no_model(lab: Path) -> None:
    parts = stages(lab)
    run_campaign(parts, "t", lambda made: None)
    assert not list(parts.workspace.trials.glob("*/model"))
    with pytest.raises(UserError, match="has no tokenizer that autoresearch knows"):
        saved_model.of_trial(parts.workspace, parts.campaign("t"))
