"""Turns program.md's front matter into a frozen Config. The only reader of configuration and environment."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import platformdirs
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autoresearch.base.errors import UserError
from autoresearch.lab import redaction

FENCE = "---"
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


class Config(BaseModel):
    """What the user sets in the front matter of program.md."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    researcher: str = "builtin"
    model: str | None = None
    base_url: str | None = None
    fallback: Literal["builtin", "none"] = "builtin"
    ahead: int = Field(default=0, ge=0, le=1)
    repairs: int = Field(default=2, ge=0)
    propose_seconds: float = Field(default=900, gt=0)
    max_tokens: int | None = Field(default=None, gt=0)
    max_usd: float | None = Field(default=None, gt=0)
    max_tokens_per_trial: int | None = Field(default=None, gt=0)
    max_usd_per_trial: float | None = Field(default=None, gt=0)
    papers: tuple[Path, ...] = ()
    preset: str | None = None
    executor: str = "local"
    sandbox: Literal["auto", "bubblewrap", "landlock", "none"] = "auto"
    startup_seconds: float = Field(default=300, gt=0)
    memory_gb: float | None = Field(default=None, gt=0)
    judge: str = "posterior"
    advance: float = Field(default=0.75, ge=0.5, lt=1)
    error_rate: float = Field(default=0.05, gt=0, lt=0.5)
    smallest_effect: float = Field(default=0.0002, ge=0)
    confirm_every: int = Field(default=20, ge=1)
    refuted: Literal["rewind", "ablate"] = "rewind"
    max_runs: int = Field(default=3, ge=1)
    baseline_seeds: int = Field(default=3, ge=1)
    soft_memory_gb: float | None = Field(default=None, gt=0)
    memory_price: float = Field(default=0.001, ge=0)
    simplicity: bool = True
    prune: bool = True
    max_disturbance: float = Field(default=0.03, gt=0, le=1)
    quiet_seconds: float = Field(default=600, ge=0)
    grading_factor: float = Field(default=3, ge=1)
    examine_keeps: bool = True
    editable: tuple[str, ...] = Field(default=("train.py",), min_length=1)
    allowance_seconds: float = Field(default=300, gt=0)
    min_free_gb: float = Field(default=1, ge=0)
    python: Path | None = None

    @property
    def interpreter(self) -> Path:
        """The Python that runs the lab's files."""
        return self.python or Path(sys.executable)


def load(path: Path) -> tuple[Config, str]:
    """Read program.md: its configuration, and the prose below it.

    Raises:
        UserError: the file cannot be read, or its front matter is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}): a lab needs its program.md") from error
    front, prose = _split(text, path)
    try:
        return Config.model_validate(_mapping(front, path)), prose
    except ValidationError as error:
        raise UserError(f"{path}: {'; '.join(_problems(error))}") from error


def _split(text: str, path: Path) -> tuple[str, str]:
    lines = text.splitlines()
    fences = [number for number, line in enumerate(lines) if line.strip() == FENCE]
    if len(fences) < 2 or fences[0] != 0:
        raise UserError(
            f"{path} has no front matter: begin it with a line `---`, settings like `researcher: builtin`, "
            "and a line `---`"
        )
    return "\n".join(lines[1 : fences[1]]), "\n".join(lines[fences[1] + 1 :])


def _mapping(front: str, path: Path) -> dict[object, object]:
    try:
        values = yaml.safe_load(front) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 2}" if mark else ""
        raise UserError(f"the front matter of {path} is not YAML{where}: {getattr(error, 'problem', error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"the front matter of {path} must be lines like `researcher: builtin`")
    return values


def _problems(error: ValidationError) -> list[str]:
    return [_problem(str(item["loc"][0]), str(item["type"]), str(item["msg"])) for item in error.errors()]


def _problem(key: str, kind: str, message: str) -> str:
    if kind != "extra_forbidden":
        return f"`{key}`: {message[0].lower()}{message[1:]}"
    nearest = difflib.get_close_matches(key, Config.model_fields, n=1, cutoff=0)
    return f"unknown setting `{key}` (nearest: `{nearest[0]}`)"


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
