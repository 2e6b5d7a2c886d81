"""Whether something disturbed a run while it trained: then its score is no evidence about the program.

Other programs disturb a run if they take processor time that it was waiting for, or compute on its GPU. A program that
is slow by itself, or starts more threads than there are processors, disturbs nobody: it waits, but nobody else works.

Pure: counts in, a sentence out.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from autoresearch.ledger.events import RunEnded
from autoresearch.ledger.records import Load

SHORTEST = 5.0  # seconds of training; with less, the counts are too coarse
LONGEST_GAP = 20.0  # seconds between two samples, of which there is one a second
SLOWER = 0.85  # of the usual steps a second of the same program; seeds differ by less on an idle machine


@dataclass(frozen=True)
class Loss:
    """What a run lost to others: shares of the processor time that it could have had, and of its time on the GPU.

    `taken` by other programs, `stolen` by the host of a virtual machine, `gpu_others` by other programs on its GPU,
    `gpu_slowed` by heat or lack of power.
    """

    taken: float = 0.0
    stolen: float = 0.0
    gpu_others: float = 0.0
    gpu_slowed: float = 0.0

    @property
    def most(self) -> float:
        """The largest of its shares."""
        return max(self.taken + self.stolen, self.gpu_others, self.gpu_slowed)

    def reason(self, most: float) -> str | None:
        """What took more than the share `most`; None if nothing did."""
        if self.taken + self.stolen > most:
            who = "other programs" if self.taken >= self.stolen else "the host of this virtual machine"
            return f"{who} took {100 * (self.taken + self.stolen):.0f} % of its processor time"
        if self.gpu_others > most:
            return f"other programs used its GPU for {100 * self.gpu_others:.0f} % of the time"
        if self.gpu_slowed > most:
            return f"heat or lack of power slowed its GPU for {100 * self.gpu_slowed:.0f} % of the time"
        return None


def lost(load: Sequence[Load], start: float | None = None, end: float | None = None) -> Loss | None:
    """What a run lost between two times on the parent's clock; None if that is too short, or there are no samples.

    Time taken is at most what the run waited, and at most what others worked: both must be so.
    """
    within = [each for each in load if (start is None or each.at >= start) and (end is None or each.at <= end)]
    if len(within) < 2 or within[-1].at - within[0].at < SHORTEST:
        return None
    first, last = within[0], within[-1]
    span, used = last.at - first.at, last.used - first.used
    others = max(0.0, (last.busy - first.busy) - used - (last.own - first.own))
    taken = min(others, _waited(first, last))
    stolen = max(0.0, last.stolen - first.stolen)
    could = used + taken + stolen
    return Loss(
        taken=taken / could if could else 0.0,
        stolen=stolen / could if could else 0.0,
        gpu_others=(last.gpu_others - first.gpu_others) / span,
        gpu_slowed=(last.gpu_slowed - first.gpu_slowed) / span,
    )


def _waited(first: Load, last: Load) -> float:
    """Seconds that the run waited for a processor. Where the system does not say, all that others worked while no
    processor was idle."""
    if first.waited is not None and last.waited is not None:
        return max(0.0, last.waited - first.waited)
    could = last.processors * (last.at - first.at)
    return could if last.busy - first.busy > 0.95 * could else 0.0


def stopped(load: Sequence[Load]) -> str | None:
    """Why a run that had no time is not to blame: the machine or this program stood still. None if it did not."""
    gap = max((later.at - earlier.at for earlier, later in itertools.pairwise(load)), default=0.0)
    return f"the machine or this program stood still for {gap:.0f} s" if gap > LONGEST_GAP else None


def slower(run: RunEnded, earlier: Sequence[RunEnded]) -> str | None:
    """Why a run is not like the earlier runs of the same program: it was slower. None if it was not."""
    pace = steps_per_second(run)
    known = [each for each in map(steps_per_second, earlier) if each is not None]
    if pace is None or not known or pace >= SLOWER * statistics.median(known):
        return None
    return f"it was {100 * (1 - pace / statistics.median(known)):.0f} % slower than earlier runs of the same program"


def steps_per_second(run: RunEnded) -> float | None:
    """Optimizer steps a second; None if unknown, or if the run was too short to say."""
    if not run.steps or run.training_seconds is None or run.training_seconds < SHORTEST:
        return None
    return run.steps / run.training_seconds
