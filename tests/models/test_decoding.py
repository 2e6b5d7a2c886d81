"""The part of sampling that runs beside train.py: its cache against the plain model, its draws, its characters."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
import torch
from torch import nn

from autoresearch.models import decoding
from autoresearch.models.decoding import Cached, Plain, Writer, choose
from lab_files import LAB, load

sys.path.insert(0, str(LAB))
train = importlib.import_module("train")

CPU = torch.device("cpu")
VOCABULARY, CONTEXT = 97, 24
TINY = {"DEPTH": 3, "ASPECT_RATIO": 10, "HEAD_DIM": 16, "VALUE_GATE_CHANNELS": 8, "WINDOW_PATTERN": "SSSL"}
BYTES = {bytes([value]): value for value in range(256)}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A tiny model of the shipped train.py, with windows of 6 tokens, in which every part has a say."""
    for name, value in {**TINY, "SHORT_WINDOW_DIVISOR": 4, "SOFTMAX_SCALE": 0.4}.items():
        monkeypatch.setattr(train, name, value)
    windows = train.layer_windows(CONTEXT)
    assert windows == (6, 6, 24)
    attend = train.banded_attention(CONTEXT, windows, CPU)
    made: nn.Module = train.GPT(VOCABULARY, CONTEXT, attend, torch.float32)
    drawn = torch.Generator().manual_seed(1)
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.3, generator=drawn)
    return made


@pytest.fixture
def tokens() -> list[int]:
    return torch.randint(VOCABULARY, (CONTEXT,), generator=torch.Generator().manual_seed(2)).tolist()


def cached(model: nn.Module) -> Cached:
    return Cached(model, CPU, train.SOFTMAX_SCALE, CONTEXT)


@torch.inference_mode()
def test_the_cache_gives_the_logits_of_the_plain_model_at_every_position(
    model: nn.Module, tokens: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model(torch.tensor([tokens]))[0]
    monkeypatch.setattr(Cached, "_checked", lambda self, found, tokens: found)  # which would give the plain ones
    computing = cached(model)
    for length in range(1, CONTEXT + 1):
        torch.testing.assert_close(computing.next(tokens[:length]), expected[length - 1], rtol=1e-4, atol=1e-4)
    assert computing.steps == CONTEXT - 1


@torch.inference_mode()
def test_the_cache_passes_its_own_check(model: nn.Module, tokens: list[int]) -> None:
    computing = cached(model)
    for length in range(1, CONTEXT + 1):
        computing.next(tokens[:length])


@torch.inference_mode()
@pytest.mark.parametrize("seed", range(10))
def test_in_bfloat16_rounding_is_no_fault_of_the_cache_and_a_fault_is_one(model: Any, seed: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    rounded = train.GPT(VOCABULARY, CONTEXT, model.blocks[0].attention.attend, torch.bfloat16)
    for weight in rounded.parameters():
        nn.init.normal_(weight, std=0.1, generator=drawn)
    computing, tokens = cached(rounded), torch.randint(VOCABULARY, (CONTEXT,), generator=drawn).tolist()

    def all_of_it() -> None:
        for length in range(1, CONTEXT + 1):
            computing.next(tokens[:length])

    all_of_it()
    assert computing.layers
    assert all(layer.keys.dtype is torch.bfloat16 for layer in computing.layers.values())
    computing.remove()
    forward = rounded.embedding.forward
    rounded.embedding.forward = lambda idx: forward(idx).cumsum(1)
    computing = cached(rounded)
    with pytest.raises(ArithmeticError, match="of the samples would differ"):
        all_of_it()


@torch.inference_mode()
def test_a_model_that_looks_at_the_token_before_goes_with_the_cache(
    model: Any, tokens: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = model.embedding.forward

    def smeared(idx: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = forward(idx)
        return torch.cat((x[:, :1], x[:, 1:] + 0.5 * x[:, :-1]), 1)

    monkeypatch.setattr(model.embedding, "forward", smeared)
    expected = model(torch.tensor([tokens]))[0]
    monkeypatch.setattr(Cached, "_checked", lambda self, found, tokens: found)
    computing = cached(model)
    for length in range(1, CONTEXT + 1):
        torch.testing.assert_close(computing.next(tokens[:length]), expected[length - 1], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("first", [1, 5, 12, CONTEXT - 1])
def test_a_model_that_mixes_tokens_outside_of_attention_is_found_out_before_it_says_anything_wrong(
    model: Any, tokens: list[int], first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = model.embedding.forward
    monkeypatch.setattr(model.embedding, "forward", lambda idx: forward(idx).cumsum(1))
    expected = model(torch.tensor([tokens]))[0]
    computing = cached(model)

    def all_of_it() -> None:
        for length in range(first, CONTEXT + 1):
            torch.testing.assert_close(computing.next(tokens[:length]), expected[length - 1], rtol=1e-4, atol=1e-4)

    with pytest.raises(ArithmeticError, match="of the samples would differ"):
        all_of_it()
    plain = computing.remove()
    torch.testing.assert_close(plain.next(tokens), model(torch.tensor([tokens]))[0, -1])
    assert not any(isinstance(block.attention.attend, decoding.Layer) for block in model.blocks)


@torch.inference_mode()
def test_another_text_is_taken_in_whole(model: nn.Module, tokens: list[int]) -> None:
    computing = cached(model)
    computing.next(tokens[:9])
    found = computing.next(tokens[3:12])
    torch.testing.assert_close(found, Plain(model, CPU, CONTEXT).next(tokens[3:12]))


def test_at_temperature_0_the_most_probable_token_is_taken() -> None:
    for temperature in (0, 1e-50):
        assert choose(torch.tensor([0.1, 3.0, 2.9]), temperature, None, torch.Generator()) == 1


def test_top_k_draws_from_the_most_probable_tokens_alone_and_in_proportion() -> None:
    random = torch.Generator().manual_seed(1)
    logits = torch.tensor([0.25, 0.05, 0.5, 0.2]).log()
    drawn = [choose(logits, 1.0, 2, random) for _ in range(2000)]
    assert set(drawn) == {0, 2}
    assert 0.62 < drawn.count(2) / 2000 < 0.71
    cold = [choose(logits, 0.01, None, random) for _ in range(50)]
    assert set(cold) == {2}
    assert {choose(logits, 1.0, 99, random) for _ in range(300)} == {0, 1, 2, 3}


# ---------------------------------------------------------------- texts, of a model that knows what it wants to say


class Parrot(nn.Module):
    """Says its line, token by token, whatever it was told before; of each call it notes what it was given."""

    def __init__(self, line: list[int], prompt: int) -> None:
        super().__init__()
        self.line, self.prompt, self.rows = line, prompt, list[list[int]]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        token = self.line[len(self.rows) % len(self.line)]
        self.rows.append(x[0].tolist())
        return nn.functional.one_hot(torch.full(x.shape, token), 260).float()


def says(
    line: list[int], max_tokens: int, prompt: str = "", context: int = 64
) -> tuple[list[str], dict[str, Any], Any]:
    """The pieces, the end with all that was noted, and the rows that the model was given."""
    tokenizer = load(LAB / "prepare.py").Tokenizer(BYTES)
    parrot, told, notes = Parrot(line, len(prompt)), list[str](), list[str]()
    writer = Writer(parrot, tokenizer, Plain(parrot, CPU, context), context)
    request = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "top_k": None, "seed": 1}

    def tell(part: dict[str, Any]) -> bool:
        told.append(part["text"])
        notes.append(part["note"])
        return True

    end = writer.write(request, tell)
    return told, {**end, "notes": [note for note in notes if note]}, parrot.rows


def test_a_character_of_several_tokens_comes_whole() -> None:
    told, end, _ = says(list("aé€😀".encode()), 10)
    assert told == ["a", "", "é", "", "", "€", "", "", "", "😀"]
    assert (end["text"], end["finish"], end["prompt_tokens"]) == ("", "length", 1)


def test_half_a_character_at_the_end_is_said_to_be_none() -> None:
    told, end, _ = says(list("a€".encode()), 3)
    assert ["".join(told), end["text"]] == ["a", "\ufffd"]


def test_the_end_of_a_document_ends_the_text() -> None:
    told, end, _ = says([*b"hi", 256], 10)
    assert (told, end["finish"]) == (["h", "i"], "stop")


BOS = 256


def test_each_row_is_a_full_one() -> None:
    assert says([*b"xy"], 2, prompt="ab", context=6)[2] == [[BOS, *b"ab", 0, 0, 0], [BOS, *b"abx", 0, 0]]


def test_past_the_context_the_last_half_of_it_is_gone_on_with() -> None:
    _, end, rows = says(list(b"x"), 12, prompt="abc", context=8)
    assert [len(row) - row.count(0) for row in rows] == [4, 5, 6, 7, 8, 4, 5, 6, 7, 8, 4, 5]
    assert rows[5] == [BOS, *b"xxx", 0, 0, 0, 0]
    assert (end["prompt_tokens"], end["notes"]) == (4, [])


@pytest.mark.parametrize(("context", "row"), [(8, [BOS, *b"jkl", 0, 0, 0, 0]), (3, [BOS, 0, 0]), (1, [BOS])])
def test_a_prompt_longer_than_the_context_is_cut_and_that_is_said_once(context: int, row: list[int]) -> None:
    _, end, rows = says(list(b"x"), 2, prompt="abcdefghijkl", context=context)
    assert rows[0] == row
    (note,) = end["notes"]
    assert f"the prompt is longer than the {context} tokens" in note


@torch.inference_mode()
def test_a_model_that_takes_full_rows_alone_goes_with_the_cache(
    model: Any, tokens: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model(torch.tensor([tokens]))[0]
    for block in model.blocks:
        monkeypatch.setattr(block.attention, "attend", of_full_rows(block.attention.attend))
    for computing in (Plain(model, CPU, CONTEXT), cached(model)):
        for length in (3, 4, 5, 20, 21, CONTEXT):
            found = computing.next(tokens[:length])
            torch.testing.assert_close(found, expected[length - 1], rtol=1e-4, atol=1e-4)


def of_full_rows(attend: Any) -> Any:
    """The same, as masked kernels of a GPU take it."""

    def strict(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> torch.Tensor:
        if q.size(1) != CONTEXT:
            raise ValueError("the mask is for another length")
        out: torch.Tensor = attend(q, k, v, window)
        return out

    return strict
