"""The researcher in two parts: a language model proposes structure and names its knobs, Optuna tunes them.

Everything it knows is in the ledger's notes: a model's trial has `knobs`, a tuning one `tunes` and `values`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.records import Proposal, Status
from autoresearch.researchers.builtin.constant_moves import Scale, suggestions
from autoresearch.researchers.guard import check, rules
from autoresearch.researchers.interface import Brief, Checked, Failure, Kit, Researcher
from autoresearch.researchers.llm.knobs import Knob
from autoresearch.researchers.llm.researcher import LlmResearcher
from autoresearch.researchers.prompt import outcomes
from autoresearch.researchers.source import constants

TRIALS_PER_KNOB = 3
MOST_TRIALS = 9  # of one tuning, however many knobs
RECENT = 3  # of the model's trials that may still be tuned: the one before, while one is running
STARTUP_TRIALS = 2  # random ones before Optuna's estimator decides
ASKS = 30  # of Optuna's answers, looked at to find one that was not tried
DIGITS = 3  # significant digits of a value
CRASHED = 1.05  # what Optuna is told about a crash: the worst score, times this

Values = Mapping[str, float]


@dataclass(frozen=True)
class Tuning:
    """What is tuned: the model's trial, its knobs, the files they are set in, and what was tried so far."""

    trial: Trial
    knobs: tuple[Knob, ...]
    files: Mapping[str, str]
    past: tuple[Trial, ...]


class HybridResearcher:
    """Lets the language model propose, tunes its knobs for a few trials, then lets it propose again."""

    name = "llm+knobs"

    def __init__(self, argument: str = "", kit: Kit = Kit(), *, inner: Researcher | None = None) -> None:
        """Take `inner` as the language model, or create the one that the argument names.

        Raises:
            UserError: the model cannot be asked.
        """
        self._inner = inner or LlmResearcher(argument, kit, knobs=True)
        self._seed = kit.seed

    @property
    def model(self) -> str:
        """The model that it asks, as PROVIDER:MODEL."""
        return getattr(self._inner, "model", "")

    def check(self, *, online: bool = False) -> None:
        """See `researchers.interface.Checked`."""
        if isinstance(self._inner, Checked):
            self._inner.check(online=online)

    def propose(self, brief: Brief) -> Proposal:
        """The next values of the knobs if a tuning is in progress, else what the model proposes.

        Raises:
            NoProposal: asking the model gave nothing.
        """
        failed = brief.failure
        if failed and not is_tuning(failed, brief.campaign):
            return self._inner.propose(brief)
        past, editable = brief.campaign.trials, tuple(brief.files)
        for tuning in tunings(brief):
            for proposal in proposals(tuning, brief, self._seed):
                if check.refusal(proposal, brief.files, past, brief.archive.files, editable) is None:
                    return proposal
        return self._inner.propose(dataclasses.replace(brief, failure=None))


def is_tuning(failure: Failure, campaign: Campaign) -> bool:
    """Whether what crashed was not the model's idea, but a value that does not work."""
    return any("tunes" in trial.proposed.note for trial in campaign.trials if trial.number == failure.trial)


# ---------------------------------------------------------------- what there is to tune


def tunings(brief: Brief) -> Iterator[Tuning]:
    """The tunings that are not finished, latest first."""
    trials = brief.campaign.trials[1:]
    own = [trial for trial in reversed(trials) if "tunes" not in trial.proposed.note]
    for trial in own[:RECENT]:
        past = tuple(each for each in trials if each.proposed.note.get("tunes") == trial.number)
        files = base(trial, past, brief)
        named = {knob.name: knob for knob in knobs_of(trial, brief.campaign)}.values()
        knobs = tuple(knob for knob in named if operator.lt(*limits(knob, files)))
        if knobs and len(past) < min(TRIALS_PER_KNOB * len(knobs), MOST_TRIALS):
            yield Tuning(trial, knobs, files, past)


def base(trial: Trial, past: tuple[Trial, ...], brief: Brief) -> Mapping[str, str]:
    """The files to tune in: the editable ones if the idea was kept, its own if it was a near miss, else none."""
    if any(brief.campaign.status_of(each) is Status.KEEP for each in (trial, *past)):
        return brief.files
    outcome = next((each for each in outcomes(brief.campaign) if each.trial.number == trial.number), None)
    failed = outcome is not None and outcome.status in (Status.CRASH, Status.INVALID)
    if outcome is None or outcome.gain is None or outcome.clearly_worse or failed:
        return {}
    return brief.archive.files(trial.number)


def knobs_of(trial: Trial, campaign: Campaign) -> tuple[Knob, ...]:
    """The knobs that the model named with a trial, or with the one that it repairs."""
    named = trial.proposed.note.get("knobs")
    if named is None and trial.proposed.repairs is not None:
        mended = [each for each in campaign.trials if each.number == trial.proposed.repairs < trial.number]
        return knobs_of(mended[0], campaign) if mended else ()
    try:
        rows = json.loads(named) if isinstance(named, str) else []
        return tuple(Knob(str(name), float(low), float(high), bool(log)) for name, low, high, log in rows)
    except (ValueError, TypeError):
        return ()


def place(name: str, files: Mapping[str, str]) -> tuple[str, constants.Constant] | None:
    """The file with a knob as a number at its top level, and that number; None if there is none."""
    for path in sorted(files):
        if path.endswith(".py") and not rules.syntax_problem(path, files[path]):
            constant = constants.find(files[path]).get(name)
            if constant and isinstance(constant.value, int | float) and not isinstance(constant.value, bool):
                return path, constant
    return None


def limits(knob: Knob, files: Mapping[str, str]) -> tuple[float, float]:
    """The limits of a knob: whole numbers if the files have one; empty if it cannot be tuned."""
    found = place(knob.name, files)
    if found is None or (knob.log and knob.low <= 0):
        return math.inf, -math.inf
    return (math.ceil(knob.low), math.floor(knob.high)) if isinstance(found[1].value, int) else (knob.low, knob.high)


# ---------------------------------------------------------------- tuned


def proposals(tuning: Tuning, brief: Brief, seed: int) -> Iterator[Proposal]:
    """Changes of the knobs, best first; the same ones for the same brief."""
    turn = (seed, tuning.trial.number, len(brief.campaign.trials), len(brief.campaign.refused), brief.refusal)
    drawn = random.Random(repr(turn)).randrange(2**31)
    scales = {knob.name: Scale(*limits(knob, tuning.files), log=knob.log) for knob in tuning.knobs}
    for asked in suggestions(scales, scored(tuning, brief), drawn, startup=STARTUP_TRIALS, asks=ASKS):
        values = {knob.name: rounded(asked[knob.name], limits(knob, tuning.files)) for knob in tuning.knobs}
        yield as_proposal(tuning, values, brief)


def scored(tuning: Tuning, brief: Brief) -> list[tuple[Values, float]]:
    """The values tried so far that are within the knobs' limits, with their scores."""
    own = brief.archive.files(tuning.trial.number)
    first = {knob.name: found[1].value for knob in tuning.knobs if (found := place(knob.name, own))}
    tried = [(first, tuning.trial), *((values_of(trial), trial) for trial in tuning.past if trial.verdict)]
    worst = max((trial.val_bpb for _, trial in tried if trial.val_bpb is not None), default=1.0)
    scores: list[tuple[Values, float]] = []
    for values, trial in tried:
        score = CRASHED * worst if trial.val_bpb is None else trial.val_bpb
        within = {
            knob.name: value for knob in tuning.knobs if (value := inside(values, knob, tuning.files)) is not None
        }
        if len(within) == len(tuning.knobs):
            scores.append((within, score))
    return scores


def inside(values: Mapping[str, object], knob: Knob, files: Mapping[str, str]) -> float | None:
    """A knob's value, if it is a number within its limits."""
    value, (low, high) = values.get(knob.name), limits(knob, files)
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        return None
    return int(value) if isinstance(low, int) else float(value)


def values_of(trial: Trial) -> Mapping[str, object]:
    """The values that a tuning trial noted; none if the note cannot be read."""
    try:
        values = json.loads(str(trial.proposed.note.get("values")))
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def rounded(value: float, limits: tuple[float, float]) -> float:
    """A value with few digits that is still within its limits. Whole ones stay as they are."""
    return value if isinstance(value, int) else min(max(float(f"{value:.{DIGITS}g}"), limits[0]), limits[1])


def as_proposal(tuning: Tuning, values: Values, brief: Brief) -> Proposal:
    """The files with the knobs at these values."""
    changed: dict[str, str] = {}
    moves = []
    for name, value in values.items():
        found = place(name, {**tuning.files, **changed})
        assert found is not None, "a tuning has only knobs that its files have"
        path, old = found
        changed[path] = constants.replace(changed.get(path, tuning.files[path]), {name: value})
        moves.append(f"{name} {constants.shown(old.value)} to {constants.shown(value)}")
    return Proposal(
        idea=f"tune {', '.join(moves)}",
        files={path: text for path, text in {**tuning.files, **changed}.items() if text != brief.files.get(path)},
        note={"tunes": tuning.trial.number, "values": json.dumps(values)},
        why=f"the model named these knobs with trial {tuning.trial.number}: {tuning.trial.proposed.idea}",
    )
