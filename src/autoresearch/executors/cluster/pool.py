"""The slots of a Ray cluster: which machines can be used, which are not and why, and what became of them.

A slot is an actor: a process that keeps the GPUs and processors of a run. Machines come and go while a campaign runs.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autoresearch.base.errors import UserError
from autoresearch.executors import machine
from autoresearch.executors.cluster import joining, wire
from autoresearch.executors.cluster.wire import Found, Plan
from autoresearch.executors.cluster.worker import Worker, versions
from autoresearch.executors.interface import Order
from autoresearch.ledger.records import Place

LOOK_SECONDS = 2.0  # between two looks at the cluster
SETTLE_SECONDS = 20.0  # for which the others are waited for once a machine is ready
WAITING_SECONDS = 30.0  # until it is said which machine is waited for
HEADLESS_SECONDS = 20.0  # for which the head may be silent
MOST_LOSSES = 3  # runs in a row that are lost on a machine before it is avoided
AT_ONCE = 8  # calls of a worker that are answered at the same time
WORDS = 200  # characters of an error


class CannotError(Exception):
    """A worker cannot carry out a run, and why. It is nothing that the run did."""


LOST = (RayError, TimeoutError, CannotError)  # what is raised if a worker or its machine is gone, or of no use


@dataclass(eq=False)
class Slot:
    """A worker on the machine `name`. `found` is None until it has answered."""

    name: str
    place: Place
    worker: Any
    asked: Any
    since: float
    found: Found | None = None


@dataclass(eq=False)
class Machine:
    """A machine of the cluster, with the slots it has room for, and those that there are. `problem` is why it is not
    used."""

    node: str
    name: str
    room: int
    cores: int | None
    options: dict[str, Any]
    slots: list[Slot] = field(default_factory=list)
    losses: int = 0
    problem: str | None = None
    is_checked: bool = False  # whether its data is the lab's
    is_waited_for: bool = False  # said so


class Pool:
    """The slots that there are now. Its methods may be called from several threads."""

    def __init__(self, order: Order) -> None:
        self.grader = machine.grader(order.equipment)
        self.device, self.sandbox = order.device or "", order.sandbox or ""
        self._order = order
        self._most = 1 if order.alone else order.slots if isinstance(order.slots, int) else None
        self._machines: dict[str, Machine] = {}
        self._lock = threading.RLock()
        self._looked = 0.0
        self._was_usable = self._is_empty = False
        self._known: tuple[Place, ...] = ()
        self._answered, self._nodes_known = time.monotonic(), list[dict[str, Any]]()

    # ------------------------------------------------------------ what there is

    def settle(self) -> None:
        """Wait until the machines have said what they can do, and decide which device the campaign's is.

        Raises:
            UserError: none can be used, or there are fewer slots than were ordered.
        """
        until = None
        while True:
            self._look()
            waiting = [slot for each in self._machines.values() for slot in each.slots if slot.found is None]
            ready = [each for each in self._machines.values() if self._first(each)]
            if ready and until is None:
                until = time.monotonic() + SETTLE_SECONDS
            if not waiting or (until is not None and time.monotonic() > until):
                break
            time.sleep(LOOK_SECONDS / 10)
        if not ready:
            raise UserError(self._none_can())
        if not self.device:
            classes = Counter[tuple[str, str]]()
            for each in ready:
                found = self._first(each)
                assert found is not None
                classes[found.device, found.sandbox] += each.room
            self.device, self.sandbox = classes.most_common(1)[0][0]
        self._sort_out()
        usable = [each for each in self._machines.values() if each.problem is None]
        if not usable:
            raise UserError(self._none_can())
        room, wanted = sum(each.room for each in usable), self._most
        if wanted is not None and wanted > room:
            raise UserError(f"{wanted} slots are more than the {room} that the cluster has room for: {self._told()}")
        self._looked = 0.0
        room = min(room, wanted) if wanted is not None else room
        where = f"{len(usable)} machines" if len(usable) > 1 else usable[0].name
        self._order.tell(f"cluster: {room} slot{'s' * (room > 1)} of [{self.device}] on {where}")

    def places(self) -> tuple[Place, ...]:
        """The places where a run can start now, in the same order as long as they are there.

        Raises:
            UserError: there is none, and there was none before.
        """
        with self._lock:
            if time.monotonic() - self._looked >= LOOK_SECONDS:
                self._look()
                self._sort_out()
                self._check_data()
                self._known = tuple(slot.place for slot in self._usable())[: self._most]
                self._say_if_empty()
        return self._known

    def slot(self, place: Place) -> Slot | None:
        """The slot of a place; None if it is gone."""
        with self._lock:
            return next((slot for slot in self._usable() if slot.place == place), None)

    def any(self, taken: Collection[Slot]) -> Slot | None:
        """A slot that is not taken."""
        self.places()
        with self._lock:
            return next((slot for slot in self._usable() if slot not in taken), None)

    def close(self) -> None:
        """End all workers. They are made again when somebody asks for places."""
        with self._lock:
            for each in self._machines.values():
                end(each.slots)
            self._machines, self._known, self._looked = {}, (), 0.0

    def _usable(self) -> list[Slot]:
        machines = [each for each in self._machines.values() if each.is_checked and each.problem is None]
        return [slot for each in machines for slot in each.slots if slot.found]

    # ------------------------------------------------------------ what becomes of it

    def landed(self, slot: Slot) -> None:
        """A run has ended on a slot, well or not."""
        with self._lock:
            if each := self._machines.get(slot.place.node):
                each.losses = 0

    def lost(self, slot: Slot, error: Exception) -> str:
        """Give up the slot of a run that was lost, and say how it was. Another takes its place if the machine lives."""
        with self._lock:
            end([slot])
            each = self._machines.get(slot.place.node)
            why = f"the run's worker on {slot.name} was lost ({in_short(error)})"
            if each:
                each.slots = [other for other in each.slots if other is not slot]
                each.losses += 1
                if each.losses >= MOST_LOSSES:
                    self._avoid(each, f"{each.losses} runs in a row were lost there ({in_short(error)})")
            self._looked = 0.0
        self._order.tell(f"{why}; the run is made again")
        return why

    # ------------------------------------------------------------ looking

    def _look(self) -> None:
        """See which machines there are, ask new ones, and hear what those that were asked have answered."""
        self._looked = time.monotonic()
        living = {each["NodeID"]: each for each in self._nodes() if each["Alive"]}
        for node in set(self._machines) - set(living):
            gone = self._machines.pop(node)
            if gone.problem is None:
                self._order.tell(f"{gone.name} is gone")
        has_gpus = any(facts["Resources"].get("GPU") for facts in living.values())
        for node, facts in living.items():
            if node not in self._machines:
                self._machines[node] = self._met(node, facts, has_gpus=has_gpus)
        for each in self._machines.values():
            self._hear(each)
        for each in self._machines.values():
            self._fill(each)

    def _nodes(self) -> list[dict[str, Any]]:
        """What Ray says of its nodes, or said last: it ends this program if its head does not answer for a minute.

        Raises:
            UserError: the head has not answered for some time.
        """
        now = time.monotonic()
        try:
            joining.check(ray.get_runtime_context().gcs_address)
        except UserError as error:
            if now - self._answered > HEADLESS_SECONDS:
                raise UserError(f"the head of the Ray cluster is gone ({error}), then run this again") from error
            return self._nodes_known
        self._answered = now
        self._nodes_known = ray.nodes()  # type: ignore[no-untyped-call]
        return self._nodes_known

    def _met(self, node: str, facts: dict[str, Any], *, has_gpus: bool) -> Machine:
        """A machine of a cluster that `has_gpus` somewhere, and what it has room for."""
        resources, order = facts["Resources"], self._order
        there, has_cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        gpus = order.gpus_per_run if order.gpus_per_run is not None else int(has_gpus)
        by_gpu = there // gpus if gpus else None
        cores = order.cpus_per_run or max(1, has_cores // (by_gpu or 1))
        room = min(has_cores // cores, by_gpu if by_gpu is not None else has_cores)
        name = facts.get("NodeName") or facts["NodeManagerAddress"]
        if any(each.name == name for each in self._machines.values()):
            name = f"{name} ({node[:6]})"
        options = {"num_gpus": gpus, "num_cpus": cores, "max_concurrency": AT_ONCE, "max_restarts": 0}
        met = Machine(node, name, room, None if gpus else cores, options)
        if not room:
            has = f"it has {there} GPUs and {has_cores} processors, but a run needs {gpus} and {cores}"
            met.problem = has  # not worth a word: a head often has none
        return met

    def _fill(self, each: Machine) -> None:
        """Make the slots that a machine has room for, and that are wanted. The first one prepares the data for all."""
        if each.problem is not None:
            return
        most = each.room if self._first(each) else 1
        for share in sorted(set(range(most)) - {slot.place.share for slot in each.slots}):
            made = sum(len(other.slots) for other in self._machines.values())
            if (self._first(each) or not each.slots) and (self._most is None or made < self._most):
                each.slots.append(self._asked(each, share))

    def _asked(self, each: Machine, share: int) -> Slot:
        order = self._order
        plan = Plan(order.lab, order.equipment, versions(), order.python_there, each.cores, share, each.room)
        on = NodeAffinitySchedulingStrategy(each.node, soft=False)
        actor: Any = ray.remote(Worker)
        worker = actor.options(scheduling_strategy=on, **each.options).remote()
        asked = worker.survey.remote(wire.packed(plan))
        return Slot(each.name, Place(node=each.node, share=share), worker, asked, time.monotonic())

    def _hear(self, each: Machine) -> None:
        for slot in [slot for slot in each.slots if slot.found is None]:
            if not ray.wait([slot.asked], timeout=0)[0]:
                if time.monotonic() - slot.since > WAITING_SECONDS and not each.is_waited_for:
                    each.is_waited_for = True
                    self._order.tell(f"{each.name} is still preparing the data, or busy: it is used once it answers")
                continue
            try:
                slot.found = wire.found(ray.get(slot.asked))
            except RayError as error:
                slot.found = Found(each.name, problem=in_short(error))
            if slot.found.problem is not None:
                self._avoid(each, slot.found.problem)

    @staticmethod
    def _first(each: Machine) -> Found | None:
        """What a machine has answered, if it can be used as far as that is known."""
        if each.problem is not None:
            return None
        return next((slot.found for slot in each.slots if slot.found), None)

    # ------------------------------------------------------------ choosing

    def _sort_out(self) -> None:
        """Avoid the machines of another class: their scores could not be compared."""
        for each in self._machines.values():
            if self.device and (found := self._first(each)):
                if found.device != self.device:
                    self._avoid(each, f"it is [{found.device}], but the campaign's runs are on [{self.device}]")
                elif found.sandbox != self.sandbox:
                    self._avoid(each, f"its sandbox is {found.sandbox}, but the campaign's is {self.sandbox}")

    def _check_data(self) -> None:
        """Avoid the machines that have another text. This machine's own is prepared by now."""
        for each in self._machines.values():
            if (found := self._first(each)) and not each.is_checked:
                each.is_checked = True
                if found.data != {name: str(value) for name, value in self.grader.fingerprints().items()}:
                    self._avoid(each, "its prepare.py gives another text than here: remove its cache of the data")

    def _avoid(self, each: Machine, problem: str) -> None:
        if each.problem is None:
            each.problem = problem
            self._order.tell(f"{each.name} is not used: {problem}")
            end(each.slots)
            each.slots = []

    def _say_if_empty(self) -> None:
        waiting = any(slot.found is None for each in self._machines.values() for slot in each.slots)
        is_empty = not self._known and not waiting
        if is_empty and not self._was_usable:
            raise UserError(self._none_can())
        if is_empty and not self._is_empty:
            self._order.tell(f"no machine is left that can be used: waiting for one ({self._told()})")
        self._is_empty, self._was_usable = is_empty, self._was_usable or bool(self._known)

    def _none_can(self) -> str:
        return f"no machine of the cluster can carry out this lab's runs: {self._told()}"

    def _told(self) -> str:
        """What each machine cannot be used for, in words."""
        return "; ".join(f"{each.name}: {each.problem}" for each in self._machines.values() if each.problem) or "none"


def end(slots: Iterable[Slot]) -> None:
    """End workers, as far as Ray can still reach them."""
    for slot in slots:
        with contextlib.suppress(Exception):  # of whatever kind, they end with this program at the latest
            ray.kill(slot.worker)


def in_short(error: Exception) -> str:
    """The line of an error of Ray's that says what it was."""
    text = str(error)
    if "No module named 'autoresearch'" in text:
        return "autoresearch is not installed there"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:WORDS]
