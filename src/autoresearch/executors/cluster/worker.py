"""One slot on a machine of a cluster: the trusted process there, which runs, watches and grades as a driver does here.

It does not know Ray. Everything it is told and tells is bytes; see `wire`.
"""

from __future__ import annotations

import contextlib
import itertools
import platform
import queue
import shutil
import socket
import sys
import tempfile
import threading
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import filelock

from autoresearch.base import process, variables
from autoresearch.base.errors import EndRun, UserError
from autoresearch.executors import hardware, machine
from autoresearch.executors.cluster import wire
from autoresearch.executors.cluster.wire import Found, Plan
from autoresearch.executors.local import LocalExecutor
from autoresearch.executors.run_output import read_part
from autoresearch.grading.protocol import CHECKPOINT, CURVE, EVENTS, LOG
from autoresearch.ledger import report
from autoresearch.ledger.records import Place, RunEvent, Score, Worth

WAIT_SECONDS = 0.5  # for which a driver that asks for news is left waiting if there are none
PREPARE_SECONDS = 3600.0
LONGEST_WORDS = 200  # characters of an error that a driver is told
FILES = (LOG, CURVE, EVENTS)  # that a driver gets while a run writes them
BACKLOG = 8 * 2**20  # bytes that wait for the driver, beyond which it is not sent what a run writes


def versions() -> dict[str, str]:
    """What has to be the same for all machines of a campaign. A build of torch for another device is the same."""
    python = ".".join(platform.python_version_tuple()[:2])
    torch = metadata.version("torch").partition("+")[0]
    return {"autoresearch": metadata.version("autoresearch"), "Python": python, "torch": torch}


class Worker:
    """Carries out the runs of one slot, one after the other. Its methods may be called from several threads."""

    def __init__(self) -> None:
        self._executor: LocalExecutor | None = None
        self._slot: filelock.BaseFileLock | None = None  # held as long as this process lives
        self._plan: Plan | None = None
        self._told: bytes = b""  # what the driver has not fetched yet
        self._sent: dict[str, int] = {}  # bytes of a run's files that it was told
        self._news = threading.Condition()
        self._answers: queue.Queue[Worth | None] = queue.Queue()
        self._stop: str | None = None  # why the run is to end

    # ------------------------------------------------------------ before

    def survey(self, plan: bytes) -> bytes:
        """Make this machine ready for a lab's runs, and say what was found of it."""
        wanted = wire.plan(plan)
        name = socket.gethostname()
        try:
            return wire.packed(self._ready(wanted, name))
        except (UserError, OSError) as error:
            return wire.packed(Found(name, problem=words(error)))

    def _ready(self, plan: Plan, name: str) -> Found:
        for part, version in versions().items():
            if plan.versions.get(part) != version:
                return Found(name, problem=f"it has {part} {version}, not {plan.versions.get(part)}")
        python = interpreter(plan)
        device = hardware.device(plan.cores)
        slot = self._own_directory(plan.lab)
        compiled = slot.with_name("compiled")  # for all slots of the lab on this machine
        made = machine.executor(plan.equipment, slot / "trials", python, f"{slot}:", device.kind, compiled)
        made.end_leftovers()
        shutil.rmtree(made.runs, ignore_errors=True)
        prepare(plan, python)
        data = {name: str(value) for name, value in made.grader.fingerprints().items()}
        self._executor, self._plan = made, plan
        return Found(name, str(device), made.sandbox, data)

    # ------------------------------------------------------------ a run

    def run(self, *request: bytes) -> None:
        """Carry out a run, which comes in parts. What becomes of it is told by `news`."""
        made = self._executor
        assert made is not None, "the machine was surveyed before"
        wanted = replace(wire.request(b"".join(request)), place=self._place())
        with self._news:
            self._told, self._sent, self._stop = b"", dict.fromkeys(FILES, 0), None
        self._answers = queue.Queue()
        directory = made.runs / wanted.run_id
        try:
            result = made.run(wanted, lambda event: self._hear(event, directory), self._weigh)
            self._pass_on(directory, whole=True)
            model = directory / CHECKPOINT
            size = model.lstat().st_size if model.is_file() and not model.is_symlink() else None
            self._tell(wire.ended(result, size))
        except Exception as error:  # whatever is wrong with this machine must not look like a fault of the run
            self._tell(wire.Failed(words(error)))

    def news(self) -> bytes:
        """A part of what the run has told since the last call, at once or as soon as there is something."""
        with self._news:
            self._news.wait_for(lambda: self._told, WAIT_SECONDS)
            part, self._told = self._told[: wire.PART], self._told[wire.PART :]
            self._news.notify_all()
        return part

    def value(self, worth: bytes) -> None:
        """Say what the score that was told makes worth having."""
        self._answers.put(wire.worth(worth))

    def stop(self, why: str) -> None:
        """End the run that is in flight, if there is one."""
        self._stop = why
        self._answers.put(None)

    # ------------------------------------------------------------ after

    def model(self, run_id: str, offset: int) -> bytes:
        """A part of the model that a run left."""
        assert self._executor is not None
        return read_part(self._executor.runs / run_id / CHECKPOINT, offset, wire.PART)

    def clear(self, run_id: str) -> None:
        """Remove what a run left."""
        assert self._executor is not None
        shutil.rmtree(self._executor.runs / run_id, ignore_errors=True)

    # ------------------------------------------------------------ inside

    def _hear(self, event: RunEvent, directory: Path) -> None:
        self._pass_on(directory)
        self._tell(wire.event(event))
        if self._stop is not None:
            raise EndRun(self._stop)

    def _pass_on(self, directory: Path, *, whole: bool = False) -> None:
        """Tell what a run has written since the last time: the `whole` of it, or what the driver keeps up with."""
        for name in FILES:
            while whole or len(self._told) < BACKLOG:
                content = read_part(directory / name, self._sent[name], wire.PART // 2)
                if not content:
                    break
                self._sent[name] += len(content)
                with self._news:
                    self._news.wait_for(lambda: len(self._told) < BACKLOG)
                self._tell(wire.Written(name, content))

    def _weigh(self, score: Score) -> Worth:
        self._tell(wire.Scored(score))
        return self._answers.get() or Worth(holdout=False, model=False)

    def _tell(self, told: wire.Told) -> None:
        with self._news:
            self._told += wire.line(told)
            self._news.notify_all()

    def _own_directory(self, lab: str) -> Path:
        """A directory of a lab for this process alone. It takes over one whose process has ended."""
        parent = variables.cache_directory() / "cluster" / lab
        parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count():
            lock = filelock.FileLock(parent / f"{number}.lock", timeout=0)
            with contextlib.suppress(filelock.Timeout):
                lock.acquire()
                self._slot = lock
                break
        directory = parent / str(number)
        directory.mkdir(exist_ok=True)
        return directory

    def _place(self) -> Place:
        """This slot's own processors, if the machine has other slots besides."""
        plan = self._plan
        assert plan is not None
        usable = sorted(hardware.usable_cores())
        if plan.cores is None or plan.shares * plan.cores > len(usable) or plan.cores == len(usable):
            return Place()
        return Place(processors=tuple(usable[plan.share * plan.cores :][: plan.cores]))


def interpreter(plan: Plan) -> Path:
    """The Python that runs the lab's files on this machine.

    Raises:
        UserError: there is none.
    """
    found = shutil.which(plan.python or sys.executable)
    if found is None:
        raise UserError(f"there is no {plan.python}, which `python` in program.md names")
    return Path(found)


def prepare(plan: Plan, python: Path) -> None:
    """Prepare or find the lab's data on this machine.

    Raises:
        UserError: prepare.py failed, and its last words.
    """
    with tempfile.TemporaryDirectory(prefix="autoresearch-") as name:
        directory = Path(name)
        (directory / "prepare.py").write_text(plan.equipment.prepare_py, encoding="utf-8")
        ended = process.run_group(
            [str(python), "prepare.py"],
            directory=directory,
            environment=variables.for_prepare(),
            log=directory / "log",
            deadline_seconds=PREPARE_SECONDS,
            mark=f"prepare:{directory}",
            poll=lambda elapsed: None,
        )
        last = report.last_line((directory / "log").read_text(errors="replace")) or "it says nothing"
    if ended.exit_code != 0:
        how = "takes more than an hour" if ended.exit_code is None else "fails"
        raise UserError(f"prepare.py {how} there: {last}")


def words(error: Exception) -> str:
    """An error in one line."""
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return report.one_line(text)[:LONGEST_WORDS]
