"""Requests against real brokers: what they must never do is to stand in the way of what is published."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from brokers import AnyBroker, Mosquitto, Subscriber, Tap, publish
from publishing import Bridge, click, status

from bridge import failover, publisher
from bridge.publisher import LARGEST_HEARD
from bridge.requests import Requests

Publishing = Callable[..., Bridge]
Subscribe = Callable[..., Subscriber]


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "CHECKPOINT_GRACE", 0.2)
    monkeypatch.setattr(failover, "RETRY_FIRST", 0.02)


def taking(bridge: Bridge) -> Bridge:
    """The same bridge, started, taking requests: `health`, and `reconnect` for a new connection."""
    bridge.start()
    assert bridge.running is not None
    there = bridge.running.publisher
    deeds: dict[str, Any] = {
        "health": lambda _: {"fine": True},
        "reconnect": lambda _: there.reconnect() or {},  # type: ignore[func-returns-value]
    }
    requests = Requests(deeds, frozenset(deeds), there.answer)
    # Without a thread of its own: what was heard is carried out by the test.
    there.requests = requests
    return bridge


def carry_out(bridge: Bridge) -> None:
    """Carry out the next request that was heard."""
    assert bridge.running is not None
    requests = bridge.running.publisher.requests
    assert requests is not None
    request = requests._waiting.get(timeout=40)
    assert request is not None
    requests.carry_out(*request)


def start(make: Publishing, *arguments: Any, **settings: Any) -> Bridge:
    bridge: Bridge = make(*arguments, start=False, **settings)
    return taking(bridge)


def ready(there: Subscriber) -> None:
    there.wait_for_message("whatsapp/bridge/checkpoint")


def test_a_request_is_answered_and_the_answer_is_not_retained(
    broker: AnyBroker, subscriber: Subscribe, bridge_publisher: Publishing
) -> None:
    """A retained answer would be taken for a fresh one by whoever comes later."""
    there = subscriber(broker.port, "whatsapp/#", protocol=broker.protocol)
    bridge = start(bridge_publisher, broker.url, broker.protocol)
    ready(there)
    publish(broker.port, "whatsapp/bridge/request/health", b'{"transaction": "t"}')
    carry_out(bridge)
    answer = json.loads(there.wait_for_message("whatsapp/bridge/response/health").payload)
    assert answer == {"status": "ok", "transaction": "t", "data": {"fine": True}}
    late = subscriber(broker.port, "whatsapp/#", protocol=broker.protocol)
    late.wait_for_message("whatsapp/bridge/info")
    late.catch_up()
    assert not late.on("whatsapp/bridge/response/#")


def test_a_retained_request_does_not_fire_at_each_connection(
    broker: AnyBroker, subscriber: Subscribe, bridge_publisher: Publishing
) -> None:
    """The bridge would make a new connection at each new connection."""
    publish(broker.port, "whatsapp/bridge/request/reconnect", b"{}", retain=True)
    there = subscriber(broker.port, "whatsapp/bridge/#", protocol=broker.protocol)
    bridge = start(bridge_publisher, broker.url, broker.protocol)
    ready(there)
    publish(broker.port, "whatsapp/bridge/request/health", b"{}")
    carry_out(bridge)
    there.wait_for_message("whatsapp/bridge/response/health")
    assert not there.on("whatsapp/bridge/response/reconnect")


def test_a_request_for_a_new_connection_loses_and_repeats_nothing(
    mosquitto: Callable[..., Mosquitto], tap: Callable[[int], Tap], subscriber: Subscribe, bridge_publisher: Publishing
) -> None:
    """A click that was on its way would fire twice, or never."""
    server = mosquitto()
    between = tap(server.port)
    there = subscriber(server.port, "whatsapp/#")
    bridge = start(bridge_publisher, between.url(), "5")
    ready(there)
    for number in range(50):
        bridge.accept(click(f"b{number}", message=f"c{number}"))
    publish(server.port, "whatsapp/bridge/request/reconnect", b"{}")
    carry_out(bridge)
    for number in range(50, 100):
        bridge.accept(click(f"b{number}", message=f"c{number}"))
    between.wait_for(lambda: between.connections == 2)
    for number in range(100):
        there.wait_for_message(f"whatsapp/event/button/b{number}")
    there.catch_up()
    assert len(there.on("whatsapp/event/button/+")) == 100
    assert json.loads(there.wait_for_message("whatsapp/bridge/response/reconnect").payload)["status"] == "ok"


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_that_allows_neither_request_nor_answer_does_not_matter(
    mosquitto: Callable[..., Mosquitto], subscriber: Subscribe, bridge_publisher: Publishing, protocol: str
) -> None:
    """Who has given the bridge exactly what it needs for its topics must not lose them by an update."""
    server = mosquitto(
        users={"bridge": "b", "other": "o"},
        acl=[
            "user bridge",
            "topic readwrite whatsapp/#",
            "topic deny whatsapp/bridge/request/#",
            "topic deny whatsapp/bridge/response/#",
            "user other",
            "topic readwrite #",
        ],
    )
    there = subscriber(server.port, "whatsapp/#", credentials=("other", "o"))
    bridge = start(bridge_publisher, server.url("mqtt", "bridge", "b"), protocol)
    ready(there)
    assert bridge.running is not None
    for number in range(6):  # mosquitto hangs up at each, so the last are not even tried
        bridge.running.publisher.answer("bridge/response/health", b"{}")
        bridge.accept(status("sent", message=f"m{number}"))
        there.wait_for_message(f"whatsapp/m{number}/status")
    there.wait_for(lambda: json.loads(there.payloads("whatsapp/bridge/checkpoint")[-1])["seq"] == 6)
    assert bridge.running.publisher.trouble is None
    assert bridge.running.publisher.observer.connections <= 1 + publisher.STRIKES
    assert len(there.on("whatsapp/event/status/sent")) == 6
    assert not there.on("whatsapp/bridge/response/#")
    assert not bridge.running.journal.dead


def test_a_huge_request_is_read_past(
    mosquitto: Callable[..., Mosquitto], subscriber: Subscribe, bridge_publisher: Publishing
) -> None:
    """The broker takes messages of 256 MB: one would take all the memory of a small machine."""
    server = mosquitto()
    there = subscriber(server.port, "whatsapp/bridge/response/#", "whatsapp/bridge/checkpoint")
    bridge = start(bridge_publisher, server.url(), "5")
    ready(there)
    publish(server.port, "whatsapp/bridge/request/reconnect", b" " * (40 * 2**20))
    publish(server.port, "whatsapp/bridge/request/reconnect", b" " * LARGEST_HEARD)
    publish(server.port, "whatsapp/bridge/request/health", b"{}")
    carry_out(bridge)
    there.wait_for_message("whatsapp/bridge/response/health")
    assert not there.on("whatsapp/bridge/response/reconnect")


def test_a_flood_of_requests_does_not_hold_up_a_click(
    mosquitto: Callable[..., Mosquitto], subscriber: Subscribe, bridge_publisher: Publishing
) -> None:
    """Whoever may publish on the broker could keep the gate shut."""
    server = mosquitto()
    there = subscriber(server.port, "whatsapp/#")
    flood = subscriber(server.port, "nothing")
    bridge = start(bridge_publisher, server.url(), "5")
    ready(there)
    for number in range(5_000):
        flood.client.publish("whatsapp/bridge/request/health", b'{"transaction": %d}' % number, qos=0)
    bridge.accept(click("gate"))
    there.wait_for_message("whatsapp/event/button/gate")
    flood.catch_up()
    assert bridge.running is not None
    requests = bridge.running.publisher.requests
    assert requests is not None
    assert requests._waiting.qsize() <= 10
