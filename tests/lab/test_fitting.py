"""`autoresearch doctor --fit`, on a tiny lab with the shipped train.py."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoresearch.base import git, variables
from autoresearch.base.errors import UserError
from autoresearch.lab.presets import create, fill, presets
from autoresearch.lab.sizing import fitting
from autoresearch.lab.sizing.fitting import Fit
from autoresearch.lab.sizing.planner import Row, Setting
from autoresearch.lab.workspace import Workspace


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A committed lab whose model takes milliseconds, at first with a needlessly large batch."""
    lab = tmp_path / "a lab"
    create(lab, presets()["cpu"], 20)
    sizes = {"DEPTH": 2, "ASPECT_RATIO": 16, "HEAD_DIM": 32, "DEVICE_BATCH_SIZE": 64, "TOTAL_BATCH_SIZE": 2**16}
    for name, constants in {"train.py": sizes, "prepare.py": {"MAX_SEQ_LEN": 32, "VOCAB_SIZE": 260}}.items():
        (lab / name).write_text(fill((lab / name).read_text(), constants))
    git.commit_all(lab, "tiny")
    return lab


def measure(lab: Path, rows: list[Row] | None = None, memory_gb: float | None = None) -> Fit:
    announce = (rows if rows is not None else []).append
    return fitting.fit_lab(Workspace.open(lab), Path(sys.executable), variables.for_run(), memory_gb, announce)


def doctor(lab: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autoresearch", "doctor", "--fit", "--lab", str(lab), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def edit(lab: Path, old: str, new: str) -> None:
    """Replace what stands once in train.py, and commit."""
    text = (lab / "train.py").read_text()
    assert text.count(old) == 1
    (lab / "train.py").write_text(text.replace(old, new))
    git.commit_all(lab, "edited")


@pytest.mark.slow
def test_what_is_measured_in_the_time_there_is_decides_and_is_written(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "LIMIT_SECONDS", 60.0)
    rows: list[Row] = []
    found = measure(tiny, rows)
    assert tuple(rows) == found.table
    assert rows[0].setting == Setting(2, 64)
    assert found.unmeasured not in [row.setting for row in rows]
    measured = rows[0].found
    assert measured is not None
    assert measured.tokens == 64 * 32
    assert measured.parameters == 2 * 12 * 32**2 + 3 * 260 * 32 + 32 + 4
    assert 100 < measured.memory_mb < measured.free_mb
    plan, train = found.plan, text(tiny, "train.py")
    assert f"\nDEPTH = {plan.depth}  # number of layers" in train
    assert f"\nDEVICE_BATCH_SIZE = {plan.rows}  # rows" in train
    assert f"\nTOTAL_BATCH_SIZE = {fitting.literal(plan.batch_tokens)}  # tokens" in train
    assert f"\nEVAL_TOKENS = {fitting.literal(plan.evaluation_tokens)}  # validation tokens" in text(tiny, "prepare.py")
    assert all(change.old != change.new for change in found.changes)
    assert set(git.changed_paths(tiny)) == {change.file for change in found.changes}


def text(lab: Path, name: str) -> str:
    return (lab / name).read_text()


@pytest.mark.slow
def test_no_more_memory_is_taken_for_free_than_a_run_may_have(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "LIMIT_SECONDS", 30.0)
    measured = measure(tiny, memory_gb=0.5).table[0].found
    assert measured is not None
    assert measured.free_mb == 512


@pytest.mark.slow
def test_the_command_takes_less_than_two_minutes_and_says_what_is_next(tiny: Path) -> None:
    start = time.monotonic()
    done = doctor(tiny)
    assert time.monotonic() - start < 120
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("optimizers") == done.stdout.splitlines()[0].count("optimizers") == 1
    assert "steps" in done.stdout
    assert done.stdout.endswith(
        f'next: cd {shlex.quote(str(tiny))} && git commit -am "fit this machine" && autoresearch run\n'
    )
    refused = doctor(tiny)
    assert "not committed" in refused.stderr
    assert refused.stdout == ""
    git.commit_all(tiny, "fit this machine")
    again = doctor(tiny, "--json")
    found = json.loads(again.stdout)
    assert found["plan"]["depth"] in {row["setting"]["depth"] for row in found["table"]}


# ---------------------------------------------------------------- what it refuses, in one sentence


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_outside_a_lab_it_says_how_to_make_one(tmp_path: Path, options: tuple[str, ...]) -> None:
    done = doctor(tmp_path, *options)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stdout == "" or json.loads(done.stdout)["status"] == "error"
    assert "create one with `autoresearch new DIR`" in done.stderr


def test_while_a_loop_holds_the_lab_nothing_is_measured(tiny: Path) -> None:
    with Workspace.open(tiny).lock():
        done = doctor(tiny)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "another loop" in done.stderr


@pytest.mark.parametrize("file", ["train.py", "prepare.py"])
def test_uncommitted_edits_are_not_written_over(tiny: Path, file: str) -> None:
    with (tiny / file).open("a") as opened:
        opened.write("# mine\n")
    with pytest.raises(UserError, match=f"{file} in .* not committed.*git commit -a"):
        measure(tiny)
    assert text(tiny, file).endswith("# mine\n")


def test_a_constant_that_is_not_there_is_named(tiny: Path) -> None:
    edit(tiny, "DEPTH = 2 ", "DEPTH = max(2, 1) ")
    with pytest.raises(UserError, match=r"train\.py has no line `DEPTH = `"):
        measure(tiny)


def test_a_train_py_without_the_names_that_are_needed_is_told_so(tiny: Path) -> None:
    edit(tiny, "def warm_up(", "def heat(")
    with pytest.raises(UserError, match=r"train\.py has no warm_up, .* yourself"):
        measure(tiny)
    assert git.changed_paths(tiny) == ()


def test_a_train_py_that_fails_by_itself_is_told_with_the_last_line_of_its_log(tiny: Path) -> None:
    edit(tiny, "def count_parameters(", "raise ValueError('no idea')\n\n\ndef count_parameters(")
    with pytest.raises(UserError, match=r"failed with code 1 .*ValueError: no idea.*fix that first"):
        measure(tiny)


def test_a_train_py_that_a_signal_ends_is_not_short_of_memory(tiny: Path) -> None:
    edit(tiny, "def count_parameters(", "ctypes.string_at(0)\n\n\ndef count_parameters(")
    with pytest.raises(UserError, match="failed with code -11"):
        measure(tiny)


@pytest.mark.slow
def test_what_the_system_kills_is_probably_short_of_memory(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "LIMIT_SECONDS", 60.0)
    edit(tiny, "def count_parameters(", "os.kill(os.getpid(), 9)\n\n\ndef count_parameters(")
    rows: list[Row] = []
    with pytest.raises(UserError, match="nothing could be measured"):
        measure(tiny, rows)
    assert [row.setting for row in rows[:2]] == [Setting(2, 64), Setting(2, 16)]
    assert rows[0].problem.startswith("out of memory, probably")


@pytest.mark.slow
def test_want_of_memory_is_a_row_and_no_end(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = "    dtype = pick_dtype"
    edit(tiny, begin, f"    if DEVICE_BATCH_SIZE > 16:\n        raise MemoryError\n{begin}")
    monkeypatch.setattr(fitting, "LIMIT_SECONDS", 60.0)
    rows: list[Row] = []
    found = measure(tiny, rows)
    assert rows[0].problem == "out of memory"
    assert rows[1].setting == Setting(2, 16)
    assert found.plan.rows <= 16


def test_where_nothing_can_be_measured_in_time_it_says_what_to_do(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "LIMIT_SECONDS", 1.5)
    with pytest.raises(UserError, match=r"not ready .* in .* processors were busy .* lower DEVICE_BATCH_SIZE"):
        measure(tiny)
    assert git.changed_paths(tiny) == ()


@pytest.mark.slow
def test_a_measurement_that_is_slow_after_it_was_ready_is_not_done(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "LIMIT_SECONDS", 20.0)
    last = "        part.load_state_dict(state)\n"
    edit(tiny, last, f"{last}    model.forward = lambda *_: time.sleep(99)\n")
    rows: list[Row] = []
    with pytest.raises(UserError, match="nothing could be measured"):
        measure(tiny, rows)
    assert rows[0].problem.startswith("not done in ")


@pytest.mark.parametrize(
    ("line", "number"), [("16", 16), ("2**13", 8192), ("40 * 524288  # x", 20971520), ("1_000", 1000)]
)
def test_constants_are_read_as_numbers_and_products_of_powers(line: str, number: int) -> None:
    assert fitting.number(f"A = 1\nX = {line}\n", "train.py", "X") == number


@pytest.mark.parametrize(("number", "shown"), [(16, 16), (2**13, "2**13"), (1000, 1000), (40 * 2**19, 20971520)])
def test_large_powers_of_two_are_written_as_such(number: int, shown: str | int) -> None:
    assert fitting.literal(number) == shown
