"""The packing loader of the lab's prepare.py, against documents that are known one by one."""

import importlib.util
import json
import time
from itertools import islice, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from lab_files import load, write_lab
from texts import documents, write_jsonl

CONTEXT = 48


def load_lab(root: Path, seed: int) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTORESEARCH_CACHE", str(root / "cache"))
        patch.setenv("AUTORESEARCH_SEED", str(seed))
        return load(root / "lab" / "prepare.py")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loader")
    source = write_jsonl(path / "texts.jsonl", documents(900, seed=5))
    settings = {"SOURCE": f"files:{source}", "VOCAB_SIZE": 400, "MAX_SEQ_LEN": CONTEXT, "PACKING_BUFFER": 50}
    write_lab(path / "lab", prepare=settings)
    return path


@pytest.fixture(scope="module")
def lab(root: Path) -> ModuleType:
    module = load_lab(root, seed=1)
    module.main()
    return module


def batches(module: ModuleType, count: int, split: str = "train", size: int = 4) -> list[Any]:
    loader = module.make_dataloader(module.Tokenizer.from_directory(), size, CONTEXT, split, "cpu")
    return list(islice(loader, count))


def stored(module: ModuleType, split: str) -> list[tuple[int, ...]]:
    tokens = np.load(module.DATA / f"{split}.npy")
    offsets = np.load(module.DATA / f"{split}_offsets.npy").tolist()
    return [tuple(tokens[a:b].tolist()) for a, b in pairwise(offsets)]


def parts(row: list[int], bos: int) -> list[tuple[int, ...]]:
    """A row cut at its document starts."""
    starts = [i for i, token in enumerate(row) if token == bos]
    return [tuple(row[a:b]) for a, b in zip(starts, [*starts[1:], len(row)], strict=True)]


@pytest.mark.parametrize("split", ["train", "val", "holdout"])
def test_packing_loses_no_document_but_the_cropped_tails(lab: ModuleType, split: str) -> None:
    bos = lab.Tokenizer.from_directory().get_bos_token_id()
    waiting, cropped = stored(lab, split), []
    for row in lab.pack_epoch(split, 1, CONTEXT + 1):
        assert row.shape == (CONTEXT + 1,)
        assert row[0] == bos
        for piece in parts(row.tolist(), bos):
            if piece in waiting:
                waiting.remove(piece)
            else:
                cropped.append((piece, row.tolist()))
    assert all(tuple(row[-len(piece) :]) == piece for piece, row in cropped)  # the last of its row
    for piece, _ in sorted(cropped, key=lambda pair: -len(pair[0])):
        waiting.remove(next(text for text in waiting if text[: len(piece)] == piece))
    assert sum(map(len, waiting)) <= CONTEXT  # no more than the last row, which did not get full
    assert cropped


def test_a_row_takes_the_longest_document_that_fits_and_crops_the_shortest(lab: ModuleType) -> None:
    texts = stored(lab, "val")
    buffer, queue = texts[:50], texts[50:]
    for row in lab.pack_epoch("val", 1, CONTEXT + 1):
        expected: list[int] = []
        while (room := CONTEXT + 1 - len(expected)) > 0:
            lengths = sorted(len(text) for text in buffer)
            length = max((n for n in lengths if n <= room), default=lengths[0])
            rest = tuple(row.tolist()[len(expected) :])
            text = next(t for t in buffer if len(t) == length and t[:room] == rest[: min(length, room)])
            buffer.remove(text)
            buffer += [queue.pop(0)] if queue else []
            expected += text[:room]
        assert expected == row.tolist()


def test_y_is_x_one_token_on_and_both_are_int64(lab: ModuleType) -> None:
    bos = lab.Tokenizer.from_directory().get_bos_token_id()
    for x, y, epoch in batches(lab, 20):
        assert x.shape == y.shape == (4, CONTEXT)
        assert x.dtype == y.dtype == torch.int64
        assert torch.equal(x[:, 1:], y[:, :-1])
        assert (x[:, 0] == bos).all()
        assert epoch >= 1


def test_batches_are_not_overwritten_by_later_ones(lab: ModuleType) -> None:
    drawn = batches(lab, 6)
    again = batches(lab, 6)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(drawn, again, strict=True))
    assert not torch.equal(drawn[0][0], drawn[2][0])


def test_the_seed_decides_the_order_of_train_alone(lab: ModuleType, root: Path) -> None:
    same, other = load_lab(root, seed=1), load_lab(root, seed=2)
    first = {module: batches(module, 3)[2][0] for module in (lab, same, other)}
    assert torch.equal(first[lab], first[same])
    assert not torch.equal(first[lab], first[other])
    for split in ("val", "holdout"):
        assert torch.equal(batches(lab, 1, split)[0][0], batches(other, 1, split)[0][0])


def test_the_loader_never_ends_counts_epochs_and_shuffles_each_anew(lab: ModuleType) -> None:
    rows = [len(list(lab.pack_epoch("train", epoch, CONTEXT + 1))) for epoch in (1, 2)]
    drawn = batches(lab, sum(rows) + 1, size=1)
    assert [epoch for _, _, epoch in drawn] == [1] * rows[0] + [2] * rows[1] + [3]
    assert not torch.equal(drawn[0][0], drawn[rows[0]][0])


def test_batch_size_does_not_change_the_rows(lab: ModuleType) -> None:
    ones = torch.cat([x for x, _, _ in batches(lab, 12, size=1)])
    threes = torch.cat([x for x, _, _ in batches(lab, 4, size=3)])
    assert torch.equal(ones, threes)


def test_a_split_smaller_than_a_row_says_so(lab: ModuleType) -> None:
    loader = lab.make_dataloader(lab.Tokenizer.from_directory(), 1, 10**6, "val", "cpu")
    with pytest.raises(SystemExit, match="does not fill one row"):
        next(loader)


def test_warmup_batches_use_neither_data_nor_the_global_random_state(root: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTORESEARCH_CACHE", str(tmp_path))  # where nothing is prepared
        module = load(root / "lab" / "prepare.py")
    state = torch.random.get_rng_state()
    x, y = module.warmup_batch(3, "cpu")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert x.shape == y.shape == (3, CONTEXT)
    assert 0 <= x.min() <= x.max() < 400
    assert list(tmp_path.iterdir()) == []


def test_metrics_cost_little(lab: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "RUN_DIR", str(tmp_path))
    times = []
    for step in range(200):
        began = time.perf_counter()
        lab.log_metrics(step=step, progress=0.5, loss=1.0, lr=1.0, tokens_per_second=1e5)
        times.append(time.perf_counter() - began)
    assert sorted(times)[100] < 500e-6  # 50 us on a quiet machine
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(200))


def test_the_plain_loop_of_the_benchmark_gives_the_same_rows(lab: ModuleType) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "loader.py"
    spec = importlib.util.spec_from_file_location("loader_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    plain = benchmark.plain_batches(lab, 4, CONTEXT)
    fast = lab.make_dataloader(lab.Tokenizer.from_directory(), 4, CONTEXT, "train", "cpu")
    for (x, y), (fast_x, fast_y, _) in islice(zip(plain, fast, strict=False), 30):
        assert torch.equal(x, fast_x)
        assert torch.equal(y, fast_y)


@pytest.mark.gpu
def test_pinned_buffers_are_not_refilled_while_their_copy_is_queued(lab: ModuleType) -> None:
    device = torch.device("cuda")
    torch.cuda._sleep(2_000_000_000)  # type: ignore[no-untyped-call]  # copies stay queued behind this
    tokenizer = lab.Tokenizer.from_directory()
    drawn = [(x, y) for x, y, _ in islice(lab.make_dataloader(tokenizer, 4, CONTEXT, "train", device), 8)]
    torch.cuda.synchronize()
    for (x, y), (cpu_x, cpu_y, _) in zip(drawn, batches(lab, 8), strict=True):
        assert torch.equal(x.cpu(), cpu_x)
        assert torch.equal(y.cpu(), cpu_y)
