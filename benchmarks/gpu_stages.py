"""The stages of gpu.py: each measures one thing and prints a line `RESULT {...}` for every result.

    python benchmarks/gpu_stages.py STAGE [PRESET] [VARIANT ...]

Variants of the training step, for `gpu.py --try`: `regional` compiles each block once instead of the whole model,
`autotune` lets the compiler try kernels for every product, `stream32` keeps the residual stream in float32.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STEPS = 12  # of a contestant; the first three are not counted
TRIAL_SECONDS = 45  # budget of a trial on a GPU; on a CPU it is shorter
SANDBOXES = ("bubblewrap", "landlock", "none")


def say(**result: object) -> None:
    print("RESULT", json.dumps(result), flush=True)


def output(*words: str) -> str:
    """What a command prints, or why it cannot be run."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=30, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"


def is_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def lab_at(directory: Path, preset: str, budget: int | None = None, *, reference: bool = False) -> Path:
    """A lab of a preset on the offline corpus, prepared."""
    from autoresearch.lab import presets

    chosen = presets.presets()[preset]
    chosen = chosen.reference if reference else chosen
    presets.create(directory, dataclasses.replace(chosen, prepare={**chosen.prepare, "SOURCE": "stdlib"}), budget)
    subprocess.run([sys.executable, "prepare.py"], cwd=directory, check=True, stdout=sys.stderr)
    return directory


# ---------------------------------------------------------------- environment


def environment(preset: str, variants: list[str]) -> None:
    """Card, driver, versions, sandboxes, tools, and one compiled kernel."""
    import torch

    from autoresearch.executors import hardware
    from autoresearch.executors.sandbox import sandboxes

    found = hardware.device()
    say(what="device", result=str(found), memory_gb=round(found.memory_gb, 1), cpu=hardware.processor())
    triton = importlib.util.find_spec("triton") and importlib.import_module("triton").__version__
    say(what="versions", torch=torch.__version__, triton=triton, python=platform.python_version())
    if is_gpu():
        say(what="capability", result=list(torch.cuda.get_device_capability()))
        query = "--query-gpu=driver_version,compute_mode,clocks.sm,memory.total"
        say(what="driver", result=output("nvidia-smi", query, "--format=csv,noheader"))
    say(what="tools", **{name: shutil.which(name) for name in ("git", "gcc", "bwrap")})
    say(what="sandboxes", **{name: sandboxes.failure(name) or "works" for name in SANDBOXES})
    start = time.perf_counter()
    try:
        x = torch.zeros(8, device=found.kind)
        torch.compile(lambda x: x + 1)(x).sum().item()
        say(what="compiled kernel", result="works", seconds=round(time.perf_counter() - start, 1))
    except Exception as error:  # that is the result
        say(what="compiled kernel", result=f"{type(error).__name__}: {str(error).splitlines()[0]}")


# ---------------------------------------------------------------- attention


def attention(preset: str, variants: list[str]) -> None:
    """Every attention kernel that train.py could choose: right against float32, and how fast at the preset's shapes."""
    with tempfile.TemporaryDirectory() as directory:
        train, torch = imported(lab_at(Path(directory, "lab"), preset))
        device, length = train.detect_device(), train.MAX_SEQ_LEN
        dtype = train.pick_dtype(device)
        rows = min(train.DEVICE_BATCH_SIZE, 32)
        heads = train.model_width() // train.HEAD_DIM
        windows = sorted({length, length // 2, length // 8}, reverse=True)
        for factory in (*train.ATTENTIONS[device.type], train.masked_attention):
            for window in windows:
                row = {"what": f"{factory.__name__}, window {window}", "shape": [rows, length, heads, train.HEAD_DIM]}
                try:
                    attend = factory(length, (window,), device)
                    train.check_attention(attend, length, window, device, dtype)
                    q, k, v = (
                        torch.randn(rows, length, heads, train.HEAD_DIM, device=device, dtype=dtype, requires_grad=True)
                        for _ in range(3)
                    )
                    forward = timed(lambda: attend(q, k, v, window), train, device)  # noqa: B023
                    both = timed(lambda: attend(q, k, v, window).float().sum().backward(), train, device)  # noqa: B023
                    say(**row, forward_us=round(1e6 * forward), forward_backward_us=round(1e6 * both))
                except Exception as error:  # a kernel may fail in any way: that is the result
                    say(**row, result=f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")


def imported(files: Path) -> tuple[Any, Any]:
    """The train.py of a lab, and torch."""
    os.chdir(files)
    sys.path.insert(0, str(files))
    return importlib.import_module("train"), importlib.import_module("torch")


def timed(work: Callable[[], object], train: Any, device: Any) -> float:
    """Median seconds of some work, after warming up."""
    seconds = []
    for number in range(8):
        train.synchronize(device)
        start = time.perf_counter()
        work()
        train.synchronize(device)
        if number >= 2:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


# ---------------------------------------------------------------- training step


def step(preset: str, variants: list[str]) -> None:
    """train.py against the plain port, both compiled on a GPU, at the published recipe of the preset's sizes."""
    with tempfile.TemporaryDirectory() as directory:
        files = lab_at(Path(directory, "lab"), preset, reference=True)
        caches = {name: str(Path(directory, name.lower())) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
        settings = {**os.environ, **caches, "TORCHINDUCTOR_AUTOGRAD_CACHE_ALLOW_CUSTOM_AUTOGRAD": "1"}
        contestants = ["train.py cold", "train.py warm", "plain port", *variants]
        for contestant in contestants:
            command = [sys.executable, str(Path(__file__).resolve()), "contestant", str(files), contestant]
            done = subprocess.run(command, env=settings, stdout=subprocess.PIPE, text=True, check=False)
            print(done.stdout, end="", flush=True)
            if done.returncode:
                say(what=contestant, result=f"failed ({done.returncode})")


def contestant(files: Path, name: str) -> None:
    """Some steps of one contestant on random tokens: seconds to warm up, tokens/s, MFU, peak memory, losses.

    Losses agree for the first step only. The first gradient of x0_lambdas is rounding noise, of which AdamW makes a
    full step. Curves that agree within noise over several seeds are in train_step.py.
    """
    train, torch = imported(files)
    device, tokenizer = train.detect_device(), train.Tokenizer.from_directory()
    torch.manual_seed(train.SEED)
    torch.set_float32_matmul_precision("high")
    train.keep_freed_memory()
    if name == "stream32":
        train.FLOAT32_STREAM = True
    if name == "autotune":
        torch._inductor.config.max_autotune = True
    if name == "regional":
        train.can_compile = lambda device: False
    start = time.perf_counter()
    model, optimizers = train.build(device, tokenizer.get_vocab_size())
    if name == "plain port":
        model, optimizers = plain_port(train, model, tokenizer.get_vocab_size(), device)
    if name == "regional" and device.type == "cuda":
        for block in model.blocks:
            block.compile(dynamic=False)
    x, y = train.warmup_batch(train.DEVICE_BATCH_SIZE, device)
    passes = train.TOTAL_BATCH_SIZE // (train.DEVICE_BATCH_SIZE * train.MAX_SEQ_LEN)
    seconds, losses = list[float](), list[float]()
    for number in range(STEPS):
        begun = time.perf_counter()
        train.set_schedule(optimizers, 0.0, number)
        for _ in range(passes):
            with torch.autocast(device.type, torch.bfloat16, enabled=name == "plain port"):
                loss = model(x, y) / passes
            loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(passes * loss.item())
        train.synchronize(device)
        if number == 0:
            ready = time.perf_counter() - start
        elif number >= 3:
            seconds.append(time.perf_counter() - begun)
    usual = statistics.median(seconds)
    flops = train.flops_per_token(model, train.MAX_SEQ_LEN) if name != "plain port" else None
    say(
        what=name,
        ready_s=round(ready, 1),
        tokens_per_s=round(train.TOTAL_BATCH_SIZE / usual),
        mfu_percent=train.mfu_percent(model, train.TOTAL_BATCH_SIZE, usual, device) if flops else None,
        peak_memory_mb=round(train.peak_memory_mb(device)),
        losses=[round(loss, 4) for loss in losses],
        finite=all(map(math.isfinite, losses)),
    )


def plain_port(train: Any, model: Any, vocabulary: int, device: Any) -> tuple[Any, tuple[Any, ...]]:
    """The plain port with the weights of train.py's model, compiled on a GPU, and its optimizers."""
    import torch

    port = importlib.import_module("plain_port")
    plain = port.PlainGPT(train, vocabulary, train.MAX_SEQ_LEN).to(device)
    plain.load_state_dict(plain.state_dict() | {k: v for k, v in model.state_dict().items() if k in plain.state_dict()})
    adamw, _ = train.make_optimizers(plain, compiled=False)
    muon = port.PlainMuon(train, plain.blocks.parameters())
    return (torch.compile(plain, dynamic=False) if device.type == "cuda" else plain), (adamw, muon)


# ---------------------------------------------------------------- a real trial


def trial(preset: str, variants: list[str]) -> None:
    """A baseline and one trial in each sandbox: start-up cold and warm, clock, grading, memory left on the GPU."""
    from autoresearch.executors.sandbox import sandboxes, usage
    from autoresearch.ledger.ledger import Ledger

    budget = TRIAL_SECONDS if is_gpu() else 10
    for name in SANDBOXES:
        if why := sandboxes.failure(name):
            say(what=name, result=f"does not work here: {why}")
            continue
        with tempfile.TemporaryDirectory() as directory:
            lab = lab_at(Path(directory, "lab"), preset, budget)
            program = (lab / "program.md").read_text()
            program = program.replace("sandbox: auto ", f"sandbox: {name} ").replace(
                "judge: posterior", "judge: greedy"
            )
            (lab / "program.md").write_text(program)
            before = sum(usage.gpu_memory().values())
            command = [sys.executable, "-m", "autoresearch", "run", "--lab", str(lab), "--trials", "1"]
            done = subprocess.run([*command, "--researcher", "noop"], stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                say(what=name, result=f"failed ({done.returncode}): {done.stdout[-300:]}")
                continue
            campaign = Ledger(lab / ".autoresearch/ledger.jsonl").campaign()
            assert campaign is not None
            for number, each in enumerate(campaign.trials):
                run = each.runs[0]
                say(
                    what=f"{name}, {'cold' if number == 0 else 'warm'}",
                    val_bpb=round(run.score.val_bpb, 4) if run.score else None,
                    problem=run.invalid or (run.crash.detail[-200:] if run.crash else None),
                    startup_s=run.startup_seconds and round(run.startup_seconds, 1),
                    training_s=run.training_seconds and round(run.training_seconds, 2),
                    first_logits_s=run.first_logits_seconds and round(run.first_logits_seconds, 2),
                    wall_over_budget=round(run.wall_seconds / budget, 3),
                    environment=dict(run.environment),
                )
            left = sum(usage.gpu_memory().values()) - before
            say(what=f"{name}, GPU memory left", result=f"{left / 2**20:.0f} MiB")


# ---------------------------------------------------------------- grading, tests, the product


def grading(preset: str, variants: list[str]) -> None:
    """Trusted grading, through the GPU's memory on a GPU, against in-process evaluation."""
    command = [sys.executable, str(HERE / "grading.py"), "--preset", preset, "--pairs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).strip().splitlines()
    for line in said if done.returncode == 0 else said[-2:]:
        say(what="grading", result=line)


def tests(preset: str, variants: list[str]) -> None:
    """The tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", "-p", "no:cacheprovider", "-W", "default"]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith(("FAILED", "ERROR")):
            say(what="test", result=line)
    say(what="pytest -m gpu", result=(done.stdout.strip().splitlines() or ["no output"])[-1])


def product(preset: str, variants: list[str]) -> None:
    """What a user types: doctor, a lab with one trial, a sample, and doctor --fit."""
    with tempfile.TemporaryDirectory() as directory:
        lab = lab_at(Path(directory, "lab"), preset, 20 if is_gpu() else 5)
        program = (lab / "program.md").read_text().replace("judge: posterior", "judge: greedy")
        (lab / "program.md").write_text(program)
        for words in (
            ["doctor"],
            ["run", "--trials", "1"],
            ["sample", "Once upon a time", "--max-tokens", "20"],
            ["doctor", "--fit"],
        ):
            start = time.perf_counter()
            command = [sys.executable, "-m", "autoresearch", *words, "--lab", str(lab)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            said = (done.stdout + done.stderr).strip().splitlines()
            seconds = round(time.perf_counter() - start, 1)
            say(what=" ".join(words), exit_code=done.returncode, seconds=seconds, end=said[-2:])


STAGES: dict[str, Callable[[str, list[str]], None]] = {
    "environment": environment,
    "attention": attention,
    "step": step,
    "trial": trial,
    "grading": grading,
    "tests": tests,
    "product": product,
}


if __name__ == "__main__":
    if sys.argv[1] == "contestant":
        contestant(Path(sys.argv[2]), sys.argv[3])
    else:
        STAGES[sys.argv[1]](sys.argv[2] or ("h100" if is_gpu() else "cpu"), sys.argv[3:])
