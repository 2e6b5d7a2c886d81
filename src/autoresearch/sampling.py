"""Lets a kept model write text: its train.py is nobody's friend, so it runs in the sandbox of a run, and is asked.

The process answers one request at a time, by the messages of a trial: it asks for a request, then for each token that
it made whether more is wanted. `generating.py` is its side.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import queue
import random
import socket
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoresearch import diagnosis, process, trial, watching
from autoresearch.errors import EndRun, NoInterpreterError, UserError
from autoresearch.executors.local import NO_LIMITS, TAIL_BYTES, Channel, hold_to_length, signalled
from autoresearch.models import Model
from autoresearch.sandbox import Limits, Rules, Sandbox, Watch
from autoresearch.trial import ENTRY, LOG, ProtocolError, receive, send

WRITER = Path(__file__).with_name("generating.py")
WRITER_NAME = "autoresearch_sample.py"
LONGEST_PROMPT = 100_000  # characters
LONGEST_PIECE = 1_000  # characters: one token makes no more
MOST_NOTES = 10  # that a process may have said to the person
# train.py compiles its model, which would be compiled anew for each length of a text.
NOT_COMPILED = {"TORCH_COMPILE_DISABLE": "1", "TORCHDYNAMO_DISABLE": "1"}
SECONDS_TO_END = 5.0
FINISHES = ("stop", "length")


@dataclass(frozen=True)
class Request:
    """What is wanted of a model; `top_k` None is the whole vocabulary, temperature 0 the most probable token."""

    prompt: str
    max_tokens: int = 200
    temperature: float = 0.8
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """The next piece of a text, what has been counted so far, and in the last one why it ended: stop or length."""

    text: str
    prompt_tokens: int
    tokens: int
    finish: str | None = None


@dataclass(frozen=True)
class Cell:
    """Where a model's process runs: by which Python, with which variables, how confined."""

    python: Path
    environment: Mapping[str, str]
    sandbox: Sandbox
    limits: Limits = NO_LIMITS
    readable: Sequence[Path] = ()


class Sampler:
    """A model at work, from `with` to its end; one request at a time. `say` hears what a person should know."""

    def __init__(
        self, model: Model, cell: Cell, *, device: str = "auto", cache: bool = True, say: Callable[[str], None]
    ) -> None:
        self.model, self.cell, self.say = model, cell, say
        self._settings = json.dumps({"checkpoint": str(model.checkpoint), "device": device, "cache": cache})
        self._over, self._why, self._said = threading.Event(), "", set[str]()
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Sampler:
        """Start the process and wait until the model is there.

        Raises:
            UserError: train.py gives no model, or not the one that the weights are of.
        """
        if os.name != "posix":
            raise UserError("sampling needs Linux or macOS: run it there, or in WSL")
        with contextlib.ExitStack() as undo:
            scratch = Path(undo.enter_context(_scratch()))
            for path, content in self._files().items():
                (scratch / path).parent.mkdir(parents=True, exist_ok=True)
                (scratch / path).write_bytes(content)
            sockets: queue.Queue[socket.socket] = queue.Queue()
            channel = undo.enter_context(Channel(sockets.put))
            self._socket = sockets.get()
            words = self._words(scratch, channel)
            thread = threading.Thread(target=self._run, args=(words, scratch, channel), name="sampler", daemon=True)
            thread.start()
            undo.callback(thread.join)
            undo.callback(self._over.set)
            self._thread = thread
            self._expect_ready()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def end(self) -> None:
        """End the model, whatever it is at; whoever waits for it gets a UserError at once."""
        self._over.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def generate(self, request: Request) -> Generator[Piece]:
        """The text that follows a prompt, piece by piece as it is made; to close the iterator ends it.

        Raises:
            UserError: the prompt is too long, or the model fails.
        """
        if len(request.prompt) > LONGEST_PROMPT:
            raise UserError(f"the prompt is longer than {LONGEST_PROMPT} characters: shorten it")
        pieces = self._pieces(request)
        return until_stop(pieces, request.stop) if request.stop else pieces

    def _pieces(self, request: Request) -> Generator[Piece]:
        self._tell(
            prompt=request.prompt,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_k=request.top_k,
            seed=random.getrandbits(32) if request.seed is None else request.seed % 2**63,
        )
        owed = False  # an answer to what it made
        try:
            for tokens in itertools.count(1):
                message = self._hear()
                owed = message["ask"] == "more"
                if owed and tokens > request.max_tokens:
                    yield replace(piece(message, request.max_tokens), text="", finish="length")
                    return
                yield piece(message, tokens if owed else tokens - 1)
                if not owed:
                    return
                owed = False
                self._tell(more=True)
        finally:
            if owed and not self.is_over:
                self._break_off()

    def _break_off(self) -> None:
        """Tell it that no more is wanted; one that does not listen is ended, as the next request will say."""
        with contextlib.suppress(UserError):
            self._tell(more=False)
            self._socket.settimeout(SECONDS_TO_END)
            self._expect_ready()
            self._socket.settimeout(None)

    # ------------------------------------------------------------ what is said between the two

    def _tell(self, **values: Any) -> None:
        try:
            send(self._socket, values)
        except OSError as error:
            raise self.ended() from error

    def _hear(self) -> dict[str, Any]:
        """What the process says next.

        Raises:
            UserError: it failed, in its own words, or has ended.
        """
        try:
            message, _ = receive(self._socket)
        except TimeoutError as error:
            raise self._broken("it does not answer") from error
        except (EOFError, OSError) as error:
            raise self.ended() from error
        except ProtocolError as error:
            raise self._broken(str(error)) from error
        if message.get("ask") not in ("request", "more"):
            raise self._broken(
                f"it asked for {str(message.get('ask'))[:20]!r}: is `main()` of {ENTRY} called on import?"
            )
        if "failed" in message:
            raise UserError(f"the model of trial {self.model.trial} fails: {one_line(message['failed'])}")
        note = one_line(message.get("note") or "")
        if note and note not in self._said and len(self._said) < MOST_NOTES:
            self._said.add(note)
            self.say(note)
        return message

    def _expect_ready(self) -> None:
        if self._hear()["ask"] != "request":
            raise self._broken("it gives text that nobody asked for")

    def _broken(self, how: str) -> UserError:
        self._why = f"it does not keep to what was agreed ({how})"
        self.end()
        return UserError(f"the process of trial {self.model.trial} does not keep to what was agreed ({how})")

    def ended(self) -> UserError:
        """What to say of a process that has ended, or has hung up and is ended."""
        if not self.is_over:
            self._thread.join(SECONDS_TO_END)
            self.end()
            self._thread.join()
        return UserError(f"the process of trial {self.model.trial} has ended: {one_line(self._why or 'it is over')}")

    # ------------------------------------------------------------ the process

    def _files(self) -> dict[str, bytes]:
        own = {WRITER_NAME: WRITER.read_bytes(), trial.RUN_SIDE: Path(trial.__file__).read_bytes()}
        return {**self.model.files, **own}

    def _words(self, scratch: Path, channel: Channel) -> list[str]:
        rules = Rules(
            directory=scratch,
            readable=(self.model.checkpoint, *self.cell.readable),
            pass_fds=channel.pass_fds,
            limits=self.cell.limits,
        )
        try:
            return self.cell.sandbox.command([str(self.cell.python), WRITER_NAME, self._settings], rules)
        except FileNotFoundError as error:
            raise NoInterpreterError(self.cell.python) from error

    def _run(self, words: Sequence[str], scratch: Path, channel: Channel) -> None:
        mark = f"sample:{scratch}"
        watch = Watch(mark, self.cell.limits, (scratch,))

        def poll(at: float) -> None:
            channel.started()
            if self._over.is_set():
                raise EndRun("it is over")
            watch(at)
            hold_to_length(scratch)

        try:
            ended = process.run_group(
                words,
                directory=scratch,
                environment={**self.cell.environment, **NOT_COMPILED, **channel.environment},
                log=scratch / LOG,
                deadline_seconds=math.inf,
                mark=mark,
                poll=poll,
                pass_fds=channel.pass_fds,
            )
            log = watching.tail(scratch / LOG, TAIL_BYTES)
            self._why = self._why or diagnosis.diagnose(signalled(ended.exit_code), log, math.inf).detail
        except EndRun as error:
            self._why = self._why or str(error)
        except Exception as error:  # whatever it is must not leave the other thread waiting
            self._why = f"{type(error).__name__}: {error}"
        finally:
            self.end()


def _scratch() -> tempfile.TemporaryDirectory[str]:
    # What lies in it is the process's, which may have made it hard to remove.
    return tempfile.TemporaryDirectory(prefix="autoresearch-sample-", ignore_cleanup_errors=True)


# ---------------------------------------------------------------- texts


def piece(message: Mapping[str, Any], tokens: int) -> Piece:
    """A piece from what the process says, whatever that is, of a text that has so many tokens with it."""
    text, finish, prompt = message.get("text"), message.get("finish"), message.get("prompt_tokens")
    last = None if message["ask"] == "more" else finish if finish in FINISHES else "stop"
    text = text[:LONGEST_PIECE] if isinstance(text, str) else ""
    return Piece(text, prompt if isinstance(prompt, int) else 0, tokens, last)


def until_stop(pieces: Generator[Piece], stops: Sequence[str]) -> Generator[Piece]:
    """The same text up to the first of the `stops`, of which nothing is let through."""
    held = ""
    with contextlib.closing(pieces):
        for each in pieces:
            held += each.text
            found = [at for stop in stops if stop and (at := held.find(stop)) >= 0]
            if found:
                yield replace(each, text=held[: min(found)], finish="stop")
                return
            keep = 0 if each.finish else begun(held, stops)
            yield replace(each, text=held[: len(held) - keep])
            held = held[len(held) - keep :]


def begun(text: str, stops: Sequence[str]) -> int:
    """How many characters at a text's end may be the beginning of a stop."""
    lengths = (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
    return max(lengths, default=0)


def one_line(text: object) -> str:
    """A few printable characters of what an untrusted process said."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())[: diagnosis.LONGEST_LINE]
