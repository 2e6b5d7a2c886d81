"""Reads what past trials left in a lab: their files, patches, logs and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoresearch.ledger import Ledger
from autoresearch.records import Archive, Scalar, Trial
from autoresearch.trial import Tail
from autoresearch.workspace import Workspace

TAIL_BYTES = 8_192


def of_lab(workspace: Workspace, ledger: Ledger, editable: Sequence[str]) -> Archive:
    """The archive of a lab's trials, each read when it is asked for; an unknown trial's is empty."""
    reader = _Reader(workspace, ledger, tuple(editable))
    return Archive(reader.files, reader.patch, reader.log, reader.curve)


@dataclass(frozen=True)
class _Reader:
    workspace: Workspace
    ledger: Ledger
    editable: tuple[str, ...]

    def files(self, number: int) -> Mapping[str, str]:
        trial = self.ledger.trial(number)
        if trial is None:
            return {}
        found = self.workspace.files(trial.proposed.commit)
        return {path: found[path].decode(errors="replace") for path in self.editable if path in found}

    def patch(self, number: int) -> str:
        return _text(self.workspace.trial_directory(number) / "patch.diff")

    def log(self, number: int) -> str:
        trial = self.ledger.trial(number)
        return _tail(self.workspace.root / trial.runs[-1].log) if trial and trial.runs else ""

    def curve(self, number: int) -> Sequence[Mapping[str, Scalar]]:
        trial = self.ledger.trial(number)
        return tuple(Tail(self._path(trial)).lines()) if trial and trial.runs else ()

    def _path(self, trial: Trial) -> Path:
        return self.workspace.root / trial.runs[-1].curve


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _tail(path: Path) -> str:
    return path.read_bytes()[-TAIL_BYTES:].decode(errors="replace") if path.is_file() else ""
