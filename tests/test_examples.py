"""The files in examples/cluster are sound as far as it shows without the tools that they are for, and docs/cluster.md
is true: settings, commands, options and messages are those of the program."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from autoresearch import cli
from autoresearch.base import registry
from autoresearch.lab import config
from autoresearch.lab.settings import Config

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "cluster.md"
EXAMPLES = sorted((ROOT / "examples" / "cluster").iterdir())
CLUSTER = ROOT / "src" / "autoresearch" / "executors" / "cluster"
TEXTS = [*EXAMPLES, PAGE]
every_text = pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
every_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)

COMMAND = re.compile(r"\bautoresearch ([a-z]+)\b([^`\n;|]*)")
OPTION = re.compile(r"(?<!\S)(--[a-z][a-z-]*)")
IN_BACKTICKS = re.compile(r"`([a-z]+(?:_[a-z]+)*: \S[^`\n]*)`")
IN_A_COMMENT = re.compile(r"^# {7}([a-z_]+: .*)$", re.MULTILINE)
BEGINNING = re.compile(r"(?<=\bis not used: )|(?<=^cannot )")  # of messages that go on with one from another place
BLOCK = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SCRIPTS = ("setup", "run")


@functools.cache
def options_of(command: str) -> set[str]:
    """The options of a command of ours."""
    group: Any = typer.main.get_command(cli.assembled())
    return {option for each in group.commands[command].params for option in each.opts}


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of ours in a text, each with its options. Prose about autoresearch has neither backticks nor
    options."""
    for found in COMMAND.finditer(text):
        options = OPTION.findall(found[2])
        if options or text[found.start() - 1] == "`":
            yield found[1], options


def settings(text: str) -> Iterator[dict[str, Any]]:
    """The settings that a text tells to put into program.md."""
    for found in (*IN_BACKTICKS.findall(text), *IN_A_COMMENT.findall(text), *BLOCK.findall(text)):
        yield yaml.safe_load(found)


def shell(script: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------- they parse


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.suffix == ".yaml"], ids=lambda path: path.name)
def test_a_yaml_file_is_yaml_and_its_scripts_are_bash(path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    assert all(isinstance(document, dict) for document in documents)
    for document in documents:
        for name in SCRIPTS:
            shell(document.get(name, ""))


def test_the_slurm_file_is_bash_whose_orders_to_slurm_come_first() -> None:
    text = (ROOT / "examples/cluster/slurm.sbatch").read_text()
    shell(text)
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert lines[0] == "#!/bin/bash"
    assert [line for line in lines[first:] if line.startswith("#SBATCH")] == []  # Slurm would not read them


def test_the_workstation_is_a_program_md() -> None:
    found, _ = config.load(ROOT / "examples/cluster/workstation.md")
    assert (found.executor, found.slots) == ("local", "auto")


# ---------------------------------------------------------------- what they name is there


@every_text
def test_only_settings_are_named_that_there_are(path: Path) -> None:
    found = list(settings(path.read_text()))
    assert found or path.name == "workstation.md"
    for values in found:
        assert Config.model_validate(values).executor in registry.EXECUTORS


@every_text
def test_only_commands_and_options_are_named_that_there_are(path: Path) -> None:
    found = list(commands(path.read_text()))
    assert "run" in {command for command, _ in found}
    for command, options in found:
        assert set(options) <= options_of(command)


def test_a_slip_would_be_found() -> None:
    slip = "Set `gpus_per_runs: 1` and start `autoresearch runs`, or autoresearch run --slot 2"
    assert list(settings(slip)) == [{"gpus_per_runs": 1}]
    assert list(commands(slip)) == [("runs", []), ("run", ["--slot"])]
    assert "--slot" not in options_of("run")


# ---------------------------------------------------------------- they say what they are


@every_example
def test_a_file_says_what_it_does_what_to_change_and_what_checked_it(path: Path) -> None:
    text = path.read_text()
    assert text.splitlines()[1].startswith("# A search on ") or text.startswith("# A search on ")
    assert [word for word in ("Change:", "Start", "Checked ", "Not run here: ") if f"\n# {word}" not in text] == []


def test_the_page_links_to_each_file() -> None:
    links = re.findall(r"\]\(\.\./(examples/[^)]+)\)", PAGE.read_text())
    assert sorted(links) == [path.relative_to(ROOT).as_posix() for path in EXAMPLES]


def test_the_messages_of_the_page_are_those_of_the_code() -> None:
    sources = "".join(path.read_text() for path in sorted(CLUSTER.glob("*.py")))
    code = re.sub(r'"\s*\n\s*f?"', "", sources).replace("`", "")
    rows = re.findall(r"^\| (.*`.*) \| .* \|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) > 15
    whole = [part for row in rows for part in re.findall(r"`([^`]+)`", row)]
    parts = [part for each in whole for part in BEGINNING.split(each)]
    assert [part for part in parts if part not in code] == []
