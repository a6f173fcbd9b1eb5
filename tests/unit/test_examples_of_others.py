"""The files that users import elsewhere (Node-RED, openHAB) name topics and keys that the bridge really publishes.

`scripts/test-node-red` runs the flows in a real Node-RED.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from scripts import reference

DOCS = Path(__file__).parents[2] / "docs"
FLOWS = sorted((DOCS / "node-red").glob("*.json"))
KEYS = {*reference.STATUS_KEYS, *reference.CLICK_KEYS, *reference.HEALTH_KEYS}


def is_documented(topic: str) -> bool:
    """Whether docs/topics.md has it; for a word in angle brackets any level will do."""
    below = topic.removeprefix("whatsapp/")
    return any(re.fullmatch(re.sub(r"<\w+>", "[^/]+", name), below) for name in reference.TOPICS)


def nodes(flow: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(flow.read_text(encoding="utf-8"))
    return found


def test_there_are_flows() -> None:
    """Without any, the checks below would look at nothing."""
    assert len(FLOWS) >= 2


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.stem)
def test_a_flow_is_whole(flow: Path) -> None:
    """Node-RED imports a flow with loose ends without a word, and then nothing happens."""
    known = {node["id"]: node for node in nodes(flow)}
    assert len(known) == len(nodes(flow))
    for node in known.values():
        assert all(known[target]["z"] == node["z"] for port in node.get("wires", ()) for target in port)
        assert "broker" not in node or node["type"] == "mqtt-broker" or known[node["broker"]]["type"] == "mqtt-broker"
        assert node.get("outputs", 1) == len(node["wires"]) if node.get("wires") else True


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.stem)
def test_a_flow_listens_to_events_that_there_are_and_not_to_retained_topics(flow: Path) -> None:
    """The gate would never open, or at each restart."""
    listens = [node["topic"] for node in nodes(flow) if node["type"] == "mqtt in"]
    assert listens
    for topic in listens:
        assert topic.startswith("whatsapp/event/")
        assert is_documented(topic)


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.stem)
def test_a_flow_reads_keys_that_there_are(flow: Path) -> None:
    """A flow would compare with undefined, and nobody may open."""
    text = flow.read_text(encoding="utf-8")
    read = set(re.findall(r"msg\.payload\.(\w+)", text)) | set(re.findall(r'"property": "payload\.(\w+)"', text))
    assert read
    assert read <= KEYS


@pytest.mark.parametrize("name", ["whatsapp.things", "whatsapp.rules"])
def test_openhab_listens_to_topics_and_reads_keys_that_there_are(name: str) -> None:
    """A rule of openHAB would wait for ever, or get an empty text."""
    text = (DOCS / "openhab" / name).read_text(encoding="utf-8")
    topics, keys = re.findall(r'stateTopic="([^"]+)"', text), re.findall(r"\$\.(\w+)", text)
    assert keys
    assert set(keys) <= KEYS
    assert all(is_documented(topic) for topic in topics)


def test_openhab_fires_rules_by_events_and_not_by_retained_topics() -> None:
    """The gate would open at each start of openHAB."""
    text = (DOCS / "openhab" / "whatsapp.things").read_text(encoding="utf-8")
    fires = re.findall(r'publishTrigger : (\w+) .*stateTopic="([^"]+)"', text)
    assert [topic for _, topic in fires if not topic.startswith("whatsapp/event/")] == []
    rules = (DOCS / "openhab" / "whatsapp.rules").read_text(encoding="utf-8")
    assert set(re.findall(r'Channel "mqtt:broker:whatsapp:(\w+)"', rules)) == {name for name, _ in fires}


def test_openhabs_items_have_channels_that_there_are() -> None:
    """An item would stay empty for ever."""
    things = (DOCS / "openhab" / "whatsapp.things").read_text(encoding="utf-8")
    items = (DOCS / "openhab" / "whatsapp.items").read_text(encoding="utf-8")
    shown = set(re.findall(r"mqtt:topic:whatsapp:bridge:(\w+)", items))
    assert shown == set(re.findall(r"Type (?:switch|string|number) : (\w+)", things))
