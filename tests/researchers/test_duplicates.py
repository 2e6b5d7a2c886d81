from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as some

from autoresearch.ledger.campaign import Trial
from autoresearch.ledger.events import TrialProposed
from autoresearch.ledger.records import Decision, Status
from autoresearch.researchers.guard.duplicates import READ, moved, near_duplicate
from autoresearch.researchers.guard.fingerprint import syntax
from judged import a_run, decided

NUMBERS = (1.0, 1.01, 1.02, 1.5, 2, 3)


def program(*numbers: float) -> str:
    """A program with five numbers, the last of which is a seed."""
    a, b, c, d, seed = numbers
    return f"RATE = {a}\nDECAY = {b}\nSIZE = {c}\nmodel = build(RATE, {d})\nrandom.seed({seed})\n"


class Past:
    """Trials of programs as they were, which counts how many are read."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.trials: list[Trial] = []
        self.read: list[int] = []

    def add(self, text: str, parent: int, *, recorded: bool) -> None:
        number, before = len(self.trials), self.texts[parent] if self.texts else text
        proposed = TrialProposed(
            trial=number,
            tag="t",
            parent=f"c{parent}",
            commit=f"c{number}",
            idea="an idea",
            researcher="scripted",
            fingerprint=f"f{number}",
            lines_changed=1,
            skeleton=syntax({"train.py": text}).skeleton,
            moved=moved({"train.py": before}, {"train.py": text}) if recorded and self.trials else None,
        )
        self.texts.append(text)
        trial = Trial(proposed, (a_run(1.5, trial=number),))
        self.trials.append(decided(trial, Decision(Status.DISCARD, "said so")))

    def files(self, number: int) -> dict[str, str]:
        self.read.append(number)
        return {"train.py": self.texts[number]}

    def refusal(self, text: str) -> str | None:
        near = near_duplicate({"train.py": text}, self.trials, self.files)
        return near.reason if near else None


def test_the_latest_near_trial_is_named_with_its_result() -> None:
    past = Past()
    for rate in (1.0, 1.01, 2.0):
        past.add(program(rate, 0.5, 8, 1.5, 0), 0, recorded=True)
    found = past.refusal(program(1.02, 0.5, 8, 1.5, 0))
    assert found == (
        "nearly trial 1 (discard, val_bpb 1.500000): only 1.01 to 1.02 differs, less than one run can resolve, so move "
        "further"
    )
    assert past.refusal(program(1.5, 0.5, 8, 1.5, 0)) is None
    assert past.read == [0, 0], "what the others moved is in the ledger"


def test_what_was_tried_is_not_tried_again_with_another_seed() -> None:
    past = Past()
    past.add(program(1.0, 0.5, 8, 1.5, 0), 0, recorded=True)
    assert "only seeds distinguish it from trial 0" in str(past.refusal(program(1.0, 0.5, 8, 1.5, 7)))
    assert past.refusal(program(1.0, 0.5, 8, 1.5, 0)) is None, "the same program is told by its fingerprint"


def test_a_trial_without_a_score_does_not_count() -> None:
    past = Past()
    past.add(program(1.0, 0.5, 8, 1.5, 0), 0, recorded=True)
    past.trials[0] = dataclasses.replace(past.trials[0], runs=())
    assert past.refusal(program(1.01, 0.5, 8, 1.5, 0)) is None


programs = some.tuples(*[some.sampled_from(NUMBERS)] * 5)


@given(some.lists(some.tuples(programs, some.integers(0, 30)), min_size=1, max_size=12), programs)
def test_the_ledger_tells_what_the_files_would_tell(
    made: list[tuple[tuple[float, ...], int]], asked: list[float]
) -> None:
    recorded, read, mixed = Past(), Past(), Past()
    for number, (numbers, parent) in enumerate(made):
        for past, is_recorded in ((recorded, True), (read, False), (mixed, number > len(made) // 2)):
            past.add(program(*numbers), parent % number if number else 0, recorded=is_recorded)
    found = recorded.refusal(program(*asked))
    assert found == read.refusal(program(*asked)) == mixed.refusal(program(*asked))
    assert recorded.read == [0]
    assert read.read == list(range(len(made)))


def test_of_an_earlier_versions_trials_the_latest_are_read_and_those_that_others_were_made_from() -> None:
    past = Past()
    for number in range(2 * READ):
        past.add(program(10.0 * number, 0.5, 8, 1.5, 0), 0, recorded=False)
    past.add(program(10.1, 0.5, 8, 1.5, 0), 1, recorded=True)
    assert "nearly trial 200" in str(past.refusal(program(10.2, 0.5, 8, 1.5, 0)))
    assert past.read == [1, *range(READ, 2 * READ)]


def test_places_of_seeds_are_what_programs_may_differ_in_without_their_seeds() -> None:
    before, after = (syntax({"b.py": "X = 2\n", "train.py": program(1.0, 0.5, 8, 1.5, seed)}) for seed in (3, 4))
    assert before.seed_places == {5}
    assert before.numbers[5] == 3
    assert before.seedless == after.seedless
    assert before.skeleton == after.skeleton
    assert before.fingerprint != after.fingerprint
