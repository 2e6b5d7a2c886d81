"""The built-in researcher searches: it lowers a known function, repeats nothing, and needs nothing but the ledger."""

from __future__ import annotations

import dataclasses
import math
import time

import pytest

from autoresearch.base.errors import Exhausted, UserError
from autoresearch.ledger.records import CrashKind, Proposal, Start, Status
from autoresearch.researchers.builtin.bench import single_move
from autoresearch.researchers.builtin.deck import DECK
from autoresearch.researchers.builtin.history import moves_of
from autoresearch.researchers.builtin.researcher import BuiltinResearcher
from autoresearch.researchers.interface import Brief, Failure, Kit
from autoresearch.researchers.source import constants
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
    assert best.val_bpb < 1 + 0.4 * (bowl({"train.py": SHIPPED}) - 1)


def test_nothing_is_proposed_twice(forty: Brief) -> None:
    assert len(set(fingerprints(forty))) == 41


def test_a_campaign_goes_on_identically_after_a_restart(forty: Brief) -> None:
    some = driven(BuiltinResearcher(), start(), bowl, 4)
    assert fingerprints(driven(BuiltinResearcher(), some, bowl, 4)) == fingerprints(forty)[:9]


def test_other_seeds_search_otherwise() -> None:
    one, other = (driven(BuiltinResearcher(kit=Kit(seed=seed)), start(), bowl, 6) for seed in (0, 1))
    assert fingerprints(one) != fingerprints(other)


def test_what_the_evidence_speaks_for_comes_first(forty: Brief) -> None:
    assert note(forty, "deck")[0] == "halve-batch"


def test_a_kept_halving_of_the_batch_is_repeated_until_it_fails(forty: Brief) -> None:
    assert note(forty, "knob")[:4] == ["TOTAL_BATCH_SIZE"] * 4
    verdicts = [trial.verdict.status for trial in forty.campaign.trials[1:5] if trial.verdict]
    assert verdicts == [Status.KEEP] * 3 + [Status.DISCARD]


def test_patches_and_constants_both_have_their_turns(forty: Brief) -> None:
    decks = [name is not None for name in note(forty, "deck")]
    assert 5 < sum(decks) < 35


def test_two_near_misses_are_tried_together(forty: Brief) -> None:
    both = [trial for trial in forty.campaign.trials[1:] if len(moves_of(trial)) == 2]
    assert both
    for trial in both:
        alone = {m.subject for past in forty.campaign.trials[1 : trial.number] for m in moves_of(past)}
        assert {move.subject for move in moves_of(trial)} <= alone


def test_a_proposal_says_why_and_what_it_expects() -> None:
    proposal = BuiltinResearcher().propose(start())
    assert "H100" in proposal.why
    assert "about -" in proposal.expects


def test_ideas_name_the_constants_that_move(forty: Brief) -> None:
    ideas = [trial.proposed.idea for trial in forty.campaign.trials[1:]]
    assert ideas[0] == (
        "halve the total batch (more steps in the budget): TOTAL_BATCH_SIZE 512K to 256K, DEVICE_BATCH_SIZE 128 to 64"
    )
    assert all(ideas)


def test_one_proposal_among_five_hundred_trials_does_not_hold_up_the_search(forty: Brief) -> None:
    some = forty.campaign.trials
    many = [
        dataclasses.replace(
            trial, proposed=dataclasses.replace(trial.proposed, trial=place), runs=(run_of(0, 2.0 + place % 7),)
        )
        for place, trial in enumerate(some * 13)
    ]
    brief = dataclasses.replace(forty, campaign=dataclasses.replace(forty.campaign, trials=tuple(many)))
    begin = time.process_time()
    BuiltinResearcher().propose(brief)
    assert len(many) > 500
    assert time.process_time() - begin < 10.0


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
        if past.get("knob") == "RATE":
            old, new = float(str(past["from"])), float(str(past["to"]))
            assert not any(old == start and new >= end for start, end in failed)
            failed += [(old, new)] if new > 0.5 else []
    assert failed


def test_a_discarded_patch_waits_until_the_others_were_tried() -> None:
    brief = driven(BuiltinResearcher(), start(), lambda files: 1.3, 12)
    decks = [name for name in note(brief, "deck") if name]
    assert len(decks) == len(set(decks)) > 3


def test_optuna_finds_the_constant_that_matters() -> None:
    source = (
        "".join(f"KNOB_{i} = 0.5\n" for i in "ABCDEFGH") + "print(" + ", ".join(f"KNOB_{i}" for i in "ABCDEFGH") + ")\n"
    )

    def objective(files: Files) -> float:
        return 1 + 0.1 * abs(math.log2(float(constants.find(files["train.py"])["KNOB_C"].value) / 4))

    brief = driven(BuiltinResearcher(), begun({"train.py": source}, 1.3), objective, 40)
    moves = note(brief, "knob")
    assert moves.count("KNOB_C") > 1.2 * 40 / 8
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


def test_a_structure_that_also_sets_a_constant_is_no_move_of_that_constant() -> None:
    patch = next(patch for patch in DECK if patch.name == "falling-momentum")
    edited = patch.apply(SHIPPED)
    assert edited is not None
    assert single_move(SHIPPED, edited) is None
    assert single_move(SHIPPED, constants.replace(SHIPPED, {"MUON_MOMENTUM": 0.97})) is not None


# ---------------------------------------------------------------- plateaus and crashes


def on_a_plateau(trials: int) -> Brief:
    """A campaign in which the first moves were kept and nothing after them."""
    brief = start()
    for number in range(1, trials + 1):
        proposal = BuiltinResearcher().propose(brief)
        brief = after(brief, proposal, 1.1 - number / 100 if number < 4 else 1.2)
    return brief


def test_a_plateau_leads_to_a_structure_that_was_not_tried() -> None:
    brief = on_a_plateau(11)
    proposal = BuiltinResearcher().propose(brief)
    assert proposal.note["deck"] not in note(brief, "deck")


def test_it_starts_from_whatever_program_it_is_given() -> None:
    brief = on_a_plateau(6)
    other = constants.replace(SHIPPED, {"MATRIX_LR": 0.017})
    proposal = BuiltinResearcher().propose(dataclasses.replace(brief, files={"train.py": other}, start=Start(2, "")))
    assert constants.find(proposal.files["train.py"])["MATRIX_LR"].text in ("0.017", proposal.note.get("to"))


def crashed(kind: CrashKind, source: str = SHIPPED) -> Brief:
    brief = start()
    proposal = BuiltinResearcher().propose(brief)
    files = {"train.py": source}
    failure = Failure(1, proposal.idea, kind, "", "", files, attempt=1, attempts=1)
    return dataclasses.replace(after(brief, proposal, None), failure=failure)


def test_out_of_memory_is_mended_by_half_the_device_batch() -> None:
    brief = crashed(CrashKind.OUT_OF_MEMORY)
    proposal = BuiltinResearcher().propose(brief)
    assert constants.find(proposal.files["train.py"])["DEVICE_BATCH_SIZE"].value == 64
    assert proposal.repairs == 1
    assert proposal.note == brief.campaign.trials[1].proposed.note
    assert proposal.idea.endswith(", device batch halved after running out of memory")


def test_other_crashes_are_left_alone() -> None:
    assert BuiltinResearcher().propose(crashed(CrashKind.NOT_FINITE)).repairs is None
    single = constants.replace(SHIPPED, {"DEVICE_BATCH_SIZE": 1})
    assert BuiltinResearcher().propose(crashed(CrashKind.OUT_OF_MEMORY, single)).repairs is None


@pytest.mark.parametrize("moves", ["", "[]", "{}", "[1]", '[{"arm": 3}]', '[{"arm": "x", "kind": "y", "step": "z"}]'])
def test_a_note_that_says_nothing_is_one_unknown_move(moves: str) -> None:
    brief = after(start(), Proposal("other", {"train.py": SHIPPED + "\nX = 1\n"}, {"moves": moves}), 1.1)
    assert moves_of(brief.campaign.trials[1])[0].kind == "unknown"
    assert BuiltinResearcher().propose(brief).files


# ---------------------------------------------------------------- files


def test_prepare_is_left_alone_and_tells_the_context() -> None:
    prepare = "MAX_SEQ_LEN = 2048\nprint(MAX_SEQ_LEN)\n"
    proposal = BuiltinResearcher().propose(start(SHIPPED, **{"prepare.py": prepare}))
    assert set(proposal.files) == {"train.py"}
    found = constants.find(proposal.files["train.py"])
    assert (found["TOTAL_BATCH_SIZE"].value, found["DEVICE_BATCH_SIZE"].value) == (2**18, 128)


def test_a_train_py_that_does_not_parse_is_one_clear_sentence() -> None:
    brief = dataclasses.replace(start(), files={"train.py": "def (\n"})
    with pytest.raises(UserError, match=r"train\.py has a syntax error in line 1.*fix it"):
        BuiltinResearcher().propose(brief)


def test_without_a_python_file_there_is_nothing_to_propose() -> None:
    with pytest.raises(Exhausted, match="no Python file"):
        BuiltinResearcher().propose(begun({"notes.txt": "x"}))
