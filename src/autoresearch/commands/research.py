"""Commands that do research: run, try, guide, papers, mcp."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from autoresearch import compose, config, interactive, stopping
from autoresearch.commands.looking import show_report
from autoresearch.commands.options import HERE, AsJson, Lab, Tag, print_json
from autoresearch.ledger import Ledger
from autoresearch.loop import run_campaign
from autoresearch.views import terminal
from autoresearch.workspace import Workspace


def run(
    lab: Lab = HERE,
    trials: Annotated[int | None, typer.Option(min=1, help="Stop after that many more trials.")] = None,
    hours: Annotated[
        float | None,
        typer.Option(min=0, help="Stop at the end of the trial then under way; a confirmation may follow."),
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Campaign to begin or go on with (else the latest).")] = None,
    researcher: Annotated[str | None, typer.Option(help="Who proposes, in place of program.md's.")] = None,
) -> None:
    """Do research until you stop it: propose, train, grade, keep or leave, and again.

    Goes on where the last run stopped, however it stopped. Ctrl-C once ends it after the trial under way,
    twice at once. Your checkout is not touched: keeps are commits on the branch autoresearch/TAG. At its end
    (--trials, --hours) what was kept is confirmed on fresh seeds.

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
        tag = compose.tag_of(tag, ledger, workspace)
        begun = ledger.campaign(tag)
        if begun and (told := compose.notice(begun, workspace)):
            print(told)
        if begun and begun.started.judge != settings.judge:
            print(
                f"campaign {tag} was begun with the judge {begun.started.judge}, and {settings.judge} goes on with it"
            )
        with (
            terminal.LiveView(console, begun) as view,
            stopping.interrupts(console.print) as interrupted,
        ):
            stages = compose.compose(workspace, ledger, settings, tag, view.event, view.progress)
            run_campaign(stages, tag, stopping.enough(trials, hours, interrupted), interrupted)
        show_report(workspace, ledger.campaign(tag), console)


def try_(
    message: Annotated[str, typer.Option("--message", "-m", help="The idea, in one line.")],
    why: Annotated[str, typer.Option(help="Why it should help, for the record.")] = "",
    lab: Lab = HERE,
    tag: Tag = None,
    as_json: AsJson = False,
) -> None:
    """Run one trial of the edits in your working tree, and say what came of it and what to do next.

    This is the tool of an agent that works in the lab itself. The first one runs the baseline too: the last commit.
    It exits with 0 whatever the verdict is, and with 1 where the edits cannot be tried.

    Example: autoresearch try -m "half the batch"
    """
    beside = interactive.Lab(Workspace.open(lab))
    with (
        terminal.LiveView(Console(stderr=True), beside.ledger.campaign(tag)) as view,
        stopping.ended_as_by_hand(),
    ):
        result = beside.try_edits(message, why=why, tag=tag, announce=view.event, progress=view.progress)
    if as_json:
        print_json(result)
    else:
        terminal.show_result(result, Console())


def guide(
    text: Annotated[str, typer.Argument(help="What the researcher should know; read before every proposal.")],
    lab: Lab = HERE,
) -> None:
    """Tell the researcher something while it works: a hint, a wish, a thing to leave alone.

    It is added to .autoresearch/guidance.md, which you may edit too. The built-in researcher cannot read it.

    Example: autoresearch guide "the learning rates are tuned well enough, try the architecture"
    """
    print(interactive.Lab(Workspace.open(lab)).guide(text), end="")


def papers(
    query: Annotated[str, typer.Argument(help="A few words, as in a search box.")],
    lab: Lab = HERE,
) -> None:
    """Search arXiv and your own notes (`papers:` in program.md names the folders) for what is known.

    Answers are kept in the lab, so that a search made once works without a network.

    Example: autoresearch papers "muon optimizer weight decay"
    """
    beside = interactive.Lab(Workspace.open(lab))
    with Console(stderr=True).status("asking arXiv and your notes"):
        found = beside.papers(query)
    print(found)


def mcp(lab: Lab = HERE) -> None:
    """Offer status, history, show, try, guidance and papers to an agent, by the Model Context Protocol on stdio.

    Needs `pip install 'autoresearch[llm]'`. Your agent starts it; by hand it waits for a client.

    Example: autoresearch mcp --lab my-lab    (or: claude mcp add autoresearch -- autoresearch mcp --lab my-lab)
    """
    beside = interactive.Lab(Workspace.open(lab))
    from autoresearch import mcp_server

    mcp_server.serve(beside)
