"""Tokens per second of a training step of train.py against a plain port of the same recipe, with both loss curves.

python benchmarks/train_step.py [--preset NAME] [--seeds N] [--steps N] [--train FILE ...]

The contestants train in turn, one optimizer step each, in one process, from the same weights and on the same batches of
the standard library's source: train.py as shipped, plain_port.py eager and compiled (if PyTorch finds a compiler), and
any other train.py that is named. The model is the published recipe's at the sizes of the preset. Next to them the table
shows the rate that this machine's own matrix products allow, measured between the steps: the most that could be gained.
The loss compared is the mean of a seed's last five steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import plain_port
from autoresearch.executors import hardware
from autoresearch.lab import presets

GOAL = 2.5  # times the tokens per second of the plain port, eager or compiled, whichever is faster
WARM_STEPS = 2  # of each seed, not counted
LAST_STEPS = 5  # whose mean loss is compared
Batches = Sequence[tuple[Tensor, Tensor, int]]


class Contestant:
    """One way to compute the recipe's training step, and its measurements."""

    def __init__(self, name: str, recipe: ModuleType, model: Any, device: torch.device, *, compiled: bool) -> None:
        self.name, self.recipe, self.model, self.device, self.compiled = name, recipe, model, device, compiled
        self.loss = torch.compile(model, dynamic=False) if compiled and self.is_plain else model
        self.seconds: list[float] = []
        self.losses: list[float] = []  # one per seed
        self.optimizers: tuple[Any, ...] = ()

    @property
    def is_plain(self) -> bool:
        return isinstance(self.model, plain_port.PlainGPT)

    def begin(self, weights: dict[str, Tensor]) -> None:
        """Start again from these weights."""
        own = self.model.state_dict()
        self.model.load_state_dict(own | {name: weight for name, weight in weights.items() if name in own})
        adamw, muon = self.recipe.make_optimizers(self.model, compiled=self.compiled and not self.is_plain)
        if self.is_plain:
            muon = plain_port.PlainMuon(self.recipe, self.model.blocks.parameters())
        self.optimizers = (adamw, muon)

    def step(self, batches: Batches, progress: float, number: int) -> float:
        """One optimizer step on all the batches -> mean loss in nats. Records its seconds."""
        start, losses = time.perf_counter(), []
        self.recipe.set_schedule(self.optimizers, progress, number)
        for x, y, _ in batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_plain):
                loss = self.loss(x, y) / len(batches)
            loss.backward()
            losses.append(loss.detach())
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        total = float(torch.stack(losses).sum())
        self.recipe.synchronize(self.device)
        if number >= WARM_STEPS:
            self.seconds.append(time.perf_counter() - start)
        return total


def load(path: Path, name: str) -> ModuleType:
    """A train.py by its path. It imports the prepare.py of the lab."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where the compiler looks for it
    spec.loader.exec_module(module)
    return module


def enter(files: Path, others: Sequence[Path], device: torch.device) -> tuple[list[Contestant], ModuleType]:
    """The contestants, each with its model built; and the lab's own train.py."""
    sys.path.insert(0, str(files))
    found = list[Contestant]()
    for path in (files / "train.py", *others):
        recipe = load(path, f"train_{len(found)}")
        recipe.keep_freed_memory()
        model, _ = recipe.build(device, recipe.Tokenizer.from_directory().get_vocab_size())
        name = "train.py as shipped" if not found else str(path)
        found.append(Contestant(name, recipe, model, device, compiled=device.type == "cuda"))
    recipe = found[0].recipe
    for compiled in (False, True):
        plain = plain_port.PlainGPT(recipe, found[0].model.head.out_features, recipe.MAX_SEQ_LEN).to(device)
        name = f"plain port, {'compiled' if compiled else 'eager'}"
        found.append(Contestant(name, recipe, plain, device, compiled=compiled))
    return found, recipe


def product_rate(recipe: ModuleType, device: torch.device, dtype: torch.dtype, rows: int, width: int) -> float:
    """FLOP/s of a product as large as one of the model's own."""
    x, weight = (torch.randn(n, width, device=device, dtype=dtype) for n in (rows, width))
    start = time.perf_counter()
    for _ in range(10):
        torch.nn.functional.linear(x, weight)
    recipe.synchronize(device)
    return 10 * 2 * rows * width**2 / (time.perf_counter() - start)


def compete(contestants: Sequence[Contestant], recipe: ModuleType, seeds: int, steps: int) -> list[float]:
    """Train all, seed by seed and step by step. Returns the machine's FLOP/s in products, measured after each step."""
    device, passes = contestants[0].device, recipe.TOTAL_BATCH_SIZE // (recipe.DEVICE_BATCH_SIZE * recipe.MAX_SEQ_LEN)
    tokenizer, rates = recipe.Tokenizer.from_directory(), list[float]()
    for seed in range(seeds):
        torch.manual_seed(seed)
        contestants[0].model.init_weights()
        weights = {name: x.clone() for name, x in contestants[0].model.state_dict().items()}
        losses: dict[str, list[float]] = {each.name: [] for each in contestants}
        for each in contestants:
            each.begin(weights)
        loader = recipe.make_dataloader(tokenizer, recipe.DEVICE_BATCH_SIZE, recipe.MAX_SEQ_LEN, "train", device=device)
        loader = itertools.islice(loader, seed * steps * passes, None)  # different text for each seed
        for number in range(steps):
            batches = list(itertools.islice(loader, passes))
            for turn in range(len(contestants)):
                each = contestants[(number + turn) % len(contestants)]
                losses[each.name].append(each.step(batches, number / steps, number))
            rows = len(batches[0][0]) * recipe.MAX_SEQ_LEN
            rates.append(product_rate(recipe, device, contestants[0].model.dtype, rows, 512))
        for each in contestants:
            each.losses.append(statistics.fmean(losses[each.name][-LAST_STEPS:]))
        print(f"seed {seed}: " + ", ".join(f"{each.name} {each.losses[-1]:.4f}" for each in contestants), flush=True)
    return rates


def report(contestants: Sequence[Contestant], recipe: ModuleType, rates: Sequence[float]) -> None:
    """The table: tokens per second, ratios, losses."""
    speeds = {each.name: recipe.TOTAL_BATCH_SIZE / statistics.median(each.seconds) for each in contestants}
    plain = max(speed for name, speed in speeds.items() if name.startswith("plain"))
    limit = statistics.median(rates) / recipe.flops_per_token(contestants[0].model, recipe.MAX_SEQ_LEN)
    print(
        "| contestant | tokens/s | to the faster plain port | last loss, mean of seeds | less train.py's, same seed |"
    )
    print("|---|---|---|---|---|")
    for each in contestants:
        differences = [a - b for a, b in zip(each.losses, contestants[0].losses, strict=True)]
        spread = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
        print(
            f"| {each.name} | {speeds[each.name]:,.0f} | {speeds[each.name] / plain:.2f} | "
            f"{statistics.fmean(each.losses):.4f} | {statistics.fmean(differences):+.4f} ± {spread:.4f} |"
        )
    print(f"| all at the rate of matrix products | {limit:,.0f} | {limit / plain:.2f} | | |")
    ratio = speeds[contestants[0].name] / plain
    print(f"goal {GOAL} times the faster plain port: {'met' if ratio >= GOAL else 'missed'} with {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="training step of train.py against a plain port")
    parser.add_argument("--preset", choices=presets.presets(), default="cpu")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of a seed")
    parser.add_argument("--train", type=Path, nargs="*", default=[], help="other versions of train.py")
    chosen = parser.parse_args()
    preset, device = presets.presets()[chosen.preset], hardware.device()
    print(
        f"{device.kind}: {device.name}, {platform.machine()}, PyTorch {torch.__version__}, {chosen.preset}", flush=True
    )
    with tempfile.TemporaryDirectory() as directory:
        files = Path(directory, "lab")
        # As with autocast, the residual stream is float32.
        text, stream = {"SOURCE": "stdlib"}, {"FLOAT32_STREAM": True}
        sizes = dataclasses.replace(
            preset.reference, prepare={**preset.prepare, **text}, train={**preset.train, **stream}
        )
        presets.create(files, sizes)
        subprocess.run([sys.executable, "prepare.py"], cwd=files, check=True)
        contestants, recipe = enter(files, [path.resolve() for path in chosen.train], torch.device(device.kind))
        rates = compete(contestants, recipe, chosen.seeds, chosen.steps)
    report(contestants, recipe, rates)


if __name__ == "__main__":
    main()
