from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from autoresearch.base import interrupt, process
from autoresearch.base.errors import EndRun
from autoresearch.executors.sandbox import sandboxes
from jail import ALL, Jail, in_each


def run(tmp_path: Path, code: str, deadline: float = 10.0, **options: Any) -> process.Ended:
    return process.run_group(
        [sys.executable, "-c", code],
        directory=tmp_path,
        environment=dict(os.environ),
        log=tmp_path / "run.log",
        deadline_seconds=deadline,
        mark="test/1",
        **{"poll": lambda elapsed: None, **options},
    )


def run_attached(tmp_path: Path, code: str) -> int:
    return process.run_attached([sys.executable, "-c", code], tmp_path, os.environ)


def marked() -> list[psutil.Process]:
    return process.processes_of("test")


def test_the_output_and_the_exit_code_are_kept(tmp_path: Path) -> None:
    ended = run(tmp_path, "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert ended.exit_code == 3
    assert sorted((tmp_path / "run.log").read_text().split()) == ["err", "out"]


def test_a_command_reads_the_file_that_is_its_stdin_and_else_nothing(tmp_path: Path) -> None:
    (tmp_path / "prompt").write_text("Lower it.")
    for stdin, said in ((tmp_path / "prompt", "'Lower it.'"), (None, "''")):
        run(tmp_path, "import sys; print(repr(sys.stdin.read()))", stdin=stdin)
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
    def stop(elapsed: float) -> None:
        if elapsed > 0.2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "import time; time.sleep(60)", deadline=30, poll=stop)
    assert marked() == []


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("start", [run, run_attached])
def test_an_interrupt_while_a_process_starts_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Callable[[Path, str], object]
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def interrupted(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **options))
        signal.raise_signal(signal.SIGINT)
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    monkeypatch.setattr(interrupt, "_last", -math.inf)
    before = signal.signal(signal.SIGINT, interrupt.raise_once)
    try:
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path, "import time; time.sleep(60)")
    finally:
        signal.signal(signal.SIGINT, before)
    assert started[0].returncode is not None, "it still runs"


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


def test_a_child_that_cleared_its_environment_is_found_by_its_parent(tmp_path: Path) -> None:
    code = "import os, sys; os.execve(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)'], {})"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    assert run(tmp_path, parent, deadline=1.0).exit_code is None
    assert [each for each in psutil.Process().children(recursive=True) if each.status() != "zombie"] == []


def test_a_run_over_its_limit_is_killed_at_once(tmp_path: Path) -> None:
    def over(elapsed: float) -> None:
        if elapsed > 0.5:
            raise EndRun("out of memory")

    start = time.monotonic()
    with pytest.raises(EndRun, match="out of memory"):
        process.run_group(
            [
                sys.executable,
                "-c",
                "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
            ],
            directory=tmp_path,
            environment=dict(os.environ),
            log=tmp_path / "run.log",
            deadline_seconds=30,
            mark="test/4",
            poll=over,
        )
    assert time.monotonic() - start < process.GRACE_SECONDS
    assert marked() == []


def test_an_open_file_that_is_passed_on_can_be_written(tmp_path: Path) -> None:
    read, write = os.pipe()
    process.run_group(
        [sys.executable, "-c", f"import os; os.write({write}, b'hello')"],
        directory=tmp_path,
        environment=dict(os.environ),
        log=tmp_path / "run.log",
        deadline_seconds=10,
        mark="test/5",
        poll=lambda elapsed: None,
        pass_fds=(write,),
    )
    os.close(write)
    with open(read, "rb") as pipe:
        assert pipe.read() == b"hello"


def test_what_a_command_says_is_both_its_outputs() -> None:
    said = process.output([sys.executable, "-c", "import sys; print('out'); sys.exit('err')"])
    assert sorted(said.split()) == ["err", "out"]


# ---------------------------------------------------------------- in a sandbox


@pytest.fixture
def jail(tmp_path: Path, request: pytest.FixtureRequest) -> Jail:
    return Jail(tmp_path.resolve(), request.param)


DAEMON = """
import os, sys, time
if os.fork():
    time.sleep({wait})
    sys.exit()
os.setsid()
if os.fork():
    os._exit(0)
os.execve(sys.executable, [sys.executable, "-c", "import signal, time\\nsignal.signal(15, 1)\\ntime.sleep(61.4)"], {{}})
"""


def daemons() -> list[int]:
    return [
        each.pid for each in psutil.process_iter(["cmdline"]) if "sleep(61.4)" in " ".join(each.info["cmdline"] or ())
    ]


@in_each(ALL)
@pytest.mark.parametrize("wait", [0, 60], ids=["ends by itself", "deadline"])
def test_a_daemon_that_cleared_its_environment_is_ended(jail: Jail, wait: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE_SECONDS", 0.5)
    jail.run(DAEMON.format(wait=wait), deadline=1.5)
    assert jail.ended
    assert jail.ended.exit_code == (None if wait else 0)
    time.sleep(0.1)
    assert daemons() == []


@in_each(ALL)
def test_nothing_is_left_when_the_program_itself_is_killed(jail: Jail) -> None:
    words = sandboxes.SANDBOXES[jail.name].command([sys.executable, "train.py"], jail.rules)
    (jail.scratch / "train.py").write_text(DAEMON.format(wait=60))
    program = f"import subprocess; subprocess.run({words!r}, cwd={str(jail.scratch)!r})"
    parent = psutil.Popen([sys.executable, "-c", program])
    until = time.monotonic() + 10
    while not daemons() and time.monotonic() < until:
        time.sleep(0.05)
    assert daemons()
    parent.kill()
    parent.wait()
    while daemons() and time.monotonic() < until:
        time.sleep(0.05)
    assert daemons() == []
