"""Everything about a GPU in one command: stage by stage, each in its own process with its own time limit.

    python benchmarks/gpu.py [--minutes 8] [--only STAGE ...] [--preset NAME] [--site DIR]

A stage that fails or hangs costs one row. Results are printed as JSON lines as they come, so nothing is lost if the
command is cut off, and as one table at the end. It starts no stage that has no time left. The order is the order of
value: environment, attention, step, trial, grading, tests, product. What each measures is in gpu_stages.py.

Without a GPU it measures the CPU at the sizes of preset `cpu`, which shows that the stages work. For a machine without
internet, `benchmarks/offline.sh DIR` collects the packages elsewhere, and `--site DIR` takes them from there.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULT = "RESULT "  # how a stage begins the line of a result
LAST_LINES = 3  # of a failed stage's output, shown in its row


@dataclass(frozen=True)
class Stage:
    """A stage, the seconds it may take, and the seconds below which it is not worth starting."""

    name: str
    limit: float
    least: float


STAGES = (
    Stage("environment", 60, 10),
    Stage("attention", 90, 30),
    Stage("step", 240, 90),
    Stage("trial", 300, 90),
    Stage("grading", 180, 60),
    Stage("tests", 120, 30),
    Stage("product", 240, 60),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8, help="no stage is started or continued after this")
    parser.add_argument("--only", nargs="+", choices=[stage.name for stage in STAGES], help="only these stages")
    parser.add_argument("--preset", help="sizes to measure at (default: h100 on a GPU, cpu without one)")
    parser.add_argument("--site", type=Path, help="a directory of wheels, from benchmarks/offline.sh")
    parser.add_argument("--try", dest="variants", nargs="*", default=[], help="variants of the step, see gpu_stages.py")
    chosen = parser.parse_args()
    until = time.monotonic() + 60 * chosen.minutes
    with tempfile.TemporaryDirectory() as directory:
        if chosen.site:
            unpack(chosen.site, Path(directory))
        print(table(measure(chosen, until, environment(Path(directory)))))


def measure(chosen: argparse.Namespace, until: float, settings: dict[str, str]) -> list[dict[str, Any]]:
    """Run the chosen stages for as long as there is time, and print and return their results."""
    rows: list[dict[str, Any]] = []
    for stage in STAGES:
        if chosen.only and stage.name not in chosen.only:
            continue
        left = until - time.monotonic()
        if left < stage.least:
            rows.append({"stage": stage.name, "result": f"not started: {max(0, left):.0f} s were left"})
            print(json.dumps(rows[-1]), flush=True)
            continue
        command = [sys.executable, str(HERE / "gpu_stages.py"), stage.name, chosen.preset or "", *chosen.variants]
        for row in results(stage.name, command, min(stage.limit, left), settings):
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def results(stage: str, command: list[str], seconds: float, settings: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Run a stage in its own process group and yield its results; the last row says how it ended, if badly."""
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=read, args=(process, lines), daemon=True).start()
    said: list[str] = []
    try:
        while True:
            try:
                line = lines.get(timeout=max(0.1, start + seconds - time.monotonic()))
            except queue.Empty:
                yield {"stage": stage, "result": f"ended after {seconds:.0f} s", "said": said[-LAST_LINES:]}
                return
            if line is None:
                break
            if line.startswith(RESULT):
                yield {"stage": stage, **json.loads(line.removeprefix(RESULT))}
            elif line.strip():
                said.append(line.strip())
        if process.wait():
            yield {"stage": stage, "result": f"failed ({process.returncode})", "said": said[-LAST_LINES:]}
    finally:
        end(process)


def read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    """Pass a stage's lines on as they come, and None at their end."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line)
    lines.put(None)


def end(process: subprocess.Popen[str]) -> None:
    """End a stage and everything it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(10)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    process.wait()


def unpack(wheels: Path, directory: Path) -> None:
    """Install the wheels of a directory into another one, without an index."""
    files = [str(path) for path in sorted(wheels.glob("*.whl"))]
    if not files:
        sys.exit(f"{wheels} has no wheels: collect them with benchmarks/offline.sh where there is internet")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(directory)]
    if subprocess.run([*command, *files], check=False).returncode:
        sys.exit("the wheels do not fit this Python: give offline.sh its version (--python)")


def environment(site: Path) -> dict[str, str]:
    """The environment of a stage: this checkout's package, and the packages unpacked into `site`."""
    paths = [str(HERE.parent / "src"), str(HERE), str(site), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def table(rows: list[dict[str, Any]]) -> str:
    """All results as a Markdown table."""
    lines = ["", "| stage | what | result |", "|---|---|---|"]
    for row in rows:
        values = {name: value for name, value in row.items() if name not in ("stage", "what", "result", "said")}
        shown = [str(row["result"])] if "result" in row else []
        shown += [f"{name} {value}" for name, value in values.items()]
        shown += [f"`{line[:160]}`" for line in row.get("said", ())]
        cell = ", ".join(shown).replace("\n", " / ").replace("|", "\\|")
        lines.append(f"| {row['stage']} | {row.get('what', '')} | {cell} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
