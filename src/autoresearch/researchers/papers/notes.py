"""Searches the user's own folders of notes and PDFs."""

from __future__ import annotations

import collections
import contextlib
import datetime
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from autoresearch.ledger.report import one_line, plain, shorten
from autoresearch.researchers.papers.paper import INSTALL, Paper, digest, keep

SUFFIXES = (".md", ".txt", ".pdf")
PASSAGE = 1_200  # characters of a passage
MOST_FILES = 2_000
MOST_TEXT_BYTES = 4 * 2**20
MOST_PDF_BYTES = 64 * 2**20
MOST_PAGES = 200
PDF_SECONDS = 30.0  # spent on reading new PDFs in one search; the next search reads the others


class _Unread(Exception):
    """A file was skipped, and why."""


def search_folders(
    words: Sequence[str], folders: Sequence[Path], cache: Path, limit: int, messages: list[str]
) -> tuple[Paper, ...]:
    """The best passage of each of the best files."""
    best: dict[tuple[str, ...], Paper] = {}
    for passage in ranked(_passages(folders, cache, messages), words):
        best.setdefault((passage.source, passage.title, passage.date), passage)
    return tuple(best.values())[:limit]


def _passages(folders: Sequence[Path], cache: Path, messages: list[str]) -> list[Paper]:
    passages: list[Paper] = []
    passed_over: dict[str, list[str]] = collections.defaultdict(list)
    until = time.monotonic() + PDF_SECONDS
    for number, (folder, path) in enumerate((home, path) for home in folders for path in _files(home)):
        name = one_line(path.relative_to(folder).as_posix())
        try:
            if number >= MOST_FILES:
                raise _Unread(f"only {MOST_FILES} files are searched, not")
            text, date = _text(path, cache, until), datetime.date.fromtimestamp(path.stat().st_mtime)
        except (_Unread, OSError) as error:
            passed_over[str(getattr(error, "strerror", error))].append(name)
        else:
            title = _title(text, name)
            passages += [Paper(title, name, date.isoformat(), passage) for passage in cut_up(text)]
    for why, names in passed_over.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        messages.append(f"{why}: {', '.join(names[:3])}{more}")
    return passages


def _files(folder: Path) -> Iterator[Path]:
    """The folder's notes and PDFs, in order. Nothing hidden, and nothing that a link reaches outside of it."""
    home = folder.resolve()
    for directory, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            path = Path(directory, name)
            wanted = path.suffix.lower() in SUFFIXES and not name.startswith(".")
            if wanted and path.is_file() and path.resolve().is_relative_to(home):
                yield path


def _title(text: str, name: str) -> str:
    """The first Markdown heading near the top, else the file's name."""
    heading = re.search(r"^#{1,3} +(\S.*)$", text[:PASSAGE], re.MULTILINE)
    return one_line(heading[1]) if heading else Path(name).stem


def cut_up(text: str) -> Iterator[str]:
    """Passages of at most PASSAGE characters: whole paragraphs together; a longer one is cut between words."""
    passage = ""
    for paragraph in re.split(r"\n\s*\n", text):
        for piece in re.findall(rf".{{1,{PASSAGE}}}(?!\S)|\S{{{PASSAGE}}}", paragraph.strip(), re.DOTALL):
            if passage and len(passage) + len(piece) + 2 > PASSAGE:
                yield passage
                passage = ""
            passage = f"{passage}\n\n{piece.strip()}" if passage else piece.strip()
    if passage:
        yield passage


def _text(path: Path, cache: Path, until: float) -> str:
    """The text of a note or a PDF; a PDF's is kept in the cache."""
    state, is_pdf = path.stat(), path.suffix.lower() == ".pdf"
    if state.st_size > (MOST_PDF_BYTES if is_pdf else MOST_TEXT_BYTES):
        raise _Unread("too large to search")
    if not is_pdf:
        return plain(path.read_text(encoding="utf-8", errors="replace"))
    kept = cache / f"pdf-{digest(str(path.resolve()), str(state.st_mtime_ns), str(state.st_size))}.txt"
    with contextlib.suppress(OSError):
        return kept.read_text(encoding="utf-8")
    if time.monotonic() > until:
        raise _Unread("not read yet because it takes long (search again)")
    if not (text := plain(_extract(path))).strip():
        raise _Unread("no text in it, perhaps a scan")
    with contextlib.suppress(OSError):
        keep(kept, text)
    return text


def _extract(path: Path) -> str:
    try:
        import pypdf

        with pypdf.PdfReader(path) as reader:
            return "\n\n".join(page.extract_text() for page in reader.pages[:MOST_PAGES])
    except ImportError as error:
        raise _Unread(f"PDFs need `{INSTALL}`") from error
    except Exception as error:  # pypdf fails in many ways at what is not a PDF
        raise _Unread(f"not a readable PDF ({shorten(one_line(str(error)), 80)})") from error


def ranked(passages: Sequence[Paper], words: Sequence[str]) -> list[Paper]:
    """The passages that contain any of the words, best first."""
    try:
        return by_bm25(passages, words)
    except sqlite3.OperationalError:  # a build of SQLite without full-text search
        return by_count(passages, words)


def by_bm25(passages: Sequence[Paper], words: Sequence[str]) -> list[Paper]:
    """With SQLite's full-text search, in which a word's forms count as equal."""
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE VIRTUAL TABLE passages USING fts5(text, tokenize='porter unicode61')")
        database.executemany("INSERT INTO passages VALUES (?)", [(passage.text,) for passage in passages])
        match = " OR ".join(f'"{word}"' for word in words)
        rows = database.execute("SELECT rowid FROM passages WHERE passages MATCH ? ORDER BY rank, rowid", (match,))
        return [passages[row - 1] for (row,) in rows]


def by_count(passages: Sequence[Paper], words: Sequence[str]) -> list[Paper]:
    """By how many of the words a passage contains, then by how often."""

    def score(passage: Paper) -> tuple[int, int]:
        counts = collections.Counter(re.findall(r"\w+", passage.text.lower()))
        return sum(word in counts for word in words), sum(counts[word] for word in words)

    return [passage for passage in sorted(passages, key=score, reverse=True) if score(passage) > (0, 0)]
