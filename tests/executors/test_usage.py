from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from autoresearch.base import process
from autoresearch.base.errors import EndRun
from autoresearch.executors.local import say_leftover
from autoresearch.executors.sandbox import usage
from autoresearch.executors.sandbox.rules import Limits
from autoresearch.executors.sandbox.watch import Watch
from jail import ALL, CONFINING, Jail, in_each

pytestmark = pytest.mark.slow


@pytest.fixture
def jail(tmp_path: Path, request: pytest.FixtureRequest) -> Jail:
    return Jail(tmp_path.resolve(), request.param)


# It doubles twenty times a second and does not hear TERM; were it not ended, it would stop at a thousand.
FORK_BOMB = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(10):
    time.sleep(0.05)
    if os.fork() == 0:
        {each}
time.sleep(20)
"""
MEMORY_HOG = """
import time
hoard = []
while True:
    hoard.append(bytearray(b"x") * 20_000_000)
    time.sleep(0.05)
"""
SHARED_HOG = """
import time
with open("/dev/shm/hoard", "wb") as file:
    for _ in range(30):
        file.write(bytes(20_000_000))
        time.sleep(0.02)
time.sleep(20)
"""
DISK_HOG = """
import os, time
for number in range(200):
    with open(f"out/{number}", "wb") as file:
        file.write(os.urandom(2_000_000))
    time.sleep(0.02)
time.sleep(20)
"""
SHARING = """
import mmap, os, time
shared = mmap.mmap(-1, 60_000_000)
shared.write(bytes(60_000_000))
for _ in range(5):
    if os.fork() == 0:
        sum(shared[::4096])
        break
time.sleep(2)
"""


@in_each(ALL)
@pytest.mark.parametrize(
    ("code", "limits", "reason"),
    [
        (
            FORK_BOMB.format(each="pass"),
            Limits(processes=40),
            "too many processes: .* of the 40 that the sandbox allows",
        ),
        (FORK_BOMB.format(each="os.setsid()"), Limits(processes=40), "too many processes"),
        (MEMORY_HOG, Limits(memory_gb=0.3), "out of memory: used 0... of the 0.3 GiB that the sandbox allows"),
        (DISK_HOG, Limits(disk_gb=0.05), "disk full: used 0... of the 0.05 GiB that the sandbox allows"),
    ],
    ids=["processes", "sessions", "memory", "disk"],
)
def test_a_run_that_uses_too_much_is_ended(jail: Jail, code: str, limits: Limits, reason: str) -> None:
    jail.rules = replace(jail.rules, limits=limits)
    start = time.monotonic()
    with pytest.raises(EndRun, match=reason):
        jail.run(code, watch=True)
    assert time.monotonic() - start < 20
    assert process.processes_of(jail.mark) == []


@in_each(CONFINING)
def test_shared_memory_counts_as_memory(jail: Jail) -> None:
    if jail.name == "landlock" and os.getuid() != 0:
        pytest.skip("whether a person may make a mount namespace depends on the system")
    jail.rules = replace(jail.rules, limits=Limits(memory_gb=0.3))
    with pytest.raises(EndRun, match=r"out of memory: used 0\... of the 0\.3 GiB"):
        jail.run(SHARED_HOG, watch=True)


@in_each(ALL)
def test_a_file_can_only_grow_to_its_limit(jail: Jail) -> None:
    jail.rules = replace(jail.rules, limits=Limits(file_gb=0.01))
    said = jail.run("""
        import os
        try:
            with open("out/huge", "wb") as file:
                for _ in range(50):
                    file.write(bytes(1_000_000))
        except OSError as error:
            print(error.strerror, os.path.getsize("out/huge") < 11_000_000)
    """)
    assert said == "File too large True"


@in_each(ALL)
def test_memory_that_processes_share_is_counted_once(jail: Jail) -> None:
    jail.rules = replace(jail.rules, limits=Limits(memory_gb=0.2))
    jail.run(SHARING, watch=True)
    assert jail.ended
    assert jail.ended.exit_code == 0


def test_disk_use_counts_no_hole_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(10_000))
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**30)
    (tmp_path / "link").symlink_to(shutil.__file__)
    used, files = usage.disk([tmp_path, tmp_path / "missing"])
    assert 10_000 <= used < 100_000
    assert files == 3


def test_a_tree_of_very_many_files_is_not_added_up_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MOST_FILES", 5)
    for directory in range(4):
        (tmp_path / str(directory)).mkdir()
        for file in range(4):
            (tmp_path / str(directory) / str(file)).touch()
    assert 5 < usage.disk([tmp_path])[1] < 20


# ---- GPU memory after the end


class Script:
    """What the driver says, reading by reading; the last one again and again."""

    def __init__(self, *readings: dict[int, int]) -> None:
        self.readings = list(readings)
        self.read = 0

    def __call__(self) -> dict[int, int]:
        self.read += 1
        return self.readings[min(self.read, len(self.readings)) - 1]


@pytest.fixture
def ended() -> psutil.Process:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    seen = psutil.Process(child.pid)
    child.communicate(b"\n")
    return seen


def test_gpu_memory_that_the_driver_takes_back_is_waited_for(ended: psutil.Process) -> None:
    says = Script({ended.pid: 2_000}, {ended.pid: 1_000, 1: 5}, {1: 5})
    assert usage.left_on_gpu([ended], says) == 0
    assert says.read == 3


def test_gpu_memory_that_stays_after_the_end_is_told(ended: psutil.Process) -> None:
    start = time.monotonic()
    assert usage.left_on_gpu([ended], Script({ended.pid: 2_000, 1: 5}), patience_seconds=0.3) == 2_000
    assert 0.3 <= time.monotonic() - start < 2


def test_the_gpu_memory_of_others_is_their_own(ended: psutil.Process) -> None:
    says = Script({ended.pid + 1: 2_000})
    assert usage.left_on_gpu([ended], says) == 0
    assert says.read == 1
    assert usage.left_on_gpu([], Script({})) == 0


def test_a_later_process_of_the_same_number_is_another() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    seen, earlier = psutil.Process(child.pid), psutil.Process(child.pid)
    earlier._ident = (child.pid, 1.0)  # as if it had been made then
    assert usage.left_on_gpu([earlier], Script({child.pid: 2_000}), patience_seconds=0.1) == 0
    assert usage.left_on_gpu([seen], Script({child.pid: 2_000}), patience_seconds=0.1) == 2_000, "one that cannot end"
    child.communicate(b"\n")


def test_without_a_driver_no_process_has_gpu_memory() -> None:
    if list(Path("/dev").glob("nvidia*")):
        pytest.skip("there is a driver here")
    assert usage.gpu_memory() == {}


def test_what_a_run_leaves_on_the_gpu_is_in_its_log_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text("the end")
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link.log").symlink_to(tmp_path / "mine")
    os.mkfifo(tmp_path / "pipe.log")
    for name in ("run.log", "link.log", "pipe.log", "missing.log"):
        say_leftover(tmp_path / name, 3 * 2**29)
    say_leftover(tmp_path / "mine", 0)
    words = "autoresearch: 1.50 GiB of this run's GPU memory are still allocated after its end"
    assert (tmp_path / "run.log").read_text() == f"the end\n{words}\n"
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "missing.log").exists()


def test_the_processes_of_a_run_are_known_after_they_have_ended(tmp_path: Path) -> None:
    mark = f"usage-test:{tmp_path}"
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={process.MARK: mark})
    watch = Watch(mark, Limits(), [tmp_path])
    watch(0.0)
    child.communicate(b"\n")
    watch(1.0)
    assert list(watch.seen) == [child.pid]


# ---- memory of the machine


def test_the_memory_of_a_process_is_seen_and_an_ended_one_has_none() -> None:
    this = psutil.Process()
    assert usage.memory([this], 1e18) == pytest.approx(this.memory_info().rss, rel=0.2)
    assert 0 < usage.memory([this], 0) < 2 * this.memory_info().rss
    ended = psutil.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    assert usage.memory([ended], 0) == 0
