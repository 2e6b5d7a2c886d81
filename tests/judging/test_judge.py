"""The judge's verdicts, and what must hold of them whatever the numbers are."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoresearch.judging import judge
from autoresearch.judging.judge import GreedyJudge, believed, measured, noise_of, observed, scored
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import RunEnded
from autoresearch.ledger.records import Crash, CrashKind, Decision, Outcome, Purpose, Status, Wanted
from judged import a_campaign, a_run, a_trial, confirmed_by, decided, kept, posterior_judge, with_run, with_trials

JUDGE = posterior_judge()
SCORES = st.floats(0.95, 1.05)
RUNS = st.lists(SCORES, min_size=1, max_size=4)


@st.composite
def campaigns(draw: st.DrawFn) -> Campaign:
    """A baseline of one to four runs and up to eight trials of one to three, judged as in production."""
    campaign = a_campaign(a_trial(0, *draw(RUNS), status=Status.KEEP))
    for number, runs in enumerate(draw(st.lists(st.lists(SCORES, min_size=1, max_size=3), max_size=8)), start=1):
        campaign = with_trials(campaign, [judged(campaign, candidate(campaign, number, *runs))])
    return campaign


def candidate(campaign: Campaign, number: int, *runs: RunEnded | float | None) -> Trial:
    assert campaign.incumbent
    return a_trial(number, *runs, parent=campaign.incumbent.number)


def judged(campaign: Campaign, trial: Trial) -> Trial:
    return decided(trial, JUDGE.decide(campaign, trial))


def decide(campaign: Campaign, *runs: RunEnded | float | None, **terms: object) -> Decision:
    return posterior_judge(**terms).decide(campaign, candidate(campaign, len(campaign.trials), *runs))


# ---------------------------------------------------------------- greedy


@pytest.mark.parametrize(
    ("score", "status"),
    [(1.0, Status.KEEP), (1.999999, Status.KEEP), (2.0, Status.DISCARD), (2.1, Status.DISCARD), (None, Status.CRASH)],
)
def test_the_greedy_judge_keeps_only_a_lower_val_bpb(score: float | None, status: Status) -> None:
    campaign = a_campaign(a_trial(0, 2.0, status=Status.KEEP))
    assert GreedyJudge().decide(campaign, a_trial(1, score)).status is status


def test_the_greedy_judge_keeps_the_baseline_unless_it_crashed_and_never_confirms() -> None:
    assert GreedyJudge().decide(a_campaign(), a_trial(0, 9.0)).status is Status.KEEP
    decision = GreedyJudge().decide(a_campaign(), a_trial(0, None))
    assert (decision.status, decision.reason) == (Status.CRASH, "time-out: too slow")
    assert GreedyJudge().confirmation(kept(1.0, 0.9), asked=True) is None


# ---------------------------------------------------------------- the baseline


def baseline_runs(scores: list[float | None], **terms: object) -> tuple[int, Decision]:
    """How many runs the baseline gets, and what becomes of it."""
    judge, trial = posterior_judge(**terms), a_trial(0)
    while (decision := judge.decide(a_campaign(), trial)).rerun:
        trial = a_trial(0, *scores[: len(trial.runs) + 1])
    return len(trial.runs), decision


def test_the_baseline_runs_on_three_seeds_and_no_more() -> None:
    runs, decision = baseline_runs([1.0, 1.001, 0.999, 5.0])
    assert (runs, decision.status) == (3, Status.KEEP)
    assert "by 3 seeds" in decision.reason
    assert baseline_runs([1.0, 1.001], baseline_seeds=1)[0] == 1


def test_a_baseline_that_crashed_is_not_run_on_but_one_score_is_enough_to_begin() -> None:
    assert baseline_runs([None, 1.0, 1.0])[1].status is Status.CRASH
    runs, decision = baseline_runs([1.0, None, 1.0])
    assert (runs, decision.status) == (2, Status.KEEP)
    assert decision.reason.endswith("by 1 seed")


def test_an_invalid_baseline_is_invalid_and_one_void_run_of_it_is_left_out() -> None:
    void = a_run(1.0, 43, invalid="it trained for too long")
    assert JUDGE.decide(a_campaign(), a_trial(0, void)).status is Status.INVALID
    decision = JUDGE.decide(a_campaign(), a_trial(0, 1.0, void))
    assert (decision.status, decision.rerun) == (Status.KEEP, False)


# ---------------------------------------------------------------- verdicts


def test_a_clear_gain_is_kept_and_a_clear_loss_is_not() -> None:
    campaign = kept(1.0)
    better, worse = decide(campaign, 0.99), decide(campaign, 1.01)
    assert (better.status, worse.status) == (Status.KEEP, Status.DISCARD)
    assert better.estimate
    assert better.estimate.probability > 0.99 > 0.01 > worse.estimate.probability  # type: ignore[union-attr]
    assert better.reason.startswith("kept, provisional: posterior -0.00")


def test_a_gain_is_believed_less_than_it_shows() -> None:
    estimate = decide(kept(1.0), 0.998).estimate
    assert estimate
    assert 0 < estimate.gain < 0.002


def test_a_gain_below_the_smallest_worth_keeping_is_not_kept_however_sure() -> None:
    runs = [0.999] * 30
    assert decide(kept(1.0), *runs, smallest_effect=0.0).status is Status.KEEP
    assert decide(kept(1.0), *runs, smallest_effect=0.002).status is Status.DISCARD


def test_a_higher_threshold_keeps_no_more() -> None:
    for score in (0.995, 0.997, 0.999, 1.0):
        verdicts = [decide(kept(1.0), score, advance=share).status for share in (0.5, 0.7, 0.9, 0.99)]
        assert verdicts == sorted(verdicts, key=lambda status: status is not Status.KEEP)


def test_a_close_candidate_runs_again_but_not_for_ever() -> None:
    """After proposals that all did harm, one that may be better is worth another look."""
    campaign = a_campaign(a_trial(0, *(1.0, 1.001, 0.999) * 4, status=Status.KEEP))
    campaign = with_trials(campaign, [a_trial(n, 1.002 + n * 1e-5, status=Status.DISCARD) for n in range(1, 30)])
    close = next(score for n in range(100) if decide(campaign, score := 1.0 - n * 1e-4).status is Status.KEEP) + 1e-4
    assert decide(campaign, close).rerun
    assert not decide(campaign, 1.01).rerun
    assert not decide(campaign, close, close, close).rerun
    assert not decide(campaign, close, max_runs=1).rerun


def test_a_run_without_a_score_decides_its_trial() -> None:
    memory = Crash(CrashKind.OUT_OF_MEMORY, "12 GiB")
    for run, status in (
        (a_run(None), Status.CRASH),
        (a_run(math.nan), Status.CRASH),
        (a_run(None, crash=memory), Status.CRASH),
        (a_run(None, crash=None, pruned=0.4), Status.DISCARD),
        (a_run(0.5, invalid="it looked ahead"), Status.INVALID),
    ):
        assert decide(kept(1.0), run).status is status
        assert not decide(kept(1.0), run).rerun
    assert decide(kept(1.0), 0.9, a_run(None)).status is Status.CRASH
    assert "pruned at 40 %" in decide(kept(1.0), a_run(None, crash=None, pruned=0.4)).reason


def test_growth_beyond_the_soft_limit_must_be_paid_for() -> None:
    campaign = a_campaign(a_trial(0, *(a_run(s, memory_gb=10.0) for s in (1.0, 1.001, 0.999)), status=Status.KEEP))
    terms = {"soft_memory_gb": 11.0, "memory_price": 0.01}
    for gigabytes, status in ((11.0, Status.KEEP), (11.5, Status.KEEP), (13.0, Status.DISCARD)):
        assert decide(campaign, a_run(0.985, memory_gb=gigabytes), **terms).status is status
    assert decide(campaign, a_run(0.985, memory_gb=99.0)).status is Status.KEEP
    assert decide(campaign, a_run(0.985, memory_gb=None), **terms).status is Status.KEEP


def test_an_incumbent_beyond_the_limit_does_not_pay_again() -> None:
    campaign = a_campaign(a_trial(0, *(a_run(s, memory_gb=20.0) for s in (1.0, 1.001, 0.999)), status=Status.KEEP))
    assert decide(campaign, a_run(0.99, memory_gb=20.0), soft_memory_gb=11.0).status is Status.KEEP


def test_less_code_that_is_no_worse_is_kept() -> None:
    """Where the noise is small against the smallest effect, equal scores show that nothing is lost."""
    campaign = a_campaign(a_trial(0, *(1.0, 1.0001, 0.9999) * 20, status=Status.KEEP, nodes=100))
    judge = posterior_judge(smallest_effect=0.0005)
    for nodes, score, simpler in ((90, 1.0, True), (100, 1.0, False), (110, 1.0, False), (90, 1.001, False)):
        decision = judge.decide(campaign, a_trial(1, score, nodes=nodes))
        assert (decision.status is Status.KEEP, decision.simpler) == (simpler, simpler)
    without = posterior_judge(smallest_effect=0.0005, simplicity=False)
    assert without.decide(campaign, a_trial(1, 1.0, nodes=90)).status is Status.DISCARD


# ---------------------------------------------------------------- whatever the numbers are


@settings(max_examples=60)
@given(campaigns(), st.lists(SCORES, min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_the_order_in_which_replicates_came_does_not_matter(
    campaign: Campaign, runs: list[float], draw: random.Random
) -> None:
    trial = candidate(campaign, 99, *runs)
    mixed = dataclasses.replace(trial, runs=tuple(draw.sample(trial.runs, len(runs))))
    elsewhere = tuple(
        dataclasses.replace(each, runs=tuple(draw.sample(each.runs, len(each.runs)))) for each in campaign.trials
    )
    assert JUDGE.decide(campaign, trial) == JUDGE.decide(dataclasses.replace(campaign, trials=elsewhere), mixed)


def barely_kept(campaign: Campaign, runs: list[float]) -> list[float]:
    """The runs, all moved by as much as makes them just good enough to be kept."""
    low, high = 0.0, 2.0
    for _ in range(30):
        middle = (low + high) / 2
        keep = decide(campaign, *(score - middle for score in runs)).status is Status.KEEP
        low, high = (low, middle) if keep else (middle, high)
    return [score - high - 1e-9 for score in runs]


@settings(max_examples=80)
@given(campaigns(), RUNS, st.floats(0, 0.01), st.integers(1, 3))
def test_more_evidence_of_the_same_kind_never_flips_a_keep(
    campaign: Campaign, runs: list[float], scatter: float, times: int
) -> None:
    """More runs on seeds that say nothing of their luck, about the value that the trial has shown."""
    for enough in (barely_kept(campaign, runs), [score - 0.1 for score in runs]):
        trial = candidate(campaign, len(campaign.trials), *enough)
        if JUDGE.decide(campaign, trial).status is not Status.KEEP:
            continue
        shown = observed(trial, noise_of(campaign), campaign.trials[0]).mean - 1e-9
        more = [a_run(shown + (-1) ** n * scatter, 500 + n) for n in range(2 * times)]
        assert decide(campaign, *trial.runs, *more).status is Status.KEEP


def test_a_run_on_a_seed_of_unknown_luck_does_not_make_a_trial_less_sure() -> None:
    campaign = a_campaign(a_trial(0, 1.002, 1.0, 0.998, status=Status.KEEP))
    level = dataclasses.replace(noise_of(campaign), shared=0.99)
    few, more = (
        observed(a_trial(1, *runs), level, campaign.trials[0]) for runs in ((1.0, 1.0), (1.0, 1.0, a_run(1.0, 500)))
    )
    assert more.variance < few.variance


@given(campaigns(), RUNS)
def test_a_lower_score_is_never_judged_worse(campaign: Campaign, runs: list[float]) -> None:
    if decide(campaign, *runs).status is Status.KEEP:
        assert decide(campaign, *(score - 0.001 for score in runs)).status is Status.KEEP


@given(campaigns(), RUNS)
def test_the_same_campaign_gives_the_same_verdict(campaign: Campaign, runs: list[float]) -> None:
    again = dataclasses.replace(campaign, trials=tuple(dataclasses.replace(t) for t in campaign.trials))
    assert decide(campaign, *runs) == decide(again, *runs)


ANY_RUN = st.one_of(
    st.none(),
    st.floats(0, 1e30),
    st.just(1.0),
    st.sampled_from([math.nan, math.inf]),
    st.builds(lambda score: a_run(score, invalid="it cheated"), SCORES),
    st.builds(lambda score: a_run(score, 7, purpose=Purpose.REPLAY), SCORES),
)


@settings(max_examples=150)
@given(st.lists(SCORES, min_size=1, max_size=3), st.lists(st.lists(ANY_RUN, min_size=1, max_size=3), max_size=8))
def test_any_runs_have_a_verdict_and_finite_numbers(baseline: list[float], trials: list[list[RunEnded | None]]) -> None:
    campaign = a_campaign(a_trial(0, *baseline, status=Status.KEEP))
    for number, runs in enumerate(trials, start=1):
        decision = JUDGE.decide(campaign, candidate(campaign, number, *runs))
        if decision.estimate:
            assert all(math.isfinite(value) for value in dataclasses.astuple(decision.estimate))
            assert 0 <= decision.estimate.probability <= 1
        campaign = with_trials(campaign, [decided(candidate(campaign, number, *runs), decision)])
    confirmed_by(JUDGE, campaign, lambda trial, seed: 1.0)


def test_scores_that_are_all_equal_are_no_gain() -> None:
    campaign = a_campaign(a_trial(0, 1.0, 1.0, 1.0, status=Status.KEEP))
    for number in range(1, 30):
        decision = decide(campaign, 1.0)
        assert decision.status is Status.DISCARD
        campaign = with_trials(campaign, [candidate(campaign, number, 1.0), *()])
        campaign = dataclasses.replace(campaign, trials=(*campaign.trials[:-1], decided(campaign.trials[-1], decision)))


@pytest.mark.parametrize(("baseline", "runs"), [((1.0,), (0.99, 0.991, 0.992)), ((1.0, 1.001, 0.999), (0.985,))])
def test_replicates_on_one_side_are_enough(baseline: tuple[float, ...], runs: tuple[float, ...]) -> None:
    campaign = a_campaign(a_trial(0, *baseline, status=Status.KEEP))
    assert decide(campaign, *runs).status is Status.KEEP


def test_a_program_that_broke_does_not_make_the_next_look_good() -> None:
    campaign = with_trials(kept(1.0), [a_trial(n, 1.0 + 0.0003 * n, status=Status.DISCARD) for n in range(1, 6)])
    broke = with_trials(campaign, [a_trial(6, 3.2, status=Status.DISCARD)])
    assert decide(campaign, 1.0).status is decide(broke, 1.0).status is Status.DISCARD


def test_a_candidate_may_take_its_luck_from_its_seed_only_as_far_as_seeds_are_shared() -> None:
    campaign = a_campaign(a_trial(0, 1.002, 1.0, 0.998, status=Status.KEEP))
    baseline, run = campaign.trials[0], a_trial(1, 1.001)
    level = noise_of(campaign)
    alone, paired = (observed(run, dataclasses.replace(level, shared=s), baseline) for s in (0.0, 0.5))
    assert (alone.mean, alone.variance) == (1.001, level.sigma**2)
    assert paired.mean == pytest.approx(1.001 - 0.5 * 0.002)
    assert paired.variance == pytest.approx(0.75 * level.sigma**2)
    assert observed(a_trial(1, a_run(1.001, 7)), dataclasses.replace(level, shared=0.5), baseline).mean == 1.001


# ---------------------------------------------------------------- along a campaign


def test_keeps_are_confirmed_when_there_are_enough_or_when_asked() -> None:
    campaign = kept(*(1.0 - 0.01 * n for n in range(4)))
    assert posterior_judge(confirm_every=4).confirmation(campaign, asked=False) is None
    assert posterior_judge(confirm_every=3).confirmation(campaign, asked=False)
    assert posterior_judge(confirm_every=4).confirmation(campaign, asked=True)
    assert posterior_judge().confirmation(kept(1.0), asked=True) is None


def test_a_confirmation_asks_for_every_run_of_its_look_once_and_then_waits_for_them() -> None:
    campaign, flying = kept(1.0, 0.9), list[Wanted]()
    while step := JUDGE.confirmation(campaign, asked=True, flying=flying):
        assert isinstance(step, Wanted)
        flying.append(step)
    assert flying == [Wanted(0, 1000), Wanted(1, 1000), Wanted(0, 1001), Wanted(1, 1001)]


def test_a_trial_that_was_made_on_an_older_version_is_compared_with_the_incumbent() -> None:
    """Far better than that, it takes its place; only better than its parent, its change is carried over."""
    campaign = kept(1.0, 0.9)
    far, between, worse = (a_trial(2, value, parent=0) for value in (0.7, 0.95, 1.1))
    assert JUDGE.decide(campaign, far).status is Status.KEEP
    carried = JUDGE.decide(campaign, between)
    assert (carried.status, carried.carry) == (Status.DISCARD, True)
    assert "better than #0, which it changed: its change is carried over to #1" in carried.reason
    assert not JUDGE.decide(campaign, worse).carry
    greedy = GreedyJudge()
    assert [greedy.decide(campaign, each).status for each in (far, between)] == [Status.KEEP, Status.DISCARD]
    assert [greedy.decide(campaign, each).carry for each in (between, worse)] == [True, False]
    assert not JUDGE.decide(campaign, a_trial(2, 0.95, parent=1)).carry


def test_an_invalid_run_after_a_keep_does_not_end_the_search() -> None:
    campaign = with_run(kept(1.0, 0.9), 1, a_run(0.5, 1000, invalid="too slow", purpose=Purpose.CONFIRM))
    assert decide(campaign, 0.95).status is Status.DISCARD
    assert [trial.number for trial in scored(campaign)] == [0, 1]


def test_an_invalid_trial_is_no_evidence() -> None:
    cheat = a_trial(1, 1.0, a_run(0.1, invalid="it looked ahead"), status=Status.INVALID)
    honest = kept(1.0)
    assert scored(with_trials(honest, [cheat])) == honest.trials


def test_after_a_rewind_a_candidate_is_judged_against_where_the_search_went_back_to() -> None:
    campaign, _ = confirmed_by(JUDGE, kept(1.0, 0.9), lambda trial, seed: 1.0 + 0.1 * trial)
    assert campaign.confirmations[-1].outcome is Outcome.REFUTED
    before, after = decide(kept(1.0, 0.9), 0.97).estimate, decide(campaign, 0.97).estimate
    assert before
    assert after
    assert before.gain < 0 < after.gain
    assert believed(campaign).programs["c1"].mean > 1.0


def test_fresh_runs_of_the_incumbent_count_when_the_next_candidate_is_judged() -> None:
    lucky = kept(1.0, 0.98)
    assert decide(lucky, 0.99).status is Status.DISCARD
    known = lucky
    for n in range(8):
        known = with_run(known, 1, a_run(1.0, 1000 + n, purpose=Purpose.CONFIRM))
    assert decide(known, 0.985).status is Status.KEEP


def test_the_noise_is_that_of_all_replicates_of_the_campaign() -> None:
    campaign = with_trials(kept(1.0), [a_trial(1, 1.1, 1.101, status=Status.DISCARD)])
    assert measured(scored(campaign)).freedom == measured([campaign.trials[0]]).freedom + 1


def test_what_is_settled_changes_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(3)
    later = [a_trial(n, 1.0 + draw.gauss(0.002, 0.003), status=Status.DISCARD) for n in range(1, 100)]
    first = a_trial(0, 1.0, 1.0007, 0.9993, status=Status.KEEP)
    whole = believed(a_campaign(first, *later))
    monkeypatch.setattr(judge, "BLOCK", 30)
    settled = believed(a_campaign(first, *later))
    assert settled.programs.keys() == whole.programs.keys()
    for name, belief in settled.programs.items():
        assert belief.mean == pytest.approx(whole.programs[name].mean, abs=3e-4)
        assert belief.spread == pytest.approx(whole.programs[name].spread, rel=0.3)


def test_a_late_verdict_gives_the_same_beliefs_as_an_early_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "BLOCK", 8)
    trials = [a_trial(0, 1.0, 1.001, 0.999, status=Status.KEEP)]
    trials += [a_trial(n, 1.0 + n % 5 / 1000, status=Status.DISCARD) for n in range(1, 30)]
    early = believed(a_campaign(*trials))
    believed(a_campaign(*trials[:5], *trials[6:]))
    assert believed(a_campaign(*trials)).programs == early.programs
