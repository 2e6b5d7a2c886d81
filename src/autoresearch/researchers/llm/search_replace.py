"""Applies a language model's SEARCH/REPLACE blocks: finds places by whole lines, and explains what does not fit.

Pure: texts in, texts out.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoresearch.ledger.report import printable_line

NEAREST = 3  # lines shown before and after the place that a search text may have meant
COMPARED = 200  # characters of a line that are compared when looking for that place
# A comment that replaces code the model did not want to repeat.
ABBREVIATED = re.compile(
    r"(?:\.\.\.|…).*\b(?:rest|remain\w*|existing|unchanged|same|omitted)\b|\bunchanged\b.*(?:\.\.\.|…)", re.IGNORECASE
)


COMMENT = re.compile(r"(?:^|\s)#", re.MULTILINE)  # where one may begin


class ReplyError(ValueError):
    """What is wrong with a reply, in a sentence that helps its writer to fix it."""


@dataclass(frozen=True)
class Edit:
    """A change of one file: the search text to replace, or None for the whole file."""

    path: str
    search: str | None
    replace: str


def one_line(text: str) -> str:
    """The text's printable characters on one line, without emphasis marks around it."""
    return printable_line(text).strip("*_` ")


def known_path(named: str, files: Mapping[str, str]) -> str:
    """The editable file that a block names; if it names none, the only one.

    Raises:
        ReplyError: there is no such file, or it is unclear which one is meant.
    """
    named = named.removeprefix("./")
    if named in files:
        return named
    choices = ", ".join(sorted(files))
    if not named and len(files) == 1:
        return next(iter(files))
    if not named:
        raise ReplyError(f"a block does not say which file it edits: name one of {choices} after SEARCH")
    raise ReplyError(f"{one_line(named)[:100]} may not be edited: edit {choices}")


def apply(edits: Sequence[Edit], files: Mapping[str, str]) -> dict[str, str]:
    """The texts of the files that the edits name, after all of them."""
    changed: dict[str, str] = {}
    for edit in edits:
        path = known_path(edit.path, files)
        text = changed.get(path, files[path])
        changed[path] = edit.replace if edit.search is None else replaced(text, edit.search, edit.replace, path)
        if (line := abbreviation(edit.replace)) and line not in files[path]:
            raise ReplyError(f"{line!r} stands for code that it does not repeat: write all of it")
    return changed


def abbreviation(text: str) -> str:
    """A comment in the text that replaces code, such as `# ... rest unchanged`; empty if there is none."""
    comments = (line.strip()[:COMPARED] for line in text.split("\n") if line.lstrip().startswith("#"))
    return next((line for line in comments if ABBREVIATED.search(line)), "")


def replaced(text: str, search: str, new: str, path: str) -> str:
    """The text with the only place that matches `search` replaced. White space at the ends of lines does not count."""
    if not search.strip():
        raise ReplyError(f"a search text for {path} is empty: quote the lines that the new ones replace or follow")
    ending = "\r\n" if "\r\n" in text else "\n"
    lines, old = text.replace("\r\n", "\n").split("\n"), search.split("\n")
    spans = windows(lines, old) or windows([_bare(line) for line in lines], [_bare(line) for line in trimmed(old)])
    spans = spans or begun(lines, search.strip())
    if not spans:
        raise ReplyError(f"the search text is not in {path}; {nearest(lines, trimmed(old))}")
    if len(spans) > 1:
        places = ", ".join(str(start + 1) for start, _ in spans[:8])
        raise ReplyError(
            f"the search text is {len(spans)} times in {path} (lines {places}): add lines around it until it is unique"
        )
    start, end = spans[0]
    fresh = new.split("\n") if new else []
    if start == end:  # the beginning of one line: the rest of it stays, but not its comment beside a new one
        rest = lines[start].partition(search.strip())[2]
        if rest.lstrip().startswith("#") and COMMENT.search(new):
            rest = ""
        fresh, end = [lines[start].partition(search.strip())[0] + new.strip() + rest], start + 1
    return ending.join([*lines[:start], *fresh, *lines[end:]])


def _bare(line: str) -> str:
    return line.expandtabs(4).rstrip()


def trimmed(lines: Sequence[str]) -> list[str]:
    """The lines without blank ones at both ends."""
    full = [place for place, line in enumerate(lines) if line.strip()]
    return list(lines[full[0] : full[-1] + 1]) if full else []


def windows(lines: Sequence[str], old: Sequence[str]) -> list[tuple[int, int]]:
    """Where the old lines are among the lines, from a line up to before another."""
    size = len(old)
    return [
        (start, start + size)
        for start in range(len(lines) - size + 1)
        if lines[start] == old[0] and list(lines[start : start + size]) == list(old)
    ]


def begun(lines: Sequence[str], search: str) -> list[tuple[int, int]]:
    """The lines that begin with a one-line search text and continue with something else, such as a comment."""
    found = []
    for place, line in enumerate(lines):
        whole = line.strip()
        rest = whole.removeprefix(search)
        if rest != whole and not (rest[:1].isalnum() or rest[:1] in ("_", ".")):
            found.append((place, place))
    return found


def nearest(lines: Sequence[str], old: Sequence[str]) -> str:
    """The lines of the file that a search text may have meant, numbered."""
    keys = [line.strip()[:COMPARED] for line in lines]
    wanted = sorted({line.strip()[:COMPARED] for line in old if line.strip()}, key=lambda line: (-len(line), line))
    for want in wanted[:5]:
        if close := difflib.get_close_matches(want, keys, n=1, cutoff=0.6):
            at = keys.index(close[0])
            first, last = max(at - NEAREST, 0), min(at + NEAREST + 1, len(lines))
            shown = "\n".join(f"{place + 1}: {lines[place][:COMPARED]}" for place in range(first, last))
            return f"the nearest lines are (with their numbers, which are not part of them):\n{shown}"
    return f"nothing in it resembles {one_line(wanted[0])[:80]!r}: quote the lines exactly as they are"
