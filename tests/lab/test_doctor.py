from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from autoresearch.base.errors import UserError
from autoresearch.executors import hardware
from autoresearch.executors.sandbox import sandboxes
from autoresearch.lab import doctor, presets


def test_every_check_is_made_and_this_machine_can_train(lab: Path) -> None:
    checks = {check.name: check for check in doctor.examine(lab)}
    assert {*doctor.CHECKS, *doctor.LAB_CHECKS} < set(checks)
    assert [name for name, check in checks.items() if check.ok is False] == []
    assert all(check.remedy for check in checks.values() if not check.ok)
    assert "forward and backward" in checks["attention"].found


def test_a_missing_git_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    checks = {check.name: check for check in doctor.examine(tmp_path)}
    assert checks["git"].ok is False
    assert "install it" in checks["git"].remedy


def test_a_check_that_breaks_is_a_failed_line_and_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(directory: Path) -> doctor.Check:
        raise OSError("driver gone")

    monkeypatch.setitem(doctor.CHECKS, "torch", broken)
    failed = next(check for check in doctor.examine(tmp_path) if check.name == "torch")
    assert failed.ok is False
    assert "driver gone" in failed.found


@pytest.mark.parametrize(
    ("working", "ok", "found"),
    [
        ({"bubblewrap", "landlock", "none"}, True, "bubblewrap: a run sees only"),
        ({"landlock", "none"}, None, "landlock: a run opens only"),
        ({"none"}, None, "none: a run has your rights"),
    ],
)
def test_the_best_sandbox_is_named_and_a_better_one_told_how_to_get(
    working: set[str], ok: bool | None, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandboxes, "failure", lambda name: None if name in working else "missing")
    monkeypatch.setattr(sandboxes.shutil, "which", lambda name: None)
    monkeypatch.setattr(sandboxes.sys, "platform", "linux")
    check = doctor.CHECKS["sandbox"](tmp_path)
    assert check.ok is ok
    assert check.found.startswith(found)
    assert ok or "install bubblewrap" in check.remedy


def test_the_device_is_tried_in_the_sandbox_that_runs_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = doctor.CHECKS["device in sandbox"](tmp_path)
    assert check.ok, check
    assert check.found == f"{hardware.device().kind} in {sandboxes.choose().name}: works"
    monkeypatch.setattr(hardware, "device", lambda: hardware.Device("cuda", "a GPU that the sandbox hides", 80.0))
    if not torch.cuda.is_available():
        hidden = doctor.CHECKS["device in sandbox"](tmp_path)
        assert hidden.ok is False
        assert "sandbox: none" in hidden.remedy


def checked(lab: Path, **more: Any) -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.examine(lab, **more)}


def test_a_whole_lab_is_checked(lab: Path) -> None:
    found = checked(lab, researcher=lambda settings: f"{settings.researcher}: installed")
    assert list(found)[len(doctor.CHECKS) :] == ["program.md", *doctor.LAB_CHECKS, "researcher"]
    assert [check for check in found.values() if check.ok is False] == []
    assert found["program.md"].found == "5 settings"
    assert found["researcher"].found == "scripted: installed"


@pytest.mark.parametrize(
    ("front", "name", "words"),
    [
        ("resercher: x", "program.md", "unknown setting `resercher`"),
        ("editable: [model.py]", "editable", "model.py is not in the last commit"),
        ("preset: h100", "preset", "h100, and cpu fits this machine"),
    ],
)
def test_what_is_wrong_with_a_lab_is_a_line_of_its_own(lab: Path, front: str, name: str, words: str) -> None:
    (lab / "program.md").write_text(f"---\n{front}\n---\n")
    check = checked(lab)[name]
    assert not check.ok
    assert words in check.found


def test_a_researcher_that_cannot_be_asked_fails_with_what_to_do(lab: Path) -> None:
    def away(settings: object) -> str:
        raise UserError("nothing answers: start it")

    check = checked(lab, researcher=away)["researcher"]
    assert (check.ok, check.found) == (False, "nothing answers: start it")


def test_data_that_is_not_prepared_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(tmp_path / "cache"))
    presets.create(tmp_path / "lab", presets.presets()["cpu"])
    check = checked(tmp_path / "lab")["data"]
    assert check.ok is None
    assert "autoresearch prepare" in check.remedy
