"""Decides a lab's sizes from measurements of its machine: numbers in, the next measurement or a plan out.

A plan is never extrapolated: power laws only choose what to measure next, and a plan is made from measurements. Figures
cited as the reference are those of the published runs on one H100, five minutes each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

# The reference has 499.6 M tokens for 50.3 M parameters, 10 per parameter. It gained from one more layer, 81 M
# parameters with 3 to 6 tokens each. So a run this short wants fewer than the 20 that Chinchilla (arXiv 2203.15556)
# found best.
TOKENS_PER_PARAMETER = 5.0
# The reference did best with 2^18 tokens per step. The best batch grows with tokens^0.383.
REFERENCE_BATCH, REFERENCE_TOKENS, BATCH_EXPONENT = 2**18, 499.6e6, 0.383
# Optimizer steps of a run. The reference has 953 and did better with twice as many. On two cores, a one-minute run of
# four layers of 128 did better with 2^12 tokens per step (val_bpb 1.17 to 1.22) than with 2^13 and half the steps
# (1.37).
LEAST_STEPS = 900
SHALLOWEST, DEEPEST = 2, 32
MOST_DEPTHS = 4  # depths that are measured
LONGEST_LEAP = 2  # a depth is at most this many times as deep as the nearest measured one
RATIO_EXPONENT = -5.0  # width grows with depth: parameters and seconds per token both grow with about depth^2.5
MEMORY_SHARE = 0.8  # of the free memory, at most: the rest is for what a researcher adds
NEARLY = 0.97  # this share of the best speed is just as good: then take fewer rows, which need less memory
EVALUATION_SHARE = 0.08  # maximum share of the budget for scoring; a power of two takes half of that or more
EVALUATION_SECONDS = 60.0  # maximum for scoring: validation and holdout are scored within allowance_seconds, 300
GRADING_COST = 1.2  # scoring from outside the run, relative to scoring inside it
NOT_READY = "not ready"  # how a row's problem begins if its time ran out before anything could be timed
LEAST_EVALUATION, MOST_EVALUATION = 2**16, 40 * 2**19  # tokens; the maximum is the reference's


@dataclass(frozen=True)
class Setting:
    """What is measured: layers, rows per forward and backward pass, and whether evaluation is timed too."""

    depth: int
    rows: int
    evaluate: bool = False


@dataclass(frozen=True)
class Measurement:
    """What a setting needs. Seconds are medians, memory is in MiB."""

    tokens: int  # of one device batch
    parameters: int
    pass_seconds: float  # forward and backward pass of one device batch
    optimizer_seconds: float
    memory_mb: float
    free_mb: float
    validation_tokens: int | None = None  # None: the data is not prepared yet
    evaluation_seconds: float | None = None  # of one device batch; None: not measured


@dataclass(frozen=True)
class Row:
    """A line of the table: a setting with what was measured, or with the problem; and how long it took."""

    setting: Setting
    found: Measurement | None
    problem: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Goal:
    """What the sizes are for: the lab's context and budget, and its current sizes."""

    context: int
    budget_seconds: float
    start: Setting
    evaluation_tokens: int


@dataclass(frozen=True)
class Plan:
    """The sizes for a machine, and what a run with them amounts to."""

    depth: int
    rows: int
    passes: int  # forward and backward passes of that many rows per optimizer step
    batch_tokens: int  # of all of them
    evaluation_tokens: int
    steps: int
    tokens: int
    parameters: int
    memory_mb: float
    evaluation_seconds: float
    evaluation_measured: bool

    @property
    def tokens_per_parameter(self) -> float:
        return self.tokens / self.parameters


# ---------------------------------------------------------------- what to measure next


def next_setting(table: Sequence[Row], goal: Goal) -> Setting | None:
    """The setting whose measurement would help most; None if the plan needs no more."""
    if not table:
        return goal.start
    found = measured(table)
    slow = {row.setting.depth for row in table if row.problem.startswith(NOT_READY)}
    if not found:  # fewer rows compile no faster
        return None if slow else _smaller(table[-1].setting)
    depths = {row.setting.depth for row in table}
    best = chosen(found, goal)
    wide = Setting(best.depth, 4 * best.rows)
    hardly_used = best.passes >= 4 and 4 * best.memory_mb <= _most_memory(best, found)
    if hardly_used and len(depths) == 1 and wide not in {row.setting for row in table}:
        return wide  # first, because a device that is hardly used would seem too slow for more depth
    depth = wanted_depth(found, goal)
    tried = {row.setting.rows for row in table if row.setting.depth == depth}
    if depth not in {setting.depth for setting in found} | slow:
        rows = min(tried) // 2 if tried else best.rows
        if rows and (tried or len(depths) < MOST_DEPTHS):
            return Setting(depth, rows)
    tried = {row.setting.rows for row in table if row.setting.depth == best.depth}
    for rows in _neighbors(best, found):
        if rows not in tried:
            return Setting(best.depth, rows)
    scored = any(row.setting == Setting(best.depth, best.rows, evaluate=True) for row in table)
    return None if scored else Setting(best.depth, best.rows, evaluate=True)


def _smaller(failed: Setting) -> Setting | None:
    """What may fit if nothing has yet: a quarter of the rows, then half the depth."""
    if failed.rows > 1:
        return Setting(failed.depth, max(1, failed.rows // 4))
    return Setting(failed.depth // 2, 1) if failed.depth >= 2 * SHALLOWEST else None


def _neighbors(best: Plan, found: Mapping[Setting, Measurement]) -> Iterable[int]:
    """Twice the rows, if a step has them and the memory allows it, and half."""
    if best.passes > 1 and 2 * best.memory_mb <= _most_memory(best, found):
        yield 2 * best.rows
    if best.rows > 1:
        yield best.rows // 2


def _most_memory(best: Plan, found: Mapping[Setting, Measurement]) -> float:
    """MiB that a plan may need."""
    return MEMORY_SHARE * found[Setting(best.depth, best.rows)].free_mb


def measured(table: Iterable[Row]) -> dict[Setting, Measurement]:
    """What was measured, by setting without `evaluate`. A later one, with evaluation, replaces an earlier one."""
    return {Setting(row.setting.depth, row.setting.rows): row.found for row in table if row.found}


# ---------------------------------------------------------------- depth


def wanted_depth(found: Mapping[Setting, Measurement], goal: Goal) -> int:
    """The depth at which the budget should hold TOKENS_PER_PARAMETER, by a power law through the measurements."""
    ratios = ratios_by_depth(found, goal)
    near = sorted(ratios, key=lambda depth: _distance(ratios[depth]))[:2]
    exponent = RATIO_EXPONENT
    if len(near) == 2:
        exponent = min(-1.0, math.log(ratios[near[0]] / ratios[near[1]]) / math.log(near[0] / near[1]))
    leap = (TOKENS_PER_PARAMETER / ratios[near[0]]) ** (1 / exponent)
    depth = round(near[0] * float(min(max(leap, 1 / LONGEST_LEAP), LONGEST_LEAP)))
    return min(max(depth, SHALLOWEST), DEEPEST)


def ratios_by_depth(found: Mapping[Setting, Measurement], goal: Goal) -> dict[int, float]:
    """Tokens in the budget per parameter, by depth, at its fastest."""
    ratios: dict[int, float] = {}
    for setting in found:
        plan = plan_of(setting, found[setting], goal)
        ratios[setting.depth] = max(ratios.get(setting.depth, 0.0), plan.tokens_per_parameter)
    return ratios


def _distance(ratio: float) -> float:
    return abs(math.log(ratio / TOKENS_PER_PARAMETER))


# ---------------------------------------------------------------- plans


def chosen(found: Mapping[Setting, Measurement], goal: Goal) -> Plan:
    """The best measured plan: the depth nearest the wanted ratio, and the batch that is worth most there.

    Of batches that are about equally good, the one with the fewest rows, since a researcher's ideas can use the memory
    it leaves free. One that fills the memory is taken only if there is no other.
    """
    ratios = ratios_by_depth(found, goal)
    depth = min(ratios, key=lambda each: _distance(ratios[each]))
    plans = {setting: plan_of(setting, found[setting], goal) for setting in found if setting.depth == depth}
    fitting = [plan for s, plan in plans.items() if plan.memory_mb <= MEMORY_SHARE * found[s].free_mb]
    if not fitting:
        return min(plans.values(), key=lambda plan: plan.rows)
    most = max(worth(plan) for plan in fitting)
    return min((plan for plan in fitting if worth(plan) >= NEARLY * most), key=lambda plan: plan.rows)


def worth(plan: Plan) -> float:
    """The tokens of a plan, reduced in proportion if it has fewer than LEAST_STEPS.

    So a slow machine gets smaller batches, but never so small that its optimizers take more time than they are worth.
    """
    return plan.tokens * min(1.0, plan.steps / LEAST_STEPS)


def plan_of(setting: Setting, found: Measurement, goal: Goal) -> Plan:
    """The plan of one setting that is worth most, with a batch of at most the best one, rounded to a power of two."""
    best = _plan(setting, found, goal, 1)
    for exponent in range(1, 32):
        plan = _plan(setting, found, goal, 2**exponent)
        if plan.batch_tokens > math.sqrt(2) * best_batch(plan.tokens):
            break
        best = max(best, plan, key=worth)
    return best


def _plan(setting: Setting, found: Measurement, goal: Goal, passes: int) -> Plan:
    steps = math.ceil(goal.budget_seconds / (passes * found.pass_seconds + found.optimizer_seconds))
    evaluation, seconds = evaluation_tokens(found, goal)
    return Plan(
        depth=setting.depth,
        rows=setting.rows,
        passes=passes,
        batch_tokens=passes * found.tokens,
        evaluation_tokens=evaluation,
        steps=steps,  # including the last one, which runs over
        tokens=steps * passes * found.tokens,
        parameters=found.parameters,
        memory_mb=found.memory_mb,
        evaluation_seconds=seconds,
        evaluation_measured=found.evaluation_seconds is not None,
    )


def best_batch(tokens: float) -> float:
    """Tokens of the best optimizer step for a run of `tokens` tokens, from the reference's best and its power law."""
    return float(REFERENCE_BATCH * (tokens / REFERENCE_TOKENS) ** BATCH_EXPONENT)


def evaluation_tokens(found: Measurement, goal: Goal) -> tuple[int, float]:
    """Validation tokens for a score, a power of two or the reference's number, and the seconds they take.

    If evaluation was not measured, it counts as half of a forward and backward pass, which is more than its share. The
    lab's current value stays if it is within a factor of two: scores over different numbers of tokens cannot be
    compared.
    """
    seconds = GRADING_COST * (found.evaluation_seconds or found.pass_seconds / 2) / found.tokens  # per token
    most = min(EVALUATION_SHARE * goal.budget_seconds, EVALUATION_SECONDS) / seconds
    there = math.inf if found.validation_tokens is None else found.validation_tokens
    tokens = MOST_EVALUATION if most >= MOST_EVALUATION else max(LEAST_EVALUATION, power_of_two(most))
    tokens = max(goal.context, tokens if tokens <= there else power_of_two(there))
    if tokens / 2 <= goal.evaluation_tokens <= min(2 * tokens, there):
        tokens = goal.evaluation_tokens
    return tokens, tokens * seconds


def power_of_two(most: float) -> int:
    """The largest power of two that is at most a given number of at least 1."""
    return 1 << int(math.log2(most))
