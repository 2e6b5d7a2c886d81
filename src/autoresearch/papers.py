"""Searches arXiv and the person's own notes, and hands what it finds to a reader as data; trouble is told, not raised.

It keeps arXiv's answers and the text of PDFs in a cache of its own and writes nowhere else.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import functools
import hashlib
import json
import os
import queue
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoresearch import atomic
from autoresearch.errors import UserError
from autoresearch.prompt import fence
from autoresearch.report import one_line, plain, shorten

INSTALL = "pip install 'autoresearch[papers]'"
SUFFIXES = (".md", ".txt", ".pdf")
PASSAGE = 1_200  # characters of a passage
MOST_WORDS = 32  # of a query; the rest of a longer one is not looked for
MOST_FILES = 2_000
MOST_TEXT_BYTES = 4 * 2**20
MOST_PDF_BYTES = 64 * 2**20
MOST_PAGES = 200
PDF_SECONDS = 30.0  # spent on reading new PDFs in one search; the others' turn comes in the next
MARKS = 320  # characters that a fence adds at most: its title twice over, its code, its lines


@dataclass(frozen=True)
class Paper:
    """One find: `source` is an arXiv id or a file's name in its folder, `text` the abstract or the best passage."""

    title: str
    source: str
    date: str
    text: str


@dataclass(frozen=True)
class Found:
    """What a search gave, the person's own notes apart from arXiv, and what a reader should know of how it went."""

    query: str
    own: tuple[Paper, ...] = ()
    arxiv: tuple[Paper, ...] = ()
    messages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arxiv:
    """Where arXiv is and how it is asked: its terms want three seconds between requests."""

    url: str = "https://export.arxiv.org/api/query"
    timeout_seconds: float = 12.0
    pause_seconds: float = 3.0
    fresh_days: float = 7.0


ARXIV = Arxiv()


def search(query: str, *, folders: Sequence[Path], cache: Path, limit: int = 5, arxiv: Arxiv = ARXIV) -> Found:
    """At most `limit` finds of the person's own folders and as many of arXiv, the best first.

    Raises:
        UserError: a folder is not there.
    """
    for folder in folders:
        if not (folder.is_dir() and os.access(folder, os.R_OK | os.X_OK)):
            raise UserError(f"{folder} is no folder that can be read: correct `papers:` in program.md, or make it")
    words = _words(query)
    if not words:
        return Found(query, messages=("the query has no word in it: say in a few words what to look for",))
    messages: list[str] = []
    own = _search_folders(words, folders, cache, limit, messages)
    return Found(query, own, _search_arxiv(words, cache, limit, arxiv, messages), tuple(messages))


def as_text(found: Found, limit_characters: int = 12_000) -> str:
    """The finds as a researcher or a terminal reads them: at most so many characters, every find fenced as data."""
    every = [*(("own note", paper) for paper in found.own), *(("arXiv", paper) for paper in found.arxiv)]
    lines = [f"{len(every) or 'nothing'} found for: {shorten(one_line(found.query), 200)}"]
    lines += [f"note: {shorten(one_line(message), 300)}" for message in found.messages]
    shown = every[: max(limit_characters - len("\n".join(lines)) - MARKS, 0) // (2 * MARKS)]
    if len(shown) < len(every):
        lines.append(f"note: {len(every) - len(shown)} left out for want of room")
    head = shorten("\n".join(lines), max(limit_characters, 1))
    each = (limit_characters - len(head)) // max(len(shown), 1) - MARKS
    blocks = [fence(f"{kind} {paper.source}, {paper.date}: {paper.title}", paper.text, each) for kind, paper in shown]
    return "\n\n".join([head, *blocks])


def _words(query: str) -> tuple[str, ...]:
    """The query's different words in lower case: with nothing else left of it, it can be no syntax error."""
    return tuple(dict.fromkeys(re.findall(r"\w+", query[:10_000].lower())))[:MOST_WORDS]


# ---------------------------------------------------------------- arXiv


class _Unanswered(Exception):
    """arXiv gave no answer, and why."""


def _search_arxiv(
    words: Sequence[str], cache: Path, limit: int, arxiv: Arxiv, messages: list[str]
) -> tuple[Paper, ...]:
    """arXiv's answer: the cached one where it is fresh, or where there is no other."""
    path = cache / f"arxiv-{_digest(*words, str(limit), arxiv.url)}.json"
    asked, cached = _cached(path)
    if cached and 0 <= time.time() - asked < arxiv.fresh_days * 86_400:
        return cached
    try:
        papers = _within(arxiv.timeout_seconds, lambda: _ask(words, cache, limit, arxiv))
    except _Unanswered as error:
        instead = f"; shown is its answer of {datetime.date.fromtimestamp(asked).isoformat()}" if cached else ""
        messages.append(f"arXiv could not be asked ({error}){instead}")
        return cached
    if papers:  # a network's log-in page looks like an empty answer, too
        content = {"asked": time.time(), "words": words, "papers": [dataclasses.asdict(paper) for paper in papers]}
        try:
            _keep(path, json.dumps(content))
        except OSError as error:
            messages.append(f"arXiv's answer could not be kept in {cache} ({error.strerror or error})")
    return papers


def _cached(path: Path) -> tuple[float, tuple[Paper, ...]]:
    """When arXiv was asked and what it answered; (0, ()) where that is not known."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        papers = tuple(Paper(**{key: str(value) for key, value in paper.items()}) for paper in content["papers"])
        return float(content["asked"]), papers
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0.0, ()


def _within(seconds: float, work: Callable[[], tuple[Paper, ...]]) -> tuple[Paper, ...]:
    """Do the work in a thread that is left alone when its time is over: looking a name up knows no time-out."""
    answers: queue.SimpleQueue[tuple[Paper, ...] | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put(work())
        except Exception as error:  # a library and a network of others: whatever it is, it is told
            answers.put(error)

    threading.Thread(target=run, name="arxiv", daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise _Unanswered(f"no answer within {seconds:g} seconds") from None
    if isinstance(answer, Exception):
        raise _Unanswered(_reason(answer)) from answer
    return answer


def _reason(error: Exception) -> str:
    """Why there was no answer, in a few words."""
    reasons = {
        "ImportError": f"the library for it is not installed: `{INSTALL}`",
        "Timeout": "it took too long",
        "ConnectionError": "no connection",
        "HTTPError": f"it answered with HTTP {getattr(error, 'status', 'error')}",
        "_Unanswered": one_line(str(error)),
    }
    known = (reasons[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in reasons)
    return shorten(next(known, one_line(f"{type(error).__name__}: {error}")), 120)


def _ask(words: Sequence[str], cache: Path, limit: int, arxiv: Arxiv) -> tuple[Paper, ...]:
    """Papers with all of the words, else with any."""
    import arxiv as library  # type: ignore[import-untyped]

    client = library.Client(page_size=limit, delay_seconds=arxiv.pause_seconds, num_retries=1)
    client.query_url_format = arxiv.url + "?{}"
    last = max((path.stat().st_mtime for path in cache.glob("arxiv-*.json")), default=0.0)  # of any process
    time.sleep(min(max(last + arxiv.pause_seconds - time.time(), 0.0), arxiv.pause_seconds))
    with client._session as session:  # it has no time-out and no close of its own
        session.request = functools.partial(session.request, timeout=arxiv.timeout_seconds)
        for operator in (" AND ", " OR "):
            asked = library.Search(operator.join(f"all:{word}" for word in words), max_results=limit)
            papers = tuple(_paper(result) for result in client.results(asked))
            if papers or len(words) == 1:
                break
    return papers


def _paper(result: Any) -> Paper:
    if "/api/errors" in result.entry_id:
        raise _Unanswered(f"it refused the query: {result.summary}")
    title, text = one_line(result.title), plain(result.summary).strip()
    return Paper(title, one_line(result.get_short_id()), result.published.date().isoformat(), text)


# ---------------------------------------------------------------- the person's own notes


class _Unread(Exception):
    """A file was passed over, and why."""


def _search_folders(
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
    """The folder's notes and PDFs, in order; nothing hidden, and nothing that a link reaches outside of it."""
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
    """Passages of at most PASSAGE characters: whole paragraphs together, a longer one cut between words."""
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
        raise _Unread("too large to be searched")
    if not is_pdf:
        return plain(path.read_text(encoding="utf-8", errors="replace"))
    kept = cache / f"pdf-{_digest(str(path.resolve()), str(state.st_mtime_ns), str(state.st_size))}.txt"
    with contextlib.suppress(OSError):
        return kept.read_text(encoding="utf-8")
    if time.monotonic() > until:
        raise _Unread("not read yet, for it takes long (search again)")
    if not (text := plain(_extract(path))).strip():
        raise _Unread("no text in it, a scan perhaps")
    with contextlib.suppress(OSError):
        _keep(kept, text)
    return text


def _extract(path: Path) -> str:
    try:
        import pypdf

        with pypdf.PdfReader(path) as reader:
            return "\n\n".join(page.extract_text() for page in reader.pages[:MOST_PAGES])
    except ImportError as error:
        raise _Unread(f"PDFs need `{INSTALL}`") from error
    except Exception as error:  # pypdf fails in many ways at what is no PDF
        raise _Unread(f"not a PDF that can be read ({shorten(one_line(str(error)), 80)})") from error


# ---------------------------------------------------------------- ranking


def ranked(passages: Sequence[Paper], words: Sequence[str]) -> list[Paper]:
    """The passages that have any of the words, the best first."""
    try:
        return by_bm25(passages, words)
    except sqlite3.OperationalError:  # a build of SQLite without full text search
        return by_count(passages, words)


def by_bm25(passages: Sequence[Paper], words: Sequence[str]) -> list[Paper]:
    """By SQLite's full text search, in which a word's forms are alike."""
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE VIRTUAL TABLE passages USING fts5(text, tokenize='porter unicode61')")
        database.executemany("INSERT INTO passages VALUES (?)", [(passage.text,) for passage in passages])
        match = " OR ".join(f'"{word}"' for word in words)
        rows = database.execute("SELECT rowid FROM passages WHERE passages MATCH ? ORDER BY rank, rowid", (match,))
        return [passages[row - 1] for (row,) in rows]


def by_count(passages: Sequence[Paper], words: Sequence[str]) -> list[Paper]:
    """By how many of the words a passage has, then by how often."""

    def score(passage: Paper) -> tuple[int, int]:
        counts = collections.Counter(re.findall(r"\w+", passage.text.lower()))
        return sum(word in counts for word in words), sum(counts[word] for word in words)

    return [passage for passage in sorted(passages, key=score, reverse=True) if score(passage) > (0, 0)]


# ---------------------------------------------------------------- the cache


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:24]


def _keep(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, text.encode("utf-8", errors="replace"))
