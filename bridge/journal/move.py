"""A journal's move from its file into a PostgreSQL database, with all that it knows of order and time.

By it nothing may change that somebody relies on: places and the journal's identity (the broker's checkpoint names both,
so nothing is published again), identities of updates (the same callback is a duplicate as before), who holds each
retained topic and by which rank, what is settled, and the journal's own time, by which topics expire.

It may be cut off at any moment, and goes on where it stopped. The schema says of itself that it is unfinished, so that
nobody else uses it. What is large goes in slices, each in a transaction and in the order of its keys: the largest key
there tells what is still missing. What is small goes in the last transaction, which also takes that word away. Only
then the file is marked as moved; until then it is as it was, and held by a transaction, so that nobody writes to it.

Time. An update of this machine's present boot takes the time since boot with it, and the database's clock at its
receipt is worked out from that; of what is older nobody knew that any more (promise 5: such a click does not fire).
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString, Self

import apsw
import orjson
import psycopg
from psycopg import errors

from bridge.clock import boot_id, uptime
from bridge.config import Database
from bridge.journal import JournalError
from bridge.journal import statements as sql
from bridge.journal.postgresql import (
    UNFINISHED,
    bring_up,
    connected,
    look,
    note_version,
    partition_of,
    schema_state,
    words,
)
from bridge.journal.shared import Reckoning
from bridge.journal.sqlite import MOVED, SqliteJournal

#: Rows in one transaction.
SLICE = 10_000

#: What stands in place of the identity of a click, which gives no order.
NIL = "00000000-0000-0000-0000-000000000000"

#: What the file knows of itself and a database in another way, or not at all. All its other facts go along.
STAYS = frozenset(
    ("settled", "boot", "boot_first", "clean", "elapsed", "tick_boot", "tick_uptime", "tick_wall", "tried", MOVED)
)

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Holdings:
    """How many rows of each a journal holds."""

    updates: int
    ledger: int
    dead_letters: int
    ticks: int
    learned: int
    discoveries: int

    @property
    def rows(self) -> int:
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True, slots=True)
class _Ages:
    """How an update's receipt is told there.

    Attributes:
        here: The number of this machine's present boot; None: the file has nothing of it.
        before: The number of one that stands for all earlier ones.
        first: The first place of the present boot.
        offset: What makes seconds since boot into the database's clock.
    """

    here: int | None
    before: int
    first: int
    offset: float

    def of(self, seq: int, up: float) -> tuple[int, float]:
        """The boot, and the database's clock: far away from all that it says, where nobody knows."""
        return (self.before, 0.0) if self.here is None or seq < self.first else (self.here, self.offset + up)


def _update(row: Row, ages: _Ages) -> Row:
    seq, _, _, topic, _, _, _, _, up, advances, late, _ = row
    boot, stored = ages.of(seq, up)
    return *row[:9], bool(advances), bool(late), row[11], partition_of(topic), boot, stored


def _held(row: Row, _: _Ages) -> Row:
    topic, kind, rank, stamp, tie, seq, state, gone = row
    return topic, kind, rank, stamp, tie.hex() or NIL, seq, state, gone


def _letter(row: Row, _: _Ages) -> Row:
    number, received, source, reason, seq, body = row
    return number, received, source, reason.replace("\0", "\N{SYMBOL FOR NULL}"), seq, body


def _tick(row: Row, _: _Ages) -> Row:
    return row


def _learned(row: Row, _: _Ages) -> Row:
    kind, key, name, first, last, told = row
    return kind, key.encode(), name.encode(), first, last, bool(told)


@dataclass(frozen=True, slots=True)
class _Table:
    """One kind of rows.

    Attributes:
        name: In both journals.
        read: Rows after a key, which comes first in each, in its order; and so many at most (-1: all).
        start: A key before all others.
        columns: Those there, as `made` gives them.
        made: A row there out of one in the file.
    """

    name: LiteralString
    read: str
    start: float | str
    columns: LiteralString
    made: Callable[[Row, _Ages], Row]


#: Those that go in slices, by a key of one column.
_LARGE = (
    _Table(
        "updates",
        "SELECT seq, lower(hex(event_id)), kind, topic, event_topic, rank, timestamp, received, uptime, advances, "
        "late, document FROM updates WHERE seq > ? ORDER BY seq LIMIT ?",
        0,
        "seq, event_id, kind, topic, event_topic, rank, timestamp, received, uptime, advances, late, document, "
        "partition, boot, stored",
        _update,
    ),
    _Table(
        "ledger",
        "SELECT topic, kind, rank, stamp, tie, seq, state, gone FROM ledger WHERE topic > ? ORDER BY topic LIMIT ?",
        "",
        "topic, kind, rank, stamp, tie, seq, state, gone",
        _held,
    ),
    _Table(
        "dead_letters",
        "SELECT id, received, source, reason, seq, body FROM dead_letters WHERE id > ? ORDER BY id LIMIT ?",
        0,
        "id, received, source, reason, seq, body",
        _letter,
    ),
)
#: Those that go at once.
_SMALL = (
    _Table("ticks", "SELECT elapsed, seq FROM ticks WHERE elapsed > ? LIMIT ?", -1.0, "elapsed, seq", _tick),
    _Table(
        "learned",
        "SELECT kind, key, name, first, last, told FROM learned WHERE kind > ? LIMIT ?",
        "",
        "kind, key, name, first, last, told",
        _learned,
    ),
    _Table("discoveries", "SELECT topic FROM discoveries WHERE topic > ? LIMIT ?", "", "topic", _tick),
)


class Move:
    """One move. Opened and closed by `with`, it holds both journals and knows what there is to do; `run` does it.

    Args:
        path: The journal's file, which no bridge uses (`service.alone`).
        database: Where it goes.

    Attributes:
        holdings: What the file holds.
        there: So many rows are there already, as an earlier try was cut off.
        is_done: All is there, and the file says so.
    """

    def __init__(self, path: Path, database: Database) -> None:
        self._database = database
        self._source = _Source(path)
        self._is_begun = self._is_complete = self.is_done = False
        self.there = 0

    def __enter__(self) -> Self:
        """Hold both journals.

        Raises:
            JournalError: One of them is in use or cannot be used for this; the message says what to do.
        """
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(self._source)
            self.holdings, self._facts, self._origin = source.holdings(), source.facts(), source.origin()
            stack.enter_context(self._explained())
            self._db = stack.enter_context(connected(self._database))
            look(self._db, self._database)
            self._look_there()
            self._opened = stack.pop_all()
        return self

    def __exit__(self, *trouble: object) -> None:
        self._opened.__exit__(*trouble)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise JournalError(f"journal {self._database}: {words(error)}") from error

    def _look_there(self) -> None:
        """Find out how far it is.

        Raises:
            JournalError: What is there is not to be touched.
        """
        database, moved = self._database, self._facts.get(MOVED)
        try:
            self._one(sql.ALONE, database.schema)
        except errors.LockNotAvailable as error:
            raise JournalError(f"migrate-journal: a bridge uses {database}; stop it, and try again") from error
        version, is_whole = schema_state(self._db, database)
        if version > len(sql.MIGRATIONS):
            bring_up(self._db, database, version)  # says why it is not
        origin = orjson.loads(self._one(sql.FACT, "move") or "{}") if version else {}
        if not is_whole and origin.get("journal") != self._origin["journal"]:
            raise JournalError(
                f"migrate-journal: {database} holds a part of another journal; move that one to its end, or "
                f"{self._take_away}"
            )
        self._is_complete = is_whole and bool(moved or origin == self._origin) and self._holds_this(version)
        self.is_done = self._is_complete and moved == str(database)
        if moved and not self.is_done:
            raise JournalError(
                f"migrate-journal: {self._source.path} was moved to {moved} already; to move it once more as it was "
                f"then, `whatsapp2mqtt restore {shlex.quote(str(self._source.path))}` first"
            )
        if version and is_whole and not self._is_complete and self._one(sql.HOLDS_ANYTHING):
            raise JournalError(f"migrate-journal: {database} holds a journal already; {self._take_away}")
        self._is_begun = not is_whole and origin == self._origin and version == len(sql.MIGRATIONS)
        if self._is_begun:
            self.there = sum(self._count(table) for table in _LARGE)

    def _holds_this(self, version: int) -> bool:
        """Whether this very journal was moved there, whatever came since."""
        return bool(version) and self._one(sql.FACT, "journal") == self._origin["journal"]

    @property
    def _take_away(self) -> str:
        schema = self._database.schema
        return f'take it away (`DROP SCHEMA "{schema}" CASCADE`, and all that is in it), or name another database'

    # --- moving --------------------------------------------------------------------------------------------------

    def run(self, moved: Callable[[int], None]) -> None:
        """Move what is not there yet.

        Args:
            moved: Called with how many more rows are there.

        Raises:
            JournalError: It was cut off, or cannot go on; run again, it goes on where it stopped.
        """
        if self.is_done:
            return
        with self._explained():
            if not self._is_complete:
                if not self._is_begun:
                    self._begin()
                ages = self._ages()
                for table in _LARGE:
                    last = self._one(f"SELECT max({table.columns.partition(',')[0]}) FROM {table.name}")  # noqa: S608
                    while True:
                        with self._db.transaction():
                            count, last = self._copy(table, table.start if last is None else last, SLICE, ages)
                        moved(count)
                        if count < SLICE:
                            break
                self._finish(ages, moved)
                self._db.execute(sql.ANALYZE)
        self._source.mark(str(self._database))

    def _begin(self) -> None:
        """Have a schema that is empty and says that it is unfinished."""
        db, database = self._db, self._database
        with db.transaction():
            db.execute(sql.MIGRATION_TURN, (database.schema,))
            bring_up(db, database, schema_state(db, database)[0])
            db.execute(sql.EMPTY)
            note_version(db, database, UNFINISHED)
            db.execute(sql.NOTE_FACT, ("move", orjson.dumps(self._origin).decode()))

    def _ages(self) -> _Ages:
        machine, now = socket.gethostname(), boot_id() or "at the move"
        for boot in ("before the move", now):
            self._db.execute(sql.NEW_BOOT, (machine, boot))
        before, here = (int(self._one(sql.BOOT, machine, boot)) for boot in ("before the move", now))
        is_known = self._facts["boot"] == now
        offset = float(self._one(sql.DATABASE_TIME)) - uptime()
        return _Ages(here if is_known else None, before, int(self._facts["boot_first"]), offset)

    def _copy(self, table: _Table, after: float | str, limit: int, ages: _Ages) -> tuple[int, Any]:
        """Copy rows after a key; how many, and the key of the last."""
        count = 0
        with self._db.cursor() as cursor, cursor.copy(f"COPY {table.name} ({table.columns}) FROM STDIN") as copy:
            for row in self._source.rows(table.read, after, limit):
                copy.write_row(table.made(row, ages))
                after = row[0]
                count += 1
        return count, after

    def _finish(self, ages: _Ages, moved: Callable[[int], None]) -> None:
        """Copy what is small, see that all is there, and say so."""
        facts = self._facts
        time = Reckoning(facts["elapsed"], facts["tick_boot"], facts["tick_uptime"], facts["tick_wall"])
        places, letters = self._source.given()
        with self._db.transaction():
            count = sum(self._copy(table, table.start, -1, ages)[0] for table in _SMALL)
            for table in (*_LARGE, *_SMALL):
                found, held = self._count(table), getattr(self.holdings, table.name)
                if found != held:
                    raise JournalError(
                        f"migrate-journal: {found} rows are in {table.name} of {self._database} instead of {held}, as "
                        f"another program wrote there; {self._take_away}"
                    )
            for name, value in facts.items():
                if name not in STAYS:
                    self._db.execute(sql.NOTE_FACT, (name, str(value)))
            self._db.execute(sql.NOTE_FACT, ("time", orjson.dumps(time).decode()))
            self._db.execute(sql.SETTLE_ALL, (facts["settled"],))
            self._db.execute(sql.GO_ON_COUNTING, {"places": places, "letters": letters})
            note_version(self._db, self._database)
        moved(count)

    def _one(self, statement: LiteralString, *arguments: object) -> Any:
        row = self._db.execute(statement, arguments).fetchone()
        return row[0] if row else None

    def _count(self, table: _Table) -> int:
        return int(self._one(f"SELECT count(*) FROM {table.name}"))  # noqa: S608


class _Source(SqliteJournal):
    """The file: held, so that nobody else writes to it, and as it is at one moment."""

    @property
    def path(self) -> Path:
        return self._path

    def __enter__(self) -> Self:
        """Open and hold it.

        Raises:
            JournalError: It cannot be used, or something uses it.
        """
        super().__enter__()
        try:
            self._hold()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _hold(self) -> None:
        with self._reading() as db:
            # All in the file, and nothing beside it: then its time and size tell whether it is the same later on.
            db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            db.execute("BEGIN IMMEDIATE")
            found = db.execute("PRAGMA quick_check(1)").get
        if found != "ok":
            raise JournalError(f"journal {self._path}: is damaged ({found}); start the bridge, it mends it")

    def facts(self) -> dict[str, Any]:
        with self._reading() as db:
            return dict(db.execute("SELECT name, value FROM facts"))

    def holdings(self) -> Holdings:
        with self._reading() as db:
            names = [one.name for one in dataclasses.fields(Holdings)]
            return Holdings(*(int(db.execute(f"SELECT count(*) FROM {name}").get) for name in names))  # noqa: S608

    def origin(self) -> dict[str, Any]:
        """Tells this journal as it is from any other, and from itself if anything was written since."""
        file = self._path.stat()
        return {"journal": self.identity(), "size": file.st_size, "mtime": file.st_mtime_ns}

    def given(self) -> tuple[int, int]:
        """The last place, and the last number of a dead letter, that were given."""
        with self._reading() as db:
            last = dict(db.execute("SELECT name, seq FROM sqlite_sequence"))
        return last.get("updates", 0), last.get("dead_letters", 0)

    def rows(self, read: str, after: float | str, limit: int) -> Iterator[Row]:
        with self._reading() as db:
            yield from db.execute(read, (after, limit))

    def mark(self, where: str) -> None:
        """Note where it is now, and let go of it."""
        with self._reading() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (MOVED, where))
            db.execute("COMMIT")
