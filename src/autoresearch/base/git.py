"""Thin git verbs, one function each. Hooks, signing and the caller's GIT_* variables never affect them."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from autoresearch.base.errors import UserError

QUIET = ("-c", f"core.hooksPath={os.devnull}", "-c", "commit.gpgsign=false", "-c", "gc.auto=0")
# Force everything to the disk, objects and references: an event of the ledger that names a commit is durable too.
DURABLE = ("-c", "core.fsync=all")
ID = re.compile(rb"[0-9a-f]{40,64}\n?")  # the content of a reference
AUTHOR = ("-c", "user.name=autoresearch", "-c", "user.email=autoresearch@localhost")


class GitError(UserError):
    """A git command failed."""


def _git(
    root: Path, *arguments: str, variables: Mapping[str, str] = MappingProxyType({}), given: bytes | None = None
) -> bytes:
    """Run git outside the terminal's process group, so that Ctrl-C does not kill it halfway."""
    if not shutil.which("git"):
        raise UserError("git is not installed or not on the PATH: install it (https://git-scm.com) and run this again")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", *QUIET, *DURABLE, *arguments]
    done = subprocess.run(
        command,
        cwd=root,
        env={**environment, **variables, "LC_ALL": "C"},
        input=given or b"",
        capture_output=True,
        start_new_session=os.name == "posix",
    )
    if done.returncode:
        tail = done.stderr.decode(errors="replace").strip().replace("\n", "; ")[-500:]
        raise GitError(f"`git {' '.join(arguments)}` failed in {root} with code {done.returncode}: {tail}")
    return done.stdout


def _line(root: Path, *arguments: str) -> str:
    return _git(root, *arguments).decode(errors="replace").strip()


def first_commit(root: Path) -> str:
    """A commit that the history of HEAD began with; empty if there is none."""
    try:
        return _line(root, "rev-list", "--max-parents=0", "HEAD").split("\n")[0]
    except GitError:
        return ""


def init(root: Path) -> None:
    _git(root, "init", "--quiet", "--initial-branch=main")


def top_level(directory: Path) -> Path | None:
    """The root of the repository that contains the directory; None if it is in none."""
    try:
        return Path(os.fsdecode(_git(directory, "rev-parse", "--show-toplevel").rstrip(b"\n")))
    except GitError as error:
        if "not a git repository" in str(error):
            return None
        if "dubious ownership" in str(error):
            raise GitError(
                f"{directory} belongs to another user, so git does not work in it: if you trust it, run `git config "
                f"--global --add safe.directory {directory}`"
            ) from error
        raise


def version() -> str:
    return _line(Path.cwd(), "version").removeprefix("git version ")


def current_branch(root: Path) -> str | None:
    """The short name of the branch that is checked out; None if HEAD is detached."""
    try:
        return _line(root, "symbolic-ref", "--quiet", "--short", "HEAD")
    except GitError:
        return None


def resolve(root: Path, revision: str) -> str | None:
    """The full commit id of a revision; None if there is no such commit."""
    try:
        return _line(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except GitError:
        return None


def is_checked_out(root: Path, branch: str) -> bool:
    """Whether a branch is checked out in the repository or in any of its worktrees."""
    return f"branch refs/heads/{branch}\n" in _git(root, "worktree", "list", "--porcelain").decode(errors="replace")


def changed_paths(root: Path) -> tuple[str, ...]:
    """Tracked paths with uncommitted changes, and untracked ones that git does not ignore."""
    entries = _git(root, "status", "--porcelain=v1", "-z", "--no-renames").decode(errors="replace").split("\0")
    return tuple(entry[3:] for entry in entries if entry)


def remove_worktree(root: Path, path: Path) -> None:
    """Remove a worktree, whatever is in it and whether or not git knows it. Touches no other."""
    with contextlib.suppress(GitError):
        _git(root, "worktree", "remove", "--force", "--force", str(path))
    shutil.rmtree(path, ignore_errors=True)


def commit_all(root: Path, message: str) -> str:
    """Commit everything in the working tree and return the commit's full id."""
    _git(root, "add", "--all")
    _git(root, *AUTHOR, "commit", "--quiet", "--no-verify", "--allow-empty", f"--message={message}")
    return _line(root, "rev-parse", "HEAD")


def commit_files(root: Path, parent: str, files: Mapping[str, bytes], message: str, ref: str) -> str:
    """Commit changed files on top of a parent, without a working tree, and point a full ref name at the commit.

    Returns its full id. One process does it all, and a file that is there keeps its mode.
    """
    modes = _modes(root, parent)
    stream = [f"commit {ref}\nmark :1\ncommitter autoresearch <autoresearch@localhost> now\n".encode()]
    stream += [_data(f"{message.strip()}\n".encode()), f"from {parent}\n".encode()]
    for path, content in files.items():
        stream += [f"M {modes.get(path, '100644')} inline {_quoted(path)}\n".encode(), _data(content)]
    given = b"".join([*stream, b"get-mark :1\n"])
    return _git(root, "fast-import", "--quiet", "--force", "--date-format=now", given=given).decode().strip()


def _data(content: bytes) -> bytes:
    """Content as fast-import reads it."""
    return b"data %d\n%b\n" % (len(content), content)


@functools.lru_cache(maxsize=64)
def _modes(root: Path, commit: str) -> Mapping[str, str]:
    """The modes of a commit's files, by path."""
    entries = _git(root, "ls-tree", "-r", "-z", commit).decode(errors="surrogateescape").split("\0")
    return {path: about.split()[0] for about, _, path in (entry.partition("\t") for entry in entries) if path}


def _quoted(path: str) -> str:
    """A path as fast-import reads it."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def is_whole(root: Path, commit: str) -> bool:
    """Whether a commit and all its files can be read."""
    try:
        _git(root, "archive", "--format=tar", commit)
        return True
    except GitError:
        return False


def rebuild(root: Path, commit: str, parent: str, patch: Path, message: str, moments: Iterable[int]) -> bool:
    """Make a lost commit again: the parent's files with a patch, at one of these moments (seconds since 1970).

    Returns whether one of them gives that commit's id, which proves that everything in it is the same.
    """
    with tempfile.TemporaryDirectory(prefix="autoresearch-") as directory:
        index = {"GIT_INDEX_FILE": str(Path(directory) / "index")}
        try:
            _git(root, "read-tree", parent, variables=index)
            if patch.stat().st_size:
                _git(root, "apply", "--cached", "--whitespace=nowarn", str(patch), variables=index)
            tree = _git(root, "write-tree", variables=index).decode().strip()
        except GitError:
            return False
        for moment in moments:
            who = f"autoresearch <autoresearch@localhost> {moment} {time.strftime('%z', time.localtime(moment))}"
            text = Path(directory) / "commit"
            text.write_text(f"tree {tree}\nparent {parent}\nauthor {who}\ncommitter {who}\n\n{message.strip()}\n")
            if _line(root, "hash-object", "-t", "commit", str(text)) == commit:
                _git(root, "hash-object", "-t", "commit", "-w", str(text))
                return is_whole(root, commit)
    return False


def sweep(root: Path, namespaces: Sequence[str]) -> list[Path]:
    """Remove what a power cut left and git refuses to overwrite: empty objects, and, of references in these namespaces,
    those without content and stale locks. Returns what was removed."""
    empty = [path for path in _store(root).glob("objects/??/*") if path.is_file() and not path.stat().st_size]
    for path in empty:
        path.unlink()
    return [*empty, *sweep_references(root, namespaces)]


def sweep_references(root: Path, namespaces: Sequence[str]) -> list[Path]:
    """Remove references without content and stale locks. Returns what was removed. Only while nobody else sets them."""
    store, found = _store(root), list[Path]()
    for name in namespaces:
        files = [path for path in (store / name).rglob("*") if path.is_file()]
        found += [path for path in files if path.suffix == ".lock" or not ID.fullmatch(path.read_bytes())]
    for path in found:
        path.unlink()
    return found


def prune_worktrees(root: Path) -> None:
    """Forget worktrees whose directories are gone."""
    _git(root, "worktree", "prune")


def _store(root: Path) -> Path:
    """The directory of the repository's objects and references."""
    return (root / _line(root, "rev-parse", "--git-common-dir")).resolve()


def set_ref(root: Path, name: str, new: str, old: str | None = None) -> None:
    """Point a full ref name at a commit. If `old` is given, only if the ref points there now."""
    _git(root, "update-ref", name, new, *([old] if old is not None else []))


def files(root: Path, commit: str) -> Mapping[str, bytes]:
    """Every regular file of a commit, by path."""
    archive = _git(root, "archive", "--format=tar", commit)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = ((member.name, tar.extractfile(member)) for member in tar if member.isfile())
        return {name: content.read() for name, content in members if content}


def diff(root: Path, old: str, new: str) -> str:
    return _git(root, "diff", "--no-ext-diff", "--no-color", old, new).decode(errors="replace")


def merge_file(root: Path, ours: Path, base: Path, theirs: Path) -> str | None:
    """The text of a three-way merge of files; None if the changes conflict."""
    try:
        return _git(root, "merge-file", "-p", "--quiet", str(ours), str(base), str(theirs)).decode(errors="replace")
    except GitError:
        return None
