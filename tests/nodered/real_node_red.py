"""The flows of docs/node-red in a real Node-RED, with the bridge and its embedded broker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.peers import install_node_red
from tests.system.support import Bridge, Program, Subscriber, clean_environment, free_port, status

ROOT = Path(__file__).parents[2]
FLOWS = ROOT / "docs" / "node-red"


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[Bridge]:
    bridge = Bridge(tmp_path)
    try:
        yield bridge.start()
    finally:
        bridge.__exit__()


@pytest.fixture
def heard(bridge: Bridge) -> Iterator[Subscriber]:
    with bridge.listen("#") as subscriber:
        yield subscriber


def imported(bridge: Bridge, name: str) -> Program:
    """A Node-RED with this flow, connected to the bridge's broker."""
    folder = bridge.folder / "node-red"
    folder.mkdir()
    nodes = json.loads((FLOWS / name).read_text(encoding="utf-8"))
    for node in nodes:
        if node["type"] == "mqtt-broker":  # all that differs from what stands in the file
            assert (node["broker"], node["port"]) == ("127.0.0.1", "1883")
            node["port"] = str(bridge.broker)
    (folder / "flows.json").write_text(json.dumps(nodes))
    (folder / "settings.js").write_text(
        f"module.exports = {{uiPort: {free_port()}, uiHost: '127.0.0.1', flowFile: 'flows.json', "
        "credentialSecret: false, telemetry: {enabled: false}}"
    )
    program = install_node_red(ROOT / ".bench")
    node_red = Program(
        [program, "-u", folder, "-s", folder / "settings.js"], folder, clean_environment(folder) | {"NO_COLOR": "1"}
    )
    node_red.wait_said("Connected to broker")
    return node_red


def click(identity: str, sender: str) -> dict[str, object]:
    button = {"payload": "open_gate", "text": "Open the gate"}
    return {"messages": [{"id": identity, "type": "button", "from": sender, "button": button}]}


def test_the_gate_opens_for_those_on_the_list_and_for_nobody_else(bridge: Bridge, heard: Subscriber) -> None:
    """The first flow that a user imports would open the gate to strangers, or to nobody."""
    with imported(bridge, "open-the-gate.json"):
        for number, sender in enumerate(("15559999999", "15550001234", "15559999999", "15550005678")):
            assert bridge.post(click(f"c{number}", sender)).status == 200
        heard.wait_until(lambda _: len(heard.on("garden/gate/set")) == 2)
        assert bridge.post(click("last", "15559999999")).status == 200
        heard.wait("whatsapp/event/button/open_gate", lambda one: one.json["message_id"] == "last")
    assert [(one.payload, one.retain) for one in heard.on("garden/gate/set")] == [("OPEN", False)] * 2


def test_a_deployed_flow_is_not_fired_by_yesterdays_press(bridge: Bridge, heard: Subscriber) -> None:
    """The gate would open at each restart of Node-RED."""
    assert bridge.post(click("yesterday", "15550001234")).status == 200
    heard.wait("whatsapp/button/open_gate")
    with imported(bridge, "open-the-gate.json"):
        assert bridge.post(click("today", "15550001234")).status == 200
        heard.wait("garden/gate/set")
    assert len(heard.on("garden/gate/set")) == 1


def test_the_bell_says_why_a_message_failed(bridge: Bridge, heard: Subscriber) -> None:
    """A failed message would go by in silence."""
    with imported(bridge, "bell-when-a-message-failed.json"):
        assert bridge.post(status("m1", "sent")).status == 200
        assert bridge.post(status("m1", "failed", errors=[{"code": 131026, "title": "Undeliverable"}])).status == 200
        rung = heard.wait("hall/bell/say")
    assert rung.payload == "Message m1 failed: 131026 Undeliverable"
    assert len(heard.on("hall/bell/say")) == 1
