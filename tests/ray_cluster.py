"""A real Ray cluster for tests: several node processes on this machine, and a driver in this process."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from autoresearch.executors.cluster import joining
from autoresearch.executors.interface import Equipment

os.environ.update(joining.QUIET)


@contextlib.contextmanager
def cluster(cache: Path, *nodes: str, memory: int | None = None) -> Iterator[Cluster]:
    """A head without processors, and nodes of one processor each. All have the same cache, as on a shared disk."""
    options = {"object_store_memory": memory} if memory else {}
    head: dict[str, Any] = {"num_cpus": 0, "include_dashboard": False, "node_name": "head", **options}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        for name in nodes:
            add(made, cache, name)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def add(to: Cluster, cache: Path, name: str, gpus: int = 0, **variables: str) -> Any:
    """One more node, of one processor, or one for each GPU that it says it has."""
    surroundings = {"AUTORESEARCH_CACHE": str(cache), **variables}
    return to.add_node(num_cpus=max(1, gpus), num_gpus=gpus, node_name=name, env_vars=surroundings)


def until(is_so: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"it did not come to that: {what}"
        time.sleep(0.05)


def plain(text: str) -> Equipment:
    """What a lab wants whose runs report their own score."""
    return Equipment(text, graded=False, sandbox="none")


def name_of(node: str) -> str:
    """A node's name."""
    nodes: list[dict[str, Any]] = ray.nodes()
    return next(str(each["NodeName"]) for each in nodes if each["NodeID"] == node)
