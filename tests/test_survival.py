"""The loop is killed, interrupted and taken up again: no trial is lost, none is done twice."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import toy_lab
from autoresearch.base import git
from autoresearch.base.process import MARK
from autoresearch.ledger.campaign import Campaign
from autoresearch.ledger.ledger import Ledger
from autoresearch.ledger.records import Status

XS = (2.8, 2.6, 9.0, 2.4, 8.0, 2.2)


def start(lab: Path, *options: str, sleep: float = 0.3) -> subprocess.Popen[str]:
    """The loop as a person starts it, with a script of proposals whose runs take that many seconds."""
    script = lab.parent / "script.json"
    extra = f"import time; time.sleep({sleep})"
    lines = [{"idea": f"X to {x}", "files": {"train.py": toy_lab.train_with(x, extra)}} for x in XS]
    script.write_text(json.dumps(lines))
    command = [sys.executable, "-m", "autoresearch", "run", "--lab", str(lab), "--researcher", f"scripted:{script}"]
    return subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def campaign(lab: Path) -> Campaign | None:
    return Ledger(lab / ".autoresearch/ledger.jsonl").campaign()


def finished(lab: Path) -> int:
    found = campaign(lab)
    return len(found.finished) if found else 0


def wait_for(lab: Path, trials: int) -> None:
    """Wait until so many verdicts are in the ledger and the next run is under way."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        lines = (lab / ".autoresearch/ledger.jsonl").read_text().splitlines() if finished(lab) >= trials else []
        if lines and '"type": "run_started"' in lines[-1]:
            return
        time.sleep(0.02)
    raise AssertionError("the loop did not get there")


def leftovers(lab: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(f"lab:{lab.resolve()}:/"):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def check_whole(lab: Path) -> None:
    """Every proposal has been tried once, in order, and all views agree with the ledger."""
    found = campaign(lab)
    assert found is not None
    assert [trial.proposed.idea for trial in found.trials] == ["baseline", *(f"X to {x}" for x in XS)]
    assert [trial.number for trial in found.finished] == list(range(len(XS) + 1))
    assert all(len(trial.runs) == 1 for trial in found.trials)
    keep, discard = Status.KEEP, Status.DISCARD
    statuses = [trial.verdict.status for trial in found.trials if trial.verdict]
    assert statuses == [keep, keep, keep, discard, keep, discard, keep]
    assert found.incumbent is not None
    assert git.resolve(lab, f"autoresearch/{found.tag}") == found.incumbent.proposed.commit
    assert len((lab / "results.tsv").read_text().splitlines()) == len(XS) + 2
    assert leftovers(lab) == []


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_kill_9_at_any_moment_loses_and_doubles_nothing(lab: Path, tmp_path: Path, seed: int) -> None:
    moments, kills = random.Random(seed), 0
    began = time.monotonic()
    start(toy_lab.make(tmp_path / "timed" / "lab"), "--trials", "1").communicate()
    seconds = time.monotonic() - began  # of a start and two runs, as fast as this machine is now
    while True:
        loop = start(lab)
        try:
            out, _ = loop.communicate(timeout=moments.uniform(0.3, 1.2) * seconds * (1 + kills / 10))
        except subprocess.TimeoutExpired:
            loop.kill()
            loop.communicate()
            kills += 1
            assert kills < 40, "it never gets to the end"
            continue
        assert loop.returncode == 0, out
        break
    assert kills > 0
    check_whole(lab)


@pytest.mark.slow
def test_a_run_that_outlived_its_killed_loop_is_ended_by_the_next(lab: Path) -> None:
    loop = start(lab, sleep=6)
    wait_for(lab, 1)
    time.sleep(0.5)
    orphans = leftovers(lab)
    loop.kill()
    loop.communicate()
    assert orphans
    again = start(lab)
    out, _ = again.communicate(timeout=60)
    assert again.returncode == 0, out
    assert not any(psutil.pid_exists(pid) for pid in orphans)


def test_ctrl_c_once_ends_after_the_trial_under_way(lab: Path) -> None:
    loop = start(lab, sleep=1.5)
    wait_for(lab, 2)
    loop.send_signal(signal.SIGINT)
    out, _ = loop.communicate(timeout=30)
    assert loop.returncode == 0
    assert "stopping after the current trial" in out
    assert finished(lab) == 3
    assert start(lab).communicate(timeout=60)
    check_whole(lab)


def test_ctrl_c_twice_stops_at_once_and_run_goes_on(lab: Path) -> None:
    loop = start(lab, sleep=30)
    wait_for(lab, 1)
    loop.send_signal(signal.SIGINT)
    time.sleep(0.3)
    loop.send_signal(signal.SIGINT)
    out, _ = loop.communicate(timeout=20)
    assert loop.returncode == 130, out
    assert "autoresearch run" in out
    assert leftovers(lab) == []
    found = campaign(lab)
    assert found is not None
    assert found.trials[1].verdict is None


def test_a_trial_limit_and_a_time_limit_stop_the_loop(lab: Path) -> None:
    out, _ = start(lab, "--trials", "2").communicate(timeout=60)
    assert finished(lab) == 3, out
    out, _ = start(lab, "--hours", "0").communicate(timeout=60)
    assert finished(lab) == 3, out


@pytest.mark.parametrize("moved", [False, True])
def test_a_lab_that_is_deleted_or_moved_ends_its_loop_in_one_sentence(lab: Path, moved: bool) -> None:
    process = start(lab, sleep=2.0)
    wait_for(lab, 1)
    gone = lab.rename(lab.with_name("elsewhere"))
    if not moved:
        shutil.rmtree(gone)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert f"autoresearch: {lab} was moved or deleted while its loop ran" in " ".join(output.split())
    assert not (lab / ".autoresearch/ledger.jsonl").exists(), "no other search is begun in its place"
    assert leftovers(lab) == []
    if moved:
        shutil.rmtree(lab, ignore_errors=True)
        gone.rename(lab)
        again = start(lab, "--trials", "1", sleep=0.1)
        assert again.communicate(timeout=60)[0]
        assert again.returncode == 0
