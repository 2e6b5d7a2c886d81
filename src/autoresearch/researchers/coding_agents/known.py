"""The known coding agents: how each is called without a terminal and restricted by its own flags, and how it reports
what it spent."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# ---------------------------------------------------------------- what an agent reports of itself


@dataclass(frozen=True)
class Account:
    """An agent's last words and what it spent; None if it does not say."""

    words: str
    tokens: int | None = None
    usd: float | None = None


def aider_account(output: str) -> Account:
    """Aider ends each answer with `Tokens: 1.2k sent, 130 received. Cost: $0.01 message, $0.02 session.`"""
    used = re.findall(r"Tokens: ([0-9.]+)(k?) sent.*?([0-9.]+)(k?) received", output)
    counts = [
        (number, unit) for sent, kilo, got, thousands in used for number, unit in ((sent, kilo), (got, thousands))
    ]
    tokens = sum(round((_number(number) or 0) * (1000 if unit else 1)) for number, unit in counts)
    costs = re.findall(r"\$([0-9.]+) session", output)
    return Account(output, tokens if used else None, _number(costs[-1]) if costs else None)


def claude_account(output: str) -> Account:
    """The `result` line, or the sum over its messages if it was ended before that."""
    lines = list(_json_lines(output))
    result = next((line for line in reversed(lines) if line.get("type") == "result"), None)
    if result:
        words = result.get("result") or "; ".join(map(str, result.get("errors") or [result.get("subtype")]))
        return Account(str(words), _tokens(result.get("usage")), _number(result.get("total_cost_usd")))
    messages = [message for line in lines if isinstance(message := line.get("message"), dict)]
    usages = {str(message.get("id")): message["usage"] for message in messages if message.get("usage")}
    return Account(output, sum(_tokens(usage) or 0 for usage in usages.values()) if usages else None)


def codex_account(output: str) -> Account:
    lines = list(_json_lines(output))
    said = [item.get("text") for line in lines if isinstance(item := line.get("item"), dict)]
    errors = [line.get("message") for line in lines if line.get("type") == "error"]
    used = [tokens for line in lines if (tokens := _tokens(line.get("usage"))) is not None]
    words = [str(text) for text in (*said, *errors) if text]
    return Account(words[-1] if words else output, sum(used) if used else None)


def gemini_account(output: str) -> Account:
    lines = list(_json_lines(output))
    said = "".join(str(line.get("content", "")) for line in lines if line.get("role") == "assistant")
    statistics = [line["stats"] for line in lines if isinstance(line.get("stats"), dict)]
    return Account(said or output, _whole(statistics[-1].get("total_tokens")) if statistics else None)


def opencode_account(output: str) -> Account:
    parts = [part for line in _json_lines(output) if isinstance(part := line.get("part"), dict)]
    said = [str(part["text"]) for part in parts if part.get("text")]
    costs = [cost for part in parts if (cost := _number(part.get("cost"))) is not None]
    counts = [part["tokens"] for part in parts if isinstance(part.get("tokens"), dict)]
    tokens = sum(_whole(count.get(name)) or 0 for count in counts for name in ("input", "output", "reasoning"))
    tokens += sum(_tokens(count.get("cache"), ("read", "write")) or 0 for count in counts)
    return Account(said[-1] if said else output, tokens if counts else None, sum(costs) if costs else None)


def _json_lines(output: str) -> Iterator[dict[str, Any]]:
    for line in output.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


USAGE = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")


def _tokens(usage: object, names: Sequence[str] = USAGE) -> int | None:
    """All the tokens of a usage record. Codex counts cached ones as part of the input, under another name."""
    return sum(_whole(usage.get(name)) or 0 for name in names) if isinstance(usage, Mapping) else None


def _whole(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _number(value: object) -> float | None:
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


# ---------------------------------------------------------------- the known agents


@dataclass(frozen=True)
class AgentSpec:
    """How an agent is called without a terminal, and safely. The prompt is on its stdin.

    `takes_files`: it wants the prompt in a file, and the names of the files it may edit as arguments. `budget` is its
    option for a limit in US dollars. `policy` is the content of the file that `--policy` names.
    """

    install: str
    command: tuple[str, ...]
    account: Callable[[str], Account]
    takes_files: bool = False
    budget: str = ""
    policy: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


# The last matching rule wins, and the user's own rules are merged with these by name, so all are named.
OPENCODE_ALLOWED = ("read", "edit", "glob", "grep", "list")
OPENCODE_DENIED = ("*", "bash", "webfetch", "websearch", "codesearch", "task", "skill", "external_directory")
OPENCODE_CONFIG = {
    "permission": {**dict.fromkeys(OPENCODE_DENIED, "deny"), **dict.fromkeys(OPENCODE_ALLOWED, "allow")},
    "share": "disabled",
    "autoupdate": False,
}
GEMINI_POLICY = """\
[[rule]]
toolName = ["run_shell_command", "web_fetch", "google_web_search"]
decision = "deny"
priority = 999
"""
AGENTS: Mapping[str, AgentSpec] = {
    "claude": AgentSpec(
        install="npm install --global @anthropic-ai/claude-code",
        command=(
            *("claude", "--print", "--output-format", "stream-json", "--verbose", "--no-session-persistence"),
            *("--permission-mode", "acceptEdits", "--tools", "Read,Edit,Write,Glob,Grep", "--strict-mcp-config"),
        ),
        account=claude_account,
        budget="--max-budget-usd",
        environment={"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"},
    ),
    "codex": AgentSpec(
        install="npm install --global @openai/codex",
        command=(
            *("codex", "exec", "--json", "--sandbox", "workspace-write", "--skip-git-repo-check", "--ephemeral"),
            *("--config", 'approval_policy="never"', "--config", "sandbox_workspace_write.network_access=false"),
            *("--config", "sandbox_workspace_write.writable_roots=[]"),
            *("--config", "sandbox_workspace_write.exclude_slash_tmp=true"),
            *("--config", "sandbox_workspace_write.exclude_tmpdir_env_var=true"),
            *("--config", "shell_environment_policy.ignore_default_excludes=false"),  # no key reaches its commands
            *("--config", 'web_search="disabled"'),
        ),
        account=codex_account,
    ),
    "gemini": AgentSpec(
        install="npm install --global @google/gemini-cli",
        command=(
            *("gemini", "--approval-mode", "auto_edit", "--skip-trust", "--output-format", "stream-json"),
            *("--extensions", "none"),
        ),
        account=gemini_account,
        policy=GEMINI_POLICY,
    ),
    "opencode": AgentSpec(
        install="npm install --global opencode-ai",
        command=("opencode", "run", "--format", "json"),
        account=opencode_account,
        environment={"OPENCODE_CONFIG_CONTENT": json.dumps(OPENCODE_CONFIG)},
    ),
    "aider": AgentSpec(
        install="python -m pip install aider-chat",
        command=(
            *("aider", "--yes-always", "--no-auto-commits", "--no-dirty-commits"),
            *("--no-gitignore", "--no-check-update", "--no-show-release-notes", "--no-analytics", "--no-auto-lint"),
            *("--no-auto-test", "--no-suggest-shell-commands", "--no-detect-urls", "--no-pretty", "--no-stream"),
        ),
        account=aider_account,
        takes_files=True,
    ),
}
