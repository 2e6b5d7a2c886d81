"""Whether a proposal was tried before, exactly or nearly, and with which result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from autoresearch.ledger import report
from autoresearch.ledger.campaign import Trial
from autoresearch.researchers.guard.fingerprint import Syntax, syntax

NEAR = 0.05  # moving a constant by a smaller share than this moves val_bpb less than a seed does
FEW = 3  # constants moved so little together; more of them may add up to something
READ = 100  # programs that are read of trials that do not say what they moved
Files = Mapping[str, str]
Numbers = Mapping[int, float]  # the numbers of a program by their place in its syntax


@dataclass(frozen=True)
class Near:
    """A trial that a program repeats, nearly, and in which way."""

    trial: int
    reason: str


def near_duplicate(candidate: Files, trials: Sequence[Trial], files_of: Callable[[int], Files]) -> Near | None:
    """Why a program counts as tried: a scored one differs only in a few numbers, by less than NEAR.

    Such a difference drowns in the noise of one run, and a difference of seeds alone is that noise. None if there is no
    such program. The latest is named, with its result. `files_of` gives the files of a trial.
    """
    own = syntax(candidate)
    same = [trial for trial in trials if trial.proposed.skeleton == own.skeleton]
    near = None
    for trial, other in differences(own.numbers, same, files_of, most=max(FEW, len(own.seed_places))):
        is_evidence = trial.val_bpb is not None or trial.verdict is None  # one in flight will have a score
        if other and is_evidence and (reason := too_close(own, other, trial)):
            near = Near(trial.number, reason)
    return near


def too_close(own: Syntax, other: Numbers, trial: Trial) -> str | None:
    """Why a program counts as tried: a trial's has these `other` numbers in places and is the same elsewhere."""
    if other.keys() <= own.seed_places:
        return f"only seeds distinguish it from trial {outcome(trial)}: the program sets them, and a seed is luck"
    pairs = [(old, own.numbers[place]) for place, old in sorted(other.items())]
    if len(pairs) <= FEW and all(is_near(old, new) for old, new in pairs):
        moves = ", ".join(f"{old:g} to {new:g}" for old, new in pairs)
        return f"nearly trial {outcome(trial)}: only {moves} differs, less than one run can resolve, so move further"
    return None


def differences(
    values: Sequence[float], trials: Sequence[Trial], files_of: Callable[[int], Files], *, most: int
) -> Iterator[tuple[Trial, Numbers]]:
    """The trials in order whose programs differ from one in at most so many numbers, with theirs. All have its syntax.

    What a trial moved is in the ledger. Files are read for the first program with this syntax, and for trials of an
    earlier version, which did not record it: for the latest READ of them.
    """
    commits, parents = ({getattr(t.proposed, name) for t in trials} for name in ("commit", "parent"))
    built_on = {t.proposed.parent for t in trials if t.proposed.moved is not None}
    firsts = [t for t in trials if t.proposed.moved is None or t.proposed.parent not in commits]
    read = {t.number for t in firsts[-READ:]} | {t.number for t in firsts if t.proposed.commit in built_on}
    known: dict[str, Numbers] = {}  # what the numbers of parents are where they differ, by their commit
    for trial in trials:
        moved, before = trial.proposed.moved, known.get(trial.proposed.parent)
        if moved is None or before is None:
            if trial.number not in read:
                continue
            moved, before = tuple(enumerate(syntax(files_of(trial.number)).numbers)), {}
        is_parent = trial.proposed.commit in parents
        if len(before) - len(moved) > most and not is_parent:
            continue
        other = {place: value for place, value in {**before, **dict(moved)}.items() if value != values[place]}
        if is_parent:
            known[trial.proposed.commit] = other
        if len(other) <= most:
            yield trial, other


def moved(before: Files, after: Files) -> tuple[tuple[int, float], ...] | None:
    """The numbers that a change moved, as places and new values; None if it changed more than numbers."""
    old, new = syntax(before), syntax(after)
    if old.skeleton != new.skeleton:
        return None
    both = enumerate(zip(old.numbers, new.numbers, strict=True))
    return tuple((place, value) for place, (was, value) in both if was != value)


def is_near(old: float, new: float) -> bool:
    """Whether two values of a constant differ by less than NEAR, measured from 1 if both are shares close to 1.

    Whole numbers are sizes and counts: a different one may mean a different speed.
    """
    if isinstance(old, int) or isinstance(new, int):
        return old == new
    scales = [max(abs(old), abs(new))]
    if 0.5 < old <= 1 and 0.5 < new <= 1:
        scales.append(max(1 - old, 1 - new))
    return all(abs(old - new) < NEAR * scale for scale in scales)


def outcome(trial: Trial) -> str:
    """A trial's number and its result, as in `3 (discard, val_bpb 1.402113)`."""
    if trial.verdict is None:
        return f"{trial.number} (not judged yet)"
    score = f"val_bpb {trial.val_bpb:.6f}" if trial.val_bpb is not None else report.reason(trial)
    return f"{trial.number} ({trial.verdict.status.value}, {score})"
