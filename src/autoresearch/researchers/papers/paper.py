"""One result of a search, and the cache that results are kept in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from autoresearch.base import atomic

INSTALL = "pip install 'autoresearch[papers]'"


@dataclass(frozen=True)
class Paper:
    """One result. `source` is an arXiv id or a file's name in its folder, `text` the abstract or the best passage."""

    title: str
    source: str
    date: str
    text: str


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:24]


def keep(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, text.encode("utf-8", errors="replace"))
