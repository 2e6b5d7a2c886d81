"""Train one GPT for TIME_BUDGET seconds on one device and print its val_bpb. This is the file the researcher edits.

Model, optimizer, schedule and loop are all fair game. Data, time budget and metric are in prepare.py and stay fixed.

In this order: configuration, model, optimizer, schedule, training. Then what is there for speed alone: faster forms of
the norm and the loss, attention kernels, and what each device needs. Then main().
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import importlib.util
import math
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # before torch, which reads it

import numpy as np
import psutil
import torch
import torch.nn.functional as F  # noqa: N812
from prepare import (
    MAX_SEQ_LEN,
    SEED,
    TIME_BUDGET,
    Tokenizer,
    detect_device,
    evaluate_bpb,
    grading_rows,
    log_metrics,
    make_dataloader,
    note,
    warmup_batch,
)
from torch import Tensor, nn

# ---- Configuration. A preset replaces these values; they are the published recipe for one H100 ---------------------

# Model
DEPTH = 8  # number of layers; the width follows from it
ASPECT_RATIO = 64  # width = DEPTH * ASPECT_RATIO, rounded up to a multiple of HEAD_DIM
HEAD_DIM = 128  # channels of one attention head
MLP_RATIO = 4  # hidden channels of the MLP, per channel of the model
WINDOW_PATTERN = "SSSL"  # attention by layer, repeated: L = full context, S = short window; the last layer is always L
SHORT_WINDOW_DIVISOR = 2  # a short window reaches back MAX_SEQ_LEN // SHORT_WINDOW_DIVISOR tokens
ROPE_BASE = 10_000.0  # base of the rotary frequencies
QK_SCALE = 1.0  # factor on queries and keys after their norm; above 1 sharpens attention
SOFTCAP = 15.0  # tanh squashes the logits into (-SOFTCAP, SOFTCAP)
VALUE_EMBEDDING_EVERY = 2  # value embedding on every n-th layer, counted back from the last; 0 for none
VALUE_GATE_CHANNELS = 32  # input channels that control the gate of a layer's value embedding
RESID_LAMBDA = 1.0  # initial weight of the residual stream before each block
X0_LAMBDA = 0.1  # initial weight of the first embedding, mixed in before each block
FLOAT32_STREAM = False  # keep the residual stream in float32 when everything else is bfloat16

# Initialization
EMBEDDING_INIT_STD = 1.0  # token embedding, normal
HEAD_INIT_STD = 0.001  # output head, normal; small, so that the first loss is ln(vocabulary)
INIT_SCALE = 1.0  # matrices and value embeddings, uniform with standard deviation INIT_SCALE / sqrt(width)

# Optimization
TOTAL_BATCH_SIZE = 2**19  # tokens per optimizer step
DEVICE_BATCH_SIZE = 128  # rows per forward and backward pass; lower it if you run out of memory
EMBEDDING_LR = 0.6  # AdamW, token and value embeddings
UNEMBEDDING_LR = 0.004  # AdamW, output head
MATRIX_LR = 0.04  # Muon, all matrices of the blocks
SCALAR_LR = 0.5  # AdamW, x0 lambdas
RESID_LR_RATIO = 0.01  # residual lambdas learn at SCALAR_LR * RESID_LR_RATIO
LR_REFERENCE_DIM = 768  # learning rates of embeddings and head are scaled by (width / LR_REFERENCE_DIM)^-0.5
WEIGHT_DECAY = 0.2  # Muon, cautious, decays linearly to 0
EMBEDDING_WEIGHT_DECAY = 0.0  # AdamW, token embedding
VALUE_EMBEDDING_WEIGHT_DECAY = 0.0  # AdamW, value embeddings
UNEMBEDDING_WEIGHT_DECAY = 0.0  # AdamW, output head
ADAM_BETAS = (0.8, 0.95)  # decay rates of the first and second moment
X0_BETAS = (0.96, 0.95)  # the same for the x0 lambdas
ADAM_EPS = 1e-10  # added to the square root of the second moment
MUON_MOMENTUM = 0.95  # Nesterov momentum
MUON_MOMENTUM_START = 0.85  # momentum at the first step
MUON_MOMENTUM_STEPS = 300  # steps from MUON_MOMENTUM_START to MUON_MOMENTUM
MUON_BETA2 = 0.95  # decay rate of Muon's second moment
POLAR_STEPS = 5  # Polar Express iterations, at most 5

# Schedule, by progress = elapsed time / TIME_BUDGET
WARMUP_RATIO = 0.0  # share of the budget in which the learning rate rises from 0
WARMDOWN_RATIO = 0.5  # share of the budget, at the end, in which it falls
FINAL_LR_FRAC = 0.0  # where it ends, as a share of the full learning rate

# Running
MAX_LOSS = 100.0  # a loss above this, or NaN, ends the run immediately
LOG_INTERVAL = 0.5  # minimum seconds between log lines

# ---- Model ---------------------------------------------------------------------------------------------------------


def model_width() -> int:
    """Channels of the residual stream: DEPTH * ASPECT_RATIO, rounded up to whole heads."""
    return math.ceil(DEPTH * ASPECT_RATIO / HEAD_DIM) * HEAD_DIM


def layer_windows(seq_len: int) -> tuple[int, ...]:
    """How many earlier tokens each layer attends to. The last layer always sees the whole context."""
    spans = {"L": seq_len, "S": seq_len // SHORT_WINDOW_DIVISOR}
    letters = [WINDOW_PATTERN[layer % len(WINDOW_PATTERN)] for layer in range(DEPTH - 1)]
    return tuple(spans[letter] for letter in (*letters, "L"))


def has_value_embedding(layer: int) -> bool:
    return VALUE_EMBEDDING_EVERY > 0 and (DEPTH - 1 - layer) % VALUE_EMBEDDING_EVERY == 0


def norm(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """RMSNorm over the last dimension, without weights; the result is in `dtype`, by default x's own.

    Plain form: F.rms_norm(x, (x.size(-1),)).to(dtype). FastNorm takes a third of that time on a CPU.
    """
    y: Tensor = FastNorm.apply(x, dtype or x.dtype)  # type: ignore[no-untyped-call]
    return y


def rotary_table(seq_len: int) -> Tensor:
    """(2, 1, seq_len, 1, HEAD_DIM) float32: the factors of a channel, and of its partner half a head away."""
    frequency = ROPE_BASE ** -(torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
    angle = torch.arange(seq_len, dtype=torch.float64)[None, :, None, None] * frequency
    cos = torch.cat((angle.cos(), angle.cos()), -1)
    sin = torch.cat((-angle.sin(), angle.sin()), -1)
    return torch.stack((cos, sin)).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (B, T, H, D): channels i and i + D/2 form a pair that is rotated by the position."""
    partner = x.roll(x.size(-1) // 2, -1)
    return torch.addcmul(x * cos, partner, sin)


class Linear(nn.Linear):
    """A linear map without bias. Its weight is float32 and is cast to the input's type, like autocast does."""

    __call__: Callable[..., Tensor]

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class SelfAttention(nn.Module):
    """Causal self-attention with rotary positions, normed queries and keys, and a gated value embedding."""

    def __init__(self, dim: int, window: int, attend: Attention, *, gated: bool) -> None:
        super().__init__()
        self.window = window
        self.attend = attend
        self.query = Linear(dim, dim)
        self.key = Linear(dim, dim)
        self.value = Linear(dim, dim)
        self.project = Linear(dim, dim)
        self.gate = Linear(VALUE_GATE_CHANNELS, dim // HEAD_DIM) if gated else None

    def forward(self, x: Tensor, embedded: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
        """x (B, T, dim), the layer's value embedding (B, T, dim) or None -> (B, T, dim)."""
        heads = (*x.shape[:2], -1, HEAD_DIM)
        q = self.query(x).view(heads)
        k = self.key(x).view(heads)
        v = self.value(x).view(heads)
        if self.gate is not None and embedded is not None:
            gate = 2 * torch.sigmoid(self.gate(x[..., :VALUE_GATE_CHANNELS]))
            v = v + gate[..., None] * embedded.view(heads)
        q = norm(rotate(q, cos, sin))
        k = norm(rotate(k, cos, sin))
        return self.project(self.attend(q, k, v, self.window).reshape(x.shape))


class MLP(nn.Module):
    """Two linear maps with a squared ReLU between them."""

    __call__: Callable[..., Tensor]

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.expand = Linear(dim, MLP_RATIO * dim)
        self.project = Linear(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.relu(self.expand(x)).square())


class Block(nn.Module):
    """Attention, then MLP. Each reads the normed residual stream and adds to it."""

    def __init__(self, dim: int, window: int, attend: Attention, *, gated: bool) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, window, attend, gated=gated)
        self.mlp = MLP(dim)

    def forward(self, x: Tensor, embedded: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(norm(x, cos.dtype), embedded, cos, sin)
        return x + self.mlp(norm(x, cos.dtype))


class GPT(nn.Module):
    """The language model. Weights are float32; activations are `dtype`, except the stream if FLOAT32_STREAM."""

    def __init__(self, vocab_size: int, seq_len: int, attend: Attention, dtype: torch.dtype) -> None:
        super().__init__()
        dim = model_width()
        windows = layer_windows(seq_len)
        gated = [has_value_embedding(layer) for layer in range(DEPTH)]
        self.dtype = dtype
        self.embedding = nn.Embedding(vocab_size, dim)
        self.value_embeddings = nn.ModuleList(nn.Embedding(vocab_size, dim) if g else nn.Identity() for g in gated)
        self.blocks = nn.ModuleList(Block(dim, w, attend, gated=g) for w, g in zip(windows, gated, strict=True))
        self.resid_lambdas = nn.Parameter(torch.empty(DEPTH))
        self.x0_lambdas = nn.Parameter(torch.empty(DEPTH))
        self.head = Linear(dim, vocab_size)
        self.rotary: Tensor
        self.register_buffer("rotary", rotary_table(seq_len), persistent=False)

    def init_weights(self) -> None:
        """Draw all weights from the global random state. Output projections of a block and gates start at 0."""
        bound = INIT_SCALE * math.sqrt(3 / model_width())  # a uniform distribution ends at sqrt(3) deviations
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_INIT_STD)
        nn.init.normal_(self.head.weight, std=HEAD_INIT_STD)
        nn.init.constant_(self.resid_lambdas, RESID_LAMBDA)
        nn.init.constant_(self.x0_lambdas, X0_LAMBDA)
        for name, weight in (*self.blocks.named_parameters(), *self.value_embeddings.named_parameters()):
            start = 0.0 if name.endswith(("project.weight", "gate.weight")) else bound
            nn.init.uniform_(weight, -start, start)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Tokens (B, T) -> float32 logits (B, T, V). With targets (B, T): their mean cross entropy in nats."""
        cos, sin = self.rotary[:, :, : idx.size(1)].to(self.dtype)
        x = x0 = norm(self.embedding(idx).to(torch.float32 if FLOAT32_STREAM else self.dtype))
        for layer, (block, table) in enumerate(zip(self.blocks, self.value_embeddings, strict=True)):
            x = self.resid_lambdas[layer] * x + self.x0_lambdas[layer] * x0
            embedded = table(idx).to(self.dtype) if has_value_embedding(layer) else None
            x = block(x, embedded, cos, sin)
        x = norm(x)
        x = x.to(self.dtype).flatten(0, 1)
        # Logits are computed in chunks: 4 MB of float32 fit a CPU's cache, 1 GB feeds a GPU better.
        chunk = 2 ** (20 if x.device.type == "cpu" else 28) // self.head.out_features
        if targets is None:
            return torch.cat([soft_cap(self.head(z).float()) for z in torch.split(x, chunk)]).view(*idx.shape, -1)
        # Plain form: F.cross_entropy(soft_cap(self.head(x).float()), targets.flatten())
        loss: Tensor = HeadLoss.apply(x, self.head.weight, targets.flatten(), chunk)  # type: ignore
        return loss


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def flops_per_token(model: GPT, seq_len: int) -> int:
    """Forward and backward, counted as in PaLM (arXiv 2204.02311): lookups are free, attention is not halved."""
    weights = count_parameters(model.blocks) + count_parameters(model.head)
    return 6 * weights + 12 * model_width() * sum(layer_windows(seq_len))


# ---- Optimizer: Muon for the matrices of the blocks, AdamW for everything else -------------------------------------

# Polar Express (arXiv 2505.16932): one polynomial per iteration, for singular values from 0.001 to 1, with a margin of
# 2 % for bfloat16 rounding. An iteration is X -> aX + b(XX')X + c(XX')(XX')X.
POLAR_COEFFICIENTS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def polar_express(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, rows, cols) -> the same shape with all singular values brought close to 1, computed in `dtype`."""
    if matrices.size(-2) > matrices.size(-1):
        return polar_express(matrices.transpose(-2, -1), dtype).transpose(-2, -1)
    x: Tensor = (matrices / (matrices.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)).to(dtype)
    for a, b, c in POLAR_COEFFICIENTS[:POLAR_STEPS]:
        gram: Tensor = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def even_out(update: Tensor, second_moment: Tensor) -> Tensor:
    """NorMuon (arXiv 2510.05491): divide each row (column, if wide) by its running size; keep the total norm."""
    if update.size(-2) < update.size(-1):
        return even_out(update.transpose(-2, -1), second_moment).transpose(-2, -1)
    mean_square = update.square().mean(-1, keepdim=True)
    second_moment.lerp_(mean_square, 1 - MUON_BETA2)
    step = second_moment.clamp_min(1e-10).rsqrt()
    before = mean_square.sum((-2, -1), True)
    after = (mean_square * step.square()).sum((-2, -1), True)
    return update * step * (before / after.clamp_min(1e-20)).sqrt()


def muon_update(weights: Tensor, grads: Tensor, state: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """New values of a stack of weights (n, rows, cols). Changes `velocity` and `second_moment` in place."""
    state["velocity"].mul_(state["momentum"]).add_(grads * (1 - state["momentum"]))
    nesterov = grads * (1 - state["momentum"]) + state["velocity"] * state["momentum"]
    update = even_out(polar_express(nesterov, dtype).float(), state["second_moment"])
    cautious = update * weights >= 0  # decay only the weights that the update moves toward 0 anyway
    return weights - state["lr"] * (update + state["weight_decay"] * weights * cautious)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, NorMuon and cautious weight decay. Updates all matrices of one shape together."""

    def __init__(self, params: Iterable[nn.Parameter], dtype: torch.dtype, *, compiled: bool) -> None:
        self.dtype = dtype
        self.update = torch.compile(muon_update, dynamic=False) if compiled else muon_update
        groups: dict[torch.Size, dict[str, Any]] = {}
        for p in params:
            lr = MATRIX_LR * math.sqrt(max(1, p.size(0) / p.size(1)))
            groups.setdefault(p.shape, {"params": [], "lr": lr, "initial_lr": lr})["params"].append(p)
        if compiled and len(groups) > torch._dynamo.config.recompile_limit:  # one version for each shape
            torch._dynamo.config.recompile_limit = len(groups)
        super().__init__(groups.values(), {"momentum": MUON_MOMENTUM, "weight_decay": WEIGHT_DECAY})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = group["params"]
            weights = torch.stack(params)
            grads = torch.stack([p.grad for p in params])
            buffers = self.state[params[0]]
            if not buffers:
                buffers["velocity"] = torch.zeros_like(weights)
                buffers["second_moment"] = weights.new_zeros(len(params), max(params[0].shape), 1)
            # Tensors, because torch.compile would compile the update again for every new float.
            numbers = {name: torch.tensor(group[name]) for name in ("lr", "momentum", "weight_decay")}
            updated = self.update(weights, grads, buffers | numbers, self.dtype)
            for param, new in zip(params, updated, strict=True):
                param.copy_(new)


def make_optimizers(model: GPT, *, compiled: bool) -> Optimizers:
    """AdamW for embeddings, head and lambdas, each with its own learning rate; Muon for the blocks."""
    scale = (model_width() / LR_REFERENCE_DIM) ** -0.5
    # parameters, learning rate, betas, weight decay
    table: list[tuple[list[Tensor], float, tuple[float, float], float]] = [
        ([model.head.weight], UNEMBEDDING_LR * scale, ADAM_BETAS, UNEMBEDDING_WEIGHT_DECAY),
        ([model.embedding.weight], EMBEDDING_LR * scale, ADAM_BETAS, EMBEDDING_WEIGHT_DECAY),
        ([*model.value_embeddings.parameters()], EMBEDDING_LR * scale, ADAM_BETAS, VALUE_EMBEDDING_WEIGHT_DECAY),
        ([model.resid_lambdas], SCALAR_LR * RESID_LR_RATIO, ADAM_BETAS, 0.0),
        ([model.x0_lambdas], SCALAR_LR, X0_BETAS, 0.0),
    ]
    groups = [
        {"params": params, "lr": lr, "initial_lr": lr, "betas": betas, "weight_decay": decay}
        for params, lr, betas, decay in table
    ]
    adamw = torch.optim.AdamW(groups, eps=ADAM_EPS, fused=True)
    return adamw, Muon(model.blocks.parameters(), model.dtype, compiled=compiled)


Optimizers = tuple[torch.optim.AdamW, Muon]

# ---- Schedule ------------------------------------------------------------------------------------------------------


def lr_multiplier(progress: float) -> float:
    """Share of the full learning rate when `progress` (0 to 1) of the budget is spent."""
    if progress < WARMUP_RATIO:
        return progress / WARMUP_RATIO
    left = min(1.0, max(0.0, 1 - progress) / max(WARMDOWN_RATIO, 1e-9))
    return left + (1 - left) * FINAL_LR_FRAC


def set_schedule(optimizers: Optimizers, progress: float, step: int) -> None:
    """Set the learning rates of both optimizers, and Muon's momentum and weight decay, for one step."""
    adamw, muon = optimizers
    for group in (*adamw.param_groups, *muon.param_groups):
        group["lr"] = group["initial_lr"] * lr_multiplier(progress)
    rise = min(step / MUON_MOMENTUM_STEPS, 1.0) * (MUON_MOMENTUM - MUON_MOMENTUM_START)
    for group in muon.param_groups:
        group["momentum"] = MUON_MOMENTUM_START + rise
        group["weight_decay"] = WEIGHT_DECAY * (1 - progress)


# ---- Training ------------------------------------------------------------------------------------------------------

Batch = tuple[Tensor, Tensor, int]  # tokens (B, T), the tokens that follow (B, T), epoch
Scaler = torch.amp.GradScaler  # keeps float16 gradients from underflowing; does nothing for other types


def build(device: torch.device, vocab_size: int) -> tuple[GPT, Optimizers]:
    """Model and optimizers on the device, compiled if that pays off."""
    if TIME_BUDGET <= 0 or TOTAL_BATCH_SIZE % (DEVICE_BATCH_SIZE * MAX_SEQ_LEN):
        batch = f"TOTAL_BATCH_SIZE a multiple of DEVICE_BATCH_SIZE * MAX_SEQ_LEN, {DEVICE_BATCH_SIZE * MAX_SEQ_LEN}"
        raise SystemExit(f"train.py: TIME_BUDGET must be above 0, {batch}")
    dtype = pick_dtype(device)
    windows = layer_windows(MAX_SEQ_LEN)
    compiled = can_compile(device)
    model = GPT(vocab_size, MAX_SEQ_LEN, pick_attention(MAX_SEQ_LEN, windows, device, dtype), dtype)
    model.init_weights()
    model.to(device)
    if compiled:
        model.compile(dynamic=False)
    note(dtype=str(dtype), compiled=compiled)
    print(f"device: {device}, {dtype}, {'compiled' if compiled else 'eager'}, windows {windows}")
    return model, make_optimizers(model, compiled=compiled)


def warm_up(model: GPT, optimizers: Optimizers, device: torch.device) -> None:
    """Compile for training and grading, and fill the allocator's pools, on random tokens; then restore everything."""
    parts: tuple[Any, ...] = (model, *optimizers)
    before = copy.deepcopy([part.state_dict() for part in parts])
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        x, y = warmup_batch(DEVICE_BATCH_SIZE, device)
        model(x, y).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.inference_mode():  # as evaluate_bpb calls it; after training, compiling would be on the clock
            model.eval()(warmup_batch(grading_rows(DEVICE_BATCH_SIZE), device)[0])
        model.train()
        synchronize(device)
    for part, state in zip(parts, before, strict=True):
        part.load_state_dict(state)


def accumulate_gradients(model: GPT, loader: Iterator[Batch], batch: Batch, scaler: Scaler) -> tuple[float, Batch]:
    """Forward and backward over TOTAL_BATCH_SIZE tokens -> mean loss in nats, and the next batch."""
    passes = TOTAL_BATCH_SIZE // (DEVICE_BATCH_SIZE * MAX_SEQ_LEN)
    total = torch.zeros(())
    for _ in range(passes):
        x, y, _epoch = batch
        loss = model(x, y) / passes
        scaler.scale(loss).backward()
        total = total.to(loss.device) + loss.detach()
        batch = next(loader)  # loads while the device is still computing
    return total.item(), batch


def train(model: GPT, optimizers: Optimizers, loader: Iterator[Batch]) -> tuple[int, float]:
    """Train until one more step would exceed the budget, every step on the clock -> number of steps, seconds."""
    step = 0
    seconds = 0.0
    step_seconds = 0.0  # of the last step
    last_line = -math.inf
    scaler = torch.amp.GradScaler(model.head.weight.device.type, enabled=model.dtype == torch.float16)
    start = time.perf_counter()
    batch = next(loader)
    while seconds + step_seconds < TIME_BUDGET:
        progress = seconds / TIME_BUDGET
        set_schedule(optimizers, progress, step)
        loss, batch = accumulate_gradients(model, loader, batch, scaler)
        if not loss <= MAX_LOSS:  # NaN fails this comparison too
            print(f"FAIL: loss is {loss} at step {step + 1}", flush=True)
            sys.exit(1)
        for optimizer in optimizers:
            scaler.step(optimizer)  # optimizer.step(), unless the type is float16
            optimizer.zero_grad(set_to_none=True)
        scaler.update()
        synchronize(batch[0].device)
        step += 1
        before, seconds = seconds, time.perf_counter() - start
        step_seconds = seconds - before
        speed = TOTAL_BATCH_SIZE / step_seconds
        lr = lr_multiplier(progress)
        log_metrics(step=step, progress=seconds / TIME_BUDGET, loss=loss, lr=lr, tokens_per_second=speed)
        if seconds - last_line >= LOG_INTERVAL or seconds + step_seconds >= TIME_BUDGET:
            last_line = seconds
            log = f"step {step:05d} | {min(100.0, 100 * seconds / TIME_BUDGET):5.1f} % | loss {loss:.4f}"
            print(f"{log} | lr x{lr:.3f} | {speed:,.0f} tok/s | epoch {batch[2]}", flush=True)
        if step == 1:  # what is alive now stays alive; scanning it later would cost up to half a second each time
            gc.collect()
            gc.freeze()
            gc.disable()
    return step, seconds


# ---- Faster forms of the norm and the loss -------------------------------------------------------------------------


class FastNorm(torch.autograd.Function):
    """RMSNorm without weights that saves its output instead of its input, and makes fewer passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        scale: Tensor = (math.sqrt(x.size(-1)) / (length + 1e-6)).to(x.dtype)
        y = (x * scale).to(dtype)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        inner = (grad * y).mean(-1, keepdim=True)
        return torch.addcmul(grad, y, inner, value=-1) * scale, None


def soft_cap(z: Tensor) -> Tensor:
    """SOFTCAP * tanh(z / SOFTCAP), written with a sigmoid, which is much faster on a CPU."""
    return 2 * SOFTCAP * torch.sigmoid(2 / SOFTCAP * z) - SOFTCAP


def split_off_target(probability: Tensor, target: Tensor, *, fused: bool) -> tuple[Tensor, Tensor]:
    """Probabilities (N, V), targets (N, 1) -> the targets' own (N, 1), and all less 1 at the target (N, V).

    Plain form: a gather and a scatter. A GPU's compiler cannot fuse a scatter and writes all probabilities to memory.
    """
    if fused:
        hit = torch.arange(probability.size(-1), device=probability.device) == target
        return (probability * hit).sum(-1, keepdim=True), probability - hit.to(probability.dtype)
    chosen = probability.gather(-1, target)
    return chosen, probability.scatter_(-1, target, chosen - 1)


class HeadLoss(torch.autograd.Function):
    """Mean cross entropy of soft-capped logits. Computes the gradients in the forward pass, chunk by chunk.

    No chunk's logits are kept or read twice, which saves a CPU most of the loss's time and any device the memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        """x (N, D), the head's weight (V, D), targets (N,), rows per chunk -> loss in nats, a scalar."""
        head = weight.to(x.dtype)
        exact = torch.promote_types(x.dtype, torch.float32)
        losses = []
        grad_x = []
        grad_weight = torch.zeros_like(weight, dtype=exact)
        for start in range(0, len(x), chunk):
            rows = x[start : start + chunk]
            target = targets[start : start + chunk, None]
            squashed = F.linear(rows, head).to(exact).mul_(2 / SOFTCAP).sigmoid_()  # soft_cap, scaled to 0..1
            probability = (2 * SOFTCAP * squashed).softmax(-1)  # of the target never 0: the cap bounds the logits
            slope = 4 * squashed * (1 - squashed)  # derivative of soft_cap
            chosen, residual = split_off_target(probability, target, fused=x.device.type != "cpu")
            losses.append(-chosen.log().sum())
            grad = (residual * slope).to(x.dtype)
            grad_x.append(grad @ head)
            grad_weight += grad.T @ rows
        ctx.save_for_backward(torch.cat(grad_x), grad_weight)
        return torch.stack(losses).sum() / len(targets)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_x, grad_weight = ctx.saved_tensors
        scale = grad_loss / len(grad_x)
        return grad_x * scale, grad_weight * scale, None, None


# ---- Attention kernels. With every kernel a token sees itself and the `window` tokens before it --------------------

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # query, key, value (B, T, H, D), window -> (B, T, H, D)
AttentionFactory = Callable[[int, tuple[int, ...], torch.device], Attention]  # longest T, windows in use, device
SOFTMAX_SCALE = QK_SCALE**2 / math.sqrt(HEAD_DIM)  # factor on the products of queries and keys
ATTENTION_BLOCK = 128  # queries that banded_attention handles at a time


def window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """(length, length) bool: True if the query (row) sees the key (column)."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position
    return (distance >= 0) & (distance <= window)


def flash_attention_3(length: int, windows: tuple[int, ...], device: torch.device) -> Attention:
    """FlashAttention 3 from the `kernels` hub. Needs that package, its download and a GPU that the kernel supports."""
    kernel = importlib.import_module("kernels").get_kernel("kernels-community/flash-attn3", version=1).flash_attn_func

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        y = kernel(q, k, v, softmax_scale=SOFTMAX_SCALE, causal=True, window_size=(window, 0))
        out: Tensor = y[0] if isinstance(y, tuple) else y
        return out

    return attend


def flash_attention_2(length: int, windows: tuple[int, ...], device: torch.device) -> Attention:
    """FlashAttention 2 within PyTorch: NVIDIA GPUs from Ampere on. The whole context goes to PyTorch's own choice."""

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        length = q.size(1)
        if window >= length - 1:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=SOFTMAX_SCALE).transpose(1, 2)
        sizes = (None, None, length, length)  # no packed sequences; length of queries and keys
        span = {"window_size_left": window, "window_size_right": 0}
        y: Tensor = torch.ops.aten._flash_attention_forward(
            q, k, v, *sizes, 0.0, False, False, scale=SOFTMAX_SCALE, **span
        )[0]
        return y

    return attend


def flex_attention(length: int, windows: tuple[int, ...], device: torch.device) -> Attention:
    """Compiled FlexAttention, which skips the blocks outside the window."""
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as kernel

    def block_mask(window: int) -> Any:
        return create_block_mask(
            lambda b, h, i, j: (i >= j) & (i - j <= window), None, None, length, length, str(device)
        )

    masks = {window: block_mask(window) for window in windows}
    compiled = torch.compile(kernel, dynamic=False)

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        y: Tensor = compiled(q, k, v, block_mask=masks[window], scale=SOFTMAX_SCALE)
        return y.transpose(1, 2)

    return attend


def masked_attention(length: int, windows: tuple[int, ...], device: torch.device) -> Attention:
    """PyTorch's scaled_dot_product_attention: causal if the window spans the context, else with a mask."""
    masks = {window: window_mask(length, window, device) for window in windows}

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        length = q.size(1)
        mask = None if window >= length - 1 else masks[window][:length, :length]
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=SOFTMAX_SCALE)
        return y.transpose(1, 2)

    return attend


def banded_attention(length: int, windows: tuple[int, ...], device: torch.device) -> Attention:
    """Matrix products of each block of queries with the band of keys it sees: the fastest way on a CPU.

    Plain form: masked_attention, which multiplies every query with every key.
    """
    zero = torch.zeros(length, length, device=device)
    biases = {window: zero.masked_fill(~window_mask(length, window, device), -math.inf) for window in windows}

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        batch, seq_len, heads, dim = q.shape
        q, k, v = (x.transpose(1, 2).reshape(batch * heads, seq_len, dim) for x in (q, k, v))
        bias = biases[window].to(q.dtype)
        blocks = []
        for start in range(0, seq_len, ATTENTION_BLOCK):
            rows = slice(start, min(start + ATTENTION_BLOCK, seq_len))
            band = slice(max(0, start - window), rows.stop)
            scores = torch.baddbmm(bias[rows, band], q[:, rows], k[:, band].mT, alpha=SOFTMAX_SCALE)
            blocks.append(scores.softmax(-1) @ v[:, band])
        return torch.cat(blocks, 1).view(batch, heads, seq_len, dim).transpose(1, 2)

    return attend


# By device, in order of preference. An AMD GPU is "cuda" too.
ATTENTIONS: dict[str, tuple[AttentionFactory, ...]] = {
    "cuda": (flash_attention_3, flash_attention_2, flex_attention, masked_attention),
    "cpu": (banded_attention,),
    "mps": (masked_attention, banded_attention),
}


def check_attention(attend: Attention, length: int, window: int, device: torch.device, dtype: torch.dtype) -> None:
    """Run forward and backward and compare with PyTorch in float32. Raises ArithmeticError if they differ."""
    drawn = torch.Generator().manual_seed(0)
    q, k, v, dy = (torch.randn(1, length, 2, HEAD_DIM, generator=drawn).to(device, dtype) for _ in range(4))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    exact = [x.float().detach().requires_grad_() for x in (q, k, v)]
    y = attend(q, k, v, window)
    expected = masked_attention(length, (window,), device)(exact[0], exact[1], exact[2], window)
    found = (y, *torch.autograd.grad(y, inputs, dy))
    wanted = (expected, *torch.autograd.grad(expected, exact, dy.float()))
    error = max(((a - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True))
    if not error < 0.05:
        raise ArithmeticError(f"relative error {error:.3f} with window {window}")


def pick_attention(length: int, windows: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Attention:
    """The first of the device's kernels that runs, forward and backward, and gets the windows right."""
    for factory in ATTENTIONS[device.type]:
        try:
            attend = factory(length, windows, device)
            for window in set(windows):
                check_attention(attend, length, window, device, dtype)
            print(f"attention: {factory.__name__}")
            note(attention=factory.__name__)
            return attend
        except Exception as error:  # a kernel can fail in any way; then the next one takes over
            reason = str(error).partition("\n")[0]
            print(f"attention: {factory.__name__} does not work here ({type(error).__name__}: {reason})")
    raise SystemExit(f"no attention kernel works on {device}: run `autoresearch doctor` to find out more")


# ---- Device --------------------------------------------------------------------------------------------------------

# Dense bf16 TFLOP/s with float32 accumulation, from the data sheets. Full names: a laptop's "4090" is another chip.
PEAK_TFLOPS = {
    "NVIDIA B200": 2250,
    "NVIDIA H200": 989.5,
    "NVIDIA H100 80GB HBM3": 989.5,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA A100[- ].*": 312,
    "NVIDIA L40S": 362,
    "NVIDIA GeForce RTX 5090": 209.5,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 3090": 71,
    "AMD Instinct MI300X": 1307.4,
}


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works: on a GPU it needs Triton and a C compiler. On a CPU it takes a minute: no."""
    if device.type != "cuda":
        return False
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(8, device=device))
    except Exception as error:  # a compiler can fail in any way; training works without it
        reason = str(error).partition("\n")[0]
        print(f"torch.compile does not work here ({type(error).__name__}: {reason}): training eagerly, more slowly")
        return False
    return True


def pick_dtype(device: torch.device) -> torch.dtype:
    """The 16-bit type if it really makes the device's matrix products faster (some only emulate it), else float32.

    bfloat16, except on NVIDIA GPUs before Ampere, which are only fast with float16; that needs a gradient scaler.
    """
    half = torch.bfloat16
    if device.type == "cuda" and torch.version.hip is None:
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return half
        half = torch.float16
    size = 512 if device.type == "cpu" else 4096
    seconds = {torch.float32: math.inf, half: math.inf}
    for dtype in seconds:
        with contextlib.suppress(RuntimeError, TypeError):  # a device without the type
            a = torch.ones(size, size, device=device, dtype=dtype)
            for _ in range(6):
                start = time.perf_counter()
                torch.mm(a, a)
                synchronize(device)
                seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return half if 1.3 * seconds[half] < seconds[torch.float32] else torch.float32


def peak_memory_mb(device: torch.device) -> float:
    """Peak device memory in MiB (on MPS: memory held now). On a CPU, the process's peak resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**20
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    if sys.platform == "linux":  # getrusage would give the parent's peak there, if that was higher
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def keep_freed_memory() -> None:
    """Make glibc reuse large blocks instead of returning them: fresh pages cost a CPU much of its speed."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library: nothing to tune
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD; any higher, and evaluation fragments its huge blocks and memory grows
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def mfu_percent(model: GPT, tokens: int, seconds: float, device: torch.device) -> str:
    """Model FLOP/s as a percentage of the data sheet's peak; n/a if the device is not in the table."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = next((1e12 * tflops for pattern, tflops in PEAK_TFLOPS.items() if re.fullmatch(pattern, name)), None)
    return f"{100 * flops_per_token(model, MAX_SEQ_LEN) * tokens / seconds / peak:.2f}" if peak else "n/a"


# ---- Main ----------------------------------------------------------------------------------------------------------


def main() -> None:
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(SEED)  # set by the program: a new seed is not an improvement
    torch.set_float32_matmul_precision("high")
    keep_freed_memory()
    device = detect_device()
    tokenizer = Tokenizer.from_directory()
    model, optimizers = build(device, tokenizer.get_vocab_size())
    warm_up(model, optimizers, device)
    loader = make_dataloader(tokenizer, DEVICE_BATCH_SIZE, MAX_SEQ_LEN, "train", device=device)
    steps, seconds = train(model, optimizers, loader)
    model.eval()
    val_bpb = evaluate_bpb(model, tokenizer, DEVICE_BATCH_SIZE)
    print("---")
    print(f"val_bpb:          {val_bpb:.6f}")
    print(f"training_seconds: {seconds:.1f}")
    print(f"total_seconds:    {time.time() - psutil.Process().create_time():.1f}")
    print(f"peak_vram_mb:     {peak_memory_mb(device):.1f}")
    print(f"mfu_percent:      {mfu_percent(model, steps * TOTAL_BATCH_SIZE, seconds, device)}")
    print(f"total_tokens_M:   {steps * TOTAL_BATCH_SIZE / 1e6:.1f}")
    print(f"num_steps:        {steps}")
    print(f"num_params_M:     {count_parameters(model) / 1e6:.1f}")
    print(f"depth:            {DEPTH}")


if __name__ == "__main__":
    main()
