"""The shipped recipe as anyone would write it first: train_step.py measures train.py's speed against it.

Plain modules, bf16 autocast over float32 weights, PyTorch's own attention, norm and cross entropy over all logits at
once, fused AdamW, Muon one matrix at a time. Constants and schedules are train.py's own, passed in as a module.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (B, T, H, D)."""
    one, two = x.chunk(2, dim=-1)
    return torch.cat((one * cos - two * sin, two * cos + one * sin), dim=-1)


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


class Attention(nn.Module):
    def __init__(self, recipe: ModuleType, layer: int) -> None:
        super().__init__()
        self.recipe, dim = recipe, recipe.model_width()
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.project = nn.Linear(dim, dim, bias=False)
        gated = recipe.has_value_embedding(layer)
        channels = recipe.VALUE_GATE_CHANNELS
        self.gate = nn.Linear(channels, dim // recipe.HEAD_DIM, bias=False) if gated else None

    def forward(self, x: Tensor, embedded: Tensor | None, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        heads = (*x.shape[:2], -1, self.recipe.HEAD_DIM)
        q, k, v = self.query(x).view(heads), self.key(x).view(heads), self.value(x).view(heads)
        if self.gate is not None and embedded is not None:
            gate = 2 * torch.sigmoid(self.gate(x[..., : self.recipe.VALUE_GATE_CHANNELS]))
            v = v + gate.unsqueeze(-1) * embedded.view(heads)
        q, k = norm(rotate(q, cos, sin)), norm(rotate(k, cos, sin))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.to(q.dtype).transpose(1, 2)
        scale = self.recipe.QK_SCALE**2 / math.sqrt(self.recipe.HEAD_DIM)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
        out: Tensor = self.project(y.transpose(1, 2).reshape(x.shape))
        return out


class MLP(nn.Module):
    def __init__(self, recipe: ModuleType) -> None:
        super().__init__()
        dim = recipe.model_width()
        self.expand = nn.Linear(dim, recipe.MLP_RATIO * dim, bias=False)
        self.project = nn.Linear(recipe.MLP_RATIO * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(F.relu(self.expand(x)).square())
        return out


class Block(nn.Module):
    def __init__(self, recipe: ModuleType, layer: int) -> None:
        super().__init__()
        self.attention = Attention(recipe, layer)
        self.mlp = MLP(recipe)

    def forward(self, x: Tensor, embedded: Tensor | None, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attention(norm(x), embedded, cos, sin, mask)
        out: Tensor = x + self.mlp(norm(x))
        return out


class PlainGPT(nn.Module):
    """The recipe's model. Its weights have the same names as in train.py."""

    def __init__(self, recipe: ModuleType, vocab_size: int, seq_len: int) -> None:
        super().__init__()
        self.recipe, self.dtype, dim, depth = recipe, torch.bfloat16, recipe.model_width(), recipe.DEPTH
        self.embedding, self.head = nn.Embedding(vocab_size, dim), nn.Linear(dim, vocab_size, bias=False)
        tables = {str(i): nn.Embedding(vocab_size, dim) for i in range(depth) if recipe.has_value_embedding(i)}
        self.value_embeddings = nn.ModuleDict(tables)
        self.blocks = nn.ModuleList(Block(recipe, layer) for layer in range(depth))
        self.resid_lambdas, self.x0_lambdas = nn.Parameter(torch.empty(depth)), nn.Parameter(torch.empty(depth))
        frequency = recipe.ROPE_BASE ** -(torch.arange(0, recipe.HEAD_DIM, 2) / recipe.HEAD_DIM)
        angle = torch.arange(seq_len)[:, None, None] * frequency
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        distance = torch.arange(seq_len)[:, None] - torch.arange(seq_len)
        windows = recipe.layer_windows(seq_len)
        for layer, window in enumerate(windows):
            mask = None if window >= seq_len - 1 else (distance >= 0) & (distance <= window)
            self.register_buffer(f"mask{layer}", mask, persistent=False)

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats of tokens (B, T) and the tokens that follow them."""
        x = x0 = norm(self.embedding(idx))
        for layer, block in enumerate(self.blocks):
            x = self.resid_lambdas[layer] * x + self.x0_lambdas[layer] * x0
            table = self.value_embeddings[str(layer)] if self.recipe.has_value_embedding(layer) else None
            x = block(x, table(idx) if table is not None else None, self.cos, self.sin, getattr(self, f"mask{layer}"))
        logits = self.head(norm(x)).float()
        logits = self.recipe.SOFTCAP * torch.tanh(logits / self.recipe.SOFTCAP)
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))


class PlainMuon(torch.optim.Optimizer):
    """Muon with Polar Express, NorMuon and cautious weight decay, one matrix after the other."""

    def __init__(self, recipe: ModuleType, params: Any) -> None:
        self.recipe = recipe
        groups = []
        for p in params:
            lr = recipe.MATRIX_LR * math.sqrt(max(1, p.size(0) / p.size(1)))
            groups.append({"params": [p], "lr": lr, "initial_lr": lr})
        super().__init__(groups, {"momentum": recipe.MUON_MOMENTUM, "weight_decay": recipe.WEIGHT_DECAY})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            p = group["params"][0]
            state = self.state[p]
            tall = p.size(0) >= p.size(1)
            if not state:
                state["velocity"] = torch.zeros_like(p)
                state["second_moment"] = p.new_zeros((p.size(0), 1) if tall else (1, p.size(1)))
            momentum = group["momentum"]
            state["velocity"].lerp_(p.grad, 1 - momentum)
            update = p.grad.lerp(state["velocity"], momentum)
            x = update.bfloat16() / (update.norm() * 1.02 + 1e-6)
            x = x.T if p.size(0) > p.size(1) else x
            for a, b, c in self.recipe.POLAR_COEFFICIENTS[: self.recipe.POLAR_STEPS]:
                gram = x @ x.T
                x = a * x + (b * gram + c * gram @ gram) @ x
            update = (x.T if p.size(0) > p.size(1) else x).float()
            mean_square = update.square().mean(-1 if tall else -2, keepdim=True)
            state["second_moment"].lerp_(mean_square, 1 - self.recipe.MUON_BETA2)
            evened = update / state["second_moment"].clamp_min(1e-10).sqrt()
            evened *= update.norm() / evened.norm().clamp_min(1e-10)
            cautious = evened * p >= 0
            p.sub_(group["lr"] * (evened + group["weight_decay"] * p * cautious))
