"""`forget`: after it, neither the journal's bytes nor the broker have the person or the message."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.simulate import message_id_for
from tests.postgres import Server, running
from tests.system.conftest import MakeBridge
from tests.system.support import Bridge, Heard, status

HER, HIM = "15550001234", "15550005678"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as opened:
        yield opened


def click(sender: str, name: str, payload: str = "open_gate") -> dict[str, Any]:
    message = {
        "id": message_id_for(sender),
        "type": "button",
        "from": sender,
        "timestamp": str(int(time.time())),
        "button": {"payload": payload, "text": "Open the gate"},
        "context": {"id": message_id_for(sender)},
    }
    return {"contacts": [{"wa_id": sender, "profile": {"name": name}}], "messages": [message]}


def spellings(person: str) -> list[str]:
    """With dashes that break no line, with commas, and in digits of other scripts."""
    return [
        f"{person[0]} {person[1:4]}\u2011{person[4:7]}\u2011{person[7:]}",
        f"{person[0]},{person[1:4]},{person[4:7]},{person[7:]}",
        *(person.translate({ord(str(digit)): zero + digit for digit in range(10)}) for zero in (0x0660, 0xFF10)),
    ]


def fill(bridge: Bridge) -> None:
    """Both of them, in every place that there is."""
    for person, name in ((HER, "Ada"), (HIM, "Béla")):
        about = message_id_for(person)
        for word in ("sent", "failed"):
            errors = [{"code": 1, "title": f"could not reach +{person[0]} {person[1:4]} {person[4:]}"}]
            assert bridge.post(status(about, word, recipient_id=person, errors=errors)).status == 200
        errors = [{"code": 1, "error_data": {"details": f"{one} is not there"}} for one in spellings(person)]
        assert bridge.post(status(f"about {name}", "failed", errors=errors)).status == 200
        assert bridge.post(click(person, name)).status == 200
        assert bridge.post(click(person, name, f"call {person}")).status == 200
        assert bridge.post({"statuses": [{"status": "sent", "recipient_id": person}]}).status == 200  # no id
        assert bridge.post(f"<xml>{person}</xml>".encode()).status == 200
        assert bridge.post(f"<xml>{json.dumps(spellings(person))}</xml>".encode()).status == 200
    # Hers is the last failure that is remembered.
    assert bridge.post(status(message_id_for(HER), "failed", 1_700_000_000, recipient_id=HER)).status == 200
    with bridge.listen() as subscriber:
        subscriber.wait_until(all_is_published)


def all_is_published(heard: list[Heard]) -> bool:
    """Whether the states of five messages and three buttons stand, and the eleventh update is settled."""
    topics = {one.topic.removeprefix("whatsapp/") for one in heard}
    standing = [one for one in topics if one.startswith("button/") or re.fullmatch(r"(wamid\.|about)[^/]+/status", one)]
    settled = [one.json["seq"] for one in heard if "/bridge/checkpoint" in one.topic]
    return len(standing) == 5 + 3 and max(settled, default=0) >= 11


def says(bridge: Bridge, *arguments: str, code: int = 0) -> str:
    said = bridge.run("forget", *arguments)
    assert said.returncode == code, said.stdout + said.stderr
    assert "Traceback" not in said.stderr, said.stderr
    return said.stdout + said.stderr


def bytes_of(folder: Path) -> bytes:
    """All files of the state directory, and of the embedded broker below it."""
    return b"\0".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def retained(bridge: Bridge) -> list[str]:
    with bridge.listen("#") as subscriber:
        subscriber.wait("whatsapp/bridge/state")
        heard = -1
        while heard < (heard := len(subscriber.heard)):  # what is retained comes at once, and in any order
            time.sleep(1)
        return [f"{one.topic} {one.payload}" for one in subscriber.heard if one.retain]


def apart_from_health(lines: list[str]) -> list[str]:
    """In order; its health changes by itself."""
    return sorted(line for line in lines if not line.startswith("whatsapp/bridge/health "))


@pytest.mark.parametrize(
    ("numbers", "runs"),
    [("keep", True), ("mask", True), ("hash", True), ("hash", False)],
    ids=["keep", "mask", "hash", "hash, and the bridge does not run"],
)
def test_nothing_is_left_of_her_and_all_of_him(make_bridge: MakeBridge, numbers: str, runs: bool) -> None:
    """Who has to forget somebody by law would believe to have done so."""
    bridge = make_bridge(privacy__numbers=numbers).start()
    fill(bridge)
    before = retained(bridge)
    assert any("button/open_gate" in line for line in before)
    if not runs:
        assert bridge.program.end() == 0
    told = json.loads(says(bridge, f"+1 (555) 000-{HER[-4:]}", "--json"))
    assert told["removed"] is True
    assert told["updates"] >= 4
    assert told["dead_letters"] >= 1
    assert told["retained_topics"] >= 2
    raw = bytes_of(bridge.state)
    for spelt in (HER, *spellings(HER), json.dumps(spellings(HER))):
        assert spelt.encode() not in raw
    assert b"Ada" not in raw
    if numbers == "keep":
        assert all(spelt.encode() in raw for spelt in (HIM, *spellings(HIM), json.dumps(spellings(HIM))))
    assert "Béla".encode() in raw
    if not runs:
        bridge.start()
    left = "\n".join(retained(bridge))
    assert not any(spelt in left for spelt in (HER, *spellings(HER)))
    assert "Ada" not in left
    assert "Béla" in left
    again = json.loads(says(bridge, HER, "--json"))
    assert (again["updates"], again["dead_letters"], again["retained_topics"]) == (0, 0, 0)
    assert bridge.program.end() == 0


def test_a_message_is_forgotten_alone(bridge: Bridge) -> None:
    """One message is asked to be forgotten, and the person's other ones are gone as well."""
    one, other = message_id_for(HER), message_id_for(HER)
    for message in (one, other):
        assert bridge.post(status(message, "read", recipient_id=HER)).status == 200
    with bridge.listen() as subscriber:
        subscriber.wait("whatsapp/bridge/checkpoint", lambda found: found.json["seq"] == 2)
    assert "Removed: 1 update, 1 retained topic." in says(bridge, one)
    raw = bytes_of(bridge.state)
    assert one.encode() not in raw
    assert other.encode() in raw


def test_a_dry_run_removes_nothing(bridge: Bridge) -> None:
    """One wants to see first whom a number means."""
    fill(bridge)
    before = retained(bridge)
    assert "Would be removed: " in says(bridge, HER, "--dry-run")
    assert HER.encode() in bytes_of(bridge.state)
    assert apart_from_health(retained(bridge)) == apart_from_health(before)


def test_copies_that_still_have_it_are_named(bridge: Bridge) -> None:
    """A copy that was set aside keeps what everybody believes to be gone."""
    fill(bridge)
    copy = bridge.state / "journal.db.before-restore-1"
    assert bridge.run("backup", copy).returncode == 0
    said = says(bridge, HER)
    assert f"It still stands in {copy}: delete that" in said


def test_what_the_embedded_broker_cannot_let_go_of_is_told(bridge: Bridge) -> None:
    """One believes that nothing is left, while a file of the broker has it: more of that one is still wanted."""
    fill(bridge)
    with bridge.listen("large/#") as subscriber:
        for number in range(2):  # of another program, and in the same file
            subscriber.publish(f"large/{number}", "x" * 1_500_000, retain=True)
            subscriber.wait(f"large/{number}")
        said = says(bridge, HER)
        assert f"in files of the embedded broker, {bridge.state / 'broker'}" in said
        for number in range(2):
            subscriber.publish(f"large/{number}", "", retain=True)
    assert "embedded broker" not in says(bridge, HER)
    assert HER.encode() not in bytes_of(bridge.state)


@pytest.mark.parametrize(
    ("who", "words"), [("0171 2345678", "has no country code"), (" ", "is empty")], ids=["no country", "nothing"]
)
def test_whom_it_cannot_mean_is_told(bridge: Bridge, who: str, words: str) -> None:
    """It would forget nobody, or somebody else, and say that it is done."""
    assert words in says(bridge, who, code=2)


def test_what_the_broker_holds_back_is_not_forgotten_by_half(make_bridge: MakeBridge, mosquitto: int) -> None:
    """The journal would not know any more what is still to be taken off the broker."""
    bridge = make_bridge(mqtt__url=f"mqtt://127.0.0.1:{mosquitto}").start()
    assert bridge.post(status(message_id_for(HER), "read", recipient_id=HER)).status == 200
    bridge.broker = mosquitto
    with bridge.listen() as subscriber:
        subscriber.wait("whatsapp/bridge/checkpoint", lambda found: found.json["seq"] == 1)
    assert bridge.program.end() == 0
    bridge.environment["WHATSAPP2MQTT_MQTT__URL"] = "mqtt://127.0.0.1:1"
    said = bridge.run("forget", HER)
    assert said.returncode == 1
    assert "forgets nothing before the broker has let go" in said.stderr
    assert HER.encode() in bytes_of(bridge.state)
    bridge.environment["WHATSAPP2MQTT_MQTT__URL"] = f"mqtt://127.0.0.1:{mosquitto}"
    assert "Removed: 1 update, 2 retained topics." in says(bridge, HER)


def test_postgresql_forgets_as_well(make_bridge: MakeBridge, server: Server) -> None:
    """A person would have rights under one engine only."""
    database = server.new_database()
    bridge = make_bridge(journal__url=database.url).start()
    fill(bridge)
    said = says(bridge, HER)
    assert "Removed: " in said
    assert "write-ahead log and backups are beyond this command" in said
    dumped = subprocess.run(
        ["pg_dump", "--dbname", database.url], capture_output=True, text=True, check=False, env={"PATH": server.path}
    )
    assert dumped.returncode == 0, dumped.stderr
    assert HER not in dumped.stdout
    assert "Ada" not in dumped.stdout
    assert HIM in dumped.stdout
    assert HER not in "\n".join(retained(bridge))
