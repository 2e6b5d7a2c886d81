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


class Exhausted(Exception):
    """A researcher has nothing more to propose; the loop ends with that reason."""
