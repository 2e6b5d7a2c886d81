"""The single lines of which the terminal's views are made."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from autoresearch.events import CampaignStarted
from autoresearch.records import Status
from autoresearch.report import Row, one_line

COLOURS = {Status.KEEP: "green", Status.DISCARD: "yellow", Status.CRASH: "red", Status.INVALID: "magenta"}
LABEL_WIDTH = 12
UNTOLD = "not told by a results.tsv: compare its val_bpb with none of another device, preset or prepare.py"
GRADED = {"trusted": "graded from outside, ", "self-reported": "SELF-REPORTED scores, "}


def label(name: str, value: str | Text, style: str = "") -> Text:
    """One line `name  value` of plain text."""
    text = value if isinstance(value, Text) else Text(one_line(value), style)
    return Text.assemble((f"{name:<{LABEL_WIDTH}}", "dim"), text)


def verdict_line(row: Row, gain: float | None) -> Text:
    """`#3 keep     1.402113  -0.0117  idea`; `gain` is over the incumbent, shown as the change of val_bpb."""
    score = "        " if row.val_bpb is None else f"{row.val_bpb:.6f}"
    change = " " * 7 if gain is None or row.val_bpb is None else f"{-gain:+.4f}"
    head = (f"#{row.number:<3} {row.status.value:<8} {score}  {change:<8} ", COLOURS[row.status])
    return Text.assemble(head, one_line(row.description))


def say(console: Console, *lines: Text) -> None:
    """Print lines that the terminal may wrap and a file keeps whole."""
    for line in lines:
        console.print(line, soft_wrap=True)


def set_up(started: CampaignStarted) -> str:
    """Who does the work, and where: the report must never hide that there was no sandbox."""
    return (
        f"researcher {started.researcher}, judge {started.judge}, executor {started.executor}, "
        f"sandbox {started.sandbox}, {GRADED.get(started.grader, '')}{started.budget_seconds:g} s a run"
    )
