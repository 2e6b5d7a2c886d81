"""Finds room for a picture's labels: next to what they name, off everything else."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DOTS_PER_INCH = 150
PIXELS_PER_POINT = DOTS_PER_INCH / 72
DOT_COST = 14.0  # extra distance in points that a label accepts to avoid covering one dot
LEADER_PARTS = 12  # boxes that stand in for such a line, which labels must not cross
LEADER_POINTS = 16.0  # a label farther than this from its step is connected to it by a thin line
# Where a label can start, in points from its step: next to it, or higher and lower at a few distances.
OFFSETS = [
    (x, y) for x in (9.0, 30.0, 60.0, 100.0, -9.0, -30.0) for y in (0.0, *range(8, 168, 8), *range(-8, -168, -8))
]

DISTANCES = np.hypot(*np.transpose(OFFSETS))

Point = tuple[float, float]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Place:
    """Where a label goes: its offset from the step in points, and whether a line leads to it."""

    dx: float
    dy: float
    leader: bool


class Room:
    """Free space for labels. A label covers no obstacle and no other label, and avoids dots if it can.

    Boxes are rows of left, low, right and high, in pixels.
    """

    def __init__(self, bounds: Array, obstacles: Array, dots: Array) -> None:
        self._bounds, self._obstacles, self._dots = bounds, obstacles, dots
        self._labels = np.empty((0, 4))

    def take(self, step: Point, width: float, height: float) -> Place | None:
        """Return the cheapest free place for a label of that size and reserve it; None if all places are taken."""
        boxes = _boxes(step, width, height)
        costs = DISTANCES + DOT_COST * _contained(boxes, self._dots)
        costs[~self._is_inside(boxes) | _overlaps(boxes, self._obstacles)] = math.inf
        for choice in np.argsort(costs, kind="stable"):
            if math.isinf(costs[choice]):
                break
            dx, dy = OFFSETS[choice]
            leader = _leader(step, dx, dy)
            if not _overlaps(leader, self._labels).any():
                self._labels = np.vstack([self._labels, boxes[choice]])
                self._obstacles = np.vstack([self._obstacles, boxes[choice], leader])
                return Place(dx, dy, len(leader) > 0)
        return None

    def _is_inside(self, boxes: Array) -> npt.NDArray[np.bool_]:
        return np.asarray(((boxes[:, :2] >= self._bounds[:2]) & (boxes[:, 2:] <= self._bounds[2:])).all(axis=1))


def _boxes(step: Point, width: float, height: float) -> Array:
    """Where a label of that size would be with each of OFFSETS from its step."""
    near = np.array(step) + PIXELS_PER_POINT * np.array(OFFSETS)
    left = np.where(np.array(OFFSETS)[:, 0] > 0, near[:, 0], near[:, 0] - width)
    low = near[:, 1] - height / 2
    return np.column_stack([left, low, left + width, low + height])


def _leader(step: Point, dx: float, dy: float) -> Array:
    """Boxes along the line from a step to a label with this offset; none if it is near."""
    if math.hypot(dx, dy) < LEADER_POINTS:
        return np.empty((0, 4))
    part = np.arange(1, LEADER_PARTS)[:, None] / LEADER_PARTS
    middle = np.array(step) + PIXELS_PER_POINT * np.array([dx, dy]) * part
    return np.hstack([middle - 2, middle + 2])


def _overlaps(boxes: Array, others: Array) -> npt.NDArray[np.bool_]:
    """Which of the boxes overlap any of the others."""
    lows = np.maximum(boxes[:, None, :2], others[None, :, :2])
    highs = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    found: npt.NDArray[np.bool_] = np.any(np.all(lows < highs, axis=2), axis=1)
    return found


def _contained(boxes: Array, dots: Array) -> Array:
    """How many of the dots are in each box."""
    across = (boxes[:, None, 0] < dots[None, :, 0]) & (dots[None, :, 0] < boxes[:, None, 2])
    up = (boxes[:, None, 1] < dots[None, :, 1]) & (dots[None, :, 1] < boxes[:, None, 3])
    return np.asarray((across & up).sum(axis=1), np.float64)
