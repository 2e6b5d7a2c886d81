"""Writes a lab's files with some constants replaced, as a preset does, and loads or runs them from there."""

import importlib.util
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

LAB = Path(__file__).parents[1] / "src" / "autoresearch" / "lab" / "template"


def write_lab(
    directory: Path, prepare: Mapping[str, Any] | None = None, train: Mapping[str, Any] | None = None
) -> Path:
    """Copy prepare.py and train.py into `directory`, their constants replaced by the literals given."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, constants in (("prepare.py", prepare), ("train.py", train)):
        if (LAB / name).exists():
            shutil.copy(LAB / name, directory / name)
            set_constants(directory / name, constants or {})
    return directory


def set_constants(path: Path, constants: Mapping[str, Any]) -> None:
    text = path.read_text()
    for name, value in constants.items():
        found = re.findall(rf"^{name} = .*$", text, flags=re.MULTILINE)
        assert len(found) == 1, f"{path.name} has {len(found)} lines that set {name}"
        text = text.replace(found[0], f"{name} = {value!r}")
    path.write_text(text)


def load(path: Path) -> ModuleType:
    """Import a lab's file under a name of its own, so that two labs can be loaded in one test."""
    spec = importlib.util.spec_from_file_location(f"{path.stem}_of_{path.parent.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
