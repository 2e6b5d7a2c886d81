"""The researcher that needs no language model: a bandit over known patches and moves of the file's constants.

Its only memory is the campaign's trials and their notes. It never touches a seed.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence

from autoresearch.base.errors import Exhausted, UserError
from autoresearch.ledger.records import CrashKind, Proposal
from autoresearch.researchers.builtin.bandit import Belief
from autoresearch.researchers.builtin.bench import Bench, Edited, Option
from autoresearch.researchers.builtin.deck import DECK
from autoresearch.researchers.builtin.history import noise_of, note_of, pasts_of
from autoresearch.researchers.guard import duplicates
from autoresearch.researchers.guard.fingerprint import fingerprint
from autoresearch.researchers.guard.rules import syntax_problem
from autoresearch.researchers.interface import Brief, Kit
from autoresearch.researchers.source import constants
from autoresearch.researchers.source.device_batch import context_length, halved_device_batch

PAIR_EVERY = 6  # one proposal in this many recombines two near misses, if there are any
NEAR = 1.0  # a discarded move is a near miss if it cost at most this many times the noise
NEAR_MISSES = 6  # the best of them that are paired
PLATEAU = 8  # trials without a keep after which structures have turns of their own


class BuiltinResearcher:
    """Proposes what the bandit expects most of; on a plateau, in turns, a structure."""

    name = "builtin"

    def __init__(self, argument: str = "", kit: Kit = Kit()) -> None:
        if argument:
            raise UserError(
                f"the researcher builtin takes nothing after a colon, but got {argument!r}: write only its name"
            )
        self._seed = kit.seed
        self._refused: set[str] = set()
        self._last: tuple[int, str] | None = None  # number of trials at the time, and the proposal's fingerprint

    def propose(self, brief: Brief) -> Proposal:
        """Return the next change: the same for the same brief, and never one that was tried before.

        Raises:
            Exhausted: no patch applies and the file has no constant that could be moved.
            UserError: the train.py to start from does not parse.
        """
        trials = len(brief.campaign.trials)
        if brief.refusal is None:
            self._refused.clear()
        elif self._last is None or self._last[0] != trials:
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
            if mark not in tried and not is_as_good_as_tried(proposal, brief):
                return proposal, mark
        raise Exhausted(f"no known patch applies to {path} and no constant in it can be moved")


def is_as_good_as_tried(proposal: Proposal, brief: Brief) -> bool:
    """Whether the loop would refuse it because it moves a number by less than a run can resolve."""
    if proposal.repairs is not None:
        return False
    candidate = {**brief.files, **proposal.files}
    return duplicates.near_duplicate(candidate, brief.campaign.trials, brief.archive.files) is not None


def editable_file(brief: Brief) -> str:
    """The file to edit: `train.py`, or else the first Python file that is not `prepare.py`."""
    paths = sorted(path for path in brief.files if path.endswith(".py") and path != "prepare.py")
    if not paths:
        raise Exhausted("there is no Python file to edit")
    path = "train.py" if "train.py" in paths else paths[0]
    problem = syntax_problem(path, brief.files[path])
    if problem:
        raise UserError(f"{problem}: fix it and commit, then run again")
    return path


# ---------------------------------------------------------------- candidates, the preferred first


def candidates(path: str, brief: Brief, seed: int) -> Iterator[Proposal]:
    """Every change that could be proposed now, in order of preference."""
    yield from repairs(path, brief)
    pasts = pasts_of(brief.campaign)
    noise = noise_of(brief.campaign, pasts)
    drawn = random.Random(f"{seed}-{len(pasts)}").randrange(2**31)
    bench = Bench(path, brief.files[path], context_length({**brief.frozen, **brief.files}), pasts, noise, drawn)
    since = next((turn for turn, past in enumerate(reversed(pasts)) if past.kept), len(pasts))
    if since >= PLATEAU and since % 4 == 0:
        tried = {move.patch for past in pasts for move in past.moves}
        structures = [o for o in bench.options if o.patches[0] and o.moves[0].patch not in tried]
        yield from proposals(bench, structures)
    elif pasts and len(pasts) % PAIR_EVERY == 0:
        yield from proposals(bench, pairs(bench))
    yield from proposals(bench, bench.options)
    yield from proposals(dataclasses.replace(bench, desperate=True), bench.options)


def proposals(bench: Bench, options: Sequence[Option]) -> Iterator[Proposal]:
    for option, belief in bench.ranked(options):
        for edited in bench.edited(option):
            yield as_proposal(bench, edited, belief)


def as_proposal(bench: Bench, edited: Edited, belief: Belief) -> Proposal:
    """The proposal, with its constants' changes in the text and in the note."""
    changed = constants.changes(bench.source, edited.source).items()
    numbers = ", ".join(f"{name} {constants.shown(a.value)} to {constants.shown(b.value)}" for name, (a, b) in changed)
    words = f"{edited.idea}: {numbers}" if edited.idea and numbers else edited.idea or numbers
    return Proposal(
        idea=words,
        files={bench.path: edited.source},
        note=note_of(edited.moves),
        why=edited.why,
        expects=f"a change of about {belief.mean:+.2%}, plus or minus {belief.deviation:.2%}",
    )


def pairs(bench: Bench) -> list[Option]:
    """The best near misses, two at a time: small losses may be luck, and two that lost alone may gain together."""
    last = {past.moves[0].subject: past for past in bench.recent if len(past.moves) == 1}
    near = [
        (past.change, past.moves[0])
        for past in last.values()
        if not past.kept and past.change is not None and past.change <= NEAR * bench.noise
    ]
    known = {patch.name: patch for patch in DECK}
    usable = [move for _, move in sorted(near, key=lambda item: item[0]) if move.knob or move.patch in known]
    best = [(move, known.get(move.patch)) for move in usable[:NEAR_MISSES]]
    return [Option((a, b), (p, q)) for i, (a, p) in enumerate(best) for b, q in best[i + 1 :]]


# ---------------------------------------------------------------- repairs


def repairs(path: str, brief: Brief) -> Iterator[Proposal]:
    """A crashed trial again with half the device batch, if it ran out of memory; nothing for other crashes."""
    failure = brief.failure
    if failure is None or failure.kind is not CrashKind.OUT_OF_MEMORY or path not in failure.files:
        return
    edited = None if syntax_problem(path, failure.files[path]) else halved_device_batch(failure.files[path])
    crashed = next((trial for trial in brief.campaign.trials if trial.number == failure.trial), None)
    if edited:
        yield Proposal(
            idea=f"{failure.idea}, device batch halved after running out of memory",
            files={**failure.files, path: edited},
            note=dict(crashed.proposed.note) if crashed else {},
            why="a step keeps its tokens in twice as many passes, each with half the memory",
            expects="the same gain, at a little less speed",
            repairs=failure.trial,
        )
