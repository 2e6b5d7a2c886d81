"""Which program a proposal starts from: the incumbent, or on a plateau another line, and the same one after a kill."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toy_lab
from autoresearch.base import git
from autoresearch.base.errors import Exhausted, UserError
from autoresearch.lab import config
from autoresearch.ledger import report
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import ChosenByHand
from autoresearch.ledger.records import Proposal, Status
from autoresearch.loop.asking import search
from autoresearch.loop.asking.proposals import Answer, admit
from autoresearch.loop.loop import run_campaign, try_once
from autoresearch.loop.parts.stages import Policy
from autoresearch.researchers.interface import Brief
from conftest import stages
from judged import a_campaign, a_trial, posterior_judge, with_trials

SIGMA = 0.001  # about what the baseline's three seeds show
TREE = Policy(longest_pause_seconds=0.01, max_disturbance=1.0, search="tree")


def begun(*others: Trial) -> Campaign:
    """A campaign with a baseline of val_bpb 1 on three seeds, and other trials after it."""
    return a_campaign(a_trial(0, 1.0, 1.0 + SIGMA, 1.0 - SIGMA, status=Status.KEEP), *others)


def plateau(misses: int, gap: float = 0.5 * SIGMA) -> Campaign:
    """A keep far below the baseline, and so many discards made on it, each worse by the gap."""
    keep = a_trial(1, 0.98, 0.98, status=Status.KEEP)
    others = [a_trial(2 + n, 0.98 + gap, parent=1, status=Status.DISCARD) for n in range(misses)]
    return begun(keep, *others)


def shares(campaign: Campaign, draws: int = 400) -> dict[int, float]:
    """How often each trial is started from, over the numbers that the proposal could have."""
    found = [search.start(campaign, "tree", number).number for number in range(draws)]
    return {number: found.count(number) / draws for number in set(found)}


SCORES = st.floats(0.97, 1.03)
TRIALS = st.lists(st.tuples(SCORES, st.sampled_from(["keep", "discard", "crash", "invalid"]), st.integers(0, 99)))


def drawn(rows: list[tuple[float, str, int]]) -> Campaign:
    """A campaign of any shape: each trial with a score, a status, and one of those before it as its parent."""
    trials = []
    for number, (score, status, parent) in enumerate(rows, start=1):
        run = None if status == "crash" else score
        trials.append(a_trial(number, run, parent=parent % number, status=Status(status)))
    return begun(*trials)


@settings(max_examples=100, deadline=None)
@given(TRIALS, st.integers(0, 10_000))
def test_line_is_the_incumbent_and_both_are_the_same_for_the_same_campaign(
    rows: list[tuple[float, str, int]], number: int
) -> None:
    one, other = drawn(rows), drawn(rows)
    assert search.start(one, "line", number) is one.incumbent
    assert search.start(one, "tree", number).number == search.start(other, "tree", number).number


@settings(max_examples=100, deadline=None)
@given(TRIALS, st.integers(0, 10_000))
def test_no_crashed_or_invalid_program_is_started_from(rows: list[tuple[float, str, int]], number: int) -> None:
    campaign = drawn(rows)
    chosen = search.start(campaign, "tree", number)
    assert campaign.status_of(chosen) in (Status.KEEP, Status.DISCARD)
    assert chosen.scores
    for near in search.near_misses(campaign):
        trial = campaign.trials[near]
        assert campaign.status_of(trial) is Status.DISCARD
        assert trial.scores


def test_what_was_dropped_by_hand_is_not_started_from() -> None:
    near = plateau(30)
    assert shares(near).keys() & {5}
    chosen = tuple(
        ChosenByHand("t", number, kept=False, incumbent=1, by="run", why="a fluke", verdicts=32, confirmations=0)
        for number in (1, *range(2, 32))
    )
    assert set(shares(dataclasses.replace(near, chosen=chosen))) == {1}


def test_an_incumbent_that_is_new_and_clearly_the_best_is_started_from_almost_always() -> None:
    fresh = with_trials(plateau(20), [a_trial(30, 0.95, 0.95, parent=1, status=Status.KEEP)])
    assert shares(fresh)[30] > 0.97


def test_a_plateau_opens_other_lines_and_the_longer_it_lasts_the_more_often() -> None:
    away = [1 - shares(plateau(misses)).get(1, 0.0) for misses in (1, 8, 40)]
    assert away[0] < 0.3
    assert away[0] < away[1] < away[2]
    assert len(shares(plateau(40))) > 3


def test_the_bonus_of_a_line_falls_with_what_was_tried_on_it() -> None:
    before = plateau(12)
    first = max(shares(before).items(), key=lambda item: (item[0] != 1) * item[1])[0]
    more = [a_trial(50 + n, 0.99, parent=first, status=Status.DISCARD) for n in range(12)]
    assert shares(with_trials(before, more)).get(first, 0.0) < shares(before)[first]


def test_a_program_that_is_believed_to_be_as_good_is_no_worse_a_start() -> None:
    """A candidate that is probably better, but not surely enough to be kept."""
    campaign = plateau(6)
    doubtful = with_trials(campaign, [a_trial(40, 0.98 - 2 * SIGMA, parent=1, status=Status.DISCARD)])
    assert shares(doubtful)[40] > 0.5


def test_near_misses_are_of_different_lines_and_closest_first() -> None:
    keep = a_trial(1, 0.999, 0.999, status=Status.KEEP)
    of_one = [a_trial(2 + n, 0.9992 + n * 1e-4, parent=1, status=Status.DISCARD) for n in range(4)]
    of_other = [a_trial(10, 0.9997, parent=0, status=Status.DISCARD), a_trial(11, 1.5, parent=0, status=Status.DISCARD)]
    near = search.near_misses(begun(keep, *of_one, *of_other))
    assert near[:2] == (2, 3)
    assert 10 in near
    assert not {4, 5, 11} & set(near)


# ---------------------------------------------------------------- in a campaign

LINES = "A = 1\nB = 2\nC = 3\nD = 4\nE = 5\nF = 6\nG = 7\n"
TRAIN = f"""
from prepare import evaluate
X = 3.0
{LINES}Y = 2.0
{LINES}evaluate(1 + (X - 1) ** 2 + (Y - 1) ** 2)
print("---")
"""


class Steps:
    """A researcher that changes one number after the other, of whatever program it is given."""

    name = "steps"

    def __init__(self, *steps: tuple[str, object]) -> None:
        self.steps, self.briefs = steps, list[Brief]()

    def propose(self, brief: Brief) -> Proposal:
        self.briefs.append(brief)
        made = {trial.proposed.idea for trial in brief.campaign.trials}
        made |= {refused.idea for refused in brief.campaign.refused}
        for name, value in self.steps:
            if (idea := f"{name} to {value}") not in made:
                lines = brief.files["train.py"].split("\n")
                changed = (f"{name} = {value}" if line.startswith(f"{name} = ") else line for line in lines)
                return Proposal(idea, {"train.py": "\n".join(changed)})
        raise Exhausted("no step is left")


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    return toy_lab.make(tmp_path / "lab", train=TRAIN)


def until(count: int) -> Callable[[int], str | None]:
    return lambda made: "enough" if made >= count else None


def started_from(monkeypatch: pytest.MonkeyPatch, trials: dict[int, int]) -> None:
    """Let the policy choose these starts, by the proposal's number; otherwise the incumbent."""

    def start(campaign: Campaign, policy: str, number: int) -> Trial:
        assert campaign.incumbent is not None
        return campaign.trials[trials[number]] if policy == "tree" and number in trials else campaign.incumbent

    monkeypatch.setattr(search, "start", start)


def test_a_trial_of_another_line_is_carried_over_if_it_is_better_than_its_parent_only(
    wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started_from(monkeypatch, {2: 0})
    steps = Steps(("X", 1.5), ("Y", 1.5), ("A", 9))
    run_campaign(stages(wide, researcher=steps, policy=TREE), "t", until(3))
    campaign = stages(wide).campaign("t")
    first, other, both = campaign.trials[1:]
    assert steps.briefs[1].start is not None
    assert steps.briefs[1].start.trial == 0
    assert "X = 3.0" in steps.briefs[1].files["train.py"]
    assert steps.briefs[0].start is None
    assert (other.proposed.parent, other.proposed.start) == (campaign.trials[0].proposed.commit, steps.briefs[1].start)
    assert not other.proposed.stale
    assert other.verdict is not None
    assert other.verdict.carry
    assert (both.proposed.carries, both.proposed.parent) == (other.number, first.proposed.commit)
    assert campaign.incumbent is both
    text = git.files(wide, "autoresearch/t")["train.py"].decode()
    assert ("X = 1.5" in text, "Y = 1.5" in text) == (True, True)
    assert report.row_of(other).description == "Y to 1.5 (on #0)"


def test_a_trial_of_a_discard_that_beats_the_best_version_is_kept_with_it(
    wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started_from(monkeypatch, {3: 2})
    steps = Steps(("X", 2.0), ("Y", 2.4), ("X", 1.0))
    run_campaign(stages(wide, researcher=steps, policy=TREE), "t", until(3))
    campaign = stages(wide).campaign("t")
    assert [trial.number for trial in campaign.lineage] == [0, 1, 2, 3]
    rows = {row.number: row for row in report.rows(campaign)}
    assert rows[2].status is Status.KEEP
    assert rows[2].description == "Y to 2.4 (kept with #3, which was made on it)"
    assert git.resolve(wide, "refs/heads/autoresearch/t") == campaign.trials[3].proposed.commit


def test_a_kill_in_between_changes_no_choice(tmp_path: Path) -> None:
    values = [(name, value) for value in (11, 12, 13) for name in "ABCDEFG"]
    told = []
    for name, pauses in (("whole", (14,)), ("in parts", (3, 4, 1, 6))):
        lab = toy_lab.make(tmp_path / name, train=TRAIN)
        steps = Steps(*values)
        for count in pauses:
            run_campaign(stages(lab, researcher=steps, policy=TREE, judge=posterior_judge()), "t", until(count))
        campaign = stages(lab).campaign("t")
        told.append([trial.proposed.start and trial.proposed.start.trial for trial in campaign.trials])
    assert told[0] == told[1]
    assert len(set(told[0])) > 2


def test_a_crash_on_another_line_is_mended_there(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started_from(monkeypatch, {3: 2})
    steps = Steps(("X", 2.0), ("A", 11), ("X", "no_number"), ("Y", 1.5))
    judge = posterior_judge(baseline_seeds=1, max_runs=1)
    run_campaign(stages(wide, researcher=steps, policy=TREE, judge=judge), "t", until(4), confirming=False)
    last = steps.briefs[3]
    assert last.failure is not None
    assert last.failure.trial == 3
    assert last.start is not None
    assert last.start.trial == 2
    assert "A = 11" in last.files["train.py"]


def test_what_an_outside_agent_tries_is_made_on_the_incumbent(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started_from(monkeypatch, dict.fromkeys(range(2, 9), 0))
    run_campaign(stages(wide, researcher=Steps(("X", 2.0)), policy=TREE), "t", until(1))
    parts = stages(wide, policy=TREE)

    def write(campaign: Campaign) -> Answer | object:
        assert campaign.incumbent is not None
        files = parts.texts(campaign.incumbent.proposed.commit)
        edited = Proposal("by hand", {"train.py": files["train.py"].replace("Y = 2.0", "Y = 1.5")})
        return admit(parts, campaign, edited, "try", written_for=files)

    made = try_once(parts, "t", write)  # type: ignore[arg-type]
    assert isinstance(made, Trial)
    assert made.proposed.start is None
    assert made.proposed.parent == stages(wide).campaign("t").trials[1].proposed.commit


def test_a_search_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    program = tmp_path / "program.md"
    program.write_text("---\nsearch: graph\n---\n")
    with pytest.raises(UserError, match=r"`search`: it should be 'line' or 'tree', but is 'graph'"):
        config.load(program)


def test_a_start_comes_back_from_the_ledger_with_its_reason(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started_from(monkeypatch, {3: 0})
    steps = Steps(("X", 1.5), ("A", 11), ("Y", 1.5))
    run_campaign(stages(wide, researcher=steps, policy=TREE), "t", until(3))
    start = stages(wide).campaign("t").trials[3].proposed.start
    assert start is not None
    assert start.trial == 0
    assert start.why.startswith(
        "1 proposal made on the best version, #1, did not better it; this one is believed to be"
    )
