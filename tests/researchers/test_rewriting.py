"""Edits by syntax: they find their place, keep everything else, and give up where they do not fit."""

from __future__ import annotations

import pytest

from autoresearch.researchers.source.rewriting import define, insert, rewrite

TEXT = """\
# héllo: a comment that is longer in bytes than in characters
def f(x):
    y = g(x)   # kept
    for i in range(3):
        y = h(y, i)
    return  square( y + 1 )
"""


def test_an_expression_is_replaced_and_the_rest_kept() -> None:
    assert rewrite(TEXT, "g(x)", "g(2 * x)") == TEXT.replace("g(x)", "g(2 * x)")


def test_a_name_with_an_underscore_stands_for_any_expression() -> None:
    assert rewrite(TEXT, "square(_a)", "cube(_a, _a)") == TEXT.replace("square( y + 1 )", "cube((y + 1), (y + 1))")


def test_a_name_that_comes_twice_stands_for_the_same_expression() -> None:
    assert rewrite("a = b * b + c * d\n", "_x * _x", "sq(_x)") == "a = sq(b) + c * d\n"


def test_an_expression_after_wide_characters_is_found() -> None:
    assert rewrite("a = 'ééé' + f(1)\n", "f(1)", "f(2)") == "a = 'ééé' + f(2)\n"


@pytest.mark.parametrize("pattern", ["nowhere(x)", "_f(_x)"])
def test_an_expression_that_is_not_there_once_is_left(pattern: str) -> None:
    assert rewrite(TEXT, pattern, "x") is None


def test_all_places_are_replaced_on_request() -> None:
    assert rewrite("a = f(1) + f(2)\n", "f(_x)", "g(_x)", times=None) == "a = g(1) + g(2)\n"


def test_lines_are_inserted_with_the_indentation_of_their_place() -> None:
    after = insert(TEXT, "y = h(_a, _b)", "if _b:\n    y = 0")
    assert after == TEXT.replace("h(y, i)\n", "h(y, i)\n        if i:\n            y = 0\n")
    before = insert(TEXT, "y = g(_a)", "_a += 1", after=False)
    assert before == TEXT.replace("    y = g", "    x += 1\n    y = g")


def test_lines_are_inserted_after_a_last_line_without_an_end() -> None:
    assert insert("x = 1\ny = 2", "y = 2", "z = 3") == "x = 1\ny = 2\nz = 3\n"


def test_lines_keep_the_line_endings_around_them_readable() -> None:
    assert insert("x = 1\r\ny = 2\r\n", "x = 1", "z = 3") == "x = 1\r\nz = 3\ny = 2\r\n"


def test_a_statement_that_is_there_twice_takes_no_lines() -> None:
    assert insert("x = 1\nx = 1\n", "x = 1", "y = 2") is None


def test_a_definition_goes_before_its_neighbor_and_its_decorators() -> None:
    text = "import a\n\n\n@a.b\ndef f():\n    pass\n"
    assert define(text, "def g():\n    pass\n", before="f") == text.replace("@a.b", "def g():\n    pass\n\n\n@a.b")
    assert define(text, "def g():\n    pass\n", before="missing") is None
