"""The independent subscriber: a few lines of MQTT 3.1.1 on a socket, a process of its own.

It prints, when its standard input closes, when each message id arrived first and how often: on the retained topics of
the user's contract, `<base>/+/status` and `<base>/button/+`.
"""

from __future__ import annotations

import json
import re
import select
import socket
import sys
import time

from tests.torture.proxy import PUBLISH, Packets

FIND_ID = re.compile(rb'"(?:message_id|id)": ?"([^"]+)"').search


def watch(port: int, filters: list[str]) -> None:
    """Subscribe with QoS 0, say `ready`, and note until standard input closes."""
    link = socket.create_connection(("127.0.0.1", port))
    link.sendall(_packet(0x10, _text("MQTT") + bytes((4, 2)) + (0).to_bytes(2, "big") + _text("bench-watch")))
    link.sendall(_packet(0x82, (1).to_bytes(2, "big") + b"".join(_text(one) + b"\0" for one in filters)))
    arrived: dict[str, float] = {}
    repeated = 0
    packets = Packets()
    ready = False
    while True:
        readable, _, _ = select.select([link, sys.stdin], [], [], 1)
        if link in readable:
            data = link.recv(1 << 20)
            now = time.monotonic()
            if not data:
                break
            for kind, flags, content in packets.feed(data):
                if kind == 9 and not ready:
                    ready = True
                    print("ready", flush=True)
                if kind != PUBLISH or flags & 1:
                    continue
                found = FIND_ID(content)
                if found is not None:
                    name = found[1].decode()
                    if name in arrived:
                        repeated += 1
                    else:
                        arrived[name] = now
        elif sys.stdin in readable:
            break
    json.dump({"arrived": arrived, "repeated": repeated}, sys.stdout)


def _text(text: str) -> bytes:
    return len(text).to_bytes(2, "big") + text.encode()


def _packet(first: int, content: bytes) -> bytes:
    length, size = b"", len(content)
    while True:
        byte, size = size & 0x7F, size >> 7
        length += bytes([byte | (0x80 if size else 0)])
        if not size:
            return bytes([first]) + length + content


if __name__ == "__main__":
    watch(int(sys.argv[1]), sys.argv[2:])
