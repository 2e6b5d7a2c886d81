"""A lab in small, in which tests run some code in each sandbox that works here."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from autoresearch.base import process
from autoresearch.executors.sandbox import sandboxes
from autoresearch.executors.sandbox.rules import Limits, Rules
from autoresearch.executors.sandbox.watch import Watch

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no sandbox but on Linux")
SECRET = "a secret of the person's"
# What a try comes to: "done", or the name of the error.
TRY = """
import errno, json, os, socket
def attempt(act):
    try:
        answer = act()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "done" if answer is None or not isinstance(answer, (str, int, list)) else answer
said = {}
"""


def works(name: str) -> Any:
    why = sandboxes.failure(name) if sys.platform.startswith("linux") else "it needs Linux"
    return pytest.param(name, marks=pytest.mark.skipif(bool(why), reason=f"{name} does not work here: {why}"))


CONFINING = [works("bubblewrap"), works("landlock")]
BUBBLEWRAP = [works("bubblewrap")]
ALL = [*CONFINING, pytest.param("none", marks=LINUX)]


class Jail:
    """A scratch directory with a frozen file, among things that a run may not touch."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.name = name
        self.scratch = root / "runs" / "7" / "files"
        self.mark = f"sandbox-test:{root}"
        self.ended: process.Ended | None = None
        for path in ("runs/6/files/weights", "data/train", "data/val", "home/.ssh/key", "ledger.jsonl"):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(SECRET)
        (self.scratch / "out").mkdir(parents=True)
        (self.scratch / "prepare.py").write_text("frozen = 1\n")
        (self.scratch / "train.py").write_text("")
        self.rules = Rules(
            self.scratch,
            readable=(root / "data" / "train",),
            frozen=(self.scratch / "prepare.py",),
            limits=Limits(file_gb=1),
        )

    def run(self, code: str, deadline: float = 30.0, watch: bool = False, **environment: str) -> str:
        """Run some code in the sandbox; returns what it said."""
        (self.scratch / "train.py").write_text(textwrap.dedent(code))
        log = self.root / "log"
        observe = Watch(self.mark, self.rules.limits, [self.scratch])
        self.ended = process.run_group(
            sandboxes.SANDBOXES[self.name].command([sys.executable, "train.py"], self.rules),
            directory=self.scratch,
            environment={"PATH": os.defpath, "HOME": str(Path.home()), **environment},
            log=log,
            deadline_seconds=deadline,
            mark=self.mark,
            poll=observe if watch else lambda elapsed: None,
            pass_fds=self.rules.pass_fds,
        )
        return log.read_text().strip()

    def tries(self, **acts: str) -> dict[str, Any]:
        """What each expression comes to within the sandbox."""
        lines = [f"said[{name!r}] = attempt(lambda: {act})" for name, act in acts.items()]
        said = self.run("\n".join([TRY, *lines, "print(json.dumps(said))"]))
        assert said.startswith("{"), said
        answers: dict[str, Any] = json.loads(said)
        return answers


def in_each(names: list[Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("jail", names, indirect=True)
