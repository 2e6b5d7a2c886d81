"""Confirmation, replay and control trials, through the command line in a toy lab whose scores have noise."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import toy_lab
from autoresearch.base import git
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.campaign import Campaign
from autoresearch.ledger.ledger import Ledger
from autoresearch.ledger.records import Outcome, Purpose, Status

NOISE = 0.01
# Its val_bpb is 1 + (X - 1)^2 and noise by seed and X; the holdout's is not reported in a lab that grades itself.
TRAIN = f"""
import os, random
from prepare import evaluate
X = 3.0
luck = random.Random(f"{{X}} {{os.environ['AUTORESEARCH_SEED']}}").gauss(0, {NOISE})
evaluate(1 + (X - 1) ** 2 + luck)
"""
PROGRAM = toy_lab.PROGRAM.replace("judge: greedy", "judge: posterior").replace("scripted", "scripted:script.json")


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    lab = toy_lab.make(tmp_path / "lab", train=TRAIN, program=PROGRAM)
    steps = [("X to 2", 2.0), ("X to 2.5", 2.5), ("X to 1.5", 1.5)]
    lines = [{"idea": idea, "files": {"train.py": TRAIN.replace("X = 3.0", f"X = {x}")}} for idea, x in steps]
    (lab / "script.json").write_text(json.dumps(lines))
    return lab


def autoresearch(lab: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autoresearch", *arguments, "--lab", str(lab)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def answer(lab: Path, *arguments: str) -> dict[str, object]:
    done = autoresearch(lab, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_a_search_measures_its_noise_keeps_by_posterior_and_confirms_at_its_end(noisy: Path) -> None:
    done = autoresearch(noisy, "run", "--trials", "3")
    assert done.returncode == 0, done.stderr
    campaign = Ledger(Workspace.open(noisy).ledger).campaign()
    assert campaign is not None
    baseline = [run for run in campaign.trials[0].runs if run.purpose is Purpose.TRIAL]
    assert [run.seed for run in baseline] == [42, 43, 44]
    kept = [trial.proposed.idea for trial in campaign.kept]
    assert kept == ["baseline", "X to 2", "X to 1.5"]
    for trial in campaign.kept[1:]:
        assert trial.verdict is not None
        assert trial.verdict.estimate is not None
        assert trial.verdict.estimate.probability > 0.9
        assert trial.verdict.reason.startswith("kept, provisional: posterior -")
    (confirmation,) = campaign.confirmations
    assert confirmation.outcome is Outcome.CONFIRMED
    assert confirmation.trial == campaign.kept[-1].number
    seeds = {run.seed for trial in campaign.trials for run in trial.runs if run.purpose is Purpose.CONFIRM}
    assert seeds == {1000, 1001}
    assert campaign.provisional == ()
    assert "confirmed: -3.7" in done.stdout
    assert "against the baseline over 2 paired seeds" in done.stdout


def test_status_and_report_tell_claim_noise_and_doubt(noisy: Path) -> None:
    autoresearch(noisy, "run", "--trials", "3")
    said = autoresearch(noisy, "status").stdout
    assert "false keeps 0.0 expected" in said
    best, claim = (next(line for line in said.splitlines() if line.startswith(name)) for name in ("best", "claim"))
    assert best.endswith("confirmed")
    assert re.search(r"(-\d\.\d{4} ± \d\.\d{4})", best)[1] in claim  # type: ignore[index]
    standing = answer(noisy, "report")["standing"]
    assert isinstance(standing, dict)
    assert NOISE / 5 < standing["sigma"] < 3 * NOISE
    assert standing["sigma_interval"][0] < standing["sigma"] < standing["sigma_interval"][1]
    assert standing["best"]["val_bpb"] == pytest.approx(1.25, abs=3 * NOISE)
    assert standing["provisional"] == []
    assert "confirmed" in standing["claim"]


def test_a_replay_lands_in_its_interval_and_is_recorded(noisy: Path) -> None:
    autoresearch(noisy, "run", "--trials", "1")
    result = answer(noisy, "replay", "1")
    assert result["lands"] is True
    trial = Ledger(Workspace.open(noisy).ledger).trial(1)
    assert trial is not None
    assert [run.seed for run in trial.runs if run.purpose is Purpose.REPLAY] == [42]


def test_a_replay_of_an_unknown_trial_is_one_sentence(noisy: Path) -> None:
    autoresearch(noisy, "run", "--trials", "1")
    done = autoresearch(noisy, "replay", "7")
    assert done.returncode == 1
    assert done.stderr.startswith("autoresearch: there is no trial 7")


@pytest.mark.slow
def test_a_control_counts_what_luck_keeps_and_leaves_the_search_alone(noisy: Path) -> None:
    (noisy / "train.py").write_text(TRAIN.replace("{X}", "{random.random()}"))
    git.commit_all(noisy, "luck of its own in each run")
    autoresearch(noisy, "run", "--trials", "1")
    table = (noisy / "results.tsv").read_text()
    found = answer(noisy, "aa", "--trials", "8")
    assert found["trials"] == 8
    for kept, interval in (("kept", "interval"), ("greedy_kept", "greedy_interval")):
        low, high = found[interval]  # type: ignore[misc]
        assert low <= found[kept] / 8 <= high  # type: ignore[operator]
        assert 0 <= low < high <= 1
    assert (noisy / "results.tsv").read_text() == table
    status = answer(noisy, "status")
    assert not str(status["tag"]).startswith("aa-")
    ideas = {trial.proposed.idea for trial in control_of(noisy).trials[1:]}
    assert ideas == {f"no-op {number}" for number in range(1, 9)}


def control_of(lab: Path) -> Campaign:
    return next(each for each in Ledger(Workspace.open(lab).ledger).campaigns() if each.tag.startswith("aa-"))


def test_a_keep_that_fails_its_test_is_taken_back_and_the_branch_with_it(tmp_path: Path) -> None:
    # What looks better on the seeds of trials is worse on all others.
    train = TRAIN.replace("evaluate(1", "evaluate(X * (1 if int(os.environ['AUTORESEARCH_SEED']) < 1000 else -1) + 9")
    lab = toy_lab.make(tmp_path / "lab", train=train.replace("+ (X - 1) ** 2 ", ""), program=PROGRAM)
    text = (lab / "train.py").read_text()
    (lab / "script.json").write_text(json.dumps([{"idea": "lucky", "files": {"train.py": text.replace("3.0", "2.0")}}]))
    done = autoresearch(lab, "run", "--trials", "1")
    assert done.returncode == 0, done.stderr
    workspace = Workspace.open(lab)
    campaign = Ledger(workspace.ledger).campaign()
    assert campaign is not None
    assert campaign.confirmations[-1].outcome is Outcome.REFUTED
    assert campaign.incumbent is campaign.trials[0]
    assert campaign.trials[1].verdict is not None
    assert campaign.trials[1].verdict.status is Status.KEEP
    branch = subprocess.run(
        ["git", "-C", str(lab), "rev-parse", workspace.branch(campaign.tag)], capture_output=True, text=True, check=True
    )
    assert branch.stdout.strip() == campaign.started.base
    assert "lucky (kept at first, refuted)" in (lab / "results.tsv").read_text()
    again = autoresearch(lab, "confirm")
    assert again.returncode == 0, again.stderr
    assert "nothing was kept since the last test" in again.stdout
