"""The researcher that asks a language model of any provider, through pydantic-ai, imported only when it is created.

It holds the model to the reply's form, a deadline and caps. Whatever goes wrong becomes a NoProposal that says why.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from autoresearch.base.errors import NoProposal, UserError
from autoresearch.ledger.records import Proposal, Scalar
from autoresearch.researchers.guard import check
from autoresearch.researchers.interface import Brief, Failure, Kit
from autoresearch.researchers.llm.knobs import KNOBS
from autoresearch.researchers.llm.lookups import Reading
from autoresearch.researchers.llm.providers import PROVIDERS, Choice, choose, unreachable
from autoresearch.researchers.llm.reply import FORMAT, Reply, parse
from autoresearch.researchers.llm.search_replace import ReplyError, one_line
from autoresearch.researchers.prompt import RULES, describe

REASON_LENGTH = 600
HELLO_SECONDS = 120.0  # in which a model must answer one word; a local one may have to be loaded first
SHORTEST_KEY = 6  # characters; shorter keys are placeholders and are not removed from texts
TOOLS = """\
Before you reply, you may call the tools to look up past trials, their logs and curves, and papers. Look up only what
you need, then reply with the edit; the reply is text, not a tool call."""


class LlmResearcher:
    """Asks a language model for each proposal. `knobs` lets it name numbers to tune, which its note then contains."""

    name = "llm"
    side_by_side = True

    def __init__(self, argument: str = "", kit: Kit = Kit(), *, knobs: bool = False) -> None:
        """Choose the model. Nothing is asked yet.

        Raises:
            UserError: the model cannot be asked.
        """
        self._kit = kit
        self._choice = choose(argument, kit)
        self._knobs = knobs
        try:
            from autoresearch.researchers.llm import conversation

            conversation.import_provider(self._choice.provider)
        except ImportError as error:
            missing = getattr(error.__cause__, "name", None) or error.name or "pydantic_ai"
            raise UserError(
                f"the researcher llm needs the package {missing}, which is not installed: run "
                "`pip install 'autoresearch[llm]'`"
            ) from error

    @property
    def model(self) -> str:
        """The model that it asks, as PROVIDER:MODEL."""
        return self._choice.name

    def check(self, *, online: bool = False) -> None:
        """See `researchers.interface.Checked`."""
        if problem := unreachable(self._choice):
            raise UserError(problem)
        if not online:
            return
        from autoresearch.researchers.llm import conversation

        talk = conversation.Conversation(
            choice=self._choice,
            deadline_seconds=min(HELLO_SECONDS, self._kit.deadline_seconds),
            max_tokens=None,
            max_usd=None,
            instructions="You are being tested.",
            tools=(),
            understand=lambda text: Proposal(text, {}),
            record=lambda title, text: None,
        )
        try:
            asyncio.run(talk.hold("Reply with the word ready."))
        except Exception as error:  # whatever the server or its library does, it cannot be asked
            raise UserError(self._told(talk.reason(error))) from None

    def propose(self, brief: Brief) -> Proposal:
        """Ask the model until its reply can be tried, within the deadline and the caps.

        Raises:
            NoProposal: it gave none, and why.
        """
        from autoresearch.researchers.llm import conversation

        log = Transcript(self._kit.transcripts / brief.transcript, self._clean)
        talk = conversation.Conversation(
            choice=self._choice,
            deadline_seconds=self._kit.deadline_seconds,
            max_tokens=self._kit.max_tokens,
            max_usd=self._kit.max_usd,
            instructions="\n\n".join([RULES, FORMAT, *([KNOBS] if self._knobs else []), TOOLS]),
            tools=Reading(brief, self._kit.papers).tools,
            understand=lambda text: self._understand(text, brief),
            record=log.write,
        )
        try:
            log.begin(self._choice)
            proposal = asyncio.run(talk.hold(describe(brief)))
        except Exception as error:  # whatever the model, its server or its library does, the loop continues
            reason = self._told(talk.reason(error))
            log.end(reason)
            failed = not talk.is_models_fault(error)
            raise NoProposal(reason, tokens=talk.tokens, usd=talk.usd, failed=failed) from None
        return dataclasses.replace(proposal, tokens=talk.tokens, usd=talk.usd)

    def _understand(self, text: str, brief: Brief) -> Proposal:
        """The reply as a proposal that the guard will accept.

        Raises:
            ReplyError: it is not one, and why.
        """
        reply = parse(text, brief.files, brief.failure.files if brief.failure else None)
        proposal = self._as_proposal(reply, brief.failure)
        # Better to say so while the model can still fix it.
        if problem := check.refusal(
            proposal, brief.files, brief.campaign.trials, brief.archive.files, tuple(brief.files)
        ):
            raise ReplyError(problem.reason)
        return proposal

    def _as_proposal(self, reply: Reply, failure: Failure | None) -> Proposal:
        note: dict[str, Scalar] = {"model": self._choice.name}
        if self._knobs and reply.knobs:
            note["knobs"] = json.dumps([[knob.name, knob.low, knob.high, knob.log] for knob in reply.knobs])
        idea, why, expects = map(self._clean, (reply.idea, reply.why, reply.expects))
        repairs = failure.trial if failure and reply.repairs else None
        return Proposal(idea, reply.files, note, why=why, expects=expects, repairs=repairs)

    def _told(self, reason: str) -> str:
        """Why the model gave nothing, on one line."""
        return self._clean(one_line(f"{self._choice.name}: {reason}"))[:REASON_LENGTH]

    def _clean(self, text: str) -> str:
        """The text without any key, for everything that is written or raised."""
        if len(self._choice.key) >= SHORTEST_KEY:
            text = text.replace(self._choice.key, f"[{PROVIDERS[self._choice.provider].key}]")
        return self._kit.redact(text)


# ---------------------------------------------------------------- what was said


@dataclass(frozen=True)
class Transcript:
    """A log of the exchange, for people. It is appended to as it happens, so an interrupted one is there too."""

    path: Path
    clean: Callable[[str], str]

    def begin(self, choice: Choice) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.write(f"{now} {choice.name} {choice.address or ''}", "")

    def write(self, title: str, text: str) -> None:
        """Append a part, without keys and control characters."""
        part = "\n".join(["", f"===== {title} =====", *([text, ""] if text else [])])
        with self.path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(self.clean("".join(printable(part))) + "\n")  # an invisible character could hide a key

    def end(self, reason: str) -> None:
        """Append why there is no proposal. If the log cannot be written, that does not change the outcome."""
        try:
            self.write("no proposal", reason)
        except OSError:
            return


def printable(text: str) -> Iterator[str]:
    return (character for character in text if character.isprintable() or character in "\n\t")
