"""Creates a lab: the shipped prepare.py, train.py and program.md, with a preset's constants filled in."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from autoresearch.base import git
from autoresearch.base.errors import UserError

SOURCES = ("climbmix", "tinystories", "stdlib")  # of text, that prepare.py knows
SHIPPED = Path(__file__).parent / "template"
COMMENTS_AT = 26  # the column of program.md's comments
# What a run takes beside its budget: start-up, grading, and what is between runs (benchmarks/dead_time.py).
AROUND, START_SECONDS = 1.1, 20.0
IGNORED = ".autoresearch/\nresults.tsv\nresults-*.tsv\nprogress.png\n*.tmp\n__pycache__/\n"


@dataclass(frozen=True)
class Preset:
    """Constants for one kind of machine: what differs from the shipped files. Of train.py's, `improved` is applied
    last."""

    name: str
    purpose: str
    prepare: Mapping[str, object]
    train: Mapping[str, object]
    startup_seconds: int
    improved: Mapping[str, object] = field(default_factory=dict)

    @property
    def reference(self) -> Preset:
        """The published recipe at this preset's sizes."""
        return replace(self, improved={})


def presets() -> dict[str, Preset]:
    """Every preset by name, smallest machine first."""
    table = yaml.safe_load((SHIPPED / "presets.yaml").read_text(encoding="utf-8"))
    return {name: Preset(name, entry.pop("for"), **entry) for name, entry in table.items()}


def create(
    directory: Path,
    preset: Preset,
    budget_seconds: int | None = None,
    source: str | None = None,
    text_key: str | None = None,
) -> None:
    """Write a lab and make its first commit. A budget in seconds and a source of text replace the preset's.

    Raises:
        UserError: the directory cannot be made, or is not empty, or there is no such source.
    """
    if os.path.lexists(directory) and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} exists and is not empty: choose another name for the lab")
    git.version()  # fails now, not halfway, if there is no git
    wanted = {"TIME_BUDGET": budget_seconds, "SOURCE": source and source_of(source), "TEXT_KEY": text_key}
    changed = {name: value for name, value in wanted.items() if value is not None}
    files = {
        "prepare.py": fill(_shipped("prepare.py"), {**preset.prepare, **changed}),
        "train.py": fill(_shipped("train.py"), {**preset.train, **preset.improved}),
        "program.md": _program(preset, budget_seconds or budget(_shipped("prepare.py"))),
        ".gitignore": IGNORED,
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory} cannot be made ({error.strerror}): choose a place where you can write") from error
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8", newline="\n")
    git.init(directory)
    git.commit_all(directory, f"A lab of preset {preset.name}")


def source_of(named: str) -> str:
    """What SOURCE in prepare.py is for a text that a user names: one of ours, or a file or folder.

    Raises:
        UserError: there is no such file or folder.
    """
    if named in SOURCES:
        return named
    path = Path(named.removeprefix("files:")).expanduser().resolve()
    if not path.exists():
        raise UserError(f"there is no text in {path}: name a file or a folder, or one of {', '.join(SOURCES)}")
    return f"files:{path.as_posix()}"


def _program(preset: Preset, budget_seconds: float) -> str:
    """The shipped program.md with the preset's name, which tells results apart, its time to start up, and how long a
    trial takes."""
    text = re.sub(r"(?m)^preset: *(?=#)", f"preset: {preset.name}".ljust(COMMENTS_AT), _shipped("program.md"))
    started = f"startup_seconds: {preset.startup_seconds}".ljust(COMMENTS_AT)
    text = re.sub(r"(?m)^startup_seconds: \d+ *(?=#)", started, text)
    run = run_seconds(budget_seconds)
    return text.replace("about 6 minutes here", f"{_about(run)} here").replace("about 18 minutes", _about(3 * run))


def run_seconds(budget_seconds: float) -> float:
    """How long a run takes from start to score, if nothing is measured yet, in seconds."""
    return budget_seconds * AROUND + START_SECONDS


def _about(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"about {minutes} minute{'s' * (minutes > 1)}"


def _shipped(name: str) -> str:
    return (SHIPPED / name).read_text(encoding="utf-8")


def fill(source: str, constants: Mapping[str, object]) -> str:
    """Replace the values of top-level constants in a Python source. Comments and everything else stay.

    Raises:
        KeyError: the source has no such constant.
    """
    for name, value in constants.items():
        pattern = re.compile(rf"^({name} = )(.*?)(\s+#.*)?$", re.MULTILINE)
        if not pattern.search(source):
            raise KeyError(f"there is no constant {name}")
        literal = _literal(value)
        source = pattern.sub(lambda match: match[1] + literal + (match[3] or ""), source, count=1)  # noqa: B023
    return source


def _literal(value: object) -> str:
    """A constant as Python source. Powers of two are written as such in presets.yaml."""
    is_power = isinstance(value, str) and re.fullmatch(r"\d+\*\*\d+", value)
    return str(value) if is_power else (json.dumps(value) if isinstance(value, str) else repr(value))


def budget(prepare: str) -> float:
    """The training budget in seconds that a lab's prepare.py sets.

    Raises:
        UserError: there is no TIME_BUDGET, or it is not a number above zero.
    """
    found = re.search(r"^TIME_BUDGET = ([^#\n]+)", prepare, re.MULTILINE)
    text = found[1].strip() if found else "missing"
    if not re.fullmatch(r"\d+(_\d+)*(\.\d+)?", text) or float(text) <= 0:
        raise UserError(f"TIME_BUDGET in prepare.py is {text}: set it to a number of seconds above 0, like 300")
    return float(text)
