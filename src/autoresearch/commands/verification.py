"""Commands that check decisions: confirm, replay, aa, audit."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from autoresearch.agents.answers import Answers
from autoresearch.agents.attempt import Agent
from autoresearch.base import stopping
from autoresearch.base.errors import UserError
from autoresearch.commands import steering
from autoresearch.commands.options import HERE, AsJson, Lab, Tag, print_json
from autoresearch.commands.results import read_results
from autoresearch.judging import audit as auditing
from autoresearch.judging import claims as standings
from autoresearch.lab import config, presets
from autoresearch.lab.settings import Config
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger import report
from autoresearch.ledger.campaign import Campaign
from autoresearch.ledger.ledger import CONTROL, Ledger
from autoresearch.loop.loop import confirm_now, run_campaign
from autoresearch.loop.loop import replay as replayed
from autoresearch.loop.parts import compose
from autoresearch.loop.parts.stages import Stages
from autoresearch.researchers.interface import Researcher
from autoresearch.views import verdicts
from autoresearch.views.lines import about
from autoresearch.views.live import LiveView


@contextlib.contextmanager
def at_work(
    lab: Path,
    tag: Callable[[Ledger, Workspace], str],
    agent: Researcher | None = None,
    *,
    alone: bool = False,
    **changes: object,
) -> Iterator[tuple[Stages, str, Callable[[], bool]]]:
    """The stages of one of this lab's campaigns, with the lab locked; its tag; and whether Ctrl-C was pressed.

    With an `agent`, the lab's researcher is not needed, and may be one that cannot be asked now.
    """
    workspace = Workspace.open(lab)
    settings = config.load(workspace.program)[0].model_copy(update=changes)
    with workspace.lock():
        ledger = Ledger(workspace.ledger)
        ledger.repair()
        name = tag(ledger, workspace)
        console = Console(stderr=True)
        with (
            LiveView(console, ledger.campaign(name)) as view,
            stopping.interrupts(console.print) as interrupted,
        ):
            yield (
                compose.compose(
                    *(workspace, ledger, settings, name, view.event, view.progress),
                    agent=agent,
                    quiet=True,
                    alone=alone,
                ),
                name,
                interrupted,
            )


def confirm(lab: Lab = HERE, tag: Tag = None, as_json: AsJson = False) -> None:
    """Test now, on fresh seeds, whether the kept trials are really better than the baseline and the last confirmed one.

    The loop does this by itself after `confirm_every` keeps and at its end. Trials that fail the test are reverted. A
    loop at work is told to do it now.

    Example: autoresearch confirm --lab my-lab
    """
    workspace = Workspace.open(lab)
    begun = Answers(workspace).campaign(tag)
    if workspace.is_locked():
        steering.order(lab, as_json=as_json, order="confirm", why="", tag=begun.tag)
        return
    with at_work(lab, lambda *_: begun.tag, Agent()) as (stages, name, interrupted):
        found = confirm_now(stages, name, interrupted)
        standing = standings.of(stages.campaign(name).sealed)
    if as_json:
        print_json({"confirmation": found, "standing": standing})
    else:
        verdicts.show_confirmation(found, standing, Console(), stopped=interrupted())


def replay(
    trial: Annotated[int, typer.Argument(help="The trial's number, as in `log`.")],
    lab: Lab = HERE,
    as_json: AsJson = False,
) -> None:
    """Run a trial again on its first seed, and report whether the score is where its earlier runs and the noise
    predict.

    Example: autoresearch replay 3
    """
    known = Answers(Workspace.open(lab)).trial(trial)
    with at_work(lab, lambda *_: known.proposed.tag, Agent(), alone=True) as (stages, name, _):
        campaign = stages.campaign(name)
        expected, parent = standings.expected(campaign, known), campaign.parent_of(known)
        run = replayed(stages, name, trial)
    result = verdicts.replayed(known, run, expected, parent)
    if as_json:
        print_json(result)
    else:
        verdicts.show_replay(result, Console())


def aa(
    trials: Annotated[int, typer.Option(min=1, help="How many no-op changes to try.")] = 20,
    lab: Lab = HERE,
    tag: Annotated[str | None, typer.Option(help="A control campaign to continue (default: a new one).")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how often luck is kept: try changes that compute the same as the baseline, in the same loop.

    These trials are a campaign of their own, apart from your search. The published rule judges the same runs.

    Example: autoresearch aa --trials 20
    """
    with at_work(lab, lambda *lab: tag or compose.control_tag(*lab), researcher=CONTROL, fallback="none") as at:
        stages, name, interrupted = at
        if (begun := stages.ledger.campaign(name)) and begun.started.researcher != CONTROL:
            raise UserError(f"the campaign {name} is a search, not a control: leave --tag out, or name another one")
        _say_length(stages, begun, trials)
        run_campaign(stages, name, stopping.enough(trials, None, interrupted), interrupted)
        found = auditing.control(stages.campaign(name))
    if as_json:
        print_json(found)
    else:
        verdicts.show_control(found, Console())


def _say_length(stages: Stages, begun: Campaign | None, trials: int) -> None:
    """How long so many trials will take, and the baseline if there is none yet."""
    usual = (begun and report.usual_seconds(begun.trials)) or presets.run_seconds(stages.budget_seconds)
    baseline = "" if begun and begun.incumbent else ", after the baseline"
    print(f"{trials} trials of about {about(usual)}: {about(trials * usual)}{baseline}", file=sys.stderr)


def audit(
    results: Annotated[Path, typer.Argument(help="A results.tsv, yours or a published one.")],
    sigma: Annotated[
        float | None,
        typer.Option(
            help="Standard deviation of one run's val_bpb.", show_default="estimated from near-duplicates in the table"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Report which kept trials in a results table stand out from the luck of a single run.

    Example: autoresearch audit results.tsv --sigma 0.0005
    """
    policy = Config()
    found = auditing.audit(read_results(results), sigma, needed=policy.smallest_effect, advance=policy.advance)
    if as_json:
        print_json({**dataclasses.asdict(found), "class": None})
    else:
        verdicts.show_audit(found, Console())
