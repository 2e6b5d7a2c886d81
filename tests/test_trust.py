"""docs/trust.md names tests and cheats that exist, says what gets through, and fits on a page."""

from __future__ import annotations

import re
from pathlib import Path

from autoresearch.grading import clock

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "trust.md").read_text()


def test_every_claim_names_a_test_that_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) > 25
    assert [path for path, _ in named if not (ROOT / path).is_file()] == []
    assert [test for path, test in named if test and f"\ndef {test}(" not in (ROOT / path).read_text()] == []


def test_every_guarantee_is_shown_by_something() -> None:
    held = PAGE.partition("## What holds")[2].partition("## What does not hold")[0]
    claims = re.split(r"\n\n(?=\*\*)", held.strip())
    assert len(claims) >= 6
    assert [claim for claim in claims if "`tests/" not in claim] == []


def test_what_gets_through_is_admitted() -> None:
    source = (ROOT / "tests" / "redteam" / "test_redteam.py").read_text()
    through = re.findall(r'^    "(\w+)": "', source.partition("GETS_THROUGH = {")[2].partition("\n}")[0], re.MULTILINE)
    admitted = PAGE.partition("## What does not hold")[2]
    assert [name for name in through if name not in admitted] == []


def test_the_slack_is_that_of_the_code() -> None:
    assert f"{clock.SLACK_SECONDS:g} s, or {100 * clock.SLACK_SHARE:g} % of the budget if that is more" in PAGE
    assert (clock.SLOWER, clock.EVEN_SLOWER_SECONDS) == (3, 3)


def test_it_is_one_page() -> None:
    assert len(PAGE.splitlines()) <= 102
    assert max(map(len, PAGE.splitlines())) <= 120
    assert "(docs/trust.md)" in (ROOT / "README.md").read_text()
