"""Turns program.md's front matter into a frozen Config. The only reader of configuration."""

from __future__ import annotations

import difflib
from pathlib import Path

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from autoresearch.base import redaction, variables
from autoresearch.base.errors import UserError
from autoresearch.lab.settings import Config
from autoresearch.ledger import report

FENCE = "---"
RAY_ADDRESS = "RAY_ADDRESS"
SHOWN = 60  # characters of a wrong value


def load(path: Path) -> tuple[Config, str]:
    """Read program.md: its configuration, and the prose below it.

    Raises:
        UserError: the file cannot be read, or its front matter is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}, which is not UTF-8: save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error}): a lab needs its program.md") from error
    front, first, prose = _split(text, path)
    try:
        return Config.model_validate(_mapping(front, first, path)), prose
    except ValidationError as error:
        raise UserError(f"{path}: {'; '.join(_problems(error))}") from error


def _split(text: str, path: Path) -> tuple[str, int, str]:
    """The front matter, the number of its first line, and the prose. Blank lines may come before it."""
    lines = text.splitlines()
    fences = [number for number, line in enumerate(lines) if line.strip() == FENCE]
    if len(fences) < 2 or any(line.strip() for line in lines[: fences[0]]):
        raise UserError(
            f"{path} has no front matter: begin it with a line `---`, settings like `researcher: builtin`, "
            "and a line `---`"
        )
    first, last = fences[0] + 1, fences[1]
    return "\n".join(lines[first:last]), first + 1, "\n".join(lines[last + 1 :])


def _mapping(front: str, first: int, path: Path) -> dict[object, object]:
    try:
        root = yaml.compose(front, yaml.SafeLoader)
        values = yaml.safe_load(front) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + first}" if mark else ""
        raise UserError(f"the front matter of {path} is not YAML{where}: {getattr(error, 'problem', error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"the front matter of {path} must be lines like `researcher: builtin`")
    keys = [(str(key.value), key.start_mark.line + first) for key, _ in root.value] if root else []
    seen = dict(reversed(keys))
    if twice := [f"`{key}` in lines {seen[key]} and {line}" for key, line in keys if line != seen[key]]:
        raise UserError(f"{path} sets something twice: {', '.join(twice)}; leave one of them")
    return values


def _problems(error: ValidationError) -> list[str]:
    return [_problem(item) for item in error.errors()]


def _problem(item: ErrorDetails) -> str:
    """What is wrong with a setting, and what it was."""
    key, kind, given = str(item["loc"][0]), str(item["type"]), item["input"]
    if kind == "extra_forbidden":
        nearest = difflib.get_close_matches(key, Config.model_fields, n=1, cutoff=0)
        return f"unknown setting `{key}` (nearest: `{nearest[0]}`)"
    if given is None:
        return f"`{key}` has no value: give it one, or remove the line"
    if isinstance(given, bool) and kind != "value_error":
        return f"`{key}` should not be {str(given).lower()}"
    if kind == "too_short":
        return f"`{key}` is empty: name at least one"
    if kind == "tuple_type":
        return f"`{key}` should be a list, like `[{given}]`"
    if kind == "value_error":
        return f"`{key}`: {str(item['msg']).removeprefix('Value error, ')}"
    message = str(item["msg"]).replace("Input", "it", 1)
    shown = report.shorten(report.one_line(str(given)), SHOWN)
    return f"`{key}`: {message[0].lower()}{message[1:]}, but is {shown!r}"


def redact(text: str) -> str:
    """The text without the user's secrets. See `redaction`."""
    return redaction.redact(text, variables.of_user())
