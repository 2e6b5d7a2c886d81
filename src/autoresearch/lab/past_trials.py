"""Reads what past trials left in a lab: their files, patches, logs and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoresearch.executors.run_output import Tail, tail
from autoresearch.grading.protocol import CURVE, LOG
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

    def files(self, number: int) -> Mapping[str, str]:
        trial = self.ledger.trial(number)
        found = self.workspace.files(trial.proposed.commit) if trial else {}
        return {path: found[path].decode(errors="replace") for path in self.editable if path in found}

    def patch(self, number: int) -> str:
        return _text(self.workspace.trial_directory(number) / "patch.diff")

    def log(self, number: int) -> str:
        latest = self._latest(number, LOG)
        return tail(latest, TAIL_BYTES) if latest else ""

    def curve(self, number: int) -> Sequence[Mapping[str, Scalar]]:
        latest = self._latest(number, CURVE)
        curve = Tail(latest) if latest else None
        points: list[Mapping[str, Scalar]] = []
        while curve and len(points) < MOST_POINTS and (more := list(curve.lines())):
            points += more
        return points

    def _latest(self, number: int, name: str) -> Path | None:
        """A file of a trial's latest run, also of one that is under way; None if there is none."""
        trial = self.ledger.trial(number)
        if trial is None:
            return None
        latest = len(trial.every_run) - (trial.verdict is not None)
        runs = (self.workspace.run_directory(number, run) / name for run in range(latest, -1, -1))
        return next((path for path in runs if path.is_file()), None)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
