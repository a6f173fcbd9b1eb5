"""Who publishes what, where several bridges share a journal in PostgreSQL: sessions, locks, epochs.

Updates fall into partitions by their retained topic (`partition_of`), so the order of a partition is the order of each
message and each topic. A partition is published by the one replica whose session holds its advisory lock. The server
itself gives the locks of a session back: at once when its connection ends, and `IDLE` seconds after it was last heard,
whether its process was paused, its machine lost its power, or its network was cut.

A replica believes that it holds its locks for `LEASE` seconds after it *began* to ask the server for the last time,
and no longer; nothing is sent to the broker by one that does not. The server lets go later than that, except when it
is restarted or is told to end a session. So a lock that was not given back in order (`owners`) is left alone by others
until it has been seen free for `PATIENCE` seconds: by then the one that had it has stopped believing, wherever it is;
or it has come back, and goes on as if nothing had been. Seconds are those since boot, suspension included.

Whoever takes a partition raises its epoch. Notes of what is settled count only with the epoch under which the
partition was taken, so that one that was paused cannot move on what is another's by now.
"""

from __future__ import annotations

import select
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from bridge.clock import uptime
from bridge.config import Database
from bridge.journal import DeadLetter, JournalError, Retained, Stored, UnreachableError
from bridge.journal import statements as sql
from bridge.journal.postgresql import (
    Json,
    PostgresqlJournal,
    check_version,
    connect,
    dead_rows,
    first,
    is_away,
    look,
    partition_of,
    retained_rows,
    schema_version,
    stored_rows,
    words,
)
from bridge.model import Kind

#: Seconds between two signs of life; for which one counts; after which the server ends a silent session; and after
#: which a lock that was not given back may be taken.
BEAT, LEASE, IDLE, PATIENCE = 0.5, 3.0, 4.0, 3.25
#: Seconds that the server may take for a statement.
STATEMENT = 2.5

#: The partition of buttons and `last/*`; whoever has it leads. And those of statuses.
LEADING = 0
SHARED = range(1, sql.PARTITIONS)


class NameTakenError(UnreachableError):
    """Another replica has this name, or had it until a moment ago."""


@dataclass(frozen=True, slots=True)
class Partition:
    """One of them, as the server says.

    Attributes:
        epoch: How often it was taken from another one.
        turns: How often its lock was taken.
        settled: Up to which place it is published.
        owners: Replicas that took it and did not give it back, and were not displaced at the broker since.
        is_held: Whether a session holds its lock.
    """

    epoch: int
    turns: int
    settled: int
    owners: tuple[str, ...]
    is_held: bool


@dataclass(frozen=True, slots=True)
class Group:
    """All replicas by name, in order, those of them that reach a broker, and all partitions by number."""

    members: tuple[str, ...]
    reaching: tuple[str, ...]
    partitions: Mapping[int, Partition]


class Session:
    """This replica's session at the server, with its locks; for one thread.

    Every method but `close` raises `UnreachableError` where the session is over: with it go all
    locks.

    Args:
        database: Where the journal is.
        name: The replica's.
    """

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self.name = name
        self._db: psycopg.Connection[Any] | None = None
        self._heard: list[str] = []
        #: Until when what it holds is held for certain, in seconds since boot.
        self.leased_until = float("-inf")

    @property
    def is_open(self) -> bool:
        return self._db is not None

    def open(self) -> None:
        """Begin a session, and be one of the group.

        Raises:
            NameTakenError: Another one of this name is, or a command wants to be alone.
            JournalError: The journal is not as it must be.
        """
        db = connect(self._database)
        try:
            self._join(db)
        except psycopg.Error as error:
            db.close()
            raise self._over(error) from error
        except BaseException:
            db.close()
            raise
        self._db = db

    def _join(self, db: psycopg.Connection[Any]) -> None:
        look(db, self._database)
        check_version(schema_version(db, self._database), self._database)
        db.add_notify_handler(lambda heard: self._heard.append(heard.payload))
        db.execute(sql.SESSION, {"idle": f"{IDLE:g}s", "patience": f"{STATEMENT:g}s"})
        if not first(db.execute(sql.NAME, (self.name,))):
            raise NameTakenError(
                f"journal.replica: another bridge on {self._database} calls itself {self.name}; "
                "give each a name of its own"
            )
        if not first(db.execute(sql.JOIN)):
            raise NameTakenError(f"journal {self._database}: a command is at work on it; wait until it is done")
        db.execute(f'LISTEN "{self._database.schema}"'.encode())
        db.execute(sql.NOTE_REPLICA, (self.name,))

    def close(self) -> None:
        """End the session, if there is one."""
        if self._db is not None:
            self._db.close()
            self._db = None

    # --- the group -------------------------------------------------------------------------------------------

    def beat(self) -> Group:
        """Show that this replica lives, and look at the others."""
        began = uptime()
        members = dict(self._rows(sql.MEMBERS))
        partitions = {
            number: Partition(epoch, turns, settled, tuple(owners), is_held)
            for number, epoch, turns, settled, owners, is_held in self._rows(sql.PARTITIONS_NOW)
        }
        self.leased_until = began + LEASE
        return Group(tuple(members), tuple(name for name, reaches in members.items() if reaches), partitions)

    def note_reach(self, reaches: bool) -> None:
        """Have the others see whether this replica reaches a broker; as long as nothing is noted, it does."""
        self._rows(sql.REACHES, reaches, self.name)

    def leave(self) -> tuple[str, ...]:
        """Count no more as one of the group; who is left."""
        self._rows(sql.LEAVE)
        return tuple(name for name, _ in self._rows(sql.MEMBERS))

    def tell(self, word: str) -> None:
        """Have all replicas hear something, this one too."""
        self._rows(sql.TELL, word)

    def wait(self, bell: int, seconds: float) -> list[str]:
        """Until something is heard, the bell can be read, or the time is over; what was heard (empty: was stored)."""
        db = self._connected()
        try:
            if not self._heard:
                poller = select.poll()
                poller.register(db.fileno(), select.POLLIN)
                poller.register(bell, select.POLLIN)
                poller.poll(max(0.0, seconds) * 1000)
            db.pgconn.consume_input()
            while (heard := db.pgconn.notifies()) is not None:
                self._heard.append(heard.extra.decode())
        except psycopg.Error as error:
            raise self._over(error) from error
        found, self._heard = self._heard, []
        return found

    def note_seen(self, names: Sequence[str], gone: float) -> list[str]:
        """Note which replicas are there; those that were not for so many seconds."""
        self._rows(sql.SEEN, list(names))
        return [name for (name,) in self._rows(sql.GONE, gone)]

    def forget(self, names: Sequence[str], gone: float) -> None:
        """Forget replicas that were not there for so many seconds."""
        self._rows(sql.FORGET_REPLICAS, list(names), gone)

    # --- the locks -------------------------------------------------------------------------------------------

    def take(self, partition: int, turns: int) -> int | None:
        """Hold a partition that another one had; its new epoch, or None: it is not as it was seen any more.

        Args:
            partition: Its number.
            turns: As it was seen.
        """
        if not first_of(self._rows(sql.LOCK, partition)):
            return None
        if taken := self._rows(sql.TAKE, {"name": self.name, "partition": partition, "turns": turns}):
            return int(first_of(taken))
        self._rows(sql.UNLOCK, partition)
        return None

    def retake(self, partition: int, epoch: int) -> bool | None:
        """Hold a partition that was ours when an earlier session ended; None: it is another's since."""
        if not first_of(self._rows(sql.LOCK, partition)):
            return None if first_of(self._rows(sql.EPOCH, partition)) != epoch else False
        if self._rows(sql.RETAKE, partition, epoch):
            return True
        self._rows(sql.UNLOCK, partition)
        return None

    def own(self, partitions: Iterable[tuple[int, int]]) -> None:
        """Note that whoever had these partitions (and epochs) before was displaced at the broker."""
        for partition, epoch in partitions:
            self._rows(sql.OWN, self.name, partition, epoch)

    def give(self, partitions: Iterable[tuple[int, int]], *, in_order: bool = True) -> None:
        """Let go of partitions.

        Args:
            partitions: With their epochs.
            in_order: All that was to be noted is noted, and nothing of ours can still arrive at the broker: whoever
                is next need not displace us. Those that we did not displace it still has to.
        """
        for partition, epoch in partitions:
            if in_order:
                self._rows(sql.GIVE, self.name, partition, epoch)
            self._rows(sql.UNLOCK, partition)

    # --- below -----------------------------------------------------------------------------------------------

    def _connected(self) -> psycopg.Connection[Any]:
        if self._db is None:
            raise UnreachableError(f"journal {self._database}: there is no session")
        return self._db

    def _rows(self, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
        """The rows that a statement gives; its arguments in order, or by name in one mapping."""
        given: Any = arguments[0] if arguments and isinstance(arguments[0], dict) else arguments
        try:
            cursor = self._connected().execute(statement.encode(), given)
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise self._over(error) from error

    def _over(self, error: psycopg.Error) -> JournalError:
        if is_away(error) or isinstance(error, (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable)):
            return UnreachableError(f"journal {self._database}: {words(error)}")
        return JournalError(f"journal {self._database}: {words(error)}")


class Share(PostgresqlJournal):
    """The journal for a publisher of some partitions.

    Args:
        database, never_retained: As for the whole.
        epochs: Of each partition, as it was taken.
    """

    def __init__(self, database: Database, epochs: Mapping[int, int], *, never_retained: frozenset[Kind]) -> None:
        super().__init__(database, never_retained=never_retained)
        self._partitions = sorted(epochs)
        self._epochs = [epochs[number] for number in self._partitions]
        self._began = 0  # up to here, whoever had them before may have published
        self._before = [0] * len(epochs)  # up to here, of each, whoever had it before noted that it is published

    def pending(self, after: int, limit: int) -> list[Stored]:
        if not self._partitions:
            return []
        with self._reading() as db:
            asked = {"after": after, "limit": limit, "boot": self._boot, "uptime": uptime(), "began": self._began}
            return stored_rows(db.execute(sql.SHARE_PENDING, {**asked, "partitions": self._partitions}))

    def settled(self) -> int:
        with self._reading() as db:
            mine = {"partitions": self._partitions}
            self._began = int(first(db.execute(sql.NEWEST)))
            self._before = [settled for (settled,) in db.execute(sql.SETTLED_OF_EACH, mine)]
            return int(first(db.execute(sql.SHARE_SETTLED, mine)))

    def settle(
        self,
        upto: int,
        *,
        late: Sequence[int] = (),
        dead: Sequence[DeadLetter] = (),
        wait: bool = True,  # noqa: ARG002  (nobody who stores is in the way)
    ) -> None:
        given = {"upto": upto, "late": list(late), "dead": Json(dead_rows(dead))}
        with self._storing() as db:
            db.execute(sql.SHARE_SETTLE, {**given, "partitions": self._partitions, "epochs": self._epochs})

    def retained(self, after: tuple[int, str], upto: int, limit: int) -> list[Retained]:
        if not self._partitions:
            return []
        asked = {"seq": after[0], "topic": after[1], "upto": upto, "limit": limit}
        mine = {"partitions": self._partitions, "before": self._before}
        with self._reading() as db:
            return retained_rows(db.execute(sql.SHARE_RETAINED, asked | mine))

    def clearing(self, limit: int) -> list[str]:
        found: list[str] = []
        after = (0, "")
        with self._reading() as db:
            while self._partitions and len(found) < limit:
                rows = db.execute(sql.CLEARING, (*after, 1_000)).fetchall()
                found += [topic for _, topic in rows if partition_of(topic) in self._partitions]
                if len(rows) < 1_000:
                    break
                after = rows[-1]
        return found[:limit]

    def clear_again(self, checkpoint: int) -> int:
        return super().clear_again(checkpoint) if self._partitions else 0

    def last(self) -> list[Retained]:
        """What `last/*` are to carry now, as far as they stand."""
        with self._reading() as db:
            return retained_rows(db.execute(sql.LAST))


def first_of(rows: Sequence[tuple[Any, ...]]) -> Any:
    """The first column of the first row."""
    return rows[0][0]
