"""A small process that stores as a receiver does: coroutines that wait, the receiver's own committer, the same end.

It reads one line of JSON (an `Order`) from standard input, and writes one line for each update to standard output once
it is answered: `+ event_id` when `append` returned, `- event_id why` when it was refused. A line is only written after
the answer, so what stands there had been promised.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import apsw

if TYPE_CHECKING:
    from bridge.journal.commit import GroupCommit

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Order:
    """What to do.

    Attributes:
        journal: The file; it exists.
        first: The number of the first update; its `event_id` follows from it.
        seed: Of the mix.
        durable: As in `SqliteJournal`: a receiver's is.
        updates: How many at most; 0: until it is killed.
        requests: How many wait at once.
        publisher: Whether a second connection settles and checkpoints meanwhile, as the main process does.
    """

    journal: str
    first: int
    seed: int
    durable: bool = True
    updates: int = 0
    requests: int = 4
    publisher: bool = False


class Appender:
    """The process, from outside.

    Args:
        wrapper: A command to run it under, e.g. strace.
    """

    def __init__(self, wrapper: Iterable[str] = ()) -> None:
        self.accepted: set[str] = set()
        self.refused: dict[str, str] = {}
        self.after_a_refusal: set[str] = set()  # accepted by the same process after it had refused
        self.first_answer = threading.Event()
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, "-m", "tests.torture.appender"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._said = bytearray()
        self._readers = [threading.Thread(target=target, daemon=True) for target in (self._read, self._read_log)]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self, order: Order) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """End it with -9; all that it had said by then is known when this returns."""
        self.process.kill()
        self.wait()

    def wait(self, patience: float = 60) -> int:
        """Until it ended by itself; its exit code."""
        code = self.process.wait(patience)
        for reader in self._readers:
            reader.join(10)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        return code

    @property
    def log(self) -> str:
        return bytes(self._said).decode("utf-8", "replace")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if not line.endswith(b"\n"):
                break
            sign, _, rest = line.decode().rstrip("\n").partition(" ")
            identity, _, why = rest.partition(" ")
            if sign == "+":
                self.accepted.add(identity)
                if self.refused:
                    self.after_a_refusal.add(identity)
            else:
                self.refused[identity] = why
            self.first_answer.set()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._said += line


def stored(journal: Path) -> set[str]:
    """The `event_id` of every update that a journal holds."""
    with contextlib.closing(apsw.Connection(str(journal), flags=apsw.SQLITE_OPEN_READWRITE)) as db:
        return {identity for (identity,) in db.execute("SELECT lower(hex(event_id)) FROM updates")}


def inconsistencies(journal: Path) -> list[str]:
    """What is wrong with a journal's file, or with what its tables say of each other."""
    with contextlib.closing(apsw.Connection(str(journal), flags=apsw.SQLITE_OPEN_READWRITE)) as db:
        try:
            found = [text for (text,) in db.execute("PRAGMA integrity_check") if text != "ok"]
            beyond = db.execute(
                "SELECT count(*) FROM facts WHERE name = 'settled'"
                " AND value > (SELECT coalesce(max(seq), 0) FROM sqlite_sequence)"
            ).get
            orphans = db.execute(
                "SELECT count(*) FROM ledger WHERE state = 0 AND seq NOT IN (SELECT seq FROM updates)"
            ).get
        except apsw.Error as error:
            return [str(error)]
    if orphans:
        found.append(f"{orphans} retained topics without their update")
    if beyond:
        found.append("more is settled than was ever stored")
    return found


# --- the process itself -----------------------------------------------------------------------------------------


def main() -> None:
    from bridge import logs
    from bridge.journal.sqlite import SqliteJournal
    from bridge.receiver import _start_committer

    logs.configure("info", "json")
    line = sys.stdin.readline()
    if not line:
        return
    order = Order(**json.loads(line))
    journal = Path(order.journal)
    commit, committer = _start_committer(SqliteJournal(journal, durable=order.durable), lambda: None)
    numbers = iter(range(order.first, order.first + (order.updates or 1_000_000)))
    if order.publisher:
        threading.Thread(target=_publish, args=(journal,), daemon=True).start()

    async def store() -> None:
        await asyncio.gather(*(_store(commit, numbers, order.seed) for _ in range(order.requests)))

    asyncio.run(store())
    commit.stop()
    committer.join()


async def _store(commit: GroupCommit, numbers: Iterator[int], seed: int) -> None:
    from bridge.journal import Callback, NotStoredError
    from bridge.model import Kind
    from bridge.topics import Entry

    for number in numbers:
        chance = random.Random(f"{seed} {number}")
        identity = f"{number:032x}"
        topic = f"m{number // 3}/status"
        text = json.dumps({"event_id": identity, "filling": "x" * chance.randint(50, 1500)})
        entry = Entry(identity, Kind.STATUS, topic, "event/status/sent", number % 3, number, time.time(), text)
        try:
            await commit.append(Callback((entry,)))
            answer = f"+ {identity}\n"
        except NotStoredError as error:
            answer = f"- {identity} {error}\n"
        os.write(1, answer.encode())


def _publish(path: Path) -> None:
    from bridge.journal import BrokenStorageError, BusyError, JournalError
    from bridge.journal.sqlite import SqliteJournal

    with contextlib.suppress(BrokenStorageError, JournalError), SqliteJournal(path, durable=False) as journal:
        for turn in itertools.count():
            with contextlib.suppress(BusyError):
                journal.settle(journal.settled() + journal.backlog())
                if turn % 10 == 0:
                    journal.checkpoint()
            time.sleep(0.01)


if __name__ == "__main__":
    main()
