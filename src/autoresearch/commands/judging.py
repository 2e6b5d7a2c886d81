"""Commands that judge judgements: confirm, replay, aa, audit."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from autoresearch import audit as auditing
from autoresearch import compose, config, interactive, stopping
from autoresearch import standing as standings
from autoresearch.commands.looking import read_results
from autoresearch.commands.options import HERE, AsJson, Lab, Tag, print_json
from autoresearch.config import Config
from autoresearch.errors import UserError
from autoresearch.ledger import CONTROL, Ledger
from autoresearch.loop import confirm_now, run_campaign
from autoresearch.loop import replay as replayed
from autoresearch.stages import Stages
from autoresearch.views import judging, terminal
from autoresearch.workspace import Workspace


@contextlib.contextmanager
def at_work(
    lab: Path, tag: Callable[[Ledger, Workspace], str], **changes: object
) -> Iterator[tuple[Stages, str, Callable[[], bool]]]:
    """The stages of a campaign of this lab with the lab's lock held, its tag, and whether Ctrl-C was pressed."""
    workspace = Workspace.open(lab)
    settings = config.load(workspace.program)[0].model_copy(update=changes)
    with workspace.lock():
        ledger = Ledger(workspace.ledger)
        ledger.mend()
        name = tag(ledger, workspace)
        console = Console(stderr=True)
        with (
            terminal.LiveView(console, ledger.campaign(name)) as view,
            stopping.interrupts(console.print) as interrupted,
        ):
            yield (
                compose.compose(workspace, ledger, settings, name, view.event, view.progress, quiet=True),
                name,
                interrupted,
            )


def confirm(lab: Lab = HERE, tag: Tag = None, as_json: AsJson = False) -> None:
    """Test now whether what was kept is really better: on fresh seeds, against the baseline and the last confirmed.

    The loop does this by itself after `confirm_every` keeps and at its end. What fails is taken back.

    Example: autoresearch confirm --lab my-lab
    """
    begun = interactive.Lab(Workspace.open(lab)).campaign(tag)
    with at_work(lab, lambda *_: begun.tag) as (stages, name, interrupted):
        found = confirm_now(stages, name, interrupted)
        standing = standings.of(stages.campaign(name).sealed)
    if as_json:
        print_json({"confirmation": found, "standing": standing})
    else:
        judging.show_confirmation(found, standing, Console())


def replay(
    trial: Annotated[int, typer.Argument(help="The trial's number, as in `log`.")],
    lab: Lab = HERE,
    as_json: AsJson = False,
) -> None:
    """Run a trial once more, on its first seed, and say whether it lands where its earlier runs and the noise say.

    Example: autoresearch replay 3
    """
    known = interactive.Lab(Workspace.open(lab)).trial(trial)
    with at_work(lab, lambda *_: known.proposed.tag) as (stages, name, _):
        expected = standings.expected(stages.campaign(name), known)
        run = replayed(stages, name, trial)
    result = judging.replayed(known, run, expected)
    if as_json:
        print_json(result)
    else:
        judging.show_replay(result, Console())


def aa(
    trials: Annotated[int, typer.Option(min=1, help="How many changes that change nothing.")] = 20,
    lab: Lab = HERE,
    tag: Annotated[str | None, typer.Option(help="A control campaign to go on with (else a new one).")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how often luck is kept: trials that compute the same as the baseline, through the very same loop.

    They are a campaign of their own, beside your search. The published rule is judged on the same runs.

    Example: autoresearch aa --trials 20
    """
    with at_work(lab, lambda *lab: tag or compose.control_tag(*lab), researcher=CONTROL, fallback="none") as at:
        stages, name, interrupted = at
        if (begun := stages.ledger.campaign(name)) and begun.started.researcher != CONTROL:
            raise UserError(f"the campaign {name} is a search, not a control: leave --tag out, or name another")
        run_campaign(stages, name, stopping.enough(trials, None, interrupted), interrupted)
        found = auditing.control(stages.campaign(name))
    if as_json:
        print_json(found)
    else:
        judging.show_control(found, Console())


def audit(
    results: Annotated[Path, typer.Argument(help="A results.tsv, ours or a published one.")],
    sigma: Annotated[
        float | None,
        typer.Option(help="Standard deviation of one run's val_bpb.", show_default="by the table's near-duplicates"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say which keeps of a table of results stand out from the luck of single runs.

    Example: autoresearch audit results.tsv --sigma 0.0005
    """
    policy = Config()
    found = auditing.audit(read_results(results), sigma, needed=policy.smallest_effect, advance=policy.advance)
    if as_json:
        print_json({**dataclasses.asdict(found), "class": None})
    else:
        judging.show_audit(found, Console())
