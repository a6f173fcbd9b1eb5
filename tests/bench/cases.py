"""The cases: each measures the bridge and, where there is one, a peer, in one round; rounds are repeated by pairs."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.load import Plan, body
from tests.bench.measure import Figures, measure
from tests.bench.peers import Bare, Bridge, Mosquitto, NodeRed, children, cpu_seconds, resident_bytes
from tests.torture.harness import free_port, wait_until

Round = Callable[[], Figures]


@dataclass(frozen=True)
class Case:
    """A comparison.

    Attributes:
        about: What is compared.
        subject, peer: Name and one round of each; the figures' ratio is subject to peer.
    """

    about: str
    subject: tuple[str, Round]
    peer: tuple[str, Round] | None = None


def cases(node_red: Path, seconds: float) -> dict[str, Case]:
    """All cases by name.

    Args:
        node_red: The program.
        seconds: How long each load lasts.
    """

    def bridge(plan: Plan) -> tuple[str, Round]:
        return "bridge", lambda: _bridge(plan)

    def red(plan: Plan) -> tuple[str, Round]:
        return "node-red", lambda: _node_red(plan, node_red)

    def against_node_red(about: str, **plan: float | bool) -> Case:
        made = Plan(port=0, seconds=seconds, **plan)  # type: ignore[arg-type]
        return Case(about, bridge(made), red(made))

    one = Plan(port=0, seconds=seconds)
    return {
        "closed-1": against_node_red("closed loop, 1 connection, one update a POST", connections=1),
        "closed-32": against_node_red("closed loop, 32 connections, one update a POST", connections=32),
        "closed-128": against_node_red("closed loop, 128 connections, one update a POST", connections=128),
        "new-connections": against_node_red("32 at once, each POST on a new connection", keep_alive=False),
        "open-50": against_node_red("50 POSTs a second", rate=50.0),
        "open-300": against_node_red("300 POSTs a second", rate=300.0),
        "bare": Case(
            "the bridge against Bottle on granian that answers at once", bridge(one), ("bare", lambda: _bare(one))
        ),
        "hundred": Case(
            "100 updates a POST against one",
            bridge(Plan(port=0, seconds=seconds, connections=4, updates=100)),
            bridge(one),
        ),
        "burst": Case(
            "bursts of 1000 updates a POST", bridge(Plan(port=0, seconds=seconds, connections=1, updates=1000))
        ),
        "drain": Case(
            "a backlog of 20,000 updates when the broker returns, against raw paho publishing as many messages",
            ("bridge", lambda: _drain(20_000)),
            ("raw paho", lambda: _raw_paho(20_000)),
        ),
        "idle": Case("memory, CPU at rest and start-up of the bridge alone", ("bridge", _idle)),
    }


@contextlib.contextmanager
def _ground() -> Iterator[tuple[Path, Mosquitto]]:
    """A folder and an empty broker: old retained topics would flood each new subscriber."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    broker = Mosquitto(folder / "broker").start()
    try:
        yield folder, broker
    finally:
        broker.end()
        shutil.rmtree(folder, ignore_errors=True)


def _for(plan: Plan, port: int) -> Plan:
    return Plan(**{**plan.__dict__, "port": port})


def _bridge(plan: Plan) -> Figures:
    with _ground() as (folder, broker):
        bridge = Bridge(folder / "bridge", broker.port).start()
        try:
            time.sleep(1.5)  # connected, and past the look for a checkpoint
            return measure(_for(plan, bridge.port), broker.port)
        finally:
            bridge.end()


def _node_red(plan: Plan, program: Path) -> Figures:
    with _ground() as (folder, broker):
        peer = NodeRed(folder / "node-red", broker.port, program).start()
        try:
            time.sleep(1.5)
            return measure(_for(plan, peer.port), broker.port)
        finally:
            peer.end()


def _bare(plan: Plan) -> Figures:
    peer = Bare().start()
    try:
        return measure(_for(plan, peer.port), None)
    finally:
        peer.end()


def _drain(updates: int) -> Figures:
    """Updates a second that leave the journal once the broker is there."""
    with _ground() as (folder, broker):
        broker.end()
        bridge = Bridge(folder / "bridge", broker.port).start()
        try:
            for start in range(0, updates, 1000):
                ids, content = body("d", start, 1000)
                assert _post(bridge.port, content) == 200, f"{len(ids)} updates are taken"
            broker.start()
            wait_until(lambda: '"connected"' in bridge.tail(200), "the bridge is connected")
            began = time.monotonic()
            wait_until(lambda: bridge.backlog() == 0, "the backlog is gone", 120)
            return {"accepted": updates / (time.monotonic() - began)}
        finally:
            bridge.end()


def _raw_paho(updates: int) -> Figures:
    """As many updates as messages: paho by itself, its own loop, QoS 1, no journal; two messages an update."""
    import threading

    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion

    with _ground() as (_, broker):
        client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        client.max_queued_messages_set(0)
        client.max_inflight_messages_set(500)
        left = threading.Semaphore(0)
        client.on_publish = lambda *_: left.release()
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        payload = body("p", 0, 1)[1]
        messages = updates * 2
        began = time.monotonic()
        for number in range(messages):
            client.publish(f"whatsapp/p-{number}/status", payload, qos=1, retain=number % 2 == 0)
        for _ in range(messages):
            left.acquire()
        seconds = time.monotonic() - began
        client.disconnect()
        client.loop_stop()
        return {"accepted": updates / seconds}


def _idle() -> Figures:
    with _ground() as (folder, broker):
        bridge = Bridge(folder / "bridge", broker.port)
        began = time.monotonic()
        bridge.start(wait=False)
        empty = b'{"statuses":[]}'
        wait_until(lambda: _post(bridge.port, empty) == 200, "the first 200")
        first = time.monotonic() - began
        try:
            time.sleep(5)
            assert bridge.process is not None
            family = [bridge.process.pid, *children(bridge.process.pid)]
            before = sum(cpu_seconds(pid) for pid in family)
            time.sleep(10)
            used = sum(cpu_seconds(pid) for pid in family) - before
            return {
                "start_to_first_200_ms": first * 1000,
                "idle_cpu_percent": used * 10,
                "memory_mib": sum(resident_bytes(pid) for pid in family) / 2**20,
            }
        finally:
            bridge.end()


def _post(port: int, content: bytes) -> int:
    head = (
        f"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
            link.sendall(head.encode() + content)
            return int(link.recv(200)[9:12])
    except (OSError, ValueError):
        return 0


__all__ = ["Case", "cases", "free_port"]
