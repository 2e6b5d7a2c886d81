from __future__ import annotations

import pytest

from autoresearch.ledger.records import Proposal
from autoresearch.researchers.guard.fingerprint import fingerprint
from autoresearch.researchers.guard.rules import broken_rule
from lab_files import LAB

INCUMBENT = {"train.py": "X = 1\n"}


def judge(files: dict[str, str], idea: str = "try", tried: dict[str, str] | None = None) -> str | None:
    return broken_rule(Proposal(idea, files), INCUMBENT, (tried or {}).get, ["train.py"])


def test_a_changed_constant_may_run() -> None:
    assert judge({"train.py": "X = 2\n"}) is None


@pytest.mark.parametrize("path", ["prepare.py", "../train.py", "/etc/passwd", "program.md", "train.py/../prepare.py"])
def test_no_other_path_may_be_changed(path: str) -> None:
    assert "may not change" in str(judge({"train.py": "X = 2\n", path: "X = 2\n"}))


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


SEEDED = """
import numpy as np
import torch
from prepare import SEED, TIME_BUDGET

RATE = 0.1

def main():
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(0)
    order = np.random.default_rng([SEED, 1]).permutation(9)
    model = build(order, generator, RATE, dropout_seed=3)

main()
"""


def seeded(*changes: tuple[str, str]) -> str | None:
    text = SEEDED
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return broken_rule(Proposal("try", {"train.py": text}), {"train.py": SEEDED}, {}.get, ["train.py"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("manual_seed(SEED)", "manual_seed(7)"),
        ("manual_seed(SEED)", "manual_seed(SEED + 1)"),
        ("manual_seed(SEED)", "manual_seed(hash('lucky') % 2**31)"),
        ("manual_seed(0)", "manual_seed(1)"),
        ("[SEED, 1]", "[SEED + 95, 1]"),
        ("[SEED, 1]", "137"),
        ("dropout_seed=3", "dropout_seed=4"),
        (", dropout_seed=3", ""),
        ("RATE = 0.1\n", "RATE = 0.1\nSEED = 137\n"),
        ("RATE = 0.1\n", "RATE = 0.1\nSEED += 137\n"),
        ("RATE = 0.1\n", "RATE = 0.1\nINIT_SEED: int = 137\n"),
        ("    torch.manual_seed(SEED)\n", ""),
        ("    model", "    torch.cuda.manual_seed_all(7)\n    np.random.seed(7)\n    model"),
        ("import torch\n", "import random\nimport torch\nrandom.seed(7)\n"),
    ],
)
def test_a_change_of_seeds_alone_is_refused(old: str, new: str) -> None:
    assert "only seeds" in str(seeded((old, new)))


def test_an_unused_seed_may_leave_the_imports_with_its_use() -> None:
    changes = (("SEED, TIME_BUDGET", "TIME_BUDGET"), ("seed(SEED)", "seed(1)"), ("[SEED, ", "["))
    assert "only seeds" in str(seeded(*changes))


@pytest.mark.parametrize(
    "changes",
    [
        [("RATE = 0.1", "RATE = 0.2"), ("manual_seed(SEED)", "manual_seed(7)")],
        [("permutation(9)", "permutation(10)")],
        [("np.random.default_rng([SEED, 1]).permutation(9)", "range(9)")],
        [("RATE = 0.1\n", "RATE = 0.1\nSEED_TOKENS = 8\n")],
        [("build(order", "build(order + SEED_TOKENS")],
        [("    model", "    model = warm(9)\n    model")],
    ],
)
def test_a_change_of_more_than_seeds_may_run(changes: list[tuple[str, str]]) -> None:
    assert seeded(*changes) is None


def test_the_shipped_train_py_is_held_to_the_programs_seed() -> None:
    text = (LAB / "train.py").read_text()
    for old, new in (("from prepare import (\n", "SEED = 137\nfrom prepare import (\n"), ("seed(SEED)", "seed(137)")):
        assert old in text
        proposal = Proposal("another seed", {"train.py": text.replace(old, new)})
        assert "only seeds" in str(broken_rule(proposal, {"train.py": text}, {}.get, ["train.py"]))
