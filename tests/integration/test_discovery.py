"""What Home Assistant is told, as any client of a real mosquitto sees it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from bridge import homeassistant
from tests.torture.harness import Bridge, Mosquitto, click, status, wait_until

NODE = homeassistant.node("whatsapp")


@dataclass(frozen=True)
class Seen:
    """A message, in the order of arrival."""

    topic: str
    payload: bytes
    retain: bool
    at: float


class Recorder:
    """Everything that comes, in order; and what a client that comes later would be given as retained."""

    def __init__(self, port: int) -> None:
        self.messages: list[Seen] = []
        self.standing: dict[str, bytes] = {}
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        self._client.on_message = self._hear
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.connect("127.0.0.1", port)

    def __enter__(self) -> Self:
        self._client.subscribe("#", 1)
        self._client.loop_start()
        assert self._subscribed.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _hear(self, _: object, __: object, message: paho.MQTTMessage) -> None:
        self.messages.append(Seen(message.topic, bytes(message.payload), message.retain, time.monotonic()))
        if "/event/" in message.topic and not message.topic.endswith("/config"):
            return  # never retained, or `retain` says so above
        if not message.payload:
            self.standing.pop(message.topic, None)
        else:
            self.standing[message.topic] = bytes(message.payload)

    def publish(self, topic: str, payload: str) -> None:
        self._client.publish(topic, payload, 1).wait_for_publish(10)

    def of(self, topic: str) -> list[Seen]:
        return [seen for seen in self.messages if seen.topic == topic]

    def discovery(self, component: str, key: str, node: str = NODE, prefix: str = "homeassistant") -> dict[str, Any]:
        """What stands; KeyError if nothing does."""
        found: dict[str, Any] = json.loads(self.standing[f"{prefix}/{component}/{node}/{key}/config"])
        return found

    def discoveries(self) -> set[str]:
        return {topic for topic in self.standing if topic.endswith("/config")}

    def triggers(self) -> dict[str, str]:
        """Name to topic of the triggers that stand."""
        found = [json.loads(self.standing[topic]) for topic in self.discoveries() if "/device_automation/" in topic]
        return {trigger["subtype"]: trigger["topic"] for trigger in found}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    mosquitto = Mosquitto(tmp_path / "broker").start()
    yield mosquitto
    mosquitto.end()


class Bridges:
    """Makes bridges on one state; ends them."""

    def __init__(self, folder: Path, broker: Mosquitto) -> None:
        self.folder = folder
        self.broker = broker
        self.made: list[Bridge] = []

    def start(self, name: str = "bridge", **settings: str) -> Bridge:
        dotted = {"homeassistant.discovery": "true"} | {
            key.replace("__", "."): value for key, value in settings.items()
        }
        bridge = Bridge(self.folder / name, self.broker.port, settings=dotted)
        self.made.append(bridge)
        return bridge.start()


@pytest.fixture
def bridges(tmp_path: Path, broker: Mosquitto) -> Iterator[Bridges]:
    made = Bridges(tmp_path, broker)
    yield made
    for bridge in made.made:
        bridge.end()


@pytest.fixture
def recorder(broker: Mosquitto) -> Iterator[Recorder]:
    with Recorder(broker.port) as found:
        yield found


def clean(bridge: Bridge, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `clean` with the bridge's settings."""
    command = [sys.executable, "-m", "bridge", "clean", *options]
    return subprocess.run(command, env=bridge.environment, capture_output=True, text=True, timeout=60, check=False)


def settled(recorder: Recorder) -> None:
    """The bridge has told everything: its checkpoint comes after the discovery."""
    wait_until(lambda: "whatsapp/bridge/checkpoint" in recorder.standing, "the bridge is ready")
    wait_until(lambda: f"homeassistant/binary_sensor/{NODE}/problem/config" in recorder.standing, "all is told")


def test_everything_is_told_at_the_start_retained_and_under_one_device(bridges: Bridges, recorder: Recorder) -> None:
    """Otherwise the user would have to write YAML, or would find pieces all over Home Assistant."""
    bridges.start(homeassistant__buttons='[{"payload": "open_gate", "name": "Open the gate", "icon": "mdi:gate"}]')
    settled(recorder)
    wait_until(lambda: recorder.triggers() == {"Open the gate": "whatsapp/event/button/open_gate"}, "the trigger")
    with Recorder(bridges.broker.port) as later:
        wait_until(lambda: later.discoveries() == recorder.discoveries(), "all of it is retained")
        devices = {json.dumps(json.loads(later.standing[topic])["device"]) for topic in later.discoveries()}
    assert len(devices) == 1
    assert recorder.discovery("event", "button")["event_types"] == ["open_gate"]


def test_a_button_nobody_knew_is_told_first_and_its_first_click_comes_a_second_later(
    bridges: Bridges, recorder: Recorder
) -> None:
    """Otherwise the first click would be lost: Home Assistant takes no event type it does not know."""
    bridge = bridges.start()
    settled(recorder)
    assert bridge.post(click("alarm_ack", "c1")) == 200
    for topic in ("whatsapp/event/button/alarm_ack", "whatsapp/bridge/event/button"):
        wait_until(lambda topic=topic: len(recorder.of(topic)) == 1, f"the click on {topic}")  # type: ignore[misc]
        event = recorder.of(topic)[0]
        assert not event.retain
        assert json.loads(event.payload)["event_type"] == "alarm_ack"
        trigger = next(seen for seen in recorder.messages if "/device_automation/" in seen.topic)
        types = next(
            seen
            for seen in recorder.of(f"homeassistant/event/{NODE}/button/config")
            if "alarm_ack" in json.loads(seen.payload)["event_types"]
        )
        assert recorder.messages.index(trigger) < recorder.messages.index(event)
        assert recorder.messages.index(types) < recorder.messages.index(event)
        # Measured on this side, so a moment of the second may be lost in the broker.
        assert event.at - max(trigger.at, types.at) > 0.7
    assert recorder.triggers() == {"alarm_ack": "whatsapp/event/button/alarm_ack"}


def test_what_was_learned_is_known_after_a_restart_and_waits_no_more(bridges: Bridges, recorder: Recorder) -> None:
    """Otherwise each restart would forget the buttons, and the triggers of automations would vanish."""
    bridge = bridges.start()
    settled(recorder)
    assert bridge.post(click("yes", "c1")) == 200
    wait_until(lambda: len(recorder.of("whatsapp/event/button/yes")) == 1, "the first click")
    bridge.stop()
    told = len(recorder.messages)
    bridge.start()
    wait_until(lambda: any("device_automation" in seen.topic for seen in recorder.messages[told:]), "told again")
    wait_until(lambda: recorder.standing["whatsapp/bridge/state"] == b"online", "online")
    assert bridge.post(click("yes", "c2")) == 200
    assert bridge.post(click("other", "c3")) == 200
    wait_until(lambda: len(recorder.of("whatsapp/event/button/other")) == 1, "the click on a new one")
    (first, second) = recorder.of("whatsapp/event/button/yes")
    other = recorder.of("whatsapp/event/button/other")[0]
    assert recorder.messages.index(second) < recorder.messages.index(other)
    assert other.at - second.at > 0.5
    assert first.payload != second.payload
    assert len(recorder.of("whatsapp/event/button/yes")) == 2


def test_other_updates_go_on_while_a_first_click_waits_and_its_own_stay_in_order(
    bridges: Bridges, recorder: Recorder
) -> None:
    """Otherwise a button's first click would hold up the news of all messages, or clicks would change places."""
    bridge = bridges.start()
    settled(recorder)
    clicks = [f"c{number}" for number in range(5)]
    for message_id in clicks:
        assert bridge.post(click("new", message_id)) == 200
    assert bridge.post(status("m1", "read")) == 200
    wait_until(lambda: len(recorder.of("whatsapp/event/button/new")) == 5, "all clicks")
    topics = [seen.topic for seen in recorder.messages]
    assert topics.index("whatsapp/event/status/read") < topics.index("whatsapp/event/button/new")
    for topic in ("whatsapp/event/button/new", "whatsapp/bridge/event/button"):
        wait_until(lambda topic=topic: len(recorder.of(topic)) == 5, "all of them")  # type: ignore[misc]
        assert [json.loads(seen.payload)["message_id"] for seen in recorder.of(topic)] == clicks


def test_the_button_unused_longest_makes_room_and_its_trigger_is_taken_away(
    bridges: Bridges, recorder: Recorder
) -> None:
    """Otherwise whoever invents payloads could fill Home Assistant with triggers, or drive out those in use."""
    bridge = bridges.start(homeassistant__max_buttons="3", homeassistant__buttons="declared")
    settled(recorder)
    for payload in ("one", "two", "one", "three"):
        name = f"c{time.monotonic_ns()}"
        assert bridge.post(click(payload, name)) == 200
        wait_until(
            lambda name=name: any(
                name.encode() in seen.payload for seen in recorder.of("whatsapp/bridge/event/button")
            ),
            "click",
        )  # type: ignore[misc]
    wait_until(lambda: set(recorder.triggers()) == {"declared", "one", "three"}, f"two has gone: {recorder.triggers()}")
    wait_until(
        lambda: recorder.discovery("event", "button")["event_types"] == ["declared", "one", "three"], "two has gone"
    )


def test_everything_is_told_again_when_home_assistant_is_born(bridges: Bridges, recorder: Recorder) -> None:
    """Otherwise a Home Assistant whose broker forgets would stay without the bridge until its restart."""
    bridges.start()
    settled(recorder)
    topics = recorder.discoveries()
    told = len(recorder.messages)
    recorder.publish("homeassistant/status", "offline")
    recorder.publish("homeassistant/status", "online")
    wait_until(lambda: topics <= {seen.topic for seen in recorder.messages[told:] if seen.payload}, "all is told again")
    assert all(len([s for s in recorder.messages[told:] if s.topic == topic]) == 1 for topic in topics)


def test_what_is_switched_off_is_taken_away(bridges: Bridges, recorder: Recorder) -> None:
    """Otherwise entities that nobody feeds would stay in Home Assistant for ever."""
    bridge = bridges.start(homeassistant__buttons="a,b")
    settled(recorder)
    assert bridge.post(click("learned", "c1")) == 200
    wait_until(lambda: set(recorder.triggers()) == {"a", "b", "learned"}, "three")
    bridge.stop()
    again = bridges.start(homeassistant__buttons="b")
    wait_until(lambda: set(recorder.triggers()) == {"b", "learned"}, "a has gone")
    again.stop()
    off = bridges.start(homeassistant__discovery="false", homeassistant__buttons="b")
    wait_until(lambda: recorder.discoveries() == set(), "all has gone")
    assert off.post(click("fresh", "c2")) == 200
    wait_until(lambda: len(recorder.of("whatsapp/event/button/fresh")) == 1, "clicks go on")
    assert len(recorder.of("whatsapp/bridge/event/button")) == 1  # the one before


@pytest.mark.parametrize(
    "changed", [{"homeassistant__prefix": "ha"}, {"mqtt__base_topic": "home/wa"}], ids=["prefix", "base topic"]
)
def test_a_new_prefix_or_base_topic_leaves_nothing_of_the_old_one(
    bridges: Bridges, recorder: Recorder, changed: dict[str, str]
) -> None:
    """Otherwise the device would stand there twice, one of them dead."""
    first = bridges.start()
    settled(recorder)
    first.stop()
    before = recorder.discoveries()
    bridges.start(**changed)
    wait_until(lambda: len(recorder.discoveries()) == len(before), "as many as before")
    wait_until(lambda: not before & recorder.discoveries(), "and none of them the old ones")


def test_two_base_topics_on_one_broker_do_not_meet(bridges: Bridges, recorder: Recorder) -> None:
    """Otherwise the second bridge would take over the first one's entities."""
    bridges.start("one", mqtt__base_topic="home/wa")
    wait_until(lambda: len(recorder.discoveries()) > 20, "the first")
    first = recorder.discoveries()
    time.sleep(0.5)
    first = recorder.discoveries()
    bridges.start("two", mqtt__base_topic="home_wa")
    wait_until(lambda: len(recorder.discoveries()) == 2 * len(first), "both")
    told = [json.loads(recorder.standing[topic]) for topic in recorder.discoveries()]
    for key in ("unique_id", "object_id", "default_entity_id"):
        ids = [one[key] for one in told if key in one]
        assert len(set(ids)) == len(ids)


def test_clicks_on_one_topic_keep_their_distance(bridges: Bridges, recorder: Recorder) -> None:
    """Otherwise an older Home Assistant, which counts in milliseconds, would drop the second of two."""
    bridge = bridges.start(homeassistant__buttons="a")
    settled(recorder)
    body = click("a", "c0")
    body["messages"] = [{**body["messages"][0], "id": f"c{number}"} for number in range(40)]
    assert bridge.post(body) == 200
    for topic in ("whatsapp/event/button/a", "whatsapp/bridge/event/button"):
        wait_until(lambda topic=topic: len(recorder.of(topic)) == 40, "all of them")  # type: ignore[misc]
        found = recorder.of(topic)
        # Single gaps blur on the way; what 40 take together does not shrink below what was waited between them.
        assert found[-1].at - found[0].at > 39 * 0.005 * 0.9


def test_failed_messages_reach_the_entity_however_many_statuses_come(bridges: Bridges, recorder: Recorder) -> None:
    """Otherwise a burst would hide the one message that did not arrive."""
    bridge = bridges.start()
    settled(recorder)
    statuses = [{**status(f"m{number}", "sent")["statuses"][0]} for number in range(3_000)]
    statuses[2_999]["status"] = "failed"
    statuses[2_999]["errors"] = [{"code": 131_026, "title": "Message undeliverable {{ 1+1 }}"}]
    assert bridge.post({"statuses": statuses}) == 200
    wait_until(lambda: len(recorder.of("whatsapp/event/status/failed")) == 1, "the failed one")
    wait_until(lambda: len(recorder.of("whatsapp/event/status/sent")) == 2_999, "all of them on their own topic")
    wait_until(
        lambda: any(b'"event_type":"failed"' in seen.payload for seen in recorder.of("whatsapp/bridge/event/message")),
        "the failed one, for the entity",
    )
    wait_until(
        lambda: json.loads(recorder.standing["whatsapp/bridge/health"])["messages"]["sent"]["total"] == 2_999, "counts"
    )
    health = json.loads(recorder.standing["whatsapp/bridge/health"])
    assert health["messages"]["failed"] == {"today": 1, "total": 1}
    assert (health["last_failure"]["code"], health["last_failure"]["title"]) == (
        131_026,
        "Message undeliverable {{ 1+1 }}",
    )


def test_two_hundred_buttons_are_learned_together_and_each_clicked_once(bridges: Bridges, recorder: Recorder) -> None:
    """Otherwise a business with many buttons would wait a second for each, or lose some."""
    bridge = bridges.start(homeassistant__max_buttons="200")
    settled(recorder)
    body = click("b0", "c0")
    one = body["messages"][0]
    body["messages"] = [
        {**one, "id": f"c{number}", "button": {"payload": f"b{number}", "text": "Yes"}} for number in range(200)
    ]
    assert bridge.post(body) == 200
    wait_until(lambda: len(recorder.triggers()) == 200, "all triggers")
    wait_until(lambda: len(recorder.of("whatsapp/bridge/event/button")) == 200, "all clicks")
    for number in range(200):
        assert len(recorder.of(f"whatsapp/event/button/b{number}")) == 1
    # Once with the first few that were read, and once with the rest: not once for each.
    assert len(recorder.of(f"homeassistant/event/{NODE}/button/config")) < 10
    assert recorder.triggers()["Yes"] == "whatsapp/event/button/b0"
    assert recorder.triggers()["Yes (b7)"] == "whatsapp/event/button/b7"


def test_a_broker_that_takes_no_discovery_gets_everything_else(tmp_path: Path, bridges: Bridges) -> None:
    """Otherwise an access list that was right before discovery would stop the bridge."""
    rules = tmp_path / "acl"
    rules.write_text("topic readwrite whatsapp/#\n")
    guarded = Mosquitto(tmp_path / "guarded", extra=f"acl_file {rules}").start()
    try:
        bridges.broker = guarded
        bridge = bridges.start()
        with Recorder(guarded.port) as recorder:
            recorder._client.subscribe("whatsapp/#", 1)
            assert bridge.post(click("a", "c1")) == 200
            wait_until(lambda: len(recorder.of("whatsapp/event/button/a")) == 1, f"the click\n{bridge.tail()}")
        assert "homeassistant.discovery" in bridge.tail()
    finally:
        guarded.end()


def test_clean_shows_first_and_then_takes_everything_away(bridges: Bridges, recorder: Recorder) -> None:
    """Otherwise trying the bridge would leave traces on the broker for ever."""
    bridge = bridges.start()
    settled(recorder)
    recorder._client.publish("whatsapp/mine", "of somebody else", 1, retain=True)
    for body in (click("a", "c1"), status("m1", "read"), status("m/2", "failed")):
        assert bridge.post(body) == 200
    wait_until(lambda: len(recorder.of("whatsapp/bridge/event/button")) == 1, "the click")
    refused = clean(bridge, "--yes")
    assert refused.returncode == 2
    assert "clean: a bridge or a command uses" in refused.stderr
    bridge.stop()
    standing = dict(recorder.standing)
    shown = clean(bridge, "--list")
    assert shown.returncode == 0, shown.stderr
    assert set(shown.stdout.splitlines()) >= {topic for topic in standing if "config" in topic}
    assert recorder.standing == standing
    done = clean(bridge, "--yes")
    assert done.returncode == 0, done.stderr
    with Recorder(bridges.broker.port) as later:
        wait_until(lambda: "whatsapp/mine" in later.standing, "what others put there stays")
        assert set(later.messages[i].topic for i in range(len(later.messages))) == {"whatsapp/mine"}  # noqa: C401
    # And a bridge that starts again puts nothing old there.
    bridge.start()
    wait_until(lambda: recorder.standing.get("whatsapp/bridge/checkpoint") is not None, "back")
    wait_until(lambda: len(recorder.triggers()) == 1, "what was learned is known")
    assert not [topic for topic in recorder.standing if topic.endswith("/status") or "/last/" in topic]


def test_clean_finds_on_the_broker_what_the_journal_has_forgotten(bridges: Bridges, recorder: Recorder) -> None:
    """Otherwise a lost journal would leave topics that nobody can take away."""
    bridge = bridges.start()
    settled(recorder)
    assert bridge.post(status("m1", "read")) == 200
    wait_until(lambda: "whatsapp/last/status" in recorder.standing, "the status")
    bridge.stop()
    for file in bridge.state.iterdir():
        if file.is_file():
            file.unlink()
    assert clean(bridge, "--yes").returncode == 0
    wait_until(lambda: recorder.standing == {}, f"nothing stands: {recorder.standing.keys()}")
