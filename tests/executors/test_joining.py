"""An address is tried before Ray is, and what is missing is said in one sentence."""

from __future__ import annotations

import socket
import sys

import pytest

from autoresearch.base.errors import UserError
from autoresearch.executors.cluster import joining


def test_a_machine_without_ray_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs Ray: `pip install 'autoresearch\[ray\]'`"):
        joining.library()


@pytest.mark.parametrize("address", ["nowhere", "10.0.0.5", ":6379", "10.0.0.5:", "ray://10.0.0.5:10001/x"])
def test_what_is_no_address_is_named(address: str) -> None:
    with pytest.raises(UserError, match="is not the address of a Ray cluster"):
        joining.check(address)


def test_somebody_has_to_listen_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        joining.check(f"127.0.0.1:{port}")
    with pytest.raises(UserError, match=f"no Ray cluster answers at 127.0.0.1:{port} "):
        joining.check(f"127.0.0.1:{port}")
    with pytest.raises(UserError, match=r"no Ray cluster answers at 127\.0\.0\.1:99999 "):
        joining.check("127.0.0.1:99999")
    joining.check("auto")
    joining.check("local")
