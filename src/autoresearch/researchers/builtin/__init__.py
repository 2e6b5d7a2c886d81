"""The researcher that needs no language model: a bandit over known patches and moves of constants."""
