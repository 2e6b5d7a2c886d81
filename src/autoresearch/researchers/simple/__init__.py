"""Researchers of a few lines: your own Python file, a script of proposals, and one that changes nothing."""
