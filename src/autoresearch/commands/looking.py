"""Commands that look at a campaign: status, log, show, report, chart."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from autoresearch import comparing, interactive, report, standing
from autoresearch.campaign import Campaign
from autoresearch.commands.options import HERE, AsJson, Lab, Tag, print_json
from autoresearch.errors import UserError
from autoresearch.views import judging, terminal
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
    comparable = comparing.class_of(campaign)
    terminal.show_status(campaign, report.of_campaign(campaign), running, Console(), standing.of(campaign), comparable)


def log(
    lab: Lab = HERE,
    tag: Tag = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the last so many.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the campaign's trials, the newest last.

    Example: autoresearch log --limit 20
    """
    beside = interactive.Lab(Workspace.open(lab))
    if as_json:
        print_json(beside.history(limit, tag))
        return
    campaign = beside.campaign(tag)
    rows = report.rows(campaign)
    terminal.show_log(rows[-limit:] if limit else rows, Console(), comparing.names(campaign))


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
        known = beside.trial(trial)
        classes = beside.class_of(known)
        terminal.show_trial(known, str(found["patch"]), str(found["log"]), Console(), classes)


Results = Annotated[
    Path | None, typer.Argument(help="A results.tsv to read in place of the lab's ledger, published ones too.")
]


def report_(
    results: Results = None,
    lab: Lab = HERE,
    tag: Tag = None,
    against: Annotated[str | None, typer.Option(help="Another campaign, to compare the bests of both.")] = None,
    as_json: AsJson = False,
) -> None:
    """Sum the campaign up: baseline, best, keeps and near misses; writes progress.png beside the results.

    With --against, compare its best with another campaign's, where device, preset, frozen files and data are the same.

    Example: autoresearch report --lab my-lab
    """
    if against is not None:
        _compare(results, lab, tag, against, as_json=as_json)
        return
    if results is None:
        workspace = Workspace.open(lab)
        campaign = interactive.Lab(workspace).campaign(tag)
        if as_json:
            found = {"class": comparing.text(campaign), "standing": standing.of(campaign)}
            print_json({**dataclasses.asdict(report.of_campaign(campaign)), **found})
        else:
            show_report(workspace, campaign, Console())
        return
    rows = read_results(results)
    if as_json:
        print_json({**dataclasses.asdict(report.summarise(rows)), "class": None})
    else:
        terminal.show_report(report.summarise(rows), Console())
        _draw(rows, results.with_name("progress.png"), results.name)


def _compare(results: Path | None, lab: Path, tag: str | None, against: str, *, as_json: bool) -> None:
    if results:
        raise UserError(
            "a results.tsv does not tell its class, so nothing is compared with it: name a campaign by --tag"
        )
    beside = interactive.Lab(Workspace.open(lab))
    found = comparing.against(beside.campaign(tag), beside.campaign(against))
    if as_json:
        print_json({**dataclasses.asdict(found), "class": str(found.comparable)})
    else:
        judging.show_comparison(found, Console())


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
        _draw(report.rows(campaign), output or workspace.chart, campaign.tag, comparing.text(campaign))
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
    comparable = comparing.class_of(campaign)
    terminal.show_report(report.of_campaign(campaign), console, campaign.started, standing.of(campaign), comparable)
    _draw(report.rows(campaign), workspace.chart, campaign.tag, comparing.text(campaign))


def _draw(rows: tuple[report.Row, ...], path: Path, title: str, note: str | None = None) -> None:
    from autoresearch.views import chart as picture

    picture.draw(rows, path, title=title, note=note or "")
    print(f"drew {path}")
