"""The constants at the top of a Python file: found by syntax, replaced in place, leaving every other byte alone.

It knows in which direction a constant with some name and value may sensibly be moved, not which one is worth trying.
"""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from autoresearch.researchers.guard.fingerprint import computed
from autoresearch.researchers.source.rewriting import Source

Value = bool | int | float | str

# Names with one of these words do not control training: seeds, logging, guards, numerics, kernels, data sheets.
LEFT_ALONE = frozenset(
    {"SEED", "SEEDS", "LOG", "LOSS", "INTERVAL", "EPS", "EPSILON", "BLOCK", "PEAK", "FLOPS", "POLAR"}
)
PATTERNS = ("L", "SL", "SSL", "SSSL", "SSSSL", "SSSSSL")  # of attention windows, from long to short
FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0)  # the round steps of a continuous constant
SMALLEST_CHANGE = 0.05  # of a continuous constant; smaller ones would drown in noise


class Kind(Enum):
    """How a constant is moved."""

    DOUBLE = "an integer that is halved or doubled: batches and other powers of two"
    COUNT = "a small integer that goes up or down by one"
    SCALE = "a number that is multiplied"
    FRACTION = "a number that is multiplied and stays within 0 and 1"
    DECAY = "a moving average's decay: its distance from 1 is multiplied"
    PATTERN = "a pattern of attention windows"
    FLAG = "true or false"


CONTINUOUS = frozenset({Kind.SCALE, Kind.FRACTION, Kind.DECAY})


# ---------------------------------------------------------------- found


@dataclass(frozen=True)
class Constant:
    """A literal bound to a module-level name. `name` is "BETAS[0]" for a tuple's element.

    `start` and `end` are byte offsets of the literal's text in the UTF-8 source.
    """

    name: str
    value: Value
    text: str
    start: int
    end: int

    @property
    def kind(self) -> Kind | None:
        """How it may be moved; None if it is better left alone."""
        if LEFT_ALONE & set(re.findall(r"[A-Z]+", self.name)):
            return None
        if isinstance(self.value, bool):
            return Kind.FLAG
        if isinstance(self.value, str):
            return Kind.PATTERN if re.fullmatch("[SL]+", self.value) else None
        return _integer_kind(self.name, self.value) if isinstance(self.value, int) else _float_kind(self)


def _integer_kind(name: str, value: int) -> Kind | None:
    if value < 0:
        return None
    if "BATCH" in name:
        return Kind.DOUBLE
    if value < 16:
        return Kind.COUNT
    is_power = value & (value - 1) == 0
    return Kind.DOUBLE if is_power and "RATIO" not in name else Kind.SCALE


def _float_kind(constant: Constant) -> Kind | None:
    value = float(constant.value)
    if not math.isfinite(value):
        return None
    if re.search("BETA|MOMENTUM", constant.name) and 0 < value < 1:
        return Kind.DECAY
    if re.search("RATIO|FRAC|PROB|DROPOUT", constant.name) and 0 <= value <= 1:
        return Kind.FRACTION
    return Kind.SCALE


@functools.lru_cache(maxsize=64)
def find(source: str) -> Mapping[str, Constant]:
    """The source's constants by name, in order. Only those that are assigned once and read somewhere."""
    parsed = Source.of(source)
    names = [node for node in ast.walk(parsed.tree) if isinstance(node, ast.Name)]
    read = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    stored = [node.id for node in names if isinstance(node.ctx, ast.Store)]
    found = {}
    for name, node in _assigned(parsed.tree):
        if name in read and stored.count(name) == 1:
            found.update({constant.name: constant for constant in _literals(name, node, parsed)})
    return MappingProxyType(found)


def _assigned(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Each module-level `NAME = expression` with its upper-case name."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, expression = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target, expression = node.target, node.value
        else:
            continue
        if isinstance(target, ast.Name) and re.fullmatch("[A-Z][A-Z0-9_]*", target.id):
            yield target.id, expression


def _literals(name: str, node: ast.expr, source: Source) -> Iterator[Constant]:
    if isinstance(node, ast.Tuple):
        if all(isinstance(evaluate(element), float) for element in node.elts):
            for index, element in enumerate(node.elts):
                yield from _literals(f"{name}[{index}]", element, source)
        return
    value = evaluate(node)
    if value is not None:
        yield Constant(name, value, source.segment(node), *source.span(node))


def evaluate(node: ast.expr) -> Value | None:
    """The value of a literal or of arithmetic on numbers such as `2**19`; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, bool | int | float | str) else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        operand = evaluate(node.operand)
        return -operand if isinstance(operand, int | float) else None
    if isinstance(node, ast.BinOp):
        return _arithmetic(node)
    return None


def _arithmetic(node: ast.BinOp) -> Value | None:
    left, right = evaluate(node.left), evaluate(node.right)
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        return None
    return computed(node.op, left, right)


# ---------------------------------------------------------------- replaced


def replace(source: str, values: Mapping[str, Value]) -> str:
    """The source with the named constants' literals rewritten.

    Raises:
        KeyError: one of them is not in the source.
    """
    found = find(source)
    places = [(found[name], value) for name, value in values.items()]
    return Source.of(source).spliced([(c.start, c.end, write(value, c.text)) for c, value in places])


def write(value: Value, like: str) -> str:
    """The value as a literal in the style of the one that it replaces: powers of two, underscores, quotes."""
    if isinstance(value, str):
        return like[0] + value + like[0] if like[:1] in ("'", '"') else repr(value)
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int) and "**" in like and value > 0 and value & (value - 1) == 0:
        return f"2**{value.bit_length() - 1}"
    if "_" in like and abs(value) >= 1000 and value == int(value):
        return f"{value:_}"
    return repr(value)


def changes(old: str, new: str) -> dict[str, tuple[Constant, Constant]]:
    """The constants that both sources have, with different values."""
    before, after = find(old), find(new)
    shared = ((name, before[name], after[name]) for name in before if name in after)
    return {name: (a, b) for name, a, b in shared if a.value != b.value}


def changes_alone(old: str, new: str) -> dict[str, tuple[Constant, Constant]] | None:
    """The same, if nothing else differs between the sources; None if something does."""
    changed = changes(old, new)
    return changed if replace(old, {name: b.value for name, (_, b) in changed.items()}) == new else None


def halved(source: str, name: str, *, above: int = 0) -> str | None:
    """The source with half of a whole constant; None if it has none that is even and larger than `above`."""
    constant = find(source).get(name)
    if constant is None or not isinstance(constant.value, int) or constant.value % 2 or constant.value <= above:
        return None
    return replace(source, {name: constant.value // 2})


def shown(value: Value) -> str:
    """A value for people: 16384 is 16K, and so is 16000."""
    if isinstance(value, bool | str):
        return str(value)
    for unit in (1024, 1000):
        if value >= unit and value % unit == 0:
            return f"{int(value // unit)}K"
    return f"{value:g}"


# ---------------------------------------------------------------- moved


def moved(constant: Constant, step: float, digits: int | None) -> Value | None:
    """The constant's value after a step from -1 (half, fewer, longer) to 1 (twice, more, shorter).

    `digits` is the number of significant digits of a continuous one; None takes the nearest round factor. Returns None
    if there is no such move.
    """
    kind, value = constant.kind, constant.value
    if kind is None or value is True or value is False:
        return None if kind is None else not value
    if isinstance(value, str):
        return _next_pattern(value, step)
    if kind is Kind.COUNT:
        return max(int(value) + (1 if step > 0 else -1), min(int(value), 1))
    if kind is Kind.DOUBLE:
        return int(value) * 2 if step > 0 else max(int(value) // 2, 1)
    factor = 2**step if digits else min(FACTORS, key=lambda f: abs(math.log2(f) - step))
    if value and abs(factor - 1) < SMALLEST_CHANGE:
        return None
    return _multiplied(constant, factor, digits or 2)


def _multiplied(constant: Constant, factor: float, digits: int) -> Value:
    value = float(constant.value)
    if constant.kind is Kind.DECAY:
        return round(1 - _rounded((1 - value) * factor, digits), 12) if (1 - value) * factor < 1 else value
    if value == 0:
        value = 0.002 if "DECAY" in constant.name else 0.05
    result = _rounded(value * factor, digits)
    if constant.kind is Kind.FRACTION:
        result = min(result, 1.0)
    return max(round(result), 1) if isinstance(constant.value, int) else result


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _next_pattern(pattern: str, step: float) -> str:
    """The pattern one place (two for a long step) further along the known ones."""
    share = pattern.count("S") / len(pattern)
    place = min(range(len(PATTERNS)), key=lambda i: abs(PATTERNS[i].count("S") / len(PATTERNS[i]) - share))
    distance = (2 if abs(step) > 0.75 else 1) * (1 if step > 0 else -1)
    return PATTERNS[min(max(place + distance, 0), len(PATTERNS) - 1)]


def step_between(old: Constant, new: Constant) -> float:
    """The step, from -1 to 1, that leads from one to the other, as far as a step can express it."""
    if isinstance(old.value, str) or isinstance(new.value, str):
        return 1.0 if str(new.value).count("S") > str(old.value).count("S") else -1.0
    a, b = float(old.value), float(new.value)
    if old.kind is Kind.DECAY and a < 1 and b < 1:
        a, b = 1 - a, 1 - b
    if old.kind is Kind.COUNT or a * b <= 0:
        return 1.0 if b > a else -1.0
    return min(max(math.log2(b / a), -1.0), 1.0)
