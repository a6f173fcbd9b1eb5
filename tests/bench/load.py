"""The load generator: one thread, one epoll, requests that were built before; run as a process of its own.

It says, for each update, when its POST was sent and when the 200 came (seconds of CLOCK_MONOTONIC, which all
processes of a machine share), so that it can be matched with what a subscriber saw.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import select
import socket
import sys
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any


@dataclass
class Plan:
    """What to send.

    Attributes:
        port: Of the webhook.
        connections: Open at once.
        seconds: How long; requests that were sent by then are waited for.
        rate: POSTs a second at fixed times (open loop); None: each connection sends when its answer came.
        updates: In a POST.
        keep_alive: Whether a connection is used again.
        tag: Tells this load's message ids from others.
        path: Of the webhook.
    """

    port: int
    connections: int = 32
    seconds: float = 5.0
    rate: float | None = None
    updates: int = 1
    keep_alive: bool = True
    tag: str = "x"
    path: str = "/webhook"


@dataclass
class Outcome:
    """What came of it: message id to the times of POST and answer; answers by status; how long it took."""

    sent: dict[str, float] = field(default_factory=dict)
    answered: dict[str, float] = field(default_factory=dict)
    statuses: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0


#: Updates a second that the generator has ready; what answers more of them is done earlier.
MOST_A_SECOND = 20_000

WORDS = ("sent", "delivered", "read", "failed")


def name_of(tag: str, number: int) -> str:
    """A message id as WhatsApp makes them: long, with a tail in no order."""
    return f"wamid.HBgLMTU1NTAwMDEyMzQVAgARGBI{hashlib.sha256(f'{tag}-{number}'.encode()).hexdigest()[:20].upper()}AA=="


def body(tag: str, first: int, updates: int, now: int | None = None) -> tuple[list[str], bytes]:
    """The ids and the body of one POST: of five updates, four are the statuses and one is a click.

    Args:
        tag: Tells this load from others.
        first: The number of the first update.
        updates: How many.
        now: Their timestamp, in epoch seconds.
    """
    ids = [name_of(tag, number) for number in range(first, first + updates)]
    now = int(time.time()) if now is None else now
    statuses, messages = [], []
    for number, name in enumerate(ids, first):
        if number % 5 == 4:
            button = {"payload": f"b{number % 20}", "text": "Open the gate"}
            context = {"from": "15550009999", "id": "wamid.HBgLMTU1NTAwMDEyMzQVAgARGBI"}
            click = {"id": name, "type": "button", "from": "15550001234", "timestamp": str(now), "button": button}
            messages.append({**click, "context": context})
        else:
            item = {"id": name, "status": WORDS[number % 5], "timestamp": str(now), "recipient_id": "15550001234"}
            item["conversation"] = {"id": "72569257438b471cae074da84bed1b83", "origin": {"type": "business_initiated"}}
            statuses.append(item)
    value: dict[str, Any] = {"business_phone": "15550009999", "messaging_product": "whatsapp"}
    if statuses:
        value["statuses"] = statuses
    if messages:
        value["messages"] = messages
        value["contacts"] = [{"profile": {"name": "Somebody"}, "wa_id": "15550001234"}]
    return ids, json.dumps(value).encode()


class _Client:
    """One connection of the load."""

    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self.ids: list[str] = []
        self.received = b""


def run(plan: Plan) -> Outcome:
    """Send the load; returns when every request is answered or has failed."""
    outcome = Outcome()
    poller = select.epoll()
    clients = [_Client() for _ in range(plan.connections)]
    by_descriptor: dict[int, _Client] = {}
    idle = list(clients)
    number = 0
    head = f"POST {plan.path} HTTP/1.1\r\nHost: 127.0.0.1:{plan.port}\r\nContent-Type: application/json\r\n"
    if not plan.keep_alive:
        head += "Connection: close\r\n"
    # More than any peer answers; making them would else be part of what is measured.
    most = int(plan.seconds * min(plan.rate or math.inf, MOST_A_SECOND / plan.updates)) + plan.connections
    # All of one second: which of two clicks on a button is the newer one would else depend on which is stored first.
    now = int(time.time())
    ready = [body(plan.tag, start * plan.updates, plan.updates, now) for start in range(most)]
    requests = [f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content for _, content in ready]
    gc.disable()  # its pauses would be taken for the peer's
    began = time.monotonic()
    until = began + plan.seconds
    due = began
    pending = 0
    while True:
        at = time.monotonic()
        while idle and at < until and number < most and (plan.rate is None or at >= due):
            client = idle.pop()
            ids, request = ready[number][0], requests[number]
            number += 1
            if client.socket is None:
                client.socket = socket.create_connection(("127.0.0.1", plan.port))
                client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                by_descriptor[client.socket.fileno()] = client
                poller.register(client.socket.fileno(), select.EPOLLIN)
            client.ids, client.received = ids, b""
            # In an open loop the request counts from when it was due: waiting for a free connection is latency too.
            stamp = due if plan.rate is not None else time.monotonic()
            for one in ids:
                outcome.sent[one] = stamp
            client.socket.sendall(request)
            pending += 1
            if plan.rate is not None:
                due += 1 / plan.rate
            at = time.monotonic()
        if (at >= until or number == most) and pending == 0:
            break
        wait = max(0.0, min(until, due) - at) if plan.rate is not None and idle and at < until else 1.0
        for descriptor, _ in poller.poll(wait):
            client = by_descriptor[descriptor]
            assert client.socket is not None
            try:
                data = client.socket.recv(65_536)
            except OSError:
                data = b""
            client.received += data
            status = _complete(client.received)
            if status is None and data:
                continue
            stamp = time.monotonic()
            outcome.statuses[status or 0] = outcome.statuses.get(status or 0, 0) + 1
            if status == 200:
                for one in client.ids:
                    outcome.answered[one] = stamp
            pending -= 1
            idle.append(client)
            if not data or not plan.keep_alive:
                poller.unregister(descriptor)
                del by_descriptor[descriptor]
                client.socket.close()
                client.socket = None
        if time.monotonic() > until + 60:
            break
    outcome.seconds = time.monotonic() - began
    return outcome


def _complete(received: bytes) -> int | None:
    """The status, once the whole answer is there."""
    head, end, content = received.partition(b"\r\n\r\n")
    if not end:
        return None
    status, length = _read(head)
    if len(content) < length if length is not None else not content.endswith(b"0\r\n\r\n"):
        return None
    return status


@lru_cache(64)  # it is the same for a second, and the generator is not what is to be measured
def _read(head: bytes) -> tuple[int, int | None]:
    """The status, and how long the content is; None: it comes in chunks."""
    lower = head.lower()
    at = lower.find(b"content-length:")
    if at >= 0:
        length: int | None = int(lower[at + 15 :].split(b"\r\n", 1)[0])
    else:
        length = None if b"chunked" in lower else 0
    return int(head[9:12]), length


if __name__ == "__main__":
    found = run(Plan(**json.loads(sys.argv[1])))
    json.dump(
        {"sent": found.sent, "answered": found.answered, "statuses": found.statuses, "seconds": found.seconds},
        sys.stdout,
    )
