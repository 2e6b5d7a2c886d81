"""Carries out a run as a process group on this machine, in a sandbox, with a channel to its grader."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import psutil

from autoresearch.base import process
from autoresearch.base.errors import EndRun, NoInterpreterError
from autoresearch.executors.compiled import Compiled
from autoresearch.executors.interface import Progress, Weigh
from autoresearch.executors.run_output import CURVE_SECONDS, RunWatch, run_environment, tail
from autoresearch.executors.sandbox import load, usage
from autoresearch.executors.sandbox.rules import Limits, Rules, Sandbox, python_path
from autoresearch.executors.sandbox.watch import Watch
from autoresearch.grading import protocol
from autoresearch.grading.interface import Grader, Session
from autoresearch.grading.protocol import CHANNEL, CHECKPOINT, CURVE, ENTRY, EVENTS, LOG, RUN_SIDE
from autoresearch.ledger.records import Grading, Load, Place, RunEvent, RunRequest, RunResult

TAIL_BYTES = 16_384
LONGEST_FILE = 256 * 2**20  # bytes of what a run writes for others to read
LEFT = (LOG, CURVE, EVENTS, CHECKPOINT)  # files of a run that are kept
MOST_EVENTS = 1_000  # per run; an honest run has a handful
NO_LIMITS = Limits()
SCRATCH = "scratch"
GPUS = "CUDA_VISIBLE_DEVICES"
COMPILED = "compiled"
# Without this, every start traces the model again: PyTorch's cache refuses custom autograd functions unless it is told
# that they are pure, as those of train.py are.
TRACE_CACHE = {"TORCHINDUCTOR_AUTOGRAD_CACHE_ALLOW_CUSTOM_AUTOGRAD": "1"}
COMPILERS = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


class LocalExecutor:
    """Copies a commit's files into a scratch directory, runs `train.py` there, and removes the directory.

    What a run leaves (log, curve, events, checkpoint) goes to `<runs>/<run_id>/`. `namespace` marks this lab's
    processes, so that those left by a killed program can be found. Of the machine's files a run sees what it needs to
    start, and what `readable` names when it starts. `compiled` is where the lab's compiled kernels are kept.
    """

    name = "local"

    def __init__(
        self,
        runs: Path,
        python: Path,
        environment: Mapping[str, str],
        namespace: str,
        sandbox: Sandbox,
        grader: Grader,
        limits: Limits = NO_LIMITS,
        readable: Callable[[], Sequence[Path]] = tuple,
        compiled: Path | None = None,
    ) -> None:
        self.runs = runs
        self.python = python
        self.environment = environment
        self.namespace = namespace
        self.confinement = sandbox
        self.grader = grader
        self.limits = limits
        self.readable = readable
        self.compiled = compiled or runs.parent / COMPILED

    @property
    def sandbox(self) -> str:
        return self.confinement.name

    def end_leftovers(self) -> int:
        """End what an earlier, killed program left running and remove its files. Returns the number of processes."""
        ended = process.end_marked(self.namespace)
        shutil.rmtree(self.runs.parent / SCRATCH, ignore_errors=True)
        return ended

    def close(self) -> None:
        """There is nothing to give back. See `executors.interface.Executor`."""

    def run(self, request: RunRequest, progress: Progress, weigh: Weigh) -> RunResult:
        """See `executors.interface.Executor`.

        Raises:
            UserError: it cannot be graded, or the lab's Python disappeared after the campaign started.
            FileNotFoundError: the lab did.
        """
        with confined(request.place):
            session = self.grader.session(request, lambda score: weigh(score).holdout)
            result = self._result(request, progress, session)
        return dataclasses.replace(result, grading=graded(session, result))

    def _result(self, request: RunRequest, progress: Progress, session: Session) -> RunResult:
        for place in (self.runs, self.runs.parent / SCRATCH):
            place.mkdir(exist_ok=True)  # not its parents: a lab that was deleted is not made again
        directory = self.runs / request.run_id
        shutil.rmtree(directory, ignore_errors=True)
        scratch = self._scratch(request)
        shutil.rmtree(scratch, ignore_errors=True)
        frozen = lay_out(request, scratch)
        compiled = Compiled(self.compiled, directory / COMPILED)
        with contextlib.suppress(OSError):  # it can do without
            compiled.lend()
        watch = _Watcher(directory, progress)
        try:
            with Channel(session.serve) as channel:
                ended, why = self._run(request, directory, tuple(frozen), watch, channel)
            tampered = tuple(name for name, content in frozen.items() if not _is(scratch / name, content))
        except FileNotFoundError as error:
            raise NoInterpreterError(self.python) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            compiled.take_back(trusted=request.baseline)
            tidy(directory)
        return RunResult(
            exit_code=ended.exit_code,
            wall_seconds=ended.seconds,
            events=tuple(watch.seen),
            log_tail=tail(directory / LOG, TAIL_BYTES),
            log_path=str(directory / LOG),
            curve_path=str(directory / CURVE),
            tampered=tampered,
            ended=why,
            steps=watch.steps,
            load=tuple(watch.load),
        )

    def busy_share(self, seconds: float) -> float:
        """See `executors.interface.Executor`."""
        return load.busy_share(seconds)

    def _scratch(self, request: RunRequest) -> Path:
        """Separate from what the run may write freely, so that its frozen files can be protected."""
        return self.runs.parent / SCRATCH / request.run_id.replace("/", "-")

    def _run(
        self, request: RunRequest, directory: Path, frozen: Sequence[str], watch: _Watcher, channel: Channel
    ) -> tuple[process.Ended, str]:
        """How the run ended, and why, if it used more than it may."""
        scratch, mark = self._scratch(request), f"{self.namespace}/{request.run_id}"
        rules = Rules(
            directory=scratch,
            writable=(directory,),
            readable=(*self.readable(), *python_path(self.environment, scratch)),
            frozen=tuple(scratch / name for name in frozen),
            pass_fds=channel.pass_fds,
            limits=self.limits,
        )
        limit, began = Watch(mark, self.limits, (directory, scratch)), time.monotonic()

        def poll(at: float) -> None:
            channel.started()
            watch(at)
            limit(at)
            watch.measure(at, limit.seen.values())
            hold_to_length(directory)

        environment = run_environment(self.environment, directory, request.seed)
        environment |= {name: str(directory / COMPILED / name.lower()) for name in COMPILERS}
        environment |= TRACE_CACHE | channel.environment | placed(request.place, environment)
        try:
            ended = process.run_group(
                self.confinement.command([str(self.python), ENTRY], rules),
                directory=scratch,
                environment=environment,
                log=directory / LOG,
                deadline_seconds=request.deadline_seconds,
                mark=mark,
                poll=poll,
                pass_fds=channel.pass_fds,
            )
        except EndRun as error:
            return process.Ended(None, time.monotonic() - began), str(error)
        finally:
            say_leftover(directory / LOG, usage.left_on_gpu(limit.seen.values()))
        return process.Ended(signaled(ended.exit_code), ended.seconds), ""


@contextlib.contextmanager
def confined(place: Place) -> Iterator[None]:
    """Keep this thread, and all that it starts, to a place's processors, where the system can do that."""
    if not place.processors or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    with contextlib.suppress(OSError):  # some of them went away
        os.sched_setaffinity(0, place.processors)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, before)


def graded(session: Session, result: RunResult) -> Grading:
    """What a grader found of a run that has ended."""
    return Grading(session.outcome(result), session.clock(result), session.environment(result), session.answers())


def placed(place: Place, environment: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """The variables that keep a run to its slot's part of the machine. A thread's processors are inherited.

    If the user's `environment` shows only some GPUs, a place's number counts those.
    """
    visible = [name for name in environment.get(GPUS, "").split(",") if name]
    number = place.gpu
    gpu = {} if number is None else {GPUS: visible[number] if visible else str(number)}
    return gpu | ({"OMP_NUM_THREADS": str(len(place.processors))} if place.processors else {})


def hold_to_length(directory: Path) -> None:
    """End a run that writes without end, since something has to read it.

    Raises:
        EndRun: its log, curve or events are too long.
    """
    for name in (LOG, CURVE, EVENTS):
        with contextlib.suppress(OSError):  # not there yet
            if (directory / name).lstat().st_size > LONGEST_FILE:
                raise EndRun(f"it wrote more than {LONGEST_FILE // 2**20} MiB of {name}")


def tidy(directory: Path) -> None:
    """Remove what a run left in addition to its own files, since nothing would ever read it."""
    with contextlib.suppress(OSError):
        directory.chmod(0o755)  # a run may have made it read-only to prevent this
        for path in directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name not in LEFT or path.is_symlink():
                path.unlink(missing_ok=True)


def say_leftover(log: Path, left: int) -> None:
    """Say in a run's log that its processes have ended but this many bytes of GPU memory are not free again."""
    if left:
        words = (
            f"autoresearch: {left / usage.GIBIBYTE:.2f} GiB of this run's GPU memory are still allocated after its end"
        )
        # The run may have replaced its log by a link or a pipe.
        flags = os.O_WRONLY | os.O_APPEND | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK"))
        with contextlib.suppress(OSError), os.fdopen(os.open(log, flags), "a") as file:
            file.write(f"\n{words}\n")


def signaled(code: int | None) -> int | None:
    """An exit code, negative if a signal ended the run. Bubblewrap and shells report 128 plus the signal's number."""
    return code if code is None or not 128 < code < 128 + signal.NSIG else 128 - code


def lay_out(request: RunRequest, scratch: Path) -> dict[str, bytes]:
    """Write a commit's files and the run's side of the protocol. Returns those that the run must not change."""
    files = {**request.files, RUN_SIDE: Path(protocol.__file__).read_bytes()}
    frozen = {name: content for name, content in files.items() if name not in request.editable}
    for name, content in files.items():
        path = scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if name in frozen:
            path.chmod(0o444)
    return frozen


class Channel:
    """A pair of sockets: the run inherits one, and a thread serves the other until the run hangs up."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._sockets = socket.socketpair() if os.name == "posix" else None

    @property
    def pass_fds(self) -> tuple[int, ...]:
        return (self._sockets[1].fileno(),) if self._sockets and self._sockets[1].fileno() >= 0 else ()

    @property
    def environment(self) -> dict[str, str]:
        return {CHANNEL: str(self.pass_fds[0])} if self.pass_fds else {}

    def __enter__(self) -> Channel:
        if self._sockets:
            self._thread = threading.Thread(target=self._serve, args=(self._sockets[0],), name="grader", daemon=True)
            self._thread.start()
        return self

    def started(self) -> None:
        """The run has its end now: close ours, so that we notice when the run dies."""
        if self._sockets:
            self._sockets[1].close()

    def __exit__(self, *error: object) -> None:
        if self._sockets:
            self._sockets[1].close()
            with contextlib.suppress(OSError):
                self._sockets[0].shutdown(socket.SHUT_RDWR)
            self._thread.join()
            self._sockets[0].close()


class _Watcher:
    """Collects a run's events as they arrive, and passes them and the curve on."""

    def __init__(self, directory: Path, progress: Progress) -> None:
        self.watch = RunWatch(directory)
        self.progress = progress
        self.seen: list[RunEvent] = []
        self.steps = 0
        self.curve_due = 0.0
        self.load: list[Load] = []
        self.meter = load.Meter()

    def __call__(self, at: float) -> None:
        for event in self.watch.events(at):
            if len(self.seen) < MOST_EVENTS:
                self.seen.append(event)
                self.progress(event)
        if time.monotonic() >= self.curve_due:
            self.curve_due = time.monotonic() + CURVE_SECONDS
            point = self.watch.curve(at)
            if point:
                step = point.values.get("step")
                self.steps = step if isinstance(step, int) else self.steps
                self.progress(point)

    def measure(self, at: float, processes: Collection[psutil.Process]) -> None:
        """Sample what the machine does, once a second."""
        if not self.load or at >= self.load[-1].at + load.SAMPLE_SECONDS:
            self.load.append(self.meter.sample(at, processes))
            self.progress(RunEvent("load", at, dataclasses.asdict(self.load[-1])))


def _is(path: Path, content: bytes) -> bool:
    """Whether a file is a regular file with that content."""
    try:
        return not path.is_symlink() and path.read_bytes() == content
    except OSError:
        return False
