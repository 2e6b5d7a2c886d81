"""Thin git verbs, one a function; hooks, signing and the caller's GIT_* variables are kept out of all of them."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from autoresearch.errors import UserError

QUIET = ("-c", f"core.hooksPath={os.devnull}", "-c", "commit.gpgsign=false", "-c", "gc.auto=0")
AUTHOR = ("-c", "user.name=autoresearch", "-c", "user.email=autoresearch@localhost")


class GitError(UserError):
    """A git command failed."""


def _git(root: Path, *arguments: str) -> bytes:
    """Run git out of the terminal's process group, so that Ctrl-C does not end it halfway."""
    if not shutil.which("git"):
        raise UserError("git is not installed or not on the PATH: install it (https://git-scm.com) and run this again")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", *QUIET, *arguments]
    done = subprocess.run(
        command,
        cwd=root,
        env={**environment, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=os.name == "posix",
    )
    if done.returncode:
        tail = done.stderr.decode(errors="replace").strip().replace("\n", "; ")[-500:]
        raise GitError(f"`git {' '.join(arguments)}` failed in {root} with code {done.returncode}: {tail}")
    return done.stdout


def _line(root: Path, *arguments: str) -> str:
    return _git(root, *arguments).decode(errors="replace").strip()


def init(root: Path) -> None:
    _git(root, "init", "--quiet", "--initial-branch=main")


def top_level(directory: Path) -> Path | None:
    """The root of the repository that holds the directory; None outside of any."""
    try:
        return Path(_line(directory, "rev-parse", "--show-toplevel"))
    except GitError as error:
        if "not a git repository" in str(error):
            return None
        raise


def version() -> str:
    return _line(Path.cwd(), "version").removeprefix("git version ")


def current_branch(root: Path) -> str | None:
    """The short name of the branch that is checked out; None where HEAD is detached."""
    try:
        return _line(root, "symbolic-ref", "--quiet", "--short", "HEAD")
    except GitError:
        return None


def resolve(root: Path, revision: str) -> str | None:
    """The full commit id of a revision; None where there is no such commit."""
    try:
        return _line(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except GitError:
        return None


def is_checked_out(root: Path, branch: str) -> bool:
    """Whether a branch is checked out in the repository or in any worktree of it."""
    return f"branch refs/heads/{branch}\n" in _git(root, "worktree", "list", "--porcelain").decode(errors="replace")


def changed_paths(root: Path) -> tuple[str, ...]:
    """Tracked paths with uncommitted changes, and untracked ones that git does not ignore."""
    entries = _git(root, "status", "--porcelain=v1", "-z", "--no-renames").decode(errors="replace").split("\0")
    return tuple(entry[3:] for entry in entries if entry)


def add_worktree(root: Path, path: Path, commit: str) -> None:
    _git(root, "worktree", "add", "--quiet", "--force", "--force", "--detach", str(path), commit)


def remove_worktree(root: Path, path: Path) -> None:
    """Remove a worktree, whatever is in it and whether or not git knows of it; no other is touched."""
    with contextlib.suppress(GitError):
        _git(root, "worktree", "remove", "--force", "--force", str(path))
    shutil.rmtree(path, ignore_errors=True)


def commit_all(root: Path, message: str) -> str:
    """Commit everything in the working tree and return the commit's full id."""
    _git(root, "add", "--all")
    _git(root, *AUTHOR, "commit", "--quiet", "--no-verify", "--allow-empty", f"--message={message}")
    return _line(root, "rev-parse", "HEAD")


def set_ref(root: Path, name: str, new: str, old: str | None = None) -> None:
    """Point a full ref name at a commit, only if it stands at `old` where that is given."""
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
    """The text of a three-way merge of files; None where changes collide."""
    try:
        return _git(root, "merge-file", "-p", "--quiet", str(ours), str(base), str(theirs)).decode(errors="replace")
    except GitError:
        return None
