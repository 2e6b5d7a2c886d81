"""What a patch is, and the edits it is made of. Each takes a source, and gives None if it does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from autoresearch.researchers.source import constants
from autoresearch.researchers.source.constants import Value
from autoresearch.researchers.source.rewriting import insert, rewrite

Edit = Callable[[str], str | None]


def chain(*edits: Edit, unless: str | None = None) -> Edit:
    """One edit after another; None if one of them does not fit or the source contains the word `unless`."""

    def apply(source: str) -> str | None:
        text: str | None = None if unless and unless in source else source
        for edit in edits:
            text = edit(text) if text is not None else None
        return text

    return apply


def setting(name: str, to: Value, *, only_if: Callable[[Value], bool] = lambda value: True) -> Edit:
    """Set a constant, if the file has it with another value of the same type that `only_if` accepts."""

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
    """Half the tokens per step. The caller has to fit the rows per pass."""
    return constants.halved(source, "TOTAL_BATCH_SIZE", above=1024)


def add_layer(source: str) -> str | None:
    """One more layer, and one more head of width."""
    found = constants.find(source)
    sizes = [found[name].value for name in ("DEPTH", "ASPECT_RATIO", "HEAD_DIM") if name in found]
    if len(sizes) != 3 or not all(isinstance(size, int) for size in sizes):
        return None
    depth, aspect, head = (int(size) for size in sizes)
    heads = -(-depth * aspect // head) + 1
    # The width is rounded up to whole heads: aim at the middle of the last one.
    wanted = round((heads - 0.5) * head / (depth + 1))
    return constants.replace(source, {"DEPTH": depth + 1, "ASPECT_RATIO": max(wanted, 1)})


def remove_layer(source: str) -> str | None:
    """One layer less, at the same width as far as whole heads allow."""
    found = constants.find(source)
    sizes = [found[name].value for name in ("DEPTH", "ASPECT_RATIO") if name in found]
    if len(sizes) != 2 or not all(isinstance(size, int) for size in sizes) or int(sizes[0]) < 3:
        return None
    depth, aspect = (int(size) for size in sizes)
    return constants.replace(source, {"DEPTH": depth - 1, "ASPECT_RATIO": depth * aspect // (depth - 1)})


def short_windows(source: str) -> str | None:
    """Short windows of an eighth of the context, if the pattern has short ones."""
    pattern = constants.find(source).get("WINDOW_PATTERN")
    has_short = pattern is not None and "S" in str(pattern.value)
    return raising("SHORT_WINDOW_DIVISOR", 8)(source) if has_short else None


# ---------------------------------------------------------------- patches


@dataclass(frozen=True)
class Patch:
    """One known change. `apply` gives None if it does not fit or is already there.

    `kind` is its class of ideas: the success of one speaks for the others. `gain` is the expected relative decrease of
    val_bpb, by its evidence.
    """

    name: str
    kind: str
    gain: float
    idea: str
    evidence: str
    apply: Edit

    @property
    def arm(self) -> str:
        """What the bandit chooses: a constant and a direction, or the patch itself."""
        return ARMS.get(self.name, self.name)


# Patches that move a single constant share its record with all other moves of it.
ARMS = {
    "halve-batch": "TOTAL_BATCH_SIZE down",
    "embedding-lr": "EMBEDDING_LR up",
    "value-embedding-decay": "VALUE_EMBEDDING_WEIGHT_DECAY up",
    "rope-base": "ROPE_BASE up",
    "head-lr": "UNEMBEDDING_LR up",
    "short-windows": "SHORT_WINDOW_DIVISOR up",
    "x0-lambda": "X0_LAMBDA down",
    "warmdown": "WARMDOWN_RATIO up",
    "final-lr": "FINAL_LR_FRAC up",
    "init-scale": "INIT_SCALE down",
    "embedding-decay": "EMBEDDING_WEIGHT_DECAY up",
    "window-pattern": "WINDOW_PATTERN up",
    "momentum-steps": "MUON_MOMENTUM_STEPS down",
    "head-decay": "UNEMBEDDING_WEIGHT_DECAY up",
    "qk-scale": "QK_SCALE up",
    "value-embeddings-everywhere": "VALUE_EMBEDDING_EVERY down",
    "no-value-embeddings": "VALUE_EMBEDDING_EVERY down",
    "polar-steps": "POLAR_STEPS down",
    "softcap": "SOFTCAP up",
}
