"""kill -9 of receiver, main process and both, at random moments under load.

Promises 1 and 2: what was answered 200 reaches the broker, whatever dies.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from tests.torture.harness import Bridge, Load, Mosquitto, Subscriber, ended, wait_until


def run(folder: Path, *, seed: int, count: int, say: Callable[[str], None] = print) -> dict[str, object]:
    """Kill `count` times; returns the figures, or raises AssertionError."""
    chance = random.Random(seed)
    broker = Mosquitto(folder / "broker").start()
    bridge = Bridge(folder / "bridge", broker.port)
    killed = {"receiver": 0, "main": 0, "both": 0}
    with ended(broker, bridge):
        bridge.start()
        with Subscriber(broker.port) as witness, Load(bridge, seed) as load:
            for number in range(count):
                time.sleep(chance.uniform(0.02, 0.6))
                victim = chance.choice(("receiver", "main", "both"))
                killed[victim] += 1
                if victim in ("receiver", "both"):
                    bridge.kill_receiver()
                if victim in ("main", "both"):
                    bridge.kill()
                else:
                    # A receiver that dies again within seconds ends the bridge: its supervisor starts it anew.
                    _await_receiver(bridge)
                if bridge.process is None or bridge.process.poll() is not None:
                    bridge.start()
                if number % 50 == 49:
                    say(f"{number + 1} kills, {len(load.accepted)} answered 200")
            load.__exit__()
            if bridge.process is None or bridge.process.poll() is not None:
                bridge.start()
            wanted = set(load.accepted)
            wait_until(lambda: not _missing(wanted, witness), f"everything arrives\n{bridge.tail()}")
            missing = _missing(wanted, witness)
            repeated = sum(times - 1 for times in witness.events.values())
            assert not load.false_answers, f"only 200 and 503 are answered under a kill: {load.false_answers}"
        assert bridge.stop() == 0
    return {
        "kills": killed,
        "answered_200": len(load.accepted),
        "missing": len(missing),
        "events_repeated_with_their_id": repeated,
    }


def _missing(wanted: set[str], witness: Subscriber) -> set[str]:
    return wanted - witness.seen


def _await_receiver(bridge: Bridge) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if bridge.process is None or bridge.process.poll() is not None:
            return
        if bridge.receiver() is not None and bridge.answers():
            return
        time.sleep(0.02)
    raise AssertionError(f"the receiver is started again\n{bridge.tail()}")
