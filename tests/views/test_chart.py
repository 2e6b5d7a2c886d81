"""The picture of a campaign."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from autoresearch.base.errors import UserError
from autoresearch.ledger.records import Status
from autoresearch.ledger.report import Row, summarize
from autoresearch.ledger.results_tsv import from_tsv
from autoresearch.views import chart
from published import PUBLISHED


def row(number: int, val_bpb: float | None, status: Status, description: str = "an idea") -> Row:
    return Row(number, "abcdef0", val_bpb, 1.0, status, description)


def scaled(*rows: Row) -> tuple[float, float]:
    return chart.scale([r.val_bpb for r in rows if r.val_bpb is not None], summarize(rows).frontier)


@pytest.mark.parametrize(
    "rows",
    [
        (),
        (row(0, 1.4, Status.KEEP, "baseline"),),
        (row(0, None, Status.CRASH),),
        (row(0, 1.4, Status.DISCARD), row(1, 1.5, Status.DISCARD)),
        (row(7, 1.4, Status.KEEP), row(8, 1.4, Status.KEEP), row(9, 1.4, Status.DISCARD)),
        from_tsv(PUBLISHED, "published"),
    ],
    ids=["none", "baseline only", "crash only", "discards only", "no gain", "published"],
)
def test_every_campaign_has_a_picture(rows: tuple[Row, ...], tmp_path: Path) -> None:
    path = tmp_path / "progress.png"
    chart.draw(rows, path, title="t")
    picture = imread(path)
    assert picture.shape[:2] == (1012, 1800)
    assert picture[..., :3].std() > 0.01
    assert [file.name for file in tmp_path.iterdir()] == ["progress.png"]


def test_ideas_cannot_break_the_picture(tmp_path: Path) -> None:
    ideas = ["$x_{", "\\frac", "学习率 \U0001f600", "\x1b[31m[red]", "a" * 500, ""]
    rows = [row(number, 2.0 - 0.1 * number, Status.KEEP, idea) for number, idea in enumerate(ideas)]
    chart.draw(rows, tmp_path / "progress.png", title="$\\alpha 学 $")
    assert (tmp_path / "progress.png").stat().st_size > 10_000


def test_a_terrible_discard_does_not_flatten_the_frontier() -> None:
    keeps = [row(number, 1.41 - 0.001 * number, Status.KEEP) for number in range(10)]
    low, high = scaled(*keeps, row(10, 3.2, Status.DISCARD), row(11, 1.418, Status.DISCARD))
    assert 1.418 < high < 1.45
    assert low < 1.401


def test_many_terrible_discards_do_not_flatten_the_frontier_either() -> None:
    bad = [row(number, 3.0, Status.DISCARD) for number in range(2, 30)]
    _, high = scaled(row(0, 1.41, Status.KEEP), row(1, 1.4, Status.KEEP), *bad)
    assert high < 1.5


def test_the_frontier_is_always_on_the_scale() -> None:
    low, high = scaled(
        row(0, 9.0, Status.KEEP), *(row(number, 1.4 - number / 1e4, Status.KEEP) for number in range(1, 9))
    )
    assert low < 1.3992
    assert high > 9.0


def labels(rows: list[Row]) -> tuple[Figure, list[str]]:
    figure = chart.figure(tuple(rows), "t")
    return figure, [text.get_text() for text in figure.axes[0].texts]


def test_labels_cover_neither_each_other_nor_the_steps() -> None:
    rows = [row(number, 1.4 - 0.002 * number, Status.KEEP, f"idea number {number}") for number in range(40)]
    figure, names = labels(rows)
    figure.draw_without_rendering()
    boxes = [super(type(text), text).get_window_extent() for text in figure.axes[0].texts]
    overlaps = [box for index, box in enumerate(boxes) if box.count_overlaps(boxes[:index])]
    assert overlaps == []
    assert len(names) > 20


def test_the_biggest_steps_are_named_and_discards_are_not() -> None:
    rows = [
        row(0, 1.5, Status.KEEP, "baseline"),
        row(1, 1.6, Status.DISCARD, "worse"),
        row(2, 1.3, Status.KEEP, "better"),
    ]
    assert labels(rows)[1] == ["baseline", "better"]


def test_off_scale_and_crashed_trials_are_counted() -> None:
    figure, _ = labels(
        [*(row(n, 1.4 - n / 100, Status.KEEP) for n in range(4)), row(4, 9, Status.DISCARD), row(5, None, Status.CRASH)]
    )
    legend = figure.axes[0].get_legend()
    assert legend is not None
    said = [text.get_text() for text in legend.get_texts()]
    assert "crashed or invalid (1)" in said
    assert "discarded, off the scale (1)" in said


def test_a_picture_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write the chart"):
        chart.draw([], tmp_path / "nowhere" / "progress.png")


def test_nothing_global_of_pyplot_is_used() -> None:
    assert "pyplot" not in Path(chart.__file__).read_text().replace("never pyplot", "")
    assert chart.__name__ in sys.modules


def test_a_picture_of_somebody_elses_is_saved_aside(tmp_path: Path) -> None:
    path = tmp_path / "progress.png"
    path.write_bytes(b"\x89PNG a cat")
    assert chart.draw((), path) == tmp_path / "progress.saved-1.png"
    assert (tmp_path / "progress.saved-1.png").read_bytes() == b"\x89PNG a cat"
    assert chart.draw((), path) is None, "our own is drawn again"


def test_what_is_believed_lies_within_the_picture() -> None:
    """A confirmed value can be lower than any run's own score."""
    frontier = (chart.Step(0, "c", 1.47, 0.0, "baseline", 0.01), chart.Step(4, "c", 1.43, 0.04, "deeper", 0.02))
    low, high = chart.scale([1.486, 1.504, 1.454], frontier)
    assert low < 1.41
    assert high > 1.5
