"""Whose a results.tsv is."""

from __future__ import annotations

import pytest

from autoresearch.ledger.results_tsv import is_ours
from published import PUBLISHED

HEADER = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"


@pytest.mark.parametrize("text", ["", "\n", HEADER, HEADER + "abcdef0\t1.0\t1.0\tkeep\tx\n"])
def test_ours_has_only_our_commits(text: str) -> None:
    assert is_ours(text, {"abcdef0", "1234567"})


@pytest.mark.parametrize(
    "text",
    [
        PUBLISHED,
        HEADER + "abcdef0\t1.0\t1.0\tkeep\tx\nfffffff\t1.0\t1.0\tkeep\ta row of somebody else's\n",
        "name\tscore\nabcdef0\t1.0\n",
        "my notes\n",
    ],
)
def test_anything_else_is_somebody_elses(text: str) -> None:
    assert not is_ours(text, {"abcdef0", "1234567"})
