"""What `whatsapp2mqtt clean` does: take everything the bridge ever put on the broker off it again.

Promises kept here (numbers as in docs/how-it-works.md):
  6. What it put on the broker it can take away: what the journal remembers, and what stands there under our own names
     though the journal does not know it any more.
"""

from __future__ import annotations

import os
import re
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bridge import homeassistant, topics
from bridge.config import Settings
from bridge.homeassistant import Plan
from bridge.journal import Household
from bridge.mqtt import Connection, ConnectionEndedError

#: Seconds without another retained message after which the broker has given all of them.
QUIET = 1.0
#: Seconds that the broker may take to acknowledge.
PATIENCE = 10.0
#: Topics in flight at once.
WINDOW = 200

#: nats-server writes a file of retained messages anew once it has let go of more than half of it and of 2 MiB, unless
#: it is still writing to it (seen with 2.15). A message that is larger, and retained twice, brings that about; no
#: subscription to `#` sees a topic that begins with `$` (MQTT 3.1.1, section 4.7.2).
SWEEP, SWEEP_BYTES = "$whatsapp2mqtt/sweep", 3 * 2**20

BRIDGE_TOPICS = (topics.BRIDGE_STATE, topics.BRIDGE_INFO, topics.BRIDGE_HEALTH, topics.BRIDGE_CHECKPOINT)
#: The same of each of several bridges on one journal.
_REPLICAS = re.compile(r"bridge/(replica/[^/]+/(state|info)|checkpoint/[0-9]+)").fullmatch
#: Names below the base topic that only the bridge gives.
_OURS = re.compile(r"[^/]+/status|button/[^/]+|last/(status|button)").fullmatch


class CleanError(Exception):
    """The broker cannot be cleaned; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Findings:
    """Full topics that stand, or may stand, on the broker.

    Attributes:
        updates: Retained statuses and buttons.
        bridge: About the bridge itself.
        discovery: What Home Assistant was told.
    """

    updates: tuple[str, ...]
    bridge: tuple[str, ...]
    discovery: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """In the order in which they go: Home Assistant first lets go of what hangs on the others."""
        return (*self.discovery, *self.updates, *self.bridge)


def find(settings: Settings, plan: Plan, journal: Household | None) -> Findings:
    """Look in the journal, if there is one, and on the broker for what is ours.

    Not every broker shows all that it retains (RabbitMQ nothing by wildcard, mosquitto no more than a queue takes), so
    what the journal remembers counts whether it is seen or not.

    Raises:
        CleanError: The broker cannot be reached.
    """
    base = settings.mqtt.base_topic
    seen = stands(settings, plan)
    updates = dict.fromkeys(f"{base}/{topic}" for topic in (journal.standing() if journal is not None else ()))
    updates |= dict.fromkeys(sorted(seen.updates))
    discovery = set(seen.discovery) | (journal.discoveries() if journal is not None else set())
    bridge = dict.fromkeys(f"{base}/{topic}" for topic in BRIDGE_TOPICS) | dict.fromkeys(seen.bridge)
    return Findings(tuple(updates), tuple(bridge), tuple(sorted(discovery)))


def stands(settings: Settings, plan: Plan) -> Findings:
    """What the broker shows of ours.

    Raises:
        CleanError: The broker cannot be reached.
    """
    base = f"{settings.mqtt.base_topic}/"
    shown = _retained(settings, (f"{base}#", f"{plan.prefix}/+/{homeassistant.node(plan.base_topic)}/+/config"))
    below = {topic: topic.removeprefix(base) for topic in sorted(shown) if topic.startswith(base)}
    return Findings(
        updates=tuple(topic for topic, name in below.items() if _OURS(name)),
        bridge=tuple(topic for topic, name in below.items() if name in BRIDGE_TOPICS or _REPLICAS(name)),
        discovery=tuple(topic for topic in sorted(shown) if homeassistant.is_ours(plan, topic)),
    )


def remove(settings: Settings, found: Findings, on_removed: Callable[[int], None]) -> None:
    """Take them off the broker; each is gone when the broker has acknowledged it.

    Args:
        settings: Where the broker is.
        found: What `find` found.
        on_removed: Told how many more are gone.

    Raises:
        CleanError: The broker went away, or refuses one.
    """
    _publish(settings, [(topic, b"") for topic in found.all], on_removed)


def sweep(settings: Settings) -> None:
    """Have the embedded broker write its files anew, in which bytes are left of what was removed.

    One of which more is kept than was removed it leaves as it is.

    Raises:
        CleanError: The broker went away.
    """
    _publish(settings, [(SWEEP, bytes(SWEEP_BYTES)), (SWEEP, bytes(SWEEP_BYTES)), (SWEEP, b"")], lambda _: None)


def _publish(settings: Settings, retained: list[tuple[str, bytes]], on_taken: Callable[[int], None]) -> None:
    """Have the broker retain these, in this order; each is taken when the broker has acknowledged it."""
    with _connection(settings) as connection:
        left = retained[::-1]
        in_flight: dict[int, str] = {}
        deadline = time.monotonic() + PATIENCE
        while left or in_flight:
            while left and len(in_flight) < min(WINDOW, connection.limits.in_flight):
                topic, payload = left.pop()
                in_flight[connection.publish(topic, payload, retain=True)] = topic
            _step(connection)
            acks, connection.acks = connection.acks, []
            for ack in acks:
                taken = in_flight.pop(ack.number, None)
                if taken is not None and ack.code >= 0x80:
                    raise CleanError(f"the broker does not let go of {taken} (0x{ack.code:02X}); allow the bridge to")
            if acks:
                on_taken(len(acks))
                deadline = time.monotonic() + PATIENCE
            elif time.monotonic() > deadline:
                raise CleanError("the broker acknowledges nothing any more; try again")


def _retained(settings: Settings, filters: tuple[str, ...]) -> set[str]:
    """The retained topics that the broker shows for these filters."""
    found: set[str] = set()
    with _connection(settings) as connection:
        connection.subscribe(*filters)
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < QUIET:
            _step(connection)
            if connection.messages:
                found.update(message.topic for message in connection.messages if message.retain and message.payload)
                connection.messages.clear()
                quiet_since = time.monotonic()
    return found


def _step(connection: Connection) -> None:
    try:
        connection.exchange()
    except ConnectionEndedError as error:
        raise CleanError(str(error)) from error
    if connection.acks or connection.messages:
        return
    poller = select.poll()
    connection.poll(poller)
    poller.poll(100)


@contextmanager
def _connection(settings: Settings) -> Iterator[Connection]:
    """A connection that the broker has accepted; of several brokers, the first that does."""
    why = ""
    left = [(broker, settings.mqtt.protocols) for broker in reversed(settings.brokers)]
    while left:
        broker, (protocol, *other_protocols) = left.pop()
        connection = Connection(
            broker,
            settings.mqtt.tls,
            protocol=protocol,
            client_id=f"whatsapp2mqtt-clean-{socket.gethostname()[:20]}-{os.getpid()}",
            keepalive=settings.mqtt.keepalive,
        )
        try:
            connection.open()
            while not connection.connected:
                connection.exchange()
                poller = select.poll()
                connection.poll(poller)
                poller.poll(100)
        except ConnectionEndedError as error:
            connection.close()
            why = str(error)
            if error.other_version and other_protocols:
                left.append((broker, tuple(other_protocols)))
            continue
        try:
            yield connection
        finally:
            connection.close(politely=True)
        return
    raise CleanError(why)
