"""What compilers cached for a lab's own program, lent to each run, so that it need not be compiled again."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path


class Compiled:
    """Gives each run a copy of what the compilers cached for the baseline, the user's own code.

    Only a baseline's cache is taken back, so that no run can leave anything for the next.
    """

    def __init__(self, trusted: Path, own: Path) -> None:
        self._trusted = trusted
        self._own = own

    def lend(self) -> None:
        if self._trusted.is_dir():
            shutil.copytree(self._trusted, self._own)
        else:
            self._own.mkdir(parents=True)

    def take_back(self, *, trusted: bool) -> None:
        if trusted and any(self._own.rglob("*")):
            shutil.rmtree(self._trusted, ignore_errors=True)
            with contextlib.suppress(OSError):
                shutil.move(self._own, self._trusted)
        shutil.rmtree(self._own, ignore_errors=True)
