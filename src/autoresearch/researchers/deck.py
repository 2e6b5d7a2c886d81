"""Known patches of a `train.py`: real edits of its source, each with the evidence for it, the best first.

A patch finds its place by syntax, so it applies to a file that has moved on, and gives None where it does not fit.
"H100" in the evidence is the published campaign: 5 minutes on one H100, change of val_bpb; a seed moves it 0.0007.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from autoresearch.researchers import constants
from autoresearch.researchers.constants import Value
from autoresearch.researchers.rewriting import define, insert, rewrite

Edit = Callable[[str], str | None]


@dataclass(frozen=True)
class Patch:
    """One known change; `apply` gives None where it does not fit or is already so. `repeat`: again while kept."""

    name: str
    idea: str
    evidence: str
    apply: Edit
    repeat: bool = False


# ---------------------------------------------------------------- ways to edit


def chain(*edits: Edit, unless: str | None = None) -> Edit:
    """One edit after another; None where one of them does not fit or the source has the word `unless`."""

    def apply(source: str) -> str | None:
        text: str | None = None if unless and unless in source else source
        for edit in edits:
            text = edit(text) if text is not None else None
        return text

    return apply


def setting(name: str, to: Value, *, only_if: Callable[[Value], bool] = lambda value: True) -> Edit:
    """Set a constant, where the file has it with another value of the same type that `only_if` accepts."""

    def apply(source: str) -> str | None:
        constant = constants.find(source).get(name)
        if constant is None or type(constant.value) is not type(to) or constant.value == to:
            return None
        return constants.replace(source, {name: to}) if only_if(constant.value) else None

    return apply


def raising(name: str, to: float) -> Edit:
    return setting(name, to, only_if=lambda value: not isinstance(value, str) and value < to)


def lowering(name: str, to: float) -> Edit:
    return setting(name, to, only_if=lambda value: not isinstance(value, str) and value > to)


def rewriting(pattern: str, replacement: str) -> Edit:
    return partial(rewrite, pattern=pattern, replacement=replacement)


def inserting(pattern: str, lines: str) -> Edit:
    return partial(insert, pattern=pattern, lines=lines)


def halve_batch(source: str) -> str | None:
    """Half the tokens of a step; the rows of a pass are the caller's to fit."""
    constant = constants.find(source).get("TOTAL_BATCH_SIZE")
    if constant is None or not isinstance(constant.value, int) or constant.value % 2 or constant.value <= 1024:
        return None
    return constants.replace(source, {"TOTAL_BATCH_SIZE": constant.value // 2})


def add_layer(source: str) -> str | None:
    """One layer more, and one head of width more."""
    found = constants.find(source)
    sizes = [found[name].value for name in ("DEPTH", "ASPECT_RATIO", "HEAD_DIM") if name in found]
    if len(sizes) != 3 or not all(isinstance(size, int) for size in sizes):
        return None
    depth, aspect, head = (int(size) for size in sizes)
    heads = -(-depth * aspect // head) + 1
    # The width is rounded up to whole heads: aim at the middle of the last one.
    wanted = round((heads - 0.5) * head / (depth + 1))
    return constants.replace(source, {"DEPTH": depth + 1, "ASPECT_RATIO": max(wanted, 1)})


def short_windows(source: str) -> str | None:
    """Short windows of an eighth of the context, where the pattern has short ones."""
    pattern = constants.find(source).get("WINDOW_PATTERN")
    has_short = pattern is not None and "S" in str(pattern.value)
    return raising("SHORT_WINDOW_DIVISOR", 8)(source) if has_short else None


# ---------------------------------------------------------------- structures

# A new parameter needs four places: the module, its first value, its use, and a row of the optimizer's table.
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


# ---------------------------------------------------------------- the deck

# First what costs a step no time, by the size of its known effect; then what makes a step dearer or was not tried
# there; last what did not help there, but may still help another machine.
DECK: tuple[Patch, ...] = (
    Patch(
        "halve-batch",
        "halve the total batch (more steps in the budget)",
        "H100: -0.0119, the largest of all; fewer steps in the budget make it larger still",
        halve_batch,
        repeat=True,
    ),
    Patch("embedding-lr", "embeddings learn faster", "H100: -0.0033 for 0.6 to 0.8", raising("EMBEDDING_LR", 0.8)),
    Patch(
        "value-embedding-decay",
        "weight decay on value embeddings",
        "H100: -0.0016 in three steps up to 0.003",
        raising("VALUE_EMBEDDING_WEIGHT_DECAY", 0.003),
    ),
    Patch("rope-base", "longer rotary wavelengths", "H100: -0.0012 for 10K to 200K", raising("ROPE_BASE", 200_000.0)),
    Patch(
        "head-lr", "the output head learns faster", "H100: -0.0010 for 0.004 to 0.006", raising("UNEMBEDDING_LR", 0.006)
    ),
    Patch("short-windows", "shorter short windows", "H100: -0.0009 for an eighth of the context", short_windows),
    Patch(
        "x0-lambda", "mix in less of the first embedding", "H100: -0.0008 for 0.1 to 0.05", lowering("X0_LAMBDA", 0.05)
    ),
    Patch(
        "warmdown",
        "longer warmdown",
        "H100: -0.0006 for 0.5 to 0.7, and 0.75 kept later",
        raising("WARMDOWN_RATIO", 0.7),
    ),
    Patch(
        "final-lr", "do not let the learning rate fall to 0", "H100: -0.0006 for 0.05", raising("FINAL_LR_FRAC", 0.05)
    ),
    Patch("init-scale", "smaller initial matrices", "H100: -0.0006 for 0.68", lowering("INIT_SCALE", 0.68)),
    Patch(
        "embedding-decay",
        "weight decay on token embeddings",
        "H100: -0.0001 for 0.001; 0.01 hurt",
        raising("EMBEDDING_WEIGHT_DECAY", 0.001),
    ),
    Patch(
        "window-pattern",
        "one long attention window in five layers",
        "H100: -0.0003 for SSSL to SSSSL",
        setting("WINDOW_PATTERN", "SSSSL"),
    ),
    Patch(
        "momentum-steps",
        "Muon's momentum rises sooner",
        "H100: -0.0003 for 300 to 200 steps",
        lowering("MUON_MOMENTUM_STEPS", 200),
    ),
    Patch(
        "head-decay",
        "weight decay on the output head",
        "H100: -0.0001 for 0.01",
        raising("UNEMBEDDING_WEIGHT_DECAY", 0.01),
    ),
    Patch(
        "add-layer",
        "one layer and one head of width more",
        "H100: -0.0043 for depth 9, width 640; dearer steps, which a small machine may not be able to pay for",
        add_layer,
    ),
    Patch(
        "leaky-activation",
        "squared leaky ReLU in the MLP",
        "small-scale speed runs: LeakyReLU(0.5)^2 keeps a gradient for negative inputs; untested on the H100",
        leaky_activation,
    ),
    Patch(
        "bigram-embedding",
        "add a hashed bigram embedding to the token embedding",
        "small-scale speed runs: a table of hashed token pairs helps small models; untested on the H100",
        bigram_embedding,
    ),
    Patch(
        "falling-momentum",
        "Muon's momentum at 0.97, falling by 0.07 in the warmdown",
        "nanochat: 0.97, then 0.90 in the warmdown; untested on the H100",
        falling_momentum,
    ),
    Patch(
        "qk-scale",
        "sharper attention: scale queries and keys after their norm",
        "nanochat: 1.2; untested on the H100",
        raising("QK_SCALE", 1.2),
    ),
    Patch(
        "sqrt-warmdown",
        "the learning rate falls as 1 - sqrt",
        "arXiv 2405.18392: better than a linear cooldown; untested on the H100",
        sqrt_warmdown,
    ),
    Patch(
        "smear", "mix the previous token's embedding in through a gate", "nanochat: smear; untested on the H100", smear
    ),
    Patch(
        "backout",
        "subtract a share of the middle layer's stream before the head",
        "nanochat: backout, from 0.2; untested on the H100",
        backout,
    ),
    Patch(
        "x0-by-layer",
        "mix in more of the first embedding early and less late",
        "nanochat: initial lambdas by layer; untested on the H100",
        x0_by_layer,
    ),
    Patch(
        "value-embeddings-everywhere",
        "a value embedding on every layer",
        "H100: fewer of them cost 0.004 (every third layer) to 0.007 (the last three); more is untested",
        setting("VALUE_EMBEDDING_EVERY", 1),
    ),
    Patch(
        "polar-steps",
        "four steps of Polar Express (faster)",
        "H100: +0.0006; the smaller the batch, the larger its share of a step's time",
        lowering("POLAR_STEPS", 4),
    ),
    Patch(
        "softcap",
        "cap the logits more loosely",
        "H100: +0.0007 for 20, +0.0002 for 13, within a seed's luck",
        raising("SOFTCAP", 20.0),
    ),
    Patch(
        "cosine-warmdown",
        "the learning rate falls as a cosine",
        "H100: +0.0012; linear is better there",
        cosine_warmdown,
    ),
    Patch(
        "no-value-embeddings",
        "no value embeddings (a smaller, faster model)",
        "H100: fewer of them cost 0.004 and more; only a machine that pays for look-ups may gain",
        setting("VALUE_EMBEDDING_EVERY", 0),
    ),
)
