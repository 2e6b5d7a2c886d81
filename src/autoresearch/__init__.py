"""autoresearch: a machine does pretraining research overnight."""

__version__ = "0.1.0"
