"""Generates text with a kept model. Its train.py is not trusted, so it runs in the same sandbox as a run.

The process answers one request at a time with the messages of the grading protocol: it asks for a request, and then for
each generated token whether more are wanted. `decoding.py` is its side.
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
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoresearch.base.errors import EndRun, UserError
from autoresearch.executors.local import Channel
from autoresearch.grading.protocol import ENTRY, ProtocolError, receive, send
from autoresearch.models.cell import LOADER_NAME, Cell, laid_out, one_line
from autoresearch.models.saved_model import Model

LONGEST_PROMPT = 100_000  # characters
LONGEST_PIECE = 1_000  # characters: one token cannot make more
MOST_NOTES = 10  # lines that a process may show to the user
SECONDS_TO_END = 5.0
FINISHES = ("stop", "length")


@dataclass(frozen=True)
class Request:
    """What is wanted from a model. `top_k` None means the whole vocabulary, temperature 0 the most probable token."""

    prompt: str
    max_tokens: int = 200
    temperature: float = 0.8
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """The next piece of a text and the counts so far. The last piece says why it ended: stop or length."""

    text: str
    prompt_tokens: int
    tokens: int
    finish: str | None = None


class Sampler:
    """A running model, from `with` to its end, with one request at a time. `say` receives what the user should know."""

    def __init__(
        self, model: Model, cell: Cell, *, device: str = "auto", cache: bool = True, say: Callable[[str], None]
    ) -> None:
        self.model, self.cell, self.say = model, cell, say
        self._settings = json.dumps({"checkpoint": str(model.checkpoint), "device": device, "cache": cache})
        self._over, self._why, self._said = threading.Event(), "", set[str]()
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Sampler:
        """Start the process and wait until the model is loaded.

        Raises:
            UserError: train.py gives no model, or not the one that the weights belong to.
        """
        if os.name != "posix":
            raise UserError("sampling needs Linux or macOS: run it there, or in WSL")
        with contextlib.ExitStack() as undo:
            scratch = undo.enter_context(laid_out(self.model.files))
            sockets: queue.Queue[socket.socket] = queue.Queue()
            channel = undo.enter_context(Channel(sockets.put))
            self._socket = sockets.get()
            command = self.cell.command([LOADER_NAME, self._settings], scratch, self.model.checkpoint, channel.pass_fds)
            thread = threading.Thread(target=self._run, args=(command, scratch, channel), name="sampler", daemon=True)
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
        """End the model, whatever it is doing. Anyone who waits for it gets a UserError right away."""
        self._over.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def generate(self, request: Request) -> Generator[Piece]:
        """The text that follows a prompt, piece by piece as it is generated. Closing the iterator ends it.

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
        owed = False  # an answer to a token it generated
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
        """Say that no more is wanted. If it does not respond it is ended, as the next request will report."""
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
            raise self._broken("it sent text that was not asked for")

    def _broken(self, how: str) -> UserError:
        self._why = f"it broke the protocol ({how})"
        self.end()
        return UserError(f"the process of trial {self.model.trial} broke the protocol ({how})")

    def ended(self) -> UserError:
        """What to say about a process that has ended, or has hung up and is ended now."""
        if not self.is_over:
            self._thread.join(SECONDS_TO_END)
            self.end()
            self._thread.join()
        return UserError(f"the process of trial {self.model.trial} has ended: {one_line(self._why or 'it is over')}")

    # ------------------------------------------------------------ the process

    def _run(self, command: Sequence[str], scratch: Path, channel: Channel) -> None:
        def poll() -> None:
            channel.started()
            if self._over.is_set():
                raise EndRun("it is over")

        try:
            _, end = self.cell.run(
                command,
                scratch,
                deadline_seconds=math.inf,
                poll=poll,
                environment=channel.environment,
                pass_fds=channel.pass_fds,
            )
            self._why = self._why or end
        except EndRun as error:
            self._why = self._why or str(error)
        except Exception as error:  # whatever it is must not leave the other thread waiting
            self._why = f"{type(error).__name__}: {error}"
        finally:
            self.end()


# ---------------------------------------------------------------- texts


def piece(message: Mapping[str, Any], tokens: int) -> Piece:
    """A piece from what the process says, whatever that is, of a text that has `count` tokens with it."""
    text, finish, prompt = message.get("text"), message.get("finish"), message.get("prompt_tokens")
    last = None if message["ask"] == "more" else finish if finish in FINISHES else "stop"
    text = text[:LONGEST_PIECE] if isinstance(text, str) else ""
    return Piece(text, prompt if isinstance(prompt, int) else 0, tokens, last)


def until_stop(pieces: Generator[Piece], stops: Sequence[str]) -> Generator[Piece]:
    """The same text up to the first of the `stops`, with no part of the stop itself."""
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
