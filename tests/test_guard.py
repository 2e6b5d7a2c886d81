from __future__ import annotations

import pytest

from autoresearch.guard import fingerprint, refusal
from autoresearch.records import Proposal

INCUMBENT = {"train.py": "X = 1\n"}


def judge(files: dict[str, str], idea: str = "try", tried: dict[str, str] | None = None) -> str | None:
    return refusal(Proposal(idea, files), INCUMBENT, tried or {}, ["train.py"])


def test_a_changed_constant_may_run() -> None:
    assert judge({"train.py": "X = 2\n"}) is None


@pytest.mark.parametrize("path", ["prepare.py", "../train.py", "/etc/passwd", "program.md", "train.py/../prepare.py"])
def test_no_other_path_may_be_changed(path: str) -> None:
    assert "may not be changed" in str(judge({"train.py": "X = 2\n", path: "X = 2\n"}))


def test_a_syntax_error_is_refused_with_its_line() -> None:
    assert "line 2" in str(judge({"train.py": "X = 2\nY = (\n"}))


def test_a_null_byte_is_a_syntax_error_and_no_crash() -> None:
    assert "syntax error" in str(judge({"train.py": "X = '\0'\n"}))


def test_a_change_of_comments_alone_is_refused() -> None:
    assert "changes nothing" in str(judge({"train.py": "X  =  1  # one\n"}))
    assert "changes nothing" in str(judge({}))


def test_what_was_tried_before_is_refused_with_its_number() -> None:
    tried = {fingerprint({"train.py": "X = 2"}): "7 (discard, val_bpb 2.0)"}
    assert "trial 7 (discard, val_bpb 2.0)" in str(judge({"train.py": "X = 2  # again\n"}, tried=tried))


def test_a_proposal_without_an_idea_is_refused() -> None:
    assert "no idea" in str(judge({"train.py": "X = 2\n"}, idea=" \n"))
