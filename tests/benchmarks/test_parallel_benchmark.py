"""The benchmark of many trials at once: its clock, and that it runs through the production scheduler."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks/parallel.py"


@pytest.mark.slow
def test_it_runs_and_tells_its_figures(tmp_path: Path) -> None:
    written = tmp_path / "courses.jsonl"
    command = [sys.executable, str(BENCHMARK), "--quick", "--workers", "2", "--json", str(written)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "SIMULATED TIME" in out
    assert "tree minus line, gain at the end" in out
    assert "trials in the ledger" in out
    courses = [json.loads(line) for line in written.read_text().splitlines()]
    beside = [course for course in courses if course["way"]["slots"] == 2 and course["way"]["search"] == "line"]
    alone = [course for course in courses if course["way"]["slots"] == 1]
    assert len(beside) == 2
    assert len(alone) == 4
    for course in (*beside, *alone):
        assert 0.0 < course["busy"] <= 1.0
        assert course["own_ms"] > 0
        seconds = course["seconds"] / course["trials"] * course["way"]["slots"]
        assert 250 < seconds < 900, "a trial takes about 350 s of a slot"
