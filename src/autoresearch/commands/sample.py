"""The command that generates text with a kept model: sample."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Annotated

import typer

from autoresearch.agents.answers import Answers
from autoresearch.base import stopping
from autoresearch.base.errors import UserError
from autoresearch.commands.options import HERE, AsJson, Lab, Tag, print_json
from autoresearch.executors import hardware
from autoresearch.lab import config
from autoresearch.lab.workspace import Workspace
from autoresearch.loop.parts import compose
from autoresearch.models import saved_model
from autoresearch.models.sampling import Request, Sampler
from autoresearch.models.saved_model import Model

DEVICES = ("auto", "cpu", "cuda", "mps")


def sample(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID] [PROMPT]", help="The beginning of the text; you can put a trial's number before it."
        ),
    ] = None,
    trial: Annotated[
        int | None, typer.Option(help="Whose model to use: the number of a kept trial, as in `log`.")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="Use the best kept model. This is the default.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Generate at most this many tokens.")] = 200,
    temperature: Annotated[
        float, typer.Option(min=0, help="Sampling temperature: 0 always takes the most probable token.")
    ] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample from the K most probable tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text, on the same device.")] = None,
    device: Annotated[str, typer.Option(help=f"One of {', '.join(DEVICES)}.")] = "auto",
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Cache keys and values if that is exact enough.")
    ] = True,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the model on this machine instead, with a web page.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve on; 0 takes a free one.")] = 8000,
    lab: Lab = HERE,
    tag: Tag = None,
    as_json: AsJson = False,
) -> None:
    """Continue a text with a kept model, in the same sandbox as a run. Uses the best model unless you name one.

    With --serve it answers OpenAI's completions API at http://127.0.0.1:PORT/v1 and offers a page to try it. This needs
    `pip install 'autoresearch[web]'`, and each request sets its own options. Ctrl-C stops it.

    Example: autoresearch sample "Once upon a time" --temperature 0.7
    """
    number, prompt = _asked(words or [], trial, best=best, serve=serve)
    request = Request(prompt, max_tokens, temperature, top_k, seed)
    if serve and (as_json or request != Request(prompt)):
        raise UserError(
            "with --serve each request sets its own options: leave out --max-tokens, --temperature, --top-k, "
            "--seed, --json"
        )
    _check_device(device)
    workspace = Workspace.open(lab)
    beside = Answers(workspace)
    model = saved_model.of_trial(workspace, beside.campaign(_tag(beside, number, tag)), number)
    cell = compose.cell(config.load(workspace.program)[0], workspace.root)
    sampler = Sampler(model, cell, device=device, cache=cache, say=_say)
    if workspace.is_locked():
        _say("a search is running here: this disturbs what it measures")
    if serve:
        _serve(sampler, port)
        return
    try:
        with stopping.ended_as_by_hand(), sampler:
            _write(sampler, request, as_json=as_json)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None  # after the text so far


def _check_device(device: str) -> None:
    if device not in DEVICES:
        raise UserError(f"there is no device {device!r}: choose one of {', '.join(DEVICES)}")
    if device not in ("auto", "cpu", here := hardware.device().kind):
        raise UserError(f"this machine has no {device}, only {here}: leave --device out")


def _tag(lab: Answers, number: int | None, tag: str | None) -> str | None:
    """The campaign to look in; None for the latest."""
    if number is None:
        return tag
    own = lab.trial(number).proposed.tag
    if tag not in (None, own):
        raise UserError(f"trial {number} belongs to campaign {own}, not to {tag}: leave --tag out, or name {own}")
    return own


def _asked(words: list[str], trial: int | None, *, best: bool, serve: bool) -> tuple[int | None, str]:
    """Whose model to use (None for the best), and the prompt."""
    named = words[:1] if len(words) == 2 or (serve and words) else []
    if len(words) > 2 or (serve and len(words) > 1):
        raise UserError('the shell made more than one word of the prompt: put it in quotes, as in `sample "Once upon"`')
    if named and not named[0].isdecimal():
        raise UserError(f'{named[0]!r} is not a trial number: put the prompt in quotes, as in `sample 3 "Once upon"`')
    chosen = [*([trial] if trial is not None else []), *map(int, named)]
    if len(chosen) + best > 1:
        raise UserError("a trial is named twice: use only one of --best, --trial or a number before the prompt")
    return (chosen[0] if chosen else None), "".join(words[len(named) :])


def _write(sampler: Sampler, request: Request, *, as_json: bool) -> None:
    began, texts, finish, tokens = time.monotonic(), list[str](), None, 0
    if not as_json:
        print(request.prompt, end="", flush=True)
    with contextlib.closing(sampler.generate(request)) as pieces:
        for piece in pieces:
            finish, tokens = piece.finish, piece.tokens
            if as_json:
                texts.append(piece.text)
            else:
                print(_harmless(piece.text), end="", flush=True)
    if as_json:
        told = {**_named(sampler.model), "prompt": request.prompt, "text": "".join(texts), "finish": finish}
        print_json({**told, "tokens": tokens, "seconds": round(time.monotonic() - began, 3)})
    else:
        print()


def _named(model: Model) -> dict[str, object]:
    return {"tag": model.tag, "trial": model.trial, "val_bpb": model.val_bpb}


def _serve(sampler: Sampler, port: int) -> None:
    try:
        from autoresearch.models import serving
    except ImportError as error:
        raise UserError(f"--serve needs {error.name}: run `pip install 'autoresearch[web]'`") from error
    name = sampler.model.name
    with contextlib.suppress(KeyboardInterrupt), stopping.ended_as_by_hand(), sampler:
        serving.serve(sampler, port, lambda url: print(f"{name} answers at {url} (Ctrl-C stops it)", flush=True))


def _harmless(text: str) -> str:
    """The text without characters that would control a terminal."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
