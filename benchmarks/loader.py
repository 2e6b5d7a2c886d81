"""Tokens per second of the lab's loader against a plain Python best-fit loop over the same documents.

python benchmarks/loader.py

Prepares the standard library's source (vocabulary 2,048; cached) and draws batches from both in turns, on the CPU,
after checking that they yield the same rows.
"""

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

PREPARE = Path(__file__).parents[1] / "src" / "autoresearch" / "lab" / "template" / "prepare.py"
SHAPES = [(256, 32), (2048, 8)]  # context, batch size
REPETITIONS = 5
PLAIN_BATCHES = 12
FAST_BATCHES = 200


def load_prepare(directory: Path) -> ModuleType:
    """The shipped prepare.py with SOURCE = "stdlib" and a vocabulary of 2,048, loaded from a copy."""
    text = PREPARE.read_text()
    for name, value in (("SOURCE", '"stdlib"'), ("VOCAB_SIZE", "2048")):
        begin = text.index(f"\n{name} = ") + 1
        text = text[:begin] + f"{name} = {value}" + text[text.index("\n", begin) :]
    path = directory / "prepare.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("prepare", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain_batches(prepare: ModuleType, batch_size: int, context: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The same packing in plain Python: a scan of the buffer for each document, lists, torch.tensor."""
    tokens = np.load(prepare.DATA / "train.npy").tolist()
    offsets = np.load(prepare.DATA / "train_offsets.npy").tolist()
    order = np.random.default_rng([prepare.SEED, 1]).permutation(len(offsets) - 1).tolist()
    documents = ((number, tokens[offsets[number] : offsets[number + 1]]) for number in order)
    buffer = list(islice(documents, prepare.PACKING_BUFFER))
    while True:
        rows = [plain_row(buffer, documents, context + 1) for _ in range(batch_size)]
        batch = torch.tensor(rows, dtype=torch.int64)
        yield batch[:, :-1].contiguous(), batch[:, 1:].contiguous()


def plain_row(buffer: list[tuple[int, list[int]]], documents: Iterator[tuple[int, list[int]]], space: int) -> list[int]:
    """One row. Of documents of the same length the loader takes the one latest in the files, or the first to crop."""
    row: list[int] = []
    while len(row) < space:
        room = space - len(row)
        best, best_key, least, least_key = -1, (0, -1), -1, (1 << 60, 0)
        for i, (number, document) in enumerate(buffer):
            key = (len(document), number)
            if len(document) <= room and key > best_key:
                best, best_key = i, key
            if key < least_key:
                least, least_key = i, key
        row += buffer.pop(best if best >= 0 else least)[1][:room]
        buffer.extend(islice(documents, 1))
    return row


def tokens_per_second(batches: Iterator[Any], count: int, context: int) -> float:
    began = time.perf_counter()
    drawn = sum(len(batch[0]) for batch in islice(batches, count))
    return drawn * context / (time.perf_counter() - began)


def compare(prepare: ModuleType, context: int, batch_size: int) -> None:
    tokenizer = prepare.Tokenizer.from_directory()
    began = time.perf_counter()
    fast = prepare.make_dataloader(tokenizer, batch_size, context, "train", "cpu")
    next(fast)
    start_up = time.perf_counter() - began
    pairs = zip(
        plain_batches(prepare, batch_size, context),
        prepare.make_dataloader(tokenizer, batch_size, context, "train", "cpu"),
        strict=False,
    )
    for plain_batch, fast_batch in islice(pairs, PLAIN_BATCHES):
        assert torch.equal(plain_batch[0], fast_batch[0])
        assert torch.equal(plain_batch[1], fast_batch[1])
    plain = plain_batches(prepare, batch_size, context)
    next(plain)
    rates = [
        (tokens_per_second(plain, PLAIN_BATCHES, context), tokens_per_second(fast, FAST_BATCHES, context))
        for _ in range(REPETITIONS)
    ]
    slow, quick = (statistics.median(column) for column in zip(*rates, strict=True))
    ratios = sorted(quick / slow for slow, quick in rates)
    print(
        f"context {context}, batch {batch_size}: plain loop {slow / 1e6:.2f} M tokens/s, loader {quick / 1e6:.1f} M "
        f"tokens/s, ratio {quick / slow:.0f} ({ratios[0]:.0f} to {ratios[-1]:.0f} in {REPETITIONS} repetitions); "
        f"first batch after {start_up * 1e3:.0f} ms; same rows"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        prepare = load_prepare(Path(directory))
        prepare.main()
        for context, batch_size in SHAPES:
            compare(prepare, context, batch_size)


if __name__ == "__main__":
    main()
