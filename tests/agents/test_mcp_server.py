"""The MCP server: the official SDK's own stdio client against a real server process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from mcp_types import TextContent

import toy_lab
from autoresearch.agents import mcp_tools

# A lab's stand-in: it answers at once, prints where it must not, and writes down what became of its trials.
STAND_IN = """
import os, sys, time
from pathlib import Path
from autoresearch.agents import mcp_server
from autoresearch.base.errors import UserError
trace = Path(sys.argv[1])
def note(word):
    with trace.open("a") as file:
        file.write(word + "\\n")
class StandIn:
    def status(self, tag=None, full=False):
        print("noise from status")
        os.write(1, b"noise on descriptor 1\\n")
        os.system("echo noise from a child")
        return {"tag": tag or "latest", "summary": {"best": None}}
    def history(self, limit=20, tag=None):
        return [{"number": number, "description": "\\x1b[31mred \\u202e"} for number in range(limit)]
    def show(self, trial, full=False):
        if trial == 99:
            raise ZeroDivisionError("inner matter")
        if trial > 3:
            raise UserError(f"there is no trial {trial}: `autoresearch log` lists them")
        return {"trial": trial, "log": "step 1\\nstep 2"}
    def attempt(self, wish, *, say, progress):
        idea, why = wish.idea, wish.why
        note("began " + idea)
        try:
            say("trial 0 runs")
            for run in range(2):
                for step in range(1, 6):
                    print("noise from a trial")
                    progress(step / 5, f"run {run}, step {step}")
                    time.sleep(5.0 if "long" in idea else 0.1 if "slow" in idea else 0.0)
            while "held" in idea and not trace.with_name("let go").exists():
                time.sleep(0.02)
            if "bad" in idea:
                raise UserError("train.py is as it was: change it first")
            note("finished " + idea)
            return {"trial": 4, "status": "keep", "idea": idea, "why": why}
        except KeyboardInterrupt:
            note("ended cleanly " + idea)
            raise
    def guide(self, text):
        return "old\\n" + text
    def guidance(self):
        return ""
    def papers(self, query):
        return "found " + query
mcp_server.serve(StandIn())
note("left")
"""
Call = Callable[[Client], Awaitable[None]]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace"


@pytest.fixture
def command(tmp_path: Path, trace: Path) -> list[str]:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    return [sys.executable, str(script), str(trace)]


@contextlib.asynccontextmanager
async def connected(command: list[str], mode: Any = "auto") -> AsyncIterator[Client]:
    async with Client(StdioServerParameters(command=command[0], args=command[1:]), mode=mode) as client:
        yield client


def talk(command: list[str], call: Call, mode: Any = "auto") -> None:
    async def run() -> None:
        async with connected(command, mode) as client:
            await call(client)

    asyncio.run(run())


async def ask(client: Client, name: str, arguments: dict[str, Any] | None = None, **more: Any) -> tuple[str, bool]:
    result = await client.call_tool(name, arguments or {}, **more)
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text, result.is_error


def wait_for(trace: Path, word: str, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not (trace.exists() and word in trace.read_text().splitlines()):
        assert time.monotonic() < until, f"{word!r} is not in {trace.read_text() if trace.exists() else None!r}"
        time.sleep(0.02)


class Raw:
    """A client that speaks the protocol's lines by hand, to see all that comes on standard output."""

    def __init__(self, command: list[str]) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, encoding="utf-8", **pipes)
        client = {"name": "raw", "version": "0"}
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}
        self.send("initialize", hello, 1)
        self.receive()
        self.send("notifications/initialized")

    def send(self, method: str, parameters: dict[str, Any] | None = None, number: int | None = None) -> None:
        message = {"jsonrpc": "2.0", "method": method, "params": parameters or {}}
        assert self.process.stdin
        self.process.stdin.write(json.dumps(message if number is None else {**message, "id": number}) + "\n")
        self.process.stdin.flush()

    def call(self, number: int, name: str, **arguments: Any) -> None:
        self.send("tools/call", {"name": name, "arguments": arguments}, number)

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout
        message: dict[str, Any] = json.loads(self.process.stdout.readline())
        return message

    def close(self) -> tuple[str, str]:
        """Close our end; what was still said, on standard output and standard error."""
        return self.process.communicate(timeout=30)


@pytest.fixture
def raw(command: list[str]) -> Any:
    client = Raw(command)
    yield client
    if client.process.poll() is None:
        client.process.kill()
    client.close()


# ---------------------------------------------------------------- the tools


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_tools_are_listed_with_what_they_take(command: list[str], mode: str) -> None:
    async def call(client: Client) -> None:
        listed = {tool.name: tool for tool in (await client.list_tools()).tools}
        seen = ["status", "history", "show", "try", "wait", "keep", "drop", "order", "guidance", "papers"]
        assert list(listed) == seen
        assert all(tool.description and len(tool.description) > 80 for tool in listed.values())
        assert listed["try"].input_schema["required"] == ["idea"]
        assert set(listed["history"].input_schema["properties"]) == {"tag", "limit"}
        assert not any(tool.input_schema["additionalProperties"] for tool in listed.values())
        hints = {name: tool.annotations.read_only_hint for name, tool in listed.items() if tool.annotations}
        assert [name for name, read_only in hints.items() if not read_only] == [
            "try",
            "keep",
            "drop",
            "order",
            "guidance",
        ]
        assert "val_bpb" in (client.instructions or "")

    talk(command, call, mode)


def test_every_tool_answers(command: list[str]) -> None:
    async def call(client: Client) -> None:
        text, failed = await ask(client, "status", {"tag": "nov"})
        assert (json.loads(text), failed) == ({"tag": "nov", "summary": {"best": None}}, False)
        assert json.loads((await ask(client, "status"))[0])["tag"] == "latest"
        history, _ = await ask(client, "history", {"limit": 3})
        assert [row["number"] for row in json.loads(history)] == [0, 1, 2]
        assert not set(history) & {"\x1b", "\u202e"}
        assert json.loads((await ask(client, "show", {"trial": 2}))[0])["log"] == "step 1\nstep 2"
        assert await ask(client, "guidance") == ("there is no guidance yet", False)
        assert await ask(client, "guidance", {"text": "fewer heads"}) == ("old\nfewer heads", False)
        assert await ask(client, "papers", {"query": "muon"}) == ("found muon", False)

    talk(command, call)


def test_a_user_error_is_a_tool_error_of_that_one_sentence(command: list[str]) -> None:
    async def call(client: Client) -> None:
        sentence = "there is no trial 7: `autoresearch log` lists them"
        for name, arguments, said in (
            ("show", {"trial": 7}, sentence),
            ("try", {"idea": "bad"}, "train.py is as it was: change it first"),
        ):
            text, failed = await ask(client, name, arguments)
            assert (json.loads(text), failed) == ({"status": "error", "reason": said}, True)
        assert (await ask(client, "try", {"idea": "good"}))[1] is False

    talk(command, call)


def test_a_bug_is_a_tool_error_without_a_traceback(raw: Raw) -> None:
    raw.call(2, "show", trial=99)
    result = raw.receive()["result"]
    assert result["isError"]
    assert result["content"][0]["text"].startswith(
        "a bug in autoresearch, not your mistake (ZeroDivisionError('inner matter'))"
    )
    raw.call(3, "guidance")
    assert not raw.receive()["result"].get("isError")
    _, errors = raw.close()
    assert "Traceback" in errors


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "show",
            {"trail": 2},
            r"wrong arguments for `show` \(trial: Field required; trail: Extra .*\): it takes trial, full",
        ),
        ("status", {"tga": "x"}, r"wrong arguments for `status` \(tga: Extra .*\): it takes tag, full"),
        ("show", {"trial": "two"}, r"wrong arguments for `show` \(trial: .*integer.*"),
        ("show", {"trial": -1}, r"wrong arguments for `show` .*greater than.*"),
        ("try", {}, r"wrong arguments for `try` \(idea: Field required\): it takes idea, why, seeds, tag"),
        ("nothing", {}, r"there is no tool 'nothing': choose one of status, .*papers"),
    ],
)
def test_arguments_that_do_not_fit_are_named(raw: Raw, name: str, arguments: dict[str, Any], message: str) -> None:
    raw.call(2, name, **arguments)
    result = raw.receive()["result"]
    assert result["isError"]
    assert re.fullmatch(message, json.loads(result["content"][0]["text"])["reason"])


# ---------------------------------------------------------------- trials


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_try_tells_its_progress_and_then_its_verdict(command: list[str], mode: str) -> None:
    heard: list[tuple[float, float | None, str | None]] = []

    async def on_progress(done: float, total: float | None, message: str | None) -> None:
        heard.append((done, total, message))

    async def call(client: Client) -> None:
        text, failed = await ask(client, "try", {"idea": "slow", "why": "so"}, progress_callback=on_progress)
        assert not failed
        assert json.loads(text) == {"trial": 4, "status": "keep", "idea": "slow", "why": "so"}

    talk(command, call, mode)
    assert [message for _, _, message in heard] == [
        "trial 0 runs",
        *(f"run {run}, step {step}" for run in range(2) for step in range(1, 6)),
    ]
    done = [each for each, _, _ in heard]
    assert done == sorted(set(done))
    assert [(round(each, 3), total) for each, total, _ in heard][-6:] == [
        (1.0, 1.0),
        *((pytest.approx(1 + step / 5), 2.0) for step in range(1, 6)),
    ]


def test_other_tools_answer_during_a_trial_but_no_second_trial(command: list[str], trace: Path) -> None:
    async def call(client: Client) -> None:
        trial = asyncio.create_task(ask(client, "try", {"idea": "held"}))
        while not trace.exists():
            await asyncio.sleep(0.02)
        assert (await ask(client, "papers", {"query": "muon"}))[0] == "found muon"
        text, failed = await ask(client, "try", {"idea": "second"})
        assert failed
        assert json.loads(text)["reason"].startswith("a trial is running: the tool `wait`")
        trace.with_name("let go").touch()
        assert json.loads((await trial)[0])["status"] == "keep"

    talk(command, call)


def test_a_canceled_trial_is_finished_and_the_server_lives_on(raw: Raw, trace: Path) -> None:
    raw.call(2, "try", idea="slow")
    wait_for(trace, "began slow")
    raw.send("notifications/cancelled", {"requestId": 2})
    raw.call(3, "guidance")
    assert raw.receive()["id"] == 3
    wait_for(trace, "finished slow")
    raw.call(4, "try", idea="next")
    answer = raw.receive()
    assert (answer["id"], answer["result"].get("isError", False)) == (4, False)


def test_a_client_that_hangs_up_leaves_a_finished_trial(raw: Raw, trace: Path) -> None:
    raw.call(2, "try", idea="slow")
    wait_for(trace, "began slow")
    raw.close()
    assert raw.process.returncode == 0
    assert trace.read_text().splitlines() == ["began slow", "finished slow", "left"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_trial_cleanly_and_the_server_too(raw: Raw, trace: Path, number: signal.Signals) -> None:
    raw.call(2, "try", idea="long")
    wait_for(trace, "began long")
    time.sleep(0.2)
    raw.process.send_signal(number)
    assert raw.process.wait(5) == -number
    assert trace.read_text().splitlines() == ["began long", "ended cleanly long"]


def test_a_signal_ends_an_idle_server_at_once(raw: Raw) -> None:
    raw.process.terminate()
    assert raw.process.wait(5) == -signal.SIGTERM


def test_the_sdks_client_that_leaves_during_a_long_trial_ends_it_cleanly(command: list[str], trace: Path) -> None:
    async def call(client: Client) -> None:
        trial = asyncio.create_task(ask(client, "try", {"idea": "long"}))
        while not trace.exists():
            await asyncio.sleep(0.02)
        trial.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await trial

    talk(command, call)
    assert trace.read_text().splitlines() == ["began long", "ended cleanly long"]


# ---------------------------------------------------------------- the process


def test_nothing_but_the_protocol_is_on_standard_output(raw: Raw, trace: Path) -> None:
    raw.call(2, "status")
    raw.call(3, "try", idea="quick")
    answers = [raw.receive(), raw.receive()]
    rest, errors = raw.close()
    assert {answer["id"] for answer in answers} == {2, 3}
    assert rest == ""
    for noise in ("noise from status", "noise on descriptor 1", "noise from a child", "noise from a trial"):
        assert noise in errors


def test_a_server_whose_client_never_speaks_leaves(command: list[str], trace: Path) -> None:
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert trace.read_text() == "left\n"


def test_without_the_extra_it_says_what_to_install() -> None:
    program = textwrap.dedent(
        """
        import sys
        sys.modules["mcp"] = None
        from autoresearch.base import errors
        from autoresearch.agents import mcp_server
        try:
            mcp_server.serve(None)
        except errors.UserError as error:
            print(error)
        """
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "the MCP server needs one more library: run `pip install 'autoresearch[llm]'`\n"


def test_importing_it_needs_no_extra_and_does_nothing() -> None:
    program = "import sys, autoresearch.agents.mcp_server; print('mcp' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
    assert [tool.name for tool in mcp_tools.TOOLS if tool.answer is None] == ["try"]


# ---------------------------------------------------------------- the real thing


def test_an_agent_does_research_in_a_real_lab_by_the_tools_alone(tmp_path: Path) -> None:
    lab = toy_lab.make(tmp_path / "lab")
    heard: list[str | None] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        heard.append(message)

    async def research(client: Client) -> None:
        text, failed = await ask(client, "status")
        assert failed
        assert "no campaign yet" in text
        (lab / "train.py").write_text(toy_lab.train_with(2.0))
        text, failed = await ask(client, "try", {"idea": "X to 2", "why": "nearer"}, progress_callback=progress)
        assert not failed, text
        assert (json.loads(text)["status"], json.loads(text)["val_bpb"]) == ("keep", 2.0)
        (lab / "train.py").write_text(toy_lab.train_with(9.0))
        text, _ = await ask(client, "try", {"idea": "X to 9"})
        assert "git restore" in json.loads(text)["next"]
        again, failed = await ask(client, "try", {"idea": "X to 9 again"})
        assert not failed
        assert json.loads(again)["trial"] == json.loads((await ask(client, "wait"))[0])["trial"] == 2
        (lab / "train.py").write_text(toy_lab.train_with(3.0))
        text, failed = await ask(client, "try", {"idea": "X to 3"})
        answer = json.loads(text)
        assert failed
        assert (answer["status"], answer["trial"], answer["earlier"]) == ("refused", None, 0)
        assert "tried before, as trial 0 (keep, val_bpb 5.0" in answer["reason"]
        assert "git restore" in answer["next"]
        assert "autoresearch run" not in text
        text, _ = await ask(client, "keep", {"trial": 2, "why": "for the test"})
        assert text == "#2 was kept by hand (MCP: for the test)"
        assert json.loads((await ask(client, "status"))[0])["best"]["trial"] == 2
        assert (await ask(client, "drop", {"trial": 2, "why": "it is worse"}))[1] is False
        assert [row["status"] for row in json.loads((await ask(client, "history"))[0])] == ["keep", "keep", "discard"]
        assert "+X = 9.0" in json.loads((await ask(client, "show", {"trial": 2}))[0])["patch"]
        assert "fewer heads" in (await ask(client, "guidance", {"text": "try fewer heads"}))[0]
        status, whole = [json.loads((await ask(client, "status", {"full": full}))[0]) for full in (False, True)]
        assert status["best"]["val_bpb"] == whole["summary"]["best"]["val_bpb"] == 2.0
        assert "null" not in json.dumps(status)

    talk([sys.executable, "-m", "autoresearch", "mcp", "--lab", str(lab)], research)
    assert any(message and "trial 1" in message for message in heard)
