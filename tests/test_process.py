from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from autoresearch import process


def run(tmp_path: Path, code: str, deadline: float = 10.0) -> process.Ended:
    return process.run_group(
        [sys.executable, "-c", code],
        directory=tmp_path,
        environment=dict(os.environ),
        log=tmp_path / "run.log",
        deadline_seconds=deadline,
        mark="test/1",
        poll=lambda elapsed: None,
    )


def marked() -> list[psutil.Process]:
    return process._marked("test")


def test_the_output_and_the_exit_code_are_kept(tmp_path: Path) -> None:
    ended = run(tmp_path, "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert ended.exit_code == 3
    assert sorted((tmp_path / "run.log").read_text().split()) == ["err", "out"]


def test_a_command_reads_the_file_that_is_its_stdin_and_else_nothing(tmp_path: Path) -> None:
    (tmp_path / "prompt").write_text("Lower it.")
    for stdin, said in ((tmp_path / "prompt", "'Lower it.'"), (None, "''")):
        process.run_group(
            [sys.executable, "-c", "import sys; print(repr(sys.stdin.read()))"],
            directory=tmp_path,
            environment=dict(os.environ),
            log=tmp_path / "run.log",
            deadline_seconds=10,
            mark="test/3",
            poll=lambda elapsed: None,
            stdin=stdin,
        )
        assert (tmp_path / "run.log").read_text().strip() == said


def test_the_deadline_ends_a_run_that_ignores_sigterm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE_SECONDS", 0.5)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    start = time.monotonic()
    assert run(tmp_path, code, deadline=1.0).exit_code is None
    assert time.monotonic() - start < 10
    assert marked() == []


def test_a_child_in_a_session_of_its_own_is_ended_too(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        "pathlib.Path('pid').write_text(str(child.pid))"
    )
    assert run(tmp_path, code).exit_code == 0
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_an_interrupt_leaves_no_process(tmp_path: Path) -> None:
    def interrupt(elapsed: float) -> None:
        if elapsed > 0.2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process.run_group(
            [sys.executable, "-c", "import time; time.sleep(60)"],
            directory=tmp_path,
            environment=dict(os.environ),
            log=tmp_path / "run.log",
            deadline_seconds=30,
            mark="test/2",
            poll=interrupt,
        )
    assert marked() == []


def test_only_processes_of_that_mark_are_ended() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    marks = ("lab:/a/1/run0", "lab:/ab")
    mine, other = (subprocess.Popen(sleep, env={**os.environ, process.MARK: mark}) for mark in marks)
    try:
        time.sleep(0.3)
        assert process.end_marked("lab:/a") == 1
        assert mine.wait(5) is not None
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
