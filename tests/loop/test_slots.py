"""Runs side by side: what is started when, what becomes of changes of an older incumbent, and what a kill leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import toy_lab
from autoresearch.base import git, variables
from autoresearch.base.errors import UserError
from autoresearch.executors import machine
from autoresearch.executors.sandbox import sandboxes
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import Event, ProposalRefused, RunEnded, RunStarted, Verdict
from autoresearch.ledger.ledger import Ledger
from autoresearch.ledger.records import Outcome, Place, Proposal, Purpose, RunEvent, Status
from autoresearch.loop.loop import confirm_now, run_campaign
from autoresearch.loop.parts import compose
from autoresearch.loop.parts.stages import Policy
from autoresearch.researchers.interface import Brief, Kit
from conftest import never, stages
from judged import posterior_judge

TWO = (Place(), Place())
needs_two = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two slots need two processors")
XS = (2.5, 2.2, 2.0, 1.8, 1.5, 1.2)
LINES = "A = 1\nB = 2\nC = 3\nD = 4\nE = 5\nF = 6\nG = 7\n"
TRAIN = f"""
from prepare import evaluate
X = 3.0
{LINES}Y = 2.0
{LINES}SLEEP = 0.0
import time
time.sleep(SLEEP)
evaluate(1 + (X - 1) ** 2 + (Y - 1) ** 2)
print("---")
"""


def edited(text: str = TRAIN, **numbers: float) -> str:
    for name, value in numbers.items():
        line = next(each for each in text.splitlines() if each.startswith(f"{name} = "))
        text = text.replace(f"{line}\n", f"{name} = {value}\n")
    return text


def change(idea: str, **numbers: float) -> Proposal:
    return Proposal(idea, {"train.py": edited(**numbers)})


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A lab with two numbers far enough from each other for changes of both to merge."""
    return toy_lab.make(tmp_path / "lab", train=TRAIN)


def until_made(count: int) -> Callable[[int], str | None]:
    return lambda made: "enough" if made >= count else None


def campaign(lab: Path, tag: str = "t") -> Campaign:
    return stages(lab).campaign(tag)


class Side:
    """A researcher that is asked several times side by side, and answers from a list."""

    name = "side"
    side_by_side = True

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.briefs: list[Brief] = []
        self._lock = threading.Lock()

    def propose(self, brief: Brief) -> Proposal:
        with self._lock:
            self.briefs.append(brief)
            return self.answers.pop(0)


def most_at_once(events: list[Event]) -> int:
    """How many runs were in flight at the same time."""
    now = most = 0
    for event in events:
        now += isinstance(event, RunStarted) - isinstance(event, RunEnded)
        most = max(most, now)
    return most


def test_trials_run_side_by_side_and_a_single_slot_never_does(wide: Path, tmp_path: Path) -> None:
    lines = [change(f"X to {x}", X=x, SLEEP=0.5) for x in (2.5, 2.0, 1.5)]
    for lab, places, most in ((wide, TWO, 2), (toy_lab.make(tmp_path / "one", train=TRAIN), TWO[:1], 1)):
        events: list[Event] = []
        run_campaign(stages(lab, lines, events, places=places), "t", never)
        assert most_at_once(events) == most
        assert [trial.verdict is not None for trial in campaign(lab).trials] == [True] * len(campaign(lab).trials)


def test_the_seeds_of_the_baseline_and_confirmations_fill_the_slots(wide: Path) -> None:
    events: list[Event] = []
    judge = posterior_judge(baseline_seeds=3, max_runs=1)
    places = (Place(),) * 3
    run_campaign(stages(wide, [change("X to 1.5", X=1.5)], events, judge=judge, places=places), "t", never)
    started = [event for event in events if isinstance(event, RunStarted)]
    assert {(each.run, each.seed) for each in started[:3]} == {(0, 42), (1, 43), (2, 44)}
    assert not any(isinstance(event, RunEnded) for event in events[: events.index(started[2])])
    confirming = [each for each in started if each.purpose is Purpose.CONFIRM]
    assert len({(each.trial, each.seed) for each in confirming}) == len(confirming) >= 4
    assert most_at_once(events) == 3


def test_a_confirmation_that_is_asked_for_fills_the_slots_too(wide: Path) -> None:
    judge = posterior_judge(baseline_seeds=2, max_runs=1)
    run_campaign(stages(wide, [change("X to 1.5", X=1.5)], judge=judge), "t", never, confirming=False)
    events: list[Event] = []
    found = confirm_now(stages(wide, events=events, judge=judge, places=TWO), "t", lambda: False)
    assert found is not None
    assert found.outcome is Outcome.CONFIRMED
    assert {event.purpose for event in events if isinstance(event, RunEnded)} == {Purpose.CONFIRM}
    assert most_at_once(events) == 2


@pytest.mark.slow
@needs_two
def test_what_comes_after_a_search_in_shares_of_a_machine_runs_in_such_a_share(wide: Path) -> None:
    """Otherwise its runs could not be compared with those of the search."""
    options = ("--trials", "1", "--no-confirm")
    process = start(wide, *options)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    before = Ledger(wide / ".autoresearch/ledger.jsonl").campaign()
    assert before is not None
    assert before.trials[0].runs[0].device is not None
    for words in (["replay", "0"], ["confirm"]):
        done = subprocess.run(
            [sys.executable, "-m", "autoresearch", words[0], "--lab", str(wide), *words[1:]],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
    (wide / "train.py").write_text(edited(X=1.1))
    tried = [sys.executable, "-m", "autoresearch", "try", "--lab", str(wide), "-m", "by hand"]
    done = subprocess.run(tried, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    after = Ledger(wide / ".autoresearch/ledger.jsonl").campaign()
    assert after is not None
    assert {run.device for trial in after.trials for run in trial.every_run} == {before.trials[0].runs[0].device}


def test_a_change_of_an_older_incumbent_is_carried_over_to_the_new_one(wide: Path) -> None:
    slow, quick = change("Y to 1.5", Y=1.5, SLEEP=3.0), change("X to 1.5", X=1.5)
    events: list[Event] = []
    run_campaign(
        stages(wide, events=events, researcher=Side(slow, quick), places=TWO),
        "t",
        until_made(3),
    )
    trials = campaign(wide).trials
    by_idea = {trial.proposed.idea: trial for trial in trials[:3]}
    late, early = by_idea["Y to 1.5"], by_idea["X to 1.5"]
    assert late.proposed.parent == early.proposed.parent == trials[0].proposed.commit
    assert late.verdict is not None
    assert late.verdict.carry
    assert f"carried over to #{early.number}" in late.verdict.reason
    both = trials[3]
    assert (both.proposed.carries, both.proposed.parent) == (late.number, early.proposed.commit)
    assert campaign(wide).status_of(both) is Status.KEEP
    text = git.files(wide, "autoresearch/t")["train.py"].decode()
    assert ("X = 1.5" in text, "Y = 1.5" in text) == (True, True)


def test_a_change_that_does_not_merge_goes_back_to_its_researcher(wide: Path) -> None:
    slow, quick = change("X to 2.0", X=2.0, SLEEP=3.0), change("X to 1.5", X=1.5)
    run_campaign(stages(wide, researcher=Side(slow, quick), places=TWO), "t", until_made(2))
    side = Side(change("X to 1.2", X=1.2))
    events: list[Event] = []
    run_campaign(stages(wide, events=events, researcher=side, places=TWO), "t", until_made(1))
    refused = [event for event in events if isinstance(event, ProposalRefused) and event.carries is not None]
    assert [each.idea for each in refused] == ["X to 2.0"]
    assert "does not merge" in refused[0].reason
    assert "X to 2.0" in [each.idea for each in side.briefs[0].campaign.refused]


def test_a_better_one_takes_the_place_of_a_line_whose_change_is_carried_over(wide: Path) -> None:
    slow, quick = change("X to 1.0", X=1.0, SLEEP=3.0), change("Y to 1.5", Y=1.5)
    run_campaign(stages(wide, researcher=Side(slow, quick), places=TWO), "t", until_made(3))
    found = campaign(wide)
    by_idea = {trial.proposed.idea: trial for trial in found.trials[:3]}
    assert found.status_of(by_idea["Y to 1.5"]) is Status.DISCARD, "it was kept until the better one came"
    assert [trial.proposed.carries for trial in found.trials][3] == by_idea["Y to 1.5"].number
    assert found.incumbent is found.trials[3]
    assert found.incumbent.val_bpb == 1.25


def test_a_twin_of_what_is_in_flight_is_refused_and_the_brief_lists_it(wide: Path) -> None:
    twin = change("the same", X=2.0, SLEEP=1.0)
    side = Side(twin, twin, change("another", X=1.5))
    run_campaign(stages(wide, researcher=side, places=TWO), "t", until_made(2))
    assert "tried before, as trial 1 (not judged yet)" in campaign(wide).refused[0].reason
    last = side.briefs[-1].campaign.trials
    assert [trial.number for trial in last if trial.verdict is None] == [1]


def test_no_more_trials_are_started_than_were_asked_for(wide: Path) -> None:
    lines = [change(f"X to {x}", X=x, SLEEP=0.3) for x in (2.5, 2.0, 1.5, 1.2)]
    run_campaign(stages(wide, researcher=Side(*lines), places=(Place(),) * 4), "t", until_made(2))
    assert len(campaign(wide).finished) == 3
    assert len(campaign(wide).trials) == 3


def test_a_change_to_carry_over_does_not_go_beyond_the_trials_that_were_asked_for(wide: Path) -> None:
    slow, quick = change("Y to 1.5", Y=1.5, SLEEP=3.0), change("X to 1.5", X=1.5)
    run_campaign(stages(wide, researcher=Side(slow, quick), places=TWO), "t", until_made(2))
    assert len(campaign(wide).trials) == 3
    run_campaign(stages(wide, researcher=Side(), places=TWO), "t", until_made(1))
    assert campaign(wide).trials[3].proposed.carries is not None, "it is made when there is room"


def test_several_questions_are_open_ahead_so_that_no_slot_waits_for_an_answer(wide: Path) -> None:
    """Answers take about a third as long as runs, so that three slots need a question ahead, and get two."""

    class Slow(Side):
        now = most = 0

        def propose(self, brief: Brief) -> Proposal:
            with self._lock:
                self.now += 1
                self.most = max(self.most, self.now)
            time.sleep(0.4)
            with self._lock:
                self.now -= 1
            return super().propose(brief)

    slow = Slow(*(change(f"X to {4 + n}", X=4.0 + n, SLEEP=1.0) for n in range(30)))
    policy = Policy(longest_pause_seconds=0.01, max_disturbance=1.0, ahead=1)
    events: list[Event] = []
    parts = stages(wide, events=events, researcher=slow, places=(Place(),) * 3, policy=policy)
    run_campaign(parts, "t", until_made(6))
    assert most_at_once(events) == 3
    assert slow.most >= 2


def test_the_same_campaign_with_one_slot_gives_the_same_verdicts_as_before(wide: Path) -> None:
    """What the loop of one run after the other recorded for these proposals."""
    lines = [change("worse", X=4.0), change("better", X=2.0), change("crash", X=1.0), change("best", X=1.5)]
    lines[2] = Proposal("crash", {"train.py": "raise ValueError('no')\n"})
    events: list[Event] = []
    run_campaign(stages(wide, lines, events), "t", never)
    told = [type(event).__name__ for event in events]
    trial = ["TrialProposed", "RunStarted", "RunEnded", "Verdict"]
    assert told == ["CampaignStarted", *trial * 5, "Stopped"]
    assert [each.verdict and each.verdict.status.value for each in campaign(wide).trials] == [
        *("keep", "discard", "keep", "crash", "keep")
    ]


def test_an_error_in_one_slot_ends_the_others_and_nothing_is_lost(wide: Path) -> None:
    lines = [change(f"X to {x}", X=x, SLEEP=30.0) for x in (2.5, 2.0)]
    stop = time.monotonic()

    def enough(made: int) -> str | None:
        if time.monotonic() > stop + 60 or len([t for t in parts.campaign("t").trials if t.verdict is None]) == 2:
            time.sleep(1.0)
            raise UserError("the disk is full")
        return None

    parts = stages(wide, researcher=Side(*lines), places=TWO)
    with pytest.raises(UserError, match="the disk is full"):
        run_campaign(parts, "t", enough)
    found = campaign(wide)
    assert [(trial.number, trial.verdict, trial.runs) for trial in found.trials[1:]] == [(1, None, ()), (2, None, ())]
    assert not any(thread.name == "run" for thread in threading.enumerate())


# ---------------------------------------------------------------- the whole program


def start(lab: Path, *options: str) -> subprocess.Popen[str]:
    script = lab.parent / "script.json"
    lines = [
        {"idea": f"X to {x}", "files": {"train.py": edited(X=x, SLEEP=1.0)}} for x in (2.5, 2.2, 2.0, 1.8, 1.5, 1.2)
    ]
    script.write_text(json.dumps(lines))
    command = [sys.executable, "-m", "autoresearch", "run", "--lab", str(lab), "--slots", "2", *options]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, "--researcher", f"scripted:{script}"], **pipes)


def until_both_fly(lab: Path, since: int = 0) -> int:
    """Wait until two runs are in flight, and return how long the ledger is then. `since` is how long it was before the
    loop started. A trial may be on record a moment before its run is."""
    path, end = lab / ".autoresearch/ledger.jsonl", time.monotonic() + 60
    while time.monotonic() < end:
        text = path.read_bytes()[since:] if path.exists() else b""
        kinds = [json.loads(line)["type"] for line in text.splitlines(keepends=True) if line.endswith(b"\n")]
        if kinds.count("run_started") - kinds.count("run_ended") == 2:
            return since + len(text)
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


@pytest.mark.slow
@needs_two
def test_a_kill_with_all_slots_busy_loses_nothing_and_doubles_nothing(wide: Path) -> None:
    since = 0
    for _ in range(2):
        process = start(wide)
        since = until_both_fly(wide, since)
        process.kill()
        process.communicate()
    process = start(wide)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    found = Ledger(wide / ".autoresearch/ledger.jsonl").campaign()
    assert found is not None
    own = [trial.proposed.idea for trial in found.trials if trial.proposed.carries is None]
    # One that was written while the incumbent changed may not fit the new one; then that is on record.
    stale = [each.idea for each in found.refused if each.carries is None]
    assert sorted(own + stale) == sorted(["baseline", *(f"X to {x}" for x in XS)])
    assert all(trial.verdict and len(trial.runs) == 1 for trial in found.trials)


@needs_two
@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_once_lets_those_in_flight_finish_and_twice_ends_them(wide: Path, presses: int) -> None:
    process = start(wide)
    until_both_fly(wide)
    for _ in range(presses):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    process.communicate(timeout=60)
    assert process.returncode == (0 if presses == 1 else 130)
    found = Ledger(wide / ".autoresearch/ledger.jsonl").campaign()
    assert found is not None
    open_trials = [trial for trial in found.trials if trial.verdict is None]
    assert len(open_trials) == (0 if presses == 1 else 2)
    assert not any(trial.runs for trial in open_trials)


def test_slots_divide_the_machine_and_more_than_it_has_is_refused() -> None:
    assert machine.places("auto", 0) == machine.places(1, 0) == machine.places(1, 4) == (Place(),)
    assert [place.gpu for place in machine.places("auto", 4)] == [0, 1, 2, 3]
    assert [place.gpu for place in machine.places(2, 4)] == [0, 1]
    with pytest.raises(UserError, match="3 slots need 3 GPUs, but there are 2"):
        machine.places(3, 2)
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(UserError, match="processors, but there are"):
        machine.places(cores + 1, 0)
    shares = machine.places(cores, 0)
    assert sorted(number for place in shares for number in place.processors) == sorted(os.sched_getaffinity(0))


@needs_two
def test_each_run_has_its_own_processors_and_as_many_threads(wide: Path) -> None:
    tell = "import os\nprint('CORES', sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'])\n"
    lines = [Proposal(f"X to {x}", {"train.py": tell + edited(X=x, SLEEP=0.5)}) for x in (2.5, 2.0)]
    parts = stages(wide, researcher=Side(*lines), places=machine.places(2, 0))
    run_campaign(parts, "t", until_made(2))
    logs = [(wide / trial.runs[0].log).read_text() for trial in campaign(wide).trials[1:]]
    said = [next(line for line in log.splitlines() if line.startswith("CORES")) for log in logs]
    assert len(set(said)) == 2
    assert len(os.sched_getaffinity(0)) >= 2, "this program itself keeps them all"


@pytest.mark.parametrize(("visible", "seen"), [(None, ["GPU 0", "GPU 1"]), ("5,GPU-3f", ["GPU 5", "GPU GPU-3f"])])
def test_a_gpu_of_its_own_is_all_that_a_run_sees(
    wide: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, seen: list[str]
) -> None:
    """One of those that the user lets this program see."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    tell = "import os\nprint('GPU', os.environ['CUDA_VISIBLE_DEVICES'])\n"
    lines = [Proposal(f"X to {x}", {"train.py": tell + edited(X=x, SLEEP=0.5)}) for x in (2.5, 2.0)]
    parts = stages(wide, researcher=Side(*lines), places=(Place(gpu=0), Place(gpu=1)))
    run_campaign(parts, "t", until_made(2))
    logs = [(wide / trial.runs[0].log).read_text() for trial in campaign(wide).trials[1:]]
    assert sorted(next(line for line in log.splitlines() if line.startswith("GPU")) for log in logs) == seen


AGENT = """
import os, pathlib, re, sys, time
sys.stdin.read()
there = pathlib.Path(sys.argv[1])
(there / str(os.getpid())).write_text("")
began = time.monotonic()
while len(list(there.iterdir())) < 2:  # until the other one is asked too
    assert time.monotonic() - began < 60, "nobody else is asked"
    time.sleep(0.05)
number = sorted(path.name for path in there.iterdir()).index(str(os.getpid()))
time.sleep(number)  # one ends before the other
train = pathlib.Path("train.py")
letter = "AG"[number % 2]  # lines that do not conflict
train.write_text(re.sub(rf"(?m)^{letter} = .*", f"{letter} = {50 + number}", train.read_text(), count=1))
pathlib.Path("IDEA.md").write_text(f"agent {number}")
print("said by agent", number)
"""


@pytest.mark.slow
def test_agents_are_asked_side_by_side_and_each_trial_has_its_own_transcript(wide: Path) -> None:
    """The end of one does not end the other."""
    (wide.parent / "agent.py").write_text(AGENT)
    (wide.parent / "asked").mkdir()
    parts = stages(wide)
    kit = Kit(
        deadline_seconds=90,
        environment=variables.of_user(),
        transcripts=parts.workspace.transcripts,
        scratch=parts.workspace.worktrees,
        namespace=f"lab:{wide}:",
        supervised=sandboxes.supervised,
    )
    agent = compose.researcher(f"command:{sys.executable} {wide.parent / 'agent.py'} {wide.parent / 'asked'}", kit)
    run_campaign(stages(wide, researcher=agent, places=TWO), "t", until_made(2))
    made = campaign(wide).trials[1:3]
    assert len({trial.proposed.idea for trial in made}) == 2
    for trial in made:
        text = (wide / f".autoresearch/trials/{trial.number:04d}/transcript.log").read_text()
        assert re.findall(r"said by (agent \d)", text) == [trial.proposed.idea]


def test_the_other_slot_goes_on_while_a_keep_is_examined(wide: Path) -> None:
    """Its verdict waits for that, and is about the best version as it is then."""
    told: list[str] = []

    def examine(trial: Trial, poll: Callable[[], None]) -> str | None:
        told.append(f"examined {trial.number}")
        while told.count("started") < 4:  # the baseline, it, and two more
            poll()
            time.sleep(0.05)
        told.append("found")
        return "its model is another one"

    def announce(event: Event) -> None:
        told.extend(["started"] * isinstance(event, RunStarted) + ["verdict"] * isinstance(event, Verdict))

    lines = [Proposal(f"X to {x}", {"train.py": edited(X=x, SLEEP=0.3)}) for x in (2.5, 3.5, 4.0)]
    parts = stages(wide, researcher=Side(*lines), places=TWO, examine=examine, announce=announce)
    run_campaign(parts, "t", until_made(3))
    assert told.index("examined 1") < told.index("found")
    statuses = {trial.number: trial.verdict.status for trial in campaign(wide).trials if trial.verdict}
    assert statuses[1] is Status.INVALID
    assert statuses[2] is Status.DISCARD


def test_an_examination_is_ended_with_its_loop(wide: Path) -> None:
    ended = threading.Event()

    def examine(trial: Trial, poll: Callable[[], None]) -> str | None:
        try:
            while True:
                poll()
                time.sleep(0.05)
        finally:
            ended.set()

    def progress(number: int, event: RunEvent) -> None:
        if event.name == "examined_again":
            threading.Timer(0.5, signal.raise_signal, (signal.SIGINT,)).start()

    parts = stages(wide, researcher=Side(change("X to 2.5", X=2.5)), places=TWO, examine=examine, progress=progress)
    with pytest.raises(KeyboardInterrupt):
        run_campaign(parts, "t", never)
    assert ended.is_set()
    assert campaign(wide).trials[1].verdict is None
