"""Who knocks without the right credentials: what it is answered, and what it cannot do to those who have them."""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter

from bridge.throttle import FAILURES
from tests.system.conftest import MakeBridge
from tests.system.support import PATIENCE, Bridge, status
from tests.system.test_admin import samples

TOKEN = "a-token-that-nobody-may-read-anywhere"


def send(bridge: Bridge, path: str, bodies: list[bytes], statuses: Counter[int]) -> None:
    """Post one after the other on one connection, as vendors do; on another where the bridge hung up."""
    connection = http.client.HTTPConnection("127.0.0.1", bridge.webhook, timeout=PATIENCE)
    try:
        for body in bodies:
            try:
                connection.request("POST", path, body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                answer.read()
            except (ConnectionError, http.client.HTTPException):
                # It answers who is turned away without reading the body, and hangs up.
                statuses[0] += 1
                connection.close()
            else:
                statuses[answer.status] += 1
    finally:
        connection.close()


def test_a_stranger_at_the_same_address_keeps_no_callback_out(make_bridge: MakeBridge) -> None:
    """Behind a tunnel all come from one address: a stranger who knocks without end would shut out the sender."""
    bridge = make_bridge(webhook__auth__path_token=TOKEN).start()
    strangers: Counter[int] = Counter()
    senders: Counter[int] = Counter()
    bodies = [json.dumps(status(f"m{number}")).encode() for number in range(2_000)]
    threads = [
        *(threading.Thread(target=send, args=(bridge, "/webhook/wrong", bodies[:1_000], strangers)) for _ in range(2)),
        threading.Thread(target=send, args=(bridge, f"/webhook/{TOKEN}", bodies[:1_000], senders)),
        threading.Thread(target=send, args=(bridge, f"/webhook/{TOKEN}", bodies[1_000:], senders)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert senders == {200: 2_000}
    assert strangers.keys() <= {0, 404, 429}
    found = samples(bridge)
    assert strangers[429] > 100
    # A minute may have ended meanwhile; and the bridge itself asks, when it starts.
    assert strangers[404] <= 2 * FAILURES
    assert strangers[429] <= found["whatsapp2mqtt_webhook_limited_total", "stranger"] <= strangers[429] + strangers[0]
    assert found["whatsapp2mqtt_webhook_limited_total", "sender"] == 0
    lines = [line for line in bridge.program.log if "turned away" in line["event"]]
    assert 1 <= len(lines) <= 2
    assert {line["address"] for line in lines} == {"127.0.0.1"}
