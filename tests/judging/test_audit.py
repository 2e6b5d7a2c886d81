"""What an audit believes of a table of results, and the arithmetic of false keeps."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats  # type: ignore[import-untyped]
from typer.testing import CliRunner

from autoresearch.base.errors import UserError
from autoresearch.cli import assembled
from autoresearch.judging.audit import Audit, Keep, audit, binomial_interval, estimated, greedy_keeps
from autoresearch.ledger.records import Status
from autoresearch.ledger.report import Row
from autoresearch.ledger.results_tsv import to_tsv
from autoresearch.views.verdicts import show_audit

POLICY = {"needed": 0.0002, "advance": 0.75}
KEEP, DISCARD, CRASH = Status.KEEP, Status.DISCARD, Status.CRASH


def table(*lines: tuple[Status, float | None, str]) -> list[Row]:
    return [Row(n, f"c{n}", score, 1.0, status, said) for n, (status, score, said) in enumerate(lines)]


BIG_SMALL = table(
    (KEEP, 1.0, "baseline"),
    (DISCARD, 1.0007, "random seed 42 to 137"),
    (DISCARD, 1.003, "worse"),
    (KEEP, 0.99, "half the batch"),
    (CRASH, None, "too large"),
    (DISCARD, 0.9925, "worse again"),
    (KEEP, 0.98995, "a hair"),
    (DISCARD, 0.9915, "still worse"),
)


def only(found: Audit, number: int) -> Keep:
    return next(keep for keep in found.keeps if keep.number == number)


# ---------------------------------------------------------------- keeps


def test_a_gain_far_above_the_noise_survives_and_one_far_below_does_not() -> None:
    found = audit(BIG_SMALL, 0.0005, **POLICY)
    assert [(keep.number, keep.survives, keep.clear) for keep in found.keeps] == [(3, True, True), (6, False, False)]
    assert (found.rows, found.survivors, found.clear) == (7, 1, 1)
    assert only(found, 6).gain == pytest.approx(0.00005)
    assert only(found, 6).z == pytest.approx(0.00005 / (0.0005 * math.sqrt(2)))
    assert found.luck == pytest.approx(stats.norm.ppf(0.95) * 0.0005 * math.sqrt(2), rel=1e-4)


def test_a_gain_is_counted_from_what_was_kept_last() -> None:
    rows = table((KEEP, 1.0, "baseline"), (KEEP, 1.2, "simpler"), (DISCARD, 1.3, "x"), (KEEP, 1.1, "better"))
    assert [keep.gain for keep in audit(rows, 0.01, **POLICY).keeps] == [pytest.approx(-0.2), pytest.approx(0.1)]


def test_the_larger_the_noise_the_less_is_believed() -> None:
    odds = [only(audit(BIG_SMALL, sigma, **POLICY), 3).probability for sigma in (0.001, 0.01, 0.1)]
    assert odds == sorted(odds, reverse=True)


def test_a_keep_is_judged_by_what_was_known_then() -> None:
    known = audit(BIG_SMALL[:7], 0.0005, **POLICY)
    assert only(known, 3) == only(audit(BIG_SMALL, 0.0005, **POLICY), 3)


@pytest.mark.parametrize("rows", [[], BIG_SMALL[:1], BIG_SMALL[:3], table((DISCARD, 1.0, "never kept"))])
def test_without_keeps_there_are_none_to_judge(rows: list[Row]) -> None:
    found = audit(rows, 0.0005, **POLICY)
    assert (found.keeps, found.survivors, found.clear) == ((), 0, 0)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
def test_a_sigma_that_is_no_noise_is_refused_with_a_sentence(sigma: float) -> None:
    with pytest.raises(UserError, match=r"cannot be the noise: give .* --sigma 0\.0005"):
        audit(BIG_SMALL, sigma, **POLICY)


scores = st.none() | st.floats(0.5, 5)
rows_of_any_kind = st.lists(st.tuples(st.sampled_from([KEEP, DISCARD]), scores, st.sampled_from(["a", "no-op", "b"])))


@settings(max_examples=60, deadline=None)
@given(rows_of_any_kind, st.none() | st.floats(1e-6, 1))
def test_every_number_of_an_audit_is_finite(lines: list[tuple[Status, float | None, str]], sigma: float | None) -> None:
    try:
        found = audit(table(*lines), sigma, **POLICY)
    except UserError:
        assert sigma is None
        return
    json.dumps(dataclasses.asdict(found), allow_nan=False)
    assert all(0 <= keep.probability <= 1 and keep.error > 0 for keep in found.keeps)


# ---------------------------------------------------------------- where the noise is known from


def test_rows_that_say_that_they_compute_the_same_tell_the_noise() -> None:
    level, evidence = estimated(
        table(
            (KEEP, 1.0, "baseline"),
            (DISCARD, 1.002, "random seed 42 to 137"),
            (DISCARD, 1.001, "Cleanup of the loader"),
            (DISCARD, 1.5, "depth 10 same dim 640"),
            (DISCARD, 1.5, "seed tokens from a table"),
        )
    )
    assert level.sigma == pytest.approx(0.001)
    assert level.freedom == 2
    assert evidence == ('the program of #0 again: #1 "random seed 42 to 137", #2 "Cleanup of the loader"',)


def test_a_no_op_that_was_kept_is_still_the_same_program() -> None:
    rows = table((KEEP, 1.0, "baseline"), (KEEP, 0.999, "no-op 1"), (DISCARD, 1.001, "no-op 2"))
    level, evidence = estimated(rows)
    assert (level.freedom, len(evidence)) == (2, 1)
    assert level.sigma == pytest.approx(0.001)


def test_the_same_change_of_two_incumbents_tells_the_noise() -> None:
    level, evidence = estimated(
        table(
            (KEEP, 1.0, "baseline"),
            (DISCARD, 1.002, "softcap 20"),
            (KEEP, 0.9, "better"),
            (DISCARD, 0.904, "Softcap  20 (flat)"),
            (DISCARD, 0.95, "softcap 20 (with decay)"),
        )
    )
    assert level.sigma == pytest.approx(0.002 / 2)  # the gains differ by 0.002, which is twice a run's sigma
    assert level.freedom == 1
    assert evidence == ('the same change "softcap 20": #1 +0.002000, #3 +0.004000',)


def test_the_estimate_is_as_wide_as_students_t_has_it() -> None:
    found = audit(BIG_SMALL, **POLICY)
    assert found.sigma == pytest.approx(0.0007 / math.sqrt(2))
    assert (found.freedom, len(found.evidence)) == (1, 1)
    assert found.luck == pytest.approx(stats.t.ppf(0.95, 1) * 0.0007)
    assert found.interval is not None
    assert found.interval[0] < found.sigma < found.interval[1]


@pytest.mark.parametrize("rows", [[], BIG_SMALL[:1], table((KEEP, 1.0, "x"), (DISCARD, 1.0, "no-op"))])
def test_where_nothing_tells_the_noise_the_sentence_asks_for_it(rows: list[Row]) -> None:
    with pytest.raises(UserError, match=r"noise is unknown: give .* --sigma 0\.0005"):
        audit(rows, **POLICY)


def test_a_greedy_search_among_no_ops_is_seen_through() -> None:
    """The judge's filter against the published rule, on 100 searches of 40 changes that do nothing."""
    draw = random.Random(1)
    shown = survived = 0
    for _ in range(100):
        lines, best = [(KEEP, draw.gauss(1, 0.001), "baseline")], math.inf
        for number in range(40):
            best = min(best, lines[-1][1] if lines[-1][0] is KEEP else best)
            score = draw.gauss(1, 0.001)
            lines.append((KEEP if score < best else DISCARD, score, f"change {number}"))
        found = audit(table(*lines), 0.001, **POLICY)
        shown, survived = shown + len(found.keeps), survived + found.survivors
    assert shown > 250
    assert survived < shown / 3


# ---------------------------------------------------------------- changes that change nothing


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (0, 20), (1, 20), (7, 20), (20, 20), (3, 1000)])
def test_the_binomial_interval_is_exact(successes: int, trials: int) -> None:
    low, high = binomial_interval(successes, trials, 0.9)
    exact = stats.binomtest(successes, trials).proportion_ci(0.9, "exact")
    assert (low, high) == (pytest.approx(exact.low), pytest.approx(exact.high))


def test_without_trials_the_interval_is_everything_and_nonsense_is_an_error() -> None:
    assert binomial_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 successes of 2 trials"):
        binomial_interval(3, 2)


@pytest.mark.parametrize(
    ("scores", "keeps"),
    [
        ([], []),
        ([1.0], []),
        ([1.0, 0.9, 0.95, 0.9, 0.8], [True, False, False, True]),
        ([1.0, None, 0.9], [False, True]),
        ([None, 0.9, 0.8], [False, True]),
    ],
)
def test_the_published_rule_keeps_what_is_lower_than_all_before(scores: list[float | None], keeps: list[bool]) -> None:
    assert greedy_keeps(scores) == keeps


# ---------------------------------------------------------------- the command and what it shows


def shown(found: Audit) -> str:
    out = Console(file=io.StringIO(), width=100)
    show_audit(found, out)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def test_the_view_says_the_noise_its_source_and_what_survives() -> None:
    said = shown(audit(BIG_SMALL, **POLICY))
    for part in ("7 rows", "2 keeps", '#1 "random seed 42 to 137"', "of 2 keeps are no larger", "-0.010000", "a hair"):
        assert part in said
    assert "as given" in shown(audit(BIG_SMALL, 0.001, **POLICY))
    assert "nothing to judge" in shown(audit(BIG_SMALL[:2], 0.001, **POLICY))


def test_a_description_has_no_effect_on_the_terminal() -> None:
    nasty = "seed 7 [red]x[/] \x1b[2J\x1b]0;owned\x07\u202eend"
    rows = table((KEEP, 1.0, "baseline"), (KEEP, 0.9, nasty), (DISCARD, 0.95, nasty))
    said = shown(audit(rows, **POLICY))
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert "[red]x[/]" in said


def test_the_command_reads_any_results_tsv(tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    path.write_text(to_tsv(BIG_SMALL))
    done = CliRunner().invoke(assembled(), ["audit", str(path), "--sigma", "0.0005", "--json"])
    assert done.exit_code == 0, done.output
    assert [keep["survives"] for keep in json.loads(done.output)["keeps"]] == [True, False]
    assert "2 keeps" in CliRunner().invoke(assembled(), ["audit", str(path)]).output


def test_a_bad_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    path.write_text("nothing\n")
    done = CliRunner().invoke(assembled(), ["audit", str(path)])
    assert isinstance(done.exception, UserError)
    assert "is not a results.tsv" in str(done.exception)
