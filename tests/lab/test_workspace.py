from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from autoresearch.base import git
from autoresearch.base.errors import UserError
from autoresearch.lab.workspace import Workspace


def test_a_candidate_is_committed_on_its_parent_and_the_checkout_stays_as_it_is(lab: Path) -> None:
    workspace = Workspace.open(lab)
    base = workspace.base("t")
    (lab / "train.py").write_text("X = 5  # of the user\n")
    commit = workspace.commit("t", 1, base, {"train.py": "X = 1\n"}, "an idea")
    assert workspace.files(commit) == {**workspace.files(base), "train.py": b"X = 1\n"}
    assert git.resolve(lab, f"{commit}^") == base
    assert git.resolve(lab, "refs/autoresearch/t/1") == commit
    assert (lab / "train.py").read_text() == "X = 5  # of the user\n"
    assert git.changed_paths(lab) == ("train.py",)


def test_a_commit_that_a_kill_left_without_a_trial_is_replaced(lab: Path) -> None:
    workspace = Workspace.open(lab)
    base = workspace.base("t")
    workspace.commit("t", 1, base, {"train.py": "X = 1\n"}, "an idea")
    again = workspace.commit("t", 1, base, {"train.py": "X = 2\n"}, "another")
    assert git.resolve(lab, "refs/autoresearch/t/1") == again


@pytest.mark.parametrize("name", ["plain.py", "with space.py", 'quo"te.py', "back\\slash.py", "ünï.py", "a/b/c.py"])
def test_a_file_keeps_its_mode_whatever_its_name_and_text(lab: Path, name: str) -> None:
    path = lab / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("old\n")
    path.chmod(0o755)
    git.commit_all(lab, "a program")
    workspace = Workspace.open(lab)
    text = "get-mark :1\nM 100644 inline x\nno newline at the end"
    commit = workspace.commit("t", 1, str(git.resolve(lab, "HEAD")), {name: text}, "a “quoted” idea\n\nwith a body")
    assert workspace.files(commit)[name] == text.encode()
    listed = subprocess.check_output(["git", "ls-tree", "-r", "-z", commit], cwd=lab).decode().split("\0")
    assert next(entry for entry in listed if entry.endswith(f"\t{name}")).startswith("100755")
    said = subprocess.check_output(["git", "log", "-1", "--format=%an|%ae|%cn|%B", commit], cwd=lab, text=True)
    assert said.strip() == "autoresearch|autoresearch@localhost|autoresearch|a “quoted” idea\n\nwith a body"


def two_commits(workspace: Workspace) -> tuple[str, str, str]:
    """The base and two commits, one on top of the other."""
    base = workspace.base("t")
    first = workspace.commit("t", 1, base, {"train.py": "X = 1\n"}, "one")
    return base, first, workspace.commit("t", 2, first, {"train.py": "X = 2\n"}, "two")


def test_advancing_is_idempotent_and_notices_a_moved_branch(lab: Path) -> None:
    workspace = Workspace.open(lab)
    base, first, second = two_commits(workspace)
    workspace.advance("t", base, [base])
    workspace.advance("t", first, [base, first])
    workspace.advance("t", first, [base, first])
    stranger = workspace.commit("t", 3, base, {"train.py": "X = 3\n"}, "three")
    git.set_ref(lab, "refs/heads/autoresearch/t", stranger)
    with pytest.raises(UserError, match=r"someone else moved the branch"):
        workspace.advance("t", second, [base, first, second])


def test_a_branch_that_somebody_looks_at_is_moved_later(lab: Path) -> None:
    workspace = Workspace.open(lab)
    base, first, second = two_commits(workspace)
    workspace.advance("t", base, [base])
    subprocess.run(["git", "switch", "--quiet", "autoresearch/t"], cwd=lab, check=True)
    workspace.advance("t", first, [base, first])
    assert git.changed_paths(lab) == ()
    assert git.resolve(lab, "HEAD") == base
    subprocess.run(["git", "switch", "--quiet", "main"], cwd=lab, check=True)
    workspace.advance("t", second, [base, first, second])
    assert git.resolve(lab, "autoresearch/t") == second


def test_hooks_and_identity_of_the_person_are_not_needed(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = lab / ".git/hooks/pre-commit"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    monkeypatch.setenv("HOME", str(lab.parent))
    workspace = Workspace.open(lab)
    assert workspace.commit("t", 1, workspace.base("t"), {"train.py": "X = 1\n"}, "an idea")


def test_a_second_holder_of_the_lock_is_refused_with_the_first_ones_process(lab: Path) -> None:
    workspace = Workspace.open(lab)
    assert not workspace.is_locked()
    code = (
        "import pathlib, autoresearch.lab.workspace\n"
        f"with autoresearch.lab.workspace.Workspace(pathlib.Path({str(lab)!r})).lock():\n"
        "    print('in', flush=True)\n    input()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "in\n"
    assert workspace.is_locked()
    with pytest.raises(UserError, match=f"process {holder.pid}"), workspace.lock():
        pass
    holder.kill()
    holder.communicate()
    with workspace.lock():
        pass


def test_the_weights_of_one_run_are_dropped_or_of_all(lab: Path) -> None:
    workspace = Workspace.open(lab)
    weights = [workspace.trial_directory(3) / f"run{run}" / "checkpoint.safetensors" for run in (0, 1, 10)]
    for path in weights:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"weights")
    workspace.drop_checkpoints(3, run=1)
    assert [path.exists() for path in weights] == [True, False, True]
    workspace.drop_checkpoints(3)
    assert [path.exists() for path in weights] == [False, False, False]


def test_half_written_files_are_cleared_where_a_killed_loop_may_have_left_them(lab: Path) -> None:
    workspace = Workspace.open(lab)
    places = [lab, workspace.state, *(workspace.trial_directory(number) for number in (9, 99, 9999, 10000, 10001))]
    litter = [place / name for place in places for name in (".results.tsv.x1.tmp", ".patch.diff.x2.tmp")]
    for path in litter:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    (lab / ".mine.tmp").write_text("not ours")
    workspace.clear()
    left = {path.relative_to(lab).as_posix() for path in litter if path.exists()}
    old = ".autoresearch/trials/0009/"
    assert left == {".patch.diff.x2.tmp", f"{old}.results.tsv.x1.tmp", f"{old}.patch.diff.x2.tmp"}
    assert (lab / ".mine.tmp").exists()
