"""Edits of Python source by its syntax: whatever is not edited stays as it is, byte for byte.

Patterns are Python too. A name in one that begins with an underscore stands for any expression (the same one wherever
it occurs again). An edit that finds no place, or more than it expects, gives None.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

ATOMS = (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.Constant)


@dataclass(frozen=True)
class Source:
    """A parsed text. Places in it are byte offsets in UTF-8, as Python's syntax tree counts them."""

    tree: ast.Module
    text: bytes
    starts: Sequence[int]

    @classmethod
    @functools.lru_cache(maxsize=64)  # many edits are tried on the same text, and the tree is only read
    def of(cls, text: str) -> Source:
        raw = text.encode()
        return cls(ast.parse(text), raw, [0, *(match.end() for match in re.finditer(rb"\r\n|\r|\n", raw))])

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self.starts[node.lineno - 1] + node.col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def segment(self, node: ast.expr | ast.stmt) -> str:
        start, end = self.span(node)
        return self.text[start:end].decode()

    def spliced(self, edits: Sequence[tuple[int, int, str]]) -> str:
        """The text with each (start, end, new) put in place; they must not overlap."""
        text = self.text
        for start, end, new in sorted(edits, reverse=True):
            text = text[:start] + new.encode() + text[end:]
        return text.decode()


# ---------------------------------------------------------------- expressions


def rewrite(text: str, pattern: str, replacement: str, *, times: int | None = 1) -> str | None:
    """Replace the expressions that match the pattern, if there are exactly `times` (None: one or more)."""
    source = Source.of(text)
    wanted = ast.parse(pattern, mode="eval").body
    edits = []
    for node, bound in _matches(source.tree, wanted):
        assert isinstance(node, ast.expr)
        edits.append((*source.span(node), _filled(replacement, bound, source)))
    if not edits or (times is not None and len(edits) != times):
        return None
    return source.spliced(edits)


def _matches(node: ast.AST, wanted: ast.AST) -> Iterator[tuple[ast.AST, dict[str, ast.expr]]]:
    """The outermost nodes that match, with what the pattern's names stand for."""
    bound: dict[str, ast.expr] = {}
    if _fits(wanted, node, bound):
        yield node, bound
        return
    for child in ast.iter_child_nodes(node):
        yield from _matches(child, wanted)


def _fits(wanted: Any, found: Any, bound: dict[str, ast.expr]) -> bool:
    if isinstance(wanted, ast.Name) and wanted.id.startswith("_"):
        if not isinstance(found, ast.expr):
            return False
        return ast.unparse(bound.setdefault(wanted.id, found)) == ast.unparse(found)
    if isinstance(wanted, ast.expr_context):
        return True
    if isinstance(wanted, ast.AST):
        same = type(wanted) is type(found)
        return same and all(_fits(getattr(wanted, f), getattr(found, f), bound) for f in wanted._fields)
    if isinstance(wanted, list):
        same = isinstance(found, list) and len(wanted) == len(found)
        return same and all(_fits(a, b, bound) for a, b in zip(wanted, found, strict=True))
    return bool(wanted == found)


def _filled(replacement: str, bound: dict[str, ast.expr], source: Source) -> str:
    """The replacement with the pattern's names filled in, in parentheses if precedence could matter."""
    for name, node in bound.items():
        segment = source.segment(node)
        value = segment if isinstance(node, ATOMS) else f"({segment})"
        replacement = value.join(re.split(rf"\b{name}\b", replacement))
    return replacement


# ---------------------------------------------------------------- statements


def insert(text: str, pattern: str, lines: str, *, after: bool = True) -> str | None:
    """Put whole lines after (or before) the only statement that matches the pattern, indented like it."""
    source = Source.of(text)
    wanted = ast.parse(pattern).body[0]
    found = list(_matches(source.tree, wanted))
    if len(found) != 1:
        return None
    node, bound = found[0]
    assert isinstance(node, ast.stmt)
    margin = " " * node.col_offset
    filled = "".join(margin + line + "\n" for line in _filled(lines, bound, source).splitlines())
    assert node.end_lineno is not None
    place = node.end_lineno if after else node.lineno - 1
    if place >= len(source.starts):  # the file's last line has no end of its own
        return text + "\n" + filled
    return source.spliced([(source.starts[place], source.starts[place], filled)])


def define(text: str, lines: str, *, before: str) -> str | None:
    """Put a top-level definition before the class or function called `before`."""
    source = Source.of(text)
    named = (ast.FunctionDef, ast.ClassDef)
    places = [node for node in source.tree.body if isinstance(node, named) and node.name == before]
    if len(places) != 1:
        return None
    first = min([places[0].lineno, *(decorator.lineno for decorator in places[0].decorator_list)])
    start = source.starts[first - 1]
    return source.spliced([(start, start, lines.strip("\n") + "\n\n\n")])
