"""What people tell a search: a file each in the lab, which its loop takes in the order in which they were written.

So nobody but the loop writes the ledger, and what is told while none is at work, or before it is killed, is not lost.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from autoresearch.base import atomic
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger import lines
from autoresearch.ledger.events import Ordered

REFUSED = ".refused"  # added to the name of an order that was not obeyed: the file then says why


def put(workspace: Workspace, told: Ordered) -> Path:
    """Leave an order for the lab's loop. The file is gone once it was obeyed."""
    atomic.make_directory(workspace.inbox)
    path = workspace.inbox / f"{time.time_ns():020d}-{os.getpid()}.json"
    atomic.write(path, lines.encode(told))
    return path


def waiting(workspace: Workspace) -> list[tuple[Path, Ordered]]:
    """The orders that nobody has obeyed yet, the oldest first. What is none is removed."""
    found = []
    for path in sorted(workspace.inbox.glob("*.json")):
        try:
            event = lines.decode(path.read_bytes())
        except (OSError, lines.UnreadableError):
            event = None
        if isinstance(event, Ordered):
            found.append((path, event))
        else:
            obeyed(path)
    return found


def obeyed(path: Path) -> None:
    """Take an order out of the inbox."""
    with contextlib.suppress(OSError):
        path.unlink()


def refuse(path: Path, why: str) -> None:
    """Take an order out of the inbox, and leave word why it was not obeyed."""
    with contextlib.suppress(OSError):
        atomic.write(path.with_name(path.name + REFUSED), why.encode())
    obeyed(path)


def refusal(path: Path) -> str | None:
    """Why an order was not obeyed, told once; None if it was, or waits."""
    answer = path.with_name(path.name + REFUSED)
    try:
        why = answer.read_text(encoding="utf-8")
    except OSError:
        return None
    obeyed(answer)
    return why
