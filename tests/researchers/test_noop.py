"""The researcher of no-ops: each one new to the guard, and each one the same program."""

from __future__ import annotations

import dataclasses

import pytest

from autoresearch.base.errors import Exhausted, UserError
from autoresearch.base.registry import COUNTED, FREE
from autoresearch.researchers.guard import check, fingerprint
from autoresearch.researchers.simple.noop import NoopResearcher
from campaigns import after, begun
from lab_files import LAB

SOURCE = "RATE = 0.1\n\nif __name__ == '__main__':\n    print(RATE)"


def test_no_op_after_no_op_passes_the_guard_whatever_became_of_the_last() -> None:
    brief, files, ideas = begun({"train.py": (LAB / "train.py").read_text()}), {}, []
    for val_bpb in (0.9, 1.1, None, 0.8, 0.8):
        proposal = NoopResearcher().propose(brief)
        trials = brief.campaign.trials
        assert check.refusal(proposal, brief.files, trials, lambda n: files.get(n, {}), ["train.py"]) is None
        files[len(trials)] = {**brief.files, **proposal.files}
        ideas.append(proposal.idea)
        brief = after(brief, proposal, val_bpb)
    assert ideas == [f"no-op {number}" for number in (1, 2, 3, 4, 5)]


def test_the_program_is_the_same_but_for_one_constant_that_nothing_reads(capsys: pytest.CaptureFixture[str]) -> None:
    brief = begun({"train.py": SOURCE})
    brief = after(brief, NoopResearcher().propose(brief), 0.9)
    text = NoopResearcher().propose(brief).files["train.py"]
    assert text == f"{SOURCE}\n_NOOP = 2\n"
    exec(text, {"__name__": "__main__"})
    assert capsys.readouterr().out == "0.1\n"


def test_what_stands_after_an_older_no_op_is_left_alone() -> None:
    source = f"_NOOP = 4\n{SOURCE}"
    assert NoopResearcher().propose(begun({"train.py": source})).files["train.py"] == f"{source}\n_NOOP = 1\n"


def test_a_refused_no_op_is_passed_over() -> None:
    brief = dataclasses.replace(begun({"train.py": SOURCE}), refusal="no")
    researcher = NoopResearcher()
    assert [researcher.propose(brief).idea for _ in range(2)] == ["no-op 2", "no-op 3"]


def test_the_first_python_file_is_the_one() -> None:
    proposal = NoopResearcher().propose(begun({"notes.md": "x", "b.py": "x = 1\n", "a.py": "x = 1\n"}))
    assert list(proposal.files) == ["a.py"]
    assert fingerprint.fingerprint(proposal.files) != fingerprint.fingerprint({"a.py": "x = 1\n"})


def test_without_a_python_file_it_is_at_its_end() -> None:
    with pytest.raises(Exhausted, match="no Python file"):
        NoopResearcher().propose(begun({"notes.md": "x"}))


def test_it_takes_no_text_after_a_colon_and_spends_nothing() -> None:
    with pytest.raises(UserError, match="takes nothing after a colon"):
        NoopResearcher("x")
    assert "noop" in FREE
    assert "noop" not in COUNTED
