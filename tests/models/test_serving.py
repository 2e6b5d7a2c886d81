"""A served model over a real socket: OpenAI's format, its own page, who may ask, and what is left at the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from autoresearch.executors.sandbox.sandboxes import Nothing
from autoresearch.models import serving
from autoresearch.models.cell import Cell
from autoresearch.models.sampling import Sampler
from autoresearch.models.serving import Endpoint
from sampling_lab import FALLS_SILENT, SamplingLab, endless, make

LONG = 10**8  # tokens: days
STREAM = {"stream": True, "stream_options": {"include_usage": True}}


@dataclass(frozen=True)
class Served:
    process: subprocess.Popen[str]
    url: str

    def post(self, **values: object) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/completions", json=values, timeout=60)


def serve(lab: SamplingLab) -> Served:
    command = [sys.executable, "-m", "autoresearch", "sample", "--serve", "--port", "0", "--lab", str(lab.root)]
    process = subprocess.Popen(
        command, env=lab.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    line = process.stdout.readline()
    assert line.startswith("t-0 answers at http://127.0.0.1:"), line
    return Served(process, line.split()[3])


def stop(served: Served, number: signal.Signals = signal.SIGINT) -> tuple[int, list[psutil.Process]]:
    """The exit code, and what the server leaves behind."""
    family = psutil.Process(served.process.pid).children(recursive=True)
    assert family
    served.process.send_signal(number)
    said = served.process.communicate(timeout=60)[0]
    assert said == ""
    code = served.process.returncode
    return code, [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> SamplingLab:
    return endless(make(tmp_path_factory.mktemp("serving")))


@pytest.fixture(scope="module")
def served(lab: SamplingLab) -> Iterator[Served]:
    made = serve(lab)
    yield made
    assert stop(made) == (0, [])


def test_a_completion_is_in_openais_format(served: Served) -> None:
    answer = served.post(model="t-0", prompt="The", max_tokens=5, temperature=0).json()
    assert (answer["object"], answer["model"]) == ("text_completion", "t-0")
    (choice,) = answer["choices"]
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "length", None)
    used = answer["usage"]
    assert used["completion_tokens"] == 5
    assert used["total_tokens"] == used["prompt_tokens"] + 5
    again = served.post(prompt=["The", "of"], max_tokens=5, temperature=0, top_k=None, stop=["zzz"]).json()
    assert again["choices"][0]["text"] == choice["text"]
    assert [each["index"] for each in again["choices"]] == [0, 1]
    assert again["usage"]["completion_tokens"] == 10


def test_a_stream_gives_the_same_text(served: Served) -> None:
    wanted = {"prompt": "The", "max_tokens": 20, "seed": 7, "top_k": 50}
    whole = served.post(**wanted).json()["choices"][0]
    with httpx.stream("POST", f"{served.url}/v1/completions", json={**wanted, **STREAM}, timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    choices = [choice for event in events for choice in event["choices"]]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    assert choices[-1]["finish_reason"] == whole["finish_reason"]
    assert events[-1]["usage"]["completion_tokens"] <= 20


def test_openais_own_client_is_content(served: Served) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        (model,) = client.models.list()
        wanted = {"model": model.id, "prompt": "The", "max_tokens": 8, "temperature": 0}
        whole = client.completions.create(**wanted)
        assert whole.usage
        assert whole.usage.completion_tokens == 8
        parts = [part.choices[0].text for part in client.completions.create(**wanted, stream=True)]
        assert "".join(parts) == whole.choices[0].text
        with pytest.raises(openai.NotFoundError, match="only t-0"):
            client.completions.create(**{**wanted, "model": "gpt"})
        with pytest.raises(openai.BadRequestError, match="n: "):
            client.completions.create(**wanted, n=2)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ('{"prompt": 3}', "prompt"),
        ('{"prompt": [1, 2]}', "prompt"),
        ('{"temperature": -1}', "temperature"),
        ('{"max_tokens": 0}', "max_tokens"),
        ('{"logprobs": 2}', "logprobs"),
        ('{"presence_penalty": 1}', "presence_penalty"),
        ('{"frequency_penalty": 1}', "frequency_penalty"),
        ('{"logit_bias": {"5": 1}}', "logit_bias"),
        ('{"stop": ["a", "b", "c", "d", "e"]}', "stop"),
        ("[]", "the body"),
        ("{", "the body"),
        (json.dumps({"prompt": "x" * 100_001}), "prompt"),
    ],
)
def test_what_is_no_request_is_refused_and_why(served: Served, body: str, told: str) -> None:
    answer = httpx.post(f"{served.url}/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(told)


def test_an_unknown_path_is_not_called_a_missing_model(served: Served) -> None:
    nowhere = httpx.get(f"{served.url}/v1/nothing").json()["error"]
    assert nowhere["code"] is None
    assert nowhere["message"] == "Not Found: /v1/nothing; there are /, /v1/models and, with POST, /v1/completions"
    missing = served.post(model="gpt-4", prompt="The").json()["error"]
    assert (missing["code"], "only t-0" in missing["message"]) == ("model_not_found", True)


def test_a_request_that_is_too_long_is_refused_before_it_is_read(served: Served) -> None:
    def endless() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(64):
            yield b"x" * 2**20

    head = {"Content-Type": "application/json"}
    with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # the rest is not listened to
        answer = httpx.post(f"{served.url}/v1/completions", content=endless(), headers=head, timeout=60)
        assert answer.status_code == 413
        assert "at most 16 MiB" in answer.json()["error"]["message"]
    assert served.post(prompt="The", max_tokens=2).status_code == 200


@pytest.mark.parametrize("sent", ["", "POST /v1/comp", "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"])
def test_a_connection_on_which_no_request_comes_is_closed(monkeypatch: pytest.MonkeyPatch, sent: str) -> None:
    monkeypatch.setattr(serving, "SECONDS_TO_ASK", 0.5)
    with served_here() as port, socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(sent.encode())
        slow.settimeout(30)
        began = time.monotonic()
        assert slow.recv(100) == b""
        assert time.monotonic() - began > 0.4


def test_a_body_that_comes_too_slowly_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "SECONDS_TO_ASK", 0.5)
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99"
    with served_here() as port, socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(f"{head}\r\n\r\n{{".encode())
        slow.settimeout(30)
        assert b"408" in slow.recv(100)


@contextlib.contextmanager
def served_here() -> Iterator[int]:
    """The port of a server in this process, whose model is never asked."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = serving.Server(Idle())  # type: ignore[arg-type]
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join()


class Idle:
    """A sampler that is never asked."""

    is_over = False


def test_other_sites_cannot_ask(served: Served) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example"):
        assert httpx.get(f"{served.url}/v1/models", headers={"Host": host}).status_code == 400
    simple = httpx.post(f"{served.url}/v1/completions", content="{}", headers={"Content-Type": "text/plain"})
    assert simple.status_code == 400
    assert "access-control-allow-origin" not in httpx.get(f"{served.url}/v1/models").headers
    assert httpx.get(f"{served.url}/v2").json()["error"]["type"] == "invalid_request_error"


def test_the_page_needs_nothing_from_elsewhere(served: Served) -> None:
    page = httpx.get(served.url)
    assert page.status_code == 200
    assert "t-0" in page.text
    assert "$" not in page.text
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]


def test_an_idea_is_text_on_the_page(lab: SamplingLab) -> None:
    model = replace(lab.model(), idea='<script>alert("x")</script> for $5 and $name')
    sampler = Sampler(model, Cell(Path(sys.executable), {}, Nothing()), say=print)

    async def page() -> str:
        transport = httpx.ASGITransport(Endpoint(sampler).app())
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return (await client.get("/")).text

    text = asyncio.run(page())
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; for $5 and $name" in text
    assert text.count("<script>") == 1


def test_who_hangs_up_ends_the_text_and_others_wait_in_line(served: Served) -> None:
    wanted = {"prompt": "The", "max_tokens": LONG, "temperature": 0}
    with httpx.stream("POST", f"{served.url}/v1/completions", json={**wanted, "stream": True}, timeout=60) as endless:
        lines = endless.iter_lines()  # which hangs up when it is let go of
        next(lines)
        waiting: list[int] = []
        thread = threading.Thread(target=lambda: waiting.append(served.post(max_tokens=3).status_code))
        thread.start()
        time.sleep(0.5)
        assert waiting == []
    thread.join(60)
    assert waiting == [200]
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served.url}/v1/completions", json=wanted, timeout=0.5)
    assert served.post(max_tokens=3).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_the_middle_of_a_text_and_leaves_no_process(lab: SamplingLab, number: signal.Signals) -> None:
    made = serve(lab)
    asked = {"max_tokens": LONG, "stream": True}
    with httpx.stream("POST", f"{made.url}/v1/completions", json=asked, timeout=60) as endless:
        lines = endless.iter_lines()  # which hangs up when it is let go of
        next(lines)
        assert stop(made, number) == (0, [])


@pytest.mark.slow
def test_a_model_that_falls_silent_holds_no_end_up(lab: SamplingLab, tmp_path: Path) -> None:
    mute = replace(lab, root=shutil.copytree(lab.root, tmp_path / "lab"))
    train = mute.folder / "train.py"
    train.write_text(train.read_text().replace("\ndef build(", f"\n{FALLS_SILENT}\ndef build("))
    made = serve(mute)
    asked = {"max_tokens": LONG, "stream": True}
    with httpx.stream("POST", f"{made.url}/v1/completions", json=asked, timeout=60) as endless:
        lines = endless.iter_lines()  # which hangs up when it is let go of
        next(lines)
        assert stop(made) == (0, [])


@pytest.mark.slow
def test_when_the_models_process_dies_it_is_said_and_the_server_ends(lab: SamplingLab) -> None:
    made = serve(lab)
    asked = {"max_tokens": LONG, "stream": True}
    with httpx.stream("POST", f"{made.url}/v1/completions", json=asked, timeout=60) as endless:
        lines = (line for line in endless.iter_lines() if line)
        next(lines)
        for child in psutil.Process(made.process.pid).children(recursive=True):
            child.kill()
        *_, last, done = lines
    assert "has ended" in json.loads(last.removeprefix("data: "))["error"]["message"]
    assert done == "data: [DONE]"
    said = made.process.communicate(timeout=60)[0]
    assert made.process.returncode == 1
    assert said.startswith("autoresearch: the process of trial 0 has ended")
    assert "Traceback" not in said


def test_a_port_that_is_taken_is_said_to_be(served: Served, lab: SamplingLab) -> None:
    done = lab.call("sample", "--serve", "--port", served.url.rpartition(":")[2])
    assert done.returncode == 1
    assert "choose another with `--port`" in done.stderr


def test_without_the_extra_it_is_said_what_to_install(lab: SamplingLab) -> None:
    hide = "import sys; sys.modules['uvicorn'] = None; from autoresearch.__main__ import main; main()"
    command = [sys.executable, "-c", hide, "sample", "--serve", "--lab", str(lab.root)]
    done = subprocess.run(command, env=lab.environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'autoresearch[web]'" in done.stderr
