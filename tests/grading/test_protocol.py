"""The run's side of the protocol: messages, the lent training data, and an evaluation that the parent computes."""

from __future__ import annotations

import ast
import json
import math
import os
import socket
import struct
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

import grading_lab
from autoresearch.grading import protocol
from autoresearch.grading.clock import first_answer_seconds, training_seconds
from grading_lab import CONTEXT, VOCABULARY, GradingLab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> GradingLab:
    return grading_lab.make(tmp_path_factory.mktemp("trial"))


def test_it_stands_alone() -> None:
    """A run may have another Python environment, where this package is not."""
    tree = ast.parse(Path(protocol.__file__).read_text())
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in top if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= {*sys.stdlib_module_names, "__future__"}
    inner = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names} - names
    assert inner <= {"numpy", "torch"}


# ---- messages


def test_messages_and_descriptors_come_through(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("lent")
    left, right = socket.socketpair()
    with left, right, (tmp_path / "file").open("rb") as file:
        protocol.send(left, {"ask": "ø" * 5_000}, [file.fileno()])
        protocol.send(left, {"second": 2})
        message, descriptors = protocol.receive(right, 1)
        assert message == {"ask": "ø" * 5_000}
        assert os.read(descriptors[0], 10) == b"lent"
        os.close(descriptors[0])
        assert protocol.receive(right) == ({"second": 2}, [])


def test_descriptors_that_nobody_waits_for_are_not_taken(tmp_path: Path) -> None:
    left, right = socket.socketpair()
    with left, right:
        before = len(os.listdir("/proc/self/fd"))
        protocol.send(left, {"a": 1}, [left.fileno()])
        assert protocol.receive(right) == ({"a": 1}, [])
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", 2**31),
        struct.pack(">I", 2**20 + 1),
        struct.pack(">I", 3) + b"[1]",
        struct.pack(">I", 4) + b"nope",
        struct.pack(">I", 2) + b"\xff\xfe",
        struct.pack(">I", 0),
        struct.pack(">I", 200_000) + b"[" * 200_000,
        struct.pack(">I", 200_002) + b'{"a":' + b"9" * 199_996 + b"}",
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    left, right = socket.socketpair()
    with left, right:
        left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
        left.sendall(data)
        with pytest.raises(protocol.ProtocolError):
            protocol.receive(right)


def test_a_message_that_breaks_off_is_an_end() -> None:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(struct.pack(">I", 100) + b"{")
        left.close()
        with pytest.raises(EOFError):
            protocol.receive(right)


# ---- precision


def test_shifted_logits_have_the_same_probabilities_and_are_never_infinite() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(512, 300, generator=generator) * 5
    logits[0], logits[1, 0], logits[2, 0] = 1e6, 1e6, -1e30
    travelled = protocol.shifted(logits)
    assert travelled.dtype == torch.float16
    assert torch.isfinite(travelled).all()
    difference = (travelled.float().log_softmax(-1) - logits.log_softmax(-1))[3:]
    assert difference.abs().max() < 0.02
    assert abs(difference.mean()) < 2e-4


@pytest.mark.parametrize("positions", [2**13, pytest.param(2**17, marks=pytest.mark.slow)])
def test_shifted_logits_change_a_score_by_less_than_a_hundred_thousandth(positions: int) -> None:
    """As a trained model's: sure of some tokens and not of others, with entropies of 0 to 9 nats."""
    random, vocabulary, bytes_of_a_token = torch.Generator().manual_seed(0), 8192, 3
    entropies, change = [], 0.0
    for _ in range(positions // 2048):
        sharpness = 2 + 5 * torch.rand(2048, 1, generator=random)
        logits = torch.randn(2048, vocabulary, generator=random) * sharpness + 3
        probabilities = logits.softmax(-1)
        entropies.append(-(probabilities * probabilities.log2()).nansum(-1) * math.log(2))
        targets = torch.multinomial(probabilities, 1, generator=random)[:, 0]
        exact, travelled = (
            torch.nn.functional.cross_entropy(given, targets, reduction="none").double()
            for given in (logits, protocol.shifted(logits).float())
        )
        change += float((travelled - exact).sum())
    low, high = torch.cat(entropies).quantile(torch.tensor([0.05, 0.95])).tolist()
    assert low < 1
    assert high > 6
    assert abs(change) / (positions * bytes_of_a_token * math.log(2)) < 1e-5


def test_what_the_model_gave_travels_bit_for_bit_on_a_cpu() -> None:
    for given, expected in (
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32),
        (torch.float64, torch.float32),
    ):
        assert protocol.travelling_dtype(torch.zeros(1, dtype=given)) == expected


# ---- a run


def test_the_training_tokens_are_lent_once_and_are_those_of_the_files(lab: GradingLab, tmp_path: Path) -> None:
    ran = lab.run(
        tmp_path,
        """
first = [next(loader)[0] for _ in range(3)]
again = prepare.make_dataloader(tokenizer, 4, 32, "train", "cpu")
assert all(torch.equal(next(again)[0], batch) for batch in first)
try:
    trial.train_data()[0][:1] = 0
except ValueError as error:
    print("read-only", error)
torch.save(torch.cat(first), "../batches.pt")
evaluate(model)
""",
    )
    assert ran.score
    assert ran.session.train_requests == 1
    assert "read-only" in ran.result.log_tail
    loader = lab.module.make_dataloader(lab.module.Tokenizer.from_directory(), 4, grading_lab.CONTEXT, "train", "cpu")
    assert torch.equal(torch.load(tmp_path / "batches.pt"), torch.cat([next(loader)[0] for _ in range(3)]))


@pytest.mark.parametrize(
    "script",
    [
        'next(prepare.make_dataloader(tokenizer, 4, 32, "val", "cpu"))',
        'next(prepare.make_dataloader(tokenizer, 4, 32, "holdout", "cpu"))',
        'next(prepare.pack_epoch("val", 1, 33))',
        'prepare.prepared_file("holdout.npy")',
    ],
)
def test_the_scored_splits_are_not_there_in_a_trial(lab: GradingLab, tmp_path: Path, script: str) -> None:
    ran = lab.run(tmp_path, script)
    assert ran.result.exit_code == 1
    last = ran.result.log_tail.strip().splitlines()
    assert last[-1].endswith("is not there in a trial: only make_dataloader gives tokens, and only of train")
    assert "Traceback" not in ran.result.log_tail


def test_the_checkpoint_is_whole_before_the_first_row_is_sent(lab: GradingLab, tmp_path: Path) -> None:
    script = """
class Stops(Bigram):
    def forward(self, x):
        os._exit(3)
next(loader)
evaluate(Stops())
"""
    ran = lab.run(tmp_path, script)
    assert ran.result.exit_code == 3
    saved = safetensors.torch.load_file(tmp_path / protocol.CHECKPOINT)
    assert saved["table"].shape == (300, 300)


def test_saving_the_checkpoint_is_no_training(lab: GradingLab, tmp_path: Path) -> None:
    script = """
saved = prepare.safetensors.torch.save_file
def save(*given):
    time.sleep(1)
    saved(*given)
prepare.safetensors.torch.save_file = save
next(loader)
evaluate(model)
"""
    ran = lab.run(tmp_path, script)
    clock = ran.session.clock(ran.result)
    assert training_seconds(clock) is not None
    assert (training_seconds(clock) or 0) < 0.9
    assert (first_answer_seconds(clock) or 0) > 1


def test_a_lab_that_saves_before_it_asks_for_grading_is_graded_too(lab: GradingLab, tmp_path: Path) -> None:
    """As those did that were made by the first version."""
    ran = lab.run(tmp_path, f"next(loader)\ntrial.evaluate(model, torch.device('cpu'), 8, {CONTEXT}, {VOCABULARY})")
    assert ran.score


@pytest.mark.parametrize(
    "error",
    [
        'torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")',
        'RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")',
        'RuntimeError("[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can\'t allocate memory")',
        "MemoryError()",
    ],
)
def test_each_kind_of_too_little_memory_is_answered_with_smaller_batches(
    lab: GradingLab, tmp_path: Path, error: str
) -> None:
    script = f"""
class Hungry(Bigram):
    def forward(self, x):
        if len(x) > 3:
            raise {error}
        return super().forward(x)
next(loader)
evaluate(Hungry())
"""
    assert lab.run(tmp_path, script).score


def test_another_error_while_grading_ends_the_run(lab: GradingLab, tmp_path: Path) -> None:
    script = """
class Broken(Bigram):
    def forward(self, x):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
next(loader)
evaluate(Broken())
"""
    ran = lab.run(tmp_path, script)
    assert ran.result.exit_code == 1
    assert "illegal memory access" in ran.result.log_tail


def test_a_refusal_is_told_to_the_run_in_one_sentence(lab: GradingLab, tmp_path: Path) -> None:
    ran = lab.run(tmp_path, "evaluate(model)")
    assert ran.reason == "it never drew a training batch"
    assert ran.result.log_tail.strip().splitlines()[-1] == "this run is not graded: it never drew a training batch"


def test_the_mode_of_the_model_is_restored_and_it_may_be_compiled(lab: GradingLab, tmp_path: Path) -> None:
    ran = lab.run(
        tmp_path,
        """
next(loader)
model.train()
compiled = torch.compile(model, backend="eager", dynamic=False)
evaluate(compiled)
print(json.dumps({"training": model.training}))
""",
    )
    assert ran.score
    assert json.loads(ran.result.log_tail.strip().splitlines()[-1]) == {"training": True}
