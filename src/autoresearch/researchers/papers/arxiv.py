"""Searches arXiv, or its cache if arXiv does not answer."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoresearch.ledger.report import one_line, plain, shorten
from autoresearch.researchers.papers.paper import INSTALL, Paper, digest, keep


@dataclass(frozen=True)
class Arxiv:
    """Where arXiv is and how to ask it: its terms require three seconds between requests."""

    url: str = "https://export.arxiv.org/api/query"
    timeout_seconds: float = 12.0
    pause_seconds: float = 3.0
    fresh_days: float = 7.0


ARXIV = Arxiv()


class _Unanswered(Exception):
    """arXiv gave no answer, and why."""


def search_arxiv(words: Sequence[str], cache: Path, limit: int, arxiv: Arxiv, messages: list[str]) -> tuple[Paper, ...]:
    """arXiv's answer: the cached one if it is fresh, or if there is no other."""
    path = cache / f"arxiv-{digest(*words, str(limit), arxiv.url)}.json"
    asked, cached = _cached(path)
    if cached and 0 <= time.time() - asked < arxiv.fresh_days * 86_400:
        return cached
    try:
        papers = _within(arxiv.timeout_seconds, lambda: _ask(words, cache, limit, arxiv))
    except _Unanswered as error:
        instead = f"; this is its answer of {datetime.date.fromtimestamp(asked).isoformat()}" if cached else ""
        messages.append(f"arXiv could not be asked ({error}){instead}")
        return cached
    if papers:  # a network's login page looks like an empty answer, too
        content = {"asked": time.time(), "words": words, "papers": [dataclasses.asdict(paper) for paper in papers]}
        try:
            keep(path, json.dumps(content))
        except OSError as error:
            messages.append(f"cannot cache arXiv's answer in {cache} ({error.strerror or error})")
    return papers


def _cached(path: Path) -> tuple[float, tuple[Paper, ...]]:
    """When arXiv was asked and what it answered; (0, ()) if that is unknown."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        papers = tuple(Paper(**{key: str(value) for key, value in paper.items()}) for paper in content["papers"])
        return float(content["asked"]), papers
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0.0, ()


def _within(seconds: float, work: Callable[[], tuple[Paper, ...]]) -> tuple[Paper, ...]:
    """Do the work in a thread that is abandoned when its time is over, since a name lookup has no timeout."""
    answers: queue.SimpleQueue[tuple[Paper, ...] | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put(work())
        except Exception as error:  # someone else's library and network: whatever it is, it is reported
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
    with client._session as session:  # it has no timeout and no close method
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
