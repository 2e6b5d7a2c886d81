"""Whether a proposal was tried before, exactly or nearly, and with which result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from autoresearch.ledger import report
from autoresearch.ledger.campaign import Trial
from autoresearch.researchers.guard.fingerprint import seedless, skeleton

NEAR = 0.05  # moving a constant by a smaller share than this moves val_bpb less than a seed does
FEW = 3  # constants moved so little together; more of them may add up to something
Files = Mapping[str, str]


def near_duplicate(files: Mapping[str, str], past: Iterable[tuple[str, Mapping[str, str]]]) -> str | None:
    """Why files count as tried: a past program (its name, its files) differs only in a few numbers, by less than NEAR.

    Such a difference drowns in the noise of one run, and a difference of seeds alone is that noise. None if there is no
    such program.
    """
    shape, values = skeleton(files)
    for name, others in past:
        other_shape, other_values = skeleton(others)
        if shape != other_shape:
            continue
        if values != other_values and seedless(files) == seedless(others):
            return f"only seeds distinguish it from trial {name}: the program sets them, and a seed is luck"
        pairs = [(old, new) for old, new in zip(other_values, values, strict=True) if old != new]
        if 0 < len(pairs) <= FEW and all(is_near(old, new) for old, new in pairs):
            moves = ", ".join(f"{old:g} to {new:g}" for old, new in pairs)
            return f"nearly trial {name}: only {moves} differs, less than one run can resolve, so move further"
    return None


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


def alike(candidate: Files, trials: Sequence[Trial], files_of: Callable[[int], Files]) -> Iterator[tuple[str, Files]]:
    """Past scored programs that differ from this one only in numbers, newest first, with their results."""
    shape = skeleton(candidate)[0]
    for trial in reversed(trials):
        if trial.proposed.skeleton == shape and trial.val_bpb is not None:
            yield outcome(trial), files_of(trial.number)


def outcome(trial: Trial) -> str:
    """A trial's number and its result, as in `3 (discard, val_bpb 1.402113)`."""
    if trial.verdict is None:
        return f"{trial.number} (not judged yet)"
    score = f"val_bpb {trial.val_bpb:.6f}" if trial.val_bpb is not None else report.reason(trial)
    return f"{trial.number} ({trial.verdict.status.value}, {score})"
