"""Measures one setting of a lab's train.py on random tokens: its speed and memory. It needs no data.

It stands alone: `fitting` copies it next to train.py and runs it there, with the lab's own Python. It writes to RESULT
as it goes: that it is warmed up, what training needs, then the same with evaluation's seconds. So little is lost at a
deadline.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILE = "autoresearch_stopwatch.py"  # the name of this file next to train.py
RESULT = "stopwatch.json"
EVALUATE = "evaluate"  # asks for evaluation too, after the MiB that a run on a CPU may use
NEEDED = ("build", "warm_up", "peak_memory_mb", "count_parameters", "DEVICE_BATCH_SIZE")
OUT_OF_MEMORY = "out of memory"
SHORT_OF_MEMORY = re.compile(r"\bMemoryError|out of memory|allocate memory|ALLOC_FAILED")  # in the repr of an error
LEAST_STEPS, LEAST_SECONDS = 5, 3.0  # a measurement is over when it has both,
MOST_SECONDS = 8.0  # or this
CHUNK = 8192  # tokens whose losses are computed at a time, as in prepare.py


def main() -> None:
    try:
        measure(float(sys.argv[1]), evaluate=EVALUATE in sys.argv[2:])
    except (RuntimeError, MemoryError) as error:
        if not SHORT_OF_MEMORY.search(repr(error)):
            raise
        write({"problem": OUT_OF_MEMORY})


def measure(most_mb: float, *, evaluate: bool) -> None:
    """Build and warm up the model as train.py does, then time forward and backward pass, optimizers and evaluation."""
    import torch

    train, prepare = importlib.import_module("train"), importlib.import_module("prepare")
    if missing := [name for name in NEEDED if not hasattr(train, name)]:
        write({"missing": missing})
        return
    torch.set_float32_matmul_precision("high")
    getattr(train, "keep_freed_memory", lambda: None)()  # main() calls it too; without it a CPU is much slower
    device = prepare.detect_device()
    free_mb = free_memory_mb(device, most_mb)
    model, optimizers = train.build(device, prepare.VOCAB_SIZE)
    train.warm_up(model, optimizers, device)
    write({"warm": True})
    x, y = prepare.warmup_batch(train.DEVICE_BATCH_SIZE, device)
    passes, steps = [], []

    def step() -> None:
        start = time.perf_counter()
        model(x, y).backward()
        synchronize(device)
        passes.append(time.perf_counter() - start)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        synchronize(device)
        steps.append(time.perf_counter() - start - passes[-1])

    repeat(step)
    found = {
        "tokens": x.numel(),
        "parameters": train.count_parameters(model),
        "pass_seconds": statistics.median(passes[1:]),
        "optimizer_seconds": statistics.median(steps[1:]),
        "memory_mb": train.peak_memory_mb(device),
        "free_mb": free_mb,
        "validation_tokens": validation_tokens(prepare.DATA),
    }
    write(found)
    if evaluate:
        write({**found, "evaluation_seconds": evaluation_seconds(model, x, y, device)})


def evaluation_seconds(model: Any, x: Any, y: Any, device: Any) -> float:
    """Seconds to score one batch: logits, then their cross entropy in float32."""
    import torch

    times = []

    def score() -> None:
        start = time.perf_counter()
        with torch.inference_mode():
            parts = zip(model(x).flatten(0, 1).split(CHUNK), y.flatten().split(CHUNK), strict=True)
            sum(torch.nn.functional.cross_entropy(part.float(), targets) for part, targets in parts)
        synchronize(device)
        times.append(time.perf_counter() - start)

    model.eval()
    repeat(score)
    return statistics.median(times[1:])


def repeat(action: Callable[[], None]) -> None:
    """Do it once to warm up, then until there are enough times for a median."""
    action()
    start, done = time.perf_counter(), 0
    while done == 0 or (elapsed := time.perf_counter() - start) < MOST_SECONDS:
        if done >= LEAST_STEPS and elapsed >= LEAST_SECONDS:
            break
        action()
        done += 1


def synchronize(device: Any) -> None:
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize()


def free_memory_mb(device: Any, most_mb: float) -> float:
    """MiB that a run may use: free on a CUDA device, recommended on a Mac's GPU, on a CPU available and allowed."""
    import psutil
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**20
    if device.type == "mps":
        return torch.mps.recommended_max_memory() / 2**20
    mine = psutil.Process().memory_info().rss
    return min(most_mb, (psutil.virtual_memory().available + mine) / 2**20)  # its own share is in its peak as well


def validation_tokens(data: Path) -> int | None:
    """Tokens of the validation split; None if the data is not prepared yet."""
    try:
        return int(json.loads((data / "meta.json").read_text())["splits"]["val"]["tokens"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(found: dict[str, Any]) -> None:
    part = Path(RESULT + ".part")
    part.write_text(json.dumps(found))
    os.replace(part, RESULT)


if __name__ == "__main__":
    main()
