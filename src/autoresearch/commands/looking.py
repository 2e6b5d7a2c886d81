"""Commands that look at a campaign: status, log, show, report, chart."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from autoresearch import interactive, report, standing
from autoresearch.campaign import Campaign
from autoresearch.commands.options import HERE, AsJson, Lab, Tag, print_json
from autoresearch.errors import UserError
from autoresearch.views import terminal
from autoresearch.workspace import Workspace


def status(lab: Lab = HERE, tag: Tag = None, as_json: AsJson = False) -> None:
    """Say in a few lines where the campaign stands, and whether a loop is at work.

    Example: autoresearch status --lab my-lab
    """
    beside = interactive.Lab(Workspace.open(lab))
    if as_json:
        print_json(beside.status(tag))
        return
    campaign = beside.campaign(tag)
    running = beside.workspace.is_locked()
    terminal.show_status(campaign, report.of_campaign(campaign), running, Console(), standing.of(campaign))


def log(
    lab: Lab = HERE,
    tag: Tag = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the last so many.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the campaign's trials, the newest last.

    Example: autoresearch log --limit 20
    """
    rows = report.rows(interactive.Lab(Workspace.open(lab)).campaign(tag))
    rows = rows[-limit:] if limit else rows
    if as_json:
        print_json(rows)
    else:
        terminal.show_log(rows, Console())


def show(
    trial: Annotated[int, typer.Argument(help="The trial's number, as in `log`.")],
    lab: Lab = HERE,
    as_json: AsJson = False,
) -> None:
    """Show one trial: idea, verdict, numbers, patch, and the end of its log.

    Example: autoresearch show 3
    """
    beside = interactive.Lab(Workspace.open(lab))
    found = beside.show(trial)
    if as_json:
        print_json(found)
    else:
        terminal.show_trial(beside.trial(trial), str(found["patch"]), str(found["log"]), Console())


Results = Annotated[
    Path | None, typer.Argument(help="A results.tsv to read in place of the lab's ledger, published ones too.")
]


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
        campaign = interactive.Lab(workspace).campaign(tag)
        if as_json:
            print_json({**dataclasses.asdict(report.of_campaign(campaign)), "standing": standing.of(campaign)})
        else:
            show_report(workspace, campaign, Console())
        return
    rows = read_results(results)
    if as_json:
        print_json(report.summarise(rows))
    else:
        terminal.show_report(report.summarise(rows), Console())
        _draw(rows, results.with_name("progress.png"), results.name)


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
        campaign = interactive.Lab(workspace).campaign(tag)
        _draw(report.rows(campaign), output or workspace.chart, campaign.tag)
    else:
        _draw(read_results(results), output or results.with_name("progress.png"), results.name)


def read_results(path: Path) -> tuple[report.Row, ...]:
    try:
        return report.from_tsv(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): name a results.tsv") from error


def show_report(workspace: Workspace, campaign: Campaign | None, console: Console) -> None:
    if campaign is None or not campaign.finished:
        return
    terminal.show_report(report.of_campaign(campaign), console, campaign.started, standing.of(campaign))
    _draw(report.rows(campaign), workspace.chart, campaign.tag)


def _draw(rows: tuple[report.Row, ...], path: Path, title: str) -> None:
    from autoresearch.views import chart as picture

    picture.draw(rows, path, title=title)
    print(f"drew {path}")
