"""What a coding agent gets as files, and what is read back after it has ended. Nothing in there is trusted."""

from __future__ import annotations

import difflib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from autoresearch.base.errors import NoProposal
from autoresearch.ledger.records import Status
from autoresearch.researchers import prompt
from autoresearch.researchers.guard.rules import syntax_problem
from autoresearch.researchers.interface import Brief
from autoresearch.researchers.source import constants

IDEA, PROMPT, PAST = "IDEA.md", "PROMPT.md", "past"
FILE_LIMIT = 2_000_000  # bytes; a larger file cannot be a program's text
PAST_TRIALS, PAST_CHARACTERS, PAST_POINTS = 10, 20_000, 200


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def past(brief: Brief) -> Iterator[tuple[str, str]]:
    """Path and text of what the latest trials and keeps and the near misses left behind, each cut to a length."""
    finished = brief.campaign.finished
    kept = [trial for trial in finished if trial.verdict and trial.verdict.status is Status.KEEP]
    for number in sorted({trial.number for trial in (*finished[-PAST_TRIALS:], *kept[-PAST_TRIALS:])} | {*brief.near}):
        patch, log = brief.archive.patch(number), brief.archive.log(number)
        points = brief.archive.curve(number)
        thinned = points[:: len(points) // PAST_POINTS + 1]
        texts = {
            "patch.diff": prompt.fence(f"the patch of trial {number}", patch, PAST_CHARACTERS) if patch else "",
            "log.txt": prompt.fence(f"the log of trial {number}", log, PAST_CHARACTERS, tail=True) if log else "",
            "curve.jsonl": "\n".join(json.dumps(dict(point)) for point in thinned),
        }
        yield from ((f"{PAST}/{number:04d}/{name}", text + "\n") for name, text in texts.items() if text)


def read(root: Path, path: str) -> str:
    """The text of a file below a directory, without following links.

    Raises:
        NoProposal: it is gone, not a regular file, too large or not text.
    """
    target = root / path
    above = [parent for parent in target.parents if parent == root or root in parent.parents]
    if any(place.is_symlink() for place in (target, *above)):
        raise NoProposal(f"{path} is a link now: a proposal consists of regular files")
    try:
        status = os.lstat(target)
        if not stat.S_ISREG(status.st_mode):
            raise NoProposal(f"{path} is no longer a regular file")
        if status.st_size > FILE_LIMIT:
            raise NoProposal(f"{path} has grown to {status.st_size / 1e6:.1f} MB, which cannot be a program")
        return target.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise NoProposal(f"{path} is no longer text: it is not UTF-8 from byte {error.start} on") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoProposal(f"{path} was deleted: a proposal changes files but keeps them all") from error
    except OSError as error:
        raise NoProposal(f"{path} can no longer be read: {error.strerror}") from error


# ---------------------------------------------------------------- in words


def labeled(lines: Sequence[str], label: str) -> str:
    """What follows `label:` in the first line that begins with it; empty if none does."""
    found = (rest for line in lines for name, colon, rest in [line.partition(":")] if colon and name.lower() == label)
    return next(found, "").strip()


def summary(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """What a change does, judging by the files alone: the constants whose values changed, else the lines."""
    parts = []
    for path, text in sorted(new.items()):
        knobs = {}
        if path.endswith(".py") and not (syntax_problem(path, old[path]) or syntax_problem(path, text)):
            knobs = constants.changes(old[path], text)
        lines = list(difflib.unified_diff(old[path].splitlines(), text.splitlines(), lineterm="", n=0))[2:]
        added, removed = (sum(line.startswith(sign) for line in lines) for sign in "+-")
        moved = [f"{name} {constants.shown(a.value)} to {constants.shown(b.value)}" for name, (a, b) in knobs.items()]
        parts.append(", ".join(moved) or f"{path}: lines +{added} -{removed}")
    return "; ".join(parts)
