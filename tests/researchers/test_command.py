"""What a program that is asked for a proposal may do, well or badly, and what becomes of it; the programs are real."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from autoresearch.base import process
from autoresearch.base.errors import NoProposal, UserError
from autoresearch.base.registry import find
from autoresearch.executors.sandbox import sandboxes
from autoresearch.ledger.records import CrashKind, Proposal
from autoresearch.researchers.coding_agents import command
from autoresearch.researchers.coding_agents.command import CommandResearcher
from autoresearch.researchers.coding_agents.handover import summary
from autoresearch.researchers.coding_agents.known import (
    AGENTS,
    aider_account,
    claude_account,
    codex_account,
    opencode_account,
)
from autoresearch.researchers.guard.rules import broken_rule
from autoresearch.researchers.interface import Archive, Brief, Failure, Kit
from campaigns import after, begun

TRAIN = "X = 3.0\nY = 2\nprint(X, Y)\n"
KEY = "sk-secret-0123456789"
EDIT = "text = open('train.py').read(); open('train.py', 'w').write(text.replace('X = 3.0', 'X = 2.0'))\n"
TABLE = {
    name: f"autoresearch.researchers.coding_agents.command:{name.capitalize()}Researcher"
    for name in ("command", *AGENTS)
}
Ask = Callable[..., Proposal]


@pytest.fixture
def brief() -> Brief:
    archive = Archive(
        patch=lambda trial: f"-X = {trial}\n+X = {trial + 1}\n",
        log=lambda trial: "step 1\x1b[31m\n" * 10_000,
        curve=lambda trial: [{"step": step, "loss": 2.0} for step in range(1000)],
    )
    frozen = {"prepare.py": "Z = 1\n", "docs/notes.txt": "Grüße\r\n"}
    started = begun({"train.py": TRAIN})
    return dataclasses.replace(started, frozen=frozen, archive=archive, trial=7)


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(
        deadline_seconds=20.0,
        environment={**os.environ, "SOME_KEY": KEY},
        transcripts=tmp_path / "trials",
        scratch=tmp_path / "scratch",
        namespace=f"test:{tmp_path}:",
        redact=lambda text: text.replace(KEY, "[redacted]"),
        supervised=sandboxes.supervised,
    )


@pytest.fixture
def ask(tmp_path: Path, kit: Kit, brief: Brief) -> Iterator[Ask]:
    """Ask a program that is this Python code; afterwards no process and no directory of it may be left."""

    def ask(code: str, *, brief: Brief = brief, **limits: float) -> Proposal:
        agent = tmp_path / "my agent.py"
        agent.write_text(f"#!{sys.executable}\nimport os, sys, time\n{textwrap.dedent(code)}")
        agent.chmod(0o755)
        return CommandResearcher(f" '{agent}' --fast", dataclasses.replace(kit, **limits)).propose(brief)

    yield ask
    assert list(kit.scratch.iterdir()) == []
    assert process.processes_of(kit.namespace) == []


def is_over(pid: int) -> bool:
    """Whether a process has ended, though nobody may have asked for its exit code yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def transcript(kit: Kit) -> str:
    return (kit.transcripts / "0007-0.log").read_text()


# ---------------------------------------------------------------- what is taken


def test_whatever_it_did_to_the_editable_files_is_the_proposal(ask: Ask, brief: Brief) -> None:
    proposal = ask(EDIT + "open('new.py', 'w').write('1')\nprint('working')\nprint('**a smaller X**')")
    assert proposal.files == {"train.py": TRAIN.replace("3.0", "2.0")}
    assert proposal.idea == "a smaller X"
    assert (proposal.tokens, proposal.usd, proposal.repairs) == (None, None, None)
    assert broken_rule(proposal, brief.files, {}.get, ("train.py",)) is None


def test_its_file_says_the_idea_why_and_what_it_expects(ask: Ask) -> None:
    idea = f"# A smaller\\tX \\x1b[1m\\n\\n**why: it is too large {KEY}\\nExpects: a little\\n"
    proposal = ask(EDIT + f"open('IDEA.md', 'w').write('{idea}')\nprint('done')")
    assert proposal.idea == "A smaller X [1m"
    assert (proposal.why, proposal.expects) == ("it is too large [redacted]", "a little")


def test_without_a_word_the_change_itself_is_the_idea(ask: Ask) -> None:
    assert ask(EDIT).idea == "X 3 to 2"
    assert ask(EDIT + "print('word ' * 50)").idea == "X 3 to 2"
    assert ask("open('train.py', 'a').write('print(1)\\nprint(2)\\n')").idea == "train.py: lines +2 -0"
    assert summary({"a.py": "x = 1\ny = 2\n"}, {"a.py": "x = (\n"}) == "a.py: lines +1 -2"


def test_a_frozen_file_that_it_changed_is_told_to_the_guard(ask: Ask, brief: Brief) -> None:
    proposal = ask(EDIT + "open('prepare.py', 'w').write('Z = 2\\n')")
    assert set(proposal.files) == {"train.py", "prepare.py"}
    assert "prepare.py may not change" in (broken_rule(proposal, brief.files, {}.get, ("train.py",)) or "")


def test_an_agent_that_fails_after_its_edit_has_made_it_all_the_same(ask: Ask) -> None:
    assert ask(EDIT + "sys.exit(3)").files == {"train.py": TRAIN.replace("3.0", "2.0")}


def test_a_crash_is_mended_from_the_files_that_crashed(ask: Ask, brief: Brief) -> None:
    crashed = {"train.py": TRAIN.replace("Y = 2", "Y = 1/0")}
    failure = Failure(5, "faster", CrashKind.PYTHON_ERROR, "ZeroDivisionError", "", crashed, 1, 2)
    brief = dataclasses.replace(brief, failure=failure)
    mend = "text = open('train.py').read()\nopen('train.py', 'w').write(text.replace('1/0', '{}'))"
    proposal = ask(mend.format("1"), brief=brief)
    assert (proposal.files, proposal.repairs) == ({"train.py": TRAIN.replace("Y = 2", "Y = 1")}, 5)
    with pytest.raises(NoProposal, match="took the change back"):
        ask(mend.format("2"), brief=brief)
    with pytest.raises(NoProposal, match="changed no file"):
        ask("", brief=brief)


# ---------------------------------------------------------------- what it finds


def test_the_prompt_is_on_stdin_and_in_a_file(ask: Ask, kit: Kit) -> None:
    code = "said = sys.stdin.read()\nassert said == open('PROMPT.md').read()\nprint(sys.argv[1:])\n"
    ask(code + "assert 'Lower val_bpb' in said and 'X = 3.0' in said and 'IDEA.md' in said\n" + EDIT)
    assert "['--fast']" in transcript(kit)
    assert "Nobody answers questions" in transcript(kit)


def test_the_past_lies_beside_the_files_and_is_cut_to_a_length(ask: Ask, kit: Kit, brief: Brief) -> None:
    for x in range(15):
        brief = dataclasses.replace(
            after(brief, Proposal("worse", {"train.py": TRAIN.replace("3.0", f"3.{x}")}), 2.0),
            frozen=brief.frozen,
            archive=brief.archive,
            trial=7,
        )
    code = """
        import json, pathlib
        past = {str(p): p.read_text() for p in pathlib.Path("past").rglob("*") if p.is_file()}
        print(json.dumps(past), file=open("/dev/stderr", "w"))
    """
    ask(textwrap.dedent(code) + EDIT, brief=brief)
    past = json.loads(next(line for line in transcript(kit).splitlines() if line.startswith('{"past/')))
    trials = {path.split("/")[1] for path in past}
    assert trials == {"0000", *(f"{number:04d}" for number in range(6, 16))}
    assert "+X = 7" in past["past/0006/patch.diff"]
    assert "\x1b" not in past["past/0006/log.txt"]
    assert json.loads(past["past/0006/curve.jsonl"].splitlines()[0]) == {"step": 0, "loss": 2.0}
    assert max(len(text) for text in past.values()) < 21_000


def test_it_works_in_a_repository_of_its_own_that_has_no_way_up(ask: Ask, kit: Kit) -> None:
    kit.scratch.mkdir(parents=True)
    os.system(f"git init --quiet {kit.scratch.parent}")
    code = """
        os.system("git status --porcelain; git log --format=%s; git ls-files")
        os.system("rm -rf .git; git rev-parse --show-toplevel || echo NONE")
    """
    ask(textwrap.dedent(code) + EDIT)
    said = transcript(kit).split("===== command says\n")[1].splitlines()
    assert said[0] == "The files to start from"
    assert {"PROMPT.md", "docs/notes.txt", "prepare.py", "train.py", "NONE"} <= set(said)


def test_bytes_of_a_file_go_through_unchanged(ask: Ask) -> None:
    code = "data = open('docs/notes.txt', 'rb').read(); assert data == 'Grüße\\r\\n'.encode(), data\n"
    proposal = ask(code + "open('train.py', 'wb').write('X = 1\\r\\n# ü'.encode())")
    assert proposal.files == {"train.py": "X = 1\r\n# ü"}


# ---------------------------------------------------------------- what is not taken


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("", r"succeeded but changed no file; its last words: \(none\)"),
        ("print('Shall I\\n  lower X?')", "last words: Shall I lower X?"),
        (f"print('{KEY}')", "redacted"),
        ("raise RuntimeError('no credit')", "failed with code 1 and changed no file.*RuntimeError: no credit"),
        ("open('train.py', 'wb').write(bytes(range(256)))", "train.py is no longer text: it is not UTF-8"),
        ("open('train.py', 'w').truncate(3_000_000)", "train.py has grown to 3.0 MB"),
        ("os.remove('train.py')", "train.py was deleted"),
        ("os.remove('prepare.py')", "prepare.py was deleted"),
        ("import shutil; shutil.rmtree('docs')", "docs/notes.txt was deleted"),
        ("os.remove('train.py'); os.mkdir('train.py')", "train.py is no longer a regular file"),
        ("os.remove('train.py'); os.mkfifo('train.py')", "train.py is no longer a regular file"),
        ("os.remove('train.py'); os.symlink('/etc/passwd', 'train.py')", "train.py is a link now"),
        ("os.rename('docs', 'd'); os.symlink('d', 'docs')", "docs/notes.txt is a link now"),
        ("here = os.getcwd(); os.rename(here, here + '2'); os.symlink(here + '2', here)", "is a link now"),
        ("os.chmod('.', 0)", "changed no file"),
        (f"open('train.py', 'a').write('# {KEY}')", "wrote a secret key into train.py"),
        (EDIT + "os.kill(os.getpid(), 9)", "command was ended by signal 9"),
        (EDIT + "time.sleep(60)", "ended at its deadline of 1 s"),
    ],
)
def test_what_cannot_be_taken_is_told_in_a_sentence(ask: Ask, code: str, complaint: str) -> None:
    with pytest.raises(NoProposal, match=complaint) as raised:
        ask(code, deadline_seconds=1.0)
    assert KEY not in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_hanging_agent_is_ended_with_all_that_it_started(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE_SECONDS", 0.5)
    code = f"""
        import signal, subprocess
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = "import os, time\\nif os.fork() == 0:\\n    os.setsid()\\n    open('{tmp_path}/pid', 'w')"
        child += ".write(str(os.getpid()))\\n    time.sleep(60)"
        subprocess.run([sys.executable, "-c", child])
        time.sleep(60)
    """
    start = time.monotonic()
    with pytest.raises(NoProposal, match="deadline of 1 s"):
        ask(textwrap.dedent(code), deadline_seconds=1.0)
    assert time.monotonic() - start < 15
    assert is_over(int((tmp_path / "pid").read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="a supervisor needs Linux")
def test_a_daemon_without_our_mark_and_session_is_ended_with_the_agent(ask: Ask, tmp_path: Path) -> None:
    code = f"""
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                code = "import os, time; open('{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(60)"
                os.execve(sys.executable, [sys.executable, "-c", code], {{}})
            os._exit(0)
        os.wait()
        while not os.path.exists("{tmp_path}/pid") or not open("{tmp_path}/pid").read():
            time.sleep(0.01)
    """
    ask(textwrap.dedent(code) + EDIT, deadline_seconds=30.0)
    assert is_over(int((tmp_path / "pid").read_text()))


def test_a_flood_of_output_is_ended_and_kept_in_part(ask: Ask, kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "OUTPUT_LIMIT", 2_000_000)
    with pytest.raises(NoProposal, match="more than 2 MB of output"):
        ask("while True: print('x' * 1000)", deadline_seconds=15.0)
    assert len(transcript(kit)) < 1_100_000


def test_an_interrupt_leaves_nothing(ask: Ask, kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(call: command.Call, elapsed: float) -> None:
        if (call.work / "ready").exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(command.Call, "_watch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ask("print('begun', flush=True); open('ready', 'w').close(); time.sleep(60)")
    assert "begun" in transcript(kit)


def test_no_key_is_in_the_transcript_and_calls_follow_each_other_in_it(ask: Ask, kit: Kit) -> None:
    for _ in range(2):
        ask(EDIT + "print('the key is', os.environ['SOME_KEY'])")
    assert transcript(kit).count("the key is [redacted]") == 2
    assert KEY not in transcript(kit)


# ---------------------------------------------------------------- how it is named


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("  ", "needs a program: write for example"),
        ("no-such-program-here", "'no-such-program-here', which is not on the PATH or not executable"),
        ("./agent 'unclosed", "close its quotes"),
        (__file__, "not on the PATH or not executable"),
    ],
)
def test_a_program_that_is_not_there_is_one_clear_sentence(argument: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        CommandResearcher(argument)


def test_a_program_that_cannot_be_started_is_one_clear_sentence(tmp_path: Path, kit: Kit, brief: Brief) -> None:
    (tmp_path / "agent").write_text("#!/no/such/interpreter\n")
    (tmp_path / "agent").chmod(0o755)
    with pytest.raises(UserError, match="cannot start"):
        CommandResearcher(str(tmp_path / "agent"), kit).propose(brief)


def test_a_relative_program_is_found_from_where_it_was_named(
    tmp_path: Path, kit: Kit, brief: Brief, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "agent.sh").write_text("#!/bin/sh\nsed -i.bak 's/3.0/2.5/' train.py\n")
    (tmp_path / "agent.sh").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    researcher = CommandResearcher("./agent.sh", kit)
    monkeypatch.chdir("/")
    assert researcher.propose(brief).files == {"train.py": TRAIN.replace("3.0", "2.5")}


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_that_is_not_installed_is_told_with_the_command_that_installs_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"researcher {name} needs .*install it with `.*install"):
        find("researcher", TABLE, name)("", Kit(environment={"PATH": str(tmp_path)}))


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_is_called_with_its_flags_its_model_and_its_limit(
    name: str, tmp_path: Path, kit: Kit, brief: Brief
) -> None:
    agent = tmp_path / name
    agent.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[1:])\n{EDIT}")
    agent.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    kit = dataclasses.replace(kit, environment={"PATH": path}, max_usd=0.5)
    assert find("researcher", TABLE, name)("some-model", kit).propose(brief).files
    said = transcript(kit).split(" says\n")[1]
    assert "'--model', 'some-model'" in said
    assert ("'--max-budget-usd', '0.5'" in said) == (name == "claude")
    assert ("PROMPT.md', 'train.py', 'IDEA.md'" in said) == (name == "aider")


# ---------------------------------------------------------------- what agents say that they spent


def test_what_an_agent_reports_of_its_spending_is_read() -> None:
    usage = {"input_tokens": 5, "cache_read_input_tokens": 2, "output_tokens": 1}
    message = json.dumps({"type": "assistant", "message": {"id": "a", "usage": usage}})
    result = json.dumps({"type": "result", "result": "done", "usage": usage, "total_cost_usd": 0.25})
    assert claude_account(f"{message}\n{message}\nbroken {{").tokens == 8
    assert (claude_account(f"{message}\n{result}").tokens, claude_account(result).usd) == (8, 0.25)
    turn = json.dumps({"type": "turn.completed", "usage": {"input_tokens": 9, "cached_input_tokens": 4}})
    assert codex_account(f"{turn}\n{turn}").tokens == 18
    finish = {"type": "step-finish", "cost": 0.5, "tokens": {"input": 3, "output": 2, "cache": {"read": 1}}}
    step = json.dumps({"type": "step_finish", "part": finish})
    assert (opencode_account(f"{step}\n{step}").tokens, opencode_account(step).usd) == (12, 0.5)
    told = "Tokens: 1.2k sent, 900 cache hit, 30 received. Cost: $0.01 message, $0.03 session.\nApplied edit.\n"
    assert (aider_account(told * 2).tokens, aider_account(told).usd) == (2460, 0.03)


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("output", ["", "{}\n[]\n1", '{"usage": 3, "item": 1, "part": [], "message": "m", "stats": 0}'])
def test_garbage_is_no_account(name: str, output: str) -> None:
    account = AGENTS[name].account(output)
    assert (account.tokens, account.usd) == (None, None)
