"""Keeps a source's device batch a divisor of its total batch, and detects edits that compute the same."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from autoresearch.researchers.guard.rules import syntax_problem
from autoresearch.researchers.source import constants
from autoresearch.researchers.source.constants import Constant

TOTAL, DEVICE, CONTEXT = "TOTAL_BATCH_SIZE", "DEVICE_BATCH_SIZE", "MAX_SEQ_LEN"


def context_length(files: Mapping[str, str]) -> int | None:
    """Tokens of a row, if one of the files says so."""
    for path, text in files.items():
        if path.endswith(".py") and re.search(rf"^{CONTEXT}\b", text, re.MULTILINE) and not syntax_problem(path, text):
            constant = constants.find(text).get(CONTEXT)
            if constant and isinstance(constant.value, int):
                return constant.value
    return None


def fit_batches(source: str, edited: str, context: int | None) -> str | None:
    """Lower the device batch if the edited total batch is no longer a multiple of it; None if that fails.

    If the context is unknown, the device batch is halved whenever the total is, and neither is raised alone.
    """
    changed = constants.changes(source, edited)
    found = constants.find(edited)
    if not ({TOTAL, DEVICE} & set(changed)) or not {TOTAL, DEVICE} <= set(found):
        return edited
    total, device = int(found[TOTAL].value), int(found[DEVICE].value)
    if DEVICE in changed:
        old = int(changed[DEVICE][0].value)
        fits = total % (device * context) == 0 if context else device <= old
        return edited if fits else None
    if context is None:
        factor = total / int(changed[TOTAL][0].value)
        fitting = max(int(device * min(factor, 1)), 1)
    else:
        fitting = math.gcd(device, total // context) if total % context == 0 else 0
    return constants.replace(edited, {DEVICE: fitting}) if fitting else None


def halved_device_batch(source: str) -> str | None:
    """The source with half the rows per pass: a step keeps its tokens and needs half the memory."""
    return constants.halved(source, DEVICE)


# ---------------------------------------------------------------- edits of no effect


def is_idle(source: str, edited: str) -> bool:
    """Whether only constants change, and none of them affects what is computed."""
    changed, found = constants.changes_alone(source, edited), constants.find(edited)
    if not changed:
        return False
    return all(_is_idle(name, found, *pair) for name, pair in changed.items())


def _is_idle(name: str, found: Mapping[str, Constant], old: Constant, new: Constant) -> bool:
    values = {key: constant.value for key, constant in found.items()}
    depth, head = values.get("DEPTH"), values.get("HEAD_DIM")
    if name == "SHORT_WINDOW_DIVISOR":
        return "S" not in str(values.get("WINDOW_PATTERN", "S"))
    if name == "VALUE_GATE_CHANNELS":
        return values.get("VALUE_EMBEDDING_EVERY") == 0
    if not isinstance(depth, int) or not isinstance(head, int):
        return False
    if name == "ASPECT_RATIO" and old.value != new.value:
        return -(-depth * int(old.value) // head) == -(-depth * int(new.value) // head)
    if name == "WINDOW_PATTERN":
        before, after = (str(constant.value) * depth for constant in (old, new))
        return before[: depth - 1] == after[: depth - 1]  # the last layer is always a long one
    return False
