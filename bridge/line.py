"""The line to a broker as bytes: publications leave together, and acknowledgements arrive together.

It stands where paho expects its socket. paho writes and reads each packet by itself, with several system calls and a
locked object for each; of the two packets that come by the thousand, PUBLISH and PUBACK, it sees nothing. All others
(CONNECT, CONNACK, SUBSCRIBE, what we are subscribed to, pings, DISCONNECT) pass through untouched and in order.

Wire facts: MQTT 5.0 and 3.1.1, sections 1.5 (data representation), 2.1 (fixed header), 3.3 (PUBLISH), 3.4 (PUBACK).
"""

from __future__ import annotations

import ssl
from functools import lru_cache
from typing import NamedTuple, Protocol

#: Bytes that one read asks for, and that wait here at most before they are looked at.
READ = 65_536
READ_MOST = 2**20
#: Bytes that one write offers.
WRITE = 2**18

PUBACK = 0x40
#: A message with QoS 0, retained or not: nobody waits for a word about it.
PUBLISH_0 = (0x30, 0x31)
#: What a packet's length may say.
LONGEST = 268_435_455

#: What a socket, a TLS socket and paho's websocket say when there is nothing to read, or no room to write.
NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Ack(NamedTuple):
    """A PUBACK: the number of the publication, and the reason code (below 0x80: it was taken)."""

    number: int
    code: int


class Socket(Protocol):
    """What is asked of a socket that was opened."""

    def recv(self, size: int, /) -> bytes: ...
    def send(self, data: bytes | memoryview, /) -> int: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...
    def setblocking(self, flag: bool, /) -> None: ...


class Line:
    """A socket that takes publications, and keeps acknowledgements back.

    Args:
        socket: Connected; TLS and websocket are behind it.
        largest: Bytes of a message with QoS 0; a larger one is read past. None: all are passed on.
    """

    def __init__(self, socket: Socket, largest: int | None = None) -> None:
        #: What arrived since the owner last looked; the owner empties it.
        self.acks: list[Ack] = []
        self._socket = socket
        self._largest = largest if largest is not None else LONGEST
        self._outgoing = bytearray()
        self._incoming = b""  # not looked at yet: the beginning of a packet
        self._passed = bytearray()  # for paho
        self._left = 0  # bytes that are still to come of the packet that is passed on or skipped
        self._skips = False  # it is skipped: the tail of an acknowledgement, or a message that is too large
        self._ended: OSError | None = None  # nothing more will come
        self._is_closed_there = False

    # --- for the owner of the connection ------------------------------------------------------------------------

    def publish(self, packet: bytes) -> None:
        """Have a packet sent by the next `flush`, behind what waits already."""
        self._outgoing += packet

    @property
    def wants_write(self) -> bool:
        return bool(self._outgoing)

    @property
    def has_more(self) -> bool:
        """Whether paho has something to read: a packet of its own, or the end."""
        return bool(self._passed) or self._ended is not None or self._is_closed_there

    def flush(self) -> None:
        """Send what waits, as far as there is room for it.

        Raises:
            OSError: The connection is over.
        """
        while self._outgoing:
            # One that found no room has to be offered with the same beginning, and may be longer (TLS, websocket).
            with memoryview(self._outgoing) as view, view[:WRITE] as offered:
                try:
                    sent = self._socket.send(offered)
                except NOT_NOW:
                    return
            if not sent:
                return
            del self._outgoing[:sent]

    def fill(self) -> bool:
        """Read what came, without blocking; whether there may be more. Its acknowledgements are in `acks` then.

        TLS and websocket keep what was read along with an earlier packet, and poll() does not see it: it is read
        until there is no more.
        """
        chunks = [self._incoming]
        size = 0
        while size < READ_MOST and self._ended is None and not self._is_closed_there:
            try:
                chunk = self._socket.recv(READ)
            except NOT_NOW:
                break
            except OSError as error:
                self._ended = error
                break
            if not chunk:
                self._is_closed_there = True
                break
            chunks.append(chunk)
            size += len(chunk)
        if size:
            self._incoming = b"".join(chunks)
            self._sort()
        return size >= READ_MOST

    # --- for paho -----------------------------------------------------------------------------------------------

    def recv(self, size: int) -> bytes:
        if self._passed:
            found = bytes(self._passed[:size])
            del self._passed[:size]
            return found
        if self._ended is not None:
            raise self._ended
        if self._is_closed_there:
            return b""
        raise BlockingIOError

    def send(self, data: bytes) -> int:
        self._outgoing += data
        self.flush()
        return len(data)

    def fileno(self) -> int:
        return self._socket.fileno()

    def setblocking(self, flag: bool) -> None:
        self._socket.setblocking(flag)

    def close(self) -> None:
        self._socket.close()

    # --- packets ------------------------------------------------------------------------------------------------

    def _sort(self) -> None:
        """Acknowledgements to us, all else to paho; the beginning of a packet waits for the rest of its header."""
        data, at, end = self._incoming, 0, len(self._incoming)
        note = self.acks.append
        while at < end:
            if self._left:
                part = data[at : at + self._left]
                if not self._skips:
                    self._passed += part
                self._left -= len(part)
                at += len(part)
                continue
            # Nearly all are of one of these forms: without a reason code, which means success, or with one alone.
            if data[at] == PUBACK and end - at >= 4 and data[at + 1] == 2:
                note(Ack(data[at + 2] << 8 | data[at + 3], 0))
                at += 4
                continue
            if data[at] == PUBACK and end - at >= 5 and data[at + 1] == 3:
                note(Ack(data[at + 2] << 8 | data[at + 3], data[at + 4]))
                at += 5
                continue
            header = _header(data[at : at + 5])
            if header is None:
                break
            size, length = header
            if data[at] == PUBACK and length >= 2:
                needed = size + min(length, 3)
                if end - at < needed:
                    break
                number = data[at + size] << 8 | data[at + size + 1]
                note(Ack(number, data[at + size + 2] if length > 2 else 0))
                at += needed
                self._left, self._skips = length - min(length, 3), True
            else:
                self._left, self._skips = size + length, length > self._largest and data[at] in PUBLISH_0
        self._incoming = data[at:]


def _header(data: bytes) -> tuple[int, int] | None:
    """How long the fixed header is, and what follows it; None if it is not complete.

    A length that is none is passed on as far as it goes: paho ends the connection at it.
    """
    length = 0
    for index, byte in enumerate(data[1:]):
        length |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return index + 2, length
    return (5, 0) if len(data) == 5 else None


# --- PUBLISH ------------------------------------------------------------------------------------------------------


def publish_packet(number: int, topic: str, payload: bytes, *, retain: bool, properties: bytes = b"") -> bytes:
    """A PUBLISH with QoS 1.

    Args:
        number: Its packet identifier, 1 to 65,535.
        topic: Its full topic.
        payload: Its content.
        retain: Whether the broker keeps it.
        properties: As `publish_properties` makes them; empty under 3.1.1, which has none.

    Raises:
        ValueError: The topic is longer than 65,535 bytes or holds a wildcard.
    """
    name = topic.encode()
    if len(name) > 65_535 or b"+" in name or b"#" in name:
        raise ValueError("this topic cannot be published to")
    length = variable_length(4 + len(name) + len(properties) + len(payload))
    return b"".join(
        (
            b"\x33" if retain else b"\x32",
            length,
            len(name).to_bytes(2, "big"),
            name,
            number.to_bytes(2, "big"),
            properties,
            payload,
        )
    )


def publish_properties(expiry: float | None, user: tuple[tuple[str, str], ...], payload: bytes) -> bytes:
    """The properties of a PUBLISH (MQTT 5.0, section 3.3.2.3), their length included.

    Args:
        expiry: Message Expiry Interval in seconds, or None.
        user: User Properties.
        payload: What they belong to; an empty one has no format, type or end.
    """
    packed = _about(payload[:1], None if expiry is None else round(expiry))
    for name, value in user:
        packed += _user_property(name) + _string(value)
    return variable_length(len(packed)) + packed


def variable_length(size: int) -> bytes:
    """A Variable Byte Integer (section 1.5.5)."""
    if size < 128:
        return bytes((size,))
    if size < 16_384:
        return bytes((size & 0x7F | 0x80, size >> 7))
    length = bytearray()
    while size >= 128:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes((*length, size))


def _string(text: str) -> bytes:
    encoded = text.encode()
    return len(encoded).to_bytes(2, "big") + encoded


@lru_cache(512)
def _about(begins: bytes, expiry: int | None) -> bytes:
    """What the content is, and when it is over."""
    if not begins:
        return b""
    about = _JSON if begins == b"{" else _TEXT
    return about if expiry is None else about + b"\x02" + max(1, min(expiry, 0xFFFFFFFF)).to_bytes(4, "big")


@lru_cache(16)
def _user_property(name: str) -> bytes:
    return b"\x26" + _string(name)


# Payload Format Indicator (UTF-8) and Content Type.
_JSON = b"\x01\x01\x03" + _string("application/json")
_TEXT = b"\x01\x01\x03" + _string("text/plain")
