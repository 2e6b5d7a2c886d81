"""Composes a campaign's stages from a lab's configuration; the only place where concrete parts are chosen."""

from __future__ import annotations

import datetime
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from autoresearch import config, git, presets, process, registry
from autoresearch.config import Config
from autoresearch.errors import NoInterpreterError, UserError
from autoresearch.grader import InProcessGrader
from autoresearch.ledger import Ledger
from autoresearch.loop import Stages
from autoresearch.records import Campaign, Event, RunEvent
from autoresearch.trial import ENTRY
from autoresearch.workspace import Workspace


def compose(
    workspace: Workspace,
    ledger: Ledger,
    settings: Config,
    tag: str,
    announce: Callable[[Event], None],
    progress: Callable[[int, RunEvent], None],
) -> Stages:
    """Everything that the loop needs for a campaign, new or begun.

    Raises:
        UserError: a setting names nothing that there is, or the lab cannot be searched as it stands.
    """
    begun = ledger.campaign(tag)
    files = workspace.files(begun.started.base if begun else workspace.base(tag))
    budget = presets.budget(files["prepare.py"].decode())
    python = interpreter(settings, workspace.root)
    name, _, argument = settings.researcher.partition(":")
    make_researcher = registry.find("researcher", registry.RESEARCHERS, name)
    make_executor = registry.find("executor", registry.EXECUTORS, settings.executor)
    return Stages(
        workspace=workspace,
        ledger=ledger,
        researcher=make_researcher(argument) if argument else make_researcher(),
        executor=make_executor(workspace.trials, python, config.run_environment(), f"lab:{workspace.root}:"),
        grader=InProcessGrader(),
        judge=registry.find("judge", registry.JUDGES, settings.judge)(),
        editable=settings.editable,
        budget_seconds=budget,
        deadline_seconds=budget + settings.allowance_seconds,
        min_free_gb=settings.min_free_gb,
        program=lambda: config.load(workspace.program)[1],
        prepare=lambda files: prepare(files, python),
        announce=announce,
        progress=progress,
    )


def prepare(files: Mapping[str, bytes], python: Path) -> None:
    """Run a commit's prepare.py on the person's terminal, in a directory of its own.

    Raises:
        UserError: it failed; what it printed says why.
    """
    with tempfile.TemporaryDirectory(prefix="autoresearch-") as directory:
        (Path(directory) / "prepare.py").write_bytes(files["prepare.py"])
        command = [str(python), "prepare.py"]
        if process.run_attached(command, Path(directory), config.prepare_environment(), shielded=True):
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


def notice(campaign: Campaign, workspace: Workspace) -> str | None:
    """What to tell a person whose committed edits a begun campaign does not see; None where there are none."""
    head = git.resolve(workspace.root, "HEAD")
    old, new = workspace.files(campaign.started.base), workspace.files(head) if head else {}
    changed = [name for name in ("prepare.py", ENTRY) if old.get(name) != new.get(name)]
    if not changed:
        return None
    return (
        f"campaign {campaign.tag} goes on with its own {' and '.join(changed)}, not with what you have committed "
        "since: use `--tag NAME` to begin one that does"
    )


def default_tag(ledger: Ledger, workspace: Workspace) -> str:
    """The latest campaign's, unless its baseline crashed; else today's date, made unique."""
    latest = ledger.campaign()
    if latest and (latest.incumbent or not latest.finished):
        return latest.tag
    today = datetime.date.today().isoformat()
    taken = {campaign.tag for campaign in ledger.campaigns()}
    names = (today, *(f"{today}-{number}" for number in range(2, 1000)))
    return next(name for name in names if name not in taken and not workspace.has_branch(name))
