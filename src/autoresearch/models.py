"""What is kept of a trial as a model: a folder with its weights and all that makes them answer, to be carried away.

It lies beside the directories of the trial's runs, where no run could write, and is made of nothing that a run left but
the weights.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autoresearch import atomic, splits
from autoresearch.campaign import Campaign, Trial
from autoresearch.errors import UserError
from autoresearch.events import RunEnded
from autoresearch.splits import TOKENIZER
from autoresearch.trial import CHECKPOINT
from autoresearch.workspace import Workspace

FACTS = "config.json"


@dataclass(frozen=True)
class Model:
    """A kept model: its trial, its weights, and its files by path: Python of its commit, and the tokenizer.

    `val_bpb` is that of the run which left the weights, not the trial's mean.
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
    """Move the weights of a trial into a folder with what makes them a model; returns the folder.

    They come last: where they are, the folder is whole. None where there are none, or a lab has no tokenizer that this
    program knows of.

    Raises:
        UserError: the lab's data is not there.
        OSError: the folder cannot be written.
    """
    folder, run = _folder(workspace, trial), _with_weights(workspace, trial)
    if (folder / CHECKPOINT).is_file():
        return folder
    prepare_py = workspace.files(campaign.started.base)["prepare.py"].decode()
    if run is None or not splits.can_be_graded(prepare_py):
        return None
    reading = splits.reading(prepare_py)
    facts = json.dumps(_facts(campaign, trial, run, reading), indent=2).encode()
    for path, content in {**_python(workspace, trial), TOKENIZER: reading.tokenizer, FACTS: facts}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        atomic.write(folder / path, content)
    weights = _weights(workspace, trial, run)
    weights.chmod(0o644)
    os.replace(weights, folder / CHECKPOINT)
    workspace.drop_checkpoints(trial.number)  # those of its other runs
    return folder


def of_trial(workspace: Workspace, campaign: Campaign, number: int | None = None) -> Model:
    """The model of a kept trial, of the best where no number is given; one that was not saved yet is.

    Raises:
        UserError: that trial has none, or it cannot be saved.
    """
    best = campaign.incumbent
    number = best.number if number is None and best else number
    having = {trial.number: trial for trial in campaign.kept if _is_there(workspace, trial)}
    if number not in having:
        others = f"choose one of {', '.join(map(str, having))}" if having else f"none of {campaign.tag} has any yet"
        what = "there is no kept trial yet" if number is None else f"trial {number} has no weights, only keeps have"
        raise UserError(f"{what}: {others}")
    trial = having[number]
    folder = save(workspace, campaign, trial)
    if folder is None:
        raise UserError(f"trial {number} cannot be sampled: this lab's prepare.py has no tokenizer that is known here")
    return Model(
        tag=campaign.tag,
        trial=trial.number,
        idea=trial.proposed.idea,
        val_bpb=json.loads((folder / FACTS).read_text(encoding="utf-8"))["val_bpb"],
        checkpoint=folder / CHECKPOINT,
        files={path: (folder / path).read_bytes() for path in (*_python(workspace, trial), TOKENIZER)},
    )


def _folder(workspace: Workspace, trial: Trial) -> Path:
    return workspace.trial_directory(trial.number) / "model"


def _python(workspace: Workspace, trial: Trial) -> dict[str, bytes]:
    files = workspace.files(trial.proposed.commit)
    return {path: text for path, text in sorted(files.items()) if path.endswith(".py")}


def _weights(workspace: Workspace, trial: Trial, run: RunEnded) -> Path:
    return workspace.trial_directory(trial.number) / f"run{run.run}" / CHECKPOINT


def _with_weights(workspace: Workspace, trial: Trial) -> RunEnded | None:
    """The trial's first run that left weights: a plain file, and no link to another."""
    for run in trial.runs:
        with contextlib.suppress(OSError):
            if stat.S_ISREG(_weights(workspace, trial, run).lstat().st_mode):
                return run
    return None


def _is_there(workspace: Workspace, trial: Trial) -> bool:
    return (_folder(workspace, trial) / CHECKPOINT).is_file() or _with_weights(workspace, trial) is not None


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
