"""Measures a lab's train.py on this machine, setting by setting, and writes the constants that fit into its files."""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from autoresearch.base import atomic, process
from autoresearch.base.errors import UserError
from autoresearch.executors import hardware
from autoresearch.grading.protocol import ENTRY
from autoresearch.lab import presets
from autoresearch.lab.sizing import planner, stopwatch
from autoresearch.lab.sizing.planner import Goal, Measurement, Plan, Row, Setting
from autoresearch.lab.workspace import Workspace

PREPARE = "prepare.py"
# the constants it sets
CONSTANTS = {"DEPTH": ENTRY, "DEVICE_BATCH_SIZE": ENTRY, "TOTAL_BATCH_SIZE": ENTRY, "EVAL_TOKENS": PREPARE}
LIMIT_SECONDS = 108.0  # for all measurements; with startup and cleanup it stays under two minutes
LONGEST_SECONDS = 60.0  # for one, once there is something to decide from
GPU_LIMIT_SECONDS, GPU_LONGEST_SECONDS = 480.0, 180.0  # the same where train.py is compiled, a minute or two per depth
LONGEST_LINE = 300  # characters of a log that are shown
FAILED = "failed"
KILLED = -9  # exit code after the system killed it, on a CPU usually because memory ran out
BUSY_SECONDS = 1.0
LOG = "log"
ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}  # as train.py sets it

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Change:
    """A constant of a lab's file, before and after."""

    file: str
    name: str
    old: int
    new: int


@dataclass(frozen=True)
class Fit:
    """The measured table, the plan derived from it, and what that changed.

    `unmeasured` is the setting that would have been next if there had been time. `busy_percent` is how much of the
    processors other programs used just before.
    """

    goal: Goal
    table: tuple[Row, ...]
    unmeasured: Setting | None
    plan: Plan
    changes: tuple[Change, ...]
    seconds: float
    busy_percent: float


def fit_lab(
    workspace: Workspace,
    python: Path,
    environment: Mapping[str, str],
    memory_gb: float | None,
    announce: Callable[[Row], None],
) -> Fit:
    """Measure, decide and write. Every row is announced as it comes. `memory_gb` (GiB) is what a run may use.

    Raises:
        UserError: the files have uncommitted edits or lack something, or nothing could be measured.
    """
    start = time.monotonic()
    is_gpu = hardware.device().kind == "cuda"
    limit, longest = (GPU_LIMIT_SECONDS, GPU_LONGEST_SECONDS) if is_gpu else (LIMIT_SECONDS, LONGEST_SECONDS)
    files = _committed(workspace)
    goal = goal_of(files)
    command = [str(python), stopwatch.FILE, str(math.inf if memory_gb is None else 1024 * memory_gb)]
    busy = psutil.cpu_percent(BUSY_SECONDS)
    table: list[Row] = []
    while setting := planner.next_setting(table, goal):
        left = limit - (time.monotonic() - start)
        if table and left < _likely_seconds(table):
            break
        most = min(left, longest) if planner.measured(table) else left
        row = _measure(setting, goal, files, command, environment, most)
        if not table and row.problem.startswith(FAILED):
            raise UserError(f"train.py {row.problem}: fix that first, `autoresearch train` shows all of it")
        table.append(row)
        announce(row)
    found = planner.measured(table)
    if not found:
        tried = f"{len(table)} settings tried, the last: {table[-1].problem}"
        raise UserError(
            f"nothing could be measured in {limit:.0f} s ({tried}; {busy:.0f} % of the processors were busy "
            "before): run it again when the machine is idle, or lower DEVICE_BATCH_SIZE in train.py"
        )
    plan = planner.chosen(found, goal)
    changes = _write(workspace, files, plan)
    return Fit(goal, tuple(table), setting, plan, changes, time.monotonic() - start, busy)


def goal_of(files: Files) -> Goal:
    """What a lab's files say: context, budget, and the current sizes.

    Raises:
        UserError: they lack a constant that is read or set.
    """
    now = {name: number(files[file].decode(), file, name) for name, file in CONSTANTS.items()}
    prepare = files[PREPARE].decode()
    start = Setting(now["DEPTH"], now["DEVICE_BATCH_SIZE"])
    return Goal(number(prepare, PREPARE, "MAX_SEQ_LEN"), presets.budget(prepare), start, now["EVAL_TOKENS"])


def _committed(workspace: Workspace) -> Files:
    """The files of the checkout's commit. prepare.py and train.py must not differ from them."""
    edited = sorted({PREPARE, ENTRY} & set(workspace.changed_paths()))
    commit = workspace.head()
    if edited or commit is None:
        which = " and ".join(edited) or "its files"
        raise UserError(
            f"{which} in {workspace.root} are not committed, and --fit writes there: commit them with `git commit "
            "-a`, or put them aside with `git stash`"
        )
    return workspace.files(commit)


def number(source: str, file: str, name: str) -> int:
    """A top-level constant that is a whole number or a product of powers, like 40 * 2**19."""
    found = re.search(rf"^{name} = (\d[\d_ *]*?)\s*(#.*)?$", source, re.MULTILINE)
    if not found:
        raise UserError(f"{file} has no line `{name} = ` with a whole number, which --fit reads and sets: add it")
    powers = re.findall(r"(\d[\d_]*)(?:\s*\*\*\s*(\d+))?", found[1])
    return math.prod(int(base) ** int(exponent or 1) for base, exponent in powers)


# ---------------------------------------------------------------- measuring


def _likely_seconds(table: Sequence[Row]) -> float:
    """How long the next measurement will take, roughly: as long as the longest one that ended by itself."""
    return max((row.seconds for row in table if row.found), default=0.0)


def _measure(
    setting: Setting,
    goal: Goal,
    files: Files,
    command: Sequence[str],
    environment: Mapping[str, str],
    deadline_seconds: float,
) -> Row:
    """Run the stopwatch next to a copy of the lab's files with the setting's constants."""
    start = time.monotonic()
    constants = {
        "DEPTH": setting.depth,
        "DEVICE_BATCH_SIZE": setting.rows,
        "TOTAL_BATCH_SIZE": setting.rows * goal.context,
    }
    with tempfile.TemporaryDirectory(prefix="autoresearch-fit-") as name:
        directory = Path(name)
        for path, content in files.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_bytes(content)
        (directory / ENTRY).write_bytes(_filled(files[ENTRY], constants))
        shutil.copyfile(stopwatch.__file__, directory / stopwatch.FILE)
        ended = process.run_group(
            [*command, *([stopwatch.EVALUATE] if setting.evaluate else [])],
            directory=directory,
            environment={**ALLOCATOR, **environment},
            log=directory / LOG,
            deadline_seconds=deadline_seconds,
            mark=f"fit:{directory}",
            poll=lambda elapsed: None,
        )
        found, problem = _outcome(directory, ended.exit_code, deadline_seconds)
    return Row(setting, found, problem, time.monotonic() - start)


def _outcome(directory: Path, exit_code: int | None, deadline_seconds: float) -> tuple[Measurement | None, str]:
    """What the stopwatch measured, or what went wrong.

    Raises:
        UserError: train.py lacks what the stopwatch calls.
    """
    result = directory / stopwatch.RESULT
    found = json.loads(result.read_text()) if result.exists() else {}
    if missing := found.get("missing"):
        raise UserError(
            f"train.py has no {', '.join(missing)}, which --fit needs to measure it: choose the sizes of this one "
            "yourself"
        )
    if "pass_seconds" in found:
        return Measurement(**found), ""
    if "problem" in found:
        return None, str(found["problem"])
    if exit_code is None:
        what = "not done" if "warm" in found else f"{planner.NOT_READY} (imports, compilation)"
        return None, f"{what} in {deadline_seconds:.0f} s"
    if exit_code == KILLED:
        return None, f"{stopwatch.OUT_OF_MEMORY}, probably: the system killed it"
    lines = (directory / LOG).read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
    return None, f"{FAILED} with code {exit_code} while it was measured ({lines[-1][:LONGEST_LINE]})"


# ---------------------------------------------------------------- writing


def _write(workspace: Workspace, files: Files, plan: Plan) -> tuple[Change, ...]:
    """Set the plan's constants in the lab's files if they differ."""
    wanted = {
        "DEPTH": plan.depth,
        "DEVICE_BATCH_SIZE": plan.rows,
        "TOTAL_BATCH_SIZE": plan.batch_tokens,
        "EVAL_TOKENS": plan.evaluation_tokens,
    }
    made = (
        Change(file, name, number(files[file].decode(), file, name), wanted[name]) for name, file in CONSTANTS.items()
    )
    changes = tuple(change for change in made if change.old != change.new)
    for file in {change.file for change in changes}:
        constants = {change.name: change.new for change in changes if change.file == file}
        atomic.write(workspace.root / file, _filled(files[file], constants))
    return changes


def _filled(content: bytes, constants: Mapping[str, int]) -> bytes:
    return presets.fill(content.decode(), {name: literal(value) for name, value in constants.items()}).encode()


def literal(number: int) -> str | int:
    """A number as presets.yaml writes it: a large power of two as such."""
    exponent = number.bit_length() - 1
    return f"2**{exponent}" if exponent >= 10 and number == 2**exponent else number
