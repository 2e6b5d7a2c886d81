"""What people tell a search: while its loop is at work, while it rests, and across a kill."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import toy_lab
from autoresearch.agents.attempt import InteractiveLab
from autoresearch.base import git
from autoresearch.base.errors import UserError
from autoresearch.lab import inbox
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.campaign import Campaign
from autoresearch.ledger.events import Ordered
from autoresearch.ledger.ledger import Ledger
from autoresearch.ledger.records import Order, Proposal, Status
from autoresearch.loop.loop import run_campaign
from autoresearch.loop.parts.stages import Policy
from conftest import never, proposal, stages
from judged import posterior_judge


def found(lab: Path) -> Campaign:
    campaign = Ledger(lab / ".autoresearch/ledger.jsonl").campaign()
    assert campaign is not None
    return campaign


def until(is_so: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


def begun(lab: Path) -> bool:
    return (lab / ".autoresearch/ledger.jsonl").exists() and bool(
        Ledger(lab / ".autoresearch/ledger.jsonl").campaigns()
    )


def told(lab: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autoresearch", *words, "--lab", str(lab)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def started(lab: Path, *values: float, seconds: float = 1.0) -> subprocess.Popen[str]:
    lines = [
        {"idea": f"X to {x}", "files": {"train.py": toy_lab.train_with(x, f"import time; time.sleep({seconds})")}}
        for x in values
    ]
    script = lab.parent / "script.json"
    script.write_text(json.dumps(lines))
    words = [sys.executable, "-m", "autoresearch", "run", "--lab", str(lab), "--researcher", f"scripted:{script}"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_a_search_is_paused_survives_a_kill_paused_and_is_resumed(lab: Path) -> None:
    loop = started(lab, 2.5, 2.0, 1.5, 1.2)
    until(lambda: begun(lab) and len(found(lab).trials) > 1)
    assert "ordered" in told(lab, "pause", "--why", "the machine is needed").stdout
    until(lambda: found(lab).paused)
    until(lambda: all(trial.verdict for trial in found(lab).trials))
    count = len(found(lab).trials)
    loop.kill()
    loop.communicate()
    loop = started(lab, 2.5, 2.0, 1.5, 1.2)
    time.sleep(4)
    assert len(found(lab).trials) == count
    assert "the machine is needed" in told(lab, "status").stdout
    assert told(lab, "resume").returncode == 0
    out, _ = loop.communicate(timeout=60)
    assert "this search was told to pause" in out
    assert len(found(lab).finished) == 5, out
    assert [each.order for each in found(lab).orders] == [Order.PAUSE, Order.RESUME]
    assert found(lab).orders[0].by == "the command line"


@pytest.mark.slow
def test_a_run_in_flight_is_stopped_and_its_trial_is_invalid_with_the_reason(lab: Path) -> None:
    loop = started(lab, 2.0, 1.5, seconds=30.0)
    until(lambda: begun(lab) and len(found(lab).trials) > 1)
    began = time.monotonic()
    until(lambda: told(lab, "stop", "1", "--why", "it hangs").returncode == 0)
    until(lambda: found(lab).trials[1].verdict)
    assert time.monotonic() - began < 25
    verdict = found(lab).trials[1].verdict
    assert verdict is not None
    assert verdict.status is Status.INVALID
    assert "stop #1 (the command line: it hangs)" in verdict.reason
    until(lambda: len(found(lab).trials) > 2)
    loop.kill()
    loop.communicate()


@pytest.mark.slow
def test_a_keep_is_dropped_while_the_loop_is_at_work_once_no_trial_is_open(lab: Path) -> None:
    loop = started(lab, 2.5, 2.0, 1.5, 1.2, 1.1, 1.05, seconds=1.5)
    until(lambda: begun(lab) and len(found(lab).finished) > 1)
    done = told(lab, "drop", "1", "--why", "a fluke")
    assert done.returncode == 0, done.stderr
    until(lambda: found(lab).chosen)
    out, _ = loop.communicate(timeout=90)
    campaign = found(lab)
    assert (campaign.chosen[0].trial, campaign.chosen[0].kept, campaign.chosen[0].why) == (1, False, "a fluke")
    assert 1 in campaign.taken_back, out
    assert campaign.incumbent is not None
    assert campaign.incumbent.number > 1


def searched(lab: Path, *lines: Proposal) -> InteractiveLab:
    run_campaign(stages(lab, lines, judge=posterior_judge(baseline_seeds=2, max_runs=1)), "t", never, confirming=False)
    return InteractiveLab(Workspace.open(lab))


def test_at_rest_an_order_is_carried_out_at_once(lab: Path) -> None:
    beside = searched(lab, proposal(1.5))
    assert beside.order(beside.ordered("pause", by="a test", why="to rest"))
    paused = found(lab).paused
    assert paused is not None
    assert paused.words == "pause (a test: to rest)"
    assert beside.order(beside.ordered("resume", by="a test"))
    assert found(lab).paused is None
    assert beside.choose(1, keep=False, why="a fluke", by="a test") is not None
    assert git.resolve(lab, "autoresearch/t") == found(lab).trials[0].proposed.commit
    assert list((lab / ".autoresearch/inbox").iterdir()) == []


def test_a_confirmation_that_is_ordered_is_made_next_and_once(lab: Path) -> None:
    beside = searched(lab, proposal(1.5))
    assert beside.order(beside.ordered("confirm", by="a test"))
    assert found(lab).is_to_confirm
    judge = posterior_judge(baseline_seeds=2, max_runs=1)
    run_campaign(stages(lab, [proposal(1.2)], judge=judge), "t", lambda made: "enough" if made else None, lambda: True)
    campaign = found(lab)
    assert len(campaign.confirmations) == 1
    assert not campaign.is_to_confirm
    run_campaign(stages(lab, judge=judge), "t", lambda made: "enough")
    with pytest.raises(UserError, match="nothing to confirm"):
        beside.order(beside.ordered("confirm", by="a test"))


def test_a_limit_takes_the_place_of_the_cap(lab: Path) -> None:
    beside = searched(lab, proposal(1.5))
    policy = Policy(max_usd=5.0, max_tokens=1000)
    assert policy.overspent(found(lab)) is None
    beside.order(beside.ordered("limit", by="a test", max_tokens=0))
    assert policy.overspent(found(lab)) == "`max_tokens` of 0 is reached: the researcher has used 0"
    beside.order(beside.ordered("limit", by="a test", max_usd=7.5, max_tokens=10))
    assert policy.overspent(found(lab)) is None
    assert (found(lab).limit("max_usd"), found(lab).limit("max_tokens")) == (7.5, 10)


@pytest.mark.parametrize(
    ("order", "more", "complaint"),
    [
        ("stop", {"trial": 1}, "no loop is at work"),
        ("stop", {}, "name the trial"),
        ("limit", {}, "name a limit"),
        ("confirm", {"tag": "other"}, "no campaign"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(lab: Path, order: str, more: dict[str, object], complaint: str) -> None:
    beside = searched(lab, proposal(1.5))
    with pytest.raises(UserError, match=complaint):
        beside.order(beside.ordered(order, by="a test", **more))  # type: ignore[arg-type]
    assert found(lab).orders == ()


def test_the_inbox_is_read_in_order_and_what_is_no_order_is_removed(lab: Path) -> None:
    workspace = Workspace.open(lab)
    (lab / ".autoresearch").mkdir()
    paths = [inbox.put(workspace, Ordered("t", order, "me", "")) for order in (Order.PAUSE, Order.RESUME)]
    (workspace.inbox / "00.json").write_text("no order")
    assert [(path, event.order) for path, event in inbox.waiting(workspace)] == [
        (paths[0], Order.PAUSE),
        (paths[1], Order.RESUME),
    ]
    assert not (workspace.inbox / "00.json").exists()
    inbox.obeyed(paths[0])
    inbox.refuse(paths[1], "not now")
    assert (inbox.refusal(paths[0]), inbox.refusal(paths[1]), inbox.refusal(paths[1])) == (None, "not now", None)
