from __future__ import annotations

import ast
from pathlib import Path

import pytest

from autoresearch.base import git
from autoresearch.base.errors import UserError
from autoresearch.executors.hardware import Device, preset_for
from autoresearch.lab import presets
from autoresearch.lab.config import load
from autoresearch.lab.presets import SHIPPED, create, fill
from autoresearch.lab.workspace import Workspace


@pytest.mark.parametrize("name", presets.presets())
def test_every_preset_makes_a_lab_whose_files_parse(tmp_path: Path, name: str) -> None:
    create(tmp_path / "lab", presets.presets()[name])
    workspace = Workspace.open(tmp_path / "lab")
    files = workspace.files(workspace.base("t"))
    assert set(files) == {"prepare.py", "train.py", "program.md", ".gitignore"}
    for path in ("prepare.py", "train.py"):
        ast.parse(files[path])
    load(workspace.program)
    assert git.changed_paths(workspace.root) == ()


@pytest.mark.parametrize("name", presets.presets())
def test_a_presets_batches_divide(tmp_path: Path, name: str) -> None:
    create(tmp_path / "lab", presets.presets()[name])
    values: dict[str, object] = {}
    for path in ("prepare.py", "train.py"):
        for node in ast.parse((tmp_path / "lab" / path).read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                try:
                    values[node.targets[0].id] = eval(compile(ast.Expression(node.value), "", "eval"), {})
                except NameError:
                    continue
    row = int(str(values["DEVICE_BATCH_SIZE"])) * int(str(values["MAX_SEQ_LEN"]))
    assert int(str(values["TOTAL_BATCH_SIZE"])) % row == 0
    assert int(str(values["EVAL_TOKENS"])) % int(str(values["MAX_SEQ_LEN"])) == 0


def test_the_h100_preset_with_the_published_recipe_is_what_is_shipped_byte_for_byte(tmp_path: Path) -> None:
    create(tmp_path / "lab", presets.presets()["h100"].reference)
    for name in ("prepare.py", "train.py"):
        assert (tmp_path / "lab" / name).read_bytes() == (SHIPPED / name).read_bytes()


@pytest.mark.parametrize("name", presets.presets())
def test_a_lab_differs_from_the_published_recipe_in_what_the_preset_improves_alone(tmp_path: Path, name: str) -> None:
    preset = presets.presets()[name]
    create(tmp_path / "lab", preset)
    create(tmp_path / "reference", preset.reference)
    improved, published = ((tmp_path / lab / "train.py").read_text() for lab in ("lab", "reference"))
    assert improved == fill(published, preset.improved)
    assert (improved != published) == bool(preset.improved)


def test_filling_changes_the_value_and_nothing_else() -> None:
    source = 'A = 1  # one\nNAME = "x"  # why\nB = 2**19\n    A = 5\n'
    assert (
        fill(source, {"A": 2, "NAME": "L", "B": "2**13"}) == 'A = 2  # one\nNAME = "L"  # why\nB = 2**13\n    A = 5\n'
    )
    with pytest.raises(KeyError, match="no constant C"):
        fill(source, {"C": 1})


def test_the_budget_is_read_from_prepare_py_and_can_be_chosen(tmp_path: Path) -> None:
    create(tmp_path / "lab", presets.presets()["cpu"], budget_seconds=60)
    assert presets.budget((tmp_path / "lab" / "prepare.py").read_text()) == 60.0


@pytest.mark.parametrize("value", ["0", "-5", "0.0", '"soon"', "None", "2 * 60"])
def test_a_budget_that_is_no_positive_number_is_one_sentence(value: str) -> None:
    with pytest.raises(UserError, match=r"TIME_BUDGET in prepare\.py is"):
        presets.budget(f"TIME_BUDGET = {value}  # seconds\n")


def test_a_directory_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        create(tmp_path, presets.presets()["cpu"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("device", "name"),
    [
        (Device("cpu", "2 cores", 24), "cpu"),
        (Device("mps", "Apple GPU", 64), "laptop"),
        (Device("cuda", "RTX 3060", 12), "laptop"),
        (Device("cuda", "RTX 4090", 23.6), "gpu-24gb-full"),
        (Device("cuda", "H100", 79.1), "h100"),
    ],
)
def test_the_hardware_decides_the_preset(device: Device, name: str) -> None:
    assert preset_for(device) == name
