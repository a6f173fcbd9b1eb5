"""The publisher's decisions, with a scripted connection, a real journal and a clock that is set by hand."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog

from bridge import publisher as module
from bridge.clock import Clock
from bridge.config import BrokerUrl, Tls
from bridge.discovery import Discovery
from bridge.homeassistant import Plan
from bridge.journal import BusyError, Callback
from bridge.journal import sqlite as sqlite_module
from bridge.journal.sqlite import SqliteJournal
from bridge.model import ButtonClick, Kind, StatusUpdate, Update
from bridge.mqtt import Ack, ConnectionEndedError, Limits, Message
from bridge.publisher import Publisher, PublisherSettings
from bridge.topics import entry

#: 2026-06-01T12:00:00Z
NOON = 1_780_315_200
BROKER = BrokerUrl("mqtt", "broker", 1883)
AWAY = "nothing reaches the broker; everything is kept until it does"


def status(word: str = "sent", message: str = "m1", timestamp: int = NOON) -> StatusUpdate:
    return StatusUpdate(message_id=message, status=word, timestamp=timestamp)


def click(payload: str = "gate", message: str = "c1", timestamp: int = NOON) -> ButtonClick:
    return ButtonClick(payload=payload, message_id=message, timestamp=timestamp)


# --- a broker by script -----------------------------------------------------------------------------------------------


@dataclass
class Sent:
    """A publication that the publisher queued."""

    number: int
    topic: str
    payload: bytes
    retain: bool
    expiry: float | None
    properties: tuple[tuple[str, str], ...]
    acknowledged: bool = False

    @property
    def event_id(self) -> str:
        return dict(self.properties).get("event_id", "")


@dataclass
class FakeConnection:
    """What `Connection` is to the publisher; the broker behind it does what the test says."""

    broker: FakeBroker
    protocol: str
    will: tuple[str, bytes]
    at: float
    limits: Limits = field(default_factory=Limits)
    connected: bool = False
    is_dead: bool = False
    closed: str = ""
    acks: list[Ack] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    asked: int = 0
    most_in_flight: int = 0
    _handled: int = 0
    _coming: list[Message] = field(default_factory=list)

    def open(self) -> None:
        refusal = self.broker.refuses(self)
        if refusal is not None:
            raise refusal

    def close(self, *, politely: bool = False) -> None:
        self.closed = "politely" if politely else "abruptly"

    def fileno(self) -> int:
        return -1

    def poll(self, poller: FakePoll) -> None:
        poller.is_ready = not self.connected or self._handled < len(self.sent) or bool(self._coming or self.acks)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool,
        expiry: float | None = None,
        properties: tuple[tuple[str, str], ...] = (),
    ) -> int:
        self.sent.append(Sent(len(self.sent) + 1, topic, payload, retain, expiry, properties))
        self.most_in_flight = max(self.most_in_flight, len([sent for sent in self.sent if not sent.acknowledged]))
        return len(self.sent)

    def subscribe(self, *topics: str, qos: int) -> int:
        assert qos == 0, "a NATS cluster whose node has died makes what QoS 1 needs too late"
        self.asked += 1
        for topic in topics:
            if topic in self.broker.retained and self.broker.gives_back:
                self._coming.append(Message(topic, self.broker.retained[topic], retain=True))
        return self.asked

    def exchange(self) -> None:
        """The broker takes what was sent since, in order; an error ends it, with what was answered before in `acks`."""
        if self.is_dead:
            raise ConnectionEndedError(HUNG_UP, hung_up=True)
        if not self.connected:
            self.connected = True
            self.limits = self.broker.limits
            return
        self.messages += self._coming
        self._coming = []
        for sent in self.sent[self._handled :][: self.broker.pace]:
            answer = self.broker.answer(sent)
            if isinstance(answer, ConnectionEndedError):
                raise answer
            self._handled += 1
            if answer is not None:
                self.acknowledge(sent, answer)
        self.broker.end_if_asked()

    def acknowledge(self, sent: Sent, code: int = 0) -> None:
        sent.acknowledged = True
        self.acks.append(Ack(sent.number, code))
        if code < 0x80 and sent.retain and sent.payload:
            self.broker.retained[sent.topic] = sent.payload
        elif code < 0x80 and sent.retain:
            self.broker.retained.pop(sent.topic, None)

    def on(self, prefix: str) -> list[Sent]:
        return [sent for sent in self.sent if sent.topic.startswith(f"whatsapp/{prefix}")]

    def topics(self) -> list[str]:
        """Of what was sent beside the bridge's own."""
        return [s.topic.removeprefix("whatsapp/") for s in self.sent if not s.topic.startswith("whatsapp/bridge/")]


class FakeBroker:
    """What the connections of a test have in common.

    Attributes:
        answer: To a publication: a reason code, None for no answer yet, or the error with which the connection ends.
        refuses: Why a connection does not come about, or None.
        gives_back: Whether retained messages come to those who subscribe.
        pace: So many publications are taken at a time; None: all.
    """

    def __init__(self, now: Now) -> None:
        self._now = now
        self.connections: list[FakeConnection] = []
        self.retained: dict[str, bytes] = {}
        self.limits = Limits()
        self.gives_back = True
        self.pace: int | None = None
        self.answer: Callable[[Sent], int | ConnectionEndedError | None] = lambda _: 0
        self.refuses: Callable[[FakeConnection], ConnectionEndedError | None] = lambda _: None
        self._ending: ConnectionEndedError | None = None

    def connect(self, _: BrokerUrl, __: Tls, *, protocol: str, will: tuple[str, bytes], **___: Any) -> FakeConnection:
        self.connections.append(FakeConnection(self, protocol, will, self._now()))
        return self.connections[-1]

    def end(self, why: str = "the broker ended the connection (test)") -> None:
        """End the connection when it is next looked at."""
        self._ending = ConnectionEndedError(why, hung_up=True)

    def die(self) -> None:
        """End the connection before anything else is taken."""
        for connection in self.connections[-1:]:
            connection.is_dead = True

    def end_if_asked(self) -> None:
        ending, self._ending = self._ending, None
        if ending is not None:
            raise ending

    @property
    def last(self) -> FakeConnection:
        return self.connections[-1]

    def checkpoint(self) -> int | None:
        """The place that the broker's checkpoint names."""
        payload = self.retained.get("whatsapp/bridge/checkpoint")
        return None if payload is None else json.loads(payload)["seq"]


HUNG_UP = "mqtt://broker:1883 ended the connection (closed)"


def own(sent: Sent) -> bool:
    return sent.topic.startswith("whatsapp/bridge/")


def greeting(sent: Sent) -> bool:
    return sent.topic in ("whatsapp/bridge/state", "whatsapp/bridge/info")


# --- a publisher without a thread -------------------------------------------------------------------------------------


class Now:
    """All clocks of a test."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def wall(self) -> float:
        return NOON + self.seconds - 1000.0


class FakePoll:
    """Waiting is nothing but time that passes, and hardly any where the broker has something."""

    def __init__(self, now: Now) -> None:
        self._now = now
        self.is_ready = False

    def register(self, *_: Any) -> None:
        pass

    def poll(self, milliseconds: float) -> None:
        self._now.seconds += 0.001 if self.is_ready else max(milliseconds, 1) / 1000


class SilentDoorbell:
    def fileno(self) -> int:
        return -1

    def ring(self) -> None:
        pass

    def silence(self) -> None:
        pass


class Desk:
    """A publisher, the broker that it talks to, and the journal that it reads."""

    def __init__(self, path: Path, now: Now, **settings: Any) -> None:
        self.now = now
        self.broker = FakeBroker(now)
        SqliteJournal(path).create()
        self.journal = SqliteJournal(path, durable=False)
        self.journal.__enter__()
        self.settings = PublisherSettings(
            **{  # type: ignore[arg-type]
                "brokers": (BROKER,),
                "tls": Tls(),
                "protocols": ("5",),
                "client_id": "bridge",
                "keepalive": 30.0,
                "base_topic": "whatsapp",
                "max_age": 300.0,
                **settings,
            }
        )
        self.publisher = self.anew()

    def anew(self, *, discovery: bool = False) -> Publisher:
        """A new publisher on the same journal, as after a restart of the bridge."""
        plan = Plan(
            enabled=True,
            prefix="homeassistant",
            base_topic="whatsapp",
            version="1",
            link="https://example.org/",
        )
        self.publisher = Publisher(
            self.settings,
            self.journal,
            SilentDoorbell(),  # type: ignore[arg-type]
            Clock(wall=self.now.wall, uptime=self.now),
            connect=self.broker.connect,  # type: ignore[arg-type]
            monotonic=self.now,
            discovery=Discovery(plan, self.journal, monotonic=self.now) if discovery else None,
        )
        self.publisher.start()
        return self.publisher

    def accept(self, *updates: Update) -> None:
        self.journal.append([Callback(tuple(entry(update, self.now.wall()) for update in updates))])

    def turn(self) -> None:
        """One turn of `run`: all that can be done now, then the wait."""
        for _ in range(100_000):
            if not self.publisher.step():
                break
        else:
            pytest.fail("the publisher never comes to rest")
        self.publisher._wait()

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        until = self.now.seconds + seconds
        while self.now.seconds < until:
            self.turn()

    def run_until(self, what: Callable[[], Any], most: float = 600.0) -> Any:
        """Let time pass until something holds; fail if it does not within so many seconds."""
        until = self.now.seconds + most
        while self.now.seconds < until:
            if found := what():
                return found
            self.turn()
        pytest.fail(f"did not happen in {most} s")

    def run_until_settled(self, most: float = 600.0) -> None:
        self.run_until(lambda: self.journal.backlog() == 0, most)

    def run_until_ready(self) -> FakeConnection:
        self.run_until(lambda: self.publisher.connected)
        return self.broker.last

    def run_until_known(self) -> None:
        """Until the broker's checkpoint says that all is settled and restored."""
        self.run_until_settled()
        self.run_until(lambda: self.broker.checkpoint() == self.journal.settled())

    def finish(self) -> None:
        """What `run` does when it was told to stop."""
        self.publisher.stop()
        self.publisher._finish()

    def dead_letters(self) -> list[tuple[str, dict[str, Any]]]:
        rows = self.journal._opened().execute("SELECT reason, body FROM dead_letters ORDER BY id")
        return [(reason, json.loads(body)) for reason, body in rows]

    def late(self) -> list[int]:
        return [seq for (seq,) in self.journal._opened().execute("SELECT seq FROM updates WHERE late ORDER BY seq")]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Now:
    now = Now()
    monkeypatch.setattr(sqlite_module, "uptime", now)
    monkeypatch.setattr(module.select, "poll", lambda: FakePoll(now))
    return now


@pytest.fixture
def make_desk(tmp_path: Path, now: Now) -> Iterator[Callable[..., Desk]]:
    desks: list[Desk] = []

    def make(**settings: Any) -> Desk:
        desks.append(Desk(tmp_path / f"journal-{len(desks)}.db", now, **settings))
        return desks[-1]

    yield make
    for desk in desks:
        desk.journal.__exit__()


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    return make_desk()


@pytest.fixture
def log() -> Iterator[list[dict[str, Any]]]:
    with structlog.testing.capture_logs() as lines:
        yield lines  # type: ignore[misc]


def said(log: list[dict[str, Any]], event: str = AWAY) -> list[str]:
    return [line.get("why", "") for line in log if line["event"] == event]


# --- the window -------------------------------------------------------------------------------------------------------


def test_no_more_is_in_flight_than_the_broker_allows(desk: Desk) -> None:
    """A broker hangs up at one publication too many, and everything would go out again for ever."""
    desk.broker.limits = Limits(in_flight=20)
    desk.accept(*(status(message=f"m{i}") for i in range(200)))

    desk.run_until_settled()

    # The checkpoint goes out beside them.
    assert 15 <= desk.broker.last.most_in_flight <= 20
    assert len(desk.broker.last.on("event/")) == 200


def test_no_more_is_in_flight_than_the_bridge_itself_wants(desk: Desk) -> None:
    """Tens of thousands in flight would all go out again when the line is cut."""
    desk.accept(*(status(message=f"m{i}") for i in range(40)))
    desk.run_until_settled()
    assert desk.broker.last.most_in_flight <= module.WINDOW + 1


def test_updates_leave_in_the_order_in_which_they_came(desk: Desk) -> None:
    """The state would end on whichever came last by chance."""
    updates = [status(word, message=f"m{i}") for i in range(400) for word in ("sent", "delivered")]
    desk.accept(*updates)
    desk.run_until_settled()
    assert [sent.event_id for sent in desk.broker.last.on("event/")] == [update.event_id for update in updates]


def test_nothing_goes_out_before_the_broker_has_shown_that_it_gives_back(desk: Desk) -> None:
    """A broker that drops silently would have all settled before it is found out."""
    desk.broker.gives_back = False
    desk.accept(status())

    desk.run(module.CANARY_GIVE_UP - 2)

    assert {sent.topic for sent in desk.broker.last.sent} == {"whatsapp/bridge/state", "whatsapp/bridge/info"}
    assert desk.broker.last.asked > 2
    desk.broker.gives_back = True
    desk.run_until_settled()
    assert len(desk.broker.connections) == 1


def test_a_broker_that_gives_nothing_back_is_left_with_words(desk: Desk, log: list[dict[str, Any]]) -> None:
    """Under 3.1.1 nothing else tells that publishing is not allowed."""
    desk.broker.gives_back = False
    desk.accept(status())

    desk.run_until(lambda: len(desk.broker.connections) == 4)

    words = "does not give back what is published to it; allow the bridge to publish and to read whatsapp/#"
    assert said(log) == [f"mqtt://broker:1883 {words}"]
    assert desk.journal.settled() == 0


def test_somebody_elses_introduction_is_not_taken_for_our_own(desk: Desk) -> None:
    """What the bridge of yesterday left on the broker proves nothing about today."""
    yesterdays = b'{"version":"0"}'

    def dropping(sent: Sent) -> int | None:
        if sent.topic != "whatsapp/bridge/info":
            return 0
        desk.broker.last.acknowledge(sent)
        desk.broker.retained["whatsapp/bridge/info"] = yesterdays
        return None

    desk.broker.answer = dropping
    desk.accept(status())
    desk.run(60)
    assert not any(connection.on("event/") for connection in desk.broker.connections)
    assert len(desk.broker.connections) > 2


def test_a_broker_that_hangs_up_at_the_introduction_leaves_no_dead_letter(desk: Desk) -> None:
    """The dead letters would fill with the bridge's own words each time a broker starts badly."""
    desk.accept(status())
    desk.broker.answer = lambda sent: (
        ConnectionEndedError(HUNG_UP, hung_up=True) if sent.topic == "whatsapp/bridge/info" else 0
    )
    desk.run(60)
    assert len(desk.broker.connections) > 4
    assert desk.dead_letters() == []


# --- a new connection -------------------------------------------------------------------------------------------------


def test_what_was_not_acknowledged_goes_out_again_in_order_and_what_was_does_not(desk: Desk) -> None:
    """Lost otherwise, or fired twice."""
    updates = [status(message=f"m{i}") for i in range(6)]
    desk.accept(*updates)
    taken = {updates[0].event_id, updates[1].event_id, updates[3].event_id}
    desk.broker.answer = lambda sent: 0 if own(sent) or sent.event_id in taken else None
    desk.run_until(lambda: desk.broker.connections and len(desk.broker.last.on("event/")) == 6)
    desk.turn()

    desk.broker.answer = lambda _: 0
    desk.broker.end()
    desk.run_until_settled()

    assert len(desk.broker.connections) == 2
    again = [sent.event_id for sent in desk.broker.last.on("event/")]
    assert again == [updates[i].event_id for i in (2, 4, 5)]


def test_an_acknowledgement_that_comes_with_the_end_counts(desk: Desk) -> None:
    """The broker's last word before it went down would be forgotten, and the gate opened a second time."""
    first, second = click(message="c1"), click("door", message="c2")
    desk.accept(first, second)

    def dying(sent: Sent) -> int | ConnectionEndedError:
        is_second = sent.event_id == second.event_id and sent.topic.startswith("whatsapp/event/")
        return ConnectionEndedError(HUNG_UP, hung_up=True) if is_second else 0

    desk.broker.answer = dying
    desk.run_until(lambda: len(desk.broker.connections) == 1 and desk.broker.last.closed)
    desk.broker.answer = lambda _: 0
    desk.run_until_settled()

    fired = [sent.event_id for connection in desk.broker.connections for sent in connection.on("event/button/gate")]
    assert fired == [first.event_id]


def test_an_older_state_is_not_sent_again_over_a_newer_one(desk: Desk) -> None:
    """A message that was read would turn back to sent when the line was cut at the wrong moment."""
    older, newer = status("sent"), status("read")
    desk.accept(older, newer)
    desk.broker.answer = lambda sent: 0 if own(sent) or sent.event_id == newer.event_id else None
    desk.run_until(lambda: desk.broker.connections and len(desk.broker.last.on("event/")) == 2)
    desk.turn()

    desk.broker.answer = lambda _: 0
    desk.broker.end()
    desk.run_until_settled()

    assert desk.broker.last.topics()[0] == "event/status/sent"
    # The newer one may come again, from the ledger: there was no checkpoint yet.
    assert {sent.event_id for sent in desk.broker.last.on("m1/")} <= {newer.event_id}
    assert json.loads(desk.broker.retained["whatsapp/m1/status"])["status"] == "read"


def test_an_older_latest_of_all_is_not_sent_again_over_a_newer_one(desk: Desk) -> None:
    """The dashboard would show an older message as the latest."""
    older, newer = status(message="m1"), status(message="m2")
    desk.accept(older)
    desk.broker.answer = lambda sent: 0 if own(sent) or sent.event_id == newer.event_id else None
    desk.run_until(lambda: desk.broker.connections and desk.broker.last.on("event/"))
    desk.accept(newer)
    desk.run_until(lambda: len(desk.broker.last.on("last/")) == 2)
    desk.turn()

    desk.broker.answer = lambda _: 0
    desk.broker.end()
    desk.run_until_settled()

    assert json.loads(desk.broker.retained["whatsapp/last/status"])["message_id"] == "m2"


def test_nothing_is_settled_that_stands_behind_what_is_not(desk: Desk) -> None:
    """A restart of the bridge would leave it out."""
    updates = [status(message=f"m{i}") for i in range(3)]
    desk.accept(*updates)
    desk.broker.answer = lambda sent: None if sent.event_id == updates[1].event_id else 0

    desk.run(5)

    assert desk.journal.settled() == 1
    desk.broker.last.acknowledge(desk.broker.last.on("m1/")[0])
    desk.broker.last.acknowledge(desk.broker.last.on("event/")[1])
    desk.run(5)
    assert desk.journal.settled() == 3


def test_a_bridge_that_starts_again_sends_only_what_is_not_settled(desk: Desk) -> None:
    """Everything would fire again with each restart."""
    desk.accept(status("sent"), click())
    desk.run_until_known()
    desk.finish()

    desk.anew()
    desk.accept(status("read"))
    desk.run_until_settled()

    assert desk.broker.last.topics() == ["m1/status", "last/status", "event/status/read"]


# --- clicks -----------------------------------------------------------------------------------------------------------


def test_a_click_may_be_kept_at_the_broker_only_for_what_is_left_of_its_time(desk: Desk) -> None:
    """A consumer that comes back after an hour would open the gate."""
    desk.accept(click(timestamp=NOON - 100))
    desk.run_until_settled()
    [event] = desk.broker.last.on("event/")
    assert event.expiry == pytest.approx(200, abs=5)
    assert [sent.expiry for sent in (*desk.broker.last.on("button/"), *desk.broker.last.on("last/"))] == [
        86_400,
        86_400,
    ]


def test_a_status_is_never_too_old(desk: Desk) -> None:
    """What became of a message matters also when it is told late."""
    desk.accept(status(timestamp=NOON - 90_000))
    desk.run_until_settled()
    assert [sent.expiry for sent in desk.broker.last.on("event/")] == [None]
    assert desk.late() == []


def test_a_click_that_grew_too_old_between_two_connections_fires_no_more_and_is_marked(desk: Desk) -> None:
    """The broker comes back after ten minutes, and the gate opens for nobody."""
    desk.accept(click())
    desk.broker.answer = lambda sent: 0 if own(sent) else None
    desk.run_until(lambda: desk.broker.connections and desk.broker.last.on("event/"))
    desk.broker.refuses = lambda _: ConnectionEndedError("nobody there")
    desk.broker.end()
    desk.run(301)

    desk.broker.refuses = lambda _: None
    desk.broker.answer = lambda _: 0
    desk.run_until_settled()

    assert sorted(desk.broker.last.topics()) == ["button/gate", "last/button"]
    for topic in ("button/gate", "last/button"):
        assert json.loads(desk.broker.retained[f"whatsapp/{topic}"])["late"] is True
    assert desk.late() == [1]


def test_a_state_that_stood_as_one_that_would_fire_is_corrected(desk: Desk) -> None:
    """The dashboard would show a click that never had its effect as if it had."""
    desk.accept(click())
    desk.broker.answer = lambda sent: None if sent.topic.startswith("whatsapp/event/") else 0
    desk.run_until(lambda: desk.broker.connections and desk.broker.last.on("event/"))
    desk.turn()
    assert "late" not in json.loads(desk.broker.retained["whatsapp/button/gate"])
    desk.broker.refuses = lambda _: ConnectionEndedError("nobody there")
    desk.broker.end()
    desk.run(301)

    desk.broker.refuses = lambda _: None
    desk.broker.answer = lambda _: 0
    desk.run_until_settled()

    assert json.loads(desk.broker.retained["whatsapp/button/gate"])["late"] is True
    assert not desk.broker.last.on("event/")


def test_a_click_that_grew_too_old_while_it_waited_for_its_turn_fires_no_more(desk: Desk) -> None:
    """A broker that takes one message in ten seconds would open the gate an hour late."""
    desk.broker.limits = Limits(in_flight=1)
    desk.accept(*(status(message=f"m{i}") for i in range(10)), click())
    held: list[Sent] = []

    def slowly(sent: Sent) -> int | None:
        if own(sent):
            return 0
        held.append(sent)
        return None

    desk.broker.answer = slowly
    desk.run_until_ready()
    for _ in range(60):
        desk.run(20)
        while held:
            desk.broker.last.acknowledge(held.pop(0))
    desk.run_until(lambda: desk.journal.backlog() == 0 or not held)

    assert not desk.broker.last.on("event/button/")
    assert desk.late() == [11]


def test_a_click_that_turns_late_while_home_assistant_learns_its_button(make_desk: Callable[..., Desk]) -> None:
    """The gate would open although the click is too old, or nobody would learn that there was one."""
    desk = make_desk(max_age=0.5)
    desk.anew(discovery=True)
    desk.run_until_ready()
    desk.accept(click(timestamp=int(desk.now.wall())))
    desk.run_until_settled()

    assert any(sent.topic.startswith("homeassistant/device_automation/") for sent in desk.broker.last.sent)
    assert desk.broker.last.on("event/") == []
    assert json.loads(desk.broker.retained["whatsapp/button/gate"])["late"] is True
    assert desk.late() == [1]


def test_a_click_that_turned_late_is_not_done_with_what_was_sent_before(make_desk: Callable[..., Desk]) -> None:
    """Where the line breaks just then, the dashboard would show for ever that the gate was opened."""
    desk = make_desk(max_age=0.5)
    desk.anew(discovery=True)
    desk.run_until_ready()
    desk.broker.answer = lambda sent: None if sent.topic in {"whatsapp/button/gate", "whatsapp/last/button"} else 0
    desk.accept(click(timestamp=int(desk.now.wall())))
    connection = desk.broker.last
    desk.run_until(lambda: len(connection.on("button/")) == len(connection.on("last/")) == 2)
    for sent in (connection.on("button/")[0], connection.on("last/")[0]):
        connection.acknowledge(sent)
    desk.run(2)
    desk.broker.end()
    desk.broker.answer = lambda _: 0

    desk.run(5)

    for topic in ("whatsapp/button/gate", "whatsapp/last/button"):
        assert json.loads(desk.broker.retained[topic])["late"] is True


def test_a_broker_that_hangs_up_at_discovery_gets_everything_else(make_desk: Callable[..., Desk]) -> None:
    """mosquitto 2.0 does this where an ACL does not allow it; nothing would flow any more."""
    desk = make_desk()
    desk.anew(discovery=True)
    desk.accept(click(), status(message="m1"))

    def hanging_up(sent: Sent) -> int | ConnectionEndedError:
        return ConnectionEndedError(HUNG_UP, hung_up=True) if sent.topic.startswith("homeassistant/") else 0

    desk.broker.answer = hanging_up
    desk.run_until_settled()

    assert "whatsapp/m1/status" in desk.broker.retained
    assert list(desk.journal.dead_letters()) == []


def test_after_a_restart_a_late_click_is_still_told_as_late(desk: Desk) -> None:
    """What is restored would look like a click that fired."""
    desk.accept(click(timestamp=NOON - 400))
    desk.run_until_known()
    desk.finish()
    desk.broker.retained.clear()

    desk.anew()
    desk.run_until(lambda: "whatsapp/button/gate" in desk.broker.retained)

    assert json.loads(desk.broker.retained["whatsapp/button/gate"])["late"] is True


# --- what the broker remembers ----------------------------------------------------------------------------------------


def restored(desk: Desk) -> list[str]:
    """What goes out again at the next connection of a bridge that has nothing new."""
    desk.run_until_ready()
    desk.run(module.CHECKPOINT_GRACE + 2)
    return sorted(desk.broker.last.topics())


def test_what_was_settled_behind_the_brokers_checkpoint_is_restored(desk: Desk) -> None:
    """A broker that writes every half hour would miss what it had not written when it was killed."""
    desk.accept(*(status(message=f"m{i}") for i in range(5)))
    desk.run_until_known()
    desk.finish()
    assert desk.broker.checkpoint() == 5
    desk.broker.retained["whatsapp/bridge/checkpoint"] = json.dumps(
        {"seq": 3, "journal": desk.journal.identity()}
    ).encode()

    desk.anew()

    assert restored(desk) == ["last/status", "m3/status", "m4/status"]


@pytest.mark.parametrize(
    "checkpoint",
    [
        None,
        b"",
        b"nonsense",
        b"[1]",
        b"null",
        b"7",
        b"{}",
        b'{"seq":2}',
        b'{"seq":2,"journal":"another"}',
        b'{"seq":-1,"journal":"%s"}',
        b'{"seq":3,"journal":"%s"}',
        b'{"seq":"x","journal":"%s"}',
        b'{"seq":null,"journal":"%s"}',
        b'{"seq":[2],"journal":"%s"}',
        b'{"seq":1e300,"journal":"%s"}',
        b'{"seq":2,"journal":["%s"]}',
    ],
)
def test_a_checkpoint_that_is_none_of_ours_restores_everything(desk: Desk, checkpoint: bytes | None) -> None:
    """Topics would be missing for ever, or anybody who may publish could end the bridge."""
    desk.accept(status(message="m0"), status(message="m1"))
    desk.run_until_known()
    desk.finish()
    desk.broker.retained.pop("whatsapp/bridge/checkpoint")
    if checkpoint is not None:
        checkpoint = checkpoint.replace(b"%s", desk.journal.identity().encode())
        desk.broker.retained["whatsapp/bridge/checkpoint"] = checkpoint

    desk.anew()

    assert restored(desk) == ["last/status", "m0/status", "m1/status"]


def test_the_broker_is_asked_again_before_everything_is_restored(desk: Desk) -> None:
    """A broker that has just started hands out what it kept late: everything would be sent for nothing."""
    desk.accept(*(status(message=f"m{i}") for i in range(5)))
    desk.run_until_known()
    desk.finish()
    checkpoint = desk.broker.retained.pop("whatsapp/bridge/checkpoint")
    desk.anew()

    connection = desk.run_until_ready()
    desk.broker.retained["whatsapp/bridge/checkpoint"] = checkpoint
    desk.run(module.CHECKPOINT_GRACE + 2)

    assert connection.topics() == []


def test_what_is_new_goes_before_what_is_restored(desk: Desk) -> None:
    """A click would wait until thousands of topics were restored, and be late."""
    desk.accept(*(status(message=f"m{i}") for i in range(50)))
    desk.run_until_known()
    desk.finish()
    desk.broker.retained.clear()
    desk.anew()
    desk.broker.limits = Limits(in_flight=5)
    desk.accept(click())

    desk.run_until_settled()
    desk.run(5)

    assert desk.broker.last.topics()[:3] == ["button/gate", "last/button", "event/button/gate"]
    assert len(desk.broker.last.on("m")) == 50


def test_the_checkpoint_does_not_run_ahead_of_what_is_restored(desk: Desk) -> None:
    """A second crash during the restoring would leave topics missing for ever."""
    desk.accept(*(status(message=f"m{i}") for i in range(50)))
    desk.run_until_known()
    desk.finish()
    desk.broker.retained.clear()
    desk.anew()
    desk.broker.limits = Limits(in_flight=5)
    desk.broker.answer = lambda sent: 0 if own(sent) or sent.event_id == late.event_id else None
    late = status(message="new")
    desk.accept(late)

    desk.run_until_settled()
    desk.run(5)

    assert desk.broker.checkpoint() is None
    desk.broker.end()
    desk.broker.answer = lambda _: 0
    desk.run(10)
    assert desk.broker.checkpoint() == 51
    assert len([topic for topic in desk.broker.retained if topic.startswith("whatsapp/m")]) == 50


@pytest.mark.parametrize("answer", [None, 0x87])
def test_the_checkpoint_waits_until_what_is_restored_was_taken(desk: Desk, answer: int | None) -> None:
    """One topic that the broker did not take would be missing for ever, behind a checkpoint that says it is there."""
    desk.accept(*(status(message=f"m{i}") for i in range(5)))
    desk.run_until_known()
    desk.broker.retained.clear()
    desk.broker.answer = lambda sent: answer if sent.topic == "whatsapp/m3/status" else 0
    desk.broker.end()
    desk.run(25)
    assert desk.broker.checkpoint() is None

    desk.broker.answer = lambda _: 0
    desk.run_until(lambda: desk.broker.checkpoint() == 5)
    assert "whatsapp/m3/status" in desk.broker.retained


@pytest.mark.parametrize("seconds", [0.0, 0.6, 1.05])
def test_a_bridge_that_stops_before_all_is_restored_leaves_no_checkpoint(desk: Desk, seconds: float) -> None:
    """Its checkpoint would say that the broker has what it never got back."""
    desk.accept(*(status(message=f"m{i}") for i in range(50)))
    desk.run_until_known()
    desk.finish()
    desk.broker.retained.clear()
    desk.anew()
    desk.broker.limits = Limits(in_flight=1)
    desk.run_until_ready()
    desk.broker.answer = lambda sent: 0 if own(sent) else None
    desk.run(seconds)

    desk.finish()

    assert desk.broker.checkpoint() is None
    desk.broker.answer = lambda _: 0
    desk.anew()
    desk.run_until_ready()
    desk.run(10)
    assert len([topic for topic in desk.broker.retained if topic.startswith("whatsapp/m")]) == 50


def test_one_that_ends_knows_whether_something_may_still_arrive(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever goes on in its place would publish beside what waits in a kernel, or wait for nothing."""
    desk.accept(status())
    desk.run_until_known()
    desk.finish()
    assert desk.publisher.is_through

    desk.anew()
    desk.run_until_known()
    desk.broker.answer = lambda sent: None if "/checkpoint" in sent.topic else 0
    desk.accept(status("read", message="another"))
    desk.run_until(lambda: any("/checkpoint" in flight.topic for flight in desk.publisher._flights.values()))
    desk.finish()
    assert desk.publisher.is_through, "a checkpoint that comes late has more restored, and no more"

    desk.broker.answer = lambda _: 0
    desk.anew()
    desk.run_until_ready()
    desk.broker.answer = lambda _: None
    desk.accept(status("read"))
    desk.turn()
    desk.finish()
    assert not desk.publisher.is_through, "it was sent, and not acknowledged"

    desk.broker.answer = lambda _: 0
    desk.anew()
    desk.run_until_ready()
    desk.broker.answer = lambda _: None
    desk.accept(status("deleted"))
    desk.turn()
    desk.broker.end()
    desk.run_until(lambda: not desk.publisher.connected)
    desk.broker.answer = lambda _: 0
    desk.run_until_known()
    desk.run_until(lambda: not desk.publisher._flights)
    desk.broker.end()
    desk.run_until(lambda: not desk.publisher.connected)
    desk.finish()
    assert desk.publisher.is_through, "all was acknowledged on the next connection, which had the same name"

    desk.anew()
    desk.run_until_ready()
    desk.broker.answer = lambda _: None
    desk.accept(status("failed"))
    desk.turn()
    before = len(desk.broker.connections)
    desk.broker.end()
    desk.run_until(lambda: not desk.publisher.connected)
    monkeypatch.setattr(FakeConnection, "exchange", lambda _: None)  # the next one gets no answer
    desk.run_until(lambda: len(desk.broker.connections) > before)
    desk.finish()
    assert not desk.publisher.is_through, "it was sent on a connection that broke"

    desk.anew()
    desk.run_until(lambda: len(desk.broker.connections) > before + 1)
    desk.finish()
    assert desk.publisher.is_through, "nothing but what it says of itself was ever sent"


def test_a_broker_that_got_everything_back_gets_a_checkpoint_too(desk: Desk) -> None:
    """Each cut of the line that follows would send everything again."""
    desk.accept(*(status(message=f"m{i}") for i in range(5)))
    desk.run_until_known()
    desk.broker.retained.clear()
    desk.broker.end()
    desk.run_until(lambda: len(desk.broker.connections) == 2)
    assert len(restored(desk)) == 6

    assert desk.broker.checkpoint() == 5
    desk.broker.end()
    desk.run_until(lambda: len(desk.broker.connections) == 3)
    assert restored(desk) == []


def test_the_latest_of_all_comes_back_also_while_its_update_is_on_its_way(desk: Desk) -> None:
    """The dashboard's latest message would be missing until there is a next one."""
    desk.accept(status(message="m1"))
    # All but the latest of all is held, so that it goes out again without caution.
    desk.broker.answer = lambda sent: 0x87 if sent.topic.endswith(("m1/status", "event/status/sent")) else 0
    desk.run_until(lambda: "whatsapp/last/status" in desk.broker.retained)
    desk.run_until(lambda: desk.broker.last.closed)
    # The broker goes back to what it had written before.
    desk.broker.retained.clear()
    older = json.dumps({"seq": 0, "journal": desk.journal.identity()}).encode()
    desk.broker.retained["whatsapp/bridge/checkpoint"] = older
    desk.broker.answer = lambda _: 0

    desk.run_until(lambda: desk.broker.checkpoint() == 1)

    assert {"whatsapp/m1/status", "whatsapp/last/status"} <= set(desk.broker.retained)


# --- bad things -------------------------------------------------------------------------------------------------------


def test_what_the_broker_refuses_for_its_own_sake_becomes_a_dead_letter(desk: Desk) -> None:
    """One strange topic would stop everything behind it."""
    bad, behind = status(message="m1"), status(message="m2")
    desk.accept(bad, behind)
    desk.broker.answer = lambda sent: 0x90 if sent.topic == "whatsapp/m1/status" else 0

    desk.run_until_settled()

    [(reason, body)] = desk.dead_letters()
    assert reason == "the broker refused it with reason code 0x90"
    assert (body["topic"], body["retain"]) == ("whatsapp/m1/status", True)
    assert json.loads(body["payload"])["event_id"] == bad.event_id
    assert [sent.event_id for sent in desk.broker.last.on("event/")] == [bad.event_id, behind.event_id]


def test_what_the_broker_never_took_is_not_restored_either(desk: Desk) -> None:
    """The same dead letter would come with each restart of the broker."""
    desk.accept(status(message="m1"), status(message="m2"))
    desk.broker.answer = lambda sent: 0x90 if sent.topic == "whatsapp/m1/status" else 0
    desk.run_until_settled()
    desk.broker.retained.clear()
    desk.broker.end()
    desk.run_until(lambda: len(desk.broker.connections) == 2)

    assert restored(desk) == ["last/status", "m2/status"]


def test_a_topic_is_restored_once_the_broker_has_taken_something_newer(desk: Desk) -> None:
    """One oversized status would keep a message from coming back for as long as the bridge runs."""
    desk.accept(status("sent"))
    desk.broker.answer = lambda sent: 0x90 if sent.topic == "whatsapp/m1/status" else 0
    desk.run_until_settled()
    desk.broker.answer = lambda _: 0
    desk.accept(status("read"))
    desk.run_until_settled()
    desk.broker.retained.clear()
    desk.broker.end()
    desk.run_until(lambda: len(desk.broker.connections) == 2)

    assert restored(desk) == ["last/status", "m1/status"]


@pytest.mark.parametrize("code", [0x87, 0x97])
def test_what_the_broker_does_not_allow_waits(desk: Desk, log: list[dict[str, Any]], code: int) -> None:
    """A forgotten permission, or a full disk at the broker, would lose every message until somebody notices."""
    desk.accept(*(status(message=f"m{i}") for i in range(5)))
    desk.broker.answer = lambda sent: 0 if own(sent) else code

    desk.run(120)

    assert desk.journal.settled() == 0
    assert desk.dead_letters() == []
    assert len(desk.broker.connections) <= 26
    assert len(said(log)) == 1
    words = {0x87: "does not allow the bridge to publish to whatsapp/m0/status (0x87)", 0x97: "quota is exceeded"}
    assert words[code] in said(log)[0]
    assert desk.publisher.trouble in (None, said(log)[0])
    desk.broker.answer = lambda _: 0
    desk.run_until_settled()


@pytest.mark.parametrize("pace", [None, 1])
def test_what_waits_for_a_permission_does_not_fire_again_what_was_taken(desk: Desk, pace: int | None) -> None:
    """With a state that may not be published the gate would open every ten seconds."""
    desk.broker.pace = pace
    desk.accept(click())
    desk.broker.answer = lambda sent: 0x87 if sent.topic == "whatsapp/button/gate" else 0

    desk.run(60)

    assert len([sent for connection in desk.broker.connections for sent in connection.on("event/")]) == 1


def test_a_permission_that_was_given_ends_the_trouble_also_where_nothing_is_new(desk: Desk) -> None:
    """The admin page, and Home Assistant, would tell of a trouble that is long over."""
    desk.accept(*(status(message=f"m{i}") for i in range(3)))
    desk.run_until_known()
    desk.broker.retained.clear()
    desk.broker.answer = lambda sent: 0x87 if sent.topic == "whatsapp/m1/status" else 0
    desk.broker.end()
    desk.run_until(lambda: desk.publisher.trouble and "0x87" in desk.publisher.trouble)

    desk.broker.answer = lambda _: 0
    desk.run_until(lambda: desk.broker.checkpoint() == 3)

    assert desk.publisher.connected
    assert desk.publisher.trouble is None


def test_a_denial_counts_also_where_the_broker_hangs_up_behind_it(desk: Desk, log: list[dict[str, Any]]) -> None:
    """mosquitto 2.0.11 does: everything would become dead letters instead of waiting for the permission."""
    desk.accept(*(status(message=f"m{i}") for i in range(5)))

    def denying(sent: Sent) -> int | ConnectionEndedError:
        if own(sent):
            return 0
        desk.broker.last.acknowledge(sent, 0x87)
        return ConnectionEndedError(HUNG_UP, hung_up=True)

    desk.broker.answer = denying
    desk.run(120)

    assert desk.dead_letters() == []
    assert desk.journal.settled() == 0
    assert len(said(log)) == 1
    assert "0x87" in said(log)[0]


@pytest.mark.parametrize("behind", [0, 1, 30])
@pytest.mark.parametrize("advances", [True, False])
def test_what_the_broker_hangs_up_at_three_times_becomes_a_dead_letter(desk: Desk, advances: bool, behind: int) -> None:
    """A message that a broker cannot bear would block everything behind it, for ever."""
    poison = status("delivered")
    desk.accept(
        *(status(message=f"a{i}") for i in range(3)),
        *([] if advances else [status("read")]),
        poison,
        *(status(message=f"b{i}") for i in range(behind)),
    )
    desk.broker.answer = lambda sent: (
        ConnectionEndedError(HUNG_UP, hung_up=True) if sent.event_id == poison.event_id else 0
    )

    desk.run_until_settled()

    topics = [body["topic"] for _, body in desk.dead_letters()]
    expected = ["m1/status"] * advances + ["last/status"] * (behind == 0) + ["event/status/delivered"]
    assert topics == [f"whatsapp/{topic}" for topic in expected]
    assert {reason for reason, _ in desk.dead_letters()} == {"the broker ended the connection 3 times when it got this"}


def test_only_what_the_broker_hangs_up_at_is_a_dead_letter(desk: Desk) -> None:
    """A broker that is restarted three times while something is on its way would cost that message."""
    updates = [status(message=f"m{i}") for i in range(5)]
    desk.accept(*updates)
    left = [5]

    def restarting(sent: Sent) -> int | ConnectionEndedError:
        if not own(sent) and left[0]:
            left[0] -= 1
            return ConnectionEndedError(HUNG_UP, hung_up=True)
        return 0

    desk.broker.answer = restarting
    desk.run_until_settled()
    assert len(desk.dead_letters()) <= 1


def test_a_message_that_the_broker_took_after_all_leaves_no_mark_on_its_topic(desk: Desk) -> None:
    """All events of a status share a topic: two cuts of the line today and one next week would cost a message."""
    left = [0]

    def cutting(sent: Sent) -> int | ConnectionEndedError:
        if sent.topic.startswith("whatsapp/event/") and left[0]:
            left[0] -= 1
            return ConnectionEndedError(HUNG_UP, hung_up=True)
        return 0

    desk.broker.answer = cutting
    for i in range(4):
        left[0] = module.STRIKES - 1
        desk.accept(status(message=f"m{i}"))
        desk.run_until_settled()
    assert left == [0]
    assert desk.dead_letters() == []


def test_what_is_restored_can_be_what_the_broker_hangs_up_at(desk: Desk) -> None:
    """A new broker that cannot bear an old message would never get the others back."""
    poison = status(message="m2")
    desk.accept(*(status(message=f"m{i}") for i in range(5)))
    desk.run_until_settled()
    desk.broker.retained.clear()
    desk.broker.answer = lambda sent: (
        ConnectionEndedError(HUNG_UP, hung_up=True) if sent.event_id == poison.event_id else 0
    )
    desk.broker.end()

    desk.run_until(lambda: desk.broker.checkpoint() == 5)

    assert [body["topic"] for _, body in desk.dead_letters()] == ["whatsapp/m2/status"]
    assert {f"whatsapp/m{i}/status" for i in (0, 1, 3, 4)} <= set(desk.broker.retained)


def test_a_publication_that_is_too_large_is_never_sent(desk: Desk) -> None:
    """The broker would hang up at it, three times, for a fault that is known before."""
    desk.broker.limits = Limits(packet=1000)
    desk.accept(
        StatusUpdate(message_id="m1", status="sent", timestamp=NOON, conversation={"id": "x" * 1000}),
        status(message="m2"),
    )

    desk.run_until_settled()

    assert desk.broker.last.topics() == ["m2/status", "last/status", "event/status/sent"]
    assert len(desk.broker.connections) == 1
    assert [reason for reason, _ in desk.dead_letters()] == [
        "it is larger than the broker's maximum packet size of 1000 bytes"
    ] * 2


# --- silence ----------------------------------------------------------------------------------------------------------


def test_a_broker_that_acknowledges_nothing_is_left_after_the_keep_alive(desk: Desk, log: list[dict[str, Any]]) -> None:
    """A broker that answers pings and nothing else would hold everything for ever."""
    desk.accept(status())
    desk.broker.answer = lambda sent: 0 if greeting(sent) else None
    desk.run_until(lambda: desk.broker.connections and desk.broker.last.on("event/"))

    desk.run(28)
    assert len(desk.broker.connections) == 1
    desk.run(5)

    assert desk.broker.connections[0].closed == "abruptly"
    assert said(log) == ["mqtt://broker:1883 acknowledges nothing any more"]


def test_one_acknowledgement_that_never_comes_is_noticed_among_many_that_do(desk: Desk) -> None:
    """Everything goes out and nothing is settled any more, until memory is full, and a restart fires it all again."""
    lost = status(message="lost")
    desk.accept(lost)
    desk.broker.answer = lambda sent: None if sent.topic == "whatsapp/lost/status" else 0
    desk.run_until_ready()

    for i in range(120):
        desk.accept(status(message=f"m{i}"))
        desk.run(1)
        if len(desk.broker.connections) > 1:
            break

    assert len(desk.broker.connections) > 1


def test_a_connection_without_traffic_is_left_alone(desk: Desk) -> None:
    """A quiet night would be a night of reconnecting."""
    desk.run_until_ready()
    desk.run(300)
    assert len(desk.broker.connections) == 1


def test_an_acknowledgement_of_what_was_never_sent_does_no_harm(desk: Desk) -> None:
    """A broker that counts wrong would end the bridge."""
    desk.run_until_ready()
    desk.broker.last.acks.append(Ack(4711, 0))
    desk.accept(status())
    desk.run_until_settled()


# --- trying again -----------------------------------------------------------------------------------------------------


def tries(desk: Desk, count: int) -> list[float]:
    """The seconds between so many tries to connect."""
    desk.run_until(lambda: len(desk.broker.connections) >= count)
    return [later.at - earlier.at for earlier, later in itertools.pairwise(desk.broker.connections)]


def test_the_pauses_grow_and_end_at_five_seconds(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand tries a second would fill the log and wear out the broker that is just starting."""
    monkeypatch.setattr(module.random, "uniform", lambda _, most: most)
    desk.broker.refuses = lambda _: ConnectionEndedError("nobody there")
    assert tries(desk, 8) == pytest.approx([0.25, 0.5, 1, 2, 4, 5, 5], abs=0.1)


def test_a_broker_that_says_no_is_left_alone_for_longer(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Brokers lock out who tries a wrong password too often."""
    monkeypatch.setattr(module.random, "uniform", lambda _, most: most)
    desk.broker.refuses = lambda _: ConnectionEndedError("not you", refused=True)
    assert tries(desk, 4) == pytest.approx([10, 10, 10], abs=0.1)


def test_after_a_connection_that_stood_the_next_try_comes_soon(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short cut of the line would cost as long as the outage of yesterday."""
    monkeypatch.setattr(module.random, "uniform", lambda _, most: most)
    desk.broker.refuses = lambda _: ConnectionEndedError("nobody there")
    tries(desk, 8)
    desk.broker.refuses = lambda _: None
    desk.run_until_ready()
    desk.broker.end()
    ended = desk.now()
    before = len(desk.broker.connections)
    desk.run_until(lambda: len(desk.broker.connections) > before)
    assert desk.broker.last.at - ended < 1


def test_the_next_version_is_tried_at_once_and_the_first_again_after_a_failure(
    make_desk: Callable[..., Desk],
) -> None:
    """A broker of 3.1.1 would not be reached, or one that was updated would be spoken to in 3.1.1 for ever."""
    desk = make_desk(protocols=("5", "3.1.1"))
    desk.broker.refuses = lambda connection: ConnectionEndedError(
        f"no {connection.protocol}", other_version=connection.protocol == "5"
    )
    desk.run(20)
    used = [connection.protocol for connection in desk.broker.connections]
    assert used[:6] == ["5", "3.1.1"] * 3

    desk.broker.refuses = lambda connection: (
        ConnectionEndedError("no 5", other_version=True) if connection.protocol == "5" else None
    )
    desk.run_until_ready()
    assert desk.broker.last.protocol == "3.1.1"
    # What worked is tried first when the line was cut.
    desk.broker.end()
    before = len(desk.broker.connections)
    desk.run_until(lambda: len(desk.broker.connections) > before)
    assert desk.broker.connections[before].protocol == "3.1.1"


def test_a_refusal_that_is_not_about_the_version_changes_none(make_desk: Callable[..., Desk]) -> None:
    """A broker that is away for a moment would be spoken to in the older version, without expiry of clicks."""
    desk = make_desk(protocols=("5", "3.1.1"))
    desk.broker.refuses = lambda _: ConnectionEndedError("nobody there")
    desk.run(20)
    assert {connection.protocol for connection in desk.broker.connections} == {"5"}


def test_trouble_is_said_once_and_again_when_it_is_another(desk: Desk, log: list[dict[str, Any]]) -> None:
    """A night without a broker would fill the disk with one line, or hide that the trouble changed."""
    desk.broker.refuses = lambda _: ConnectionEndedError("nobody there")
    desk.run(60)
    assert said(log) == ["nobody there"]
    assert desk.publisher.trouble == "nobody there"

    desk.broker.refuses = lambda _: ConnectionEndedError("not you", refused=True)
    desk.run(60)
    assert said(log) == ["nobody there", "not you"]

    desk.broker.refuses = lambda _: None
    desk.run_until_ready()
    assert desk.publisher.trouble is None
    desk.broker.refuses = lambda _: ConnectionEndedError("nobody there")
    desk.broker.end("gone")
    desk.run(60)
    assert said(log) == ["nobody there", "not you", "gone", "nobody there"]


def test_the_will_says_offline(desk: Desk) -> None:
    """A bridge that was killed would look alive."""
    assert desk.run_until_ready().will == ("whatsapp/bridge/state", b"offline")


# --- signs of life and the end ----------------------------------------------------------------------------------------


def test_a_publisher_that_takes_no_turn_is_not_alive(desk: Desk) -> None:
    """A bridge that hangs would look well for ever, and nobody would start it anew."""
    desk.run_until_ready()
    desk.publisher.step()
    assert desk.publisher.is_alive()
    desk.now.seconds += module.ALIVE - 1
    assert desk.publisher.is_alive()
    desk.now.seconds += 2
    assert not desk.publisher.is_alive()
    desk.turn()
    assert desk.publisher.is_alive()


def test_a_publisher_that_waits_for_its_broker_is_alive(desk: Desk) -> None:
    """A broker that is away would have the bridge started anew again and again."""
    desk.broker.refuses = lambda _: ConnectionEndedError("nobody there")
    for _ in range(100):
        desk.turn()
        assert desk.publisher.is_alive()


def test_what_is_in_flight_at_the_end_is_waited_for_and_what_is_not_stays(desk: Desk) -> None:
    """It would be sent again at the next start, or the stop would take as long as the backlog is."""
    desk.broker.limits = Limits(in_flight=2)
    desk.run_until_known()
    desk.accept(*(status(message=f"m{i}") for i in range(300)))
    held: list[Sent] = []

    def holding(sent: Sent) -> int | None:
        if own(sent):
            return 0
        held.append(sent)
        return None

    desk.broker.answer = holding
    desk.run_until(lambda: len(held) == 2)
    connection = desk.broker.last
    desk.broker.answer = lambda _: 0
    for sent in held:
        connection.acknowledge(sent)

    desk.finish()

    assert connection.closed == "politely"
    assert desk.broker.retained["whatsapp/bridge/state"] == b"offline"
    # One fetch of updates, not all of them.
    assert desk.journal.settled() == module.FETCH
    assert desk.broker.checkpoint() == desk.journal.settled()


def test_a_journal_that_is_busy_at_the_end_is_waited_for(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was published in the last second would all be published, and fired, again at the next start."""
    settle = desk.journal.settle

    def busy(upto: int, *, wait: bool = True, **more: Any) -> None:
        if not wait:
            raise BusyError("another one is writing")
        settle(upto, **more)

    desk.run_until_known()
    monkeypatch.setattr(module, "SETTLE_OVERDUE", 1_000_000.0)  # the last note was a moment ago
    monkeypatch.setattr(desk.journal, "settle", busy)
    desk.accept(status(), click())
    desk.run_until(lambda: desk.broker.last.on("event/button/"))

    desk.finish()

    assert desk.journal.settled() == 2


def test_what_was_acknowledged_is_noted_while_the_broker_is_away(desk: Desk) -> None:
    """A bridge that is killed meanwhile would fire it again."""
    desk.run_until_known()
    desk.accept(status(), click())
    desk.broker.answer = lambda _: None
    desk.run_until(lambda: desk.broker.last.on("event/button/"))
    connection = desk.broker.last
    for sent in connection.sent:
        connection.acknowledge(sent)
    desk.broker.refuses = lambda _: ConnectionEndedError("away")
    desk.broker.end()

    desk.run(1)

    assert not desk.publisher.connected
    assert desk.journal.settled() == 2


def test_what_was_acknowledged_in_the_last_moment_is_noted_beside_what_was_not(desk: Desk) -> None:
    """What hangs must not make the rest fire again at the next start."""
    desk.run_until_known()
    desk.publisher._noted_at = desk.now() + 60  # no other note meanwhile
    desk.broker.answer = lambda sent: None if "hangs" in sent.topic else 0
    desk.accept(status(message="m1"), click(), status(message="hangs"))
    desk.run_until(lambda: desk.broker.last.on("hangs/"))
    assert desk.journal.settled() == 0

    desk.finish()

    assert desk.journal.settled() == 2


def test_a_dead_letter_is_buried_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of what was not delivered would grow with each try to write something else."""
    desk.accept(status(message="m0"))
    desk.run_until_known()
    cleared, left = desk.journal.cleared, [3]

    def busy(topics: Any) -> None:
        if left[0]:
            left[0] -= 1
            raise BusyError("another one is writing")
        cleared(topics)

    monkeypatch.setattr(desk.journal, "cleared", busy)
    # A topic is taken off and a publication refused in the same moment.
    desk.journal.expire(Kind.STATUS, 1, 10)
    desk.publisher.clear_expired()
    desk.accept(status(message="bad"))
    desk.broker.answer = lambda sent: 0x90 if sent.topic == "whatsapp/bad/status" else 0
    desk.run_until(lambda: not left[0] and not desk.publisher._cleared)

    assert [body["topic"] for _, body in desk.dead_letters()] == ["whatsapp/bad/status"]


def test_the_end_does_not_wait_for_ever(desk: Desk) -> None:
    """Whoever stops the bridge would have to kill it."""
    desk.accept(status())
    desk.broker.answer = lambda sent: 0 if own(sent) else None
    desk.run_until(lambda: desk.broker.connections and desk.broker.last.on("event/"))
    before = desk.now()

    desk.finish()

    assert module.STOP_PATIENCE <= desk.now() - before < module.STOP_PATIENCE + 1
    # The broker says offline in our place.
    assert desk.broker.last.closed == "abruptly"


def test_the_end_during_the_greeting_is_at_once(desk: Desk) -> None:
    """Nothing is in flight that could be waited for."""
    desk.broker.gives_back = False
    desk.accept(status())
    desk.run(1)
    before = desk.now()
    desk.finish()
    assert desk.now() == before
    assert desk.broker.last.closed == "abruptly"


def test_the_end_while_the_broker_goes_too_is_an_end(desk: Desk) -> None:
    """The machine is shut down: both stop at once."""
    desk.accept(status())
    desk.broker.answer = lambda sent: 0 if own(sent) else None
    desk.run_until(lambda: desk.broker.connections and desk.broker.last.on("event/"))
    desk.broker.end()
    before = desk.now()
    desk.finish()
    assert desk.now() - before < 1
    assert len(desk.broker.connections) == 1


# --- all of it at once ------------------------------------------------------------------------------------------------


class Weather:
    """A broker, a line and a machine on bad days, by chance but the same each time.

    Rules that hold whatever happens:
      1. An event that was acknowledged is not sent again, unless the bridge was started anew before it was settled.
      2. A retained topic never goes back to an older update while the broker remembers the newer one; likewise.
      3. When the weather is good again, every event has been acknowledged, and the broker holds what the ledger says.
    """

    def __init__(self, desk: Desk, seed: int) -> None:
        self._desk = desk
        self._chance = random.Random(seed)
        self._numbers = itertools.count(1)
        self._place: dict[str, int] = {}
        self._fired: set[str] = set()
        self._holds: dict[str, int] = {}
        self._written: tuple[dict[str, bytes], dict[str, int]] = ({}, {})
        self._mood = "good"
        desk.broker.answer = self._answer

    def rain(self) -> None:
        """One thing happens."""
        desk, broker, chance = self._desk, self._desk.broker, self._chance
        often, rarely = ["updates", "mood", "time"], ["cut", "away", "write", "forget", "stop", "kill", "expire"]
        what = chance.choice(often * 5 + rarely)
        if what == "updates":
            self._updates(chance.randint(1, 8))
        elif what == "mood":
            self._mood = chance.choice(["good", "good", "silent", "forgetful", "denying"])
            broker.limits = Limits(in_flight=chance.choice([1, 2, 20, 65_535]))
            broker.pace = chance.choice([None, None, 1, 3])
        elif what == "time":
            desk.run(chance.choice([0.01, 0.3, 2, 10, 40]))
        elif what == "cut":
            broker.end()
        elif what == "away":
            refusal = chance.choice([None, ConnectionEndedError("nobody there")])
            broker.refuses = lambda _: refusal
        elif what == "write":
            self._written = (dict(broker.retained), dict(self._holds))
        elif what == "forget":
            # A broker that was killed: it knows what it had written, and its connections are gone.
            broker.retained, self._holds = dict(self._written[0]), dict(self._written[1])
            broker.die()
        elif what == "expire":
            desk.journal.expire(chance.choice([Kind.STATUS, Kind.BUTTON]), desk.journal.settled(), chance.randint(1, 5))
            desk.publisher.clear_expired()
        else:
            if what == "stop":
                desk.finish()
            # What was not settled is all unknown to the one that comes.
            settled = desk.journal.settled()
            self._fired = {event_id for event_id in self._fired if self._place[event_id] <= settled}
            for holds in (self._holds, self._written[1]):
                holds.update({topic: min(place, settled) for topic, place in holds.items()})
            desk.anew()
        desk.turn()

    def clear_up(self) -> None:
        desk = self._desk
        self._mood = "good"
        desk.broker.refuses = lambda _: None
        desk.broker.limits = Limits()
        desk.broker.pace = None
        self._updates(1)
        desk.run_until_known()
        desk.run(3 * desk.settings.keepalive)  # what was never acknowledged is tried again
        assert desk.dead_letters() == []
        assert self._fired == set(self._place)
        ledger = desk.journal.retained((0, ""), 1_000_000, 1_000_000)
        for row in ledger:
            assert json.loads(desk.broker.retained[f"whatsapp/{row.topic}"])["event_id"] == row.event_id
        assert {t for t in desk.broker.retained if "/bridge/" not in t} == {f"whatsapp/{row.topic}" for row in ledger}

    def _updates(self, count: int) -> None:
        words = ["sent", "delivered", "read", "failed"]
        for _ in range(count):
            number = next(self._numbers)
            update = (
                status(self._chance.choice(words), f"m{self._chance.randint(1, 5)}", NOON + number)
                if self._chance.random() < 0.7
                else click(self._chance.choice(["gate", "door"]), f"c{number}")
            )
            self._desk.accept(update)
            self._place[update.event_id] = number

    def _answer(self, sent: Sent) -> int | ConnectionEndedError | None:
        if not own(sent):
            assert sent.retain or sent.event_id not in self._fired, "rule 1"
            if self._mood == "silent" or (self._mood == "forgetful" and self._chance.random() < 0.1):
                return None
            if self._mood == "denying" and self._chance.random() < 0.3:
                return 0x87
        if sent.retain and sent.event_id:
            place = self._place[sent.event_id]
            assert place >= self._holds.get(sent.topic, 0), "rule 2"
            self._holds[sent.topic] = place
        elif sent.event_id:
            self._fired.add(sent.event_id)
        elif not own(sent):
            assert not sent.payload
            self._holds.pop(sent.topic, None)
        return 0


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_nothing_is_lost_fired_twice_or_turned_back(
    make_desk: Callable[..., Desk], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the promises, in the combinations that nobody thought of."""
    monkeypatch.setattr(module.random, "uniform", lambda _, most: most)
    monkeypatch.setattr(module, "STRIKES", 1_000_000)  # a line that is cut at the same message each time, by chance
    desk = make_desk(max_age=None)
    weather = Weather(desk, seed)
    for _ in range(120):
        weather.rain()
    weather.clear_up()
