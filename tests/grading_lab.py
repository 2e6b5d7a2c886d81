"""A tiny prepared lab, and runs of it as processes that a session grades, over a real socket."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from autoresearch.executors.run_output import Tail
from autoresearch.grading import protocol, splits
from autoresearch.grading.grader import TrustedGrader, TrustedSession
from autoresearch.grading.protocol import receive, send
from autoresearch.ledger.records import Crash, Graded, Invalid, RunEvent, RunRequest, RunResult, Score
from lab_files import load, write_lab
from texts import documents, write_jsonl

REQUEST = RunRequest("0001/run0", "c", {}, 42, 60.0, 120.0)
CONTEXT, VOCABULARY, ROWS = 32, 300, 128
# A table of random logits: what follows depends on the token before it alone.
HEAD = f"""
import json, mmap, os, sys, time
import torch
import prepare
import autoresearch_trial as trial
torch.set_num_threads(1)
class Bigram(torch.nn.Module):
    def __init__(self):
        super().__init__()
        random = torch.Generator().manual_seed(1)
        self.table = torch.nn.Parameter(torch.randn({VOCABULARY}, {VOCABULARY}, generator=random))
    def forward(self, x):
        return self.table[x]
tokenizer = prepare.Tokenizer.from_directory()
loader = prepare.make_dataloader(tokenizer, 4, {CONTEXT}, "train", "cpu")
model = Bigram()
def evaluate(model, batch_size=8):
    print("val_bpb", prepare.evaluate_bpb(model, tokenizer, batch_size), flush=True)
"""


@dataclass(frozen=True)
class Ran:
    """What came of a run."""

    outcome: Graded | Crash | Invalid
    session: TrustedSession
    result: RunResult
    directory: Path

    @property
    def score(self) -> Score:
        assert isinstance(self.outcome, Graded), (self.outcome, self.result.log_tail)
        return self.outcome.score

    @property
    def reason(self) -> str:
        assert isinstance(self.outcome, Invalid), (self.outcome, self.result.log_tail)
        return self.outcome.reason


@dataclass(frozen=True)
class GradingLab:
    """A prepared lab: its module in this process, and the text that its runs get."""

    root: Path
    module: ModuleType

    @property
    def prepare(self) -> str:
        return (self.root / "lab" / "prepare.py").read_text()

    def data(self) -> splits.SplitData:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AUTORESEARCH_CACHE", str(self.root / "cache"))
            return splits.read(self.prepare)

    def run(
        self,
        directory: Path,
        script: str,
        *,
        wants_holdout: Callable[[Score], bool] = lambda score: False,
        head: str = HEAD,
        timeout: float = 60.0,
    ) -> Ran:
        """Run `head` and `script` as train.py, graded through a socket pair as an executor does it."""
        files = directory / "files"
        shutil.rmtree(files, ignore_errors=True)
        files.mkdir(parents=True)
        (files / "prepare.py").write_text(self.prepare)
        shutil.copy(Path(protocol.__file__), files / protocol.RUN_SIDE)
        (files / "train.py").write_text(head + script)
        session = TrustedGrader(self.data).session(REQUEST, wants_holdout)
        code, log = serve_run(session, files, self.environment(directory), timeout)
        events = tuple(RunEvent(str(v.get("event")), 0.0, v) for v in Tail(directory / protocol.EVENTS).lines())
        result = RunResult(code, 1.0, events, log, "run.log", "curve.jsonl")
        return Ran(session.outcome(result), session, result, directory)

    def environment(self, directory: Path) -> dict[str, str]:
        own = {"AUTORESEARCH_CACHE": str(self.root / "cache"), "AUTORESEARCH_RUN_DIR": str(directory)}
        return {**os.environ, **own}


def serve_run(session: Any, files: Path, environment: dict[str, str], timeout: float) -> tuple[int | None, str]:
    """The exit code (None where the time ran out) and the output of train.py."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=session.serve, args=(ours,))
    child = subprocess.Popen(
        [sys.executable, "train.py"],
        cwd=files,
        env={**environment, protocol.CHANNEL: str(theirs.fileno())},
        pass_fds=[theirs.fileno()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    theirs.close()
    thread.start()
    try:
        log, code = child.communicate(timeout=timeout)[0], child.returncode
    except subprocess.TimeoutExpired:
        child.kill()
        log, code = child.communicate()[0], None
    ours.shutdown(socket.SHUT_RDWR)
    thread.join(20)
    assert not thread.is_alive()
    ours.close()
    return code, log


def make(root: Path, texts: int = 3000, **constants: Any) -> GradingLab:
    source = write_jsonl(root / "texts.jsonl", documents(texts))
    settings = {"SOURCE": f"files:{source}", "VOCAB_SIZE": VOCABULARY, "MAX_SEQ_LEN": CONTEXT}
    settings |= {"EVAL_TOKENS": ROWS * CONTEXT, **constants}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTORESEARCH_CACHE", str(root / "cache"))
        module = load(write_lab(root / "lab", prepare=settings) / "prepare.py")
    module.main()
    return GradingLab(root, module)


class Bigram(torch.nn.Module):
    """The model of grading_lab's runs."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(1)
        self.table = torch.nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=random))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table[x]


GRADE = {"ask": "grade", "batch_size": 8, "context": CONTEXT, "vocabulary": VOCABULARY}


class Liar:
    """A run of which every message is written by hand."""

    def __init__(self, lab: GradingLab) -> None:
        self.session = TrustedGrader(lab.data).session(REQUEST, lambda score: False)
        self.ours, self.channel = socket.socketpair()
        self.thread = threading.Thread(target=self.session.serve, args=(self.ours,))
        self.thread.start()
        self.ask({"ask": "train"})

    def ask(self, message: dict[str, object]) -> dict[str, object]:
        send(self.channel, message)
        return receive(self.channel)[0]

    def end(self) -> Graded | Crash | Invalid:
        self.channel.close()
        self.thread.join(20)
        self.ours.close()
        assert not self.thread.is_alive()
        return self.session.outcome(RunResult(0, 1.0, (), "the end", "run.log", "curve.jsonl"))
