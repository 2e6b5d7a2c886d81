"""What a language model may look up while it thinks: past trials, the ledger, the literature; bounded and fenced.

Every answer is text, even to a bad question. It reads only through the brief's archive.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autoresearch.ledger.records import Scalar
from autoresearch.researchers.interface import Brief
from autoresearch.researchers.prompt import fence, fitting, outcomes, refused, told

ANSWER = 6_000  # characters of an answer
POINTS = 16  # of a curve
FOUND = 12  # trials that a search lists
QUERY = 300  # characters of a query that count

Point = Mapping[str, Scalar]


@dataclass(frozen=True)
class Reading:
    """The tools, bound to a brief. Their docstrings are what the model sees of them."""

    brief: Brief
    papers: Callable[[str], str]

    @property
    def tools(self) -> tuple[Callable[..., str], ...]:
        return (self.read_diff, self.read_log, self.read_curve, self.search_ledger, self.search_papers)

    def read_diff(self, trial: int) -> str:
        """The patch of a past trial, by its number."""
        return self._of(trial, lambda: fence(f"patch of trial {trial}", self.brief.archive.patch(trial), ANSWER))

    def read_log(self, trial: int) -> str:
        """The end of the log of a past trial's last run, by its number: what it printed, and how it crashed."""
        return self._of(trial, lambda: fence(f"log of trial {trial}", self.brief.archive.log(trial), ANSWER, tail=True))

    def read_curve(self, trial: int) -> str:
        """The training curve of a past trial, by its number: loss and speed, next to the incumbent's loss."""
        return self._of(trial, lambda: self._curves(trial))

    def search_ledger(self, query: str) -> str:
        """The past trials and refused proposals whose idea, reason or result has most of the query's words."""
        words = set(query[:QUERY].casefold().split())
        texts = [told(outcome) for outcome in reversed(outcomes(self.brief.campaign))]
        ranked = sorted([*texts, *refused(self.brief.campaign)], key=lambda text: -_hits(words, text))
        found = [text for text in ranked[:FOUND] if _hits(words, text)]
        if not found:
            return f"no trial of this campaign has a word of {query[:QUERY]!r}"
        return fence("trials found", fitting(found, str, ANSWER - 100), ANSWER)

    def search_papers(self, query: str) -> str:
        """Search the literature: titles and abstracts that match a few keywords."""
        try:
            return fence("papers found", self.papers(query[:QUERY]), ANSWER)
        except Exception as error:  # someone else's code: its failure is an answer too
            return f"the literature could not be searched: {type(error).__name__}"

    def _of(self, trial: int, answer: Callable[[], str]) -> str:
        numbers = [each.number for each in self.brief.campaign.trials]
        if trial not in numbers:
            return f"there is no trial {trial}: {_range(numbers)}"
        try:
            return answer()
        except OSError as error:
            return f"cannot read that of trial {trial}: {error.strerror}"

    def _curves(self, trial: int) -> str:
        points = self.brief.archive.curve(trial)
        if not points:
            return f"trial {trial} left no curve"
        best = self.brief.campaign.incumbent
        other = self.brief.archive.curve(best.number) if best and best.number != trial else ()
        return fence(f"curve of trial {trial}", table(points, other, best.number if best else 0), ANSWER)


def _range(numbers: Sequence[int]) -> str:
    return f"they run from {min(numbers)} to {max(numbers)}" if numbers else "there are none yet"


def _hits(words: set[str], text: str) -> int:
    folded = text.casefold()
    return sum(word in folded for word in words)


# ---------------------------------------------------------------- curves


def table(points: Sequence[Point], other: Sequence[Point], number: int) -> str:
    """A curve at evenly spaced points, with the loss of another one, trial `number`, at the same progress."""
    places = sorted({round(share * (len(points) - 1) / (POINTS - 1)) for share in range(POINTS)})
    columns = ("step", "progress", "loss", "lr", "tokens_per_second")
    header = [*columns, *([f"loss of the incumbent, trial {number}"] if other else [])]
    rows = []
    for place in places:
        point = points[place]
        extra = [shown(at(other, point.get("progress")))] if other else []
        rows.append("  ".join([*(shown(point.get(column)) for column in columns), *extra]))
    return "\n".join(["  ".join(header), *rows])


def at(points: Sequence[Point], progress: Scalar) -> Scalar:
    """The loss of the first point that has come as far; None if there is none."""
    if not isinstance(progress, int | float):
        return None
    known = [point for point in points if isinstance(point.get("progress"), int | float)]
    place = bisect_left([float(point["progress"] or 0) for point in known], float(progress))
    return known[place].get("loss") if place < len(known) else None


def shown(value: Scalar) -> str:
    """A value in few characters; `-` for none."""
    return "-" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)[:20]
