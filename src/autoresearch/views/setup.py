"""What a person sees in a terminal of `doctor`: what was checked, what was measured, which sizes fit."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from autoresearch.lab.doctor import Check
from autoresearch.lab.sizing.planner import TOKENS_PER_PARAMETER, Goal, Plan, Row, Setting
from autoresearch.ledger.report import one_line
from autoresearch.views.lines import label, say

CHECK_WIDTH = 18
MARKS = {True: ("ok", "green"), False: ("FAIL", "bold red"), None: ("warn", "yellow")}
FIT_HEAD = "depth  rows  parameters  forward+backward  optimizers    tokens/s    memory of what is free  evaluation"


def show_check(check: Check, console: Console) -> None:
    """One line of the doctor, with what to do if something is wrong."""
    mark, style = MARKS[check.ok]
    line = Text.assemble((f"{mark:<5}", style), f"{check.name:<{CHECK_WIDTH}}", one_line(check.found))
    if check.ok is not True and check.remedy:
        line.append(f": {one_line(check.remedy)}", "bold")
    say(console, line)


def show_measurement(row: Row, console: Console, *, first: bool) -> None:
    """One line of the table that the sizes are chosen from, below FIT_HEAD."""
    if first:
        say(console, Text(FIT_HEAD))
    head = f"{row.setting.depth:>5}  {row.setting.rows:>4}  "
    found = row.found
    if found is None:
        say(console, Text.assemble(head, (one_line(row.problem), "yellow")))
        return
    speed = found.tokens / (found.pass_seconds + found.optimizer_seconds)
    scored = f"{found.tokens / found.evaluation_seconds:,.0f}/s" if found.evaluation_seconds else ""
    line = f"{found.parameters / 1e6:>8.1f} M  {found.pass_seconds:>14.3f} s  {found.optimizer_seconds:>8.3f} s"
    memory = f"{found.memory_mb / 1024:>10.2f} of {found.free_mb / 1024:6.1f} GiB"
    say(console, Text(f"{head}{line}  {speed:>10,.0f}  {memory}  {scored:>10}".rstrip()))


def show_plan(plan: Plan, goal: Goal, unmeasured: Setting | None, console: Console) -> None:
    """The chosen sizes, each with its reason."""
    tokens = f"{plan.tokens / 1e6:.1f} M tokens in {goal.budget_seconds:g} s"
    ratio = f"{plan.tokens_per_parameter:.1f} per parameter, for {plan.parameters / 1e6:.1f} M parameters"
    how = "measured" if plan.evaluation_measured else "estimated"
    scoring = f"about {plan.evaluation_seconds:.1f} s a score ({how})"
    say(
        console,
        label("depth", f"{plan.depth}: {tokens}, {ratio} (aim {TOKENS_PER_PARAMETER:g})"),
        label("batch", f"{plan.batch_tokens:,} tokens, {plan.passes} x {plan.rows} rows: {plan.steps:,} steps"),
        label("evaluation", f"{plan.evaluation_tokens:,} tokens: {scoring}"),
    )
    if unmeasured:
        what = "evaluation at " if unmeasured.evaluate else ""
        said = (
            f"no time left for {what}depth {unmeasured.depth} with {unmeasured.rows} rows: run it again when the "
            "machine is idle"
        )
        say(console, label("unmeasured", said, "yellow"))
