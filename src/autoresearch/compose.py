"""Composes a campaign's stages from a lab's configuration; the only place where concrete parts are chosen."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from autoresearch import archive, config, hardware, papers, presets, process, registry, sandbox, splits
from autoresearch.campaign import Campaign
from autoresearch.config import Config
from autoresearch.errors import NoInterpreterError, UserError
from autoresearch.events import Event
from autoresearch.grader import SelfReported, TrustedGrader
from autoresearch.interfaces import Executor, Judge, Kit, Researcher
from autoresearch.judge import Terms
from autoresearch.ledger import Ledger
from autoresearch.records import RunEvent
from autoresearch.sampling import Cell
from autoresearch.sandbox import Limits
from autoresearch.stages import Policy, Stages
from autoresearch.trial import ENTRY
from autoresearch.workspace import Workspace


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
) -> Stages:
    """Everything that the loop needs for a campaign, new or begun.

    An `agent` that works in the checkout itself takes the researcher's place: then the editable files may differ from
    the last commit. Standard output is left to the caller then, or where it is to be `quiet`.

    Raises:
        UserError: a setting names nothing that there is, or the lab cannot be searched as it stands.
    """
    begun = ledger.campaign(tag)
    files = workspace.files(begun.started.base if begun else workspace.base(tag, settings.editable if agent else ()))
    prepare_py = files["prepare.py"].decode()
    budget = presets.budget(prepare_py)
    # Whether runs are graded from outside: prepare.py speaks to a grader, and the system can.
    trusted = splits.can_be_graded(prepare_py) and os.name == "posix"
    python = interpreter(settings, workspace.root)
    namespace = f"lab:{workspace.root}:"
    tools = kit(workspace, settings, namespace)
    if not agent:
        check_caps(settings)
    chosen = agent or researcher(settings.researcher, tools)
    return Stages(
        workspace=workspace,
        ledger=ledger,
        researcher=chosen,
        fallback=None if agent or settings.fallback in ("none", chosen.name) else researcher(settings.fallback, tools),
        executor=executor(settings, workspace, python, namespace, prepare_py if trusted else None),
        grader=TrustedGrader(lambda: splits.read(prepare_py)) if trusted else SelfReported(),
        judge=judge(settings),
        policy=policy(settings),
        archive=archive.of_lab(workspace, ledger, settings.editable),
        editable=settings.editable,
        budget_seconds=budget,
        deadline_seconds=budget + settings.startup_seconds + settings.allowance_seconds,
        startup_seconds=settings.startup_seconds,
        min_free_gb=settings.min_free_gb,
        prune=settings.prune,
        device=str(hardware.device()),
        preset=settings.preset,
        program=latest_prose(workspace.program),
        guidance=workspace.read_guidance,
        redact=config.redact,
        prepare=lambda files: prepare(files, python, quiet=quiet or agent is not None),
        announce=announce,
        progress=progress,
    )


def executor(settings: Config, workspace: Workspace, python: Path, namespace: str, prepare_py: str | None) -> Executor:
    """The executor, with the sandbox that is wanted or works; without a prepare.py a lab grades itself."""
    make = registry.find("executor", registry.EXECUTORS, settings.executor)
    made: Executor = make(
        workspace.trials,
        python,
        config.offline_environment() | {config.CACHE: str(config.cache_directory())},
        namespace,
        # A lab that grades itself reads its data where it likes.
        sandbox.choose(settings.sandbox if prepare_py or settings.sandbox != "auto" else "none"),
        Limits(memory_gb=settings.memory_gb),
        lambda: (
            (*splits.readable(prepare_py), config.kernels_directory()) if prepare_py else (config.cache_directory(),)
        ),
    )
    return made


def cell(settings: Config, root: Path) -> Cell:
    """Where a kept model of the lab is let write: confined as its runs are, with the kernels that they may have."""
    return Cell(
        interpreter(settings, root),
        config.offline_environment(),
        sandbox.choose(settings.sandbox),
        Limits(memory_gb=settings.memory_gb),
        (config.kernels_directory(),),
    )


def judge(settings: Config) -> Judge:
    made: Judge = registry.find("judge", registry.JUDGES, settings.judge)(terms(settings))
    return made


def terms(settings: Config) -> Terms:
    """The judge's policy, as the person has set it."""
    return Terms(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(Terms)})


def check_caps(settings: Config) -> None:
    """Raise a UserError where a cap is set that the researcher's spending could never reach: it does not tell it."""
    name = settings.researcher.partition(":")[0].strip()
    counted = registry.COUNTED.get(name, ())
    caps = {"tokens": settings.max_tokens or settings.max_tokens_per_trial, "usd": settings.max_usd}
    for unit, cap in caps.items():
        if cap is not None and unit not in counted and name not in registry.FREE:
            known = f"set `max_{counted[0]}` instead" if counted else "bound it by its own account"
            raise UserError(f"the researcher {name} does not tell what `max_{unit}` in program.md caps: {known}")


def policy(settings: Config) -> Policy:
    return Policy(
        ahead=settings.ahead,
        repairs=settings.repairs,
        propose_seconds=settings.propose_seconds,
        max_tokens=settings.max_tokens,
        max_usd=settings.max_usd,
    )


def researcher(wanted: str, tools: Kit) -> Researcher:
    """The researcher of a name, with the text after a colon for its argument.

    Raises:
        UserError: there is none of that name, or it cannot work here.
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
        environment=config.person_environment(),
        transcripts=workspace.trials,
        scratch=workspace.worktrees,
        namespace=namespace,
        papers=lambda query: literature(workspace, settings, query),
        redact=config.redact,
    )


def literature(workspace: Workspace, settings: Config, query: str) -> str:
    """What arXiv and the person's own folders say to a query, as text for a researcher or a terminal.

    Raises:
        UserError: a folder of `papers` in program.md is not there.
    """
    folders = [workspace.root / folder.expanduser() for folder in settings.papers]
    return papers.as_text(papers.search(query, folders=folders, cache=workspace.state / "papers"))


def latest_prose(program: Path) -> Callable[[], str]:
    """A function that reads program.md's prose; while the file is broken it gives what was there before."""
    prose = config.load(program)[1]

    def read() -> str:
        nonlocal prose
        with contextlib.suppress(UserError):
            prose = config.load(program)[1]
        return prose

    return read


def prepare(files: Mapping[str, bytes], python: Path, *, quiet: bool) -> None:
    """Run a commit's prepare.py on the person's terminal, in a directory of its own.

    Raises:
        UserError: it failed; what it printed says why.
    """
    with tempfile.TemporaryDirectory(prefix="autoresearch-") as directory:
        (Path(directory) / "prepare.py").write_bytes(files["prepare.py"])
        command = [str(python), "prepare.py"]
        environment = config.prepare_environment()
        if process.run_attached(command, Path(directory), environment, shielded=True, to_stderr=quiet):
            raise UserError("the data is not ready: do what prepare.py says above, then run this again")


def interpreter(settings: Config, root: Path) -> Path:
    """The Python that runs the lab's files: a path, from the lab's root if it is relative, or a name on the PATH.

    Raises:
        NoInterpreterError: it is not there or cannot be run.
    """
    wanted = settings.interpreter
    found = shutil.which(wanted) if len(wanted.parts) == 1 else shutil.which(root / wanted.expanduser())
    if found is None:
        raise NoInterpreterError(wanted)
    return Path(found)


def notice(campaign: Campaign, workspace: Workspace, frozen: Collection[str] = ()) -> str | None:
    """What to tell a person whose committed edits (of `frozen` alone, if given) a begun campaign does not see."""
    head = workspace.head()
    old, new = workspace.files(campaign.started.base), workspace.files(head) if head else {}
    changed = [name for name in frozen or ("prepare.py", ENTRY) if old.get(name) != new.get(name)]
    if not changed:
        return None
    return (
        f"campaign {campaign.tag} goes on with its own {' and '.join(changed)}, not with what you have committed "
        "since: use `--tag NAME` to begin one that does"
    )


def tag_of(wanted: str | None, ledger: Ledger, workspace: Workspace) -> str:
    """The campaign's tag: the one that is wanted, else the default.

    Raises:
        UserError: the one that is wanted cannot name a branch.
    """
    if not wanted:
        return default_tag(ledger, workspace)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", wanted):
        raise UserError(f"the tag {wanted!r} cannot name a branch: use letters, digits, - and _")
    return wanted


def default_tag(ledger: Ledger, workspace: Workspace) -> str:
    """The latest campaign's, unless its baseline crashed; else today's date, made unique."""
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
