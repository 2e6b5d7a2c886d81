"""Single lines that the terminal's views are built from."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from autoresearch.ledger.events import CampaignStarted
from autoresearch.ledger.records import Status
from autoresearch.ledger.report import Report, Row, one_line

COLORS = {Status.KEEP: "green", Status.DISCARD: "yellow", Status.CRASH: "red", Status.INVALID: "magenta"}
LABEL_WIDTH = 12
UNTOLD = "a results.tsv does not say: do not compare its val_bpb across devices, presets or versions of prepare.py"
GRADED = {"trusted": "graded outside the run, ", "self-reported": "SELF-REPORTED scores, "}


def label(name: str, value: str | Text, style: str = "") -> Text:
    """One line `name  value` of plain text."""
    text = value if isinstance(value, Text) else Text(one_line(value), style)
    return Text.assemble((f"{name:<{LABEL_WIDTH}}", "dim"), text)


def verdict_line(row: Row, gain: float | None) -> Text:
    """`#3 keep     1.402113  -0.0117  idea`. `gain` is against the incumbent and shown as the change of val_bpb."""
    score = "        " if row.val_bpb is None else f"{row.val_bpb:.6f}"
    change = " " * 7 if gain is None or row.val_bpb is None else f"{-gain:+.4f}"
    head = (f"#{row.number:<3} {row.status.value:<8} {score}  {change:<8} ", COLORS[row.status])
    return Text.assemble(head, one_line(row.description))


def about(seconds: float) -> str:
    """A length of time in words."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def say(console: Console, *lines: Text) -> None:
    """Print lines: whole in a file, and on a terminal wrapped between words, below the value of a `label`."""
    for line in lines:
        if not console.is_terminal or line.cell_len <= console.width:
            console.print(line, soft_wrap=True)
            continue
        indent = LABEL_WIDTH if line.plain[:LABEL_WIDTH].rstrip().count(" ") < 2 else 0
        first = line.wrap(console, console.width)[0]
        rest = line[len(first.plain) :].wrap(console, console.width - indent)
        for each in (first, *(Text(" " * indent) + part for part in rest if part.plain.strip())):
            each.rstrip()
            console.print(each, soft_wrap=True)


def set_up(started: CampaignStarted) -> str:
    """Who does the work, and where. The report must never hide that there was no sandbox."""
    model = f" ({started.model})" if started.model else ""
    return (
        f"researcher {started.researcher}{model}, judge {started.judge}, executor {started.executor}, "
        f"sandbox {started.sandbox}, {GRADED.get(started.grader, '')}{started.budget_seconds:g} s a run"
    )


def gain_text(report: Report) -> str:
    """The one number of a campaign: the change of val_bpb, its 95 % interval and how it is known."""
    margin = "" if report.margin is None else f" ± {report.margin:.4f}"
    return f"{-(report.gain or 0):+.4f}{margin} ({-(report.gain_percent or 0):+.2f} %), {report.certainty.value}"
