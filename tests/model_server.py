"""A language model's HTTP server on the loopback, in a thread: answers from a script, remembers what it heard."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

INPUT_TOKENS, OUTPUT_TOKENS = 1_000, 200


@dataclass(frozen=True)
class Say:
    """A reply in text."""

    text: str


@dataclass(frozen=True)
class Call:
    """A call of a tool."""

    tool: str
    arguments: Any


@dataclass(frozen=True)
class Fail:
    """An HTTP error."""

    status: int
    message: str = "it did not work"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Raw:
    """A body that is no model's answer."""

    body: str


@dataclass(frozen=True)
class Hang:
    """No answer at all, until the server is closed."""


Answer = Say | Call | Fail | Raw | Hang
Line = Answer | Callable[["Heard"], Answer]  # or a function of what was heard


@dataclass
class Heard:
    """A request as it came in."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        return json.dumps(self.body, ensure_ascii=False)


class ModelServer:
    """Gives the script's answers in order, the last one again and again; speaks both protocols."""

    def __init__(self, script: Sequence[Line]) -> None:
        self.script = list(script)
        self.heard: list[Heard] = []
        self.closing = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def next(self, heard: Heard) -> Answer:
        self.heard.append(heard)
        line = self.script[min(len(self.heard), len(self.script)) - 1]
        return line(heard) if callable(line) else line

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                heard = Heard(self.path, headers, body)
                answer = server.next(heard)
                if isinstance(answer, Hang):
                    server.closing.wait(60)
                    self.close_connection = True
                elif isinstance(answer, Fail):
                    error = {"error": {"type": "test_error", "message": answer.message}}
                    self._send(answer.status, json.dumps(error), answer.headers)
                elif isinstance(answer, Raw):
                    self._send(200, answer.body, {})
                else:
                    self._answer(heard, answer)

            def _answer(self, heard: Heard, answer: Say | Call) -> None:
                if heard.path.endswith("/chat/completions"):
                    self._send(200, json.dumps(chat_completion(heard, answer)), {})
                elif heard.path.endswith("/responses"):
                    self._send(200, json.dumps(response(heard, answer)), {})
                elif heard.body.get("stream"):
                    self._send(200, message_events(heard, answer), {"Content-Type": "text/event-stream"})
                else:
                    self._send(200, json.dumps(message(heard, answer)), {})

            def _send(self, status: int, text: str, headers: dict[str, str]) -> None:
                data = text.encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        return Handler


@contextmanager
def model_server(*script: Line) -> Iterator[ModelServer]:
    server = ModelServer(script)
    try:
        yield server
    finally:
        server.close()


# ---------------------------------------------------------------- OpenAI's protocols


def chat_completion(heard: Heard, answer: Say | Call) -> dict[str, Any]:
    if isinstance(answer, Say):
        message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    else:
        function = {"name": answer.tool, "arguments": json.dumps(answer.arguments)}
        message = {"role": "assistant", "content": None}
        message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
    usage = {"prompt_tokens": INPUT_TOKENS, "completion_tokens": OUTPUT_TOKENS}
    return {
        "id": "chat-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": heard.body["model"],
        "choices": [
            {"index": 0, "message": message, "finish_reason": "stop" if isinstance(answer, Say) else "tool_calls"}
        ],
        "usage": {**usage, "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS},
    }


def response(heard: Heard, answer: Say | Call) -> dict[str, Any]:
    if isinstance(answer, Say):
        content = [{"type": "output_text", "text": answer.text, "annotations": []}]
        item: dict[str, Any] = {"type": "message", "id": "msg_1", "role": "assistant", "content": content}
    else:
        item = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": answer.tool}
        item["arguments"] = json.dumps(answer.arguments)
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_700_000_000,
        "status": "completed",
        "model": heard.body["model"],
        "output": [{**item, "status": "completed"}],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": INPUT_TOKENS,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": OUTPUT_TOKENS,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
        },
    }


# ---------------------------------------------------------------- Anthropic's protocol


def message(heard: Heard, answer: Say | Call) -> dict[str, Any]:
    if isinstance(answer, Say):
        block: dict[str, Any] = {"type": "text", "text": answer.text}
    else:
        block = {"type": "tool_use", "id": "toolu_1", "name": answer.tool, "input": answer.arguments}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": heard.body["model"],
        "content": [block],
        "stop_reason": "end_turn" if isinstance(answer, Say) else "tool_use",
        "stop_sequence": None,
        "usage": {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS},
    }


def message_events(heard: Heard, answer: Say | Call) -> str:
    whole = message(heard, answer)
    block = whole["content"][0]
    if isinstance(answer, Say):
        empty, delta = {"type": "text", "text": ""}, {"type": "text_delta", "text": answer.text}
    else:
        empty = {**block, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(answer.arguments)}
    events = [
        {"type": "message_start", "message": {**whole, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": empty},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": whole["stop_reason"], "stop_sequence": None},
            "usage": {"output_tokens": OUTPUT_TOKENS},
        },
        {"type": "message_stop"},
    ]
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
