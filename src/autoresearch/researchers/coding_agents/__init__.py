"""The researchers that run a coding agent's command-line program."""
