"""A lab's place on disk and its branch: commits, refs. It only ever reads the user's checkout."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from filelock import FileLock, Timeout

from autoresearch.base import atomic, git
from autoresearch.base.errors import BusyError, UserError
from autoresearch.grading.protocol import CHECKPOINT

_files = functools.lru_cache(maxsize=128)(git.files)  # as many as may be in flight, with what they were made on
LAB_FILES = ("prepare.py", "train.py", "program.md")
FROM_THE_COMMIT = ("prepare.py", "train.py")  # program.md is read as it is in the checkout
NAMESPACES = ("refs/autoresearch", "refs/heads/autoresearch")  # of this program's references
GIBIBYTE = 2**30
WAIT_SECONDS = 1.0
LATEST = 4  # trials whose directories are cleared of half-written files: one at work, and those asked for ahead
PRIVATE = 0o700  # transcripts and logs are for their owner alone


def _is_lab(root: Path) -> bool:
    return all((root / name).is_file() for name in LAB_FILES)


class Workspace:
    """One lab. All paths that the program writes in it are properties here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / ".autoresearch"
        self.program = root / "program.md"
        self.results = root / "results.tsv"
        self.chart = root / "progress.png"
        self.guidance = self.state / "guidance.md"
        self.ledger = self.state / "ledger.jsonl"
        self.overview = self.state / "overview.msgpack"
        self.pending = self.state / "try.json"
        self.detached = self.state / "try.log"
        self.trials = self.state / "trials"
        self.worktrees = self.state / "worktrees"
        self.inbox = self.state / "inbox"  # of what people tell the search
        self.transcripts = self.state / "transcripts"  # of questions to a researcher, until there is a trial

    @classmethod
    def open(cls, directory: Path) -> Workspace:
        """The lab in a directory, or the one that the directory is a part of.

        Raises:
            UserError: it is not a lab: a file is missing, or it is not the root of a git repository.
        """
        root = directory.resolve()
        if (above := next((path for path in root.parents if _is_lab(path)), None)) and not _is_lab(root):
            root = above
        missing = [name for name in LAB_FILES if not (root / name).is_file()]
        if missing:
            raise UserError(
                f"{root} is not a lab (no {', '.join(missing)}): create one with `autoresearch new DIR`, or name "
                "yours with `--lab DIR`"
            )
        if git.top_level(root) != root:
            raise UserError(
                f"{root} is not the root of a git repository: run `git init && git add . && git commit -m lab` in it"
            )
        return cls(root)

    # ------------------------------------------------------------ one loop at a time

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lab for one loop. The system releases it when the process ends, however it does.

        Raises:
            BusyError: another loop holds it.
        """
        holder = self.state / "loop.pid"
        try:
            with self._lock(WAIT_SECONDS):  # `is_locked` may hold it for a moment
                atomic.write(holder, str(os.getpid()).encode())
                yield
        except Timeout as error:
            pid = holder.read_text() if holder.exists() else "unknown"
            raise BusyError(
                f"another loop (process {pid}) is running in {self.root}: wait for it, or stop it with Ctrl-C there"
            ) from error

    def is_locked(self) -> bool:
        """Whether a loop is running in this lab. None can if nothing can be written here."""
        try:
            with self._lock(0):
                return False
        except Timeout:
            return True
        except OSError:
            return False

    def _lock(self, seconds: float) -> FileLock:
        self.state.mkdir(mode=PRIVATE, exist_ok=True)
        with contextlib.suppress(OSError):  # it belongs to somebody else, or the file system has no permissions
            self.state.chmod(PRIVATE)
        return FileLock(self.state / "loop.lock", timeout=seconds)

    def check_space(self, needed_gb: float) -> None:
        """Raise a UserError if the lab's disk has less than that many GiB free."""
        free = shutil.disk_usage(self.root).free / GIBIBYTE
        if free < needed_gb:
            raise UserError(
                f"only {free:.1f} GiB are free on the disk of {self.root}, but `min_free_gb` in program.md asks for "
                f"{needed_gb:g}: free some, then run the same command again"
            )

    # ------------------------------------------------------------ campaigns

    def clear(self) -> None:
        """Remove what a killed loop left half done: worktrees of earlier versions, locks of references, files."""
        git.sweep_references(self.root, NAMESPACES)
        git.prune_worktrees(self.root)
        for pattern in (f".{self.results.name}.*.tmp", f".{self.chart.name}.*.tmp"):
            for path in self.root.glob(pattern):
                path.unlink(missing_ok=True)
        for place in (self.state, self.trials, *self._latest_trials()):
            for path in place.glob(".*.tmp"):
                if path.is_file() and not path.is_symlink():
                    path.unlink(missing_ok=True)
        if self.worktrees.is_dir():
            for path in self.worktrees.iterdir():
                git.remove_worktree(self.root, path)

    def _latest_trials(self) -> list[Path]:
        """The directories of the trials that a killed loop may have been writing in."""
        found = self.trials.glob("[0-9]*")
        return sorted(found, key=lambda path: (len(path.name), path.name))[-LATEST:]

    @staticmethod
    def branch(tag: str) -> str:
        return f"autoresearch/{tag}"

    def base(self, tag: str, dirty: Collection[str] = ()) -> str:
        """The commit that a new campaign would start from: the checkout's HEAD, whatever the files in `dirty` contain.

        Raises:
            UserError: HEAD is detached or has no commit, lab files have uncommitted edits, or the branch
                exists.
        """
        branch = git.current_branch(self.root)
        if branch is None:
            raise UserError(
                f"the checkout of {self.root} is not on a branch (detached HEAD): run `git switch main` in it"
            )
        commit = self.head()
        if commit is None:
            raise UserError(f"{self.root} has no commit yet: run `git add . && git commit -m lab` in it")
        edited = sorted((set(self.changed_paths()) & set(FROM_THE_COMMIT)) - set(dirty))
        if edited:
            raise UserError(
                f"{', '.join(edited)} in {self.root} differ from the last commit, which a new campaign starts from: "
                "commit them with `git commit -a`, or put them aside with `git stash`"
            )
        if git.resolve(self.root, f"refs/heads/{self.branch(tag)}") not in (None, commit):
            raise UserError(
                f"the branch {self.branch(tag)} exists but is not in the ledger: choose another name with `--tag NAME`"
            )
        return commit

    def head(self) -> str | None:
        """The checkout's own commit; None if it has none yet."""
        return git.resolve(self.root, "HEAD")

    def changed_paths(self) -> tuple[str, ...]:
        """What differs in the checkout from its commit, except what this program writes."""
        own = (self.results.name, self.chart.name, f"{self.state.name}/")
        return tuple(
            path
            for path in git.changed_paths(self.root)
            if path not in own and not fnmatch.fnmatch(path, self.older_results("*").name)
        )

    def older_results(self, tag: str) -> Path:
        """The table of a campaign that is not the one at work."""
        return self.results.with_name(f"{self.results.stem}-{tag}{self.results.suffix}")

    def has_branch(self, tag: str) -> bool:
        return git.resolve(self.root, f"refs/heads/{self.branch(tag)}") is not None

    def check_checkout(self, tag: str) -> None:
        """Raise a UserError if the user has the campaign's own branch checked out, which the loop moves."""
        if git.is_checked_out(self.root, self.branch(tag)):
            raise UserError(
                f"{self.branch(tag)} is checked out in {self.root}, and the loop moves that branch: "
                "run `git switch main` in it"
            )

    def advance(self, tag: str, new: str, known: Collection[str]) -> None:
        """Move the campaign's branch to a commit, from any of the campaign's own. Not while it is checked out
        somewhere.

        Raises:
            UserError: the branch is not at one of the `known` commits.
        """
        branch = self.branch(tag)
        current = git.resolve(self.root, f"refs/heads/{branch}")
        if current == new or git.is_checked_out(self.root, branch):
            return
        if current is not None and current not in known:
            raise UserError(
                f"someone else moved the branch {branch} to {current[:7]}: put it back with `git branch --force "
                f"{branch} {new[:7]}`, or start a new campaign with `--tag NAME`"
            )
        git.set_ref(self.root, f"refs/heads/{branch}", new, current)

    # ------------------------------------------------------------ candidates

    def commit(self, tag: str, trial: int, parent: str, files: Mapping[str, str], message: str) -> str:
        """Commit changed files on top of a parent, beside the user's checkout, and keep the commit with a ref."""
        data = {path: text.encode() for path, text in files.items()}
        return git.commit_files(self.root, parent, data, message, f"refs/autoresearch/{tag}/{trial}")

    def merge(self, base: str, ours: str, theirs: str) -> str | None:
        """A text with both changes of a common base; None if they conflict."""
        if base == ours:
            return theirs
        self.worktrees.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.worktrees, prefix="merge-") as directory:
            paths = [Path(directory) / name for name in ("ours", "base", "theirs")]
            for path, text in zip(paths, (ours, base, theirs), strict=True):
                path.write_text(text, encoding="utf-8", newline="\n")
            return git.merge_file(self.root, *paths)

    def files(self, commit: str) -> Mapping[str, bytes]:
        """Every file of a commit. It never changes, and a trial needs those of its parent and its own several times."""
        return MappingProxyType(_files(self.root, commit))

    def patch(self, old: str, new: str) -> str:
        return git.diff(self.root, old, new)

    def read_guidance(self) -> str:
        """What the user has written for the researcher; empty if there is nothing."""
        return self.guidance.read_text(encoding="utf-8", errors="replace") if self.guidance.is_file() else ""

    def add_guidance(self, text: str) -> str:
        """Add a paragraph to the guidance and return all of it."""
        self.state.mkdir(mode=PRIVATE, exist_ok=True)
        whole = f"{self.read_guidance().rstrip()}\n\n{text.strip()}\n".lstrip()
        atomic.write(self.guidance, whole.encode(errors="replace"))
        return whole

    def trial_directory(self, trial: int) -> Path:
        return self.trials / f"{trial:04d}"

    def keep_transcript(self, name: str, trial: int) -> None:
        """Add what was asked and answered to a trial's own transcript. Does nothing if there is none of that name."""
        path, directory = self.transcripts / name, self.trial_directory(trial)
        with contextlib.suppress(OSError):  # a full disk must not end a search
            text = path.read_bytes()
            atomic.make_directory(directory)
            with (directory / "transcript.log").open("ab") as file:
                file.write(text)
            path.unlink()

    def run_directory(self, trial: int, run: int) -> Path:
        """Where a run leaves its log and its curve."""
        return self.trial_directory(trial) / f"run{run}"

    def answers(self, trial: int, run: int) -> Path:
        """What a run answered at secret places. Beside its directory, where it cannot write."""
        return self.trial_directory(trial) / f"answers{run}.npz"

    def drop_checkpoints(self, trial: int, run: int | None = None) -> None:
        """Remove the weights of a trial's runs, or of one run, whatever the run did to their names.

        What cannot be removed stays: that must not end a search.
        """
        which = "*" if run is None else run
        for path in self.trial_directory(trial).glob(f"run{which}/{Path(CHECKPOINT).stem}.*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()

    def relative(self, path: str) -> str:
        """A path within the lab, as the ledger stores it."""
        return Path(path).relative_to(self.root).as_posix()
