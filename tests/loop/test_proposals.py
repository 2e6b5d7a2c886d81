"""How the loop deals with its researcher: deadline, fallback, repairs, caps, memory, guidance, writing ahead."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import toy_lab
from autoresearch.base.errors import Exhausted, NoProposal, UserError
from autoresearch.ledger.campaign import Campaign
from autoresearch.ledger.events import Event, GuidanceGiven, ProposalRefused, RunStarted, TrialProposed
from autoresearch.ledger.records import CrashKind, Proposal, Purpose, Status
from autoresearch.loop.asking import desk
from autoresearch.loop.loop import run_campaign
from autoresearch.loop.parts.stages import Policy
from autoresearch.researchers.interface import Brief
from conftest import proposal, stages
from judged import posterior_judge

QUICK = Policy(longest_pause_seconds=0.01)


class Calling:
    """A researcher that is a function of its brief."""

    def __init__(self, function: Callable[[Brief], Any], name: str = "calling") -> None:
        self.name = name
        self.propose = function


class Heading:
    """Halves the distance to 1 with each proposal, as the fallback of a test."""

    name = "heading"

    def __init__(self) -> None:
        self.x = 3.0

    def propose(self, brief: Brief) -> Proposal:
        self.x = 1 + (self.x - 1) / 2
        return proposal(self.x, f"by heading: {self.x}")


def trials(count: int) -> Callable[[int], str | None]:
    return lambda made: "enough" if made >= count else None


def campaign(lab: Path) -> Campaign:
    return stages(lab).campaign("t")


def refusals(lab: Path) -> list[str]:
    return [refused.reason for refused in campaign(lab).refused]


# ---------------------------------------------------------------- what a researcher may do wrong


def test_a_researcher_that_hangs_is_told_and_the_fallback_carries_on(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "GRACE_SECONDS", 0.2)
    awake = threading.Event()
    policy = dataclasses.replace(QUICK, propose_seconds=0.2)
    hanging = Calling(lambda brief: awake.wait(60) and proposal(2.0), "hanging")
    try:
        run_campaign(stages(lab, researcher=hanging, fallback=Heading(), policy=policy), "t", trials(2))
    finally:
        awake.set()
    assert "has not answered" in refusals(lab)[0]
    assert [trial.proposed.researcher for trial in campaign(lab).trials[1:]] == ["heading", "heading"]
    assert len(refusals(lab)) == 2, "one for each trial: the fallback comes in at once, and then it is asked again"


def test_a_server_that_fails_is_replaced_at_once_and_asked_again_after_each_trial(lab: Path) -> None:
    answers: list[Any] = [NoProposal("no connection", failed=True), NoProposal("no connection", failed=True)]

    def answer(brief: Brief) -> Proposal:
        if answers:
            raise answers.pop(0)
        return proposal(1.1, "back again")

    run_campaign(stages(lab, researcher=Calling(answer, "model"), fallback=Heading(), policy=QUICK), "t", trials(3))
    assert [trial.proposed.researcher for trial in campaign(lab).trials[1:]] == ["heading", "heading", "model"]
    assert refusals(lab) == ["no connection"] * 2


def test_a_pending_confirmation_comes_after_the_first_proposal_of_another_researcher(lab: Path) -> None:
    judge = posterior_judge(confirm_every=1, baseline_seeds=1, max_runs=1)
    run_campaign(stages(lab, researcher=Heading(), judge=judge), "t", trials(2), confirming=False)
    assert campaign(lab).untested
    events: list[Event] = []
    other = Calling(lambda brief: proposal(1.4, "another one"), "another")
    run_campaign(stages(lab, researcher=other, judge=judge, events=events), "t", trials(1))
    runs = [event.purpose for event in events if isinstance(event, RunStarted)]
    assert runs[0] is Purpose.TRIAL
    assert Purpose.CONFIRM in runs


def test_a_researcher_that_cannot_be_reached_is_told_before_anything_runs(lab: Path) -> None:
    class Away(Heading):
        def check(self, *, online: bool = False) -> None:
            raise UserError("nothing answers: start it")

    with pytest.raises(UserError, match="nothing answers: start it"):
        run_campaign(stages(lab, researcher=Away()), "t", trials(1))
    assert stages(lab).ledger.campaign("t") is None
    run_campaign(stages(lab, researcher=Heading()), "t", trials(1))
    run_campaign(stages(lab, researcher=Away()), "t", trials(1))
    assert len(campaign(lab).finished) == 3, "once it has proposed, that is an outage, which passes"


def test_a_late_answer_is_still_taken(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "GRACE_SECONDS", 0.0)
    slow = Calling(lambda brief: time.sleep(1.0) or proposal(2.0))  # type: ignore[func-returns-value]
    policy = Policy(propose_seconds=0.3, longest_pause_seconds=2.0)
    run_campaign(stages(lab, researcher=slow, policy=policy), "t", trials(1))
    assert refusals(lab)
    assert campaign(lab).trials[1].proposed.idea == "X to 2.0"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, "returned NoneType, not a proposal"),
        ("What shall I do?", "returned str, not a proposal"),
        (Proposal("What shall I do?", {}), "changes nothing"),
        (Proposal("", {"train.py": toy_lab.train_with(2.0)}), "no idea"),
        (Proposal("junk", {"train.py": "\0\x01"}), "syntax error"),
        (Proposal("deep", {"train.py": "X = " + "(" * 5000 + ")" * 5000}), "train.py"),
        (Proposal("surrogate", {"train.py": "X = '\ud800'"}), "lone surrogate"),
        (Proposal("metric", {"prepare.py": ""}), "prepare.py may not change"),
        (Proposal("out", {"../../etc/passwd": ""}), "may not change"),
        (Proposal("\u200b\x1b[0m", {"train.py": toy_lab.train_with(2.0)}), "no idea"),
        (Proposal(None, {}), "its idea is of type NoneType"),  # type: ignore[arg-type]
        (Proposal("x", None), "its files is of type NoneType"),  # type: ignore[arg-type]
        (Proposal("x", {"train.py": b"X = 2.0"}), "not all text"),  # type: ignore[dict-item]
        (Proposal("x", {}, note={"path": Path("x")}), "more than texts and numbers"),  # type: ignore[dict-item]
        (Proposal("x", {}, tokens="12"), "its tokens is of type str"),  # type: ignore[arg-type]
        (Proposal("huge", {"train.py": f"X = 0x{'f' * 4000}"}), "train.py has a syntax error"),
    ],
)
def test_what_is_no_proposal_is_refused_in_words_and_the_loop_goes_on(lab: Path, answer: Any, told: str) -> None:
    answers = iter([answer, proposal(2.0)])
    run_campaign(stages(lab, researcher=Calling(lambda brief: next(answers))), "t", trials(1))
    assert told in refusals(lab)[0]
    assert campaign(lab).trials[1].verdict is not None
    assert sorted(path.name for path in lab.iterdir() if not path.name.startswith(".")) == [
        *("prepare.py", "program.md", "results.tsv", "train.py")
    ]


@pytest.mark.parametrize("error", [RuntimeError("lost"), SystemExit(3), KeyboardInterrupt(), NoProposal("lost")])
def test_whatever_a_researcher_raises_the_loop_goes_on(lab: Path, error: BaseException) -> None:
    answers = iter([error, proposal(2.0)])

    def propose(brief: Brief) -> Proposal:
        answer = next(answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    run_campaign(stages(lab, researcher=Calling(propose)), "t", trials(1))
    assert len(refusals(lab)) == 1
    assert len(campaign(lab).trials) == 2


def test_the_same_proposal_fifty_times_is_counted_and_told_each_time(lab: Path) -> None:
    heard: list[str | None] = []
    answers = iter([proposal(9.0)] * 51 + [proposal(2.0)])

    def propose(brief: Brief) -> Proposal:
        heard.append(brief.refusal)
        return next(answers)

    run_campaign(stages(lab, researcher=Calling(propose)), "t", trials(2))
    assert len(refusals(lab)) == 50
    assert all("tried before, as trial 1 (discard, val_bpb 65.0" in reason for reason in refusals(lab))
    assert heard[2:] == refusals(lab)
    assert [trial.verdict.status for trial in campaign(lab).trials if trial.verdict][1:] == ["discard", "keep"]


def test_an_exhausted_fallback_ends_nothing(lab: Path) -> None:
    def end(brief: Brief) -> Proposal:
        raise Exhausted("all tried")

    answers = iter([*[NoProposal("away")] * 3, proposal(2.0)])

    def propose(brief: Brief) -> Proposal:
        answer = next(answers)
        if isinstance(answer, NoProposal):
            raise answer
        return answer

    run_campaign(stages(lab, researcher=Calling(propose), fallback=Calling(end, "end")), "t", trials(1))
    assert refusals(lab) == ["away", "away", "away", "all tried"]
    assert campaign(lab).trials[1].proposed.researcher == "calling"


def test_a_stop_while_a_proposal_is_written_ends_the_loop_at_once(lab: Path) -> None:
    awake = threading.Event()
    waiting = Calling(lambda brief: awake.wait(60) and proposal(2.0))
    end = time.monotonic() + 3
    began = time.monotonic()
    try:
        run_campaign(stages(lab, researcher=waiting), "t", lambda made: "over" if time.monotonic() > end else None)
    finally:
        awake.set()
    assert time.monotonic() - began < 10


# ---------------------------------------------------------------- memory


def test_a_number_moved_by_less_than_noise_is_refused_with_the_earlier_result(lab: Path) -> None:
    run_campaign(stages(lab, [proposal(9.0), proposal(9.2), proposal(8.0)]), "t", trials(2))
    assert refusals(lab) == [
        "nearly trial 1 (discard, val_bpb 65.000000): only 9 to 9.2 differs, less than one run can resolve, "
        "so move further"
    ]
    assert [trial.proposed.idea for trial in campaign(lab).trials[1:]] == ["X to 9.0", "X to 8.0"]


def test_a_small_step_away_from_the_incumbent_is_refused_too(lab: Path) -> None:
    run_campaign(stages(lab, [proposal(3.1), proposal(2.0)]), "t", trials(1))
    assert "nearly trial 0 (keep, val_bpb 5.0" in refusals(lab)[0]


def test_a_whole_number_is_another_program_and_so_is_a_decay_switched_off(lab: Path) -> None:
    lines = [
        proposal(2.0, extra=f"WIDTH = {width}\nDECAY = {decay}") for width, decay in ((50257, 0.999), (50304, 1.0))
    ]
    run_campaign(stages(lab, lines), "t", lambda made: None)
    assert refusals(lab) == []
    assert len(campaign(lab).trials) == 3


def test_a_crash_is_nothing_to_be_near_to(lab: Path) -> None:
    crash = "raise ValueError('no')\n"
    run_campaign(stages(lab, [proposal(2.0, extra=crash), proposal(2.05, extra=crash)]), "t", lambda made: None)
    assert refusals(lab) == []


# ---------------------------------------------------------------- repairs


CRASH = "raise ValueError('no such layer')"


def test_a_crash_is_answered_with_its_frames_and_diff_and_may_be_mended_twice(lab: Path) -> None:
    briefs: list[Brief] = []

    def propose(brief: Brief) -> Proposal:
        briefs.append(brief)
        number = len(briefs)
        repairs = brief.failure.trial if brief.failure else None
        return dataclasses.replace(proposal(number / 10, extra=f"{CRASH}\nY = {number}"), repairs=repairs)

    run_campaign(stages(lab, researcher=Calling(propose)), "t", trials(5))
    failures = [brief.failure for brief in briefs]
    assert [(f.trial, f.attempt, f.attempts) if f else None for f in failures] == [
        *(None, (1, 1, 2), (2, 2, 2)),
        *(None, (4, 1, 2)),
    ]
    assert failures[1] is not None
    assert failures[1].kind is CrashKind.PYTHON_ERROR
    assert "no such layer" in failures[1].detail
    assert "+Y = 1" in failures[1].patch
    assert "Y = 1" in failures[1].files["train.py"]
    assert [trial.proposed.repairs for trial in campaign(lab).trials] == [None, None, 1, 2, None, 4]
    assert [trial.verdict.status for trial in campaign(lab).trials[1:] if trial.verdict] == [Status.CRASH] * 5


def test_a_mended_crash_can_be_kept(lab: Path) -> None:
    def propose(brief: Brief) -> Proposal:
        if brief.failure is None:
            return proposal(2.0, extra=CRASH)
        mended = {path: text.replace(CRASH, "") for path, text in brief.failure.files.items()}
        return Proposal(f"{brief.failure.idea}, mended", mended, repairs=brief.failure.trial)

    run_campaign(stages(lab, researcher=Calling(propose)), "t", trials(2))
    best = campaign(lab).incumbent
    assert best is not None
    assert best.proposed.idea == "X to 2.0, mended"


def test_out_of_memory_comes_with_the_advice_to_halve_the_device_batch(lab: Path) -> None:
    heard: list[str] = []

    def propose(brief: Brief) -> Proposal:
        if brief.failure is None:
            return proposal(2.0, extra="raise MemoryError")
        heard.append(brief.failure.advice)
        return proposal(1.5)

    run_campaign(stages(lab, researcher=Calling(propose)), "t", trials(2))
    assert "halve DEVICE_BATCH_SIZE" in heard[0]


def test_no_repair_is_asked_for_where_the_lab_allows_none(lab: Path) -> None:
    heard: list[object] = []

    def propose(brief: Brief) -> Proposal:
        heard.append(brief.failure)
        return proposal(2.0 / len(heard), extra=CRASH)

    policy = dataclasses.replace(QUICK, repairs=0)
    run_campaign(stages(lab, researcher=Calling(propose), policy=policy), "t", trials(2))
    assert heard == [None, None]


# ---------------------------------------------------------------- what it costs


def test_a_cap_of_money_ends_the_campaign_with_the_reason_refused_proposals_counted(lab: Path) -> None:
    answers = iter([NoProposal("away", tokens=10, usd=0.4), dataclasses.replace(proposal(2.0), tokens=20, usd=0.7)])

    def propose(brief: Brief) -> Proposal:
        answer = next(answers)
        if isinstance(answer, NoProposal):
            raise answer
        return answer

    policy = dataclasses.replace(QUICK, max_usd=1.0)
    reason = run_campaign(stages(lab, researcher=Calling(propose), policy=policy), "t", trials(9))
    assert reason == "`max_usd` of 1 is reached: the researcher has spent 1.10 USD"
    assert (campaign(lab).tokens, campaign(lab).usd) == (30, pytest.approx(1.1))
    policy = dataclasses.replace(QUICK, max_tokens=30)
    assert "`max_tokens` of 30 is reached" in run_campaign(stages(lab, policy=policy), "t", trials(9))


# ---------------------------------------------------------------- guidance


def test_guidance_is_read_before_every_proposal_and_recorded_when_it_changes(lab: Path) -> None:
    heard: list[str] = []

    def propose(brief: Brief) -> Proposal:
        heard.append(brief.guidance)
        return proposal(2.0 / len(heard))

    events: list[Event] = []
    parts = stages(lab, events=events, researcher=Calling(propose))
    run_campaign(parts, "t", trials(1))
    parts.workspace.add_guidance("try fewer heads")
    parts.workspace.add_guidance("and a longer warmdown")
    run_campaign(parts, "t", trials(2))
    text = "try fewer heads\n\nand a longer warmdown\n"
    assert heard == ["", text, text]
    assert [event for event in events if isinstance(event, GuidanceGiven)] == [GuidanceGiven("t", text)]
    assert campaign(lab).guidance == text


# ---------------------------------------------------------------- ahead of time


def ahead_of(lab: Path, second: str) -> list[TrialProposed]:
    """Two trials, the second written while the first runs: X to 2.0 is kept, and so the second is stale."""
    asked: list[int] = []

    def propose(brief: Brief) -> Proposal:
        asked.append(len(brief.campaign.finished))
        if len(asked) == 1:
            return Proposal("first", {"train.py": toy_lab.train_with(2.0, "import time; time.sleep(1)")})
        return Proposal("second", {"train.py": brief.files["train.py"].replace(*second.split(" -> "))})

    policy = dataclasses.replace(QUICK, ahead=1)
    parts = stages(lab, researcher=Calling(propose), policy=policy)
    run_campaign(parts, "t", lambda made: "enough" if made >= 2 or campaign_is_refused(parts) else None)
    assert asked[:2] == [1, 1], "the second was asked for while the first ran"
    return [trial.proposed for trial in campaign(lab).trials[1:]]


def campaign_is_refused(parts: Any) -> bool:
    found = parts.ledger.campaign("t")
    return bool(found and found.refused)


def test_a_proposal_written_ahead_is_rebased_on_the_new_incumbent_and_marked(lab: Path) -> None:
    first, second = ahead_of(lab, 'print("---") -> print("---")\nY = 1')
    assert (first.stale, second.stale) == (False, True)
    text = stages(lab).texts(second.commit)["train.py"]
    assert "X = 2.0" in text
    assert "Y = 1" in text
    assert second.parent == first.commit


def test_a_proposal_written_ahead_that_collides_with_the_new_incumbent_is_dropped(lab: Path) -> None:
    assert [proposed.idea for proposed in ahead_of(lab, "X = 3.0 -> X = 1.5")] == ["first"]
    assert refusals(lab) == ["it was written for an earlier incumbent and does not fit the new one"]


def test_a_proposal_written_ahead_is_taken_as_it_is_where_the_incumbent_stayed(lab: Path) -> None:
    numbers = iter([9.0, 2.0])
    policy = dataclasses.replace(QUICK, ahead=1)
    calling = Calling(lambda brief: proposal(next(numbers)))
    run_campaign(stages(lab, researcher=calling, policy=policy), "t", trials(1))
    run_campaign(stages(lab, [proposal(2.0)], policy=policy), "t", trials(1))
    assert not any(trial.proposed.stale for trial in campaign(lab).trials)


def test_a_proposal_asked_for_ahead_is_not_told_of_an_older_refusal(lab: Path) -> None:
    heard: list[str | None] = []
    numbers = iter([9.0, 3.05, 2.5, 2.0, 1.5, 1.2])

    def propose(brief: Brief) -> Proposal:
        heard.append(brief.refusal)
        return proposal(next(numbers))

    policy = dataclasses.replace(QUICK, ahead=1)
    run_campaign(stages(lab, researcher=Calling(propose), policy=policy), "t", trials(3))
    assert [bool(refusal) for refusal in heard[:4]] == [False, False, True, False]


# ---------------------------------------------------------------- keys


def test_a_key_never_reaches_the_ledger(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sk-4f9azzyyxxww"
    monkeypatch.setenv("SOME_API_KEY", secret)
    answers = iter([NoProposal(f"401: {secret} is not known"), Proposal(f"use {secret}", {"train.py": "X ="})])

    def propose(brief: Brief) -> Proposal:
        answer = next(answers, None)
        if isinstance(answer, NoProposal):
            raise answer
        return answer or dataclasses.replace(proposal(2.0, f"with {secret}"), why=secret, expects=secret)

    run_campaign(stages(lab, researcher=Calling(propose)), "t", trials(1))
    ledger = (lab / ".autoresearch/ledger.jsonl").read_text()
    assert secret not in ledger
    assert ledger.count("[SOME_API_KEY]") == 5
    assert isinstance(next(iter(campaign(lab).refused)), ProposalRefused)


def test_a_key_broken_up_by_what_is_invisible_is_found(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-4f9azzyyxxww")
    broken = "sk-4f9a\u200bzzyy\x1b[31mxxww"
    spoken = dataclasses.replace(proposal(2.0, f"with {broken}"), why=broken, note={"said": broken})
    run_campaign(stages(lab, [spoken]), "t", trials(1))
    ledger = (lab / ".autoresearch/ledger.jsonl").read_text()
    assert "xxww" not in ledger
    assert ledger.count("[SOME_API_KEY]") == 3


def test_a_program_with_a_key_in_it_never_runs(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-4f9azzyyxxww")
    run_campaign(stages(lab, [proposal(2.0, extra="Y = 'sk-4f9azzyyxxww'"), proposal(1.5)]), "t", trials(1))
    assert refusals(lab) == ["the proposal contains one of the user's keys"]


def test_what_an_unused_answer_has_cost_is_recorded_when_the_loop_stops(lab: Path) -> None:
    answers = iter([proposal(2.0, extra="import time; time.sleep(1)"), dataclasses.replace(proposal(1.5), tokens=7)])
    policy = dataclasses.replace(QUICK, ahead=1)

    def enough(made: int) -> str | None:
        return "stopped by hand" if len(campaign(lab).finished) > 1 else None

    run_campaign(stages(lab, researcher=Calling(lambda brief: next(answers)), policy=policy), "t", enough)
    assert [refused.tokens for refused in campaign(lab).refused] == [7]
    assert len(campaign(lab).trials) == 2
