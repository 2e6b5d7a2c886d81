"""What the built-in researcher can choose from: moves of one program, how they are ranked and carried out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from autoresearch.researchers.builtin import bandit, constant_moves
from autoresearch.researchers.builtin.bandit import Belief
from autoresearch.researchers.builtin.deck import DECK
from autoresearch.researchers.builtin.history import Move, Past, is_bad, known_bad, latest
from autoresearch.researchers.builtin.patch import Patch
from autoresearch.researchers.guard.rules import syntax_problem
from autoresearch.researchers.source import constants
from autoresearch.researchers.source.constants import Constant
from autoresearch.researchers.source.device_batch import DEVICE, TOTAL, fit_batches, is_idle

RECENT = 400  # trials that the estimates are made from
RETRY_AFTER = 5  # keeps after which a discarded patch may be tried again, since the program is a different one by then


@dataclass(frozen=True)
class Option:
    """Moves to make together, and the patches that make them if they are not moves of constants."""

    moves: tuple[Move, ...]
    patches: tuple[Patch | None, ...]


@dataclass(frozen=True)
class Edited:
    """A source after an option's moves, which now say what exactly was done. `idea` and `why` are for people."""

    source: str
    moves: tuple[Move, ...]
    idea: str
    why: str


@dataclass(frozen=True)
class Bench:
    """Everything needed to choose: the source to start from, the past, and how noisy it is.

    What is estimated is estimated from `recent` trials, so that it does not take longer and longer.
    """

    path: str
    source: str
    context: int | None
    pasts: Sequence[Past]
    noise: float
    seed: int
    desperate: bool = False  # nothing else is left: go beyond what clearly hurt

    @cached_property
    def recent(self) -> Sequence[Past]:
        return latest(self.pasts, RECENT)

    @cached_property
    def _last_tried(self) -> Mapping[str, int]:
        """The place of the last trial of each patch."""
        return {move.patch: place for place, past in enumerate(self.pasts) for move in past.moves}

    @cached_property
    def _alone(self) -> Mapping[str, list[Past]]:
        """The trials that moved one constant and nothing else, by its name."""
        found: dict[str, list[Past]] = {}
        for past in self.pasts:
            if len(past.moves) == 1:
                found.setdefault(past.moves[0].knob, []).append(past)
        return found

    @cached_property
    def options(self) -> list[Option]:
        """Every patch that may be tried and every constant up and down."""
        patches = [Option((patch_move(patch),), (patch,)) for patch in DECK if self._may_try(patch)]
        gains = {patch.arm: patch.gain for patch in reversed(DECK)}
        movable = {name: c for name, c in constants.find(self.source).items() if c.kind}
        return patches + [Option((move,), (None,)) for move in constant_moves.arms(movable, gains)]

    def _may_try(self, patch: Patch) -> bool:
        """Whether it was kept or not tried so far, or recently only on a different program, where it did no harm."""
        place = self._last_tried.get(patch.name)
        if place is None or self.pasts[place].kept:
            return True
        later = sum(past.kept for past in self.pasts[place + 1 :])
        return not is_bad(self.pasts[place], self.noise) and later >= RETRY_AFTER

    def _is_known_bad(self, old: Constant, new: Constant, *, beyond: bool = True) -> bool:
        return known_bad(old, new, self._alone.get(old.name, ()), self.noise, beyond=beyond)

    def ranked(self, options: Sequence[Option]) -> list[tuple[Option, Belief]]:
        """The options, by the gain that a sample of the estimates predicts."""
        found = bandit.beliefs(self.recent, [option.moves for option in options], self.noise, self.seed)
        return sorted(zip(options, found, strict=True), key=lambda pair: pair[1].drawn)

    def edited(self, option: Option) -> Iterator[Edited]:
        """The ways to carry out an option; of several moves together only the first. None if it does not fit."""
        parts = list(zip(option.moves, option.patches, strict=True))
        if len(parts) == 1:
            yield from self._carried_out(self.source, *parts[0])
            return
        whole: Edited | None = Edited(self.source, (), "", "")
        for move, patch in parts:
            part = next(self._carried_out(whole.source, move, patch), None) if whole else None
            whole = joined(whole, part) if whole and part else None
        if whole:
            yield whole

    def _carried_out(self, source: str, move: Move, patch: Patch | None) -> Iterator[Edited]:
        return self._patched(source, patch) if patch else self._moved(source, move)

    def _patched(self, source: str, patch: Patch) -> Iterator[Edited]:
        edited = patch.apply(source)
        fitted = fit_batches(source, edited, self.context) if edited else None
        if fitted is None or syntax_problem(self.path, fitted) or is_idle(source, fitted):
            return
        move, pair = patch_move(patch), single_move(source, fitted)
        if pair:
            if self._is_known_bad(*pair):
                return
            move = exact(move, *pair)
        yield Edited(fitted, (move,), patch.idea, patch.evidence)

    def _moved(self, source: str, move: Move) -> Iterator[Edited]:
        old = constants.find(source).get(move.knob)
        if old is None:
            return
        ways = [(move.step, 2)] if move.after else constant_moves.steps(old, move.subject[1], self.recent, self.seed)
        for step, digits in ways:
            new = constant_moves.variant(old, step, digits)
            if new is None or self._is_known_bad(old, new, beyond=not self.desperate):
                continue
            edited = constants.replace(source, {old.name: new.value})
            fitted = fit_batches(source, edited, self.context)
            if fitted and not is_idle(source, fitted):
                yield Edited(fitted, (exact(move, old, new),), "", record_of(move, self.recent))


def patch_move(patch: Patch) -> Move:
    return Move(patch.arm, patch.kind, patch.gain, patch=patch.name)


def exact(move: Move, old: Constant, new: Constant) -> Move:
    step = constants.step_between(old, new)
    return dataclasses.replace(move, knob=old.name, before=old.text, after=new.text, step=step)


def joined(first: Edited, second: Edited) -> Edited:
    """The second on top of the first."""
    ideas, reasons = ([text for text in pair if text] for pair in ((first.idea, second.idea), (first.why, second.why)))
    return Edited(second.source, first.moves + second.moves, ", and ".join(ideas), "; ".join(reasons))


def record_of(move: Move, pasts: Sequence[Past]) -> str:
    """What the campaign has seen of a constant's moves, as text."""
    seen = [
        f"{past.moves[0].arm} {past.change:+.2%} in trial {past.trial}"
        for past in pasts
        if len(past.moves) == 1 and past.moves[0].knob == move.knob and past.change is not None
    ]
    return "so far " + ", ".join(seen[-3:]) if seen else f"{move.knob} has not been moved in this campaign"


def single_move(source: str, edited: str) -> tuple[Constant, Constant] | None:
    """The only constant that differs between two sources, before and after; None if there is none or more than one.

    The device batch follows the total batch, so it does not count next to it.
    """
    changed = constants.changes_alone(source, edited)
    if changed is None:
        return None
    if TOTAL in changed:
        changed.pop(DEVICE, None)
    return next(iter(changed.values())) if len(changed) == 1 else None
