"""The rows that a campaign is scored on, read in the parent through the campaign's own frozen prepare.py."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import itertools
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from autoresearch.base.errors import UserError
from autoresearch.grading.protocol import RUN_SIDE

ONE_AT_A_TIME = threading.RLock()  # modules are loaded under a name that all threads see
Array = npt.NDArray[Any]
TOKENIZER = "tokenizer.tiktoken"  # the only file of a lab's data that a model needs to answer
NEEDED = {"MAX_SEQ_LEN", "EVAL_TOKENS", "Tokenizer", "pack_epoch", "prepared_file", "evaluate_bpb"}


@dataclass(frozen=True)
class SplitData:
    """A lab's scored rows, uint16 (N, context + 1), the raw bytes of each token, and where its training tokens are."""

    context: int
    byte_lengths: Array
    val: Array
    holdout: Array
    train: tuple[Path, Path]
    fingerprints: Mapping[str, str]
    most_rows: int = sys.maxsize  # of a batch of grading: the shape that prepare.py tells a run to compile for

    @property
    def vocabulary(self) -> int:
        return len(self.byte_lengths)


@dataclass(frozen=True)
class Reading:
    """How a lab turns text into tokens: context and vocabulary, in tokens, and its tokenizer's file."""

    context: int
    vocabulary: int
    tokenizer: bytes


def can_be_graded(prepare: str) -> bool:
    """Whether a lab's prepare.py talks to a grader. An adopted lab's need not, and then reports its own score."""
    try:
        body = ast.parse(prepare).body
    except SyntaxError:
        return False
    names = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names >= NEEDED and Path(RUN_SIDE).stem in prepare


def read(prepare: str) -> SplitData:
    """The rows that this prepare.py's own `evaluate_bpb` would score; read once for all runs of a process.

    Raises:
        UserError: the data is missing, or the file cannot be loaded.
    """
    with ONE_AT_A_TIME:  # runs side by side ask at the same time
        return _read_once(prepare)


@functools.lru_cache(maxsize=2)
def _read_once(prepare: str) -> SplitData:
    with _mendable("the splits"):
        return _read(_load(prepare))


def reading(prepare: str) -> Reading:
    """How this prepare.py turns text into tokens.

    Raises:
        UserError: the data is missing, or the file cannot be loaded.
    """
    with ONE_AT_A_TIME, _mendable("the tokenizer"):
        lab: Any = _load(prepare)
        vocabulary = lab.Tokenizer.from_directory().get_vocab_size()
        return Reading(int(lab.MAX_SEQ_LEN), int(vocabulary), lab.prepared_file(TOKENIZER).read_bytes())


@contextlib.contextmanager
def _mendable(what: str) -> Iterator[None]:
    try:
        yield
    except SystemExit as error:  # prepare.py's own sentence about what the user can fix
        raise UserError(f"prepare.py: {error}") from error
    except Exception as error:  # the user's file can fail in any way
        raise UserError(f"prepare.py cannot read {what}: {type(error).__name__}: {error}") from error


def readable(prepare: str) -> tuple[Path, ...]:
    """The files of the lab's data that a run may read by their paths: no tokens of any split, and no text."""
    data = read(prepare).train[0].parent
    return data / TOKENIZER, data / "meta.json"


def _load(prepare: str) -> ModuleType:
    """The module of a source text, under a name that nothing else imports."""
    name = f"_autoresearch_prepare_{hashlib.sha256(prepare.encode()).hexdigest()[:12]}"
    module = ModuleType(name)
    sys.modules[name] = module  # dataclasses look up their module
    try:
        exec(compile(prepare, "prepare.py", "exec"), module.__dict__)
    finally:
        del sys.modules[name]
    return module


def _read(lab: Any) -> SplitData:
    context = int(lab.MAX_SEQ_LEN)
    count = int(lab.EVAL_TOKENS) // context
    val, holdout = (
        np.stack(list(itertools.islice(lab.pack_epoch(split, 1, context + 1), count))) for split in ("val", "holdout")
    )
    train = (lab.prepared_file("train.npy"), lab.prepared_file("train_offsets.npy"))
    splits = json.loads(train[0].with_name("meta.json").read_text(encoding="utf-8"))["splits"]
    return SplitData(
        context=context,
        byte_lengths=lab.Tokenizer.from_directory().byte_lengths,
        val=val,
        holdout=holdout,
        train=train,
        fingerprints={f"{split}_sha256": str(splits[split]["sha256"]) for split in ("train", "val")},
        most_rows=int(lab.grading_rows(sys.maxsize)) if hasattr(lab, "grading_rows") else sys.maxsize,
    )
