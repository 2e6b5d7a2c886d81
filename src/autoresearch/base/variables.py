"""What the programs that we start may see of the user's environment, and where the data and kernels of all labs are.

The only module that reads the environment, except for secrets to be removed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import platformdirs

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


def for_run() -> dict[str, str]:
    """The user's variables that a run may see: an allow-list, so that no key reaches a trial."""
    allowed = _chosen(lambda name: name in ALLOWED_NAMES or name.startswith(ALLOWED_PREFIXES))
    return DEFAULTS | {KERNELS: str(kernels_directory())} | allowed


def offline() -> dict[str, str]:
    """The same for confined processes, which have no network to look for a kernel on."""
    return for_run() | {"HF_HUB_OFFLINE": "1"}


def for_prepare() -> dict[str, str]:
    """The user's variables for prepare.py, and what it needs to reach the network."""
    return for_run() | _chosen(lambda name: name in NETWORK_NAMES)


def cache_directory() -> Path:
    """Where prepare.py keeps data; it finds the same place itself."""
    return Path(os.path.abspath(os.environ.get(CACHE) or platformdirs.user_cache_dir("autoresearch")))


def kernels_directory() -> Path:
    """Where the package `kernels` stores what a run outside the sandbox downloaded, for runs without a network."""
    return cache_directory() / "kernels"


def of_user() -> dict[str, str]:
    """The user's whole environment, including keys: for a researcher's own process or client, never for a run."""
    return dict(os.environ)


def set_defaults(values: Mapping[str, str]) -> None:
    """Set variables of this program, for a library that reads them, unless the user has set them."""
    for name, value in values.items():
        os.environ.setdefault(name, value)


def _chosen(wanted: Callable[[str], bool]) -> dict[str, str]:
    chosen = {name: value for name, value in os.environ.items() if wanted(name.upper())}
    if CACHE in chosen:  # a run has another working directory
        chosen[CACHE] = os.path.abspath(chosen[CACHE])
    return chosen
