"""The command line: assembles the commands. The one place where an error becomes a message and an exit code."""

from __future__ import annotations

import errno
import sys
import tempfile
import traceback
from typing import Annotated

import typer

from autoresearch import __version__
from autoresearch.base.errors import UserError
from autoresearch.commands import research, results, sample, setup, verification

REMEDIES = {
    errno.ENOSPC: "free some space, then run this again",
    errno.EDQUOT: "free some space, then run this again",
    errno.EACCES: "choose a place where you can write",
    errno.ENOTDIR: "choose a place where you can write",
    errno.EROFS: "choose a place where you can write",
}

app = typer.Typer(
    help="A machine does pretraining research overnight: propose, train, grade, judge, keep or revert, forever.",
    epilog="Start with: autoresearch new my-lab && cd my-lab && autoresearch run",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("new")(setup.new)
app.command("doctor")(setup.doctor_)
app.command("prepare")(setup.prepare)
app.command("train")(setup.train)
app.command("run")(research.run)
app.command("try")(research.try_)
app.command("guide")(research.guide)
app.command("papers")(research.papers)
app.command("mcp")(research.mcp)
app.command("status")(results.status)
app.command("log")(results.log)
app.command("show")(results.show)
app.command("report")(results.report_)
app.command("chart")(results.chart)
app.command("confirm")(verification.confirm)
app.command("replay")(verification.replay)
app.command("aa")(verification.aa)
app.command("audit")(verification.audit)
app.command("sample")(sample.sample)


# ---------------------------------------------------------------- the error boundary


def _show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


def run() -> int | None:
    """Run a command. Exit codes: 0 done, 1 an error the user can fix, 3 a bug of ours, 130 stopped by Ctrl-C."""
    code: int | None
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        code = _complain(str(error))
    except typer.TyperException as error:
        code = _complain(f"{error.format_message()} (`autoresearch --help` shows the choices)")
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        code = _complain(f"{error}: {REMEDIES[number]}; nothing is lost") if number in REMEDIES else _bug(error)
    return code


def _complain(message: str, code: int = 1) -> int:
    print(f"autoresearch: {message}", file=sys.stderr)
    return code


def _bug(error: Exception) -> int:
    with tempfile.NamedTemporaryFile("w", prefix="autoresearch-bug-", suffix=".log", delete=False) as file:
        traceback.print_exception(error, file=file)
    return _complain(f"a bug in autoresearch, not your mistake ({error!r}): please report it with {file.name}", 3)
