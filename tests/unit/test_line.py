"""The line to a broker: what passes it by, what it keeps, and that paho uses it as it is meant to."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import socket
from collections.abc import Iterator

import paho.mqtt.client as paho
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bridge.line import READ_MOST, Ack, Line, publish_packet, publish_properties, variable_length

SUBACK = bytes.fromhex("9004000b0001")
PINGRESP = bytes.fromhex("d000")
MESSAGE = b"\x30" + variable_length(4 + 3_000) + b"\x00\x02ab" + b"x" * 3_000


def puback(number: int, rest: bytes = b"") -> bytes:
    return b"\x40" + variable_length(2 + len(rest)) + number.to_bytes(2, "big") + rest


class Wire:
    """A socket that gives these chunks, then nothing (or the end), and takes so many bytes at a time."""

    def __init__(self, *chunks: bytes | OSError, takes: int = 10**9) -> None:
        self.chunks = list(chunks)
        self.takes = takes
        self.sent = b""
        self.room = 10**9
        self.is_closed = False

    def recv(self, size: int) -> bytes:
        if not self.chunks:
            raise BlockingIOError
        chunk = self.chunks.pop(0)
        if isinstance(chunk, OSError):
            raise chunk
        if len(chunk) > size:
            self.chunks.insert(0, chunk[size:])
        return chunk[:size]

    def send(self, data: bytes | memoryview) -> int:
        size = min(len(data), self.takes, self.room)
        if not size:
            raise BlockingIOError
        self.sent += bytes(data[:size])
        self.room -= size
        return size

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.is_closed = True

    def setblocking(self, flag: bool) -> None: ...


def read(line: Line) -> bytes:
    """All that paho is given, byte by byte and in larger pieces as it does."""
    found = b""
    for size in itertools.cycle((1, 1, 5)):
        try:
            found += line.recv(size)
        except BlockingIOError:
            return found
    raise AssertionError


# --- what comes in ------------------------------------------------------------------------------------------------


def test_acknowledgements_are_kept_and_everything_else_reaches_paho_in_order() -> None:
    """One that is swallowed settles nothing; one packet lost or out of place ends the connection."""
    line = Line(Wire(puback(1) + SUBACK + puback(2, b"\x10") + MESSAGE + puback(3, b"\x87\x00") + PINGRESP))

    assert not line.fill(), "that was all"

    assert line.acks == [Ack(1, 0), Ack(2, 0x10), Ack(3, 0x87)]
    assert read(line) == SUBACK + MESSAGE + PINGRESP


@given(st.lists(st.integers(1, 40), max_size=400))
def test_it_makes_no_difference_where_the_bytes_are_cut(cuts: list[int]) -> None:
    """TCP cuts anywhere: also in the middle of a number."""
    reason = b"\x97" + variable_length(3 + 300) + b"\x1f\x01\x2c" + b"w" * 300
    stream = b"".join((puback(1), SUBACK, puback(70, reason), PINGRESP, puback(65_535, b"\x10"), MESSAGE, puback(9)))
    parts, at = [], 0
    for cut in cuts:
        parts.append(stream[at : at + cut])
        at += cut
    line = Line(Wire(*(part for part in (*parts, stream[at:]) if part)))

    while line.fill():
        pass

    assert line.acks == [Ack(1, 0), Ack(70, 0x97), Ack(65_535, 0x10), Ack(9, 0)]
    assert read(line) == SUBACK + PINGRESP + MESSAGE


def test_a_message_larger_than_what_waits_at_most_passes() -> None:
    """A retained message of somebody else's must not stop the line for ever."""
    message = b"\x30" + variable_length(4 + 3 * READ_MOST) + b"\x00\x02ab" + b"x" * 3 * READ_MOST
    line = Line(Wire(message + puback(5)))
    passed = 0

    has_more = True
    while has_more:
        has_more = line.fill()
        with contextlib.suppress(BlockingIOError):
            while True:
                passed += len(line.recv(100_000))

    assert passed == len(message)
    assert line.acks == [Ack(5, 0)]


@pytest.mark.parametrize("nonsense", [b"\x40\x00", b"\x40\x01\x00", b"\x40\xff\xff\xff\xff\xff", b"\x00\x00"])
def test_nonsense_is_paho_s_to_refuse(nonsense: bytes) -> None:
    """Taken for an acknowledgement, it would settle what the broker never got."""
    line = Line(Wire(nonsense))

    line.fill()

    assert not line.acks
    passed = read(line)
    assert passed
    assert nonsense.startswith(passed)
    assert not line.has_more


@pytest.mark.parametrize("end", [b"", ConnectionResetError(104, "reset")])
def test_what_came_before_the_end_is_known_before_the_end(end: bytes | OSError) -> None:
    """An acknowledgement lost with the line means the event is sent once more."""
    line = Line(Wire(puback(7) + SUBACK, end))

    line.fill()

    assert line.acks == [Ack(7, 0)]
    assert line.has_more
    assert line.recv(100) == SUBACK
    assert line.has_more
    if end:
        with pytest.raises(ConnectionResetError):
            line.recv(1)
    else:
        assert line.recv(1) == b""
    assert not line.fill()


# --- what goes out ------------------------------------------------------------------------------------------------


def test_publications_leave_together_and_whole_however_little_there_is_room_for() -> None:
    """Half a packet in front of another one ends the connection."""
    wire = Wire(takes=7)
    line = Line(wire)
    packets = [publish_packet(number, f"a/{number}", b"x" * number, retain=False) for number in range(1_000, 1_050)]
    for packet in packets:
        line.publish(packet)
    assert wire.sent == b""

    wire.room = 100
    line.flush()
    assert line.wants_write
    assert len(wire.sent) == 100
    line.send(PINGRESP)  # paho's goes behind
    wire.room = 10**9
    line.flush()

    assert wire.sent == b"".join(packets) + PINGRESP
    assert not line.wants_write


def test_a_line_that_was_cut_says_so_when_it_is_written_to() -> None:
    """The publisher has to open a new one, not to wait for acknowledgements."""
    one, other = socket.socketpair()
    line = Line(one)
    line.setblocking(False)
    other.close()
    line.publish(b"x" * 10)
    with pytest.raises(OSError):
        line.flush()
    line.close()


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="+#\0"), min_size=1, max_size=300),
    st.binary(max_size=20_000),
    st.booleans(),
    st.integers(1, 65_535),
    st.one_of(st.none(), st.floats(1, 10**9)),
)
def test_a_publication_is_what_paho_would_have_sent(
    topic: str, payload: bytes, retain: bool, number: int, expiry: float | None
) -> None:
    """paho is the reference for the wire; a broker hangs up at a packet that is none."""
    user = (("event_id", "0123456789abcdef" * 2),)
    theirs = Properties(PacketTypes.PUBLISH)
    if payload:
        theirs.PayloadFormatIndicator = 1
        theirs.ContentType = "application/json" if payload[:1] == b"{" else "text/plain"
        if expiry is not None:
            theirs.MessageExpiryInterval = round(expiry)
    theirs.UserProperty = list(user)
    ours = publish_properties(expiry, user, payload)
    assert sorted(ours) == sorted(theirs.pack())  # properties may stand in any order

    client = _writing_client()
    client._send_publish(number, topic.encode(), payload, 1, retain, properties=_Packed(ours))  # type: ignore[arg-type]
    assert publish_packet(number, topic, payload, retain=retain, properties=ours) == bytes(
        client._out_packet[0]["packet"]
    )


class _Packed:
    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    def pack(self) -> bytes:
        return self._packed


def _writing_client() -> paho.Client:
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.on_socket_register_write = lambda *_: None
    client._sock = Wire()  # type: ignore[assignment]
    return client


@pytest.mark.parametrize("topic", ["a/+", "#", "x" * 65_536])
def test_what_is_no_topic_is_not_sent(topic: str) -> None:
    """The broker would end the connection, again and again."""
    with pytest.raises(ValueError, match="cannot be published to"):
        publish_packet(1, topic, b"", retain=False)


@pytest.mark.parametrize("size", [0, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 268_435_455])
def test_lengths_are_those_of_the_specification(size: int) -> None:
    """The table of section 1.5.5."""
    packed = variable_length(size)

    assert sum((byte & 0x7F) << 7 * place for place, byte in enumerate(packed)) == size
    assert [byte >= 0x80 for byte in packed] == [True] * (len(packed) - 1) + [False]
    assert len(packed) == 1 + (size > 127) + (size > 16_383) + (size > 2_097_151)


# --- paho -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def test_paho_takes_the_line_for_its_socket(listener: socket.socket) -> None:
    """A paho that makes its socket another way would publish past the line, or not at all: the version range in
    pyproject.toml must not reach it."""
    from bridge.mqtt import _Client

    client = _Client(paho.CallbackAPIVersion.VERSION2, client_id="x", protocol=paho.MQTTv311)
    client.on_socket_register_write = lambda *_: None
    client.connect(*listener.getsockname())
    with listener.accept()[0] as there:
        assert client.line is not None
        assert client.socket() is client.line
        client.loop_write()
        assert there.recv(100)[:1] == b"\x10"  # CONNECT
        there.sendall(b"\x20\x02\x00\x00" + puback(1_000) + PINGRESP)
        heard: list[str] = []
        client.on_connect = lambda *_: heard.append("connected")
        while not client.line.acks or client.line.has_more:
            client.line.fill()
            client.loop_read()
        assert heard == ["connected"]
        assert client.line.acks == [Ack(1_000, 0)]
        client.disconnect()
        client.loop_write()
        assert there.recv(100) == b"\xe0\x00"  # DISCONNECT


def test_paho_asks_no_more_of_its_socket_than_the_line_has() -> None:
    """An attribute that the line lacks would end each connection."""
    source = inspect.getsource(paho.Client)
    used = {
        part.split("(")[0].split(")")[0].strip()
        for part in source.replace("self._sock.", "\0").split("\0")[1:]
        for part in [part[:20]]
    }

    assert used <= {"recv", "send", "setblocking", "close", "fileno", "pending"}
    assert all(hasattr(Line, name) for name in used - {"pending"})
