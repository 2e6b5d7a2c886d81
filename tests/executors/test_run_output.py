"""The parent's reading of what a run writes: whatever a run puts there, nothing hangs, leaks or breaks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from autoresearch.executors.run_output import LARGEST_PART, RunWatch, Tail, run_environment, tail
from autoresearch.grading.protocol import CURVE, EVENTS


def test_each_whole_line_comes_once_and_a_half_written_one_waits(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    follower = Tail(path)
    assert list(follower.lines()) == []
    path.write_text('{"a": 1}\n{"a": 2')
    assert list(follower.lines()) == [{"a": 1}]
    with path.open("a") as file:
        file.write("}\nno json\n[1]\n")
    assert list(follower.lines()) == [{"a": 2}]


@pytest.mark.skipif(os.name != "posix", reason="pipes and links of POSIX")
@pytest.mark.parametrize("kind", ["pipe", "link", "directory", "nested", "sparse", "endless line"])
def test_nothing_that_a_run_puts_in_the_place_of_its_files_does_harm(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text(json.dumps({"event": "score", "step": "sk-secret"}) + "\n")
    run = tmp_path / "run"
    run.mkdir()
    for name in (EVENTS, CURVE, "run.log"):
        path = run / name
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to(secret)
        elif kind == "directory":
            path.mkdir()
        elif kind == "nested":
            path.write_text("[" * 200_000 + "\n")
        elif kind == "sparse":
            path.touch()
            os.truncate(path, 2**34)
        else:
            path.write_bytes(b"x" * (LARGEST_PART + 5))
    watch = RunWatch(run)
    assert watch.events(1.0) == ()
    assert watch.curve(1.0) is None
    assert "sk-secret" not in tail(run / "run.log", 100)
    assert len(tail(run / "run.log", 100)) <= 100


def test_a_run_gets_its_seed_and_its_directory(tmp_path: Path) -> None:
    environment = run_environment({"PATH": "/bin"}, tmp_path, 43)
    assert environment["AUTORESEARCH_SEED"] == "43"
    assert environment["AUTORESEARCH_RUN_DIR"] == str(tmp_path)
    assert environment["PATH"] == "/bin"
