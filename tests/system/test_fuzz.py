"""A fuzzer's callbacks by HTTP to a real bridge, and what a subscriber of a real broker hears of them."""

from __future__ import annotations

import http.client
import json
import os
from pathlib import Path

import apsw
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.callbacks import bodies
from tests.fuzz.way import EVENT, FEED, LAST, STATE, look_at_document, strict_json
from tests.system.conftest import MakeBridge
from tests.system.support import PATIENCE, Bridge, Subscriber, status

EXAMPLES = 500
#: Bodies after which memory is what it will be, and bytes that each process may grow from then on.
WARM = 200
GROWTH = 10 * 2**20


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def post_all(bridge: Bridge) -> tuple[dict[str, int], list[list[int]]]:
    """Post what the fuzzer makes, on one connection; the counts of all answers, and memory when warm and at the end."""
    counts = {"posts": 0, "stored": 0, "dead": 0, "ignored": 0, "duplicate": 0}
    memory = []
    pids = (bridge.pid, bridge.receiver)
    connection = http.client.HTTPConnection("127.0.0.1", bridge.webhook, timeout=PATIENCE)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(bodies())
    def post(body: bytes) -> None:
        connection.request("POST", bridge.path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = json.loads(answer.read())
        assert answer.status == 200, said
        assert not answer.will_close
        counts["posts"] += 1
        for name, count in said.items():
            counts[name] += count
        if counts["posts"] == WARM:
            memory.append([resident(pid) for pid in pids])

    post()
    connection.close()
    memory.append([resident(pid) for pid in pids])
    assert (bridge.pid, bridge.receiver) == pids
    return counts, memory


@pytest.mark.timeout(300)
def test_a_real_bridge_takes_what_a_fuzzer_posts_and_goes_on(make_bridge: MakeBridge, mosquitto: int) -> None:
    """What holds without sockets must hold behind them: one answer that is no 200, and the sender comes for days."""
    bridge = make_bridge(mqtt__url=f"mqtt://127.0.0.1:{mosquitto}").start()
    with Subscriber(mosquitto, "whatsapp/#") as subscriber:
        counts, memory = post_all(bridge)
        assert bridge.post(status("the-last-one", "read")).status == 200
        journal = apsw.Connection(str(bridge.state / "journal.db"), flags=apsw.SQLITE_OPEN_READONLY)
        newest = journal.execute("SELECT max(seq) FROM updates").get
        subscriber.wait("whatsapp/bridge/checkpoint", lambda one: one.json["seq"] == newest)
    print(counts, memory)

    assert counts["posts"] >= EXAMPLES
    for outcome in ("stored", "dead", "ignored", "duplicate"):
        assert counts[outcome] > EXAMPLES / 100, counts
    events = []
    for one in subscriber.heard:
        topic = one.topic.removeprefix("whatsapp/")
        if FEED(topic):
            assert isinstance(strict_json(one.payload)["event_type"], str)
        elif not topic.startswith("bridge/"):
            assert EVENT(topic) or STATE(topic) or LAST(topic), topic
            said = look_at_document(one.payload, topic)
            events += [(topic, said["event_id"])] if EVENT(topic) else []
    fired = journal.execute("SELECT event_topic, lower(hex(event_id)) FROM updates WHERE NOT late").fetchall()
    journal.close()
    assert sorted(events) == sorted(fired), "each update that was stored and is not late is one event"
    for warm, end in zip(*memory, strict=True):
        assert end - warm < GROWTH, memory
    assert not [line for line in bridge.program.log if line["level"] == "error"]
    assert bridge.program.end() == 0
