"""A kept model writes text in a process of its own, and nothing of that is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

from autoresearch.base.errors import UserError
from autoresearch.executors.sandbox import sandboxes
from autoresearch.models.cell import Cell
from autoresearch.models.sampling import LONGEST_PIECE, Piece, Request, Sampler, until_stop
from autoresearch.models.saved_model import Model
from sampling_lab import CONTEXT, FALLS_SILENT, SamplingLab, edited, endless, make, sampler, written

SUMMED = ("x = x0 = norm(self.embedding(idx)", "x = x0 = norm(self.embedding(idx).cumsum(1)")
# The same computed anew for each token, by code that knows nothing of ours.
GREEDY = """
import sys, torch, safetensors.torch
from prepare import Tokenizer
from train import build
tokenizer = Tokenizer.from_directory()
model = build(torch.device("cpu"), tokenizer.get_vocab_size())[0]
model.load_state_dict(safetensors.torch.load_file("checkpoint.safetensors"))
tokens = tokenizer.encode("The", prepend=tokenizer.get_bos_token_id())
start = len(tokens)
while len(tokens) < 30:
    tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
sys.stderr.write(tokenizer.decode(tokens[start:]))
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> SamplingLab:
    return endless(make(tmp_path_factory.mktemp("sampling")))


def test_a_model_goes_on_with_a_text_and_leaves_no_process(lab: SamplingLab) -> None:
    said: list[str] = []
    with sampler(lab.model(), said) as made:
        wanted = {"max_tokens": 3 * CONTEXT, "temperature": 1.0}
        text, last = written(made, seed=5, **wanted)
        assert (last.finish, last.tokens) == ("length", 3 * CONTEXT)
        assert len(text) > 20
        assert written(made, seed=5, **wanted)[0] == text
        assert written(made, seed=6, **wanted)[0] != text
        assert written(made, prompt="", max_tokens=4)[1].prompt_tokens == 1
        begun = made.generate(Request("The", max_tokens=10**9, temperature=0))
        next(begun)
        begun.close()  # and it is ready for the next
        ends = text[3:6]
        assert written(made, seed=5, stop=(ends,), **wanted)[0] == text[: text.index(ends)]
        with pytest.raises(UserError, match="longer than"):
            made.generate(Request("x" * 100_001))
        assert psutil.Process().children(recursive=True)
    assert psutil.Process().children(recursive=True) == []
    assert said == []


def test_the_text_is_the_plain_models_with_the_cache_and_without(lab: SamplingLab, tmp_path: Path) -> None:
    folder = shutil.copytree(lab.folder, tmp_path / "model")
    command = [sys.executable, "-c", GREEDY]
    done = subprocess.run(command, cwd=folder, env=lab.environment, capture_output=True, text=True, check=True)
    greedy, drawn = {"temperature": 0, "max_tokens": 26}, {"seed": 3, "max_tokens": 4 * CONTEXT, "top_k": 20}
    texts = []
    for cache in (True, False):
        said: list[str] = []
        with sampler(lab.model(), said, cache=cache) as made:
            texts.append([written(made, **greedy)[0], written(made, **drawn)[0]])
        assert said == []
    assert texts[0] == texts[1]
    assert done.stderr.startswith(texts[0][0])
    assert len(texts[0][0]) > 20


def test_a_model_that_does_not_go_with_the_cache_writes_all_the_same(lab: SamplingLab) -> None:
    model, said, texts = edited(lab.model(), SUMMED), list[str](), []
    for cache in (True, False):
        with sampler(model, said, cache=cache) as made:
            texts.append([written(made, seed=seed, temperature=1.0, max_tokens=60)[0] for seed in (1, 2)])
    assert texts[0] == texts[1]
    assert len(said) == 1
    assert "every token is computed from the whole text" in said[0]


def fails(lab: SamplingLab, old: str, new: str) -> str:
    with pytest.raises(UserError) as error, sampler(edited(lab.model(), (old, new))):
        pass
    assert psutil.Process().children(recursive=True) == []
    return str(error.value)


def test_without_a_build_there_is_no_model(lab: SamplingLab) -> None:
    assert "module 'train' has no attribute 'build'" in fails(lab, "def build(", "def construct(")


# What follows `build` in a train.py that speaks to the parent itself, once it was asked for a text.
FLOODS = """
import autoresearch_trial
autoresearch_trial.ask({"ask": "request"})
while True:
    autoresearch_trial.ask({"ask": "more", "text": "x" * 9999, "tokens": 1, "note": "n" * 9999})
"""


def speaking(lab: SamplingLab, words: str) -> Model:
    return edited(lab.model(), ("\ndef build(", f"\n{words}\ndef build("))


def test_a_model_that_does_not_stop_is_stopped(lab: SamplingLab) -> None:
    said: list[str] = []
    with sampler(speaking(lab, FLOODS), said) as made:
        text, last = written(made, max_tokens=5)
        assert (text, last.tokens, last.finish) == ("x" * 5 * LONGEST_PIECE, 5, "length")
        with pytest.raises(UserError, match="broke the protocol"):
            written(made)
    assert len(said) == 1
    assert len(said[0]) < 1000


def test_a_model_that_falls_silent_is_given_up(lab: SamplingLab) -> None:
    with sampler(speaking(lab, FALLS_SILENT)) as made:
        pieces = made.generate(Request("The", max_tokens=1))
        assert next(pieces).text == "x"
        pieces.close()
        with pytest.raises(UserError, match="it does not answer"):
            written(made)
    assert psutil.Process().children(recursive=True) == []


def test_a_text_that_fails_leaves_the_model_at_work(lab: SamplingLab) -> None:
    change = ('"""Tokens (B, T) ->', 'if (idx == 7).any(): raise KeyError("seven")\n        """Tokens (B, T) ->')
    with sampler(edited(lab.model(), change)) as made:
        with pytest.raises(UserError, match="KeyError: 'seven'"):
            written(made, prompt="\x07", max_tokens=3)
        assert written(made, prompt="The", max_tokens=3)[1].tokens == 3


def test_weights_that_do_not_fit_are_said_to_be_so(lab: SamplingLab) -> None:
    assert "Missing key(s) in state_dict" in fails(lab, "DEPTH = 3", "DEPTH = 4")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("new", "reason"),
    [
        ("raise SystemExit('no such model')", "SystemExit: no such model"),
        ("import os; os.kill(os.getpid(), 11)", "has ended: exit code -11"),
        ("import autoresearch_trial; autoresearch_trial.train_data()", "asked for 'train'"),
        ("import autoresearch_trial as t; t._channel().sendall(b'x' * 99)", "broke the protocol"),
    ],
)
def test_a_train_py_that_does_otherwise_than_it_should_is_reported(lab: SamplingLab, new: str, reason: str) -> None:
    assert reason in fails(lab, "\ndef build(", f"\n{new}\ndef build(")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bubblewrap", "landlock"])
def test_a_model_writes_confined_and_reads_nothing_else(lab: SamplingLab, name: str, tmp_path: Path) -> None:
    if why := sandboxes.failure(name):
        pytest.skip(why)
    secret = tmp_path / "secret"
    secret.write_text("told")
    spy = ("\ndef build(", f"\ntry: print(open({str(secret)!r}).read()); HEARD = True\nexcept OSError: HEARD = False\n"
           "if HEARD: raise SystemExit('it read what it must not')\ndef build(")  # fmt: skip
    cell = Cell(Path(sys.executable), lab.environment, sandboxes.SANDBOXES[name])
    with Sampler(edited(lab.model(), spy), cell, say=lambda text: None) as made:
        assert written(made, max_tokens=5)[1].tokens


# ---------------------------------------------------------------- the command


def test_the_command_prints_the_text_or_json(lab: SamplingLab) -> None:
    wanted = ("--temperature", "0", "--max-tokens", "12")
    plain = lab.call("sample", "The", *wanted)
    assert (plain.returncode, plain.stderr) == (0, "")
    told = json.loads(lab.call("sample", "0", "The", "--json", *wanted).stdout)
    assert plain.stdout == f"The{told['text']}\n"
    assert (told["trial"], told["finish"], told["tokens"]) == (0, "length", 12)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--trial", "7", "x"), "there is no trial 7"),
        (("Once", "upon"), "'Once' is not a trial number"),
        (("a", "b", "c"), "put it in quotes"),
        (("--best", "0", "x"), "a trial is named twice"),
        (("--device", "tpu"), "there is no device 'tpu'"),
        (("0", "x", "--tag", "other"), "trial 0 belongs to campaign t, not to other"),
        (("--serve", "--temperature", "0"), "leave out --max-tokens"),
    ],
)
def test_what_cannot_be_meant_is_refused(lab: SamplingLab, words: tuple[str, ...], reason: str) -> None:
    done = lab.call("sample", *words)
    assert done.returncode == 1
    assert reason in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_text_can_be_stopped_by_hand(lab: SamplingLab, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "autoresearch", "sample", "x", "--lab", str(lab.root), "--max-tokens", "9999999"]
    with subprocess.Popen(command, env=lab.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.read(40)
        family = psutil.Process(child.pid).children(recursive=True)
        child.send_signal(number)
        assert child.wait(20) == 130
        assert child.stderr
        assert child.stderr.read() == b"autoresearch: stopped\n"
        assert family
        assert [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []


def test_during_a_search_it_says_what_it_disturbs(lab: SamplingLab) -> None:
    with lab.workspace.lock():
        done = lab.call("sample", "The", "--max-tokens", "1")
    assert done.returncode == 0
    assert "a search is running here" in done.stderr


# ---------------------------------------------------------------- stops


def pieces(*texts: str) -> Generator[Piece]:
    for number, text in enumerate(texts, 1):
        yield Piece(text, 1, number, "length" if number == len(texts) else None)


@pytest.mark.parametrize(
    ("texts", "stops", "expected"),
    [
        (("ab", "cd", "ef"), ("xx",), "abcdef"),
        (("ab", "cd", "ef"), ("bc",), "a"),
        (("ab", "cd", "ef"), ("de", "cd"), "ab"),
        (("a\n", "\nb"), ("\n\n",), "a"),
        (("ab", "c"), ("cde",), "abc"),
        (("aab", "c"), ("ab", ""), "a"),
    ],
)
def test_nothing_of_a_stop_is_let_through(texts: tuple[str, ...], stops: tuple[str, ...], expected: str) -> None:
    found = list(until_stop(pieces(*texts), stops))
    assert "".join(piece.text for piece in found) == expected
    assert found[-1].finish == ("length" if expected == "".join(texts) else "stop")
