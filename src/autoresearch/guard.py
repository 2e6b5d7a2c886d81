"""Decides whether a proposal may become a trial: allowed paths only, parses, changes something, not tried before."""

from __future__ import annotations

import ast
import functools
import hashlib
import operator
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from autoresearch.records import Proposal

NEAR = 0.05  # a constant that is moved by a smaller share than this moves val_bpb less than a seed does
FEW = 3  # constants moved so little together; more of them may add up to something
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}
# What seeds a generator of random numbers, by the last part of its name: torch's, NumPy's, Python's, jax's, helpers'.
SEEDING = {
    *("seed", "seed_all", "set_seed", "seed_everything", "manual_seed", "manual_seed_all", "Random", "PRNGKey"),
    *("default_rng", "RandomState", "SeedSequence", "PCG64", "Philox", "MT19937"),
}
SEED_NAME = re.compile(r"(?i)(^|_)seeds?\d*(_offset|_base)?$|^random_state$")


def refusal(
    proposal: Proposal, incumbent: Mapping[str, str], tried: Mapping[str, str], editable: Collection[str]
) -> str | None:
    """Why a proposal is refused, in words for its researcher; None where it may run.

    `incumbent` has the editable files that it starts from, `tried` each fingerprint so far with its trial's number
    and what became of it.
    """
    if not " ".join(proposal.idea.split()):
        return "the proposal has no idea: say in one line what it changes"
    forbidden = sorted(set(proposal.files) - set(editable))
    if forbidden:
        names = ", ".join(ascii(path)[1:-1] for path in forbidden)
        return f"{names} may not be changed: a trial edits {', '.join(editable)} and nothing else"
    files = {**incumbent, **proposal.files}
    for path, text in files.items():
        problem = syntax_problem(path, text)
        if problem:
            return problem
    mark = fingerprint(files)
    if mark == fingerprint(incumbent):
        return "the proposal changes nothing but comments, layout or annotations"
    if seedless(files) == seedless(incumbent):
        return "the proposal changes only seeds: the program sets them, and a seed is luck, not an improvement"
    if mark in tried:
        return f"the same program was tried before, as trial {tried[mark]}"
    return None


def near_duplicate(files: Mapping[str, str], past: Iterable[tuple[str, Mapping[str, str]]]) -> str | None:
    """Why files are as good as tried: a past program (its name, its files) differs in a few numbers, by less than NEAR.

    Such a difference drowns in the noise of one run, and one of seeds alone is that noise. None where there is no such
    program.
    """
    shape, values = skeleton(files)
    for name, others in past:
        other_shape, other_values = skeleton(others)
        if shape != other_shape:
            continue
        if values != other_values and seedless(files) == seedless(others):
            return f"only seeds tell it from trial {name}: the program sets them, and a seed is luck"
        pairs = [(old, new) for old, new in zip(other_values, values, strict=True) if old != new]
        if 0 < len(pairs) <= FEW and all(is_near(old, new) for old, new in pairs):
            moves = ", ".join(f"{old:g} to {new:g}" for old, new in pairs)
            return f"only {moves} tells it from trial {name}: less than one run can resolve, so move further"
    return None


def is_near(old: float, new: float) -> bool:
    """Whether two values of a constant differ by less than NEAR, measured from 1 where both are shares close to 1.

    Whole numbers are sizes and counts: another one may be another speed.
    """
    if isinstance(old, int) or isinstance(new, int):
        return old == new
    scales = [max(abs(old), abs(new))]
    if 0.5 < old <= 1 and 0.5 < new <= 1:
        scales.append(max(1 - old, 1 - new))
    return all(abs(old - new) < NEAR * scale for scale in scales)


def reveals(text: str, before: str, redact: Callable[[str], str]) -> bool:
    """Whether a text has one of the person's keys in it that the text before it has not."""
    return redact(text) != text and redact(before) == before


def syntax_problem(path: str, text: str) -> str | None:
    """What is wrong with a file: a character that cannot be written, or Python's syntax; None where it is well."""
    try:
        text.encode()
        if path.endswith(".py"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compile(text, path, "exec", dont_inherit=True)
                ast.dump(_normal(text))
    except UnicodeEncodeError:
        return f"{path} has a character that is no text (a lone surrogate)"
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        return f"{path} has a syntax error{f' in line {line}' if line else ''}: {getattr(error, 'msg', error)}"
    except (RecursionError, MemoryError):
        return f"{path} is nested too deeply to be read"
    return None


# ---------------------------------------------------------------- what a program is, whatever it looks like


def fingerprint(files: Mapping[str, str]) -> str:
    """A digest of the files' syntax: the same where comments, layout, docstrings or annotations alone differ."""
    return _fingerprint(tuple(sorted(files.items())))


def skeleton(files: Mapping[str, str]) -> tuple[str, tuple[float, ...]]:
    """A digest of the files' syntax without its numbers, and the numbers in their order."""
    return _skeleton(tuple(sorted(files.items())))


def seedless(files: Mapping[str, str]) -> str:
    """A digest of the files' syntax without seeds: the same where seeds, or seeding itself, are all that differs."""
    return _seedless(tuple(sorted(files.items())))


def size(files: Mapping[str, str]) -> int:
    """How many syntax nodes the Python files have: comments, layout, docstrings and annotations count for nothing."""
    return sum(1 for path, text in files.items() if path.endswith(".py") for _ in ast.walk(_normal(text)))


# A campaign's programs are compared again and again, and to parse them takes long.
@functools.lru_cache(maxsize=64)
def _fingerprint(files: tuple[tuple[str, str], ...]) -> str:
    return _digest(files, lambda tree: tree)


@functools.lru_cache(maxsize=512)
def _skeleton(files: tuple[tuple[str, str], ...]) -> tuple[str, tuple[float, ...]]:
    numbers = _Numbers()
    return _digest(files, numbers.visit), tuple(numbers.found)


@functools.lru_cache(maxsize=512)
def _seedless(files: tuple[tuple[str, str], ...]) -> str:
    return _digest(files, _Seedless().visit)


def _digest(files: tuple[tuple[str, str], ...], change: Callable[[ast.AST], ast.AST]) -> str:
    """A digest of the files' syntax, each tree of which is changed before."""
    digest = hashlib.sha256()
    for path, text in files:
        syntax = ast.dump(change(_normal(text))) if path.endswith(".py") else text
        digest.update(f"{path}\0{syntax}\0".encode())
    return digest.hexdigest()


def _normal(text: str) -> ast.AST:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a proposal's odd escapes are its own affair
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


class _Numbers(ast.NodeTransformer):
    """Takes the numbers out of a tree and keeps them."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        value = _number(node)
        if value is None:
            return node
        self.found.append(value)
        return ast.Constant(0)


class _Seedless(ast.NodeTransformer):
    """Takes seeds out of a tree: statements that only seed, what is given as a seed, sums made of one."""

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.Expr) and _seeds(node.value):
            return None
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if all(_is_seed(target) for target in targets):
                return None
        elif isinstance(node, ast.Import) and [alias.name for alias in node.names] == ["random"]:
            return None  # what it is needed for stays in the tree, unless that is its seed
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
    """`seed` of both `seed` and `self.seed`; nothing of what has no name."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _folded(node: ast.UnaryOp | ast.BinOp) -> ast.expr:
    if isinstance(node, ast.UnaryOp):
        value = _number(node.operand)
        return ast.Constant(-value) if isinstance(node.op, ast.USub) and value is not None else node
    left, right = _number(node.left), _number(node.right)
    result = None if left is None or right is None else computed(node.op, left, right)
    return node if result is None else ast.Constant(result)


def computed(operation: ast.operator, left: float, right: float) -> float | None:
    """The result of arithmetic on two literals, such as `2**19`; None where it has none or could take for ever."""
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
