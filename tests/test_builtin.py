"""The built-in researcher searches: it lowers a known function, repeats nothing, and needs nothing but the ledger."""

from __future__ import annotations

import dataclasses
import math
import time

import pytest

from autoresearch.errors import Exhausted, UserError
from autoresearch.interfaces import Kit
from autoresearch.records import Brief, Status
from autoresearch.researchers import constants
from autoresearch.researchers.builtin import DECK_EVERY, DECK_FIRST, BuiltinResearcher, fit_batches
from autoresearch.researchers.deck import DECK
from campaigns import Files, after, begun, driven, run_of
from lab_files import LAB

SHIPPED = (LAB / "train.py").read_text()
BEST = {
    "EMBEDDING_LR": 1.1,
    "MATRIX_LR": 0.02,
    "WARMDOWN_RATIO": 0.9,
    "X0_LAMBDA": 0.03,
    "TOTAL_BATCH_SIZE": 2**16,
    "WEIGHT_DECAY": 0.1,
}
SMALL = "RATE = 0.5\nDEPTH = 3\nPATTERN = 'SL'\nprint(RATE, DEPTH, PATTERN)\n"


def bowl(files: Files) -> float:
    """A smooth function of the logarithms of some constants; 1 at its lowest point, 1.26 for the shipped file."""
    found = constants.find(files["train.py"])
    return 1 + sum(0.01 * math.log2(float(found[name].value) / best) ** 2 for name, best in BEST.items())


def start(source: str = SHIPPED, **files: str) -> Brief:
    texts = {"train.py": source, **files}
    return begun(texts, bowl(texts) if source == SHIPPED else 1.0)


def fingerprints(brief: Brief) -> list[str]:
    return [trial.proposed.fingerprint for trial in brief.campaign.trials]


def note(brief: Brief, name: str) -> list[object]:
    return [trial.proposed.note.get(name) for trial in brief.campaign.trials[1:]]


@pytest.fixture(scope="module")
def forty() -> Brief:
    """A campaign of forty trials, in which one researcher did all the proposing."""
    return driven(BuiltinResearcher(), start(), bowl, 40)


def test_forty_trials_come_close_to_the_optimum(forty: Brief) -> None:
    best = forty.campaign.incumbent
    assert best is not None
    assert best.val_bpb is not None
    assert bowl({"train.py": SHIPPED}) > 1.15
    assert best.val_bpb < 1 + 0.35 * (bowl({"train.py": SHIPPED}) - 1)


def test_nothing_is_proposed_twice(forty: Brief) -> None:
    assert len(set(fingerprints(forty))) == 41


def test_a_campaign_goes_on_identically_after_a_restart(forty: Brief) -> None:
    half = driven(BuiltinResearcher(), start(), bowl, 20)
    assert fingerprints(driven(BuiltinResearcher(), half, bowl, 20)) == fingerprints(forty)


def test_other_seeds_search_otherwise() -> None:
    one, other = (driven(BuiltinResearcher(kit=Kit(seed=seed)), start(), bowl, 12) for seed in (0, 1))
    assert fingerprints(one) != fingerprints(other)


def test_the_deck_comes_first_then_now_and_then(forty: Brief) -> None:
    decks = [name is not None for name in note(forty, "deck")]
    assert all(decks[:DECK_FIRST])
    assert [turn for turn, is_deck in enumerate(decks) if is_deck and turn >= DECK_FIRST] == [
        turn for turn in range(DECK_FIRST, 40) if turn % DECK_EVERY == 0
    ]


def test_a_kept_halving_of_the_batch_is_repeated_until_it_fails(forty: Brief) -> None:
    assert note(forty, "deck")[:5] == ["halve-batch"] * 4 + [DECK[1].name]
    verdicts = [trial.verdict.status for trial in forty.campaign.trials[1:5] if trial.verdict]
    assert verdicts == [Status.KEEP] * 3 + [Status.DISCARD]


def test_ideas_name_the_constants_that_move(forty: Brief) -> None:
    ideas = [trial.proposed.idea for trial in forty.campaign.trials[1:]]
    assert ideas[0] == (
        "halve the total batch (more steps in the budget): TOTAL_BATCH_SIZE 512K to 256K, DEVICE_BATCH_SIZE 128 to 64"
    )
    assert all(ideas)


def test_one_proposal_among_five_hundred_trials_takes_half_a_second(forty: Brief) -> None:
    some = forty.campaign.trials
    many = [dataclasses.replace(trial, runs=(run_of(0, 2.0 + place % 7),)) for place, trial in enumerate(some * 13)]
    brief = dataclasses.replace(forty, campaign=dataclasses.replace(forty.campaign, trials=tuple(many)))
    begin = time.process_time()
    BuiltinResearcher().propose(brief)
    assert len(many) > 500
    assert time.process_time() - begin < 0.5


# ---------------------------------------------------------------- what it leaves out, and what it learns


def test_no_seed_is_ever_touched() -> None:
    source = "SEED = 1\nRATE = 0.5\nprint(SEED, RATE)\n"
    brief = driven(BuiltinResearcher(), start(source), lambda files: 1.1, 40)
    assert set(note(brief, "knob")) == {"RATE"}


def test_constants_never_run_dry() -> None:
    brief = driven(BuiltinResearcher(), start(SMALL), lambda files: 1.001, 100)
    assert len(set(fingerprints(brief))) == 101


def test_a_file_with_nothing_to_move_says_so() -> None:
    with pytest.raises(Exhausted, match=r"no known patch applies to train\.py"):
        BuiltinResearcher().propose(start("print('hello')\n"))


def test_discrete_moves_alone_come_to_an_end() -> None:
    source = "DEPTH = 3\nPATTERN = 'SL'\nprint(DEPTH, PATTERN)\n"
    with pytest.raises(Exhausted):
        driven(BuiltinResearcher(), start(source), lambda files: 1.1, 20)


@pytest.mark.parametrize("outcome", [None, 1.2])
def test_what_crashed_or_clearly_hurt_is_not_tried_again_or_exceeded(outcome: float | None) -> None:
    """Any rate above 0.5 fails; another constant improves things, so that the rest of the file keeps changing."""
    source = "RATE = 0.5\nSCALE = 1.0\nOTHER = 2.0\nprint(RATE, SCALE, OTHER)\n"

    def objective(files: Files) -> float | None:
        found = constants.find(files["train.py"])
        return outcome if float(found["RATE"].value) > 0.5 else 1 - 0.001 * float(found["SCALE"].value)

    brief = driven(BuiltinResearcher(), start(source), objective, 40)
    failed: list[tuple[float, float]] = []
    for trial in brief.campaign.trials[1:]:
        past = trial.proposed.note
        if past["knob"] == "RATE":
            old, new = float(str(past["from"])), float(str(past["to"]))
            assert not any(old == start and new >= end for start, end in failed)
            failed += [(old, new)] if new > 0.5 else []
    assert failed


def test_a_discarded_patch_waits_until_the_others_were_tried() -> None:
    brief = driven(BuiltinResearcher(), start(), lambda files: 1.3, 50)
    decks = [name for name in note(brief, "deck") if name]
    assert len(decks) == len(set(decks)) > 18


def test_optuna_finds_the_constant_that_matters() -> None:
    source = (
        "".join(f"KNOB_{i} = 0.5\n" for i in "ABCDEFGH") + "print(" + ", ".join(f"KNOB_{i}" for i in "ABCDEFGH") + ")\n"
    )

    def objective(files: Files) -> float:
        return 1 + 0.1 * abs(math.log2(float(constants.find(files["train.py"])["KNOB_C"].value) / 4))

    brief = driven(BuiltinResearcher(), begun({"train.py": source}, 1.3), objective, 40)
    moves = note(brief, "knob")
    assert moves.count("KNOB_C") > 1.5 * 40 / 8
    assert brief.campaign.incumbent is not None
    assert brief.campaign.incumbent.val_bpb is not None
    assert brief.campaign.incumbent.val_bpb < 1.1


def test_trials_of_other_researchers_are_no_obstacle() -> None:
    brief = start()
    for number in range(3):
        proposal = dataclasses.replace(BuiltinResearcher().propose(brief), note={"line": number, "step": "far"})
        brief = after(brief, proposal, 1.1)
    assert len(set(fingerprints(brief))) == 4


def test_a_trial_without_a_verdict_is_not_proposed_again() -> None:
    brief = start()
    proposal = BuiltinResearcher().propose(brief)
    trials = after(brief, proposal, 1.1).campaign.trials
    pending = (*trials[:-1], dataclasses.replace(trials[-1], runs=(), verdict=None))
    waiting = dataclasses.replace(brief, campaign=dataclasses.replace(brief.campaign, trials=pending))
    assert BuiltinResearcher().propose(waiting).files != proposal.files


# ---------------------------------------------------------------- files


def test_prepare_is_left_alone_and_tells_the_context() -> None:
    prepare = "MAX_SEQ_LEN = 2048\nprint(MAX_SEQ_LEN)\n"
    proposal = BuiltinResearcher().propose(start(SHIPPED, **{"prepare.py": prepare}))
    assert set(proposal.files) == {"train.py"}
    found = constants.find(proposal.files["train.py"])
    assert (found["TOTAL_BATCH_SIZE"].value, found["DEVICE_BATCH_SIZE"].value) == (2**18, 128)


def test_a_train_py_that_does_not_parse_is_one_clear_sentence() -> None:
    brief = dataclasses.replace(start(), files={"train.py": "def (\n"})
    with pytest.raises(UserError, match=r"train\.py has a syntax error in line 1.*mend it"):
        BuiltinResearcher().propose(brief)


def test_without_a_python_file_there_is_nothing_to_propose() -> None:
    with pytest.raises(Exhausted, match="no Python file"):
        BuiltinResearcher().propose(begun({"notes.txt": "x"}))


# ---------------------------------------------------------------- batches


def batches(total: int, device: int) -> str:
    return f"TOTAL_BATCH_SIZE = {total}\nDEVICE_BATCH_SIZE = {device}\nprint(TOTAL_BATCH_SIZE, DEVICE_BATCH_SIZE)\n"


@pytest.mark.parametrize(
    ("old", "new", "context", "expected"),
    [
        ((4096, 8), (2048, 8), 256, (2048, 8)),
        ((2048, 8), (1024, 8), 256, (1024, 4)),
        ((2048, 8), (1024, 8), None, (1024, 4)),
        ((2048, 8), (4096, 8), None, (4096, 8)),
        ((2048, 1), (1024, 1), None, (1024, 1)),
        ((512, 2), (256, 2), 256, (256, 1)),
        ((256, 1), (128, 1), 256, None),
        ((2048, 8), (2048, 16), 256, None),
        ((4096, 8), (4096, 16), 256, (4096, 16)),
        ((4096, 8), (4096, 16), None, None),
        ((4096, 8), (4096, 4), None, (4096, 4)),
    ],
)
def test_the_device_batch_always_divides_the_total_batch(
    old: tuple[int, int], new: tuple[int, int], context: int | None, expected: tuple[int, int] | None
) -> None:
    assert fit_batches(batches(*old), batches(*new), context) == (batches(*expected) if expected else None)


def test_a_file_without_batches_is_left_as_it_was_edited() -> None:
    assert fit_batches(SMALL, SMALL.replace("0.5", "0.7"), None) == SMALL.replace("0.5", "0.7")
