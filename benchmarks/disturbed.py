"""What a neighbor does to decisions, with and without the guard against disturbed runs, in real campaigns of no-ops.

    python benchmarks/disturbed.py [--trials 20] [--budget 10] [--only idle guarded unguarded]

Every proposal changes nothing, so each keep is false, and so is each trial that is condemned: discarded with a
probability of at most 5 % that it is better, or ended as hopeless. The neighbor burns one core half of the time, in
spells of random length, about two runs each. `idle` has no neighbor and the guard; `guarded` and `unguarded` have the
neighbor. Keep the machine idle otherwise. Prints JSON lines as it goes, and a table at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from autoresearch.executors import hardware
from autoresearch.executors.sandbox.load import SAMPLE_SECONDS, Meter
from autoresearch.judging.audit import binomial_interval
from autoresearch.ledger.ledger import Ledger
from autoresearch.ledger.records import Status

CONDEMNED = 0.05  # probability of being better
SPELL_RUNS = 2.0  # mean length of a spell with or without the neighbor, in runs
COUNTED = ("kept", "condemned")
CONDITIONS = {"idle": (False, 0.03), "guarded": (True, 0.03), "unguarded": (True, 1.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--budget", type=int, default=10, help="seconds of training a run")
    parser.add_argument("--only", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    chosen = parser.parse_args()
    print(f"{hardware.device()}, sampling takes {100 * sampling_cost():.2f} % of a core", flush=True)
    rows: list[dict[str, Any]] = []
    for name in chosen.only:
        neighbor, limit = CONDITIONS[name]
        with contextlib.ExitStack() as stack:
            if neighbor:
                stack.enter_context(neighbor_at_random(SPELL_RUNS * 1.3 * chosen.budget))
            rows.append({"condition": name, **campaign(chosen.trials, chosen.budget, limit)})
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


@contextlib.contextmanager
def neighbor_at_random(spell_seconds: float) -> Iterator[None]:
    """Burn one core in spells; each spell and each pause has an exponential length with this mean."""
    over, draw = threading.Event(), random.Random(1)

    def live() -> None:
        while not over.is_set():
            with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as child:
                over.wait(draw.expovariate(1 / spell_seconds))
                child.kill()
            over.wait(draw.expovariate(1 / spell_seconds))

    thread = threading.Thread(target=live)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def campaign(trials: int, budget: int, limit: float) -> dict[str, Any]:
    """A campaign of no-ops in a lab of its own, and what came of it."""
    with tempfile.TemporaryDirectory() as directory:
        lab, program = Path(directory, "lab"), [sys.executable, "-m", "autoresearch"]
        make = [*program, "new", str(lab), "--preset", "cpu", "--budget", str(budget)]
        subprocess.run(make, stdout=subprocess.DEVNULL, check=True)
        text = (lab / "program.md").read_text()
        assert "max_disturbance: 0.03 " in text
        (lab / "program.md").write_text(text.replace("max_disturbance: 0.03 ", f"max_disturbance: {limit} "))
        start = time.monotonic()
        run = [*program, "run", "--lab", str(lab), "--researcher", "noop", "--trials", str(trials)]
        subprocess.run(run, stdout=subprocess.DEVNULL, check=True)
        found = Ledger(lab / ".autoresearch/ledger.jsonl").campaigns()[0]
        made = found.finished[1:]
        verdicts = [trial.verdict for trial in made if trial.verdict]
        condemned = [
            verdict
            for trial, verdict in zip(made, verdicts, strict=True)
            if verdict.status is not Status.KEEP
            and (not trial.scores or (verdict.estimate is not None and verdict.estimate.probability <= CONDEMNED))
        ]
        steps = [run.steps for trial in found.trials for run in trial.runs if run.steps]
        return {
            "trials": len(made),
            "kept": sum(verdict.status is Status.KEEP for verdict in verdicts),
            "condemned": len(condemned),
            "runs": sum(len(trial.runs) for trial in found.trials),
            "disturbed": len(found.disturbed),
            "steps": [min(steps), statistics.median(steps), max(steps)],
            "minutes": round((time.monotonic() - start) / 60, 1),
        }


def sampling_cost() -> float:
    """The share of one core that it takes to sample a process with a dozen threads."""
    script = "import threading, time\nfor _ in range(12): threading.Thread(target=time.sleep, args=(600,), daemon=True)"
    with subprocess.Popen([sys.executable, "-c", f"{script}.start()\ntime.sleep(600)"]) as child:
        time.sleep(1)
        meter, process, start = Meter(), psutil.Process(child.pid), time.process_time()
        for number in range(100):
            meter.sample(float(number), [process])
        seconds = (time.process_time() - start) / 100
        child.kill()
    return seconds / SAMPLE_SECONDS


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["", "| condition | false keeps | condemned | runs, made again | steps a run | minutes |", "|---" * 6 + "|"]
    for row in rows:
        counts = [f"{row[name]} of {row['trials']} ({interval(row[name], row['trials'])})" for name in COUNTED]
        low, middle, high = row["steps"]
        runs, steps = f"{row['runs']}, {row['disturbed']}", f"{middle} ({low} to {high})"
        lines.append(f"| {row['condition']} | {' | '.join(counts)} | {runs} | {steps} | {row['minutes']} |")
    return "\n".join(lines)


def interval(count: int, total: int) -> str:
    low, high = binomial_interval(count, total)
    return f"95 %: {100 * low:.0f} to {100 * high:.0f} %"


if __name__ == "__main__":
    main()
