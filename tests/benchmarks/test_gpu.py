"""benchmarks/gpu.py: whatever becomes of a stage costs one row; benchmarks/offline.sh explains itself."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    specification = importlib.util.spec_from_file_location("gpu", BENCHMARKS / "gpu.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "gpu", module)
    specification.loader.exec_module(module)
    return module


def rows(gpu, program: str, seconds: float = 20) -> list[dict[str, object]]:
    return list(gpu.results("trial", [sys.executable, "-c", program], seconds, dict(os.environ)))


def test_results_come_as_they_are_said(gpu) -> None:
    found = rows(gpu, """print('noise'); print('RESULT {"what": "a", "seconds": 1}')""")
    assert found == [{"stage": "trial", "what": "a", "seconds": 1}]


def test_a_stage_that_fails_costs_one_row_with_the_end_of_what_it_said(gpu) -> None:
    found = rows(gpu, """print('RESULT {"what": "a"}'); print('why'); raise SystemExit(7)""")
    assert found == [{"stage": "trial", "what": "a"}, {"stage": "trial", "result": "failed (7)", "said": ["why"]}]


def test_a_stage_that_hangs_is_ended_with_all_it_started(gpu, tmp_path: Path) -> None:
    child = "import time; time.sleep(299.8)"
    program = f"""
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', {child!r}])
pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(child.pid))
print('RESULT {{"what": "a"}}', flush=True)
time.sleep(299)
"""
    start = time.monotonic()
    found = rows(gpu, program, 3)
    assert time.monotonic() - start < 60
    assert found == [{"stage": "trial", "what": "a"}, {"stage": "trial", "result": "ended after 3 s", "said": []}]
    deadline = time.monotonic() + 10
    while alive(int((tmp_path / "pid").read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(int((tmp_path / "pid").read_text()))


def alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_table_keeps_one_line_for_each_result(gpu) -> None:
    text = gpu.table([{"stage": "trial", "what": "a", "result": "one\ntwo | three", "seconds": 3}])
    assert text.splitlines()[-1] == r"| trial | a | one / two \| three, seconds 3 |"


def test_no_stage_starts_without_time() -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--minutes", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("not started: 0 s were left") == 2 * 7  # as it goes, and in the table


def test_a_directory_without_wheels_is_named(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--site", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "collect them with benchmarks/offline.sh" in done.stderr


@pytest.mark.parametrize(("words", "said"), [([], "name a directory"), (["--pyton", "3"], "unknown option --pyton")])
def test_offline_says_what_is_wrong_and_how_to_call_it(words: list[str], said: str) -> None:
    done = subprocess.run([str(BENCHMARKS / "offline.sh"), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert "benchmarks/offline.sh DIR" in done.stderr
