"""A researcher of the user's own: a Python file with a function `propose(brief)`. With a line `side_by_side = True` it
is called by several threads at the same time, if there are several slots."""

from __future__ import annotations

import runpy

from autoresearch.base.errors import UserError
from autoresearch.ledger.records import Proposal
from autoresearch.researchers.interface import Brief, Kit


class PythonResearcher:
    """Calls the `propose` function of a file. The file is read once, when the campaign starts or continues."""

    name = "python"

    def __init__(self, argument: str = "", kit: Kit = Kit()) -> None:
        """Load the file.

        Raises:
            UserError: it cannot be run, or has no such function.
        """
        path = kit.path(argument)
        if not path.is_file():
            raise UserError(
                f"there is no file {argument!r}: name one with a function propose(brief), as in python:mine.py"
            )
        try:
            found = runpy.run_path(str(path))
        except (Exception, SystemExit) as error:  # the user's own code can raise anything
            raise UserError(
                f"cannot run {path} ({type(error).__name__}: {error}): fix it, then run this again"
            ) from error
        self._propose, self.side_by_side = found.get("propose"), bool(found.get("side_by_side"))
        if not callable(self._propose):
            raise UserError(
                f"{path} has no function propose(brief): it must return an autoresearch.researchers.interface.Proposal"
            )

    def propose(self, brief: Brief) -> Proposal:
        """See `researchers.interface.Researcher`."""
        assert callable(self._propose)
        proposal: Proposal = self._propose(brief)
        return proposal
