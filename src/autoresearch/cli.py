"""The command line: composes the stages, and is the only place that prints and exits."""

from __future__ import annotations

import dataclasses
import errno
import json
import re
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from autoresearch import __version__, compose, config, doctor, hardware, presets, process, report, stopping
from autoresearch.errors import UserError
from autoresearch.ledger import Ledger
from autoresearch.loop import run_campaign
from autoresearch.records import Campaign
from autoresearch.trial import ENTRY
from autoresearch.views import terminal
from autoresearch.workspace import Workspace

TAIL_LINES = 15
REMEDIES = {
    errno.ENOSPC: "free some space, then run this again",
    errno.EDQUOT: "free some space, then run this again",
    errno.EACCES: "choose a place where you may write",
    errno.ENOTDIR: "choose a place where you may write",
    errno.EROFS: "choose a place where you may write",
}

app = typer.Typer(
    help="A machine does pretraining research overnight: propose, train, grade, judge, keep or revert, for ever.",
    epilog="Begin with: autoresearch new my-lab && cd my-lab && autoresearch run",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Lab = Annotated[Path, typer.Option("--lab", help="The lab's directory.", show_default="this directory")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs and agents.")]
Tag = Annotated[str | None, typer.Option(help="Which campaign (else the latest).")]
HERE = Path()


# ---------------------------------------------------------------- making a lab


@app.command()
def new(
    directory: Annotated[Path, typer.Argument(help="Where to make the lab; must be empty or not there.")],
    preset: Annotated[str | None, typer.Option(help=f"One of {', '.join(presets.presets())}.")] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="Training seconds of a run (a preset has 300).")] = None,
) -> None:
    """Make a lab: a git repository with prepare.py, train.py and program.md.

    Without --preset the hardware decides.

    Example: autoresearch new my-lab --preset cpu --budget 60
    """
    table = presets.presets()
    name = preset or hardware.preset_for(hardware.device())
    if name not in table:
        raise UserError(f"there is no preset {name!r}: choose one of {', '.join(table)}")
    presets.create(directory, table[name], budget)
    print(f"made {directory} with preset {name}: for {table[name].purpose}")
    print(f"next: cd {directory} && autoresearch run        (program.md is yours to edit)")


@app.command("doctor")
def doctor_(as_json: AsJson = False, lab: Lab = HERE) -> None:
    """Check this machine: device, torch, memory, disk, git, sandbox, a real attention forward and backward.

    Example: autoresearch doctor
    """
    checks = []
    for check in doctor.examine(lab.resolve()):
        checks.append(check)
        if not as_json:
            terminal.show_check(check, Console())
    if as_json:
        _print_json(checks)
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)


@app.command()
def prepare(lab: Lab = HERE) -> None:
    """Fetch the lab's text, train its tokenizer and write the tokens (`python prepare.py`).

    Example: autoresearch prepare --lab my-lab
    """
    _run_by_hand(lab, "prepare.py", config.prepare_environment())


@app.command()
def train(lab: Lab = HERE) -> None:
    """Run train.py once, as it stands in the lab with your uncommitted edits (`python train.py`).

    Example: autoresearch train --lab my-lab
    """
    _run_by_hand(lab, ENTRY, config.run_environment())


def _run_by_hand(lab: Path, file: str, environment: dict[str, str]) -> None:
    workspace = Workspace.open(lab)
    settings, _ = config.load(workspace.program)
    if process.run_attached([str(compose.interpreter(settings, workspace.root)), file], workspace.root, environment):
        raise typer.Exit(1)


# ---------------------------------------------------------------- the loop


@app.command()
def run(
    lab: Lab = HERE,
    trials: Annotated[int | None, typer.Option(min=1, help="Stop after that many more trials.")] = None,
    hours: Annotated[float | None, typer.Option(min=0, help="Stop at the end of the trial then under way.")] = None,
    tag: Annotated[str | None, typer.Option(help="Campaign to begin or go on with (else the latest).")] = None,
    researcher: Annotated[str | None, typer.Option(help="Who proposes, in place of program.md's.")] = None,
) -> None:
    """Do research until you stop it: propose, train, grade, keep or leave, and again.

    Goes on where the last run stopped, however it stopped. Ctrl-C once ends it after the trial under way,
    twice at once. Your checkout is not touched: keeps are commits on the branch autoresearch/TAG.

    Example: autoresearch run --lab my-lab --trials 8
    """
    workspace = Workspace.open(lab)
    settings, _ = config.load(workspace.program)
    if researcher:
        settings = settings.model_copy(update={"researcher": researcher})
    console = Console()
    with workspace.lock():
        ledger = Ledger(workspace.ledger)
        ledger.mend()
        tag = _checked_tag(tag) if tag else compose.default_tag(ledger, workspace)
        begun = ledger.campaign(tag)
        if begun and (told := compose.notice(begun, workspace)):
            print(told)
        with (
            terminal.LiveView(console, begun) as view,
            stopping.interrupts(console.print) as interrupted,
        ):
            stages = compose.compose(workspace, ledger, settings, tag, view.event, view.progress)
            run_campaign(stages, tag, stopping.enough(trials, hours, interrupted))
        _show_report(workspace, ledger.campaign(tag), console)


def _checked_tag(tag: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", tag):
        raise UserError(f"the tag {tag!r} cannot name a branch: use letters, digits, - and _")
    return tag


# ---------------------------------------------------------------- looking at it


@app.command()
def status(lab: Lab = HERE, tag: Tag = None, as_json: AsJson = False) -> None:
    """Say in a few lines where the campaign stands, and whether a loop is at work.

    Example: autoresearch status --lab my-lab
    """
    workspace = Workspace.open(lab)
    campaign = _campaign(workspace, tag)
    summary = report.summarise(report.rows(campaign), report.run_seconds(campaign))
    if as_json:
        _print_json({"tag": campaign.tag, "running": workspace.is_locked(), "summary": summary})
    else:
        terminal.show_status(campaign, summary, workspace.is_locked(), Console())


@app.command()
def log(
    lab: Lab = HERE,
    tag: Tag = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the last so many.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the campaign's trials, the newest last.

    Example: autoresearch log --limit 20
    """
    rows = report.rows(_campaign(Workspace.open(lab), tag))
    rows = rows[-limit:] if limit else rows
    if as_json:
        _print_json(rows)
    else:
        terminal.show_log(rows, Console())


@app.command()
def show(
    trial: Annotated[int, typer.Argument(help="The trial's number, as in `log`.")],
    lab: Lab = HERE,
    as_json: AsJson = False,
) -> None:
    """Show one trial: idea, verdict, numbers, patch, and the end of its log.

    Example: autoresearch show 3
    """
    workspace = Workspace.open(lab)
    found = {item.number: item for campaign in Ledger(workspace.ledger).campaigns() for item in campaign.trials}
    if trial not in found:
        raise UserError(f"there is no trial {trial} in {workspace.root}: `autoresearch log` lists them")
    chosen = found[trial]
    if as_json:
        _print_json(chosen)
        return
    patch = workspace.trial_directory(trial) / "patch.diff"
    log_file = workspace.root / chosen.runs[-1].log if chosen.runs else None
    tail = log_file.read_text(errors="replace").splitlines()[-TAIL_LINES:] if log_file and log_file.exists() else []
    terminal.show_trial(chosen, patch.read_text() if patch.exists() else "", "\n".join(tail), Console())


Results = Annotated[
    Path | None, typer.Argument(help="A results.tsv to read in place of the lab's ledger, published ones too.")
]


@app.command("report")
def report_(
    results: Results = None,
    lab: Lab = HERE,
    tag: Tag = None,
    as_json: AsJson = False,
) -> None:
    """Sum the campaign up: baseline, best, keeps and near misses; writes progress.png beside the results.

    Example: autoresearch report --lab my-lab
    """
    if results is None:
        workspace = Workspace.open(lab)
        campaign = _campaign(workspace, tag)
        if as_json:
            _print_json(report.summarise(report.rows(campaign), report.run_seconds(campaign)))
        else:
            _show_report(workspace, campaign, Console())
        return
    rows = _read_results(results)
    if as_json:
        _print_json(report.summarise(rows))
    else:
        terminal.show_report(report.summarise(rows), Console())
        _draw(rows, results.with_name("progress.png"), results.name)


@app.command()
def chart(
    results: Results = None,
    lab: Lab = HERE,
    tag: Tag = None,
    output: Annotated[Path | None, typer.Option(help="The picture.", show_default="progress.png beside it")] = None,
) -> None:
    """Draw val_bpb by trial: discards faint, keeps marked, the running best.

    Example: autoresearch chart results.tsv --output progress.png
    """
    if results is None:
        workspace = Workspace.open(lab)
        campaign = _campaign(workspace, tag)
        _draw(report.rows(campaign), output or workspace.chart, campaign.tag)
    else:
        _draw(_read_results(results), output or results.with_name("progress.png"), results.name)


def _campaign(workspace: Workspace, tag: str | None) -> Campaign:
    ledger = Ledger(workspace.ledger)
    campaign = ledger.campaign(tag)
    if campaign is None:
        names = ", ".join(item.tag for item in ledger.campaigns())
        known = f"it has {names}" if names else "begin one with `autoresearch run`"
        raise UserError(f"{workspace.root} has no campaign{f' {tag}' if tag else ''} yet: {known}")
    return campaign


def _read_results(path: Path) -> tuple[report.Row, ...]:
    try:
        return report.from_tsv(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): name a results.tsv") from error


def _show_report(workspace: Workspace, campaign: Campaign | None, console: Console) -> None:
    if campaign is None or not campaign.finished:
        return
    rows = report.rows(campaign)
    terminal.show_report(report.summarise(rows, report.run_seconds(campaign)), console, campaign.started)
    _draw(rows, workspace.chart, campaign.tag)


def _draw(rows: tuple[report.Row, ...], path: Path, title: str) -> None:
    from autoresearch.views import chart as picture

    picture.draw(rows, path, title=title)
    print(f"drew {path}")


def _print_json(value: object) -> None:
    print(json.dumps(value, default=dataclasses.asdict, indent=2))  # records are all that JSON does not know


# ---------------------------------------------------------------- the error boundary


def _show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run a command: 0 done, 1 something that a person can mend, 3 a bug of ours, 130 stopped by Ctrl-C."""
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        code = _complain(str(error))
    except typer.TyperException as error:
        code = _complain(f"{error.format_message()} (`autoresearch --help` lists what there is)")
    except (KeyboardInterrupt, typer.Abort):
        code = _complain("stopped; `autoresearch run` goes on from here", 130)
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        code = _complain(f"{error}: {REMEDIES[number]}; nothing is lost") if number in REMEDIES else _bug(error)
    sys.exit(code)


def _complain(message: str, code: int = 1) -> int:
    print(f"autoresearch: {message}", file=sys.stderr)
    return code


def _bug(error: Exception) -> int:
    with tempfile.NamedTemporaryFile("w", prefix="autoresearch-bug-", suffix=".log", delete=False) as file:
        traceback.print_exception(error, file=file)
    return _complain(f"a bug of ours, not yours ({error!r}): please report it with {file.name}", 3)
