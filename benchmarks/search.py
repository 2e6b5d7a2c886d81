"""Compares searchers at equal trials on a recorded surrogate of a scaled-down CPU preset. It also records the
surrogate.

`record --minutes M` really trains: each row of search_record.jsonl is one run of one program on one thread, timed by
its own processor time. Without arguments it fits the surrogate to those rows and drives campaigns through it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import os
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoresearch.ledger.records import Proposal
from autoresearch.researchers.builtin.researcher import BuiltinResearcher
from autoresearch.researchers.guard.fingerprint import fingerprint
from autoresearch.researchers.interface import Archive, Brief, Kit, Researcher
from autoresearch.researchers.source import constants
from autoresearch.researchers.source.constants import CONTINUOUS, Constant, Value
from autoresearch.researchers.source.device_batch import fit_batches
from recording import record
from surrogate import CONTEXT, Surrogate, baseline, described, movable, rows

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # for campaigns.py, which plays a judge

# ---------------------------------------------------------------- searchers to compare with


def set_to(source: str, values: Mapping[str, Value]) -> str | None:
    known = {name: value for name, value in values.items() if name in constants.find(source)}
    return fit_batches(source, constants.replace(source, known), CONTEXT)


def far_moved(constant: Constant, step: float) -> Value:
    """The constant's value after a step from -2 to 2, in two halves as far as each may go."""
    value = constant.value
    for _ in range(2):
        moved = constants.moved(replace(constant, value=value), step / 2, 2)
        value = value if moved is None else moved
        if constant.kind not in CONTINUOUS:
            break
    return value


@dataclasses.dataclass
class RandomMoves:
    """A random constant of the incumbent by a random step: random search that may keep what it found."""

    seed: int
    name: str = "random"

    def propose(self, brief: Brief) -> Proposal:
        source = brief.files["train.py"]
        draw = random.Random(f"{self.seed} {len(brief.campaign.trials)}")
        knobs = [c for name, c in constants.find(source).items() if name in movable()]

        def moves() -> Iterator[str | None]:
            while True:
                constant = draw.choice(knobs)
                yield set_to(source, {constant.name: far_moved(constant, draw.uniform(-2, 2))})

        return first_new(brief, moves())


@dataclasses.dataclass
class RandomPrograms:
    """All constants of the baseline together by small random steps: random search in the strict sense."""

    seed: int
    name: str = "random programs"

    def propose(self, brief: Brief) -> Proposal:
        draw = random.Random(f"{self.seed} {len(brief.campaign.trials)}")

        def programs() -> Iterator[str | None]:
            while True:
                some = draw.sample(sorted(movable()), draw.randint(1, 6))
                yield set_to(baseline()[0], {name: far_moved(movable()[name], draw.uniform(-2, 2)) for name in some})

        return first_new(brief, programs())


@dataclasses.dataclass
class Coordinates:
    """Each constant of the incumbent in turn, up and then down. A kept move is repeated."""

    seed: int
    name: str = "coordinates"

    def propose(self, brief: Brief) -> Proposal:
        order = sorted(movable())
        random.Random(self.seed).shuffle(order)
        ways = [(name, way) for name in order for way in (1.0, -1.0)]
        place = 0
        for trial in brief.campaign.trials[1:]:
            kept = trial.verdict is not None and trial.verdict.status.value == "keep"
            place = int(str(trial.proposed.note["place"])) + (0 if kept else 1)
        source = brief.files["train.py"]
        for offset in range(2 * len(ways)):
            name, way = ways[(place + offset) % len(ways)]
            value = constants.moved(constants.find(source)[name], way, 2)
            with contextlib.suppress(LookupError):
                proposal = first_new(brief, iter([None if value is None else set_to(source, {name: value})]))
                return dataclasses.replace(proposal, note={"place": (place + offset) % len(ways)})
        raise LookupError("no coordinate is left")


class KnobsOnly:
    """Optuna's TPE over the absolute values of all constants, knowing every trial's val_bpb."""

    name = "TPE"

    def __init__(self, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        self.study.enqueue_trial(dict.fromkeys(movable(), 0.0))
        self.asked = self.study.ask()
        self.values(self.asked)

    def values(self, trial: Any) -> dict[str, Value]:
        ask = trial.suggest_float
        steps = {name: ask(name, -2.0, 2.0) for name in movable()}
        return {
            name: far_moved(constant, steps[name])
            for name, constant in movable().items()
            if constant.kind in CONTINUOUS or abs(steps[name]) > 1
        }

    def propose(self, brief: Brief) -> Proposal:
        last = brief.campaign.trials[-1].val_bpb
        self.study.tell(self.asked, 10.0 if last is None else last)

        def programs() -> Iterator[str | None]:
            while True:
                self.asked = self.study.ask()
                source = set_to(baseline()[0], self.values(self.asked))
                if source is None:
                    self.study.tell(self.asked, 10.0)
                yield source

        return first_new(brief, programs())


def first_new(brief: Brief, sources: Iterator[str | None]) -> Proposal:
    """The first source that the guard would accept, as a proposal."""
    tried = {trial.proposed.fingerprint for trial in brief.campaign.trials} | {fingerprint(brief.files)}
    for source in sources:
        if source is not None and fingerprint({"train.py": source}) not in tried:
            return Proposal("moved", {"train.py": source})
    raise LookupError("nothing new")


SEARCHERS: dict[str, Callable[[int], Researcher]] = {
    "builtin": lambda seed: BuiltinResearcher(kit=Kit(seed=seed)),
    "random": RandomMoves,
    "random programs": RandomPrograms,
    "TPE": KnobsOnly,
    "coordinates": Coordinates,
}

# ---------------------------------------------------------------- campaigns


@functools.cache
def surrogate() -> Surrogate:
    return Surrogate(rows())


def campaign(name: str, seed: int, trials: int) -> list[float]:
    """The incumbent's noise-free val_bpb after each trial, judged by the greedy rule with one noisy run each."""
    campaigns = importlib.import_module("campaigns")
    model, luck, researcher = surrogate(), random.Random(f"luck {seed}"), SEARCHERS[name](seed)
    brief = campaigns.begun({"train.py": baseline()[0]}, model.base * (1 + luck.gauss(0, model.sigma)))
    ran = {0: dict(brief.files)}
    archive = Archive(files=lambda trial: ran.get(trial, {}))
    found = []
    for number in range(1, trials + 1):
        brief = replace(brief, archive=archive, frozen={"prepare.py": baseline()[1]}, trial=number)
        proposal = researcher.propose(brief)
        ran[number] = {**brief.files, **proposal.files}
        value = model.value(described(ran[number]["train.py"]))
        brief = campaigns.after(brief, proposal, value and value * (1 + luck.gauss(0, model.sigma)))
        incumbent = brief.campaign.incumbent
        assert incumbent is not None
        found.append(model.value(described(ran[incumbent.number]["train.py"])) or model.base)
    return found


def compare(campaigns: int, trials: Sequence[int]) -> None:
    print("RECORDED SURROGATE of real, scaled-down runs of the preset `cpu`; no run was made for this table.")
    print(surrogate().fidelity())
    jobs = [(name, seed) for name in SEARCHERS for seed in range(campaigns)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        futures = {job: pool.submit(campaign, *job, max(trials)) for job in jobs}
        curves = {job: future.result() for job, future in futures.items()}
    base = surrogate().base
    for count in trials:
        print(f"\n{count} trials, {campaigns} campaigns: area under the incumbent's noise-free val_bpb, and its last")
        print(f"{'searcher':16} {'area':>8} {'gain':>8} {'builtin / it':>12} {'last':>8}   gain by campaign")
        areas = {job: statistics.fmean(curve[:count]) for job, curve in curves.items()}
        own = statistics.median(areas["builtin", seed] for seed in range(campaigns))
        for name in SEARCHERS:
            mine = [areas[name, seed] for seed in range(campaigns)]
            last = statistics.median(curves[name, seed][count - 1] for seed in range(campaigns))
            area, each = statistics.median(mine), " ".join(f"{1 - a / base:6.2%}" for a in mine)
            ratio = (1 - own / base) / (1 - area / base) if area < base else float("inf")
            print(f"{name:16} {area:8.4f} {1 - area / base:8.2%} {ratio:12.2f} {last:8.4f}   {each}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--campaigns", type=int, default=5)
    parser.add_argument("--trials", type=int, nargs="+", default=[30, 60])
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("record").add_argument("--minutes", type=float, default=40)
    arguments = parser.parse_args()
    if arguments.command == "record":
        record(arguments.minutes)
    else:
        compare(arguments.campaigns, arguments.trials)


if __name__ == "__main__":
    main()
