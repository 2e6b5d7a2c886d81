"""Finds out which files a Python interpreter needs, so that a sandbox can show those and nothing else."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from autoresearch.base import process

PARTS = ("bin", "lib", "lib64", "include", "pyvenv.cfg")
ASK = """
import json, site, sys
packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
base = site.getuserbase() if site.getusersitepackages() in packages else None
print(json.dumps({"prefixes": [sys.base_prefix, sys.prefix], "packages": packages, "user_base": base}))
"""


@dataclass(frozen=True)
class Interpreter:
    """Where an interpreter's files are: its prefixes, its packages, and the symbolic links that lead to it."""

    prefixes: tuple[Path, ...] = ()
    packages: tuple[Path, ...] = ()
    links: tuple[Path, ...] = ()
    user_base: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Lets Python find the user's own packages from a different home directory."""
        return {"PYTHONUSERBASE": self.user_base} if self.user_base else {}

    def visible(self, directory: Path) -> Iterator[Path]:
        """What to show to a run in a directory. If a prefix contains that directory or the home, only Python's own
        parts of it."""
        for prefix in self.prefixes:
            around = any(inner.is_relative_to(prefix) for inner in (directory, Path.home()))
            yield from (prefix / part for part in PARTS) if around else (prefix,)
        yield from self.packages


@functools.cache
def interpreter(name: str) -> Interpreter:
    """Ask an interpreter where its files are. A program that is not Python has none."""
    try:
        answer = json.loads(process.output([name, "-c", ASK]))
    except ValueError:
        return Interpreter()
    links = [Path(os.path.abspath(name))]
    while links[-1].is_symlink():
        links.append(Path(os.path.normpath(links[-1].parent / os.readlink(links[-1]))))
    home = links.pop().parent.parent  # the prefix, under the name that leads to it through links
    prefixes = [Path(prefix) for prefix in answer["prefixes"]]
    prefixes += [prefix.resolve() for prefix in prefixes]
    prefixes += [home] if home.resolve() in prefixes else []
    packages = map(Path, answer["packages"])
    return Interpreter(tuple(dict.fromkeys(prefixes)), tuple(packages), tuple(links), answer["user_base"])


def program(word: str) -> str:
    """The path of a program.

    Raises:
        FileNotFoundError: there is none.
    """
    found = shutil.which(word)
    if not found:
        raise FileNotFoundError(f"there is no program {word}")
    return found
