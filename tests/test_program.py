"""The shipped program.md: every command that it teaches an interactive agent runs, in the order that it teaches."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import toy_lab
from autoresearch.lab import presets
from autoresearch.lab.presets import SHIPPED

PROGRAM = (SHIPPED / "program.md").read_text(encoding="utf-8")


def taught() -> list[str]:
    """The commands of the text, as they stand in it."""
    return re.findall(r"`(autoresearch [^`]+)`", " ".join(PROGRAM.split()))


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    return toy_lab.make(tmp_path / "lab", program=PROGRAM)


def call(lab: Path, command: str) -> str:
    """Run a command of the text in the lab, as an agent would."""
    words = shlex.split(command)
    assert words[0] == "autoresearch"
    environment = {**os.environ, "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=lab, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 or words[1] == "doctor", done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_agent_that_follows_the_text_gets_through_it(lab: Path) -> None:
    commands = taught()
    idea = next(command for command in commands if command.startswith('autoresearch try -m "'))
    set_up = commands[commands.index("autoresearch doctor") : commands.index("autoresearch try -m baseline") + 1]
    assert [command.split()[1] for command in set_up] == ["doctor", "prepare", "try"]
    said = [call(lab, command) for command in set_up]
    assert "best 5.000000" in said[-1]
    for x in (2.0, 9.0, 1.5):
        (lab / "train.py").write_text(toy_lab.train_with(x))
        answer = call(lab, idea)
        if "discard" in answer:
            restore = re.findall(r"`(git restore [^`]+)`", " ".join(answer.split()))
            subprocess.run(shlex.split(restore[0]), cwd=lab, check=True)
            assert "X = 2.0" in (lab / "train.py").read_text()
    assert "keep" in answer
    for command in dict.fromkeys(commands):
        if command not in (*set_up, idea, "autoresearch try"):
            assert call(lab, command).strip(), command


def test_a_new_lab_tells_how_long_a_trial_takes_in_it(tmp_path: Path) -> None:
    for budget, run, baseline in (
        (None, "about 6 minutes here", "about 18 minutes"),
        (20, "about 1 minute here", "2 minutes"),
    ):
        presets.create(lab := tmp_path / f"lab{budget}", presets.presets()["cpu"], budget)
        text = (lab / "program.md").read_text()
        assert f"A `try` takes {run}" in text
        assert baseline in text


def test_the_text_names_the_files_that_there_are(lab: Path) -> None:
    assert "`.autoresearch/guidance.md`" in PROGRAM
    call(lab, 'autoresearch guide "try fewer heads"')
    assert "fewer heads" in (lab / ".autoresearch/guidance.md").read_text()


@pytest.mark.parametrize("word", ["DEVICE_BATCH_SIZE", "TIME_BUDGET", "evaluate_bpb", "make_dataloader"])
def test_what_the_text_speaks_of_is_in_the_shipped_files(word: str) -> None:
    files = (SHIPPED / "train.py").read_text() + (SHIPPED / "prepare.py").read_text()
    assert word in files
