"""What a trial takes in addition to its training: wall time from one verdict to the next, relative to the budget.

python benchmarks/dead_time.py [--preset NAME] [--budget SECONDS] [--trials N]

A real campaign of the built-in researcher with the judge `greedy`, which asks for no further seeds, on the standard
library's source. The baseline, which pays for everything done once, is shown separately. So are keeps, whose holdout is
graded too. For each kind the table shows where the time went: before the first training batch, from the request for
grading to the end of the run, and between two runs (verdict, proposal, commit).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from autoresearch.executors import hardware
from autoresearch.lab import presets

GOAL = 1.08  # times the budget


@dataclasses.dataclass(frozen=True)
class Took:
    """Seconds of one trial: before its first batch, training, from there to the run's end, and outside the run."""

    trial: int
    status: str
    startup: float
    training: float
    grading: float
    between: float

    @property
    def wall(self) -> float:
        return self.startup + self.training + self.grading + self.between


def taken(ledger: Path) -> list[Took]:
    """Every trial of a ledger whose one run was graded, in order. Nothing comes before the baseline's run."""
    found, run, since = list[Took](), dict[str, Any](), None
    for event in map(json.loads, ledger.read_text().splitlines()):
        if event["type"] == "run_ended":
            run = event
        elif event["type"] == "verdict" and run["startup_seconds"] and run["training_seconds"]:
            startup, training, wall = run["startup_seconds"], run["training_seconds"], run["wall_seconds"]
            between = event["time"] - since - wall if since else 0.0
            found.append(Took(event["trial"], event["status"], startup, training, wall - startup - training, between))
            since = event["time"]
    return found


def line(name: str, trials: Sequence[Took], budget: int) -> str:
    """A row of the table: medians of its trials, and the range of the ratio."""
    ratios = [each.wall / budget for each in trials]
    parts = (statistics.median(getattr(each, part) for each in trials) for part in ("startup", "grading", "between"))
    seconds = " | ".join(f"{part:.2f} s" for part in parts)
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    return f"| {name} | {len(trials)} | {statistics.median(ratios):.3f} ({spread}) | {seconds} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="wall time of a trial relative to its budget")
    parser.add_argument("--preset", choices=presets.presets(), default="cpu")
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument("--trials", type=int, default=6)
    chosen = parser.parse_args()
    preset, device = presets.presets()[chosen.preset], hardware.device()
    program = [sys.executable, "-m", "autoresearch"]
    with tempfile.TemporaryDirectory() as directory:
        lab = Path(directory, "lab")
        presets.create(lab, dataclasses.replace(preset, prepare={**preset.prepare, "SOURCE": "stdlib"}), chosen.budget)
        settings = (lab / "program.md").read_text()
        (lab / "program.md").write_text(settings.replace("judge: posterior", "judge: greedy"))
        subprocess.run([*program, "prepare", "--lab", str(lab)], check=True)
        subprocess.run([*program, "run", "--lab", str(lab), "--trials", str(chosen.trials)], check=True)
        baseline, *trials = taken(lab / ".autoresearch" / "ledger.jsonl")
    print(f"{device}, {platform.machine()}, PyTorch {torch.__version__}, preset {chosen.preset}, {chosen.budget} s")
    print(
        "| trial | number | wall over budget | start-up | grading and end | between runs |\n|---|---|---|---|---|---|"
    )
    print(line("baseline", [baseline], chosen.budget))
    for status in ("discard", "keep"):
        if some := [each for each in trials if each.status == status]:
            print(line(status, some, chosen.budget))
    ratio = statistics.median(each.wall for each in trials) / chosen.budget
    print(
        f"goal at most {GOAL} warm: {'met' if ratio <= GOAL else 'missed'} with {ratio:.3f}, the median of all trials"
    )


if __name__ == "__main__":
    main()
