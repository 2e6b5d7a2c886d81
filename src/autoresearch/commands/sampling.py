"""The command that lets a kept model write: sample."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Annotated

import typer

from autoresearch import compose, config, interactive, models, stopping
from autoresearch.commands.options import HERE, AsJson, Lab, Tag, print_json
from autoresearch.errors import UserError
from autoresearch.models import Model
from autoresearch.sampling import Request, Sampler
from autoresearch.workspace import Workspace

DEVICES = ("auto", "cpu", "cuda", "mps")


def sample(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID] [PROMPT]", help="What the text begins with; before it perhaps a trial's number."),
    ] = None,
    trial: Annotated[int | None, typer.Option(help="Whose model: the number of a kept trial, as in `log`.")] = None,
    best: Annotated[bool, typer.Option("--best", help="The best keep's model; so it is without --trial too.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Make no more than so many tokens.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="How bold: 0 takes the most probable token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from so many of the most probable.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text, on the same device.")] = None,
    device: Annotated[str, typer.Option(help=f"One of {', '.join(DEVICES)}.")] = "auto",
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Keep keys and values, where that is right.")
    ] = True,
    serve: Annotated[
        bool, typer.Option("--serve", help="Offer the model on this machine instead, with a page.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to serve; 0 takes a free one.")] = 8000,
    lab: Lab = HERE,
    tag: Tag = None,
    as_json: AsJson = False,
) -> None:
    """Let a kept model go on with a text, in the sandbox of a run; the best one where none is named.

    With --serve it answers OpenAI's completions at http://127.0.0.1:PORT/v1, and there is a page to try it with:
    this needs `pip install 'autoresearch[web]'`; each request says how to write. Ctrl-C ends it.

    Example: autoresearch sample "Once upon a time" --temperature 0.7
    """
    number, prompt = _asked(words or [], trial, best=best, serve=serve)
    request = Request(prompt, max_tokens, temperature, top_k, seed)
    if serve and (as_json or request != Request(prompt)):
        raise UserError(
            "with --serve requests say how to write: leave out --max-tokens, --temperature, --top-k, --seed, --json"
        )
    if device not in DEVICES:
        raise UserError(f"there is no device {device!r}: choose one of {', '.join(DEVICES)}")
    workspace = Workspace.open(lab)
    beside = interactive.Lab(workspace)
    model = models.of_trial(workspace, beside.campaign(_tag(beside, number, tag)), number)
    cell = compose.cell(config.load(workspace.program)[0], workspace.root)
    sampler = Sampler(model, cell, device=device, cache=cache, say=_say)
    if workspace.is_locked():
        _say("a search is at work here: what it measures meanwhile is disturbed")
    if serve:
        _serve(sampler, port)
        return
    try:
        with stopping.ended_as_by_hand(), sampler:
            _write(sampler, request, as_json=as_json)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None  # the text so far is there


def _tag(lab: interactive.Lab, number: int | None, tag: str | None) -> str | None:
    """The campaign that is meant, None for the latest."""
    if number is None:
        return tag
    own = lab.trial(number).proposed.tag
    if tag not in (None, own):
        raise UserError(f"trial {number} is one of campaign {own}, not of {tag}: leave --tag out, or name {own}")
    return own


def _asked(words: list[str], trial: int | None, *, best: bool, serve: bool) -> tuple[int | None, str]:
    """Whose model, None for the best, and the prompt."""
    named = words[:1] if len(words) == 2 or (serve and words) else []
    if len(words) > 2 or (serve and len(words) > 1):
        raise UserError('the prompt is one word too long for the shell: put it in quotes, as in `sample "Once upon"`')
    if named and not named[0].isdecimal():
        raise UserError(f'{named[0]!r} is no trial\'s number: put the prompt in quotes, as in `sample 3 "Once upon"`')
    chosen = [*([trial] if trial is not None else []), *map(int, named)]
    if len(chosen) + best > 1:
        raise UserError("a trial is named twice: give --best, --trial or a number before the prompt, and only one")
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
        from autoresearch import serving
    except ImportError as error:
        raise UserError(f"--serve needs {error.name}: run `pip install 'autoresearch[web]'`") from error
    name = sampler.model.name
    with contextlib.suppress(KeyboardInterrupt), stopping.ended_as_by_hand(), sampler:
        serving.serve(sampler, port, lambda url: print(f"{name} answers at {url} (Ctrl-C ends it)", flush=True))


def _harmless(text: str) -> str:
    """The text without what would steer a terminal."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
