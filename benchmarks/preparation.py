"""Seconds of `python prepare.py` on the standard library's source, against a plain script that does the same work.

python benchmarks/preparation.py [--pairs N]

The plain script trains the same tokenizer on the same text, then encodes document by document and saves the tokens. It
looks for no duplicates and checks nothing. Each runs in its own process with an empty cache; each is first in every
second pair. Starting Python and importing are counted, since a user waits for them.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from autoresearch.executors import hardware
from autoresearch.lab import presets

PAIRS = 5
PLAIN = """
import numpy as np, prepare
ranks = prepare.train_tokenizer(prepare.read_documents("train"))
tokenizer = prepare.Tokenizer(ranks)
for split in prepare.SPLITS:
    rows = [tokenizer.encode(text, prepend=tokenizer.get_bos_token_id()) for text in prepare.read_documents(split)]
    np.save(split, np.array([token for row in rows for token in row], np.uint16))
    np.save(split + "_offsets", np.cumsum([0, *map(len, rows)]))
    print(split, sum(map(len, rows)), "tokens")
"""


def seconds(lab: Path, file: str) -> float:
    """Wall time of a script in the lab, with its own cache."""
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, str(lab / file)],
            cwd=cache,
            env={**os.environ, "AUTORESEARCH_CACHE": cache, "PYTHONPATH": str(lab)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="preparing the text against a plain script")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    count = parser.parse_args().pairs
    found: dict[str, list[float]] = {"prepare.py": [], "plain.py": []}
    with tempfile.TemporaryDirectory() as directory:
        lab = Path(directory, "lab")
        presets.create(lab, presets.presets()["cpu"])
        (lab / "plain.py").write_text(PLAIN)
        for number in range(count):
            for file in sorted(found, reverse=bool(number % 2)):
                found[file].append(seconds(lab, file))
    ours, plain = (statistics.median(times) for times in found.values())
    ratios = [b / a for a, b in zip(*found.values(), strict=True)]
    print(f"{hardware.device()}, {platform.machine()}, Python {platform.python_version()}, {count} pairs")
    print(
        f"prepare.py {ours:.1f} s, plain script {plain:.1f} s: {statistics.median(ratios):.2f} times as fast "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
