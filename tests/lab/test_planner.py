from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from autoresearch.lab.sizing import planner
from autoresearch.lab.sizing.planner import Goal, Measurement, Plan, Row, Setting


@dataclass(frozen=True)
class Machine:
    """A made-up machine with a lab on it, calibrated by what is published of such ones.

    `rate` is the FLOP/s that training gets out of it, `overhead` the seconds that any pass takes besides.
    """

    rate: float
    overhead: float
    optimizer_seconds: float
    memory_gb: float
    vocabulary: int
    context: int
    start: Setting
    budget_seconds: float = 300.0
    evaluation: int = 1  # tokens that the lab has: none

    @property
    def goal(self) -> Goal:
        return Goal(self.context, self.budget_seconds, self.start, self.evaluation)

    def measure(self, setting: Setting) -> Row:
        """What the shipped model would need: 42 bytes of memory for each token, layer and channel, as on the H100."""
        depth, width = setting.depth, math.ceil(setting.depth * 64 / 128) * 128
        blocks, table = 12 * depth * width**2, self.vocabulary * width
        flops = 6 * (blocks + table) + 12 * width * depth * self.context
        tokens = setting.rows * self.context
        memory = 500 + tokens * (42 * depth * width + 8 * self.vocabulary) / 2**20
        if memory > 1024 * self.memory_gb:
            return Row(setting, None, "out of memory")
        found = Measurement(
            tokens=tokens,
            parameters=blocks + (2 + math.ceil(depth / 2)) * table,
            pass_seconds=tokens * flops / self.rate + self.overhead,
            optimizer_seconds=self.optimizer_seconds,
            memory_mb=memory,
            free_mb=1024 * self.memory_gb,
            evaluation_seconds=0.3 * tokens * flops / self.rate if setting.evaluate else None,
        )
        return Row(setting, found)


H100 = Machine(390e12, 0.002, 0.005, 79, 8192, 2048, Setting(8, 128))
RTX_4090 = Machine(70e12, 0.003, 0.006, 23.5, 8192, 2048, Setting(5, 16))
RTX_3060 = Machine(15e12, 0.004, 0.010, 11.5, 4096, 512, Setting(4, 16))
MAC = Machine(2e12, 0.02, 0.03, 16, 4096, 512, Setting(4, 16))
LAPTOP = Machine(0.4e12, 0.01, 0.05, 6, 2048, 256, Setting(4, 16), 60)
MACHINES = [H100, RTX_4090, RTX_3060, MAC, LAPTOP]
NAMES = ["h100", "rtx-4090", "rtx-3060", "mac", "laptop"]


def search(machine: Machine, most: int = 30) -> tuple[list[Row], Plan]:
    """Measure whatever is asked for next, until nothing is or there was enough."""
    table: list[Row] = []
    while len(table) < most and (setting := planner.next_setting(table, machine.goal)):
        table.append(machine.measure(setting))
    return table, planner.chosen(planner.measured(table), machine.goal)


def run(machine: Machine) -> Plan:
    return search(machine)[1]


@pytest.mark.parametrize("machine", MACHINES, ids=NAMES)
def test_every_machine_gets_about_a_thousand_steps_in_what_it_has(machine: Machine) -> None:
    table, plan = search(machine)
    assert len(table) <= 12
    assert 500 <= plan.steps <= 2000
    assert plan.batch_tokens == plan.passes * plan.rows * machine.context
    assert plan.batch_tokens == 2 ** round(math.log2(plan.batch_tokens))
    assert plan.memory_mb <= 0.8 * 1024 * machine.memory_gb
    assert plan.evaluation_measured
    assert plan.evaluation_seconds <= 0.08 * machine.budget_seconds
    assert plan.evaluation_tokens >= 2**16


@pytest.mark.parametrize("machine", MACHINES, ids=NAMES)
def test_two_layers_less_would_have_too_many_tokens_and_two_more_too_few(machine: Machine) -> None:
    plan = run(machine)

    def ratio(depth: int) -> float:
        setting = Setting(depth, plan.rows)
        return planner.plan_of(setting, found(machine, setting), machine.goal).tokens_per_parameter

    assert ratio(plan.depth + 2) < planner.TOKENS_PER_PARAMETER
    assert plan.depth == planner.SHALLOWEST or ratio(max(1, plan.depth - 2)) > planner.TOKENS_PER_PARAMETER


def found(machine: Machine, setting: Setting) -> Measurement:
    measured = machine.measure(setting).found
    assert measured is not None
    return measured


@pytest.mark.parametrize("depth", [8, 9])
def test_an_h100_gets_or_keeps_the_depth_and_batch_that_did_best_on_one(depth: int) -> None:
    plan = run(replace(H100, start=Setting(depth, 128)))
    assert (plan.depth, plan.batch_tokens, plan.evaluation_tokens) == (9, 2**18, 40 * 524288)


def test_two_cores_get_no_larger_batch_than_a_thousand_steps_allow() -> None:
    """The best one known there: 2^12 for a minute."""
    assert run(LAPTOP).batch_tokens == 2**12
    assert run(replace(LAPTOP, budget_seconds=300)).batch_tokens <= 2**14


def test_a_faster_machine_gets_a_deeper_model_and_more_tokens() -> None:
    plans = [run(machine) for machine in (LAPTOP, MAC, RTX_3060, RTX_4090, H100)]
    assert [plan.depth for plan in plans] == sorted(plan.depth for plan in plans)
    assert [plan.tokens for plan in plans] == sorted(plan.tokens for plan in plans)


@pytest.mark.parametrize("start", [Setting(2, 1), Setting(16, 128), Setting(8, 128)])
def test_the_plan_hardly_depends_on_the_sizes_that_the_lab_had(start: Setting) -> None:
    plan = run(replace(RTX_4090, start=start))
    assert abs(plan.depth - run(RTX_4090).depth) <= 1
    assert plan.tokens > 0.8 * run(RTX_4090).tokens


def test_where_memory_runs_out_a_quarter_of_the_rows_is_tried_and_then_half_the_depth() -> None:
    small = replace(H100, memory_gb=7)
    table, plan = search(small)
    assert [row.problem for row in table[:2]] == ["out of memory"] * 2
    assert [row.setting.rows for row in table[:3]] == [128, 32, 8]
    assert plan.memory_mb <= 0.8 * 7 * 1024
    failed = [Row(Setting(8, 1), None, "out of memory"), Row(Setting(2, 1), None, "out of memory")]
    assert planner.next_setting(failed[:1], small.goal) == Setting(4, 1)
    assert planner.next_setting(failed, small.goal) is None


def test_a_depth_that_was_not_ready_in_time_is_left_out_and_fewer_rows_are_not_tried() -> None:
    late = Row(Setting(9, 128), None, f"{planner.NOT_READY} in 60 s")
    table = [H100.measure(Setting(8, 128)), late]
    while (setting := planner.next_setting(table, H100.goal)) and len(table) < 12:
        assert setting.depth == 8
        table.append(H100.measure(setting))
    assert planner.chosen(planner.measured(table), H100.goal).depth == 8
    assert planner.next_setting([late], H100.goal) is None


def test_a_depth_that_is_slow_once_it_is_ready_is_tried_with_half_the_rows() -> None:
    table = [H100.measure(Setting(8, 128)), Row(Setting(9, 128), None, "not done in 60 s")]
    assert planner.next_setting(table, H100.goal) == Setting(9, 64)


def test_slow_optimizers_do_not_drive_a_slow_machine_to_ever_smaller_batches() -> None:
    busy = replace(LAPTOP, rate=0.05e12, overhead=0.08, optimizer_seconds=0.1)  # as measured beside other work
    plan = run(busy)
    assert plan.steps < 300
    assert plan.tokens > 0.5 * busy.budget_seconds * speed(busy, plan)


def speed(machine: Machine, plan: Plan) -> float:
    """Tokens a second without the optimizers."""
    measured = found(machine, Setting(plan.depth, plan.rows))
    return measured.tokens / measured.pass_seconds


def test_the_batch_grows_with_the_tokens_as_its_power_law_says() -> None:
    assert planner.best_batch(499.6e6) == 2**18
    assert math.isclose(planner.best_batch(2 * 499.6e6) / 2**18, 2**0.383)
    one = Setting(8, 1)
    hours = replace(H100, budget_seconds=12 * 3600)
    plan = planner.plan_of(one, found(hours, one), hours.goal)
    assert 1 / 2 < plan.batch_tokens / (math.sqrt(2) * planner.best_batch(plan.tokens)) <= 1


def test_where_evaluation_fails_the_rows_stay_and_its_time_is_estimated() -> None:
    """The grader halves its batch by itself where memory is short."""
    table, plan = search(RTX_4090)
    table[-1] = Row(table[-1].setting, None, "out of memory")
    assert planner.next_setting(table, RTX_4090.goal) is None
    assert planner.chosen(planner.measured(table), RTX_4090.goal).rows == plan.rows


@pytest.mark.parametrize("hours", [2, 12])
@pytest.mark.parametrize("machine", MACHINES, ids=NAMES)
def test_however_long_the_budget_a_score_takes_a_minute_at_most(machine: Machine, hours: int) -> None:
    assert run(replace(machine, budget_seconds=hours * 3600)).evaluation_seconds <= 60


def test_a_score_is_of_one_row_at_least() -> None:
    setting = Setting(2, 1)
    few = replace(found(LAPTOP, setting), validation_tokens=5_000)
    assert planner.evaluation_tokens(few, replace(LAPTOP, context=8192).goal)[0] == 8192


@pytest.mark.parametrize(("share", "kept"), [(0.4, False), (0.5, True), (0.75, True), (2, True), (2.5, False)])
def test_evaluation_tokens_within_a_factor_of_two_stay_as_they_are(share: float, kept: bool) -> None:
    measured = found(MAC, Setting(3, 64))
    best, seconds = planner.evaluation_tokens(measured, MAC.goal)
    old = int(share * best)
    tokens = old if kept else best
    found_again = planner.evaluation_tokens(measured, replace(MAC, evaluation=old).goal)
    assert found_again == (tokens, pytest.approx(seconds * tokens / best))
    there_is_less = replace(measured, validation_tokens=best)
    assert planner.evaluation_tokens(there_is_less, replace(MAC, evaluation=2 * best).goal)[0] == best


def test_no_more_is_evaluated_than_there_is_and_where_it_is_not_measured_it_is_estimated() -> None:
    setting = Setting(3, 64)
    plain = found(MAC, setting)
    small = planner.plan_of(setting, replace(plain, validation_tokens=400_000), MAC.goal)
    estimated = planner.plan_of(setting, plain, MAC.goal)
    assert small.evaluation_tokens == 2**18
    assert not estimated.evaluation_measured
    assert 2**16 <= estimated.evaluation_tokens <= run(MAC).evaluation_tokens


SETTINGS: list[Callable[[Machine], Machine]] = [
    lambda machine: replace(machine, budget_seconds=20),
    lambda machine: replace(machine, budget_seconds=3600),
    lambda machine: replace(machine, context=768),
    lambda machine: replace(machine, memory_gb=machine.memory_gb / 4),
]


@pytest.mark.parametrize("machine", MACHINES, ids=NAMES)
@pytest.mark.parametrize("change", SETTINGS, ids=["20 s", "an hour", "context 768", "a quarter of the memory"])
def test_the_search_ends_with_a_plan_whatever_the_lab(machine: Machine, change: Callable[[Machine], Machine]) -> None:
    changed = change(machine)
    table, plan = search(changed)
    assert len(table) <= 16
    assert plan.memory_mb <= 0.8 * 1024 * changed.memory_gb
    assert planner.SHALLOWEST <= plan.depth <= planner.DEEPEST
