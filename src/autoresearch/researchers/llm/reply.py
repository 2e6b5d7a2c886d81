"""The form of a language model's reply, and its parser: tolerant of how it is written, strict about what it changes.

Plain text, because code inside JSON strings breaks small models; JSON works too. Pure: nothing is read or run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from autoresearch.researchers.llm import habits
from autoresearch.researchers.llm.habits import FENCE
from autoresearch.researchers.llm.knobs import Knob, knobs
from autoresearch.researchers.llm.search_replace import Edit, ReplyError, apply, known_path, one_line

LONGEST = 500_000  # characters of a reply; no sensible one is longer
IDEA_LENGTH = 200
MOST_FENCES = 40  # in a reply whose fenced blocks are looked into, to tell whether one is a whole file
TEXT_LENGTH = 2_000  # characters kept of `why` and `expects`

FORMAT = """\
Reply with these lines, then the edits, and nothing after them:

idea: what you change, on one line
why: your reason, in a sentence or two
expects: what you think it does to val_bpb, speed and memory

<<<<<<< SEARCH train.py
lines of the file exactly as they are, and enough of them to be found only once
=======
the lines that replace them
>>>>>>> REPLACE

Use as many small blocks as the one idea needs. To rewrite a file, send all of it in a fenced block with its path in the
first line, as ```python train.py. To fix a crashed trial that you were shown, add the line `repairs: yes`: the blocks
then apply to its files as they crashed."""

# What may come before and around a field's name: list marks, headings, quotes and bold.
NAMES = r"idea|why|reason|expects|expected(?: effect)?|repairs|knob"
FIELD = re.compile(rf"[\s>*_#\d.)\-`]*({NAMES})[\s*_`]*[:\uff1a][\s*_]*(.*)", re.I)
HEADING = re.compile(rf"\s*(?:#{{1,6}}\s*({NAMES})|\*\*({NAMES})\*\*)\s*", re.I)  # what it says is below it
SEARCH = re.compile(r"\s{0,3}(?:<{5,9}|-{5,9})\s*SEARCH\b:?(.*)", re.I)
DIVIDER = re.compile(r"\s{0,3}={5,9}\s*")
REPLACE = re.compile(r"\s{0,3}(?:>{5,9}(\s*REPLACE\b.*|\s*)|\+{5,9}\s*REPLACE\b.*)", re.I)


@dataclass(frozen=True)
class Reply:
    """A reply that was understood. `files` has the changed ones, whole."""

    idea: str
    files: Mapping[str, str]
    why: str = ""
    expects: str = ""
    repairs: bool = False
    knobs: tuple[Knob, ...] = ()


@dataclass
class Draft:
    """A reply taken apart, before any of it is checked or applied."""

    fields: dict[str, str] = field(default_factory=dict)
    knobs: list[str] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)


def parse(text: str, files: Mapping[str, str], crashed: Mapping[str, str] | None = None) -> Reply:
    """Understand a reply and apply its edits to `files`, or to `crashed` if it says that it repairs those.

    Raises:
        ReplyError: it cannot be understood or does not fit, and why.
    """
    if len(text) > LONGEST:
        raise ReplyError(f"the reply has {len(text)} characters, more than {LONGEST}: send only the changed lines")
    whole = encodable(text)
    text = habits.answer(whole, files)
    draft = from_json(text) or from_text(text, files)
    idea = one_line(draft.fields.get("idea", ""))[:IDEA_LENGTH]
    if not draft.edits:
        raise ReplyError(no_edit(text, thinking=habits.is_unfinished(whole)))
    if not idea:
        raise ReplyError("the reply has no idea: begin with a line `idea: ` that says what you change")
    repairs = crashed is not None and draft.fields.get("repairs", "").lower().startswith(("y", "true", "1"))
    base = crashed if repairs and crashed is not None else files
    final = {**base, **apply(draft.edits, base)}
    changed = {path: text for path, text in final.items() if files.get(path) != text}
    if not changed or final == base:
        raise ReplyError("the edits change nothing: the files would be the same as before")
    return Reply(
        idea=idea,
        files=changed,
        why=one_line(draft.fields.get("why", ""))[:TEXT_LENGTH],
        expects=one_line(draft.fields.get("expects", ""))[:TEXT_LENGTH],
        repairs=repairs,
        knobs=knobs(draft.knobs, final),
    )


def encodable(text: str) -> str:
    """The text with plain line ends and nothing that a file cannot hold: no NUL, no lone surrogate."""
    text = text.encode("utf-8", "replace").decode().replace("\0", "")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def no_edit(text: str, *, thinking: bool) -> str:
    """Why a reply without an edit cannot be used."""
    if thinking:
        return "the reply ends before its thinking does, and thoughts are not used: think less, then send the edit"
    if re.search(r"\?\s*$|\b(?:should I|shall I|would you like|do you want|please confirm|let me know)\b", text, re.I):
        return "the reply asks a question and changes nothing: nobody will answer, so decide and send the edit"
    if SEARCH.search(text) or "<<<<<<<" in text:
        return (
            "the reply has no complete edit: a block is `<<<<<<< SEARCH path`, the old lines, `=======`, the new "
            "lines, `>>>>>>> REPLACE`, each mark on its own line"
        )
    return (
        "the reply has no edit: add a block of `<<<<<<< SEARCH path`, the old lines, `=======`, the new lines, "
        "`>>>>>>> REPLACE`, or the whole file in a fenced block that names its path, as ```python path"
    )


# ---------------------------------------------------------------- taken apart: text


def from_text(text: str, files: Mapping[str, str]) -> Draft:
    """The fields, knobs and edits of a reply in plain text."""
    draft, lines, place = Draft(), text.split("\n"), 0
    current = around = ""  # a field that goes on, and the file that a fence around blocks names
    has_few = sum(FENCE.match(line) is not None for line in lines) <= MOST_FENCES
    while place < len(lines):
        line = lines[place]
        if SEARCH.match(line):
            edit, place = block(lines, place, files, around)
            draft.edits.append(edit)
            current = ""
        elif opens_block(lines, place):
            around, place = fenced_path(line, files) or "", place + 1
        elif found := habits.patch(lines, place):
            edits, place = found
            draft.edits += edits
            current = ""
        elif path := fenced_path(line, files) or (has_few and commented_path(lines, place, files)):
            end = fence_end(lines, place, files)
            draft.edits.append(Edit(path, None, "\n".join([*lines[place + 1 : end], ""])))
            place, current = end + 1, ""
        else:
            current = take_field(draft, line, current)
            place += 1
    draft.edits = list(dict.fromkeys(draft.edits))  # an answer that is given twice is one
    return draft


def take_field(draft: Draft, line: str, current: str) -> str:
    """Read a line for what it says outside of blocks. Returns the field that the next line may continue."""
    heading = HEADING.fullmatch(line)
    found = heading or FIELD.fullmatch(line)
    if not found:
        if not line.strip() or FENCE.match(line):
            return "" if draft.fields.get(current) else current
        if current and len(draft.fields[current]) < TEXT_LENGTH and (current != "idea" or not draft.fields[current]):
            draft.fields[current] += " " + line
        return current
    name, value = (found.group(1) or found.group(2)).lower(), "" if heading else found.group(2)
    if name == "knob":
        draft.knobs.append(value)
        return ""
    name = "expects" if name.startswith("expected") else "why" if name == "reason" else name
    if draft.fields.get(name):
        return ""  # the first one counts
    draft.fields[name] = value.strip()
    return name


def block(lines: Sequence[str], start: int, files: Mapping[str, str], around: str) -> tuple[Edit, int]:
    """The SEARCH/REPLACE block that starts at a line, and the line after it. `around` is the file if it names none."""
    found = SEARCH.match(lines[start])
    named = found.group(1).strip(" `'\"*:") if found else ""
    divider = first(DIVIDER, lines, start + 1)
    if divider is None or first(SEARCH, lines, start + 1, divider) is not None:
        raise ReplyError(f"the block in line {start + 1} of the reply has no `=======` between old lines and new ones")
    end = first(REPLACE, lines, divider + 1)
    if end is None or first(SEARCH, lines, divider + 1, end) is not None:
        raise ReplyError(f"the block in line {start + 1} of the reply does not end with `>>>>>>> REPLACE`")
    old, new = "\n".join(lines[start + 1 : divider]), "\n".join(lines[divider + 1 : end])
    return Edit(known_path(named or around, files), old, new), end + 1


def first(mark: re.Pattern[str], lines: Sequence[str], start: int, end: int | None = None) -> int | None:
    """The first line from `start` to before `end` that is such a mark."""
    return next((at for at in range(start, len(lines) if end is None else end) if mark.fullmatch(lines[at])), None)


def opens_block(lines: Sequence[str], place: int) -> bool:
    """Whether a line is a fence around a SEARCH/REPLACE block."""
    if not FENCE.fullmatch(lines[place]):
        return False
    inside = next((line for line in lines[place + 1 : place + 4] if line.strip()), "")
    return SEARCH.match(inside) is not None


def commented_path(lines: Sequence[str], place: int, files: Mapping[str, str]) -> str | None:
    """The file that a fenced block is, though its fence does not name it: its first line does, as `# train.py`, or
    there is only one. None if the block is only a part of a file."""
    found = FENCE.fullmatch(lines[place])
    if not found or found.group(2).strip().lower() not in ("", "py", "python") or place + 1 >= len(lines):
        return None
    named = lines[place + 1].strip("# `\t").removeprefix("./")
    path = named if named in files else next(iter(files)) if len(files) == 1 else None
    if path is None:
        return None
    try:
        end = fence_end(lines, place, files)
    except ReplyError:
        return None
    return path if habits.is_rewritten("\n".join(lines[place + 1 : end]), files[path]) else None


def fenced_path(line: str, files: Mapping[str, str]) -> str | None:
    """The file that a fenced block's first line names; None if it opens no block or names no file."""
    found = FENCE.fullmatch(line)
    words = [word.strip("`'\"*:{}()[],") for word in re.split(r"[\s:=]+", found.group(2))] if found else []
    named = [word.removeprefix("./") for word in words if word.removeprefix("./") in files]
    if found and not named:
        for word in words:
            if re.fullmatch(r"[\w./\\-]{1,100}\.(?:py|md|toml|json|ya?ml|txt|cu|cpp)", word):
                known_path(word, files)  # raises, and lists the paths that exist
    return named[0] if named else None


def fence_end(lines: Sequence[str], start: int, files: Mapping[str, str]) -> int:
    """The line that closes a fenced file: the last bare one before whatever edit comes next."""
    found = FENCE.match(lines[start])
    mark = found.group(1) if found else "```"
    end = None
    for place in range(start + 1, len(lines)):
        if SEARCH.match(lines[place]) or (lines[place].startswith(mark) and fenced_path(lines[place], files)):
            break
        if lines[place].rstrip() == mark:
            end = place
    if end is None:
        raise ReplyError(f"the fenced file in line {start + 1} of the reply is not closed by a line {mark}")
    return end


# ---------------------------------------------------------------- taken apart: JSON


def from_json(text: str) -> Draft | None:
    """The fields, knobs and edits of a reply that is a JSON object; None if it is not."""
    start = text.find("```json")
    bare = text[start + len("```json") : text.rfind("```")] if start >= 0 else text.strip("`\n ")
    is_alone = bare.lstrip().startswith("{")
    if not is_alone:  # it may stand after a sentence
        bare = bare[max(bare.find("{"), 0) : bare.rfind("}") + 1]
    try:
        value = json.loads(bare, strict=False) if bare.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not (is_alone or value.keys() & {"files", "edits"}):
        return None
    aliases = {"idea": ("idea",), "why": ("why", "reason"), "repairs": ("repairs",)}
    aliases["expects"] = ("expects", "expected_effect", "expected effect", "expected")
    return Draft(
        fields={
            name: next(filter(None, (as_text(value.get(key)) for key in keys)), "") for name, keys in aliases.items()
        },
        knobs=[json_knob(knob) for knob in as_list(value.get("knobs"))],
        edits=list(json_edits(value)),
    )


def json_edits(value: Mapping[str, object]) -> Iterator[Edit]:
    """The edits of a JSON reply: whole files by path, then a list of replacements."""
    files = value.get("files")
    for path, text in files.items() if isinstance(files, dict) else ():
        yield Edit(str(path), None, as_text(text))
    for edit in (*as_list(files), *as_list(value.get("edits"))):
        if isinstance(edit, list) and len(edit) == 3:
            edit = dict(zip(("path", "search", "replace"), edit, strict=True))
        fresh = edit.get("replace", edit.get("content", edit.get("text"))) if isinstance(edit, dict) else None
        if not isinstance(edit, dict) or not isinstance(fresh, str):
            raise ReplyError('an edit in JSON is {"path": …, "search": …, "replace": …}, all of them strings')
        search = edit.get("search")
        yield Edit(as_text(edit.get("path")), None if search is None else as_text(search), as_text(fresh))


def json_knob(value: object) -> str:
    """A knob of a JSON reply, as a line."""
    if not isinstance(value, dict):
        return as_text(value)
    name, low, high = (as_text(value.get(key)) for key in ("name", "low", "high"))
    return f"{name} from {low} to {high}{' log' if value.get('log') else ''}"


def as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def as_text(value: object) -> str:
    """A JSON string, number or boolean as text; empty for anything else."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return encodable(str(value)) if isinstance(value, str | int | float) else ""
