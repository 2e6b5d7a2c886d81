"""Commands that do research: run, try, guide, papers, mcp."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from autoresearch.agents.attempt import InteractiveLab, interrupted
from autoresearch.agents.edits import Wish
from autoresearch.agents.outcome import exit_code
from autoresearch.agents.overview import Refresher
from autoresearch.base import stopping
from autoresearch.base.errors import UserError
from autoresearch.commands.options import HERE, AsJson, Lab, print_json
from autoresearch.commands.results import show_report
from autoresearch.lab import config
from autoresearch.lab.settings import Config
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.campaign import Campaign
from autoresearch.ledger.events import Event, ProposalRefused, Stopped
from autoresearch.ledger.ledger import Ledger
from autoresearch.ledger.records import RunEvent
from autoresearch.loop.loop import run_campaign
from autoresearch.loop.parts import compose
from autoresearch.views import answer
from autoresearch.views.lines import say
from autoresearch.views.live import LiveView

GO_ON = "continue with `autoresearch run`, look at it with `autoresearch report`"


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
    slots: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side, instead of `slots` in program.md.")
    ] = None,
    executor: Annotated[
        str | None, typer.Option(help="Where train.py runs, instead of `executor` in program.md: local or ray.")
    ] = None,
    no_confirm: Annotated[
        bool, typer.Option("--no-confirm", help="Leave the kept trials unconfirmed; `confirm` does it later.")
    ] = False,
) -> None:
    """Do research until you stop it: propose, train, grade, keep or revert, repeat.

    Continues where the last run stopped, however it stopped. Ctrl-C once stops after the current trial, twice stops
    right away. Your checkout is never touched: kept trials are commits on the branch autoresearch/TAG. At the end
    (--trials, --hours) it confirms the kept trials on fresh seeds. That takes 4 to 16 runs; --no-confirm leaves it out.

    Example: autoresearch run --lab my-lab --trials 8
    """
    workspace = Workspace.open(lab)
    settings, _ = config.load(workspace.program)
    wanted = {"researcher": researcher, "slots": slots, "executor": executor}
    settings = settings.model_copy(update={name: value for name, value in wanted.items() if value is not None})
    console = Console()
    with workspace.lock():
        ledger = Ledger(workspace.ledger)
        ledger.repair()
        tag = compose.tag_of(tag, ledger, workspace)
        begun = ledger.campaign(tag)
        for told in filter(None, [compose.replaced(tag, ledger), *_continued(begun, settings, workspace)]):
            print(told)
        with (
            LiveView(console, begun, then=GO_ON) as view,
            stopping.interrupts(lambda text: say(console, Text(text))) as interrupted,
        ):
            refresher = Refresher(workspace.overview, ledger, tag)

            def progress(trial: int, event: RunEvent) -> None:
                view.progress(trial, event)
                refresher.hear(event)

            stages = compose.compose(workspace, ledger, settings, tag, view.event, progress)
            enough = stopping.enough(trials, hours, interrupted)
            run_campaign(stages, tag, enough, interrupted, confirming=not no_confirm)
        show_report(workspace, ledger.campaign(tag), console)


def _continued(begun: Campaign | None, settings: Config, workspace: Workspace) -> Iterator[str | None]:
    """What to tell a user whose run continues a campaign."""
    if begun is None:
        return
    count, before = len(begun.finished), begun.started
    yield f"continuing campaign {begun.tag}, with {count} trial{'s' * (count != 1)} so far"
    if before.preset != settings.preset:
        yield f"program.md names the preset {settings.preset}; this campaign keeps {before.preset}"
    yield compose.notice(begun, workspace)
    if before.judge != settings.judge:
        yield f"campaign {begun.tag} was started with the judge {before.judge}; it continues with {settings.judge}"


def try_(
    message: Annotated[str | None, typer.Option("--message", "-m", help="The idea, in one line.")] = None,
    why: Annotated[str, typer.Option(help="Why it should help, for the record.")] = "",
    seeds: Annotated[int, typer.Option(min=1, max=8, help="Judge it only after so many runs on other seeds.")] = 1,
    detach: Annotated[bool, typer.Option("--detach", help="Start it and return; it goes on by itself.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the answer of the one that is at work.")] = False,
    timeout: Annotated[float | None, typer.Option(min=0, help="With --wait: at most so many seconds.")] = None,
    lab: Lab = HERE,
    tag: Annotated[
        str | None,
        typer.Option(help="Which campaign; a new name starts one on your last commit (default: the latest)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run one trial of the edits in your working tree, and report the result and what to do next.

    An agent that works in the lab uses this. The first time, it also runs the baseline: your last commit. The same
    edits, asked for again, are not tried twice: you get the verdict. If your shell ends long commands, use --detach,
    then --wait --timeout 540 until there is an answer.

    Exit codes: 0 it was judged, whatever the verdict, or there was nothing to try; 1 it was refused or failed; 4 it is
    still running; 130 it was stopped. With --json the answer is JSON in all of these cases.

    Example: autoresearch try -m "half the batch"
    """
    beside = InteractiveLab(Workspace.open(lab))
    if wait and (message is not None or detach):
        raise UserError("--wait asks for the trial that is at work: leave --message and --detach out")
    if timeout is not None and not wait:
        raise UserError("--timeout is for --wait: a trial takes as long as it takes, with --detach by itself")
    if message is None and not wait:
        raise UserError('name the idea, as in `autoresearch try -m "half the batch"`, or use --wait')
    try:
        result = _wait(beside, timeout) if wait else _try(beside, Wish(str(message), why, tag, seeds), detach=detach)
    except KeyboardInterrupt:
        if as_json:
            print_json(interrupted(message or "the trial"))
        raise
    if as_json:
        print_json(result)
    else:
        answer.show_result(result, Console())
    raise typer.Exit(exit_code(result))


def _wait(beside: InteractiveLab, seconds: float | None) -> dict[str, object]:
    with Console(stderr=True).status("waiting for the trial that is at work"):
        return beside.wait(seconds)


def _try(beside: InteractiveLab, wish: Wish, *, detach: bool) -> dict[str, object]:
    console = Console(stderr=True)
    if detach:
        with console.status("starting it"):
            return beside.detach(wish)
    with LiveView(console, beside.ledger.campaign(wish.tag)) as view, stopping.ended_as_by_hand():

        def announce(event: Event) -> None:
            if not isinstance(event, ProposalRefused | Stopped):  # the answer says it
                view.event(event)

        return beside.try_edits(wish, announce=announce, progress=view.progress)


def guide(
    text: Annotated[str, typer.Argument(help="What the researcher should know; it reads this before every proposal.")],
    lab: Lab = HERE,
) -> None:
    """Tell the researcher something while it works: a hint, a wish, something to leave alone.

    This appends to .autoresearch/guidance.md, which you can also edit. The built-in researcher cannot read it.

    Example: autoresearch guide "the learning rates are tuned well enough, try the architecture"
    """
    beside = InteractiveLab(Workspace.open(lab))
    print(beside.guide(text), end="")
    if config.load(beside.workspace.program)[0].researcher == "builtin":
        print("note: the built-in researcher cannot read it; all others do", file=sys.stderr)


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
