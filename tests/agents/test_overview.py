from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from autoresearch.agents import overview
from autoresearch.agents.answers import Answers
from autoresearch.agents.overview import Glimpse, Refresher
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger import lines
from autoresearch.ledger.events import RunEnded, RunStarted, Stopped, TrialProposed, Verdict
from autoresearch.ledger.ledger import Ledger
from autoresearch.ledger.records import RunEvent, Status
from autoresearch.loop.loop import run_campaign
from conftest import never, proposal, stages


@pytest.fixture
def searched(lab: Path) -> Path:
    run_campaign(stages(lab, [proposal(2.0), proposal(9.0), proposal(1.5)]), "t", never)
    return lab


def states(lab: Path) -> Iterator[Ledger]:
    """The lab's ledger as it was after each of its events, from the first verdict on."""
    whole = Ledger(lab / ".autoresearch/ledger.jsonl")
    data = whole.path.read_bytes().splitlines(keepends=True)
    first = next(place for place, event in enumerate(whole.events()) if isinstance(event, Verdict))
    for length in range(first + 1, len(data) + 1):
        whole.path.write_bytes(b"".join(data[:length]))
        yield Ledger(whole.path)


def test_a_copy_is_what_the_ledger_tells_or_is_not_taken(searched: Path, tmp_path: Path) -> None:
    path, taken = tmp_path / "copy", 0
    whole = (searched / ".autoresearch/ledger.jsonl").read_bytes()
    for before in states(searched):
        campaign = before.campaign()
        assert campaign
        length = before.path.stat().st_size
        overview.save(path, before, campaign)
        for rest in range(length, len(whole) + 1):
            if rest == length or whole[rest - 1 : rest] == b"\n":
                before.path.write_bytes(whole[:rest])
                found, later = overview.read(path, Ledger(before.path), None), Ledger(before.path).campaign()
                assert later
                assert found in (None, overview.of(later))
                taken += found is not None and rest > length
        before.path.write_bytes(whole[:length])
    assert taken > 5, "a trial that starts changes only what is under way"


def test_a_copy_of_another_ledger_campaign_or_version_is_not_taken(searched: Path, tmp_path: Path) -> None:
    ledger, path = Ledger(searched / ".autoresearch/ledger.jsonl"), tmp_path / "copy"
    campaign = ledger.campaign()
    assert campaign
    made = overview.save(path, ledger, campaign)
    assert overview.read(path, ledger, None) == overview.read(path, ledger, "t") == made
    assert overview.read(path, ledger, "other") is None
    copy = path.read_bytes()
    path.write_bytes(copy.replace(b"X to 2.0", b"X to 2.1").replace(b"version", b"versiom"))
    assert overview.read(path, ledger, None) is None
    path.write_bytes(copy)
    with ledger.path.open("r+b") as file:
        changed = file.read().replace(b"X to 2.0", b"X from 3 to 2")
        file.seek(0)
        file.write(changed)
    assert overview.read(path, Ledger(ledger.path), None) is None


def test_a_lab_that_cannot_be_written_has_an_overview_too(searched: Path) -> None:
    (searched / ".autoresearch/overview.msgpack").mkdir()
    found = Answers(Workspace.open(searched)).overview()
    assert [each.status for each in found.recent] == [Status.KEEP, Status.DISCARD, Status.KEEP]


def test_what_is_under_way_is_told_from_the_ledgers_end(searched: Path, tmp_path: Path) -> None:
    ledger, path = Ledger(searched / ".autoresearch/ledger.jsonl"), tmp_path / "copy"
    campaign = ledger.campaign()
    assert campaign
    made = overview.save(path, ledger, campaign)
    assert made.under_way is None
    ledger.append(TrialProposed(9, "t", "a", "b", "wider", "scripted", "f", 1))
    ledger.append(RunStarted(9, 0, 42))
    ledger.append(Stopped("t", "by hand"))
    found = overview.read(path, Ledger(ledger.path), None)
    assert found
    assert found.under_way == Glimpse(9, "wider")


def test_while_a_run_trains_the_copy_is_brought_up_to_date_once(searched: Path, tmp_path: Path) -> None:
    ledger, path = Ledger(searched / ".autoresearch/ledger.jsonl"), tmp_path / "copy"
    refresher, load = Refresher(path, ledger, "t"), RunEvent("load", 1.0, {})
    refresher.hear(RunEvent("curve", 1.0, {}))
    assert not path.exists()
    refresher.hear(load)
    assert overview.read(path, ledger, None)
    path.unlink()
    refresher.hear(load)
    assert not path.exists(), "nothing has happened since"
    ended = next(event for event in ledger.events() if isinstance(event, RunEnded))
    with ledger.path.open("ab") as file:
        file.write(lines.encode(ended) + b"\n")
    refresher.hear(load)
    assert path.exists()
