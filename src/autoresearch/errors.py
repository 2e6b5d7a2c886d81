"""Errors that a person can mend; anything else that is raised is a bug of ours."""


class UserError(Exception):
    """What happened, why, and what to do next, in one sentence; the command line prints it and exits with 1."""


class Exhausted(Exception):
    """A researcher has nothing more to propose; the loop ends with that reason."""
