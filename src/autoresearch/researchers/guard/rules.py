"""The rules that every proposal must follow: allowed paths only, valid syntax, a real change."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection, Mapping

from autoresearch.ledger.records import Proposal
from autoresearch.researchers.guard.fingerprint import syntax


def broken_rule(
    proposal: Proposal, incumbent: Mapping[str, str], tried: Callable[[str], str | None], editable: Collection[str]
) -> str | None:
    """Why a proposal is refused, for its researcher; None if it may run.

    `incumbent` has the editable files that it starts from. `tried` gives the number and result of the trial with a
    fingerprint; None if there is none.
    """
    if not " ".join(proposal.idea.split()):
        return "the proposal has no idea: say in one line what it changes"
    forbidden = sorted(set(proposal.files) - set(editable))
    if forbidden:
        names = ", ".join(ascii(path)[1:-1] for path in forbidden)
        return f"{names} may not change: a trial edits {', '.join(editable)} and nothing else"
    files = {**incumbent, **proposal.files}
    for path, text in files.items():
        problem = syntax_problem(path, text)
        if problem:
            return problem
    before, after = syntax(incumbent), syntax(files)
    if after.fingerprint == before.fingerprint:
        return "the proposal changes nothing but comments, layout or annotations"
    if after.seedless == before.seedless:
        return "the proposal changes only seeds: the program sets them, and a seed is luck, not an improvement"
    if trial := tried(after.fingerprint):
        return f"the same program was tried before, as trial {trial}"
    return None


def reveals(text: str, before: str, redact: Callable[[str], str]) -> bool:
    """Whether a text contains one of the user's keys that the text before it did not."""
    return redact(text) != text and redact(before) == before


@functools.lru_cache(maxsize=128)  # asked by who proposes and by the guard
def syntax_problem(path: str, text: str) -> str | None:
    """What is wrong with a file: a character that cannot be written, or its Python syntax; None if it is fine."""
    try:
        text.encode()
        if path.endswith(".py"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compile(text, path, "exec", dont_inherit=True)
                syntax({path: text})
    except UnicodeEncodeError:
        return f"{path} contains a character that is not text (a lone surrogate)"
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        return f"{path} has a syntax error{f' in line {line}' if line else ''}: {getattr(error, 'msg', error)}"
    except (RecursionError, MemoryError):
        return f"{path} is nested too deeply to be read"
    return None
