"""A kept trial saved as a model: a folder with its weights and everything they need to answer, which you can copy.

It is next to the directories of the trial's runs, where no run could write. The weights are the only thing in it that a
run left.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autoresearch.base import atomic
from autoresearch.base.errors import UserError
from autoresearch.grading import splits
from autoresearch.grading.protocol import CHECKPOINT
from autoresearch.grading.splits import TOKENIZER
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import RunEnded

FACTS = "config.json"


@dataclass(frozen=True)
class Model:
    """A kept model: its trial, its weights, and its files by path: the Python files of its commit, and the tokenizer.

    `val_bpb` is that of the run that left the weights, not the trial's mean.
    """

    tag: str
    trial: int
    idea: str
    val_bpb: float | None
    checkpoint: Path
    files: Mapping[str, bytes]

    @property
    def name(self) -> str:
        return f"{self.tag}-{self.trial}"


def save(workspace: Workspace, campaign: Campaign, trial: Trial) -> Path | None:
    """Move the weights of a trial into a folder with everything else the model needs. Returns the folder.

    The weights come last: if they are there, the folder is complete. None if there are none, or if the lab has no
    tokenizer that this program knows.

    Raises:
        UserError: the lab's data is missing.
        OSError: the folder cannot be written.
    """
    folder, run = _folder(workspace, trial), with_weights(workspace, trial)
    if (folder / CHECKPOINT).is_file():
        return folder
    prepare_py = workspace.files(campaign.started.base)["prepare.py"].decode()
    if run is None or not splits.can_be_graded(prepare_py):
        return None
    reading = splits.reading(prepare_py)
    facts = json.dumps(_facts(campaign, trial, run, reading), indent=2).encode()
    for path, content in {**python(workspace, trial), TOKENIZER: reading.tokenizer, FACTS: facts}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        atomic.write(folder / path, content)
    left = weights(workspace, trial, run)
    left.chmod(0o644)
    os.replace(left, folder / CHECKPOINT)
    workspace.drop_checkpoints(trial.number)  # those of its other runs
    return folder


def of_trial(workspace: Workspace, campaign: Campaign, number: int | None = None) -> Model:
    """The model of a kept trial, of the best one if no number is given. Saves it if that has not been done yet.

    Raises:
        UserError: that trial has none, or it cannot be saved.
    """
    best = campaign.incumbent
    number = best.number if number is None and best else number
    having = {trial.number: trial for trial in campaign.kept if _is_there(workspace, trial)}
    if number not in having:
        others = f"choose one of {', '.join(map(str, having))}" if having else f"no trial of {campaign.tag} has one yet"
        what = "there is no kept trial yet" if number is None else f"trial {number} has no weights; only kept trials do"
        raise UserError(f"{what}: {others}")
    trial = having[number]
    folder = save(workspace, campaign, trial)
    if folder is None:
        raise UserError(
            f"trial {number} cannot be sampled: this lab's prepare.py has no tokenizer that autoresearch knows"
        )
    return Model(
        tag=campaign.tag,
        trial=trial.number,
        idea=trial.proposed.idea,
        val_bpb=json.loads((folder / FACTS).read_text(encoding="utf-8"))["val_bpb"],
        checkpoint=folder / CHECKPOINT,
        files={path: (folder / path).read_bytes() for path in (*python(workspace, trial), TOKENIZER)},
    )


def _folder(workspace: Workspace, trial: Trial) -> Path:
    return workspace.trial_directory(trial.number) / "model"


def python(workspace: Workspace, trial: Trial) -> dict[str, bytes]:
    """The Python files of a trial's commit, by path."""
    files = workspace.files(trial.proposed.commit)
    return {path: text for path, text in sorted(files.items()) if path.endswith(".py")}


def weights(workspace: Workspace, trial: Trial, run: RunEnded) -> Path:
    """Where a run of a trial leaves its weights."""
    return workspace.trial_directory(trial.number) / f"run{run.run}" / CHECKPOINT


def with_weights(workspace: Workspace, trial: Trial) -> RunEnded | None:
    """The trial's first run that left weights, as a regular file and not a link."""
    for run in trial.runs:
        with contextlib.suppress(OSError):
            if stat.S_ISREG(weights(workspace, trial, run).lstat().st_mode):
                return run
    return None


def _is_there(workspace: Workspace, trial: Trial) -> bool:
    return (_folder(workspace, trial) / CHECKPOINT).is_file() or with_weights(workspace, trial) is not None


def _facts(campaign: Campaign, trial: Trial, run: RunEnded, reading: splits.Reading) -> Mapping[str, object]:
    return {
        "tag": campaign.tag,
        "trial": trial.number,
        "commit": trial.proposed.commit,
        "idea": trial.proposed.idea,
        "run": run.run,
        "seed": run.seed,
        "val_bpb": run.score.val_bpb if run.score else None,
        "context": reading.context,
        "vocabulary": reading.vocabulary,
        "budget_seconds": campaign.started.budget_seconds,
        "environment": dict(run.environment),
        "frozen_sha256": dict(campaign.started.frozen_sha256),
        "weights": CHECKPOINT,
    }
