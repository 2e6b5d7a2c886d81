"""What each change of the recipe is worth on preset cpu, by the production judge's confirmation on fresh seeds.

python benchmarks/recipe.py [CHANGE ...] [--on CHANGE ...] [--tokens N | --seconds N]

Each change named (default: all) runs against the published recipe at the sizes of preset cpu, or against that with the
changes `--on`: 3 seeds of the base, one of the change, then as many fresh pairs (2, 4 or 8) as the judge wants.
Progress is counted in optimizer steps here, not in time, so that every run sees the same number of tokens and a busy
machine changes nothing; so a figure does not include what a change costs or saves in time. With `--seconds` it does, on
an otherwise idle machine. Runs are real runs of train.py. Each is recorded in recipe_record.jsonl and not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from autoresearch.judging.judge import PosteriorJudge
from autoresearch.lab import presets, settings
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import CampaignStarted, Confirmation, TrialProposed
from autoresearch.ledger.records import Decision, Purpose, Status
from autoresearch.loop.parts import compose
from campaigns_simulated import FIRST_SEED, run_ended, verdict

RECORD = Path(__file__).with_name("recipe_record.jsonl")
BASELINE_SEEDS = 3
CLOCK = "time.perf_counter() - start\n"  # what train.py's loop measures its progress by
CHANGES: dict[str, dict[str, object]] = {
    "float32 stream": {"FLOAT32_STREAM": True},
    "width 128, half batch": {"ASPECT_RATIO": 32, "TOTAL_BATCH_SIZE": "2**12"},
    "embedding lr 0.9": {"EMBEDDING_LR": 0.9},
    "head lr 0.006": {"UNEMBEDDING_LR": 0.006},
    "warmdown 0.7": {"WARMDOWN_RATIO": 0.7},
    "final lr 0.05": {"FINAL_LR_FRAC": 0.05},
    "initial scale 0.68": {"INIT_SCALE": 0.68},
    "x0 lambda 0.05": {"X0_LAMBDA": 0.05},
    "RoPE base 200,000": {"ROPE_BASE": 200_000.0},
    "weight decay of embeddings": {"VALUE_EMBEDDING_WEIGHT_DECAY": 0.003, "EMBEDDING_WEIGHT_DECAY": 0.001},
    "QK scale 1.2": {"QK_SCALE": 1.2},
    "all that the h100 preset has": {
        k: v
        for k, v in presets.presets()["h100"].improved.items()
        if "BATCH" not in k and k not in ("DEPTH", "SHORT_WINDOW_DIVISOR")
    },
}


class Bench:
    """Makes runs with one number of tokens, or one time, and remembers them."""

    def __init__(self, directory: Path, tokens: int, seconds: int | None) -> None:
        self.directory, self.tokens, self.seconds = directory, tokens, seconds
        lines = RECORD.read_text().splitlines() if RECORD.exists() else []
        self.known: dict[tuple[str, int], float] = {
            (each["recipe"], each["seed"]): each["val_bpb"] for each in map(json.loads, lines)
        }
        presets.create(directory / "lab", presets.presets()["cpu"].reference, seconds)
        subprocess.run([sys.executable, "prepare.py"], cwd=directory / "lab", check=True)

    def score(self, constants: Mapping[str, object], seed: int) -> float:
        """val_bpb of train.py with these constants, trained from a seed."""
        source = presets.fill((self.directory / "lab" / "train.py").read_text(), constants)
        assert source.count(CLOCK) == 1, "train.py now measures its progress in a different way"
        if self.seconds is None:
            steps = f"{self.tokens} // TOTAL_BATCH_SIZE"
            source = source.replace(CLOCK, f"(step + 1) * TIME_BUDGET / ({steps})\n")
        recipe = hashlib.sha256((source + (self.directory / "lab" / "prepare.py").read_text()).encode()).hexdigest()[
            :12
        ]
        if (recipe, seed) not in self.known:
            (self.directory / "lab" / "by_steps.py").write_text(source)
            done = subprocess.run(
                [sys.executable, "by_steps.py"],
                cwd=self.directory / "lab",
                env={**os.environ, "AUTORESEARCH_SEED": str(seed)},
                capture_output=True,
                text=True,
            )
            found = re.search(r"^val_bpb: +(\S+)$", done.stdout, re.MULTILINE)
            if not found:
                raise SystemExit(f"a run with {dict(constants)} failed:\n{done.stdout[-500:]}{done.stderr[-2000:]}")
            self.known[recipe, seed] = float(found[1])
            line = {"recipe": recipe, "seed": seed, "val_bpb": float(found[1])}
            with RECORD.open("a") as file:
                file.write(
                    json.dumps(
                        {
                            **line,
                            "tokens": None if self.seconds else self.tokens,
                            "seconds": self.seconds,
                            "constants": dict(constants),
                        }
                    )
                    + "\n"
                )
        return self.known[recipe, seed]

    def confirm(self, base: Mapping[str, object], change: Mapping[str, object]) -> Confirmation:
        """The judge's conclusion about a change of the base, from a campaign of these two trials."""
        judge, sets = PosteriorJudge(compose.terms(settings.Config())), ({**base}, {**base, **change})
        trials = list[Trial]()
        for number, seeds in enumerate((range(FIRST_SEED, FIRST_SEED + BASELINE_SEEDS), [FIRST_SEED])):
            runs = [run_ended(number, i, s, Purpose.TRIAL, self.score(sets[number], s)) for i, s in enumerate(seeds)]
            trial = Trial(TrialProposed(number, "t", "c0", f"c{number}", "", "any", "", 1), runs=tuple(runs))
            trials.append(dataclasses.replace(trial, verdict=verdict(trial, Decision(Status.KEEP, "to be tested"))))
        started = CampaignStarted("t", "c0", "any", judge.name, "local", "none", {}, 60.0)
        while True:
            step = judge.confirmation(Campaign(started, tuple(trials)), asked=True)
            assert step is not None
            if isinstance(step, Confirmation):
                return step
            trial, score = trials[step.trial], self.score(sets[step.trial], step.seed)
            run = run_ended(step.trial, len(trial.runs), step.seed, Purpose.CONFIRM, score)
            trials[step.trial] = dataclasses.replace(trial, runs=(*trial.runs, run))


def main() -> None:
    parser = argparse.ArgumentParser(description="what changes of the recipe are worth on preset cpu")
    parser.add_argument("change", nargs="*", help=f"of {', '.join(CHANGES)}", metavar="CHANGE")
    parser.add_argument("--on", nargs="*", default=[], help="changes that the base has already")
    parser.add_argument("--tokens", type=int, default=2**20, help="of each run")
    parser.add_argument("--seconds", type=int, help="of each run, by the clock; instead of tokens")
    chosen = parser.parse_args()
    if unknown := {*chosen.change, *chosen.on} - set(CHANGES):
        parser.error(f"there is no change {', '.join(sorted(unknown))}")
    length = f"{chosen.seconds} s" if chosen.seconds else f"{chosen.tokens:,} tokens"
    base = {name: value for change in chosen.on for name, value in CHANGES[change].items()}
    print(f"base: the published recipe on preset cpu{''.join(f', {name}' for name in chosen.on)}; {length} a run")
    print("| change | change of val_bpb, test at 5 % | pairs | outcome |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), chosen.tokens, chosen.seconds)
        for name in chosen.change or [name for name in CHANGES if name not in chosen.on]:
            found = bench.confirm(base, CHANGES[name])
            (contrast, *_) = found.contrasts
            effect = f"{-contrast.gain:+.4f} ± {contrast.margin:.4f}"
            print(f"| {name} | {effect} | {contrast.pairs} | {found.outcome.value} |", flush=True)


if __name__ == "__main__":
    main()
