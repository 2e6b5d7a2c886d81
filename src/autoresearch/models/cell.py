"""Where a kept model's process runs: confined like a run, in a directory of its own, watched to its end.

Its train.py is not trusted. `sampling.py` keeps such a process and talks to it, `examination.py` waits for its answers.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoresearch.base import process
from autoresearch.base.errors import NoInterpreterError
from autoresearch.executors import run_output
from autoresearch.executors.local import NO_LIMITS, TAIL_BYTES, hold_to_length, signaled
from autoresearch.executors.sandbox.rules import Limits, Rules, Sandbox, python_path
from autoresearch.executors.sandbox.watch import Watch
from autoresearch.grading import diagnosis, protocol
from autoresearch.grading.protocol import LOG
from autoresearch.ledger.report import printable_line

# decoding.py, which loads a model, under the name it has in the process's directory
LOADER = Path(__file__).with_name("decoding.py")
LOADER_NAME = "autoresearch_sample.py"
# train.py compiles its model, which would be compiled again for each length of a text.
NOT_COMPILED = {"TORCH_COMPILE_DISABLE": "1", "TORCHDYNAMO_DISABLE": "1"}


@dataclass(frozen=True)
class Cell:
    """Where a model's process runs: which Python, which variables, how confined."""

    python: Path
    environment: Mapping[str, str]
    sandbox: Sandbox
    limits: Limits = NO_LIMITS
    readable: Sequence[Path] = ()

    def command(
        self, words: Sequence[str], scratch: Path, checkpoint: Path, pass_fds: tuple[int, ...] = ()
    ) -> list[str]:
        """The command that runs Python with these words in a directory, where it can read the checkpoint.

        Raises:
            NoInterpreterError: the lab's Python disappeared.
        """
        rules = Rules(
            directory=scratch,
            readable=(checkpoint, *self.readable, *python_path(self.environment, scratch)),
            pass_fds=pass_fds,
            limits=self.limits,
        )
        try:
            return self.sandbox.command([str(self.python), *words], rules)
        except FileNotFoundError as error:
            raise NoInterpreterError(self.python) from error

    def run(
        self,
        command: Sequence[str],
        scratch: Path,
        *,
        deadline_seconds: float,
        poll: Callable[[], None] = lambda: None,
        environment: Mapping[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> tuple[int | None, str]:
        """Run a command to its end. Returns its exit code, and what its end and its log say of it.

        Raises:
            EndRun: it used more than it may, or `poll` raised it.
        """
        mark = f"model:{scratch}"
        watch = Watch(mark, self.limits, (scratch,))

        def check(at: float) -> None:
            poll()
            watch(at)
            hold_to_length(scratch)

        ended = process.run_group(
            command,
            directory=scratch,
            environment={**self.environment, **NOT_COMPILED, **(environment or {})},
            log=scratch / LOG,
            deadline_seconds=deadline_seconds,
            mark=mark,
            poll=check,
            pass_fds=pass_fds,
        )
        code, log = signaled(ended.exit_code), run_output.tail(scratch / LOG, TAIL_BYTES)
        return code, diagnosis.diagnose(code, log, deadline_seconds).detail


@contextlib.contextmanager
def laid_out(files: Mapping[str, bytes]) -> Iterator[Path]:
    """A directory of its own for a model's process: its files, what loads it, and the run's side of the protocol."""
    own = {LOADER_NAME: LOADER.read_bytes(), protocol.RUN_SIDE: Path(protocol.__file__).read_bytes()}
    # The process owns what is in it, and may have made it hard to remove.
    with tempfile.TemporaryDirectory(prefix="autoresearch-model-", ignore_cleanup_errors=True) as directory:
        scratch = Path(directory).resolve()
        for path, content in {**files, **own}.items():
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            (scratch / path).write_bytes(content)
        yield scratch


def one_line(text: object) -> str:
    """A few printable characters of what an untrusted process said."""
    return printable_line(str(text))[: diagnosis.LONGEST_LINE]
