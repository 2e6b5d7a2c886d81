"""`python -m autoresearch` is the command `autoresearch`."""

from autoresearch.cli import main

main()
