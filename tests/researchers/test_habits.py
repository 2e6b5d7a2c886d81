from __future__ import annotations

import re

import pytest
from habits import BLOCK, CHANGED, DIFF, HABITS, NEW, OLD, OTHER, SAID, SOURCE

from autoresearch.researchers.llm.reply import Reply, parse
from autoresearch.researchers.llm.search_replace import ReplyError

FILES = {"train.py": SOURCE}
TWO = {**FILES, "model.py": "WIDTH = 64\n"}
WIDER = "--- a/model.py\n+++ b/model.py\n@@ -1 +1 @@\n-WIDTH = 64\n+WIDTH = 65\n"


@pytest.mark.parametrize("habit", HABITS)
def test_what_can_mean_only_one_change_is_that_change(habit: str) -> None:
    text = CHANGED if habit != "a whole file named in its first line" else f"# train.py\n{CHANGED}"
    assert parse(HABITS[habit], FILES) == Reply("lower it", {"train.py": text}, "noise", "less")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"<think>\n{SAID}{BLOCK}", "ends before its thinking does"),
        (f"<reasoning>{OTHER}</reasoning>\n[THINK]\n{SAID}{BLOCK}", "ends before its thinking does"),
        (f"<|channel|>analysis<|message|>{SAID}{BLOCK}<|end|>", "ends before its thinking does"),
        (f"{SAID}index ends here:\n- it fell\n+ it rose\n", "has no edit"),
        (f"{SAID}```python\n{NEW}\n```\n", "the reply has no edit: add a block of `<<<<<<< SEARCH path`"),
        (f"{SAID}```python\n# train.py\n{NEW}\n```\n", "has no edit"),
        (f"{SAID}```diff\n+{NEW}\n```", "a hunk of the patch only adds lines"),
        (SAID + DIFF.replace("train.py", "prepare.py"), "prepare.py may not be edited: edit train.py"),
        (f"{SAID}*** Begin Patch\n*** Delete File: prepare.py\n-{OLD}\n*** End Patch", "prepare.py may not be edited"),
        (SAID + DIFF.replace("0.04", "0.05"), "the nearest lines are"),
        ("I return {} and {}, see {'a': 1}.", "has no edit"),
    ],
)
def test_what_cannot_be_told_is_refused_and_the_form_is_shown(text: str, words: str) -> None:
    with pytest.raises(ReplyError, match=re.escape(words)):
        parse(text, FILES)


def test_a_diff_may_change_several_files_in_several_places() -> None:
    second = "@@ -7,3 +7,4 @@\n def step(x):\n     y = x * LR\n+    y = y + 1\n     return y\n"
    reply = parse(f"{SAID}```diff\n{DIFF}{second}{WIDER}```", TWO)
    assert reply.files["model.py"] == "WIDTH = 65\n"
    assert reply.files["train.py"] == CHANGED.replace("* LR\n", "* LR\n    y = y + 1\n")


def test_with_several_files_a_patch_and_a_whole_file_must_name_one() -> None:
    with pytest.raises(ReplyError, match=r"name one of model\.py, train\.py"):
        parse(HABITS["a diff without a header"], TWO)
    with pytest.raises(ReplyError, match="has no edit"):
        parse(HABITS["a whole file without a path"], TWO)
    assert parse(HABITS["a whole file named in its first line"], TWO).files == {"train.py": f"# train.py\n{CHANGED}"}


def test_odd_spaces_stay_where_a_file_has_them() -> None:
    files = {"train.py": SOURCE.replace("import torch", "NAME = 'a\u00a0b'")}
    assert parse(SAID + BLOCK, files).files["train.py"] == files["train.py"].replace("0.04", "0.02")


def test_tokens_in_code_stay() -> None:
    text = SAID + BLOCK.replace(NEW, 'END = "<|endoftext|>"')
    assert 'END = "<|endoftext|>"\n' in parse(text, FILES).files["train.py"]
