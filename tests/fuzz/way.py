"""The whole way of a callback without sockets: receiver, group commit, a real journal, publisher, and a broker that
looks at what it gets. `python -m tests.fuzz.way` walks it for another process, so that its memory is its own.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import struct
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from bridge import dead_letters, logs, payload
from bridge import receiver as module
from bridge.clock import Clock
from bridge.config import Auth, BrokerUrl, Buttons, Tls, Webhook
from bridge.discovery import Discovery
from bridge.homeassistant import Plan
from bridge.journal import Buried, Callback, NotStoredError, Outcome
from bridge.journal.sqlite import SqliteJournal
from bridge.mqtt import Ack, Limits, Message
from bridge.privacy import Veil
from bridge.publisher import Publisher, PublisherSettings
from bridge.receiver import Receiver
from bridge.topics import Entry
from tests.fuzz.callbacks import NOW
from tests.unit.callers import LOOP, as_wsgi

MAX_BODY = 100_000

#: One level of a topic, as every broker takes it.
LEVEL = r"(?:(?:[A-Za-z0-9_.\-]|%[0-9A-F]{2})+(?:~[0-9a-f]{32})?|%)"
STATE = re.compile(rf"(?!(?:button|event|last|bridge)/){LEVEL}/status|button/(?!status$){LEVEL}").fullmatch
EVENT = re.compile(rf"event/(?:status|button)/{LEVEL}").fullmatch
OURS = re.compile(r"whatsapp/bridge/(?:state|info|checkpoint|health)").fullmatch
FEED = re.compile(r"bridge/event/(?:message|button)").fullmatch
LAST = re.compile(r"last/(?:status|button)").fullmatch
DISCOVERY = re.compile(r"homeassistant/[a-z_]+/[A-Za-z0-9_-]+/[A-Za-z0-9_-]+/config").fullmatch
KEYS = frozenset(
    (
        *("message_id", "status", "timestamp", "received_at", "recipient_id", "conversation", "errors", "event_id"),
        *("business_phone", "payload", "text", "event_type", "from", "name", "context", "tag_name", "template"),
        *("wa_ext", "late"),
    )
)
IDENTITY = re.compile(r"[0-9a-f]{32}").fullmatch


class BrokenError(AssertionError):
    """Something does not hold; the message says what."""


def hold(holds: object, what: str, *shown: object) -> None:
    if not holds:
        raise BrokenError(f"{what}: {', '.join(ascii(one)[:500] for one in shown)}")


def strict_json(text: str) -> Any:
    """JSON as the strictest reader takes it: no NaN, no key twice, no half pairs."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        hold(len(dict(pairs)) == len(pairs), "a key stands twice", text)
        return dict(pairs)

    def constant(word: str) -> None:
        raise BrokenError(f"{word} is not JSON: {ascii(text)[:500]}")

    text.encode()
    return json.loads(text, object_pairs_hook=once, parse_constant=constant)


@dataclass
class Wire:
    """The broker: takes everything, remembers the bridge's own topics, and looks at each publication."""

    number: int = 0
    connected: bool = False
    limits: Limits = field(default_factory=Limits)
    acks: list[Ack] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    subscribed: list[int] = field(default_factory=list)
    denied: list[int] = field(default_factory=list)
    retained: dict[str, bytes] = field(default_factory=dict)
    events: int = 0
    states: int = 0
    discoveries: int = 0
    protocol: str = "5"

    def connect(self, *_: object, **__: object) -> Self:
        hold(not self.connected, "a second connection: the first was given up")
        return self

    def open(self) -> None:
        self.connected = True

    def close(self, *, politely: bool = False) -> None:
        raise BrokenError(f"the publisher closed the connection, politely: {politely}")

    def exchange(self) -> None:
        pass

    def subscribe(self, *topics: str, qos: int) -> int:
        self.messages += [
            Message(topic, self.retained[topic], retain=True) for topic in topics if topic in self.retained
        ]
        return 1

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool,
        expiry: float | None = None,
        properties: tuple[tuple[str, str], ...] = (),
    ) -> int:
        hold(len(topic) <= 300 and topic.isascii() and not re.search(r"[+#\x00-\x1f\x7f]", topic), "a topic", topic)
        hold(expiry is None or expiry >= 0, "an expiry in the past", expiry)
        for name, value in properties:
            hold(name == "event_id" and IDENTITY(value), "a property", name, value)
        below = topic.removeprefix("whatsapp/")
        text = payload.decode()
        if OURS(topic):
            self.retained[topic] = payload
            hold(retain, "what has to be retained is not", topic)
            hold(text in ("online", "offline") or strict_json(text), "the bridge's own", topic, payload)
        elif DISCOVERY(topic):
            self.discoveries += 1
            hold(retain, "a discovery is retained", topic)
            hold(not text or strict_json(text), "a discovery", topic, payload)
        elif FEED(below):
            hold(not retain, "an event is never retained", topic)
            hold(isinstance(strict_json(text)["event_type"], str), "an event for Home Assistant", payload)
        elif EVENT(below):
            self.events += 1
            hold(not retain, "an event is never retained", topic)
            look_at_document(text, below)
        else:
            self.states += 1
            hold(topic.startswith("whatsapp/") and (STATE(below) or LAST(below)), "no topic of the contract", topic)
            hold(retain, "a state is retained", topic)
            look_at_document(text, below)
        self.number += 1
        self.acks.append(Ack(self.number, 0))
        return self.number


class Time:
    """All clocks: it goes on by itself, a little at each look."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        self.seconds += 0.001
        return self.seconds

    def wall(self) -> float:
        return NOW + 60.0


class Silence:
    """A doorbell that nobody needs."""

    def ring(self) -> None:
        pass


class Way:
    """From a body to the broker; `post` takes one all the way.

    Args:
        folder: For the journal.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "journal.db"
        self._time = Time()
        self.wire = Wire()
        self._stack = contextlib.ExitStack()
        self._stored: list[Callback] = []
        self._broken: BrokenError | None = None
        self.counts = {"posts": 0, "stored": 0, "duplicate": 0, "ignored": 0, "dead": 0}

    def __enter__(self) -> Self:
        SqliteJournal(self._path).create()
        self._journal = self._stack.enter_context(SqliteJournal(self._path, durable=False))
        commit, self._committer = module._start_committer(SqliteJournal(self._path, durable=False), lambda: None)
        self._stack.callback(commit.stop)

        async def append(callback: Callback) -> Outcome:
            try:
                for entry in callback.entries:
                    _look_at_entry(entry)
            except BrokenError as error:
                self._broken = error
                raise NotStoredError("it is broken") from error  # so that the next one can be walked
            self._stored.append(callback)
            return await commit.append(callback)

        webhook = Webhook(auth=Auth(), max_body=MAX_BODY)
        key = bytes(32)
        allowed = Buttons(allow_from=("15550001234",), payloads=("gate1", "gate2"))
        kinds: list[dict[str, Any]] = [
            {},
            {"veil": Veil("mask", key)},
            {"veil": Veil("hash", key), "encode_dots": True},
            {"buttons": allowed, "veil": Veil("mask", key)},
        ]
        self._apps = itertools.cycle(
            [as_wsgi(Receiver(webhook, append, now=self._time.wall, **kind)) for kind in kinds]
        )
        plan = Plan(True, "homeassistant", "whatsapp", "1", "https://example.org/", max_buttons=20)
        self._publisher = Publisher(
            PublisherSettings(
                brokers=(BrokerUrl("mqtt", "broker", 1883),),
                tls=Tls(),
                protocols=("5",),
                client_id="bridge",
                keepalive=30.0,
                base_topic="whatsapp",
                max_age=300.0,
            ),
            self._journal,
            Silence(),  # type: ignore[arg-type]
            Clock(wall=self._time.wall, uptime=self._time),
            connect=self.wire.connect,  # type: ignore[arg-type]
            monotonic=self._time,
            discovery=Discovery(plan, self._journal, monotonic=self._time),
        )
        self._publisher.start()
        self._publish()
        hold(self._publisher.connected, "the publisher is not connected")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._committer.join(10)

    def post(self, body: bytes) -> None:
        """Send a body the whole way, and look at what becomes of it on each part.

        Raises:
            BrokenError: Something does not hold.
        """
        app = next(self._apps)
        started: list[tuple[str, list[tuple[str, str]]]] = []
        environ = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": "/webhook",
            "HTTP_HOST": "bridge.example",
            "REMOTE_ADDR": "203.0.113.7",
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
        }
        self._stored.clear()
        said = b"".join(app(environ, lambda line, headers: started.append((line, headers))))
        ((line, _),) = started
        self.counts["posts"] += 1
        if self._broken is not None:
            broken, self._broken = self._broken, None
            raise broken
        wanted = "200" if len(body) <= MAX_BODY else "413"
        hold(line.startswith(wanted), "the answer", line, said)
        if wanted == "200":
            counts = json.loads(said)
            entries = [one for callback in self._stored for one in callback.entries]
            letters = [one for callback in self._stored for one in callback.dead]
            hold(counts["stored"] + counts["duplicate"] == len(entries), "what was counted", counts, len(entries))
            hold(counts["dead"] == len(letters), "what was counted", counts, len(letters))
            for name, count in counts.items():
                self.counts[name] += count
            for letter in letters[:20]:
                _look_at_letter(letter.reason, letter.body, letter.source)
        hold(self._committer.is_alive(), "the committer's thread is dead")
        self._publish()
        hold(self._publisher.connected, "the publisher is not connected", self._publisher.trouble)
        hold(self._journal.backlog() == 0, "not everything was settled", self._journal.backlog())

    def _publish(self) -> None:
        """Until everything is settled; a click may wait until Home Assistant knows its button."""
        for _ in range(10_000):
            if self._publisher.step():
                continue
            self._publisher._exhausted = False
            if self._publisher.connected and not self._journal.backlog():
                return
            self._time.seconds += 0.1
        raise BrokenError("the publisher never comes to rest")


def _look_at_entry(entry: Entry) -> None:
    hold(STATE(entry.topic), "a topic", entry.topic)
    hold(EVENT(entry.event_topic), "the topic of an event", entry.event_topic)
    hold(IDENTITY(entry.event_id), "an identity", entry.event_id)
    said = look_at_document(entry.document, entry.event_topic)
    hold(said["event_id"] == entry.event_id, "the identity in the JSON", said["event_id"])


def look_at_document(text: str, topic: str) -> dict[str, Any]:
    said = strict_json(text)
    hold(isinstance(said, dict) and set(said) <= KEYS, "keys that are not ours", said)
    hold(isinstance(said["timestamp"], (int, type(None))), "a time", said["timestamp"])
    is_click = topic.startswith(("event/button/", "button/")) or topic == "last/button"
    hold(said["event_type"] == said["payload"] if is_click else said["status"], "what it says", said)
    for key in (
        "message_id",
        "recipient_id",
        "from",
        "name",
        "text",
        "payload",
        "status",
        "business_phone",
        "tag_name",
    ):
        hold(isinstance(said.get(key, ""), str), "a text that is none", key, said.get(key))
    return said  # type: ignore[no-any-return]


def _look_at_letter(reason: str, body: bytes, source: str) -> None:
    hold(not reason.startswith("a fault"), "a fault of the bridge", reason)
    hold(reason.isprintable() and len(reason) < 300, "a reason", reason)
    letter = Buried(1, NOW, source, reason, None, body)
    hold(dead_letters.shown(letter).replace("\n", "").isprintable(), "what a terminal is shown", body)
    with contextlib.suppress(payload.NotUnderstoodError):
        payload.parse(body)


# --- for another process ----------------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def answers(way: Way, requests: IO[bytes]) -> Iterator[dict[str, Any]]:
    """For each body that comes, its length before it: what became of it. An empty one asks for the figures."""
    while head := requests.read(4):
        body = requests.read(struct.unpack(">I", head)[0])
        if not body:
            wire = way.wire
            more = {"events": wire.events, "states": wire.states, "discoveries": wire.discoveries}
            yield {"resident": resident(), "threads": threading.active_count(), **way.counts, **more}
            continue
        try:
            way.post(body)
        except Exception:  # whatever it is, the other side has the body
            yield {"broken": traceback.format_exc()}
        else:
            yield {}


def main() -> None:
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", buffering=0)
    logs.configure("info", "json")
    with Way(Path(sys.argv[1])) as way:
        for answer in answers(way, requests):
            said = json.dumps(answer).encode()
            replies.write(struct.pack(">I", len(said)) + said)
    LOOP.close()


if __name__ == "__main__":
    main()
