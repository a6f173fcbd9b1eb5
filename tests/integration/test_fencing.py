"""A publisher that may not publish any more: nothing of what it still has reaches the broker."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
from brokers import Mosquitto, Subscriber

from bridge.clock import uptime
from bridge.config import Tls
from bridge.mqtt import Connection, ConnectionEndedError
from bridge.replicas import Lane, _Fenced
from tests.integration.test_mqtt import drive

Subscribe = Callable[..., Subscriber]


@dataclass
class FakeLane:
    """As far as a connection knows it."""

    is_held: bool = True
    is_leaving: bool = False
    may: bool = True

    def may_send(self) -> bool:
        return self.may


@pytest.fixture
def lane() -> FakeLane:
    return FakeLane()


@pytest.fixture
def connect(mosquitto: Callable[..., Mosquitto], lane: FakeLane) -> Iterator[Callable[..., Connection]]:
    """Makes connections of a lane to one mosquitto."""
    broker = mosquitto()
    opened: list[Connection] = []

    def one(client_id: str = "group", *, fenced: bool = True, **settings: Any) -> Connection:
        arguments = {"protocol": "5", "client_id": client_id, "keepalive": 30.0, **settings}
        made = (
            _Fenced(cast("Lane", lane), broker.url(), Tls(), **arguments)
            if fenced
            else Connection(broker.url(), Tls(), **arguments)
        )
        opened.append(made)
        made.open()
        drive(made, lambda: made.connected)
        return made

    one.port = broker.port  # type: ignore[attr-defined]
    yield one
    for made in opened:
        Connection.close(made)


def test_what_was_queued_before_a_pause_is_not_sent_after_it(
    connect: Any, lane: FakeLane, subscriber: Subscribe
) -> None:
    """After SIGCONT an old state would overwrite what another replica published meanwhile."""
    there = subscriber(connect.port, "whatsapp/#")
    connection = connect(will=("whatsapp/state", b"offline"))
    connection.publish("whatsapp/first", b"1", retain=True)
    drive(connection, lambda: connection.acks)
    connection.publish("whatsapp/second", b"2", retain=True)
    lane.may = False
    with pytest.raises(ConnectionEndedError, match="another replica may publish this by now"):
        connection.exchange()
    connection.close(politely=True)
    # Not politely: the broker tells with the will that it is gone.
    there.wait_for_message("whatsapp/state")
    assert there.on("whatsapp/first")
    assert not there.on("whatsapp/second")


def test_without_the_database_nothing_new_is_sent_and_acknowledgements_are_heard(connect: Any, lane: FakeLane) -> None:
    """What the broker took before the database was restarted would be published twice."""
    connection = connect()
    connection.publish("whatsapp/first", b"1", retain=True)
    lane.is_held = False
    assert connection.limits.in_flight == 0
    drive(connection, lambda: connection.acks)
    lane.is_held = True
    assert connection.limits.in_flight > 0


def test_what_was_acknowledged_is_heard_though_the_lease_is_over(connect: Any, lane: FakeLane) -> None:
    """The publisher may have waited for the database all that time, and would publish it again afterwards."""
    connection = connect()
    connection.publish("whatsapp/first", b"1", retain=True)
    connection.exchange()
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    assert poller.poll(10_000)
    lane.may = False
    with pytest.raises(ConnectionEndedError, match="another replica"):
        connection.exchange()
    assert [ack.code for ack in connection.acks] in ([0], [0x10])


def test_no_connection_is_made_while_another_one_may_publish(
    connect: Any, lane: FakeLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would displace the connection of the one that may."""
    monkeypatch.setattr("bridge.replicas.PERMISSION_PATIENCE", 0.1)
    lane.may = False
    with pytest.raises(ConnectionEndedError, match="another replica"):
        connect()
    monkeypatch.setattr("bridge.replicas.PERMISSION_PATIENCE", 60.0)
    lane.is_leaving = True
    with pytest.raises(ConnectionEndedError, match="another replica"):
        connect()


def test_what_a_displaced_connection_still_sends_goes_nowhere(connect: Any, subscriber: Subscribe) -> None:
    """A process may be paused between its look at the lease and its write: the broker has to stop it then."""
    there = subscriber(connect.port, "whatsapp/#")
    paused = connect("group-a")
    connect("group-a", fenced=False)
    paused.publish("whatsapp/late", b"1", retain=True)
    with pytest.raises(ConnectionEndedError):
        drive(paused, lambda: paused.acks)
    after = connect("group-b", fenced=False)
    after.publish("whatsapp/after", b"1", retain=True)
    drive(after, lambda: after.acks)
    there.wait_for_message("whatsapp/after")
    assert not there.on("whatsapp/late")


def test_the_will_is_kept_where_another_one_takes_the_place(connect: Any, subscriber: Subscribe) -> None:
    """Home Assistant would show everything as unavailable for a moment, each time that another replica leads."""
    there = subscriber(connect.port, "whatsapp/#")
    will: dict[str, Any] = {"will": ("whatsapp/state", b"offline"), "will_delay": 30.0}
    connect(**will).close(at_once=True)
    connect(**will)  # and while the one before is still there, as it was only paused
    second = connect(**will)
    second.publish("whatsapp/after", b"1", retain=True)
    drive(second, lambda: second.acks)
    there.wait_for_message("whatsapp/after")
    assert not there.on("whatsapp/state")
    # And told where nobody does.
    third = connect("other", will=("whatsapp/state", b"offline"), will_delay=1.0)
    third.close(at_once=True)
    there.wait_for_message("whatsapp/state")


def test_a_lane_may_send_until_its_lease_is_over_and_never_once_it_is_lost() -> None:
    """The clock since boot goes on while a process is paused: that is what tells it."""
    ended: list[bool] = []

    def make(connect: object, bell: object) -> Any:
        return SimpleNamespace(stop=lambda **_: None)

    lane = Lane("test", (1,), uptime() + 60, make, cast("Any", None), lambda _: False, lambda: ended.append(True))
    assert lane.may_send()
    lane.hold(uptime() - 1)
    assert not lane.may_send()
    lane.release()
    lane.hold(uptime() + 60)
    assert lane.is_held
    assert lane.may_send()
    lane.lose()
    lane.hold(uptime() + 60)
    assert not lane.may_send()
    while not lane.has_ended():
        pass
    assert ended == [True]
