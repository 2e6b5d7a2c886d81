"""Decides whether a proposal may become a trial: allowed paths only, parses, changes something, not tried before."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Mapping

from autoresearch.records import Proposal


def refusal(
    proposal: Proposal, incumbent: Mapping[str, str], tried: Mapping[str, int], editable: Collection[str]
) -> str | None:
    """Why a proposal is refused, in words for its researcher; None where it may run.

    `incumbent` has the editable files that it starts from, `tried` the trial number of each fingerprint so far.
    """
    if not " ".join(proposal.idea.split()):
        return "the proposal has no idea: say in one line what it changes"
    forbidden = sorted(set(proposal.files) - set(editable))
    if forbidden:
        return f"{', '.join(forbidden)} may not be changed: a trial edits {', '.join(editable)} and nothing else"
    files = {**incumbent, **proposal.files}
    for path, text in files.items():
        problem = syntax_problem(path, text)
        if problem:
            return problem
    mark = fingerprint(files)
    if mark == fingerprint(incumbent):
        return "the proposal changes nothing but comments or layout"
    if mark in tried:
        return f"the same program was tried before, as trial {tried[mark]}"
    return None


def syntax_problem(path: str, text: str) -> str | None:
    """What is wrong with a Python file's syntax, with its line; None where it parses or is no Python."""
    if not path.endswith(".py"):
        return None
    try:
        compile(text, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        return f"{path} has a syntax error{f' in line {line}' if line else ''}: {getattr(error, 'msg', error)}"
    return None


def fingerprint(files: Mapping[str, str]) -> str:
    """A digest of the files' syntax: the same for texts that differ in comments and layout alone."""
    digest = hashlib.sha256()
    for path in sorted(files):
        text = files[path]
        syntax = ast.dump(ast.parse(text)) if path.endswith(".py") else text
        digest.update(f"{path}\0{syntax}\0".encode())
    return digest.hexdigest()
