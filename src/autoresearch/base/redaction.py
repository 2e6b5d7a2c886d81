"""Removes secrets from text: the values of the user's secret variables, and whatever has the shape of a secret.

Pure: text and variables in, text out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

# Variables with a secret value, by their names.
SECRET = re.compile(
    r"KEY|TOKEN|SECRET|PASSW|PASSPHRASE|(?:^|_)(?:PIN|PASS)(?:_|$)|CREDENTIAL|AUTH(?!OR)|COOKIE", re.IGNORECASE
)
SHORTEST = 8  # characters; a shorter value would match innocent text, and is removed only after its variable's name
# Forms of well-known tokens: GitHub, GitLab, OpenAI and Anthropic, Slack, AWS, Google, Hugging Face, npm, PyPI, JWT.
SHAPES = re.compile(
    r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|sk-[A-Za-z0-9][\w-]{18,}|xox[abeprs]-[\w-]{10,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{35}|hf_[A-Za-z0-9]{20,}|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{50,}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,})"
)
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
# The user and password in an address, as in https://user:password@host.
ADDRESS = re.compile(r"\b([a-z][a-z0-9+.-]*://)[^\s/:@'\"]*:([^\s/@'\"]+)@", re.IGNORECASE)


def redact(text: str, variables: Mapping[str, str]) -> str:
    """The text without secrets: each is replaced by its variable's name, or its kind, in brackets."""
    for name, value in sorted(secrets(variables), key=lambda each: len(each[1]), reverse=True):
        if len(value) >= SHORTEST:
            text = text.replace(value, f"[{name}]")
        elif value:
            text = re.sub(rf"({re.escape(name)}\W{{1,4}}){re.escape(value)}(?!\w)", rf"\1[{name}]", text)
    text = ADDRESS.sub(r"\1[credentials]@", text)
    return SHAPES.sub("[token]", PRIVATE_KEY.sub("[private key]", text))


def secrets(variables: Mapping[str, str]) -> list[tuple[str, str]]:
    """The secret values and the names of their variables. A password in an address, as a proxy's, is one too."""
    found = [(name, value) for name, value in variables.items() if SECRET.search(name)]
    for name, value in variables.items():
        for address in ADDRESS.finditer(value):
            found += [(name, password) for password in dict.fromkeys((address[2], unquote(address[2])))]
    return found
