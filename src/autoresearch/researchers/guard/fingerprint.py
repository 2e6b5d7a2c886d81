"""What a program is, whatever its text looks like: digests of its syntax."""

from __future__ import annotations

import ast
import functools
import hashlib
import operator
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}
# What seeds a random number generator, by the last part of its name: torch's, NumPy's, Python's, jax's, helpers'.
SEEDING = {
    *("seed", "seed_all", "set_seed", "seed_everything", "manual_seed", "manual_seed_all", "Random", "PRNGKey"),
    *("default_rng", "RandomState", "SeedSequence", "PCG64", "Philox", "MT19937"),
}
SEED_NAME = re.compile(r"(?i)(^|_)seeds?\d*(_offset|_base)?$|^random_state$")


@dataclass(frozen=True)
class Syntax:
    """What the files' syntax amounts to. Comments, layout, docstrings and annotations do not count.

    `fingerprint` is a digest of it; `skeleton` is the same without its numbers, which are `numbers`, in order;
    `seedless` is the same without seeds, which are at `seed_places` among the numbers. `nodes` counts syntax nodes.
    """

    fingerprint: str
    skeleton: str
    numbers: tuple[float, ...]
    seedless: str
    seed_places: frozenset[int]
    nodes: int


def syntax(files: Mapping[str, str]) -> Syntax:
    """The syntax of files; of those that are not Python, it is their text.

    Raises:
        SyntaxError, ValueError, RecursionError: one is not Python.
    """
    return _syntax(tuple(sorted(files.items())))


def fingerprint(files: Mapping[str, str]) -> str:
    """A digest of the files' syntax."""
    return syntax(files).fingerprint


# A campaign's programs are compared again and again, and parsing them takes long.
@functools.lru_cache(maxsize=512)
def _syntax(files: tuple[tuple[str, str], ...]) -> Syntax:
    whole, shape, rest = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    numbers: list[float] = []
    left: list[int] = []
    nodes = 0
    for path, text in files:
        if not path.endswith(".py"):
            for digest in (whole, shape, rest):
                digest.update(f"{path}\0{text}\0".encode())
            continue
        tree = normalized(text)
        nodes += sum(1 for _ in ast.walk(tree))
        whole.update(f"{path}\0{ast.dump(tree)}\0".encode())
        tree = _Numbers(numbers).visit(tree)
        shape.update(f"{path}\0{ast.dump(tree)}\0".encode())
        tree = _Seedless().visit(tree)
        rest.update(f"{path}\0{ast.dump(tree)}\0".encode())
        values = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        left += [int(value) for value in values if isinstance(value, _Place)]
    rest.update(repr([numbers[place] for place in left]).encode())
    seeds = frozenset(range(len(numbers))) - set(left)
    return Syntax(whole.hexdigest(), shape.hexdigest(), tuple(numbers), rest.hexdigest(), seeds, nodes)


def normalized(text: str) -> ast.AST:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd escapes in a proposal do not matter here
        tree: ast.AST = _Normal().visit(ast.parse(text))
        return tree


class _Normal(ast.NodeTransformer):
    """Drops docstrings and annotations, and computes arithmetic on literals."""

    def visit(self, node: ast.AST) -> ast.AST:
        node = self.generic_visit(node)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            return ast.Assign([node.target], node.value)
        elif isinstance(node, ast.UnaryOp | ast.BinOp):
            return _folded(node)
        return node


class _Place(int):
    """The place of a number, instead of it. In a dump they all look alike."""

    def __repr__(self) -> str:
        return "0"


class _Numbers(ast.NodeTransformer):
    """Takes the numbers out of a tree, appends them to a list, and leaves their places in it."""

    def __init__(self, found: list[float]) -> None:
        self.found = found

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        value = _number(node)
        if value is None:
            return node
        self.found.append(value)
        return ast.Constant(_Place(len(self.found) - 1))


class _Seedless(ast.NodeTransformer):
    """Takes seeds out of a tree: statements that only seed, arguments that are seeds, sums that contain one."""

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.Expr) and _seeds(node.value):
            return None
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if all(_is_seed(target) for target in targets):
                return None
        elif isinstance(node, ast.Import) and [alias.name for alias in node.names] == ["random"]:
            return None  # its other uses stay in the tree; its seeding is removed above
        elif isinstance(node, ast.ImportFrom):
            node.names = [alias for alias in node.names if not SEED_NAME.search(alias.name)]
        elif isinstance(node, ast.Call):
            node.keywords = [keyword for keyword in node.keywords if not SEED_NAME.search(keyword.arg or "")]
            node.args = [] if _seeds(node) else node.args
        elif _is_seed(node) or (isinstance(node, ast.BinOp) and (_is_seed(node.left) or _is_seed(node.right))):
            return ast.Name("SEED")
        return self.generic_visit(node)


def _seeds(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _last_name(node.func) in SEEDING


def _is_seed(node: ast.AST) -> bool:
    return SEED_NAME.search(_last_name(node)) is not None


def _last_name(node: ast.AST) -> str:
    """`seed` of both `seed` and `self.seed`; empty for anything without a name."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _folded(node: ast.UnaryOp | ast.BinOp) -> ast.expr:
    if isinstance(node, ast.UnaryOp):
        value = _number(node.operand)
        return ast.Constant(-value) if isinstance(node.op, ast.USub) and value is not None else node
    left, right = _number(node.left), _number(node.right)
    result = None if left is None or right is None else computed(node.op, left, right)
    return node if result is None else ast.Constant(result)


def computed(operation: ast.operator, left: float, right: float) -> float | None:
    """The result of arithmetic on two literals, such as `2**19`; None if there is none or it could take forever."""
    function = OPERATORS.get(type(operation))
    if function is None or (isinstance(operation, ast.Pow) and (abs(right) > 64 or abs(left) > 1024)):
        return None
    try:
        result = function(left, right)
    except ArithmeticError:
        return None
    return result if isinstance(result, int | float) else None


def _number(node: ast.expr) -> float | None:
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
