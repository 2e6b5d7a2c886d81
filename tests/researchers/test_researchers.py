"""What every researcher must do, whatever it is made of; and the registry that they are chosen from."""

from __future__ import annotations

import ast
import copy
import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autoresearch.base.errors import Exhausted, UserError
from autoresearch.base.registry import RESEARCHERS, find
from autoresearch.ledger.records import CrashKind, Proposal
from autoresearch.researchers.builtin.researcher import BuiltinResearcher
from autoresearch.researchers.guard.rules import broken_rule
from autoresearch.researchers.interface import Brief, Failure, Kit, Researcher
from autoresearch.researchers.simple.python import PythonResearcher
from autoresearch.researchers.simple.scripted import ScriptedResearcher
from campaigns import after, begun
from lab_files import LAB
from model_server import Heard, Say, model_server

SCRIPT = [
    {"idea": "faster embeddings", "edits": [["train.py", "EMBEDDING_LR = 0.6", "EMBEDDING_LR = 0.7"]]},
    {"idea": "slower matrices", "edits": [["train.py", "MATRIX_LR = 0.04", "MATRIX_LR = 0.03"]]},
    {"idea": "more decay", "edits": [["train.py", "\nWEIGHT_DECAY = 0.2", "\nWEIGHT_DECAY = 0.3"]]},
    {"idea": "less decay", "edits": [["train.py", "\nWEIGHT_DECAY = 0.2", "\nWEIGHT_DECAY = 0.1"]]},
]
# Its answer is a function of its prompt: it sets the embeddings' learning rate to a number made from a digest of it.
RATE = """
import hashlib, re
def rate(prompt):
    return round(0.1 + int(hashlib.sha256(prompt.encode()).hexdigest()[:6], 16) / 2**24, 4)
def edited(text, prompt):
    return re.sub("^EMBEDDING_LR = .*$", f"EMBEDDING_LR = {rate(prompt)}", text, flags=re.MULTILINE)
"""
AGENT = f"""#!{sys.executable}
{RATE}
import pathlib, sys
prompt = sys.stdin.read() or pathlib.Path(sys.argv[sys.argv.index("--message-file") + 1]).read_text()
train = pathlib.Path("train.py")
train.write_text(edited(train.read_text(), prompt))
pathlib.Path("IDEA.md").write_text(f"embeddings at {{rate(prompt)}}\\nwhy: a digest says so\\n")
"""
OWN = f"""{RATE}
from autoresearch.ledger.records import Proposal
def propose(brief):
    prompt = repr((len(brief.campaign.trials), brief.refusal))
    return Proposal(f"embeddings at {{rate(prompt)}}", {{"train.py": edited(brief.files["train.py"], prompt)}})
"""
AGENTS = ("claude", "codex", "gemini", "opencode", "aider")


def reply(heard: Heard) -> Say:
    """What the scripted model says."""
    space: dict[str, Any] = {}
    exec(RATE, space)
    prompt = json.dumps(heard.body["messages"])
    train = re.search(r"^EMBEDDING_LR = .*$", heard.body["messages"][-1]["content"], re.MULTILINE)
    assert train is not None
    rate = space["rate"](prompt)
    edit = f"<<<<<<< SEARCH train.py\n{train[0]}\n=======\nEMBEDDING_LR = {rate}\n>>>>>>> REPLACE\n"
    return Say(f"idea: embeddings at {rate}\nwhy: a digest says so\nexpects: -0.001\n\n{edit}")


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    """The address of a scripted language model."""
    with model_server(reply) as server:
        yield f"{server.url}/v1"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("researchers")


@pytest.fixture(scope="module")
def kit(place: Path, model: str) -> Kit:
    """What the researchers are lent: stand-ins for the agents on the PATH, and the scripted model."""
    programs = place / "programs"
    programs.mkdir()
    for name in (*AGENTS, "mine"):
        (programs / name).write_text(AGENT)
        (programs / name).chmod(0o755)
    return Kit(
        base_url=model,
        environment={"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "OPENAI_API_KEY": "sk-of-the-test"},
        transcripts=place / "trials",
        scratch=place / "scratch",
    )


@pytest.fixture(params=sorted(RESEARCHERS), scope="module")
def make(request: pytest.FixtureRequest, kit: Kit, place: Path) -> Callable[[], Researcher]:
    """Makes the researcher of a name afresh, as the registry does."""
    (place / "own.py").write_text(OWN)
    (place / "script.json").write_text(json.dumps(SCRIPT))
    arguments = {
        **dict.fromkeys(("llm", "llm+knobs"), "openai:scripted"),
        "command": "mine",
        "python": str(place / "own.py"),
        "scripted": str(place / "script.json"),
    }
    return lambda: find("researcher", RESEARCHERS, request.param)(arguments.get(request.param, ""), kit)


@pytest.fixture(scope="module")
def brief() -> Brief:
    return begun({"train.py": (LAB / "train.py").read_text()})


@pytest.fixture(scope="module")
def proposed(make: Callable[[], Researcher], brief: Brief) -> list[tuple[Brief, Proposal]]:
    """What it proposes in several situations: at the start, after a keep, after a crash, after a refusal."""
    first = make().propose(brief)
    kept = after(brief, first, 0.9)
    second = make().propose(kept)
    crashed = after(kept, second, None)
    refused = dataclasses.replace(crashed, refusal="the same program was tried before")
    return [(brief, first), (kept, second), *((each, make().propose(each)) for each in (crashed, refused))]


Proposed = list[tuple[Brief, Proposal]]


def test_a_proposal_passes_the_guard(proposed: Proposed) -> None:
    for each, proposal in proposed:
        tried = {trial.proposed.fingerprint: str(trial.number) for trial in each.campaign.trials}
        assert broken_rule(proposal, each.files, tried.get, ("train.py",)) is None


def test_a_proposal_has_only_files_of_the_brief_and_they_parse(proposed: Proposed) -> None:
    for each, proposal in proposed:
        assert proposal.files
        assert set(proposal.files) <= set(each.files)
        for text in proposal.files.values():
            ast.parse(text)


def test_an_idea_is_one_line_without_tabs(proposed: Proposed) -> None:
    for _, proposal in proposed:
        idea = proposal.idea
        assert idea.strip() == idea != ""
        assert "\t" not in idea
        assert len(idea.splitlines()) == 1


def test_a_note_survives_the_ledger(proposed: Proposed) -> None:
    for _, proposal in proposed:
        note = proposal.note
        assert json.loads(json.dumps(dict(note))) == dict(note)
        assert all(value is None or isinstance(value, str | int | float | bool) for value in note.values())


def test_the_same_brief_gives_the_same_proposal(make: Callable[[], Researcher], proposed: Proposed) -> None:
    for each, proposal in proposed:
        assert make().propose(each) == proposal


def test_a_researcher_at_work_goes_on_like_a_fresh_one(make: Callable[[], Researcher], brief: Brief) -> None:
    researcher = make()
    for _ in range(3):
        proposal = researcher.propose(brief)
        assert proposal == make().propose(brief)
        brief = after(brief, proposal, 1.1)


def test_a_brief_is_not_changed(make: Callable[[], Researcher], brief: Brief) -> None:
    before = copy.deepcopy(dataclasses.asdict(brief))
    make().propose(brief)
    assert dataclasses.asdict(brief) == before


def test_a_refused_proposal_is_not_repeated(make: Callable[[], Researcher], brief: Brief) -> None:
    researcher, seen = make(), []
    for number in range(3):
        proposal = researcher.propose(brief)
        assert proposal.files not in seen
        seen.append(proposal.files)
        brief = dataclasses.replace(brief, refusal=f"no, for the {number + 1}. time")


def test_a_fresh_researcher_passes_over_a_refused_proposal(make: Callable[[], Researcher], brief: Brief) -> None:
    refused = make().propose(brief)
    assert make().propose(dataclasses.replace(brief, refusal="no")).files != refused.files


def test_a_crash_is_answered_with_a_proposal_that_may_run(make: Callable[[], Researcher], brief: Brief) -> None:
    first = make().propose(brief)
    crashed = after(brief, first, None)
    files = {**brief.files, **first.files}
    failure = Failure(1, first.idea, CrashKind.OUT_OF_MEMORY, "MemoryError", "+x", files, 1, 2, "halve it")
    proposal = make().propose(dataclasses.replace(crashed, failure=failure))
    tried = {trial.proposed.fingerprint: str(trial.number) for trial in crashed.campaign.trials}
    assert broken_rule(proposal, brief.files, tried.get, ("train.py",)) is None
    assert proposal.repairs in (None, 1)


# ---------------------------------------------------------------- the registry


def test_a_researcher_is_made_from_its_name_and_the_text_after_a_colon(tmp_path: Path, brief: Brief) -> None:
    (tmp_path / "script.json").write_text(json.dumps(SCRIPT))
    made = find("researcher", RESEARCHERS, "scripted")(str(tmp_path / "script.json"))
    assert made.propose(brief).idea == "faster embeddings"
    assert find("researcher", RESEARCHERS, "builtin")().propose(brief).idea


def test_the_name_of_a_researcher_is_the_one_it_is_registered_by() -> None:
    for name, path in RESEARCHERS.items():
        assert find("researcher", {name: path}, name).name == name


def test_the_builtin_researcher_takes_no_text_after_a_colon() -> None:
    with pytest.raises(UserError, match="builtin takes nothing after a colon"):
        BuiltinResearcher("x")


def test_listing_the_researchers_imports_none_of_them() -> None:
    code = "import sys, autoresearch.base.registry, autoresearch.researchers\n"
    code += "sys.exit(not {'optuna', 'torch'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- the scripted one


def test_a_script_is_taken_up_where_the_campaign_stands(brief: Brief) -> None:
    for line in SCRIPT[:3]:
        proposal = ScriptedResearcher(SCRIPT).propose(brief)
        assert proposal.idea == line["idea"]
        brief = after(brief, proposal, 2.0)


def test_a_script_goes_on_after_a_refused_line(brief: Brief) -> None:
    ScriptedResearcher(SCRIPT).propose(brief)
    second = ScriptedResearcher(SCRIPT).propose(dataclasses.replace(brief, refusal="no"))
    assert second.idea == "slower matrices"
    assert ScriptedResearcher(SCRIPT).propose(after(brief, second, 2.0)).idea == "more decay"


def test_a_script_at_its_end_says_so(brief: Brief) -> None:
    with pytest.raises(Exhausted, match="all 1 proposals of the script have been made"):
        ScriptedResearcher([SCRIPT[0]]).propose(dataclasses.replace(brief, refusal="no"))


def test_a_script_may_hold_proposals_and_functions(brief: Brief) -> None:
    def shout(brief: Brief) -> Proposal:
        return Proposal("in capitals", {path: text.upper() for path, text in brief.files.items()})

    researcher = ScriptedResearcher([Proposal("as it is", {"train.py": "x = 1\n"}, {"why": "test"}), shout])
    first = researcher.propose(brief)
    assert first.note == {"why": "test", "line": 0}
    assert researcher.propose(after(brief, first, 2.0)).idea == "in capitals"


def test_a_python_script_defines_proposals(tmp_path: Path, brief: Brief) -> None:
    (tmp_path / "script.py").write_text("PROPOSALS = [{'idea': 'new', 'files': {'train.py': 'x = 2\\n'}}]\n")
    assert ScriptedResearcher(tmp_path / "script.py").propose(brief).files == {"train.py": "x = 2\n"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("none.json", None),
        ("bad.json", "{"),
        ("object.json", "{}"),
        ("numbers.json", "[1]"),
        ("empty.py", ""),
        ("bad.py", "def"),
    ],
)
def test_an_unreadable_script_is_one_clear_sentence(tmp_path: Path, name: str, text: str | None) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="PROPOSALS"):
        ScriptedResearcher(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ({"idea": "what"}, "needs an idea and files or edits"),
        ({"idea": "gone", "edits": [["train.py", "NOT THERE", "x"]]}, "is 0 times in train.py"),
    ],
)
def test_a_line_that_does_not_fit_is_one_clear_sentence(line: dict[str, object], complaint: str, brief: Brief) -> None:
    with pytest.raises(UserError, match=complaint):
        ScriptedResearcher([line]).propose(brief)


def test_a_path_is_looked_for_in_the_lab_and_then_where_the_person_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, here = tmp_path / "lab", tmp_path / "here"
    for place in (lab, here):
        place.mkdir()
    monkeypatch.chdir(here)
    (here / "own.py").write_text("propose = lambda brief: 'here'")
    kit = Kit(root=lab)
    assert kit.path("own.py") == Path("own.py")
    (lab / "own.py").write_text("propose = lambda brief: 'lab'")
    assert find("researcher", RESEARCHERS, "python")("own.py", kit).propose(None) == "lab"
    (lab / "script.json").write_text(json.dumps(SCRIPT))
    assert find("researcher", RESEARCHERS, "scripted")("script.json", kit)
    (lab / "mine.sh").write_text("#!/bin/sh\n")
    (lab / "mine.sh").chmod(0o755)
    assert find("researcher", RESEARCHERS, "command")("./mine.sh", kit)


def test_a_file_of_the_users_own_says_whether_it_may_be_asked_side_by_side(tmp_path: Path) -> None:
    for line, expected in (("", False), ("side_by_side = True\n", True)):
        (tmp_path / "mine.py").write_text(f"{line}def propose(brief):\n    return None\n")
        assert PythonResearcher(str(tmp_path / "mine.py")).side_by_side is expected
