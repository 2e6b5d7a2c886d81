"""What a failing disk took from a lab is named, and put back as far as possible: real git, real damage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from autoresearch.base import git
from autoresearch.base.errors import UserError
from autoresearch.ledger.campaign import Campaign
from autoresearch.ledger.ledger import Ledger
from autoresearch.ledger.records import Status
from autoresearch.loop.loop import run_campaign
from conftest import never, proposal, stages


@pytest.fixture
def searched(lab: Path) -> Path:
    """A lab with a baseline and three keeps."""
    run_campaign(stages(lab, [proposal(2.0), proposal(1.5), proposal(1.2)]), "t", never)
    return lab


def campaign(lab: Path) -> Campaign:
    return Ledger(lab / ".autoresearch/ledger.jsonl").campaigns()[0]


def new_objects(lab: Path, trial: int) -> list[Path]:
    """The files of the objects that only a trial's commit has."""
    proposed = campaign(lab).trials[trial].proposed
    names = subprocess.check_output(
        ["git", "rev-list", "--objects", proposed.commit, f"^{proposed.parent}"], cwd=lab, text=True
    )
    ids = [line.split()[0] for line in names.splitlines()]
    return [lab / ".git/objects" / name[:2] / name[2:] for name in ids]


def empty(paths: list[Path]) -> None:
    for path in paths:
        path.chmod(0o644)
        path.write_bytes(b"")


def doctor(lab: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autoresearch", "doctor", "--repair", "--lab", str(lab)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_lost_commit_is_named_and_rebuilt_with_the_same_id(searched: Path) -> None:
    best = campaign(searched).trials[3].proposed.commit
    empty(new_objects(searched, 3))
    with pytest.raises(UserError, match=r"of trial 3 cannot be read.*doctor --repair"):
        run_campaign(stages(searched, [proposal(1.1)] * 4), "t", never)
    done = doctor(searched)
    assert done.returncode == 0, done.stderr
    assert f"rebuilt the commit {best[:7]} of trial 3 from its patch" in done.stdout
    assert git.is_whole(searched, best)
    run_campaign(stages(searched, [proposal(x) for x in (2.0, 1.5, 1.2, 1.1)]), "t", never)
    assert campaign(searched).trials[4].proposed.parent == best


def test_what_cannot_be_rebuilt_is_dropped_and_the_search_continues_from_the_keep_before(searched: Path) -> None:
    empty(new_objects(searched, 3))
    (searched / ".autoresearch/trials/0003/patch.diff").unlink()
    done = doctor(searched)
    assert done.returncode == 0, done.stderr
    assert "dropped trial 3 (X to 1.2): its commit was lost" in done.stdout
    found = campaign(searched)
    assert found.trials[3].verdict is not None
    assert found.trials[3].verdict.status is Status.INVALID
    assert found.incumbent is found.trials[2]
    run_campaign(stages(searched, [proposal(x) for x in (2.0, 1.5, 1.2, 1.1)]), "t", never)
    assert campaign(searched).trials[4].proposed.parent == found.trials[2].proposed.commit


def test_empty_references_and_stale_locks_are_removed_and_set_again(searched: Path) -> None:
    best = campaign(searched).trials[3].proposed.commit
    branch, ref = searched / ".git/refs/heads/autoresearch/t", searched / ".git/refs/autoresearch/t/2"
    branch.write_bytes(b"")
    ref.write_bytes(b"")
    branch.with_name("t.lock").write_bytes(b"")
    done = doctor(searched)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("removed ") == 3
    assert git.resolve(searched, "refs/heads/autoresearch/t") == best
    assert git.resolve(searched, "refs/autoresearch/t/2") == campaign(searched).trials[2].proposed.commit


@pytest.mark.parametrize("line", [b'{"type": "verd\x00\x00', b"123", b"null", b'["a"]', b'{"type": "nothing"}'])
def test_a_garbled_line_is_moved_aside_after_saying_what_is_lost(searched: Path, line: bytes) -> None:
    ledger = searched / ".autoresearch/ledger.jsonl"
    lines = ledger.read_bytes().splitlines()
    ledger.write_bytes(b"\n".join([*lines[:3], line, *lines[3:], b""]))
    with pytest.raises(UserError, match=r"line 4 of .*doctor --repair"):
        campaign(searched)
    done = doctor(searched)
    assert done.returncode == 0, done.stderr
    assert "line 4 of the ledger cannot be read and is now in ledger.damaged.jsonl" in done.stdout
    assert (ledger.with_name("ledger.damaged.jsonl")).read_bytes() == line + b"\n"
    assert ledger.read_bytes().splitlines() == lines


def test_a_lost_first_commit_is_the_users_to_bring_back(searched: Path) -> None:
    base = campaign(searched).started.base
    empty([searched / ".git/objects" / base[:2] / base[2:]])
    done = doctor(searched)
    assert done.returncode == 1
    assert "started from is gone: fetch it from a clone or a backup" in done.stderr


def test_a_whole_lab_is_left_as_it_is(searched: Path) -> None:
    before = {path: path.read_bytes() for path in searched.rglob("*") if path.is_file() and "loop." not in path.name}
    done = doctor(searched)
    assert done.stdout.startswith("the lab is whole: ")
    after = {path: path.read_bytes() for path in searched.rglob("*") if path.is_file() and "loop." not in path.name}
    assert after == before


# ---------------------------------------------------------------- what must not block a lab


def test_a_missing_ledger_beside_trials_is_not_written_over(searched: Path) -> None:
    (searched / ".autoresearch/ledger.jsonl").unlink()
    with pytest.raises(UserError, match=r"ledger\.jsonl is missing, but there are trials"):
        run_campaign(stages(searched, [proposal(1.1)]), "u", never)
    assert (searched / ".autoresearch/trials/0003/patch.diff").read_text()


@pytest.mark.parametrize("tag", ["x" * 300, "a/b", "-x"])
def test_a_tag_that_cannot_name_a_branch_is_refused_and_blocks_nothing(lab: Path, tag: str) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        script = lab.parent / "script.json"
        script.write_text("[]")
        command = [sys.executable, "-m", "autoresearch", "run", "--lab", str(lab), "--researcher", f"scripted:{script}"]
        return subprocess.run([*command, *words], capture_output=True, text=True)

    refused = run(f"--tag={tag}")
    assert refused.returncode == 1
    assert "cannot name a branch" in refused.stderr
    assert run().returncode == 0


def test_a_branch_called_autoresearch_is_named_before_anything_is_recorded(lab: Path) -> None:
    subprocess.run(["git", "branch", "autoresearch"], cwd=lab, check=True)
    with pytest.raises(UserError, match="git branch -m autoresearch NAME"):
        run_campaign(stages(lab, [proposal(2.0)]), "t", never)
    assert Ledger(lab / ".autoresearch/ledger.jsonl").campaigns() == ()
    subprocess.run(["git", "branch", "-m", "autoresearch", "mine"], cwd=lab, check=True)
    run_campaign(stages(lab, [proposal(2.0)]), "t", never)
    assert len(campaign(lab).finished) == 2


def test_a_stale_lock_and_litter_of_a_killed_loop_are_swept(searched: Path) -> None:
    lock = searched / ".git/refs/heads/autoresearch/t.lock"
    litter = [searched / ".results.tsv.ab12.tmp", searched / ".autoresearch/trials/.patch.diff.cd34.tmp"]
    for path in (lock, *litter):
        path.write_bytes(b"")
    worktree = searched / ".autoresearch/worktrees/9"
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(worktree), "HEAD"], cwd=searched, check=True)
    subprocess.run(["rm", "-rf", str(worktree)], check=True)
    run_campaign(stages(searched, [proposal(x) for x in (2.0, 1.5, 1.2, 1.1)]), "t", never)
    assert len(campaign(searched).finished) == 5
    assert not [path for path in (lock, *litter) if path.exists()]
    assert subprocess.check_output(["git", "worktree", "list"], cwd=searched, text=True).count("\n") == 1


def test_a_run_told_twice_counts_once(searched: Path) -> None:
    ledger = searched / ".autoresearch/ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ended = next(number for number, line in enumerate(lines) if b'"run_ended"' in line)
    ledger.write_bytes(b"".join([*lines[: ended + 1], lines[ended], *lines[ended + 1 :]]))
    assert len(campaign(searched).trials[0].runs) == 1


def test_a_ledger_that_is_a_directory_is_one_sentence(lab: Path) -> None:
    (lab / ".autoresearch/ledger.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match="is a directory, but should be the lab's ledger"):
        run_campaign(stages(lab, [proposal(2.0)]), "t", never)
