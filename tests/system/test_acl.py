"""The rights that docs/security.md asks for at the broker are enough, and no more is allowed: tried word for word."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.conftest import MakeBridge
from tests.system.support import Bridge, Program, Subscriber, free_port, program, status

DOCUMENT = (Path(__file__).parents[2] / "docs/security.md").read_text(encoding="utf-8")
ACL = re.findall(r"```text\n(user whatsapp2mqtt.*?)```", DOCUMENT, re.DOTALL)
PASSWORD = "a-password-of-the-test"


@dataclass
class Broker:
    """A mosquitto with the rights that stand in the document, and a user who sees everything."""

    port: int
    program: Program
    acl: Path

    def client(self, user: str, topics: str = "#") -> Subscriber:
        return Subscriber(self.port, topics, user, PASSWORD)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    (acl,) = ACL
    port = free_port()
    passwords, rights = tmp_path / "passwords", tmp_path / "acl"
    passwords.touch()
    for user in ("whatsapp2mqtt", "homeassistant", "witness"):
        subprocess.run([program("mosquitto_passwd"), "-b", passwords, user, PASSWORD], check=True, capture_output=True)
    rights.write_text(f"{acl}\nuser witness\ntopic readwrite #\n")
    root = "user root\n" if os.geteuid() == 0 else ""
    (tmp_path / "mosquitto.conf").write_text(
        f"listener {port} 127.0.0.1\npassword_file {passwords}\nacl_file {rights}\nlog_type all\n{root}"
    )
    with Program([program("mosquitto"), "-c", tmp_path / "mosquitto.conf"], tmp_path, dict(os.environ)) as running:
        running.wait_said(" running")
        yield Broker(port, running, rights)


def started(make_bridge: MakeBridge, broker: Broker, protocol: str) -> Bridge:
    url = f"mqtt://whatsapp2mqtt:{PASSWORD}@127.0.0.1:{broker.port}"
    return make_bridge(mqtt__url=url, mqtt__protocol=protocol).start()


def click(number: int) -> dict[str, object]:
    button = {"payload": "open_gate", "text": "Open the gate"}
    return {"messages": [{"id": f"click{number}", "type": "button", "from": "15550001234", "button": button}]}


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_the_rights_are_enough(make_bridge: MakeBridge, broker: Broker, protocol: str) -> None:
    """Who follows the document would find that nothing arrives, or that Home Assistant is never told."""
    with broker.client("homeassistant") as house:
        bridge = started(make_bridge, broker, protocol)
        assert bridge.post(status("m1", "read")).status == 200
        assert bridge.post(click(1)).status == 200
        for topic in ("whatsapp/m1/status", "whatsapp/event/button/open_gate", "whatsapp/bridge/health"):
            house.wait(topic)
        house.wait_until(lambda heard: any("/device_automation/" in one.topic for one in heard))
        with broker.client("witness", "whatsapp/bridge/response/#") as asker:
            asker.publish("whatsapp/bridge/request/health", '{"transaction": "t1"}')
            assert asker.wait("whatsapp/bridge/response/health").json["transaction"] == "t1"
        assert bridge.program.end() == 0
        house.wait("whatsapp/bridge/state", lambda one: one.payload == "offline")
    assert not [line for line in bridge.program.log if line["level"] in ("warning", "error")]
    assert "Denied PUBLISH from whatsapp2mqtt" not in broker.program.said


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_the_doctor_finds_nothing_wrong_with_the_rights(make_bridge: MakeBridge, broker: Broker, protocol: str) -> None:
    """Who follows the document would be told to allow more than it says."""
    url = f"mqtt://whatsapp2mqtt:{PASSWORD}@127.0.0.1:{broker.port}"
    said = make_bridge(mqtt__url=url, mqtt__protocol=protocol).run("doctor")
    assert said.returncode == 0, said.stdout
    assert "the bridge may publish updates there" in said.stdout


def test_no_more_is_allowed(broker: Broker) -> None:
    """Whoever gets at the bridge's password could open the gate past it, or rewrite other devices of the house."""
    with broker.client("witness") as witness:
        for topic in ("garden/gate/set", "homeassistant/switch/other/config", "homeassistant/status"):
            with broker.client("whatsapp2mqtt", "whatsapp/bridge/info") as bridge:
                bridge.publish(topic, "forged")
        for topic in ("whatsapp/event/button/open_gate", "whatsapp/bridge/request/reconnect"):
            with broker.client("homeassistant", "whatsapp/#") as house:
                house.publish(topic, "forged")
        with broker.client("whatsapp2mqtt") as curious:
            witness.publish("garden/gate/state", "open")
            witness.wait("garden/gate/state")
            assert curious.heard == []
        assert [one.topic for one in witness.heard if one.payload == "forged"] == []


def test_clean_needs_to_look_at_what_stands(make_bridge: MakeBridge, broker: Broker) -> None:
    """The document says which lines to add; with them, everything must go."""
    (document,) = re.findall(r"add `topic\s+(read whatsapp/#)` and `topic (read homeassistant/\S+)`", DOCUMENT)
    rights = broker.acl.read_text().replace(
        "user whatsapp2mqtt\n", f"user whatsapp2mqtt\ntopic {document[0]}\ntopic {document[1]}\n"
    )
    bridge = started(make_bridge, broker, "auto")
    assert bridge.post(status("m1", "read")).status == 200
    with broker.client("witness", "whatsapp/m1/status") as witness:
        witness.wait("whatsapp/m1/status")
    assert bridge.program.end() == 0
    broker.acl.write_text(rights)
    broker.program.send_hangup()
    done = bridge.run("clean", "--yes")
    assert done.returncode == 0, done.stderr
    with broker.client("witness") as witness:
        witness.publish("marker", "end")
        witness.wait("marker")
        assert [one.topic for one in witness.heard if one.retain] == []
