"""Executors: each carries out a run somewhere."""
