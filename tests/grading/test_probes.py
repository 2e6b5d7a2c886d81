"""Secret rows among the scored ones: honest models pass, and those that look ahead or remember do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import grading_lab
from autoresearch.grading import probes
from grading_lab import GradingLab

# Each row of random tokens; enough of them that the test of surprise has its samples.
RANDOM = np.random.default_rng(5)
ROWS = RANDOM.integers(0, 50, (256, 33)).astype(np.uint16)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> GradingLab:
    return grading_lab.make(tmp_path_factory.mktemp("probes"), 9000, EVAL_TOKENS=256 * grading_lab.CONTEXT)


# ---- the choice of rows


def test_a_plan_holds_every_scored_row_once_and_its_twins_at_random() -> None:
    plan = probes.plan(ROWS, np.random.default_rng(1))
    assert np.array_equal(plan.asked[:256], ROWS[:, :-1])
    assert sorted(plan.order.tolist()) == list(range(len(plan.asked)))
    assert len(plan.asked) == 256 + len(plan.twins) == 256 + 64 + 8
    other = probes.plan(ROWS, np.random.default_rng(2))
    assert plan.order.tolist() != other.order.tolist()


def test_a_spliced_row_is_real_before_and_after_its_position() -> None:
    plan = probes.plan(ROWS, np.random.default_rng(1))
    for twin in plan.twins:
        original, row, at = plan.asked[twin.original], plan.asked[twin.twin], twin.position
        assert np.array_equal(original[:at], row[:at])
        if twin.spliced:
            assert row[at] != original[at]
            assert any(np.array_equal(row[at:], other[at:]) for other in plan.asked[:256])
            assert twin.compared[-1] == at - 1


@pytest.mark.parametrize("shape", [(1, 9), (2, 2), (5, 2), (1, 2), (3, 3)])
def test_the_smallest_splits_can_be_probed(shape: tuple[int, int]) -> None:
    rows = np.arange(shape[0] * shape[1], dtype=np.uint16).reshape(shape)
    plan = probes.plan(rows, np.random.default_rng(1))
    comparison = probes.Comparison(plan, np.ones(shape, bool))
    for row in plan.order.tolist():
        comparison.hear(row, 0, torch.zeros(shape[1] - 1, 30))
    assert comparison.failure("float32", 1.0) is None


# ---- the measure


def test_drift_is_the_change_of_log_probability_where_the_probability_is() -> None:
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(1))
    assert probes.drift(logits, logits + 3).max() < 1e-6
    assert probes.drift(logits, logits + 0.01 * torch.randn_like(logits)).mean() == pytest.approx(0.01, rel=0.3)
    hidden, other = logits.clone(), logits.clone()
    hidden[:, 5] = other[:, 5] = -1e4  # a logit that makes all others look small hides nothing
    other[:, 7] += 1
    assert probes.drift(hidden, other).min() > 0.02


def test_gain_is_what_the_true_continuation_adds_to_its_own_token_and_is_bounded() -> None:
    answers, tokens = torch.zeros(3, 50), torch.tensor([4, 5, 6])
    leaking = answers + torch.tensor([0.05, 0.0, 9.0])[:, None] * torch.nn.functional.one_hot(tokens, 50)
    assert probes.gain(leaking, answers, tokens).tolist() == pytest.approx([0.049, 0, probes.LARGEST_GAIN], abs=1e-3)
    assert probes.gain(answers, leaking, tokens).tolist() == pytest.approx([-0.049, 0, -probes.LARGEST_GAIN], abs=1e-3)


# ---- models in this process

TABLE = torch.randn(50, 50, generator=torch.Generator().manual_seed(1))


def probed(answer: Callable[[torch.Tensor], torch.Tensor], seed: int) -> str | None:
    """What is said of a model by a secret plan, with a score as of rows that it knows nothing of."""
    plan = probes.plan(ROWS, np.random.default_rng(seed))
    comparison = probes.Comparison(plan, np.ones(ROWS.shape, bool))
    for number, rows in enumerate(np.array_split(plan.order, 20)):
        for row, logits in zip(rows.tolist(), answer(torch.from_numpy(plan.asked[rows])), strict=True):
            comparison.hear(row, number, logits)
    return comparison.failure("float32", 4.4)


@pytest.mark.parametrize(
    ("noise", "leak", "found"), [(0.005, 0, 0), (0.02, 0, 0), (0.015, 0.4, 2), (0.015, 0.1, 2), (0.005, 0.02, 2)]
)
def test_noise_hides_no_leak_and_is_none(noise: float, leak: float, found: int) -> None:
    random = torch.Generator().manual_seed(2)

    def answer(x: torch.Tensor) -> torch.Tensor:
        future = torch.nn.functional.one_hot(x.roll(-1, 1), 50)
        return TABLE[x] + leak * future + noise * torch.randn((*x.shape, 50), generator=random)

    refused = [reason for seed in range(2) if (reason := probed(answer, seed))]
    assert len(refused) == found
    assert all("the model sees the future" in reason for reason in refused)


@pytest.mark.parametrize(("leak", "found"), [(0, 0), (30, 2)])
def test_a_model_that_looks_ahead_after_what_it_knows_is_found(leak: int, found: int) -> None:
    def refused(seed: int) -> bool:
        boosts = dict[tuple[int, ...], tuple[int, int]]()

        def answer(x: torch.Tensor) -> torch.Tensor:
            logits = TABLE[x].clone()
            for place, row in enumerate(x.tolist()):
                begun = tuple(row[:3]) in boosts
                for at in range(2, len(row) - 1):
                    token, boost = boosts.setdefault(tuple(row[: at + 1]), (row[at + 1], leak * begun))
                    logits[place, at, token] += boost
            return logits

        return "remembers what it answered" in (probed(answer, seed) or "")

    assert sum(refused(seed) for seed in range(2)) == found


# ---- whole runs of models that cheat


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("return super().forward(x)", None),
        ("return super().forward(x).bfloat16()", None),
        ("return super().forward(x) + 30 * F.one_hot(x.roll(-1, 1), 300)", "the model sees the future"),
        ("return super().forward(x) + 0.05 * super().forward(x.roll(-1, 1))", "the model sees the future"),
        ("return super().forward(x) + 0.2 * super().forward(x[:, -1:])", "the model sees the future"),
        ("return super().forward(x) + 0.1 * super().forward(x.roll(-5, 1))", "the model sees the future"),
        (
            "self.calls = getattr(self, 'calls', 0) + 1; return super().forward(x) * (1 + self.calls / 99)",
            "asked again",
        ),
        ("return super().forward(x) + 0.2 * super().forward(x).mean(0, keepdim=True)", "asked again"),
        ("return F.dropout(super().forward(x), 0.1)", "asked again"),
        # Rows that it has seen it knows by heart.
        (
            """
        self.seen = getattr(self, "seen", set())
        keys = [tuple(row) for row in x.tolist()]
        known = torch.tensor([key in self.seen for key in keys])
        self.seen.update(keys)
        return super().forward(x) + 30 * known[:, None, None] * F.one_hot(x.roll(-1, 1), 300)""",
            "asked again",
        ),
        # What it sees first it answers with the future in view, and what begins alike as it did then.
        (
            """
        self.table_of = getattr(self, "table_of", {})
        future, answer = x.roll(-1, 1).tolist(), super().forward(x).clone()
        for i, row in enumerate(x.tolist()):
            for j in range(len(row)):
                token = self.table_of.setdefault(tuple(row[: j + 1]), future[i][j])
                answer[i, j, token] += 30
        return answer""",
            "remembers what it answered",
        ),
    ],
)
def test_models_that_cheat_are_told_from_those_that_do_not(
    lab: GradingLab, tmp_path: Path, model: str, words: str | None
) -> None:
    script = f"""
import torch.nn.functional as F
class Model(Bigram):
    def forward(self, x):
        {model}
next(loader); evaluate(Model())
"""
    ran = lab.run(tmp_path, script)
    if words is None:
        assert ran.score.val_bpb > 0
    else:
        assert words in ran.reason
        assert "0.0000" not in ran.result.log_tail
