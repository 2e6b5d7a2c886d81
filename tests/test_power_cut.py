"""A power cut at any moment: what the disk holds then can be continued. On a real ext4 image, where root may mount one.

The image's file has what the file system forced out so far, which is what a disk would hold. Copies of it are taken
while the loop works, mounted, and continued.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import toy_lab
from autoresearch.base import git
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.ledger import Ledger

COPIES = 4
PROPOSALS = 12
TAG = "t"


@contextlib.contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    at.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(at)], check=True, capture_output=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(512 * 2**20)  # mostly holes; a run wants some free space
    try:
        subprocess.run(["mkfs.ext4", "-q", str(path)], check=True, capture_output=True)
        with mounted(path, tmp_path / "trial"):
            pass
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("nothing can be mounted here")
    return path


def run(lab: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "autoresearch", "run", "--lab", str(lab), "--tag", TAG, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def cut(process: subprocess.Popen[str], image: Path, ledger: Path, copies: list[Path]) -> None:
    """Copy the image a few times, each time just after the ledger has named a new commit."""
    seen = 0
    while process.poll() is None and len(copies) < COPIES:
        count = ledger.read_bytes().count(b'"proposed"') if ledger.exists() else 0
        if count > seen:
            seen = count
            process.send_signal(signal.SIGSTOP)
            copies.append(image.with_name(f"cut{len(copies)}"))
            subprocess.run(["cp", "--sparse=always", str(image), str(copies[-1])], check=True)
            process.send_signal(signal.SIGCONT)
        time.sleep(0.002)


@pytest.mark.slow
def test_what_a_power_cut_leaves_is_whole_and_continues(image: Path, tmp_path: Path) -> None:
    copies: list[Path] = []
    with mounted(image, tmp_path / "mounted") as root:
        lab = toy_lab.make(root / "lab")
        script = tmp_path / "script.py"
        script.write_text(f"PROPOSALS = {[proposal(number) for number in range(PROPOSALS)]!r}")
        os.sync()
        with run(lab, "--researcher", f"scripted:{script}") as process:
            cut(process, image, lab / ".autoresearch/ledger.jsonl", copies)
            said = process.communicate(timeout=120)[0]
        assert process.returncode == 0, said
    assert len(copies) == COPIES
    for copy in copies:
        with mounted(copy, tmp_path / f"at-{copy.name}") as root:
            (campaign,) = Ledger(root / "lab/.autoresearch/ledger.jsonl").campaigns()
            for trial in campaign.trials:
                assert git.files(root / "lab", trial.proposed.commit), f"{copy.name}: trial {trial.number}"
            with run(root / "lab", "--researcher", f"scripted:{script}", "--trials", "1") as process:
                said = process.communicate(timeout=120)[0]
            assert process.returncode == 0, said
            assert len(Ledger(Workspace.open(root / "lab").ledger).campaigns()[0].finished) >= len(campaign.trials)


def proposal(number: int) -> dict[str, object]:
    return {"idea": f"idea {number}", "files": {"train.py": toy_lab.train_with(2.9 - 0.2 * number)}}


RECORDS = """
import sys
from pathlib import Path
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.events import GuidanceGiven
from autoresearch.ledger.ledger import Ledger
workspace = Workspace.open(Path(sys.argv[1]))
made = workspace.commit("t", 1, workspace.base("t"), {"train.py": "X = 1\\n"}, "an idea")
Ledger(workspace.ledger).append(GuidanceGiven("t", made))
"""


def test_what_an_event_names_is_forced_to_the_disk_before_the_event(lab: Path, tmp_path: Path) -> None:
    calls = traced([sys.executable, "-c", RECORDS, str(lab)], tmp_path / "calls", lab)
    forced: set[str] = set()
    named: list[str] = []  # objects and references, once they have their names
    for call, paths in calls:
        if call == "fsync":
            forced.add(paths[0])
        elif call in ("link", "rename") and re.search(r"\.git/(objects/../[0-9a-f]{38}|refs/autoresearch)", paths[1]):
            assert paths[0] in forced, f"{paths[1]} has its name before its content is on the disk"
            named.append(paths[1])
        elif call == "write" and paths[0].endswith("ledger.jsonl"):
            break
    else:
        pytest.fail("the event was never written")
    assert sum("/objects/" in path for path in named) == 3, "a file, a tree, a commit"
    assert [path for path in named if "/refs/" in path] == [str(lab / ".git/refs/autoresearch/t/1")]
    assert calls[-1] == ("fsync", [str(lab / ".autoresearch")])
    assert calls[-2] == ("fsync", [str(lab / ".autoresearch/ledger.jsonl")])


def traced(command: list[str], output: Path, root: Path) -> list[tuple[str, list[str]]]:
    """The calls of a command that write, force and name files, in order, each with its paths.

    Those that are relative are so to a root, where git works.
    """
    tracing = ["strace", "-f", "-y", "-qq", "-e", "trace=fsync,write,link,rename", "-o", str(output)]
    try:
        subprocess.run([*tracing, *command], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("strace does not work here")
    found = []
    for line in output.read_text().splitlines():
        if call := re.match(r"\d+ +(\w+)\((.*)", line):
            name, rest = call.groups()
            if name in ("link", "rename"):
                paths = [str(root / path) for path in re.findall(r'"([^"]*)"', rest)]
            else:
                paths = re.findall(r"^\d+<(/[^>]*)>", rest)
            if paths:
                found.append((name, paths))
    return found
