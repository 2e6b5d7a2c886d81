"""The tables and texts of the terminal."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console
from rich.text import Text

from autoresearch.agents import overview
from autoresearch.lab.doctor import Check
from autoresearch.lab.sizing.planner import Goal, Measurement, Setting, plan_of
from autoresearch.lab.sizing.planner import Row as FitRow
from autoresearch.ledger.campaign import Trial
from autoresearch.ledger.records import Crash, CrashKind, Status
from autoresearch.ledger.report import Pace, rows, summarize
from autoresearch.ledger.results_tsv import from_tsv
from autoresearch.views import setup, terminal
from autoresearch.views.lines import label, say
from published import PUBLISHED, campaign, trial

NASTY = "halve [red]batch[/red] [link=file:///etc]x[/] \x1b[2J\x1b]0;owned\x07\u202eend"
HARMLESS = "halve [red]batch[/red] [link=file:///etc]x[/] end"
FRAMES = 'Traceback:\n  File "train.py", line 3, in f\nAssertionError: [bold]7\x1b[31m'


def console(*, in_terminal: bool = False) -> Console:
    return Console(
        file=io.StringIO(), width=100, force_terminal=in_terminal, color_system="standard" if in_terminal else None
    )


def printed(out: Console) -> str:
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def crashed() -> Trial:
    return trial(2, NASTY, None, Status.CRASH, Crash(CrashKind.PYTHON_ERROR, FRAMES))


def test_the_log_lists_every_trial_with_the_newest_last() -> None:
    out = console()
    terminal.show_log(from_tsv(PUBLISHED, "x"), out, {6: Pace(), 9: Pace(1812, 46_000.4)})
    lines = printed(out).splitlines()
    assert lines[0].split() == ["trial", "commit", "val_bpb", "GB", "steps", "tokens/s", "status", "description"]
    assert lines[1].split() == ["0", "baseline", "0.997900", "44.0", "keep", "baseline"]
    assert lines[7].split()[:3] == ["6", "e05a87d", "crash"]
    assert lines[-1].startswith("    9  58b8b7a  0.972350  60.2    1,812    46,000  discard")


def test_a_log_in_a_pipe_has_one_line_a_trial_however_long_its_idea() -> None:
    out = console()
    terminal.show_log(
        rows(campaign(trial(0, "baseline", 1.5, Status.KEEP), trial(1, "x " * 99, 1.4, Status.KEEP))), out
    )
    assert len(printed(out).splitlines()) == 1 + 2


def test_a_log_without_trials_says_so() -> None:
    out = console()
    terminal.show_log([], out)
    assert printed(out) == "no trial is finished yet\n"


def test_a_trial_is_shown_with_numbers_patch_and_paths() -> None:
    out = console()
    shown = trial(1, "halve the batch", 1.402113, Status.KEEP)
    run = dataclasses.replace(shown.runs[0], summary={"num_steps": 1812.0, "total_tokens_M": 13.3})
    terminal.show_trial(dataclasses.replace(shown, runs=(run,)), "-A = 1\n+A = 2 # [bold]\n", "last line\n", out)
    said = printed(out)
    wanted = ["#1 halve the batch", "keep", "1111111 on aaaaaaa", "1.402113", "50.0 s", "4.0 s", "60.0 s", "1.26 GB"]
    wanted += ["1,812", "13.3 M", "run.log", "curve.jsonl", "+A = 2 # [bold]", "last line"]
    assert [word for word in wanted if word not in said] == []


def test_each_run_of_a_trial_has_its_line() -> None:
    out = console()
    shown = trial(1, "x", 1.4, Status.KEEP)
    other = dataclasses.replace(shown.runs[0], run=1, seed=43, exit_code=None)
    terminal.show_trial(dataclasses.replace(shown, runs=(*shown.runs, other)), "", "", out)
    lines = [line.split() for line in printed(out).splitlines()]
    head = next(line for line in lines if "seed" in line)
    runs = [line for line in lines[lines.index(head) + 1 :] if line[:1] in (["0"], ["1"])]
    assert [line[head.index("seed")] for line in runs] == ["42", "43"]
    assert "deadline" in runs[1]


def test_a_trial_that_never_ran_is_shown() -> None:
    out = console()
    terminal.show_trial(dataclasses.replace(trial(1, "x", None, Status.KEEP), runs=(), verdict=None), "", "", out)
    assert "none yet" in printed(out)


@pytest.mark.parametrize("in_terminal", [False, True])
def test_text_written_by_others_has_no_effect(in_terminal: bool) -> None:
    out = console(in_terminal=in_terminal)
    found = campaign(trial(0, "baseline", 1.5, Status.KEEP), trial(1, NASTY, 1.4, Status.KEEP), crashed())
    table = rows(found)
    terminal.show_log(table, out)
    terminal.show_status(overview.of(found), False, out)
    terminal.show_report(summarize(table), out)
    terminal.show_trial(crashed(), f"+{NASTY}\n", NASTY, out)
    said = printed(out)
    assert "\x1b[2J" not in said
    assert "\x1b]0" not in said
    assert "\u202e" not in said
    if not in_terminal:
        assert "\x1b" not in said
        assert said.count(HARMLESS) == 8
        assert "AssertionError: [bold]7" in said


def test_a_patch_is_colored_on_a_terminal_only() -> None:
    shown = trial(1, "x", 1.4, Status.KEEP)
    piped, seen = console(), console(in_terminal=True)
    for out in (piped, seen):
        terminal.show_trial(shown, "--- a\n+++ b\n-A = 1\n+A = 2\n", "", out)
    assert "\n-A = 1\n+A = 2\n" in printed(piped)
    assert "m+A = 2\x1b[0m" in printed(seen)


def test_the_report_names_best_gain_and_near_misses() -> None:
    out = console()
    terminal.show_report(summarize(from_tsv(PUBLISHED, "x"), 3600.0, noise=0.002), out)
    said = printed(out)
    wanted = ["10: 5 keep, 4 discard, 1 crash (10.0 an hour)", "0.972097 #8 97dda85, -0.0258 (-2.59 %), one run each"]
    wanted += ["-0.011859  0.986041  #1", "+0.000694  0.981895  #5"]
    assert [word for word in wanted if word not in said] == []


@pytest.mark.parametrize("text", ["", "c\t0\t0\tcrash\tx (time-out)\n", "c\t1.4\t1\tkeep\tbaseline\n"])
def test_a_report_of_little_is_short(text: str) -> None:
    out = console()
    terminal.show_report(summarize(from_tsv(PUBLISHED.splitlines()[0] + "\n" + text, "x")), out)
    assert 1 <= len(printed(out).splitlines()) <= 4


def test_status_says_whether_a_loop_works_and_on_what() -> None:
    under_way = dataclasses.replace(trial(2, "softcap 20", None, Status.KEEP), verdict=None)
    found = campaign(trial(0, "baseline", 1.5, Status.KEEP), trial(1, "x", 1.6, Status.DISCARD), under_way)
    for running, words in ((True, "at work"), (False, "`autoresearch run`")):
        out = console()
        terminal.show_status(overview.of(found), running, out)
        said = printed(out)
        wanted = [words, "autoresearch/t", "sandbox none", "#2 softcap 20", "#1 discard: x", "1.500000"]
        assert [word for word in wanted if word not in said] == []


def test_a_check_that_fails_says_what_to_do() -> None:
    out = console()
    setup.show_check(Check("git", True, "2.39", "never shown"), out)
    setup.show_check(Check("sandbox", None, "none", "install [bubblewrap]"), out)
    setup.show_check(Check("torch", False, "ImportError"), out)
    assert [line.split() for line in printed(out).splitlines()] == [
        ["ok", "git", "2.39"],
        ["warn", "sandbox", "none:", "install", "[bubblewrap]"],
        ["FAIL", "torch", "ImportError"],
    ]


def test_the_table_of_a_fit_stands_under_its_head_and_its_plan_has_the_reasons() -> None:
    out, setting = console(), Setting(2, 8, evaluate=True)
    found = Measurement(2048, 1_200_000, 0.059, 0.015, 500.0, 22_000.0, 400_000, 0.025)
    setup.show_measurement(FitRow(setting, found), out, first=True)
    setup.show_measurement(FitRow(Setting(4, 16), None, NASTY), out, first=False)
    goal = Goal(256, 60, Setting(4, 16), 2**16)
    setup.show_plan(plan_of(setting, found, goal), goal, Setting(3, 8), out)
    said = printed(out)
    head, first, second, *_ = said.splitlines()
    assert head == setup.FIT_HEAD
    assert first.split()[:3] == ["2", "8", "1.2"]
    assert len(first) == len(head)
    assert "27,676" in first
    assert second == f"    4    16  {HARMLESS}"
    for wanted in (
        "1.4 per parameter, for 1.2 M parameters (aim 5)",
        "2,048 tokens, 1 x 8 rows: 811 steps",
        "262,144 tokens",
    ):
        assert wanted in said
    assert "no time left for depth 3 with 8 rows" in said


def test_a_long_line_is_wrapped_between_words_below_its_value_on_a_terminal_only() -> None:
    text = "the score is lower than that of the best version and yet it is discarded since that may be luck"
    seen = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    say(seen, label("why", text), Text(text))
    assert printed(seen).splitlines() == [
        "why         the score is lower than that of the best version and yet it is",
        "            discarded since that may be luck",
        "the score is lower than that of the best version and yet it is discarded since",
        "that may be luck",
    ]
    piped = console()
    say(piped, label("why", text * 3))
    assert len(printed(piped).splitlines()) == 1
