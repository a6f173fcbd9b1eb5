"""sd_notify on a real socket: what systemd hears."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.system.conftest import MakeBridge
from tests.system.support import PATIENCE, Bridge, free_port, status, wait_for_end

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


@pytest.fixture
def held(make_bridge: MakeBridge) -> Iterator[Bridge]:
    """A bridge whose socket is held open by another one, as systemd does."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        bridge = make_bridge()
        bridge.webhook = listener.getsockname()[1]
        bridge.environment |= {
            "WHATSAPP2MQTT_WEBHOOK__LISTEN": f"127.0.0.1:{bridge.webhook}",
            "LISTENER": str(listener.fileno()),
        }
        handed_over = 'exec 3<&"$LISTENER"; LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@"'
        bridge.command = ["bash", "-c", handed_over, *bridge.command]
        bridge.pass_fds = (listener.fileno(),)
        yield bridge


def test_callbacks_wait_in_a_socket_of_systemds_while_the_bridge_is_away(held: Bridge) -> None:
    """Each restart would refuse callbacks, and a sender that does not come again loses them."""
    with ThreadPoolExecutor(5) as pool:
        early = [pool.submit(held.post, status(f"early{n}")) for n in range(5)]
        held.start()
        assert [one.result().status for one in early] == [200] * 5
        assert held.program.end() == 0
        late = [pool.submit(held.post, status(f"late{n}")) for n in range(5)]
        held.start()
        assert [one.result().status for one in late] == [200] * 5


def test_receivers_share_a_socket_of_systemds_and_are_replaced_on_it(held: Bridge) -> None:
    """A receiver that died would take the callbacks with it that wait."""
    held.environment["WHATSAPP2MQTT_WEBHOOK__WORKERS"] = "2"
    held.start()
    before = held.receiver
    os.kill(before, signal.SIGKILL)
    wait_for_end([before])
    assert [held.post(status(f"m{n}")).status for n in range(20)] == [200] * 20


def test_another_socket_than_the_settings_say_is_refused(held: Bridge) -> None:
    """The check that nobody unknown may post was made for the address in the settings."""
    held.environment["WHATSAPP2MQTT_WEBHOOK__LISTEN"] = "127.0.0.1:1"
    held.start(wait=False)
    assert held.program.wait() == 2
    assert f"webhook.listen: is 127.0.0.1:1, but systemd listens on 127.0.0.1:{held.webhook}" in held.program.said
