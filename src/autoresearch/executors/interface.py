"""What an executor is: the part that carries out a run, on this machine or another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from autoresearch.grading.interface import Grader
from autoresearch.ledger.records import Place, RunEvent, RunRequest, RunResult, Score, Worth

Progress = Callable[[RunEvent], None]
Weigh = Callable[[Score], Worth]


class Executor(Protocol):
    """Carries out one run and grades it where it runs, and returns when no process of it is left.

    `sandbox` names what confines a run; it is "none" if nothing does. `grader` is the one that stands beside each run.
    """

    name: str

    @property
    def sandbox(self) -> str: ...

    @property
    def grader(self) -> Grader: ...

    def end_leftovers(self) -> int:
        """End what an earlier, killed program left running. Returns the number of processes."""
        ...

    def close(self) -> None:
        """Give back what it keeps of other machines until it is used again."""
        ...

    def run(self, request: RunRequest, progress: Progress, weigh: Weigh) -> RunResult:
        """Run `train.py`, and grade it. `progress` receives each event, each line of the curve and each `load`, and may
        raise `EndRun`. `weigh` is called, in a thread, with the score as soon as there is one.

        Raises:
            UserError: it cannot run, or be graded, and why.
        """
        ...

    def busy_share(self, seconds: float) -> float:
        """The share of the processors that other programs use during the next seconds, from 0 to 1."""
        ...


@dataclass(frozen=True)
class Equipment:
    """What a lab wants of a machine that carries out its runs: the sandbox, by its name or "auto", and the memory that
    a run may use, in GiB. If its prepare.py does not talk to a grader, its runs are not `graded` from outside."""

    prepare_py: str
    graded: bool
    sandbox: str = "auto"
    memory_gb: float | None = None


@dataclass(frozen=True)
class Order:
    """What a campaign asks for: `slots` side by side, a number or "auto", on machines with this equipment. If it is
    `alone`, its runs come one after the other all the same.

    `runs` is where a run leaves its files, `namespace` marks its processes, and `python` runs the lab's files: here,
    and `python_there` on other machines (None: the one that runs autoresearch there). A campaign that has begun has its
    `device` and its `sandbox`, which other machines must have too. The rest is for a cluster: its address (None: it is
    started on this machine), the GPUs and processors of a run (None: a GPU if the cluster has any, and its share of the
    machine), a name of the `lab` that no other has, and `tell`, which is called with news of machines.
    """

    equipment: Equipment
    runs: Path
    namespace: str
    python: Path
    python_there: str | None
    lab: str
    slots: int | str
    address: str | None
    gpus_per_run: int | None
    cpus_per_run: int | None
    device: str | None
    sandbox: str | None
    alone: bool
    tell: Callable[[str], None]


@dataclass(frozen=True)
class Site:
    """Where runs are carried out: how, in which places now, and on which device."""

    executor: Executor
    places: Callable[[], tuple[Place, ...]]
    device: str
