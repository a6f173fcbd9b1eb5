"""A long run: memory, threads, descriptors and the write-ahead log must not grow with what went through."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.torture.harness import Bridge, Mosquitto, Subscriber, ended, wait_until

#: Updates in a POST, and the share of the run after which memory is looked at: caches are warm by then.
A_POST = 100
WARM = 0.4
#: Bytes that a process may grow between then and the end; the write-ahead log's largest size.
GROWTH = 12 * 2**20
WAL = 64 * 2**20


def run(folder: Path, *, seed: int, count: int, say: Callable[[str], None] = print) -> dict[str, object]:
    """Send `count` updates; returns the figures, or raises AssertionError."""
    broker = Mosquitto(folder / "broker").start()
    bridge = Bridge(folder / "bridge", broker.port, settings={"retain.max_topics": "5000"})
    samples: list[dict[str, int]] = []
    largest_wal = 0
    with ended(broker, bridge):
        bridge.start()
        wal = bridge.state / "journal.db-wal"
        with Subscriber(broker.port) as witness:
            began = time.monotonic()
            for start in range(0, count, A_POST):
                now = int(time.time())
                items = [
                    {
                        "id": f"s{seed}-{number // 3}",
                        "status": ("sent", "delivered", "read")[number % 3],
                        "timestamp": now,
                    }
                    for number in range(start, min(count, start + A_POST))
                ]
                assert bridge.post({"statuses": items}) == 200, bridge.tail()
                # No faster than it is published, or the backlog is what is measured.
                wait_until(lambda start=start: len(witness.events) > start - 5_000, "the subscriber keeps up")
                with contextlib.suppress(OSError):
                    largest_wal = max(largest_wal, wal.stat().st_size)
                if start % max(A_POST, count // 50) == 0:
                    samples.append(_sample(bridge))
                    if start % max(A_POST, count // 10) == 0:
                        say(f"{start} updates: {samples[-1]}")
            wait_until(lambda: len(witness.events) == count, "everything arrives")
            seconds = time.monotonic() - began
            repeated = sum(times - 1 for times in witness.events.values())
        samples.append(_sample(bridge))
        warm = samples[int(len(samples) * WARM) :]
        growth = {name: warm[-1][name] - warm[0][name] for name in warm[0]}
        for name in ("main_bytes", "receiver_bytes"):
            assert growth[name] < GROWTH, f"{name} grew by {growth[name] / 2**20:.1f} MiB after the warm-up"
        for name in ("main_threads", "receiver_threads", "main_descriptors", "receiver_descriptors"):
            assert abs(growth[name]) <= 2, f"{name} changed by {growth[name]} after the warm-up"
        assert largest_wal < WAL, f"the write-ahead log reached {largest_wal / 2**20:.0f} MiB"
        assert bridge.stop() == 0
    return {
        "updates": count,
        "updates_a_second": round(count / seconds),
        "events_repeated": repeated,
        "growth_after_the_warm_up": growth,
        "at_the_end": samples[-1],
        "largest_wal_bytes": largest_wal,
    }


def _sample(bridge: Bridge) -> dict[str, int]:
    assert bridge.process is not None
    receiver = bridge.receiver()
    assert receiver is not None, "the receiver runs"
    sample: dict[str, int] = {}
    for name, pid in (("main", bridge.process.pid), ("receiver", receiver)):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        sample[f"{name}_bytes"] = pages * os.sysconf("SC_PAGE_SIZE")
        sample[f"{name}_threads"] = len(list(Path(f"/proc/{pid}/task").iterdir()))
        sample[f"{name}_descriptors"] = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return sample
