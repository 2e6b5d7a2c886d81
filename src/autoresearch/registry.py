"""Finds an exchangeable part by its short name, and imports it only then."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from autoresearch.errors import UserError

RESEARCHERS = {
    "builtin": "autoresearch.researchers.builtin:BuiltinResearcher",
    "llm": "autoresearch.researchers.llm:LlmResearcher",
    "llm+knobs": "autoresearch.researchers.hybrid:HybridResearcher",
    "command": "autoresearch.researchers.command:CommandResearcher",
    "claude": "autoresearch.researchers.command:ClaudeResearcher",
    "codex": "autoresearch.researchers.command:CodexResearcher",
    "gemini": "autoresearch.researchers.command:GeminiResearcher",
    "opencode": "autoresearch.researchers.command:OpencodeResearcher",
    "aider": "autoresearch.researchers.command:AiderResearcher",
    "python": "autoresearch.researchers.python:PythonResearcher",
    "scripted": "autoresearch.researchers.scripted:ScriptedResearcher",
    "noop": "autoresearch.researchers.noop:NoopResearcher",
}
# What a researcher tells of its spending, so that caps can be held; those of FREE spend nothing.
COUNTED = {
    **dict.fromkeys(("llm", "llm+knobs", "claude", "opencode", "aider"), ("usd", "tokens")),
    **dict.fromkeys(("codex", "gemini"), ("tokens",)),
}
FREE = ("builtin", "python", "scripted", "noop")
EXECUTORS = {"local": "autoresearch.executors.local:LocalExecutor"}
JUDGES = {"posterior": "autoresearch.judge:PosteriorJudge", "greedy": "autoresearch.judge:GreedyJudge"}


def find(kind: str, table: Mapping[str, str], name: str) -> Any:
    """The class that a table of name → dotted path has under a name.

    Raises:
        UserError: there is none of that name; the choices are listed.
    """
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"there is no {kind} {name!r}{hint}: choose one of {', '.join(sorted(table))}")
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
