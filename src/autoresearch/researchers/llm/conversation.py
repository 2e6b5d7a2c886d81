"""One conversation with a language model through pydantic-ai: ask, correct, wait, count and cap.

It knows the providers and their errors. The caller decides what is asked, and whether a reply will do.
"""

from __future__ import annotations

import asyncio
import importlib
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic_ai import Agent, ModelRetry, TextOutput
from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelConnectionError,
    ModelHTTPError,
    ModelRateLimitError,
    ModelRequestTimeout,
    ModelServerError,
    ModelUnavailableError,
    UnexpectedModelBehavior,
    UsageLimitExceeded,
)
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequestPart,
    ModelResponse,
    ModelResponsePart,
    RetryPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters, create_async_httpx2_client
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RunUsage, UsageLimits

from autoresearch.ledger.records import Proposal
from autoresearch.researchers.llm.providers import PROVIDERS, Choice
from autoresearch.researchers.llm.search_replace import ReplyError

CORRECTIONS = 3  # malformed replies that are returned with what is wrong with them
TOOL_MISTAKES = 6  # tool calls with wrong arguments
REQUESTS = 30  # in one conversation, including tool calls
CALLS = 4  # of a server that cannot be reached, in a few seconds
SHORTEST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds before a failed request is repeated, unless the server says how long
MOST_REPLY_TOKENS = 16_384  # asked for; an edit is short, and thinking counts too
MOST_ECHO = 20_000  # characters of a model's own reply that are sent back to it
MOST_SAID = 300  # characters of what a server said
MOST_COMPLAINT = 2_000  # characters of what is wrong with a reply
# characters; no tokenizer makes longer tokens of code, so a prompt with more per token was not read to its end
CHARACTERS_PER_TOKEN = 8
NO_TOOLS = re.compile(r"not support.{0,20}tool|tool.{0,40}not (?:supported|available|enabled)", re.IGNORECASE)
REFUSED_KEY = (401, 403)
PASSING = (ModelRateLimitError, ModelUnavailableError, ModelServerError, ModelConnectionError, ModelRequestTimeout)


class Capped(Exception):
    """The conversation has used up what it may."""


@dataclass
class Conversation:
    """What one proposal needs. `tokens`, `usd` and `reason` say how it went, even after a failure."""

    choice: Choice
    deadline_seconds: float
    max_tokens: int | None
    max_usd: float | None
    instructions: str
    tools: Sequence[Callable[..., str]]
    understand: Callable[[str], Proposal]
    record: Callable[[str, str], None]
    usage: RunUsage = field(default_factory=RunUsage)
    complaint: str = ""
    trouble: str = ""
    characters: int = 0
    answered: str = ""  # what the server said last: its status and the beginning of its body

    @property
    def tokens(self) -> int:
        return self.usage.total_tokens

    @property
    def usd(self) -> float | None:
        """What was spent, at the provider's list price; None if that is unknown."""
        return None if self.usage.cost is None else float(self.usage.cost)

    async def hold(self, prompt: str) -> Proposal:
        """Ask until a reply is understood. If it ends in any other way, it raises; see `reason`."""
        return await asyncio.wait_for(self._with_or_without_tools(prompt), self.deadline_seconds)

    async def _with_or_without_tools(self, prompt: str) -> Proposal:
        until = time.monotonic() + self.deadline_seconds
        try:
            return await self._hold(prompt, until)
        except ModelHTTPError as error:
            if not (self.tools and error.status_code == 400 and NO_TOOLS.search(said(error.body))):
                raise
            self.record("the model takes no tools", said(error.body))
            self.tools = ()
            return await self._hold(prompt, until)

    async def _hold(self, prompt: str, until: float) -> Proposal:
        self.characters = len(self.instructions) + len(prompt)
        async with create_async_httpx2_client() as client:
            client.event_hooks["response"].append(self._remember)
            agent = Agent(
                Patient(build(self.choice, client), until, self._wait),
                output_type=TextOutput(self._check),
                instructions=self.instructions,
                tools=self.tools,
                retries={"output": CORRECTIONS, "tools": TOOL_MISTAKES},
                model_settings=ModelSettings(max_retries=0, cache=True, max_tokens=self._most_reply_tokens()),
            )
            limits = UsageLimits(request_limit=REQUESTS)
            async with agent.iter(prompt, usage=self.usage, usage_limits=limits) as run:
                async for node in run:
                    if agent.is_model_request_node(node):
                        self._record(node.request.parts)
                        self._check_caps()
                    elif agent.is_call_tools_node(node):
                        self._record(node.model_response.parts)
                assert run.result is not None, "a run that ends without an error has a result"
                return run.result.output

    def _most_reply_tokens(self) -> int:
        return MOST_REPLY_TOKENS if self.max_tokens is None else min(self.max_tokens, MOST_REPLY_TOKENS)

    async def _remember(self, response: Any) -> None:
        """Keep what a server answers, so that the user can be told if nobody understands it."""
        await response.aread()
        self.answered = f"{response.status_code} {response.text[:MOST_SAID]!r}"

    def _check(self, text: str) -> Proposal:
        try:
            return self.understand(text)
        except ReplyError as error:
            self.complaint = cut(str(error), MOST_COMPLAINT)
            raise ModelRetry(f"{self.complaint}\n\nSend the whole reply again, with that fixed.") from error

    def _check_caps(self) -> None:
        """Between requests, so that a reply that was paid for is used."""
        if self.max_tokens is not None and self.tokens >= self.max_tokens:
            raise Capped(f"it used {self.tokens} tokens of at most {self.max_tokens}, without a proposal")
        if self.max_usd is not None and self.usd is not None and self.usd >= self.max_usd:
            raise Capped(f"it cost ${self.usd:.4f} of at most ${self.max_usd:g}, without a proposal")

    async def _wait(self, error: ModelAPIError, seconds: float) -> None:
        self.trouble = self.reason(error)
        self.record(f"waiting {seconds:.1f} s", self.trouble)
        await asyncio.sleep(seconds)

    def _record(self, parts: Sequence[ModelRequestPart | ModelResponsePart]) -> None:
        for part in parts:
            self.record(*told(part))

    def reason(self, error: BaseException) -> str:
        """Why there is no proposal."""
        if isinstance(error, TimeoutError | asyncio.TimeoutError):
            before = f"; before that: {self.trouble}" if self.trouble else ""
            return f"no proposal within {self.deadline_seconds:g} s{before}"
        if isinstance(error, ModelHTTPError):
            wait = f" (it asks to wait {error.retry_after:g} s)" if error.retry_after else ""
            if error.status_code in REFUSED_KEY:
                key = PROVIDERS[self.choice.provider].key
                return f"{self._server} does not take the key in {key} ({error.status_code}): {said(error.body)}"
            return f"the server answered {error.status_code}{wait}: {said(error.body)}"
        if isinstance(error, ModelConnectionError):
            return f"no connection to {self._server}: {error.message}"
        if isinstance(error, UnexpectedModelBehavior) and self.complaint:
            return f"no reply of the model could be used; the last one because {self.complaint}{self._cut_short()}"
        if isinstance(error, UsageLimitExceeded):
            return f"no proposal after {REQUESTS} requests"
        if isinstance(error, Capped):
            return str(error)
        if not self.answered:
            return f"{type(error).__name__}: {error}"
        return f"{self._server} gave an answer that cannot be used ({type(error).__name__}): {self.answered}"

    @property
    def _server(self) -> str:
        return self.choice.address or self.choice.provider

    def is_models_fault(self, error: BaseException) -> bool:
        """Whether the model's replies are to blame, rather than its server or the connection."""
        if isinstance(error, UnexpectedModelBehavior):
            return bool(self.complaint)
        return isinstance(error, Capped | UsageLimitExceeded)

    def _cut_short(self) -> str:
        """A hint if the server cannot have read the whole prompt, as with Ollama's small default context."""
        read = self.usage.input_tokens / max(self.usage.requests, 1)
        if not 0 < read * CHARACTERS_PER_TOKEN < self.characters:
            return ""
        hint = "raise its context length (for Ollama: OLLAMA_CONTEXT_LENGTH)"
        return f". The server read {read:.0f} tokens of a prompt of {self.characters} characters: {hint}"


class Patient(WrapperModel):
    """A model whose requests are repeated after temporary failures, as long as there is time. Echoes are cut.

    A server that cannot be reached at all is left alone after a few calls: the loop asks again later.
    """

    def __init__(
        self, wrapped: Model, until: float, wait: Callable[[ModelAPIError, float], Coroutine[None, None, None]]
    ) -> None:
        super().__init__(wrapped)
        self._until = until
        self._wait = wait

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        longest, unreachable = SHORTEST_WAIT, 0
        while True:
            try:
                return await super().request(short_echoes(messages), model_settings, model_request_parameters)
            except PASSING as error:
                unreachable += isinstance(error, ModelConnectionError)
                seconds = max(longest if error.retry_after is None else error.retry_after, SHORTEST_WAIT)
                if unreachable >= CALLS or time.monotonic() + seconds >= self._until:
                    raise
                await self._wait(error, seconds)
                longest = min(2 * longest, LONGEST_WAIT)


def short_echoes(messages: list[ModelMessage]) -> list[ModelMessage]:
    """The messages with the model's own long texts cut, which the user would pay for again with every request."""
    return [replace(each, parts=[_short(part) for part in each.parts]) for each in messages]  # type: ignore[arg-type]


def _short(part: Any) -> Any:
    if isinstance(part, TextPart | ThinkingPart) and len(part.content) > MOST_ECHO:
        return replace(part, content=cut(part.content, MOST_ECHO))
    if isinstance(part, ToolCallPart) and len(part.args_as_json_str()) > MOST_ECHO:
        return replace(part, args="{}")
    if isinstance(part, RetryPromptPart) and len(said_again := part.model_response()) > MOST_ECHO:
        return replace(part, content=cut(said_again, MOST_COMPLAINT))
    return part


def cut(text: str, most: int) -> str:
    """The beginning and the end of a long text, and how much is left out."""
    left = len(text) - most
    return text if left <= 0 else f"{text[: most // 2]}\n[... {left:,} characters left out ...]\n{text[-(most // 2) :]}"


# ---------------------------------------------------------------- providers


def import_provider(name: str) -> None:
    """Import what a provider's model needs.

    Raises:
        ImportError: it is not installed.
    """
    importlib.import_module(f"pydantic_ai.providers.{name}")
    importlib.import_module(f"pydantic_ai.models.{name}")


def build(choice: Choice, client: Any) -> Model:
    """The chosen model, reached through an HTTP client, with a key that comes from nowhere else."""
    return {"openai": _openai, "anthropic": _anthropic, "ollama": _ollama}[choice.provider](choice, client)


def _openai(choice: Choice, client: Any) -> Model:
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=choice.address, api_key=choice.key, http_client=client)
    # OpenAI's own newer models take tools only through Responses; all other servers speak Chat Completions.
    made = OpenAIResponsesModel if choice.address is None else OpenAIChatModel
    return made(choice.model, provider=provider)


def _anthropic(choice: Choice, client: Any) -> Model:
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    provider = AnthropicProvider(base_url=choice.address, api_key=choice.key, http_client=client)
    return AnthropicModel(choice.model, provider=provider)


def _ollama(choice: Choice, client: Any) -> Model:
    from pydantic_ai.models.ollama import OllamaModel
    from pydantic_ai.providers.ollama import OllamaProvider

    provider = OllamaProvider(base_url=choice.address, api_key=choice.key, http_client=client)
    return OllamaModel(choice.model, provider=provider)


# ---------------------------------------------------------------- in words


def told(part: ModelRequestPart | ModelResponsePart) -> tuple[str, str]:
    """A part of the exchange as a title and a text."""
    if isinstance(part, ToolCallPart):
        return f"the model calls {part.tool_name}", part.args_as_json_str()
    if isinstance(part, ToolReturnPart):
        return f"{part.tool_name} answers", part.model_response_str()
    if isinstance(part, RetryPromptPart):
        return "it is told", part.model_response()
    titles = {UserPromptPart: "it is asked", TextPart: "the model replies", ThinkingPart: "the model thinks"}
    return titles.get(type(part), type(part).__name__), str(getattr(part, "content", ""))


def said(body: object) -> str:
    """The message in an error's body, whatever its form."""
    for key in ("error", "message"):
        if isinstance(body, dict) and key in body:
            body = body[key]
    return str(body)[:MOST_SAID] if body else "nothing"
