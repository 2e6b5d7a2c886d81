"""Commands that steer a search, while its loop is at work or at rest: pause, resume, stop, limit, keep, drop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from autoresearch.agents.attempt import InteractiveLab
from autoresearch.commands.options import HERE, AsJson, Lab, Tag, print_json
from autoresearch.lab.workspace import Workspace
from autoresearch.views import answer

US = "the command line"
Number = Annotated[int, typer.Argument(help="The trial's number, as in `log`.")]
Why = Annotated[str, typer.Option(help="The reason, for the record and for the researcher.")]
Reason = Annotated[str, typer.Option("--why", help="The reason, for the record.")]


def pause(why: Reason = "", lab: Lab = HERE, tag: Tag = None, as_json: AsJson = False) -> None:
    """Let a search rest: the runs in flight end, and nothing new is started until `resume`.

    It stays paused if its loop is stopped and started again. Ctrl-C stops a paused loop as ever.

    Example: autoresearch pause --why "the machine is needed until six"
    """
    order(lab, as_json=as_json, order="pause", why=why, tag=tag)


def resume(why: Reason = "", lab: Lab = HERE, tag: Tag = None, as_json: AsJson = False) -> None:
    """Let a paused search go on.

    If no loop is at work, `run` starts one.

    Example: autoresearch resume
    """
    order(lab, as_json=as_json, order="resume", why=why, tag=tag)


def stop(trial: Number, why: Reason = "", lab: Lab = HERE, as_json: AsJson = False) -> None:
    """End the runs of a trial that are in flight. It is recorded as invalid, with the reason, and the search goes on.

    Example: autoresearch stop 12 --why "its loss has been flat for minutes"
    """
    order(lab, as_json=as_json, order="stop", why=why, trial=trial)


def limit(
    usd: Annotated[float | None, typer.Option(min=0, help="Dollars in the whole campaign.")] = None,
    tokens: Annotated[int | None, typer.Option(min=0, help="Tokens in the whole campaign.")] = None,
    why: Reason = "",
    lab: Lab = HERE,
    tag: Tag = None,
    as_json: AsJson = False,
) -> None:
    """Change what a search's researcher may spend, in place of `max_usd` and `max_tokens` in program.md.

    Example: autoresearch limit --usd 20
    """
    order(lab, as_json=as_json, order="limit", why=why, tag=tag, max_usd=usd, max_tokens=tokens)


def keep(trial: Number, why: Why, lab: Lab = HERE, as_json: AsJson = False) -> None:
    """Make a scored trial the best version by your own judgment, as when it is equal and much simpler.

    Naming an earlier keep goes back to it. The search continues from there. The ledger records the reason, and what is
    claimed still has to be confirmed on fresh seeds. A loop at work does it once no trial is open.

    Example: autoresearch keep 8 --why "equal, and forty lines less"
    """
    _choose(lab, trial, why, keep=True, as_json=as_json)


def drop(trial: Number, why: Why, lab: Lab = HERE, as_json: AsJson = False) -> None:
    """Take back a kept trial that you know to be a fluke, with all that was built on it.

    The search continues from what it was made of. The ledger records the reason. `keep` brings it back. A loop at work
    does it once no trial is open.

    Example: autoresearch drop 8 --why "the learning rate was zero for half the run"
    """
    _choose(lab, trial, why, keep=False, as_json=as_json)


def order(
    lab: Path,
    *,
    as_json: bool,
    order: str,
    why: str,
    tag: str | None = None,
    trial: int | None = None,
    max_usd: float | None = None,
    max_tokens: int | None = None,
) -> None:
    """Tell a search something, and show what becomes of it."""
    beside = InteractiveLab(Workspace.open(lab))
    told = beside.ordered(order, by=US, why=why, tag=tag, trial=trial, max_usd=max_usd, max_tokens=max_tokens)
    is_done = beside.order(told)
    if as_json:
        print_json({"ordered": told, "done": is_done})
    else:
        answer.show_order(told, Console(), is_done=is_done)


def _choose(lab: Path, trial: int, why: str, *, keep: bool, as_json: bool) -> None:
    beside = InteractiveLab(Workspace.open(lab))
    chosen = beside.choose(trial, keep=keep, why=why, by=US)
    overview = beside.overview(beside.trial(trial).proposed.tag)
    if as_json:
        print_json({"chosen": chosen, "summary": overview.report})
    else:
        answer.show_choice(chosen, overview, Console())
