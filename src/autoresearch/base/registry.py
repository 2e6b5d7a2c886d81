"""Finds an exchangeable part by its short name, and imports it only then."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from autoresearch.base.errors import UserError

RESEARCHERS = {
    "builtin": "autoresearch.researchers.builtin.researcher:BuiltinResearcher",
    "llm": "autoresearch.researchers.llm.researcher:LlmResearcher",
    "llm+knobs": "autoresearch.researchers.llm.hybrid:HybridResearcher",
    "command": "autoresearch.researchers.coding_agents.command:CommandResearcher",
    "claude": "autoresearch.researchers.coding_agents.command:ClaudeResearcher",
    "codex": "autoresearch.researchers.coding_agents.command:CodexResearcher",
    "gemini": "autoresearch.researchers.coding_agents.command:GeminiResearcher",
    "opencode": "autoresearch.researchers.coding_agents.command:OpencodeResearcher",
    "aider": "autoresearch.researchers.coding_agents.command:AiderResearcher",
    "python": "autoresearch.researchers.simple.python:PythonResearcher",
    "scripted": "autoresearch.researchers.simple.scripted:ScriptedResearcher",
    "noop": "autoresearch.researchers.simple.noop:NoopResearcher",
}
# What a researcher reports of its spending, so that caps can be enforced. Those in FREE spend nothing.
COUNTED = {
    **dict.fromkeys(("llm", "llm+knobs", "claude", "opencode", "aider"), ("usd", "tokens")),
    **dict.fromkeys(("codex", "gemini"), ("tokens",)),
}
FREE = ("builtin", "python", "scripted", "noop")
EXECUTORS = {"local": "autoresearch.executors.machine:here", "ray": "autoresearch.executors.cluster.site:there"}
JUDGES = {"posterior": "autoresearch.judging.judge:PosteriorJudge", "greedy": "autoresearch.judging.judge:GreedyJudge"}


def find(kind: str, table: Mapping[str, str], name: str) -> Any:
    """The class registered under a name, in a table of name → dotted path.

    Raises:
        UserError: there is none with that name; the message lists the choices.
    """
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"there is no {kind} {name!r}{hint}: choose one of {', '.join(sorted(table))}")
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
