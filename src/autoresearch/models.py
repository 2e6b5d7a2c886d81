"""What is kept of a trial as a model: a folder with its weights and all that makes them answer, to be carried away."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autoresearch import atomic, splits
from autoresearch.campaign import Campaign, Trial
from autoresearch.errors import UserError
from autoresearch.splits import TOKENIZER
from autoresearch.trial import CHECKPOINT
from autoresearch.workspace import Workspace

FACTS = "config.json"  # written last: where it is, the folder is whole


@dataclass(frozen=True)
class Model:
    """A kept model: its trial, its weights, and its files by path: Python of its commit, and the tokenizer."""

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
    """Write beside a trial's weights what makes them a model; returns the folder.

    None where there are none, or a lab has no tokenizer that this program knows of.

    Raises:
        UserError: the lab's data is not there.
    """
    folder = _folder(workspace, trial)
    prepare_py = workspace.files(campaign.started.base)["prepare.py"].decode()
    if folder is None or not splits.can_be_graded(prepare_py):
        return None
    reading = splits.reading(prepare_py)
    python = {path: text for path, text in workspace.files(trial.proposed.commit).items() if path.endswith(".py")}
    for path, content in {**python, TOKENIZER: reading.tokenizer}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        atomic.write(folder / path, content)
    told = _facts(campaign, trial, folder, reading, sorted([*python, TOKENIZER]))
    atomic.write(folder / FACTS, json.dumps(told, indent=2).encode())
    return folder


def of_trial(workspace: Workspace, campaign: Campaign, number: int | None = None) -> Model:
    """The model of a kept trial, of the best where no number is given; a folder that is not whole is made so.

    Raises:
        UserError: that trial has none.
    """
    best = campaign.incumbent
    number = best.number if number is None and best else number
    having = {trial.number: trial for trial in campaign.kept if _folder(workspace, trial)}
    if number not in having:
        others = f"choose one of {', '.join(map(str, having))}" if having else f"none of {campaign.tag} has any yet"
        what = "there is no kept trial yet" if number is None else f"trial {number} has no weights, only keeps have"
        raise UserError(f"{what}: {others}")
    folder = _folder(workspace, having[number])
    if folder is not None and not (folder / FACTS).is_file():
        folder = save(workspace, campaign, having[number])
    if folder is None:
        raise UserError(f"trial {number} cannot be sampled: this lab's prepare.py has no tokenizer that is known here")
    return _load(folder)


def _folder(workspace: Workspace, trial: Trial) -> Path | None:
    """The directory of the trial's first run that left weights."""
    found = sorted(workspace.trial_directory(trial.number).glob(f"run*/{CHECKPOINT}"))
    return found[0].parent if found else None


def _facts(
    campaign: Campaign, trial: Trial, folder: Path, reading: splits.Reading, files: list[str]
) -> Mapping[str, object]:
    run = next((run for run in trial.runs if f"run{run.run}" == folder.name), None)
    return {
        "tag": campaign.tag,
        "trial": trial.number,
        "commit": trial.proposed.commit,
        "idea": trial.proposed.idea,
        "val_bpb": trial.val_bpb,
        "context": reading.context,
        "vocabulary": reading.vocabulary,
        "budget_seconds": campaign.started.budget_seconds,
        "seed": run.seed if run else None,
        "environment": dict(run.environment) if run else {},
        "frozen_sha256": dict(campaign.started.frozen_sha256),
        "weights": CHECKPOINT,
        "files": files,
    }


def _load(folder: Path) -> Model:
    told = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    return Model(
        tag=told["tag"],
        trial=told["trial"],
        idea=told["idea"],
        val_bpb=told["val_bpb"],
        checkpoint=folder / CHECKPOINT,
        files={path: (folder / path).read_bytes() for path in told["files"]},
    )
