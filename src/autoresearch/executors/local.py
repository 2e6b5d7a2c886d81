"""Carries out a run as a process group on this machine, in a sandbox, with a channel to its grader."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from autoresearch import process, trial, usage
from autoresearch.errors import EndRun, NoInterpreterError
from autoresearch.interfaces import Progress, Serve
from autoresearch.records import RunEvent, RunRequest, RunResult
from autoresearch.sandbox import Limits, Rules, Sandbox, Watch
from autoresearch.trial import CHANNEL, CHECKPOINT, CURVE, ENTRY, EVENTS, LOG, RUN_SIDE
from autoresearch.watching import CURVE_SECONDS, RunWatch, run_environment, tail

TAIL_BYTES = 16_384
LONGEST_FILE = 256 * 2**20  # bytes of what a run writes for others to read
LEFT = (LOG, CURVE, EVENTS, CHECKPOINT)  # files of a run that are kept
MOST_EVENTS = 1_000  # of a run; an honest one has a handful
NO_LIMITS = Limits()
SCRATCH = "scratch"
COMPILED = "compiled"
COMPILERS = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


class LocalExecutor:
    """Lays a commit's files into a scratch directory, runs `train.py` there, and removes the directory.

    What a run leaves (log, curve, events, checkpoint) goes to `<runs>/<run_id>/`. `namespace` marks this lab's
    processes, so that those which a killed program left behind are found again. Of the machine's files a run sees
    what it needs to start, and what `readable` names when the run begins.
    """

    name = "local"

    def __init__(
        self,
        runs: Path,
        python: Path,
        environment: Mapping[str, str],
        namespace: str,
        sandbox: Sandbox,
        limits: Limits = NO_LIMITS,
        readable: Callable[[], Sequence[Path]] = tuple,
    ) -> None:
        self.runs = runs
        self.python = python
        self.environment = environment
        self.namespace = namespace
        self.confinement = sandbox
        self.limits = limits
        self.readable = readable

    @property
    def sandbox(self) -> str:
        return self.confinement.name

    def end_leftovers(self) -> int:
        """End what an earlier, killed program left running and remove its files; returns the number of processes."""
        ended = process.end_marked(self.namespace)
        shutil.rmtree(self.runs.parent / SCRATCH, ignore_errors=True)
        return ended

    def run(self, request: RunRequest, progress: Progress, serve: Serve) -> RunResult:
        """See `interfaces.Executor`.

        Raises:
            NoInterpreterError: the lab's Python is gone since the campaign was begun.
        """
        directory = self.runs / request.run_id
        shutil.rmtree(directory, ignore_errors=True)
        scratch = self._scratch(request)
        shutil.rmtree(scratch, ignore_errors=True)
        frozen = lay_out(request, scratch)
        compiled = Compiled(self.runs.parent / COMPILED, directory / COMPILED)
        with contextlib.suppress(OSError):  # it can do without
            compiled.lend()
        watch = _Watcher(directory, progress)
        try:
            with Channel(serve) as channel:
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
        )

    def _scratch(self, request: RunRequest) -> Path:
        """Apart from what the run may write freely, so that its frozen files can be held."""
        return self.runs.parent / SCRATCH / request.run_id.replace("/", "-")

    def _run(
        self, request: RunRequest, directory: Path, frozen: Sequence[str], watch: _Watcher, channel: Channel
    ) -> tuple[process.Ended, str]:
        """How the run ended, and why it was ended where it used more than it may."""
        scratch, mark = self._scratch(request), f"{self.namespace}/{request.run_id}"
        rules = Rules(
            directory=scratch,
            writable=(directory,),
            readable=tuple(self.readable()),
            frozen=tuple(scratch / name for name in frozen),
            pass_fds=channel.pass_fds,
            limits=self.limits,
        )
        limit, began = Watch(mark, self.limits, (directory, scratch)), time.monotonic()

        def poll(at: float) -> None:
            channel.started()
            watch(at)
            limit(at)
            hold_to_length(directory)

        environment = run_environment(self.environment, directory, request.seed)
        environment |= {name: str(directory / COMPILED / name.lower()) for name in COMPILERS} | channel.environment
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
        return process.Ended(signalled(ended.exit_code), ended.seconds), ""


def hold_to_length(directory: Path) -> None:
    """End a run that writes without an end: somebody has to read it.

    Raises:
        EndRun: its log, curve or events are too long.
    """
    for name in (LOG, CURVE, EVENTS):
        with contextlib.suppress(OSError):  # not there yet
            if (directory / name).lstat().st_size > LONGEST_FILE:
                raise EndRun(f"it wrote more than {LONGEST_FILE // 2**20} MiB of {name}")


def tidy(directory: Path) -> None:
    """Remove what a run has left beside its own files, which nobody would ever read."""
    with contextlib.suppress(OSError):
        directory.chmod(0o755)  # a run may have shut it, so that nothing is removed
        for path in directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name not in LEFT or path.is_symlink():
                path.unlink(missing_ok=True)


def say_leftover(log: Path, left: int) -> None:
    """Tell in a run's log that its processes have ended and so many bytes of GPU memory are not free again."""
    if left:
        words = f"autoresearch: {left / usage.GIBIBYTE:.2f} GiB of GPU memory of this run are still held after its end"
        # The run may have put a link or a pipe in its log's place.
        flags = os.O_WRONLY | os.O_APPEND | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK"))
        with contextlib.suppress(OSError), os.fdopen(os.open(log, flags), "a") as file:
            file.write(f"\n{words}\n")


def signalled(code: int | None) -> int | None:
    """An exit code, negative where a signal ended the run; bubblewrap and shells say 128 more than its number."""
    return code if code is None or not 128 < code < 128 + signal.NSIG else 128 - code


def lay_out(request: RunRequest, scratch: Path) -> dict[str, bytes]:
    """Write a commit's files and the run's side of the protocol; returns those that the run must not change."""
    files = {**request.files, RUN_SIDE: Path(trial.__file__).read_bytes()}
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

    def __init__(self, serve: Serve) -> None:
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
        """The run has its end: let go of it, so that its death is heard."""
        if self._sockets:
            self._sockets[1].close()

    def __exit__(self, *error: object) -> None:
        if self._sockets:
            self._sockets[1].close()
            with contextlib.suppress(OSError):
                self._sockets[0].shutdown(socket.SHUT_RDWR)
            self._thread.join()
            self._sockets[0].close()


class Compiled:
    """Lends each run a copy of what the compilers kept of the baseline, the person's own code.

    Only a baseline's own is taken back, so that no run can leave anything for the next.
    """

    def __init__(self, trusted: Path, own: Path) -> None:
        self._trusted = trusted
        self._own = own

    def lend(self) -> None:
        if self._trusted.is_dir():
            shutil.copytree(self._trusted, self._own)
        else:
            self._own.mkdir(parents=True)

    def take_back(self, *, trusted: bool) -> None:
        if trusted and any(self._own.rglob("*")):
            shutil.rmtree(self._trusted, ignore_errors=True)
            with contextlib.suppress(OSError):
                shutil.move(self._own, self._trusted)
        shutil.rmtree(self._own, ignore_errors=True)


class _Watcher:
    """Collects a run's events as they come, and passes them and the curve on."""

    def __init__(self, directory: Path, progress: Progress) -> None:
        self.watch = RunWatch(directory)
        self.progress = progress
        self.seen: list[RunEvent] = []
        self.steps = 0
        self.curve_due = 0.0

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


def _is(path: Path, content: bytes) -> bool:
    """Whether a file is a plain file with that content."""
    try:
        return not path.is_symlink() and path.read_bytes() == content
    except OSError:
        return False
