"""The parent's side: scores that agree with an evaluation in-process, and runs that send anything they like."""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from pathlib import Path

import pytest

import grading_lab
from autoresearch.base.errors import UserError
from autoresearch.grading import scoring
from autoresearch.grading.grader import SelfReported, check_speed, memory_gb, printed_summary
from autoresearch.ledger.records import Crash, CrashKind, Graded, Invalid, RunEvent, RunRequest, RunResult, Score
from grading_lab import CONTEXT, GRADE, ROWS, VOCABULARY, Bigram, GradingLab, Liar

REQUEST = RunRequest("0001/run0", "c", {}, 42, 60.0, 120.0)
TOLD = {"event": "score", "split": "val", "val_bpb": 1.25, "nats": 10.0, "tokens": 4, "bytes": 8}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> GradingLab:
    return grading_lab.make(tmp_path_factory.mktemp("grader"))


@pytest.fixture(scope="module")
def expected(lab: GradingLab) -> float:
    """What prepare.py itself says of the model, in-process."""
    return float(lab.module.evaluate_bpb(Bigram(), lab.module.Tokenizer.from_directory(), 8))


# ---- honest runs


@pytest.mark.parametrize("batch_size", [1, 7, 64, 10**9])
def test_the_score_is_that_of_an_evaluation_in_process(
    lab: GradingLab, expected: float, tmp_path: Path, batch_size: int
) -> None:
    ran = lab.run(tmp_path, f"next(loader); evaluate(model, {batch_size})")
    assert abs(ran.score.val_bpb - expected) < 1e-5
    assert f"val_bpb {ran.score.val_bpb}" in ran.result.log_tail
    assert ran.score.nats == pytest.approx(ran.score.val_bpb * math.log(2) * ran.score.bytes)
    assert len(ran.score.parts) == 16


@pytest.mark.parametrize("given", ["logits.bfloat16()", "logits.half()", "logits.double()", "trial.shifted(logits)"])
def test_logits_of_every_type_are_taken(lab: GradingLab, expected: float, tmp_path: Path, given: str) -> None:
    script = f"""
class Cast(Bigram):
    def forward(self, x):
        logits = super().forward(x)
        return {given}
next(loader); evaluate(Cast())
"""
    tolerance = 2e-3 if "bfloat16" in given else 1e-4  # of rounding each of so few logits
    assert abs(lab.run(tmp_path, script).score.val_bpb - expected) < tolerance


def test_the_holdout_is_graded_where_the_score_is_worth_it(lab: GradingLab, tmp_path: Path) -> None:
    heard: list[Score] = []
    ran = lab.run(
        tmp_path,
        "next(loader); evaluate(model)",
        wants_holdout=lambda score: heard.append(score) is None,
    )
    assert isinstance(ran.outcome, Graded)
    assert heard == [ran.outcome.score]
    assert ran.outcome.holdout is not None
    assert ran.outcome.holdout.val_bpb != ran.outcome.score.val_bpb
    assert str(ran.outcome.holdout.val_bpb)[:8] not in ran.result.log_tail
    assert lab.run(tmp_path, "next(loader); evaluate(model)").outcome == Graded(ran.outcome.score)


def test_out_of_memory_is_answered_with_smaller_batches(lab: GradingLab, expected: float, tmp_path: Path) -> None:
    script = """
class Hungry(Bigram):
    def forward(self, x):
        if len(x) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(x)
next(loader); evaluate(Hungry(), 64)
"""
    assert abs(lab.run(tmp_path, script).score.val_bpb - expected) < 1e-5


def test_the_clock_runs_from_the_first_batch_to_the_first_request_for_grading(lab: GradingLab, tmp_path: Path) -> None:
    script = """
time.sleep(0.5); next(loader); time.sleep(0.5); next(loader); next(loader)
evaluate(model); time.sleep(0.5); evaluate(model)
"""
    ran = lab.run(tmp_path, script)
    clock = ran.session.clock(ran.result)
    assert clock.first_batch is not None
    assert clock.grade_requested is not None
    assert clock.first_logits is not None
    assert clock.first_batch > 0.5
    assert 0.5 <= clock.grade_requested - clock.first_batch < 1.0
    assert clock.grade_requested < clock.first_logits
    assert ran.result.log_tail.count(f"val_bpb {ran.score.val_bpb}") == 2
    environment = ran.session.environment(ran.result)
    assert set(environment) == {"device", "torch", "python", "train_sha256", "val_sha256"}


# ---- runs that are not


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("model.forward = lambda x: model.table[x][..., :299]", "shape [8, 32, 299] but should have [8, 32, 300]"),
        ("model.forward = lambda x: model.table[x][:, 1:]", "shape [8, 31, 300]"),
        ("model.forward = lambda x: model.table[x] * float('nan')", "logits are not finite"),
        ("model.forward = lambda x: model.table[x] + float('inf')", "logits are not finite"),
        ("tokenizer.get_vocab_size = lambda: 10", "a vocabulary of 10"),
        ("prepare.MAX_SEQ_LEN = 16", "16 tokens of context"),
        ("trial.ask({'ask': 'batch', 'done': None})", "out of turn"),
        ("trial.ask({'ask': ['x'] * 1000})", "out of turn"),
        ("trial.ask({})", "out of turn"),
        ("trial._channel().sendall(b'\\xff' * 8); trial.ask({})", "broke the grading protocol"),
        ("[trial.ask({'ask': 'train'}, 2) for _ in range(200)]", "more than 100 times"),
        ("evaluate(model, 0)", "batch size for grading is 0"),
        ("evaluate(model, -1)", "batch size for grading is -1"),
    ],
)
def test_what_breaks_the_protocol_is_invalid_in_words(lab: GradingLab, tmp_path: Path, script: str, words: str) -> None:
    ran = lab.run(tmp_path, f"next(loader)\n{script}\nevaluate(model)\n")
    assert words in ran.reason
    assert ran.result.exit_code == 1


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"done": 1}, "not asked for"),
        ({"done": 7}, "not asked for"),
        ({"done": -1}, "not asked for"),
        ({"done": True}, "not asked for"),
        ({"done": "0"}, "not asked for"),
        ({"done": 0}, "shape None"),
        ({"done": 0, "dtype": "float32", "shape": "x" * 1000}, "shape"),
        ({"done": 0, "dtype": "float32", "shape": [8, CONTEXT, 10**12]}, "shape"),
        ({"done": 0, "dtype": "int8", "shape": [8, CONTEXT, VOCABULARY]}, "type int8"),
        ({"done": 0, "dtype": ["float32"] * 99, "shape": [8, CONTEXT, VOCABULARY]}, "type"),
    ],
)
def test_lies_about_a_slot_are_invalid(lab: GradingLab, told: dict[str, object], words: str) -> None:
    liar = Liar(lab)
    assert liar.ask(GRADE)["bytes"]
    assert liar.ask({"ask": "batch"}) == {"slot": 0, "rows": 8}
    answer = liar.ask({"ask": "batch", **told})
    outcome = liar.end()
    assert isinstance(outcome, Invalid)
    assert words in outcome.reason
    assert answer == {"refused": outcome.reason}


def test_a_run_that_hangs_up_midway_has_no_score(lab: GradingLab) -> None:
    liar = Liar(lab)
    liar.ask(GRADE)
    liar.channel.sendall(struct.pack(">I", 500) + b"{")
    outcome = liar.end()
    assert isinstance(outcome, Crash)
    assert outcome.kind is CrashKind.NO_SCORE


def test_a_run_that_never_fills_a_slot_waits_for_nothing(lab: GradingLab) -> None:
    """Asking on and on gets both slots, then neither, and costs the parent nothing."""
    liar = Liar(lab)
    liar.ask(GRADE)
    answers = [liar.ask({"ask": "batch"}) for _ in range(20)]
    assert [answer["slot"] for answer in answers] == [0, 1, *[None] * 18]
    assert isinstance(liar.end(), Crash)


def test_one_that_pretends_to_run_out_of_memory_ends_at_one_row(lab: GradingLab) -> None:
    liar = Liar(lab)
    liar.ask(GRADE)
    answer = liar.ask({"ask": "batch"})
    sizes = []
    while "rows" in answer:
        sizes.append(answer["rows"])
        answer = liar.ask({"ask": "batch", "done": answer["slot"], "failed": "out of memory"})
    assert sizes == [8, 4, 2, 1]
    assert isinstance(liar.end(), Invalid)


def test_memory_that_is_cut_short_or_written_late_does_not_hurt(
    lab: GradingLab, expected: float, tmp_path: Path
) -> None:
    script = """
import threading
from pathlib import Path
slots, seen = [], trial._Slots.__init__
def keep(self, layout, descriptors, device):
    try:
        os.ftruncate(descriptors[0], 16)
    except OSError as error:
        print("sealed:", error)
    seen(self, layout, descriptors, device)
    slots.append(self)
trial._Slots.__init__ = keep
def scribble():
    while True:
        for slot in slots:
            slot.memory[slot.layout["logits_at"][0]:][:4]
            slot.memory[slot.layout["tokens_at"][0]:slot.layout["tokens_at"][0] + 8] = b"\\xff" * 8
        time.sleep(0.001)
next(loader)
threading.Thread(target=scribble, daemon=True).start()
class Safe(Bigram):
    def forward(self, x):
        return super().forward(x.clamp(0, 299))
evaluate(Safe())
"""
    ran = lab.run(tmp_path, script)
    assert "sealed:" in ran.result.log_tail
    assert not isinstance(ran.outcome, Crash), ran.result.log_tail


def test_a_run_that_fails_after_its_score_is_a_crash(lab: GradingLab, tmp_path: Path) -> None:
    outcome = lab.run(tmp_path, "next(loader); evaluate(model); 1 / 0").outcome
    assert isinstance(outcome, Crash)
    assert outcome.kind is CrashKind.PYTHON_ERROR


def test_a_run_that_prints_a_score_and_asks_for_none_has_none(lab: GradingLab, tmp_path: Path) -> None:
    outcome = lab.run(tmp_path, "next(loader); print('---\\nval_bpb: 0.1')").outcome
    assert isinstance(outcome, Crash)
    assert outcome.kind is CrashKind.NO_SCORE


def test_the_rows_are_as_many_as_the_lab_says(lab: GradingLab) -> None:
    assert lab.data().val.shape == (ROWS, CONTEXT + 1)


# ---- self-reported


def grade(values: dict[str, object] | None, code: int | None = 0) -> Graded | Crash | Invalid:
    events = () if values is None else (RunEvent("score", 61.0, values),)  # type: ignore[arg-type]
    session = SelfReported().session(REQUEST, lambda score: True)
    return session.outcome(RunResult(code, 62.0, events, "log", "run.log", "curve.jsonl"))


def test_a_told_score_is_taken() -> None:
    assert grade(dict(TOLD)) == Graded(Score(1.25, 10.0, 4, 8))


@pytest.mark.parametrize(
    "change", [{"val_bpb": "low"}, {"val_bpb": None}, {"nats": []}, {"tokens": "x"}, {"tokens": float("nan")}]
)
def test_a_score_that_is_no_number_is_a_crash(change: dict[str, object]) -> None:
    assert isinstance(grade({**TOLD, **change}), Crash)


def test_an_infinite_score_is_a_crash() -> None:
    crash = grade({**TOLD, "val_bpb": float("inf")})
    assert isinstance(crash, Crash)
    assert crash.kind is CrashKind.NOT_FINITE


def test_without_a_told_score_or_with_an_exit_code_it_is_a_crash() -> None:
    assert isinstance(grade(None), Crash)
    assert isinstance(grade(dict(TOLD), code=1), Crash)


def test_the_clock_of_a_self_reported_run_is_the_parents_too() -> None:
    events = (RunEvent("first_batch", 3.0, {"at": 0.0}), RunEvent("grade_requested", 63.5, {"at": 1.0}))
    result = RunResult(0, 64.0, events, "", "run.log", "curve.jsonl")
    clock = SelfReported().session(REQUEST, lambda score: True).clock(result)
    assert (clock.first_batch, clock.grade_requested) == (3.0, 63.5)


# ---- printed


def test_the_summary_block_is_read_and_noise_around_it_is_not() -> None:
    text = (
        "depth: 99\n---\nval_bpb:          1.250000\nmfu_percent:      n/a\npeak_vram_mb:     1024.0\nbye: no number\n"
    )
    assert printed_summary(text) == {"val_bpb": 1.25, "peak_vram_mb": 1024.0}
    assert memory_gb(printed_summary(text)) == 1.0
    assert printed_summary("no block\ndepth: 4\n") == {}
    assert memory_gb({}) is None


@pytest.mark.parametrize("batch_size", [1, 16, 10_000])
def test_no_run_sees_much_of_the_exam_at_once(lab: GradingLab, batch_size: int) -> None:
    scoring_ = scoring.Scoring(lab.data(), batch_size, lambda score: False)
    try:
        asked = len(scoring_.exam.plan.asked)
        given = [scoring_.answer({"done": None}) for _ in range(3)]
        assert given[2]["slot"] is None
        assert sum(answer["rows"] for answer in given) <= max(2, asked // 8)
    finally:
        scoring_.close()


def test_a_parent_too_slow_to_score_says_so_before_a_run(lab: GradingLab) -> None:
    request = replace(REQUEST, budget_seconds=60.0, deadline_seconds=70.0)
    check_speed(lab.data(), request, 9.9 / ROWS)
    with pytest.raises(
        UserError, match=rf"scoring {ROWS} rows would take this process 20 s, but a run has 10 s besides"
    ):
        check_speed(lab.data(), request, 20 / ROWS)


def test_a_row_takes_some_time_to_score_and_no_minute() -> None:
    assert 0 < scoring.seconds_per_row(CONTEXT, VOCABULARY) < 60


def test_a_batch_has_the_rows_that_prepare_py_tells_a_run_to_compile_for(lab: GradingLab) -> None:
    told = lab.module.grading_rows(8)
    data = lab.data()
    assert scoring.Scoring(data, 8, lambda score: False, lambda size: None).size == told
    assert scoring.Scoring(replace(data, most_rows=1), 8, lambda score: False, lambda size: None).size == 1
