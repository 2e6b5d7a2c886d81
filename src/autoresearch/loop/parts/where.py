"""Where a lab's runs are carried out, from its settings: on this machine, or in a cluster."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from autoresearch.base import git, registry, variables
from autoresearch.base.errors import NoInterpreterError
from autoresearch.executors.interface import Equipment, Order, Site
from autoresearch.lab import config
from autoresearch.lab.settings import Config
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.campaign import Campaign
from autoresearch.ledger.records import NEWS, RunEvent


def site(
    settings: Config,
    workspace: Workspace,
    equipment: Equipment,
    begun: Campaign | None,
    tell: Callable[[str], None],
    *,
    alone: bool,
) -> Site:
    """Where the lab's runs are carried out: on this machine, or in the cluster that it names.

    Raises:
        UserError: that cannot be used, and why.
    """
    classes = begun.classes() if begun else ()
    order = Order(
        equipment=equipment,
        runs=workspace.trials,
        namespace=f"lab:{workspace.root}:",
        python=interpreter(settings, workspace.root),
        python_there=str(settings.python) if settings.python else None,
        lab=hashlib.sha256(f"{workspace.root} {git.first_commit(workspace.root)}".encode()).hexdigest()[:12],
        slots=settings.slots,
        address=ray_address(settings),
        gpus_per_run=settings.gpus_per_run,
        cpus_per_run=settings.cpus_per_run,
        device=classes[0].device if classes else None,
        sandbox=begun.started.sandbox if begun else None,
        alone=alone,
        tell=tell,
    )
    made: Site = registry.find("executor", registry.EXECUTORS, settings.executor)(order)
    return made


def tell(progress: Callable[[int, RunEvent], None]) -> Callable[[str], None]:
    """Passes news of machines on as progress of no trial in particular."""
    return lambda text: progress(-1, RunEvent(NEWS, 0.0, {"text": text}))


def check_cluster(settings: Config) -> None:
    """Raise a UserError if the lab's runs are for a cluster, and Ray is not installed, or nobody answers at its
    address."""
    if settings.executor == "ray":
        from autoresearch.executors.cluster import joining

        joining.library()
        if address := ray_address(settings):
            joining.check(address)


def ray_address(settings: Config) -> str | None:
    """Where the lab's cluster is; None if it is to be started on this machine."""
    return settings.ray_address or variables.of_user().get(config.RAY_ADDRESS) or None


def interpreter(settings: Config, root: Path) -> Path:
    """The Python that runs the lab's files: a path, relative to the lab's root if not absolute, or a name on the PATH.

    Raises:
        NoInterpreterError: it does not exist or cannot be run.
    """
    wanted = settings.interpreter
    found = shutil.which(wanted) if len(wanted.parts) == 1 else shutil.which(root / wanted.expanduser())
    if found is None:
        raise NoInterpreterError(wanted)
    return Path(found)
