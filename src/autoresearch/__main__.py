"""The command `autoresearch`, also as `python -m autoresearch`. Ctrl-C is handled before anything slow is imported."""

import io
import sys

from autoresearch.base import interrupt

STOPPED = 130  # by Ctrl-C, as shells have it


def main() -> None:
    """Run a command and exit with its code."""
    try:
        interrupt.handle()
        for stream in (sys.stdout, sys.stderr):  # a character that the terminal does not know must not end a night
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        from autoresearch import cli

        code = cli.run()
    except KeyboardInterrupt:
        code = STOPPED
    interrupt.ignore()
    if code == STOPPED:
        print("autoresearch: stopped", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
