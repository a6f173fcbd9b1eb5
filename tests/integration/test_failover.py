"""Several brokers: two that know nothing of each other, and the nodes of a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from brokers import PATIENCE, Mosquitto, NatsCluster, Subscriber
from publishing import NOON, Bridge, click, status

from bridge import failover, publisher
from bridge.model import Kind

Publishing = Callable[..., Bridge]
Subscribe = Callable[..., Subscriber]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long the pauses are is another test's matter."""
    monkeypatch.setattr(publisher, "CHECKPOINT_GRACE", 0.5)
    monkeypatch.setattr(publisher, "CHECKPOINT_EVERY", 0.1)
    monkeypatch.setattr(failover, "RETRY_FIRST", 0.02)
    monkeypatch.setattr(failover, "RETRY_MOST", 0.2)
    monkeypatch.setattr(failover, "SPREAD", 0.05)


def state(subscriber: Subscriber, message: str) -> str | None:
    """The status of a message as it stands on its topic, or None."""
    came = subscriber.payloads(f"whatsapp/{message}/status")
    return json.loads(came[-1])["status"] if came and came[-1] else None


def wait_checkpoint(subscriber: Subscriber, seq: int) -> None:
    """Until the bridge has told this broker that all up to this place stands on it."""
    subscriber.wait_for(
        lambda: any(json.loads(payload)["seq"] == seq for payload in subscriber.payloads("whatsapp/bridge/checkpoint"))
    )


def test_two_brokers_that_know_nothing_of_each_other_each_get_what_they_lack(
    mosquitto: Callable[..., Mosquitto], subscriber: Subscribe, bridge_publisher: Publishing
) -> None:
    """After failing over, dashboards would be empty; after coming back, they would show the state of yesterday."""
    one, two = mosquitto(remembers=True), mosquitto(remembers=True)
    bridge = bridge_publisher((one.url(), two.url()), "5")
    at_one = subscriber(one.port, "whatsapp/#")
    bridge.accept(status("sent", message="m1"), status("read", message="m2"), status("sent", message="m3"), click())
    at_one.wait_for_message("whatsapp/event/button/gate")
    bridge.wait_settled()
    wait_checkpoint(at_one, bridge.newest())
    one.save()  # the last checkpoint, too, or more than is lacking would be published again
    at_one.catch_up()

    one.kill()
    at_two = subscriber(two.port, "whatsapp/#")
    wait_checkpoint(at_two, bridge.newest())
    assert [state(at_two, message) for message in ("m1", "m2", "m3")] == ["sent", "read", "sent"]
    assert at_two.on("whatsapp/button/gate")
    assert not at_two.on("whatsapp/event/#")  # the click has fired at the first one
    assert json.loads(at_two.payloads("whatsapp/bridge/info")[-1])["broker"] == str(two.url())

    # While the first one is away: a state moves on, a topic is taken away, and something new comes.
    bridge.accept(status("read", message="m1", timestamp=NOON + 1), status("sent", message="m4"))
    bridge.wait_settled()
    bridge._appending.expire(Kind.STATUS, 2, 100)  # m2, which is the oldest
    bridge.publisher.clear_expired()
    at_two.wait_for_message("whatsapp/m2/status", b"")
    wait_checkpoint(at_two, bridge.newest())

    one.start()
    two.kill()
    back = subscriber(one.port, "whatsapp/#")
    wait_checkpoint(back, bridge.newest())
    back.wait_for(lambda: not state(back, "m2") and state(back, "m1") == "read")
    late = subscriber(one.port, "whatsapp/#")
    late.wait_for_message("whatsapp/m1/status")
    late.catch_up()
    assert [state(late, message) for message in ("m1", "m2", "m3", "m4")] == ["read", None, "sent", "sent"]
    assert not back.on("whatsapp/event/button/gate")
    # What the first one knew already was not sent again.
    assert [message.retain for message in back.on("whatsapp/m3/status")] == [True]


def test_a_broker_that_freezes_is_left_for_the_next(
    mosquitto: Callable[..., Mosquitto], subscriber: Subscribe, bridge_publisher: Publishing
) -> None:
    """A broker that hangs keeps its connections open: everything would wait for it for ever."""
    one, two = mosquitto(), mosquitto()
    at_two = subscriber(two.port, "whatsapp/#")
    bridge = bridge_publisher((one.url(), two.url()), "5", keepalive=5.0)
    bridge.accept(status("sent"))
    bridge.wait_settled()
    one.pause()
    bridge.accept(status("read", timestamp=NOON + 1))
    bridge.wait_settled()
    assert bridge.publisher.broker == two.url()
    at_two.wait_for(lambda: state(at_two, "m1") == "read")


@pytest.mark.timeout(6 * PATIENCE)  # more than the waits in it, which say what was missing
def test_the_nodes_of_a_cluster_replace_each_other_and_nothing_is_lost(
    cluster: Callable[[], NatsCluster], subscriber: Subscribe, bridge_publisher: Publishing
) -> None:
    """A cluster would be no better than one broker, or worse: each change of the node would cost events."""
    nodes = cluster()
    bridge = bridge_publisher(nodes.urls[:2], "3.1.1")
    witness = subscriber(nodes.ports[2], "whatsapp/#", protocol="3.1.1")
    for number in range(100):
        bridge.accept(status("sent", message=f"a{number}"))
    witness.wait_for(lambda: len(witness.on("whatsapp/event/#")) >= 50)
    nodes.kill(0)  # in mid-stream, and it loses its disk
    nodes.forget(0)
    for number in range(100):
        bridge.accept(status("read", message=f"a{number}", timestamp=NOON + 1))
    bridge.wait_for(lambda: bridge.settled() >= 200, 3 * PATIENCE)  # the cluster finds itself again first
    assert bridge.publisher.broker == nodes.urls[1]
    witness.wait_for(lambda: len({json.loads(m.payload)["event_id"] for m in witness.on("whatsapp/event/#")}) == 200)
    witness.wait_for(lambda: {state(witness, f"a{number}") for number in range(100)} == {"read"})
