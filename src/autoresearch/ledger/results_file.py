"""A lab's results.tsv: always the rows that the ledger has, and never in place of somebody else's table."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

from autoresearch.base import atomic
from autoresearch.ledger import results_tsv
from autoresearch.ledger.report import Row


class ResultsFile:
    """Remembers what it wrote last: as long as the file stays, a new row costs its line and those after it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: tuple[Row, ...] = ()
        self._lines: list[str] = []  # of these rows
        self._state: tuple[int, int, int] | None = None

    def write(self, rows: tuple[Row, ...], known: Callable[[], Collection[str]]) -> Path | None:
        """Write the rows. `known` gives the commits, by their first 7 digits, that rows of this lab may have.

        Returns where a table that this program did not write is now.
        """
        saved, state = None, self._state_now()
        if state is None or state != self._state:
            if state is not None:
                text = self.path.read_text(encoding="utf-8", errors="replace")
                saved = None if results_tsv.is_ours(text, known()) else atomic.save_aside(self.path)
            self._rows, self._lines = (), []
        both = enumerate(zip(rows, self._rows, strict=False))
        count = next((place for place, (new, old) in both if new is not old and new != old), len(self._rows))
        count = min(count, len(rows))
        self._lines[count:] = [results_tsv.lines((row,)) for row in rows[count:]]
        atomic.write(self.path, (results_tsv.to_tsv(()) + "".join(self._lines)).encode())
        self._rows, self._state = rows, self._state_now()
        return saved

    def _state_now(self) -> tuple[int, int, int] | None:
        """Tells one version of the file from another; None if there is none."""
        if not self.path.is_file():
            return None
        found = os.stat(self.path)
        return found.st_ino, found.st_mtime_ns, found.st_size
