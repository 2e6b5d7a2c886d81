"""This machine as a place for runs: its slots, and an executor put together from what a lab wants, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from autoresearch.base import variables
from autoresearch.base.errors import UserError
from autoresearch.executors import hardware
from autoresearch.executors.interface import Equipment, Order, Site
from autoresearch.executors.local import LocalExecutor
from autoresearch.executors.sandbox import sandboxes
from autoresearch.executors.sandbox.rules import Limits, Sandbox
from autoresearch.grading import splits
from autoresearch.grading.grader import SelfReported, TrustedGrader
from autoresearch.grading.interface import Grader
from autoresearch.ledger.records import Place

AUTO = "auto"


def here(order: Order) -> Site:
    """This machine as it was ordered.

    Raises:
        UserError: it does not have that.
    """
    parts = parts_of(order)
    device = device_of(parts)
    made = executor(order.equipment, order.runs, order.python, order.namespace, device.kind)
    return Site(made, lambda: parts, str(device))


def parts_of(order: Order) -> tuple[Place, ...]:
    """The slots of this machine. A campaign that began in shares of a machine continues in such shares, unless another
    number of slots is asked for.

    Raises:
        UserError: the machine has fewer.
    """
    gpus, cores = hardware.gpus(), len(hardware.usable_cores())
    first = places(order.slots, gpus)
    if gpus or order.slots != AUTO or order.device is None:
        return first
    shared = (places(count, gpus) for count in range(1, cores + 1))
    return next((parts for parts in shared if str(device_of(parts)) == order.device), first)


def device_of(parts: Sequence[Place]) -> hardware.Device:
    """What a run in one of this machine's slots has."""
    return hardware.device(len(parts[0].processors) or None)


def executor(
    equipment: Equipment, runs: Path, python: Path, namespace: str, device: str, compiled: Path | None = None
) -> LocalExecutor:
    """The executor of such a lab's runs on this machine, with the sandbox that is wanted or works.

    `runs` is where a run leaves its files, `namespace` marks its processes, `device` is the kind of device, and
    `compiled` is where compiled kernels are kept, if not beside the runs.

    Raises:
        UserError: the sandbox does not work here.
    """
    return LocalExecutor(
        runs,
        python,
        variables.offline() | {variables.CACHE: str(variables.cache_directory()), variables.DEVICE: device},
        namespace,
        sandbox(equipment),
        grader(equipment),
        Limits(memory_gb=equipment.memory_gb),
        _readable(equipment),
        compiled,
    )


def sandbox(equipment: Equipment) -> Sandbox:
    """What confines such a lab's runs. One that grades itself may read its data anywhere, and so has none by itself.

    Raises:
        UserError: the wanted one does not work here.
    """
    wanted = equipment.sandbox
    return sandboxes.choose(wanted if equipment.graded or wanted != "auto" else "none")


def grader(equipment: Equipment) -> Grader:
    """What grades such a lab's runs on this machine."""
    return TrustedGrader(lambda: splits.read(equipment.prepare_py)) if equipment.graded else SelfReported()


def _readable(equipment: Equipment) -> Callable[[], Sequence[Path]]:
    if not equipment.graded:
        return lambda: (variables.cache_directory(),)
    return lambda: (*splits.readable(equipment.prepare_py), variables.kernels_directory())


def places(wanted: int | str, gpus: int) -> tuple[Place, ...]:
    """The parts of this machine for so many slots: a GPU each, or else equal shares of the processors.

    A single slot has the whole machine. "auto" is one slot for each GPU, or one.

    Raises:
        UserError: there are not so many GPUs or processors.
    """
    count = max(gpus, 1) if isinstance(wanted, str) else wanted
    if count == 1:
        return (Place(),)
    if gpus and count > gpus:
        raise UserError(
            f"{count} slots need {count} GPUs, but there are {gpus}: set `slots` to {gpus} or less, or auto"
        )
    if gpus:
        return tuple(Place(gpu=number) for number in range(count))
    every = sorted(hardware.usable_cores())
    share = len(every) // count
    if not share:
        raise UserError(f"{count} slots need {count} processors, but there are {len(every)}: set `slots` to less")
    shares = [every[number * share : (number + 1) * share] for number in range(count)]
    return tuple(Place(processors=tuple(each)) for each in shares)
