"""The parser of a language model's reply: what it forgives, what it explains, and that nothing else ever comes out."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from autoresearch.researchers.llm.knobs import Knob
from autoresearch.researchers.llm.reply import LONGEST, Reply, parse
from autoresearch.researchers.llm.search_replace import ReplyError

SOURCE = """\
import torch

LR = 0.04
DEPTH = 4


def step(x):
    y = x * LR   \n\treturn y


print(step(DEPTH))
print(1)
print(1)
"""
FILES = {"train.py": SOURCE}
TWO = {**FILES, "model.py": "WIDTH = 64\n"}
BLOCK = "<<<<<<< SEARCH train.py\nLR = 0.04\n=======\nLR = 0.02\n>>>>>>> REPLACE\n"
GOOD = f"idea: lower it\nwhy: noise\nexpects: less\n\n{BLOCK}"
LOWER = SOURCE.replace("0.04", "0.02")
FIELDS = {"idea": "lower it", "why": "noise", "expects": "less"}
EDIT = ["", "LR = 0.04", "LR = 0.02"]
NAMED_EDIT = {"search": "LR = 0.04", "replace": "LR = 0.02"}


def complaint(text: str, files: dict[str, str] | None = None) -> str:
    with pytest.raises(ReplyError) as caught:
        parse(text, files or FILES)
    return str(caught.value)


# ---------------------------------------------------------------- what is understood


def test_a_reply_in_the_asked_form() -> None:
    assert parse(GOOD, FILES) == Reply("lower it", {"train.py": LOWER}, "noise", "less")


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("idea:", "**Idea:**").replace("why:", "- *Why*:").replace("expects:", "## Expected effect:"),
        GOOD.replace("idea: ", "1. **idea**: **").replace("lower it", "lower it**"),
        GOOD.replace("idea: lower it", "Here is my change.\n\nIdea:\n\nlower it\n"),
        GOOD.replace(BLOCK, f"```diff\n{BLOCK}```\n"),
        GOOD.replace(BLOCK, f"train.py\n```python\n{BLOCK}```\nThat should do it."),
        GOOD.replace(" train.py", ""),
        GOOD.replace(" train.py", " `train.py`"),
        GOOD.replace(" train.py", " ./train.py"),
        GOOD.replace("<<<<<<< SEARCH train.py", "<<<<<<< search: train.py").replace(">>>>>>> REPLACE", ">>>>>>>"),
        GOOD.replace("LR = 0.04\n=", "LR = 0.04   \n="),
        GOOD.replace("SEARCH train.py\nLR", "SEARCH train.py\n\n\nLR"),
        f"<think>\nidea: another\n{BLOCK.replace('0.02', '9')}\nShould I?</think>\n{GOOD}",
        f"so I think that is it </think>\n\n{GOOD}",
        f"{GOOD}\nShall I go on?",
        f"idea: lower it\nwhy: noise\nexpects: less\n```python train.py\n{LOWER}```\n",
        f"idea: lower it\nwhy: noise\nexpects: less\n~~~ train.py\n{LOWER}~~~",
        json.dumps({**FIELDS, "files": {"train.py": LOWER}}),
        json.dumps({"idea": "lower it", "reason": "noise", "expected_effect": "less", "edits": [EDIT]}),
        f"I reply:\n```json\n{json.dumps({**FIELDS, 'edits': [NAMED_EDIT]}, indent=1)}\n```\n",
    ],
)  # fmt: skip
def test_the_same_reply_in_other_forms(text: str) -> None:
    assert parse(text, FILES) == Reply("lower it", {"train.py": LOWER}, "noise", "less")


def test_several_blocks_and_files_are_one_change() -> None:
    other = "<<<<<<< SEARCH model.py\nWIDTH = 64\n=======\nWIDTH = 65\n>>>>>>> REPLACE\n"
    again = BLOCK.replace("LR = 0.02", "LR = 0.01").replace("LR = 0.04", "LR = 0.02")
    assert parse(GOOD + other + again, TWO).files == {
        "train.py": SOURCE.replace("0.04", "0.01"),
        "model.py": "WIDTH = 65\n",
    }


def test_lines_are_found_whatever_white_space_ends_them_and_tabs_are_four_columns() -> None:
    block = "<<<<<<< SEARCH\n    y = x * LR\n    return y\n=======\n    return x\n>>>>>>> REPLACE"
    assert "step(x):\n    return x\n\n" in parse(f"idea: x\n{block}", FILES).files["train.py"]


def test_a_line_that_goes_on_with_a_comment_is_found() -> None:
    files = {"train.py": "LR = 0.04  # of matrices\nLR = 0.045\n"}
    assert parse(GOOD, files).files["train.py"] == "LR = 0.02  # of matrices\nLR = 0.045\n"


def test_lines_may_be_taken_out() -> None:
    assert "LR" not in parse(GOOD.replace("LR = 0.02\n", ""), FILES).files["train.py"].split("def")[0]


def test_a_files_own_line_ends_stay() -> None:
    files = {"train.py": SOURCE.replace("\n", "\r\n")}
    assert parse(GOOD, files).files["train.py"] == LOWER.replace("\n", "\r\n")


def test_a_reason_may_take_several_lines_and_an_idea_takes_one() -> None:
    reply = parse(GOOD.replace("noise\n", "noise\nand more\n\nnot this\n").replace("idea: ", "idea: \t"), FILES)
    assert reply.why == "noise and more"
    assert reply.idea == "lower it"
    assert "\n" not in parse(json.dumps({"idea": "a\nb\tc", "files": {"train.py": "x"}}), FILES).idea


def test_code_may_hold_a_fence_of_its_own() -> None:
    text = 'DOC = """\n```\nexample\n```\n"""\n'
    assert parse(f"idea: x\n```python train.py\n{text}```\n", FILES).files["train.py"] == text


def test_a_repair_edits_the_files_that_crashed_and_carries_all_of_their_change() -> None:
    crashed = {"train.py": SOURCE.replace("DEPTH = 4", "DEPTH = 5"), "model.py": "WIDTH = 99\n"}
    reply = parse(GOOD.replace("why:", "repairs: yes\nwhy:"), TWO, crashed)
    assert reply.repairs
    assert reply.files == {"train.py": LOWER.replace("DEPTH = 4", "DEPTH = 5"), "model.py": "WIDTH = 99\n"}
    assert not parse(GOOD.replace("why:", "repairs: no\nwhy:"), TWO, crashed).repairs
    assert not parse(GOOD.replace("why:", "repairs: yes\nwhy:"), FILES).repairs


@pytest.mark.parametrize(
    ("line", "knob"),
    [
        ("knob: LR from 0.01 to 0.1 log", Knob("LR", 0.01, 0.1, True)),
        ("- **knob**: `LR` from 1e-3 to 1e-1 (log scale)", Knob("LR", 1e-3, 1e-1, True)),
        ("knob: DEPTH from 2 to 8.", Knob("DEPTH", 2, 8)),
        ("Knob: DEPTH: from 2 to 8", Knob("DEPTH", 2, 8)),
    ],
)
def test_knobs_are_named_with_their_ranges(line: str, knob: Knob) -> None:
    assert parse(f"{line}\n{GOOD}", FILES).knobs == (knob,)


def test_knobs_in_json() -> None:
    knobs = [{"name": "LR", "low": 0.01, "high": 1, "log": True}, "DEPTH from 2 to 8"]
    text = json.dumps({"idea": "x", "knobs": knobs, "files": {"train.py": LOWER}})
    assert parse(text, FILES).knobs == (Knob("LR", 0.01, 1, True), Knob("DEPTH", 2, 8))


# ---------------------------------------------------------------- what is explained


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no edit"),
        ("idea: lower it", "no edit"),
        ("Which learning rate would you like?", "asks a question"),
        ("I could lower it. Let me know if that is fine.", "asks a question"),
        (BLOCK, "no idea"),
        (GOOD.replace(" it", "").replace("lower", ""), "no idea"),
        (GOOD.replace("train.py", "prepare.py"), "prepare.py may not be edited: edit train.py"),
        (GOOD.replace("train.py", "../../etc/passwd"), "may not be edited"),
        (GOOD.replace("=======", "-------"), "has no `=======`"),
        (GOOD.replace(">>>>>>> REPLACE", ""), "does not end with `>>>>>>> REPLACE`"),
        (GOOD.replace("LR = 0.04\n=======", "LR = 0.05\n======="), "the nearest lines are"),
        (GOOD.replace("LR = 0.04\n=======", "LR = 0.05\n======="), "3: LR = 0.04"),
        (GOOD.replace("LR = 0.04\n=======", "@@@@@@@@@@@@@@@\n======="), "nothing in it resembles '@@@"),
        (GOOD.replace("LR = 0.04\n=======", "print(1)\n======="), "is 2 times in train.py (lines 13, 14)"),
        (GOOD.replace("LR = 0.04\n=======", "\n======="), "a search text for train.py is empty"),
        (GOOD.replace("LR = 0.02", "LR = 0.04"), "change nothing"),
        (GOOD.replace("LR = 0.02", "LR = 0.02\n# ... rest of the code unchanged ..."), "write all of it"),
        (f"idea: x\n```python train.py\n{LOWER}", "is not closed"),
        (f"idea: x\n```python other.py\n{LOWER}```", "other.py may not be edited"),
        (f"idea: x\n```python\n{LOWER[:40]}```", "no edit"),
        (f"knob: LR to 3\n{GOOD}", "is not `NAME from LOW to HIGH`"),
        (f"knob: LR from 3 to 1\n{GOOD}", "is not `NAME from LOW to HIGH`"),
        (f"knob: LR from nan to inf\n{GOOD}", "is not `NAME from LOW to HIGH`"),
        (f"knob: LR from 0 to 1 log\n{GOOD}", "is logarithmic from 0"),
        (f"knob: GATE from 0 to 1\n{GOOD}", "no file binds the knob"),
        ('{"idea": "x", "edits": [1]}', "an edit in JSON is"),
        ("x" * (LONGEST + 1), "characters, more than"),
    ],
)
def test_what_is_wrong_is_said_precisely(text: str, words: str) -> None:
    assert words in complaint(text)


def test_with_several_files_a_block_must_name_one() -> None:
    assert "name one of model.py, train.py" in complaint(GOOD.replace(" train.py", ""), TWO)


def test_a_complaint_is_short_whatever_the_reply() -> None:
    assert len(complaint(GOOD.replace("LR = 0.04\n=", "LR = 0.04" * 10_000 + "\n="))) < 2_000
    assert len(complaint(GOOD.replace("train.py", "x" * 10_000))) < 2_000


# ---------------------------------------------------------------- whatever comes


PIECES = st.sampled_from(
    [
        *("idea: x\n", "why: ", "expects:\n", "repairs: yes\n", "knob: LR from 0.1 to 1 log\n"),
        *("knob: \0 from 1e999 to 2\n", "<<<<<<< SEARCH train.py\n", "<<<<<<< SEARCH ../\0/x.py\n", "<<<<<<< SEARCH\n"),
        *("=======\n", ">>>>>>> REPLACE\n", "```python train.py\n", "```python \ud800.py\n", "```\n", "~~~\n"),
        *("LR = 0.04\n", "print(1)\n", "\tLR = 0.04 \r\n", "<think>", "</think>", "</thinking", "{", "[" * 3000),
        *('{"idea": ', '"edits": [', '"\\ud800"', "}", "]", "```json\n", "\0", "\ud800", "\x1b[31m", "\u2028", "\x85"),
        *("```diff\n", "--- a/train.py\n+++ b/train.py\n", "@@ -1 +1 @@\n", "-LR = 0.04\n", "+LR = 1\n", " \n", "+\n"),
        *(
            "*** Begin Patch\n",
            "*** Update File: train.py\n",
            "*** End Patch\n",
            "------- SEARCH\n",
            "+++++++ REPLACE\n",
        ),
        *("<|channel|>analysis<|message|>", "<|channel|>final<|message|>", "<|im_end|>", "[THINK]", "[/THINK]"),
        *("## Idea\n", "**Why**\n", "&lt;&lt;&lt;&lt;&lt;", "\u00a0", "```python\n", "# train.py\n"),
        *("?", " " * 500, "*" * 500, "#", "\n" * 50, "İ", "\u202e"),
    ]
)
KEYS = ["idea", "why", "repairs", "files", "edits", "knobs", "path", "search", "replace", "name", "low", "high"]
TEXTS = st.one_of(
    st.text(st.characters(), max_size=300),
    st.lists(st.one_of(PIECES, st.text(max_size=10)), max_size=25).map("".join),
    st.tuples(st.integers(0, len(GOOD)), st.integers(0, 20), PIECES).map(
        lambda cut: GOOD[: cut[0]] + cut[2] + GOOD[cut[0] + cut[1] :]
    ),
)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just(LOWER))
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(KEYS), inner, max_size=6)),
    max_leaves=12,
).map(json.dumps)


def understood_or_explained(text: str, files: dict[str, str], crashed: dict[str, str] | None) -> None:
    try:
        reply = parse(text, files, crashed)
    except ReplyError as error:
        problem = str(error)
        reply = None
    if reply is None:
        assert 0 < len(problem.strip()) <= len(problem) < 5_000
        return
    assert reply.idea
    assert reply.idea.isprintable()
    assert reply.files
    assert set(reply.files) <= {*files, *(crashed or {})}
    for changed in (*reply.files.values(), reply.idea, reply.why, reply.expects):
        changed.encode()
    assert any(files.get(path) != changed for path, changed in reply.files.items())


@settings(max_examples=1_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(TEXTS, TEXTS, JSON), st.sampled_from([FILES, TWO]), st.sampled_from([None, {"train.py": "LR = 0.04\n"}])
)
@example("[" * 100_000, FILES, None)
@example('{"a":' * 100_000, FILES, None)
@example('{"idea": 1' + "0" * 5_000 + "}", FILES, None)
def test_whatever_is_replied_is_understood_or_explained(
    text: str, files: dict[str, str], crashed: dict[str, str] | None
) -> None:
    understood_or_explained(text, files, crashed)


@pytest.mark.parametrize(
    "text",
    [
        "\n" * LONGEST,
        "* " * (LONGEST // 2),
        "?" * LONGEST,
        "? " * (LONGEST // 2),
        "<" * LONGEST,
        "<<<<<<< SEARCH\n" * (LONGEST // 15),
        (BLOCK * 5_000)[:LONGEST],
        "```json" * (LONGEST // 7),
        "```python train.py\n" * (LONGEST // 19),
        "```\n" * (LONGEST // 4),
        "```diff\n" * (LONGEST // 8),
        "```diff\n+" * (LONGEST // 9),
        ("--- a\n+++ b\n" * LONGEST)[:LONGEST],
        ("*** Begin Patch\n" * LONGEST)[:LONGEST],
        ("*** Update File: train.py\n-LR = 0.04\n" * LONGEST)[:LONGEST],
        ("<|channel|>final<|message|>" * LONGEST)[:LONGEST],
        "<|" * (LONGEST // 2),
        ("<think>\n</think>" * LONGEST)[:LONGEST],
        ("# " * LONGEST)[:LONGEST],
        ("&lt;" * LONGEST)[:LONGEST],
        "knob: LR from 1 to 2\n" * (LONGEST // 21),
        "why: " + "a\n" * (LONGEST // 2 - 5),
        ("idea: x\n<<<<<<< SEARCH\n" + "LR = 0.05 " * 45_000 + "\n=======\n>>>>>>> REPLACE")[:LONGEST],
    ],
)
def test_no_reply_takes_long(text: str) -> None:
    began = time.monotonic()
    understood_or_explained(text, FILES, None)
    assert time.monotonic() - began < 5
