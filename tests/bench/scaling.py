"""Receivers and batches on PostgreSQL against SQLite: what another receiver brings, and what an update costs."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.config import Database
from bridge.journal.postgresql import PostgresqlJournal
from bridge.journal.sqlite import SqliteJournal
from tests.bench.ground import ground
from tests.bench.load import Plan
from tests.bench.measure import Figures, measure
from tests.bench.peers import MeasuredBridge, children, cpu_seconds
from tests.bench.watch import STATES, Watcher
from tests.postgres import Server, running

if TYPE_CHECKING:
    from tests.bench.cases import Size

Sides = dict[str, Callable[[], Figures]]

RECEIVERS = (3, 2, 1)
BATCHES = (1000, 100, 10, 1)
ENGINES = ("postgresql", "sqlite")


def _of(counts: tuple[int, ...], size: Size) -> tuple[int, ...]:
    """All of them, or one where no figures are wanted."""
    return counts if size.seconds >= 1 else counts[:1]


def receivers(size: Size) -> Sides:
    """A whole bridge with so many receivers (`webhook.workers`) on each engine; 32 connections for each receiver."""
    return {
        f"{engine} {count}": lambda engine=engine, count=count: _bridge(engine, count, size)
        for engine in ENGINES
        for count in _of(RECEIVERS, size)
    }


def batches(size: Size) -> Sides:
    """One process that does nothing but store, so many updates in a commit."""
    return {
        f"{engine} {batch}": lambda engine=engine, batch=batch: _append(engine, 1, batch, size)
        for engine in ENGINES
        for batch in _of(BATCHES, size)
    }


def appenders(size: Size) -> Sides:
    """So many processes that do nothing but store in one journal, 100 updates in a commit."""
    return {
        f"{engine} {count}": lambda engine=engine, count=count: _append(engine, count, 100, size)
        for engine in ENGINES
        for count in _of(RECEIVERS, size)
    }


@contextlib.contextmanager
def _journal(engine: str, folder: Path) -> Iterator[tuple[str, Server | None, Database | None]]:
    """A new journal's address; and the server and the database, where there are such."""
    if engine == "sqlite":
        SqliteJournal(folder / "journal.db").create()
        yield f"sqlite://{folder / 'journal.db'}", None, None
        return
    with running() as server:
        database = server.new_database()
        PostgresqlJournal(database).create()
        yield database.url, server, database


def _bridge(engine: str, workers: int, size: Size) -> Figures:
    with ground() as (folder, broker), _journal(engine, folder) as (url, server, database):
        settings = {"journal.url": url, "webhook.workers": str(workers)}
        with Watcher(broker.port, STATES, size.linger) as watcher:
            bridge = MeasuredBridge(folder / "bridge", broker.port, settings=settings).start()
            try:
                time.sleep(size.warm)
                assert bridge.process is not None
                family = {
                    f"{place}": pid for place, pid in enumerate([bridge.process.pid, *children(bridge.process.pid)])
                }
                plan = Plan(port=bridge.port, connections=32 * workers, seconds=size.seconds)
                found = measure(plan, family, watcher)
                own = sum(found.pop(f"cpu_{name}") for name in family)
                updates = found["rate"] * size.seconds
                return {**found, "cpu_bridge": own, **_cost(server, database, updates)}
            finally:
                bridge.end()


def _append(engine: str, count: int, batch: int, size: Size) -> Figures:
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        _journal(engine, Path(folder)) as (url, server, database),
    ):
        command = [sys.executable, "-m", "tests.bench.appender", url, str(batch), str(size.seconds)]
        processes = [
            subprocess.Popen([*command, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for place in range(count)
        ]
        for process in processes:  # they make their updates ready first
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        before = _wal(server)
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        found = []
        for process in processes:
            assert process.stdout is not None
            found.append(json.loads(process.stdout.readline()))
        updates = sum(one["stored"] for one in found)
        cost = _cost(server, database, updates, before)
        for process in processes:
            process.communicate("")
        with contextlib.ExitStack() as stack:
            journal = stack.enter_context(PostgresqlJournal(database) if database else SqliteJournal(Path(url[9:])))
            there = sum(1 for _ in journal.each_update())
        return {
            "rate": sum(one["stored"] / one["seconds"] for one in found),
            "cpu_client": sum(one["cpu"] for one in found) * 1e6 / updates,
            **cost,
            "missing": float(max(0, updates - there)),
            "doubled": float(max(0, there - updates)),
        }


def _wal(server: Server | None) -> int:
    return int(str(server.execute("SELECT pg_current_wal_lsn() - '0/0'")[0][0])) if server else 0


def _cost(server: Server | None, database: Database | None, updates: float, before: int = 0) -> Figures:
    """What an update cost the database: microseconds of its backends, bytes of its log and its tables."""
    if server is None or database is None or not updates:
        return {}
    name = database.url.rpartition("/")[2]
    backends = server.execute(f"SELECT pid FROM pg_stat_activity WHERE datname = '{name}'")
    used = sum(cpu_seconds(int(str(pid))) for (pid,) in backends)
    size = server.execute("SELECT sum(pg_total_relation_size(relid)) FROM pg_stat_user_tables", database)
    found = {"cpu_server": used * 1e6 / updates, "table_bytes": float(str(size[0][0])) / updates}
    return found | ({"wal_bytes": (_wal(server) - before) / updates} if before else {})


__all__ = ["appenders", "batches", "receivers"]
