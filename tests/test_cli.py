"""The command line: what works says so, and each bad input is one sentence, exit 1, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

import toy_lab
from autoresearch.base import git
from autoresearch.lab.presets import create, presets
from autoresearch.ledger.ledger import Ledger
from command_line import Cli, call, refused, script

__all__ = ["call"]  # a fixture

# ---------------------------------------------------------------- what works


def test_a_campaign_from_run_to_report(lab: Path, call: Cli) -> None:
    code, out, _ = call("run", "--lab", lab, "--researcher", script(lab, 2.0, 9.0))
    assert code == 0
    assert "X to 2.0" in out
    assert (lab / "progress.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = call("log", "--lab", lab)
    assert code == 0
    assert "baseline" in out
    code, out, _ = call("log", "--lab", lab, "--json", "--limit", 2)
    assert [row["status"] for row in json.loads(out)] == ["keep", "discard"]
    code, out, _ = call("status", "--lab", lab, "--json")
    assert json.loads(out)["running"] is False
    code, out, _ = call("show", 1, "--lab", lab)
    assert "X = 2.0" in out
    code, out, _ = call("show", 1, "--lab", lab, "--json")
    assert json.loads(out)["status"] == "keep"
    code, out, _ = call("show", 1, "--lab", lab, "--json", "--full")
    assert json.loads(out)["verdict"]["status"] == "keep"
    code, out, _ = call("report", "--lab", lab, "--json")
    assert json.loads(out)["best"]["val_bpb"] == 2.0
    assert call("status", "--lab", lab)[0] == call("report", "--lab", lab)[0] == 0


def test_run_without_a_tag_goes_on_with_the_latest_campaign(lab: Path, call: Cli) -> None:
    researcher = script(lab, 2.0, 1.5, 1.2)
    call("run", "--lab", lab, "--researcher", researcher, "--trials", 1)
    call("run", "--lab", lab, "--researcher", researcher)
    campaigns = Ledger(lab / ".autoresearch/ledger.jsonl").campaigns()
    assert [len(campaign.finished) for campaign in campaigns] == [4]


def test_no_confirm_leaves_the_keeps_for_confirm(lab: Path, call: Cli) -> None:
    (lab / "program.md").write_text(toy_lab.PROGRAM.replace("judge: greedy", "judge: posterior\nmax_runs: 1"))
    code, out, _ = call("run", "--lab", lab, "--researcher", script(lab, 1.5), "--no-confirm")
    assert (code, "confirming" in out) == (0, False)
    code, _, err = call("confirm", "--lab", lab)
    assert code == 0
    assert "confirming on fresh seeds: pair 1 of at most 8, at most " in err


def test_a_control_says_beforehand_how_long_it_takes(lab: Path, call: Cli) -> None:
    code, _, err = call("aa", "--lab", lab, "--trials", 2)
    assert code == 0
    assert re.match(r"2 trials of about \d+ s: \d+ s, after the baseline\n", err)


def test_who_really_proposed_is_shown_with_the_model(lab: Path, call: Cli) -> None:
    call("run", "--lab", lab, "--researcher", script(lab, 2.0, 1.5))
    for command in ("status", "report"):
        assert "2 by scripted" in call(command, "--lab", lab)[1]
    assert json.loads(call("status", "--lab", lab, "--json")[1])["proposers"] == {"scripted": 2}


def test_a_local_model_that_is_not_running_is_told_at_once(
    lab: Path, call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:9")
    refused(
        call("run", "--lab", lab, "--researcher", "llm:ollama:x"), "nothing answers", "ollama serve", "ollama pull x"
    )
    assert not (lab / ".autoresearch/ledger.jsonl").exists()


def test_a_new_campaign_in_place_of_a_failed_one_is_told(tmp_path: Path, call: Cli) -> None:
    lab = toy_lab.make(tmp_path / "lab", train="raise ValueError('broken')\n")
    call("run", "--lab", lab, "--researcher", script(lab, 2.0))
    (lab / "train.py").write_text(toy_lab.TRAIN)
    git.commit_all(lab, "mended")
    code, out, _ = call("run", "--lab", lab, "--researcher", script(lab, 2.0))
    assert code == 0
    assert re.search(r"campaign \S+ has no baseline that counts \(trial 0\): this starts \S+-2", out)


def test_each_campaign_has_its_table_and_tags_lists_them(lab: Path, call: Cli) -> None:
    refused(call("tags", "--lab", lab), "no campaign yet")
    call("run", "--lab", lab, "--researcher", script(lab, 2.0), "--tag", "first")
    first = (lab / "results.tsv").read_text()
    code, out, _ = call("run", "--lab", lab, "--researcher", script(lab, 1.5), "--tag", "second")
    assert code == 0
    assert (lab / "results-first.tsv").read_text() == first
    assert (lab / "results.tsv").read_text() != first
    code, out, _ = call("run", "--lab", lab, "--researcher", script(lab, 1.5, 1.2))
    assert "continuing campaign second, with 2 trials so far" in out
    code, out, _ = call("tags", "--lab", lab)
    assert [line.split()[:4] for line in out.splitlines()[1:]] == [
        ["first", "2", "1", "2.0000"],
        ["*", "second", "3", "2"],
    ]
    found = json.loads(call("tags", "--lab", lab, "--json")[1])
    assert [(each["tag"], each["current"]) for each in found] == [("first", False), ("second", True)]
    code, out, _ = call("run", "--lab", lab, "--researcher", script(lab, 2.0, 1.4), "--tag", "first")
    assert code == 0
    assert (lab / "results-second.tsv").is_file()


def test_a_table_of_that_name_that_is_not_ours_is_saved_aside(lab: Path, call: Cli) -> None:
    call("run", "--lab", lab, "--researcher", script(lab, 2.0), "--tag", "first")
    (lab / "results-first.tsv").write_text("mine\n")
    call("run", "--lab", lab, "--researcher", script(lab, 1.5), "--tag", "second")
    assert "mine\n" in [path.read_text() for path in lab.glob("results-first.saved*.tsv")]


def test_diff_shows_how_two_trials_differ(lab: Path, call: Cli) -> None:
    call("run", "--lab", lab, "--researcher", script(lab, 2.0, 9.0))
    code, out, _ = call("diff", 1, 2, "--lab", lab)
    assert code == 0
    assert {"-X = 2.0", "+X = 9.0"} <= set(out.splitlines())
    assert call("diff", 1, 1, "--lab", lab)[1] == "the two are the same\n"
    refused(call("diff", 1, 7, "--lab", lab), "no trial 7")


def test_a_begun_campaign_says_that_it_does_not_see_later_commits(lab: Path, call: Cli) -> None:
    call("run", "--lab", lab, "--researcher", script(lab, 2.0, 1.5), "--trials", 1)
    (lab / "prepare.py").write_text(toy_lab.PREPARE.replace("TIME_BUDGET = 2", "TIME_BUDGET = 3"))
    git.commit_all(lab, "a longer budget")
    code, out, _ = call("run", "--lab", lab, "--researcher", script(lab, 2.0, 1.5))
    assert code == 0
    assert "continues with its own prepare.py" in out
    assert "--tag NAME" in out


def test_an_interpreter_may_be_named_from_the_labs_root_or_the_path(tmp_path: Path, call: Cli) -> None:
    for name in ("bin/python", Path(sys.executable).name):
        lab = toy_lab.make(tmp_path / name.replace("/", "-"), program=f"---\npython: {name}\nmin_free_gb: 0\n---\n")
        (lab / "bin").mkdir()
        (lab / "bin/python").symlink_to(sys.executable)
        assert call("run", "--lab", lab, "--researcher", script(lab, 2.0))[0] == 0


def test_after_a_crashed_baseline_run_begins_a_new_campaign(tmp_path: Path, call: Cli) -> None:
    lab = toy_lab.make(tmp_path / "lab", train="raise ValueError('broken')\n")
    refused(call("run", "--lab", lab, "--researcher", script(lab, 2.0)), "the baseline crashed", "show 0")
    (lab / "train.py").write_text(toy_lab.TRAIN)
    git.commit_all(lab, "mended")
    assert call("run", "--lab", lab, "--researcher", script(lab, 2.0))[0] == 0
    assert len(Ledger(lab / ".autoresearch/ledger.jsonl").campaigns()) == 2


def test_report_and_chart_read_a_published_results_tsv(tmp_path: Path, call: Cli) -> None:
    table = tmp_path / "results.tsv"
    table.write_text(
        "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"
        "baseline\t0.997900\t44.0\tkeep\tbaseline\n"
        "bea057b\t0.986041\t43.9\tkeep\thalve batch 524K to 262K (more steps in 5 min)\n"
        "e05a87d\t0.000000\t0.0\tcrash\tbatch 131K (assert fail: not divisible by device batch)\n"
    )
    code, out, _ = call("report", table)
    assert code == 0
    assert "0.986041" in out
    assert call("chart", table, "--output", tmp_path / "chart.png")[0] == 0
    assert (tmp_path / "chart.png").exists()


def test_train_and_prepare_run_the_persons_own_files(lab: Path) -> None:
    for command, word in (("prepare", "the data is ready"), ("train", "peak_vram_mb")):
        done = subprocess.run(
            [sys.executable, "-m", "autoresearch", command, "--lab", lab], capture_output=True, text=True
        )
        assert done.returncode == 0
        assert word in done.stdout


def test_new_makes_a_lab_of_a_preset(tmp_path: Path, call: Cli) -> None:
    code, out, _ = call("new", tmp_path / "mine", "--preset", "cpu", "--budget", 60)
    assert code == 0
    assert "next: cd" in out
    assert "TIME_BUDGET = 60 " in (tmp_path / "mine/prepare.py").read_text()


def test_doctor_says_what_it_found(call: Cli, tmp_path: Path) -> None:
    code, out, _ = call("doctor", "--json", "--lab", tmp_path)
    checks = {check["name"]: check for check in json.loads(out)}
    assert code == int(any(check["ok"] is False for check in checks.values()))
    assert "backward" in checks["attention"]["found"]


@pytest.mark.parametrize(
    "command",
    [
        *("new", "doctor", "prepare", "train", "run", "try", "guide", "papers", "mcp"),
        *("status", "log", "show", "report", "chart", "keep", "drop", "tags", "diff"),
    ],
)
def test_every_command_has_help_with_an_example(call: Cli, command: str) -> None:
    code, out, _ = call(command, "--help")
    assert code == 0
    assert f"Example: autoresearch {command}" in out


@pytest.mark.slow
def test_try_answers_in_a_few_lines_or_in_json_alone(lab: Path) -> None:
    def attempt(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "autoresearch", "try", "--lab", str(lab), "-m", "nearer", *options]
        return subprocess.run(command, capture_output=True, text=True)

    (lab / "train.py").write_text(toy_lab.train_with(2.0))
    done = attempt()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("trial 1: keep (val_bpb 2.000000, best 2.000000")
    assert lines[-1].startswith("next")
    assert [line.split()[0] for line in lines[1:]] == ["why", "it", "noise", "next"]
    assert done.stderr.count("val_bpb fell") <= 1
    (lab / "train.py").write_text(toy_lab.train_with(9.0))
    answer = json.loads(attempt("--json").stdout)
    assert (answer["trial"], answer["status"]) == (2, "discard")
    assert json.loads(attempt("--json").stdout) == answer, "the same edits get the same answer"
    (lab / "train.py").write_text(toy_lab.train_with(3.0))
    refused_ = attempt("--json")
    assert refused_.returncode == 1
    assert refused_.stderr.count("tried before, as trial 0 (keep, val_bpb 5.000000)") == 1
    assert "autoresearch run" not in refused_.stderr
    answer = json.loads(refused_.stdout)
    assert (answer["status"], answer["earlier"], answer["trial"]) == ("refused", 0, None)
    assert "git restore --source=autoresearch/" in answer["next"]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_output_that_cannot_show_a_character_ends_nothing(lab: Path, encoding: str) -> None:
    def said(*words: str) -> str:
        command = [sys.executable, "-m", "autoresearch", *words, "--lab", str(lab)]
        environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"}
        done = subprocess.run(command, capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode(encoding)

    (lab / "train.py").write_text(toy_lab.train_with(2.0))
    assert "keep" in said("try", "-m", "X → 2 ✓")
    for command in (("status",), ("log",), ("show", "1"), ("report",), ("tags",)):
        assert "bug" not in said(*command)
    assert "\\u2192" in said("show", "1")


def test_a_place_that_cannot_be_made_a_sub_folder_and_h_are_plain_and_right(lab: Path, call: Cli) -> None:
    refused(call("new", "/proc/x"), "/proc/x cannot be made", "choose a place")
    refused(call("new", "/dev/null/x"), "/dev/null/x cannot be made", "choose a place")
    (lab / "sub").mkdir()
    refused(call("status", "--lab", lab / "sub"), f"{lab} has no campaign yet")
    for command in ([], ["run"], ["try"]):
        assert call(*command, "-h")[:2] == call(*command, "--help")[:2]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a lab away")
def test_a_lab_of_another_user_is_told_with_what_to_do(lab: Path, call: Cli) -> None:
    os.chown(lab, 65534, 65534)
    os.chown(lab / ".git", 65534, 65534)
    refused(call("status", "--lab", lab), "belongs to another user", "safe.directory")


def test_a_report_of_a_table_draws_nothing_unasked(tmp_path: Path, call: Cli) -> None:
    (tmp_path / "results.tsv").write_text("commit\tval_bpb\tmemory_gb\tstatus\tdescription\nabc\t1.0\t1.0\tkeep\tx\n")
    assert call("report", tmp_path / "results.tsv")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["results.tsv"]


def test_what_became_of_a_keep_is_told_everywhere(lab: Path, call: Cli) -> None:
    """A refuted keep: no view may still call it kept, or a lead to follow."""
    seeds = "import os\nseed = int(os.environ['AUTORESEARCH_SEED'])\nX = X if seed < 1000 else 4.0\n"
    (lab / "program.md").write_text(toy_lab.PROGRAM.replace("judge: greedy", "judge: posterior\nmax_runs: 1"))
    lines = [{"idea": "a fluke", "files": {"train.py": toy_lab.train_with(1.5, seeds)}}]
    (lab.parent / "script.json").write_text(json.dumps(lines))
    assert call("run", "--lab", lab, "--researcher", f"scripted:{lab.parent / 'script.json'}")[0] == 0
    shown = call("show", 1, "--lab", lab)[1]
    assert re.search(r"since then  #1 was refuted: .*; it counts as discard", shown)
    found = json.loads(call("show", 1, "--lab", lab, "--json")[1])
    assert found["status"] == "discard"
    assert "#1 was refuted" in found["since"][0]
    for command in ("status", "report"):
        assert "tested      #1 was refuted: " in call(command, "--lab", lab)[1]
    assert "near misses" not in call("report", "--lab", lab)[1]
    assert "(kept at first, refuted)" in call("log", "--lab", lab)[1]
    _, out, _ = call("confirm", "--lab", lab)
    assert "nothing to test: nothing was kept since the last test" in out
    call("keep", 1, "--why", "I like it", "--lab", lab)
    assert "kept by hand: I like it" in call("log", "--lab", lab)[1]
    assert "#1 was refuted" in call("show", 1, "--lab", lab)[1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("try", "-m", "x", "--wait"), "--wait asks for the trial that is at work"),
        (("try", "-m", "x", "--timeout", "3"), "--timeout is for --wait"),
        (("log", "--limit", "0"), "`autoresearch log --help` shows the choices"),
        (("show", "0"), "has no campaign yet"),
        (("sample", "hi", "--device", "cuda"), "this machine has no cuda, only cpu"),
    ],
)
def test_what_cannot_be_meant_is_told_as_what_it_is(lab: Path, call: Cli, words: tuple[str, ...], told: str) -> None:
    refused(call(*words, "--lab", lab), told)


def test_a_refusal_without_json_says_what_to_do_next_in_its_last_line(lab: Path, call: Cli) -> None:
    (lab / "prepare.py").write_text(toy_lab.PREPARE + "# mine\n")
    code, out, err = call("try", "-m", "x", "--lab", lab)
    assert code == 1
    assert "prepare.py may not change" in err
    assert out == "next        put it back with `git restore prepare.py`, then try again\n"


def test_a_path_that_the_locale_cannot_spell_is_a_lab_all_the_same(tmp_path: Path) -> None:
    lab = toy_lab.make(tmp_path / "mit leer zeichen äöü")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "autoresearch", "status", "--lab", str(lab)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "has no campaign yet" in done.stderr


def test_every_error_is_json_for_who_asked_for_json(lab: Path, call: Cli) -> None:
    for command in (["status"], ["show", 3], ["try", "-m", " "], ["try"], ["report", "nothing.tsv"]):
        code, out, err = call(*command, "--lab", lab, "--json")
        answer = json.loads(out)
        assert (code, answer["status"]) == (1, "error")
        assert err == f"autoresearch: {answer['reason']}\n"


@pytest.mark.slow
def test_a_trial_goes_on_without_the_call_that_started_it(tmp_path: Path) -> None:
    lab = toy_lab.make(tmp_path / "lab")
    go = tmp_path / "go"
    held = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.02)"

    def attempt(*options: str) -> tuple[int, dict[str, Any]]:
        command = [sys.executable, "-m", "autoresearch", "try", "--lab", str(lab), "--json", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return done.returncode, json.loads(done.stdout)

    (lab / "train.py").write_text(toy_lab.train_with(2.0, held))
    code, answer = attempt("-m", "nearer", "--detach")
    assert (code, answer["status"]) == (4, "running")
    assert "--wait" in answer["next"]
    assert attempt("-m", "nearer", "--detach")[1]["status"] == "running", "the same edits attach"
    code, answer = attempt("--wait", "--timeout", "0.5")
    assert (code, answer["status"]) == (4, "running")
    (lab / "train.py").write_text(toy_lab.train_with(1.5))
    code, answer = attempt("-m", "nearer still")
    assert (code, answer["status"]) == (1, "error")
    assert "another trial is running (nearer)" in answer["reason"]
    assert "--wait" in answer["next"]
    go.touch()
    code, answer = attempt("--wait")
    assert (code, answer["trial"], answer["status"], answer["val_bpb"]) == (0, 1, "keep", 2.0)
    assert attempt("-m", "nearer still")[1]["val_bpb"] == 1.25


def test_the_same_edits_after_a_kill_continue_the_trial(tmp_path: Path) -> None:
    lab = toy_lab.make(tmp_path / "lab")
    began = tmp_path / "began"
    once = f"import pathlib, time\np = pathlib.Path({str(began)!r})\nif not p.exists(): p.touch(); time.sleep(60)"
    (lab / "train.py").write_text(toy_lab.train_with(2.0, once))
    command = [sys.executable, "-m", "autoresearch", "try", "--lab", str(lab), "--json"]
    process = subprocess.Popen([*command, "-m", "nearer"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not began.exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.kill()
    process.wait()
    done = subprocess.run([*command, "--wait"], capture_output=True, text=True)
    assert (done.returncode, json.loads(done.stdout)["status"]) == (1, "interrupted")
    done = subprocess.run([*command, "-m", "nearer"], capture_output=True, text=True)
    assert (json.loads(done.stdout)["trial"], json.loads(done.stdout)["status"]) == (1, "keep")
    trials = [trial.number for trial in Ledger(lab / ".autoresearch/ledger.jsonl").campaigns()[0].trials]
    assert trials == [0, 1]


def test_ctrl_c_during_a_try_is_an_answer_too(tmp_path: Path) -> None:
    lab = toy_lab.make(tmp_path / "lab")
    (lab / "train.py").write_text(
        toy_lab.train_with(2.0, f"open({str(tmp_path / 'began')!r}, 'w')\nimport time\ntime.sleep(60)")
    )
    command = [sys.executable, "-m", "autoresearch", "try", "--lab", str(lab), "--json", "-m", "nearer"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while not (tmp_path / "began").exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, json.loads(out)["status"]) == (130, "interrupted")


def test_keep_and_drop_move_the_branch_and_say_who_and_why(lab: Path, call: Cli) -> None:
    call("run", "--lab", lab, "--researcher", script(lab, 2.0, 9.0))
    tag = Ledger(lab / ".autoresearch/ledger.jsonl").campaigns()[0].tag

    def at() -> str:
        return git.files(lab, f"autoresearch/{tag}")["train.py"].decode().partition("X = ")[2][:3]

    code, out, _ = call("keep", 2, "--why", "much simpler", "--lab", lab)
    assert code == 0
    assert "#2 was kept by hand (the command line: much simpler)" in out
    assert at() == "9.0"
    assert "kept by hand: much simpler" in (lab / "results.tsv").read_text()
    assert json.loads(call("status", "--lab", lab, "--json")[1])["best"]["trial"] == 2
    assert call("drop", 2, "--why", "a slip", "--lab", lab)[0] == 0
    assert at() == "2.0"
    assert "kept at first, dropped by hand: a slip" in (lab / "results.tsv").read_text()
    assert call("drop", 1, "--why", "a fluke", "--lab", lab, "--json")[0] == 0
    assert at() == "3.0"
    assert call("keep", 1, "--why", "no fluke", "--lab", lab)[0] == 0
    assert call("run", "--lab", lab, "--researcher", script(lab, 2.0, 9.0, 1.5))[0] == 0
    assert at() == "1.5"
    refused(call("keep", 3, "--why", "x", "--lab", lab), "is the best version already")
    refused(call("drop", 0, "--why", "x", "--lab", lab), "baseline cannot be dropped")
    refused(call("drop", 2, "--why", "x", "--lab", lab), "nothing to drop")
    refused(call("keep", 9, "--why", "x", "--lab", lab), "no trial 9")
    refused(call("keep", 2, "--why", " ", "--lab", lab), "say why")


def test_a_loop_goes_on_with_what_was_tried_by_hand(lab: Path, call: Cli) -> None:
    (lab / "train.py").write_text(toy_lab.train_with(2.0))
    assert call("try", "--lab", lab, "-m", "nearer")[0] == 0
    git.commit_all(lab, "mine")
    assert call("run", "--lab", lab, "--researcher", script(lab, 2.0, 1.5), "--trials", 1)[0] == 0
    campaign = Ledger(lab / ".autoresearch/ledger.jsonl").campaign()
    assert campaign is not None
    assert [trial.proposed.researcher for trial in campaign.trials] == ["try", "try", "scripted"]


def test_guidance_is_added_and_shown(lab: Path, call: Cli) -> None:
    assert call("guide", "fewer heads", "--lab", lab)[:2] == (0, "fewer heads\n")
    assert call("guide", "longer warmdown", "--lab", lab)[1] == "fewer heads\n\nlonger warmdown\n"
    assert (lab / ".autoresearch/guidance.md").read_text() == "fewer heads\n\nlonger warmdown\n"
    refused(call("guide", " ", "--lab", lab), "guidance is empty")


def test_papers_are_found_in_ones_own_notes_and_a_missing_folder_is_named(
    tmp_path: Path, call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    lab = toy_lab.make(tmp_path / "lab", program="---\npapers: [notes]\n---\n")
    refused(
        call("papers", "warmdown", "--lab", lab), "cannot read the folder", "notes: correct `papers:` in program.md"
    )
    (lab / "notes").mkdir()
    (lab / "notes/schedules.md").write_text("# Schedules\n\nA longer warmdown helped at small scale.\n")
    code, out, _ = call("papers", "warmdown", "--lab", lab)
    assert code == 0
    assert "A longer warmdown helped" in out
    assert "arXiv could not be asked" in out


def test_a_researcher_of_ones_own_in_a_python_file(lab: Path, call: Cli) -> None:
    mine = lab.parent / "mine.py"
    mine.write_text(
        "from autoresearch.ledger.records import Proposal\n"
        "def propose(brief):\n"
        "    text = brief.files['train.py'].replace('X = 3.0', 'X = 2.0')\n"
        "    return Proposal('X to 2', {'train.py': text})\n"
    )
    code, out, _ = call("run", "--lab", lab, "--researcher", f"python:{mine}", "--trials", 1)
    assert code == 0
    assert "X to 2" in out
    refused(call("run", "--lab", lab, "--researcher", "python:none.py"), "no file 'none.py'", "propose(brief)")
    mine.write_text("propose = 3\n")
    refused(call("run", "--lab", lab, "--researcher", f"python:{mine}"), "no function propose(brief)")
    mine.write_text("propose = \n")
    refused(call("run", "--lab", lab, "--researcher", f"python:{mine}"), "cannot run", "SyntaxError")


# ---------------------------------------------------------------- bad input


def test_a_directory_that_is_no_lab(tmp_path: Path, call: Cli) -> None:
    for command in (
        ["run"],
        ["status"],
        ["log"],
        ["show", 1],
        ["report"],
        ["chart"],
        ["train"],
        ["prepare"],
        ["guide", "x"],
        ["mcp"],
    ):
        refused(call(*command, "--lab", tmp_path), "is not a lab", "autoresearch new DIR")


def test_a_lab_that_is_no_repository(lab: Path, call: Cli) -> None:
    (lab / ".git").rename(lab.parent / "git")
    refused(call("run", "--lab", lab), "not the root of a git repository", "git init")


def test_no_git(lab: Path, call: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(call("run", "--lab", lab), "git is not installed", "install it")
    refused(call("new", tmp_path / "new", "--preset", "cpu"), "git is not installed")


def test_no_space_before_a_trial(tmp_path: Path, call: Cli) -> None:
    lab = toy_lab.make(tmp_path / "lab", program="---\nmin_free_gb: 1000000000\n---\n")
    refused(call("run", "--lab", lab, "--researcher", script(lab, 2.0)), "GiB are free", "free some")


def test_no_space_while_the_ledger_is_written(lab: Path, call: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    call("run", "--lab", lab, "--researcher", script(lab, 2.0))
    before = (lab / ".autoresearch/ledger.jsonl").read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(call("run", "--lab", lab, "--researcher", script(lab, 2.0, 1.5)), "No space left", "free some space")
    assert (lab / ".autoresearch/ledger.jsonl").read_bytes().startswith(before)


def test_no_data(tmp_path: Path) -> None:
    lab = toy_lab.make(tmp_path / "lab", prepare="TIME_BUDGET = 2\nraise SystemExit('shard 3 is corrupt: delete it')\n")
    done = subprocess.run(
        [sys.executable, "-m", "autoresearch", "run", "--lab", lab, "--researcher", script(lab, 2.0)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "shard 3 is corrupt" in done.stderr
    assert "the data is not ready" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["prepare.py", "train.py"])
def test_a_dirty_checkout(lab: Path, call: Cli, name: str) -> None:
    text = (lab / name).read_text() + "\n# mine\n"
    (lab / name).write_text(text)
    refused(call("run", "--lab", lab, "--researcher", script(lab, 2.0)), name, "git stash")
    assert (lab / name).read_text() == text


def test_a_detached_checkout(lab: Path, call: Cli) -> None:
    subprocess.run(["git", "checkout", "--quiet", "--detach"], cwd=lab, check=True)
    refused(call("run", "--lab", lab, "--researcher", script(lab, 2.0)), "detached", "git switch main")


def test_the_campaigns_own_branch_checked_out(lab: Path, call: Cli) -> None:
    call("run", "--lab", lab, "--researcher", script(lab, 2.0), "--tag", "t")
    subprocess.run(["git", "checkout", "--quiet", "autoresearch/t"], cwd=lab, check=True)
    refused(call("run", "--lab", lab, "--researcher", script(lab, 2.0)), "is checked out", "git switch main")


def test_a_repository_without_a_commit(lab: Path, call: Cli) -> None:
    for path in sorted((lab / ".git").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (lab / ".git").rmdir()
    git.init(lab)
    refused(call("run", "--lab", lab, "--researcher", script(lab, 2.0)), "no commit yet", "git commit")


@pytest.mark.parametrize("text", ["", "---\nresercher: x\n---\n", "---\nresearcher: [\n---\n", "no fence"])
def test_a_broken_program_md(lab: Path, call: Cli, text: str) -> None:
    (lab / "program.md").write_text(text)
    refused(call("run", "--lab", lab), "program.md")


@pytest.mark.parametrize(
    ("cap", "researcher", "words"),
    [
        ("max_usd: 5", "codex", ("does not report", "set `max_tokens` instead")),
        ("max_tokens: 5000", "command:true", ("does not report", "limit it in its own account")),
    ],
)
def test_a_cap_that_could_never_be_reached(
    tmp_path: Path, call: Cli, cap: str, researcher: str, words: tuple[str, ...]
) -> None:
    lab = toy_lab.make(tmp_path / "lab", program=f"---\n{cap}\nmin_free_gb: 0\n---\n")
    refused(call("run", "--lab", lab, "--researcher", researcher), researcher.partition(":")[0], *words)


def test_a_researcher_that_there_is_not(lab: Path, call: Cli) -> None:
    refused(call("run", "--lab", lab, "--researcher", "bultin"), "no researcher 'bultin'", "did you mean builtin?")


def test_a_train_py_with_a_syntax_error(tmp_path: Path, call: Cli) -> None:
    lab = toy_lab.make(tmp_path / "lab", train="X = (\n")
    refused(call("run", "--lab", lab, "--researcher", script(lab, 2.0)), "train.py has a syntax error in line 1")


def test_a_half_written_last_line_of_the_ledger_loses_nothing(lab: Path, call: Cli) -> None:
    ledger = lab / ".autoresearch/ledger.jsonl"
    call("run", "--lab", lab, "--researcher", script(lab, 2.0))
    ledger.write_bytes(ledger.read_bytes() + b'{"type": "propo')
    assert call("status", "--lab", lab)[0] == 0
    assert call("run", "--lab", lab, "--researcher", script(lab, 2.0, 1.5))[0] == 0
    campaign = Ledger(ledger).campaign()
    assert campaign is not None
    assert len(campaign.finished) == 3


def test_a_spoilt_line_within_the_ledger(lab: Path, call: Cli) -> None:
    ledger = lab / ".autoresearch/ledger.jsonl"
    call("run", "--lab", lab, "--researcher", script(lab, 2.0))
    spoilt = ledger.read_bytes().replace(b'"type": "verdict"', b'"type: verdict', 1)
    ledger.write_bytes(spoilt)
    refused(call("run", "--lab", lab, "--researcher", script(lab, 2.0)), "line", "cannot read", "doctor --repair")
    assert ledger.read_bytes() == spoilt


def test_a_missing_interpreter(tmp_path: Path, call: Cli) -> None:
    lab = toy_lab.make(tmp_path / "lab", program="---\npython: /no/such/python\nmin_free_gb: 0\n---\n")
    for command in ("run", "train", "prepare"):
        refused(call(command, "--lab", lab), "/no/such/python does not exist", "program.md")


@pytest.mark.parametrize("value", ["0", "-1", '"ten"'])
def test_a_budget_of_nothing(tmp_path: Path, call: Cli, value: str) -> None:
    lab = toy_lab.make(tmp_path / "lab", prepare=f"TIME_BUDGET = {value}\n")
    refused(call("run", "--lab", lab, "--researcher", script(lab, 2.0)), "TIME_BUDGET", "above 0")


def test_a_budget_of_nothing_for_a_new_lab(tmp_path: Path, call: Cli) -> None:
    refused(call("new", tmp_path / "lab", "--budget", 0), "--budget")
    assert not (tmp_path / "lab").exists()


def test_a_second_loop(lab: Path, call: Cli) -> None:
    slow = toy_lab.train_with(3.0, "import time; time.sleep(30)")
    (lab / "train.py").write_text(slow)
    git.commit_all(lab, "slow")
    command = [sys.executable, "-m", "autoresearch", "run", "--lab", str(lab), "--researcher", script(lab, 2.0)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        first.stdout.readline()
        refused(call("run", "--lab", lab), f"another loop (process {first.pid})", "Ctrl-C")
        assert json.loads(call("status", "--lab", lab, "--json")[1])["running"] is True
        first.terminate()
        first.communicate()
    assert first.returncode == 130


def test_an_unknown_tag_command_option_or_trial(lab: Path, call: Cli) -> None:
    refused(call("status", "--lab", lab), "no campaign yet", "autoresearch run")
    refused(call("run", "--lab", lab, "--tag", "../x"), "cannot name a branch")
    refused(call("runn"), "runn")
    refused(call("run", "--frobnicate"), "--frobnicate")
    refused(call("show", 7, "--lab", lab), "no campaign yet")
    call("try", "--lab", lab, "-m", "baseline")
    refused(call("show", 7, "--lab", lab), "no trial 7")
    refused(call("run", "--trials", 0), "--trials")


def test_a_results_tsv_that_is_none(tmp_path: Path, call: Cli) -> None:
    (tmp_path / "x.tsv").write_text("a\tb\n")
    refused(call("report", tmp_path / "x.tsv"), "x.tsv", "line 1")
    refused(call("chart", tmp_path / "none.tsv"), "none.tsv", "cannot read")


def test_a_preset_that_there_is_not_and_a_directory_in_use(tmp_path: Path, call: Cli) -> None:
    refused(call("new", tmp_path / "lab", "--preset", "tpu"), "no preset 'tpu'", "h100")
    create(tmp_path / "lab", presets()["cpu"])
    refused(call("new", tmp_path / "lab", "--preset", "cpu"), "not empty")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_where_one_may_not_write(tmp_path: Path, call: Cli) -> None:
    tmp_path.chmod(0o500)
    refused(call("new", tmp_path / "lab", "--preset", "cpu"), "Permission denied", "where you can write")


def test_a_bug_of_ours_is_exit_3_with_a_log_to_paste(call: Cli, monkeypatch: pytest.MonkeyPatch, lab: Path) -> None:
    def broken(path: Path) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr("autoresearch.lab.workspace.Workspace.open", broken)
    code, _, err = call("status", "--lab", lab)
    assert code == 3
    log = Path(err.split()[-1])
    assert "RuntimeError: ours" in log.read_text()
    os.unlink(log)
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    code, _, err = call("status", "--lab", lab)
    assert code == 3
    assert "RuntimeError: ours" in err
    assert err.rstrip().endswith("please report it with what is above")


def test_a_lab_with_only_a_control_says_which(lab: Path, call: Cli) -> None:
    assert call("run", "--lab", lab, "--trials", "1", "--researcher", "noop", "--tag", "luck")[0] == 0
    refused(call("status", "--lab", lab), "has only controls (luck)", "--tag")
    assert call("status", "--lab", lab, "--tag", "luck")[0] == 0


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("wait", [0.2, 0.4, 0.8, 1.6])
def test_ctrl_c_at_any_moment_and_twenty_times_is_one_line(lab: Path, wait: float) -> None:
    (lab / "train.py").write_text("import time\ntime.sleep(60)\n")
    git.commit_all(lab, "slow")
    command = [sys.executable, "-m", "autoresearch", "run", "--lab", str(lab), "--researcher", script(lab, 2.0)]
    for _ in range(4):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            time.sleep(wait)
            for _ in range(20):
                process.send_signal(signal.SIGINT)
                time.sleep(0.05)
            _, errors = process.communicate(timeout=60)
        if process.returncode == 130 or "cli.py" in errors:
            break
        wait *= 2  # a busy machine: Python itself was still starting
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.splitlines() == ["autoresearch: stopped"]
