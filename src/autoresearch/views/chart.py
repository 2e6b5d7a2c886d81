"""Draws progress.png: every trial by its val_bpb, with the kept ones as labeled steps of the running best.

Uses matplotlib's objects and never pyplot, so it leaves no global state behind.
"""

from __future__ import annotations

import io
import itertools
import statistics
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib import font_manager, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from autoresearch.base import atomic
from autoresearch.base.errors import UserError
from autoresearch.ledger.records import Status
from autoresearch.ledger.report import Report, Row, Step, one_line, shorten, summarize
from autoresearch.views.labels import DOTS_PER_INCH, Array, Place, Point, Room
from autoresearch.views.lines import gain_text

SIZE_INCHES = (12.0, 6.75)
KEEP, DISCARD, CRASH, INK = "#1a7f4b", "#9aa5b1", "#c0392b", "#27313b"
MADE_BY = "autoresearch, with matplotlib"  # is in the picture, so that it is known again
FONT = "DejaVu Sans"  # ships with matplotlib, so the picture is the same on every machine
LABEL_CHARACTERS, CROWDED_CHARACTERS = 60, 38
FEW_STEPS = 12
MOST_LABELS = 40
REACH = 3.0  # the worst trial shown is at most this many times as far from the best as the median trial
CROWDING = 5.0  # and at most this many times as far as the baseline; anything up to twice as far is always shown
CELLS, COARSE = 300, 100  # of a grid: dots in the same cell cover each other, or lie in the way of the same labels


def draw(rows: Iterable[Row], path: Path, title: str = "", note: str = "", report: Report | None = None) -> Path | None:
    """Write the picture as PNG, whole or not at all. The note is printed small below it.

    The report says what is believed of the kept trials; without one, the line shows their own scores.

    Returns the new name of a file of somebody else's that had this one, if there was one.

    Raises:
        UserError: the file cannot be written.
    """
    content = _png(figure(tuple(rows), title, note, report))
    try:
        saved = atomic.save_aside(path) if path.is_file() and MADE_BY.encode() not in path.read_bytes() else None
        atomic.write(path, content)
    except OSError as error:
        raise UserError(f"cannot write the chart {path} ({error}): choose another place for it") from error
    return saved


def figure(rows: tuple[Row, ...], title: str, note: str = "", report: Report | None = None) -> Figure:
    """Return the picture of the rows, not written to disk yet."""
    settings = {"font.family": FONT, "font.size": 10, "text.color": INK, "axes.labelcolor": INK, "text.usetex": False}
    with style.context(["default", settings]):
        made = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH)
        made.set_layout_engine("constrained", w_pad=0.15, h_pad=0.12)
        FigureCanvasAgg(made)
        if note:
            made.supxlabel(_drawable(note), fontsize=8, color=DISCARD, parse_math=False)
        _fill(made.add_subplot(), rows, report or summarize(rows), _drawable(title))
    return made


def _png(picture: Figure) -> bytes:
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png", metadata={"Software": MADE_BY})
    return buffer.getvalue()


def _fill(axes: Axes, rows: tuple[Row, ...], report: Report, title: str) -> None:
    _frame(axes, rows, report, title)
    scored = [row for row in rows if row.val_bpb is not None and row.status is not Status.INVALID]
    if not scored:
        axes.set_yticks([])
        axes.text(
            0.5, 0.5, "no trial has a score yet", transform=axes.transAxes, ha="center", color=DISCARD, fontsize=14
        )
    else:
        low, high = scale([row.val_bpb for row in scored if row.val_bpb is not None], report.frontier)
        axes.set_ylim(low, high)
        _dots(axes, scored, high)
    _crashes(axes, rows)
    if report.frontier:
        _frontier(axes, rows, report.frontier)
    if scored or any(row.status in (Status.CRASH, Status.INVALID) for row in rows):
        axes.legend(loc="upper right", framealpha=0.85, edgecolor="none", fontsize=9, labelcolor=INK)
    if report.frontier:
        _labels(axes, rows, report.frontier)


# ---------------------------------------------------------------- axes


def scale(values: list[float], frontier: tuple[Step, ...]) -> tuple[float, float]:
    """Return the limits of the y axis: the whole frontier, and no far outlier that would flatten it."""
    low, high = min(values), max(values)
    if frontier:
        first, best = frontier[0].val_bpb, frontier[-1].val_bpb
        near = low + REACH * (statistics.median(values) - low)
        if first > best:
            near = min(max(near, 2 * first - best), best + CROWDING * (first - best))
        high = max(first, *(value for value in values if value <= near))
    ends = [step.val_bpb - (step.margin or 0.0) for step in frontier[-1:]] + [step.val_bpb for step in frontier]
    low, high = min([low, *ends]), max([high, *ends])
    margin = 0.07 * (high - low) or 0.01 * abs(low)
    return low - 2 * margin, high + margin


def _frame(axes: Axes, rows: tuple[Row, ...], report: Report, title: str) -> None:
    kept = report.counts[Status.KEEP.value]
    tried = f"{report.trials} trial{'' if report.trials == 1 else 's'}, {kept} kept"
    won = f", val_bpb {gain_text(report)}" if report.gain else ""
    axes.set_title(f"{title}: {tried}{won}" if title else f"{tried}{won}", loc="left", parse_math=False, fontsize=13)
    axes.set_xlabel("trial")
    axes.set_ylabel("val_bpb (bits per byte, lower is better)")
    numbers = [row.number for row in rows] or [0]
    margin = max(0.5, 0.02 * (numbers[-1] - numbers[0]))
    axes.set_xlim(numbers[0] - margin, numbers[-1] + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(axis="y", color="#e6e9ed", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b8c0c8")
    axes.tick_params(color="#b8c0c8", labelcolor=INK)


# ---------------------------------------------------------------- marks


def _dots(axes: Axes, scored: list[Row], high: float) -> None:
    """Draw discarded trials as faint dots. Those off the scale are small arrows at the top, counted in the legend."""
    discards = [(row.number, row.val_bpb) for row in scored if row.status is not Status.KEEP and row.val_bpb]
    on = thinned([(number, value) for number, value in discards if value <= high])
    off = [number for number, value in discards if value > high]
    if on:
        axes.scatter(
            [x for x, _ in on],
            [y for _, y in on],
            s=22,
            color=DISCARD,
            alpha=0.55,
            linewidths=0,
            label="discarded",
            zorder=2,
        )
    if off:
        top = axes.get_xaxis_transform()
        name = f"discarded, off the scale ({len(off)})"
        axes.scatter(off, [0.985] * len(off), transform=top, marker="^", s=30, color=DISCARD, label=name, zorder=2)


def thinned(dots: list[Point], cells: int = CELLS) -> list[Point]:
    """One dot of those that would be drawn over each other, on a grid of so many cells across and up."""
    if len(dots) <= cells:
        return dots
    spans = [(min(along), max(max(along) - min(along), 1e-9)) for along in zip(*dots, strict=True)]
    (left, width), (low, height) = spans
    kept = {(int(cells * (x - left) / width), int(cells * (y - low) / height)): (x, y) for x, y in dots}
    return list(kept.values())


def _crashes(axes: Axes, rows: tuple[Row, ...]) -> None:
    crashed = [row.number for row in rows if row.status in (Status.CRASH, Status.INVALID)]
    if crashed:
        foot = axes.get_xaxis_transform()
        name = f"crashed or invalid ({len(crashed)})"
        axes.scatter(
            crashed, [0.02] * len(crashed), transform=foot, marker="x", s=32, color=CRASH, label=name, zorder=3
        )


def _frontier(axes: Axes, rows: tuple[Row, ...], frontier: tuple[Step, ...]) -> None:
    numbers = [step.number for step in frontier]
    values = [step.val_bpb for step in frontier]
    across = [*numbers, rows[-1].number]
    margins = [step.margin for step in frontier if step.margin is not None]
    name = "best so far"
    if len(margins) == len(frontier):
        name = "best, as it is believed now, and 95 %"
        low, high = ([value + sign * margin for value, margin in zip(values, margins, strict=True)] for sign in (-1, 1))
        band = {"step": "post", "color": KEEP, "alpha": 0.12, "linewidth": 0, "zorder": 1}
        axes.fill_between(across, [*low, low[-1]], [*high, high[-1]], **band)  # type: ignore[arg-type]
    line = {"drawstyle": "steps-post", "color": KEEP, "linewidth": 1.8, "alpha": 0.75, "label": name, "zorder": 3}
    axes.plot(across, [*values, values[-1]], **line)  # type: ignore[arg-type]
    kept = [(row.number, row.val_bpb) for row in rows if row.status is Status.KEEP and row.val_bpb]
    axes.scatter(
        [x for x, _ in kept],
        [y for _, y in kept],
        s=46,
        color=KEEP,
        edgecolors="white",
        linewidths=0.9,
        label="kept: its score when it was judged" if frontier[0].margin else "kept",
        zorder=4,
    )


# ---------------------------------------------------------------- labels


def _labels(axes: Axes, rows: tuple[Row, ...], frontier: tuple[Step, ...]) -> None:
    """Label the steps, the largest first, each where it covers the least. A label that fits nowhere is left out."""
    whole = axes.get_figure(root=True)
    assert whole is not None, "axes belong to a figure"
    whole.draw_without_rendering()  # fixes the layout, so that positions in pixels are known
    dots: list[Point] = [(row.number, row.val_bpb) for row in rows if row.val_bpb]
    room = Room(
        np.array(axes.bbox.extents), _obstacles(axes, frontier), axes.transData.transform(thinned(dots, COARSE))
    )
    by_gain = sorted(frontier[1:], key=lambda step: step.gain, reverse=True)
    length, points = (CROWDED_CHARACTERS, 8.0) if len(frontier) > FEW_STEPS else (LABEL_CHARACTERS, 9.5)
    for step in [frontier[0], *by_gain][:MOST_LABELS]:
        name = shorten(_drawable(step.description), length)
        sample = axes.text(0, 0, name, fontsize=points, parse_math=False)
        extent = sample.get_window_extent()
        place = room.take(_pixels(axes, step.number, step.val_bpb), extent.width, extent.height)
        sample.remove()
        if place:
            _note(axes, step, name, points, place)


def _note(axes: Axes, step: Step, name: str, points: float, place: Place) -> None:
    """Write a step's label at its place, connected by a thin line if it is far away."""
    right = place.dx > 0
    line = {"arrowstyle": "-", "color": KEEP, "linewidth": 0.7, "alpha": 0.7, "shrinkA": 0, "shrinkB": 4}
    note = axes.annotate(
        name,
        (step.number, step.val_bpb),
        xytext=(place.dx, place.dy),
        textcoords="offset points",
        ha="left" if right else "right",
        va="center",
        fontsize=points,
        color=INK,
        arrowprops={**line, "relpos": (0.0 if right else 1.0, 0.5)} if place.leader else None,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        parse_math=False,
        zorder=5,
    )
    note.set_in_layout(False)


def _obstacles(axes: Axes, frontier: tuple[Step, ...]) -> Array:
    """Return boxes that no label may cover: the steps, the line between them, the legend, the footer."""
    points = [_pixels(axes, step.number, step.val_bpb) for step in frontier]
    boxes = [(x - 8, y - 8, x + 8, y + 8) for x, y in points]
    for (x, y), (next_x, next_y) in itertools.pairwise([*points, (axes.bbox.x1, points[-1][1])]):
        boxes.append((x, y - 3, next_x, y + 3))
        boxes.append((next_x - 3, min(y, next_y), next_x + 3, max(y, next_y)))
    bounds, legend = axes.bbox, axes.get_legend()
    boxes.append((bounds.x0, bounds.y0, bounds.x1, bounds.y0 + 0.04 * bounds.height))
    return np.array([*boxes, *([tuple(legend.get_window_extent().extents)] if legend else [])])


def _pixels(axes: Axes, number: int, val_bpb: float) -> Point:
    x, y = axes.transData.transform((number, val_bpb))
    return float(x), float(y)


def _drawable(text: str) -> str:
    """Return the text on one line, with a box for each character that the font lacks (matplotlib would only warn)."""
    known = FT2Font(font_manager.findfont(FONT)).get_charmap()
    return "".join(c if ord(c) in known else "\u25a1" for c in one_line(text))
