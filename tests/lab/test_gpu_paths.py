"""What prepare.py and train.py do on a GPU, as far as a CPU can show it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import CPU, LENGTH, TINY, VOCAB, make_model, random_tokens, set_constants, train
from torch._dynamo.testing import CompileCounter

from lab_files import load, write_lab

CUDA = torch.device("cuda")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    set_constants(monkeypatch, **TINY, DEVICE_BATCH_SIZE=4, TOTAL_BATCH_SIZE=4 * LENGTH)
    monkeypatch.setattr(train, "MAX_SEQ_LEN", LENGTH)
    monkeypatch.setattr(train, "grading_rows", lambda batch: 2)
    monkeypatch.setattr(
        train, "warmup_batch", lambda rows, device: (random_tokens(rows), random_tokens(rows).roll(-1, 1))
    )


# ---- Attention


@pytest.mark.parametrize("window", [LENGTH, LENGTH // 2])
def test_flash_attention_calls_pytorchs_kernel_with_arguments_that_it_takes(window: int) -> None:
    """The meta device checks arguments, shapes and that there is a backward pass, and computes nothing."""
    attend = train.flash_attention_2(LENGTH, (window,), CPU)
    q, k, v = (torch.empty(2, LENGTH, 3, 64, device="meta", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    y = attend(q, k, v, window)
    y.sum().backward()
    assert y.shape == q.shape
    assert all(x.grad is not None and x.grad.shape == x.shape for x in (q, k, v))


def test_flash_attention_comes_before_what_needs_a_compiler() -> None:
    names = [factory.__name__ for factory in train.ATTENTIONS["cuda"]]
    assert names == ["flash_attention_3", "flash_attention_2", "flex_attention", "masked_attention"]


# ---- Types


@pytest.mark.parametrize(
    ("capability", "hip", "expected"),
    [((9, 0), None, torch.bfloat16), ((8, 0), None, torch.bfloat16), ((8, 6), None, torch.bfloat16)],
)
def test_bfloat16_is_chosen_by_capability_not_by_a_stopwatch(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], hip: str | None, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert train.pick_dtype(CUDA) == expected


@pytest.mark.parametrize(("half_seconds", "expected"), [(0.1, torch.float16), (1.0, torch.float32)])
def test_an_older_gpu_takes_float16_if_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, half_seconds: float, expected: torch.dtype
) -> None:
    now, used = [0.0], set()

    def product(a: torch.Tensor, b: torch.Tensor) -> None:
        used.add(a.dtype)
        now[0] += half_seconds if a.dtype == torch.float16 else 1.0

    ones = torch.ones
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch, "ones", lambda *size, device, dtype: ones(2, 2, dtype=dtype))
    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(train, "synchronize", lambda device: None)
    monkeypatch.setattr(train.time, "perf_counter", lambda: now[0])
    assert train.pick_dtype(CUDA) == expected
    assert used == {torch.float32, torch.float16}


@pytest.mark.usefixtures("tiny")
def test_float16_with_its_gradient_scaler_trains_like_float32() -> None:
    losses = {}
    for dtype in (torch.float32, torch.float16):
        model = make_model(dtype, shaken=False)
        optimizers = train.make_optimizers(model, compiled=False)
        scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
        batch = (random_tokens(4), random_tokens(4).roll(-1, 1), 1)
        found = []
        for step in range(12):
            train.set_schedule(optimizers, 0.0, step)
            loss, _ = train.accumulate_gradients(model, itertools.repeat(batch), batch, scaler)
            found.append(loss)
            for optimizer in optimizers:
                scaler.step(optimizer)
                optimizer.zero_grad(set_to_none=True)
            scaler.update()
        losses[dtype] = found
    assert losses[torch.float32][0] == pytest.approx(math.log(VOCAB), rel=0.01)
    assert losses[torch.float32][-1] < 0.8 * losses[torch.float32][0]
    assert losses[torch.float16] == pytest.approx(losses[torch.float32], rel=0.03)


def test_the_loss_is_the_same_with_and_without_a_scatter() -> None:
    drawn = torch.Generator().manual_seed(0)
    probability = torch.randn(5, 7, generator=drawn).softmax(-1)
    target = torch.randint(7, (5, 1), generator=drawn)
    for fused, plain in zip(
        train.split_off_target(probability.clone(), target, fused=True),
        train.split_off_target(probability.clone(), target, fused=False),
        strict=True,
    ):
        torch.testing.assert_close(fused, plain)


# ---- Compiling


def test_a_gpu_without_a_compiler_trains_eagerly_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_compiler(function: Any) -> Any:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(torch, "compile", no_compiler)
    assert train.can_compile(CUDA) is False
    assert "torch.compile does not work here (RuntimeError: Failed to find C compiler.)" in capsys.readouterr().out
    assert train.can_compile(CPU) is False


@pytest.mark.usefixtures("tiny")
@pytest.mark.filterwarnings("ignore")  # torch.compile's own
def test_nothing_is_compiled_for_grading_after_the_warm_up() -> None:
    counter = CompileCounter()
    model = make_model(shaken=False)
    model.compile(backend=counter, dynamic=False)
    train.warm_up(model, train.make_optimizers(model, compiled=False), CPU)
    compiled = counter.frame_count
    assert compiled >= 2  # training and grading
    with torch.inference_mode():
        model.eval()(random_tokens(train.grading_rows(4)))
    assert counter.frame_count == compiled


@pytest.mark.parametrize(
    ("batch", "rows"),
    [(4, 4), (16, 16), (64, 20)],  # a 16th of 320 validation rows
)
def test_grading_rows_bound_what_a_run_sees_at_once(tmp_path: Path, batch: int, rows: int) -> None:
    lab = load(
        write_lab(tmp_path / "lab", {"MAX_SEQ_LEN": 32, "VOCAB_SIZE": 300, "EVAL_TOKENS": 320 * 32}) / "prepare.py"
    )
    assert lab.grading_rows(batch) == rows


def test_the_logits_of_a_graded_batch_stay_below_a_gibibyte(tmp_path: Path) -> None:
    assert load(write_lab(tmp_path / "lab") / "prepare.py").grading_rows(128) == 16  # the h100's


# ---- The device


def test_a_run_that_finds_another_device_than_the_program_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.setenv("AUTORESEARCH_DEVICE", "cuda")
    lab = load(write_lab(tmp_path / "lab") / "prepare.py")
    with pytest.raises(
        SystemExit, match=r"found the device cuda, but this process finds only cpu \(.+: .+\): run `auto"
    ):
        lab.detect_device()
    monkeypatch.setenv("AUTORESEARCH_DEVICE", "cpu")
    assert load(write_lab(tmp_path / "lab") / "prepare.py").detect_device() == CPU


def test_kernel_and_type_are_in_the_first_batch_event(tmp_path: Path) -> None:
    lab = load(write_lab(tmp_path / "lab") / "prepare.py")
    lab.note(attention="banded_attention", dtype="torch.bfloat16", compiled=False)
    noted = lab.environment(CPU)
    assert noted["attention"] == "banded_attention"
    assert noted["compiled"] is False
    assert noted["device"].startswith("cpu: ")
