"""What `run` shows while it works, on a terminal and in a pipe."""

from __future__ import annotations

import dataclasses
import io
import math
import re

import pytest
from rich.console import Console

from autoresearch.ledger.campaign import Trial
from autoresearch.ledger.events import (
    CampaignStarted,
    Confirmation,
    Event,
    ProposalRefused,
    RunStarted,
    Stopped,
    Verdict,
)
from autoresearch.ledger.records import Crash, CrashKind, Estimate, Outcome, Purpose, RunEvent, Scalar, Status
from autoresearch.views.live import LiveView, Work
from published import campaign, trial

STARTED = CampaignStarted("nov21", "a" * 40, "builtin", "greedy", "local", "none", {}, 60.0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def console(*, in_terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=120, force_terminal=in_terminal)


def printed(out: Console) -> str:
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def events(of: Trial) -> list[Event]:
    """All that the ledger hears of a trial."""
    assert of.verdict is not None
    return [of.proposed, RunStarted(of.number, 0, 42), *of.runs, of.verdict]


def curve(progress: Scalar = 0.43, loss: Scalar = 3.2) -> RunEvent:
    return RunEvent("curve", 1.0, {"step": 1, "progress": progress, "loss": loss, "tokens_per_second": 12345.6})


BASELINE = trial(0, "baseline", 1.413813, Status.KEEP)
KEPT = trial(1, "halve total batch 16K to 8K (more steps in the budget)", 1.402113, Status.KEEP)
WORSE = trial(2, "softcap 20", 1.405, Status.DISCARD)
TRACE = 'Traceback:\n  File "train.py", line 3, in f\n    g()\nAssertionError: not divisible'
CRASHED = trial(3, "batch 7", None, Status.CRASH, Crash(CrashKind.PYTHON_ERROR, TRACE))


def test_a_pipe_gets_a_line_at_each_start_and_verdict() -> None:
    out = console()
    with LiveView(out, then="go on") as view:
        for event in [STARTED, *events(BASELINE), *events(KEPT), *events(WORSE), *events(CRASHED)]:
            view.event(event)
        view.event(ProposalRefused("nov21", "softcap 20", "tried as trial 2"))
        view.event(Stopped("nov21", "made 4 trials"))
    assert printed(out).splitlines() == [
        "campaign    autoresearch/nov21",
        "set-up      researcher builtin, judge greedy, executor local, sandbox none, 60 s a run",
        "#0   starts, seed 42: baseline",
        "#0   keep     1.413813           baseline",
        "#1   starts, seed 42: halve total batch 16K to 8K (more steps in the budget)",
        "#1   keep     1.402113  -0.0117  halve total batch 16K to 8K (more steps in the budget)",
        "#2   starts, seed 42: softcap 20",
        "#2   discard  1.405000  +0.0029  softcap 20",
        "#3   starts, seed 42: batch 7",
        "#3   crash                       batch 7 (Python error: AssertionError: not divisible)",
        '     File "train.py", line 3, in f',
        "refused: softcap 20 (tried as trial 2)",
        "stopped     made 4 trials",
        "next        go on",
    ]


def test_a_pipe_gets_progress_every_fifteen_seconds_at_most() -> None:
    out, clock = console(), Clock()
    with LiveView(out, clock=clock) as view:
        view.event(BASELINE.proposed)
        view.event(RunStarted(0, 0, 42))
        for tick in range(400):
            clock.now = tick / 10
            view.progress(0, curve(tick / 400))
    assert printed(out).splitlines()[1:] == [
        "#0   training  38%  loss 3.200  12,346 tokens/s  0:15",
        "#0   training  75%  loss 3.200  12,346 tokens/s  0:30",
    ]


def test_it_says_when_another_researcher_carries_on() -> None:
    out = console()
    with LiveView(out, clock=Clock()) as view:
        view.event(dataclasses.replace(STARTED, researcher="llm"))
        for proposed in (BASELINE.proposed, KEPT.proposed):
            view.event(ProposalRefused("nov21", "", "no connection", "llm"))
            view.event(dataclasses.replace(proposed, researcher="builtin"))
        view.event(dataclasses.replace(WORSE.proposed, researcher="llm"))
    assert printed(out).count("refused: no proposal (no connection)") == 2
    assert printed(out).count("builtin takes over until llm proposes again") == 1
    assert printed(out).count("\nllm proposes again") == 1


def test_a_confirmation_says_how_long_it_may_take() -> None:
    out, found = console(), campaign(trial(0, "baseline", 1.5, Status.KEEP), trial(1, "x", 1.4, Status.KEEP))
    with LiveView(out, found) as view:
        for seed in (1000, 1002):
            for number in (0, 1):
                view.event(RunStarted(number, 1, seed, Purpose.CONFIRM))
    said = [line for line in printed(out).splitlines() if "confirming" in line]
    assert said == [
        "confirming on fresh seeds: pair 1 of at most 8, at most 16 min more",
        "confirming on fresh seeds: pair 3 of at most 8, at most 12 min more",
    ]


@pytest.mark.parametrize("in_terminal", [False, True])
def test_a_long_idea_is_one_line_in_a_pipe_and_harmless_everywhere(in_terminal: bool) -> None:
    out = console(in_terminal=in_terminal)
    idea = "[red]x[/red] \x1b[2J\x1b]0;owned\x07\n" + "very long " * 30
    with LiveView(out) as view:
        for event in [STARTED, *events(trial(0, idea, 1.4, Status.KEEP))]:
            view.event(event)
            view.progress(0, curve())
        view.event(ProposalRefused("t", idea, idea))
    said = printed(out)
    assert "[red]x[/red] very long" in said
    assert "\x1b[2J" not in said
    assert "owned" not in said
    if not in_terminal:
        assert len(said.splitlines()) == 5  # two of the campaign, start, verdict, refusal


def test_a_campaign_taken_up_again_is_compared_with_its_incumbent() -> None:
    out = console()
    unfinished = dataclasses.replace(WORSE, verdict=None, runs=())
    with LiveView(out, campaign(BASELINE, KEPT, unfinished)) as view:
        for event in events(WORSE)[1:]:
            view.event(event)
    assert printed(out).splitlines()[-1] == "#2   discard  1.405000  +0.0029  softcap 20"


def test_a_verdict_on_an_unknown_trial_is_still_told() -> None:
    out = console()
    with LiveView(out) as view:
        view.event(RunStarted(5, 0, 42))
        view.event(Verdict(5, Status.DISCARD, "val_bpb rose", 1.5, 1.0, "a"))
    assert printed(out).splitlines()[-1].split() == ["#5", "discard", "1.500000", "val_bpb", "rose"]


@pytest.mark.parametrize("value", [None, "much", math.nan, math.inf, True])
def test_a_run_may_tell_anything_as_its_progress(value: Scalar) -> None:
    out = console()
    with LiveView(out) as view:
        view.progress(0, curve(value, value))
        view.progress(0, RunEvent("who knows", 2.0, {}))
    assert "#0   training" in printed(out)


def test_the_live_line_shows_the_work_and_leaves_the_terminal_clean() -> None:
    out = console(in_terminal=True)

    def work() -> None:
        with LiveView(out) as view:
            view.event(KEPT.proposed)
            assert "\x1b[?25l" not in printed(out)
            view.event(RunStarted(1, 0, 42))
            view.progress(1, curve())
            view.event(ProposalRefused("t", "x", "y"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    said = printed(out)
    assert "training  43%" in said
    assert "loss 3.200" in said
    assert "halve total batch" in said
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")
    assert said.endswith("\x1b[2K")


def test_a_dumb_terminal_gets_plain_lines() -> None:
    out = Console(file=io.StringIO(), width=120, force_terminal=True, _environ={"TERM": "dumb"})
    with LiveView(out) as view:
        view.event(RunStarted(1, 0, 42))
    assert "?25l" not in printed(out)


def test_a_verdict_is_explained_and_a_confirmation_is_told_with_its_runs() -> None:
    out = console()
    reason = "kept, provisional: posterior -0.0117 ± 0.0030, P(better) 0.99, needs 0.75"
    assert KEPT.verdict is not None
    verdict = dataclasses.replace(KEPT.verdict, reason=reason, estimate=Estimate(0.0117, 0.003, 0.99))
    told = "confirmed: -0.0110 ± 0.0050 against the baseline over 2 paired seeds"
    with LiveView(out, clock=Clock()) as view:
        view.event(KEPT.proposed)
        view.event(verdict)
        view.event(RunStarted(1, 1, 1000, Purpose.CONFIRM))
        view.event(Confirmation("nov21", 1, Outcome.CONFIRMED, told, (), 1, 1))
    said = printed(out)
    assert f"     {reason}" in said
    assert "#1   starts again, to confirm, seed 1000: halve total batch" in said
    assert f"#1 {told}" in said


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("no_color", [False, True])
def test_the_live_line_is_one_line_with_its_number_first(width: int, no_color: bool) -> None:
    out = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=True,
        no_color=no_color,
        color_system=None if no_color else "standard",
    )
    view = LiveView(out, clock=lambda: 95.0)
    view._works[12] = Work(12, "halve the batch and move the rate", 0.0, "training", 0.5, 3.2, 12346.0, 0.03)
    out.print(view._line())
    lines = re.sub(r"\x1b\[[0-9;]*m", "", printed(out)).splitlines()
    assert len(lines) == 1
    assert len(lines[0]) <= width
    assert lines[0][1:].startswith(" #12 ━━━━━━━━──────── 1:35 ")
