"""The parent's side of a run's grading: it keeps the clock, sends rows, and computes the score that decides.

If a lab's prepare.py does not talk to a grader, the run's own word counts, and the score is called self-reported.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autoresearch.base.errors import UserError
from autoresearch.grading.diagnosis import diagnose
from autoresearch.grading.protocol import ProtocolError, receive, send
from autoresearch.ledger.records import (
    Clock,
    Crash,
    CrashKind,
    Graded,
    Invalid,
    RunEvent,
    RunRequest,
    RunResult,
    Scalar,
    Score,
)

SUMMARY_LINE = re.compile(r"^(\w+):\s+(\S+)\s*$")
MEBIBYTES_PER_GIBIBYTE = 1024
SCORE = ("val_bpb", "nats", "tokens", "bytes")
LONGEST_ABOUT = 200
MOST_TRAIN_REQUESTS = 100


# ---------------------------------------------------------------- trusted


class TrustedGrader:
    """Computes scores in this process. `data` reads the rows, and is called again for each run."""

    name = "trusted"

    def __init__(self, data: Callable[[], Any]) -> None:
        self.data = data

    def fingerprints(self) -> Mapping[str, str]:
        """See `grading.interface.Grader`."""
        found: Mapping[str, str] = self.data().fingerprints
        return found

    def session(self, request: RunRequest, wants_holdout: Callable[[Score], bool]) -> TrustedSession:
        """See `grading.interface.Grader`. Everything slow happens here, before the run's clock can start.

        Raises:
            UserError: the lab's data is missing.
        """
        from autoresearch.grading import memory, scoring

        data = self.data()
        memory.work_on(request.place.gpu)
        check_speed(data, request, scoring.seconds_per_row(data.context, data.vocabulary))
        read_ahead(data.train[0])
        return TrustedSession(
            request, data, lambda batch_size: scoring.Scoring(data, batch_size, wants_holdout), memory.Refused
        )


def check_speed(data: Any, request: RunRequest, seconds_per_row: float) -> None:
    """Raise a UserError if this process cannot score the validation rows in the time a run has besides training.

    That happens if this Python's torch has no CUDA, or the GPU takes only one process: then a CPU scores the rows.
    """
    needed = seconds_per_row * len(data.val)
    allowed = request.deadline_seconds - request.budget_seconds
    if needed > allowed:
        raise UserError(
            f"scoring {len(data.val):,} rows would take this process {needed:.0f} s, but a run has {allowed:.0f} s "
            "besides its training: lower EVAL_TOKENS in prepare.py, raise `allowance_seconds` in program.md, or use "
            "a torch that can use the GPU in the Python that runs autoresearch"
        )


def read_ahead(path: Path) -> None:
    """Have the system read a file into memory, so that a run does not wait for a slow disk on its clock."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


class TrustedSession:
    """See `grading.interface.Session`. The run may send anything at any time, or nothing; the executor enforces the
    deadline."""

    def __init__(self, request: RunRequest, data: Any, begin: Callable[[int], Any], refused: type[Exception]) -> None:
        self.request, self.data, self.begin, self.refused = request, data, begin, refused
        self.started = time.monotonic()
        self.stamps: dict[str, float] = {}
        self.train_requests = 0
        self.scoring: Any = None
        self.graded: Graded | None = None
        self.is_done = False
        self.told_at = 0.0  # when the run last received something to do
        self.took: list[float] = []  # seconds it took for each batch
        self.rows = 0  # answered, including repeated ones
        self.problem: Invalid | Crash | None = None

    def serve(self, channel: socket.socket) -> None:
        """Answer until the run hangs up, or does something that ends its grading."""
        from autoresearch.grading.memory import work_on

        self.started = time.monotonic()
        work_on(self.request.place.gpu)  # this is another thread than the one that made it
        try:
            while self.problem is None:
                self._answer(channel, receive(channel)[0])
        except (EOFError, ConnectionError):
            pass
        except self.refused as refusal:
            self.problem = Invalid(str(refusal))
        except ProtocolError as error:
            self.problem = Invalid(f"it broke the grading protocol: {error}")
        except Exception as error:  # whatever a run causes here must not end the search
            if channel.fileno() >= 0:  # otherwise the executor closed it
                self.problem = Crash(CrashKind.NO_SCORE, f"grading failed: {type(error).__name__}: {error}")
        finally:
            if self.scoring:
                self.scoring.close()
        self._say_why(channel)

    def _say_why(self, channel: socket.socket) -> None:
        if self.problem:
            reason = self.problem.reason if isinstance(self.problem, Invalid) else self.problem.detail
            try:
                channel.setblocking(False)
                send(channel, {"refused": reason})
            except OSError:  # it no longer reads
                return

    def _answer(self, channel: socket.socket, message: Mapping[str, Any]) -> None:
        now = time.monotonic() - self.started
        match message.get("ask"):
            case "train":
                self._lend_train(channel, now)
            case "grade":
                self._begin(channel, message, now)
            case "device" if self.scoring and not self.is_done:
                send(channel, {"device": self.scoring.take_up()})
            case "batch" if self.scoring and not self.is_done:
                self._next_batch(channel, message, now)
            case other:
                raise ProtocolError(f"asked for {str(other)[:60]!r} out of turn")

    def _lend_train(self, channel: socket.socket, now: float) -> None:
        """Start the clock, and give the run its training tokens as open files, which it could not open itself."""
        self.stamps.setdefault("first_batch", now)
        self.train_requests += 1
        if self.train_requests > MOST_TRAIN_REQUESTS:
            raise ProtocolError(f"asked for the training data more than {MOST_TRAIN_REQUESTS} times")
        descriptors = [os.open(path, os.O_RDONLY) for path in self.data.train]
        try:
            send(channel, {"ok": True}, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _begin(self, channel: socket.socket, message: Mapping[str, Any], now: float) -> None:
        """Stop the clock and open the shared memory. A later request is answered with the existing score."""
        if self.graded and self.is_done:
            return send(channel, {"val_bpb": self.graded.score.val_bpb})
        if "first_batch" not in self.stamps:
            raise self.refused("it never drew a training batch")
        if self.scoring:
            raise ProtocolError("asked to be graded while it was being graded")
        self.stamps["grade_requested"] = now
        batch_size, context, vocabulary = (message.get(name) for name in ("batch_size", "context", "vocabulary"))
        if context != self.data.context or vocabulary != self.data.vocabulary:
            raise self.refused(
                f"it wants {str(context)[:20]} tokens of context and a vocabulary of {str(vocabulary)[:20]}, but the "
                f"lab has {self.data.context} and {self.data.vocabulary}"
            )
        if type(batch_size) is not int or batch_size < 1:
            raise self.refused(f"its batch size for grading is {str(batch_size)[:20]}, but must be 1 or more")
        self.scoring = self.begin(batch_size)
        send(channel, self.scoring.layout(), self.scoring.descriptors)
        return None

    def _next_batch(self, channel: socket.socket, message: Mapping[str, Any], now: float) -> None:
        if message.get("done") is not None and message.get("failed") is None:
            self.stamps.setdefault("first_logits", now)
            self.took.append(now - self.told_at)
            self.rows += self.scoring.size_of(message)
        answer = self.scoring.answer(message)
        if self.scoring.score:
            self.graded = Graded(self.scoring.score, self.scoring.holdout)
        self.is_done = "val_bpb" in answer
        send(channel, answer)
        self.told_at = time.monotonic() - self.started
        self.scoring.digest()  # while the run computes the next batch

    def clock(self, result: RunResult) -> Clock:
        later = self.took[1:]
        usual, slowest = (statistics.median(later), max(later)) if later else (None, None)
        return Clock(
            first_batch=self.stamps.get("first_batch"),
            grade_requested=self.stamps.get("grade_requested"),
            first_logits=self.stamps.get("first_logits"),
            usual_answer=usual,
            slowest_answer=slowest,
            answers=math.fsum(self.took) if self.took else None,
            rows=self.rows or None,
        )

    def environment(self, result: RunResult) -> Mapping[str, Scalar]:
        return {**environment(result.events), **self.data.fingerprints}

    def outcome(self, result: RunResult) -> Graded | Crash | Invalid:
        """A run that failed after it was scored is still a crash. One that was ended during the holdout is not."""
        if self.problem:
            return self.problem
        if self.graded and (result.exit_code == 0 or not self.is_done):
            return self.graded
        return diagnose(result.exit_code, result.log_tail, self.request.deadline_seconds, result.ended)

    def answers(self) -> bytes | None:
        return self.scoring.answers.packed() if self.scoring and self.scoring.answers else None


# ---------------------------------------------------------------- self-reported


class SelfReported:
    """Takes the score that a lab's own `evaluate_bpb` reported from inside the run."""

    name = "self-reported"

    def fingerprints(self) -> Mapping[str, str]:
        return {}

    def session(self, request: RunRequest, wants_holdout: Callable[[Score], bool]) -> SelfReportedSession:
        return SelfReportedSession(request)


class SelfReportedSession:
    """See `grading.interface.Session`. Everything comes from the lines the run wrote and when they arrived."""

    def __init__(self, request: RunRequest) -> None:
        self.request = request

    def serve(self, channel: socket.socket) -> None:
        """There is nothing to answer."""

    def clock(self, result: RunResult) -> Clock:
        first, last = (first_event(result.events, name) for name in ("first_batch", "grade_requested"))
        return Clock(first.at if first else None, last.at if last else None)

    def environment(self, result: RunResult) -> Mapping[str, Scalar]:
        return environment(result.events)

    def outcome(self, result: RunResult) -> Graded | Crash | Invalid:
        told = first_event(result.events, "score")
        if told is None or result.exit_code != 0:
            return diagnose(result.exit_code, result.log_tail, self.request.deadline_seconds, result.ended)
        return _told_score(told.values)

    def answers(self) -> bytes | None:
        """There are none that could be believed."""
        return None


def _told_score(values: Mapping[str, Scalar]) -> Graded | Crash:
    numbers = [float(value) for name in SCORE if isinstance(value := values.get(name), int | float)]
    if len(numbers) != len(SCORE):
        return Crash(CrashKind.NO_SCORE, f"the reported score lacks one of {', '.join(SCORE)}")
    val_bpb, nats, tokens, total_bytes = numbers
    if not all(map(math.isfinite, numbers)):
        return Crash(CrashKind.NOT_FINITE, f"val_bpb is {val_bpb} ({nats} nats, {tokens} tokens, {total_bytes} bytes)")
    return Graded(Score(val_bpb, nats, int(tokens), int(total_bytes)))


def environment(events: tuple[RunEvent, ...]) -> dict[str, Scalar]:
    """What a run said about its environment, cut to a length; only for people."""
    first = first_event(events, "first_batch")
    told = first.values.items() if first else ()
    return {name: text[:LONGEST_ABOUT] for name, text in told if isinstance(text, str) and name != "event"}


def first_event(events: tuple[RunEvent, ...], name: str) -> RunEvent | None:
    return next((event for event in events if event.name == name), None)


# ---------------------------------------------------------------- printed, for people


def printed_summary(log_tail: str) -> dict[str, float]:
    """The numbers of the block that `train.py` prints after a line `---`. Skips values that are not numbers."""
    _, found, block = f"\n{log_tail}".rpartition("\n---\n")
    if not found:
        return {}
    numbers = {}
    for line in block.splitlines():
        if match := SUMMARY_LINE.match(line):
            try:
                numbers[match[1]] = float(match[2])
            except ValueError:
                continue
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def memory_gb(summary: Mapping[str, float]) -> float | None:
    """The peak memory that the run printed, in GiB."""
    peak = summary.get("peak_vram_mb")
    return peak / MEBIBYTES_PER_GIBIBYTE if peak is not None else None
