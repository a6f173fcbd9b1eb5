"""The broker killed with -9, frozen, and started again without its memory, in random turn, under a shuffled load.

Promises 2 to 6: nothing missing, no state backwards, every event once.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.torture.harness import (
    Bridge,
    Mosquitto,
    Subscriber,
    click,
    ended,
    event_id,
    retained_now,
    status,
    wait_until,
)
from tests.torture.proxy import Proxy

WORDS = ("sent", "delivered", "read", "failed", "deleted")
#: Seconds between two posts of a thread, so that many faults fall into the load.
PACE = 0.003
RANKS = {word: rank for rank, word in enumerate(WORDS)}


def run(folder: Path, *, seed: int, count: int, say: Callable[[str], None] = print) -> dict[str, object]:
    """Post `count` updates, 30 % of them again, through broker faults; returns the figures."""
    chance = random.Random(seed)
    posts = _posts(chance, count)
    broker = Mosquitto(folder / "broker").start()
    # The proxy sees what the broker acknowledged, also while no subscriber is connected.
    proxy = Proxy(broker.port).start()
    proxy.cut_hard = False
    bridge = Bridge(folder / "bridge", proxy.port, settings={"events.max_age": "off"})
    faults = {"killed": 0, "frozen": 0}
    with ended(broker, proxy, bridge):
        bridge.start()
        with Subscriber(broker.port) as witness:
            done = threading.Event()
            poster = threading.Thread(target=_post_all, args=(bridge, posts, done), daemon=True)
            poster.start()
            while not done.is_set():
                time.sleep(chance.uniform(0.2, 1.0))
                if chance.random() < 0.6:
                    faults["killed"] += 1  # it has no persistence: it forgets everything
                    broker.kill()
                    time.sleep(chance.uniform(0, 0.5))
                    broker.start()
                else:
                    faults["frozen"] += 1
                    broker.freeze()
                    time.sleep(chance.uniform(0.1, 1.5))
                    broker.thaw()
            wanted = {event_id(body) for body in posts}
            wait_until(lambda: _settled(broker, len(wanted)), f"all is settled\n{bridge.tail()}", 120)
            final = retained_now(broker.port)
            model = _model(posts)
            wrong = {
                topic: final.get(topic, {}).get("event_id")
                for topic, identity in model.items()
                if final.get(topic, {}).get("event_id") != identity
            }
            say(f"faults {faults}, events acknowledged {len(proxy.acknowledged)} of {len(wanted)}")
            missing = wanted - set(proxy.acknowledged)
            assert not missing, f"{len(missing)} events were never acknowledged by the broker"
            twice = [identity for identity, times in proxy.acknowledged.items() if times > 1]
            assert not twice, f"{len(twice)} events were acknowledged more than once"
            assert not wrong, f"{len(wrong)} retained topics differ from the model, e.g. {next(iter(wrong.items()))}"
        assert bridge.stop() == 0
    return {
        "updates": len(wanted),
        "posts": len(posts),
        "broker_faults": faults,
        "retained_topics": len(model),
        "retained_wrong": len(wrong),
        "events_missing": len(missing),
        "events_acknowledged_twice": len(twice),
        "events_sent_again_as_no_acknowledgement_came": sum(proxy.sent.values()) - len(proxy.sent),
        "events_a_subscriber_saw_twice": sum(times - 1 for times in witness.events.values()),
    }


def _posts(chance: random.Random, count: int) -> list[dict[str, Any]]:
    now = int(time.time())
    fresh: list[dict[str, Any]] = []
    number = 0
    while len(fresh) < count:
        number += 1
        for word in WORDS[: chance.randint(1, 4)]:
            fresh.append(status(f"m{number}", word, now + RANKS[word]))
        if number % 4 == 0:
            fresh.append(click(f"b{number % 25}", f"c{number}", now - count + number))
    fresh = fresh[:count]
    again = chance.sample(fresh, int(len(fresh) * 0.3))
    posts = fresh + again
    chance.shuffle(posts)
    return posts


def _post_all(bridge: Bridge, posts: list[dict[str, Any]], done: threading.Event) -> None:
    lock, queue = threading.Lock(), list(reversed(posts))

    def work() -> None:
        while True:
            with lock:
                if not queue:
                    return
                body = queue.pop()
            while bridge.post(body) != 200:
                time.sleep(0.05)
            time.sleep(PACE)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()


def _settled(broker: Mosquitto, updates: int) -> bool:
    """Whether the broker as it runs now has everything: the checkpoint is published after the restore."""
    checkpoint = retained_now(broker.port).get("bridge/checkpoint", {})
    return int(checkpoint.get("seq", 0)) >= updates


def _model(posts: list[dict[str, Any]]) -> dict[str, str]:
    """Which update each retained topic must carry in the end, whatever the order was."""
    best: dict[str, tuple[tuple[int, int, str], str]] = {}
    for body in posts:
        identity = event_id(body)
        if "statuses" in body:
            item = body["statuses"][0]
            topic, order = f"{item['id']}/status", (RANKS[item["status"]], int(item["timestamp"]), identity)
        else:
            item = body["messages"][0]
            topic, order = f"button/{item['button']['payload']}", (0, int(item["timestamp"]), "")
        if topic not in best or order > best[topic][0]:
            best[topic] = (order, identity)
    return {topic: identity for topic, (_, identity) in best.items()}
