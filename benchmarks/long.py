"""What a campaign of 20,000 trials costs: every command, a proposal, the time from a verdict to the next run, memory.

python benchmarks/long.py [--trials N] [--lab DIR]

Makes a lab, runs four real trials of preset cpu in it, and multiplies their lines in the ledger, their directories and
their commits: each trial has a move, a fingerprint, a commit, a reference and files of its own, and one in a hundred is
kept. Then it times each command in a process of its own (median of three, with its peak of memory), the built-in
researcher's proposal and the judge's decision, and runs the loop for a few more trials with a scripted researcher. With
--lab the lab stays, and is used again if it is there.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from autoresearch.executors import hardware
from autoresearch.lab import config
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.events import Confirmation, GuidanceGiven
from autoresearch.ledger.ledger import Ledger
from autoresearch.ledger.records import Outcome
from autoresearch.loop.asking import proposals
from autoresearch.loop.parts import compose
from autoresearch.loop.trial import publish
from autoresearch.researchers import prompt
from autoresearch.researchers.builtin import constant_moves
from autoresearch.researchers.builtin.history import Move, note_of
from autoresearch.researchers.source import constants

REAL = 4  # trials, the baseline included
KEPT = 0.01  # share of the trials
NOISE = 0.035  # standard deviation of val_bpb, as measured with a budget of 5 s
MORE = 3  # trials of the loop at the end
GOALS = {"status": 0.7, "log": 0.7, "show": 2.0, "report": 2.0, "chart": 2.0}  # seconds
MEMORY_GOAL = 200  # MiB
PROPOSAL_GOAL, NEXT_GOAL = 1.0, 0.1  # seconds
PROGRAM = [sys.executable, "-m", "autoresearch"]
Event = dict[str, Any]


# ---------------------------------------------------------------- a long campaign


def make(lab: Path, trials: int) -> None:
    """A lab whose ledger has that many trials."""
    new = [*PROGRAM, "new", str(lab), "--preset", "cpu", "--budget", "5"]
    subprocess.run(new, stdout=subprocess.DEVNULL, check=True)
    program = lab / "program.md"
    text = program.read_text().replace("max_disturbance: 0.03 ", "max_disturbance: 1.0 ")
    program.write_text(text.replace("allowance_seconds: 300 ", "prune: false\nallowance_seconds: 300 "))
    git(lab, "commit", "--quiet", "--all", "--message", "a benchmark")
    run(lab, "builtin", REAL - 1)
    ledger = lab / ".autoresearch/ledger.jsonl"
    events = [json.loads(line) for line in ledger.read_text().splitlines()]
    with ledger.open("a") as file:
        made = list(multiplied(lab, events, trials))
        known = commits(lab, [trial["commit"] for trial in made], events[0]["tag"])
        for trial in made:
            file.writelines(json.dumps(event) + "\n" for event in written(trial, known))
            copy(lab, trial["number"])
        file.write(json.dumps(confirmation(events[0]["tag"], made)) + "\n")
    git(lab, "update-ref", f"refs/heads/autoresearch/{events[0]['tag']}", known[made[-1]["incumbent"]])


def run(lab: Path, researcher: str, trials: int) -> None:
    command = [*PROGRAM, "run", "--lab", str(lab), "--researcher", researcher, "--trials", str(trials)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def git(lab: Path, *arguments: str, given: bytes | None = None) -> str:
    name = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
    done = subprocess.run(["git", "-C", str(lab), *name, *arguments], input=given, capture_output=True, check=True)
    return done.stdout.decode().strip()


def multiplied(lab: Path, events: list[Event], trials: int) -> Iterator[Event]:
    """The trials that follow the real ones, as their number, commit, incumbent and events. Commits have names here."""
    draw = random.Random(1)
    last = max(event["trial"] for event in events if event["type"] == "verdict")
    skeleton = next(event["skeleton"] for event in events if event["type"] == "proposed")  # the baseline's
    mine = {event["type"]: event for event in events if event.get("trial") == last}
    source = (lab / "train.py").read_text()
    movable = {name: constant for name, constant in constants.find(source).items() if constant.kind}
    moves = constant_moves.arms(movable, {})
    incumbent = [e["incumbent"] for e in events if e["type"] == "verdict"][-1]
    best = [e["val_bpb"] for e in events if e["type"] == "verdict" and e["status"] == "keep"][-1]
    at = events[-1]["time"]
    for number in range(last + 1, trials):
        name, at, kept = f"commit {number}", at + 300.0, draw.random() < KEPT
        score = best - 0.001 if kept else best + abs(draw.gauss(0.01, NOISE))
        move = moved(draw, movable, draw.choice(moves))
        proposed = mine["proposed"] | {
            "parent": incumbent,
            "commit": name,
            "idea": f"{move.knob} {move.before} to {move.after}, the {number}th idea",
            "fingerprint": f"{draw.getrandbits(256):064x}",
            "note": note_of([move]),
            "skeleton": skeleton,
            "moved": [[draw.randrange(100), draw.uniform(0.1, 10.0)]],
        }
        ended = mine["run_ended"] | {
            "commit": name,
            "score": mine["run_ended"]["score"] | {"val_bpb": score},
            **{key: re.sub(r"trials/\d+", f"trials/{number:04d}", mine["run_ended"][key]) for key in ("log", "curve")},
        }
        incumbent, best = (name, score) if kept else (incumbent, best)
        verdict = mine["verdict"] | {"status": "keep" if kept else "discard", "val_bpb": score, "incumbent": incumbent}
        these = [proposed, mine["run_started"], ended, verdict]
        yield {
            "number": number,
            "commit": name,
            "incumbent": incumbent,
            "events": [event | {"trial": number, "time": at} for event in these],
        }


def confirmation(tag: str, made: list[Event]) -> Event:
    """All keeps confirmed, so that the loop does not begin with a test of two hundred of them."""
    last = [each["number"] for each in made if each["incumbent"] == each["commit"]][-1]
    after = made[-1]["number"]
    event = Confirmation(tag, last, Outcome.CONFIRMED, "a benchmark", (), last, after, verdicts=after + 1)
    return {"type": "confirmation", "version": 1, "time": made[-1]["events"][-1]["time"], **dataclasses.asdict(event)}


def moved(draw: random.Random, movable: dict[str, Any], move: Move) -> Move:
    """A move of a constant by a random step."""
    old = movable[move.knob]
    step = move.subject[1] * draw.uniform(0.2, 1.0)
    new = constant_moves.variant(old, step, 3)
    return dataclasses.replace(move, before=old.text, after=new.text if new else old.text, step=step)


def commits(lab: Path, names: list[str], tag: str) -> dict[str, str]:
    """Real commits, one for each name, with references as the loop makes them."""
    source = (lab / "train.py").read_text()
    parent, lines, marks = git(lab, "rev-parse", "HEAD"), list[bytes](), lab / ".git/marks"
    for mark, name in enumerate(names, start=1):
        message, text = name.encode(), f"{source}\n# {name}\n".encode()
        lines.append(
            f"commit refs/autoresearch/{tag}/{name.split()[1]}\nmark :{mark}\n"
            f"committer benchmark <benchmark@localhost> {mark} +0000\ndata {len(message)}\n".encode()
            + message
            + f"\nfrom {parent}\nM 100644 inline train.py\ndata {len(text)}\n".encode()
            + text
            + b"\n"
        )
    git(lab, "fast-import", "--quiet", f"--export-marks={marks}", given=b"".join(lines))
    found = dict(line.split() for line in marks.read_text().splitlines())
    return {name: found[f":{mark}"] for mark, name in enumerate(names, start=1)}


def written(trial: Event, known: dict[str, str]) -> Iterator[Event]:
    """A trial's events, with real commits."""
    for event in trial["events"]:
        yield {k: known.get(v, v) if k in ("parent", "commit", "incumbent") else v for k, v in event.items()}


def copy(lab: Path, number: int) -> None:
    """The files of a real trial for another one: hard links would be fewer inodes than a real campaign has."""
    old, new = (lab / ".autoresearch/trials" / f"{each:04d}" for each in (REAL - 1, number))
    (new / "run0").mkdir(parents=True)
    for name in ("patch.diff", "run0/run.log", "run0/curve.jsonl", "run0/events.jsonl"):
        (new / name).write_bytes((old / name).read_bytes())


# ---------------------------------------------------------------- measuring


@dataclasses.dataclass(frozen=True)
class Took:
    """Seconds of a process and its peak of memory in MiB."""

    seconds: float
    peak_mb: float


def timed(command: list[str]) -> Took:
    """Run a command and measure it, without the processes that it starts. Memory is looked at 50 times a second."""
    start, peak = time.monotonic(), 0
    with psutil.Popen(command, stdout=subprocess.DEVNULL) as child:
        while child.poll() is None:
            with contextlib.suppress(psutil.Error):
                peak = max(peak, child.memory_info().rss)
            time.sleep(0.02)
    assert child.returncode == 0, command
    return Took(time.monotonic() - start, peak / 2**20)


def commands(lab: Path, trials: int) -> Iterator[tuple[str, list[Took]]]:
    """Each command, three times, interleaved."""
    asked = {
        "status": ["status"],
        "log": ["log", "--limit", "20"],
        "show": ["show", str(trials // 2)],
        "report": ["report"],
        "chart": ["chart"],
    }
    found: dict[str, list[Took]] = {name: [] for name in asked}
    for _ in range(3):
        for name, arguments in asked.items():
            found[name].append(timed([*PROGRAM, *arguments, "--lab", str(lab)]))
    yield from found.items()


def inside(lab: Path) -> None:
    """Print what the loop does between two runs, piece by piece, in seconds. For a process of its own."""
    workspace = Workspace.open(lab)
    settings, _ = config.load(workspace.program)
    ledger = Ledger(workspace.ledger)
    seconds: dict[str, list[float]] = {}

    def clocked(name: str, action: Callable[[], Any]) -> Any:
        start = time.monotonic()
        result = action()
        seconds.setdefault(name, []).append(time.monotonic() - start)
        return result

    campaign = clocked("reading the ledger", ledger.campaign)
    stages = compose.compose(workspace, ledger, settings, campaign.tag, lambda event: None, lambda trial, event: None)
    for number in range(3):
        stages.ledger.append(GuidanceGiven(campaign.tag, ""))  # the next ledger differs, as after a verdict
        campaign = clocked("what is new in it", ledger.campaign)
        brief = clocked("a brief", partial(proposals.brief, stages, campaign))
        clocked("a prompt of it", partial(prompt.describe, brief))
        proposal = clocked("the built-in's proposal", partial(stages.researcher.propose, brief))
        clocked("the guard", partial(proposals.refusal, stages, campaign, proposal, brief.files))
        clocked("a decision", partial(stages.judge.decide, campaign, campaign.finished[-1 - number]))
        clocked("branch and results.tsv", partial(publish, stages, campaign))
    print(json.dumps(seconds))


RESEARCHER = """
import random
from autoresearch.researchers.interface import Proposal
def propose(brief):
    text = brief.files["train.py"]
    return Proposal("an unused constant", {"train.py": f"{text}\\nUNUSED_{random.getrandbits(64)} = 1\\n"})
"""


def next_runs(lab: Path) -> tuple[list[float], Took]:
    """Seconds from a verdict to the next run, with a researcher that answers at once, and the loop's peak of memory."""
    ledger, researcher = lab / ".autoresearch/ledger.jsonl", lab / ".autoresearch/researcher.py"
    researcher.write_text(RESEARCHER)
    before = ledger.stat().st_size
    command = [*PROGRAM, "run", "--lab", str(lab), "--researcher", f"python:{researcher}", "--trials", str(MORE)]
    took = timed(command)
    with ledger.open("rb") as file:
        file.seek(before)
        events = [json.loads(line) for line in file]
    since, found = None, []
    for event in events:
        if event["type"] == "verdict":
            since = event["time"]
        elif event["type"] == "run_started" and since is not None:
            found.append(event["time"] - since)
            since = None
    return found, took


# ---------------------------------------------------------------- the table


def row(what: str, seconds: list[float], goal: float | None, peak_mb: float | None = None) -> str:
    middle = f"{statistics.median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f})"
    return f"| {what} | {middle} | {goal or ''} | {f'{peak_mb:.0f}' if peak_mb else ''} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--lab", type=Path, help="where to make the lab, or one that this made before")
    for part in ("--make", "--inside"):  # in processes of their own, so that this one stays small
        parser.add_argument(part, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(options.lab, options.trials)
        return
    if options.inside:
        inside(options.lab)
        return
    with tempfile.TemporaryDirectory() as directory:
        lab = options.lab or Path(directory, "lab")
        if not lab.exists():
            print(f"making a lab of {options.trials} trials, which takes a few minutes", file=sys.stderr)
            subprocess.run(
                [sys.executable, __file__, "--make", "--trials", str(options.trials), "--lab", lab], check=True
            )
        size = (lab / ".autoresearch/ledger.jsonl").stat().st_size / 2**20
        print(f"{options.trials} trials, a ledger of {size:.0f} MiB, {hardware.device()}, {platform.platform()}\n")
        print(f"| what | seconds | goal | MiB, goal {MEMORY_GOAL} |\n|---|---|---|---|")
        for name, took in commands(lab, options.trials):
            seconds, peak = [each.seconds for each in took], max(each.peak_mb for each in took)
            print(row(f"`{name}`", seconds, GOALS[name], peak), flush=True)
        said = subprocess.run([sys.executable, __file__, "--inside", "--lab", lab], stdout=subprocess.PIPE, check=True)
        for name, seconds in json.loads(said.stdout).items():
            print(row(name, seconds, PROPOSAL_GOAL if name.endswith("proposal") else None), flush=True)
        seconds, loop = next_runs(lab)
        print(row("from a verdict to the next run", seconds, NEXT_GOAL, loop.peak_mb))


if __name__ == "__main__":
    main()
