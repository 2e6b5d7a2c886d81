"""What all tests share: a toy lab, and stages that run it for real."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import toy_lab
from autoresearch.base import variables
from autoresearch.executors.local import LocalExecutor
from autoresearch.executors.sandbox.sandboxes import Nothing
from autoresearch.grading.grader import SelfReported
from autoresearch.judging.judge import GreedyJudge
from autoresearch.lab import config, past_trials
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.events import Event
from autoresearch.ledger.ledger import Ledger
from autoresearch.ledger.records import Proposal
from autoresearch.ledger.results_file import ResultsFile
from autoresearch.loop.parts.stages import Policy, Stages
from autoresearch.researchers.simple.scripted import ScriptedResearcher

hypothesis.settings.register_profile("patient", deadline=None)  # a busy neighbor is no fault of ours
hypothesis.settings.load_profile("patient")

# Tests run as on a machine whose git has no name and no address; what they commit is ours or names an author.
os.environ.update({"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull})

# Under nohup, or in a shell's background, these are ignored, and all that the tests start would inherit that.
for _name in ("SIGHUP", "SIGINT", "SIGQUIT"):
    if (_number := getattr(signal, _name, None)) and signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _name == "SIGINT" else signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _no_caller_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AUTORESEARCH_RUN_DIR", "AUTORESEARCH_SEED", "AUTORESEARCH_CACHE", "GIT_DIR", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A fresh toy lab, committed."""
    return toy_lab.make(tmp_path / "lab")


@pytest.fixture
def make_stages() -> Callable[..., Stages]:
    return stages


def stages(root: Path, lines: Sequence[Any] = (), events: list[Event] | None = None, **changes: Any) -> Stages:
    """Real stages for a toy lab with a scripted researcher; `events` collects what is announced."""
    workspace = Workspace.open(root)
    ledger = Ledger(workspace.ledger)
    parts: dict[str, Any] = {
        "workspace": workspace,
        "results": ResultsFile(workspace.results),
        "ledger": ledger,
        "researcher": ScriptedResearcher(lines),
        "fallback": None,
        "policy": Policy(longest_pause_seconds=0.01, max_disturbance=1.0),  # other tests run beside
        "archive": past_trials.of_lab(workspace, ledger, ("train.py",)),
        "executor": LocalExecutor(
            workspace.trials, Path(sys.executable), variables.for_run(), f"lab:{root}:", Nothing(), SelfReported()
        ),
        "judge": GreedyJudge(),
        "editable": ("train.py",),
        "budget_seconds": 2.0,
        "deadline_seconds": 20.0,
        "startup_seconds": 20.0,
        "min_free_gb": 0.0,
        "prune": True,
        "device": "cpu: a toy",
        "preset": None,
        "program": lambda: "Lower it.",
        "guidance": workspace.read_guidance,
        "redact": config.redact,
        "prepare": lambda files: None,
        "examine": lambda trial, poll: None,
        "announce": (events if events is not None else []).append,
        "progress": lambda trial, event: None,
    }
    if isinstance(places := changes.get("places"), tuple):
        changes["places"] = lambda: places
    return Stages(**{**parts, **changes})


def proposal(x: float, idea: str | None = None, extra: str = "") -> Proposal:
    """A proposal that sets the toy model's X."""
    return Proposal(idea or f"X to {x}", {"train.py": toy_lab.train_with(x, extra)})


def never(made: int) -> str | None:
    """A campaign's `enough` that lets it run until its researcher has nothing more to propose."""
    return None
