"""The second examination of a keep: its statistics, and real models rebuilt in a fresh process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import sampling_lab
from autoresearch.base import variables
from autoresearch.grading import splits
from autoresearch.grading.scoring import PLACES, Answers, secret_places
from autoresearch.lab import config
from autoresearch.ledger.campaign import Trial
from autoresearch.ledger.records import Status
from autoresearch.loop.parts import compose
from autoresearch.models.examination import Examiner, difference
from sampling_lab import SamplingLab


def graded(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).exponential(3.0, PLACES).astype(np.float32)


def rounded(nats: np.ndarray, size: float, seed: int = 2) -> np.ndarray:
    return nats + np.random.default_rng(seed).normal(0, size, len(nats))


@pytest.mark.parametrize(("rows", "wanted"), [(1, None), (500, PLACES)])
def test_the_secret_places_are_counted_tokens_each_once_and_differ_between_exams(rows: int, wanted: int | None) -> None:
    counted = np.random.default_rng(3).random((rows, 64)) < 0.9
    first, second = secret_places(counted), secret_places(counted)
    assert len(first) == (wanted or counted.sum())
    assert counted[tuple(first.T)].all()
    assert first.tolist() == np.unique(first, axis=0).tolist()
    assert wanted is None or first.tolist() != second.tolist()


@pytest.mark.parametrize("size", [0.0, 1e-6, 0.003, 0.02])
def test_rounding_is_no_leak(size: float) -> None:
    assert not [seed for seed in range(300) if difference(graded(seed), rounded(graded(seed), size, seed))]


@pytest.mark.parametrize("share", [1.0, 0.1, 0.01, 0.002])
@pytest.mark.parametrize("size", [1e-6, 0.02])
def test_a_gain_of_a_fifth_of_a_percent_is_found_wherever_it_is_made(share: float, size: float) -> None:
    found = 0
    for seed in range(100):
        nats = graded(seed)
        leaking = np.random.default_rng(seed).random(PLACES) < share
        knew = np.where(leaking, np.maximum(0, nats - 0.002 * 3.0 / share), nats)  # it cannot know more than all
        found += difference(knew, rounded(nats, size, seed)) is not None
    assert found >= 95


def test_a_model_that_became_worse_for_itself_is_not_suspected_of_knowing_more() -> None:
    assert difference(graded() + 0.5, graded()) is None


def test_the_reason_has_the_numbers() -> None:
    reason = difference(graded(), graded() + 0.1)
    assert reason is not None
    assert "worse by 0.1000 nats a token over 2000 secret places" in reason


# ---------------------------------------------------------------- real models


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> SamplingLab:
    return sampling_lab.make(tmp_path_factory.mktemp("exam"))


@pytest.fixture
def examined(lab: SamplingLab, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str | None]:
    """Examine the baseline's model, as if it were a keep that answered so, with another train.py if one is given."""
    monkeypatch.setenv(variables.CACHE, str(lab.cache))
    workspace, run0 = lab.workspace, lab.run
    run0.mkdir(exist_ok=True)
    checkpoint = run0 / "checkpoint.safetensors"
    checkpoint.write_bytes((lab.folder / "checkpoint.safetensors").read_bytes())
    prepare_py = (lab.root / "prepare.py").read_text()
    data = splits.read(prepare_py)

    def examine(nats: float, edit: Callable[[str], str] = lambda text: text) -> str | None:
        rows, places = (np.arange(24, dtype=np.int32) % size for size in (len(data.val), data.context))
        workspace.answers(0, 0).write_bytes(Answers(rows, places, np.full(24, nats, np.float32)).packed())
        changed = {**workspace.files(lab.trial.proposed.commit)}
        changed["train.py"] = edit(changed["train.py"].decode()).encode()
        monkeypatch.setattr(type(workspace), "files", lambda self, commit: changed)
        settings = config.load(workspace.program)[0]
        examiner = Examiner(
            workspace,
            lambda: compose.cell(settings, lab.root),
            lambda: data,
            lambda: splits.reading(prepare_py).tokenizer,
        )
        return examiner.examine(lab.trial)

    return examine


def test_a_model_that_knew_no_more_passes(examined: Callable[..., str | None]) -> None:
    assert examined(50.0) is None


def test_one_that_knew_what_follows_does_not(examined: Callable[..., str | None]) -> None:
    assert "does not answer as it did when it was graded" in str(examined(0.0))


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda text: text.replace("def build(", "def built("), "has no attribute 'build'"),
        (lambda text: text.replace("DEPTH = 3", "DEPTH = 2"), "size mismatch"),
        (lambda text: text + "\nraise SystemExit('trained already')\n", "trained already"),
        (lambda text: text + "\nimport os; os._exit(0)\n", "no logits of the right shape"),
        (
            lambda text: text + "\nimport os; print('Traceback (most recent call last):', flush=True); os._exit(1)\n",
            "Traceback",
        ),
    ],
)
def test_what_cannot_be_rebuilt_is_not_kept_and_the_reason_is_told(
    examined: Callable[..., str | None], edit: Callable[[str], str], why: str
) -> None:
    reason = str(examined(50.0, edit))
    assert reason.startswith("its model cannot be rebuilt from its checkpoint (")
    assert why in reason
    assert "build(device, vocab_size)" in reason


def test_a_keep_without_a_checkpoint_is_not_kept(examined: Callable[..., str | None], lab: SamplingLab) -> None:
    (lab.run / "checkpoint.safetensors").unlink()
    monkey = Answers(np.zeros(1, np.int32), np.zeros(1, np.int32), np.ones(1, np.float32))
    lab.workspace.answers(0, 0).write_bytes(monkey.packed())
    assert "it left no checkpoint" in str(examined(50.0))


def test_without_answers_there_is_nothing_to_compare(lab: SamplingLab) -> None:
    lab.workspace.answers(0, 0).unlink(missing_ok=True)
    nobody = Examiner(lab.workspace, lambda: pytest.fail("a process"), lambda: None, lambda: b"")  # type: ignore[arg-type, return-value]
    assert nobody.examine(lab.trial) is None


def test_the_loop_examines_keeps_and_nothing_else(tmp_path: Path) -> None:
    import toy_lab
    from autoresearch.loop.loop import run_campaign
    from conftest import never, proposal, stages

    asked: list[int] = []

    def examine(trial: Trial, poll: Callable[[], None]) -> str | None:
        asked.append(trial.number)
        return "it looked ahead" if trial.number == 3 else None

    root = toy_lab.make(tmp_path / "lab")
    parts = stages(root, [proposal(2.0), proposal(9.0), proposal(1.5), proposal(1.2)], examine=examine)
    run_campaign(parts, "t", never)
    trials = parts.campaign("t").trials
    assert asked == [1, 3, 4]
    assert trials[3].verdict is not None
    assert (trials[3].verdict.status, trials[3].verdict.reason) == (Status.INVALID, "it looked ahead")
    assert trials[4].proposed.parent == trials[1].proposed.commit
    assert dataclasses.asdict(trials[4])["verdict"]["status"] is Status.KEEP
