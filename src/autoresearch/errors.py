"""Errors that a person can mend; anything else that is raised is a bug of ours."""


class UserError(Exception):
    """What happened, why, and what to do next, in one sentence; the command line prints it and exits with 1."""


class NoInterpreterError(UserError):
    """The Python that is to run the lab's files is not there."""

    def __init__(self, python: object) -> None:
        super().__init__(
            f"the Python interpreter {python} does not exist or cannot be run: correct `python:` in program.md, "
            "or remove that line to use the one that runs autoresearch"
        )


class NoProposal(Exception):
    """A researcher came back without a proposal: the loop counts it, tells it, and asks again.

    `tokens` and `usd` are what it spent all the same.
    """

    def __init__(self, reason: str, *, tokens: int | None = None, usd: float | None = None) -> None:
        super().__init__(reason)
        self.tokens = tokens
        self.usd = usd


class EndRun(Exception):
    """Raised by who listens to a run: it is to be ended at once, and why, in words."""


class Exhausted(Exception):
    """A researcher has nothing more to propose; the loop ends with that reason."""
