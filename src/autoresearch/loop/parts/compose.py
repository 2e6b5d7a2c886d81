"""Composes a campaign's stages from a lab's configuration. The only place that chooses concrete parts."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import re
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from autoresearch.base import process, registry, variables
from autoresearch.base.errors import UserError
from autoresearch.executors.interface import Equipment
from autoresearch.executors.sandbox import sandboxes
from autoresearch.executors.sandbox.rules import Limits
from autoresearch.grading import splits
from autoresearch.grading.protocol import ENTRY
from autoresearch.judging.interface import Judge
from autoresearch.judging.judge import Terms
from autoresearch.lab import config, past_trials, presets
from autoresearch.lab.settings import Config
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger import report
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import Event
from autoresearch.ledger.ledger import Ledger
from autoresearch.ledger.records import RunEvent
from autoresearch.ledger.results_file import ResultsFile
from autoresearch.loop.parts import where
from autoresearch.loop.parts.stages import Policy, Stages
from autoresearch.models.cell import Cell
from autoresearch.researchers.interface import Kit, Researcher
from autoresearch.researchers.papers import search

LONGEST_TAG = 100  # characters


def compose(
    workspace: Workspace,
    ledger: Ledger,
    settings: Config,
    tag: str,
    announce: Callable[[Event], None],
    progress: Callable[[int, RunEvent], None],
    *,
    agent: Researcher | None = None,
    quiet: bool = False,
    alone: bool = False,
) -> Stages:
    """Everything that the loop needs for a campaign, new or existing.

    An `agent` that works in the checkout itself replaces the researcher. Then the editable files may differ from the
    last commit, and standard output is left to the caller, as it is if `quiet`. `alone`: one run at a time.

    Raises:
        UserError: a setting names something that does not exist, or the lab cannot be searched as it is.
    """
    begun = ledger.campaign(tag)
    files = workspace.files(begun.started.base if begun else workspace.base(tag, settings.editable if agent else ()))
    prepare_py = files["prepare.py"].decode()
    budget = presets.budget(prepare_py)
    # Whether runs are graded from outside: prepare.py talks to a grader, and the system supports it.
    trusted = splits.can_be_graded(prepare_py) and os.name == "posix"
    python = where.interpreter(settings, workspace.root)
    tools = kit(workspace, settings, f"lab:{workspace.root}:")
    if not agent:
        check_caps(settings)
    chosen = agent or researcher(settings.researcher, tools)
    equipment = Equipment(prepare_py, trusted, settings.sandbox, settings.memory_gb)
    there = where.site(settings, workspace, equipment, begun, where.tell(progress), alone=alone)
    return Stages(
        workspace=workspace,
        results=ResultsFile(workspace.results),
        ledger=ledger,
        researcher=chosen,
        fallback=None if agent or settings.fallback in ("none", chosen.name) else researcher(settings.fallback, tools),
        executor=there.executor,
        judge=judge(settings),
        policy=policy(settings),
        archive=past_trials.of_lab(workspace, ledger, settings.editable),
        editable=settings.editable,
        budget_seconds=budget,
        deadline_seconds=budget + settings.startup_seconds + settings.allowance_seconds,
        startup_seconds=settings.startup_seconds,
        min_free_gb=settings.min_free_gb,
        prune=settings.prune,
        device=there.device,
        preset=settings.preset,
        program=latest_prose(workspace.program),
        guidance=workspace.read_guidance,
        redact=config.redact,
        prepare=lambda files: prepare(files, python, quiet=quiet or agent is not None),
        examine=examiner(settings, workspace, prepare_py if trusted else None),
        announce=announce,
        progress=progress,
        places=there.places,
    )


def cell(settings: Config, root: Path) -> Cell:
    """Where a kept model of the lab generates text: confined like its runs, with the kernels they may use."""
    return Cell(
        where.interpreter(settings, root),
        variables.offline(),
        sandboxes.choose(settings.sandbox),
        Limits(memory_gb=settings.memory_gb),
        (variables.kernels_directory(),),
    )


def examiner(
    settings: Config, workspace: Workspace, prepare_py: str | None
) -> Callable[[Trial, Callable[[], None]], str | None]:
    """What examines the kept trials of a lab once more. Nothing does if its scores are its own word."""
    if prepare_py is None or not settings.examine_keeps:
        return lambda trial, poll: None
    from autoresearch.models.examination import Examiner  # imports torch, which a lab may not need

    return Examiner(
        workspace,
        lambda: cell(settings, workspace.root),
        lambda: splits.read(prepare_py),
        lambda: splits.reading(prepare_py).tokenizer,
    ).examine


def judge(settings: Config) -> Judge:
    made: Judge = registry.find("judge", registry.JUDGES, settings.judge)(terms(settings))
    return made


def terms(settings: Config) -> Terms:
    """The judge's policy, as the user has set it."""
    return Terms(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(Terms)})


def check_caps(settings: Config) -> None:
    """Raise a UserError if a cap is set that could never be reached, because the researcher does not report that
    spending."""
    name = settings.researcher.partition(":")[0].strip()
    counted = registry.COUNTED.get(name, ())
    caps = {"tokens": settings.max_tokens or settings.max_tokens_per_trial, "usd": settings.max_usd}
    for unit, cap in caps.items():
        if cap is not None and unit not in counted and name not in registry.FREE:
            known = f"set `max_{counted[0]}` instead" if counted else "limit it in its own account"
            raise UserError(f"the researcher {name} does not report what `max_{unit}` in program.md limits: {known}")


def policy(settings: Config) -> Policy:
    return Policy(
        ahead=settings.ahead,
        repairs=settings.repairs,
        propose_seconds=settings.propose_seconds,
        max_tokens=settings.max_tokens,
        max_usd=settings.max_usd,
        max_disturbance=settings.max_disturbance,
        quiet_seconds=settings.quiet_seconds,
        grading_factor=settings.grading_factor,
        search=settings.search,
    )


def researcher(wanted: str, tools: Kit) -> Researcher:
    """The researcher with that name; the text after a colon is its argument.

    Raises:
        UserError: there is none with that name, or it cannot work here.
    """
    name, _, argument = wanted.partition(":")
    made: Researcher = registry.find("researcher", registry.RESEARCHERS, name.strip())(argument.strip(), tools)
    return made


def kit(workspace: Workspace, settings: Config, namespace: str) -> Kit:
    """What a researcher of this lab may use."""
    return Kit(
        root=workspace.root,
        deadline_seconds=settings.propose_seconds,
        max_tokens=settings.max_tokens_per_trial,
        max_usd=settings.max_usd_per_trial,
        model=settings.model,
        base_url=settings.base_url,
        environment=variables.of_user(),
        transcripts=workspace.transcripts,
        scratch=workspace.worktrees,
        namespace=namespace,
        papers=lambda query: literature(workspace, settings, query),
        redact=config.redact,
        supervised=sandboxes.supervised,
    )


def literature(workspace: Workspace, settings: Config, query: str) -> str:
    """What arXiv and the user's own folders say about a query, as text for a researcher or a terminal.

    Raises:
        UserError: a folder of `papers` in program.md does not exist.
    """
    folders = [workspace.root / folder.expanduser() for folder in settings.papers]
    return search.as_text(search.search(query, folders=folders, cache=workspace.state / "papers"))


def latest_prose(program: Path) -> Callable[[], str]:
    """A function that reads program.md's prose. While the file is broken, it returns the last good version."""
    prose = config.load(program)[1]

    def read() -> str:
        nonlocal prose
        with contextlib.suppress(UserError):
            prose = config.load(program)[1]
        return prose

    return read


def prepare(files: Mapping[str, bytes], python: Path, *, quiet: bool) -> None:
    """Run a commit's prepare.py on the user's terminal, in a directory of its own.

    Raises:
        UserError: it failed; what it printed says why.
    """
    with tempfile.TemporaryDirectory(prefix="autoresearch-") as directory:
        (Path(directory) / "prepare.py").write_bytes(files["prepare.py"])
        command = [str(python), "prepare.py"]
        environment = variables.for_prepare()
        if process.run_attached(command, Path(directory), environment, shielded=True, to_stderr=quiet):
            raise UserError("the data is not ready: do what prepare.py says above, then run this again")


def notice(campaign: Campaign, workspace: Workspace, frozen: Collection[str] = ()) -> str | None:
    """What to tell a user whose committed edits (of `frozen` only, if given) an existing campaign does not see."""
    head = workspace.head()
    old, new = workspace.files(campaign.started.base), workspace.files(head) if head else {}
    changed = [name for name in frozen or ("prepare.py", ENTRY) if old.get(name) != new.get(name)]
    if not changed:
        return None
    return (
        f"campaign {campaign.tag} continues with its own {' and '.join(changed)}, not with what you have committed "
        "since: use `--tag NAME` to start one that does"
    )


def replaced(tag: str, ledger: Ledger) -> str | None:
    """What to tell a user for whom a new campaign is started because the latest one cannot be continued."""
    latest = ledger.campaign()
    if latest is None or latest.incumbent or latest.tag == tag or ledger.campaign(tag) or not latest.finished:
        return None
    return f"campaign {latest.tag} has no baseline that counts (trial {latest.trials[0].number}): this starts {tag}"


def tag_of(wanted: str | None, ledger: Ledger, workspace: Workspace) -> str:
    """The campaign's tag: the wanted one, else the default.

    Raises:
        UserError: the wanted one cannot name a branch.
    """
    if not wanted:
        return default_tag(ledger, workspace)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", wanted) or len(wanted) > LONGEST_TAG:
        shown = report.shorten(wanted, 40)
        raise UserError(
            f"the tag {shown!r} cannot name a branch: use letters, digits, - and _, at most {LONGEST_TAG} of them"
        )
    return wanted


def default_tag(ledger: Ledger, workspace: Workspace) -> str:
    """The latest campaign's tag, unless its baseline crashed; else today's date, made unique."""
    latest = ledger.campaign()
    if latest and (latest.incumbent or not latest.finished):
        return latest.tag
    return _unused(datetime.date.today().isoformat(), ledger, workspace)


def control_tag(ledger: Ledger, workspace: Workspace) -> str:
    """A new tag for a campaign of changes that change nothing."""
    return _unused(f"aa-{datetime.date.today().isoformat()}", ledger, workspace)


def _unused(name: str, ledger: Ledger, workspace: Workspace) -> str:
    taken = {campaign.tag for campaign in ledger.campaigns()}
    names = (name, *(f"{name}-{number}" for number in range(2, 1000)))
    return next(each for each in names if each not in taken and not workspace.has_branch(each))
