"""What every researcher must do, whatever it is made of; and the registry that they are chosen from."""

from __future__ import annotations

import ast
import copy
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from autoresearch.errors import Exhausted, UserError
from autoresearch.guard import refusal
from autoresearch.interfaces import Researcher
from autoresearch.records import Brief, Proposal
from autoresearch.registry import RESEARCHERS, find
from autoresearch.researchers.builtin import BuiltinResearcher
from autoresearch.researchers.scripted import ScriptedResearcher
from campaigns import after, begun
from lab_files import LAB

SCRIPT = [
    {"idea": "faster embeddings", "edits": [["train.py", "EMBEDDING_LR = 0.6", "EMBEDDING_LR = 0.7"]]},
    {"idea": "slower matrices", "edits": [["train.py", "MATRIX_LR = 0.04", "MATRIX_LR = 0.03"]]},
    {"idea": "more decay", "edits": [["train.py", "\nWEIGHT_DECAY = 0.2", "\nWEIGHT_DECAY = 0.3"]]},
    {"idea": "less decay", "edits": [["train.py", "\nWEIGHT_DECAY = 0.2", "\nWEIGHT_DECAY = 0.1"]]},
]
MAKERS: dict[str, Callable[[], Researcher]] = {
    "builtin": BuiltinResearcher,
    "scripted": lambda: ScriptedResearcher(SCRIPT),
}


@pytest.fixture(params=sorted(MAKERS))
def make(request: pytest.FixtureRequest) -> Callable[[], Researcher]:
    return MAKERS[request.param]


@pytest.fixture
def brief() -> Brief:
    return begun({"train.py": (LAB / "train.py").read_text()})


def briefs(make: Callable[[], Researcher], brief: Brief) -> list[Brief]:
    """Briefs of several situations: at the start, after a keep, after a crash, after a refusal."""
    kept = after(brief, make().propose(brief), 0.9)
    crashed = after(kept, make().propose(kept), None)
    return [brief, kept, crashed, dataclasses.replace(crashed, refusal="the same program was tried before")]


def test_a_proposal_passes_the_guard(make: Callable[[], Researcher], brief: Brief) -> None:
    for each in briefs(make, brief):
        proposal = make().propose(each)
        tried = {trial.proposed.fingerprint: trial.number for trial in each.campaign.trials}
        assert refusal(proposal, each.files, tried, ("train.py",)) is None


def test_a_proposal_has_only_files_of_the_brief_and_they_parse(make: Callable[[], Researcher], brief: Brief) -> None:
    for each in briefs(make, brief):
        proposal = make().propose(each)
        assert proposal.files
        assert set(proposal.files) <= set(each.files)
        for text in proposal.files.values():
            ast.parse(text)


def test_an_idea_is_one_line_without_tabs(make: Callable[[], Researcher], brief: Brief) -> None:
    for each in briefs(make, brief):
        idea = make().propose(each).idea
        assert idea.strip() == idea != ""
        assert "\t" not in idea
        assert len(idea.splitlines()) == 1


def test_a_note_survives_the_ledger(make: Callable[[], Researcher], brief: Brief) -> None:
    for each in briefs(make, brief):
        note = make().propose(each).note
        assert json.loads(json.dumps(dict(note))) == dict(note)
        assert all(value is None or isinstance(value, str | int | float | bool) for value in note.values())


def test_the_same_brief_gives_the_same_proposal(make: Callable[[], Researcher], brief: Brief) -> None:
    for each in briefs(make, brief):
        assert make().propose(each) == make().propose(each)


def test_a_researcher_at_work_goes_on_like_a_fresh_one(make: Callable[[], Researcher], brief: Brief) -> None:
    researcher = make()
    for _ in range(3):
        proposal = researcher.propose(brief)
        assert proposal == make().propose(brief)
        brief = after(brief, proposal, 1.1)


def test_a_brief_is_not_changed(make: Callable[[], Researcher], brief: Brief) -> None:
    before = copy.deepcopy(brief)
    make().propose(brief)
    assert brief == before


def test_a_refused_proposal_is_not_repeated(make: Callable[[], Researcher], brief: Brief) -> None:
    researcher, seen = make(), []
    for _ in range(3):
        proposal = researcher.propose(brief)
        assert proposal.files not in seen
        seen.append(proposal.files)
        brief = dataclasses.replace(brief, refusal="no")


def test_a_fresh_researcher_passes_over_a_refused_proposal(make: Callable[[], Researcher], brief: Brief) -> None:
    refused = make().propose(brief)
    assert make().propose(dataclasses.replace(brief, refusal="no")).files != refused.files


# ---------------------------------------------------------------- the registry


def test_every_registered_researcher_is_in_this_suite() -> None:
    assert set(MAKERS) == set(RESEARCHERS)


def test_a_researcher_is_made_from_its_name_and_the_text_after_a_colon(tmp_path: Path, brief: Brief) -> None:
    (tmp_path / "script.json").write_text(json.dumps(SCRIPT))
    made = find("researcher", RESEARCHERS, "scripted")(str(tmp_path / "script.json"))
    assert made.propose(brief).idea == "faster embeddings"
    assert find("researcher", RESEARCHERS, "builtin")().propose(brief).idea


def test_the_name_of_a_researcher_is_the_one_it_is_registered_by() -> None:
    assert {name: find("researcher", RESEARCHERS, name).name for name in RESEARCHERS} == {n: n for n in RESEARCHERS}


def test_the_builtin_researcher_takes_no_text_after_a_colon() -> None:
    with pytest.raises(UserError, match="builtin takes nothing after a colon"):
        BuiltinResearcher("x")


def test_listing_the_researchers_imports_none_of_them() -> None:
    code = "import sys, autoresearch.registry, autoresearch.researchers\n"
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
    with pytest.raises(Exhausted, match="1 proposals are all made"):
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
