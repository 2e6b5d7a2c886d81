"""Numbers that a language model leaves open, to be tuned for it: how it is told of them, and what it says."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoresearch.researchers.llm.search_replace import ReplyError, one_line

MOST_KNOBS = 8
SHOWN = 200  # characters of a line that is no knob

KNOBS = """\
Your change may leave numbers open, to be tuned for you in the next trials. Bind each to an upper-case name at the top
level of the file, give it your best guess, and name it on its own line before the edits:

knob: NAME from LOW to HIGH log

with `log` at the end if the factor matters more than the difference, as for learning rates. At most four, only from
your own change, and only those that matter."""

KNOB = re.compile(
    r"([A-Za-z_]\w{0,80}(?:\[\d{1,3}\])?)[`*:=\s]+from\s+(\S+)\s+to\s+(\S+?)[,;.]?(?:\s+\(?(log)\b.*)?", re.I
)


@dataclass(frozen=True)
class Knob:
    """A named number to tune between two values, on a logarithmic scale if `log` says so."""

    name: str
    low: float
    high: float
    log: bool = False


def knobs(lines: Sequence[str], files: Mapping[str, str]) -> tuple[Knob, ...]:
    """The knobs that the lines name. Each must be bound at the top level of a file."""
    return tuple(knob(line, files) for line in lines[:MOST_KNOBS])


def knob(line: str, files: Mapping[str, str]) -> Knob:
    said = one_line(line)[:SHOWN]
    found = KNOB.fullmatch(said)
    try:
        low, high = (float(found.group(2)), float(found.group(3))) if found else (math.nan, math.nan)
    except ValueError:
        low = high = math.nan
    if not found or not (math.isfinite(low) and math.isfinite(high)) or low >= high:
        raise ReplyError(f"the knob {said!r} is not `NAME from LOW to HIGH`, two numbers, the lower one first")
    name, log = found.group(1), bool(found.group(4))
    if log and low <= 0:
        raise ReplyError(f"the knob {name} is logarithmic from {low:g}: start above 0, or leave out `log`")
    bound = re.compile(rf"^{re.escape(name.partition('[')[0])}\s*(?::[^=\n]+)?=", re.M)
    if not any(bound.search(text) for text in files.values()):
        raise ReplyError(f"no file binds the knob {name} at its top level: add a line `{name} = …`")
    return Knob(name, low, high, log)
