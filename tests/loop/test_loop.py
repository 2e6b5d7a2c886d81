"""The loop with real git, real processes and a toy model; researchers are scripted."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import toy_lab
from autoresearch.base import git
from autoresearch.base.errors import Exhausted, NoProposal, UserError
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import Event, FileSaved, ProposalRefused, RunStarted, Stopped
from autoresearch.ledger.records import CrashKind, Decision, Proposal, Status
from autoresearch.loop.asking import desk
from autoresearch.loop.loop import run_campaign
from autoresearch.loop.parts.stages import Policy
from autoresearch.researchers.interface import Brief
from conftest import never, proposal, stages


def after(trials: int) -> Callable[[int], str | None]:
    return lambda made: "enough" if made >= trials else None


def statuses(root: Path, tag: str = "t") -> list[Status]:
    campaign = stages(root).campaign(tag)
    return [trial.verdict.status for trial in campaign.trials if trial.verdict]


def test_a_better_proposal_is_kept_and_the_branch_follows_it(lab: Path) -> None:
    reason = run_campaign(stages(lab, [proposal(2.0), proposal(2.5), proposal(1.5)]), "t", never)
    assert statuses(lab) == [Status.KEEP, Status.KEEP, Status.DISCARD, Status.KEEP]
    campaign = stages(lab).campaign("t")
    best = campaign.incumbent
    assert best is not None
    assert best.val_bpb == pytest.approx(1.25)
    assert git.resolve(lab, "autoresearch/t") == best.proposed.commit
    assert best.proposed.parent == campaign.trials[1].proposed.commit
    assert "proposals of the script have been made" in reason


def test_results_tsv_is_as_published(lab: Path) -> None:
    lines = [proposal(2.0), proposal(9.0), proposal(4.0, extra="raise ValueError('no')")]
    run_campaign(stages(lab, lines), "t", never)
    table = (lab / "results.tsv").read_text().splitlines()
    assert table[0] == "commit\tval_bpb\tmemory_gb\tstatus\tdescription"
    columns = [line.split("\t") for line in table[1:]]
    assert [row[1:4] for row in columns] == [
        ["5.000000", "0.5", "keep"],
        ["2.000000", "0.5", "keep"],
        ["65.000000", "0.5", "discard"],
        ["0.000000", "0.0", "crash"],
    ]
    assert all(len(row) == 5 and len(row[0]) == 7 for row in columns)


def test_the_persons_checkout_and_uncommitted_edits_are_not_touched(lab: Path) -> None:
    (lab / "notes.txt").write_text("mine")
    (lab / "train.py").write_text((lab / "train.py").read_text())
    before = {path.name: path.read_bytes() for path in lab.iterdir() if path.is_file()}
    head = git.resolve(lab, "HEAD")
    run_campaign(stages(lab, [proposal(2.0)]), "t", never)
    after_ = {path.name: path.read_bytes() for path in lab.iterdir() if path.is_file()}
    after_.pop("results.tsv")
    assert after_ == before
    assert (git.resolve(lab, "HEAD"), git.current_branch(lab)) == (head, "main")
    assert git.changed_paths(lab) == ("notes.txt",)
    assert subprocess.check_output(["git", "worktree", "list"], cwd=lab, text=True).count("\n") == 1


def test_a_results_tsv_of_somebody_elses_is_saved_aside_and_said(lab: Path) -> None:
    theirs = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n" + "fffffff\t1.0\t44.0\tkeep\tbaseline\n" * 126
    (lab / "results.tsv").write_text(theirs)
    heard: list[Event] = []
    parts = stages(lab, [proposal(2.0), proposal(1.5)], announce=heard.append)
    run_campaign(parts, "t", never)
    assert (lab / "results.saved-1.tsv").read_text() == theirs
    assert [event.saved_as for event in heard if isinstance(event, FileSaved)] == ["results.saved-1.tsv"]
    assert len((lab / "results.tsv").read_text().splitlines()) == 4
    run_campaign(stages(lab, [proposal(2.0), proposal(1.5), proposal(1.2)]), "t", never)
    assert not (lab / "results.saved-2.tsv").exists(), "our own table is written again"
    with (lab / "results.tsv").open("a") as file:
        file.write("my own\tnote\n")
    run_campaign(stages(lab, [proposal(x) for x in (2.0, 1.5, 1.2, 1.1)]), "t", never)
    assert "my own" in (lab / "results.saved-2.tsv").read_text()


def test_nobody_else_on_the_machine_can_read_transcripts_and_logs(lab: Path) -> None:
    (lab / ".autoresearch").mkdir(mode=0o755)
    with stages(lab).workspace.lock():
        assert (lab / ".autoresearch").stat().st_mode & 0o077 == 0


def test_edits_made_while_the_loop_runs_stay_and_do_not_matter(lab: Path) -> None:
    def edit_then_propose(brief: Brief) -> Proposal:
        (lab / "train.py").write_text("my half-finished thought (")
        return proposal(2.0)

    run_campaign(stages(lab, [edit_then_propose, proposal(1.0)]), "t", never)
    assert (lab / "train.py").read_text() == "my half-finished thought ("
    assert statuses(lab) == [Status.KEEP] * 3


def test_discarded_commits_stay_reachable(lab: Path) -> None:
    run_campaign(stages(lab, [proposal(9.0)]), "t", never)
    discarded = stages(lab).campaign("t").trials[1].proposed.commit
    assert git.resolve(lab, "refs/autoresearch/t/1") == discarded


def test_the_patch_of_a_trial_is_kept_beside_its_log(lab: Path) -> None:
    run_campaign(stages(lab, [proposal(2.0)]), "t", never)
    directory = lab / ".autoresearch/trials/0001"
    assert "+X = 2.0" in (directory / "patch.diff").read_text()
    assert "val_bpb" in (directory / "run0/run.log").read_text()
    assert stages(lab).campaign("t").trials[1].proposed.lines_changed >= 2


@pytest.mark.parametrize(
    ("extra", "kind", "detail"),
    [
        ("raise ValueError('no such layer')", CrashKind.PYTHON_ERROR, "ValueError: no such layer"),
        ("raise MemoryError", CrashKind.OUT_OF_MEMORY, "MemoryError"),
        ("print('FAIL: loss is nan at step 7'); raise SystemExit(1)", CrashKind.NOT_FINITE, "loss is nan at step 7"),
        ("raise SystemExit(0)", CrashKind.NO_SCORE, "without a score"),
        ("import time; time.sleep(60)", CrashKind.TIME_OUT, "no score after 1 s"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", CrashKind.OUT_OF_MEMORY, "SIGKILL"),
    ],
)
def test_crash_reasons_are_told_apart(lab: Path, extra: str, kind: CrashKind, detail: str) -> None:
    run_campaign(stages(lab, [proposal(2.0, extra=extra)], deadline_seconds=1.0), "t", never)
    crash = stages(lab).campaign("t").trials[1].crash
    assert crash is not None
    assert crash.kind is kind
    assert detail in crash.detail
    assert statuses(lab) == [Status.KEEP, Status.CRASH]


def test_a_failing_researcher_does_not_end_the_loop(lab: Path) -> None:
    def fail(brief: Brief) -> Proposal:
        raise RuntimeError("the model is away")

    events: list[Event] = []
    run_campaign(stages(lab, [fail, proposal(2.0)], events), "t", never)
    refused = [event for event in events if isinstance(event, ProposalRefused)]
    assert "the model is away" in refused[0].reason
    assert statuses(lab) == [Status.KEEP, Status.KEEP]


def test_a_refused_proposal_is_told_to_the_researcher_and_costs_no_run(lab: Path) -> None:
    heard: list[str | None] = []

    def listen(brief: Brief) -> Proposal:
        heard.append(brief.refusal)
        return proposal(2.0)

    events: list[Event] = []
    frozen = Proposal("edit the metric", {"prepare.py": "TIME_BUDGET = 9"})
    run_campaign(stages(lab, [frozen, listen], events), "t", never)
    assert "prepare.py may not change" in (heard[0] or "")
    assert sum(isinstance(event, RunStarted) for event in events) == 2


def test_the_same_program_is_not_tried_twice(lab: Path) -> None:
    events: list[Event] = []
    run_campaign(stages(lab, [proposal(9.0), proposal(9.0, extra="# a comment")], events), "t", never)
    refused = [event for event in events if isinstance(event, ProposalRefused)]
    assert "tried before, as trial 1" in refused[0].reason


def test_a_judge_may_ask_for_more_seeds(lab: Path) -> None:
    class Twice:
        name = "twice"

        def decide(self, campaign: Campaign, candidate: Trial) -> Decision:
            return Decision(Status.KEEP, "both ran", rerun=len(candidate.runs) < 2)

        def runs_needed(self, campaign: Campaign, candidate: Trial) -> int:
            return 1

        def confirmation(self, campaign: Campaign, *, asked: bool, flying: object = ()) -> None:
            return None

    run_campaign(stages(lab, [proposal(2.0)], judge=Twice()), "t", never)
    for trial in stages(lab).campaign("t").trials:
        assert [run.seed for run in trial.runs] == [42, 43]


def test_a_stop_after_n_trials_does_not_count_the_baseline(lab: Path) -> None:
    lines = [proposal(float(x)) for x in range(4, 10)]
    assert run_campaign(stages(lab, lines), "t", after(2)) == "enough"
    assert len(statuses(lab)) == 3
    run_campaign(stages(lab, lines), "t", after(2))
    assert len(statuses(lab)) == 5


def test_trial_numbers_run_on_through_campaigns(lab: Path) -> None:
    run_campaign(stages(lab, [proposal(2.0)]), "one", never)
    run_campaign(stages(lab, [proposal(2.0)]), "two", never)
    assert [trial.number for trial in stages(lab).campaign("two").trials] == [2, 3]


def test_a_run_that_was_cut_short_is_done_again(lab: Path) -> None:
    def interrupt(trial: int, event: object) -> None:
        if trial == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_campaign(stages(lab, [proposal(2.0)], progress=interrupt), "t", never)
    cut = stages(lab).campaign("t").trials[1]
    assert (cut.runs, cut.verdict) == ((), None)
    run_campaign(stages(lab, [proposal(2.0)]), "t", never)
    assert statuses(lab) == [Status.KEEP, Status.KEEP]


def test_every_stop_is_recorded_with_its_reason(lab: Path) -> None:
    run_campaign(stages(lab), "t", after(0))
    events = list(stages(lab).ledger.events())
    assert events[-1] == Stopped("t", "enough")


def test_a_crashed_baseline_ends_the_campaign_with_a_sentence(tmp_path: Path) -> None:
    lab = toy_lab.make(tmp_path / "lab", train=toy_lab.train_with(3.0, "raise ValueError('broken')"))
    with pytest.raises(UserError, match="the baseline crashed"):
        run_campaign(stages(lab, [proposal(2.0)]), "t", never)
    with pytest.raises(UserError, match="start a new campaign with `--tag"):
        run_campaign(stages(lab, [proposal(2.0)]), "t", never)


def test_a_run_has_all_that_the_record_promises(lab: Path) -> None:
    run_campaign(stages(lab), "t", never)
    run = stages(lab).campaign("t").trials[0].runs[0]
    assert run.score is not None
    assert run.environment == {"device": "toy"}
    assert set(run.frozen_sha256) == {"prepare.py", "program.md", ".gitignore"}
    assert run.training_seconds is not None
    assert (lab / run.log).exists()
    assert run.memory_gb == pytest.approx(0.5)


def test_the_pause_after_refusals_grows_from_nothing_up_to_a_limit(lab: Path) -> None:
    patient = stages(lab, policy=Policy())
    assert desk.pause_seconds(patient, desk.FREE_REFUSALS) == 0.0
    assert desk.pause_seconds(patient, desk.FREE_REFUSALS + 1) == 2.0
    assert desk.pause_seconds(patient, 50) == patient.policy.longest_pause_seconds


def test_a_pause_ends_on_request(lab: Path) -> None:
    class Silent:
        name = "silent"

        def propose(self, brief: Brief) -> Proposal:
            raise NoProposal("nothing")

    start = time.monotonic()
    parts = stages(lab, researcher=Silent(), policy=Policy(longest_pause_seconds=60.0))
    run_campaign(parts, "t", lambda made: "stop" if time.monotonic() > start + 8 else None)
    assert time.monotonic() - start < 20


def test_a_run_that_deletes_its_own_directory_is_a_crash_and_no_end(lab: Path) -> None:
    vandal = proposal(2.0, extra="import os, shutil; shutil.rmtree(os.environ['AUTORESEARCH_RUN_DIR'])")
    run_campaign(stages(lab, [vandal, proposal(1.5)]), "t", never)
    assert statuses(lab) == [Status.KEEP, Status.CRASH, Status.KEEP]


def test_what_a_run_makes_of_its_checkpoints_name_ends_nothing(lab: Path) -> None:
    place = "import os, pathlib; pathlib.Path(os.environ['AUTORESEARCH_RUN_DIR'], 'checkpoint.x').mkdir()"
    run_campaign(stages(lab, [proposal(9.0, extra=place), proposal(2.0)]), "t", never)
    assert statuses(lab) == [Status.KEEP, Status.DISCARD, Status.KEEP]
    assert not list((lab / ".autoresearch/trials/0001").rglob("checkpoint.*"))


def test_an_exhausted_researcher_ends_the_campaign(lab: Path) -> None:
    def end(brief: Brief) -> Proposal:
        raise Exhausted("no ideas left")

    assert run_campaign(stages(lab, [end]), "t", never) == "no ideas left"
