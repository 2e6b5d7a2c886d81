"""How surely the second examination of a keep finds a leak, how seldom it suspects an honest model, how long it takes.

    python benchmarks/examination.py [--budget 20] [--draws 1000] [--rows 96]

A lab of preset `cpu` trains its baseline. Its model then answers every place of some validation rows twice: as a run
does when it is graded (whole rows) and as the examination asks (each beginning by itself, then random tokens), in each
type, and once compiled. From these answers thousands of examinations are drawn, each at its own secret places: of the
honest model, and of one whose graded answers are better by 0.2 % of val_bpb, spread over all places or a few.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from autoresearch.base import variables
from autoresearch.executors import hardware
from autoresearch.executors.sandbox import sandboxes
from autoresearch.grading import splits
from autoresearch.grading.scoring import PLACES, Answers
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.ledger import Ledger
from autoresearch.models import decoding
from autoresearch.models.cell import Cell
from autoresearch.models.examination import Examiner, difference

LEAK = 0.002  # of val_bpb
SHARES = (1.0, 0.1, 0.01, 0.001)  # of the places that a leak uses
LEAKING_DRAWS = 100
ROWS = 32  # of a batch
Array = npt.NDArray[Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--budget", type=int, default=20, help="seconds of training")
    parser.add_argument("--draws", type=int, default=1000, help="examinations of each honest model")
    parser.add_argument("--rows", type=int, default=96, help="validation rows whose places are all answered")
    chosen = parser.parse_args()
    print(f"{hardware.device()}, PyTorch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        lab = trained(Path(directory, "lab"), chosen.budget)
        data = splits.read((lab.root / "prepare.py").read_text())
        print(f"one examination of a keep on preset cpu: {seconds(lab, data):.1f} s", flush=True)
        print("| model | places | suspected | rounding, 95 % and most, nats |\n|---|---|---|---|", flush=True)
        for name, graded, rebuilt in answered(lab, data.val[: chosen.rows]):
            rounding = np.abs(rebuilt - graded)
            found = sum(suspected(graded, rebuilt) for _ in range(chosen.draws))
            shown = f"{np.quantile(rounding, 0.95):.4f}, {rounding.max():.3f}"
            print(f"| {name} | {len(graded)} | {found} of {chosen.draws} | {shown} |", flush=True)
            last = graded, rebuilt
        print("| leak of 0.2 % at | found |\n|---|---|")
        for share in SHARES:
            found = sum(suspected(leaking(last[0], share), last[1]) for _ in range(LEAKING_DRAWS))
            print(f"| {100 * share:g} % of the places | {found} of {LEAKING_DRAWS} |", flush=True)


def trained(root: Path, budget: int) -> Workspace:
    """A lab of preset cpu with a baseline, whose weights are there."""
    program = [sys.executable, "-m", "autoresearch"]
    subprocess.run([*program, "new", str(root), "--preset", "cpu", "--budget", str(budget)], check=True)
    text = (root / "program.md").read_text()
    (root / "program.md").write_text(text.replace("judge: posterior", "judge: greedy"))
    (root / "none.json").write_text("[]")
    run = [*program, "run", "--lab", str(root), "--researcher", f"scripted:{root / 'none.json'}"]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
    return Workspace.open(root)


def seconds(lab: Workspace, data: Any) -> float:
    """How long the examination of the baseline's model takes, as that of a keep would."""
    trial = Ledger(lab.ledger).campaigns()[0].trials[0]
    folder = lab.trial_directory(0)
    (folder / "run0").mkdir(exist_ok=True)
    os.link(folder / "model" / "checkpoint.safetensors", folder / "run0" / "checkpoint.safetensors")
    rows = np.sort(np.random.default_rng(1).integers(len(data.val), size=PLACES)).astype(np.int32)
    places = np.random.default_rng(2).integers(data.context, size=PLACES).astype(np.int32)
    lab.answers(0, 0).write_bytes(Answers(rows, places, np.full(PLACES, 1e3, np.float32)).packed())
    cell = Cell(Path(sys.executable), variables.offline(), sandboxes.choose("auto"))
    tokenizer = splits.reading((lab.root / "prepare.py").read_text()).tokenizer
    start = time.perf_counter()
    problem = Examiner(lab, lambda: cell, lambda: data, lambda: tokenizer).examine(trial)
    assert problem is None, problem  # it knew less than its model does, so that nothing is suspected
    return time.perf_counter() - start


def answered(lab: Workspace, rows: Array) -> Iterator[tuple[str, Array, Array]]:
    """The nats of every token of the rows, as graded and as rebuilt, for each type and way to compute."""
    os.chdir(lab.trial_directory(0) / "model")
    sys.path.insert(0, os.getcwd())
    decoding.load(Path("checkpoint.safetensors"), "cpu", cache=False)  # imports the lab's train.py
    train: Any = sys.modules["train"]
    for dtype in (torch.float32, torch.bfloat16):
        train.pick_dtype = lambda device, dtype=dtype: dtype
        model = decoding.load(Path("checkpoint.safetensors"), "cpu", cache=False).computing.model
        rebuilt = beginnings(model, rows)
        yield str(dtype), whole(model, rows), rebuilt
        if dtype is torch.bfloat16:
            yield f"{dtype}, graded compiled", whole(torch.compile(model, dynamic=False), rows), rebuilt


@torch.inference_mode()
def whole(model: Callable[[torch.Tensor], torch.Tensor], rows: Array) -> Array:
    """The nats of all tokens, of whole rows at once."""
    found = []
    for x, y in batches(rows[:, :-1], rows[:, 1:]):
        logits = model(x).float()
        found.append(torch.nn.functional.cross_entropy(logits.mT, y, reduction="none").flatten())
    return torch.cat(found).numpy()


@torch.inference_mode()
def beginnings(model: Callable[[torch.Tensor], torch.Tensor], rows: Array) -> Array:
    """The nats of all tokens, each from the tokens before it and random ones after it."""
    random, found = np.random.default_rng(3), []
    for row in rows:
        length = len(row) - 1
        shown = np.where(np.tri(length, dtype=bool), row[:-1], random.integers(row.max() + 1, size=(length, length)))
        for x, y, place in batches(shown, row[1:], np.arange(length)):
            logits = model(x)[torch.arange(len(x)), place].float()
            found.append(torch.nn.functional.cross_entropy(logits, y, reduction="none"))
    return torch.cat(found).numpy()


def batches(*arrays: Array) -> Iterator[tuple[torch.Tensor, ...]]:
    for start in range(0, len(arrays[0]), ROWS):
        yield tuple(torch.from_numpy(each[start : start + ROWS].astype(np.int64)) for each in arrays)


def suspected(graded: Array, rebuilt: Array) -> bool:
    """Whether one examination, at its own places, tells the two apart."""
    places = np.random.default_rng().choice(len(graded), min(PLACES, len(graded)), replace=False)
    return difference(graded[places], rebuilt[places]) is not None


def leaking(graded: Array, share: float) -> Array:
    """The answers of a run that knows more at a share of the places, so that its mean is lower by LEAK of itself.

    At a few places it knows all it needs, up to the whole surprise there.
    """
    random, better = np.random.default_rng(), graded.copy()
    order = random.permutation(len(graded))
    needed = LEAK * float(graded.sum())
    places = order[: max(1, round(share * len(graded)))]
    while (left := needed - float((graded - better).sum())) > 1e-6 * needed:
        better[places] = np.maximum(0.0, better[places] - left / len(places))
        if float(better[places].sum()) == 0.0:  # it takes more places than that
            places = order[: len(places) + 1]
    return better


if __name__ == "__main__":
    main()
