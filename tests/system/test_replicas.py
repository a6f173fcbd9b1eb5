"""Several bridges on one PostgreSQL and one broker: shares, takeovers, pauses, restarts."""

from __future__ import annotations

import http.client
import itertools
import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Self

import pytest

from bridge.replicas import ALIVE, REACH_PATIENCE, UNEVEN_PATIENCE
from tests.postgres import Server, running
from tests.system.conftest import MakeBridge
from tests.system.support import PATIENCE, Bridge, Heard, Subscriber, children, status
from tests.torture.proxy import Proxy

NAMES = ("one", "two", "three")
WORDS = ("sent", "delivered", "read")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as opened:
        yield opened


@pytest.fixture
def make_replica(make_bridge: MakeBridge, server: Server, mosquitto: int) -> Callable[[str], Bridge]:
    """Makes bridges on one database and one broker, not yet started."""
    database = server.new_database()

    def make(name: str) -> Bridge:
        return make_bridge(journal__url=database.url, journal__replica=name, mqtt__url=f"mqtt://127.0.0.1:{mosquitto}")

    return make


@pytest.fixture
def replicas(make_replica: Callable[[str], Bridge], mosquitto: int) -> dict[str, Bridge]:
    """Three that run, with the partitions spread over them."""
    found = {name: make_replica(name) for name in NAMES}
    for bridge in found.values():
        bridge.start(wait=False)
    for bridge in found.values():
        bridge.program.wait_log("ready")
    wait_spread(mosquitto, found)
    return found


def shares(heard: list[Heard]) -> dict[str, list[int]]:
    """What each replica that is online says that it publishes; the leader's clicks are not among it."""
    last = {one.topic.removeprefix("whatsapp/bridge/replica/"): one for one in heard}
    return {
        topic.removesuffix("/info"): one.json["partitions"]
        for topic, one in last.items()
        if topic.endswith("/info") and getattr(last.get(topic.replace("/info", "/state")), "payload", None) == "online"
    }


def wait_spread(mosquitto: int, replicas: dict[str, Bridge]) -> None:
    """Until these, and no others, publish everything: each about as much, and nothing twice."""

    def is_spread(heard: list[Heard]) -> bool:
        found = shares(heard)
        everything = sorted(itertools.chain(*found.values()))
        counts = [len(one) for one in found.values()]
        return set(found) == set(replicas) and everything == list(range(1, 16)) and max(counts) - min(counts) <= 1

    with Subscriber(mosquitto, "whatsapp/bridge/replica/#") as subscriber:
        subscriber.wait_until(is_spread)


@pytest.fixture
def line(mosquitto: int) -> Iterator[Proxy]:
    """Between some bridges and the broker."""
    found = Proxy(mosquitto).start()
    yield found
    found.end()


def behind(line: Proxy, bridge: Bridge) -> Bridge:
    bridge.environment["WHATSAPP2MQTT_MQTT__URL"] = f"mqtt://127.0.0.1:{line.port}"
    bridge.environment["WHATSAPP2MQTT_HOMEASSISTANT__DISCOVERY"] = "false"  # whose JSON the line does not know
    return bridge


def swallow(line: Proxy, everything: bool) -> None:
    """From now on nothing comes through, as with a cable that is pulled; or all does again."""
    line.swallow_to_broker = line.swallow_to_bridge = everything
    line.cut()


def said(bridge: Bridge, event: str) -> int:
    """How often its log has this line."""
    return sum(one["event"] == event for one in bridge.program.log)


def leader(mosquitto: int) -> str:
    """Which of them publishes the clicks."""
    with Subscriber(mosquitto, "whatsapp/bridge/info") as subscriber:
        return str(subscriber.wait("whatsapp/bridge/info").json["replica"])


class Load:
    """Post the statuses of messages in order, each to any of the bridges, and every third to two at once.

    Args:
        bridges: Where to; one that does not answer is passed over.
    """

    def __init__(self, bridges: dict[str, Bridge]) -> None:
        self.answered: dict[str, list[str]] = defaultdict(list)
        self._bridges = list(bridges.values())
        self._numbers = itertools.count()
        self._random = random.Random(1)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._post) for _ in range(4)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _post(self) -> None:
        while not self._stop.is_set():
            message = f"m{next(self._numbers)}"
            for word in WORDS:
                body = status(message, word)
                if self._random.random() < 1 / 3:
                    twin = threading.Thread(target=self._until_taken, args=(body,))
                    twin.start()
                    self._until_taken(body)
                    twin.join()
                else:
                    self._until_taken(body)
                self.answered[message].append(word)
                time.sleep(0.01)  # an order that can be seen, not a flood

    def _until_taken(self, body: dict[str, object]) -> None:
        while True:
            try:
                if self._random.choice(self._bridges).post(body).status == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.01)

    def wait_for(self, more: int) -> None:
        """Until so many more messages were answered for."""
        enough = len(self.answered) + more
        deadline = time.monotonic() + PATIENCE
        while len(self.answered) < enough:
            assert time.monotonic() < deadline, "no more are answered"
            time.sleep(0.02)


class Witness(Subscriber):
    """Everything that a subscriber gets from before the load to its end."""

    def check(self, load: Load, *, once: bool) -> None:
        """Every answered status came, in order, the newest stands; and, where asked, each came once."""
        deadline = time.monotonic() + PATIENCE
        while True:
            events, states = self.statuses()
            missing = [
                (message, words)
                for message, words in load.answered.items()
                if not set(words) <= set(events[message]) or states[message][-1:] != words[-1:]
            ]
            if not missing:
                break
            assert time.monotonic() < deadline, f"missing: {missing[:5]}"
            time.sleep(0.2)
        firsts = {message: list(dict.fromkeys(words)) for message, words in events.items()}
        assert {message: words for message, words in firsts.items() if not in_order(words)} == {}
        assert {message: words for message, words in states.items() if not in_order(words)} == {}
        if once:
            assert {message: words for message, words in events.items() if len(words) > len(set(words))} == {}

    def statuses(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """By message: the events that came, and what stood on its topic, one after the other."""
        events, states = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
        for one in list(self.heard):
            if one.topic.startswith("whatsapp/event/status/"):
                events[one.json["message_id"]].append(one.json["status"])
            elif one.topic.startswith("whatsapp/m") and one.topic.endswith("/status"):
                states[one.topic.split("/")[1]].append(one.json["status"])
        return events, states


def in_order(words: list[str]) -> bool:
    return words == sorted(words, key=WORDS.index)


def click(number: int, payload: str = "gate") -> dict[str, object]:
    return {
        "messages": [
            {
                "id": f"click{number}",
                "from": "15550001234",
                "timestamp": str(int(time.time())),
                "type": "button",
                "button": {"payload": payload, "text": "Open"},
            }
        ]
    }


def test_all_take_callbacks_and_each_click_fires_once(replicas: dict[str, Bridge], mosquitto: int) -> None:
    """A gate would open twice as its callback was posted to two bridges; a status would come before an older one."""
    with Witness(mosquitto, "whatsapp/#") as witness:
        with Load(replicas) as load:
            for number in range(10):
                both = [threading.Thread(target=bridge.post, args=(click(number),)) for bridge in replicas.values()]
                for thread in both:
                    thread.start()
                for thread in both:
                    thread.join()
            load.wait_for(40)
        witness.check(load, once=True)
        witness.wait("whatsapp/event/button/gate", lambda heard: heard.json["message_id"] == "click9")
        fired = [one.json["message_id"] for one in witness.on("whatsapp/event/button/gate")]
        assert sorted(fired) == sorted(f"click{number}" for number in range(10))
        witness.wait("whatsapp/last/button", lambda heard: heard.json["message_id"] == fired[-1])
        said = witness.wait("whatsapp/bridge/health", lambda heard: heard.json.get("replicas") == sorted(NAMES))
        assert said.json["ok"] is True
        # Discovery, once: from the one that leads.
        witness.wait("whatsapp/bridge/checkpoint/0", lambda heard: heard.json["seq"] > 0)
    with Subscriber(mosquitto, "homeassistant/#") as told:
        told.wait_until(lambda heard: any(one.topic.startswith("homeassistant/device_automation/") for one in heard))


def test_one_that_is_killed_is_replaced_and_nothing_is_lost(replicas: dict[str, Bridge], mosquitto: int) -> None:
    """What fell to it would wait until somebody starts it again; and dashboards would say that all is offline."""
    leads = leader(mosquitto)
    with Witness(mosquitto, "whatsapp/#") as witness:
        with Load(replicas) as load:
            load.wait_for(20)
            replicas[leads].program.end(signal.SIGKILL)
            left = {name: bridge for name, bridge in replicas.items() if name != leads}
            load.wait_for(20)
            wait_spread(mosquitto, left)
            load.wait_for(20)
        witness.check(load, once=False)
        witness.wait(f"whatsapp/bridge/replica/{leads}/state", lambda heard: heard.payload == "offline")
        assert {one.payload for one in witness.on("whatsapp/bridge/state")} == {"online"}
        assert leader(mosquitto) in left


def test_one_that_is_paused_is_replaced_and_says_nothing_when_it_goes_on(
    replicas: dict[str, Bridge], mosquitto: int
) -> None:
    """SIGSTOP, a virtual machine that is moved: it believes that it still publishes, and would set states back."""
    leads = leader(mosquitto)
    paused = replicas[leads]
    family = [paused.pid, *children(paused.pid)]
    left = {name: bridge for name, bridge in replicas.items() if name != leads}
    with Witness(mosquitto, "whatsapp/#") as witness:
        with Load(left) as load:
            load.wait_for(20)
            for pid in family:
                os.kill(pid, signal.SIGSTOP)
            try:
                load.wait_for(20)
                wait_spread(mosquitto, left)
                load.wait_for(20)
            finally:
                for pid in family:
                    os.kill(pid, signal.SIGCONT)
            wait_spread(mosquitto, replicas)
            load.wait_for(20)
        witness.check(load, once=False)
        assert {one.payload for one in witness.on("whatsapp/bridge/state")} == {"online"}
        # Twice came no more than what it had in hand: all else was published by the others alone.
        counts = Counter((message, word) for message, words in witness.statuses()[0].items() for word in words)
        assert max(counts.values()) <= 2
    assert paused.program.end() == 0


def test_a_database_that_restarts_loses_and_doubles_nothing(
    replicas: dict[str, Bridge], mosquitto: int, server: Server
) -> None:
    """All locks are gone at once: what was published and not noted would be published again by whoever is quicker."""
    with Witness(mosquitto, "whatsapp/#") as witness:
        with Load(replicas) as load:
            load.wait_for(20)
            server.stop()
            for bridge in replicas.values():
                bridge.program.wait_log("the database does not answer; nothing is published until it does")
            server.start()
            load.wait_for(20)
        witness.check(load, once=True)
        wait_spread(mosquitto, replicas)


def test_a_rolling_restart_loses_and_doubles_nothing(replicas: dict[str, Bridge], mosquitto: int) -> None:
    """An update of the bridges would have to wait for a quiet night."""
    with Witness(mosquitto, "whatsapp/#") as witness:
        with Load(replicas) as load:
            for name, bridge in replicas.items():
                load.wait_for(10)
                assert bridge.program.end() == 0
                wait_spread(mosquitto, {other: one for other, one in replicas.items() if other != name})
                bridge.start()
                wait_spread(mosquitto, replicas)
            load.wait_for(10)
        witness.check(load, once=True)
        assert {one.payload for one in witness.on("whatsapp/bridge/state")} == {"online"}
        # What was given back in order is taken at once, without a look at who might still publish it.
        took = [one for bridge in replicas.values() for one in bridge.program.log if "took over" in one["event"]]
        assert took == []


def test_the_group_is_offline_only_when_all_are(replicas: dict[str, Bridge], mosquitto: int) -> None:
    """Automations that look at it would stop with the first replica, or go on with none."""
    with Witness(mosquitto, "whatsapp/bridge/#") as witness:
        first, second, third = replicas.values()
        assert first.program.end() == 0
        second.program.end(signal.SIGKILL)
        wait_spread(mosquitto, {"three": third})
        assert {one.payload for one in witness.on("whatsapp/bridge/state")} == {"online"}
        assert third.program.end() == 0
        witness.wait("whatsapp/bridge/state", lambda heard: heard.payload == "offline")
        for name in NAMES:
            witness.wait(f"whatsapp/bridge/replica/{name}/state", lambda heard: heard.payload == "offline")


def test_who_does_not_reach_the_broker_leaves_its_share_to_others(
    make_replica: Callable[[str], Bridge], mosquitto: int, line: Proxy
) -> None:
    """Half of all messages, or all clicks, would wait for one cable."""
    cut = behind(line, make_replica("cut")).start()
    wait_spread(mosquitto, {"cut": cut})
    both = {"cut": cut, "one": make_replica("one").start()}
    wait_spread(mosquitto, both)
    assert leader(mosquitto) == "cut"
    with Witness(mosquitto, "whatsapp/#") as witness:
        swallow(line, True)
        with Load(both) as load:
            load.wait_for(20)
            assert cut.post(click(1)).status == 200
        witness.check(load, once=False)
        witness.wait("whatsapp/event/button/gate", lambda heard: heard.json["message_id"] == "click1")
        wait_spread(mosquitto, {"one": both["one"]})
        assert leader(mosquitto) == "one"
        swallow(line, False)
        wait_spread(mosquitto, both)
        with Load(both) as more:
            more.wait_for(20)
        witness.check(more, once=True)


def test_nothing_moves_for_a_broker_that_nobody_reaches(
    make_replica: Callable[[str], Bridge], mosquitto: int, line: Proxy
) -> None:
    """Partitions would go round among those that can do nothing with them; and the supervisors would restart all."""
    both = {name: behind(line, make_replica(name)).start() for name in ("one", "two")}
    wait_spread(mosquitto, both)
    published = {name: said(bridge, "publishing") for name, bridge in both.items()}
    swallow(line, True)
    time.sleep(3 * REACH_PATIENCE + 2 * UNEVEN_PATIENCE)
    assert {name: said(bridge, "publishing") for name, bridge in both.items()} == published
    swallow(line, False)
    wait_spread(mosquitto, both)


def test_one_that_is_to_displace_another_before_the_broker_is_there_is_well(
    make_replica: Callable[[str], Bridge], mosquitto: int, line: Proxy
) -> None:
    """Kubernetes would restart all that are left, over and over, for a broker that is updated."""
    one, two = (behind(line, make_replica(name)).start() for name in ("one", "two"))
    wait_spread(mosquitto, {"one": one, "two": two})
    swallow(line, True)
    one.program.end(signal.SIGKILL)
    two.program.wait_log("another replica's connection is to be ended first")
    time.sleep(ALIVE + 2)
    assert two.run("healthy").returncode == 0, two.program.said
    swallow(line, False)
    wait_spread(mosquitto, {"two": two})
    with Subscriber(mosquitto, "whatsapp/bridge/replica/#") as there:
        there.wait("whatsapp/bridge/replica/one/state", lambda heard: heard.payload == "offline")


def test_whom_one_forgets_none_tells_home_assistant_about(replicas: dict[str, Bridge], mosquitto: int) -> None:
    """A replica that still knows the button would tell the number again, whenever Home Assistant starts."""
    hers, gate = "call_15550009999", "gate"

    def told(heard: list[Heard], name: str) -> bool:
        return any(one.topic.startswith("homeassistant/device_automation/") and name in one.topic for one in heard)

    with Subscriber(mosquitto, "#") as there:
        assert replicas["one"].post(click(1)).status == 200
        assert replicas["two"].post(click(2, "call 15550009999")).status == 200
        there.wait_until(lambda heard: told(heard, hers) and told(heard, gate))
    while len(replicas) > 1:  # forgotten by one that does not tell of it, and each of the others told of it then
        leads = leader(mosquitto)
        name = next(name for name in replicas if name != leads)
        said = replicas[name].run("forget", "15550009999")
        assert said.returncode == 0, said.stderr
        assert said.stdout.startswith("Removed: 1 update, 1 learned" if len(replicas) == len(NAMES) else "There is no")
        with Subscriber(mosquitto, "homeassistant/#") as there:
            there.publish("homeassistant/status", "online")
            there.wait_until(lambda heard: told([one for one in heard if not one.retain], gate))
            assert not told(there.heard, hers)
        replicas.pop(leads).program.end()
        wait_spread(mosquitto, replicas)


def test_two_of_one_name_are_refused(make_replica: Callable[[str], Bridge]) -> None:
    """Each would take the other's place at the broker, over and over."""
    make_replica("one").start()
    second = make_replica("one").start(wait=False)
    assert second.program.wait() == 2
    assert "calls itself one; give each a name of its own" in second.program.said
