"""A researcher of flesh and bugs: real programs that do everything wrong, and a loop that counts, tells and goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import toy_lab
from autoresearch.base import variables
from autoresearch.base.process import MARK
from autoresearch.ledger.campaign import Campaign
from autoresearch.ledger.events import ProposalRefused
from autoresearch.ledger.records import Proposal, Status
from autoresearch.loop.asking.proposals import Answer, admit
from autoresearch.loop.loop import run_campaign
from autoresearch.loop.parts import compose
from autoresearch.loop.parts.stages import Stages
from autoresearch.researchers.interface import Kit
from autoresearch.researchers.llm.reply import ReplyError, parse
from conftest import stages

# One program that does another thing each time it is called; it counts its calls in a file beside the lab.
AGENT = """
import os, pathlib, signal, sys, time
count = pathlib.Path(sys.argv[1])
number = int(count.read_text() or 0) if count.exists() else 0
count.write_text(str(number + 1))
prompt = sys.stdin.read()
train = pathlib.Path("train.py")
def edit(x):
    lines = train.read_text().splitlines()
    lines = [f"X = {x}" if line.startswith("X = ") else line for line in lines]
    train.write_text("\\n".join(lines) + "\\n")
def act():
    if number == 0:
        return
    if number == 1:
        print("Shall I make the model deeper?")
    elif number == 2:
        raise RuntimeError("out of order")
    elif number == 3:
        edit(2.9)
        time.sleep(60)
    elif number == 4:
        train.write_bytes(bytes(range(128, 256)))
    elif number == 5:
        pathlib.Path("prepare.py").write_text("TIME_BUDGET = 1e9\\n")
    elif number == 6:
        train.unlink()
    elif number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    elif number == 8:
        train.write_text("def (:\\n")
    else:
        assert "may not be changed" in prompt or "syntax error" in prompt or number > 9, "it is told"
        edit(2.0)
        pathlib.Path("IDEA.md").write_text("X to 2\\n")
act()
"""
SAID = (
    "changed no file",
    "Shall I make the model deeper?",
    "RuntimeError: out of order",
    "ended at its deadline",
    "train.py",
    "prepare.py may not change",
    "train.py",
    "signal 9",
    "syntax error in line 1",
)


def command(lab: Path, agent: str = AGENT) -> str:
    script = lab.parent / "agent.py"
    script.write_text(agent)
    return f"command: {sys.executable} {script} {lab.parent / 'count'}"


def with_agent(lab: Path, seconds: float = 3.0) -> Stages:
    parts = stages(lab)
    kit = Kit(
        deadline_seconds=seconds,
        environment=variables.of_user(),
        transcripts=parts.workspace.transcripts,
        scratch=parts.workspace.worktrees,
        namespace=f"lab:{lab}:",
    )
    return stages(lab, researcher=compose.researcher(command(lab), kit))


def campaign(lab: Path) -> Campaign:
    return stages(lab).campaign("t")


def leftovers(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            found += [process] if process.environ().get(MARK, "").startswith(mark) else []
        except psutil.Error:
            continue
    return found


def test_a_program_that_does_everything_wrong_is_told_each_time_and_gets_its_trial_in_the_end(lab: Path) -> None:
    run_campaign(with_agent(lab), "t", lambda made: "enough" if made >= 1 else None)
    reasons = [refused.reason for refused in campaign(lab).refused]
    assert len(reasons) == len(SAID), reasons
    assert [said for said, reason in zip(SAID, reasons, strict=True) if said not in reason] == []
    best = campaign(lab).incumbent
    assert best is not None
    assert (best.proposed.idea, best.val_bpb) == ("X to 2", 2.0)
    assert sorted(path.name for path in lab.iterdir() if not path.name.startswith(".")) == [
        *("prepare.py", "program.md", "results.tsv", "train.py")
    ]
    assert list((lab / ".autoresearch/worktrees").iterdir()) == []
    assert leftovers(f"lab:{lab}:") == []
    transcript = (lab / ".autoresearch/trials/0001/transcript.log").read_text()
    assert "Shall I make the model deeper?" in transcript


WAITING = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text('here'); time.sleep(120)"


def start(lab: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "autoresearch", "run", "--lab", str(lab), "--researcher", command(lab, WAITING)]
    loop = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 60
    while not (lab.parent / "count").exists():
        assert time.monotonic() < until, "the agent is never called"
        time.sleep(0.05)
    return loop


def test_ctrl_c_while_an_agent_thinks_ends_both_at_once(lab: Path) -> None:
    loop = start(lab)
    began = time.monotonic()
    loop.send_signal(signal.SIGINT)
    out, _ = loop.communicate(timeout=30)
    assert loop.returncode == 0, out
    assert time.monotonic() - began < 20
    assert leftovers(f"lab:{lab}:") == []


def test_an_agent_that_outlives_a_killed_loop_is_ended_by_the_next(lab: Path) -> None:
    loop = start(lab)
    psutil.Process(loop.pid).suspend()
    for process in leftovers(f"lab:{lab}:"):
        if process.ppid() == loop.pid and process.children():  # its supervisor on Linux, which would end it at once
            process.kill()
    loop.kill()
    loop.communicate()
    assert leftovers(f"lab:{lab}:")
    assert list((lab / ".autoresearch/worktrees").iterdir())
    (lab / "train.py").write_text(toy_lab.train_with(2.0))
    words = [sys.executable, "-m", "autoresearch", "try", "--lab", str(lab), "-m", "by hand"]
    assert subprocess.run(words, capture_output=True, timeout=60).returncode == 0
    assert leftovers(f"lab:{lab}:") == []
    assert list((lab / ".autoresearch/worktrees").iterdir()) == []


def test_a_try_that_is_terminated_leaves_no_run(lab: Path) -> None:
    (lab / "train.py").write_text(toy_lab.train_with(2.0, "import time; time.sleep(120)"))
    words = [sys.executable, "-m", "autoresearch", "try", "--lab", str(lab), "-m", "slow"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as loop:
        until = time.monotonic() + 60
        while not any("train.py" in process.cmdline() for process in leftovers(f"lab:{lab}:/0001")):
            assert time.monotonic() < until, "the run never starts"
            time.sleep(0.05)
        loop.terminate()
        loop.communicate(timeout=30)
    assert loop.returncode == 130
    assert leftovers(f"lab:{lab}:") == []


# ---------------------------------------------------------------- a thousand replies

PATHS = st.sampled_from(
    ["train.py", "prepare.py", "../x.py", "/tmp/x.py", ".git/config", "a\0b", "", "con", "train.py "]
)
WORDS = st.one_of(
    st.text(max_size=60),
    st.sampled_from(["X = 3.0", "X = 2.0", "X = (", "\0", "\ud800", "(" * 900, "idea:", "=======", "import os"]),
)
BLOCK = st.builds(
    "<<<<<<< SEARCH {}\n{}\n=======\n{}\n>>>>>>> REPLACE\n".format,
    PATHS,
    st.one_of(st.just("X = 3.0"), WORDS),
    st.one_of(st.integers(-9, 9).map("X = {}".format), WORDS),
)
WHOLE = st.builds("```python {}\n{}\n```\n".format, PATHS, WORDS)
HEAD = st.sampled_from(
    ["idea: another X\nwhy: so\nexpects: -0.1\n\n", "**Idea:** x\n", "What shall I do?\n", "", '{"idea": "x"}']
)
GOOD = "idea: x\n<<<<<<< SEARCH train.py\nX = 3.0\n=======\nX = 2.0\n>>>>>>> REPLACE\n"
REPLIES = st.one_of(
    st.text(max_size=300),
    st.builds(lambda head, parts: head + "".join(parts), HEAD, st.lists(st.one_of(BLOCK, WHOLE, WORDS), max_size=4)),
)


def test_of_a_thousand_fuzzed_replies_each_is_a_trial_or_a_sentence_and_leaves_no_stray_file(lab: Path) -> None:
    run_campaign(stages(lab), "t", lambda made: None)
    parts, begun = stages(lab), campaign(lab)
    assert begun.incumbent is not None
    commit = begun.incumbent.proposed.commit
    files = parts.texts(commit)
    before = {path for path in lab.parent.rglob("*") if ".git" not in path.parts}
    seen: set[str] = set()
    calls: list[str] = []

    @settings(max_examples=1000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(REPLIES)
    @example(GOOD)
    @example(GOOD.replace("2.0", "3.01"))
    def one(text: str) -> None:
        calls.append(text)
        try:
            reply = parse(text, files)
        except ReplyError as error:
            seen.add("malformed" if str(error) else "without a word")
            return
        outcome = admit(parts, begun, Proposal(reply.idea, reply.files), "fuzz", written_for=files)
        seen.add(type(outcome).__name__)
        if isinstance(outcome, Answer):
            parts.workspace.commit("t", 1, commit, outcome.proposal.files, outcome.proposal.idea)

    one()
    assert len(calls) >= 1000
    assert seen == {"malformed", ProposalRefused.__name__, Answer.__name__}
    assert {path for path in lab.parent.rglob("*") if ".git" not in path.parts} - before <= {
        lab / ".autoresearch/worktrees"
    }
    assert [trial.verdict.status for trial in campaign(lab).finished if trial.verdict] == [Status.KEEP]
