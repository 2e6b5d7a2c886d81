"""Errors that the user can fix. Any other exception is a bug of ours."""


class UserError(Exception):
    """What happened, why, and what to do next, in one sentence. The command line prints it and exits with 1."""

    @property
    def answer(self) -> dict[str, object]:
        """The same as plain data, for `--json` and MCP."""
        return {"status": "error", "reason": str(self)}


class BusyError(UserError):
    """Another process works in the lab."""


class NoInterpreterError(UserError):
    """The Python that should run the lab's files is missing."""

    def __init__(self, python: object) -> None:
        super().__init__(
            f"the Python interpreter {python} does not exist or cannot be run: correct `python:` in program.md, or "
            "remove that line to use the interpreter that runs autoresearch"
        )


class NoProposal(Exception):
    """A researcher returned without a proposal. The loop counts it, says so, and asks again.

    `tokens` and `usd` are what it spent anyway. `failed` means that the researcher's server or program failed: that is
    for the user, and nothing that a model could learn from.
    """

    def __init__(
        self, reason: str, *, tokens: int | None = None, usd: float | None = None, failed: bool = False
    ) -> None:
        super().__init__(reason)
        self.tokens = tokens
        self.usd = usd
        self.failed = failed


class EndRun(Exception):
    """Raised by whoever watches a run, to end it right away; the message says why."""


class Exhausted(Exception):
    """A researcher has nothing more to propose. The loop ends with this reason."""
