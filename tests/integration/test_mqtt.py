"""One connection against real brokers, and against peers that are none."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from brokers import (
    CONNACK_5,
    CONNACK_311,
    HOST,
    PATIENCE,
    AnyBroker,
    EmbeddedThread,
    Mosquitto,
    Peer,
    Subscriber,
    free_port,
    read_packet,
)

from bridge import mqtt
from bridge.config import BrokerUrl, Tls
from bridge.mqtt import Ack, Connection, ConnectionEndedError

NO_TLS = Tls()
WILL = ("whatsapp/bridge/state", b"offline")


def connection_to(url: BrokerUrl, protocol: str = "5", tls: Tls = NO_TLS, **settings: Any) -> Connection:
    return Connection(url, tls, protocol=protocol, client_id="bridge-1", **{"keepalive": 30, **settings})


def drive(connection: Connection, until: Callable[[], Any]) -> Any:
    """Do what the publisher's loop does, until something came."""
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        connection.exchange()
        if found := until():
            return found
        poller = select.poll()
        connection.poll(poller)
        poller.poll(500)
    raise AssertionError("it did not come")


def open_connection(connection: Connection) -> Connection:
    connection.open()
    drive(connection, lambda: connection.connected)
    return connection


def end_of(connection: Connection) -> ConnectionEndedError:
    """The error with which opening it or waiting on it ends."""
    with warnings.catch_warnings():
        # paho leaves the socket of a TLS or websocket handshake that failed to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            connection.open()
            drive(connection, lambda: False)
        except ConnectionEndedError as error:
            ended = error.with_traceback(None)
            ended.__cause__ = ended.__context__ = None
    return ended


@pytest.fixture
def opened() -> Iterator[Callable[[Connection], Connection]]:
    """Opens connections, waits for their CONNACK, and closes them at the end."""
    connections: list[Connection] = []

    def opening(connection: Connection) -> Connection:
        connections.append(connection)
        return open_connection(connection)

    yield opening
    for connection in connections:
        connection.close(politely=True)


Opened = Callable[[Connection], Connection]
Subscribe = Callable[..., Subscriber]

# --- publish and acknowledge ------------------------------------------------------------------------------------------


def test_a_publication_reaches_a_subscriber_and_is_acknowledged(
    broker: AnyBroker, subscriber: Subscribe, opened: Opened
) -> None:
    """Without the acknowledgement nothing is ever settled, and everything would be published again for ever."""
    there = subscriber(broker.port, "whatsapp/#", protocol=broker.protocol)
    connection = opened(connection_to(broker.url, broker.protocol))

    number = connection.publish("whatsapp/event/status/sent", b'{"a":1}', retain=False)
    drive(connection, lambda: connection.acks)

    [ack] = connection.acks
    assert ack.number == number
    assert ack.code < 0x80
    assert there.wait_for_message("whatsapp/event/status/sent").payload == b'{"a":1}'


def test_each_publication_has_its_own_acknowledgement(broker: AnyBroker, opened: Opened) -> None:
    """An acknowledgement taken for another's would settle what the broker never got."""
    connection = opened(connection_to(broker.url, broker.protocol))

    numbers = [connection.publish("whatsapp/many", b"%d" % i, retain=False) for i in range(50)]
    drive(connection, lambda: len(connection.acks) == 50)

    assert [ack.number for ack in connection.acks] == numbers
    assert len(set(numbers)) == 50


def test_under_version_5_an_acknowledgement_tells_that_nobody_listens_and_is_a_success(
    mosquitto: Callable[..., Mosquitto], opened: Opened
) -> None:
    """0x10 taken for a failure would hold up everything of a user who has not subscribed yet."""
    connection = opened(connection_to(mosquitto().url(), "5"))

    number = connection.publish("whatsapp/alone", b"x", retain=False)
    drive(connection, lambda: connection.acks)

    assert connection.acks == [Ack(number, 0x10)]


def test_a_retained_publication_is_there_for_those_who_come_later(
    broker: AnyBroker, subscriber: Subscribe, opened: Opened
) -> None:
    """A dashboard that starts after the message would show nothing."""
    connection = opened(connection_to(broker.url, broker.protocol))
    connection.publish("whatsapp/kept", b"kept", retain=True)
    connection.publish("whatsapp/gone", b"gone", retain=False)
    drive(connection, lambda: len(connection.acks) == 2)

    late = subscriber(broker.port, "whatsapp/#", protocol=broker.protocol)

    message = late.wait_for_message("whatsapp/kept")
    assert (message.payload, message.retain) == (b"kept", True)
    late.catch_up()
    assert not late.on("whatsapp/gone")


def test_an_empty_retained_publication_takes_the_topic_away(
    broker: AnyBroker, subscriber: Subscribe, opened: Opened
) -> None:
    """What expired would stay on the broker for ever."""
    connection = opened(connection_to(broker.url, broker.protocol))
    connection.publish("whatsapp/kept", b"kept", retain=True)
    connection.publish("whatsapp/other", b"other", retain=True)
    connection.publish("whatsapp/kept", b"", retain=True, expiry=60)
    drive(connection, lambda: len(connection.acks) == 3)

    late = subscriber(broker.port, "whatsapp/#", protocol=broker.protocol)

    late.wait_for_message("whatsapp/other")
    late.catch_up()
    assert not late.on("whatsapp/kept")


def test_a_large_publication_goes_out_whole(broker: AnyBroker, subscriber: Subscribe, opened: Opened) -> None:
    """More than one write of the socket: what was cut short would be no JSON."""
    there = subscriber(broker.port, "whatsapp/#", protocol=broker.protocol)
    connection = opened(connection_to(broker.url, broker.protocol))
    payload = bytes(range(256)) * 800  # 200 KiB

    connection.publish("whatsapp/large", payload, retain=False)
    drive(connection, lambda: connection.acks)

    assert there.wait_for_message("whatsapp/large").payload == payload


def test_what_is_subscribed_to_comes_and_says_whether_it_was_kept(broker: AnyBroker, opened: Opened) -> None:
    """The bridge looks for its checkpoint by this: without it every start would publish everything again."""
    connection = opened(connection_to(broker.url, broker.protocol))
    connection.publish("whatsapp/bridge/checkpoint", b'{"seq":7}', retain=True)
    drive(connection, lambda: connection.acks)

    number = connection.subscribe("whatsapp/bridge/checkpoint", "whatsapp/bridge/info")
    drive(connection, lambda: connection.messages)
    connection.publish("whatsapp/bridge/info", b"now", retain=False)
    drive(connection, lambda: len(connection.messages) == 2)

    assert connection.subscribed == [number]
    kept, live = connection.messages
    assert (kept.topic, kept.payload, kept.retain) == ("whatsapp/bridge/checkpoint", b'{"seq":7}', True)
    assert (live.topic, live.payload, live.retain) == ("whatsapp/bridge/info", b"now", False)


def test_version_5_carries_expiry_content_type_and_the_event_id(
    mosquitto: Callable[..., Mosquitto], subscriber: Subscribe, opened: Opened
) -> None:
    """A click that waits at the broker for a consumer that is away must not fire hours later."""
    server = mosquitto()
    there = subscriber(server.port, "whatsapp/#", protocol="5")
    connection = opened(connection_to(server.url(), "5"))

    connection.publish("whatsapp/json", b'{"a":1}', retain=False, expiry=120.4, properties=(("event_id", "e1"),))
    connection.publish("whatsapp/text", b"online", retain=False)
    connection.publish("whatsapp/late", b"{}", retain=False, expiry=0.2)
    drive(connection, lambda: len(connection.acks) == 3)

    properties = there.wait_for_message("whatsapp/json").properties
    assert properties.pop("MessageExpiryInterval") in range(100, 121)
    assert properties == {
        "ContentType": "application/json",
        "PayloadFormatIndicator": 1,
        "UserProperty": [("event_id", "e1")],
    }
    assert there.wait_for_message("whatsapp/text").properties == {
        "ContentType": "text/plain",
        "PayloadFormatIndicator": 1,
    }
    # Zero would be an interval that is over before it begins.
    assert there.wait_for_message("whatsapp/late").properties["MessageExpiryInterval"] == 1


def test_version_3_1_1_publishes_the_same_without_properties(
    mosquitto: Callable[..., Mosquitto], subscriber: Subscribe, opened: Opened
) -> None:
    """Old brokers would hang up at properties that they do not know."""
    server = mosquitto()
    there = subscriber(server.port, "whatsapp/#", protocol="5")
    connection = opened(connection_to(server.url(), "3.1.1"))

    connection.publish("whatsapp/json", b'{"a":1}', retain=False, expiry=120, properties=(("event_id", "e1"),))
    drive(connection, lambda: connection.acks)

    message = there.wait_for_message("whatsapp/json")
    assert (message.payload, message.properties) == (b'{"a":1}', {})


# --- the last will ----------------------------------------------------------------------------------------------------


def test_the_will_is_published_when_the_connection_breaks(
    broker: AnyBroker, subscriber: Subscribe, opened: Opened
) -> None:
    """A bridge that was killed would look as if it still listened."""
    there = subscriber(broker.port, "whatsapp/#", protocol=broker.protocol)
    connection = opened(connection_to(broker.url, broker.protocol, will=WILL))

    connection.close()

    assert there.wait_for_message("whatsapp/bridge/state").payload == b"offline"
    late = subscriber(broker.port, "whatsapp/bridge/state", protocol=broker.protocol)
    assert late.wait_for_message("whatsapp/bridge/state").retain


def test_the_will_is_not_published_after_a_polite_end(broker: AnyBroker, subscriber: Subscribe, opened: Opened) -> None:
    """Whoever says goodbye has said `offline` already; a second one could overtake the next `online`."""
    there = subscriber(broker.port, "whatsapp/#", protocol=broker.protocol)
    polite = opened(connection_to(broker.url, broker.protocol, will=WILL))
    polite.close(politely=True)
    assert not polite.connected
    assert polite.fileno() == -1

    # The broker is done with the first one when it has published the second one's.
    second = opened(connection_to(broker.url, broker.protocol, will=("whatsapp/second", b"gone")))
    second.close()

    there.wait_for_message("whatsapp/second")
    assert not there.on("whatsapp/bridge/state")


def test_closing_twice_does_no_harm(broker: AnyBroker, opened: Opened) -> None:
    """The publisher closes what may have ended by itself."""
    connection = opened(connection_to(broker.url, broker.protocol))
    connection.close()
    connection.close(politely=True)
    assert connection.fileno() == -1
    with pytest.raises(ConnectionEndedError):
        connection.exchange()


# --- who may come in --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_the_right_password_opens_mosquitto(mosquitto: Callable[..., Mosquitto], opened: Opened, protocol: str) -> None:
    """With a password set at the broker nothing would arrive."""
    server = mosquitto(users={"bridge": "s3cret"})
    assert opened(connection_to(server.url("mqtt", "bridge", "s3cret"), protocol)).connected


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize(
    ("user", "hint"),
    [
        (("bridge", "wrong"), "look at mqtt.username and mqtt.password"),
        ((None, None), "set mqtt.username and mqtt.password"),
    ],
)
def test_a_wrong_or_missing_password_is_said_in_words_and_does_not_name_it(
    mosquitto: Callable[..., Mosquitto], protocol: str, user: tuple[str | None, str | None], hint: str
) -> None:
    """The user would look for the fault in the network, or find the password in the log."""
    server = mosquitto(users={"bridge": "s3cret"})

    error = end_of(connection_to(server.url("mqtt", *user), protocol))

    assert error.refused
    assert not error.other_version
    assert "refuses us: not authorized" in str(error)
    assert str(error).endswith(hint)
    assert "wrong" not in str(error)


def test_the_embedded_broker_lets_in_whom_it_should_and_nobody_else(
    embedded: Callable[..., EmbeddedThread], opened: Opened
) -> None:
    """Beyond loopback everybody in the network could open the gate."""
    server = embedded(username="bridge", password="s3cret")
    assert opened(connection_to(server.url("bridge", "s3cret"), "3.1.1")).connected

    wrong = end_of(connection_to(server.url("bridge", "wrong"), "3.1.1"))
    nobody = end_of(connection_to(server.url(), "3.1.1"))

    assert wrong.refused
    assert str(wrong).endswith("look at mqtt.username and mqtt.password")
    assert nobody.refused
    assert str(nobody).endswith("set mqtt.username and mqtt.password")


# --- encrypted, and through websockets --------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("scheme", ["mqtts", "ws", "wss"])
def test_publications_pass_through_tls_and_websockets(
    mosquitto: Callable[..., Mosquitto],
    certificates: Path,
    subscriber: Subscribe,
    opened: Opened,
    scheme: str,
    protocol: str,
) -> None:
    """A broker in the cloud is reached no other way."""
    server = mosquitto(listeners=(scheme,))
    there = subscriber(server.port, "whatsapp/#")
    connection = opened(connection_to(server.url(scheme), protocol, Tls(ca=certificates / "ca.pem")))

    # More than a TLS record and a websocket frame in one, and many small ones at once, in both directions.
    connection.subscribe("whatsapp/back")
    drive(connection, lambda: connection.subscribed)
    connection.publish("whatsapp/large", b"x" * 50_000, retain=False)
    for i in range(100):
        connection.publish("whatsapp/back", b"%d" % i, retain=False)
    drive(connection, lambda: len(connection.acks) == 101 and len(connection.messages) == 100)

    assert [message.payload for message in connection.messages] == [b"%d" % i for i in range(100)]
    assert there.wait_for_message("whatsapp/large").payload == b"x" * 50_000


def test_what_came_in_one_encrypted_record_is_read_at_once(peer: Callable[..., Peer], certificates: Path) -> None:
    """What TLS holds back does not wake the bridge: an acknowledgement would wait for the next one, or for ever."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")

    def speaking(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as encrypted:
            read_packet(encrypted)
            encrypted.sendall(CONNACK_311 + b"".join(b"\x30\x04\x00\x01a" + b"%d" % i for i in range(5)))
            read_packet(encrypted)

    connection = connection_to(peer(speaking).url("mqtts"), "3.1.1", Tls(ca=certificates / "ca.pem"))
    connection.open()
    try:
        # The first look that sees any of it sees all of it.
        drive(connection, lambda: connection.connected)
        assert [message.payload for message in connection.messages] == [b"0", b"1", b"2", b"3", b"4"]
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("name", "host", "trusted", "words"),
    [
        ("server", "127.0.0.1", None, "set mqtt.tls.ca to the file of the CA that signed it"),
        ("server", "127.0.0.1", "other-ca", "set mqtt.tls.ca to the file of the CA that signed it"),
        ("elsewhere", "127.0.0.1", "ca", "write a name that stands in it in mqtt.url"),
        ("elsewhere", "localhost", "ca", "write a name that stands in it in mqtt.url"),
        ("expired", "127.0.0.1", "ca", "renew it at the broker, or set this machine's clock"),
        ("not-yet", "127.0.0.1", "ca", "renew it at the broker, or set this machine's clock"),
        ("self-signed", "127.0.0.1", None, "set mqtt.tls.ca to the file of the CA that signed it"),
        ("self-signed", "127.0.0.1", "ca", "set mqtt.tls.ca to the file of the CA that signed it"),
        ("client", "127.0.0.1", "ca", "set mqtt.tls.ca"),
    ],
    ids=[
        "no CA",
        "another CA",
        "another address",
        "another name",
        "expired",
        "not yet",
        "self-signed",
        "self-signed, with a CA",
        "a client's",
    ],
)
@pytest.mark.parametrize("scheme", ["mqtts", "wss"])
def test_a_certificate_that_proves_nothing_is_refused_with_what_to_do(
    mosquitto: Callable[..., Mosquitto],
    certificates: Path,
    scheme: str,
    name: str,
    host: str,
    trusted: str | None,
    words: str,
) -> None:
    """Whoever stands in between shows one of these; and an honest broker's needs another remedy each."""
    server = mosquitto(listeners=(scheme,), certificate=name)
    url = replace(server.url(scheme, "bridge", "a-password"), host=host)

    error = end_of(connection_to(url, "5", Tls(ca=certificates / f"{trusted}.pem" if trusted else None)))

    assert error.refused
    assert str(error).startswith("the broker's certificate is not trusted: ")
    assert words in str(error)
    assert "a-password" not in str(error)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_certificate_of_the_right_ca_is_accepted(
    mosquitto: Callable[..., Mosquitto], certificates: Path, opened: Opened, host: str
) -> None:
    """The other half: each refusal above is for its own reason."""
    server = mosquitto(listeners=("mqtts",))
    url = replace(server.url("mqtts"), host=host)
    assert opened(connection_to(url, "5", Tls(ca=certificates / "ca.pem"))).connected


def test_any_certificate_is_taken_where_this_is_wanted_in_words(
    mosquitto: Callable[..., Mosquitto], opened: Opened
) -> None:
    """A quick test against a self-signed broker would need a CA first."""
    server = mosquitto(listeners=("mqtts",))
    tls = Tls(dangerously_accept_any_certificate=True)
    assert opened(connection_to(server.url("mqtts"), "5", tls)).connected


def test_a_client_certificate_opens_a_broker_that_wants_one(
    mosquitto: Callable[..., Mosquitto], certificates: Path, opened: Opened
) -> None:
    """Brokers that know their clients by certificate could not be used."""
    server = mosquitto(listeners=("mqtts",), wants_certificate=True)
    tls = Tls(ca=certificates / "ca.pem", certificate=certificates / "client.pem", key=certificates / "client.key")
    connection = opened(connection_to(server.url("mqtts"), "5", tls))

    connection.publish("whatsapp/x", b"x", retain=False)

    assert drive(connection, lambda: connection.acks)


def test_a_missing_client_certificate_is_hinted_at(mosquitto: Callable[..., Mosquitto], certificates: Path) -> None:
    """The broker only hangs up; the user would not know why."""
    server = mosquitto(listeners=("mqtts",), wants_certificate=True)

    error = end_of(connection_to(server.url("mqtts"), "5", Tls(ca=certificates / "ca.pem")))

    assert "mqtt.tls.certificate" in str(error)


def test_a_file_that_is_no_certificate_is_named_as_the_users_to_mend(
    mosquitto: Callable[..., Mosquitto], certificates: Path
) -> None:
    """The bridge would end, or try the same for ever without a word."""
    server = mosquitto(listeners=("mqtts",))

    for tls in (
        Tls(ca=certificates / "openssl.cnf"),
        Tls(ca=certificates / "not-there.pem"),
        Tls(certificate=certificates / "client.pem", key=certificates / "server.key"),
    ):
        error = end_of(connection_to(server.url("mqtts"), "5", tls))
        assert error.refused
        assert str(error).startswith("mqtt.tls: a file cannot be used: ")


def test_tls_to_a_broker_without_tls_ends_in_words(mosquitto: Callable[..., Mosquitto]) -> None:
    """mqtts with the port of mqtt is an easy mistake."""
    server = mosquitto()
    url = BrokerUrl("mqtts", HOST, server.port)

    error = end_of(connection_to(url, "5"))

    assert str(error).startswith(f"no connection to mqtts://127.0.0.1:{server.port}: ")
    assert not error.refused


def test_a_websocket_to_something_that_is_none_ends_in_words(mosquitto: Callable[..., Mosquitto]) -> None:
    """ws with the port of mqtt is an easy mistake."""
    server = mosquitto()

    error = end_of(connection_to(BrokerUrl("ws", HOST, server.port, "/mqtt"), "5"))

    assert str(error).startswith(f"no connection to ws://127.0.0.1:{server.port}/mqtt: WebSocket handshake error; ")


@pytest.mark.parametrize(
    "answer",
    ids=["another page", "a wrong key", "no space", "no text", "nothing"],
    argvalues=[
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: no\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nSec-WebSocket-Accept:no\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: \xff\xfe\r\n\r\n",
        b"",
    ],
)
def test_an_odd_answer_to_a_websocket_ends_only_the_connection(peer: Callable[..., Peer], answer: bytes) -> None:
    """A proxy's error page would end the whole bridge."""

    asked = []

    def answering(sock: socket.socket) -> None:
        asked.append(sock.recv(4096))
        sock.sendall(answer)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass

    there = peer(answering)

    error = end_of(connection_to(BrokerUrl("ws", HOST, there.port, "/broker/ws"), "5"))

    assert str(error).startswith(f"no connection to ws://127.0.0.1:{there.port}/broker/ws: ")
    assert asked[0].startswith(b"GET /broker/ws HTTP/1.1\r\n")


# --- what the broker says of itself -----------------------------------------------------------------------------------


def test_the_limits_of_version_5_are_those_of_the_connack(mosquitto: Callable[..., Mosquitto], opened: Opened) -> None:
    """More in flight than Receive Maximum, or a larger packet, and the broker hangs up."""
    small = opened(connection_to(mosquitto(lines=["max_packet_size 5000"]).url(), "5"))
    assert (small.limits.in_flight, small.limits.packet, small.limits.retains) == (20, 5000, True)

    no_limit = opened(connection_to(mosquitto(lines=["max_inflight_messages 0"]).url(), "5"))
    assert (no_limit.limits.in_flight, no_limit.limits.packet) == (65_535, 268_435_455)


def test_version_3_1_1_says_nothing_of_limits(mosquitto: Callable[..., Mosquitto], opened: Opened) -> None:
    """Without limits of its own the publisher's window holds."""
    connection = opened(connection_to(mosquitto(lines=["max_packet_size 5000"]).url(), "3.1.1"))
    assert (connection.limits.in_flight, connection.limits.packet) == (65_535, 268_435_455)


def test_a_broker_without_retained_messages_gets_none(
    mosquitto: Callable[..., Mosquitto], subscriber: Subscribe, opened: Opened
) -> None:
    """It would hang up at the first one, and nothing at all would get through."""
    server = mosquitto(lines=["retain_available false"])
    there = subscriber(server.port, "whatsapp/#")
    connection = opened(connection_to(server.url(), "5"))

    assert not connection.limits.retains
    connection.publish("whatsapp/kept", b"x", retain=True)
    drive(connection, lambda: connection.acks)

    assert connection.acks[0].code < 0x80
    assert there.wait_for_message("whatsapp/kept").payload == b"x"


def test_a_publication_that_is_not_allowed_is_answered_with_0x87_under_version_5(
    mosquitto: Callable[..., Mosquitto], opened: Opened
) -> None:
    """Taken for a success it would be settled, and lost."""
    server = mosquitto(acl=["topic readwrite other/#"])
    connection = opened(connection_to(server.url(), "5"))

    allowed = connection.publish("other/x", b"x", retain=False)
    denied = connection.publish("whatsapp/x", b"x", retain=False)
    # mosquitto 2.0.11 hangs up behind its answer; others stay.
    with contextlib.suppress(ConnectionEndedError):
        drive(connection, lambda: len(connection.acks) == 2)

    assert connection.acks == [Ack(allowed, 0x10), Ack(denied, 0x87)]
    assert 0x87 in mqtt.HOLDING_CODES


# --- versions ---------------------------------------------------------------------------------------------------------


def test_a_broker_of_3_1_1_alone_is_told_from_one_that_refuses_us(embedded: Callable[..., EmbeddedThread]) -> None:
    """The embedded broker, and many others, would never be reached with `protocol: auto`."""
    error = end_of(connection_to(embedded().url(), "5"))

    assert error.other_version
    assert not error.refused


@pytest.mark.parametrize(
    ("protocol", "answer"),
    [
        ("5", bytes.fromhex("20 03 00 84 00")),  # MQTT 5.0, section 3.2.2.2: unsupported protocol version
        ("5", bytes.fromhex("20 02 00 01")),  # MQTT 3.1.1, section 3.2.2.3: unacceptable protocol version
        ("3.1.1", bytes.fromhex("20 02 00 01")),
    ],
)
def test_a_broker_that_says_so_itself_is_tried_with_the_other_version(
    peer: Callable[..., Peer], protocol: str, answer: bytes
) -> None:
    """A broker of the other version would never be reached."""

    def refusing(sock: socket.socket) -> None:
        read_packet(sock)
        sock.sendall(answer)
        read_packet(sock)

    error = end_of(connection_to(peer(refusing).url(), protocol))

    assert error.other_version
    assert not error.refused


def test_a_refusal_for_another_reason_is_told_with_it(peer: Callable[..., Peer]) -> None:
    """`Look at the password` would send the user the wrong way."""

    def refusing(sock: socket.socket) -> None:
        read_packet(sock)
        sock.sendall(bytes.fromhex("20 03 00 88 00"))  # MQTT 5.0, section 3.2.2.2: server unavailable
        read_packet(sock)

    there = peer(refusing)

    error = end_of(connection_to(there.url(), "5"))

    assert str(error) == f"{there.url()} refuses us: server unavailable"


# --- peers that are no brokers ----------------------------------------------------------------------------------------


def test_nobody_there_is_said_in_words() -> None:
    """The most frequent trouble of all should not need a look into the source."""
    port = free_port()

    error = end_of(connection_to(BrokerUrl("mqtt", HOST, port), "5"))

    assert (
        str(error)
        == f"no connection to mqtt://127.0.0.1:{port}: Connection refused; see that it runs, and look at mqtt.url"
    )
    assert not error.refused
    assert not error.other_version


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70 + ".invalid"])
def test_a_name_that_is_none_is_said_in_words(host: str) -> None:
    """A typo in mqtt.url would end the bridge instead of being told."""
    error = end_of(connection_to(BrokerUrl("mqtt", host, 1883), "5"))

    assert str(error).startswith(f"no connection to mqtt://{host}:1883: ")


def test_a_peer_that_accepts_and_never_answers_is_given_up(
    peer: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen broker would hold the bridge for ever, also after it was replaced."""
    monkeypatch.setattr(mqtt, "CONNACK_TIMEOUT", 0.2)
    there = peer(lambda sock: [read_packet(sock), read_packet(sock)])

    error = end_of(connection_to(there.url(), "5"))

    assert str(error) == f"{there.url()} accepted the connection and does not answer"
    assert error.other_version


def test_a_peer_that_never_answers_the_tls_handshake_is_given_up(
    peer: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The publisher's thread would hang where nothing can stop it."""
    monkeypatch.setattr(mqtt, "CONNECT_TIMEOUT", 0.2)
    there = peer(lambda sock: [sock.recv(4096), sock.recv(4096)])

    error = end_of(connection_to(there.url("mqtts"), "5"))

    assert str(error).startswith(f"no connection to mqtts://127.0.0.1:{there.port}: ")
    assert "timed out" in str(error)


def test_a_peer_that_cuts_the_line_at_our_connect_may_speak_the_other_version(peer: Callable[..., Peer]) -> None:
    """Some brokers cut the line instead of saying that they speak 3.1.1 only."""
    there = peer(lambda sock: [read_packet(sock)])

    error = end_of(connection_to(there.url(), "5"))

    assert str(error) == f"{there.url()} closed the connection before it answered"
    assert error.other_version


def test_what_was_acknowledged_before_the_end_is_known_after_it(peer: Callable[..., Peer]) -> None:
    """A click that the broker took and confirmed in its last moment would be fired a second time."""

    def dying(sock: socket.socket) -> None:
        read_packet(sock)
        sock.sendall(CONNACK_311)
        first = read_packet(sock)
        read_packet(sock)
        number = first[-3:-1]
        sock.sendall(b"\x40\x02" + number)

    connection = open_connection(connection_to(peer(dying).url(), "3.1.1"))
    acknowledged = connection.publish("whatsapp/a", b"a", retain=False)
    connection.publish("whatsapp/b", b"b", retain=False)

    with pytest.raises(ConnectionEndedError):
        drive(connection, lambda: False)

    assert connection.acks == [Ack(acknowledged, 0)]


def test_acknowledgements_are_read_before_a_write_finds_the_line_cut(peer: Callable[..., Peer]) -> None:
    """A write that fails closes the socket, and with it what the broker had confirmed: it would be fired again."""
    done = []

    def dying(sock: socket.socket) -> None:
        read_packet(sock)
        sock.sendall(CONNACK_311)
        number = read_packet(sock)[-3:-1]
        sock.sendall(b"\x40\x02" + number)
        done.append(True)

    there = peer(dying)
    connection = open_connection(connection_to(there.url(), "3.1.1"))
    acknowledged = connection.publish("whatsapp/a", b"a", retain=False)
    connection.exchange()
    # The peer has confirmed and hung up; much waits to be written that nobody will read.
    there.wait_for(lambda: done and not there._open)
    for i in range(50):
        connection.publish("whatsapp/b", b"%d" % i * 10_000, retain=False)

    with pytest.raises(ConnectionEndedError):
        drive(connection, lambda: False)

    assert connection.acks == [Ack(acknowledged, 0)]


def test_an_end_in_the_middle_says_that_the_broker_ended_it(
    mosquitto: Callable[..., Mosquitto], opened: Opened
) -> None:
    """Told as `closed before it answered`, the bridge would change the protocol for no reason."""
    server = mosquitto()
    connection = opened(connection_to(server.url(), "5"))
    server.kill()

    with pytest.raises(ConnectionEndedError, match=r"ended the connection \(closed\)") as ended:
        drive(connection, lambda: False)

    assert not ended.value.other_version
    assert not ended.value.refused


def test_a_disconnect_of_version_5_is_told_with_its_reason(peer: Callable[..., Peer]) -> None:
    """`Server shutting down` and `packet too large` call for different things."""

    def ending(sock: socket.socket) -> None:
        read_packet(sock)
        sock.sendall(CONNACK_5 + bytes.fromhex("e0 02 8b 00"))  # MQTT 5.0, section 3.14.2.1
        read_packet(sock)

    there = peer(ending)

    error = end_of(connection_to(there.url(), "5"))

    assert str(error) == f"{there.url()} ended the connection (server shutting down)"


def test_a_broker_that_is_silent_for_longer_than_the_keep_alive_is_dropped(
    peer: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that was cut without a word would look alive for hours."""
    there = peer(lambda sock: [read_packet(sock), sock.sendall(CONNACK_5), *iter(lambda: read_packet(sock), b"")])
    connection = open_connection(connection_to(there.url(), "5"))
    real = time.monotonic
    ahead = [0.0]
    monkeypatch.setattr("paho.mqtt.client.time_func", lambda: real() + ahead[0])

    ahead[0] = 31  # it is asked whether it is there
    connection.exchange()
    ahead[0] = 62

    with pytest.raises(ConnectionEndedError, match=r"ended the connection \(keep alive timeout\)"):
        drive(connection, lambda: False)


NONSENSE = {
    "noise": b"\xff" * 64,
    "half a CONNACK": b"\x20\x02\x00",
    "a length without end": CONNACK_5 + b"\x30\x80\x80\x80\x80\x80",
    "a topic longer than its packet": CONNACK_5 + b"\x30\x02\x00\x09",
    "a topic that is not UTF-8": CONNACK_5 + b"\x30\x05\x00\x02\xff\xfe\x00",
    "half of a packet identifier": CONNACK_5 + b"\x40\x01\x00",
    "an acknowledgement of what was never sent": CONNACK_5 + b"\x40\x02\x12\x34",
    "a SUBACK of nothing": CONNACK_5 + b"\x90\x00",
    "QoS 3": CONNACK_5 + b"\x36\x05\x00\x01a\x00\x01",
    "two CONNACKs": CONNACK_5 + CONNACK_5,
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE)
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_nonsense_ends_only_the_connection(peer: Callable[..., Peer], protocol: str, nonsense: bytes) -> None:
    """One strange packet would end the whole bridge."""

    def talking(sock: socket.socket) -> None:
        read_packet(sock)
        sock.sendall(nonsense)

    end_of(connection_to(peer(talking).url(), protocol))
