"""A tiny lab whose baseline the program has really trained, for a second, and its model at work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from autoresearch.base import git, variables
from autoresearch.executors.sandbox.sandboxes import Nothing
from autoresearch.lab import presets
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.ledger import Ledger
from autoresearch.models import saved_model
from autoresearch.models.cell import Cell
from autoresearch.models.sampling import Piece, Request, Sampler
from autoresearch.models.saved_model import Model
from texts import documents, write_jsonl

CONTEXT = 32
SETTINGS = {"VOCAB_SIZE": 300, "MAX_SEQ_LEN": CONTEXT, "EVAL_TOKENS": 64 * CONTEXT, "TIME_BUDGET": 1}
TINY = {"DEPTH": 3, "ASPECT_RATIO": 10, "HEAD_DIM": 16, "VALUE_GATE_CHANNELS": 8, "SHORT_WINDOW_DIVISOR": 4}
# Put into train.py it answers in the model's place, and not at all to what is said to its first token.
FALLS_SILENT = """
import autoresearch_trial, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
autoresearch_trial.ask({"ask": "request"})
autoresearch_trial.ask({"ask": "more", "text": "x"})
time.sleep(600)
"""
BATCH = {"TOTAL_BATCH_SIZE": 512, "DEVICE_BATCH_SIZE": 16}


@dataclass(frozen=True)
class SamplingLab:
    root: Path
    cache: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "AUTORESEARCH_CACHE": str(self.cache), "OMP_NUM_THREADS": "1"}

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the program in this lab."""
        command = [sys.executable, "-m", "autoresearch", *words, "--lab", str(self.root)]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=280)

    @property
    def workspace(self) -> Workspace:
        return Workspace.open(self.root)

    @property
    def folder(self) -> Path:
        return self.workspace.trial_directory(0) / "model"

    @property
    def run(self) -> Path:
        return self.workspace.trial_directory(0) / "run0"

    @property
    def campaign(self) -> Campaign:
        campaign = Ledger(self.workspace.ledger).campaign()
        assert campaign
        return campaign

    @property
    def trial(self) -> Trial:
        return self.campaign.trials[0]

    def model(self) -> Model:
        return saved_model.of_trial(self.workspace, self.campaign)


def make(root: Path) -> SamplingLab:
    source = write_jsonl(root / "texts.jsonl", documents(3000))
    preset = presets.Preset("tiny", "a test", {"SOURCE": f"files:{source}", **SETTINGS}, {**TINY, **BATCH}, 60)
    lab = SamplingLab(root / "lab", root / "cache")
    presets.create(lab.root, preset)
    train = lab.root / "train.py"
    text, choice = train.read_text(), "return half if"
    assert choice in text
    train.write_text(text.replace(choice, "return torch.float32 if"))
    front = "---\nresearcher: scripted\njudge: greedy\nmin_free_gb: 0\nfallback: none\n---\n"
    (lab.root / "program.md").write_text(front)
    git.commit_all(lab.root, "Exact")
    (root / "script.json").write_text("[]")  # so that nothing but the baseline is run
    done = lab.call("run", "--tag", "t", "--researcher", f"scripted:{root / 'script.json'}")
    assert done.returncode == 0, done.stdout + done.stderr
    return lab


def endless(lab: SamplingLab) -> SamplingLab:
    """The same lab, whose kept model never ends a document, so that a text is as long as it is wanted."""
    path, end = lab.folder / "train.py", "for z in torch.split(x, chunk)]).view(*idx.shape, -1)"
    specials = "torch.arange(self.head.out_features - 4, self.head.out_features)"
    text = path.read_text()
    assert end in text
    path.write_text(text.replace(end, f"{end}.index_fill(-1, {specials}, -1e9)"))
    return lab


def edited(model: Model, *changes: tuple[str, str]) -> Model:
    """The model with other code around the same weights."""
    text = model.files["train.py"].decode()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return replace(model, files={**model.files, "train.py": text.encode()})


@contextmanager
def sampler(model: Model, said: list[str] | None = None, *, cache: bool = True) -> Iterator[Sampler]:
    environment = {**variables.for_run(), "OMP_NUM_THREADS": "1"}
    cell = Cell(Path(sys.executable), environment, Nothing())
    with Sampler(model, cell, cache=cache, say=(said if said is not None else []).append) as made:
        yield made


def written(made: Sampler, prompt: str = "The", **wanted: object) -> tuple[str, Piece]:
    """The whole text and its last piece."""
    pieces = list(made.generate(Request(prompt, **wanted)))  # type: ignore[arg-type]
    return "".join(piece.text for piece in pieces), pieces[-1]
