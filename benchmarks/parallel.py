"""Many trials at once, in simulated time: the production scheduler against one trial after the other, and against
workers that know nothing of each other.

python benchmarks/parallel.py [--campaigns N] [--slots 4 16 64] [--search tree] [--own] [--quick]

Runs take 300 s of training and what is around it, proposals 5 to 90 s, and 1 % of the nodes are lost. The scores are
those of the recorded surrogate (search.py). Everything else is real (simulation.py). Then it measures the driver's own
work per trial with 64 slots in a campaign of 10,000 trials. It prints its progress and, at the end, tables, and writes
each campaign as a line of JSON to --json.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import os
import platform
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import long
import simulation
from autoresearch.judging import noise
from autoresearch.ledger.records import Proposal
from autoresearch.researchers.interface import Brief
from search import far_moved, set_to
from simulation import Course, Way
from surrogate import Surrogate, movable, rows

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # for campaigns.py, which plays a judge

SEQUENTIAL = 100  # trials, whose gain is the goal of all others
ROUNDS = 6  # trials per slot that are made at least, so that the busy share means something
FIRST_SEED = 100  # of the campaigns; the policy's constants were chosen on others
FEW = 3  # trials before the ledger is made longer
MOST = 12  # times as many trials as the sequential loop's, after which a campaign has not reached the goal
GOALS = {"busy at 64 slots": 0.95, "times as fast at 16 slots": 10.0, "own work per trial, ms": 50.0}


@functools.cache
def surrogate() -> Surrogate:
    return Surrogate(rows())


@dataclasses.dataclass(frozen=True)
class Job:
    """A campaign to simulate: until `trials`, or (with a `goal`) until that gain and at least so many trials."""

    way: Way
    seed: int
    trials: int
    goal: float | None = None

    def is_enough(self, course: Course) -> bool:
        if self.goal is None:
            return course.trials > self.trials
        is_there = course.steps and course.gain() >= self.goal
        return course.trials >= self.trials and (bool(is_there) or course.trials >= MOST * SEQUENTIAL)


def simulated(job: Job) -> Course:
    if job.way.search == "naive":
        return simulation.naive(job.way.slots, job.seed, surrogate(), job.is_enough)
    with tempfile.TemporaryDirectory(prefix="parallel-") as directory:
        lab = simulation.make_lab(Path(directory) / "lab")
        return simulation.campaign(lab, job.way, job.seed, surrogate(), job.is_enough)


def played(jobs: Sequence[Job], workers: int, save: Callable[[Course], None]) -> dict[Way, list[Course]]:
    """The courses of campaigns, by the way they were driven; told as they end."""
    found: dict[Way, list[Course]] = {}
    with ProcessPoolExecutor(workers) as pool:
        for job, course in zip(jobs, pool.map(simulated, jobs), strict=True):
            found.setdefault(job.way, []).append(course)
            print(
                f"  {job.way.slots:3} slots, {job.way.search:5}, campaign {job.seed}: {course.trials} trials, "
                f"{course.seconds / 3600:.1f} h, gain {course.gain():.2%}, busy {course.busy:.1%}",
                flush=True,
            )
            save(course)
    return found


def read(path: Path) -> dict[Way, list[Course]]:
    """The campaigns of one slot that an earlier run has written."""
    found: dict[Way, list[Course]] = {}
    for line in path.read_text().splitlines():
        fields = json.loads(line)
        way = Way(**fields.pop("way"))
        if way.slots == 1:
            steps = [(at, number, value) for at, number, value in fields.pop("steps")]
            found.setdefault(way, []).append(Course(way=way, steps=steps, **fields))
    return found


# ---------------------------------------------------------------- tables


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def header(*cells: str) -> None:
    row(*cells)
    print("|" + "---|" * len(cells))


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Their mean, and half its 95 % interval by Student's t."""
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.fmean(differences), noise.student(0.975, len(differences) - 1) * error


def show_search(line: Sequence[Course], tree: Sequence[Course], trials: int) -> None:
    """One slot, `tree` against `line` on the same seeds."""
    print(f"\nOne slot, {trials} trials, {len(line)} campaigns: gain in the noise-free val_bpb over the baseline's\n")
    header(
        "search", "gain at the end, mean", "by campaign", "gain on average over the search, mean", "from other programs"
    )
    for name, courses in (("line", line), ("tree", tree)):
        gains, areas = [c.gain(trials) for c in courses], [c.area(trials) for c in courses]
        each = " ".join(f"{100 * gain:.1f}" for gain in gains)
        share = statistics.fmean(c.elsewhere / c.trials for c in courses)
        row(name, f"{statistics.fmean(gains):.2%}", each, f"{statistics.fmean(areas):.2%}", f"{share:.0%}")
    pairs = list(zip(line, tree, strict=True))
    for name, of in (("at the end", Course.gain), ("on average", Course.area)):
        mean, half = interval([of(b, trials) - of(a, trials) for a, b in pairs])
        print(f"tree minus line, gain {name}: {100 * mean:+.2f} ± {100 * half:.2f} percentage points (95 %, paired)")


def show_speed(every: Iterable[tuple[Way, Sequence[Course]]], goal: float, sequential: float) -> None:
    """How long each way takes to the sequential loop's gain, and how busy its slots were."""
    hours = f"{sequential / 3600:.2f} h"
    print(f"\nTime to a gain of {goal:.2%}, that of one trial after the other after {hours} (medians)\n")
    header(
        "slots", "search", "busy", "hours to that gain", "times as fast", "by campaign", "trials", "lost runs", "own ms"
    )
    for way, courses in every:
        times = [course.until(goal) for course in courses]
        middle = statistics.median(times)
        each = " ".join("never" if math.isinf(t) else f"{sequential / t:.1f}" for t in times)
        row(
            way.slots,
            way.search,
            "" if way.search == "naive" else f"{statistics.median(c.busy for c in courses):.1%}",
            "never" if math.isinf(middle) else f"{middle / 3600:.2f}",
            "" if math.isinf(middle) else f"{sequential / middle:.1f}",
            each,
            statistics.median_low(course.trials for course in courses),
            sum(course.lost for course in courses),
            "" if way.search == "naive" else f"{statistics.median(c.own_ms for c in courses):.0f}",
        )


# ---------------------------------------------------------------- the driver's own work


def own_work(slots: int, ledger: int, trials: int) -> Course:
    """The course of some trials after a ledger of so many: what the driver itself works for each of them."""
    with tempfile.TemporaryDirectory(prefix="parallel-") as directory:
        lab = simulation.make_lab(Path(directory) / "lab")
        simulation.campaign(lab, Way(1), 0, surrogate(), lambda course: course.trials > FEW)
        if ledger:
            lengthen(lab, ledger)
        way, write = Way(slots, "tree", 1), any_move(random.Random(0))
        return simulation.campaign(lab, way, 0, surrogate(), lambda course: course.trials >= trials, write)


def any_move(draw: random.Random) -> Callable[[Brief], Proposal]:
    """A researcher that moves a few constants at random and knows no past, so that it costs next to nothing."""

    def write(brief: Brief) -> Proposal:
        some = draw.sample(sorted(movable()), 3)
        values = {name: far_moved(movable()[name], draw.uniform(-2, 2)) for name in some}
        source = set_to(brief.files["train.py"], values)
        return Proposal(f"{', '.join(some)} elsewhere", {"train.py": source or brief.files["train.py"]})

    return write


def lengthen(lab: Path, trials: int) -> None:
    """Multiply the trials of a lab's ledger, each with a commit of its own."""
    path = lab / ".autoresearch/ledger.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    made = list(long.multiplied(lab, events, trials))
    known = long.commits(lab, [trial["commit"] for trial in made], "t")
    with path.open("a") as file:
        file.writelines(json.dumps(event) + "\n" for trial in made for event in long.written(trial, known))
        file.write(json.dumps(long.confirmation("t", made)) + "\n")
    long.git(lab, "update-ref", "refs/heads/autoresearch/t", known[made[-1]["incumbent"]])


def processor() -> str:
    """What the processor calls itself, and how many of them there are."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def compare(options: argparse.Namespace, trials: int, rounds: int, save: Callable[[Course], None]) -> None:
    """One slot with each search, then many slots against workers that know nothing of each other."""
    seeds = range(FIRST_SEED, FIRST_SEED + options.campaigns)
    one = [Job(Way(1, search), seed, trials) for search in ("line", "tree") for seed in seeds]
    alone = read(options.alone) if options.alone else played(one, options.workers, save)
    line, tree = alone[Way(1, "line")], alone[Way(1, "tree")]
    goal = statistics.median(course.gain(trials) for course in line)
    sequential = statistics.median(course.after(trials) for course in line)
    jobs = [
        Job(Way(slots, search, 1), seed, rounds * slots, goal if not options.quick else 0.0)
        for slots in options.slots
        for search in (options.search, "naive")
        for seed in seeds
    ]
    beside = played(jobs, options.workers, save)
    show_search(line, tree, trials)
    show_speed([*alone.items(), *beside.items()], goal, sequential)


def show_own(slots: int, ledger: int, *, quick: bool) -> None:
    """What the driver works for a trial, with a researcher that costs nothing, and how busy it keeps the slots."""
    print(f"\nThe driver's own work, {slots} slots, {ledger} trials in the ledger", flush=True)
    own = own_work(slots, ledger, trials=4 if quick else (ROUNDS if not ledger else 2) * slots)
    goal = GOALS["own work per trial, ms"]
    print(f"{own.own_ms:.0f} ms a trial (goal {goal:g}), {own.processor_ms:.0f} ms of a processor, git's included")
    print(f"busy {own.busy:.1%}, {own.trials} trials, {own.lost} lost runs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--campaigns", type=int, default=5, help="of one slot, and as many of each other way")
    parser.add_argument("--slots", type=int, nargs="*", default=[4, 16, 64], help="none: one slot only")
    parser.add_argument("--ledger", type=int, default=10_000, help="trials in the ledger of the last part")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="campaigns that are simulated at a time")
    parser.add_argument("--search", default="line", choices=["line", "tree"], help="of the parallel campaigns")
    parser.add_argument("--own", action="store_true", help="only the last part")
    parser.add_argument("--alone", type=Path, help="--json of an earlier run, whose campaigns of one slot are taken")
    parser.add_argument("--json", type=Path, help="where each campaign is written, as a line")
    parser.add_argument("--quick", action="store_true", help="a few trials only: whether it works, not what it shows")
    options = parser.parse_args()
    if options.quick:
        options.campaigns, options.slots, options.ledger = 2, [2], 20
    trials, rounds = (2, 1) if options.quick else (SEQUENTIAL, ROUNDS)
    print(f"RECORDED SURROGATE in SIMULATED TIME; no run was made for this. {processor()}")
    print(surrogate().fidelity(), flush=True)

    def save(course: Course) -> None:
        if options.json:
            with options.json.open("a") as file:
                file.write(json.dumps(dataclasses.asdict(course)) + "\n")

    if not options.own:
        compare(options, trials, rounds, save)
    if options.slots:
        show_own(max(options.slots), options.ledger, quick=options.quick)


if __name__ == "__main__":
    main()
