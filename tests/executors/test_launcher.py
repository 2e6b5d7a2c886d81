from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from autoresearch.executors.sandbox import launcher

LAUNCHER = [sys.executable, "-I", "-S", str(launcher.__file__)]
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the launcher needs Linux")
HAS_LANDLOCK = pytest.mark.skipif(not launcher.interface_version(), reason="this kernel has no Landlock")
NEEDED = ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache"]


def launch(rules: dict[str, Any], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LAUNCHER, json.dumps(rules), "--", *words], capture_output=True, text=True, timeout=30)


def confined(tmp_path: Path, script: str, **rules: Any) -> subprocess.CompletedProcess[str]:
    """A shell script that may read what a shell needs and write the directory `out`."""
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "other").mkdir(exist_ok=True)
    given = {"confine": True, "readable": NEEDED, "writable": [str(tmp_path / "out")], "devices": ["/dev/null"]}
    return launch({**given, **rules}, "/bin/sh", "-c", f"cd {tmp_path}; {script}")


@LINUX
def test_a_high_limit_of_open_files_costs_no_time() -> None:
    rules = {"supervise": True}
    usual = _seconds(rules, "exec")
    raised = _seconds(rules, "ulimit -n $(ulimit -Hn); exec")
    assert raised < usual + 0.5


@LINUX
def test_others_see_when_the_command_closes_its_end_of_a_pipe() -> None:
    """The process that stays to clear up holds none of the files that it was given."""
    reading, writing = os.pipe()
    script = f"exec {writing}>&-; sleep 5"
    with subprocess.Popen([*LAUNCHER, '{"supervise": true}', "--", "/bin/sh", "-c", script], pass_fds=[writing]) as run:
        os.close(writing)
        began = time.monotonic()
        assert os.read(reading, 1) == b""
        assert time.monotonic() - began < 3
        run.terminate()
    os.close(reading)


def _seconds(rules: dict[str, Any], how: str) -> float:
    """What the launcher takes to run nothing from a shell."""
    words = " ".join(map(shlex.quote, [*LAUNCHER, json.dumps(rules), "--", "/bin/true"]))
    began = time.monotonic()
    subprocess.run(["/bin/sh", "-c", f"{how} {words}"], check=True, timeout=60)
    return time.monotonic() - began


@HAS_LANDLOCK
def test_only_what_is_listed_can_be_opened(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "given").write_text("given")
    said = confined(tmp_path, "cat given; cat secret", readable=[*NEEDED, str(tmp_path / "given")])
    assert said.stdout == "given"
    assert "Permission denied" in said.stderr


@HAS_LANDLOCK
def test_only_what_is_listed_can_be_written(tmp_path: Path) -> None:
    script = (
        "echo 1 > out/a; mkdir out/d; mv out/a out/d/a; ln -s x out/l; rm out/l; echo 2 > other/b; echo 3 > /dev/null"
    )
    said = confined(tmp_path, script)
    assert (tmp_path / "out" / "d" / "a").read_text() == "1\n"
    assert list((tmp_path / "other").iterdir()) == []
    assert said.stderr.count("Permission denied") == said.stderr.count("\n") == 1


@HAS_LANDLOCK
@pytest.mark.skipif(launcher.interface_version() < 3, reason="before Linux 6.2 Landlock does not know truncation")
def test_a_listed_file_is_written_and_no_other_truncated(tmp_path: Path) -> None:
    for name in ("mine", "other.txt"):
        (tmp_path / name).write_text("long text")
    confined(tmp_path, "echo 1 > mine; : > other.txt; truncate -s 0 other.txt", writable=[str(tmp_path / "mine")])
    assert (tmp_path / "mine").read_text() == "1\n"
    assert (tmp_path / "other.txt").read_text() == "long text"


@HAS_LANDLOCK
def test_there_is_no_way_back(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    again = json.dumps({"confine": True, "readable": [str(tmp_path)]})
    readable = [*NEEDED, sys.prefix, sys.base_prefix, str(launcher.__file__)]
    inner = " ".join(f"'{word}'" for word in [*LAUNCHER, again, "--", "/bin/cat", "secret"])
    said = confined(tmp_path, inner, readable=readable)
    assert said.returncode != 0
    assert said.stdout == ""
    assert confined(tmp_path, "grep NoNewPrivs /proc/self/status", readable=[*NEEDED, "/proc"]).stdout.split()[1] == "1"


@HAS_LANDLOCK
@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root has capabilities to lose")
def test_root_loses_its_capabilities(tmp_path: Path) -> None:
    said = confined(tmp_path, "grep CapEff /proc/self/status", readable=[*NEEDED, "/proc"])
    assert int(said.stdout.split()[1], 16) == 1 << launcher.OVERRIDE_PERMISSIONS


@LINUX
def test_a_kernel_that_refuses_is_told_and_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = (
        f"import runpy, sys; sys.path.insert(0, {str(Path(launcher.__file__).parent)!r}); import launcher\n"
        "launcher.interface_version = lambda: 0\n"
        "launcher.main(['{\"confine\": true}', '--', '/bin/touch', 'ran'])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=30)
    assert said.returncode == launcher.REFUSED
    assert said.stderr.startswith("autoresearch: the sandbox could not be set up: this kernel has no Landlock; ")
    assert not (tmp_path / "ran").exists()


@LINUX
def test_a_missing_program_is_told() -> None:
    said = launch({}, "/nowhere/python")
    assert said.returncode == launcher.NOT_FOUND
    assert said.stderr == "autoresearch: there is no program /nowhere/python\n"


@LINUX
def test_limits_and_variables_are_set_and_signals_are_as_ever() -> None:
    said = launch(
        {"file_bytes": 512_000, "environment": {"HOME": "/scratch"}},
        *("/bin/sh", "-c", "ulimit -f; ulimit -c; echo $HOME; grep SigIgn /proc/self/status"),
    )
    assert said.stdout.split() == ["1000", "0", "/scratch", "SigIgn:", "0000000000000000"]


@LINUX
def test_a_supervised_command_ends_as_it_would_without() -> None:
    assert launch({"supervise": True}, "/bin/sh", "-c", "exit 3").returncode == 3
    assert launch({"supervise": True}, "/bin/sh", "-c", "kill -TERM $$").returncode == -15
    assert launch({"supervise": True}, "/bin/sh", "-c", "kill -KILL $$").returncode == -9


def test_each_version_of_the_interface_adds_rights() -> None:
    assert launcher.handled(1) == 0x1FFF
    assert [launcher.handled(version).bit_length() for version in range(1, 8)] == [13, 14, 15, 15, 16, 16, 16]


SEMAPHORE = """
import multiprocessing, os
queue = multiprocessing.get_context("fork").Queue()
queue.put(42)
print(queue.get())
open("/dev/shm/{name}", "w").write("weights")
"""


@HAS_LANDLOCK
def test_without_namespaces_semaphores_work_and_nothing_stays_in_shared_memory(tmp_path: Path) -> None:
    """As in a container that refuses namespaces: inductor's compile workers need semaphores."""
    name = f"autoresearch-test-{os.getpid()}"
    rules = {"supervise": True, "confine": True, "readable": [*NEEDED, sys.prefix, sys.base_prefix], "writable": []}
    code = (
        f"import sys; sys.path.insert(0, {str(Path(launcher.__file__).parent)!r}); import launcher\n"
        "launcher._leave_shared = lambda: False\n"
        f"sys.exit(launcher.main([{json.dumps(json.dumps(rules))}, '--', sys.executable, '-c', "
        f"{SEMAPHORE.format(name=name)!r}]))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (said.returncode, said.stdout) == (0, "42\n"), said.stderr
    assert not Path("/dev/shm", name).exists()
