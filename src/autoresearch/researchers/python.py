"""A researcher of the person's own: a Python file with a function `propose(brief)`."""

from __future__ import annotations

import runpy

from autoresearch.brief import Brief
from autoresearch.errors import UserError
from autoresearch.interfaces import Kit
from autoresearch.records import Proposal


class PythonResearcher:
    """Calls the `propose` of a file; the file is read once, when the campaign is begun or taken up."""

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
            self._propose = runpy.run_path(str(path)).get("propose")
        except (Exception, SystemExit) as error:  # the person's own code may raise anything
            raise UserError(
                f"{path} cannot be run ({type(error).__name__}: {error}): mend it, then run this again"
            ) from error
        if not callable(self._propose):
            raise UserError(f"{path} has no function propose(brief): it must return an autoresearch.records.Proposal")

    def propose(self, brief: Brief) -> Proposal:
        """See `interfaces.Researcher`."""
        assert callable(self._propose)
        proposal: Proposal = self._propose(brief)
        return proposal
