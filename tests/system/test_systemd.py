"""sd_notify on a real socket: what systemd hears."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.conftest import MakeBridge
from tests.system.support import PATIENCE, free_port

Ear = tuple[socket.socket, str]


@pytest.fixture(params=["path", "abstract"])
def ear(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ear]:
    """systemd's end of the socket, and the address for NOTIFY_SOCKET."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@whatsapp2mqtt-test-{free_port()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(address.replace("@", "\0"))
        server.settimeout(PATIENCE)
        yield server, address


def hear(server: socket.socket, wanted: Callable[[dict[str, str]], object]) -> dict[str, str]:
    """The next datagram of which this holds."""
    while True:
        said = dict(line.split("=", 1) for line in server.recv(4096).decode().splitlines())
        if wanted(said):
            return said


def test_systemd_hears_ready_watchdog_status_and_stopping(make_bridge: MakeBridge, ear: Ear) -> None:
    """systemd would wait for a readiness that never comes, or kill a bridge that is well."""
    server, address = ear
    bridge = make_bridge()
    bridge.environment |= {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "300000"}
    bridge.start()
    hear(server, lambda said: said.get("READY") == "1")
    assert hear(server, lambda said: said.get("STATUS") == "connected")["WATCHDOG"] == "1"
    bridge.program.end()
    hear(server, lambda said: said.get("STOPPING") == "1")


def test_systemd_hears_why_nothing_is_published(make_bridge: MakeBridge, ear: Ear) -> None:
    """`systemctl status` is where one looks first when the gate does not open."""
    server, address = ear
    nowhere = f"mqtt://127.0.0.1:{free_port()}"
    bridge = make_bridge(mqtt__url=nowhere)
    bridge.environment |= {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "300000"}
    bridge.start(wait=False)
    said = hear(server, lambda said: said.get("STATUS", "").startswith("no connection"))
    assert said["STATUS"].startswith(f"no connection to {nowhere}")
    assert said["WATCHDOG"] == "1"  # a broker that is away is no reason to be killed
