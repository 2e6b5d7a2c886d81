"""Joins the Ray cluster that a lab names, or starts one on this machine."""

from __future__ import annotations

import os
import socket
import time
from importlib import metadata
from typing import Any

from autoresearch.base import variables
from autoresearch.base.errors import UserError

NAMESPACE = "autoresearch"
CONNECT_SECONDS, RELEASE_SECONDS = 5.0, 30.0
# Ray would report its use to its makers, and warn of a change to come that does not concern us.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}


def library() -> Any:
    """Ray itself.

    Raises:
        UserError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("the executor ray needs Ray: `pip install 'autoresearch[ray]'`") from error
    return ray


def join(ray: Any, address: str | None) -> None:
    """Connect to a cluster, or start one on this machine if there is no address. Does nothing if that is done.

    Raises:
        UserError: there is no cluster at the address, or this machine cannot join it.
    """
    if ray.is_initialized():
        return
    variables.set_defaults(QUIET)
    if address:
        check(address)
    options = {"include_dashboard": False} if not address or address == "local" else {}
    try:
        ray.init(
            address=address or "local",
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level="ERROR",
            **options,
        )
    except Exception as error:  # Ray raises a dozen kinds
        why = " ".join(str(error).split()) or type(error).__name__
        where = f"join the Ray cluster at {address}" if address else "start Ray on this machine"
        version = f"the version here is {metadata.version('ray')}"
        raise UserError(
            f"cannot {where} ({why[:300]}): {version}; all machines of a cluster need the same Ray and Python, and on "
            "this one Ray must have been started, with `ray start --address=HOST:PORT`"
        ) from error


def check(address: str) -> None:
    """Find out whether somebody listens at an address, since Ray takes minutes to say that nobody does.

    Raises:
        UserError: it is no address, or nobody listens there.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(
            f"{address!r} is not the address of a Ray cluster: set `ray_address` to one like `10.0.0.5:6379`, as "
            "`ray start --head` shows it, and run autoresearch on one of its machines"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error}): start one with `ray start --head`, or correct "
            "`ray_address` in program.md or RAY_ADDRESS"
        ) from error


class Claim:
    """Exists once in a cluster for each lab, as long as its driver lives."""

    def __init__(self, driver: str) -> None:
        self._driver = driver

    def driver(self) -> str:
        return self._driver


def claim(ray: Any, lab: str) -> None:
    """Make sure that no other driver works on the lab, from whatever machine.

    Raises:
        UserError: one does.
    """
    me = f"{socket.gethostname()}, process {os.getpid()}"
    options = {"name": f"lab {lab}", "namespace": NAMESPACE, "num_cpus": 0, "get_if_exists": True}
    until = time.monotonic() + RELEASE_SECONDS
    while True:
        try:
            CLAIMED[lab] = ray.remote(Claim).options(**options).remote(me)
            other = ray.get(CLAIMED[lab].driver.remote(), timeout=RELEASE_SECONDS)
        except ray.exceptions.RayError:  # that of a driver that has just ended
            other = "one that has just ended"
        if other == me:
            return
        if time.monotonic() > until:
            raise UserError(f"another autoresearch works on this lab in this cluster ({other}): stop that one first")
        time.sleep(0.5)


CLAIMED: dict[str, Any] = {}  # kept as long as this process lives
