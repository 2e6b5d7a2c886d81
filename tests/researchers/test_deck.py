"""The deck applies to the train.py that ships, and what it makes really trains."""

from __future__ import annotations

import ast
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autoresearch.researchers.builtin.deck import DECK
from autoresearch.researchers.builtin.patch import Patch
from autoresearch.researchers.source import constants
from lab_files import LAB, write_lab

SHIPPED = (LAB / "train.py").read_text()
TINY_PREPARE = {"MAX_SEQ_LEN": 32, "VOCAB_SIZE": 64, "TIME_BUDGET": 1}
TINY_TRAIN = {"DEPTH": 3, "ASPECT_RATIO": 16, "HEAD_DIM": 16, "TOTAL_BATCH_SIZE": 2**12, "DEVICE_BATCH_SIZE": 4}
BY_NAME = {patch.name: patch for patch in DECK}

# Runs in a process of its own: it takes each patched train.py through two optimizer steps, and reports by name the
# loss before and after, and whether a token's logits change when a later token does.
TRAIN_ALL = """
import importlib.util, json, math, sys
from pathlib import Path
import torch

torch.set_num_threads(1)
device, report = torch.device("cpu"), {}
for path in sorted(Path("patched").glob("*.py")):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    model, optimizers = module.build(device, 64)
    x, y = torch.randint(64, (2, 4, 32))
    losses = []
    for step, progress in enumerate((0.1, 0.9, 0.95)):
        module.set_schedule(optimizers, progress, step)
        loss = model(x, y)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    later = x.clone()
    later[:, 20:] = (later[:, 20:] + 1) % 64
    with torch.no_grad():
        leak = (model(x)[:, :20] - model(later)[:, :20]).abs().max().item()
    optimized = {id(p) for o in optimizers for g in o.param_groups for p in g["params"]}
    left = [name for name, p in model.named_parameters() if id(p) not in optimized]
    report[path.stem] = {"losses": losses, "leak": leak, "left": left}
print("REPORT", json.dumps(report))
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lab(tmp_path_factory.mktemp("lab"), TINY_PREPARE, TINY_TRAIN)


@pytest.fixture(scope="module")
def trained(tiny: Path) -> dict[str, Any]:
    """What training a few steps of every patched file gave; "all" has every patch that still applies."""
    source = (tiny / "train.py").read_text()
    (tiny / "patched").mkdir()
    (tiny / "patched" / "nothing.py").write_text(source)
    for patch in DECK:
        (tiny / "patched" / f"{patch.name}.py").write_text(applied(patch, source))
    (tiny / "patched" / "all.py").write_text(all_applied(source))
    command = [sys.executable, "-c", TRAIN_ALL]
    done = subprocess.run(command, cwd=tiny, capture_output=True, text=True, env=run_environment(tiny), check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = next(line for line in done.stdout.splitlines() if line.startswith("REPORT "))
    result: dict[str, Any] = json.loads(report.removeprefix("REPORT "))
    return result


def run_environment(tiny: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(tiny), "PATH": "/usr/bin:/bin", "HOME": str(tiny), "AUTORESEARCH_CACHE": str(tiny)}


def applied(patch: Patch, source: str) -> str:
    edited = patch.apply(source)
    assert edited is not None, f"{patch.name} does not apply"
    return edited


def all_applied(source: str) -> str:
    for patch in DECK:
        if patch.name != "no-value-embeddings":
            source = patch.apply(source) or source
    return source


def test_the_deck_is_large_and_its_names_differ() -> None:
    assert len(DECK) >= 30
    assert len(BY_NAME) == len(DECK)


@pytest.mark.parametrize("patch", DECK, ids=lambda patch: patch.name)
def test_a_patch_is_a_real_edit_of_the_shipped_file(patch: Patch) -> None:
    edited = applied(patch, SHIPPED)
    assert ast.dump(ast.parse(edited)) != ast.dump(ast.parse(SHIPPED))
    assert "\t" not in patch.idea + patch.evidence
    assert "\n" not in patch.idea + patch.evidence


@pytest.mark.parametrize("patch", DECK, ids=lambda patch: patch.name)
def test_a_patch_is_not_applied_twice_unless_it_may_be_repeated(patch: Patch) -> None:
    again = patch.apply(applied(patch, SHIPPED))
    assert patch.name in ("halve-batch", "add-layer", "remove-layer") or again is None


@pytest.mark.parametrize("patch", DECK, ids=lambda patch: patch.name)
def test_a_patch_leaves_a_foreign_file_alone(patch: Patch) -> None:
    assert patch.apply("import math\n\nX = 3.0\nprint(math.sqrt(X))\n") is None


@pytest.mark.parametrize("patch", DECK, ids=lambda patch: patch.name)
def test_a_patch_survives_other_layout_and_order_of_constants(patch: Patch) -> None:
    assert patch.apply(ast.unparse(ast.parse(SHIPPED))) is not None


def test_most_patches_still_apply_after_all_the_others() -> None:
    source, refused = SHIPPED, []
    for patch in DECK:
        edited = patch.apply(source)
        refused += [] if edited else [patch.name]
        source = edited or source
    assert refused == ["convex-warmdown", "cosine-warmdown"]  # another shape took their place


@pytest.mark.parametrize("name", ["nothing", "all", *BY_NAME])
def test_what_a_patch_makes_trains(name: str, trained: dict[str, Any]) -> None:
    losses = trained[name]["losses"]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[0] == pytest.approx(math.log(64), abs=0.1)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["nothing", "all", *BY_NAME])
def test_what_a_patch_makes_looks_at_no_later_token(name: str, trained: dict[str, Any]) -> None:
    assert trained[name]["leak"] < 1e-4


@pytest.mark.parametrize("name", ["nothing", "all", *BY_NAME])
def test_what_a_patch_makes_has_every_parameter_in_an_optimizer(name: str, trained: dict[str, Any]) -> None:
    assert trained[name]["left"] == []


def test_patches_that_change_the_computation_do_so(trained: dict[str, Any]) -> None:
    same_start = ["leaky-activation", "qk-scale", "backout", "bigram-embedding", "falling-momentum", "smear"]
    same_start += ["trigram-embedding", "token-shift", "key-offset", "muon-eq", "plain-muon", "skip-connections"]
    for name in same_start:
        assert trained[name]["losses"][1:] != trained["nothing"]["losses"][1:], name


def test_halving_the_batch_stops_where_a_step_would_be_too_small() -> None:
    small = constants.replace(SHIPPED, {"TOTAL_BATCH_SIZE": 1024})
    assert BY_NAME["halve-batch"].apply(small) is None


def test_a_better_value_is_not_taken_back() -> None:
    assert BY_NAME["head-lr"].apply(constants.replace(SHIPPED, {"UNEMBEDDING_LR": 0.008})) is None
    assert BY_NAME["x0-lambda"].apply(constants.replace(SHIPPED, {"X0_LAMBDA": 0.03})) is None


def test_short_windows_need_a_pattern_that_has_them() -> None:
    assert BY_NAME["short-windows"].apply(constants.replace(SHIPPED, {"WINDOW_PATTERN": "L"})) is None


def test_a_layer_comes_with_one_head_of_width() -> None:
    for depth, aspect, head, heads in ((8, 64, 128, 5), (4, 64, 128, 3), (6, 42, 128, 3)):
        sizes = {"DEPTH": depth, "ASPECT_RATIO": aspect, "HEAD_DIM": head}
        found = constants.find(applied(BY_NAME["add-layer"], constants.replace(SHIPPED, sizes)))
        width = int(found["DEPTH"].value) * int(found["ASPECT_RATIO"].value)
        assert (found["DEPTH"].value, -(-width // head)) == (depth + 1, heads)
