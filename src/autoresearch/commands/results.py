"""Commands that show a campaign: status, log, show, report, chart."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from autoresearch.agents.answers import Answers
from autoresearch.base.errors import UserError
from autoresearch.commands.options import HERE, AsJson, Lab, Tag, print_json
from autoresearch.judging import audit as auditing
from autoresearch.judging import claims, comparability
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger import report, results_tsv
from autoresearch.ledger.campaign import Campaign
from autoresearch.views import terminal, verdicts

Full = Annotated[bool, typer.Option("--full", help="With --json: everything that is known.")]


def status(lab: Lab = HERE, tag: Tag = None, as_json: AsJson = False, full: Full = False) -> None:
    """Show in a few lines where the campaign stands and whether a loop is running.

    Example: autoresearch status --lab my-lab
    """
    beside = Answers(Workspace.open(lab))
    if as_json:
        print_json(beside.status(tag, full=full))
        return
    terminal.show_status(beside.overview(tag), beside.workspace.is_locked(), Console())


def tags(lab: Lab = HERE, as_json: AsJson = False) -> None:
    """List the lab's campaigns, newest last, with what each has reached.

    Example: autoresearch tags
    """
    beside = Answers(Workspace.open(lab))
    found = beside.campaigns()
    if as_json:
        print_json(found)
    else:
        terminal.show_tags(found, Console())


def diff(
    before: Annotated[int, typer.Argument(help="A trial's number.")],
    after: Annotated[int, typer.Argument(help="Another trial's number.")],
    lab: Lab = HERE,
) -> None:
    """Show how the files of two trials differ.

    Example: autoresearch diff 0 8
    """
    beside = Answers(Workspace.open(lab))
    first, second = (beside.trial(number).proposed.commit for number in (before, after))
    terminal.show_patch(beside.workspace.patch(first, second), Console())


def log(
    lab: Lab = HERE,
    tag: Tag = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Show only the last N.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the campaign's trials, newest last.

    Example: autoresearch log --limit 20
    """
    beside = Answers(Workspace.open(lab))
    if as_json:
        print_json(beside.history(limit, tag, full=True))
        return
    campaign = beside.campaign(tag)
    rows, disturbed = report.rows(campaign, limit), Counter(run.trial for run in campaign.disturbed)
    paces = {trial.number: report.pace(trial) for trial in campaign.finished[len(campaign.finished) - len(rows) :]}
    terminal.show_log(rows, Console(), paces, comparability.names(campaign), disturbed)


def show(
    trial: Annotated[int, typer.Argument(help="The trial's number, as in `log`.")],
    lab: Lab = HERE,
    as_json: AsJson = False,
    full: Full = False,
) -> None:
    """Show one trial: idea, verdict, numbers, patch, and the end of its log, also while it trains.

    Example: autoresearch show 3
    """
    beside = Answers(Workspace.open(lab))
    if as_json:
        print_json(beside.show(trial, full=full))
        return
    known, found = beside.trial(trial), beside.show(trial)
    classes = beside.class_of(known)
    campaign = beside.campaign(known.proposed.tag)
    status, since = campaign.status_of(known), campaign.since(known)
    patch, tail = (str(found.get(name, "")) for name in ("patch", "log"))
    terminal.show_trial(known, patch, tail, Console(), classes, status, since)


Results = Annotated[
    Path | None, typer.Argument(help="A results.tsv to read instead of the lab's ledger; published ones work too.")
]


def report_(
    results: Results = None,
    lab: Lab = HERE,
    tag: Tag = None,
    against: Annotated[str | None, typer.Option(help="Another campaign to compare the best result with.")] = None,
    as_json: AsJson = False,
) -> None:
    """Summarize the campaign: baseline, best, kept trials and near misses. Draws progress.png in the lab.

    With --against, compares its best result with that of another campaign, if device, preset, frozen files and data are
    the same.

    Example: autoresearch report --lab my-lab
    """
    if results is not None and tag is not None:
        raise UserError(f"{results} is a table without campaigns: leave --tag out, or leave the table out")
    if against is not None:
        _compare(results, lab, tag, against, as_json=as_json)
        return
    if results is None:
        workspace = Workspace.open(lab)
        campaign = Answers(workspace).campaign(tag)
        if as_json:
            found = {"class": comparability.text(campaign), "standing": claims.of(campaign)}
            print_json({**dataclasses.asdict(claims.summary(campaign)), **found})
        else:
            show_report(workspace, campaign, Console())
        return
    rows = read_results(results)
    summary = report.summarize(rows, noise=auditing.noise_of(rows))
    if as_json:
        print_json({**dataclasses.asdict(summary), "class": None})
    else:
        terminal.show_report(summary, Console())


def _compare(results: Path | None, lab: Path, tag: str | None, against: str, *, as_json: bool) -> None:
    if results:
        raise UserError(
            "a results.tsv does not say how its scores were measured, so nothing can be compared with it: name a "
            "campaign with --tag"
        )
    beside = Answers(Workspace.open(lab))
    found = comparability.against(beside.campaign(tag), beside.campaign(against))
    if as_json:
        print_json({**dataclasses.asdict(found), "class": str(found.comparable)})
    else:
        verdicts.show_comparison(found, Console())


def chart(
    results: Results = None,
    lab: Lab = HERE,
    tag: Tag = None,
    output: Annotated[Path | None, typer.Option(help="The picture.", show_default="progress.png next to it")] = None,
) -> None:
    """Draw val_bpb by trial: discarded trials faint, kept ones marked, and the running best.

    Example: autoresearch chart results.tsv --output progress.png
    """
    if results is None:
        workspace = Workspace.open(lab)
        campaign = Answers(workspace).campaign(tag)
        _draw_campaign(campaign, output or workspace.chart, claims.summary(campaign))
    else:
        _draw(read_results(results), output or results.with_name("progress.png"), results.name)


def read_results(path: Path) -> tuple[report.Row, ...]:
    try:
        return results_tsv.from_tsv(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}): name a results.tsv") from error


def show_report(workspace: Workspace, campaign: Campaign | None, console: Console) -> None:
    if campaign is None or not campaign.finished:
        return
    comparable, summary = comparability.class_of(campaign), claims.summary(campaign)
    terminal.show_report(summary, console, campaign.started, claims.of(campaign), comparable)
    _draw_campaign(campaign, workspace.chart, summary)


def _draw_campaign(campaign: Campaign, path: Path, summary: report.Report) -> None:
    _draw(report.rows(campaign), path, campaign.tag, comparability.text(campaign), summary)


def _draw(
    rows: tuple[report.Row, ...],
    path: Path,
    title: str,
    note: str | None = None,
    summary: report.Report | None = None,
) -> None:
    from autoresearch.views import chart as picture

    if saved := picture.draw(rows, path, title=title, note=note or "", report=summary):
        print(f"{path.name} was not drawn by autoresearch: it is now {saved.name}")
    print(f"drew {path}")
