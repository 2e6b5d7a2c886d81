"""Commands that create a lab and try it out: new, doctor, prepare, train."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from autoresearch.base import process, registry, variables
from autoresearch.base.errors import UserError
from autoresearch.commands.options import HERE, AsJson, Lab, print_json
from autoresearch.executors import hardware
from autoresearch.grading.protocol import ENTRY
from autoresearch.lab import config, doctor, presets, recovery
from autoresearch.lab.settings import Config
from autoresearch.lab.sizing import fitting
from autoresearch.lab.sizing.planner import Row
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.ledger import Ledger
from autoresearch.loop.parts import compose, where
from autoresearch.researchers.interface import Checked
from autoresearch.views import setup as view

# percent of the processors; above this, sizes would be chosen for a machine that is slower than it is at night
BUSY_PERCENT = 25
SHORTEST_BUDGET = 8  # seconds: with less, runs train for less than disturbance.SHORTEST


def new(
    directory: Annotated[
        Path, typer.Argument(help="Where to create the lab. The directory must be empty or not exist.")
    ],
    preset: Annotated[str | None, typer.Option(help=f"One of {', '.join(presets.presets())}.")] = None,
    budget: Annotated[
        int | None, typer.Option(min=1, help="Training time of a run in seconds (presets use 300).")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="The text: a file or folder of yours, climbmix, tinystories or stdlib.")
    ] = None,
    text_key: Annotated[
        str | None,
        typer.Option(help="The field of your jsonl or parquet files that holds the text.", show_default="text"),
    ] = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="Use the published recipe without this preset's improvements.")
    ] = False,
) -> None:
    """Create a lab: a git repository with prepare.py, train.py and program.md.

    Without --preset the hardware decides. docs/recipe.md lists what --reference leaves out.

    Example: autoresearch new my-lab --preset cpu --budget 60 --source ~/texts --text-key body
    """
    table = presets.presets()
    name = preset or hardware.preset_for(hardware.device())
    if name not in table:
        raise UserError(f"there is no preset {name!r}: choose one of {', '.join(table)}")
    presets.create(directory, table[name].reference if reference else table[name], budget, source, text_key)
    if budget is not None and budget < SHORTEST_BUDGET:
        print(f"note: whether other programs disturbed a run can only be told from {SHORTEST_BUDGET} seconds on")
    recipe = ", the published recipe" if reference else ""
    print(f"created {directory} with preset {name}{recipe}: for {table[name].purpose}")
    print(f"next: cd {shlex.quote(str(directory))} && autoresearch run        (program.md is yours to edit)")


def doctor_(
    fit: Annotated[
        bool,
        typer.Option(
            "--fit", help="Measure the lab here and write the sizes that fit. Takes two minutes, on a GPU up to eight."
        ),
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Repair the lab after a power cut or a failing disk: ledger, references, commits."
        ),
    ] = False,
    online: Annotated[
        bool, typer.Option("--online", help="Also ask the researcher's language model for one word.")
    ] = False,
    as_json: AsJson = False,
    lab: Lab = HERE,
) -> None:
    """Check this machine: device, torch, memory, disk, git, sandbox, and a real attention forward and backward pass.

    In a lab it also checks program.md, the editable files, the preset, the data and the researcher.

    With --fit it measures speed and memory of the lab's train.py instead and shows the table. Then it sets DEPTH,
    DEVICE_BATCH_SIZE and TOTAL_BATCH_SIZE in train.py and EVAL_TOKENS in prepare.py, for you to commit.

    With --repair it puts back what a power cut or a failing disk took from a lab, as far as its patches give it back.

    Example: autoresearch doctor --fit --lab my-lab
    """
    if repair:
        workspace = Workspace.open(lab)
        with workspace.lock():
            recovery.repair(workspace, Ledger(workspace.ledger), print)
        return
    if fit:
        _fit(lab, as_json=as_json)
        return
    checks = []
    for check in doctor.examine(lab.resolve(), lambda settings: _asked(lab, settings, online=online)):
        checks.append(check)
        if not as_json:
            view.show_check(check, Console())
    if as_json:
        print_json(checks)
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)


def _asked(lab: Path, settings: Config, *, online: bool) -> str:
    """Whether the lab's researcher, judge and executor can be used, in words."""
    workspace = Workspace.open(lab)
    where.interpreter(settings, workspace.root)
    compose.judge(settings)
    registry.find("executor", registry.EXECUTORS, settings.executor)
    where.check_cluster(settings)
    compose.check_caps(settings)
    made = compose.researcher(settings.researcher, compose.kit(workspace, settings, f"lab:{workspace.root}:"))
    if not isinstance(made, Checked):
        return f"{settings.researcher}: installed"
    made.check(online=online)
    return f"{settings.researcher}: {'it answers' if online else 'not asked (--online asks it for a word)'}"


def _fit(lab: Path, *, as_json: bool) -> None:
    workspace, console = Workspace.open(lab), Console()
    settings, _ = config.load(workspace.program)
    python = where.interpreter(settings, workspace.root)
    rows: list[Row] = []

    def announce(row: Row) -> None:
        rows.append(row)
        if not as_json:
            view.show_measurement(row, console, first=len(rows) == 1)

    with workspace.lock():  # meanwhile no loop may use the machine or read the files
        found = fitting.fit_lab(workspace, python, variables.for_run(), settings.memory_gb, announce)
    if as_json:
        print_json(found)
        return
    view.show_plan(found.plan, found.goal, found.unmeasured, console)
    if found.busy_percent > BUSY_PERCENT:
        print(
            f"other programs used {found.busy_percent:.0f} % of the processors: run --fit again when the machine is "
            "idle"
        )
    for change in found.changes:
        print(f"{change.file}: {change.name} {change.old:,} -> {change.new:,}")
    if any(change.file == "prepare.py" for change in found.changes):
        print("prepare.py is frozen in a campaign: scores from before and after this change cannot be compared")
    begun = Ledger(workspace.ledger).campaign() is not None
    there = "" if lab == HERE else f"cd {shlex.quote(str(lab))} && "
    run = "autoresearch run" + (" --tag NAME" if begun else "")
    next_step = f'next: {there}git commit -am "fit this machine" && {run}'
    print(next_step if found.changes else "the sizes already fit")


def prepare(lab: Lab = HERE) -> None:
    """Fetch the lab's text, train its tokenizer and write the tokens (same as `python prepare.py`).

    Example: autoresearch prepare --lab my-lab
    """
    _run_by_hand(lab, "prepare.py", variables.for_prepare())


def train(lab: Lab = HERE) -> None:
    """Run train.py once as it is in the lab, with your uncommitted edits (same as `python train.py`).

    Example: autoresearch train --lab my-lab
    """
    _run_by_hand(lab, ENTRY, variables.for_run())


def _run_by_hand(lab: Path, file: str, environment: dict[str, str]) -> None:
    workspace = Workspace.open(lab)
    settings, _ = config.load(workspace.program)
    if process.run_attached([str(where.interpreter(settings, workspace.root)), file], workspace.root, environment):
        raise typer.Exit(1)
