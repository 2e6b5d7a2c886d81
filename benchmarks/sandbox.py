"""What a sandbox costs a run: the wall time of `python -c pass` without one and in each that works here.

python benchmarks/sandbox.py

Uses the same `process.run_group` as a run, in turns. The goal is at most 0.3 s more than plain.
"""

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from autoresearch.base import process
from autoresearch.executors.sandbox import sandboxes
from autoresearch.executors.sandbox.rules import Rules

REPETITIONS = 21
GOAL_SECONDS = 0.3


def seconds(words: Sequence[str], directory: Path) -> float:
    ended = process.run_group(
        words,
        directory=directory,
        environment={"PATH": "/usr/bin:/bin"},
        log=directory / "log",
        deadline_seconds=30,
        mark=f"benchmark:{directory}",
        poll=lambda elapsed: None,
    )
    assert ended.exit_code == 0, (directory / "log").read_text()
    return ended.seconds


def main() -> None:
    working = [name for name in sandboxes.SANDBOXES if sandboxes.failure(name) is None]
    taken: dict[str, list[float]] = {name: [] for name in ("plain", *working)}
    plain = [sys.executable, "-c", "pass"]
    for _ in range(REPETITIONS):
        for name, times in taken.items():
            with tempfile.TemporaryDirectory() as directory:
                rules = Rules(Path(directory))
                words = plain if name == "plain" else sandboxes.SANDBOXES[name].command(plain, rules)
                times.append(seconds(words, Path(directory)))
    base = statistics.median(taken["plain"])
    print("| sandbox | seconds | more than plain |\n|---|---|---|")
    for name, times in taken.items():
        more = statistics.median(times) - base
        print(f"| {name} | {statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f}) | {more:.3f} |")
        assert more <= GOAL_SECONDS, name


if __name__ == "__main__":
    main()
