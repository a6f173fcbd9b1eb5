"""What the broker's side takes without a bridge: publications made ready before, sent with QoS 1; a process of its own.

By paho as most programs use it (`loop_start`, `publish`), with a window as large as the bridge's; or by a socket and
nothing else, which is as fast as the broker lets anybody be. It prints the seconds from the first publication to the
last acknowledgement.
"""

from __future__ import annotations

import select
import socket
import sys
import threading
import time

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from bridge.line import publish_packet
from bridge.payload import parse
from bridge.topics import entry
from tests.bench.load import body
from tests.bench.watch import packet, text

#: Publications that may wait for their acknowledgement.
WINDOW = 500
#: And that paho may hold before it has sent them.
QUEUE = 10_000

Publication = tuple[str, bytes, bool]


def publications(updates: int, *, only_states: bool) -> list[Publication]:
    """What the bridge would publish of so many updates: topic, content, whether it is retained."""
    found: list[Publication] = []
    for start in range(0, updates, 1000):
        _, content = body("d", start, min(1000, updates - start))
        for update in parse(content).updates:
            made = entry(update, time.time())
            document = made.document.encode()
            found.append((f"whatsapp/{made.topic}", document, True))
            if not only_states:
                found.append((f"whatsapp/{made.event_topic}", document, False))
    return found


def by_paho(port: int, messages: list[Publication]) -> float:
    # 3.1.1: under 5, which lets mosquitto ask for a window of 20, paho does not keep to it.
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.max_queued_messages_set(0)
    client.max_inflight_messages_set(WINDOW)
    # Of more than 65,535 that wait it would refuse some, as their numbers come round.
    room = threading.Semaphore(QUEUE)
    client.on_publish = lambda *_: room.release()
    client.connect("127.0.0.1", port)
    client.loop_start()
    began = time.monotonic()
    for topic, content, retain in messages:
        room.acquire()
        client.publish(topic, content, qos=1, retain=retain)
    for _ in range(QUEUE):
        room.acquire()
    seconds = time.monotonic() - began
    client.disconnect()
    client.loop_stop()
    return seconds


def by_socket(port: int, messages: list[Publication]) -> float:
    ready = [
        publish_packet(number % 60_000 + 1, topic, content, retain=retain)
        for number, (topic, content, retain) in enumerate(messages)
    ]
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.sendall(packet(0x10, text("MQTT") + bytes((4, 2)) + (0).to_bytes(2, "big") + text("bench-writer")))
        link.recv(4, socket.MSG_WAITALL)
        sent = 0
        acknowledged = 0  # bytes: four a publication
        began = time.monotonic()
        while acknowledged < 4 * len(ready):
            room = min(len(ready), acknowledged // 4 + WINDOW)
            if sent < room:
                link.sendall(b"".join(ready[sent:room]))
                sent = room
            select.select([link], [], [])
            acknowledged += len(link.recv(65_536))
        return time.monotonic() - began


if __name__ == "__main__":
    way = {"paho": by_paho, "socket": by_socket}[sys.argv[1]]
    print(way(int(sys.argv[2]), publications(int(sys.argv[3]), only_states=sys.argv[4] == "states")))
