"""A TCP proxy between bridge and broker that reads MQTT along the way, and can be told to misbehave.

Wire facts: MQTT 5.0 and 3.1.1, sections 2.1 (fixed header), 3.3 (PUBLISH) and 3.4 (PUBACK).
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from typing import Self

CONNECT, PUBLISH, PUBACK = 1, 3, 4


class Proxy:
    """Forwards between a free port and a broker's; the acknowledgements it saw tell what was delivered.

    Args:
        port: The broker's.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.delay = 0.0  # seconds by which each read is held back
        self.swallow_to_broker = False
        self.swallow_to_bridge = False
        self.cut_hard = True  # pass the end of one side on to the other as a reset, which loses what is under way
        self.cut_in_packet = False  # at the next bytes towards the broker: half of them, then reset
        self.connections = 0
        self.levels: list[int] = []  # of the CONNECTs: 4 is 3.1.1
        self.acknowledged: Counter[str] = Counter()  # by event_id, on event topics
        self.sent: Counter[str] = Counter()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    def start(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def end(self) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Reset every connection."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for end in pair:
                _reset(end)

    def _accept(self) -> None:
        while True:
            try:
                bridge, _ = self._listener.accept()
            except OSError:
                return
            try:
                broker = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                _reset(bridge)
                continue
            broker.settimeout(None)
            self.connections += 1
            with self._lock:
                self._pairs.add((bridge, broker))
            flights: dict[int, str] = {}
            threading.Thread(target=self._pump, args=(bridge, broker, flights, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(broker, bridge, flights, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, flights: dict[int, str], to_broker: bool) -> None:
        reader = Packets()
        level = 5
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if self.delay:
                    time.sleep(self.delay)
                if self.swallow_to_broker if to_broker else self.swallow_to_bridge:
                    continue
                if to_broker and self.cut_in_packet:
                    self.cut_in_packet = False
                    sink.sendall(data[: len(data) // 2 + 1])
                    break
                # Noted before it is sent, as the answer may overtake us. What the bridge sends and no one gets is not
                # acknowledged, so it does not count.
                for kind, flags, body in reader.feed(data):
                    if to_broker and kind == CONNECT:
                        level = body[6]  # behind the protocol's name
                        self.levels.append(level)
                    elif to_broker and kind == PUBLISH:
                        self._note_publish(flags, body, flights, level)
                    elif not to_broker and kind == PUBACK:
                        self._note_ack(body, flights)
                sink.sendall(data)
        if self.cut_hard:
            _reset(source)
            _reset(sink)
        else:
            # As the end of a process does it: what was sent before still arrives.
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

    def _note_publish(self, flags: int, body: bytes, flights: dict[int, str], level: int) -> None:
        (length,) = struct.unpack_from("!H", body)
        topic = body[2 : 2 + length].decode()
        if "/event/" not in topic or not flags & 0x06:
            return
        (number,) = struct.unpack_from("!H", body, 2 + length)
        rest = body[4 + length :]
        if level == 5:
            size, used = variable_length(rest)
            rest = rest[used + size :]
        identity = json.loads(rest)["event_id"]
        flights[number] = identity
        with self._lock:
            self.sent[identity] += 1

    def _note_ack(self, body: bytes, flights: dict[int, str]) -> None:
        (number,) = struct.unpack_from("!H", body)
        identity = flights.pop(number, None)
        refused = len(body) > 2 and body[2] >= 0x80
        if identity is not None and not refused:
            with self._lock:
                self.acknowledged[identity] += 1


class Packets:
    """Takes a stream of bytes apart into MQTT packets."""

    def __init__(self) -> None:
        self._bytes = b""

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """The packets that are complete by now: kind, flags, everything behind the fixed header."""
        data = self._bytes + data
        packets: list[tuple[int, int, bytes]] = []
        at = 0
        while len(data) - at >= 2:
            try:
                size, used = variable_length(data[at + 1 : at + 5])
            except IndexError:
                break
            end = at + 1 + used + size
            if len(data) < end:
                break
            packets.append((data[at] >> 4, data[at] & 0x0F, data[at + 1 + used : end]))
            at = end
        self._bytes = data[at:]
        return packets


def variable_length(data: bytes) -> tuple[int, int]:
    """A variable byte integer and how many bytes it took; IndexError if it is not complete."""
    value, used = 0, 0
    while True:
        byte = data[used]
        value |= (byte & 0x7F) << (7 * used)
        used += 1
        if not byte & 0x80:
            return value, used


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
