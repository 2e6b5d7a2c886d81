"""The command line: puts the commands together, and is the one place where an error becomes a sentence and a code."""

from __future__ import annotations

import errno
import sys
import tempfile
import traceback
from typing import Annotated

import typer

from autoresearch import __version__
from autoresearch.commands import judging, looking, making, research, sampling
from autoresearch.errors import UserError

REMEDIES = {
    errno.ENOSPC: "free some space, then run this again",
    errno.EDQUOT: "free some space, then run this again",
    errno.EACCES: "choose a place where you may write",
    errno.ENOTDIR: "choose a place where you may write",
    errno.EROFS: "choose a place where you may write",
}

app = typer.Typer(
    help="A machine does pretraining research overnight: propose, train, grade, judge, keep or revert, for ever.",
    epilog="Begin with: autoresearch new my-lab && cd my-lab && autoresearch run",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("new")(making.new)
app.command("doctor")(making.doctor_)
app.command("prepare")(making.prepare)
app.command("train")(making.train)
app.command("run")(research.run)
app.command("try")(research.try_)
app.command("guide")(research.guide)
app.command("papers")(research.papers)
app.command("mcp")(research.mcp)
app.command("status")(looking.status)
app.command("log")(looking.log)
app.command("show")(looking.show)
app.command("report")(looking.report_)
app.command("chart")(looking.chart)
app.command("confirm")(judging.confirm)
app.command("replay")(judging.replay)
app.command("aa")(judging.aa)
app.command("audit")(judging.audit)
app.command("sample")(sampling.sample)


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


def main() -> None:
    """Run a command: 0 done, 1 something that a person can mend, 3 a bug of ours, 130 stopped by Ctrl-C."""
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        code = _complain(str(error))
    except typer.TyperException as error:
        code = _complain(f"{error.format_message()} (`autoresearch --help` lists what there is)")
    except (KeyboardInterrupt, typer.Abort):
        code = _complain("stopped; `autoresearch run` goes on from here", 130)
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        code = _complain(f"{error}: {REMEDIES[number]}; nothing is lost") if number in REMEDIES else _bug(error)
    sys.exit(code)


def _complain(message: str, code: int = 1) -> int:
    print(f"autoresearch: {message}", file=sys.stderr)
    return code


def _bug(error: Exception) -> int:
    with tempfile.NamedTemporaryFile("w", prefix="autoresearch-bug-", suffix=".log", delete=False) as file:
        traceback.print_exception(error, file=file)
    return _complain(f"a bug of ours, not yours ({error!r}): please report it with {file.name}", 3)
