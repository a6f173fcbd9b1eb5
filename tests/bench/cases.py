"""The cases: each has sides, which are measured in turn, in one round after the other; the first is the bridge's."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench import scaling
from tests.bench.ground import LARGE, Shelf, ground, remember
from tests.bench.load import Plan, body, run
from tests.bench.measure import Figures, measure, seen
from tests.bench.peers import (
    Bare,
    MeasuredBridge,
    NodeRed,
    Peer,
    SinglyBridge,
    children,
    cpu_seconds,
    post,
    resident_bytes,
)
from tests.bench.watch import EVENTS, STATES, Watcher
from tests.torture.harness import Mosquitto, wait_until

Round = Callable[[], Figures]

#: A disk on which each fsync takes 20 ms, as on an SD card: it returns so much later.
SLOW_DISK = ["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync"]
SLOW_DISK += ["-e", "inject=fsync,fdatasync:delay_exit=20000"]


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        seconds: How long each load lasts.
        backlog: Updates that wait for the broker.
        rows: In the journal.
        topics: That a broker has forgotten.
        rest: Seconds in which the bridge does nothing.
        warm: Seconds of load before the one that is measured.
        linger: Seconds that the subscriber waits for what comes twice.
    """

    seconds: float = 5.0
    backlog: int = 100_000
    rows: tuple[int, ...] = (100_000, 1_000_000)
    topics: int = 100_000
    rest: float = 30.0
    warm: float = 1.5
    linger: float = 1.0


#: Enough to see whether anything is missing or doubled, and for no figure.
TINY = Size(seconds=0.3, backlog=2_000, rows=(500, 1_000), topics=500, rest=0.3, warm=0.0, linger=0.2)


@dataclass(frozen=True)
class Case:
    """A comparison.

    Attributes:
        about: What is compared.
        sides: Name and one round of each.
    """

    about: str
    sides: dict[str, Round]


def cases(node_red: Path | None, size: Size, shelf: Shelf) -> dict[str, Case]:
    """All cases by name.

    Args:
        node_red: The program; None: without it.
        size: How much is done.
        shelf: For journals that are filled before.
    """

    def bridge(plan: Plan, kind: type[MeasuredBridge] = MeasuredBridge, wrapper: list[str] | None = None) -> Round:
        return lambda: _bridge(plan, size, kind, wrapper)

    def against_node_red(about: str, plan: Plan, **more: Round) -> Case:
        peers = {"node-red": lambda: _node_red(plan, size, node_red)} if node_red is not None else {}
        return Case(about, {"bridge": bridge(plan), **peers, **more})

    one = Plan(port=0, seconds=size.seconds)
    found: dict[str, Case] = {}
    for connections in (1, 32, 128):
        plan = replace(one, connections=connections)
        more: dict[str, Round] = {"bare": lambda: _bare(one)} if connections == 32 else {}
        found[f"closed-{connections}"] = against_node_red(
            f"{connections} connections, each posts one update when its answer came", plan, **more
        )
        found[f"new-{connections}"] = against_node_red(
            f"{connections} at once, each POST on a new connection", replace(plan, keep_alive=False)
        )
    for rate in (50, 300):
        found[f"open-{rate}"] = against_node_red(
            f"{rate} POSTs a second, one update each", replace(one, rate=float(rate))
        )
    found["events-300"] = Case(
        "300 POSTs a second, and the subscriber listens to events, which a peer has none of",
        {"bridge": lambda: _bridge(replace(one, rate=300.0), size, filters=EVENTS)},
    )
    hundred = against_node_red("32 connections, 100 updates a POST", replace(one, updates=100))
    hundred.sides["one a POST"] = bridge(one)
    found["hundred"] = hundred
    found["burst"] = against_node_red(
        "1,000 updates a POST, one POST after the other", replace(one, connections=1, updates=1000)
    )
    found["drain"] = Case(
        f"a backlog of {size.backlog:,} updates, once the broker is there; two publications each",
        {
            "bridge": lambda: _drain(size),
            "raw paho": lambda: _writer("paho", size.backlog, "all", size),
            "raw socket": lambda: _writer("socket", size.backlog, "all", size),
        },
    )
    found["journal"] = Case(
        "32 connections, and so many updates in the journal already",
        {
            f"{size.rows[-1]:,}": lambda: _filled(size.rows[-1], one, size, shelf),
            **{f"{rows:,}": lambda rows=rows: _filled(rows, one, size, shelf) for rows in size.rows[:-1]},
            "empty": bridge(one),
        },
    )
    found["slow-disk"] = Case(
        "32 connections on a disk that takes 20 ms for an fsync, against a commit for each request",
        {"bridge": bridge(one, wrapper=SLOW_DISK), "no group commit": bridge(one, SinglyBridge, SLOW_DISK)},
    )
    found["restore"] = Case(
        f"{size.topics:,} retained topics given back to a broker that forgot them",
        {
            "bridge": lambda: _restore(size, shelf),
            "raw paho": lambda: _writer("paho", size.topics, "states", size),
        },
    )
    found["receivers"] = Case("so many receivers of one bridge, 32 connections each", scaling.receivers(size))
    found["batches"] = Case("so many updates in a commit, without HTTP and broker", scaling.batches(size))
    found["appenders"] = Case("so many processes that store 100 updates in a commit", scaling.appenders(size))
    found["idle"] = Case("start, memory and use of the processor at rest", {"bridge": lambda: _idle(size)})
    return found


def _bridge(
    plan: Plan,
    size: Size,
    kind: type[MeasuredBridge] = MeasuredBridge,
    wrapper: list[str] | None = None,
    filters: tuple[str, ...] = STATES,
) -> Figures:
    with ground() as (folder, broker):
        return _measured(kind(folder / "bridge", broker.port, wrapper=wrapper), plan, size, broker, filters)


def _filled(rows: int, plan: Plan, size: Size, shelf: Shelf) -> Figures:
    folder, checkpoint = shelf.journal(rows)
    with ground() as (_, broker):
        remember(broker, checkpoint)
        return _measured(MeasuredBridge(folder, broker.port, settings=LARGE), plan, size, broker)


def _node_red(plan: Plan, size: Size, program: Path) -> Figures:
    with ground() as (folder, broker):
        return _measured(NodeRed(folder / "node-red", broker.port, program), plan, size, broker)


def _measured(peer: Peer, plan: Plan, size: Size, broker: Mosquitto, filters: tuple[str, ...] = STATES) -> Figures:
    """Start a peer, let it warm up (Node-RED compiles what it runs often), and measure it."""
    peer.start()
    try:
        # Tagged anew each time: a journal of the round before knows what it had.
        plan = replace(plan, port=peer.port, tag=f"x{time.time_ns()}")
        if size.warm:
            run(Plan(peer.port, seconds=size.warm, tag=f"w{plan.tag}"))
            time.sleep(size.warm / 2)
        with Watcher(broker.port, filters, size.linger) as watcher:
            return measure(plan, peer.processes() | _broker(broker), watcher)
    finally:
        peer.end()


def _bare(plan: Plan) -> Figures:
    peer = Bare().start()
    try:
        return measure(replace(plan, port=peer.port), peer.processes(), None)
    finally:
        peer.end()


def _drain(size: Size) -> Figures:
    """Updates a second that leave the journal once the broker is there."""
    with ground() as (folder, broker):
        broker.end()
        bridge = MeasuredBridge(folder / "bridge", broker.port).start(wait=False)
        try:
            wait_until(bridge.answers, "the bridge answers")
            expected: list[str] = []
            for start in range(0, size.backlog, 1000):
                ids, content = body("d", start, min(1000, size.backlog - start))
                assert post(bridge.port, content) == 200, f"{len(ids)} updates are taken"
                expected += ids
            broker.start()
            with Watcher(broker.port, STATES, size.linger) as watcher:
                wait_until(lambda: '"connected"' in bridge.tail(200), "the bridge is connected")
                began = time.monotonic()
                with bridge.journal() as journal:
                    while journal.backlog():
                        assert time.monotonic() < began + 300, f"the backlog is gone\n{bridge.tail()}"
                        time.sleep(0.05)
                seconds = time.monotonic() - began
                return {"rate": size.backlog / seconds, **seen(watcher, dict.fromkeys(expected))}
        finally:
            bridge.end()


def _writer(way: str, updates: int, which: str, size: Size) -> Figures:
    """As many updates, as the bridge would publish them, by a peer that keeps nothing."""
    with ground() as (_, broker), Watcher(broker.port, STATES, size.linger) as watcher:
        command = [sys.executable, "-m", "tests.bench.writer", way, str(broker.port), str(updates), which]
        seconds = float(subprocess.run(command, capture_output=True, check=True, text=True, timeout=300).stdout)
        expected = body("d", 0, updates)[0]
        return {"rate": updates / seconds, **seen(watcher, dict.fromkeys(expected))}


def _restore(size: Size, shelf: Shelf) -> Figures:
    """Retained topics a second, from the first to the last that the subscriber is given."""
    messages = size.topics * 3  # each has three statuses
    folder, _ = shelf.journal(messages, standing=size.topics)
    with ground() as (_, broker), Watcher(broker.port, STATES, size.linger) as watcher:
        bridge = MeasuredBridge(folder, broker.port, settings=LARGE).start()
        try:
            found = watcher.seen(size.topics)
            times = found.arrived.values()
            return {
                "rate": len(times) / (max(times) - min(times)),
                "missing": float(size.topics - len(times)),
                "doubled": float(found.repeated),
            }
        finally:
            bridge.end()


def _idle(size: Size) -> Figures:
    with ground() as (folder, broker):
        bridge = MeasuredBridge(folder / "bridge", broker.port)
        began = time.monotonic()
        bridge.start(wait=False)
        try:
            while post(bridge.port) != 200:
                assert time.monotonic() < began + 30, f"the first 200\n{bridge.tail()}"
                time.sleep(0.005)
            first = time.monotonic() - began
            time.sleep(2 * size.warm)
            assert bridge.process is not None
            family = [bridge.process.pid, *children(bridge.process.pid)]
            before = sum(map(cpu_seconds, family))
            time.sleep(size.rest)
            used = sum(map(cpu_seconds, family)) - before
            return {
                "start_ms": first * 1000,
                "idle_cpu_percent": used / size.rest * 100,
                "memory_mb": sum(map(resident_bytes, family)) / 1e6,
            }
        finally:
            bridge.end()


def _broker(broker: Mosquitto) -> dict[str, int]:
    assert broker.process is not None
    return {"broker": broker.process.pid}
