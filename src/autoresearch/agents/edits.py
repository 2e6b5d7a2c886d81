"""What an agent wants to be tried: its edits of the working tree. Edits of anything else are refused or named."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from autoresearch.agents.outcome import NotTried
from autoresearch.base.errors import UserError
from autoresearch.lab.settings import Config
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.campaign import Campaign
from autoresearch.loop.parts import compose
from autoresearch.researchers.guard import rules


@dataclass(frozen=True)
class Wish:
    """An idea, and how to try it: in which campaign, which may be a new one, and on how many seeds at least."""

    idea: str
    why: str = ""
    tag: str | None = None
    seeds: int = 1


def read(workspace: Workspace, settings: Config, wish: Wish) -> dict[str, str]:
    """The editable files of the checkout, by path.

    Raises:
        NotTried: they are not fit to be tried, or a frozen file was edited.
        UserError: one cannot be read, or the idea is empty.
    """
    if not wish.idea.strip():
        raise UserError('the idea is empty: say in one line what you changed, as in `autoresearch try -m "deeper"`')
    files = {path: _text(workspace, path) for path in settings.editable}
    if frozen := _changed(workspace, settings.editable, tracked=True):
        only = f"a trial edits {', '.join(settings.editable)} and nothing else"
        then = f"put it back with `git restore {' '.join(frozen)}`, then try again"
        raise NotTried(f"{', '.join(frozen)} may not change: {only}", then)
    for path, text in files.items():
        if problem := rules.syntax_problem(path, text):
            raise NotTried(problem, "fix it, then try again")
    return files


def notice(workspace: Workspace, campaign: Campaign, editable: Collection[str]) -> str | None:
    """What an agent might be wrong about: files that are not part of the trial, and committed edits it does not see."""
    new = _changed(workspace, editable, tracked=False)
    beside = f"{', '.join(new)}: not part of the trial, which is {', '.join(editable)} only" if new else None
    return "; ".join(filter(None, [beside, compose.notice(campaign, workspace, ("prepare.py",))])) or None


def _changed(workspace: Workspace, editable: Collection[str], *, tracked: bool) -> list[str]:
    """Files that are neither editable nor program.md and differ from the last commit, or are not in it."""
    head = workspace.head()
    known = workspace.files(head) if head else {}
    changed = set(workspace.changed_paths()) - set(editable) - {workspace.program.name}
    return sorted(path for path in changed if (path in known) is tracked)


def _text(workspace: Workspace, path: str) -> str:
    try:
        return (workspace.root / path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}): fix it, then try again") from error
