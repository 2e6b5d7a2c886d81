"""Which language model to ask, where it is and with which key, from a researcher's argument and its kit."""

from __future__ import annotations

import dataclasses
import difflib
import socket
import urllib.parse
import urllib.request
from dataclasses import dataclass

from autoresearch.base.errors import UserError
from autoresearch.researchers.interface import Kit


@dataclass(frozen=True)
class Provider:
    """Where to find a provider's key and address. One without `address` has its own."""

    key: str
    key_needed: bool = True
    address_variable: str = ""
    address: str | None = None


CONNECT_SECONDS = 5.0
PROVIDERS = {
    "openai": Provider("OPENAI_API_KEY", address_variable="OPENAI_BASE_URL"),
    "anthropic": Provider("ANTHROPIC_API_KEY", address_variable="ANTHROPIC_BASE_URL"),
    "ollama": Provider("OLLAMA_API_KEY", False, "OLLAMA_BASE_URL", "http://localhost:11434/v1"),
}


@dataclass(frozen=True)
class Choice:
    """A model, where it is, and its key, which no representation of it shows."""

    provider: str
    model: str
    address: str | None
    key: str = dataclasses.field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.provider}:{self.model}"


def choose(argument: str, kit: Kit) -> Choice:
    """The model that the argument names, or else the kit.

    Raises:
        UserError: none is named, its provider is unknown, or its key is missing.
    """
    named = (argument or kit.model or "").strip()
    provider, _, model = named.partition(":")
    choices = ", ".join(sorted(PROVIDERS))
    if not named:
        raise UserError(
            "the researcher llm needs a model: write `researcher: llm:anthropic:MODEL` in program.md (the provider "
            f"is one of {choices}), or set `model`"
        )
    if provider not in PROVIDERS:
        near = difflib.get_close_matches(provider, PROVIDERS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(
            f"{named!r} does not name a known provider{hint}: write PROVIDER:MODEL with one of {choices}; any other "
            "server with OpenAI's API is `openai:MODEL` with `base_url`"
        )
    if not model:
        raise UserError(f"the researcher llm has a provider but no model: write llm:{provider}:MODEL")
    known = PROVIDERS[provider]
    address = kit.base_url or kit.environment.get(known.address_variable) or known.address
    if provider == "ollama" and address and not address.rstrip("/").endswith("/v1"):
        address = f"{address.rstrip('/')}/v1"
    key = kit.environment.get(known.key, "")
    if not key and known.key_needed and (provider != "openai" or address is None):
        raise UserError(f"the model {named} needs a key: set the environment variable {known.key} and start again")
    return Choice(provider, model, address, key or "none")


def unreachable(choice: Choice) -> str | None:
    """Why nothing answers at a model's address, and what to start; None if something does, or if that is unknown."""
    url = urllib.parse.urlsplit(choice.address or "")
    by_proxy = url.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(url.hostname or "")
    if not url.hostname or by_proxy:
        return None
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        with socket.create_connection((url.hostname, port), CONNECT_SECONDS):
            return None
    except ConnectionRefusedError:
        start = f"`ollama serve`, and get the model with `ollama pull {choice.model}`"
        then = start if choice.provider == "ollama" else "the server there, or correct its address (`base_url`)"
        return f"nothing answers at {choice.address}, where {choice.name} should be: start {then}"
    except OSError:  # no route, no name, no answer in time: the model may be away for a while
        return None
