"""The documentation is true: the command reference is what --help says, the tree is what is there, no link is dead.

`python tests/test_docs.py` writes docs/commands.md and docs/settings.md anew.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from autoresearch.base import registry
from autoresearch.base.errors import Exhausted
from autoresearch.lab.presets import SHIPPED
from autoresearch.lab.settings import Config
from autoresearch.researchers.guard.rules import broken_rule
from autoresearch.researchers.simple.python import PythonResearcher
from campaigns import after, begun

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "commands.md"
README = ROOT / "README.md"
RESEARCHERS = ROOT / "docs" / "researchers.md"
SETTINGS = ROOT / "docs" / "settings.md"
INTRODUCTION = """\
The front matter of `program.md` is the only configuration. All settings are optional. Written from the code by
`python tests/test_docs.py`; a test compares them. More about those of the judge is in [judge.md](judge.md), about those
of researchers in [researchers.md](researchers.md)."""
COMMANDS = (
    *("new", "doctor", "prepare", "train", "run", "try", "guide", "papers", "mcp"),
    *("status", "log", "show", "report", "chart", "confirm", "replay", "aa", "audit", "sample"),
    *("keep", "drop", "tags", "diff", "pause", "resume", "stop", "limit"),
)


def help_of(*words: str) -> str:
    environment = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "autoresearch", *words, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    text = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())
    return text.replace("python -m autoresearch", "autoresearch")


def reference() -> str:
    pages = [(), *((command,) for command in COMMANDS)]
    blocks = (f"## {' '.join(('autoresearch', *words))}\n\n```\n{help_of(*words)}\n```\n" for words in pages)
    return "\n".join(
        ["# Commands\n\nWritten from `--help` by `python tests/test_docs.py`; a test compares them.\n", *blocks]
    )


def as_yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(value)}]" if isinstance(value, tuple) else str(value)


def settings() -> str:
    """Every setting with its default and its effect, as program.md has them."""
    lines = ["# Settings", "", INTRODUCTION, "", "| setting | default | what it does |", "|---|---|---|"]
    for name, field in Config.model_fields.items():
        default = "" if field.default in (None, ()) else f"`{as_yaml(field.default)}`"
        lines.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


def test_the_page_of_settings_is_what_the_code_says() -> None:
    assert settings() == SETTINGS.read_text()
    assert [name for name, field in Config.model_fields.items() if not field.description] == []


def test_the_command_reference_is_what_help_says() -> None:
    assert reference() == REFERENCE.read_text()


def test_every_command_is_in_the_reference() -> None:
    listed = re.findall(r"^  ([a-z]+)\s", help_of().partition("Commands:")[2], re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize(
    "page", sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("**/*.md") if ".venv" not in path.parts)
)
def test_no_relative_link_is_dead(page: str) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / page).read_text())
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_the_readmes_tree_names_every_file_of_the_package_and_no_other() -> None:
    tree = README.read_text().partition("<!-- tree -->")[2].partition("\ntests/")[0]
    named = set(re.findall(r"[\w]+\.(?:py|yaml|md)\b", tree)) - {"program.md"}
    there = {path.name for path in (ROOT / "src").rglob("*") if path.suffix in (".py", ".yaml")} - {"__init__.py"}
    assert named == there


def test_ci_runs_the_readmes_test_command() -> None:
    commands = [line for line in README.read_text().splitlines() if line.endswith(".venv/bin/pytest")]
    assert len(commands) == 1
    assert commands[0] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_researcher_of_the_page_works_and_is_not_longer_than_it_says(tmp_path: Path) -> None:
    text = RESEARCHERS.read_text().partition("```python\n")[2].partition("```")[0]
    assert len([line for line in text.splitlines() if line.strip()]) <= 20
    (tmp_path / "mine.py").write_text(text)
    brief = begun({"train.py": (SHIPPED / "train.py").read_text()})
    seen = set()
    for _ in range(4):
        proposal = PythonResearcher(str(tmp_path / "mine.py")).propose(brief)
        assert broken_rule(proposal, brief.files, {}.get, ["train.py"]) is None
        seen.add(proposal.idea)
        brief = after(brief, proposal, 2.0)
    assert len(seen) == 4
    with pytest.raises(Exhausted):
        PythonResearcher(str(tmp_path / "mine.py")).propose(brief)


def test_every_researcher_is_on_the_page() -> None:
    page = RESEARCHERS.read_text()
    assert [name for name in registry.RESEARCHERS if f"`{name}" not in page] == []


if __name__ == "__main__":
    REFERENCE.write_text(reference())
    SETTINGS.write_text(settings())
