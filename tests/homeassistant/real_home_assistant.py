"""What a user of Home Assistant sees, in a real one: run by `scripts/test-homeassistant`, collected no other way.

One house for all tests: they are read, and run, from top to bottom, each starting where the one before ended.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.homeassistant.house import START, HomeAssistant, asked, fires, says
from tests.torture.harness import Bridge, Mosquitto, click, status, wait_until

HOSTILE = ["👍🏽 ja", 'it\'s "quoted"', "{{ 1+1 }}", "{% for x in y %}", "x" * 256, "a/b/+/#", "<b>&amp;</b>"]
DECLARED = [
    {"payload": "open_gate", "name": "Open the gate", "icon": "mdi:gate"},
    {"payload": "open_yes", "name": "Yes, open"},
    {"payload": "alarm_ack", "name": "Acknowledge"},
]
PHONE = "15550009999"


class House:
    """Everything that runs, and what it said."""

    def __init__(self, folder: Path) -> None:
        self.broker = Mosquitto(folder / "broker").start()  # forgets everything when killed
        self.bridge = Bridge(
            folder / "bridge",
            self.broker.port,
            settings={
                "homeassistant.discovery": "true",
                "homeassistant.buttons": json.dumps(DECLARED),
                "homeassistant.max_buttons": "250",
            },
        )
        self.home = HomeAssistant(folder / "home", self.broker.port)
        self.heard: list[tuple[str, bytes]] = []
        self._count = 0
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="watcher", clean_session=False)
        self._client.on_message = lambda _, __, message: self.heard.append((message.topic, bytes(message.payload)))
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_connect = lambda client, *_: client.subscribe([("fired/#", 1), ("probe/answer", 1)])
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", self.broker.port)
        self._client.loop_start()
        assert self._subscribed.wait(20)

    def end(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self.home.end()
        self.bridge.end()
        self.broker.end()

    def publish(self, topic: str, payload: str) -> None:
        wait_until(self._client.is_connected, "the watcher is connected")
        self._client.publish(topic, payload, 1).wait_for_publish(30)

    def entities(self, patience: float = 60.0) -> list[dict[str, Any]]:
        return asked(
            self.publish, lambda: [body for topic, body in list(self.heard) if topic == "probe/answer"], patience
        )

    def entity(self, entity_id: str) -> dict[str, Any]:
        return next(one for one in self.entities() if one["entity"] == entity_id)

    def fired(self, name: str) -> list[bytes]:
        return [payload for topic, payload in list(self.heard) if topic == f"fired/{name}"]

    def all_fired(self) -> list[tuple[str, bytes]]:
        return [one for one in list(self.heard) if one[0].startswith("fired/")]

    def device(self) -> str:
        return str(self.entity("binary_sensor.whatsapp_connectivity")["device"])

    def save(self, automations: list[dict[str, Any]]) -> None:
        """Save automations in its editor, as it were: write them and have them loaded again."""
        self.home.write(automations)
        self.publish("probe/reload", "now")
        time.sleep(1.5)
        self.entities()

    def click(self, payload: str, *, sender: str = "15550001234", text: str | None = None) -> None:
        self._count += 1
        body = click(payload, f"click{self._count}-{time.monotonic_ns()}")
        body["messages"][0]["from"] = sender
        body["messages"][0]["button"]["text"] = payload if text is None else text
        body["business_phone"] = PHONE
        assert self.bridge.post(body) == 200

    def status(self, message_id: str, word: str, **rest: Any) -> None:
        body = status(message_id, word)
        body["statuses"][0] |= rest
        assert self.bridge.post(body) == 200

    def trigger(self, name: str) -> dict[str, Any]:
        return {
            "platform": "device",
            "domain": "mqtt",
            "device_id": self.device(),
            "type": "button_short_press",
            "subtype": name,
        }


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("house"))
    try:
        made.home.start()
        made.bridge.start()
        made.entities(START)
        wait_until(lambda: len(made.entities()) > 20, "everything appears", 60)
        yield made
    finally:
        made.end()


def automations(house: House) -> list[dict[str, Any]]:
    """All three ways to hang on a button, and the blueprints."""

    def blueprint(name: str, **inputs: Any) -> dict[str, Any]:
        return {"id": name, "alias": name, "use_blueprint": {"path": f"whatsapp/{name}.yaml", "input": inputs}}

    whatsapp = house.device()
    message_status = "event.whatsapp_message_status"
    return [
        fires("device", house.trigger("Open the gate")),
        fires("entity", pressed("event.whatsapp_button")),
        fires("own", pressed(own_entity(house))),
        fires("mqtt", {"platform": "mqtt", "topic": "whatsapp/event/button/open_gate"}),
        blueprint(
            "confirm-to-open-the-gate",
            whatsapp=whatsapp,
            timeout=10,
            ask=says("asked"),
            open=says("opened", "{{ name }}"),
        ),
        blueprint(
            "alarm-acknowledged", whatsapp=whatsapp, numbers="1, 15550001234", acknowledge=says("acked", "{{ number }}")
        ),
        blueprint(
            "bell-when-a-message-failed",
            message_status=message_status,
            bell=says("bell", "{{ message_id }} {{ code }} {{ title }}"),
        ),
        blueprint(
            "ask-again-if-not-read",
            message_status=message_status,
            patience=0.05,
            again=says("again", "{{ message_id }}"),
        ),
    ]


def pressed(entity: str) -> dict[str, Any]:
    """The trigger on an event entity that docs/home-assistant.md shows."""
    return {
        "platform": "state",
        "entity_id": entity,
        "not_from": ["unavailable"],
        "not_to": ["unavailable", "unknown"],
    }


def own_entity(house: House) -> str:
    """The entity of the declared button."""
    return str(next(one["entity"] for one in house.entities() if "button_open_gate" in one["entity"]))


def test_every_entity_appears_under_one_device_with_a_name_of_its_own(house: House) -> None:
    """Otherwise the user has to look for pieces, or reads the device's name twice."""
    entities = house.entities()
    assert {one["device_name"] for one in entities} == {"WhatsApp"}
    assert len({one["device"] for one in entities}) == 1
    names = [one["name"] for one in entities]
    assert all(name.startswith("WhatsApp ") and not name.startswith("WhatsApp WhatsApp") for name in names)
    ids = {one["entity"] for one in entities}
    assert {"event.whatsapp_button", "event.whatsapp_message_status", "sensor.whatsapp_last_button"} <= ids
    wait_until(lambda: house.entity("binary_sensor.whatsapp_connectivity")["state"] == "on", "its state comes after it")
    assert house.home.complaints() == []


def test_saving_an_automation_fires_nothing(house: House) -> None:
    """Otherwise the gate would open because somebody pressed Save."""
    house.save(automations(house))
    house.save(automations(house))
    assert house.all_fired() == []
    assert house.home.complaints() == []


def test_a_click_fires_each_of_the_three_ways_exactly_once(house: House) -> None:
    """Otherwise the gate stays shut, or opens and shuts."""
    house.click("open_gate")
    for name in ("device", "entity", "own", "mqtt"):
        wait_until(lambda name=name: house.fired(name), f"{name} fires")  # type: ignore[misc]
    time.sleep(1)
    assert {name: len(house.fired(name)) for name in ("device", "entity", "own", "mqtt")} == {
        "device": 1, "entity": 1, "own": 1, "mqtt": 1,
    }  # fmt: skip
    assert house.entity("event.whatsapp_button")["event_type"] == "open_gate"
    assert house.entity("sensor.whatsapp_last_button")["state"] == "open_gate"


def test_a_business_phone_gets_a_device_under_the_bridge(house: House) -> None:
    """Otherwise two businesses would be one."""
    wait_until(lambda: any(PHONE in one["entity"] for one in house.entities()), "its entities")
    one = house.entity(f"event.whatsapp_{PHONE}_button")
    assert one["device_name"] == f"WhatsApp {PHONE}"
    house.click("open_gate")
    wait_until(lambda: house.entity(one["entity"])["event_type"] == "open_gate", "its event")
    house.status("of-another", "sent")
    wait_until(lambda: house.entity("event.whatsapp_message_status")["message_id"] == "of-another", "the bridge's")
    assert house.entity(f"event.whatsapp_{PHONE}_message_status")["event_type"] is None


def test_an_unknown_payload_is_learned_and_its_first_click_arrives(house: House) -> None:
    """Otherwise whoever adds a button to a template would lose its first click."""
    before = len(house.fired("entity"))
    house.click("never_seen", text="Never seen before")
    wait_until(lambda: len(house.fired("entity")) == before + 1, "the first click")
    button = house.entity("event.whatsapp_button")
    assert button["event_type"] == "never_seen"
    assert "never_seen" in button["event_types"]
    house.save([*automations(house), fires("learned", house.trigger("Never seen before"))])
    house.click("never_seen", text="Never seen before")
    wait_until(lambda: house.fired("learned"), "the trigger of a learned button")


def test_hostile_payloads_are_buttons_like_any_other(house: House) -> None:
    """Otherwise a text from outside could be executed, or break what stands beside it."""
    before = len(house.fired("entity"))
    for payload in HOSTILE:
        house.click(payload)
    wait_until(lambda: len(house.fired("entity")) == before + len(HOSTILE), "all of them arrive")
    types = house.entity("event.whatsapp_button")["event_types"]
    assert set(HOSTILE) <= set(types)
    assert "2" not in types
    house.save(
        [
            *automations(house),
            *(
                fires(f"hostile{number}", house.trigger(payload if len(payload) < 60 else f"{payload[:59]}…"))
                for number, payload in enumerate(HOSTILE)
            ),
        ]
    )
    for payload in HOSTILE:
        house.click(payload)
    for number in range(len(HOSTILE)):
        wait_until(lambda number=number: len(house.fired(f"hostile{number}")) == 1, HOSTILE[number])  # type: ignore[misc]
    last = house.entity("sensor.whatsapp_last_button")["state"]
    assert last == HOSTILE[-1]
    assert house.home.complaints() == []


def test_two_clicks_at_the_same_moment_are_two_events(house: House) -> None:
    """Otherwise the second of two people who press at once would not be heard."""
    before = len(house.fired("entity"))
    body = click("open_gate", "together-0")
    body["messages"] = [{**body["messages"][0], "id": f"together-{number}"} for number in range(10)]
    device = len(house.fired("device"))
    assert house.bridge.post(body) == 200
    wait_until(lambda: len(house.fired("device")) == device + 10, "ten triggers")
    wait_until(lambda: len(house.fired("entity")) == before + 10, "ten events")


def test_the_blueprints_do_what_they_say(house: House) -> None:
    """Otherwise the ready automations are not ready."""
    house.save(automations(house))
    for name in ("asked", "opened", "acked", "bell", "again"):
        house.heard[:] = [one for one in house.heard if one[0] != f"fired/{name}"]
    # The gate: another one's yes does not open it, the same one's does.
    house.click("open_gate")
    wait_until(lambda: house.fired("asked"), "asked back")
    house.click("open_yes", sender="15550007777")
    time.sleep(1)
    assert house.fired("opened") == []
    house.click("open_gate")
    wait_until(lambda: len(house.fired("asked")) == 2, "asked again")
    house.click("open_yes")
    wait_until(lambda: house.fired("opened"), "opened")
    # The alarm.
    house.click("alarm_ack", sender="15550007777")
    house.click("alarm_ack")
    wait_until(lambda: house.fired("acked") == [b"said 15550001234"], "acknowledged by who may")
    # The bell.
    house.status("m-failed", "failed", errors=[{"code": 131026, "title": "Message {{ 1+1 }} undeliverable"}])
    wait_until(lambda: house.fired("bell") == [b"said m-failed 131026 Message {{ 1+1 }} undeliverable"], "the bell")
    wait_until(
        lambda: house.entity("sensor.whatsapp_last_failure")["state"] == "Message {{ 1+1 }} undeliverable", "failure"
    )
    # Read in time, and not.
    house.status("m-read", "sent")
    house.status("m-unread", "sent")
    house.status("m-read", "read")
    wait_until(lambda: house.fired("again"), "asked again")
    time.sleep(4)
    assert house.fired("again") == [b"said m-unread"]
    assert house.home.complaints() == []


def test_nothing_fires_at_a_restart_of_bridge_broker_or_home_assistant(house: House) -> None:
    """Otherwise the gate would open when the power comes back."""
    time.sleep(4)
    before = len(house.all_fired())
    house.bridge.stop()
    wait_until(lambda: house.entity("event.whatsapp_button")["state"] == "unavailable", "unavailable")
    assert house.entity("binary_sensor.whatsapp_connectivity")["state"] == "off"
    house.bridge.start()
    wait_until(lambda: house.entity("event.whatsapp_button")["state"] != "unavailable", "back")
    assert len(house.all_fired()) == before, "the bridge's restart"
    house.broker.kill()
    house.broker.start()
    wait_until(lambda: house.entity("event.whatsapp_button")["state"] != "unavailable", "back")
    time.sleep(6)  # its birth message, and everything told again
    assert len(house.all_fired()) == before, "the broker's restart"
    house.home.stop()
    house.home.start()
    wait_until(lambda: len(house.entities(120)) > 20, "everything is back", 120)
    wait_until(lambda: house.entity("event.whatsapp_button")["state"] != "unavailable", "back")
    time.sleep(6)
    assert len(house.all_fired()) == before, "its own restart"
    house.bridge.kill()
    house.bridge.start()
    wait_until(lambda: house.entity("event.whatsapp_button")["state"] != "unavailable", "back")
    time.sleep(1)
    assert house.all_fired()[before:] == [], "after kill -9"
    fired = {name: len(house.fired(name)) for name in ("device", "entity", "own", "mqtt")}
    house.click("open_gate")
    for name, count in fired.items():
        wait_until(lambda name=name, count=count: len(house.fired(name)) == count + 1, name)  # type: ignore[misc]


def test_two_hundred_buttons_are_all_there(house: House) -> None:
    """Otherwise a business with many buttons would find only some."""
    body = click("b0", "many0")
    one = body["messages"][0]
    body["messages"] = [
        {**one, "id": f"many{number}", "button": {"payload": f"b{number}", "text": f"Choice {number}"}}
        for number in range(200)
    ]
    # Counted by what the entity listens to: of a burst it drops those of one millisecond, wherever they met.
    house.save([*automations(house), fires("fed", {"platform": "mqtt", "topic": "whatsapp/bridge/event/button"})])
    started = time.monotonic()
    assert house.bridge.post(body) == 200
    wait_until(lambda: len(house.fired("fed")) == 200, "each arrives", 60)
    print(f"200 unknown buttons after {time.monotonic() - started:.1f} s")
    types = house.entity("event.whatsapp_button")["event_types"]
    assert {f"b{number}" for number in range(200)} <= set(types)


def test_after_clean_the_device_is_gone(house: House) -> None:
    """Otherwise trying the bridge would leave a dead device."""
    import subprocess
    import sys

    house.bridge.stop()
    done = subprocess.run(
        [sys.executable, "-m", "bridge", "clean", "--yes"],
        env=house.bridge.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    house.save([])
    wait_until(lambda: house.entities() == [], "no entity is left")
    house.home.stop()  # writes its registries down
    devices = json.loads((house.home.folder / ".storage" / "core.device_registry").read_text())["data"]["devices"]
    assert [device for device in devices if "whatsapp" in json.dumps(device["identifiers"])] == []
