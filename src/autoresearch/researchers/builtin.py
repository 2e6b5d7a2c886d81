"""The researcher that needs no language model: a deck of known patches, and Optuna over the file's constants.

All its memory is the campaign's trials and the notes that they carry; it never touches a seed.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import optuna

from autoresearch.errors import Exhausted, UserError
from autoresearch.guard import fingerprint, syntax_problem
from autoresearch.interfaces import Kit
from autoresearch.records import Brief, Campaign, Proposal, Scalar, Status
from autoresearch.researchers import constants
from autoresearch.researchers.constants import CONTINUOUS, Constant
from autoresearch.researchers.deck import DECK, Patch

DECK_FIRST = 6  # proposals that come from the deck before the constants have a turn
DECK_EVERY = 3  # from then on one proposal in so many is the deck's, while it lasts
RETRY_AFTER = 5  # keeps after which a discarded patch may be tried again, on what is another program by then
CLEARLY = 0.003  # a relative rise of val_bpb above this is no seed's luck
CRASHED = 1.0  # the relative rise that Optuna is told for a crash
STARTUP_TRIALS = 4  # moves chosen at random before Optuna's estimator has a say
ASKS = 16  # answers of Optuna's tried for one proposal, the first half of them rounded to the usual factors
PATIENCE = 200  # steps looked at before one that goes further than a bad one is better than none
FALLBACKS = 600  # random steps tried after that, with ever more digits

TOTAL, DEVICE, CONTEXT = "TOTAL_BATCH_SIZE", "DEVICE_BATCH_SIZE", "MAX_SEQ_LEN"

Note = Mapping[str, Scalar]


@dataclass(frozen=True)
class Outcome:
    """What became of a past proposal; `change` is of val_bpb, relative to its parent's (negative is better)."""

    note: Note
    kept: bool
    crashed: bool
    change: float | None

    @property
    def is_bad(self) -> bool:
        return self.crashed or (self.change is not None and self.change > CLEARLY)


class BuiltinResearcher:
    """Proposes the deck's best-evidenced patches first, then moves of constants with a patch in between."""

    name = "builtin"

    def __init__(self, argument: str = "", kit: Kit = Kit()) -> None:
        if argument:
            raise UserError(f"the researcher builtin takes nothing after a colon, not {argument!r}: name it alone")
        self._seed = kit.seed
        self._refused: set[str] = set()
        self._last: tuple[int, str] | None = None  # number of trials at the time, and the proposal's fingerprint

    def propose(self, brief: Brief) -> Proposal:
        """Return the next change: the same for the same brief, and never one that was tried before.

        Raises:
            Exhausted: no patch applies and the file has no constant that could be moved.
            UserError: the incumbent's train.py does not parse.
        """
        trials = len(brief.campaign.trials)
        if brief.refusal is None:
            self._refused.clear()
        else:
            if self._last is None or self._last[0] != trials:
                self._refused = {self._choose(brief, set())[1]}
            else:
                self._refused.add(self._last[1])
        proposal, mark = self._choose(brief, self._refused)
        self._last = trials, mark
        return proposal

    def _choose(self, brief: Brief, refused: set[str]) -> tuple[Proposal, str]:
        """The first candidate that is new, and its fingerprint."""
        path = editable_file(brief)
        tried = {trial.proposed.fingerprint for trial in brief.campaign.trials}
        tried |= refused | {fingerprint(brief.files)}
        for proposal in candidates(path, brief, self._seed):
            mark = fingerprint({**brief.files, **proposal.files})
            if mark not in tried:
                return proposal, mark
        raise Exhausted(f"no known patch applies to {path} and no constant in it can be moved")


def editable_file(brief: Brief) -> str:
    """The file to edit: `train.py`, or else the first Python file that is not `prepare.py`."""
    paths = sorted(path for path in brief.files if path.endswith(".py") and path != "prepare.py")
    if not paths:
        raise Exhausted("there is no Python file to edit")
    path = "train.py" if "train.py" in paths else paths[0]
    problem = syntax_problem(path, brief.files[path])
    if problem:
        raise UserError(f"{problem}: mend it and commit, then run again")
    return path


# ---------------------------------------------------------------- the past


def outcomes_of(campaign: Campaign) -> list[Outcome]:
    """The campaign's trials after the baseline, by what became of them."""
    bpb = {trial.proposed.commit: trial.val_bpb for trial in campaign.trials}
    outcomes = []
    for trial in campaign.trials[1:]:
        status = trial.verdict.status if trial.verdict else None
        before, after = bpb.get(trial.proposed.parent), trial.val_bpb
        change = (after - before) / before if before and after is not None else None
        kept, crashed = status is Status.KEEP, status is Status.CRASH
        outcomes.append(Outcome(trial.proposed.note, kept, crashed, change))
    return outcomes


def known_bad(old: Constant, new: Constant, outcomes: Sequence[Outcome], *, beyond: bool = True) -> bool:
    """Whether this move, or (`beyond`) a shorter one in its direction, crashed or clearly hurt from the same value."""
    step = constants.step_between(old, new)
    for outcome in outcomes:
        note = outcome.note
        past = note.get("step")
        same_start = note.get("knob") == old.name and note.get("from") == old.text
        if not (outcome.is_bad and same_start and isinstance(past, int | float)):
            continue
        if note.get("to") == new.text or (beyond and past * step > 0 and abs(step) >= abs(past)):
            return True
    return False


# ---------------------------------------------------------------- candidates, the preferred first


def candidates(path: str, brief: Brief, seed: int) -> Iterator[Proposal]:
    """Every change that could be proposed now, as it stands in the order of preference."""
    outcomes = outcomes_of(brief.campaign)
    turn = len(outcomes)
    source, context = brief.files[path], context_length({**brief.frozen, **brief.files})
    decks_turn = turn < DECK_FIRST or turn % DECK_EVERY == 0
    knobs = {name: c for name, c in constants.find(source).items() if c.kind}
    moves = knob_moves(source, knobs, outcomes, f"{seed}-{turn}")
    patched = deck_moves(source, outcomes)
    # Both are generators: the second is only drawn from when the first has nothing new.
    for edits in (patched, moves) if decks_turn else (moves, patched):
        for edited, idea, note in edits:
            fitted = fit_batches(source, edited, context)
            if fitted:
                yield as_proposal(path, source, fitted, idea, note)


def single_move(source: str, edited: str) -> tuple[Constant, Constant] | None:
    """The constant that differs between two sources, before and after; None if it is none or several.

    The device batch follows the total batch, so that it does not count beside it.
    """
    changed = constants.changes(source, edited)
    if TOTAL in changed:
        changed.pop(DEVICE, None)
    return next(iter(changed.values())) if len(changed) == 1 else None


def as_proposal(path: str, source: str, edited: str, idea: str, note: Note) -> Proposal:
    """The proposal, with its constants' changes in words and in the note."""
    changed = constants.changes(source, edited).items()
    numbers = ", ".join(f"{name} {constants.shown(a.value)} to {constants.shown(b.value)}" for name, (a, b) in changed)
    words = f"{idea}: {numbers}" if idea and numbers else idea or numbers
    move: dict[str, Scalar] = {}
    pair = single_move(source, edited)
    if pair:
        old, new = pair
        move = {"knob": old.name, "from": old.text, "to": new.text, "step": constants.step_between(old, new)}
    return Proposal(idea=words, files={path: edited}, note={**note, **move})


# ---------------------------------------------------------------- batches


def context_length(files: Mapping[str, str]) -> int | None:
    """Tokens of a row, where one of the files says so."""
    for path, text in files.items():
        if path.endswith(".py") and CONTEXT in text and not syntax_problem(path, text):
            constant = constants.find(text).get(CONTEXT)
            if constant and isinstance(constant.value, int):
                return constant.value
    return None


def fit_batches(source: str, edited: str, context: int | None) -> str | None:
    """Lower the device batch where the edited total batch is no longer a multiple of it; None if that fails.

    With an unknown context the device batch is halved whenever the total is, and neither rises alone.
    """
    changed = constants.changes(source, edited)
    found = constants.find(edited)
    if not ({TOTAL, DEVICE} & set(changed)) or not {TOTAL, DEVICE} <= set(found):
        return edited
    total, device = int(found[TOTAL].value), int(found[DEVICE].value)
    if DEVICE in changed:
        old = int(changed[DEVICE][0].value)
        fits = total % (device * context) == 0 if context else device <= old
        return edited if fits else None
    if context is None:
        factor = total / int(changed[TOTAL][0].value)
        fitting = max(int(device * min(factor, 1)), 1)
    else:
        fitting = math.gcd(device, total // context) if total % context == 0 else 0
    return constants.replace(edited, {DEVICE: fitting}) if fitting else None


# ---------------------------------------------------------------- patches of the deck


def deck_moves(source: str, outcomes: Sequence[Outcome]) -> Iterator[tuple[str, str, Note]]:
    """The patches that apply, as (edited source, idea, note): untried ones first, best evidence first."""
    for patch in deck_order(outcomes):
        edited = patch.apply(source)
        if edited is None or syntax_problem("train.py", edited):
            continue
        move = single_move(source, edited)
        if not (move and known_bad(*move, outcomes)):
            yield edited, patch.idea, {"deck": patch.name, "why": patch.evidence}


def deck_order(outcomes: Sequence[Outcome]) -> list[Patch]:
    """Untried patches and kept ones worth repeating; after them discarded ones that have waited long enough."""
    last = {outcome.note.get("deck"): place for place, outcome in enumerate(outcomes)}
    fresh, later = [], []
    for patch in DECK:
        place = last.get(patch.name)
        if place is None or (patch.repeat and outcomes[place].kept):
            fresh.append(patch)
        elif not outcomes[place].is_bad and sum(o.kept for o in outcomes[place + 1 :]) >= RETRY_AFTER:
            later.append(patch)
    return fresh + later


# ---------------------------------------------------------------- moves of constants


def knob_moves(
    source: str, knobs: Mapping[str, Constant], outcomes: Sequence[Outcome], seed: str
) -> Iterator[tuple[str, str, Note]]:
    """Moves of one constant as (edited source, no idea, empty note): Optuna's first, then whatever is left."""
    if not knobs:
        return
    for place, (name, step, digits) in enumerate(steps(knobs, outcomes, random.Random(seed))):
        old = knobs[name]
        value = constants.moved(old, step, digits)
        if value is None or value == old.value:
            continue
        new = dataclasses.replace(old, value=value, text=constants.write(value, old.text))
        if not known_bad(old, new, outcomes, beyond=place < PATIENCE):
            yield constants.replace(source, {name: value}), "", {}


def steps(
    knobs: Mapping[str, Constant], outcomes: Sequence[Outcome], random_numbers: random.Random
) -> Iterator[tuple[str, float, int | None]]:
    """(constant, step from -1 to 1, digits): see `constants.moved`."""
    study = study_of(sorted(knobs), outcomes, random_numbers.randrange(2**31))
    for attempt in range(ASKS):
        trial = study.ask()
        name = str(trial.suggest_categorical("knob", sorted(knobs)))
        yield name, trial.suggest_float(f"step {name}", -1.0, 1.0), None if attempt < ASKS // 2 else 2
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    discrete = [(name, step) for name in sorted(knobs) for step in (-1.0, 1.0)]
    random_numbers.shuffle(discrete)
    for name, step in discrete:
        yield name, step, None
    continuous = sorted(name for name, knob in knobs.items() if knob.kind in CONTINUOUS)
    for attempt in range(FALLBACKS if continuous else 0):
        yield random_numbers.choice(continuous), random_numbers.uniform(-1, 1), 2 + attempt // 50


def study_of(names: Sequence[str], outcomes: Sequence[Outcome], seed: int) -> optuna.Study:
    """A study in memory that knows every past move of a constant that the file still has."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Independent sampling, because a step belongs to its own constant only.
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=False)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    study.add_trials(list(past_moves(names, outcomes)))
    return study


def past_moves(names: Sequence[str], outcomes: Sequence[Outcome]) -> Iterator[optuna.trial.FrozenTrial]:
    for outcome in outcomes:
        name, step = outcome.note.get("knob"), outcome.note.get("step")
        value = CRASHED if outcome.crashed else outcome.change
        if name in names and isinstance(step, int | float) and value is not None:
            yield optuna.trial.create_trial(
                params={"knob": name, f"step {name}": step},
                distributions={
                    "knob": optuna.distributions.CategoricalDistribution(names),
                    f"step {name}": optuna.distributions.FloatDistribution(-1.0, 1.0),
                },
                value=value,
            )
