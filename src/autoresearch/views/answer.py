"""What a person sees of an answer to an agent: a trial of its edits, a keep or a drop by hand."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from autoresearch.agents.overview import Overview
from autoresearch.ledger.events import ChosenByHand, Ordered
from autoresearch.ledger.records import Status
from autoresearch.views.lines import COLORS, label, say
from autoresearch.views.terminal import counts, standing_lines

LATER = "the loop at work does it soon; a decision by hand waits until no trial is open"


def show_result(result: Mapping[str, object], console: Console) -> None:
    """What `try` answers: the verdict with its numbers, and what to do next."""
    status, memory = str(result["status"]), result.get("memory_gb")
    found = ((name, result.get(name)) for name in ("val_bpb", "best"))
    numbers = [f"{name} {value:.6f}" for name, value in found if isinstance(value, int | float)]
    numbers += [f"{memory:.2f} GB"] if isinstance(memory, int | float) else []
    head = status if result["trial"] is None else f"trial {result['trial']}: {status}"
    style = COLORS[Status(status)] if status in list(Status) else ""
    say(console, Text(f"{head} ({', '.join(numbers)})" if numbers else head, style))
    say(console, label("why", str(result["reason"])))
    for name in ("explained", "notice"):
        if said := result.get(name):
            say(console, label("" if name == "explained" else name, str(said), "yellow" if name == "notice" else ""))
    say(console, *_paces(result))
    if disturbed := result.get("disturbed"):
        said = "; ".join(map(str, disturbed)) if isinstance(disturbed, list) else str(disturbed)
        say(console, label("disturbed", said, "yellow"))
    if log := result.get("log"):
        say(console, label("log", str(log)))
    say(console, label("next", str(result["next"])))


def _paces(result: Mapping[str, object]) -> list[Text]:
    """The noise, and the trial's speed beside its parent's."""
    noise, parent, lines = result.get("noise"), result.get("compared_with"), []
    if isinstance(noise, Mapping):
        lines.append(label("noise", f"{noise['sigma']:.4f} a run; gains up to {noise['luck']:.4f} may be luck"))
    if own := _pace(result.get("pace")):
        before = _pace(parent.get("pace")) if isinstance(parent, Mapping) else ""
        beside = f" (#{parent['trial']}: {before})" if before and isinstance(parent, Mapping) else ""
        lines.append(label("pace", f"{own}{beside}"))
    return lines


def _pace(found: object) -> str:
    if not isinstance(found, Mapping):
        return ""
    steps, speed = found.get("steps"), found.get("tokens_per_second")
    both = (f"{steps:,} steps" if steps else "", f"{speed:,.0f} tokens/s" if speed else "")
    return ", ".join(filter(None, both))


def show_order(told: Ordered, console: Console, *, is_done: bool) -> None:
    """What a search was told, and when it does it."""
    say(console, label("ordered", told.words))
    if not is_done:
        say(console, label("", LATER))


def show_choice(chosen: ChosenByHand | None, found: Overview, console: Console) -> None:
    """What was kept or dropped by hand, and what is the best version now."""
    if chosen is None:
        say(console, label("ordered", LATER))
        return
    say(
        console, label("by hand", chosen.words), label("branch", f"autoresearch/{chosen.tag} is at #{chosen.incumbent}")
    )
    say(console, *counts(found.report), *standing_lines(found.standing))
