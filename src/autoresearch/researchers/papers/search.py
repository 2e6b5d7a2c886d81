"""Searches arXiv and the user's own notes, and returns what it finds as data."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoresearch.base.errors import UserError
from autoresearch.ledger.report import one_line, shorten
from autoresearch.researchers.papers.arxiv import ARXIV, Arxiv, search_arxiv
from autoresearch.researchers.papers.notes import search_folders
from autoresearch.researchers.papers.paper import Paper
from autoresearch.researchers.prompt import fence

MOST_WORDS = 32  # of a query; the rest of a longer one is ignored
MARKS = 320  # characters that a fence adds at most: its title twice, its code, its lines


@dataclass(frozen=True)
class Found:
    """What a search gave, the user's own notes apart from arXiv, and what a reader should know about how it went."""

    query: str
    own: tuple[Paper, ...] = ()
    arxiv: tuple[Paper, ...] = ()
    messages: tuple[str, ...] = ()


def search(query: str, *, folders: Sequence[Path], cache: Path, limit: int = 5, arxiv: Arxiv = ARXIV) -> Found:
    """At most `limit` results from the user's own folders and as many from arXiv, best first.

    Raises:
        UserError: a folder does not exist.
    """
    for folder in folders:
        if not (folder.is_dir() and os.access(folder, os.R_OK | os.X_OK)):
            raise UserError(f"cannot read the folder {folder}: correct `papers:` in program.md, or create it")
    words = _words(query)
    if not words:
        return Found(query, messages=("the query contains no word: say in a few words what to look for",))
    messages: list[str] = []
    own = search_folders(words, folders, cache, limit, messages)
    return Found(query, own, search_arxiv(words, cache, limit, arxiv, messages), tuple(messages))


def as_text(found: Found, limit_characters: int = 12_000) -> str:
    """The results as a researcher or a terminal reads them: at most `limit_characters`, each fenced as data."""
    every = [*(("own note", paper) for paper in found.own), *(("arXiv", paper) for paper in found.arxiv)]
    lines = [f"{len(every) or 'nothing'} found for: {shorten(one_line(found.query), 200)}"]
    lines += [f"note: {shorten(one_line(message), 300)}" for message in found.messages]
    shown = every[: max(limit_characters - len("\n".join(lines)) - MARKS, 0) // (2 * MARKS)]
    if len(shown) < len(every):
        lines.append(f"note: {len(every) - len(shown)} left out because there is no room")
    head = shorten("\n".join(lines), max(limit_characters, 1))
    each = (limit_characters - len(head)) // max(len(shown), 1) - MARKS
    blocks = [fence(f"{kind} {paper.source}, {paper.date}: {paper.title}", paper.text, each) for kind, paper in shown]
    return "\n\n".join([head, *blocks])


def _words(query: str) -> tuple[str, ...]:
    """The query's different words in lower case. Nothing else of it is left, so it cannot be a syntax error."""
    return tuple(dict.fromkeys(re.findall(r"\w+", query[:10_000].lower())))[:MOST_WORDS]
