"""The independent subscriber: a few lines of MQTT 3.1.1 on a socket, a process of its own.

It notes when each message id arrived first, and how often one came again, on the topics that it is given. A line on
its standard input says how many ids there are to come: when they did, or when nothing comes any more, it prints what it
saw.
"""

from __future__ import annotations

import json
import re
import select
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Self

from tests.torture.proxy import PUBLISH, Packets

#: The user's contract: what stands, retained, of each message and each button.
STATES = ("whatsapp/+/status", "whatsapp/button/+")
#: What automations use; a peer has none of these.
EVENTS = ("whatsapp/event/#",)

#: Seconds without anything new after which what is still missing counts as lost.
PATIENCE = 10.0

FIND_ID = re.compile(rb'"(?:message_id|id)": ?"([^"]+)"').search


@dataclass
class Seen:
    """What a subscriber saw.

    Attributes:
        arrived: Message id to the time of its first arrival, on the monotonic clock of this machine.
        repeated: How many arrived once more.
    """

    arrived: dict[str, float]
    repeated: int


class Watcher:
    """A subscriber as a process of its own; made and ended by `with`.

    Args:
        port: The broker's.
        filters: What it subscribes to.
        linger: Seconds that it goes on to listen for what comes twice.
    """

    def __init__(self, port: int, filters: tuple[str, ...] = STATES, linger: float = 1.0) -> None:
        self._command = [sys.executable, "-m", "tests.bench.watch", str(port), str(linger), *filters]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", "the subscriber is there"
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def seen(self, expected: int) -> Seen:
        """What arrived, once so many ids did, or nothing comes any more."""
        out, _ = self._process.communicate(f"{expected}\n")
        return Seen(**json.loads(out))


def watch(port: int, linger: float, filters: list[str]) -> None:
    """Subscribe with QoS 0, say `ready`, and note."""
    link = socket.create_connection(("127.0.0.1", port))
    link.sendall(packet(0x10, text("MQTT") + bytes((4, 2)) + (0).to_bytes(2, "big") + text("bench-watch")))
    link.sendall(packet(0x82, (1).to_bytes(2, "big") + b"".join(text(one) + b"\0" for one in filters)))
    seen, packets = Seen({}, 0), Packets()
    received: list[tuple[float, bytes]] = []  # looked at when the load is over, so that it has the processor
    expected: int | None = None
    # CONNACK, SUBACK
    link.recv(4, socket.MSG_WAITALL)
    link.recv(4 + len(filters), socket.MSG_WAITALL)
    print("ready", flush=True)
    latest = time.monotonic()
    while True:
        readable, _, _ = select.select([link] if expected is not None else [link, sys.stdin], [], [], 0.05)
        now = time.monotonic()
        if link in readable:
            data = link.recv(1 << 20)
            if not data:
                break
            received.append((now, data))
        elif sys.stdin in readable:
            expected = int(sys.stdin.readline() or 0)
            latest = now
        if expected is not None:
            for at, data in received:
                latest = max(latest, at) if _note(packets, at, data, seen) else latest
            received.clear()
            if now - latest > (linger if len(seen.arrived) >= expected else PATIENCE):
                break
    json.dump({"arrived": seen.arrived, "repeated": seen.repeated}, sys.stdout)


def _note(packets: Packets, at: float, data: bytes, seen: Seen) -> bool:
    """Note the message ids in what was received at a time; whether there were any."""
    found = False
    for kind, flags, content in packets.feed(data):
        # What the broker kept of earlier times says so; and `last/status` reads like a message's.
        is_new = kind == PUBLISH and not flags & 1 and not content.startswith(b"whatsapp/last/", 2)
        named = FIND_ID(content) if is_new else None
        if named is not None:
            found = True
            name = named[1].decode()
            if name in seen.arrived:
                seen.repeated += 1
            else:
                seen.arrived[name] = at
    return found


def text(given: str) -> bytes:
    """A string as MQTT writes it."""
    return len(given).to_bytes(2, "big") + given.encode()


def packet(first: int, content: bytes) -> bytes:
    """A packet with its length."""
    length, size = b"", len(content)
    while True:
        byte, size = size & 0x7F, size >> 7
        length += bytes([byte | (0x80 if size else 0)])
        if not size:
            return bytes([first]) + length + content


if __name__ == "__main__":
    watch(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
