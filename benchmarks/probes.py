"""What the probes of grading find in honest models, and in models with a leak of one token.

python benchmarks/probes.py [RUNS]

Trains the shipped GPT at a small size on the CPU for some steps, in float32 and bfloat16 (and compiled, if that works),
honest or with one leak, and asks it for the probes' rows with RUNS (200) secret seeds. The honest one also answers with
noise on all its logits, with and without a little of the next token. Prints how many passed, and in nats the smallest
and largest mean of the drift of answers just before a splice (of repeats, the largest) and of the gain there.
"""

import importlib
import itertools
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoresearch.grading import probes
from autoresearch.lab import presets

LAB = {"MAX_SEQ_LEN": 128, "EVAL_TOKENS": "2**14", "SOURCE": "stdlib", "VOCAB_SIZE": 2048}
MODEL = {"DEPTH": 4, "ASPECT_RATIO": 32, "HEAD_DIM": 32, "TOTAL_BATCH_SIZE": 2048, "DEVICE_BATCH_SIZE": 16}
STEPS, BATCH = 60, 16
LEAKS = [
    None,
    *(f"attention {layer}" for layer in range(4)),
    "embedding",
    "value embedding 1",
    "value embedding 3",
    "head",
]
NOISES = [(0.005, 0.0), (0.015, 0.0), (0.015, 0.05), (0.015, 0.4)]  # of all logits; of the next token's


def ahead(x: torch.Tensor) -> torch.Tensor:
    """What each position must not see: the next one."""
    return torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)


def off_by_one(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> torch.Tensor:
    """Attention whose mask lets each token see the next one."""
    at = torch.arange(q.size(1))
    mask = (at[:, None] - at >= -1) & (at[:, None] - at <= window)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def put_in(model: Any, leak: str | None) -> None:
    place = re.sub(r" \d$", "", leak or "")
    if place == "attention":
        model.blocks[int(str(leak)[-1])].attention.attend = off_by_one
    parts = {"embedding": model.embedding, "head": model.blocks[-1]}
    part = model.value_embeddings[int(str(leak)[-1])] if place == "value embedding" else parts.get(place)
    if part is not None:
        part.register_forward_hook(lambda module, args, out: out + ahead(out))


def noisy(model: Any, noise: float, leak: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """A model that hides how much of the next token it puts into its answers."""

    def answer(x: torch.Tensor) -> torch.Tensor:
        logits = model(x).float()
        following = torch.nn.functional.one_hot(ahead(x), logits.size(-1))
        return torch.as_tensor(logits + noise * torch.randn_like(logits) + leak * following)

    return answer


def trained(prepare: Any, train: Any, dtype: torch.dtype, leak: str | None) -> Any:
    torch.manual_seed(0)
    cpu, length = torch.device("cpu"), prepare.MAX_SEQ_LEN
    attend = train.banded_attention(length, train.layer_windows(length), cpu)
    model = train.GPT(prepare.VOCAB_SIZE, length, attend, dtype)
    model.init_weights()
    put_in(model, leak)
    optimizers = train.make_optimizers(model, compiled=False)
    loader = prepare.make_dataloader(prepare.Tokenizer.from_directory(), BATCH, length, "train", cpu)
    for step, (x, y, _) in enumerate(itertools.islice(loader, STEPS)):
        train.set_schedule(optimizers, step / STEPS, step)
        model(x, y).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return model.eval()


def probe(model: Callable[[torch.Tensor], torch.Tensor], rows: np.ndarray[Any, Any], seed: int) -> probes.Comparison:
    """Ask only for the probes and their originals, in batches of one shape."""
    plan = probes.plan(rows, np.random.default_rng(seed))
    comparison = probes.Comparison(plan, np.ones(rows.shape, bool))
    wanted = [row for row in plan.order.tolist() if row in comparison.rows]
    for number, start in enumerate(range(0, len(wanted), BATCH)):
        batch = wanted[start : start + BATCH]
        logits = model(torch.from_numpy(plan.asked[np.resize(batch, BATCH)]))
        for row, answer in zip(batch, logits, strict=False):
            comparison.hear(row, number, answer)
    return comparison


def score(model: Callable[[torch.Tensor], torch.Tensor], rows: np.ndarray[Any, Any]) -> float:
    """Nats per token over all rows."""
    batches = np.split(rows.astype(np.int64), range(BATCH, len(rows), BATCH))
    answers = [model(torch.from_numpy(batch[:, :-1])).float().flatten(0, 1) for batch in batches]
    return float(
        torch.nn.functional.cross_entropy(torch.cat(answers), torch.from_numpy(np.concatenate(batches)[:, 1:].ravel()))
    )


@torch.inference_mode()
def report(name: str, model: Any, rows: np.ndarray[Any, Any], runs: int) -> None:
    nats, passed, means = score(model, rows), 0, list[list[float]]()
    for seed in range(runs):
        found = probe(model, rows, seed)
        passed += found.failure("float32", nats) is None
        near, repeated = ([far for far, _ in found.drifts[kind]] for kind in ("1 before", "repeated"))
        means.append([float(np.mean(each)) for each in (near, repeated, found.gains["1 before"])])
    (least, _, worst), (most, repeated_most, best) = np.min(means, axis=0), np.max(means, axis=0)
    drifts = f"{least:.1e} to {most:.1e} | {repeated_most:.1e} | {worst:.1e} to {best:.1e}"
    print(f"| {name} | {passed} of {runs} | {drifts} |", flush=True)


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as directory:
        for name, constants in (("prepare.py", LAB), ("train.py", MODEL)):
            text = (presets.SHIPPED / name).read_text(encoding="utf-8")
            Path(directory, name).write_text(presets.fill(text, constants), encoding="utf-8")
        sys.path.insert(0, directory)
        prepare, train = (importlib.import_module(name) for name in ("prepare", "train"))
        prepare.main()
        count = prepare.EVAL_TOKENS // prepare.MAX_SEQ_LEN
        rows = np.stack(list(itertools.islice(prepare.pack_epoch("val", 1, prepare.MAX_SEQ_LEN + 1), count)))
        print("| model | passed | mean drift before a splice | of repeats | mean gain |\n|---|---|---|---|---|")
        for dtype, leak in itertools.product((torch.float32, torch.bfloat16), LEAKS):
            model = trained(prepare, train, dtype, leak)
            report(f"{str(dtype)[6:]}, {leak or 'honest'}", model, rows, runs if leak is None else max(1, runs // 20))
            if leak is None:
                report(f"{str(dtype)[6:]}, honest, compiled", torch.compile(model, dynamic=False), rows, runs)
            if leak is None and dtype is torch.float32:
                for noise, more in NOISES:
                    name = f"float32, noise {noise}, {more} more for the next token"
                    report(name, noisy(model, noise, more), rows, runs if more == 0 else max(1, runs // 20))


if __name__ == "__main__":
    main()
