"""Legitimate rewrites of the shipped train.py, at a tiny size, in the whole loop with a real sandbox: all are scored.

Each is a train.py in `honest/`, written on the shipped one, which it imports as `base`.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
from arena import HERE, WORKING, Arena, Held, Variant

import lab_files
from autoresearch.ledger.records import Status
from grading_lab import VOCABULARY

BUDGET = 0.5
TINY = {"DEPTH": 2, "ASPECT_RATIO": 16, "HEAD_DIM": 16, "VALUE_GATE_CHANNELS": 8}
TINY |= {"TOTAL_BATCH_SIZE": 256, "DEVICE_BATCH_SIZE": 8}
TRAIN = '"""The shipped recipe."""\n\nimport base\n\nbuild = base.build\nif __name__ == "__main__":\n    base.main()\n'
COMPILED = "torch_compile_on"  # a compiler takes most of a minute
REWRITES = {path.stem: path.read_text() for path in sorted((HERE / "honest").glob("*.py"))}
QUICK = [name for name in REWRITES if name != COMPILED]
pytestmark = pytest.mark.skipif(not WORKING, reason="no sandbox works here")


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Arena:
    return Arena.make(tmp_path_factory.mktemp("honest").resolve(), WORKING[0], BUDGET)


def hold(arena: Arena, name: str, rewrites: list[str]) -> Held:
    shipped = lab_files.write_lab(arena.root / f"{name}-base", train=TINY) / "train.py"
    files = {"base.py": shipped.read_text(), "train.py": TRAIN}
    runs = [Variant(each, REWRITES[each], "", "") for each in rewrites]
    return arena.hold(name, files, runs, OMP_NUM_THREADS="1")


@pytest.fixture(scope="module")
def held(arena: Arena) -> list[Held]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda part: hold(arena, f"part{part}", QUICK[part::2]), (0, 1)))


def check(held: Held, name: str) -> None:
    """It was believed, whether or not it was better, and it had learnt something."""
    trial = held.trial(name)
    assert trial.verdict is not None
    assert trial.verdict.status in (Status.KEEP, Status.DISCARD), trial.verdict.reason
    score = trial.runs[0].score
    assert score is not None
    assert score.nats < 0.95 * score.tokens * math.log(VOCABULARY)


@pytest.mark.parametrize("name", QUICK)
def test_a_legitimate_rewrite_is_believed(held: list[Held], name: str) -> None:
    check(held[QUICK.index(name) % 2], name)


@pytest.mark.slow
def test_a_compiled_rewrite_is_believed(arena: Arena) -> None:
    check(hold(arena, "compiled", [COMPILED]), COMPILED)


def test_there_are_at_least_ten_of_them(held: list[Held]) -> None:
    assert len(REWRITES) >= 10
    assert sum(len(each.campaign.trials) - 1 for each in held) == len(QUICK)


def test_each_says_what_it_changes() -> None:
    assert [name for name, text in REWRITES.items() if not text.startswith('"""')] == []
