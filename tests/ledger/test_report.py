"""The rows of results.tsv, written and read, and the summary made of them."""

from __future__ import annotations

import csv
import dataclasses
import json

import pytest

from autoresearch.base.errors import UserError
from autoresearch.ledger import report, results_tsv
from autoresearch.ledger.records import Crash, CrashKind, Status
from autoresearch.ledger.report import Row
from published import PUBLISHED, campaign, trial

HEADER = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"


def row(number: int, val_bpb: float | None, status: Status, description: str = "x") -> Row:
    return Row(number, "abcdef0", val_bpb, 1.0, status, description)


# ---------------------------------------------------------------- results.tsv


def test_a_published_table_comes_back_byte_for_byte() -> None:
    assert results_tsv.to_tsv(results_tsv.from_tsv(PUBLISHED, "results.tsv")) == PUBLISHED


def test_a_crash_in_a_table_has_no_numbers() -> None:
    crash = results_tsv.from_tsv(PUBLISHED, "results.tsv")[6]
    assert (crash.number, crash.status, crash.val_bpb, crash.memory_gb) == (6, Status.CRASH, None, None)


def test_a_campaign_becomes_the_published_table() -> None:
    frames = 'File "train.py", line 3\n\nAssertionError: not divisible\n'
    found = campaign(
        trial(0, "the first one", 1.41, Status.KEEP),
        trial(1, "halve\tthe\nbatch", 1.4, Status.KEEP),
        trial(2, "batch 7", None, Status.CRASH, Crash(CrashKind.PYTHON_ERROR, frames)),
        dataclasses.replace(trial(3, "under way", None, Status.KEEP), verdict=None),
    )
    assert results_tsv.to_tsv(report.rows(found)) == (
        HEADER + "0000000\t1.410000\t1.3\tkeep\tbaseline\n"
        "1111111\t1.400000\t1.3\tkeep\thalve the batch\n"
        "2222222\t0.000000\t0.0\tcrash\tbatch 7 (Python error: AssertionError: not divisible)\n"
    )


def test_an_idea_in_quotes_swallows_no_line_of_a_csv_reader() -> None:
    found = campaign(
        trial(0, "", 1.4, Status.KEEP), trial(1, '"depth 9', 1.3, Status.KEEP), trial(2, "x", 1, Status.KEEP)
    )
    table = list(csv.reader(results_tsv.to_tsv(report.rows(found)).splitlines(), delimiter="\t"))
    assert [len(line) for line in table] == [5] * 4


def test_windows_line_ends_a_byte_order_mark_and_blank_lines_do_no_harm() -> None:
    text = "\ufeff" + PUBLISHED.replace("\n", "\r\n") + "\r\n"
    assert results_tsv.from_tsv(text, "x") == results_tsv.from_tsv(PUBLISHED, "x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["x.tsv is not a results.tsv", "line 1"]),
        ("a,b\n1,2\n", ["x.tsv is not a results.tsv", "line 1", "a,b"]),
        (HEADER + "abc\t1.0\t1.0\tkeep\n", ["x.tsv line 2", "5 columns", "found 4"]),
        (HEADER + "\nabc\t1.0\t1.0\tkeep\ta\tb\n", ["x.tsv line 3", "found 6"]),
        (HEADER + "abc\tone\t1.0\tkeep\ta\n", ["x.tsv line 2", "val_bpb", "number", "'one'"]),
        (HEADER + "abc\t1.0\tnan\tkeep\ta\n", ["x.tsv line 2", "memory_gb", "'nan'"]),
        (HEADER + "abc\t1.0\t1.0\tkept\ta\n", ["x.tsv line 2", "unknown status 'kept'", "keep, discard, crash"]),
    ],
)
def test_a_bad_table_is_refused_with_file_line_and_reason(text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as refusal:
        results_tsv.from_tsv(text, "x.tsv")
    assert all(word in str(refusal.value) for word in words)
    assert "\n" not in str(refusal.value)


# ---------------------------------------------------------------- text from elsewhere


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[31mred\x1b[0m",
        "\x1b]0;title\x07red",
        "\x1b]8;;http://x\x1b\\red\x1b]8;;\x1b\\",
        "\x9b2Jred",
        "r\x08\x7fed\x00",
        "\u202ered\u2069",
        "re\ud800d",
    ],
)
def test_escapes_and_invisible_characters_are_removed(text: str) -> None:
    assert report.plain(text) == "red"


def test_an_escape_without_an_end_hides_nothing_that_follows() -> None:
    assert "the rest" in report.plain("\x1b]0;" + "x" * 5000 + "\nthe rest")


def test_line_ends_of_all_kinds_become_newlines() -> None:
    assert report.plain("a\r\nb\rc\u2028d\n") == "a\nb\nc\nd\n"


def test_the_last_line_is_the_error_of_a_traceback() -> None:
    assert report.last_line("Traceback\n  File\nValueError:  x \n\n") == "ValueError: x"


# ---------------------------------------------------------------- summary


def test_the_published_table_is_summed_up() -> None:
    found = report.summarize(results_tsv.from_tsv(PUBLISHED, "x"), noise=0.0005)
    assert (found.trials, found.counts) == (10, {"keep": 5, "discard": 4, "crash": 1})
    assert found.baseline is not None
    assert found.best is not None
    assert (found.baseline.number, found.best.number) == (0, 8)
    assert found.gain == pytest.approx(0.025803)
    assert found.gain_percent == pytest.approx(100 * 0.025803 / 0.9979)
    assert [step.number for step in found.frontier] == [0, 1, 2, 4, 8]
    assert [step.number for step in found.biggest] == [1, 8, 2, 4]
    misses = [(step.number, round(-step.gain, 6)) for step in found.near_misses]
    assert misses == [(9, 0.000253)], "no further from the best than the noise of a run"
    assert report.summarize(results_tsv.from_tsv(PUBLISHED, "x")).near_misses == (), "whose size must be known"
    assert found.crash_kinds == {"other": 1}


def test_a_discard_is_measured_against_the_best_of_its_time() -> None:
    rows = [row(0, 1.4, Status.KEEP), row(1, 1.41, Status.DISCARD), row(2, 1.2, Status.KEEP)]
    found = report.summarize(rows, noise=0.02)
    assert [step.gain for step in found.near_misses] == [pytest.approx(-0.01)]


def test_a_keep_that_is_no_better_is_no_step_of_the_frontier() -> None:
    found = report.summarize([row(0, 1.4, Status.KEEP), row(1, 1.4, Status.KEEP), row(2, 1.41, Status.KEEP)])
    assert [step.number for step in found.frontier] == [0]
    assert found.best == found.baseline
    assert found.gain == 0


@pytest.mark.parametrize("rows", [[], [row(0, None, Status.CRASH)], [row(0, 1.4, Status.DISCARD)]])
def test_without_a_keep_there_is_no_best(rows: list[Row]) -> None:
    found = report.summarize(rows)
    assert (found.baseline, found.best, found.gain, found.frontier, found.near_misses) == (None, None, None, (), ())


def test_a_baseline_alone_has_no_gain() -> None:
    found = report.summarize([row(0, 1.4, Status.KEEP)])
    assert (found.gain, found.biggest) == (0.0, ())


def test_crashes_are_counted_by_kind() -> None:
    told = ["a (time-out: no score)", "b (out of memory)", "c (time-out: no score)", "d (who knows)"]
    found = report.summarize([row(number, None, Status.CRASH, text) for number, text in enumerate(told)])
    assert found.crash_kinds == {"time-out": 2, "out of memory": 1, "other": 1}


def test_the_pace_is_known_from_the_runs() -> None:
    found = campaign(trial(0, "", 1.4, Status.KEEP), trial(1, "", 1.3, Status.KEEP))
    assert report.summarize(report.rows(found), report.run_seconds(found)).trials_per_hour == 60
    assert report.summarize(report.rows(found)).trials_per_hour is None


def test_a_report_is_plain_data_for_json() -> None:
    found = report.summarize(results_tsv.from_tsv(PUBLISHED, "x"))
    data = json.loads(json.dumps(dataclasses.asdict(found)))
    assert data["best"]["status"] == "keep"
