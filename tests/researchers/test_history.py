"""A campaign's past, read back from its ledger's notes."""

from __future__ import annotations

import dataclasses

import pytest

from autoresearch.ledger.records import Proposal
from autoresearch.researchers.builtin.history import (
    LEAST_NOISE,
    MOST_NOISE,
    Move,
    latest,
    moves_of,
    noise_of,
    note_of,
    pasts_of,
)
from autoresearch.researchers.interface import Brief
from campaigns import after, begun, run_of

UP = Move("RATE up", "learning rate", 0.002, knob="RATE", before="0.5", after="1.0", step=1.0)
SMEAR = Move("smear", "token mixing", 0.003, patch="smear")


def tried(brief: Brief, val_bpb: float | None, *moves: Move, **note: int) -> Brief:
    number = len(brief.campaign.trials)
    proposal = Proposal("x", {"train.py": f"RATE = {number}\n"}, {**note_of(moves), **note} if moves else {})
    return after(brief, proposal, val_bpb)


def start() -> Brief:
    return begun({"train.py": "RATE = 0.5\n"}, 2.0)


def test_moves_come_back_from_their_note() -> None:
    assert moves_of(tried(start(), 1.9, UP, SMEAR).campaign.trials[1]) == (UP, SMEAR)
    assert note_of([UP])["knob"] == "RATE"
    assert note_of([SMEAR])["deck"] == "smear"


def test_a_chain_holds_the_kept_moves_below_a_trial() -> None:
    brief = tried(tried(tried(start(), 1.9, UP), 2.1, SMEAR), 1.8, SMEAR)
    assert [past.chain for past in pasts_of(brief.campaign)] == [(1,), (1, 2), (1, 3)]


def test_levels_are_relative_to_the_baseline_and_changes_to_the_parent() -> None:
    first, second, third = pasts_of(tried(tried(tried(start(), 1.0, UP), 1.5, SMEAR), None, UP).campaign)
    assert (first.level, first.change, first.kept) == (-0.5, -0.5, True)
    assert (second.level, second.change, second.kept) == (-0.25, 0.5, False)
    assert (third.level, third.change, third.crashed) == (None, None, True)


def test_a_rewound_trial_of_an_older_ledger_stands_on_the_earlier_keep() -> None:
    brief = tried(tried(tried(start(), 1.9, UP), 1.8, SMEAR), 1.7, UP, rewound=1)
    assert pasts_of(brief.campaign)[-1].chain == (1, 3)


def test_trials_of_others_are_unknown_moves_that_differ() -> None:
    first, second = pasts_of(tried(tried(start(), 1.9), 1.8).campaign)
    assert first.moves[0].kind == "unknown"
    assert first.moves[0].arm != second.moves[0].arm


def test_noise_is_taken_from_replicates_or_else_from_what_most_moves_did() -> None:
    brief = start()
    for change in (0.01, 0.012, 0.008, 0.01, 0.01, 0.2):
        brief = tried(brief, 2.0 * (1 + change), UP)
    assert abs(noise_of(brief.campaign, pasts_of(brief.campaign)) - 0.008) < 1e-6
    base = dataclasses.replace(brief.campaign.trials[0], runs=tuple(run_of(0, x) for x in (2.0, 2.004, 1.996)))
    measured = dataclasses.replace(brief.campaign, trials=(base, *brief.campaign.trials[1:]))
    assert abs(noise_of(measured, pasts_of(measured)) - 0.002) < 1e-6
    assert LEAST_NOISE <= noise_of(start().campaign, []) <= MOST_NOISE


def test_the_latest_trials_stand_as_if_the_search_had_begun_with_what_was_kept_before_them() -> None:
    brief = start()
    for val_bpb in (1.9, 2.5, 1.8, 2.2, 1.7, None):
        brief = tried(brief, val_bpb, UP)
    pasts = pasts_of(brief.campaign)
    assert latest(pasts, 6) == pasts
    short = latest(pasts, 3)
    assert [past.trial for past in short] == [4, 5, 6]
    assert [past.chain for past in short] == [(4,), (5,), (5, 6)]
    assert [past.level for past in short] == [pytest.approx(2.2 / 1.8 - 1), pytest.approx(1.7 / 1.8 - 1), None]
    assert [past.change for past in short] == [past.change for past in pasts[3:]]
