"""Train one GPT for TIME_BUDGET seconds on one device and print its val_bpb: the file that the researcher edits.

Model, optimizer, schedules and loop are all fair game; data, budget and metric are in prepare.py, which stays.
"""

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
    log_metrics,
    make_dataloader,
    warmup_batch,
)
from torch import Tensor, nn

# ---- Constants: the knobs. A preset replaces the literals; these are the reference for one H100 --------------------

# Model
DEPTH = 8  # layers; the width follows from it
ASPECT_RATIO = 64  # width = DEPTH * ASPECT_RATIO, rounded up to a multiple of HEAD_DIM
HEAD_DIM = 128  # channels of one attention head
MLP_RATIO = 4  # hidden channels of the MLP for each channel of the model
WINDOW_PATTERN = "SSSL"  # attention by layer, repeated: L full context, S short window; the last layer is always L
SHORT_WINDOW_DIVISOR = 2  # a short window looks back MAX_SEQ_LEN // SHORT_WINDOW_DIVISOR tokens
ROPE_BASE = 10_000.0  # base of the rotary frequencies
QK_SCALE = 1.0  # factor on queries and keys after their norm; above 1 sharpens attention
SOFTCAP = 15.0  # logits are squashed into (-SOFTCAP, SOFTCAP) by tanh
VALUE_EMBEDDING_EVERY = 2  # a value embedding on every n-th layer, counted back from the last; 0 for none
VALUE_GATE_CHANNELS = 32  # channels of the layer's input that steer the gate of its value embedding
RESID_LAMBDA = 1.0  # initial weight of the residual stream before each block
X0_LAMBDA = 0.1  # initial weight of the first embedding, mixed in before each block
FLOAT32_STREAM = False  # whether the residual stream is float32 where all else is bfloat16

# Initialization
EMBEDDING_INIT_STD = 1.0  # token embedding, normal
HEAD_INIT_STD = 0.001  # output head, normal; small, so that the first loss is ln(vocabulary)
INIT_SCALE = 1.0  # matrices and value embeddings, uniform with standard deviation INIT_SCALE / sqrt(width)

# Optimization
TOTAL_BATCH_SIZE = 2**19  # tokens for each optimizer step
DEVICE_BATCH_SIZE = 128  # rows for each forward and backward; lower it when memory runs out
EMBEDDING_LR = 0.6  # AdamW, token and value embeddings
UNEMBEDDING_LR = 0.004  # AdamW, output head
MATRIX_LR = 0.04  # Muon, all matrices of the blocks
SCALAR_LR = 0.5  # AdamW, x0 lambdas
RESID_LR_RATIO = 0.01  # residual lambdas learn at SCALAR_LR * RESID_LR_RATIO
LR_REFERENCE_DIM = 768  # rates of embeddings and head are scaled by (width / LR_REFERENCE_DIM)^-0.5
WEIGHT_DECAY = 0.2  # Muon, cautious, falling linearly to 0
EMBEDDING_WEIGHT_DECAY = 0.0  # AdamW, token embedding
VALUE_EMBEDDING_WEIGHT_DECAY = 0.0  # AdamW, value embeddings
UNEMBEDDING_WEIGHT_DECAY = 0.0  # AdamW, output head
ADAM_BETAS = (0.8, 0.95)  # decay of the first and second moment
X0_BETAS = (0.96, 0.95)  # the same for the x0 lambdas
ADAM_EPS = 1e-10  # added to the root of the second moment
MUON_MOMENTUM = 0.95  # Nesterov momentum
MUON_MOMENTUM_START = 0.85  # the same at the first step
MUON_MOMENTUM_STEPS = 300  # steps from MUON_MOMENTUM_START to MUON_MOMENTUM
MUON_BETA2 = 0.95  # decay of Muon's second moment
POLAR_STEPS = 5  # Polar Express steps, 5 at most

# Schedule, by progress = time / TIME_BUDGET
WARMUP_RATIO = 0.0  # share of the budget over which the learning rate rises from 0
WARMDOWN_RATIO = 0.5  # share of the budget over which it falls, at the end
FINAL_LR_FRAC = 0.0  # what it falls to, as a share of the full rate

# Running
MAX_LOSS = 100.0  # a loss above this, or NaN, ends the run at once
LOG_INTERVAL = 0.5  # seconds between log lines, at least

# ---- Device --------------------------------------------------------------------------------------------------------

# Dense bf16 TFLOP/s with float32 accumulation, from the data sheets, by the whole name: a laptop's "4090" is another.
PEAK_TFLOPS = {"NVIDIA B200": 2250, "NVIDIA H200": 989.5, "NVIDIA H100 80GB HBM3": 989.5, "NVIDIA H100 PCIe": 756,
               "NVIDIA A100-SXM4-(40|80)GB": 312, "NVIDIA A100-PCIE-40GB": 312, "NVIDIA A100 80GB PCIe": 312,
               "NVIDIA L40S": 362, "NVIDIA GeForce RTX 5090": 209.5, "NVIDIA GeForce RTX 4090": 165.2,
               "NVIDIA GeForce RTX 3090": 71, "AMD Instinct MI300X": 1307.4}  # fmt: skip


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def pick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device's matrix products are really faster with it (some only emulate it), else float32."""
    size, seconds = 512 if device.type == "cpu" else 4096, {torch.float32: math.inf, torch.bfloat16: math.inf}
    for dtype in seconds:
        with contextlib.suppress(RuntimeError, TypeError):  # a device without the type
            a = torch.ones(size, size, device=device, dtype=dtype)
            for _ in range(6):
                start = time.perf_counter()
                torch.mm(a, a)
                synchronize(device)
                seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return torch.bfloat16 if 1.3 * seconds[torch.bfloat16] < seconds[torch.float32] else torch.float32


def peak_memory_mb(device: torch.device) -> float:
    """Peak device memory in MiB (on MPS what is held now); on a CPU the process's peak resident memory."""
    if device.type != "cpu":
        cuda = device.type == "cuda"
        return (torch.cuda.max_memory_allocated() if cuda else torch.mps.driver_allocated_memory()) / 2**20
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    if sys.platform == "linux":  # whose getrusage gives that of the program which started this one, if it was more
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def keep_freed_memory() -> None:
    """Make glibc reuse large blocks instead of returning them: fresh pages cost a CPU much of its speed."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library: nothing to tune
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD; higher, evaluation breaks its huge blocks up and memory grows
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


# ---- Attention: whatever the kernel, a token sees itself and the `window` tokens before it -------------------------

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # query, key, value (B, T, H, D), window -> (B, T, H, D)
AttentionFactory = Callable[[int, tuple[int, ...], torch.device], Attention]  # longest T, windows in use, device
SOFTMAX_SCALE = QK_SCALE**2 / math.sqrt(HEAD_DIM)  # factor on the products of queries and keys
ATTENTION_BLOCK = 128  # queries that banded_attention handles at a time


def window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """(length, length) bool: True where the query (row) sees the key (column)."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance <= window)


def flash_attention(length: int, windows: tuple[int, ...], device: torch.device) -> Attention:
    """FlashAttention 3 of the `kernels` hub; needs that package, its download and a GPU that the kernel knows."""
    kernel = importlib.import_module("kernels").get_kernel("kernels-community/flash-attn3", version=1).flash_attn_func

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        y = kernel(q, k, v, softmax_scale=SOFTMAX_SCALE, causal=True, window_size=(window, 0))
        out: Tensor = y[0] if isinstance(y, tuple) else y
        return out

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
    """PyTorch's scaled_dot_product_attention: causal where the window spans the context, else with a mask."""
    masks = {window: window_mask(length, window, device) for window in windows}

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        length = q.size(1)
        mask = None if window >= length - 1 else masks[window][:length, :length]
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=SOFTMAX_SCALE)
        return y.transpose(1, 2)

    return attend


def banded_attention(length: int, windows: tuple[int, ...], device: torch.device) -> Attention:
    """Matrix products of each block of queries with the band of keys that it sees: the fastest way on a CPU."""
    zero = torch.zeros(length, length, device=device)
    biases = {w: zero.masked_fill(~window_mask(length, w, device), -math.inf) for w in windows}

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        batch, seq_len, heads, dim = q.shape
        q, k, v = (x.transpose(1, 2).reshape(batch * heads, seq_len, dim) for x in (q, k, v))
        bias, blocks = biases[window].to(q.dtype), []
        for start in range(0, seq_len, ATTENTION_BLOCK):
            rows = slice(start, min(start + ATTENTION_BLOCK, seq_len))
            band = slice(max(0, start - window), rows.stop)
            scores = torch.baddbmm(bias[rows, band], q[:, rows], k[:, band].mT, alpha=SOFTMAX_SCALE)
            blocks.append(scores.softmax(-1) @ v[:, band])
        return torch.cat(blocks, 1).view(batch, heads, seq_len, dim).transpose(1, 2)

    return attend


# By device, in order of preference. An AMD GPU is "cuda" too.
ATTENTIONS: dict[str, tuple[AttentionFactory, ...]] = {
    "cuda": (flash_attention, flex_attention, masked_attention),
    "cpu": (banded_attention,),
    "mps": (masked_attention, banded_attention),
}


def check_attention(attend: Attention, length: int, window: int, device: torch.device, dtype: torch.dtype) -> None:
    """Run forward and backward and compare with PyTorch in float32; ArithmeticError where they differ."""
    drawn = torch.Generator().manual_seed(0)
    q, k, v, dy = (torch.randn(1, length, 2, HEAD_DIM, generator=drawn).to(device, dtype) for _ in range(4))
    inputs, exact = [x.requires_grad_() for x in (q, k, v)], [x.float().detach().requires_grad_() for x in (q, k, v)]
    y = attend(q, k, v, window)
    expected = masked_attention(length, (window,), device)(exact[0], exact[1], exact[2], window)
    found = (y, *torch.autograd.grad(y, inputs, dy))
    wanted = (expected, *torch.autograd.grad(expected, exact, dy.float()))
    error = max(((a - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True))
    if not error < 0.05:
        raise ArithmeticError(f"relative error {error:.3f} with window {window}")


def pick_attention(length: int, windows: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Attention:
    """The first of the device's kernels that runs, forward and backward, and is right about the windows."""
    for factory in ATTENTIONS[device.type]:
        try:
            attend = factory(length, windows, device)
            for window in set(windows):
                check_attention(attend, length, window, device, dtype)
            print(f"attention: {factory.__name__}")
            return attend
        except Exception as error:  # a kernel may fail in any way; the next one stands in
            print(f"attention: no {factory.__name__} here ({type(error).__name__}: {str(error).partition(chr(10))[0]})")
    raise SystemExit(f"no attention kernel runs on {device}: `autoresearch doctor` tells more")


# ---- Loss ----------------------------------------------------------------------------------------------------------


def soft_cap(z: Tensor) -> Tensor:
    """SOFTCAP * tanh(z / SOFTCAP), by way of a sigmoid, which is much faster on a CPU."""
    return 2 * SOFTCAP * torch.sigmoid(2 / SOFTCAP * z) - SOFTCAP


class HeadLoss(torch.autograd.Function):
    """Mean cross entropy of soft-capped logits, with the gradients made along with it, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        """x (N, D), the head's weight (V, D), targets (N,), rows to take at a time -> loss in nats, a scalar."""
        head, exact = weight.to(x.dtype), torch.promote_types(x.dtype, torch.float32)
        losses, grad_x, grad_weight = [], [], torch.zeros_like(weight, dtype=exact)
        for start in range(0, len(x), chunk):
            rows, target = x[start : start + chunk], targets[start : start + chunk, None]
            squashed = F.linear(rows, head).to(exact).mul_(2 / SOFTCAP).sigmoid_()  # soft_cap, from 0 to 1
            probability = (2 * SOFTCAP * squashed).softmax(-1)  # of the target never 0: the cap bounds the logits
            chosen = probability.gather(-1, target)
            losses.append(-chosen.log().sum())
            slope = squashed.addcmul_(squashed, squashed, value=-1).mul_(4)  # of soft_cap: 4 s (1 - s)
            grad = probability.scatter_(-1, target, chosen - 1).mul_(slope).to(x.dtype)
            grad_x.append(grad @ head)
            grad_weight += grad.T @ rows
        ctx.save_for_backward(torch.cat(grad_x), grad_weight)
        return torch.stack(losses).sum() / len(targets)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_x, grad_weight = ctx.saved_tensors
        scale = grad_loss / len(grad_x)
        return grad_x * scale, grad_weight * scale, None, None


# ---- Model ---------------------------------------------------------------------------------------------------------


def model_width() -> int:
    """Channels of the model: DEPTH * ASPECT_RATIO rounded up to whole heads."""
    return math.ceil(DEPTH * ASPECT_RATIO / HEAD_DIM) * HEAD_DIM


def layer_windows(seq_len: int) -> tuple[int, ...]:
    """How many tokens before itself a token sees, by layer."""
    spans = {"L": seq_len, "S": seq_len // SHORT_WINDOW_DIVISOR}
    pattern = [WINDOW_PATTERN[layer % len(WINDOW_PATTERN)] for layer in range(DEPTH - 1)]
    return tuple(spans[letter] for letter in (*pattern, "L"))


def has_value_embedding(layer: int) -> bool:
    return VALUE_EMBEDDING_EVERY > 0 and (DEPTH - 1 - layer) % VALUE_EMBEDDING_EVERY == 0


class Norm(torch.autograd.Function):
    """RMSNorm over the last dimension, without weights; in a third of the time of F.rms_norm on a CPU."""

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


def norm(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """x over its root mean square, in its own type or another."""
    y: Tensor = Norm.apply(x, dtype or x.dtype)  # type: ignore[no-untyped-call]
    return y


def rotary_table(seq_len: int) -> Tensor:
    """(2, 1, seq_len, 1, HEAD_DIM) float32: what multiplies a channel, and what its partner half a head away."""
    frequency = ROPE_BASE ** -(torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
    angle = torch.arange(seq_len, dtype=torch.float64)[None, :, None, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (B, T, H, D): channels i and i + D/2 are turned together."""
    return torch.addcmul(x * cos, x.roll(x.size(-1) // 2, -1), sin)


class Linear(nn.Linear):
    """A linear map without bias, whose float32 weight is used in the input's type."""

    __call__: Callable[..., Tensor]

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class SelfAttention(nn.Module):
    """Causal self-attention with rotary positions, normed queries and keys, and a gated value embedding."""

    def __init__(self, dim: int, window: int, attend: Attention, *, gated: bool) -> None:
        super().__init__()
        self.window, self.attend = window, attend
        self.query, self.key, self.value = Linear(dim, dim), Linear(dim, dim), Linear(dim, dim)
        self.project = Linear(dim, dim)
        self.gate = Linear(VALUE_GATE_CHANNELS, dim // HEAD_DIM) if gated else None

    def forward(self, x: Tensor, embedded: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
        """x (B, T, dim), the layer's value embedding (B, T, dim) or None -> (B, T, dim)."""
        heads = (*x.shape[:2], -1, HEAD_DIM)
        q, k, v = self.query(x).view(heads), self.key(x).view(heads), self.value(x).view(heads)
        if self.gate is not None and embedded is not None:
            gate = 2 * torch.sigmoid(self.gate(x[..., :VALUE_GATE_CHANNELS]))
            v = v + gate[..., None] * embedded.view(heads)
        q, k = norm(rotate(q, cos, sin)), norm(rotate(k, cos, sin))
        return self.project(self.attend(q, k, v, self.window).reshape(x.shape))


class Block(nn.Module):
    """Attention, then two linear maps with a squared ReLU between them; each reads the normed stream and adds to it."""

    def __init__(self, dim: int, window: int, attend: Attention, *, gated: bool) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, window, attend, gated=gated)
        self.expand, self.project = Linear(dim, MLP_RATIO * dim), Linear(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor, embedded: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(norm(x, cos.dtype), embedded, cos, sin)
        return x + self.project(F.relu(self.expand(norm(x, cos.dtype))).square())


class GPT(nn.Module):
    """The language model: float32 weights; activations in `dtype`, or but for the residual stream."""

    def __init__(self, vocab_size: int, seq_len: int, attend: Attention, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, dim = dtype, model_width()
        windows, gated = layer_windows(seq_len), [has_value_embedding(layer) for layer in range(DEPTH)]
        self.embedding = nn.Embedding(vocab_size, dim)
        self.value_embeddings = nn.ModuleList(nn.Embedding(vocab_size, dim) if g else nn.Identity() for g in gated)
        self.blocks = nn.ModuleList(Block(dim, w, attend, gated=g) for w, g in zip(windows, gated, strict=True))
        self.resid_lambdas, self.x0_lambdas = nn.Parameter(torch.empty(DEPTH)), nn.Parameter(torch.empty(DEPTH))
        self.head = Linear(dim, vocab_size)
        self.rotary: Tensor
        self.register_buffer("rotary", rotary_table(seq_len), persistent=False)

    def init_weights(self) -> None:
        """Draw all weights from the global random state; projections out of a block and gates start at 0."""
        bound = INIT_SCALE * math.sqrt(3 / model_width())  # a uniform distribution's bound is sqrt(3) deviations
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_INIT_STD)
        nn.init.normal_(self.head.weight, std=HEAD_INIT_STD)
        nn.init.constant_(self.resid_lambdas, RESID_LAMBDA)
        nn.init.constant_(self.x0_lambdas, X0_LAMBDA)
        for name, weight in (*self.blocks.named_parameters(), *self.value_embeddings.named_parameters()):
            start = 0.0 if name.endswith(("project.weight", "gate.weight")) else bound
            nn.init.uniform_(weight, -start, start)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Tokens (B, T) -> float32 logits (B, T, V); with targets (B, T) the mean cross entropy in nats instead."""
        cos, sin = self.rotary[:, :, : idx.size(1)].to(self.dtype)
        x = x0 = norm(self.embedding(idx).to(torch.float32 if FLOAT32_STREAM else self.dtype))
        for layer, (block, table) in enumerate(zip(self.blocks, self.value_embeddings, strict=True)):
            x = self.resid_lambdas[layer] * x + self.x0_lambdas[layer] * x0
            embedded = table(idx).to(self.dtype) if has_value_embedding(layer) else None
            x = block(x, embedded, cos, sin)
        x = norm(x)
        x = x.to(self.dtype).flatten(0, 1)
        # Chunks of 4 MB of float32 logits stay in a CPU's cache; a GPU is better fed with 1 GB.
        chunk = 2 ** (20 if x.device.type == "cpu" else 28) // self.head.out_features
        if targets is None:
            return torch.cat([soft_cap(self.head(z).float()) for z in torch.split(x, chunk)]).view(*idx.shape, -1)
        loss: Tensor = HeadLoss.apply(x, self.head.weight, targets.flatten(), chunk)  # type: ignore
        return loss


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def flops_per_token(model: GPT, seq_len: int) -> int:
    """Of forward and backward as in PaLM (arXiv 2204.02311): look-ups are free, causality halves nothing."""
    weights = count_parameters(model.blocks) + count_parameters(model.head)
    return 6 * weights + 12 * model_width() * sum(layer_windows(seq_len))


# ---- Optimizer: Muon for the matrices of the blocks, AdamW for everything else -------------------------------------

# Polar Express (arXiv 2505.16932): the polynomials of five steps for singular values from 0.001 to 1, with a margin
# of 2 % for rounding in bfloat16. One step is X -> aX + b(XX')X + c(XX')(XX')X.
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
    before, after = mean_square.sum((-2, -1), True), (mean_square * step.square()).sum((-2, -1), True)
    return update * step * (before / after.clamp_min(1e-20)).sqrt()


def muon_update(weights: Tensor, grads: Tensor, state: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """New values of a stack of weights (n, rows, cols); velocity and second_moment are changed in place."""
    state["velocity"].mul_(state["momentum"]).add_(grads * (1 - state["momentum"]))
    nesterov = grads * (1 - state["momentum"]) + state["velocity"] * state["momentum"]
    update = even_out(polar_express(nesterov, dtype).float(), state["second_moment"])
    cautious = update * weights >= 0  # only weights that the update draws towards 0 anyway are decayed
    return weights - state["lr"] * (update + state["weight_decay"] * weights * cautious)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, NorMuon and cautious weight decay; matrices of one shape are updated together."""

    def __init__(self, params: Iterable[nn.Parameter], dtype: torch.dtype, *, compiled: bool) -> None:
        self.dtype, self.update = dtype, torch.compile(muon_update, dynamic=False) if compiled else muon_update
        groups: dict[torch.Size, dict[str, Any]] = {}
        for p in params:
            lr = MATRIX_LR * math.sqrt(max(1, p.size(0) / p.size(1)))
            groups.setdefault(p.shape, {"params": [], "lr": lr, "initial_lr": lr})["params"].append(p)
        super().__init__(groups.values(), {"momentum": MUON_MOMENTUM, "weight_decay": WEIGHT_DECAY})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params, buffers = group["params"], self.state[group["params"][0]]
            weights, grads = torch.stack(params), torch.stack([p.grad for p in params])
            if not buffers:
                buffers["velocity"] = torch.zeros_like(weights)
                buffers["second_moment"] = weights.new_zeros(len(params), max(params[0].shape), 1)
            # As tensors, since a compiled update would be compiled anew for each new float.
            numbers = {name: torch.tensor(group[name]) for name in ("lr", "momentum", "weight_decay")}
            for param, new in zip(params, self.update(weights, grads, buffers | numbers, self.dtype), strict=True):
                param.copy_(new)


def make_optimizers(model: GPT, *, compiled: bool) -> tuple[torch.optim.AdamW, Muon]:
    """AdamW for embeddings, head and lambdas, each with its own rate, and Muon for the blocks."""
    scale = (model_width() / LR_REFERENCE_DIM) ** -0.5
    table: list[tuple[list[Tensor], float, tuple[float, float], float]] = [
        ([model.head.weight], UNEMBEDDING_LR * scale, ADAM_BETAS, UNEMBEDDING_WEIGHT_DECAY),
        ([model.embedding.weight], EMBEDDING_LR * scale, ADAM_BETAS, EMBEDDING_WEIGHT_DECAY),
        ([*model.value_embeddings.parameters()], EMBEDDING_LR * scale, ADAM_BETAS, VALUE_EMBEDDING_WEIGHT_DECAY),
        ([model.resid_lambdas], SCALAR_LR * RESID_LR_RATIO, ADAM_BETAS, 0.0),
        ([model.x0_lambdas], SCALAR_LR, X0_BETAS, 0.0),
    ]
    groups = [dict(params=p, lr=lr, initial_lr=lr, betas=b, weight_decay=w) for p, lr, b, w in table]  # noqa: C408
    muon = Muon(model.blocks.parameters(), model.dtype, compiled=compiled)
    return torch.optim.AdamW(groups, eps=ADAM_EPS, fused=True), muon


# ---- Schedules -----------------------------------------------------------------------------------------------------

Optimizers = tuple[torch.optim.AdamW, Muon]


def lr_multiplier(progress: float) -> float:
    """Share of the full learning rate when `progress` (0 to 1) of the budget is spent."""
    if progress < WARMUP_RATIO:
        return progress / WARMUP_RATIO
    left = min(1.0, max(0.0, 1 - progress) / max(WARMDOWN_RATIO, 1e-9))
    return left + (1 - left) * FINAL_LR_FRAC


def set_schedule(optimizers: Optimizers, progress: float, step: int) -> None:
    """Set the rates of both optimizers, and Muon's momentum and weight decay, for one step."""
    for group in (*optimizers[0].param_groups, *optimizers[1].param_groups):
        group["lr"] = group["initial_lr"] * lr_multiplier(progress)
    rise = min(step / MUON_MOMENTUM_STEPS, 1.0) * (MUON_MOMENTUM - MUON_MOMENTUM_START)
    for group in optimizers[1].param_groups:
        group["momentum"], group["weight_decay"] = MUON_MOMENTUM_START + rise, WEIGHT_DECAY * (1 - progress)


# ---- Training ------------------------------------------------------------------------------------------------------

Batch = tuple[Tensor, Tensor, int]  # tokens (B, T), the tokens that follow (B, T), epoch


def build(device: torch.device, vocab_size: int) -> tuple[GPT, Optimizers]:
    """Model and optimizers on the device, compiled where that pays."""
    if TIME_BUDGET <= 0 or TOTAL_BATCH_SIZE % (DEVICE_BATCH_SIZE * MAX_SEQ_LEN):
        batch = f"TOTAL_BATCH_SIZE a multiple of DEVICE_BATCH_SIZE * MAX_SEQ_LEN, {DEVICE_BATCH_SIZE * MAX_SEQ_LEN}"
        raise SystemExit(f"train.py: TIME_BUDGET must be above 0, {batch}")
    dtype, windows = pick_dtype(device), layer_windows(MAX_SEQ_LEN)
    # On a CPU torch.compile takes a minute and needs a C++ compiler; elsewhere it needs Triton.
    compiled = device.type == "cuda" and importlib.util.find_spec("triton") is not None
    model = GPT(vocab_size, MAX_SEQ_LEN, pick_attention(MAX_SEQ_LEN, windows, device, dtype), dtype)
    model.init_weights()
    model.to(device)
    if compiled:
        model.compile(dynamic=False)
    print(f"device: {device}, {dtype}, {'compiled' if compiled else 'eager'}, windows {windows}")
    return model, make_optimizers(model, compiled=compiled)


def warm_up(model: GPT, optimizers: Optimizers, device: torch.device) -> None:
    """Compile, and fill the allocator's pools, by one step on random tokens; then put everything back as it was."""
    parts: tuple[Any, ...] = (model, *optimizers)
    before = copy.deepcopy([part.state_dict() for part in parts])
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        x, y = warmup_batch(DEVICE_BATCH_SIZE, device)
        model(x, y).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        synchronize(device)
    for part, state in zip(parts, before, strict=True):
        part.load_state_dict(state)


def accumulate_gradients(model: GPT, loader: Iterator[Batch], batch: Batch) -> tuple[float, Batch]:
    """Forward and backward over TOTAL_BATCH_SIZE tokens -> mean loss in nats, and the batch to go on with."""
    passes, total = TOTAL_BATCH_SIZE // (DEVICE_BATCH_SIZE * MAX_SEQ_LEN), torch.zeros(())
    for _ in range(passes):
        loss = model(batch[0], batch[1]) / passes
        loss.backward()
        total = total.to(loss.device) + loss.detach()
        batch = next(loader)  # while the device is still busy
    return total.item(), batch


def train(model: GPT, optimizers: Optimizers, loader: Iterator[Batch]) -> tuple[int, float]:
    """Train until the budget is spent, every step on the clock -> number of steps, seconds."""
    start, step, last_line = time.perf_counter(), 0, -math.inf
    batch, seconds = next(loader), 0.0
    while (progress := seconds / TIME_BUDGET) < 1:
        set_schedule(optimizers, progress, step)
        loss, batch = accumulate_gradients(model, loader, batch)
        if not loss <= MAX_LOSS:
            print(f"FAIL: loss is {loss} at step {step + 1}", flush=True)
            sys.exit(1)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        synchronize(batch[0].device)
        step, before, seconds = step + 1, seconds, time.perf_counter() - start
        speed, lr = TOTAL_BATCH_SIZE / (seconds - before), lr_multiplier(progress)
        log_metrics(step=step, progress=seconds / TIME_BUDGET, loss=loss, lr=lr, tokens_per_second=speed)
        if seconds - last_line >= LOG_INTERVAL or seconds >= TIME_BUDGET:
            last_line, log = seconds, f"step {step:05d} | {min(100.0, 100 * seconds / TIME_BUDGET):5.1f} %"
            print(f"{log} | loss {loss:.4f} | lr x{lr:.3f} | {speed:,.0f} tok/s | epoch {batch[2]}", flush=True)
        if step == 1:  # what is alive now stays: looking through it again would cost up to half a second each time
            gc.collect()
            gc.freeze()
            gc.disable()
    return step, seconds


def mfu_percent(model: GPT, tokens: int, seconds: float, device: torch.device) -> str:
    """The model's own FLOP/s in percent of the data sheet's; n/a where the device is not in the table."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = next((1e12 * peak for key, peak in PEAK_TFLOPS.items() if re.fullmatch(key, name)), None)
    return f"{100 * flops_per_token(model, MAX_SEQ_LEN) * tokens / seconds / peak:.2f}" if peak else "n/a"


def main() -> None:
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(SEED)  # the program's: to change seeds alone is no trial
    torch.set_float32_matmul_precision("high")
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # read when CUDA's memory is first used
    keep_freed_memory()
    device, tokenizer = detect_device(), Tokenizer.from_directory()
    model, optimizers = build(device, tokenizer.get_vocab_size())
    warm_up(model, optimizers, device)
    loader = make_dataloader(tokenizer, DEVICE_BATCH_SIZE, MAX_SEQ_LEN, "train", device=device)
    steps, seconds = train(model, optimizers, loader)
    model.eval()
    val_bpb = evaluate_bpb(model, tokenizer, DEVICE_BATCH_SIZE)
    print(f"---\nval_bpb:          {val_bpb:.6f}")
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
