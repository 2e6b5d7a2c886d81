"""Chooses the sandbox: the best that works on this machine, or the one the user names."""

from __future__ import annotations

import functools
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoresearch.base import process
from autoresearch.base.errors import UserError
from autoresearch.executors.sandbox.bubblewrap import Bubblewrap
from autoresearch.executors.sandbox.interpreter import program
from autoresearch.executors.sandbox.landlock import Landlock
from autoresearch.executors.sandbox.rules import Limits, Rules, Sandbox, launched


def supervised(words: Sequence[str], limits: Limits | None = None) -> list[str]:
    """The command with a supervisor that ends what it leaves behind, whatever that does. Only on Linux."""
    return launched(words, limits or Limits(), supervise=True) if sys.platform.startswith("linux") else list(words)


class Nothing:
    """No confinement: a run has the user's rights. On Linux its end and the size of its files are still enforced."""

    name = "none"

    def command(self, words: Sequence[str], rules: Rules) -> list[str]:
        return supervised([program(words[0]), *words[1:]], rules.limits)


SANDBOXES: Mapping[str, Sandbox] = {each.name: each for each in (Bubblewrap(), Landlock(), Nothing())}  # best first


def choose(name: str = "auto") -> Sandbox:
    """The sandbox with that name, or the best that works here.

    Raises:
        UserError: the named one does not work here.
    """
    if name == "auto":
        return next(each for each in SANDBOXES.values() if failure(each.name) is None)
    if name not in SANDBOXES:
        raise UserError(f"there is no sandbox {name!r}: choose one of auto, {', '.join(SANDBOXES)}")
    why = failure(name)
    if why:
        raise UserError(f"the sandbox `{name}` does not work here ({why}): {remedy()}, or set `sandbox: auto`")
    return SANDBOXES[name]


@functools.cache
def failure(name: str) -> str | None:
    """Why a sandbox does not work here, found out by starting Python in it; None if it works."""
    if name == Nothing.name:
        return None
    if not sys.platform.startswith("linux"):
        return "it needs Linux"
    try:
        said = output(name, "print('works')")
    except FileNotFoundError as error:
        return str(error)
    return None if said == "works" else (said.splitlines() or ["it prints nothing"])[-1]


def output(name: str, code: str, seconds: float = process.ANSWER_SECONDS) -> str:
    """What a few lines of Python print in a sandbox, on standard output and error, before the deadline.

    Raises:
        FileNotFoundError: a program that the sandbox needs is missing.
    """
    with tempfile.TemporaryDirectory(prefix="autoresearch-sandbox-") as directory:
        return process.output(SANDBOXES[name].command([sys.executable, "-c", code], Rules(Path(directory))), seconds)


def remedy() -> str:
    """What the user can do to get the best sandbox."""
    if not sys.platform.startswith("linux"):
        return "run it on Linux"
    if not shutil.which("bwrap"):
        return "install bubblewrap (`apt install bubblewrap`, `dnf install bubblewrap`)"
    return "let bubblewrap create user namespaces (`sysctl kernel.apparmor_restrict_unprivileged_userns=0` on Ubuntu)"
