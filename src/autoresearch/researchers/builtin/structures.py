"""Edits that change what a train.py computes or how it learns, rather than a number in it."""

from __future__ import annotations

from functools import partial

from autoresearch.researchers.builtin.patch import chain, inserting, rewriting, setting
from autoresearch.researchers.source.constants import find, replace
from autoresearch.researchers.source.rewriting import define, insert, rewrite

# A new parameter needs four places: the module, its initial value, its use, and a row in the optimizer's table.
IN_MODULE = "self.embedding = nn.Embedding(_rows, _dim)"
IN_INIT = "nn.init.normal_(self.head.weight, std=_deviation)"
AFTER_EMBEDDING = "x = x0 = norm(_embedded)"
IN_OPTIMIZER = "table: _type = _rows"

BIGRAM_HASH = '''
def bigram_rows(idx: Tensor, size: int) -> Tensor:
    """Tokens (B, T) -> rows of the bigram table (B, T): a hash of each token with the one before it."""
    previous = F.pad(idx[:, :-1], (1, 0))
    return (previous * 36_313 + idx) % size
'''

bigram_embedding = chain(
    partial(define, lines=BIGRAM_HASH, before="GPT"),
    inserting(IN_MODULE, "self.bigrams = nn.Embedding(4 * _rows, _dim)"),
    inserting(IN_INIT, "nn.init.zeros_(self.bigrams.weight)"),
    rewriting(
        "self.embedding(idx)",
        "(self.embedding(idx) + self.bigrams(bigram_rows(idx, self.bigrams.num_embeddings)))",
    ),
    inserting(IN_OPTIMIZER, "table.append(([model.bigrams.weight], EMBEDDING_LR * scale, ADAM_BETAS, 0.0))"),
    unless="bigram",
)

smear = chain(
    inserting(IN_MODULE, "self.smear_gate, self.smear_lambda = Linear(_dim, 1), nn.Parameter(torch.empty(()))"),
    inserting(IN_INIT, "nn.init.zeros_(self.smear_gate.weight)\nnn.init.zeros_(self.smear_lambda)"),
    inserting(
        AFTER_EMBEDDING,
        "previous = F.pad(x[:, :-1], (0, 0, 1, 0))  # the token before; none before the first\n"
        "x = x0 = x + self.smear_lambda * torch.sigmoid(self.smear_gate(x)) * previous",
    ),
    inserting(
        IN_OPTIMIZER,
        "smeared = [model.smear_gate.weight, model.smear_lambda]\n"
        "table.append((smeared, SCALAR_LR * RESID_LR_RATIO, ADAM_BETAS, 0.0))",
    ),
    unless="smear",
)

backout = chain(
    inserting(IN_MODULE, "self.backout_lambda = nn.Parameter(torch.empty(()))"),
    inserting(IN_INIT, "nn.init.constant_(self.backout_lambda, 0.2)"),
    inserting(AFTER_EMBEDDING, "middle = x"),
    inserting("x = block(x, embedded, cos, sin)", "if layer == len(self.blocks) // 2:\n    middle = x"),
    partial(insert, pattern="x = norm(x)", lines="x = x - self.backout_lambda * middle", after=False),
    inserting(
        IN_OPTIMIZER,
        "table.append(([model.backout_lambda], SCALAR_LR * RESID_LR_RATIO, ADAM_BETAS, 0.0))",
    ),
    unless="backout",
)

falling_momentum = chain(
    inserting("rise = _rise", "fall = 0.07 * (1 - lr_multiplier(progress))"),
    rewriting("MUON_MOMENTUM_START + rise", "MUON_MOMENTUM_START + rise - fall"),
    setting("MUON_MOMENTUM", 0.97),
    unless="fall = ",
)

x0_by_layer = rewriting(
    "nn.init.constant_(self.x0_lambdas, X0_LAMBDA)",
    "self.x0_lambdas.data.copy_(torch.linspace(2 * X0_LAMBDA, X0_LAMBDA / 2, DEPTH))",
)
leaky_activation = rewriting("F.relu(_x).square()", "F.leaky_relu(_x, 0.5).square()")
WARMDOWN = "left + (1 - left) * FINAL_LR_FRAC"
sqrt_warmdown = rewriting(WARMDOWN, "1 - (1 - FINAL_LR_FRAC) * math.sqrt(max(0.0, 1 - left))")
cosine_warmdown = rewriting(WARMDOWN, "1 - (1 - FINAL_LR_FRAC) * (0.5 + 0.5 * math.cos(math.pi * left))")
convex_warmdown = rewriting(WARMDOWN, "FINAL_LR_FRAC + (1 - FINAL_LR_FRAC) * left**1.5")
resid_by_layer = rewriting(
    "nn.init.constant_(self.resid_lambdas, RESID_LAMBDA)",
    "self.resid_lambdas.data.copy_(RESID_LAMBDA * torch.linspace(1.15, 1.05, DEPTH))",
)

muon_eq = rewriting(
    "polar_express(nesterov, dtype)", "polar_express(nesterov / (nesterov.norm(dim=-1, keepdim=True) + 1e-12), dtype)"
)
plain_muon = rewriting("even_out(polar_express(_x, dtype).float(), _moment)", "polar_express(_x, dtype).float()")
decay_with_rate = rewriting("WEIGHT_DECAY * (1 - progress)", "WEIGHT_DECAY * lr_multiplier(progress)")
slow_second_moment = partial(
    rewrite,
    pattern="(_params, EMBEDDING_LR * scale, ADAM_BETAS, _decay)",
    replacement="(_params, EMBEDDING_LR * scale, (ADAM_BETAS[0], 0.99), _decay)",
    times=None,
)

RAMPED = '''
def ramped_gradients(
    model: GPT, loader: Iterator[Batch], batch: Batch, scaler: Scaler, progress: float
) -> tuple[float, Batch]:
    """As accumulate_gradients, but with half the passes in the first part of the budget."""
    passes = max(1, TOTAL_BATCH_SIZE // (DEVICE_BATCH_SIZE * MAX_SEQ_LEN) // (2 if progress < 0.3 else 1))
    total = torch.zeros(())
    for _ in range(passes):
        loss = model(batch[0], batch[1]) / passes
        scaler.scale(loss).backward()
        total = total.to(loss.device) + loss.detach()
        batch = next(loader)
    return total.item(), batch
'''


def two_passes(source: str) -> str | None:
    """Half the rows per pass, so that a step has at least two passes."""
    constant = find(source).get("DEVICE_BATCH_SIZE")
    if constant is None or not isinstance(constant.value, int) or constant.value % 2:
        return None
    return replace(source, {"DEVICE_BATCH_SIZE": constant.value // 2})


batch_ramp = chain(
    two_passes,
    partial(define, lines=RAMPED, before="train"),
    rewriting(
        "accumulate_gradients(model, loader, batch, scaler)",
        "ramped_gradients(model, loader, batch, scaler, progress)",
    ),
    unless="ramped_gradients",
)

skip_connections = chain(
    inserting(IN_MODULE, "self.skip_lambdas = nn.Parameter(torch.empty(DEPTH))"),
    inserting(IN_INIT, "nn.init.zeros_(self.skip_lambdas)"),
    inserting(AFTER_EMBEDDING, "skips: list[Tensor] = []"),
    inserting(
        "x = self.resid_lambdas[layer] * x + self.x0_lambdas[layer] * x0",
        "if layer >= DEPTH - len(skips):\n    x = x + self.skip_lambdas[layer] * skips[DEPTH - 1 - layer]",
    ),
    inserting("x = block(x, embedded, cos, sin)", "if layer < DEPTH // 2:\n    skips.append(x)"),
    inserting(IN_OPTIMIZER, "table.append(([model.skip_lambdas], SCALAR_LR * RESID_LR_RATIO, ADAM_BETAS, 0.0))"),
    unless="skip_lambdas",
)

key_offset = chain(
    inserting(
        "k = norm(_k)",
        "earlier = F.pad(k[:, :-1, :, HEAD_DIM // 2 :], (0, 0, 0, 0, 1, 0))  # of the token before\n"
        "k = torch.cat((k[..., : HEAD_DIM // 2], earlier), -1)",
    ),
    unless="earlier = ",
)

SHIFT = '''
def shift(x: Tensor) -> Tensor:
    """x (B, T, D) with a quarter of its channels taken from the token before; 0 before the first."""
    share = x.size(-1) // 4
    return torch.cat((F.pad(x[:, :-1, :share], (0, 0, 1, 0)), x[..., share:]), -1)
'''

token_shift = chain(
    partial(define, lines=SHIFT, before="Block"),
    rewriting("self.mlp(norm(_x, _type))", "self.mlp(shift(norm(_x, _type)))"),
    unless="def shift(",
)

TRIGRAM_HASH = '''
def trigram_rows(idx: Tensor, size: int) -> Tensor:
    """Tokens (B, T) -> rows of the trigram table (B, T): a hash of each token with the two before it."""
    return (F.pad(idx[:, :-2], (2, 0)) * 27_191 + F.pad(idx[:, :-1], (1, 0)) * 51_593 + idx) % size
'''

trigram_embedding = chain(
    partial(define, lines=TRIGRAM_HASH, before="GPT"),
    inserting(IN_MODULE, "self.trigrams = nn.Embedding(8 * _rows, _dim)"),
    inserting(IN_INIT, "nn.init.zeros_(self.trigrams.weight)"),
    rewriting(
        "self.embedding(idx)",
        "(self.embedding(idx) + self.trigrams(trigram_rows(idx, self.trigrams.num_embeddings)))",
    ),
    inserting(IN_OPTIMIZER, "table.append(([model.trigrams.weight], EMBEDDING_LR * scale, ADAM_BETAS, 0.0))"),
    unless="trigram",
)
