"""The publisher with a real journal against real brokers: topics, order, loss, and brokers that misbehave."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from brokers import AnyBroker, Mosquitto, Publication, Subscriber, Tap
from publishing import NOON, NOON_ISO, Bridge, Logbook, click, status

from bridge import failover, publisher
from bridge.journal import BrokenStorageError, NotStoredError

Publishing = Callable[..., Bridge]
Subscribe = Callable[..., Subscriber]
Tapping = Callable[[int], Tap]

#: The bridge's own topics, which come with each connection.
OWN = ("whatsapp/bridge/state", "whatsapp/bridge/info", "whatsapp/bridge/checkpoint", "marker/subscriber")


def theirs(subscriber: Subscriber) -> dict[str, list[dict[str, Any]]]:
    """What came on the topics of the users' contract: the JSON of each, in order, by topic."""
    came: dict[str, list[dict[str, Any]]] = {}
    for message in subscriber.messages:
        if message.topic not in OWN:
            came.setdefault(message.topic, []).append(json.loads(message.payload))
    return came


def kept(broker: AnyBroker, subscriber: Subscribe, *expected: str) -> dict[str, dict[str, Any]]:
    """What a subscriber that comes now finds below the base topic; these topics are waited for."""
    late = subscriber(broker.port, "whatsapp/#", protocol=broker.protocol)
    for topic in expected:
        late.wait_for_message(topic)
    late.catch_up()
    return {topic: documents[-1] for topic, documents in theirs(late).items()}


def checkpoints(between: Tap, seq: int) -> list[Publication]:
    """The checkpoints for this place that went through."""
    return [p for p in between.on("whatsapp/bridge/checkpoint") if json.loads(p.payload)["seq"] == seq]


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried at once, and so on: how long the pauses are is another test's matter."""
    monkeypatch.setattr(publisher, "CHECKPOINT_GRACE", 0.2)
    monkeypatch.setattr(publisher, "CHECKPOINT_EVERY", 0.1)
    monkeypatch.setattr(failover, "RETRY_FIRST", 0.02)
    monkeypatch.setattr(failover, "RETRY_MOST", 0.1)
    monkeypatch.setattr(failover, "RETRY_REFUSED", 0.1)


# --- the contract -----------------------------------------------------------------------------------------------------


def test_a_status_is_published_as_state_event_and_latest(
    broker: AnyBroker, subscriber: Subscribe, bridge_publisher: Publishing
) -> None:
    """Automations and dashboards subscribe to exactly these topics and read exactly these keys."""
    there = subscriber(broker.port, "whatsapp/#", protocol=broker.protocol)
    bridge = bridge_publisher(broker.url, broker.protocol)
    update = status(
        "failed",
        message="wamid.AB+/=",
        conversation={"id": "c1"},
        errors=[{"code": 470, "title": "Re-engagement"}],
        business_phone="15550009000",
    )

    bridge.accept(update, received=NOON)

    document = (
        '{"message_id":"wamid.AB+/=","status":"failed","timestamp":1780315200,"received_at":"2026-06-01T12:00:00.000Z",'
        '"recipient_id":"15550001234","conversation":{"id":"c1"},"errors":[{"code":470,"title":"Re-engagement"}],'
        f'"business_phone":"15550009000","event_id":"{update.event_id}"}}'
    ).encode()
    for topic in ("whatsapp/wamid.AB%2B%2F%3D/status", "whatsapp/event/status/failed", "whatsapp/last/status"):
        assert there.wait_for_message(topic).payload == document
    bridge.wait_settled()
    there.catch_up()
    assert {topic: len(came) for topic, came in theirs(there).items()} == {
        "whatsapp/wamid.AB%2B%2F%3D/status": 1,
        "whatsapp/event/status/failed": 1,
        "whatsapp/last/status": 1,
    }
    assert set(kept(broker, subscriber, "whatsapp/wamid.AB%2B%2F%3D/status", "whatsapp/last/status")) == {
        "whatsapp/wamid.AB%2B%2F%3D/status",
        "whatsapp/last/status",
    }


def test_a_click_is_published_as_state_event_and_latest(
    broker: AnyBroker, subscriber: Subscribe, bridge_publisher: Publishing
) -> None:
    """The gate opens by exactly this topic, and a retained event would open it again at each restart."""
    there = subscriber(broker.port, "whatsapp/#", protocol=broker.protocol)
    bridge = bridge_publisher(broker.url, broker.protocol)
    update = click(
        "open gate",
        text="Open the gate",
        name="Ann",
        context={"id": "m0"},
        tag_name="t",
        template={"id": "1"},
        wa_ext='{"x":1}',
        business_phone="15550009000",
    )

    bridge.accept(update, received=NOON)

    document = (
        '{"payload":"open gate","text":"Open the gate","event_type":"open gate","message_id":"c1","from":"15550001234",'
        '"name":"Ann","timestamp":1780315200,"received_at":"2026-06-01T12:00:00.000Z","context":{"id":"m0"},'
        '"tag_name":"t","template":{"id":"1"},"wa_ext":"{\\"x\\":1}","business_phone":"15550009000",'
        f'"event_id":"{update.event_id}"}}'
    ).encode()
    for topic in ("whatsapp/button/open%20gate", "whatsapp/event/button/open%20gate", "whatsapp/last/button"):
        assert there.wait_for_message(topic).payload == document
    bridge.wait_settled()
    there.catch_up()
    assert {topic: len(came) for topic, came in theirs(there).items()} == {
        "whatsapp/button/open%20gate": 1,
        "whatsapp/event/button/open%20gate": 1,
        "whatsapp/last/button": 1,
    }
    assert set(kept(broker, subscriber, "whatsapp/button/open%20gate", "whatsapp/last/button")) == {
        "whatsapp/button/open%20gate",
        "whatsapp/last/button",
    }


def test_version_5_adds_the_event_id_and_lets_a_click_expire(
    mosquitto: Callable[..., Mosquitto], subscriber: Subscribe, bridge_publisher: Publishing
) -> None:
    """A consumer could not tell a duplicate without parsing, and a click kept for one that is away would fire late."""
    server = mosquitto()
    there = subscriber(server.port, "whatsapp/#")
    bridge = bridge_publisher(server.url(), "5", max_age=300.0)
    update = click()

    bridge.accept(update)

    event = there.wait_for_message("whatsapp/event/button/gate").properties
    assert event["UserProperty"] == [("event_id", update.event_id)]
    assert event["ContentType"] == "application/json"
    assert 200 < event["MessageExpiryInterval"] <= 300
    assert there.wait_for_message("whatsapp/button/gate").properties["UserProperty"] == [("event_id", update.event_id)]


def test_the_bridge_says_who_it_is_and_how_far_it_came(
    broker: AnyBroker, subscriber: Subscribe, bridge_publisher: Publishing, quick_retries: None
) -> None:
    """Home Assistant would show everything as unavailable, and a restart would not know what the broker has."""
    bridge = bridge_publisher(broker.url, broker.protocol)
    last = bridge.accept(status("sent"), status("delivered"))
    bridge.wait_settled()

    late = subscriber(broker.port, "whatsapp/bridge/#", protocol=broker.protocol)

    state = late.wait_for_message("whatsapp/bridge/state")
    assert (state.payload, state.retain) == (b"online", True)
    info = json.loads(late.wait_for_message("whatsapp/bridge/info").payload)
    assert list(info) == ["version", "broker", "protocol", "connected_at", "connection"]
    assert (info["version"], info["broker"], info["protocol"]) == ("1.2.3", str(broker.url), broker.protocol)
    assert info["connected_at"][:13] == NOON_ISO[:13]
    late.wait_for(
        lambda: json.loads((late.payloads("whatsapp/bridge/checkpoint") or [b'{"seq":0}'])[-1])["seq"] == last
    )
    assert bridge.publisher.connected
    assert bridge.publisher.trouble is None


def test_a_late_delivered_is_an_event_and_leaves_the_state_alone(
    broker: AnyBroker, subscriber: Subscribe, bridge_publisher: Publishing
) -> None:
    """A message that was read would turn back to delivered on every dashboard."""
    there = subscriber(broker.port, "whatsapp/#", protocol=broker.protocol)
    bridge = bridge_publisher(broker.url, broker.protocol)
    bridge.accept(status("read", timestamp=NOON - 1))
    bridge.wait_settled()

    bridge.accept(status("delivered", timestamp=NOON - 2))
    bridge.wait_settled()

    there.wait_for_message("whatsapp/event/status/delivered")
    there.catch_up()
    came = theirs(there)
    assert [document["status"] for document in came["whatsapp/m1/status"]] == ["read"]
    assert [document["status"] for document in came["whatsapp/last/status"]] == ["read", "delivered"]
    assert kept(broker, subscriber, "whatsapp/m1/status")["whatsapp/m1/status"]["status"] == "read"


def test_updates_of_one_topic_keep_their_order(
    broker: AnyBroker, subscriber: Subscribe, bridge_publisher: Publishing
) -> None:
    """The state would end on whichever came last by chance."""
    there = subscriber(broker.port, "whatsapp/#", protocol=broker.protocol)
    bridge = bridge_publisher(broker.url, broker.protocol)
    words = ["sent", "delivered", "read"]

    for i in range(60):
        bridge.accept(*(status(word, message=f"m{i}") for word in words))
    bridge.wait_settled()

    there.wait_for_message("whatsapp/m59/status", count=3)
    for i in range(60):
        documents = [json.loads(payload) for payload in there.payloads(f"whatsapp/m{i}/status")]
        assert [document["status"] for document in documents] == words
    there.catch_up()
    assert len(there.on("whatsapp/event/status/+")) == 180


# --- clicks -----------------------------------------------------------------------------------------------------------


def test_a_click_that_is_too_old_is_recorded_as_late_and_fires_nothing(
    broker: AnyBroker, subscriber: Subscribe, bridge_publisher: Publishing
) -> None:
    """The gate would open hours after somebody asked for it."""
    there = subscriber(broker.port, "whatsapp/#", protocol=broker.protocol)
    bridge = bridge_publisher(broker.url, broker.protocol)

    late = bridge.accept(click(timestamp=NOON - 301))
    bridge.wait_settled()

    there.wait_for_message("whatsapp/last/button")
    there.catch_up()
    came = theirs(there)
    assert set(came) == {"whatsapp/button/gate", "whatsapp/last/button"}
    assert all(list(document)[-1] == "late" and document["late"] is True for [document] in came.values())
    assert bridge.late() == [late]


def test_without_a_limit_every_click_fires(
    broker: AnyBroker, subscriber: Subscribe, bridge_publisher: Publishing
) -> None:
    """`events.max_age: off` would be a setting without effect."""
    there = subscriber(broker.port, "whatsapp/#", protocol=broker.protocol)
    bridge = bridge_publisher(broker.url, broker.protocol, max_age=None)

    bridge.accept(click(timestamp=NOON - 400_000))

    event = there.wait_for_message("whatsapp/event/button/gate")
    assert "late" not in json.loads(event.payload)
    assert "MessageExpiryInterval" not in event.properties


def test_a_click_that_waited_for_the_broker_is_late_and_one_that_is_young_fires(
    mosquitto: Callable[..., Mosquitto], subscriber: Subscribe, bridge_publisher: Publishing, quick_retries: None
) -> None:
    """When the broker comes back after a night, the clicks of the night must not all fire at once."""
    server = mosquitto()
    server.kill()
    bridge = bridge_publisher(server.url(), "5", start=False)
    old, young = click(message="c1", timestamp=NOON - 600), click(message="c2", timestamp=NOON)
    bridge.accept(old, young)

    server.start()
    there = subscriber(server.port, "whatsapp/#")
    bridge.start()
    bridge.wait_settled()

    there.wait_for_message("whatsapp/event/button/gate")
    there.catch_up()
    came = theirs(there)
    assert [document["event_id"] for document in came["whatsapp/event/button/gate"]] == [young.event_id]
    assert [document.get("late") for document in came["whatsapp/button/gate"]] == [True, None]


# --- brokers that are away --------------------------------------------------------------------------------------------


def test_a_broker_that_is_away_at_the_start_gets_everything_when_it_comes(
    broker: AnyBroker, subscriber: Subscribe, bridge_publisher: Publishing, logbook: Logbook, quick_retries: None
) -> None:
    """After a power cut the machines do not come back in a given order."""
    broker.down()
    bridge = bridge_publisher(broker.url, broker.protocol)
    bridge.accept(*(status(message=f"m{i}") for i in range(20)))
    away = logbook.wait_for_line("nothing reaches the broker; everything is kept until it does")
    assert "Connection refused" in away["why"]
    assert not bridge.publisher.connected
    assert bridge.publisher.trouble == away["why"]

    broker.up()
    bridge.wait_settled()

    found = kept(broker, subscriber, *(f"whatsapp/m{i}/status" for i in range(20)))
    assert len(found) == 21
    # Said once, however often it was tried.
    assert (
        len(logbook.said("nothing reaches the broker; everything is kept until it does", why="Connection refused")) == 1
    )
    assert logbook.wait_for_line("connected")["protocol"] == broker.protocol


def test_a_broker_that_is_killed_in_mid_stream_misses_nothing_and_gets_nothing_settled_again(
    broker: AnyBroker,
    subscriber: Subscribe,
    tap: Tapping,
    bridge_publisher: Publishing,
    logbook: Logbook,
    quick_retries: None,
) -> None:
    """A crash of the broker would lose messages, or fire what had fired."""
    between = tap(broker.port)

    broken: list[int] = []

    def killing(publication: Publication) -> bool:
        if len(between.on("whatsapp/event/status/+")) < 150 or broken:
            return True
        broker.down()
        with between.changing():
            broken.append(publication.connection)
        return False

    between.takes = killing
    bridge = bridge_publisher(between.url(), broker.protocol, start=False)
    updates = [status(word, message=f"m{i}") for i in range(100) for word in ("sent", "delivered", "read")]
    bridge.accept(*updates)
    place = {update.event_id: seq for seq, update in enumerate(updates, 1)}
    bridge.start()

    [broken_at] = between.wait_for(lambda: broken)
    logbook.wait_for_line("nothing reaches the broker; everything is kept until it does")
    settled = bridge.settled()
    broker.up()
    bridge.wait_settled()
    # What the broker had not yet written when it was killed is restored before this.
    between.wait_for(lambda: [p for p in checkpoints(between, len(updates)) if p.acknowledged])

    events = between.on("whatsapp/event/status/+")
    assert {event.event_id for event in events if event.acknowledged} == set(place)
    again = [event for event in events if event.connection > broken_at]
    assert all(place[event.event_id] > settled for event in again if event.event_id)
    states = kept(broker, subscriber, *(f"whatsapp/m{i}/status" for i in range(100)))
    assert {states[f"whatsapp/m{i}/status"]["status"] for i in range(100)} == {"read"}
    assert states["whatsapp/last/status"]["event_id"] == updates[-1].event_id
    assert bridge.dead_letters() == []


def test_a_publisher_that_is_stopped_in_mid_stream_goes_on_where_it_was(
    broker: AnyBroker, tap: Tapping, bridge_publisher: Publishing
) -> None:
    """An update of the bridge itself would lose messages or fire what had fired."""
    between = tap(broker.port)
    bridge = bridge_publisher(between.url(), broker.protocol, start=False)
    bridge.accept(*(status(message=f"m{i}") for i in range(700)))
    bridge.start()
    between.wait_for(lambda: len(between.on("whatsapp/event/status/sent")) >= 20)
    bridge.stop()
    settled, first = bridge.settled(), between.connections
    assert 0 < settled < 700

    bridge.start()
    bridge.wait_settled()

    events = between.on("whatsapp/event/status/sent")
    before = {event.event_id for event in events if event.connection <= first}
    after = {event.event_id for event in events if event.connection > first}
    assert len(before | after) == 700
    # What was acknowledged was settled at the end: nothing goes out twice.
    assert not before & after


# --- what the broker remembers ----------------------------------------------------------------------------------------


def test_a_broker_that_lost_its_memory_gets_the_retained_topics_back_and_no_event(
    broker: AnyBroker,
    subscriber: Subscribe,
    tap: Tapping,
    bridge_publisher: Publishing,
    logbook: Logbook,
    quick_retries: None,
) -> None:
    """After a restart of mosquitto the dashboards would be empty, or the gate would open again."""
    between = tap(broker.port)
    bridge = bridge_publisher(between.url(), broker.protocol)
    bridge.accept(*(status(message=f"m{i}") for i in range(30)))
    bridge.accept(status("read", message="m0"), click(timestamp=NOON - 9_000))
    bridge.wait_settled()
    topics = {*(f"whatsapp/m{i}/status" for i in range(30)), "whatsapp/button/gate", "whatsapp/last/status"}
    topics |= {"whatsapp/last/button"}
    before = kept(broker, subscriber, *topics)
    assert set(before) == topics
    broken_at = between.connections

    broker.down()
    broker.forget()
    broker.up()

    between.wait_for(
        lambda: topics <= {p.topic for p in between.published if p.connection > broken_at and p.acknowledged}
    )
    assert logbook.wait_for_line("retained topics restored")["topics"] == len(topics)
    assert kept(broker, subscriber, *topics) == before
    assert not [p for p in between.on("whatsapp/event/#") if p.connection > broken_at]


def test_a_restored_broker_is_not_restored_again(
    broker: AnyBroker, tap: Tapping, bridge_publisher: Publishing, logbook: Logbook, quick_retries: None
) -> None:
    """Each short cut of the line after one restart of the broker would send everything again."""
    between = tap(broker.port)
    bridge = bridge_publisher(between.url(), broker.protocol)
    seq = bridge.accept(*(status(message=f"m{i}") for i in range(5)))
    [first, *_] = between.wait_for(lambda: [p for p in checkpoints(between, seq) if p.acknowledged])
    broker.down()
    broker.forget()
    broker.up()
    between.wait_for(lambda: [p for p in checkpoints(between, seq) if p.acknowledged and p is not first])
    assert len(logbook.said("retained topics restored")) == 1

    broken_at = between.connections
    between.cut()
    logbook.wait_for_line("connected", count=3)
    seq = bridge.accept(status(message="new"))
    # The next checkpoint comes behind all that would be restored.
    between.wait_for(lambda: checkpoints(between, seq))

    again = {p.topic for p in between.on("whatsapp/+/status") if p.connection > broken_at}
    assert again == {"whatsapp/new/status", "whatsapp/last/status"}


def test_a_broker_that_forgot_nothing_gets_nothing_again(
    broker: AnyBroker, tap: Tapping, bridge_publisher: Publishing, logbook: Logbook, quick_retries: None
) -> None:
    """Each short cut of the line would send thousands of topics again."""
    between = tap(broker.port)
    bridge = bridge_publisher(between.url(), broker.protocol)
    seq = bridge.accept(*(status(message=f"m{i}") for i in range(20)))
    between.wait_for(lambda: [p for p in checkpoints(between, seq) if p.acknowledged])

    broken_at = between.connections
    between.cut()
    logbook.wait_for_line("connected", count=2)
    seq = bridge.accept(status(message="new"))
    # The next checkpoint comes behind all that would be restored.
    between.wait_for(lambda: checkpoints(between, seq))

    again = {p.topic for p in between.published if p.connection > broken_at}
    assert again == {
        "whatsapp/bridge/state",
        "whatsapp/bridge/info",
        "whatsapp/bridge/checkpoint",
        "whatsapp/new/status",
        "whatsapp/last/status",
        "whatsapp/event/status/sent",
    }
    assert not logbook.said("retained topics restored")


def test_a_bridge_that_is_stopped_before_all_was_restored_restores_it_next_time(
    broker: AnyBroker, subscriber: Subscribe, bridge_publisher: Publishing, logbook: Logbook
) -> None:
    """Topics would be missing on the broker for ever: its checkpoint would say that it has them."""
    bridge = bridge_publisher(broker.url, broker.protocol)
    bridge.accept(*(status(message=f"m{i}") for i in range(5)))
    bridge.wait_settled()
    bridge.stop()
    broker.down()
    broker.forget()
    broker.up()

    # Stopped in the moment in which a missing checkpoint may still come.
    bridge.start()
    logbook.wait_for_line("connected", count=2)
    bridge.stop()

    bridge.start()
    kept(broker, subscriber, *(f"whatsapp/m{i}/status" for i in range(5)), "whatsapp/last/status")


# --- what the broker does not allow -----------------------------------------------------------------------------------


def test_what_may_not_be_published_is_held_and_told_once_and_goes_out_when_it_may(
    mosquitto: Callable[..., Mosquitto],
    subscriber: Subscribe,
    bridge_publisher: Publishing,
    logbook: Logbook,
    quick_retries: None,
) -> None:
    """A forgotten line in the broker's permissions would lose every message until somebody notices."""
    server = mosquitto(acl=["topic read #", "topic write whatsapp/bridge/#", "topic write marker/#"])
    there = subscriber(server.port, "whatsapp/#")
    bridge = bridge_publisher(server.url(), "5")
    updates = [status(message=f"m{i}") for i in range(5)]
    bridge.accept(*updates)

    denied = logbook.wait_for_line("nothing reaches the broker; everything is kept until it does", why="0x87")
    assert "does not allow the bridge to publish to whatsapp/" in denied["why"]
    assert "allow it whatsapp/#" in denied["why"]
    logbook.wait_for_line("trying again what was not allowed", count=6)
    assert len(logbook.said("nothing reaches the broker; everything is kept until it does")) == 1
    assert bridge.dead_letters() == []
    assert bridge.settled() == 0
    server.allow("topic readwrite #")
    server.reload()
    bridge.wait_settled()

    there.wait_for(lambda: len(there.on("whatsapp/event/status/sent")) == 5)
    there.catch_up()
    events = theirs(there)["whatsapp/event/status/sent"]
    assert [event["event_id"] for event in events] == [update.event_id for update in updates]


def test_a_click_fires_once_also_where_only_its_state_is_not_allowed(
    mosquitto: Callable[..., Mosquitto],
    subscriber: Subscribe,
    bridge_publisher: Publishing,
    logbook: Logbook,
    quick_retries: None,
) -> None:
    """The gate would open again with each try to publish what is not allowed."""
    acl = ["topic read #", "topic write whatsapp/bridge/#", "topic write whatsapp/event/#", "topic write marker/#"]
    server = mosquitto(acl=acl)
    there = subscriber(server.port, "whatsapp/#")
    bridge = bridge_publisher(server.url(), "5")
    bridge.accept(click())
    # Fired, or held with its state, but never more than once.
    logbook.wait_for_line("trying again what was not allowed", count=4)
    server.allow("topic readwrite #")
    server.reload()
    bridge.wait_settled()

    there.wait_for_message("whatsapp/button/gate")
    there.catch_up()
    assert len(there.on("whatsapp/event/button/gate")) == 1


def test_what_may_not_be_published_is_held_under_3_1_1_too_where_the_bridge_may_not_even_introduce_itself(
    mosquitto: Callable[..., Mosquitto],
    subscriber: Subscribe,
    bridge_publisher: Publishing,
    logbook: Logbook,
    quick_retries: None,
) -> None:
    """Under 3.1.1 a publication that is not allowed is acknowledged: everything would be settled, and lost."""
    server = mosquitto(acl=["topic read #", "topic write marker/#"])
    there = subscriber(server.port, "whatsapp/#", protocol="3.1.1")
    bridge = bridge_publisher(server.url(), "3.1.1")
    bridge.accept(*(status(message=f"m{i}") for i in range(5)))

    logbook.wait_for_line("nothing reaches the broker; everything is kept until it does")
    assert bridge.settled() == 0
    server.allow("topic readwrite #")
    server.reload()
    bridge.wait_settled()

    there.wait_for_message("whatsapp/event/status/sent", count=5)


def test_a_broker_that_drops_silently_what_is_not_allowed_is_found_out(
    broker: AnyBroker,
    tap: Tapping,
    subscriber: Subscribe,
    bridge_publisher: Publishing,
    logbook: Logbook,
    quick_retries: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under 3.1.1 a publication that is not allowed is acknowledged: everything would be settled, and lost."""
    monkeypatch.setattr(publisher, "CANARY_AGAIN", 0.1)
    monkeypatch.setattr(publisher, "CANARY_GIVE_UP", 0.3)
    between = tap(broker.port)
    between.swallows = lambda _: True
    there = subscriber(broker.port, "whatsapp/#", protocol=broker.protocol)
    bridge = bridge_publisher(between.url(), broker.protocol)
    bridge.accept(*(status(message=f"m{i}") for i in range(5)))

    line = logbook.wait_for_line("nothing reaches the broker; everything is kept until it does")
    assert "does not give back what is published to it" in line["why"]
    assert "allow the bridge to publish and to read whatsapp/#" in line["why"]
    assert not between.on("whatsapp/event/#")
    assert bridge.settled() == 0
    monkeypatch.setattr(publisher, "CANARY_GIVE_UP", 5.0)
    between.swallows = lambda _: False
    bridge.wait_settled()

    there.wait_for_message("whatsapp/event/status/sent", count=5)


def test_a_broker_that_lost_the_first_publication_has_all_of_it_at_last(
    broker: AnyBroker,
    tap: Tapping,
    subscriber: Subscribe,
    bridge_publisher: Publishing,
    quick_retries: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A NATS cluster that had only just begun acknowledged it: the bridge was `offline` for everyone who came later."""
    monkeypatch.setattr(publisher, "CANARY_AGAIN", 0.1)
    monkeypatch.setattr(publisher, "CANARY_GIVE_UP", 1.0)
    between = tap(broker.port)
    between.swallows = lambda _: not between.published
    bridge = bridge_publisher(between.url(), broker.protocol)
    bridge.accept(status())
    bridge.wait_settled()

    late = subscriber(broker.port, "whatsapp/bridge/#", protocol=broker.protocol)

    assert late.wait_for_message("whatsapp/bridge/state").payload == b"online"
    assert late.wait_for_message("whatsapp/bridge/info").retain


# --- one bad thing harms only itself ----------------------------------------------------------------------------------


def test_what_is_too_large_for_the_broker_becomes_a_dead_letter_and_the_rest_goes_on(
    mosquitto: Callable[..., Mosquitto], subscriber: Subscribe, bridge_publisher: Publishing
) -> None:
    """One oversized callback would stop everything behind it for ever."""
    server = mosquitto(lines=["max_packet_size 3000"])
    there = subscriber(server.port, "whatsapp/#")
    bridge = bridge_publisher(server.url(), "5")
    large = status("sent", message="large", conversation={"text": "x" * 4000})

    bridge.accept(status(message="before"), large, status(message="behind"))
    dead = bridge.wait_dead(2)
    bridge.wait_settled()

    there.wait_for_message("whatsapp/behind/status")
    there.catch_up()
    assert "whatsapp/large/status" not in theirs(there)
    assert {(source, reason) for source, reason, _ in dead} == {
        ("publication", "it is larger than the broker's maximum packet size of 3000 bytes")
    }
    bodies = [json.loads(body) for _, _, body in dead]
    assert [(body["topic"], body["retain"]) for body in bodies] == [
        ("whatsapp/large/status", True),
        ("whatsapp/event/status/sent", False),
    ]
    assert all(json.loads(body["payload"])["event_id"] == large.event_id for body in bodies)


@pytest.mark.parametrize("advances", [True, False])
def test_what_the_broker_hangs_up_at_becomes_a_dead_letter_and_the_rest_goes_on(
    broker: AnyBroker,
    advances: bool,
    subscriber: Subscribe,
    tap: Tapping,
    bridge_publisher: Publishing,
    quick_retries: None,
) -> None:
    """One message that a broker cannot bear would come back for ever and block everything behind it."""
    between = tap(broker.port)
    between.takes = lambda publication: b"poison" not in publication.payload
    there = subscriber(broker.port, "whatsapp/#", protocol=broker.protocol)
    bridge = bridge_publisher(between.url(), broker.protocol, start=False)
    before = [status(message=f"before{i}") for i in range(5)]
    # A late `delivered` does not advance: it is only an event, and the latest of all where it stands at the end.
    poison = status("delivered", message="m1", conversation={"id": "poison"})
    behind = [status(message=f"behind{i}") for i in range(5)]
    bridge.accept(*before, *([] if advances else [status("read", message="m1", timestamp=NOON - 1)]), poison)
    bridge.start()

    # The state (where it advances), the latest of all, the event.
    dead = bridge.wait_dead(3 if advances else 2)
    bridge.accept(*behind)
    bridge.wait_settled()

    topics = [json.loads(body)["topic"] for _, _, body in dead]
    assert topics == [
        *(["whatsapp/m1/status"] if advances else []),
        "whatsapp/last/status",
        "whatsapp/event/status/delivered",
    ]
    assert {reason for _, reason, _ in dead} == {"the broker ended the connection 3 times when it got this"}
    there.wait_for(lambda: len(there.on("whatsapp/event/status/sent")) >= 10)
    assert all(p.acknowledged for p in between.published if p.event_id == behind[-1].event_id)


def test_a_broker_that_acknowledges_nothing_is_left_and_gets_it_on_the_next_connection(
    broker: AnyBroker,
    subscriber: Subscribe,
    tap: Tapping,
    bridge_publisher: Publishing,
    logbook: Logbook,
    quick_retries: None,
) -> None:
    """A broker that hangs but answers pings would hold everything for ever."""
    between = tap(broker.port)
    between.acknowledges = lambda publication: publication.topic in OWN[:2]
    bridge = bridge_publisher(between.url(), broker.protocol, keepalive=0.3)
    update = status()
    bridge.accept(update)

    away = logbook.wait_for_line("nothing reaches the broker; everything is kept until it does")
    assert away["why"] == f"{between.url()} acknowledges nothing any more"
    between.acknowledges = lambda _: True
    bridge.wait_settled()

    assert [p.event_id for p in between.on("whatsapp/event/status/sent") if p.acknowledged] == [update.event_id]
    assert bridge.dead_letters() == []


# --- the end, and trouble with the journal ----------------------------------------------------------------------------


def test_a_bridge_that_stops_says_so_and_notes_what_is_settled(
    broker: AnyBroker, subscriber: Subscribe, bridge_publisher: Publishing
) -> None:
    """It would look alive after it was stopped, and fire again what had fired when it comes back."""
    there = subscriber(broker.port, "whatsapp/#", protocol=broker.protocol)
    bridge = bridge_publisher(broker.url, broker.protocol)
    last = bridge.accept(*(status(message=f"m{i}") for i in range(50)))
    there.wait_for_message("whatsapp/event/status/sent", count=50)

    bridge.stop()

    assert bridge.settled() == last
    there.catch_up()
    assert there.payloads("whatsapp/bridge/state") == [b"online", b"offline"]
    state = subscriber(broker.port, "whatsapp/bridge/state", protocol=broker.protocol)
    assert state.wait_for_message("whatsapp/bridge/state").payload == b"offline"


def test_a_bridge_can_be_stopped_while_the_broker_is_away(
    bridge_publisher: Publishing, mosquitto: Callable[..., Mosquitto], logbook: Logbook
) -> None:
    """A stop would hang until somebody kills it."""
    server = mosquitto()
    server.kill()
    bridge = bridge_publisher(server.url(), "5")
    bridge.accept(status())
    logbook.wait_for_line("nothing reaches the broker; everything is kept until it does")
    bridge.stop()
    assert bridge.settled() == 0


def test_a_bridge_can_be_stopped_while_the_broker_acknowledges_nothing(
    bridge_publisher: Publishing, mosquitto: Callable[..., Mosquitto], tap: Tapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop would hang until somebody kills it."""
    monkeypatch.setattr(publisher, "STOP_PATIENCE", 0.3)
    between = tap(mosquitto().port)
    between.acknowledges = lambda publication: publication.topic in OWN[:2]
    bridge = bridge_publisher(between.url(), "5")
    bridge.accept(status())
    between.wait_for(lambda: between.on("whatsapp/event/#"))
    bridge.stop()
    assert bridge.settled() == 0


def test_a_journal_that_takes_no_note_for_a_while_stops_nothing(
    broker: AnyBroker, subscriber: Subscribe, bridge_publisher: Publishing, logbook: Logbook
) -> None:
    """A disk that is full for a minute would end the bridge."""
    there = subscriber(broker.port, "whatsapp/#", protocol=broker.protocol)
    bridge = bridge_publisher(broker.url, broker.protocol)
    bridge.journal.refusals = [NotStoredError("the disk is full; make room") for _ in range(3)]

    bridge.accept(status())
    bridge.wait_for(lambda: bridge.journal.refused == 3)
    bridge.accept(status("delivered"))
    bridge.wait_settled()

    there.wait_for_message("whatsapp/event/status/delivered")
    there.catch_up()
    assert len(there.on("whatsapp/event/status/+")) == 2
    lines = logbook.said("what was published could not be noted; it is tried again")
    assert [line["why"] for line in lines] == ["the disk is full; make room"]


def test_storage_that_failed_ends_the_publisher_with_its_reason(
    mosquitto: Callable[..., Mosquitto], bridge_publisher: Publishing
) -> None:
    """After an fsync that failed only a new process may try again; going on would look as if all were well."""
    bridge = bridge_publisher(mosquitto().url(), "5")
    running = bridge.running
    assert running is not None
    bridge.journal.refusals = [BrokenStorageError("the storage failed")]

    bridge.accept(status())
    running.thread.join()

    assert [re.sub(r"\s.*", "", str(error)) for error in running.died_of] == ["the"]
    assert isinstance(running.died_of[0], BrokenStorageError)
    running.died_of.clear()
