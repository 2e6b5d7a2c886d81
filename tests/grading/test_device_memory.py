"""Logits in a GPU's memory that both sides have: with a stand-in for the driver, and with a GPU where there is one."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import grading_lab
from autoresearch.executors.local import LocalExecutor
from autoresearch.executors.sandbox import sandboxes
from autoresearch.grading import memory, protocol, scoring
from autoresearch.grading.grader import TrustedGrader, TrustedSession
from autoresearch.grading.splits import SplitData
from autoresearch.ledger.records import Graded, RunRequest, Score, Worth
from grading_lab import GRADE, Bigram, GradingLab, Liar, serve_run
from jail import ALL

CALLS = (
    *("cuMemAddressReserve", "cuMemMap", "cuMemSetAccess", "cuMemcpyAsync", "cuStreamSynchronize"),
    *("cuMemGetAllocationGranularity", "cuMemCreate", "cuMemsetD8Async", "cuMemExportToShareableHandle"),
)
OPENING = ("cuMemImportFromShareableHandle", *CALLS[:5])
CPU = torch.device("cpu")
in_each_sandbox = pytest.mark.parametrize("name", ALL)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if not compiler or not sys.platform.startswith("linux"):
        pytest.skip("the stand-in for the driver needs a C compiler and Linux")
    path = tmp_path_factory.mktemp("driver") / "fake_cuda.so"
    source = Path(__file__).parents[1] / "fake_cuda.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", path, source], check=True)
    return path


@pytest.fixture
def driver(library: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    monkeypatch.setattr(protocol, "DRIVER", str(library))
    monkeypatch.delenv("FAKE_CUDA_FAILS", raising=False)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> GradingLab:
    return grading_lab.make(tmp_path_factory.mktemp("device"))


@pytest.fixture(scope="module")
def expected(lab: GradingLab) -> float:
    return float(lab.module.evaluate_bpb(Bigram(), lab.module.Tokenizer.from_directory(), 8))


def offers(size: int) -> memory.Offer:
    return memory.Offer(CPU, size)


def begun(data: SplitData, made: list[scoring.Scoring], batch_size: int) -> scoring.Scoring:
    """A scoring that offers memory, noted in `made`."""
    made.append(scoring.Scoring(data, batch_size, lambda score: False, offers))
    return made[-1]


def graded(lab: GradingLab, directory: Path, script: str) -> tuple[TrustedSession, scoring.Scoring]:
    """The session of a run that is offered a GPU's memory, and its scoring; the run has the same driver."""
    data, files, made = lab.data(), directory / "files", list[scoring.Scoring]()
    begin = functools.partial(begun, data, made)
    files.mkdir(parents=True)
    (files / "prepare.py").write_text(lab.prepare)
    shutil.copy(protocol.__file__, files / protocol.RUN_SIDE)
    (files / "train.py").write_text(f"{grading_lab.HEAD}\ntrial.DRIVER = {protocol.DRIVER!r}\nnext(loader)\n{script}")
    session = TrustedSession(grading_lab.REQUEST, data, begin, memory.Refused)
    code, log = serve_run(session, files, lab.environment(directory), 60.0)
    assert code == 0, log
    return session, made[0]


def score(session: TrustedSession) -> float:
    assert session.graded
    return session.graded.score.val_bpb


def went_by_gpu(scored: scoring.Scoring) -> bool:
    return scored.offered is not None and scored.logits is scored.offered.memory


# ---- with a stand-in


def test_logits_that_stay_on_the_gpu_give_the_same_score(
    lab: GradingLab, driver: ctypes.CDLL, expected: float, tmp_path: Path
) -> None:
    session, scored = graded(lab, tmp_path, "evaluate(model)")
    assert went_by_gpu(scored)
    assert abs(score(session) - expected) < 1e-5
    assert driver.fake_living() == 0


@pytest.mark.parametrize("given", ["logits.bfloat16()", "logits.half()", "logits.double()", "logits.mT.clone().mT"])
def test_logits_of_every_type_and_layout_stay_there(
    lab: GradingLab, driver: ctypes.CDLL, expected: float, tmp_path: Path, given: str
) -> None:
    script = f"""
class Cast(Bigram):
    def forward(self, x):
        logits = super().forward(x)
        return {given}
evaluate(Cast())
"""
    session, scored = graded(lab, tmp_path, script)
    assert went_by_gpu(scored)
    tolerance = 2e-3 if "bfloat16" in given else 1e-4  # of rounding each of so few logits
    assert abs(score(session) - expected) < tolerance


def test_a_run_short_of_memory_gets_smaller_batches_there_too(
    lab: GradingLab, driver: ctypes.CDLL, expected: float, tmp_path: Path
) -> None:
    script = """
class Hungry(Bigram):
    def forward(self, x):
        if len(x) > 3:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return super().forward(x)
evaluate(Hungry())
"""
    session, scored = graded(lab, tmp_path, script)
    assert went_by_gpu(scored)
    assert abs(score(session) - expected) < 1e-5


@pytest.mark.parametrize(
    "prevented",
    [
        *(f'os.environ["FAKE_CUDA_FAILS"] = "{call}"' for call in OPENING),
        'trial.DRIVER = "libnothing.so.1"',
        'trial.gpu = lambda device: "GPU-of-another-number"',
        "trial.DeviceMemory.write = lambda *given: 0",  # as if each side saw memory of its own
    ],
)
def test_a_run_that_cannot_have_the_memory_is_graded_through_the_hosts(
    lab: GradingLab, driver: ctypes.CDLL, expected: float, tmp_path: Path, prevented: str
) -> None:
    script = f"""
before = len(os.listdir("/proc/self/fd"))
{prevented}
evaluate(model)
assert len(os.listdir("/proc/self/fd")) == before
"""
    session, scored = graded(lab, tmp_path, script)
    assert scored.offered
    assert not went_by_gpu(scored)
    assert abs(score(session) - expected) < 1e-5
    assert driver.fake_living() == 0


@pytest.mark.parametrize("call", CALLS)
def test_what_the_driver_refuses_leaves_nothing_behind(
    driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setenv("FAKE_CUDA_FAILS", call)
    with pytest.raises(OSError, match=f"{call}: CUDA error 1"), contextlib.closing(offers(10_000)) as made:
        made.is_taken()  # what does not fail in the making
    assert driver.fake_living() == 0
    assert len(os.listdir("/proc/self/fd")) == before


def test_offered_memory_is_empty_whatever_was_there(driver: ctypes.CDLL) -> None:
    made, seen = offers(10_000), torch.ones(10_000, dtype=torch.uint8)
    made.memory.read(0, seen)
    made.close()
    assert not seen.any()


def test_a_gpu_that_fails_the_parent_later_makes_that_run_a_crash_and_no_more(
    lab: GradingLab, driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    liar = Liar(lab)
    liar.session.begin = lambda batch_size: scoring.Scoring(lab.data(), batch_size, lambda score: False, offers)
    liar.ask(GRADE)
    offered = liar.session.scoring.offered
    offered.memory.write(0, torch.tensor(list(offered.pattern), dtype=torch.uint8))
    assert liar.ask({"ask": "device"}) == {"device": True}
    monkeypatch.setenv("FAKE_CUDA_FAILS", "cuMemcpyAsync")
    liar.ask({"ask": "batch"})
    shape = [8, grading_lab.CONTEXT, grading_lab.VOCABULARY]
    liar.ask({"ask": "batch", "done": 0, "dtype": "float32", "shape": shape})
    assert "grading failed" in str(liar.end())
    assert driver.fake_living() == 0


# ---- without any


def test_where_there_is_no_gpu_nothing_is_offered_and_nothing_taken(lab: GradingLab) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    assert memory.offer(1) is None
    liar = Liar(lab)
    assert liar.ask(GRADE)["device"] is None
    assert liar.ask({"ask": "device"}) == {"device": False}
    liar.end()


def test_the_memory_is_not_spoken_of_before_grading(lab: GradingLab) -> None:
    liar = Liar(lab)
    assert "out of turn" in str(liar.ask({"ask": "device"})["refused"])
    liar.end()


def test_the_grader_works_on_the_gpu_of_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    for number in (None, 0, 3):
        memory.work_on(number)
    assert used == [0, 3]


# ---- in a sandbox


def executed(lab: GradingLab, directory: Path, name: str, script: str, session: TrustedSession, *more: Path) -> str:
    """Run a script in a sandbox, in which it may read `more`; returns the end of its log."""
    files = {"prepare.py": lab.prepare.encode(), "train.py": f"{grading_lab.HEAD}\n{script}".encode()}
    request = RunRequest("0001/run0", "c", files, 42, 60.0, 120.0, editable=("train.py",))
    environment = {"PATH": os.defpath, "AUTORESEARCH_CACHE": str(lab.root / "cache")}
    namespace, jail = f"device-memory:{directory}:", sandboxes.SANDBOXES[name]
    where = directory / "trials", Path(sys.executable), environment, namespace, jail
    executor = LocalExecutor(*where, Ready(session), readable=lambda: (lab.root / "cache", *more))
    result = executor.run(request, lambda event: None, lambda score: Worth(holdout=False, model=False))
    assert result.grading is not None
    assert isinstance(result.grading.outcome, Graded), (result.grading.outcome, result.log_tail)
    return result.log_tail


class Ready(TrustedGrader):
    """A grader whose session was made beforehand."""

    def __init__(self, session: TrustedSession) -> None:
        super().__init__(lambda: session.data)
        self._session = session

    def session(self, request: RunRequest, wants_holdout: Callable[[Score], bool]) -> TrustedSession:
        return self._session


@pytest.mark.slow
@in_each_sandbox
def test_a_sandboxed_run_can_open_the_memory(
    lab: GradingLab, driver: ctypes.CDLL, expected: float, tmp_path: Path, name: str
) -> None:
    data, made = lab.data(), list[scoring.Scoring]()
    begin = functools.partial(begun, data, made)
    session = TrustedSession(grading_lab.REQUEST, data, begin, memory.Refused)
    script = f"trial.DRIVER = {protocol.DRIVER!r}\nnext(loader)\nevaluate(model)"
    executed(lab, tmp_path, name, script, session, Path(protocol.DRIVER))
    assert went_by_gpu(made[0])
    assert abs(score(session) - expected) < 1e-5


@pytest.mark.gpu
@in_each_sandbox
def test_a_sandboxed_run_on_a_gpu_leaves_its_logits_there(
    lab: GradingLab, expected: float, tmp_path: Path, name: str
) -> None:
    session = TrustedGrader(lab.data).session(grading_lab.REQUEST, lambda score: False)
    log = executed(lab, tmp_path, name, "next(loader)\nevaluate(model.to('cuda'))", session)
    assert went_by_gpu(session.scoring)
    assert abs(score(session) - expected) < 1e-5
    assert "GPU memory" not in log
