"""Generates text with a kept model: the part of sampling that runs in the sandbox, next to the model's own train.py.

It stands alone: `sampling.py` copies it there together with the run's side of the grading protocol, whose messages it
uses. Nothing in it is trusted. It is fast if a cache of keys and values works, which train.py knows nothing about.
Whether it works for a model is found out by comparing; if not, everything is computed again for each token.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

LONGEST_REASON = 500  # characters
COLDEST = 1e-6  # temperature; below it there is nothing to sample, and divided by it logits overflow
ALWAYS_CHECKED = 4  # the first tokens after a cache hit are computed both ways; later those at powers of two
NEIGHBORS = 8  # of the last tokens, computed again at each step: many models look at the tokens just before
# How far apart two distributions of the next token may be (0 to 1: the share of samples that would differ).
TOLERANCE = {torch.float32: 0.002}
# In bfloat16 and float16: rounding alone came to 0.0102 in the worst of 1,500 steps of a model trained for a second.
COARSE_TOLERANCE = 0.03


# ---------------------------------------------------------------- the cache


class Layer:
    """Replaces one module's attention and stores the keys and values it sees, (1, T, heads, head_dim)."""

    def __init__(self, original: Callable[..., Tensor], scale: float | None) -> None:
        self.original, self.scale = original, scale
        self.whole = True  # whether it gets a whole text, or its last tokens, of which the very last is not stored yet
        self.keys = self.values = torch.empty(0)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        """A token sees itself and the `window` tokens before it."""
        if self.whole:
            self.keys, self.values = k, v
            return self.original(q, k, v, window)
        length = q.size(1)
        self.keys = torch.cat((self.keys, k[:, -1:]), 1)[:, -window - length :]
        self.values = torch.cat((self.values, v[:, -1:]), 1)[:, -window - length :]
        place = torch.arange(self.keys.size(1), device=q.device)
        distance = place[-length:, None] - place
        mask = (distance >= 0) & (distance <= window)
        q, k, v = q.transpose(1, 2), self.keys.transpose(1, 2), self.values.transpose(1, 2)
        shared = q.size(1) != k.size(1)  # heads that share their keys
        return F.scaled_dot_product_attention(q, k, v, mask, scale=self.scale, enable_gqa=shared).transpose(1, 2)

    def hold(self, length: int) -> None:
        """Drop what is beyond the first `length` tokens of the row."""
        self.keys, self.values = self.keys[:, :length], self.values[:, :length]


class Plain:
    """Computes the whole text for each token, as a full row: some kernels take no other, and padding after it changes
    nothing.

    `context` is the length of a row, in tokens.
    """

    def __init__(self, model: nn.Module, device: torch.device, context: int) -> None:
        self.model, self.device, self.context = model, device, context

    def whole(self, tokens: Sequence[int]) -> Tensor:
        """The logits of the next token, float32 (vocabulary,), on the CPU."""
        return self._row([*tokens, *[0] * (self.context - len(tokens))])[len(tokens) - 1].float().cpu()

    next = whole

    def _row(self, tokens: Sequence[int]) -> Tensor:
        logits: Tensor = self.model(torch.tensor([tokens], device=self.device))
        return logits[0]


class Cached(Plain):
    """Computes only what is new in a longer text, and checks that this gives the same."""

    def __init__(self, model: nn.Module, device: torch.device, scale: float | None, context: int) -> None:
        super().__init__(model, device, context)
        self.held: list[int] = []  # the tokens whose keys and values the layers store
        self.steps = 0  # since they last saw a whole text
        modules = [module for module in model.modules() if callable(vars(module).get("attend"))]
        self.layers = {module: Layer(vars(module)["attend"], scale) for module in modules}
        for module, layer in self.layers.items():
            module.attend = layer  # type: ignore[assignment]
        table = getattr(model, "rotary", None)
        is_table = isinstance(table, Tensor) and table.dim() == 5 and table.size(2) >= context
        self.rotary: Tensor | None = table if is_table else None

    def whole(self, tokens: Sequence[int]) -> Tensor:
        self._turn(self.rotary, whole=True)
        logits = super().whole(tokens)
        for layer in self.layers.values():
            layer.hold(len(tokens))
        self.held, self.steps = list(tokens), 0
        return logits

    def next(self, tokens: Sequence[int]) -> Tensor:
        """The same as `whole`.

        Raises:
            ArithmeticError: it is not the same.
        """
        if not self.held or self.held != tokens[:-1]:
            return self.whole(tokens)
        last, steps = tokens[-NEIGHBORS:], self.steps + 1
        place = slice(len(tokens) - len(last), len(tokens))
        self._turn(None if self.rotary is None else self.rotary[:, :, place], whole=False)
        logits = self._row(last)[-1].float().cpu()
        self.held, self.steps = list(tokens), steps
        if min(steps, len(tokens) - NEIGHBORS) <= ALWAYS_CHECKED or len(tokens) & (len(tokens) - 1) == 0:
            logits = self._checked(logits, tokens)
            self.steps = steps
        return logits

    def _checked(self, found: Tensor, tokens: Sequence[int]) -> Tensor:
        dtype = next(iter(self.layers.values())).keys.dtype
        logits = self.whole(tokens)
        apart = (found.softmax(-1) - logits.softmax(-1)).abs().sum().item() / 2
        if not apart <= TOLERANCE.get(dtype, COARSE_TOLERANCE):
            raise ArithmeticError(f"with it {apart:.1%} of the samples would differ at token {len(tokens)}")
        return logits

    def _turn(self, rotary: Tensor | None, *, whole: bool) -> None:
        for layer in self.layers.values():
            layer.whole = whole
        if rotary is not None:
            self.model.rotary = rotary

    def remove(self) -> Plain:
        """Put the model back as it was."""
        self._turn(self.rotary, whole=True)
        for module, layer in self.layers.items():
            module.attend = layer.original  # type: ignore[assignment]
        return Plain(self.model, self.device, self.context)


# ---------------------------------------------------------------- the text


class Writer:
    """A model with its tokenizer, ready to generate. A text longer than the context continues from its last half
    context."""

    def __init__(self, model: nn.Module, tokenizer: Any, computing: Plain, context: int, note: str = "") -> None:
        self.tokenizer, self.computing, self.context = tokenizer, computing, context
        self.bos, self.note = int(tokenizer.get_bos_token_id()), note
        model.eval()

    @torch.inference_mode()
    def write(self, request: Mapping[str, Any], tell: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Generate until a document ends, `max_tokens` are reached, or `tell` wants no more. Returns how it ended.

        `tell` gets each token's text as it comes: whole characters, so some are empty.
        """
        random = torch.Generator().manual_seed(request["seed"])
        tokens = [self.bos, *self.tokenizer.encode(request["prompt"])]
        counts, decoder = {"prompt_tokens": len(tokens)}, codecs.getincrementaldecoder("utf-8")("replace")
        finish, cut = "length", forgotten(self.context) if len(tokens) > self.context else ""
        for _ in range(request["max_tokens"]):
            if len(tokens) > self.context:  # a row begins with the token that begins a document
                tokens = [self.bos, *tokens[len(tokens) - last_tokens(self.context) :]]
            token = choose(self._logits(tokens), request["temperature"], request["top_k"], random)
            if self.tokenizer.byte_lengths[token] == 0:  # a special token begins the next document
                finish = "stop"
                break
            tokens.append(token)
            text = decoder.decode(self.tokenizer.encoding.decode_single_token_bytes(token))
            if not tell({**counts, "text": text, "note": cut or self.note}):
                break
            cut = ""
        return {**counts, "text": decoder.decode(b"", final=True), "note": cut or self.note, "finish": finish}

    def _logits(self, tokens: Sequence[int]) -> Tensor:
        if isinstance(self.computing, Cached):
            try:
                return self.computing.next(tokens)
            except Exception as error:  # a changed model can fail in any way; without the cache it is unchanged
                self.computing = self.computing.remove()
                self.note = slow(str(error) if isinstance(error, ArithmeticError) else reason(error))
        return self.computing.next(tokens)


def choose(logits: Tensor, temperature: float, top_k: int | None, random: torch.Generator) -> int:
    """Sample a token by its logits (vocabulary,) from the `top_k` most probable; at temperature 0 the most probable."""
    if temperature < COLDEST:
        return int(logits.argmax())
    values, tokens = logits.topk(min(top_k or len(logits), len(logits)))
    probability = ((values - values[0]) / temperature).softmax(-1)
    return int(tokens[torch.multinomial(probability, 1, generator=random)])


def last_tokens(context: int) -> int:
    """How many of its last tokens a text longer than the context continues from, so that they fill half of it."""
    return max(0, context // 2 - 1)


def forgotten(context: int) -> str:
    return (
        f"the prompt is longer than the {context} tokens that the model takes: it continues from the last half of those"
    )


def slow(why: str) -> str:
    return (
        f"this model does not work with the cache of keys and values ({why}), so every token is computed from "
        "the whole text"
    )


def reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:LONGEST_REASON]


# ---------------------------------------------------------------- the model


def load(checkpoint: Path, wanted: str, *, cache: bool) -> Writer:
    """The model of the train.py in this directory, with its weights, on the wanted device.

    Raises anything that train.py may raise.
    """
    prepare: Any = importlib.import_module("prepare")
    prepare.prepared_file = Path  # the tokenizer is here too, wherever the lab's data may be
    train: Any = importlib.import_module("train")
    device = prepare.detect_device() if wanted == "auto" else torch.device(wanted)
    tokenizer = prepare.Tokenizer.from_directory()
    built = train.build(device, tokenizer.get_vocab_size())
    model: nn.Module = built[0] if isinstance(built, tuple) else built
    weights = safetensors.torch.load_file(checkpoint)
    names = {name.replace("_orig_mod.", ""): name for name in model.state_dict()}
    model.load_state_dict({names.get(name, name): tensor for name, tensor in weights.items()})
    context = int(prepare.MAX_SEQ_LEN)
    if not cache:
        return Writer(model, tokenizer, Plain(model, device, context), context)
    cached = Cached(model, device, getattr(train, "SOFTMAX_SCALE", None), context)
    if cached.layers:
        return Writer(model, tokenizer, cached, context)
    why = slow("it has no module that calls an `attend`")
    return Writer(model, tokenizer, Plain(model, device, context), context, why)


# ---------------------------------------------------------------- the protocol


def main() -> None:
    """Answer requests until the parent hangs up."""
    ask = importlib.import_module("autoresearch_trial").ask
    told: dict[str, Any] = {}
    with contextlib.suppress(EOFError, ConnectionError):
        try:
            settings = json.loads(sys.argv[1])
            writer = load(Path(settings["checkpoint"]), settings["device"], cache=settings["cache"])
        except (Exception, SystemExit) as error:  # the parent tells the user
            ask({"ask": "request", "failed": reason(error)})
            return
        while True:
            request = ask({"ask": "request", **told})[0]
            try:
                told = writer.write(request, lambda part: bool(ask({"ask": "more", **part})[0]["more"]))
            except (EOFError, ConnectionError):
                raise
            except Exception as error:  # the parent tells this too, and may ask for another text
                told = {"failed": reason(error)}


if __name__ == "__main__":
    main()
