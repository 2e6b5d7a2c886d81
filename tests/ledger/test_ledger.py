from __future__ import annotations

from pathlib import Path

import pytest

from autoresearch.base.errors import UserError
from autoresearch.ledger.events import (
    CampaignStarted,
    Event,
    ProposalRefused,
    RunEnded,
    RunStarted,
    Stopped,
    TrialProposed,
    Verdict,
)
from autoresearch.ledger.ledger import Ledger
from autoresearch.ledger.records import Crash, CrashKind, Score, Status

EVENTS: list[Event] = [
    CampaignStarted("t", "a" * 40, "builtin", "greedy", "local", "none", {"prepare.py": "00"}, 60.0),
    TrialProposed(0, "t", "a" * 40, "a" * 40, "baseline", "builtin", "f0", 0, {"knob": None, "factor": 0.5}),
    RunStarted(0, 0, 42),
    RunEnded(
        *(0, 0, 42, "a" * 40, Score(1.5, 1.0, 2, 3), None, 0, 70.0, 3.0, 60.0, 0.5),
        *({"num_steps": 9.0}, {"device": "cpu"}, {"prepare.py": "00"}, "run.log", "curve.jsonl"),
    ),
    Verdict(0, Status.KEEP, "baseline", 1.5, 0.5, "a" * 40),
    ProposalRefused("t", "cheat", "prepare.py may not be changed"),
    TrialProposed(1, "t", "a" * 40, "b" * 40, "bigger", "builtin", "f1", 4),
    RunStarted(1, 0, 42),
    RunEnded(
        *(1, 0, 42, "b" * 40, None, Crash(CrashKind.OUT_OF_MEMORY, "no"), 1, 5.0, None, None, None),
        *({}, {}, {"prepare.py": "00"}, "run.log", "curve.jsonl"),
    ),
    Verdict(1, Status.CRASH, "out of memory", None, None, "a" * 40),
    Stopped("t", "enough"),
]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "state" / "ledger.jsonl")
    for event in EVENTS:
        ledger.append(event)
    return ledger


def test_events_come_back_as_they_were_written(ledger: Ledger) -> None:
    assert list(ledger.events()) == EVENTS


def test_events_are_gathered_into_campaigns_and_trials(ledger: Ledger) -> None:
    campaign = ledger.campaign()
    assert campaign is not None
    assert [trial.number for trial in campaign.finished] == [0, 1]
    assert campaign.incumbent == campaign.trials[0]
    assert campaign.trials[0].val_bpb == 1.5
    assert ledger.next_trial() == 2


def test_every_proper_prefix_of_a_ledger_can_be_read_mended_and_continued(ledger: Ledger) -> None:
    whole = ledger.path.read_bytes()
    for length in range(len(whole)):
        ledger.path.write_bytes(whole[:length])
        seen = list(ledger.events())
        assert seen == EVENTS[: len(seen)]
        ledger.repair()
        assert list(ledger.events()) == seen
        ledger.append(EVENTS[-1])
        assert list(ledger.events()) == [*seen, EVENTS[-1]]


def test_a_line_spoilt_within_the_ledger_is_named_and_nothing_is_changed(ledger: Ledger) -> None:
    lines = ledger.path.read_bytes().split(b"\n")
    lines[2] = lines[2][:20]
    ledger.path.write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match=r"cannot read line 3 of"):
        list(ledger.events())
    ledger.repair()
    assert ledger.path.read_bytes() == b"\n".join(lines)


def test_a_ledger_of_another_version_is_refused(ledger: Ledger) -> None:
    ledger.path.write_bytes(ledger.path.read_bytes().replace(b'"version": 1', b'"version": 9'))
    with pytest.raises(UserError, match="another version"):
        list(ledger.events())


def test_a_lab_without_a_ledger_has_no_campaign(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "none.jsonl")
    ledger.repair()
    assert ledger.campaign() is None
    assert ledger.next_trial() == 0


def test_what_follows_a_mark_is_read_alone_and_only_in_the_same_file(ledger: Ledger) -> None:
    ledger.campaigns()
    mark = ledger.mark
    assert ledger.since(mark) == []
    ledger.append(EVENTS[-2])
    ledger.append(EVENTS[-1])
    assert ledger.since(mark) == EVENTS[-2:]
    data = ledger.path.read_bytes()
    ledger.path.write_bytes(data.replace(b"out of memory", b"out of money!"))
    assert ledger.since(mark) is None
    ledger.path.unlink()
    assert Ledger(ledger.path).since(mark) is None


def test_a_ledger_that_was_read_and_is_gone_is_not_begun_anew(ledger: Ledger) -> None:
    ledger.campaigns()
    ledger.path.unlink()
    for action in (ledger.campaigns, ledger.next_trial, lambda: ledger.append(EVENTS[-1])):
        with pytest.raises(UserError, match="is gone"):
            action()
    assert not ledger.path.exists()


def test_a_trial_whose_own_line_was_set_aside_is_unknown_and_its_number_is_not_used_again(ledger: Ledger) -> None:
    lines = ledger.path.read_bytes().split(b"\n")
    first = next(place for place, line in enumerate(lines) if line.startswith(b'{"type": "proposed"'))
    lines[first] = b"garbled"
    ledger.path.write_bytes(b"\n".join(lines))
    ledger.set_aside_garbled()
    campaign = ledger.campaign()
    assert campaign
    assert [trial.number for trial in campaign.trials] == [1]
    assert ledger.next_trial() == 2


def test_a_garbled_line_stops_every_reading_until_it_is_repaired(ledger: Ledger) -> None:
    ledger.campaigns()
    with ledger.path.open("ab") as file:
        file.write(b"null\n123\n{}\n")
    for _ in range(2):
        with pytest.raises(UserError, match=rf"cannot read line {len(EVENTS) + 1} of"):
            ledger.campaigns()
    assert [line for _, line in ledger.set_aside_garbled()] == [b"null", b"123", b"{}"]
    assert ledger.campaign()
