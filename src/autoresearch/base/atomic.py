"""Writes a file whole: under a temporary name, flushed to disk, then renamed over the old file. Saves one aside."""

import contextlib
import itertools
import os
import tempfile
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Replace the file. A reader, or anyone who looks after a kill, sees either the old content or the new."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def sync_directory(path: Path) -> None:
    """Force a directory's entries to the disk, so that a new or renamed file in it is there after a power cut."""
    with contextlib.suppress(OSError):  # Windows has no such thing, nor do some network file systems
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory and its parents, all of them on the disk."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)


def save_aside(path: Path) -> Path:
    """Give a file an unused name beside its own, as in `results.saved-1.tsv`, and return that."""
    names = (path.with_name(f"{path.stem}.saved-{number}{path.suffix}") for number in itertools.count(1))
    other = next(name for name in names if not name.exists() and not name.is_symlink())
    path.rename(other)
    sync_directory(path.parent)
    return other
