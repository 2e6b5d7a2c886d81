"""The command `autoresearch`, also as `python -m autoresearch`. Ctrl-C is handled before anything slow is imported."""

import sys

from autoresearch.base import interrupt

STOPPED = 130  # by Ctrl-C, as shells have it


def main() -> None:
    """Run a command and exit with its code."""
    try:
        interrupt.handle()
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
