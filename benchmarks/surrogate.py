"""A train.py by its differences from the benchmark's baseline, and a model of its val_bpb fitted to recorded runs."""

from __future__ import annotations

import ast
import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoresearch.lab.presets import SHIPPED, fill, presets
from autoresearch.researchers.builtin.deck import DECK
from autoresearch.researchers.builtin.patch import Patch
from autoresearch.researchers.source import constants
from autoresearch.researchers.source.constants import Constant, Value
from autoresearch.researchers.source.device_batch import fit_batches

RECORD = Path(__file__).with_name("search_record.jsonl")
# What the preset `cpu` is scaled down to: a run of 5 s of one thread, with about 65 optimizer steps.
SMALLER_PREPARE = {"MAX_SEQ_LEN": 128, "VOCAB_SIZE": 512, "EVAL_TOKENS": "2**14", "TIME_BUDGET": 4}
SMALLER_TRAIN = {"HEAD_DIM": 32, "ASPECT_RATIO": 16, "TOTAL_BATCH_SIZE": "2**11"}
CONTEXT = 128
EFFECT = 0.03  # prior standard deviation of one recorded change's effect on log val_bpb
FOLDS = 5

Array = npt.NDArray[np.float64]

# ---------------------------------------------------------------- programs


@dataclass(frozen=True)
class Program:
    """A train.py by its differences from the baseline: constants, and the structural patches in it."""

    knobs: Mapping[str, Value]
    patches: tuple[str, ...]

    @property
    def key(self) -> str:
        return json.dumps([sorted(self.knobs.items()), self.patches])


@functools.cache
def baseline() -> tuple[str, str]:
    """The shipped train.py and prepare.py with the scaled-down preset's constants."""
    preset = presets()["cpu"]
    train = fill((SHIPPED / "train.py").read_text(encoding="utf-8"), {**preset.train, **SMALLER_TRAIN})
    prepare = fill((SHIPPED / "prepare.py").read_text(encoding="utf-8"), {**preset.prepare, **SMALLER_PREPARE})
    return train, prepare


def edited(patches: Sequence[Patch], knobs: Mapping[str, Value]) -> str:
    """The baseline with the patches that apply, then with the constants set."""
    base = source = baseline()[0]
    for patch in patches:
        source = patch.apply(source) or source
    source = constants.replace(source, {name: value for name, value in knobs.items() if name in constants.find(source)})
    return fit_batches(base, source, CONTEXT) or base


@functools.cache
def movable() -> dict[str, Constant]:
    return {name: c for name, c in constants.find(baseline()[0]).items() if c.kind}


def expressions(source: str) -> set[str]:
    """Its expressions as text, without bare numbers, which a constant may contain too."""
    texts = {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.expr)}
    return {text for text in texts if re.search("[A-Za-z_]{2}", text)}


@functools.cache
def marks() -> dict[str, tuple[str, bool]]:
    """For each patch that is more than constants, the shortest expression that only it adds, or else removes."""
    base = baseline()[0]
    sources = {patch.name: patch.apply(base) or base for patch in DECK}
    own = {name: expressions(source) for name, source in sources.items() if not is_setting(source)}
    found = {}
    for name, inside in own.items():
        others = expressions(base).union(*(theirs for other, theirs in own.items() if other != name))
        always = expressions(base).intersection(*(theirs for other, theirs in own.items() if other != name))
        brought, taken = inside - others, always - inside
        found[name] = min(brought or taken, key=lambda text: (len(text), text)), bool(brought)
    return found


def is_setting(source: str) -> bool:
    """Whether the source is the baseline except for its constants."""
    base = baseline()[0]
    known = constants.find(base)
    shared = {name: constant.value for name, constant in constants.find(source).items() if name in known}
    return ast.dump(ast.parse(constants.replace(base, shared))) == ast.dump(ast.parse(source))


@functools.lru_cache(maxsize=512)
def described(source: str) -> Program:
    changed = constants.changes(baseline()[0], source)
    inside = expressions(source)
    return Program(
        {name: new.value for name, (_, new) in changed.items()},
        tuple(sorted(name for name, (mark, brought) in marks().items() if (mark in inside) == brought)),
    )


# ---------------------------------------------------------------- the model


def rows() -> list[dict[str, Any]]:
    if not RECORD.exists():
        return []
    return [json.loads(line) for line in RECORD.read_text(encoding="utf-8").splitlines()]


@functools.cache
def standard() -> dict[str, Value]:
    return {name: constant.value for name, constant in constants.find(baseline()[0]).items()}


def axes(program: Program) -> dict[str, Value]:
    """The program's position: its constants, with what acts (width, passes) instead of what it is computed from."""
    values = {**standard(), **program.knobs}
    depth, head, aspect = (int(values[name]) for name in ("DEPTH", "HEAD_DIM", "ASPECT_RATIO"))
    values["width"] = -(-depth * aspect // head) * head
    values["passes"] = int(values["TOTAL_BATCH_SIZE"]) // (int(values["DEVICE_BATCH_SIZE"]) * CONTEXT)
    if "S" not in str(values["WINDOW_PATTERN"]):
        values["SHORT_WINDOW_DIVISOR"] = standard()["SHORT_WINDOW_DIVISOR"]
    return {name: value for name, value in values.items() if name not in ("ASPECT_RATIO", "DEVICE_BATCH_SIZE")}


def position(name: str, value: Value) -> float:
    """A value on its axis: logarithmic, 0 far below the usual range; a pattern by its share of short windows."""
    if isinstance(value, str):
        return value.count("S") / len(value)
    number = float(value)
    if re.search("BETA|MOMENTUM", name) and number < 1:
        return -math.log2(1 - number)
    return math.log2(abs(number)) if abs(number) > 1e-4 else -13.0


class Surrogate:
    """log(val_bpb / baseline) as a sum of effects, linear between the recorded values of each constant, then scaled."""

    def __init__(self, recorded: Sequence[Mapping[str, Any]]) -> None:
        scored = [row for row in recorded if row["val_bpb"] is not None]
        base = np.array([row["val_bpb"] for row in scored if row["what"] == "baseline"])
        self.rows, self.crashes = len(recorded), [row for row in recorded if row["val_bpb"] is None]
        self.base = float(np.exp(np.log(base).mean()))
        self.sigma = float(np.log(base).std(ddof=1))
        programs = [Program(row["knobs"], tuple(row["patches"])) for row in scored]
        self.nodes = nodes(programs)
        self.columns = {
            name: place for place, name in enumerate(sorted({c for p in programs for c in self.weights(p)}))
        }
        design = np.array([self.features(program) for program in programs])
        levels = np.log(np.array([row["val_bpb"] for row in scored]) / self.base)
        combined = np.array([row["what"] == "combination" for row in scored])
        self.held_out = self.cross_validated(design, levels, combined)
        predicted, measured = self.held_out
        self.scale = float(predicted @ measured / (predicted @ predicted)) if len(predicted) > 20 else 1.0
        self.effects = self.solved(design, levels)

    def cross_validated(self, design: Array, levels: Array, combined: Array) -> tuple[Array, Array]:
        """(predicted, measured) of the combinations, each predicted without its own fold."""
        places = np.flatnonzero(combined)
        predicted = np.zeros(len(places))
        for fold in range(FOLDS):
            test = np.arange(len(places)) % FOLDS == fold
            known = np.setdiff1d(np.arange(len(levels)), places[test])
            predicted[test] = design[places[test]] @ self.solved(design[known], levels[known])
        return predicted, levels[places]

    def solved(self, design: Array, levels: Array) -> Array:
        ridge = (self.sigma / EFFECT) ** 2 * np.eye(design.shape[1])
        return np.asarray(np.linalg.solve(design.T @ design + ridge, design.T @ levels), dtype=np.float64)

    def weights(self, program: Program) -> dict[str, float]:
        """How much of each recorded change is in the program: all of a patch, constants between two recorded values."""
        found = dict.fromkeys(program.patches, 1.0)
        start = axes(Program({}, ()))
        for name, value in axes(program).items():
            if name not in self.nodes or value == start.get(name):
                continue
            known, here = self.nodes[name], position(name, value)
            above = int(np.searchsorted(known, here))
            low, high = known[max(above - 1, 0)], known[min(above, len(known) - 1)]
            share = (here - low) / (high - low) if high > low else 1.0
            for node, weight in ((low, 1 - share), (high, share)):
                if weight > 0 and node != position(name, start[name]):
                    found[f"{name} {node:.4g}"] = found.get(f"{name} {node:.4g}", 0.0) + weight
        return found

    def features(self, program: Program) -> Array:
        result = np.zeros(len(self.columns))
        for name, weight in self.weights(program).items():
            if name in self.columns:
                result[self.columns[name]] = weight
        return result

    def value(self, program: Program) -> float | None:
        """The noise-free val_bpb; None if such a change alone was recorded as a crash."""
        if any(self.includes(program, row) for row in self.crashes if row["what"] == "single"):
            return None
        return self.base * math.exp(self.scale * float(self.features(program) @ self.effects))

    def includes(self, program: Program, row: Mapping[str, Any]) -> bool:
        """Whether the program goes as far as the row's on each of its axes, and has its patches."""
        start, here, there = axes(Program({}, ())), axes(program), axes(Program(row["knobs"], tuple(row["patches"])))
        moved = [name for name in there if there[name] != start[name]]
        far = [
            (position(name, here[name]) - position(name, there[name]))
            * (position(name, there[name]) - position(name, start[name]))
            >= 0
            for name in moved
        ]
        return all(far) and set(row["patches"]) <= set(program.patches)

    def fidelity(self) -> str:
        predicted, measured = self.held_out
        if len(measured) < 2:
            return f"{self.rows} recorded runs, none of them a combination"
        left = measured - self.scale * predicted
        explained = 1 - float(left @ left) / float(((measured - measured.mean()) ** 2).sum())
        ranks = float(np.corrcoef(predicted.argsort().argsort(), measured.argsort().argsort())[0, 1])
        best = 1 - self.sigma**2 / float(measured.var())
        return (
            f"{self.rows} recorded runs, baseline val_bpb {self.base:.4f}, noise of one run {self.sigma:.2%}; "
            f"{len(measured)} combinations, each predicted without its fold: R^2 {explained:.2f} (noise allows "
            f"{best:.2f}), rank correlation {ranks:.2f}, scale {self.scale:.2f}"
        )


def nodes(programs: Sequence[Program]) -> dict[str, list[float]]:
    """The recorded positions on each axis that any program moves on, including the baseline's, in order."""
    start = axes(Program({}, ()))
    found: dict[str, set[float]] = {}
    for program in programs:
        for name, value in axes(program).items():
            if value != start.get(name):
                found.setdefault(name, {position(name, start[name])}).add(position(name, value))
    return {name: sorted(positions) for name, positions in found.items()}
