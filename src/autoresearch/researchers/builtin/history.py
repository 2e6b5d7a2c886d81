"""What a campaign's trials tell the built-in researcher: which moves were made, on top of which, and the results.

The moves are read back from the notes in the ledger. Trials of other researchers count as one unknown move each.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.records import Scalar, Status
from autoresearch.researchers.source import constants
from autoresearch.researchers.source.constants import Constant

CLEARLY = 0.003  # a relative rise of val_bpb above this, and above twice the noise, is not a seed's luck
STRUCTURE = 1.5  # size of a structure's effect; a constant's full step is 1
LEAST_NOISE, MOST_NOISE = 0.0005, 0.01  # of val_bpb, relative


@dataclass(frozen=True)
class Move:
    """One change. `arm` is what the bandit chooses ("smear", "MATRIX_LR up"), `kind` its class of ideas.

    `gain` is the expected relative decrease of val_bpb, by its evidence. A constant's move also has its name, its text
    before and after, and the step (see `constants.moved`).
    """

    arm: str
    kind: str
    gain: float = 0.0
    patch: str = ""
    knob: str = ""
    before: str = ""
    after: str = ""
    step: float = 1.0

    @property
    def subject(self) -> tuple[str, float]:
        """What is moved and in which direction, 1 or -1. A patch has only one."""
        name, _, way = self.arm.partition(" ")
        return (name, -1.0 if way == "down" else 1.0)

    @property
    def size(self) -> float:
        """How far its effect may spread: a structure's is wider than a constant's step."""
        return min(max(abs(self.step), 0.3), 1.0) if self.knob or " " in self.arm else STRUCTURE

    @property
    def expected(self) -> float:
        """The relative change of val_bpb that the evidence predicts."""
        return -self.gain * min(self.size, 1.0)


@dataclass(frozen=True)
class Past:
    """A trial after the baseline. `chain` lists the trials whose moves its program contains, its own last.

    `level` is its val_bpb relative to the baseline's, `change` relative to its parent's; negative is better.
    """

    trial: int
    moves: tuple[Move, ...]
    chain: tuple[int, ...]
    level: float | None
    change: float | None
    kept: bool
    crashed: bool
    runs: int


def note_of(moves: Sequence[Move]) -> dict[str, Scalar]:
    """The moves as a note. A single one also as text, for a person who reads the ledger."""
    default = {field.name: field.default for field in dataclasses.fields(Move)}
    short = [{k: v for k, v in dataclasses.asdict(move).items() if v != default[k]} for move in moves]
    note: dict[str, Scalar] = {"moves": json.dumps(short, separators=(",", ":"))}
    if len(moves) == 1:
        move = moves[0]
        note |= {"deck": move.patch} if move.patch else {}
        if move.knob:
            note |= {"knob": move.knob, "from": move.before, "to": move.after, "step": move.step}
    return note


def moves_of(trial: Trial) -> tuple[Move, ...]:
    """The moves in its note; one unknown move if there are none."""
    try:
        made = tuple(Move(**fields) for fields in json.loads(str(trial.proposed.note.get("moves"))))
        if made and all(isinstance(m.arm, str) and isinstance(m.step + m.gain, float | int) for m in made):
            return made
    except (ValueError, TypeError):
        pass  # a note by someone else
    return (Move(f"trial-{trial.number}", "unknown"),)


def pasts_of(campaign: Campaign) -> list[Past]:
    """The campaign's trials after the baseline, in order."""
    by_commit = {trial.proposed.commit: trial for trial in campaign.trials}
    base = campaign.trials[0].val_bpb if campaign.trials else None
    chains: dict[int, tuple[int, ...]] = {trial.number: () for trial in campaign.trials[:1]}
    pasts = []
    for trial in campaign.trials[1:]:
        parent = by_commit.get(trial.proposed.parent)
        start = trial.proposed.note.get("rewound")  # earlier versions: the keep that its text went back to
        start = start if isinstance(start, int) and start in chains else parent.number if parent else -1
        chains[trial.number] = (*chains.get(start, ()), trial.number)
        score, before = trial.val_bpb, parent.val_bpb if parent else None
        status = trial.verdict.status if trial.verdict else None
        pasts.append(
            Past(
                trial=trial.number,
                moves=moves_of(trial),
                chain=chains[trial.number],
                level=score / base - 1 if score is not None and base else None,
                change=score / before - 1 if score is not None and before else None,
                kept=trial.number in campaign.standing,
                crashed=status in (Status.CRASH, Status.INVALID),
                runs=max(len(trial.runs), 1),
            )
        )
    return pasts


def latest(pasts: Sequence[Past], most: int) -> Sequence[Past]:
    """The last so many trials, as if the search had started from what was kept before them."""
    if len(pasts) <= most:
        return pasts
    levels, first = {past.trial: past.level for past in pasts}, pasts[-most].trial
    found = []
    for past in pasts[-most:]:
        before = sum(trial < first for trial in past.chain)
        start = levels.get(past.chain[before - 1]) if before else 0.0
        level = None if past.level is None or start is None else (1 + past.level) / (1 + start) - 1
        found.append(dataclasses.replace(past, chain=past.chain[before:], level=level))
    return found


def noise_of(campaign: Campaign, pasts: Sequence[Past]) -> float:
    """One run's relative standard deviation: from replicates if there are any, else from what most moves did.

    Most moves do almost nothing, so their median size is mostly noise.
    """
    spreads = []
    for trial in campaign.trials:
        scores = trial.scores
        spreads += [statistics.stdev(scores) / statistics.fmean(scores)] if len(scores) > 2 else []
    changes = [abs(past.change) for past in pasts if past.change is not None]
    guess = statistics.fmean(spreads) if spreads else 0.8 * statistics.median(changes) if len(changes) > 5 else 0.002
    return min(max(guess, LEAST_NOISE), MOST_NOISE)


def is_bad(past: Past, noise: float) -> bool:
    return past.crashed or (past.change is not None and past.change > max(CLEARLY, 2 * noise))


def known_bad(old: Constant, new: Constant, pasts: Iterable[Past], noise: float, *, beyond: bool = True) -> bool:
    """Whether this move, or (`beyond`) a shorter one in its direction, crashed or clearly hurt from the same value."""
    step = constants.step_between(old, new)
    for past in pasts:
        move = past.moves[0]
        same_start = len(past.moves) == 1 and move.knob == old.name and move.before == old.text
        if not (same_start and is_bad(past, noise)):
            continue
        if move.after == new.text or (beyond and move.step * step > 0 and abs(step) >= abs(move.step)):
            return True
    return False
