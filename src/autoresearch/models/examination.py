"""Examines a kept model once more, in a process that has never seen the rows.

The model is rebuilt from its checkpoint and shown only beginnings of validation rows, cut at secret places and filled
up with random tokens. What it says of the next token must agree with what the run said there, when it could see the
whole row and had a memory. A run that looked ahead, or remembered, knew more.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoresearch.base.errors import EndRun
from autoresearch.grading.scoring import Answers
from autoresearch.grading.splits import TOKENIZER, SplitData
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.campaign import Trial
from autoresearch.ledger.report import last_line
from autoresearch.models import saved_model
from autoresearch.models.cell import Cell, laid_out, one_line

REBUILDER = Path(__file__).with_name("rebuilding.py")
REBUILDER_NAME = "autoresearch_rebuild.py"
SECONDS = 300.0  # for start-up and all answers
# Rounding differs between two processes, between batch shapes, and with compilation: by up to a few hundredths of a nat
# at a place in bfloat16, in both directions, so that the mean over all places hardly moves.
LEAST_SHARE = 0.0005  # of the mean nats: a smaller mean difference is rounding, whatever its significance
ERRORS = 4.5  # standard errors of the mean: chance exceeds this 3 times in a million
OUTLYING_NATS, OUTLYING = 0.25, 12.0  # no place differs by more nats, and by more robust standard deviations
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Examiner:
    """Examines the kept trials of a lab. `data` gives its rows, `tokenizer` the file that made them."""

    workspace: Workspace
    cell: Callable[[], Cell]
    data: Callable[[], SplitData]
    tokenizer: Callable[[], bytes]

    def examine(self, trial: Trial, poll: Callable[[], None] = lambda: None) -> str | None:
        """Why the model of a trial is not the one that was graded; None if it is, or if its answers are not known.

        `poll` is called about twenty times a second; what it raises ends the examination, and is raised here.
        """
        run = next((run for run in trial.runs if self.workspace.answers(trial.number, run.run).is_file()), None)
        if run is None:
            return None
        answers = Answers.load(self.workspace.answers(trial.number, run.run))
        left = saved_model.with_weights(self.workspace, trial)
        if left is None or left.run != run.run:
            return "its model cannot be examined again: it left no checkpoint"
        data = self.data()
        try:
            nats = self._rebuilt(trial, saved_model.weights(self.workspace, trial, run), answers, data, poll)
        except NotRebuilt as error:
            return (
                f"its model cannot be rebuilt from its checkpoint ({error}): `build(device, vocab_size)` of train.py "
                "must give the model that the weights belong to, and importing train.py must not train"
            )
        return difference(answers.nats, nats)

    def _rebuilt(
        self, trial: Trial, checkpoint: Path, answers: Answers, data: SplitData, poll: Callable[[], None]
    ) -> Array:
        """What the rebuilt model says of the same tokens, in nats.

        Raises:
            NotRebuilt: it says nothing.
        """
        rows = data.val[answers.rows]
        shown, following = rows[:, :-1].copy(), rows[np.arange(len(rows)), answers.places + 1].astype(np.int64)
        filler = np.random.default_rng().integers(data.vocabulary, size=shown.shape, dtype=shown.dtype)
        beyond = np.arange(shown.shape[1]) > answers.places[:, None]
        shown[beyond] = filler[beyond]
        batch = max(1, min(data.most_rows, 2**30 // (shown.shape[1] * data.vocabulary * 4), 32))
        files = {**saved_model.python(self.workspace, trial), TOKENIZER: self.tokenizer()}
        files[REBUILDER_NAME] = REBUILDER.read_bytes()
        with laid_out(files) as scratch:
            np.save(scratch / "rows.npy", shown)
            np.save(scratch / "places.npy", answers.places)
            settings = {"checkpoint": str(checkpoint), "device": "auto", "batch": batch}
            _run(self.cell(), scratch, settings, checkpoint, poll)
            logits = _read(scratch / "logits", (len(rows), data.vocabulary)).astype(np.float64)
        most = logits.max(axis=1, keepdims=True)
        total = most[:, 0] + np.log(np.exp(logits - most).sum(axis=1))
        nats: Array = total - logits[np.arange(len(rows)), following]
        if not np.isfinite(nats).all():
            raise NotRebuilt("its logits are not finite")
        return nats


class NotRebuilt(Exception):
    """The process gave no answers; the message says why."""


def _run(cell: Cell, scratch: Path, settings: Mapping[str, object], checkpoint: Path, poll: Callable[[], None]) -> None:
    """Run the model's process to its end."""
    try:
        command = cell.command([REBUILDER_NAME, json.dumps(settings)], scratch, checkpoint)
        code, why = cell.run(command, scratch, deadline_seconds=SECONDS, poll=poll)
    except EndRun as error:
        code, why = None, str(error)
    if code != 0:
        raise NotRebuilt(one_line(last_line(why)))


def _read(path: Path, shape: tuple[int, int]) -> Array:
    """What the process wrote: nothing but a regular file of exactly that many float32 numbers."""
    size = 4 * math.prod(shape)
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if stat.S_ISREG(found.st_mode) and found.st_size == size:
                return np.frombuffer(file.read(size), np.float32).reshape(shape)
    raise NotRebuilt("it gave no logits of the right shape")


def difference(graded: Array, rebuilt: Array) -> str | None:
    """Why the nats that a run answered at some places are not those of its model; None if they are, up to rounding.

    Only a run that knew more is told: what makes a model worse helps nobody. A small advantage at many places shows in
    the mean, a large one at a few places as outliers.
    """
    apart = rebuilt.astype(np.float64) - graded
    mean, error = float(apart.mean()), float(apart.std(ddof=1)) / math.sqrt(len(apart))
    spread = 1.4826 * float(np.median(np.abs(apart - np.median(apart))))
    outlying = int((apart > max(OUTLYING_NATS, OUTLYING * spread)).sum())
    is_dense = mean > LEAST_SHARE * float(graded.mean()) and mean > ERRORS * error
    if not is_dense and not outlying:
        return None
    return (
        "its model does not answer as it did when it was graded: rebuilt in a fresh process and shown only beginnings, "
        f"it is worse by {mean:.4f} nats a token over {len(apart)} secret places, {outlying} of them far off. It "
        "looked ahead, remembered, or is not all in its checkpoint"
    )
