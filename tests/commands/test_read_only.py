"""A lab that nobody may write: everything that only looks works there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autoresearch.loop.loop import run_campaign
from conftest import never, proposal, stages

WRITABLE = ["bwrap", "--dev-bind", "/", "/"]


@pytest.fixture
def searched(lab: Path) -> Path:
    if not shutil.which("bwrap") or subprocess.run([*WRITABLE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be made read-only without bubblewrap")
    run_campaign(stages(lab, [proposal(2.0)]), "t", never)
    return lab


def said(lab: Path, *words: str) -> tuple[int, str]:
    command = [
        *WRITABLE,
        "--ro-bind",
        str(lab),
        str(lab),
        sys.executable,
        "-m",
        "autoresearch",
        *words,
        "--lab",
        str(lab),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("status",), "#1 keep: X to 2.0"),
        (("status", "--json"), '"running": false'),
        (("log",), "X to 2.0"),
        (("show", "1"), "+X = 2.0"),
        (("report", "--json"), '"trials": 2'),
    ],
)
def test_what_only_looks_works(searched: Path, words: tuple[str, ...], told: str) -> None:
    code, output = said(searched, *words)
    assert (code, told in output) == (0, True), output


@pytest.mark.parametrize("words", [("report",), ("chart",), ("run",), ("guide", "wider")])
def test_what_writes_says_so_in_one_sentence(searched: Path, words: tuple[str, ...]) -> None:
    code, output = said(searched, *words)
    assert code == 1, output
    assert "Read-only file system" in output
    assert "a bug" not in output
    assert len([line for line in output.splitlines() if line.startswith("autoresearch: ")]) == 1
