"""A scripted language model on the loopback, that speaks the streaming protocols of the real coding agents' providers.

`/v1/messages` is Anthropic's Messages, `/v1/responses` OpenAI's Responses, `/v1beta/models/…` Google's generateContent.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

JSON = "application/json"
TOKENS_IN, TOKENS_OUT = 100, 10  # what each answer says that it cost


@dataclass(frozen=True)
class Call:
    """A call of one of the client's own tools; `arguments` is a text for a tool with a grammar of its own."""

    tool: str
    arguments: Mapping[str, Any] | str


@dataclass
class Model:
    """Answers with the script's next line: a tool call, or a text that ends the client's turn.

    The place in the script is the number of tool results that the client has sent, so that a repeated request gets
    the same answer. `broken` is the status and the body to answer everything with instead; one that `hangs` never
    answers.
    """

    script: Sequence[Call | str]
    broken: tuple[int, str] | None = None
    hangs: bool = False
    requests: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def line(self, results: int) -> Call | str:
        return self.script[min(results, len(self.script) - 1)]


@contextlib.contextmanager
def serve(model: Model) -> Iterator[str]:
    """Serve a model on 127.0.0.1; the address has no path."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
            model.requests.append(body)
            model.paths.append(self.path)
            if model.hangs:
                over.wait()
            status, kind, answer = reply(model, self.path, body)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def do_GET(self) -> None:
            model.paths.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815 - the names are the standard library's

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def reply(model: Model, path: str, body: dict[str, Any]) -> tuple[int, str, bytes]:
    """The status, the content type and the body of an answer."""
    if model.broken:
        return model.broken[0], JSON, model.broken[1].encode()
    route = path.split("?")[0]
    if route == "/v1/messages":
        return 200, "text/event-stream", events(messages_events(model, body))
    if route == "/v1/responses":
        return 200, "text/event-stream", events(responses_events(model, body))
    if route.startswith("/v1beta/models/"):
        answer = json.dumps(generated(model, body))
        streamed = route.endswith(":streamGenerateContent")
        return (200, "text/event-stream", f"data: {answer}\n\n".encode()) if streamed else (200, JSON, answer.encode())
    return 404, JSON, b"{}"


def events(items: Sequence[dict[str, Any]]) -> bytes:
    return "".join(f"event: {item['type']}\ndata: {json.dumps(item)}\n\n" for item in items).encode()


# ---------------------------------------------------------------- Anthropic's Messages


def messages_events(model: Model, body: dict[str, Any]) -> list[dict[str, Any]]:
    parts = [part for message in body["messages"] for part in message["content"] if isinstance(part, dict)]
    done = sum(part.get("type") == "tool_result" for part in parts)
    line = model.line(done) if body.get("tools") else "aside"
    if isinstance(line, str):
        block: dict[str, Any] = {"type": "text", "text": ""}
        delta = {"type": "text_delta", "text": line}
    else:
        block = {"type": "tool_use", "id": f"toolu_{done:04d}", "name": line.tool, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(line.arguments)}
    start = {
        "id": f"msg_{done:04d}",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": TOKENS_IN, "output_tokens": 0},
    }
    stop = "end_turn" if isinstance(line, str) else "tool_use"
    return [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": stop, "stop_sequence": None},
            "usage": {"output_tokens": TOKENS_OUT},
        },
        {"type": "message_stop"},
    ]


# ---------------------------------------------------------------- OpenAI's Responses


def responses_events(model: Model, body: dict[str, Any]) -> list[dict[str, Any]]:
    done = sum(item.get("type") in ("function_call_output", "custom_tool_call_output") for item in body["input"])
    line, name = model.line(done), f"{done:04d}"
    if isinstance(line, str):
        text = {"type": "output_text", "text": line, "annotations": []}
        item: dict[str, Any] = {"type": "message", "id": f"msg_{name}", "role": "assistant", "content": [text]}
    elif isinstance(line.arguments, str):
        item = {"type": "custom_tool_call", "id": f"ctc_{name}", "call_id": f"call_{name}", "name": line.tool}
        item["input"] = line.arguments
    else:
        item = {"type": "function_call", "id": f"fc_{name}", "call_id": f"call_{name}", "name": line.tool}
        item["arguments"] = json.dumps(line.arguments)
    usage = {
        "input_tokens": TOKENS_IN,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": TOKENS_OUT,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": TOKENS_IN + TOKENS_OUT,
    }
    answer = {"id": f"resp_{name}", "object": "response", "status": "completed", "output": [item], "usage": usage}
    return [
        {"type": "response.created", "response": {"id": f"resp_{name}"}},
        {"type": "response.output_item.done", "output_index": 0, "item": {**item, "status": "completed"}},
        {"type": "response.completed", "response": answer},
    ]


# ---------------------------------------------------------------- Google's generateContent


def generated(model: Model, body: dict[str, Any]) -> dict[str, Any]:
    done = sum("functionResponse" in part for content in body["contents"] for part in content["parts"])
    line = model.line(done) if body.get("tools") else "{}"
    part = {"text": line} if isinstance(line, str) else {"functionCall": {"name": line.tool, "args": line.arguments}}
    usage = {
        "promptTokenCount": TOKENS_IN,
        "candidatesTokenCount": TOKENS_OUT,
        "totalTokenCount": TOKENS_IN + TOKENS_OUT,
    }
    content = {"role": "model", "parts": [part]}
    return {"candidates": [{"content": content, "finishReason": "STOP", "index": 0}], "usageMetadata": usage}
