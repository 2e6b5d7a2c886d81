"""What language models write around and instead of the form they were asked for, as far as only one thing can be meant.

Thinking and special tokens are taken away, other programs' patch formats become edits. Pure: texts in, texts out.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

from autoresearch.researchers.llm.search_replace import Edit, ReplyError

THOUGHTS = r"think|thinking|thought|thoughts|reasoning|reflection|scratchpad|analysis"
OPENED = re.compile(rf"^[ \t]*(?:<(?:{THOUGHTS})>|\[THINK\])", re.I | re.M)
CLOSED = re.compile(rf"</(?:{THOUGHTS})>|\[/THINK\]", re.I)
# What servers should have kept to themselves: where a channel of a model's output begins, and tokens at its ends.
CHANNEL = re.compile(r"<\|channel\|>\s*(\w{1,20})[^<\n]{0,80}(?:<\|constrain\|>[^<\n]{0,40})?<\|message\|>")
TOKENS = re.compile(r"\A(?:\s*<\|\w{1,30}\|>)+|(?:<\|\w{1,30}\|>\s*)+\Z")
ESCAPED = "&lt;&lt;&lt;&lt;&lt;"  # of a block's first mark
SPACES = re.compile("[\u00a0\u2007\u202f]")  # that do not break a line, and that no Python file has between words

UNIFIED = re.compile(r"\+\+\+ (?:b/)?(\S+)")
UPDATE = re.compile(r"\*\*\* (?:Update|Add|Delete) File: ?(\S+)\s*")
BEGIN = re.compile(r"diff --git |\*\*\* Begin Patch")
BETWEEN = re.compile(r"diff --git |index [0-9a-f]{7}|\*\*\* (?:Begin|End) Patch|\*\*\* End of File|\\ No newline")
HUNK = re.compile(r"@@(?:.*@@)?.*")
DIFF_FENCE = re.compile(r"\s{0,3}(?:`{3,}|~{3,})\s*(?:diff|patch)\b.*", re.I)
FENCE = re.compile(r"\s{0,3}(`{3,}|~{3,})(.*)")
SIMILAR = 0.5  # share of a file's lines that a text must have to be that file, rewritten


def answer(text: str, files: Mapping[str, str]) -> str:
    """The part of a reply that is the answer: without thinking, special tokens, HTML's escapes and odd spaces.

    Thinking that is never closed has no answer after it.
    """
    text = TOKENS.sub("", text[_thought(text) :])
    if opened := OPENED.search(text):
        text = text[: opened.start()]
    if ESCAPED in text:
        text = html.unescape(text)
    return text if any(SPACES.search(old) for old in files.values()) else SPACES.sub(" ", text)


def is_unfinished(text: str) -> bool:
    """Whether a reply ends while its writer still thinks."""
    return OPENED.search(text, _thought(text)) is not None or _ends_in_thought(text)


def _thought(text: str) -> int:
    """Where the thinking ends that is closed, and the answer begins; the text's end if its last channel is thinking."""
    ends = [found.end() for found in (*CLOSED.finditer(text), *CHANNEL.finditer(text))]
    return len(text) if _ends_in_thought(text) else max(ends, default=0)


def _ends_in_thought(text: str) -> bool:
    channels = CHANNEL.findall(text)
    return bool(channels) and channels[-1] == "analysis"


# ---------------------------------------------------------------- patches


def patch(lines: Sequence[str], start: int) -> tuple[list[Edit], int] | None:
    """The edits of a patch that begins at a line (a unified diff, or the form of OpenAI's agents), and the line after
    it; None if none does. An edit's path is empty if the patch does not say it.

    Raises:
        ReplyError: a hunk has nothing by which its place could be found.
    """
    line = lines[start]
    is_fenced = DIFF_FENCE.fullmatch(line) is not None
    if not (is_fenced or _names_the_old_file(lines, start) or UPDATE.fullmatch(line) or BEGIN.match(line)):
        return None
    edits, path, hunk, place = list[Edit](), "", list[str](), start + is_fenced

    def close() -> None:
        if made := hunk_edit(path, hunk):
            edits.append(made)
        hunk.clear()

    while place < len(lines):
        line = lines[place]
        if FENCE.match(line) and not line.startswith((" ", "+", "-")):
            break
        if found := UNIFIED.match(line) or UPDATE.fullmatch(line):
            close()
            path = found.group(1)
        elif HUNK.fullmatch(line) or BETWEEN.match(line) or _names_the_old_file(lines, place):
            close()
        elif line[:1] in ("+", "-", " ") or not line.strip() or is_fenced:
            hunk.append(line)
        else:
            break
        place += 1
    close()
    return edits, place + (is_fenced and place < len(lines))


def _names_the_old_file(lines: Sequence[str], place: int) -> bool:
    return lines[place].startswith("--- ") and place + 1 < len(lines) and UNIFIED.match(lines[place + 1]) is not None


def hunk_edit(path: str, hunk: Sequence[str]) -> Edit | None:
    """A hunk as an edit; None if it changes nothing."""
    if not any(line[:1] in ("+", "-") for line in hunk):
        return None
    full = [place for place, line in enumerate(hunk) if line.strip()]
    every = [(line[:1], line[1:]) if line[:1] in ("+", "-", " ") else (" ", line) for line in hunk[: full[-1] + 1]]
    old = [text for sign, text in every if sign != "+"]
    new = [text for sign, text in every if sign != "-"]
    if not any(text.strip() for text in old):
        raise ReplyError("a hunk of the patch only adds lines: begin it with a line of the file that they follow")
    return Edit(path, "\n".join(old), "\n".join(new))


# ---------------------------------------------------------------- whole files


def is_rewritten(text: str, old: str) -> bool:
    """Whether a text is a file written anew, not a part of it."""
    lines = {line.strip() for line in old.split("\n") if line.strip()}
    return len(lines & {line.strip() for line in text.split("\n")}) >= SIMILAR * len(lines)
