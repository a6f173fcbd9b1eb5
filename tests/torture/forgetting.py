"""A broker that lost its memory gets every retained topic back, and no event; and what is over is taken away again.

Promise 6, with the figures of the issue: 10,000 topics within 10 s of the reconnect; 100,000 topics expire while new
updates go through.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tests.torture.harness import Bridge, Mosquitto, Subscriber, ended, retained_now, status, wait_until

A_POST = 1_000


def restore(folder: Path, *, seed: int, count: int, say: Callable[[str], None] = print) -> dict[str, object]:
    """Have a broker without memory killed and started again over `count` topics; returns the figures."""
    broker = Mosquitto(folder / "broker").start()
    bridge = Bridge(folder / "bridge", broker.port, settings={"retain.max_topics": "1000000"})
    with ended(broker, bridge):
        bridge.start()
        with Subscriber(broker.port) as witness:
            _fill(bridge, seed, count)
            wait_until(lambda: len(witness.events) == count, "everything arrives")
        wait_until(lambda: _checkpoint(broker) >= count, "the checkpoint is on the broker")
        before = _topics(retained_now(broker.port))
        assert len(before) == count, f"{len(before)} topics of {count} stand"
        broker.kill()
        broker.start()
        with Subscriber(broker.port) as witness:
            wait_until(lambda: witness.states.get("bridge/state", {}).get("text") == "online", "the bridge is back")
            began = time.monotonic()
            wait_until(lambda: len(_topics(witness.states)) == count, f"all stand again\n{bridge.tail()}", 120)
            seconds = time.monotonic() - began
            events = len(witness.events)
        after = _topics(retained_now(broker.port))
        assert after == before, "every topic has its content again"
        assert events == 0, f"{events} events were sent again"
        # And a broker that forgot nothing: the bridge alone starts anew.
        assert bridge.stop() == 0
        bridge.start()
        with Subscriber(broker.port) as witness:
            wait_until(lambda: witness.states.get("bridge/state", {}).get("text") == "online", "the bridge is back")
            wait_until(lambda: bridge.post(status(f"last-{seed}", "sent")) == 200, "it takes a callback")
            wait_until(lambda: len(witness.events) == 1, "the next update arrives")
            again = witness.messages - len(witness.retained)
        assert bridge.stop() == 0
    say(f"{count} topics restored in {seconds:.1f} s")
    return {
        "topics": count,
        "seconds_from_reconnect": round(seconds, 1),
        "events_sent_again": events,
        "messages_to_a_broker_that_forgot_nothing": again,
    }


def expire(folder: Path, *, seed: int, count: int, say: Callable[[str], None] = print) -> dict[str, object]:
    """Let `count` topics expire at once while updates go through; returns the figures."""
    broker = Mosquitto(folder / "broker").start()
    lifetime = 20.0
    bridge = Bridge(
        folder / "bridge",
        broker.port,
        settings={"retain.status": f"{lifetime:.0f}s", "retain.max_topics": "1000000", "mqtt.protocol": "3.1.1"},
    )
    longest = 0.0
    probes = 0
    with ended(broker, bridge):
        bridge.start()
        with Subscriber(broker.port) as witness:
            _fill(bridge, seed, count)
            wait_until(lambda: len(witness.events) == count, "everything arrives", 120)
            began = time.monotonic()
            while len(old := [topic for topic in witness.states.copy() if topic.startswith(f"r{seed}-")]) > 0:
                assert time.monotonic() - began < lifetime + 180, f"{len(old)} topics never expire\n{bridge.tail()}"
                probes += 1
                posted = time.monotonic()
                assert bridge.post(status(f"probe{probes}", "sent")) == 200
                wait_until(lambda probe=f"probe{probes}": probe in witness.seen, "a new update arrives")
                longest = max(longest, time.monotonic() - posted)
                time.sleep(0.2)
            seconds = time.monotonic() - began
        assert bridge.stop() == 0
    say(f"{count} topics gone after {seconds:.0f} s, the slowest of {probes} new updates took {longest:.2f} s")
    return {
        "topics": count,
        "lifetime_s": lifetime,
        "all_gone_after_s": round(seconds),
        "new_updates_meanwhile": probes,
        "slowest_of_them_s": round(longest, 2),
    }


def _fill(bridge: Bridge, seed: int, count: int) -> None:
    for start in range(0, count, A_POST):
        items = [
            {"id": f"r{seed}-{number}", "status": "sent", "timestamp": int(time.time())}
            for number in range(start, min(count, start + A_POST))
        ]
        assert bridge.post({"statuses": items}) == 200


def _checkpoint(broker: Mosquitto) -> int:
    return int(retained_now(broker.port).get("bridge/checkpoint", {}).get("seq", 0))


def _topics(states: dict[str, dict[str, object]]) -> dict[str, object]:
    """What stands about messages, without the bridge's own."""
    return {
        topic: content["event_id"]
        for topic, content in states.copy().items()
        if topic.endswith("/status") and "event_id" in content and not topic.startswith("last/")
    }
