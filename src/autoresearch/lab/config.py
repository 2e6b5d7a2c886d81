"""Turns program.md's front matter into a frozen Config. The only reader of configuration and environment."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path

import platformdirs
import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from autoresearch.base import redaction
from autoresearch.base.errors import UserError
from autoresearch.lab.settings import Config
from autoresearch.ledger import report

FENCE = "---"
SHOWN = 60  # characters of a wrong value
CACHE = "AUTORESEARCH_CACHE"
KERNELS = "KERNELS_CACHE"
DEVICE = "AUTORESEARCH_DEVICE"  # the kind of device under which a run is filed; prepare.py refuses any other
# What a run may see of the user's environment. It contains no key and no token.
ALLOWED_NAMES = {
    *("PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "TEMP", "TMP", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
    *(
        "SYSTEMROOT",
        "SYSTEMDRIVE",
        "USERPROFILE",
        "LOCALAPPDATA",
        "APPDATA",
        "PROGRAMDATA",
        "COMSPEC",
        "PATHEXT",
    ),
    *("PYTHONHOME", "PYTHONPATH", "DYLD_LIBRARY_PATH", "XDG_CACHE_HOME", CACHE, "CC", "CXX"),
}
ALLOWED_PREFIXES = (
    *("LC_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "HSA_", "TORCH", "PYTORCH_", "TRITON_"),
    *("OMP_", "GOMP_", "KMP_", "MKL_"),
)
# What prepare.py also sees, to download. A proxy's address can contain a password.
NETWORK_NAMES = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"}

# How long GNU OpenMP's threads spin before they sleep. By default they spin so long that one other busy process costs a
# run on two cores two thirds of its speed. With this value it costs a third to a half, and on a quiet machine next to
# nothing.
DEFAULTS = {"GOMP_SPINCOUNT": "3000"}


def load(path: Path) -> tuple[Config, str]:
    """Read program.md: its configuration, and the prose below it.

    Raises:
        UserError: the file cannot be read, or its front matter is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}, which is not UTF-8: save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error}): a lab needs its program.md") from error
    front, first, prose = _split(text, path)
    try:
        return Config.model_validate(_mapping(front, first, path)), prose
    except ValidationError as error:
        raise UserError(f"{path}: {'; '.join(_problems(error))}") from error


def _split(text: str, path: Path) -> tuple[str, int, str]:
    """The front matter, the number of its first line, and the prose. Blank lines may come before it."""
    lines = text.splitlines()
    fences = [number for number, line in enumerate(lines) if line.strip() == FENCE]
    if len(fences) < 2 or any(line.strip() for line in lines[: fences[0]]):
        raise UserError(
            f"{path} has no front matter: begin it with a line `---`, settings like `researcher: builtin`, "
            "and a line `---`"
        )
    first, last = fences[0] + 1, fences[1]
    return "\n".join(lines[first:last]), first + 1, "\n".join(lines[last + 1 :])


def _mapping(front: str, first: int, path: Path) -> dict[object, object]:
    try:
        root = yaml.compose(front, yaml.SafeLoader)
        values = yaml.safe_load(front) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + first}" if mark else ""
        raise UserError(f"the front matter of {path} is not YAML{where}: {getattr(error, 'problem', error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"the front matter of {path} must be lines like `researcher: builtin`")
    keys = [(str(key.value), key.start_mark.line + first) for key, _ in root.value] if root else []
    seen = dict(reversed(keys))
    if twice := [f"`{key}` in lines {seen[key]} and {line}" for key, line in keys if line != seen[key]]:
        raise UserError(f"{path} sets something twice: {', '.join(twice)}; leave one of them")
    return values


def _problems(error: ValidationError) -> list[str]:
    return [_problem(item) for item in error.errors()]


def _problem(item: ErrorDetails) -> str:
    """What is wrong with a setting, and what it was."""
    key, kind, given = str(item["loc"][0]), str(item["type"]), item["input"]
    if kind == "extra_forbidden":
        nearest = difflib.get_close_matches(key, Config.model_fields, n=1, cutoff=0)
        return f"unknown setting `{key}` (nearest: `{nearest[0]}`)"
    if given is None:
        return f"`{key}` has no value: give it one, or remove the line"
    if isinstance(given, bool) and kind != "value_error":
        return f"`{key}` should not be {str(given).lower()}"
    if kind == "too_short":
        return f"`{key}` is empty: name at least one"
    if kind == "tuple_type":
        return f"`{key}` should be a list, like `[{given}]`"
    if kind == "value_error":
        return f"`{key}`: {str(item['msg']).removeprefix('Value error, ')}"
    message = str(item["msg"]).replace("Input", "it", 1)
    shown = report.shorten(report.one_line(str(given)), SHOWN)
    return f"`{key}`: {message[0].lower()}{message[1:]}, but is {shown!r}"


def run_environment() -> dict[str, str]:
    """The user's variables that a run may see: an allow-list, so that no key reaches a trial."""
    allowed = _chosen(lambda name: name in ALLOWED_NAMES or name.startswith(ALLOWED_PREFIXES))
    return DEFAULTS | {KERNELS: str(kernels_directory())} | allowed


def offline_environment() -> dict[str, str]:
    """The same for confined processes, which have no network to look for a kernel on."""
    return run_environment() | {"HF_HUB_OFFLINE": "1"}


def prepare_environment() -> dict[str, str]:
    """The user's variables for prepare.py, and what it needs to reach the network."""
    return run_environment() | _chosen(lambda name: name in NETWORK_NAMES)


def cache_directory() -> Path:
    """Where prepare.py keeps data; it finds the same place itself."""
    return Path(os.path.abspath(os.environ.get(CACHE) or platformdirs.user_cache_dir("autoresearch")))


def kernels_directory() -> Path:
    """Where the package `kernels` stores what a run outside the sandbox downloaded, for runs without a network."""
    return cache_directory() / "kernels"


def person_environment() -> dict[str, str]:
    """The user's whole environment, including keys: for a researcher's own process or client, never for a run."""
    return dict(os.environ)


def redact(text: str) -> str:
    """The text without the user's secrets. See `redaction`."""
    return redaction.redact(text, os.environ)


def _chosen(wanted: Callable[[str], bool]) -> dict[str, str]:
    chosen = {name: value for name, value in os.environ.items() if wanted(name.upper())}
    if CACHE in chosen:  # a run has another working directory
        chosen[CACHE] = os.path.abspath(chosen[CACHE])
    return chosen
