"""Commands that overrule the judge: keep, drop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from autoresearch.agents.attempt import InteractiveLab
from autoresearch.commands.options import HERE, AsJson, Lab, print_json
from autoresearch.lab.workspace import Workspace
from autoresearch.views import answer

Number = Annotated[int, typer.Argument(help="The trial's number, as in `log`.")]
Why = Annotated[str, typer.Option(help="The reason, for the record and for the researcher.")]


def keep(trial: Number, why: Why, lab: Lab = HERE, as_json: AsJson = False) -> None:
    """Make a scored trial the best version by your own judgment, as when it is equal and much simpler.

    Naming an earlier keep goes back to it. The search continues from there. The ledger records the reason, and what is
    claimed still has to be confirmed on fresh seeds.

    Example: autoresearch keep 8 --why "equal, and forty lines less"
    """
    _choose(lab, trial, why, keep=True, as_json=as_json)


def drop(trial: Number, why: Why, lab: Lab = HERE, as_json: AsJson = False) -> None:
    """Take back a kept trial that you know to be a fluke, with all that was built on it.

    The search continues from what it was made of. The ledger records the reason. `keep` brings it back.

    Example: autoresearch drop 8 --why "the learning rate was zero for half the run"
    """
    _choose(lab, trial, why, keep=False, as_json=as_json)


def _choose(lab: Path, trial: int, why: str, *, keep: bool, as_json: bool) -> None:
    beside = InteractiveLab(Workspace.open(lab))
    chosen = beside.choose(trial, keep=keep, why=why, by="the command line")
    overview = beside.overview(chosen.tag)
    if as_json:
        print_json({"chosen": chosen, "summary": overview.report})
    else:
        answer.show_choice(chosen, overview, Console())
