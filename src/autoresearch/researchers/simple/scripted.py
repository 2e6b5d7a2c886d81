"""A researcher that reads its proposals from a list or a file: for tests, demonstrations and replays."""

from __future__ import annotations

import dataclasses
import json
import runpy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoresearch.base.errors import Exhausted, UserError
from autoresearch.ledger.records import Proposal
from autoresearch.researchers.interface import Brief, Kit

Line = Proposal | Mapping[str, Any] | Callable[[Brief], Proposal]


class ScriptedResearcher:
    """Proposes the script's lines in order, continuing after the last one the campaign tried.

    A line is a `Proposal`, a function of the brief, or a mapping: an `idea` with whole `files` (path to text), or with
    `edits`, a list of [path, old, new], applied to the text that the proposal starts from.
    """

    name = "scripted"

    def __init__(self, script: str | Path | Sequence[Line] = (), kit: Kit = Kit()) -> None:
        """Take the lines, or read them from a JSON file (a list) or a Python file (its `PROPOSALS`).

        Raises:
            UserError: the file cannot be read or does not contain such a list.
        """
        self._lines: Sequence[Line] = read_script(kit.path(str(script))) if isinstance(script, str | Path) else script
        self._last = -1

    def propose(self, brief: Brief) -> Proposal:
        """Return the next line's proposal.

        Raises:
            Exhausted: the script has ended.
        """
        index = first_unused(brief)
        if brief.refusal is not None:
            index = max(index, self._last) + 1
        if index >= len(self._lines):
            raise Exhausted(f"all {len(self._lines)} proposals of the script have been made")
        self._last = index
        proposal = as_proposal(self._lines[index], brief)
        return dataclasses.replace(proposal, note={**proposal.note, "line": index})


def first_unused(brief: Brief) -> int:
    """The index of the line after the last one tried. Skips refused lines if a later one was tried."""
    made = [trial for trial in brief.campaign.trials[1:] if trial.proposed.carries is None]
    lines = [line for trial in made if isinstance(line := trial.proposed.note.get("line"), int)]
    return max([len(made), *(line + 1 for line in lines)])


def as_proposal(line: Line, brief: Brief) -> Proposal:
    """Turn one line of a script into a proposal for this brief.

    Raises:
        UserError: the line cannot be proposed, or its edit does not fit the text that it starts from.
    """
    if isinstance(line, Proposal):
        return line
    if callable(line):
        return line(brief)
    if not isinstance(line.get("idea"), str) or not ("files" in line or "edits" in line):
        raise UserError(f"a scripted proposal needs an idea and files or edits, not {sorted(line)}: fix the script")
    files = dict(line.get("files", {}))
    for path, old, new in line.get("edits", []):
        text = files.get(path, brief.files.get(path, ""))
        if text.count(old) != 1:
            problem = f"{old!r} is {text.count(old)} times in {path}, not once"
            raise UserError(f"the scripted edit {line['idea']!r} does not fit: {problem}; fix the script")
        files[path] = text.replace(old, new)
    return Proposal(idea=line["idea"], files=files)


def read_script(path: Path) -> list[Line]:
    """Read a script file.

    Raises:
        UserError: it cannot be read, or does not contain a list of proposals.
    """
    hint = "give a JSON list, or a Python file with a list PROPOSALS"
    try:
        if path.suffix == ".py":
            lines = runpy.run_path(str(path)).get("PROPOSALS")
        else:
            lines = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"cannot read the script {path} ({error}): {hint}") from error
    if not isinstance(lines, list | tuple) or not all(_is_line(line) for line in lines):
        raise UserError(f"the script {path} does not contain a list of proposals: {hint}")
    return list(lines)


def _is_line(line: object) -> bool:
    return isinstance(line, Proposal | Mapping) or callable(line)
