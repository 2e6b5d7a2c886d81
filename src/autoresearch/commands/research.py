"""Commands that do research: run, try, guide, papers, mcp."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from autoresearch.agents.attempt import InteractiveLab
from autoresearch.agents.overview import Refresher
from autoresearch.commands.options import HERE, AsJson, Lab, Tag, print_json
from autoresearch.commands.results import show_report
from autoresearch.lab import config
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.ledger import Ledger
from autoresearch.ledger.records import RunEvent
from autoresearch.loop import compose, stopping
from autoresearch.loop.loop import run_campaign
from autoresearch.views import terminal
from autoresearch.views.live import LiveView


def run(
    lab: Lab = HERE,
    trials: Annotated[int | None, typer.Option(min=1, help="Stop after this many more trials.")] = None,
    hours: Annotated[
        float | None,
        typer.Option(min=0, help="Stop at the end of the trial that is running then; a confirmation may follow."),
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Campaign to start or continue (default: the latest).")] = None,
    researcher: Annotated[
        str | None, typer.Option(help="Who proposes, instead of the researcher in program.md.")
    ] = None,
) -> None:
    """Do research until you stop it: propose, train, grade, keep or revert, repeat.

    Continues where the last run stopped, however it stopped. Ctrl-C once stops after the current trial, twice stops
    right away. Your checkout is never touched: kept trials are commits on the branch autoresearch/TAG. At the end
    (--trials, --hours) it confirms the kept trials on fresh seeds.

    Example: autoresearch run --lab my-lab --trials 8
    """
    workspace = Workspace.open(lab)
    settings, _ = config.load(workspace.program)
    if researcher:
        settings = settings.model_copy(update={"researcher": researcher})
    console = Console()
    with workspace.lock():
        ledger = Ledger(workspace.ledger)
        ledger.repair()
        tag = compose.tag_of(tag, ledger, workspace)
        begun = ledger.campaign(tag)
        if begun and (told := compose.notice(begun, workspace)):
            print(told)
        if begun and begun.started.judge != settings.judge:
            print(
                f"campaign {tag} was started with the judge {begun.started.judge}; it continues with {settings.judge}"
            )
        with (
            LiveView(console, begun) as view,
            stopping.interrupts(console.print) as interrupted,
        ):
            refresher = Refresher(workspace.overview, ledger, tag)

            def progress(trial: int, event: RunEvent) -> None:
                view.progress(trial, event)
                refresher.hear(event)

            stages = compose.compose(workspace, ledger, settings, tag, view.event, progress)
            run_campaign(stages, tag, stopping.enough(trials, hours, interrupted), interrupted)
        show_report(workspace, ledger.campaign(tag), console)


def try_(
    message: Annotated[str, typer.Option("--message", "-m", help="The idea, in one line.")],
    why: Annotated[str, typer.Option(help="Why it should help, for the record.")] = "",
    lab: Lab = HERE,
    tag: Tag = None,
    as_json: AsJson = False,
) -> None:
    """Run one trial of the edits in your working tree, and report the result and what to do next.

    An agent that works in the lab uses this. The first time, it also runs the baseline: your last commit. It exits with
    0 whatever the verdict, and with 1 if the edits cannot be tried.

    Example: autoresearch try -m "half the batch"
    """
    beside = InteractiveLab(Workspace.open(lab))
    with (
        LiveView(Console(stderr=True), beside.ledger.campaign(tag)) as view,
        stopping.ended_as_by_hand(),
    ):
        result = beside.try_edits(message, why=why, tag=tag, announce=view.event, progress=view.progress)
    if as_json:
        print_json(result)
    else:
        terminal.show_result(result, Console())


def guide(
    text: Annotated[str, typer.Argument(help="What the researcher should know; it reads this before every proposal.")],
    lab: Lab = HERE,
) -> None:
    """Tell the researcher something while it works: a hint, a wish, something to leave alone.

    This appends to .autoresearch/guidance.md, which you can also edit. The built-in researcher cannot read it.

    Example: autoresearch guide "the learning rates are tuned well enough, try the architecture"
    """
    print(InteractiveLab(Workspace.open(lab)).guide(text), end="")


def papers(
    query: Annotated[str, typer.Argument(help="A few words, as for a search engine.")],
    lab: Lab = HERE,
) -> None:
    """Search arXiv and your own notes for what is known (`papers:` in program.md names the folders).

    The lab keeps the answers, so a search you made before also works without a network.

    Example: autoresearch papers "muon optimizer weight decay"
    """
    beside = InteractiveLab(Workspace.open(lab))
    with Console(stderr=True).status("asking arXiv and your notes"):
        found = beside.papers(query)
    print(found)


def mcp(lab: Lab = HERE) -> None:
    """Offer status, history, show, try, guidance and papers to an agent, through the Model Context Protocol on stdio.

    Needs `pip install 'autoresearch[llm]'`. Your agent starts it; if you start it yourself, it waits for a client.

    Example: autoresearch mcp --lab my-lab    (or: claude mcp add autoresearch -- autoresearch mcp --lab my-lab)
    """
    beside = InteractiveLab(Workspace.open(lab))
    from autoresearch.agents import mcp_server

    mcp_server.serve(beside)
