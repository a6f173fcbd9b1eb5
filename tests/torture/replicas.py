"""Campaign `replicas`: three bridges on one PostgreSQL behind haproxy, and every one of them suffers.

First on one mosquitto: replicas are killed, paused, stopped and cut off the network (a namespace, where root allows),
and the database restarts, while updates are posted, nearly a third of them to two replicas at the same moment. Then on
a cluster of three NATS servers, of which nodes are killed. Each fault has its part of the load.

Promises 1 to 5 across machines: nothing that was answered is missing, no state goes backwards, each event comes once;
twice comes only what a replica had in hand when it was killed, paused or cut off, or a node of the brokers when it was
killed.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from bridge.broker import find_program
from tests.postgres import Server, binaries
from tests.torture.harness import Bridge, Mosquitto, Subscriber, click, ended, free_port, status, wait_until

NAMES = ("one", "two", "three")
WORDS = ("sent", "delivered", "read")
#: Of the updates, those that are posted to two replicas at the same moment.
TWICE = 0.3
#: One in so many messages is a click.
CLICKS = 20
#: Faults on mosquitto, in turn; and what the last part of the load is for: a node of the cluster of brokers.
FAULTS = ("kill", "pause", "restart of the database", "cut off", "stop")
#: The short form leaves the cluster of brokers out: electing takes it longer than all else together.
CLUSTER_FROM = 1_000
#: Seconds within which a fault may have doubled what was in hand: the move, and some for a machine that is busy.
AFTER = 20.0
#: Seconds within which others must publish what fell to one that is gone; held against the long form, as the short one
#: runs beside other tests.
MOVE = {"kill": 10.0, "pause": 10.0, "cut off": 10.0, "stop": 1.0}
#: Ends of the wire between this namespace and that of the replica that is cut off.
HERE, THERE = "10.203.77.1", "10.203.77.2"


def missing_means() -> str | None:
    """What a machine lacks for it, in words; None if nothing."""
    if binaries() is None:
        return "postgresql"
    if shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
        return "haproxy"
    return None


def run(folder: Path, *, seed: int, count: int, say: Callable[[str], None] = print) -> dict[str, object]:
    """Post `count` updates on mosquitto and a tenth of that on a cluster; the figures, or AssertionError."""
    programs = binaries()
    assert programs is not None
    with Namespace() as there:
        address = f"listen_addresses=127.0.0.1{f',{HERE}' if there.is_there else ''}"
        with Server(programs, address) as server:
            _allow(server, there)
            figures = _on_mosquitto(folder, server, there, random.Random(seed), count, say)
            if count < CLUSTER_FROM:
                return figures
            return figures | _on_cluster(folder, server, random.Random(seed), count // 10, say)


def _allow(server: Server, there: Namespace) -> None:
    if there.is_there:
        with (server.folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {THERE}/32 trust\n")
        server.execute("SELECT pg_reload_conf()")


# --- the two stages ----------------------------------------------------------------------------------------------


def _on_mosquitto(
    folder: Path, server: Server, there: Namespace, chance: random.Random, count: int, say: Callable[[str], None]
) -> dict[str, object]:
    wire = free_port()
    extra = f"listener {wire} {HERE}\nallow_anonymous true\n" if there.is_there else ""
    broker = Mosquitto(folder / "mosquitto", extra=extra)
    database = server.new_database().url
    replicas = {name: Replica(folder / name, name, f"mqtt://127.0.0.1:{broker.port}", database) for name in NAMES}
    if there.is_there:
        far = f"{database.replace('127.0.0.1', HERE)}?sslmode=disable"
        replicas["three"] = Replica(folder / "three", "three", f"mqtt://{HERE}:{wire}", far, there)
    rounds = max(1, count // 4_000)
    faults = [fault for _ in range(rounds) for fault in FAULTS if fault != "cut off" or there.is_there]
    with ended(broker.start(), *replicas.values()):
        for replica in replicas.values():
            replica.start()
        with Witness(broker.port) as witness, Haproxy(folder, replicas) as door:
            witness.wait_spread(NAMES)
            with Load(replicas, door, chance, count, len(faults) + 1) as load:
                moves = _suffer(faults, replicas, server, there, witness, load, chance, say)
            found = witness.judge(load)
        for replica in replicas.values():
            assert replica.stop() == 0, replica.tail()
    if count >= CLUSTER_FROM:
        late = {fault: max(seconds) for fault, seconds in moves.items() if max(seconds) > MOVE.get(fault, math.inf)}
        assert not late, f"moved only after so many seconds: {late}"
        assert found["bridge_state_offline"] == 0, "while one was there the group was said to be offline"
    return {
        "replicas": len(NAMES),
        "namespace_cut_off": there.is_there,
        "faults": dict(Counter(faults)),
        "longest_move_s": {fault: round(max(seconds), 1) for fault, seconds in moves.items()},
        **found,
    }


def _suffer(
    faults: list[str],
    replicas: dict[str, Replica],
    server: Server,
    there: Namespace,
    witness: Witness,
    load: Load,
    chance: random.Random,
    say: Callable[[str], None],
) -> dict[str, list[float]]:
    """Bring the faults about, each under its part of the load; how long each took until others published all."""
    moves: dict[str, list[float]] = {}
    for fault in faults:
        load.allow_more()
        name = "three" if fault == "cut off" else witness.leader() if chance.random() < 0.5 else chance.choice(NAMES)
        victim = replicas[name]
        others = [one for one in NAMES if one != name]
        time.sleep(chance.uniform(0.2, 0.6))
        began = time.monotonic()
        if fault not in ("restart of the database", "stop"):
            witness.doubles_from(began)
        if fault == "restart of the database":
            server.stop(chance.choice((signal.SIGINT, signal.SIGQUIT)))
            server.start()
            witness.wait_spread(NAMES)
            seconds = time.monotonic() - began
        else:
            with _suffering(fault, victim, there):
                if fault == "stop":
                    began = time.monotonic()  # its receivers have answered what they had: now its share moves
                witness.wait_spread(others)
                seconds = time.monotonic() - began
                load.wait_some()
            witness.wait_spread(NAMES)
        moves.setdefault(fault, []).append(seconds)
        say(f"{fault} of {'the server' if 'database' in fault else name}: others publish all after {seconds:.1f} s")
    load.allow_more()
    return moves


@contextlib.contextmanager
def _suffering(fault: str, victim: Replica, there: Namespace) -> Iterator[None]:
    """Somebody is away meanwhile, and there again afterwards."""
    if fault == "cut off":
        there.cut()
        yield
        there.heal()
    elif fault == "pause":
        family = victim.family()
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        yield
        for pid in family:
            os.kill(pid, signal.SIGCONT)
    else:
        if fault == "kill":
            victim.kill()
        else:
            assert victim.stop() == 0, victim.tail()
        yield
        victim.start()


def _on_cluster(
    folder: Path, server: Server, chance: random.Random, count: int, say: Callable[[str], None]
) -> dict[str, object]:
    from tests.integration.brokers import NatsCluster

    database = server.new_database().url
    with NatsCluster(find_program(), folder / "nats") as cluster:
        urls = ",".join(map(str, cluster.urls))
        replicas = {
            name: Replica(folder / f"cluster-{name}", name, urls, database, settings={"mqtt.pick": "random"})
            for name in NAMES
        }
        kills = 1 if count < 500 else 4
        with ended(*replicas.values()):
            for replica in replicas.values():
                replica.start()
            with Witness(cluster.ports[0]) as witness, Haproxy(folder, replicas) as door:
                witness.wait_spread(NAMES)
                with Load(replicas, door, chance, count, kills + 1) as load:
                    for number in range(kills):
                        load.allow_more()
                        witness.doubles_from(time.monotonic())
                        node = 1 + number % 2  # the witness is connected to the first one
                        cluster.kill(node)
                        load.wait_some()
                        cluster.start(node)
                        cluster.await_session(cluster.ports[node])
                        witness.doubles_from(time.monotonic())
                        witness.wait_spread(NAMES)
                        say(f"node {node} of the brokers was killed, and is back")
                    load.allow_more()
                found = witness.judge(load)
    return {"cluster": {"kills_of_a_node": kills, **found}}


# --- who takes part ----------------------------------------------------------------------------------------------


class Namespace:
    """A network of its own with one wire to ours, which can be cut; `is_there` only where root allows."""

    def __init__(self) -> None:
        self.is_there = False
        self._holder: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        needed = all(
            shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("ip", "nsenter", "unshare")
        )
        if os.geteuid() != 0 or not needed:
            return self
        self._holder = subprocess.Popen(["unshare", "-n", "sleep", "3600"])
        time.sleep(0.2)
        self._wire = f"torture{os.getpid() % 100_000}"
        steps = (
            ["ip", "link", "add", self._wire, "type", "veth", "peer", "name", "home", "netns", str(self._holder.pid)],
            ["ip", "addr", "add", f"{HERE}/24", "dev", self._wire],
            ["ip", "link", "set", self._wire, "up"],
            [*self.enter, "ip", "addr", "add", f"{THERE}/24", "dev", "home"],
            [*self.enter, "ip", "link", "set", "home", "up"],
            [*self.enter, "ip", "link", "set", "lo", "up"],
        )
        self.is_there = all(subprocess.run(step, check=False, capture_output=True).returncode == 0 for step in steps)
        return self

    def __exit__(self, *_: object) -> None:
        if self._holder is not None:
            subprocess.run(["ip", "link", "del", self._wire], check=False, capture_output=True)
            self._holder.kill()
            self._holder.wait()

    @property
    def enter(self) -> list[str]:
        """What a command is run with to be in it."""
        assert self._holder is not None
        return ["nsenter", "-t", str(self._holder.pid), "-n"]

    def cut(self) -> None:
        subprocess.run(["ip", "link", "set", self._wire, "down"], check=True)

    def heal(self) -> None:
        subprocess.run(["ip", "link", "set", self._wire, "up"], check=True)


class Replica(Bridge):
    """One of the bridges.

    Args:
        folder: Its state.
        name: As it calls itself.
        brokers: Their addresses.
        database: Its address.
        there: Where it runs, if not here.
        settings: More of them.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        brokers: str,
        database: str,
        there: Namespace | None = None,
        settings: dict[str, str] | None = None,
    ) -> None:
        self.host = THERE if there else "127.0.0.1"
        self.admin = free_port()
        super().__init__(
            folder,
            None,
            wrapper=there.enter if there else None,
            settings={"mqtt.client_id": "group", **(settings or {})},
        )
        self._settings |= {
            "mqtt.url": brokers,
            "journal.url": database,
            "journal.replica": name,
            "webhook.listen": f"{self.host}:{self.port}",
            "webhook.auth.anyone_may_post": "true",
            "admin.listen": f"{self.host}:{self.admin}",
            **({"admin.trusted_proxies": HERE, "admin.hosts": "localhost"} if there else {}),
            "mqtt.keepalive": "5s",
        }

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the bridge ended by itself: {self.process.returncode}\n{self.tail()}"
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=1):
            return True
        return False

    def family(self) -> list[int]:
        """Process ids of it and its receivers."""
        assert self.process is not None
        receiver = self.receiver()
        return [self.process.pid, *([receiver] if receiver else [])]


class Haproxy:
    """What stands before the replicas; a request that one does not take goes to another one."""

    def __init__(self, folder: Path, replicas: dict[str, Replica]) -> None:
        self.port = free_port()
        servers = "".join(
            f"  server {name} {replica.host}:{replica.port} check port {replica.admin} inter 500\n"
            for name, replica in replicas.items()
        )
        self._file = folder / "haproxy.cfg"
        self._file.write_text(
            "defaults\n  mode http\n  timeout connect 300ms\n  timeout client 10s\n  timeout server 3s\n"
            "  timeout check 500ms\n  retries 2\n  option redispatch 1\n"
            f"frontend door\n  bind 127.0.0.1:{self.port}\n  default_backend bridges\n"
            f"backend bridges\n  balance roundrobin\n  option httpchk\n"
            f"  http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host localhost\n{servers}"
        )

    def __enter__(self) -> Self:
        program = shutil.which("haproxy") or "/usr/sbin/haproxy"
        self._process = subprocess.Popen(
            [program, "-db", "-f", str(self._file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


class Load:
    """Posts so many updates, each until it is answered 200; the statuses of a message in their order.

    Args:
        replicas: Of which two get the same at the same moment.
        door: Where all else is posted.
        chance: Of the mix.
        count: How many updates.
        parts: Into so many the load is divided: each waits until it is allowed.
    """

    def __init__(
        self, replicas: dict[str, Replica], door: Haproxy, chance: random.Random, count: int, parts: int
    ) -> None:
        self.answered: dict[str, list[str]] = {}  # by message: its statuses, or `click`
        self.posted = 0
        self.posted_twice = 0
        self._replicas = list(replicas.values())
        self._door = door
        self._random = random.Random(chance.random())
        self._part = count // parts + 1
        self._allowed = 0
        self._count = count
        self._numbers = itertools.count()
        self._change = threading.Condition()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(8)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._change:
            self._allowed = self._count if kind is None else 0
            self._change.notify_all()
        for thread in self._threads:
            thread.join(120 if kind is None else 0)
        assert kind is not None or not any(thread.is_alive() for thread in self._threads), "not all is answered"

    def allow_more(self) -> None:
        """Let the next part of it go."""
        with self._change:
            self._allowed = min(self._count, self._allowed + self._part)
            self._change.notify_all()

    def wait_some(self) -> None:
        """Until most of what is allowed was answered."""
        wait_until(
            lambda: self.posted >= self._allowed - self._part // 5, "the replicas that are left take callbacks", 180
        )

    def _may(self) -> bool:
        with self._change:
            self._change.wait_for(lambda: self.posted < self._allowed or self.posted >= self._count, 300)
            if self.posted >= self._count:
                return False
            self.posted += 1
            return True

    def _run(self) -> None:
        while True:
            number = next(self._numbers)
            name = f"m{number}"
            if number % CLICKS == 0:
                bodies = [(f"click b{number % 7}", click(f"b{number % 7}", name))]
            else:
                bodies = [(word, status(name, word, 1_700_000_000 + rank)) for rank, word in enumerate(WORDS)]
            for word, body in bodies:
                if not self._may():
                    return
                self._deliver(body)
                self.answered.setdefault(name, []).append(word)

    def _deliver(self, body: dict[str, Any]) -> None:
        if self._random.random() < TWICE:
            self.posted_twice += 1
            twins = [
                threading.Thread(target=_post, args=((replica.host, replica.port), body, 1.5))
                for replica in self._random.sample(self._replicas, 2)
            ]
            for twin in twins:
                twin.start()
            for twin in twins:
                twin.join()
        while _post(("127.0.0.1", self._door.port), body) != 200:
            time.sleep(0.05)


def _post(where: tuple[str, int], body: dict[str, Any], timeout: float = 10.0) -> int:
    connection = http.client.HTTPConnection(*where, timeout=timeout)
    try:
        connection.request("POST", "/webhook", json.dumps(body).encode(), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


class Witness(Subscriber):
    """What any client sees, and whether it should have."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.came: set[tuple[str, str]] = set()  # message and status, or click
        self.ranks: dict[str, int] = {}  # what stands on a message's topic
        self.backwards: list[str] = []
        self.doubled: list[tuple[float, str]] = []
        self.offline = 0
        self._windows: list[float] = []

    def _message(self, client: object, userdata: object, message: Any) -> None:
        before = sum(self.events.values())
        super()._message(client, userdata, message)
        topic = message.topic.removeprefix("whatsapp/")
        if topic == "bridge/state" and message.payload == b"offline" and not message.retain:
            self.offline += 1
        if not topic.startswith("event/") and not topic.endswith("/status"):
            return
        if topic.startswith(("event/homeassistant", "last/", "bridge/")):
            return
        content = json.loads(message.payload)
        if topic.startswith("event/"):
            assert sum(self.events.values()) == before + 1
            self.came.add((content["message_id"], content.get("status") or f"click {content['payload']}"))
            if self.events[content["event_id"]] > 1:
                self.doubled.append((time.monotonic(), content["event_id"]))
        else:
            rank = WORDS.index(content["status"])
            if rank < self.ranks.get(topic, 0):
                self.backwards.append(topic)
            self.ranks[topic] = rank

    def doubles_from(self, moment: float) -> None:
        """From now on, for a while, what was in hand may come twice."""
        self._windows.append(moment)

    def leader(self) -> str:
        return str(self.states["bridge/info"]["replica"])

    def wait_spread(self, names: tuple[str, ...] | list[str]) -> None:
        """Until these publish everything, each about as much; and nobody else anything."""

        def is_spread() -> bool:
            shares = [
                self.states.get(f"bridge/replica/{name}/info", {}).get("partitions", [])
                for name in names
                if self.states.get(f"bridge/replica/{name}/state") == {"text": "online"}
            ]
            sizes = [len(share) for share in shares]
            everything = sorted(itertools.chain(*shares))
            leads = self.states.get("bridge/info", {}).get("replica") in names
            return (
                leads and everything == list(range(1, 16)) and len(sizes) == len(names) and max(sizes) - min(sizes) < 2
            )

        wait_until(is_spread, f"{', '.join(names)} publish everything", 90)

    def judge(self, load: Load) -> dict[str, object]:
        """Figures; AssertionError where a promise was broken."""
        wanted = {(message, word) for message, words in load.answered.items() for word in words}
        with contextlib.suppress(AssertionError):
            wait_until(lambda: wanted <= self.came, "", 90)
        missing = sorted(wanted - self.came)
        assert not missing, f"{len(missing)} of {len(wanted)} that were answered never came, e.g. {missing[:5]}"
        last = {message: words[-1] for message, words in load.answered.items() if words[-1] in WORDS}
        wait_until(
            lambda: all(self.ranks.get(f"{message}/status") == WORDS.index(word) for message, word in last.items()),
            "the newest state of each message stands",
        )
        assert not self.backwards, f"went backwards: {self.backwards[:5]}"
        strays = [
            event
            for moment, event in self.doubled
            if not any(window <= moment <= window + AFTER for window in self._windows)
        ]
        assert not strays, f"{len(strays)} events came twice though nobody was killed, paused or cut off"
        return {
            "answered_200": len(wanted),
            "posted_to_two_at_once": load.posted_twice,
            "missing": len(wanted - self.came),
            "states_backwards": len(self.backwards),
            "events_twice_by_faults": len(self.doubled),
            "events_twice_else": len(strays),
            "bridge_state_offline": self.offline,
        }
