"""Records real, scaled-down runs for the benchmark of searchers: one thread, timed by its own processor time."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from autoresearch.researchers.builtin.deck import DECK
from autoresearch.researchers.source import constants
from autoresearch.researchers.source.constants import CONTINUOUS, Constant, Value
from surrogate import RECORD, Program, baseline, described, edited, movable, rows

SCRATCH = Path(tempfile.gettempdir()) / "autoresearch-search"
BASELINE_SEEDS = 8
RUN_SECONDS = 90  # a run that takes longer is a crash

# ---------------------------------------------------------------- what to record


def axis(constant: Constant, steps: Sequence[float]) -> list[Value]:
    """The constant's values one and two moves away, by the steps given."""
    values: list[Value] = []
    for step in steps:
        value: Value | None = constant.value
        for _ in range(max(round(abs(step)), 1)):
            here = replace(constant, value=value) if value is not None else constant
            value = constants.moved(here, max(-1.0, min(step, 1.0)), 2)
        if value is not None and value != constant.value:
            values.append(value)
    return list(dict.fromkeys(values))


def singles() -> Iterator[str]:
    """Each patch alone, then each constant one move away, then two."""
    for patch in DECK:
        yield edited([patch], {})
    for steps in ((-1.0, 1.0), (-2.0, 2.0)):
        for name, constant in movable().items():
            for value in axis(constant, steps):
                yield edited([], {name: value})
    for divisor in (4, 8):
        yield edited([], {"WINDOW_PATTERN": "SSSL", "SHORT_WINDOW_DIVISOR": divisor})


def combination(number: int, better: Mapping[str, float]) -> str:
    """A random program of two to six changes. `better` has the gains of single ones, which are drawn more often."""
    draw = random.Random(f"combination {number}")
    moves = [("", patch.name) for patch in DECK]
    for name, constant in movable().items():
        halves = (-0.5, 0.5) if constant.kind in CONTINUOUS else ()
        moves += [(name, json.dumps(value)) for value in axis(constant, (-2.0, -1.0, 1.0, 2.0, *halves))]
    weights = [3.0 if better.get(f"{name} {what}", 0.0) > 0 else 1.0 for name, what in moves]
    chosen = draw.choices(moves, weights, k=draw.randint(2, 6))
    patches = [patch for patch in DECK if ("", patch.name) in chosen]
    return edited(patches, {name: json.loads(what) for name, what in chosen if name})


# ---------------------------------------------------------------- recording


def record(minutes: float) -> None:
    """Run what is not recorded yet until the time is over, one line per run."""
    end = time.monotonic() + 60 * minutes
    make_lab()
    done = {str(row["key"]) for row in rows()}
    for seed in range(1, BASELINE_SEEDS + 1):
        if f"{Program({}, ()).key} {seed}" not in done:
            append(baseline()[0], seed, "baseline")
    for number, source in enumerate(singles()):
        program = described(source)
        if time.monotonic() > end:
            return
        if program != Program({}, ()) and not any(key.startswith(program.key + " ") for key in done):
            done.add(f"{program.key} {append(source, 100 + number, 'single')}")
    number = sum(row["what"] == "combination" for row in rows())
    while time.monotonic() < end:
        append(combination(number, gains()), 1000 + number, "combination")
        number += 1


def gains() -> dict[str, float]:
    """The gain of each single change, by its constant and value, or by its patch."""
    base = [float(str(row["val_bpb"])) for row in rows() if row["what"] == "baseline"]
    found = {}
    for row in rows():
        if row["what"] == "single" and row["val_bpb"] is not None:
            knobs, patches = dict(row["knobs"]), list(row["patches"])
            for what in [f" {p}" for p in patches] or [f"{name} {json.dumps(v)}" for name, v in knobs.items()]:
                found[what] = sum(base) / len(base) - float(str(row["val_bpb"]))
    return found


def append(source: str, seed: int, what: str) -> int:
    program = described(source)
    val_bpb, steps, problem = run(source, seed)
    row = {
        "what": what,
        "key": f"{program.key} {seed}",
        "knobs": program.knobs,
        "patches": program.patches,
        "seed": seed,
        "val_bpb": val_bpb,
        "steps": steps,
        "problem": problem,
    }
    with RECORD.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return seed


def make_lab() -> None:
    """A scratch lab outside the repository, its data prepared, and torch loaded on one thread for the forks of the
    runs."""
    SCRATCH.mkdir(exist_ok=True)
    sys.dont_write_bytecode = True  # two programs written within a second must not share a cached one
    os.environ.update(AUTORESEARCH_CACHE=str(SCRATCH / "cache"), OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    (SCRATCH / "prepare.py").write_text(baseline()[1], encoding="utf-8")
    sys.path.insert(0, str(SCRATCH))
    importlib.import_module("prepare").main()
    importlib.import_module("torch").set_num_threads(1)


def run(source: str, seed: int) -> tuple[float | None, int | None, str]:
    """val_bpb, optimizer steps, and what went wrong, of one run in a fork of this process."""
    log = SCRATCH / "run.log"
    (SCRATCH / "train.py").write_text(source.replace("time.perf_counter()", "time.process_time()"), encoding="utf-8")
    child = os.fork()
    if child == 0:
        run_in_child(log, seed)
    end = time.monotonic() + RUN_SECONDS
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        time.sleep(0.05)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
    text = log.read_text(encoding="utf-8", errors="replace")
    printed = dict(line.split(":", 1) for line in text.rpartition("\n---\n")[2].splitlines() if ":" in line)
    try:
        return float(printed["val_bpb"]), int(printed["num_steps"]), ""
    except (KeyError, ValueError):
        return None, None, text.strip().splitlines()[-1][:120] if text.strip() else "no output"


def run_in_child(log: Path, seed: int) -> None:
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ["AUTORESEARCH_SEED"] = str(seed)
        for name in ("prepare", "train"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        with contextlib.suppress(SystemExit):
            importlib.import_module("train").main()
        code = 0
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
    finally:
        sys.stdout.flush()
        os._exit(code)
