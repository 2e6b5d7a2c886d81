from __future__ import annotations

import dataclasses
import itertools
import math
import tempfile
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from autoresearch.judging import judge
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import ChosenByHand, Confirmation
from autoresearch.ledger.ledger import Ledger
from autoresearch.ledger.records import Outcome, Purpose, Score, Status
from judged import a_campaign, a_run, a_trial, kept, with_run, with_trials


def concluded(campaign: Campaign, outcome: Outcome, trial: int, incumbent: int) -> Campaign:
    last = Confirmation("t", trial, outcome, "", (), incumbent, campaign.trials[-1].number)
    return dataclasses.replace(campaign, confirmations=(*campaign.confirmations, last))


def numbers(trials: tuple[Trial, ...]) -> list[int]:
    return [trial.number for trial in trials]


def standing(campaign: Campaign) -> tuple[int, list[int], int, list[int], list[int], set[int]]:
    assert campaign.incumbent
    assert campaign.confirmed
    return (
        campaign.incumbent.number,
        numbers(campaign.lineage),
        campaign.confirmed.number,
        numbers(campaign.provisional),
        numbers(campaign.untested),
        set(campaign.taken_back),
    )


def test_a_campaign_without_a_kept_baseline_stands_nowhere() -> None:
    for campaign in (a_campaign(), a_campaign(a_trial(0, 1.0)), a_campaign(a_trial(0, None, status=Status.CRASH))):
        assert campaign.incumbent is campaign.confirmed is None
        assert campaign.lineage == campaign.provisional == campaign.untested == ()


def test_the_incumbent_is_the_last_keep_and_keeps_are_provisional() -> None:
    campaign = with_trials(kept(1.0, 0.9), [a_trial(2, 1.1, parent=1, status=Status.DISCARD)])
    assert standing(campaign) == (1, [0, 1], 0, [1], [1], set())


def test_what_was_confirmed_is_provisional_no_more() -> None:
    campaign = concluded(kept(1.0, 0.9, 0.8), Outcome.CONFIRMED, 2, 2)
    assert standing(campaign) == (2, [0, 1, 2], 2, [], [], set())
    later = with_trials(campaign, [a_trial(3, 0.7, parent=2, status=Status.KEEP)])
    assert standing(later) == (3, [0, 1, 2, 3], 2, [3], [3], set())


def test_what_a_confirmation_left_open_stays_provisional_but_was_tested() -> None:
    campaign = concluded(kept(1.0, 0.9, 0.8), Outcome.UNDECIDED, 2, 2)
    assert standing(campaign) == (2, [0, 1, 2], 0, [1, 2], [], set())


def test_a_refuted_search_goes_back_and_on_from_there() -> None:
    campaign = concluded(kept(1.0, 0.9), Outcome.CONFIRMED, 1, 1)
    campaign = with_trials(campaign, [a_trial(2, 0.8, parent=1, status=Status.KEEP)])
    campaign = with_trials(campaign, [a_trial(3, 0.7, parent=2, status=Status.KEEP)])
    back = concluded(campaign, Outcome.REFUTED, 3, 1)
    assert standing(back) == (1, [0, 1], 1, [], [], {2, 3})
    on = with_trials(back, [a_trial(4, 0.8, parent=1, status=Status.KEEP)])
    assert standing(on) == (4, [0, 1, 4], 1, [4], [4], {2, 3})


def test_a_search_that_walked_back_keeps_what_held() -> None:
    campaign = concluded(kept(1.0, 0.9, 0.8), Outcome.CONFIRMED, 1, 1)
    assert standing(campaign) == (1, [0, 1], 1, [], [], {2})


def by_hand(campaign: Campaign, trial: Trial, *, keep: bool) -> Campaign:
    """The campaign after somebody kept a trial, or dropped it."""
    parent = next(each for each in campaign.trials if each.proposed.commit == trial.proposed.parent)
    chosen = ChosenByHand(
        tag="t",
        trial=trial.number,
        kept=keep,
        incumbent=(trial if keep else parent).number,
        by="a test",
        why="so",
        verdicts=len(campaign.finished),
        confirmations=len(campaign.confirmations),
    )
    return dataclasses.replace(campaign, chosen=(*campaign.chosen, chosen))


def test_a_discard_that_is_kept_by_hand_is_the_incumbent_provisional_and_untested() -> None:
    campaign = with_trials(kept(1.0, 0.9), [a_trial(2, 0.9, parent=1, status=Status.DISCARD)])
    chosen = by_hand(campaign, campaign.trials[2], keep=True)
    assert standing(chosen) == (2, [0, 1, 2], 0, [1, 2], [1, 2], set())
    assert [chosen.status_of(trial) for trial in chosen.trials] == [Status.KEEP] * 3
    on = with_trials(chosen, [a_trial(3, 0.8, parent=2, status=Status.KEEP)])
    assert standing(concluded(on, Outcome.CONFIRMED, 3, 3)) == (3, [0, 1, 2, 3], 3, [], [], set())


def test_a_keep_that_is_dropped_takes_what_was_built_on_it_along() -> None:
    campaign = kept(1.0, 0.9, 0.8, 0.7)
    dropped = by_hand(campaign, campaign.trials[2], keep=False)
    assert standing(dropped) == (1, [0, 1], 0, [1], [1], {2, 3})
    assert [dropped.status_of(trial) for trial in dropped.trials[2:]] == [Status.DISCARD] * 2
    again = by_hand(dropped, campaign.trials[3], keep=True)
    assert standing(again) == (3, [0, 1, 2, 3], 0, [1, 2, 3], [1, 2, 3], set())


def test_a_trial_that_was_tested_and_then_kept_by_hand_is_tested_again() -> None:
    campaign = with_trials(kept(1.0, 0.9), [a_trial(2, 0.9, parent=1, status=Status.DISCARD)])
    tested = concluded(campaign, Outcome.CONFIRMED, 1, 1)
    assert numbers(by_hand(tested, tested.trials[2], keep=True).untested) == [2]


STEPS = ["keep", "discard", "confirmed", "refuted", "undecided", "keep a discard", "keep an old one", "drop one"]


@given(st.lists(st.sampled_from(STEPS), max_size=25))
def test_whatever_happens_the_lineage_leads_from_the_baseline_to_the_incumbent(steps: list[str]) -> None:
    campaign = kept(1.0)
    for step in steps:
        assert campaign.incumbent
        assert campaign.confirmed
        if step in ("keep", "discard"):
            number, parent = len(campaign.trials), campaign.incumbent.number
            campaign = with_trials(campaign, [a_trial(number, 0.5, parent=parent, status=Status(step))])
        elif "discard" in step:
            discards = [each for each in campaign.trials if campaign.status_of(each) is Status.DISCARD]
            campaign = by_hand(campaign, discards[0], keep=True) if discards else campaign
        elif "old" in step:
            campaign = by_hand(campaign, campaign.lineage[len(campaign.lineage) // 2], keep=True)
        elif "drop" in step:
            campaign = by_hand(campaign, campaign.lineage[-1], keep=False) if len(campaign.lineage) > 1 else campaign
        elif campaign.provisional:
            back = campaign.confirmed if step == "refuted" else campaign.incumbent
            campaign = concluded(campaign, Outcome(step), campaign.incumbent.number, back.number)
        lineage = campaign.lineage
        assert lineage[0].number == 0
        assert lineage[-1] is campaign.incumbent
        assert all(b.proposed.parent == a.proposed.commit for a, b in itertools.pairwise(lineage))
        assert set(numbers(campaign.untested)) <= set(numbers(campaign.provisional)) <= set(numbers(lineage))
        assert campaign.confirmed not in campaign.provisional
        assert set(campaign.taken_back) == set(numbers(campaign.kept)) - set(numbers(lineage))


@st.composite
def trees(draw: st.DrawFn) -> list[tuple[int, bool]]:
    """For each trial after the baseline: which earlier one it was made on, and whether it was kept."""
    count = draw(st.integers(1, 12))
    return [(draw(st.integers(0, number)), draw(st.booleans())) for number in range(count)]


def grown(tree: list[tuple[int, bool]], order: list[int]) -> Campaign:
    """A campaign whose trials were proposed in one order and had their verdicts in another."""
    trials = [a_trial(0, 1.0, status=Status.KEEP)]
    trials[0] = dataclasses.replace(trials[0], verdict=dataclasses.replace(trials[0].verdict, place=0))  # type: ignore[type-var]
    for number, (parent, kept_) in enumerate(tree, start=1):
        trial = a_trial(number, 1.0 - number / 100, parent=parent, status=Status.KEEP if kept_ else Status.DISCARD)
        place = 1 + order.index(number - 1)
        trials.append(dataclasses.replace(trial, verdict=dataclasses.replace(trial.verdict, place=place)))  # type: ignore[type-var]
    return a_campaign(*trials)


@settings(deadline=None)
@given(trees(), st.randoms())
def test_in_whatever_order_verdicts_come_the_tree_has_no_cycles_and_leads_to_the_last_keep(
    tree: list[tuple[int, bool]], random: Random
) -> None:
    order = list(range(len(tree)))
    random.shuffle(order)
    campaign = grown(tree, order)
    lineage = campaign.lineage
    assert lineage[0] is campaign.trials[0]
    assert all(b.proposed.parent == a.proposed.commit for a, b in itertools.pairwise(lineage))
    assert len(set(numbers(lineage))) == len(lineage)
    keeps = [number + 1 for number in order if tree[number][1]]
    assert lineage[-1].number == (keeps[-1] if keeps else 0), "what was kept last is where the search is"
    for trial in campaign.kept:
        reached, seen = trial, set()
        while (before := campaign.parent_of(reached)) is not None:
            assert reached.number not in seen
            seen.add(reached.number)
            reached = before
        assert reached is campaign.trials[0], "every keep is reachable from the baseline"
    assert set(campaign.taken_back) == set(numbers(campaign.kept)) - set(numbers(lineage))


@settings(deadline=None)
@given(trees(), st.randoms())
def test_the_order_in_which_runs_end_changes_no_programs_posterior(
    tree: list[tuple[int, bool]], random: Random
) -> None:
    one, other = list(range(len(tree))), list(range(len(tree)))
    random.shuffle(other)
    assert judge.believed(grown(tree, one)) == judge.believed(grown(tree, other))


@settings(deadline=None)
@given(trees(), st.randoms())
def test_a_replayed_ledger_gives_the_same_tree(tree: list[tuple[int, bool]], random: Random) -> None:
    order = list(range(len(tree)))
    random.shuffle(order)
    made = grown(tree, order)
    with tempfile.TemporaryDirectory() as directory:
        ledger = Ledger(Path(directory) / "ledger.jsonl")
        ledger.append(made.started)
        for trial in made.trials:
            ledger.append(trial.proposed)
        for trial in (made.trials[0], *(made.trials[number + 1] for number in order)):
            for run in trial.runs:
                ledger.append(dataclasses.replace(run, trial=trial.number))
            assert trial.verdict is not None
            ledger.append(trial.verdict)
        read = Ledger(ledger.path).campaign()
    assert read is not None
    assert numbers(read.lineage) == numbers(made.lineage)
    assert set(read.taken_back) == set(made.taken_back)
    assert judge.believed(read) == judge.believed(made)


def test_only_scores_to_be_believed_count() -> None:
    nothing = a_trial(0, None, a_run(0.5, invalid="it cheated"), a_run(math.nan), a_run(math.inf))
    assert nothing.scores == ()
    assert nothing.val_bpb is None
    assert a_trial(0, 1.0, a_run(math.nan), 2.0).val_bpb == 1.5


def test_a_replay_is_no_further_evidence() -> None:
    """It runs on a seed that its trial has had, with the same luck."""
    trial = a_trial(0, 1.0, a_run(1.0, purpose=Purpose.REPLAY), a_run(2.0, 1000, purpose=Purpose.CONFIRM))
    assert trial.evidence == ((42, 1.0), (1000, 2.0))


def test_a_run_that_comes_later_changes_what_its_trial_scored() -> None:
    campaign = kept(1.0, 0.9)
    assert campaign.trials[1].val_bpb == 0.9
    assert with_run(campaign, 1, a_run(1.1, 1000)).trials[1].val_bpb == 1.0


def test_memory_is_the_largest_peak_of_a_trial() -> None:
    trial = a_trial(0, a_run(1.0, memory_gb=2.0), a_run(1.0, memory_gb=3.0), a_run(1.0, memory_gb=None))
    assert trial.memory_gb == 3.0
    assert a_trial(0, a_run(1.0, memory_gb=None)).memory_gb is None


def test_a_sealed_campaign_has_no_score_of_the_holdout() -> None:
    campaign = with_run(kept(1.0, 0.9), 1, a_run(0.9, 1000, holdout=Score(0.8, 1.0, 1, 1)))
    assert any(run.holdout for trial in campaign.trials for run in trial.runs)
    sealed = campaign.sealed
    assert not any(run.holdout for trial in sealed.trials for run in trial.runs)
    assert [trial.scores for trial in sealed.trials] == [trial.scores for trial in campaign.trials]
