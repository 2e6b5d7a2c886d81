"""Serves a model on this machine: OpenAI's completions API over HTTP, and a small page to try it.

It listens only on loopback, and answers only its own page: a request must name loopback as its host and be JSON, which
a browser lets no other site send here. It generates one text at a time; others wait in line.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import secrets
import socket
import string
import time
from collections.abc import AsyncGenerator, Callable
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import uvicorn
from pydantic import BaseModel, Field, ValidationError, model_validator
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from autoresearch.base.errors import UserError
from autoresearch.models import sampling
from autoresearch.models.sampling import LONGEST_PROMPT, Piece, Sampler
from autoresearch.models.saved_model import Model

HOST = "127.0.0.1"
HOSTS = [HOST, "localhost"]  # names a browser may know it by; any other name was made to point here
PAGE = Path(__file__).with_name("sample.html")
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
MOST_PROMPTS = 64
MOST_STOPS = 4
MOST_BODY = 16 * 2**20  # bytes of a request
SECONDS_TO_ASK = 20.0  # for the head of a request, and again for its body: whoever is slower is not answered
SECONDS_TO_END = 2


class StreamOptions(BaseModel):
    include_usage: bool = False


class Completion(BaseModel):
    """A request in OpenAI's format, plus `top_k`. Ignores everything that is not listed here."""

    model: str | None = None
    prompt: str | list[str] = ""
    max_tokens: int = Field(default=16, ge=1)
    temperature: float = Field(default=1.0, ge=0, le=100)
    top_k: int | None = Field(default=None, ge=1)
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: Literal[1] = 1
    best_of: Literal[1] = 1
    echo: Literal[False] = False
    top_p: float = Field(default=1, ge=1, le=1)
    presence_penalty: float = Field(default=0, ge=0, le=0)
    frequency_penalty: float = Field(default=0, ge=0, le=0)
    logit_bias: dict[str, float] = Field(default={}, max_length=0)
    logprobs: None = None
    suffix: None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values: Any) -> Any:
        return {name: value for name, value in values.items() if value is not None} if type(values) is dict else values

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class Endpoint:
    """The routes of one model."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.line = sampler, asyncio.Lock()

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", self.page),
                Route("/v1/models", self.models),
                Route("/v1/models/{name}", self.one_model),
                Route("/v1/completions", self.complete, methods=["POST"]),
            ],
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)],
            exception_handlers={HTTPException: refused, UserError: failed},
        )

    async def page(self, request: HttpRequest) -> Response:
        model = self.sampler.model
        told = {"name": model.name, "idea": model.idea, "val_bpb": f"{model.val_bpb or 0:.4f}"}
        safe = {name: html.escape(text) for name, text in told.items()}
        text = string.Template(PAGE.read_text(encoding="utf-8")).substitute(safe)
        return HTMLResponse(text, headers={"Content-Security-Policy": POLICY})

    async def models(self, request: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [described(self.sampler.model)]})

    async def one_model(self, request: HttpRequest) -> Response:
        self._check(request.path_params["name"])
        return JSONResponse(described(self.sampler.model))

    async def complete(self, request: HttpRequest) -> Response:
        wanted = await read(request)
        self._check(wanted.model)
        head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.sampler.model.name,
        }
        if wanted.stream:
            return Events(self._events(wanted, head), media_type="text/event-stream")
        return await self._whole(request, wanted, head)

    def _check(self, name: str | None) -> None:
        if name not in (None, self.sampler.model.name):
            raise HTTPException(404, f"there is no model {name!r} here, only {self.sampler.model.name}")

    async def _whole(self, request: HttpRequest, wanted: Completion, head: dict[str, Any]) -> Response:
        texts: list[list[str]] = [[] for _ in wanted.prompts]
        last: dict[int, Piece] = {}
        async with contextlib.aclosing(self._pieces(wanted)) as pieces:
            async for index, piece in pieces:
                texts[index].append(piece.text)
                last[index] = piece
                if await request.is_disconnected():
                    return Response(status_code=499)
        choices = [choice(index, "".join(text), last[index].finish) for index, text in enumerate(texts)]
        return JSONResponse({**head, "choices": choices, "usage": usage(last)})

    async def _events(self, wanted: Completion, head: dict[str, Any]) -> AsyncGenerator[str]:
        last: dict[int, Piece] = {}
        try:
            async with contextlib.aclosing(self._pieces(wanted)) as pieces:
                async for index, piece in pieces:
                    last[index] = piece
                    if piece.text or piece.finish:
                        yield event({**head, "choices": [choice(index, piece.text, piece.finish)]})
            if wanted.stream_options.include_usage:
                yield event({**head, "choices": [], "usage": usage(last)})
        except UserError as error:
            yield event(problem(str(error), 500))
        yield "data: [DONE]\n\n"

    async def _pieces(self, wanted: Completion) -> AsyncGenerator[tuple[int, Piece]]:
        """Each piece with the number of its prompt. Closing this ends the text."""
        async with self.line:
            for index, prompt in enumerate(wanted.prompts):
                made = self.sampler.generate(
                    sampling.Request(
                        prompt, wanted.max_tokens, wanted.temperature, wanted.top_k, wanted.seed, wanted.stops
                    )
                )
                try:
                    async for piece in iterate_in_threadpool(made):
                        yield index, piece
                finally:
                    with contextlib.suppress(ValueError):  # a thread is still waiting in it for a model that is ended
                        made.close()


class Events(StreamingResponse):
    """A stream that is closed when its reader is gone, not when the garbage is collected."""

    async def stream_response(self, send: Send) -> None:
        async with contextlib.aclosing(self.body_iterator):  # type: ignore[type-var]
            await super().stream_response(send)


# ---------------------------------------------------------------- what is asked


async def read(request: HttpRequest) -> Completion:
    """The request.

    Raises:
        HTTPException: it is not a valid one, and why.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(400, "send JSON, with the header Content-Type: application/json")
    try:
        wanted = Completion.model_validate_json(await body(request))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][:1])) or "the body"
        raise HTTPException(400, f"{where}: {first['msg']}") from error
    if len(wanted.prompts) > MOST_PROMPTS or any(len(text) > LONGEST_PROMPT for text in wanted.prompts):
        raise HTTPException(400, f"prompt: at most {MOST_PROMPTS} of at most {LONGEST_PROMPT} characters")
    return wanted


async def body(request: HttpRequest) -> bytes:
    """The body, which must not be long or slow.

    Raises:
        HTTPException: it is.
    """
    found = bytearray()
    try:
        async with asyncio.timeout(SECONDS_TO_ASK):
            async for part in request.stream():
                found += part
                if len(found) > MOST_BODY:
                    raise HTTPException(413, f"the request is too long: at most {MOST_BODY // 2**20} MiB")
    except TimeoutError:
        raise HTTPException(408, f"the request did not arrive within {SECONDS_TO_ASK:g} seconds") from None
    except ClientDisconnect:
        raise HTTPException(400, "the request broke off") from None
    return bytes(found)


# ---------------------------------------------------------------- what is answered


def described(model: Model) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": 0, "owned_by": "autoresearch"}


def choice(index: int, text: str, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


def usage(last: dict[int, Piece]) -> dict[str, int]:
    prompt, made = (sum(getattr(piece, name) for piece in last.values()) for name in ("prompt_tokens", "tokens"))
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def event(values: dict[str, Any]) -> str:
    return f"data: {json.dumps(values)}\n\n"


def problem(message: str, status: int, path: str = "") -> dict[str, Any]:
    """An error as OpenAI's API has it. A 404 with a `path` is about that, without one about a model."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = "model_not_found" if status == 404 and not path else None
    if path:
        message = f"{message}: {path}; there are /, /v1/models and, with POST, /v1/completions"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


async def refused(request: HttpRequest, error: Exception) -> Response:
    status, detail = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, str(error))
    unknown = detail in (HTTPStatus.NOT_FOUND.phrase, HTTPStatus.METHOD_NOT_ALLOWED.phrase)
    return JSONResponse(problem(detail, status, request.url.path if unknown else ""), status)


async def failed(request: HttpRequest, error: Exception) -> Response:
    return JSONResponse(problem(str(error), 500), 500)


# ---------------------------------------------------------------- the server


class Server(uvicorn.Server):
    """Ends with its model, and ends it before waiting for answers in progress, which may never end."""

    def __init__(self, sampler: Sampler) -> None:
        super().__init__(
            uvicorn.Config(
                Endpoint(sampler).app(),
                http=H11Protocol,
                ws="none",
                lifespan="off",
                log_level="warning",
                timeout_graceful_shutdown=SECONDS_TO_END,
            )
        )
        self.sampler = sampler
        self._asking: dict[H11Protocol, float] = {}  # connections without the head of a request, and since when

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.sampler.end()
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Called about ten times a second. Closes connections on which no request comes."""
        now = time.monotonic()
        every = [one for one in self.server_state.connections if isinstance(one, H11Protocol)]
        asking = [one for one in every if one.cycle is None or one.cycle.response_complete]
        self._asking = {one: self._asking.get(one, now) for one in asking}
        for one, since in self._asking.items():
            if now - since > SECONDS_TO_ASK:
                one.transport.close()
        return await super().on_tick(counter) or self.sampler.is_over


def serve(sampler: Sampler, port: int, ready: Callable[[str], None]) -> None:
    """Answer until SIGINT or SIGTERM, which raise KeyboardInterrupt at the end. `ready` receives the address.

    Raises:
        UserError: the port is taken, or the model has ended.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise UserError(f"port {port} is not available ({error.strerror}): choose another with `--port`") from error
        listener.listen()
        ready(f"http://{HOST}:{listener.getsockname()[1]}")
        Server(sampler).run(sockets=[listener])
        raise sampler.ended()  # a signal would have been raised again
