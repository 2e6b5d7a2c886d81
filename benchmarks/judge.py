"""The judge against simpler rules at equal runs, in simulated campaigns whose proposals have known true effects.

Every rule decides through the same interface as in the loop, over records like a ledger's. The luck of runs is drawn
from measured ones. It runs no training.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import multiprocessing
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoresearch.judging.interface import Judge
from autoresearch.judging.judge import GreedyJudge, PosteriorJudge
from autoresearch.lab.settings import Config
from autoresearch.loop.parts.compose import terms
from campaigns_simulated import Played, Search, World
from rules import OracleJudge, StrictJudge, ThresholdJudge

HERE = Path(__file__).parent
RECORD = HERE / "search_record.jsonl"
PUBLISHED = HERE.parents[1] / "shared" / "data" / "published-results-h100.tsv"
PUBLISHED_SIGMA = 0.0005  # of one run, from the near-duplicates of that log
RUNS = 200
UNIT = 0.001  # bits per byte: the median size of a nonzero effect
LEVELS = (0.25, 0.5, 1.0, 2.0)  # the noise of a run, in median effects
DRAWN = 20_000

# ---------------------------------------------------------------- what is simulated

Draw = Callable[[random.Random], float]


def mixture(gains: float, idle: float, size: Draw, harm: float = 1.0) -> Draw:
    """Shares of gains and harms of these sizes. Harms are `harm` times as large; the other proposals have no effect."""

    def draw(rng: random.Random) -> float:
        kind, value = rng.random(), size(rng)
        return value if kind < gains else 0.0 if kind < gains + idle else -harm * value

    return draw


MIXTURES: Mapping[str, Draw] = {
    "exponential": mixture(0.15, 0.35, lambda rng: rng.expovariate(1.0)),
    "large harms": mixture(0.15, 0.35, lambda rng: rng.expovariate(1.0), harm=3.0),
    "log-normal": mixture(0.15, 0.35, lambda rng: rng.lognormvariate(0.0, 1.0)),
    "half-normal": mixture(0.15, 0.35, lambda rng: abs(rng.gauss(0.0, 1.0))),
    "rare gains": mixture(0.05, 0.45, lambda rng: rng.expovariate(1.0)),
}


def published(path: Path) -> Draw:
    """The gains of a published log's rows over the best before each, minus their luck, drawn again.

    A difference of two runs has twice the variance of one, which is subtracted from its square. Smaller differences
    count as no effect.
    """
    with path.open(encoding="utf-8") as file:
        rows = [(float(row["val_bpb"]), row["status"]) for row in csv.DictReader(file, delimiter="\t")]
    best, effects = rows[0][0], list[float]()
    for score, status in rows[1:]:
        if status == "crash":
            continue
        seen = best - score
        effects.append(math.copysign(math.sqrt(max(seen**2 - 2 * PUBLISHED_SIGMA**2, 0.0)), seen))
        best = score if status == "keep" else best
    return lambda rng: rng.choice(effects)


def luck() -> tuple[float, ...]:
    """The residuals of programs that were run on several seeds, standardized: 16 runs of 3 programs."""
    runs = defaultdict(list)
    for line in RECORD.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["val_bpb"] is not None:
            runs[row["key"].rpartition(" ")[0]].append(row["val_bpb"])
    scores = [group for group in runs.values() if len(group) > 1]
    residuals = [
        (score - statistics.fmean(group)) / math.sqrt(1 - 1 / len(group)) for group in scores for score in group
    ]
    middle, spread = statistics.fmean(residuals), statistics.pstdev(residuals)
    return tuple((each - middle) / spread for each in residuals)


@dataclass(frozen=True)
class Setting:
    """A mixture at a noise level, and how many campaigns of it are played."""

    name: str
    draw: Draw
    level: float

    def effects(self, number: int, count: int) -> list[float]:
        """True gains in bits per byte. Those that are not zero have a median size of one unit."""
        rng = random.Random(f"{self.name} {number}")
        return [UNIT / self._median() * self.draw(rng) for _ in range(count)]

    def _median(self) -> float:
        if self.name not in MEDIANS:
            rng = random.Random(self.name)
            sizes = [abs(self.draw(rng)) for _ in range(DRAWN)]
            MEDIANS[self.name] = statistics.median(size for size in sizes if size)
        return MEDIANS[self.name]


MEDIANS: dict[str, float] = {}


def rules(setting: Setting, policies: Sequence[Config]) -> dict[str, Judge]:
    """The rules compared, by name. All except greedy and the production judge know the true noise."""
    sigma = setting.level * UNIT
    posterior = {f"posterior {policy.advance:g}": PosteriorJudge(terms(policy)) for policy in policies}
    return {
        "greedy": GreedyJudge(),
        "2 sigma": ThresholdJudge(sigma),
        "strict": StrictJudge(sigma),
        **posterior,
        "oracle": OracleJudge(setting.effects(-1, 2000), sigma),
    }


def play(task: tuple[str, float, int, Sequence[Config], Path]) -> tuple[str, float, dict[str, Played]]:
    """One campaign of each rule in the same world."""
    name, level, number, policies, path = task
    setting = Setting(name, MIXTURES[name] if name in MIXTURES else published(path), level)
    world = World(number, tuple(setting.effects(number, RUNS)), level * UNIT, luck())
    judges = rules(setting, policies)
    return name, level, {rule: Search(world, judge, RUNS).play() for rule, judge in judges.items()}


# ---------------------------------------------------------------- what came of it


def table(name: str, level: float, played: Sequence[Mapping[str, Played]]) -> Iterator[str]:
    """A line per rule, for README.md. Gains are in median effects."""
    greedy = [each["greedy"] for each in played]
    for rule in played[0]:
        ours = [each[rule] for each in played]
        gains = [each.gain / UNIT for each in ours]
        mean, usual = statistics.fmean(gains), statistics.fmean(each.gain / UNIT for each in greedy)
        cells = (
            name,
            f"{level:g}",
            rule,
            f"{mean:.1f} ± {statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0:.1f}",
            f"{statistics.median(gains):.1f}",
            f"{mean / usual:.2f}" if usual > 0 else "-",
            f"{100 * idle_kept(ours):.1f} %",
            f"{idle_kept(ours) / idle_kept(greedy):.2f}" if idle_kept(greedy) else "-",
            f"{statistics.fmean(each.reruns for each in ours):.1f}",
            f"{statistics.fmean(each.confirming for each in ours):.1f}",
            f"{sum(each.claims for each in ours)}",
            f"{sum(each.false_claims for each in ours)}",
        )
        yield f"| {' | '.join(cells)} |"


HEAD = (
    "| mixture | noise | rule | true gain, mean | median | to greedy | no-effect kept | to greedy | reruns "
    "| confirming runs | confirmed | of them false |\n" + "|---" * 12 + "|"
)


def idle_kept(played: Sequence[Played]) -> float:
    """The share of proposals without an effect that were kept."""
    return sum(each.idle_kept for each in played) / max(sum(each.idle for each in played), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--campaigns", type=int, default=200, help="campaigns of each mixture and level")
    parser.add_argument("--levels", type=float, nargs="+", default=LEVELS, help="noise of a run, in median effects")
    parser.add_argument("--mixtures", nargs="+", default=[*MIXTURES, "published"], choices=[*MIXTURES, "published"])
    parser.add_argument("--advance", type=float, nargs="+", default=[Config().advance], help="thresholds of the judge")
    parser.add_argument("--confirm-every", type=int, default=Config().confirm_every, help="keeps to a confirmation")
    parser.add_argument("--published", type=Path, default=PUBLISHED, help="a published results.tsv to fit one to")
    parser.add_argument("--processes", type=int, default=2)
    chosen = parser.parse_args()
    names = list(chosen.mixtures)
    if "published" in names and not chosen.published.exists():
        print(f"no mixture is fitted to a published log: there is no {chosen.published}", file=sys.stderr)
        names.remove("published")
    report(names, chosen)


def report(names: Sequence[str], chosen: argparse.Namespace) -> None:
    """Play all campaigns, and print each mixture's lines as soon as they are ready."""
    policies = tuple(Config(advance=share, confirm_every=chosen.confirm_every) for share in chosen.advance)
    tasks = [
        (name, level, number, policies, chosen.published)
        for name in names
        for level in chosen.levels
        for number in range(chosen.campaigns)
    ]
    print(HEAD)
    waiting = defaultdict(list)
    with multiprocessing.Pool(chosen.processes) as pool:
        for done, (name, level, played) in enumerate(pool.imap(play, tasks, chunksize=4), start=1):
            waiting[name, level].append(played)
            if len(waiting[name, level]) == chosen.campaigns:
                print(*table(name, level, waiting[name, level]), sep="\n", flush=True)
                print(f"{done} of {len(tasks)} campaigns", file=sys.stderr)


if __name__ == "__main__":
    main()
