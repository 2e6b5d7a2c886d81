"""Reads what past trials left in a lab: their files, patches, logs and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autoresearch.executors.run_output import Tail, tail
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.ledger import Ledger
from autoresearch.ledger.records import Scalar
from autoresearch.researchers.interface import Archive

TAIL_BYTES = 8_192
MOST_POINTS = 200_000  # of a curve; the rest is left out


def of_lab(workspace: Workspace, ledger: Ledger, editable: Sequence[str]) -> Archive:
    """The archive of a lab's trials, each read when asked for. An unknown trial's is empty."""
    reader = _Reader(workspace, ledger, tuple(editable))
    return Archive(reader.files, reader.patch, reader.log, reader.curve)


@dataclass(frozen=True)
class _Reader:
    workspace: Workspace
    ledger: Ledger
    editable: tuple[str, ...]
    known: dict[int, Mapping[str, str]] = field(default_factory=dict)  # a trial's files never change

    def files(self, number: int) -> Mapping[str, str]:
        if number not in self.known:
            trial = self.ledger.trial(number)
            if trial is None:
                return {}
            found = self.workspace.files(trial.proposed.commit)
            self.known[number] = {p: found[p].decode(errors="replace") for p in self.editable if p in found}
        return self.known[number]

    def patch(self, number: int) -> str:
        return _text(self.workspace.trial_directory(number) / "patch.diff")

    def log(self, number: int) -> str:
        trial = self.ledger.trial(number)
        return tail(self.workspace.root / trial.runs[-1].log, TAIL_BYTES) if trial and trial.runs else ""

    def curve(self, number: int) -> Sequence[Mapping[str, Scalar]]:
        trial = self.ledger.trial(number)
        curve = Tail(self.workspace.root / trial.runs[-1].curve) if trial and trial.runs else None
        points: list[Mapping[str, Scalar]] = []
        while curve and len(points) < MOST_POINTS and (more := list(curve.lines())):
            points += more
        return points


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
