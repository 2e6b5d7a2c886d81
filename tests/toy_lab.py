"""A lab whose runs take a few milliseconds: real files, real git, real processes, and a formula for a model."""

from __future__ import annotations

from pathlib import Path

from autoresearch.base import git

PREPARE = """
import json, os, pathlib
TIME_BUDGET = 2
def tell(**event):
    if "AUTORESEARCH_RUN_DIR" in os.environ:
        with open(pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"]) / "events.jsonl", "a") as file:
            file.write(json.dumps(event) + "\\n")
def evaluate(value):
    tell(event="first_batch", device="toy")
    tell(event="grade_requested")
    tell(event="score", split="val", val_bpb=value, nats=value, tokens=1, bytes=1)
if __name__ == "__main__":
    print("the data is ready")
"""

TRAIN = """
from prepare import evaluate
X = 3.0
evaluate(1 + (X - 1) ** 2)
print("---")
print("val_bpb:          1.0")
print("peak_vram_mb:     512.0")
"""

SETTINGS = "researcher: scripted\njudge: greedy\nsandbox: none\nallowance_seconds: 20\nmin_free_gb: 0"
PROGRAM = f"---\n{SETTINGS}\n---\nLower it.\n"


def make(root: Path, *, train: str = TRAIN, prepare: str = PREPARE, program: str = PROGRAM) -> Path:
    """Write and commit a toy lab; its val_bpb is 1 + (X - 1)^2."""
    root.mkdir(parents=True)
    (root / "prepare.py").write_text(prepare)
    (root / "train.py").write_text(train)
    (root / "program.md").write_text(program)
    (root / ".gitignore").write_text(".autoresearch/\nresults.tsv\nprogress.png\n__pycache__/\n")
    git.init(root)
    git.commit_all(root, "A toy lab")
    return root


def train_with(x: float, extra: str = "") -> str:
    """The toy train.py with another X, and lines put before it trains."""
    return TRAIN.replace("X = 3.0", f"X = {x}\n{extra}")
