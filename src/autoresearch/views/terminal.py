"""What a person sees in a terminal of the past: tables and texts.

Others wrote the ideas, logs and reasons. They are stripped of control characters and shown as Text, so that neither an
escape sequence nor a word in brackets has any effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from rich.console import Console, ConsoleRenderable
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from autoresearch.agents.overview import Overview
from autoresearch.judging.claims import Measured, Standing
from autoresearch.ledger.campaign import Trial
from autoresearch.ledger.events import CampaignStarted, RunEnded
from autoresearch.ledger.records import Comparable, Purpose, Status
from autoresearch.ledger.report import Gain, Pace, Report, Row, Step, one_line, plain, reason
from autoresearch.views.lines import COLORS, UNTOLD, gain_text, label, say, set_up

GO_ON = {
    "run": "continue with `autoresearch run`",
    "try": "change train.py, then continue with `autoresearch try -m IDEA`",
}

# ---------------------------------------------------------------- status, log


def show_status(found: Overview, running: bool, console: Console) -> None:
    """Where the campaign stands, in a few lines. `running` says whether a loop holds the lab."""
    started = found.started
    loop = "at work" if running else f"not running: {GO_ON['try' if found.researcher == 'try' else 'run']}"
    say(console, label("loop", loop, "green" if running else ""), label("branch", f"autoresearch/{started.tag}"))
    if found.paused:
        say(console, label("paused", f"{found.paused}: `autoresearch resume` lets it go on", "yellow"))
    say(console, label("set-up", set_up(started)), *_class(found.comparable))
    say(console, *counts(found.report), *standing_lines(found.standing))
    if found.under_way:
        say(console, label("under way", f"#{found.under_way.trial} {found.under_way.idea}"))
    if found.tokens or found.refused:
        cost = f", {found.usd:.2f} USD" if found.usd else ""
        refused = f"{found.refused} proposal{'s' * (found.refused != 1)} refused"
        say(console, label("researcher", f"{found.tokens:,} tokens{cost}, {refused}"))
    for each in found.recent:
        if each.status:
            say(console, label("", f"#{each.trial} {each.status.value}: {each.idea}", COLORS[each.status]))


def _class(comparable: Comparable | None) -> list[Text]:
    return [label("class", str(comparable))] if comparable else []


def show_log(
    rows: Iterable[Row],
    console: Console,
    paces: Mapping[int, Pace] = MappingProxyType({}),
    classes: str | None = None,
    disturbed: Mapping[int, int] = MappingProxyType({}),
) -> None:
    """The trials, newest last, and the classes of their runs: a table on a terminal, elsewhere a line a trial.

    `paces` says how fast a trial trained. `disturbed` counts a trial's runs that were made again.
    """
    lines = [_cells(row, paces.get(row.number, Pace()), disturbed.get(row.number, 0)) for row in rows]
    if not lines:
        say(console, Text("no trial is finished yet"))
    elif console.is_terminal:
        console.print(_log_table(lines))
    else:
        for line in ((*LOG_HEAD,), *lines):
            say(console, Text("  ").join(cell if isinstance(cell, Text) else Text(cell) for cell in line))
    if classes:
        say(console, label("class", classes))


LOG_HEAD = ("trial", "commit ", " val_bpb", "  GB", "  steps", "tokens/s", "status ", "description")


def _cells(row: Row, pace: Pace, again: int) -> tuple[str | Text, ...]:
    """A row below LOG_HEAD, as wide as that."""
    numbers = (
        str(row.number),
        row.commit,
        "" if row.val_bpb is None else f"{row.val_bpb:.6f}",
        "" if row.memory_gb is None else f"{row.memory_gb:.1f}",
        "" if pace.steps is None else f"{pace.steps:,}",
        "" if pace.tokens_per_second is None else f"{pace.tokens_per_second:,.0f}",
    )
    said = Text(one_line(row.description))
    if again:
        said.append(f" ({again} disturbed run{'s' * (again > 1)} made again)", "yellow")
    padded = (one_line(cell).rjust(len(name)) for cell, name in zip(numbers, LOG_HEAD, strict=False))
    return (*padded, Text(f"{row.status.value:<7}", COLORS[row.status]), said)


def _log_table(lines: Iterable[tuple[str | Text, ...]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in LOG_HEAD[:-1]:
        table.add_column(name, no_wrap=True)
    table.add_column(LOG_HEAD[-1])
    for line in lines:
        table.add_row(*line)
    return table


def show_tags(campaigns: Iterable[Mapping[str, object]], console: Console) -> None:
    """The campaigns of a lab, newest last. A star marks the one that `run` continues."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "tag", "trials", "kept", "best", "gain", "researcher"):
        table.add_column(name, justify="right" if name in ("trials", "kept", "best", "gain") else "left")
    for each in campaigns:
        best, gain = each["best"], each["gain"]
        table.add_row(
            "*" if each["current"] else "",
            Text(str(each["tag"])),
            str(each["trials"]),
            str(each["kept"]),
            f"{best:.4f}" if isinstance(best, float) else "",
            f"{-gain:+.4f} {each['certainty']}" if isinstance(gain, float) and each["certainty"] else "",
            Text(one_line(str(each["researcher"] if each["kind"] == "search" else "none: a control"))),
        )
    console.print(table)


def show_patch(patch: str, console: Console) -> None:
    """A patch, in color on a terminal."""
    console.print(_colored(patch, console) if patch.strip() else Text("the two are the same"), soft_wrap=True)


def _colored(patch: str, console: Console) -> ConsoleRenderable:
    code = Syntax(plain(patch), "diff", theme="ansi_dark", background_color="default", word_wrap=True)
    return code if console.is_terminal else Text(code.code.rstrip("\n"))


# ---------------------------------------------------------------- one trial


def show_trial(
    trial: Trial,
    patch: str,
    log_tail: str,
    console: Console,
    classes: str | None = None,
    status: Status | None = None,
    since: Sequence[str] = (),
) -> None:
    """One trial: idea, verdict, the numbers of each run, why it crashed, its patch and the end of its log.

    `status` is what it counts as today, `since` what became of it after its verdict.
    """
    proposed = trial.proposed
    say(console, label("trial", f"#{trial.number} {proposed.idea}", "bold"), _outcome(trial))
    if since:
        now = f"; it counts as {status.value}" if status else ""
        say(console, label("since then", f"{'; '.join(since)}{now}", COLORS[status] if status else ""))
    say(console, label("commit", f"{proposed.commit[:7]} on {proposed.parent[:7]} (by {proposed.proposer})"))
    for name, text in (("why", proposed.why), ("expects", proposed.expects)):
        if text:
            say(console, label(name, text))
    if proposed.repairs is not None:
        say(console, label("repairs", f"trial {proposed.repairs}"))
    if proposed.carries is not None:
        say(console, label("carries", f"the change of trial {proposed.carries} over to a newer best version"))
    if proposed.start is not None:
        say(console, label("made on", f"#{proposed.start.trial}, not the best version: {proposed.start.why}"))
    if proposed.tokens is not None:
        cost = f", {proposed.usd:.4f} USD" if proposed.usd is not None else ""
        say(console, label("cost", f"{proposed.tokens:,} tokens{cost}"))
    if trial.runs:
        console.print(_runs_table(trial))
    if classes:
        say(console, label("class", classes))
    if trial.runs:
        say(console, label("log", trial.runs[-1].log), label("curve", trial.runs[-1].curve))
    for run in trial.every_run:
        if run.disturbed:
            what = "set aside" if run.set_aside else "judged all the same"
            say(console, label("disturbed", f"run {run.run}: {run.disturbed}; {what}", "yellow"))
    if trial.crash:
        _section(console, trial.crash.kind.value, Text(plain(trial.crash.detail), "red"))
    if patch.strip():
        _section(console, f"patch ({proposed.lines_changed} lines)", _colored(patch, console))
    if log_tail.strip():
        _section(console, "end of the log", Text(plain(log_tail).rstrip(), "dim"))


def _outcome(trial: Trial) -> Text:
    verdict = trial.verdict
    if verdict is None:
        return label("verdict", "none yet", "cyan")
    first = plain(verdict.reason).strip().partition("\n")[0]
    why = reason(trial) if verdict.status is Status.CRASH else first
    return label("verdict", f"{verdict.status.value}: {why}", COLORS[verdict.status])


def _runs_table(trial: Trial) -> Table:
    """A line for each run, a column for each quantity that any of them has."""
    every = [_run_numbers(run) for run in trial.runs]
    names = [name for name in every[0] if any(numbers[name] for numbers in every)]
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for numbers in every:
        table.add_row(*(numbers[name] for name in names))
    return table


def _run_numbers(run: RunEnded) -> dict[str, str]:
    def shown(value: float | None, pattern: str) -> str:
        return "" if value is None else pattern.format(value)

    return {
        "run": str(run.run),
        "for": "" if run.purpose is Purpose.TRIAL else run.purpose.value,
        "seed": str(run.seed),
        "val_bpb": shown(run.score.val_bpb if run.score else None, "{:.6f}"),
        "steps": shown(run.summary.get("num_steps"), "{:,.0f}"),
        "tokens": shown(run.summary.get("total_tokens_M"), "{:,.1f} M"),
        "start-up": shown(run.startup_seconds, "{:.1f} s"),
        "training": shown(run.training_seconds, "{:.1f} s"),
        "wall": shown(run.wall_seconds, "{:.1f} s"),
        "memory": shown(run.memory_gb, "{:.2f} GB"),
        "exit": {None: "deadline", 0: ""}.get(run.exit_code, str(run.exit_code)),
    }


def _section(console: Console, title: str, body: ConsoleRenderable) -> None:
    say(console, Text(), Text(f"── {title}", "bold"))
    console.print(body, soft_wrap=isinstance(body, Text))


# ---------------------------------------------------------------- the report


def show_report(
    report: Report,
    console: Console,
    started: CampaignStarted | None = None,
    standing: Standing | None = None,
    comparable: Comparable | None = None,
) -> None:
    """Summary of the campaign: setup if known, counts, baseline and best, biggest keeps, near misses, crashes."""
    if started:
        say(console, label("set-up", set_up(started)), *_class(comparable))
    else:
        say(console, label("class", UNTOLD))
    say(console, *counts(report), *standing_lines(standing))
    if standing and standing.generalization:
        found = standing.generalization
        over = f"over {found.seeds} fresh seeds" if found.seeds else "by one run of each, the one that selected it"
        gains = f"val {_gain(found.search)}, sealed holdout {_gain(found.holdout)}"
        say(console, label("holdout", f"{gains} (95 %, {over})"))
    if report.crash_kinds:
        kinds = ", ".join(f"{count} {kind}" for kind, count in report.crash_kinds.items())
        say(console, label("crashes", kinds, "red"))
    _steps(console, "biggest keeps", report.biggest, "green")
    _steps(console, "near misses", report.near_misses, "yellow")


def _gain(gain: Gain) -> str:
    return f"{-gain.bpb:+.4f}" + (f" ± {gain.margin:.4f}" if gain.margin is not None else "")


def standing_lines(standing: Standing | None) -> list[Text]:
    """What is confirmed, and how much luck may be in the rest."""
    if standing is None:
        return []
    lines = [label("claim", standing.claim or "nothing is confirmed yet", "green" if standing.claim else "")]
    if standing.tested:
        lines.append(label("tested", standing.tested, "yellow"))
    if standing.provisional:
        count = len(standing.provisional)
        keeps = f"{count} keep{'s' if count > 1 else ''} since"
        lines.append(label("provisional", f"{keeps}, last #{standing.provisional[-1]}", "yellow"))
    if standing.best and standing.best.trial != standing.baseline:
        doubt = f"{standing.false_keeps:.1f} expected among the keeps that lead to it"
        lines.append(label("false keeps", doubt))
    low, high = standing.sigma_interval
    noise = f"{standing.sigma:.4f} a run (95 %: {low:.4f} to {high:.4f}, {standing.freedom} degrees of freedom)"
    lines.append(label("noise", noise))
    if standing.advice:
        lines.append(label("", standing.advice, "yellow"))
    if pruned := standing.pruning:
        wrong = f"{pruned.false_kills} of {pruned.spared} that were allowed to finish were kept"
        lines.append(label("pruned", f"{pruned.runs} runs, {pruned.saved_seconds / 60:.1f} min saved; {wrong}"))
    return lines


def measured(best: Measured) -> str:
    return f"{best.val_bpb:.4f} ± {best.margin:.4f} #{best.trial} ({best.certainty.value})"


def counts(report: Report) -> list[Text]:
    """How many trials ended how, and the best beside the baseline."""
    if not report.trials:
        return [label("trials", "none is finished yet")]
    pace = f" ({report.trials_per_hour:.1f} an hour)" if report.trials_per_hour else ""
    each = ", ".join(f"{count} {status}" for status, count in report.counts.items())
    lines = [label("trials", f"{report.trials}: {each}{pace}")]
    if report.proposers:
        by = ", ".join(f"{count} by {one_line(name)}" for name, count in report.proposers.items())
        lines.append(label("proposed", by))
    if report.disturbed:
        runs = "1 run was" if report.disturbed == 1 else f"{report.disturbed} runs were"
        lines.append(label("disturbed", f"{runs} made again: the machine was busy or slow meanwhile", "yellow"))
    if report.baseline is None or report.best is None:
        return [*lines, label("best", "nothing was kept")]
    lines.append(label("baseline", f"{report.baseline.val_bpb:.6f} #{report.baseline.number}"))
    if report.best.number == report.baseline.number:
        return [*lines, label("best", f"{report.best.val_bpb:.6f}, the baseline")]
    by = f"{report.best.val_bpb:.6f} #{report.best.number} {report.best.commit}"
    return [*lines, label("best", f"{by}, {gain_text(report)}", "green" if (report.gain or 0) > 0 else "yellow")]


def _steps(console: Console, title: str, steps: tuple[Step, ...], style: str) -> None:
    if steps:
        say(console, Text(), Text(title, "bold"))
    for step in steps:
        head = (f"{-step.gain:+.6f}  {step.val_bpb:.6f}  #{step.number:<4}", style)
        say(console, Text.assemble("  ", head, " ", one_line(step.description)))
