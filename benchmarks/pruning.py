"""What ending hopeless runs saves and costs in simulated labs, where it is known what each run would have scored.

Run `python benchmarks/pruning.py`, with for example `--labs 50 --trials 100`.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

from autoresearch.judging.pruning import Band, Hopeless, Past, Watch, learn, smoothed, spared
from autoresearch.ledger.records import RunEvent, Scalar

BPB = 0.42  # bits per byte for a nat per token, about as with preset cpu
BUDGET = 60.0  # seconds
STEPS = 120


@dataclass(frozen=True)
class Lab:
    """How the changes in a lab turn out, in nats except for the shares.

    `tail` of the changes are bad, by an exponential with mean `harm`; the others move the loss by a normal with
    deviation `effect`. `slant` is how much a change also moves the middle of its curve. `late` is the share of the
    changes that raise the loss by 0.2 nats halfway and catch up in the end. `luck` is a seed's deviation, `noise` a
    step's.
    """

    tail: float = 0.4
    harm: float = 0.3
    effect: float = 0.03
    slant: float = 0.03
    late: float = 0.0
    luck: float = 0.01
    noise: float = 0.1


LABS = {
    "usual": Lab(),
    "loud steps": Lab(noise=0.3),
    "loud seeds": Lab(luck=0.05),
    "few bad changes": Lab(tail=0.1),
    "disasters": Lab(tail=0.2, harm=2.0),
    "much slant": Lab(slant=0.15),
    "late bloomers, 5 %": Lab(late=0.05),
    "late bloomers, 30 %": Lab(late=0.3),
    "no telling": Lab(tail=0.0, slant=0.3),
}


@dataclass(frozen=True)
class Change:
    """What a change does to a lab's curves, in nats: to the end, and also to the middle."""

    end: float = 0.0
    middle: float = 0.0


def drawn(lab: Lab, chance: random.Random) -> Change:
    """A change to the incumbent."""
    bad = chance.random() < lab.tail
    end = chance.expovariate(1 / lab.harm) if bad else chance.gauss(0, lab.effect)
    late = 0.2 if chance.random() < lab.late else 0.0
    return Change(end, chance.gauss(0, lab.slant) + late)


def run(lab: Lab, change: Change, chance: random.Random) -> tuple[list[Mapping[str, Scalar]], float]:
    """A run's curve and its val_bpb."""
    luck = chance.gauss(0, lab.luck)
    points: list[Mapping[str, Scalar]] = []
    for step in range(1, STEPS + 1):
        progress = step / STEPS
        middle = change.middle * math.sin(math.pi * progress) ** 0.5 if progress < 1 else 0.0
        loss = 3.3 + 4.3 * math.exp(-4 * progress) + change.end + middle + luck + chance.gauss(0, lab.noise)
        points.append({"step": step, "progress": progress, "loss": loss})
    return points, BPB * (3.3 + change.end + luck + chance.gauss(0, lab.luck / 4))


def watched(band: Band, points: list[Mapping[str, Scalar]]) -> Hopeless | None:
    watch = Watch(band)
    events = (RunEvent("curve", 5 + BUDGET * float(str(point["progress"])), point) for point in points)
    return next((found for event in events if (found := watch.hear(event))), None)


@dataclass(frozen=True)
class Outcome:
    """One trial: whether it would have beaten the incumbent, where it was found hopeless, and whether it was spared."""

    better: bool
    found: Hopeless | None
    spared: bool


def campaign(lab: Lab, trials: int, chance: random.Random, tag: str) -> list[Outcome]:
    """One campaign, with the published rule as its judge."""
    points, val_bpb = run(lab, Change(), chance)
    incumbent, base = Past(smoothed(points), val_bpb), Change()
    finished: list[tuple[Past, Past]] = []
    outcomes = []
    for trial in range(1, trials + 1):
        change = drawn(lab, chance)
        change = Change(base.end + change.end, base.middle + change.middle)
        points, val_bpb = run(lab, change, chance)
        found = watched(learn(finished, incumbent.losses), points)
        outcomes.append(Outcome(val_bpb < incumbent.val_bpb, found, spared(trial, tag)))
        if found and not outcomes[-1].spared:
            continue
        past = Past(smoothed(points), val_bpb)
        finished.append((past, incumbent))
        if outcomes[-1].better:
            incumbent, base = past, change
    return outcomes


def summary(outcomes: list[Outcome]) -> str:
    """A line of the table."""
    better = sum(outcome.better for outcome in outcomes)
    found = [outcome for outcome in outcomes if outcome.found]
    wrongly = sum(outcome.better for outcome in found)
    saved = sum(1 - o.found.percent / 100 for o in found if o.found and not o.spared) / len(outcomes)
    return (
        f"{len(outcomes):>6} {better:>7} {len(found):>9} {wrongly:>8} {wrongly / max(1, better):>10.1%} {saved:>11.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labs", type=int, default=20)
    parser.add_argument("--trials", type=int, default=100)
    asked = parser.parse_args()
    print(f"{'lab':<20} {'runs':>6} {'better':>7} {'hopeless':>9} {'wrongly':>8} {'of better':>10} {'time saved':>11}")
    for name, lab in LABS.items():
        tags = [f"{name} {n}" for n in range(asked.labs)]
        outcomes = [each for tag in tags for each in campaign(lab, asked.trials, random.Random(tag), tag)]
        print(f"{name:<20} {summary(outcomes)}", flush=True)


if __name__ == "__main__":
    main()
