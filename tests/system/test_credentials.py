"""The broker's credentials: at a mosquitto by TLS that knows its clients, and in nothing that anybody can see."""

from __future__ import annotations

import base64
import http.client
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.conftest import MakeBridge
from tests.system.proxies import certify
from tests.system.support import PATIENCE, Bridge, Program, Subscriber, children, free_port, program, status

PASSWORD = "a-password/that-nobody:may-see"
IN_A_URL = "a-password%2Fthat-nobody%3Amay-see"
#: As it would be seen: plain, as part of a url, and as HTTP or a log of bytes would have it.
SPELLINGS = (PASSWORD, IN_A_URL, base64.b64encode(f"bridge:{PASSWORD}".encode()).decode(), "that-nobody")
#: What the page and the health checks have, and what a guess would ask for.
PAGES = (
    *(
        "/",
        "/setup",
        "/live",
        "/messages",
        "/buttons",
        "/dead-letters",
        "/healthz",
        "/readyz",
        "/api/status",
        "/metrics",
    ),
    *("/api/settings", "/api/config", "/nowhere"),
)


@dataclass
class Broker:
    """A mosquitto with TLS and passwords, and beside it a port of this machine without TLS."""

    port: int
    plain: int
    ca: Path

    @property
    def address(self) -> str:
        return f"hook.example.org:{self.port}"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    folder = tmp_path / "broker"
    folder.mkdir()
    certify(folder)
    found = Broker(free_port(), free_port(), folder / "hook.crt")
    (folder / "passwords").touch()
    command = [program("mosquitto_passwd"), "-b", folder / "passwords", "bridge", PASSWORD]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "mosquitto.conf").write_text(
        f"listener {found.port} 127.0.0.1\ncertfile {folder}/hook.crt\nkeyfile {folder}/hook.key\n"
        f"listener {found.plain} 127.0.0.1\nallow_anonymous false\npassword_file {folder}/passwords\n"
        + ("user root\n" if os.geteuid() == 0 else "")
    )
    with Program([program("mosquitto"), "-c", folder / "mosquitto.conf"], folder, dict(os.environ)) as running:
        running.wait_said(" running")
        yield found


def family(pid: int) -> Iterator[int]:
    """It and all that it started."""
    yield pid
    for child in children(pid):
        yield from family(child)


def pages(port: int) -> Iterator[str]:
    """All that the page's listener says, heads and all."""
    for path in PAGES:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            yield f"{answer.headers}{answer.read().decode()}"
        finally:
            connection.close()


def seen(bridge: Bridge, page: int) -> str:
    """All that can be seen of a running bridge and of the commands beside it."""
    processes = [
        Path(f"/proc/{pid}/cmdline").read_bytes().decode() + Path(f"/proc/{pid}/comm").read_text()
        for pid in family(bridge.pid)
    ]
    commands = [bridge.run(*command) for command in (("check",), ("status",), ("status", "--json"), ("doctor",))]
    said = [done.stdout + done.stderr for done in commands]
    assert any("hook.example.org" in one or "127.0.0.1" in one for one in said), "they say something of the broker"
    return "\n".join([bridge.program.said, *processes, *said, *pages(page)])


Written = Callable[[Broker, Path], dict[str, str]]


def in_the_url(broker: Broker, folder: Path) -> dict[str, str]:
    return {"mqtt__url": f"mqtts://bridge:{IN_A_URL}@127.0.0.1:{broker.port}"}


def in_a_setting(broker: Broker, folder: Path) -> dict[str, str]:
    return {"mqtt__url": f"mqtts://127.0.0.1:{broker.port}", "mqtt__username": "bridge", "mqtt__password": PASSWORD}


def in_a_file(broker: Broker, folder: Path) -> dict[str, str]:
    (folder / "password").write_text(f"{PASSWORD}\n")
    return {
        "mqtt__url": f"mqtts://127.0.0.1:{broker.port}",
        "mqtt__username": "bridge",
        "mqtt__password_file": str(folder / "password"),
    }


@pytest.mark.parametrize(
    ("written", "right"),
    [(in_the_url, True), (in_the_url, False), (in_a_setting, True), (in_a_file, True)],
    ids=["in the url", "wrong", "in a setting", "in a file"],
)
def test_the_password_is_nowhere_to_be_seen(
    make_bridge: MakeBridge, broker: Broker, tmp_path: Path, written: Written, right: bool
) -> None:
    """Logs are copied into questions, and process lists are everybody's; with it anybody opens the gate."""
    page = free_port()
    settings = written(broker, tmp_path)
    if not right:
        settings = {name: text.replace(IN_A_URL, f"{IN_A_URL}x") for name, text in settings.items()}
    bridge = make_bridge(
        log__level="debug",
        admin__listen=f"127.0.0.1:{page}",
        mqtt__tls__dangerously_accept_any_certificate="true",
        **settings,
    ).start(wait=right)
    if right:
        with Subscriber(broker.plain, "#", "bridge", PASSWORD) as subscriber:
            subscriber.wait("whatsapp/bridge/info")
            assert bridge.post(status("m1")).status == 200
            subscriber.wait("whatsapp/m1/status")
            published = "\n".join(f"{one.topic} {one.payload}" for one in subscriber.heard)
    else:
        bridge.program.wait_said("look at mqtt.username and mqtt.password")
        published = ""
    all_of_it = seen(bridge, page) + published
    assert bridge.program.end() == 0
    all_of_it += bridge.program.said
    for spelling in SPELLINGS:
        assert spelling not in all_of_it, spelling


def test_the_password_of_the_embedded_broker_is_nowhere_to_be_seen(make_bridge: MakeBridge) -> None:
    """The bridge starts that one itself: a program's arguments are everybody's to read."""
    page = free_port()
    bridge = make_bridge(
        log__level="debug",
        admin__listen=f"127.0.0.1:{page}",
        mqtt__embedded__username="bridge",
        mqtt__embedded__password=PASSWORD,
    ).start()
    with Subscriber(bridge.broker, "#", "bridge", PASSWORD) as subscriber:
        info = subscriber.wait("whatsapp/bridge/info").payload
    all_of_it = seen(bridge, page) + info
    for spelling in SPELLINGS:
        assert spelling not in all_of_it, spelling


def test_a_certificate_that_is_not_checked_is_said_at_each_start(make_bridge: MakeBridge, broker: Broker) -> None:
    """The quick test of an evening would stay for years."""
    bridge = make_bridge(
        mqtt__tls__dangerously_accept_any_certificate="true", **in_a_setting(broker, broker.ca.parent)
    ).start()
    said = bridge.program.wait_log("the broker's certificate is not checked: anyone on the way can read and change all")
    assert said["level"] == "warning"
    assert said["setting"] == "mqtt.tls.dangerously_accept_any_certificate"


def test_without_the_switch_the_bridge_goes_on_refusing_and_loses_nothing(
    make_bridge: MakeBridge, broker: Broker
) -> None:
    """A certificate that is wrong for an hour must cost no callback, and let nobody in between."""
    bridge = make_bridge(**in_a_setting(broker, broker.ca.parent)).start(wait=False)
    bridge.program.wait_said("the broker's certificate is not trusted: ")
    assert bridge.post(status("m1")).status == 200
    assert not [one for one in bridge.program.log if one["event"] == "connected"]


@pytest.mark.parametrize(
    "name",
    ["mqtt__tls__insecure", "mqtt__tls__verify", "mqtt__insecure", "mqtt__tls__accept_any_certificate", "mqtt__verify"],
)
def test_no_shorter_name_switches_it_off(make_bridge: MakeBridge, name: str) -> None:
    """What is typed in passing is left in for good."""
    for value in ("true", "false"):
        done = make_bridge(**{name: value}).run("check")
        assert done.returncode != 0
        assert name.upper() in done.stdout + done.stderr


@pytest.mark.parametrize("query", ["?insecure=true", "?verify=false", "?tls_insecure=1"])
def test_no_part_of_an_address_switches_it_off(make_bridge: MakeBridge, broker: Broker, query: str) -> None:
    """Addresses are copied from anywhere."""
    bridge = make_bridge(mqtt__url=f"mqtts://127.0.0.1:{broker.port}{query}")
    done = bridge.run("check")
    if done.returncode == 0:
        bridge.start(wait=False).program.wait_said("the broker's certificate is not trusted: ")
