"""The language-model researcher against a real server: replies, corrections, tools, outages, caps, and no key told."""

from __future__ import annotations

import dataclasses
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import habits
import pytest

from autoresearch.base.errors import NoProposal, UserError
from autoresearch.ledger.records import CrashKind, Proposal
from autoresearch.researchers.interface import Archive, Brief, Failure, Kit
from autoresearch.researchers.llm.researcher import LlmResearcher
from campaigns import after, begun
from model_server import INPUT_TOKENS, OUTPUT_TOKENS, Call, Fail, Hang, ModelServer, Raw, Say, model_server

KEY = "sk-test-0123456789abcdef"
SOURCE = "import torch\n\nMATRIX_LR = 0.04\nDEPTH = 4\nprint(MATRIX_LR, DEPTH)\n"
GOOD = """\
idea: a lower matrix learning rate
why: the loss is noisy late
expects: 0.002 less

<<<<<<< SEARCH train.py
MATRIX_LR = 0.04
=======
MATRIX_LR = 0.02
>>>>>>> REPLACE
"""
BAD = GOOD.replace("= 0.04\n====", "= 0.05\n====")
TOTAL = INPUT_TOKENS + OUTPUT_TOKENS


@pytest.fixture
def brief() -> Brief:
    return dataclasses.replace(begun({"train.py": SOURCE}), trial=7)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., LlmResearcher]:
    """A researcher of a model on a server."""

    def made(server: ModelServer | str, model: str = "openai:gpt-4o", **settings: object) -> LlmResearcher:
        url = server if isinstance(server, str) else server.url
        base = url if model.startswith("anthropic") else f"{url}/v1"
        variables = {"OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY, "OLLAMA_API_KEY": KEY}
        usual = {"base_url": base, "environment": variables, "transcripts": tmp_path, "deadline_seconds": 20.0}
        return LlmResearcher(model, Kit(**{**usual, **settings}))  # type: ignore[arg-type]

    return made


def transcript(directory: Path) -> str:
    return (directory / "0007-0.log").read_text()


# ---------------------------------------------------------------- a proposal


@pytest.mark.parametrize("model", ["openai:gpt-4o", "ollama:qwen3.5:27b", "anthropic:claude-sonnet-5", "anthropic:x"])
def test_a_good_reply_is_a_proposal(
    make: Callable[..., LlmResearcher], brief: Brief, tmp_path: Path, model: str
) -> None:
    with model_server(Say(GOOD)) as server:
        proposal = make(server, model).propose(brief)
    assert proposal.idea == "a lower matrix learning rate"
    assert proposal.files == {"train.py": SOURCE.replace("0.04", "0.02")}
    assert (proposal.why, proposal.expects) == ("the loss is noisy late", "0.002 less")
    assert proposal.note == {"model": model}
    assert proposal.tokens == TOTAL
    assert KEY in str(server.heard[0].headers)
    assert "MATRIX_LR = 0.04" in server.heard[0].text
    assert "a lower matrix learning rate" in transcript(tmp_path)


@pytest.mark.parametrize("model", ["openai:gpt-4o", "ollama:qwen3.5:27b", "anthropic:claude-sonnet-5"])
def test_no_habit_of_a_model_costs_a_second_request(make: Callable[..., LlmResearcher], model: str) -> None:
    brief = dataclasses.replace(begun({"train.py": habits.SOURCE}), trial=7)
    with model_server(*map(Say, habits.HABITS.values())) as server:
        researcher = make(server, model)
        for number, habit in enumerate(habits.HABITS, start=1):
            proposal = researcher.propose(brief)
            assert "LR = 0.02  # of matrices\n" in proposal.files["train.py"], habit
            assert proposal.idea == "lower it", habit
            assert len(server.heard) == number, habit


@pytest.mark.parametrize(
    ("model", "known"), [("openai:gpt-4o", True), ("anthropic:claude-sonnet-5", True), ("ollama:x", False)]
)
def test_what_it_cost_is_known_where_the_model_has_a_price(
    make: Callable[..., LlmResearcher], brief: Brief, model: str, known: bool
) -> None:
    with model_server(Say(GOOD)) as server:
        usd = make(server, model).propose(brief).usd
    assert (usd is not None and 0.0005 < usd < 0.05) if known else usd is None


def test_openai_itself_is_asked_through_responses(
    make: Callable[..., LlmResearcher], brief: Brief, monkeypatch: pytest.MonkeyPatch
) -> None:
    with model_server(Call("read_diff", {"trial": 0}), Say(GOOD)) as server:
        researcher = make(server, "openai:gpt-5", base_url=None)
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")  # the SDK's own variable, in place of the real server
        assert researcher.propose(brief).tokens == 2 * TOTAL
    assert {heard.path for heard in server.heard} == {"/v1/responses"}


def test_it_works_in_a_thread(make: Callable[..., LlmResearcher], brief: Brief) -> None:
    found: list[Proposal] = []
    with model_server(Say(GOOD)) as server:
        thread = threading.Thread(target=lambda: found.append(make(server).propose(brief)))
        thread.start()
        thread.join(20)
    assert [proposal.idea for proposal in found] == ["a lower matrix learning rate"]


def test_a_repair_applies_to_the_files_that_crashed(make: Callable[..., LlmResearcher], brief: Brief) -> None:
    crashed = {"train.py": SOURCE.replace("DEPTH = 4", "DEPTH = 40")}
    failure = Failure(3, "deep", CrashKind.OUT_OF_MEMORY, "CUDA out of memory", "+DEPTH = 40", crashed, 1, 2)
    reply = "idea: less deep\nrepairs: yes\n<<<<<<< SEARCH\nDEPTH = 40\n=======\nDEPTH = 8\n>>>>>>> REPLACE\n"
    with model_server(Say(reply)) as server:
        proposal = make(server).propose(dataclasses.replace(brief, failure=failure))
    assert proposal.repairs == 3
    assert proposal.files == {"train.py": SOURCE.replace("DEPTH = 4", "DEPTH = 8")}


# ---------------------------------------------------------------- corrections


def test_a_malformed_reply_is_told_what_is_wrong_three_times(
    make: Callable[..., LlmResearcher], brief: Brief, tmp_path: Path
) -> None:
    with model_server(Say("What shall I do?"), Say(BAD), Say("idea: x"), Say(GOOD)) as server:
        proposal = make(server).propose(brief)
    assert proposal.tokens == 4 * TOTAL
    assert "nobody will answer" in server.heard[1].text
    assert "the search text is not in train.py" in server.heard[2].text
    assert "3: MATRIX_LR = 0.04" in server.heard[2].text
    assert "the reply has no edit" in server.heard[3].text
    assert "nobody will answer" in transcript(tmp_path)


def test_a_model_that_is_never_understood_is_given_up(make: Callable[..., LlmResearcher], brief: Brief) -> None:
    with model_server(Say(BAD)) as server, pytest.raises(NoProposal, match="search text is not in train") as caught:
        make(server).propose(brief)
    assert len(server.heard) == 4
    assert caught.value.tokens == 4 * TOTAL
    assert caught.value.usd is not None


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (GOOD.replace("= 0.02", "= = 0.02"), "syntax error in line 3"),
        (GOOD.replace("MATRIX_LR = 0.02", "MATRIX_LR = 0.04  # so"), "changes nothing but comments"),
        (GOOD.replace("= 0.02", "= 0.08"), "tried before, as trial 1"),
    ],
)
def test_what_the_guard_would_refuse_is_said_at_once(
    make: Callable[..., LlmResearcher], brief: Brief, reply: str, complaint: str
) -> None:
    tried = after(brief, Proposal("higher", {"train.py": SOURCE.replace("0.04", "0.08")}), 2.0)
    with model_server(Say(reply), Say(GOOD)) as server:
        assert make(server).propose(tried).files
    assert complaint in server.heard[1].text


def test_an_empty_reply_is_asked_again(make: Callable[..., LlmResearcher], brief: Brief) -> None:
    with model_server(Say(""), Say(GOOD)) as server:
        assert make(server).propose(brief).idea


# ---------------------------------------------------------------- tools


def test_it_may_look_things_up_before_it_replies(make: Callable[..., LlmResearcher], brief: Brief) -> None:
    past = after(brief, Proposal("wider rows", {"train.py": SOURCE + "x = 1\n"}, why="more context"), 2.0)
    curve = [{"step": n, "progress": n / 9, "loss": 4.0 - n / 10, "lr": None} for n in range(10)]
    archive = Archive(
        patch=lambda trial: f"+patch of {trial}\x1b[31m", log=lambda trial: "x" * 50_000, curve=lambda trial: curve
    )
    calls = [
        (Call("read_diff", {"trial": 1}), "+patch of 1"),
        (Call("read_diff", {"trial": 99}), "there is no trial 99: they run from 0 to 1"),
        (Call("read_diff", {"trial": "x"}), "valid integer"),
        (Call("read_log", {"trial": 1}), "characters or more left out"),
        (Call("read_curve", {"trial": 1}), "loss of the incumbent, trial 0"),
        (Call("search_ledger", {"query": "Wider"}), "trial 1 discard"),
        (Call("search_ledger", {"query": "zzz"}), "no trial of this campaign"),
        (Call("search_papers", {"query": "muon"}), "about muon"),
        (Call("no_such_tool", {}), "no_such_tool"),
    ]
    with model_server(*(call for call, _ in calls), Say(GOOD)) as server:
        researcher = make(server, papers=lambda query: f"about {query}")
        researcher.propose(dataclasses.replace(past, trial=7, archive=archive))
    for number, (call, answer) in enumerate(calls, start=1):
        last = server.heard[number].body["messages"][-1]["content"]
        assert answer in last, call
        assert len(last) < 8_000
        assert "\x1b" not in last


def test_a_search_that_fails_is_an_answer(make: Callable[..., LlmResearcher], brief: Brief) -> None:
    def broken(query: str) -> str:
        raise OSError("no network")

    with model_server(Call("search_papers", {"query": "muon"}), Say(GOOD)) as server:
        make(server, papers=broken).propose(brief)
    assert "could not be searched" in server.heard[1].text


def test_a_model_that_only_calls_tools_is_stopped(make: Callable[..., LlmResearcher], brief: Brief) -> None:
    with model_server(Call("read_diff", {"trial": 0})) as server, pytest.raises(NoProposal, match="after 30 requests"):
        make(server).propose(brief)


def test_a_model_without_tools_is_asked_without(make: Callable[..., LlmResearcher], brief: Brief) -> None:
    with model_server(Fail(400, "registry/gemma does not support tools"), Say(GOOD)) as server:
        assert make(server, "ollama:gemma").propose(brief).idea
    assert ["tools" in heard.body for heard in server.heard] == [True, False]


def test_a_context_that_is_too_short_is_named(make: Callable[..., LlmResearcher]) -> None:
    long = dataclasses.replace(begun({"train.py": SOURCE + "# a comment\n" * 2_000}), trial=7)
    with model_server(Say("huh")) as server, pytest.raises(NoProposal, match="The server read 1000 tokens of a prompt"):
        make(server, "ollama:small").propose(long)


# ---------------------------------------------------------------- outages


def test_a_rate_limit_is_waited_for_as_long_as_the_server_says(
    make: Callable[..., LlmResearcher], brief: Brief, tmp_path: Path
) -> None:
    began = time.monotonic()
    with model_server(Fail(429, headers={"Retry-After": "1"}), Say(GOOD)) as server:
        assert make(server).propose(brief).idea
    assert 1.0 <= time.monotonic() - began < 10
    assert "waiting 1.0 s" in transcript(tmp_path)


@pytest.mark.parametrize("model", ["openai:gpt-4o", "anthropic:claude-sonnet-5"])
def test_server_errors_are_outlived(make: Callable[..., LlmResearcher], brief: Brief, model: str) -> None:
    with model_server(Fail(500), Fail(503 if "gpt" in model else 529), Say(GOOD)) as server:
        assert make(server, model).propose(brief).idea
    assert len(server.heard) == 3


def test_a_wait_beyond_the_deadline_is_not_begun(make: Callable[..., LlmResearcher], brief: Brief) -> None:
    began = time.monotonic()
    with (
        model_server(Fail(429, "too many", {"Retry-After": "3600"})) as server,
        pytest.raises(NoProposal, match=r"429 \(it asks to wait 3600 s\): too many"),
    ):
        make(server).propose(brief)
    assert time.monotonic() - began < 10


def test_an_outage_that_lasts_is_given_up_at_the_deadline(make: Callable[..., LlmResearcher], brief: Brief) -> None:
    with model_server(Fail(503, "overloaded")) as server, pytest.raises(NoProposal, match="503: overloaded"):
        make(server, deadline_seconds=1.2).propose(brief)
    assert len(server.heard) == 2


def test_a_server_that_never_answers_is_left_at_the_deadline(make: Callable[..., LlmResearcher], brief: Brief) -> None:
    began = time.monotonic()
    with model_server(Hang()) as server, pytest.raises(NoProposal, match="no proposal within 1 s"):
        make(server, deadline_seconds=1.0).propose(brief)
    assert time.monotonic() - began < 5


def test_a_refused_connection_is_one_clear_sentence(make: Callable[..., LlmResearcher], brief: Brief) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(NoProposal, match=f"no connection to {url}/v1"):
            make(url, deadline_seconds=1.0).propose(brief)


def test_a_server_that_is_gone_is_left_alone_after_seconds(make: Callable[..., LlmResearcher], brief: Brief) -> None:
    began = time.monotonic()
    with pytest.raises(NoProposal, match="no connection") as caught:
        make("http://127.0.0.1:9", deadline_seconds=900.0).propose(brief)
    assert caught.value.failed
    assert time.monotonic() - began < 60


def test_a_model_that_cannot_be_reached_is_told_with_what_to_start(make: Callable[..., LlmResearcher]) -> None:
    with pytest.raises(UserError, match=r"nothing answers at http://127\.0\.0\.1:9/v1.*`ollama pull x`"):
        make("http://127.0.0.1:9", "ollama:x").check()
    with pytest.raises(UserError, match=r"nothing answers at .*base_url"):
        make("http://127.0.0.1:9").check()
    with model_server(Say("ready")) as server:
        make(server).check()
        assert server.heard == []
        make(server).check(online=True)
        assert len(server.heard) == 1
    missing = Fail(404, "model not found, try pulling it")
    with model_server(missing) as server, pytest.raises(UserError, match="try pulling it"):
        make(server).check(online=True)


@pytest.mark.parametrize("answer", [Raw("<html>a proxy's page</html>"), Raw("{}"), Raw('{"choices": []}')])
def test_a_body_that_is_no_answer_is_no_proposal(make: Callable[..., LlmResearcher], brief: Brief, answer: Raw) -> None:
    with model_server(answer) as server, pytest.raises(NoProposal):
        make(server, deadline_seconds=2.0).propose(brief)


@pytest.mark.parametrize(
    "answer", [Raw('{"id": "x", "object": "chat.completion", "choices": []}'), Raw("<html>busy</html>"), Raw("{")]
)
def test_a_failing_server_is_named_with_what_it_said_and_the_model_is_told_nothing(
    make: Callable[..., LlmResearcher], brief: Brief, answer: Raw
) -> None:
    with model_server(answer) as server, pytest.raises(NoProposal) as caught:
        make(server, deadline_seconds=2.0).propose(brief)
    assert caught.value.failed
    assert f"{server.url}/v1 gave an answer that cannot be used" in str(caught.value)
    assert answer.body[:10] in str(caught.value)


def test_what_the_model_did_wrong_is_not_the_servers_failure(make: Callable[..., LlmResearcher], brief: Brief) -> None:
    with model_server(Say(BAD)) as server, pytest.raises(NoProposal) as caught:
        make(server).propose(brief)
    assert not caught.value.failed


@pytest.mark.parametrize("model", ["openai:gpt-4o", "anthropic:x"])
def test_a_flood_of_text_is_neither_paid_for_again_nor_asked_for(
    make: Callable[..., LlmResearcher], brief: Brief, model: str
) -> None:
    flood = "blah " * 600_000
    with model_server(Say(flood), Say(flood), Say(GOOD)) as server:
        make(server, model).propose(brief)
    assert len(server.heard) == 3
    for heard in server.heard:
        assert len(heard.text) < 150_000
        assert 0 < max(heard.body.get(name) or 0 for name in ("max_tokens", "max_completion_tokens")) <= 16_384
    assert "characters left out" in server.heard[2].text


def test_the_set_up_says_which_model(make: Callable[..., LlmResearcher]) -> None:
    assert make("http://127.0.0.1:9").model == "openai:gpt-4o"


def test_a_request_that_is_refused_is_not_repeated(make: Callable[..., LlmResearcher], brief: Brief) -> None:
    with model_server(Fail(401, f"the key {KEY} is wrong")) as server, pytest.raises(NoProposal) as caught:
        make(server).propose(brief)
    assert len(server.heard) == 1
    reason = f"openai:gpt-4o: {server.url}/v1 does not take the key in OPENAI_API_KEY (401): the key"
    assert str(caught.value) == f"{reason} [OPENAI_API_KEY] is wrong"
    assert caught.value.tokens == 0


# ---------------------------------------------------------------- caps and keys


def test_the_caps_hold_between_requests(make: Callable[..., LlmResearcher], brief: Brief) -> None:
    with model_server(Say(GOOD)) as server:
        usd = make(server).propose(brief).usd or 0.0
    for cap, words in (({"max_tokens": 2 * TOTAL}, "2400 tokens"), ({"max_usd": 1.5 * usd}, "it cost")):
        with model_server(Say(BAD)) as server, pytest.raises(NoProposal, match=words) as caught:
            make(server, **cap).propose(brief)
        assert len(server.heard) == 2
        assert caught.value.tokens == 2 * TOTAL
        assert caught.value.usd == pytest.approx(2 * usd)


def test_a_good_reply_that_crosses_a_cap_is_used(make: Callable[..., LlmResearcher], brief: Brief) -> None:
    with model_server(Say(GOOD)) as server:
        assert make(server, max_tokens=10).propose(brief).tokens == TOTAL


def test_no_key_is_written_or_said(make: Callable[..., LlmResearcher], brief: Brief, tmp_path: Path) -> None:
    secret = "hf_another_secret"
    reply = GOOD.replace("the loss is noisy", f"{KEY} and {secret}")
    with model_server(Say(f"no edit, but {KEY}"), Fail(500, KEY), Say(reply)) as server:
        proposal = make(server, redact=lambda text: text.replace(secret, "[HF_TOKEN]")).propose(brief)
    assert proposal.why == "[OPENAI_API_KEY] and [HF_TOKEN] late"
    written = transcript(tmp_path)
    assert KEY not in written
    assert secret not in written
    assert "[OPENAI_API_KEY]" in written


def test_a_key_is_in_no_representation(make: Callable[..., LlmResearcher]) -> None:
    assert KEY not in repr(vars(make("http://127.0.0.1:1"))["_choice"])


def test_a_transcript_has_no_control_characters(
    make: Callable[..., LlmResearcher], brief: Brief, tmp_path: Path
) -> None:
    with model_server(Say("\x1b[31mred\x07 \u202e?"), Say(GOOD)) as server:
        make(server).propose(brief)
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", transcript(tmp_path))


def test_a_transcript_that_cannot_be_written_is_no_proposal(
    make: Callable[..., LlmResearcher], brief: Brief, tmp_path: Path
) -> None:
    (tmp_path / "0007-0.log").mkdir()
    with model_server(Say(GOOD)) as server, pytest.raises(NoProposal):
        make(server).propose(brief)


# ---------------------------------------------------------------- made


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("", "needs a model"),
        ("opnai:gpt-5", "did you mean openai"),
        ("gpt-5", "does not name a known provider"),
        ("openai", "a provider but no model"),
        ("openai:gpt-5", "environment variable OPENAI_API_KEY"),
        ("anthropic:claude", "environment variable ANTHROPIC_API_KEY"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(argument: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        LlmResearcher(argument, Kit())
    assert "\n" not in str(caught.value)


def test_the_model_may_come_from_the_kit_and_a_local_server_needs_no_key() -> None:
    assert LlmResearcher("", Kit(model="ollama:qwen3.5:27b")).name == "llm"
    assert LlmResearcher("openai:local", Kit(base_url="http://localhost:8000/v1"))


def test_missing_packages_are_one_sentence_that_says_how_to_get_them() -> None:
    code = (
        "import sys; sys.modules['openai'] = None\n"
        "from autoresearch.researchers.llm.researcher import LlmResearcher\n"
        "from autoresearch.researchers.interface import Kit\n"
        "try: LlmResearcher('openai:x', Kit(environment={'OPENAI_API_KEY': 'k'}))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.startswith("UserError the researcher llm needs the package openai")
    assert "pip install 'autoresearch[llm]'" in output


def test_pydantic_ai_is_imported_only_when_one_is_made() -> None:
    code = "import sys, autoresearch.base.registry\n"
    code += "import autoresearch.researchers.llm.researcher, autoresearch.researchers.llm.hybrid\n"
    code += "sys.exit(any(name in sys.modules for name in ('pydantic_ai', 'optuna', 'openai', 'anthropic')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
