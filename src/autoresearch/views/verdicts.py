"""What a person sees of audits, confirmations, replays and comparisons. For text by others see terminal.py."""

from __future__ import annotations

import math

from rich.console import Console
from rich.text import Text

from autoresearch.judging.audit import Audit, Control, Keep
from autoresearch.judging.claims import Standing
from autoresearch.judging.comparability import Comparison
from autoresearch.ledger.campaign import Trial
from autoresearch.ledger.events import Confirmation, RunEnded
from autoresearch.ledger.records import Outcome
from autoresearch.ledger.report import one_line
from autoresearch.views.lines import UNTOLD, label, say
from autoresearch.views.terminal import measured, standing_lines

HEAD = "trial  change     believed              P(better)      z  survives  description"


def show_audit(audit: Audit, console: Console) -> None:
    """The noise and how it is known, each kept trial with its estimate, and how many survive."""
    say(console, label("table", f"{audit.rows} rows with a score, {len(audit.keeps)} kept after the first"))
    say(console, label("class", UNTOLD))
    say(console, *_noise(audit))
    if not audit.keeps:
        say(console, label("keeps", "nothing to judge"))
        return
    say(console, Text())
    say(console, Text(HEAD, "dim"), *map(_keep, audit.keeps))
    total = len(audit.keeps)
    rule = f"P(better by {audit.needed:g}) above {audit.advance:g}"
    within = f"{total - audit.clear} of {total} keeps are no larger than that luck of {audit.luck:.4f}"
    say(console, Text(), label("luck", within, "yellow"))
    say(console, label("survive", f"{audit.survivors} of {total}: the posterior judge keeps them ({rule})", "green"))


def _noise(audit: Audit) -> list[Text]:
    luck = label("luck", f"a change that computes the same gains less than {audit.luck:.4f} in 95 of 100 cases")
    if audit.interval is None:
        return [label("noise", f"a run's sigma is {audit.sigma:.5f}, as given"), luck]
    low, high = audit.interval
    found = f"a run's sigma is {audit.sigma:.5f} (95 % {low:.5f} to {high:.5f}), estimated from near-duplicates:"
    return [label("noise", found), *(label("", said) for said in audit.evidence), luck]


def _keep(keep: Keep) -> Text:
    """A kept trial below HEAD. Changes of val_bpb, so lower is better."""
    numbers = f"#{keep.number:<4}  {-keep.gain:+.6f}  {-keep.believed:+.6f} ± {keep.error:.6f}"
    odds = f"  {keep.probability:9.2f}  {keep.z:5.1f}  "
    mark = ("yes       ", "green") if keep.survives else ("no        ", "yellow")
    return Text.assemble(numbers, odds, mark, one_line(keep.description))


# ---------------------------------------------------------------- one campaign against another


def show_comparison(found: Comparison, console: Console) -> None:
    """The best results of two comparable campaigns, and how far apart they are."""
    say(console, label("class", str(found.comparable)))
    for name, best in (("best", found.best), ("against", found.against)):
        say(console, label(name, f"{measured(best.measured)} of {best.tag}"))
    if found.drift is not None:
        same = (
            f"both started from one commit, whose val_bpb differs by {found.drift:+.4f}: the gains over it are compared"
        )
        say(console, label("control", same))
    clear = abs(found.difference) > found.margin
    style = ("green" if found.difference < 0 else "red") if clear else "yellow"
    words = f"{found.best.tag} is {'lower' if found.difference < 0 else 'higher'}" if clear else "within the noise"
    say(console, label("difference", f"{found.difference:+.4f} ± {found.margin:.4f} (95 %): {words}", style))


# ---------------------------------------------------------------- confirm, replay, aa


def show_confirmation(
    found: Confirmation | None, standing: Standing | None, console: Console, *, stopped: bool = False
) -> None:
    """The result of a confirmation, and where the campaign stands after it."""
    if found is None:
        why = "stopped before its end" if stopped else "nothing to test: nothing was kept since the last test"
        say(console, label("no result", why))
    else:
        style = {Outcome.CONFIRMED: "green", Outcome.REFUTED: "red"}.get(found.outcome, "yellow")
        say(console, label(f"#{found.trial}", found.reason, style))
    say(console, *standing_lines(standing))


def replayed(
    trial: Trial, run: RunEnded, expected: tuple[float, float] | None, parent: Trial | None = None
) -> dict[str, object]:
    """A replay as plain data. `lands` is None if there is nothing to compare with, `better` if it has no parent.

    `better` says whether the run is lower than the mean of the parent's runs: without that, its gain is not there.
    """
    value = run.score.val_bpb if run.score and not run.invalid else None
    lands = None if value is None or expected is None else math.isclose(value, expected[0], abs_tol=expected[1])
    return {
        "trial": trial.number,
        "val_bpb": value,
        "expected": expected[0] if expected else None,
        "margin": expected[1] if expected else None,
        "lands": lands,
        "parent": parent.number if parent else None,
        "better": None if value is None or parent is None or parent.val_bpb is None else value < parent.val_bpb,
        "problem": run.invalid or (run.crash.detail if run.crash else None),
    }


def show_replay(result: dict[str, object], console: Console) -> None:
    """Whether a trial gave the same result again, as it should."""
    value, mean, margin = (result[name] for name in ("val_bpb", "expected", "margin"))
    if not isinstance(value, float):
        say(console, label("replay", f"#{result['trial']} has no score this time: {result['problem']}", "red"))
    elif not isinstance(mean, float):
        say(console, label("replay", f"#{result['trial']} had no score before, and has {value:.6f} now", "yellow"))
    else:
        where = "lands in" if result["lands"] else "lands OUTSIDE"
        text = f"#{result['trial']} {value:.6f} {where} its interval of {mean:.6f} ± {margin:.6f} (95 %, one more run)"
        say(console, label("replay", text, "green" if result["lands"] else "red"))
        if result["better"] is not None:
            gone = f"it is no better than #{result['parent']}, which it changed: its gain did not show this time"
            shown = f"it is better than #{result['parent']}, which it changed"
            say(console, label("", shown if result["better"] else gone, "green" if result["better"] else "yellow"))


def show_control(found: Control, console: Console) -> None:
    """How often a change that changes nothing was kept, by this judge and by the published rule."""
    say(console, label("noise", f"{found.sigma:.5f} a run, {found.freedom} degrees of freedom"))
    for name, kept, (low, high) in (
        (found.judge, found.kept, found.interval),
        ("greedy", found.greedy_kept, found.greedy_interval),
    ):
        rate = f"{kept} of {found.trials} kept by mistake: {100 * kept / max(found.trials, 1):.0f} %"
        say(console, label(name, f"{rate} (95 %: {100 * low:.0f} to {100 * high:.0f} %)"))
    say(console, label("confirmed", f"{found.confirmed} of them confirmed, which would be a false claim"))
