"""The command line: assembles the commands. The one place where an error becomes a message and an exit code."""

from __future__ import annotations

import errno
import importlib
import json
import sys
import tempfile
import traceback
from collections.abc import Mapping
from typing import Annotated

import typer

from autoresearch import __version__
from autoresearch.base.errors import UserError

REMEDIES = {
    errno.ENOSPC: "free some space, then run this again",
    errno.EDQUOT: "free some space, then run this again",
    errno.EACCES: "choose a place where you can write",
    errno.ENOTDIR: "choose a place where you can write",
    errno.EROFS: "choose a place where you can write",
}

HELP = {"help_option_names": ["-h", "--help"]}
COMMANDS = {  # where each is, in the order of --help
    "new": "setup.new",
    "doctor": "setup.doctor_",
    "prepare": "setup.prepare",
    "train": "setup.train",
    "run": "research.run",
    "try": "research.try_",
    "pause": "steering.pause",
    "resume": "steering.resume",
    "stop": "steering.stop",
    "limit": "steering.limit",
    "keep": "steering.keep",
    "drop": "steering.drop",
    "guide": "research.guide",
    "papers": "research.papers",
    "mcp": "research.mcp",
    "status": "results.status",
    "tags": "results.tags",
    "log": "results.log",
    "show": "results.show",
    "diff": "results.diff",
    "report": "results.report_",
    "chart": "results.chart",
    "confirm": "verification.confirm",
    "replay": "verification.replay",
    "aa": "verification.aa",
    "audit": "verification.audit",
    "sample": "sample.sample",
}


def assembled(wanted: str | None = None) -> typer.Typer:
    """The program with the wanted command, or with all of them if it has no such command.

    Commands are imported only if they are needed: `status` should not wait for what `run` imports.
    """
    app = typer.Typer(
        help="A machine does pretraining research overnight: propose, train, grade, judge, keep or revert, forever.",
        epilog="Start with: autoresearch new my-lab && cd my-lab && autoresearch run",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings=HELP,
    )
    for name in [wanted] if wanted in COMMANDS else COMMANDS:
        module, function = COMMANDS[name].split(".")
        app.command(name, context_settings=HELP)(
            getattr(importlib.import_module(f"autoresearch.commands.{module}"), function)
        )
    app.callback()(_options)
    return app


# ---------------------------------------------------------------- the error boundary


def _show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


def run() -> int | None:
    """Run a command. Exit codes: 0 done, 1 an error the user can fix, 3 a bug of ours, 4 still running, 130 stopped."""
    code: int | None
    try:
        code = assembled(*sys.argv[1:2])(standalone_mode=False)
    except UserError as error:
        code = _complain(str(error), answer=error.answer)
    except typer.TyperException as error:
        about = f" {sys.argv[1]}" if sys.argv[1:] and sys.argv[1] in COMMANDS else ""
        code = _complain(f"{error.format_message()} (`autoresearch{about} --help` shows the choices)")
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        code = _complain(f"{error}: {REMEDIES[number]}; nothing is lost") if number in REMEDIES else _bug(error)
    return code


def _complain(message: str, code: int = 1, answer: Mapping[str, object] | None = None) -> int:
    """Print the message, and what a program reads instead if it asked for JSON."""
    print(f"autoresearch: {message}", file=sys.stderr)
    if "--json" in sys.argv:
        print(json.dumps(answer or {"status": "error" if code == 1 else "bug", "reason": message}, indent=2))
    elif answer and "next" in answer:
        print(f"next        {answer['next']}")
    return code


def _bug(error: Exception) -> int:
    said = f"a bug in autoresearch, not your mistake ({error!r}): please report it with"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="autoresearch-bug-", suffix=".log", delete=False) as file:
            traceback.print_exception(error, file=file)
    except OSError:
        traceback.print_exception(error)
        return _complain(f"{said} what is above", 3)
    return _complain(f"{said} {file.name}", 3)
