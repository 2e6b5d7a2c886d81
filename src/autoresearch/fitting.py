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

from autoresearch import atomic, fit, presets, process, stopwatch
from autoresearch.errors import UserError
from autoresearch.fit import Goal, Measurement, Plan, Row, Setting
from autoresearch.trial import ENTRY
from autoresearch.workspace import Workspace

PREPARE = "prepare.py"
CONSTANTS = {"DEPTH": ENTRY, "DEVICE_BATCH_SIZE": ENTRY, "TOTAL_BATCH_SIZE": ENTRY, "EVAL_TOKENS": PREPARE}  # are set
LIMIT_SECONDS = 108.0  # for all measurements; with what starts and ends them it stays under two minutes
LONGEST_SECONDS = 60.0  # for one, once there is something to decide by; compilation may take long
LONGEST_LINE = 300  # characters of a log that are shown
FAILED = "failed"
KILLED = -9  # exit code of what the system ended, on a CPU for want of memory
BUSY_SECONDS = 1.0
LOG = "log"
ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}  # as train.py's main() sets it

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Change:
    """A constant of a lab's file, as it was and as it is now."""

    file: str
    name: str
    old: int
    new: int


@dataclass(frozen=True)
class Fit:
    """The table that was measured, the plan that follows from it, and what that changed.

    `unmeasured` is the setting that would have come next, had there been time; `busy_percent` is how much of the
    processors others used just before.
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
    """Measure, decide and write; every row is announced as it comes. `memory_gb` (GiB) is what a run may have.

    Raises:
        UserError: the files have uncommitted edits or not what is needed, or nothing could be measured.
    """
    start = time.monotonic()
    files = _committed(workspace)
    goal = goal_of(files)
    command = [str(python), stopwatch.FILE, str(math.inf if memory_gb is None else 1024 * memory_gb)]
    busy = psutil.cpu_percent(BUSY_SECONDS)
    table: list[Row] = []
    while setting := fit.next_setting(table, goal):
        left = LIMIT_SECONDS - (time.monotonic() - start)
        if table and left < _likely_seconds(table):
            break
        most = min(left, LONGEST_SECONDS) if fit.measured(table) else left
        row = _measure(setting, goal, files, command, environment, most)
        if not table and row.problem.startswith(FAILED):
            raise UserError(f"train.py {row.problem}: mend that first, `autoresearch train` shows all of it")
        table.append(row)
        announce(row)
    found = fit.measured(table)
    if not found:
        tried = f"{len(table)} settings tried, the last: {table[-1].problem}"
        raise UserError(
            f"nothing could be measured in {LIMIT_SECONDS:.0f} s ({tried}; {busy:.0f} % of the processors were busy "
            "before): run it again when the machine is idle, or lower DEVICE_BATCH_SIZE in train.py"
        )
    plan = fit.chosen(found, goal)
    changes = _write(workspace, files, plan)
    return Fit(goal, tuple(table), setting, plan, changes, time.monotonic() - start, busy)


def goal_of(files: Files) -> Goal:
    """What a lab's files say: its context, budget, and the sizes that it has now.

    Raises:
        UserError: they lack a constant that is read, or that is to be set.
    """
    now = {name: number(files[file].decode(), file, name) for name, file in CONSTANTS.items()}
    prepare = files[PREPARE].decode()
    start = Setting(now["DEPTH"], now["DEVICE_BATCH_SIZE"])
    return Goal(number(prepare, PREPARE, "MAX_SEQ_LEN"), presets.budget(prepare), start, now["EVAL_TOKENS"])


def _committed(workspace: Workspace) -> Files:
    """The files of the checkout's commit, from which prepare.py and train.py must not differ."""
    edited = sorted({PREPARE, ENTRY} & set(workspace.changed_paths()))
    commit = workspace.head()
    if edited or commit is None:
        which = " and ".join(edited) or "its files"
        raise UserError(
            f"{which} in {workspace.root} are not committed, and --fit writes there: commit them with "
            "`git commit -a`, or put them aside with `git stash`"
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
    """What the next measurement takes, more or less: as long as the longest that ended by itself."""
    return max((row.seconds for row in table if row.found), default=0.0)


def _measure(
    setting: Setting,
    goal: Goal,
    files: Files,
    command: Sequence[str],
    environment: Mapping[str, str],
    deadline_seconds: float,
) -> Row:
    """Run the stopwatch beside a copy of the lab's files that has the setting's constants."""
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
    """What the stopwatch found, or what became of it.

    Raises:
        UserError: train.py lacks what the stopwatch calls.
    """
    result = directory / stopwatch.RESULT
    found = json.loads(result.read_text()) if result.exists() else {}
    if missing := found.get("missing"):
        raise UserError(
            f"train.py has no {', '.join(missing)}, by which --fit measures it: choose the sizes of this one by hand"
        )
    if "pass_seconds" in found:
        return Measurement(**found), ""
    if "problem" in found:
        return None, str(found["problem"])
    if exit_code is None:
        what = "not done" if "warm" in found else f"{fit.NOT_READY} (imports, compilation)"
        return None, f"{what} in {deadline_seconds:.0f} s"
    if exit_code == KILLED:
        return None, f"{stopwatch.OUT_OF_MEMORY}, likely: the system killed it"
    lines = (directory / LOG).read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    return None, f"{FAILED} with code {exit_code} while it was measured ({lines[-1][:LONGEST_LINE]})"


# ---------------------------------------------------------------- writing


def _write(workspace: Workspace, files: Files, plan: Plan) -> tuple[Change, ...]:
    """Set the plan's constants in the lab's files, where they differ."""
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
