"""Made-up texts, and files of them."""

from __future__ import annotations

import json
import random
from pathlib import Path

WORDS = ["smør", "東京", "naïve", "🙂🙃", "def", "return", "tree", "river", "Москва", "a", "of", "12345", "\t\n"]


def documents(count: int, seed: int = 0) -> list[str]:
    """Different texts of some 20 to 400 characters, with characters of one to four bytes."""
    rng = random.Random(seed)
    return [f"{i} " + " ".join(rng.choices(WORDS, k=rng.randint(3, 60))) for i in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path
