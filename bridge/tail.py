"""What `whatsapp2mqtt tail` prints: topics as they come, readable, in colour on a terminal."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import click
import orjson

from bridge.config import Settings
from bridge.failover import Failover
from bridge.logs import printable
from bridge.mqtt import Connection, ConnectionEndedError, Message

#: Bytes of a topic or filter (MQTT 5.0, 4.7.3).
LONGEST = 65_535


@dataclass(frozen=True, slots=True)
class Filter:
    """Which messages are shown: those for which all that is set holds.

    Attributes:
        base_topic: Of the bridge.
        kind: `status`, `button` or `bridge`.
        status: Of an update.
        button: A click's payload.
        about: What stands in the JSON as message id or number.
        events: Only what is never retained.
    """

    base_topic: str
    kind: str | None = None
    status: str | None = None
    button: str | None = None
    about: str | None = None
    events: bool = False

    def __call__(self, message: Message) -> bool:
        below = message.topic.removeprefix(f"{self.base_topic}/")
        if self.events and not below.startswith("event/"):
            return False
        if self.kind is not None and self.kind != _kind(below):
            return False
        if self.status is None and self.button is None and self.about is None:
            return True
        try:
            found = orjson.loads(message.payload)
        except orjson.JSONDecodeError:
            return False
        if not isinstance(found, dict):
            return False
        return (
            (self.status is None or found.get("status") == self.status)
            and (self.button is None or found.get("payload") == self.button)
            and (self.about is None or self.about in _who_and_what(found))
        )


def wrong_with(topic_filter: str) -> str | None:
    """Why a broker would not take this as a filter (MQTT 5.0, 4.7.1 and 4.7.3), and what to write; None: it would."""
    *parents, last = topic_filter.split("/")
    if any("#" in level for level in parents) or ("#" in last and last != "#"):
        return "is no filter of topics: # stands alone, as the last level; write e.g. whatsapp/#"
    if any("+" in level and level != "+" for level in (*parents, last)):
        return "is no filter of topics: + stands for a whole level; write e.g. whatsapp/+/status"
    try:
        size = len(topic_filter.encode())
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= LONGEST or "\0" in topic_filter:
        return f"is no filter of topics: it has 1 to {LONGEST} bytes, as UTF-8; write e.g. whatsapp/#"
    return None


def _kind(below: str) -> str | None:
    """What a topic below the base topic is about."""
    first, _, rest = below.partition("/")
    if first in ("event", "last"):
        first = rest.partition("/")[0]
    return first if first in ("bridge", "button", "status") else "status" if below.endswith("/status") else None


def _who_and_what(document: dict[str, object]) -> set[object]:
    context = document.get("context")
    found = {document.get(key) for key in ("message_id", "recipient_id", "from")}
    return found | {context.get("id")} if isinstance(context, dict) else found


def follow(
    settings: Settings,
    topic: str | None,
    fits: Callable[[Message], bool] = lambda _: True,
    *,
    count: int | None,
    as_json: bool,
    retained: bool,
) -> Iterator[str]:
    """Yield a text for each message, for ever or until `count`; a broker that is away is waited for.

    Args:
        settings: Where the broker is.
        topic: A filter; everything below the base topic if None.
        fits: Which messages of it are wanted.
        count: End after so many.
        as_json: One JSON object a line.
        retained: Also what the broker had kept.
    """
    wanted = topic or f"{settings.mqtt.base_topic}/#"
    failover = Failover(settings.brokers, settings.mqtt.protocols, at_random=settings.mqtt.pick == "random")
    said = ""
    shown = 0
    while True:
        if failover.choose() is None:
            time.sleep(max(0.0, failover.due() - time.monotonic()))
            continue
        try:
            for message in _messages(settings, failover, wanted):
                said = ""
                if (message.retain and not retained) or not fits(message):
                    continue
                yield _as_json(message) if as_json else _readable(message)
                shown += 1
                if count is not None and shown >= count:
                    return
        except ConnectionEndedError as error:
            changes_version = failover.lost(
                was_ready=False,
                refused=error.refused,
                wrong_version=error.wrong_version,
                other_version=error.other_version,
            )
            if str(error) != said and not changes_version:
                said = str(error)
                click.echo(f"whatsapp2mqtt: {printable(said)}; trying again", err=True)


def _messages(settings: Settings, failover: Failover, topic: str) -> Iterator[Message]:
    connection = Connection(
        failover.broker,
        settings.mqtt.tls,
        protocol=failover.protocol,
        client_id=f"whatsapp2mqtt-tail-{socket.gethostname()[:20]}-{os.getpid()}",
        keepalive=settings.mqtt.keepalive,
    )
    connection.open()
    subscribed = False
    try:
        while True:
            try:
                connection.exchange()
            except ConnectionEndedError:
                yield from connection.messages  # what came before the end
                raise
            if connection.connected and not subscribed:
                failover.reached()
                connection.subscribe(topic)
                subscribed = True
                continue
            messages, connection.messages = connection.messages, []
            yield from messages
            if not messages:
                poller = select.poll()
                connection.poll(poller)
                poller.poll(1000)
    finally:
        connection.close(politely=True)


def _as_json(message: Message) -> str:
    """A line of JSON; what could steer a terminal is escaped beyond what JSON asks for."""
    line = orjson.dumps(
        {"topic": message.topic, "retain": message.retain, "payload": message.payload.decode("utf-8", "replace")}
    ).decode()
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in line)


def _readable(message: Message) -> str:
    """Time, topic, and the JSON below it; whatever could steer a terminal is shown as its escape."""
    at = click.style(time.strftime("%H:%M:%S"), dim=True)
    kept = click.style(" (retained)", dim=True) if message.retain else ""
    head = f"{at} {click.style(printable(message.topic), fg='cyan', bold=True)}{kept}"
    try:
        shown = orjson.loads(message.payload)
        if isinstance(shown, dict):
            lines = [
                f"    {click.style(printable(key), fg='green')}: {printable(orjson.dumps(value).decode())}"
                for key, value in shown.items()
            ]
            return "\n".join([head, *lines])
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        pass  # no JSON, or nested more deeply than can be written again
    return f"{head}  {printable(message.payload.decode('utf-8', 'replace'))}"
