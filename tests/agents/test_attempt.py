"""One trial of the edits in the working tree: what it takes, what it says, and what it leaves alone."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import toy_lab
from autoresearch.agents.attempt import InteractiveLab
from autoresearch.agents.edits import Wish
from autoresearch.agents.outcome import NotTried
from autoresearch.base import git
from autoresearch.base.errors import UserError
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.events import RunStarted


def edit(lab: Path, x: float, extra: str = "") -> None:
    (lab / "train.py").write_text(toy_lab.train_with(x, extra))


def attempt(lab: Path, idea: str = "an idea", **options: Any) -> dict[str, Any]:
    hear = {name: options.pop(name) for name in ("announce", "progress") if name in options}
    return InteractiveLab(Workspace.open(lab)).try_edits(
        Wish(idea, **options), **{"announce": lambda event: None, "progress": lambda trial, event: None, **hear}
    )


def restore(lab: Path, result: dict[str, Any]) -> None:
    """Do what the answer says."""
    command = str(result["next"]).partition("`git ")[2].partition("`")[0]
    subprocess.run(["git", *command.split()], cwd=lab, check=True)


def x_of(lab: Path) -> str:
    return next(line for line in (lab / "train.py").read_text().splitlines() if line.startswith("X = "))


def test_the_first_try_runs_the_last_commit_as_its_baseline_and_then_the_edits(lab: Path) -> None:
    edit(lab, 2.0)
    events: list[Any] = []
    result = attempt(lab, "X to 2", why="nearer to 1", announce=events.append)
    assert (result["trial"], result["status"], result["val_bpb"], result["best"]) == (1, "keep", 2.0, 2.0)
    assert [event.trial for event in events if isinstance(event, RunStarted)] == [0, 1]
    trial = InteractiveLab(Workspace.open(lab)).trial(1)
    assert (trial.proposed.researcher, trial.proposed.idea, trial.proposed.why) == ("try", "X to 2", "nearer to 1")
    assert git.resolve(lab, f"autoresearch/{result['tag']}") == result["commit"]
    assert "continue from here" in result["next"]


def test_a_first_try_without_edits_is_the_baseline(lab: Path) -> None:
    result = attempt(lab, "baseline")
    assert (result["trial"], result["status"], result["val_bpb"], result["best"]) == (0, "keep", 5.0, 5.0)
    assert "this is what to beat: change it, then run `autoresearch try" in result["next"]


def test_a_discard_says_how_to_go_back_to_the_best_version(lab: Path) -> None:
    edit(lab, 2.0)
    attempt(lab)
    edit(lab, 9.0)
    result = attempt(lab)
    assert result["status"] == "discard"
    assert x_of(lab) == "X = 9.0", "the working tree is the agent's"
    restore(lab, result)
    assert x_of(lab) == "X = 2.0"


def test_a_crash_says_where_to_look_and_how_to_go_back(lab: Path) -> None:
    edit(lab, 2.0, "raise ValueError('no')")
    result = attempt(lab)
    assert result["status"] == "crash"
    assert "ValueError: no" in result["reason"]
    assert f"autoresearch show {result['trial']}" in result["next"]
    restore(lab, result)
    assert x_of(lab) == "X = 3.0"


def test_the_working_tree_is_the_proposal_whatever_it_was_made_on(lab: Path) -> None:
    edit(lab, 2.0)
    attempt(lab)
    (lab / "train.py").write_text(toy_lab.TRAIN.replace("512.0", "640.0"))
    result = attempt(lab)
    assert (result["status"], result["val_bpb"]) == ("discard", 5.0)
    git.commit_all(lab, "mine")
    edit(lab, 1.5)
    git.commit_all(lab, "mine again")
    assert attempt(lab)["status"] == "keep"


def test_going_back_to_the_baseline_is_told_as_what_it_is(lab: Path) -> None:
    edit(lab, 2.0)
    attempt(lab)
    subprocess.run(["git", "checkout", "--quiet", "train.py"], cwd=lab, check=True)
    with pytest.raises(UserError, match=r"tried before, as trial 0 \(keep, val_bpb 5.0"):
        attempt(lab)


def test_a_prepare_py_committed_since_is_told_of(lab: Path) -> None:
    attempt(lab, "baseline")
    (lab / "prepare.py").write_text(toy_lab.PREPARE.replace("TIME_BUDGET = 2", "TIME_BUDGET = 3"))
    git.commit_all(lab, "another budget")
    edit(lab, 2.0)
    assert "continues with its own prepare.py" in attempt(lab)["notice"]


def test_an_edited_program_md_does_not_stop_the_first_try(lab: Path) -> None:
    (lab / "program.md").write_text(toy_lab.PROGRAM + "Try fewer heads.\n")
    edit(lab, 2.0)
    assert attempt(lab)["status"] == "keep"


def test_taking_a_part_of_a_keep_out_again_is_a_change_of_the_best_version(lab: Path) -> None:
    edit(lab, 2.0, "Y = 1\nZ = 2\nW = 3")
    attempt(lab)
    edit(lab, 2.0, "Y = 1")
    result = attempt(lab)
    assert result["status"] == "discard"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda lab: edit(lab, 3.0, "# nothing"), "changes nothing"),
        (lambda lab: (lab / "train.py").write_text("X = ("), "syntax error"),
        (lambda lab: (lab / "train.py").write_bytes(b"\xff\xfe\x00"), "cannot read"),
        (lambda lab: (edit(lab, 2.0), (lab / "prepare.py").write_text("TIME_BUDGET = 9\n")), "prepare.py"),
        (lambda lab: (edit(lab, 2.0), (lab / "train.py").unlink()), "train.py"),
    ],
)
def test_edits_that_cannot_be_tried_are_refused_in_a_sentence_and_stay(lab: Path, change: Any, sentence: str) -> None:
    attempt(lab, "baseline")
    change(lab)
    before = {path.name: path.read_bytes() for path in lab.glob("*.py")}
    with pytest.raises(UserError, match=sentence):
        attempt(lab)
    assert {path.name: path.read_bytes() for path in lab.glob("*.py")} == before
    edited = lab / "train.py"
    edited.write_text(toy_lab.train_with(2.0))
    (lab / "prepare.py").write_text(toy_lab.PREPARE)
    assert attempt(lab)["status"] == "keep"


def test_an_empty_idea_is_refused_before_anything_runs(lab: Path) -> None:
    with pytest.raises(UserError, match="the idea is empty"):
        attempt(lab, "  ")
    assert not (lab / ".autoresearch").exists()


def test_a_try_beside_a_running_loop_is_told_so(lab: Path) -> None:
    with Workspace.open(lab).lock(), pytest.raises(NotTried, match="another loop"):
        attempt(lab)


def test_answers_are_plain_data(lab: Path) -> None:
    edit(lab, 2.0)
    result = attempt(lab)
    beside = InteractiveLab(Workspace.open(lab))
    for answer in (result, beside.status(), beside.history(), beside.show(1)):
        assert json.loads(json.dumps(answer)) == json.loads(json.dumps(answer, default=str))
    assert [row["status"] for row in beside.history(1)] == ["keep"]
    assert "+X = 2.0" in str(beside.show(1)["patch"])
    with pytest.raises(UserError, match="no trial 7"):
        beside.show(7)


def test_progress_is_told_in_words_and_as_a_share(lab: Path) -> None:
    curve = (
        "import json, os, pathlib, time\n"
        'with open(pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"]) / "curve.jsonl", "a") as file:\n'
        '    file.write(json.dumps({"step": 7, "progress": 0.5, "loss": 3.25}) + "\\n")\n'
        "time.sleep(1.2)"
    )
    edit(lab, 2.0, curve)
    said: list[str] = []
    heard: list[tuple[float, str]] = []
    InteractiveLab(Workspace.open(lab)).attempt(
        Wish("x"), say=said.append, progress=lambda share, words: heard.append((share, words))
    )
    assert said == ["trial 0 is running, seed 42", "trial 1 is running, seed 42"]
    assert (0.5, "trial 1: step 7, loss 3.2500") in heard


def test_the_same_edits_asked_again_get_the_verdict_they_had(lab: Path) -> None:
    edit(lab, 2.0)
    first = attempt(lab, "X to 2")
    assert attempt(lab, "X to 2, again") == first
    assert [trial.number for trial in InteractiveLab(Workspace.open(lab)).campaign().trials] == [0, 1]


def test_the_best_version_asked_for_later_is_nothing_to_try(lab: Path) -> None:
    edit(lab, 2.0)
    attempt(lab)
    edit(lab, 9.0)
    restore(lab, attempt(lab))
    result = attempt(lab)
    assert (result["status"], result["trial"], result["best"]) == ("unchanged", None, 2.0)
    assert "nothing to try" in result["reason"]


def test_a_refusal_names_the_earlier_trial_and_what_to_do_and_not_the_loop(lab: Path) -> None:
    edit(lab, 2.0)
    attempt(lab)
    edit(lab, 9.0)
    attempt(lab)
    edit(lab, 3.0)
    with pytest.raises(NotTried) as refusal:
        attempt(lab)
    answer: Any = refusal.value.answer
    assert (answer["status"], answer["earlier"]) == ("refused", 0)
    restore(lab, answer)
    assert x_of(lab) == "X = 2.0"
    assert "autoresearch run" not in json.dumps(answer)


def test_frozen_edits_and_bad_syntax_are_refused_before_a_baseline_is_trained(lab: Path) -> None:
    (lab / "prepare.py").write_text(toy_lab.PREPARE + "# mine\n")
    with pytest.raises(NotTried, match=r"prepare\.py may not change"):
        attempt(lab)
    (lab / "prepare.py").write_text(toy_lab.PREPARE)
    (lab / "train.py").write_text("X = (")
    with pytest.raises(NotTried, match="syntax error"):
        attempt(lab)
    assert not (lab / ".autoresearch/ledger.jsonl").exists()


def test_a_new_file_that_is_not_part_of_the_trial_is_named(lab: Path) -> None:
    (lab / "helpers.py").write_text("Y = 1\n")
    edit(lab, 2.0)
    assert "helpers.py: not part of the trial, which is train.py only" in attempt(lab)["notice"]


def test_more_seeds_are_run_before_the_verdict_also_after_a_kill(lab: Path) -> None:
    edit(lab, 2.0)
    result = attempt(lab, seeds=3)
    trial = InteractiveLab(Workspace.open(lab)).trial(1)
    assert result["runs"] == len(trial.runs) == 3
    assert [run.seed for run in trial.runs] == [42, 43, 44]
    assert trial.proposed.seeds == 3, "in the ledger, so that it is continued with them"


def test_a_new_tag_begins_a_new_campaign(lab: Path) -> None:
    edit(lab, 2.0)
    attempt(lab)
    result = attempt(lab, "the same elsewhere", tag="second")
    assert (result["tag"], result["status"]) == ("second", "keep")
    assert [each.tag for each in InteractiveLab(Workspace.open(lab)).ledger.campaigns()][1:] == ["second"]


def test_the_answer_has_what_is_needed_to_judge_it(tmp_path: Path) -> None:
    """With the posterior judge a lower val_bpb may be discarded, and then it says why."""
    program = toy_lab.PROGRAM.replace("judge: greedy", "judge: posterior\nmax_runs: 1")
    noisy = toy_lab.TRAIN.replace(
        "evaluate(1 + (X - 1) ** 2)",
        "import os\nseed = int(os.environ['AUTORESEARCH_SEED'])\n"
        "evaluate(1 + (X - 1) ** 2 + (2.0 if seed % 2 else -2.0))",
    )
    lab = toy_lab.make(tmp_path / "lab", train=noisy, program=program)
    (lab / "train.py").write_text(noisy.replace("X = 3.0", "X = 2.8"))
    result = attempt(lab)
    compared, noise = result["compared_with"], result["noise"]
    assert compared["trial"] == 0
    assert noise["luck"] > noise["sigma"] > 0.0
    assert result["status"] == "discard"
    assert result["val_bpb"] < compared["val_bpb"]
    assert "lower and is discarded all the same, since that may be luck" in result["explained"]
    assert f"{compared['val_bpb']:.4f}" in result["explained"]
    assert {"steps", "tokens_per_second"} <= result["pace"].keys()
