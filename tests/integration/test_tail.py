"""`whatsapp2mqtt tail` with real brokers, and with one that says hostile things."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest
from brokers import (
    CONNACK_311,
    HOST,
    PATIENCE,
    EmbeddedThread,
    Mosquitto,
    Peer,
    Watched,
    publish,
    read_packet,
)

from bridge import failover
from bridge.config import Settings, load
from bridge.tail import follow


def settings_for(url: str, **more: str) -> Settings:
    environ = {"WHATSAPP2MQTT_MQTT__URL": url} | {f"WHATSAPP2MQTT_MQTT__{key.upper()}": more[key] for key in more}
    return load(None, environ).settings


class Following(Watched):
    """`follow` on a thread of its own."""

    def __init__(self, settings: Settings, topic: str | None, **options: Any) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.said: list[str] = []
        self._options = {"count": 1, "as_json": False, "retained": True, **options}
        self._thread = threading.Thread(target=self._run, args=(settings, topic), daemon=True)
        self._error: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def result(self) -> list[str]:
        """Its lines, once it has ended."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), f"it goes on; so far: {self.lines} {self.said}"
        if self._error is not None:
            raise self._error
        return self.lines

    def echo(self, words: str, *, err: bool = False) -> None:
        assert err
        with self.changing():
            self.said.append(words)

    def _run(self, settings: Settings, topic: str | None) -> None:
        try:
            for line in follow(settings, topic, **self._options):
                with self.changing():
                    self.lines.append(line)
        except BaseException as error:
            self._error = error


Follow = Callable[..., Following]


@pytest.fixture
def following(monkeypatch: pytest.MonkeyPatch) -> Iterator[Follow]:
    """Starts `follow`; what it says on standard error is in `said`."""
    monkeypatch.setattr(failover, "RETRY_FIRST", 0.02)
    monkeypatch.setattr(failover, "RETRY_REFUSED", 0.02)
    started: list[Following] = []

    def start(settings: Settings, topic: str | None = None, **options: Any) -> Following:
        following = Following(settings, topic, **options)
        monkeypatch.setattr(click, "echo", following.echo)
        started.append(following)
        following.start()
        return following

    yield start
    for one in started:
        one._thread.join(PATIENCE)
        assert not one._thread.is_alive()


def await_subscription(server: Mosquitto) -> None:
    server.wait_for(lambda: any("Sending SUBACK to whatsapp2mqtt-tail" in line for line in server.said))


# --- what it shows ----------------------------------------------------------------------------------------------------


def test_json_is_shown_readably_below_its_topic(mosquitto: Callable[..., Mosquitto], following: Follow) -> None:
    """The first look at whether anything arrives would be at a wall of braces."""
    server = mosquitto()
    publish(server.port, "whatsapp/m1/status", b'{"status":"read","conversation":{"id":"c1"},"n":1}', retain=True)

    [shown] = following(settings_for(f"mqtt://{HOST}:{server.port}")).result()

    first, *rest = click.unstyle(shown).split("\n")
    assert re.fullmatch(r"\d\d:\d\d:\d\d whatsapp/m1/status \(retained\)", first)
    assert rest == ['    status: "read"', '    conversation: {"id":"c1"}', "    n: 1"]


@pytest.mark.parametrize("payload", [b"online", b"[1,2]", b"7", b"", b'"text"'])
def test_what_is_no_json_object_stands_beside_its_topic(
    mosquitto: Callable[..., Mosquitto], following: Follow, payload: bytes
) -> None:
    """`online` and `offline` would be missing, or end the watching."""
    server = mosquitto()
    there = following(settings_for(f"mqtt://{HOST}:{server.port}"))
    await_subscription(server)
    publish(server.port, "whatsapp/bridge/state", payload)

    [shown] = there.result()

    assert re.fullmatch(r"\d\d:\d\d:\d\d whatsapp/bridge/state  (.*)", click.unstyle(shown))[1] == payload.decode()  # type: ignore[index]


def test_as_json_each_message_is_a_line(mosquitto: Callable[..., Mosquitto], following: Follow) -> None:
    """Scripts could not read it."""
    server = mosquitto()
    publish(server.port, "whatsapp/a", b'{"a":\n1}', retain=True)

    there = following(settings_for(f"mqtt://{HOST}:{server.port}"), as_json=True, count=2)
    there.wait_for(lambda: there.lines)
    publish(server.port, "whatsapp/b", b"\xff")
    lines = there.result()

    assert [json.loads(line) for line in lines] == [
        {"topic": "whatsapp/a", "retain": True, "payload": '{"a":\n1}'},
        {"topic": "whatsapp/b", "retain": False, "payload": "\N{REPLACEMENT CHARACTER}"},
    ]
    assert not any("\n" in line for line in lines)


def test_what_was_kept_is_left_out_where_it_is_not_wanted(
    mosquitto: Callable[..., Mosquitto], following: Follow
) -> None:
    """Thousands of old states would stand before the first new one."""
    server = mosquitto()
    publish(server.port, "whatsapp/kept", b"kept", retain=True)
    there = following(settings_for(f"mqtt://{HOST}:{server.port}"), retained=False)
    await_subscription(server)
    publish(server.port, "whatsapp/live", b"live")

    [shown] = there.result()

    assert "whatsapp/live" in shown


def test_it_shows_the_base_topic_or_what_it_is_asked_for(
    mosquitto: Callable[..., Mosquitto], following: Follow
) -> None:
    """One of two bridges on a broker could not be watched by itself."""
    server = mosquitto()
    for topic in ("whatsapp/x", "wa2/x", "other/x"):
        publish(server.port, topic, topic.encode(), retain=True)
    url = f"mqtt://{HOST}:{server.port}"

    assert "whatsapp/x" in following(settings_for(url)).result()[0]
    assert "wa2/x" in following(settings_for(url, base_topic="wa2")).result()[0]
    assert "other/x" in following(settings_for(url), "other/#").result()[0]


def test_it_ends_after_so_many(mosquitto: Callable[..., Mosquitto], following: Follow) -> None:
    """A script that waits for one message would wait for ever."""
    server = mosquitto()
    for i in range(5):
        publish(server.port, f"whatsapp/{i}", b"x", retain=True)
    assert len(following(settings_for(f"mqtt://{HOST}:{server.port}"), count=3).result()) == 3
    server.wait_for(lambda: any("Received DISCONNECT from whatsapp2mqtt-tail" in line for line in server.said))


def test_it_goes_on_for_as_long_as_it_is_wanted(mosquitto: Callable[..., Mosquitto]) -> None:
    """It would end by itself, and be closed without a goodbye when Ctrl+C ends it."""
    server = mosquitto()
    for i in range(5):
        publish(server.port, f"whatsapp/{i}", b"x", retain=True)
    lines = follow(settings_for(f"mqtt://{HOST}:{server.port}"), None, count=None, as_json=False, retained=True)
    assert len([next(lines) for _ in range(5)]) == 5
    lines.close()  # type: ignore[attr-defined]
    server.wait_for(lambda: any("Received DISCONNECT from whatsapp2mqtt-tail" in line for line in server.said))


# --- hostile text -----------------------------------------------------------------------------------------------------


def speaking(*messages: tuple[bytes, bytes], then_end: bool = False) -> Callable[[socket.socket], None]:
    """A broker of 3.1.1 that sends these topics and payloads to whoever subscribes."""

    def speak(sock: socket.socket) -> None:
        read_packet(sock)
        sock.sendall(CONNACK_311)
        subscribe = read_packet(sock)
        answer = b"\x90\x03" + subscribe[2:4] + b"\x01"
        for topic, payload in messages:
            body = len(topic).to_bytes(2, "big") + topic + payload
            length = bytes([len(body) & 0x7F | 0x80, len(body) >> 7]) if len(body) > 127 else bytes([len(body)])
            answer += b"\x30" + length + body
        sock.sendall(answer)
        if not then_end:
            read_packet(sock)

    return speak


HOSTILE = "\x1b[2J\x1b]0;title\x07\r\n\t\x00\x7f\x9b31m\u202e\u2028\u200f\ue000"


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    "payload",
    [
        HOSTILE.encode(),
        json.dumps({HOSTILE: HOSTILE}).encode(),
        json.dumps({HOSTILE: {"deeper": [HOSTILE]}}, ensure_ascii=False).encode(),
        b"\xff\xfe\x1b[2J",
        b'{"a":"\\ud800"}',
        b'{"a":' + b"[" * 300 + b"\x22\x1b\x22" + b"]" * 300 + b"}",
        b'{"a":' + b"[" * 300 + b"]" * 300 + b"}",
    ],
)
def test_nothing_that_comes_can_steer_the_terminal_or_end_the_watching(
    peer: Callable[..., Peer], following: Follow, payload: bytes, as_json: bool
) -> None:
    """Whoever writes to the business by WhatsApp could write to the terminal of who watches."""
    there = peer(speaking((b"whatsapp/" + HOSTILE.encode(), payload), (b"whatsapp/end", b"end")))
    settings = settings_for(f"mqtt://{HOST}:{there.port}", protocol="3.1.1")

    shown, end = following(settings, count=2, as_json=as_json).result()

    plain = click.unstyle(shown)
    assert all(char.isprintable() for char in plain.replace("\n", "" if not as_json else "\n"))
    assert "end" in end
    if as_json:
        assert json.loads(shown)["topic"] == f"whatsapp/{HOSTILE}"
        assert json.loads(shown)["payload"] == payload.decode("utf-8", "replace")
    else:
        assert re.fullmatch(r"\d\d:\d\d:\d\d whatsapp/\\x1b\[2J\\x1b\]0;title\\x07.*", plain.split("\n")[0])


def test_a_topic_that_is_no_text_is_passed_over(peer: Callable[..., Peer], following: Follow) -> None:
    """One byte of a broken client would end the watching."""
    there = peer(speaking((b"whatsapp/\xff", b"x"), (b"whatsapp/end", b"end")))
    settings = settings_for(f"mqtt://{HOST}:{there.port}", protocol="3.1.1")
    [shown] = following(settings).result()
    assert "whatsapp/end" in shown


# --- brokers that are away --------------------------------------------------------------------------------------------


def test_a_broker_that_comes_later_is_waited_for(mosquitto: Callable[..., Mosquitto], following: Follow) -> None:
    """Watching is begun first, and the bridge with its broker second: it should not matter."""
    server = mosquitto()
    server.kill()
    there = following(settings_for(f"mqtt://{HOST}:{server.port}"))
    there.wait_for(lambda: there.said)

    server.start()
    publish(server.port, "whatsapp/x", b"x", retain=True)

    [shown] = there.result()
    assert "whatsapp/x" in shown
    words = f"whatsapp2mqtt: no connection to mqtt://{HOST}:{server.port}: Connection refused; "
    assert [line.startswith(words) for line in there.said].count(True) == 1


def test_trouble_is_said_once_however_often_it_is_tried(peer: Callable[..., Peer], following: Follow) -> None:
    """The terminal would scroll away what was shown before."""
    tried: list[socket.socket] = []

    def treat(sock: socket.socket) -> None:
        tried.append(sock)
        if len(tried) > 5:
            speaking((b"whatsapp/x", b"x"))(sock)

    there = peer(treat)
    tail = following(settings_for(f"mqtt://{HOST}:{there.port}", protocol="3.1.1"))

    tail.result()

    assert len(tail.said) == 1
    assert "closed the connection before it answered" in tail.said[0]


def test_a_broker_that_goes_and_comes_back_is_followed_on(
    mosquitto: Callable[..., Mosquitto], following: Follow
) -> None:
    """Whoever watches for a rare message would watch nothing after the first restart of the broker."""
    server = mosquitto()
    publish(server.port, "whatsapp/first", b"x", retain=True)
    there = following(settings_for(f"mqtt://{HOST}:{server.port}"), count=2)
    there.wait_for(lambda: there.lines)

    server.kill()
    there.wait_for(lambda: any("ended the connection" in words for words in there.said))
    server.start()
    publish(server.port, "whatsapp/second", b"x", retain=True)

    assert "whatsapp/second" in there.result()[1]


def test_what_came_before_the_end_of_the_connection_is_shown(peer: Callable[..., Peer], following: Follow) -> None:
    """A broker's last words would be lost, and they are the interesting ones."""
    there = peer(speaking((b"whatsapp/a", b"a"), (b"whatsapp/b", b"b"), then_end=True))
    settings = settings_for(f"mqtt://{HOST}:{there.port}", protocol="3.1.1")

    first, second = following(settings, count=2).result()

    assert "whatsapp/a" in first
    assert "whatsapp/b" in second
    assert there.connections == 1


def test_a_password_that_is_wrong_is_said_on_the_error_stream(
    mosquitto: Callable[..., Mosquitto], following: Follow
) -> None:
    """It would look as if nothing came; and in what is printed a script would look for JSON."""
    server = mosquitto(users={"watcher": "s3cret"})
    there = following(settings_for(f"mqtt://watcher:wrong@{HOST}:{server.port}"))
    [words] = there.wait_for(lambda: there.said)
    assert "not authorized; look at mqtt.username and mqtt.password" in words
    assert "wrong" not in words
    server.kill()
    server._users = None  # now everybody may come in
    server.start()
    publish(server.port, "whatsapp/x", b"x", retain=True)
    there.result()


# --- versions ---------------------------------------------------------------------------------------------------------


def test_a_broker_of_3_1_1_alone_is_followed_too(embedded: Callable[..., EmbeddedThread], following: Follow) -> None:
    """`protocol: auto` would find no version that works."""
    server = embedded()
    publish(server.port, "whatsapp/x", b"x", retain=True)
    there = following(settings_for(f"mqtt://{HOST}:{server.port}"))
    assert "whatsapp/x" in there.result()[0]
    assert there.said == []


def test_the_embedded_broker_is_found_by_its_settings(
    embedded: Callable[..., EmbeddedThread], following: Follow
) -> None:
    """Without any settings, what the bridge publishes could not be watched."""
    server = embedded()
    publish(server.port, "whatsapp/x", b"x", retain=True)
    there = following(settings_for("embedded", embedded__listen=str(server.settings.listen)))
    assert "whatsapp/x" in there.result()[0]


def test_a_version_that_was_asked_for_is_not_changed(
    embedded: Callable[..., EmbeddedThread], mosquitto: Callable[..., Mosquitto], following: Follow
) -> None:
    """Whoever sets a version wants to see whether it works."""
    server = embedded()
    there = following(settings_for(f"mqtt://{HOST}:{server.port}", protocol="5"))
    there.wait_for(lambda: there.said)
    assert there.lines == []
    server.stop()
    # Something that speaks 5 takes its place.
    port, other = server.port, mosquitto()
    other.kill()
    other.ports["mqtt"] = port
    other.start()
    publish(port, "whatsapp/x", b"x", retain=True)
    there.result()
