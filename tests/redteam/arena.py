"""Sends variants of train.py, each a file that says what it tries and how it ends, through the whole loop."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grading_lab
from autoresearch.base import git, variables
from autoresearch.base.process import processes_of
from autoresearch.executors.local import NO_LIMITS, LocalExecutor
from autoresearch.executors.sandbox import sandboxes
from autoresearch.executors.sandbox.rules import Limits
from autoresearch.grading import splits
from autoresearch.grading.grader import TrustedGrader
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.records import Proposal
from autoresearch.loop.loop import run_campaign
from autoresearch.models.cell import Cell
from autoresearch.models.examination import Examiner
from autoresearch.researchers import prompt
from autoresearch.researchers.interface import Brief
from conftest import stages

HERE = Path(__file__).parent
ENDING = re.compile(r"^Ends as (\w+): (.+)$", re.MULTILINE)
TAG = "t"
WORKING = [name for name in ("bubblewrap", "landlock") if sandboxes.failure(name) is None]


@dataclass(frozen=True)
class Variant:
    """A train.py: what it tries, in its own words, and the status and the reason (a pattern) that it ends with."""

    name: str
    text: str
    status: str
    reason: str

    @classmethod
    def read(cls, path: Path) -> Variant:
        text = path.read_text()
        ending = ENDING.search(ast.get_docstring(ast.parse(text)) or "")
        assert ending, f"{path.name} does not say how it ends"
        return cls(path.stem, text, ending[1], ending[2])


@dataclass(frozen=True)
class Held:
    """A campaign that was run, and what its researcher was told before each trial."""

    workspace: Workspace
    campaign: Campaign
    told: Mapping[str, str]
    left: Sequence[str]  # processes at its end

    def trial(self, name: str) -> Trial:
        return next(trial for trial in self.campaign.trials if trial.proposed.idea == name)

    def log(self, name: str) -> str:
        return (self.workspace.root / self.trial(name).runs[-1].log).read_text(errors="replace")


def variants(directory: str) -> list[Variant]:
    return [Variant.read(path) for path in sorted((HERE / directory).glob("*.py"))]


@dataclass(frozen=True)
class Arena:
    """Prepared data, read once, and the rules by which campaigns are run on them."""

    root: Path
    prepare: str
    data: splits.SplitData
    readable: Sequence[Path]
    confinement: str
    budget: float
    limits: Limits

    @classmethod
    def make(cls, root: Path, confinement: str, budget: float, limits: Limits = NO_LIMITS) -> Arena:
        made = grading_lab.make(root, 9000, TIME_BUDGET=budget, EVAL_TOKENS=256 * grading_lab.CONTEXT)
        data = made.data()
        readable = data.train[0].with_name("tokenizer.tiktoken"), data.train[0].with_name("meta.json")
        return cls(root, made.prepare, data, readable, confinement, budget, limits)

    def hold(self, name: str, files: Mapping[str, str], runs: Sequence[Variant], **environment: str) -> Held:
        """Run a campaign of a lab with these files and then of these variants, as `autoresearch run` does it."""
        lab, told = self._lab(name, files), dict[str, str]()
        namespace = f"lab:{lab}:"
        executor = LocalExecutor(
            lab / ".autoresearch" / "trials",
            Path(sys.executable),
            {**variables.for_run(), variables.CACHE: str(self.root / "cache"), **environment},
            namespace,
            sandboxes.choose(self.confinement),
            TrustedGrader(lambda: self.data),
            self.limits,
            readable=lambda: self.readable,
        )
        cell = Cell(executor.python, executor.environment, executor.confinement, self.limits, (self.readable[1],))
        tokenizer = self.readable[0].read_bytes
        examiner = Examiner(Workspace.open(lab), lambda: cell, lambda: self.data, tokenizer)
        parts = stages(
            lab,
            [_line(variant, told) for variant in runs],
            executor=executor,
            examine=examiner.examine,
            budget_seconds=self.budget,
            deadline_seconds=200.0,
            startup_seconds=180.0,  # a compiler takes its time
        )
        run_campaign(parts, TAG, lambda count: None)
        left = [str(process) for process in processes_of(namespace)]
        return Held(parts.workspace, parts.campaign(TAG), told, left)

    def _lab(self, name: str, files: Mapping[str, str]) -> Path:
        lab = self.root / name
        lab.mkdir()
        program = {"program.md": "---\nmin_free_gb: 0\n---\nLower it.\n"}
        ignored = {".gitignore": ".autoresearch/\nresults.tsv\n__pycache__/\n"}
        for path, text in {"prepare.py": self.prepare, **files, **program, **ignored}.items():
            (lab / path).write_text(text)
        git.init(lab)
        git.commit_all(lab, "A lab")
        return lab


def _line(variant: Variant, told: dict[str, str]) -> Callable[[Brief], Proposal]:
    """A line of a script: it notes what it is told, and proposes the variant."""

    def propose(brief: Brief) -> Proposal:
        told[variant.name] = prompt.describe(brief)
        return Proposal(variant.name, {"train.py": variant.text})

    return propose
