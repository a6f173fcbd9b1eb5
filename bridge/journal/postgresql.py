"""The journal in a PostgreSQL database, shared by several bridges on several machines.

Promises kept here (numbers as in docs/how-it-works.md):
  1. Stored before answered: `append` is one statement, which commits by itself; `synchronous_commit` and `fsync` are
     looked at on each new connection, and a server that does not wait for its disk is refused.
  3. Stored once: `updates.event_id` is unique, whichever replica stores it.
  4. Never backwards: `append` (statements.py) ranks in the transaction that stores.

One writer at a time. Were places given by concurrent transactions, a smaller one could become visible after a larger
one: a publisher that has passed it would never see it. So whoever gives places, or changes what the ledger holds, first
waits for its turn (`take_turn`, a lock that ends with the transaction): places become visible in their order, nothing
of the ledger can deadlock, and the rules are those of SQLite's single writer. The turn is held while the server works,
not while it waits for a receiver; and group commit makes up for it (docs/postgresql.md says what it is for).

Several bridges may publish from it, each its share of the partitions into which updates fall: see partitions.py.

Time. Seconds since boot mean something on one machine only. Each update knows the boot that stored it and the time of
the database's clock; a reader of the same boot uses the former, others the latter (promise 5). The journal's own time,
by which topics expire, goes on by the clock since boot of the machine that looks after it, and by the wall clock when
that is another one: machines whose clocks differ by seconds differ by those seconds, once.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import select
import socket
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import orjson
import psycopg
import psycopg.types.json
import structlog
from psycopg import errors
from psycopg_pool import ConnectionPool, PoolTimeout

from bridge.clock import Clock, boot_id, uptime
from bridge.config import Database
from bridge.journal import (
    SEARCHING,
    Buried,
    BusyError,
    Callback,
    DeadLetter,
    Found,
    JournalError,
    Kept,
    Learned,
    Letter,
    NotStoredError,
    Outcome,
    Retained,
    Statistics,
    Stored,
    Tally,
    Traces,
    UnreachableError,
    Usage,
)
from bridge.journal import statements as sql
from bridge.journal.shared import COUNTED, FULL, PLAUSIBLE, Reckoning, outcomes, search_backwards, tally_of
from bridge.model import Kind
from bridge.topics import Entry

log = structlog.get_logger()

#: The first that ends a session which says nothing (`idle_session_timeout`); older ones are not maintained any more.
OLDEST_SERVER = 140_000

#: Seconds to wait for a connection, and for the server's answer to a new one.
PATIENCE = 3.0
CONNECT_TIMEOUT = 3
#: Milliseconds after which data that the other side does not acknowledge end a connection.
TCP_PATIENCE = 5_000
#: Seconds to wait at the start for a database that is still starting, and between two tries.
START_PATIENCE, START_PAUSE = 30.0, 0.5
#: Seconds between two looks at how large the tables are.
MEASURE_EVERY = 1.0
#: Bytes that `try_to_store` stores.
A_CALLBACK = 64 * 1024
#: What the schema says of itself, behind its version, while a journal is moved into it: nobody else uses it then.
UNFINISHED = "unfinished"

# What a connection has to say is said in our words.
logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)


class PostgresqlJournal:
    """A hold on the journal in a database; opened and closed by `with`.

    Opening does not need the database: while it cannot be reached, each method raises `UnreachableError`.

    Args:
        database: Where it is.
        never_retained: Kinds whose topics are published without being retained.
        max_size: Bytes; appending is refused (`NotStoredError`) while the rows hold about as much. None: the disk
            decides.
        connections: At most so many, for as many threads.
    """

    def __init__(
        self,
        database: Database,
        *,
        never_retained: frozenset[Kind] = frozenset(),
        max_size: int | None = None,
        connections: int = 1,
    ) -> None:
        self._database = database
        self._never_retained = " ".join(sorted(never_retained))
        self._max_size = max_size
        self._connections = connections
        self._pool: ConnectionPool[psycopg.Connection[Any]] | None = None
        self._why = ""  # the last connection failed
        self._boot = 0
        self._measured_at = float("-inf")
        self._is_full = False

    # --- opening ---------------------------------------------------------------------------------------------

    def create(self, patience: float = START_PATIENCE) -> None:
        """Make the schema if there is none, and bring it to this version. Called once, before others open it.

        Args:
            patience: Seconds to wait for a database that is still starting.

        Raises:
            JournalError: The database cannot be reached, is not as it must be, or has a newer version's schema.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                with connected(self._database) as db:
                    look(db, self._database)
                    self._migrate(db)
                    return
            except UnreachableError as error:
                # What the server itself refuses (a password, a name) does not change by waiting.
                refused = "FATAL" in str(error) and "starting up" not in str(error)
                if refused or time.monotonic() + START_PAUSE > deadline:
                    raise JournalError(str(error)) from error
                log.info("waiting for the database", why=str(error))
                time.sleep(START_PAUSE)
            except psycopg.Error as error:
                raise JournalError(f"journal {self._database}: {words(error)}") from error

    def _migrate(self, db: psycopg.Connection[Any]) -> None:
        with db.transaction():
            db.execute(sql.MIGRATION_TURN, (self._database.schema,))
            bring_up(db, self._database, schema_version(db, self._database))

    def __enter__(self) -> Self:
        """Be ready to connect."""
        journal = self

        class Connection(psycopg.Connection[Any]):
            """One that tells why it cannot be made: the pool only says that there is none."""

            @classmethod
            def connect(cls, *arguments: Any, **named: Any) -> Self:
                try:
                    return super().connect(*arguments, **named)
                except psycopg.Error as error:
                    journal._why = f"journal {journal._database}: {words(error)}"
                    raise

        self._pool = ConnectionPool(
            self._database.url,
            kwargs=_parameters(self._database),
            connection_class=Connection,
            min_size=0,
            max_size=self._connections,
            open=False,
            configure=self._configure,
            check=_check,
            timeout=PATIENCE,
            reconnect_timeout=PATIENCE,
            num_workers=1,
        )
        self._pool.open()
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _configure(self, db: psycopg.Connection[Any]) -> None:
        """Prepare a new connection; what is wrong with it is remembered for whoever waits."""
        try:
            look(db, self._database)
            check_version(schema_version(db, self._database), self._database)
            self._boot = _boot(db)
        except JournalError as error:
            self._why = str(error)
            raise psycopg.OperationalError(self._why) from error

    # --- the receivers' side ---------------------------------------------------------------------------------

    def append(self, callbacks: Sequence[Callback]) -> list[Outcome]:
        """Store the updates and dead letters of all callbacks in one commit; they are on disk when this returns."""
        entries = [entry for callback in callbacks for entry in callback.entries]
        dead = [letter for callback in callbacks for letter in callback.dead]
        if not entries and not dead:
            return outcomes(callbacks, None)
        rows = orjson.dumps([_row(entry) for entry in entries])
        letters = dead_rows(dead)
        with self._storing() as db:
            self._check_room(db)
            found = db.execute(sql.APPEND, (Json(rows), Json(letters), uptime(), self._boot, self._never_retained))
            (fresh,) = found.fetchone() or ([],)
        if len(fresh) == len(entries):
            return outcomes(callbacks, None)
        return outcomes(callbacks, {one.hex for one in fresh})

    def _check_room(self, db: psycopg.Connection[Any]) -> None:
        """Refuse what a full journal would have to hold."""
        if self._max_size is None:
            return
        now = time.monotonic()
        if now - self._measured_at > MEASURE_EVERY:
            self._is_full = _usage(db).used > self._max_size
            self._measured_at = now
        if self._is_full:
            raise NotStoredError(FULL)

    # --- the publisher's side --------------------------------------------------------------------------------

    def pending(self, after: int, limit: int) -> list[Stored]:
        """Updates with a place after this one, in order."""
        with self._reading() as db:
            now = uptime()
            rows = db.execute(sql.PENDING, {"after": after, "limit": limit, "boot": self._boot, "uptime": now})
            return stored_rows(rows)

    def settled(self) -> int:
        """Everything up to this place was acknowledged by the broker or became a dead letter."""
        return int(self._one(sql.SETTLED))

    def settle(
        self,
        upto: int,
        *,
        late: Sequence[int] = (),
        dead: Sequence[DeadLetter] = (),
        wait: bool = True,  # noqa: ARG002  (nobody who stores is in the way)
    ) -> None:
        """Note that everything up to this place is done with."""
        letters = dead_rows(dead)
        with self._storing() as db:
            db.execute(sql.SETTLE, {"upto": upto, "late": list(late), "dead": Json(letters)})

    def identity(self) -> str:
        """Tells this journal from another that took its place."""
        return str(self._one(sql.FACT, "journal"))

    def retained(self, after: tuple[int, str], upto: int, limit: int) -> list[Retained]:
        """Topics of the ledger in the order of (place, topic), after this one and up to this place."""
        with self._reading() as db:
            asked = {"seq": after[0], "topic": after[1], "upto": upto, "limit": limit}
            return retained_rows(db.execute(sql.RETAINED, asked))

    def place_before(self, moment: float) -> int:
        """The place behind which everything stands that was received from a moment on, in epoch seconds."""
        return int(self._one(sql.PLACE_BEFORE, moment))

    def backlog(self) -> int:
        """How many updates wait to be settled."""
        return int(self._one(sql.BACKLOG))

    # --- what stands on the broker, and for how long ---------------------------------------------------------

    def clearing(self, limit: int) -> list[str]:
        """Topics of the ledger that are to be taken off the broker, those that stood longest first."""
        with self._reading() as db:
            return [topic for _, topic in db.execute(sql.CLEARING, (0, "", limit))]

    def cleared(self, topics: Sequence[str]) -> None:
        """Note that these were taken off the broker; one that an update took over meanwhile stands."""
        with self._in_turn() as db:
            db.execute(sql.CLEARED, (list(topics),))

    def clear_again(self, checkpoint: int) -> int:
        """Have topics cleared once more that the broker may have forgotten to have cleared; how many."""
        with self._in_turn() as db:
            return db.execute(sql.CLEAR_AGAIN, (checkpoint,)).rowcount

    def tick(self, clock: Clock) -> float:
        """Advance the journal's own time, and remember which place is the newest now; the time in seconds."""
        with self._storing() as db, db.transaction():
            (kept,) = db.execute(sql.FACT_FOR_UPDATE, ("time",)).fetchone() or (None,)
            now = (Reckoning(**orjson.loads(kept)) if kept else Reckoning()).advanced(clock, boot_id())
            db.execute(sql.NOTE_FACT, ("time", orjson.dumps(now).decode()))
            newest = first(db.execute(sql.NEWEST))
            if newest != first(db.execute(sql.NEWEST_TICK)):
                db.execute(sql.NOTE_TICK, (now.elapsed, newest))
            return now.elapsed

    def stored_before(self, elapsed: float) -> int:
        """The newest place that was stored before this time of the journal's own."""
        return int(self._one(sql.STORED_BEFORE, elapsed))

    def forget_ticks(self, before: float) -> None:
        """Delete ticks older than this, but for the newest of them."""
        with self._storing() as db:
            db.execute(sql.FORGET_TICKS, (before,))

    def expire(self, kind: Kind, upto: int, limit: int) -> int:
        """Mark standing topics of a kind for clearing whose update has a place up to this one; how many."""
        with self._in_turn() as db:
            return db.execute(sql.EXPIRE, {"kind": kind.value, "upto": upto, "limit": limit}).rowcount

    def expire_surplus(self, most: int, limit: int) -> int:
        """Mark the oldest standing topics for clearing where more than `most` stand; how many."""
        surplus = int(self._one(sql.STANDING_COUNT)) - most
        if surplus <= 0:
            return 0
        with self._in_turn() as db:
            return db.execute(sql.EXPIRE_SURPLUS, (min(surplus, limit),)).rowcount

    def standing(self) -> list[str]:
        """Topics of the ledger that stand on the broker, as far as is known."""
        return self._column(sql.STANDING)

    def cleaned(self) -> None:
        """Note that nothing of it stands on the broker any more; what is not settled will be put there again."""
        with self._in_turn() as db:
            db.execute(sql.CLEANED)

    # --- what Home Assistant was told --------------------------------------------------------------------------

    def learned(self) -> list[Learned]:
        """Buttons and business phones that callbacks have named, those named first first."""
        with self._reading() as db:
            return [
                Learned(kind, key.decode(), name.decode(), first, last, told)
                for kind, key, name, first, last, told in db.execute(sql.LEARNED)
            ]

    def learn(self, learned: Sequence[Learned], forgotten: Sequence[Learned] = ()) -> None:
        """Note what was learned, or named again; and forget some."""
        with self._storing() as db, db.transaction(), db.cursor() as cursor:
            cursor.executemany(
                sql.LEARN,
                [(one.kind, one.key.encode(), one.name.encode(), one.first, one.last, one.told) for one in learned],
            )
            cursor.executemany(sql.UNLEARN, [(one.kind, one.key.encode()) for one in forgotten])

    def discoveries(self) -> set[str]:
        """Discovery topics that may stand on the broker."""
        return set(self._column(sql.DISCOVERIES))

    def note_discoveries(self, *, put: Sequence[str] = (), taken: Sequence[str] = ()) -> None:
        """Note discovery topics that are about to be put on the broker, and those that were taken away."""
        with self._storing() as db, db.transaction():
            db.execute(sql.NOTE_DISCOVERIES, (list(put),))
            db.execute(sql.DROP_DISCOVERIES, (list(taken),))

    def last_failure(self) -> str | None:
        """The JSON of the last status that said `failed`, as the tally has it; None: none did."""
        kept = self._one(sql.FACT, "tally")
        return None if kept is None else tally_of(kept).failed

    def tally(self, day: str) -> Tally:
        """Statuses by name since the journal was made, and on this day (as the user's calendar has it)."""
        with self._storing() as db, db.transaction():
            before = tally_of(first(db.execute(sql.FACT, ("tally",))))
            newest = first(db.execute(sql.NEWEST))
            if newest <= before.upto and before.day == day:
                return before
            between = (before.upto, newest)
            counts = {topic.removeprefix("event/status/"): count for topic, count in db.execute(sql.COUNTS, between)}
            failed = first(db.execute(sql.LAST_FAILED, between))
            after = before.counted(counts, day, max(newest, before.upto), failed)
            db.execute(sql.NOTE_FACT, ("tally", orjson.dumps(after).decode()))
            return after

    # --- care --------------------------------------------------------------------------------------------------

    def prune(self, upto: int, limit: int) -> int:
        """Delete settled updates up to this place that no standing topic needs, a slice of them; how many."""
        # Looked for before the turn is taken: receivers need not wait while what stands is passed over.
        seqs = self._column(sql.PRUNABLE, upto, limit)
        with self._in_turn() as db:
            pruned = db.execute(sql.PRUNE, (seqs,)).rowcount
            db.execute(sql.PRUNE_LEDGER, (upto, limit))
            return pruned

    def usage(self) -> Usage:
        """How large the tables are, and about how much of them is in use."""
        with self._reading() as db:
            return _usage(db)

    def checkpoint(self) -> None:
        """The write-ahead log is the server's own."""

    def statistics(self, now: float) -> Statistics:
        """Counts for the health report.

        Args:
            now: Epoch seconds.
        """
        with self._reading() as db:
            oldest = first(db.execute(sql.OLDEST_WAITING))
            return Statistics(
                backlog=int(first(db.execute(sql.BACKLOG))),
                oldest_age=max(0.0, now - oldest) if oldest is not None else 0.0,
                dead_letters=int(first(db.execute(sql.DEAD_LETTER_COUNT))),
                retained_topics=int(first(db.execute(sql.STANDING_COUNT))),
            )

    def close_in_order(self) -> None:
        """Looking for damage is the server's own work."""

    # --- dead letters ------------------------------------------------------------------------------------------

    def dead_letters(self, *, limit: int = 1_000) -> list[Buried]:
        """The newest dead letters, newest first."""
        with self._reading() as db:
            return [Buried(*row) for row in db.execute(sql.DEAD_LETTERS, (limit,))]

    def dead_letter(self, number: int) -> Buried | None:
        """One of them."""
        with self._reading() as db:
            row = db.execute(sql.DEAD_LETTER, (number,)).fetchone()
            return Buried(*row) if row else None

    def drop_dead_letter(self, number: int) -> bool:
        """Delete one; whether there was one."""
        with self._storing() as db:
            return db.execute(sql.DROP_DEAD_LETTER, (number,)).rowcount > 0

    def bound_dead_letters(self, *, most: int, received_before: float) -> int:
        """Delete those received before (epoch seconds), and the oldest beyond `most`; how many."""
        with self._storing() as db:
            return db.execute(sql.BOUND_DEAD_LETTERS, (received_before, most)).rowcount

    def publish_again(self, seq: int) -> bool:
        """Put a settled update at the end of what is pending; whether it is still known.

        It goes out like a new one with its old `event_id`: a click that is too old by now is recorded, not fired.
        Its other dead letters name place 0 from then on: all of it is published, so they have nothing left to try.
        """
        with self._in_turn() as db:
            place = first(db.execute(sql.NEXT_PLACE))
            return bool(first(db.execute(sql.PUBLISH_AGAIN, {"seq": seq, "place": place})))

    # --- the page ----------------------------------------------------------------------------------------------

    def latest(self) -> tuple[float | None, float | None]:
        """When the newest update, and the newest click, was received (epoch seconds); None: there is none."""
        with self._reading() as db:
            return first(db.execute(sql.LATEST_UPDATE)), first(db.execute(sql.LATEST_CLICK))

    def try_to_store(self) -> None:
        """Store something as large as a callback and take it back, durable like one.

        Raises:
            NotStoredError: Callbacks cannot be stored just now either; it says why.
        """
        with self._storing() as db:
            self._check_room(db)
            db.execute(sql.NOTE_FACT, ("tried", base64.b64encode(uuid.uuid4().bytes * (A_CALLBACK // 22)).decode()))
            db.execute(sql.NOTE_FACT, ("tried", ""))

    @property
    def turn(self) -> contextlib.AbstractContextManager[None]:
        """Nobody waits: each thread has a connection of its own."""
        return contextlib.nullcontext()

    def newest(self, limit: int, *, after: int = 0) -> list[Kept]:
        """The newest updates with a place after this one, newest first."""
        with self._reading() as db:
            return list(_kept(db.execute(sql.NEWEST_KEPT, (after, limit))))

    def update(self, seq: int) -> Kept | None:
        """The update at a place."""
        with self._reading() as db:
            return next(_kept(db.execute(sql.KEPT_AT, (seq,))), None)

    def search(
        self,
        text: str,
        fits: Callable[[Kept], bool],
        *,
        limit: int,
        before: int | None = None,
        patience: float = SEARCHING,
    ) -> Found:
        """Updates whose JSON holds a text, newest first; see `Browsable.search`."""
        written = orjson.dumps(text).decode()[1:-1]

        def between(start: int, before: int) -> list[Kept]:
            with self._reading() as db:
                return list(_kept(db.execute(sql.HOLDING, (start, before, written))))

        with self._reading() as db:
            first, last = db.execute(sql.SPAN).fetchone() or (0, 0)
        return search_backwards((first, last), between, fits, limit=limit, before=before, patience=patience)

    def clicked(self, limit: int) -> list[Kept]:
        """The latest click on each button that the ledger knows, newest first."""
        with self._reading() as db:
            return list(_kept(db.execute(sql.CLICKED, (limit,))))

    def holder(self, topic: str) -> int | None:
        """The place of the update that a retained topic carries, or carried last."""
        with self._reading() as db:
            found = first(db.execute(sql.HOLDER, (topic,)))
            return int(found) if found is not None else None

    def per_minute(self, since: float, after: int) -> tuple[dict[tuple[int, str], int], int, bool]:
        """How many updates of each kind were received in each minute; see `Browsable.per_minute`."""
        with self._reading() as db:
            _, newest = db.execute(sql.SPAN).fetchone() or (0, 0)
            start = max(after, newest - COUNTED)
            rows = db.execute(sql.PER_MINUTE, (start, newest, since))
            return {(minute, kind): count for minute, kind, count in rows}, newest, start == after

    def letters(self, limit: int, *, before: int | None = None) -> list[Letter]:
        """Dead letters with a number below this one, newest first."""
        with self._reading() as db:
            return [Letter(*row) for row in db.execute(sql.LETTERS, {"before": before, "limit": limit})]

    def oldest_letters(self, after: int, upto: int, limit: int) -> list[int]:
        """Numbers of dead letters after one and up to another, oldest first."""
        return self._column(sql.OLDEST_LETTERS, after, upto, limit)

    def count_letters(self) -> tuple[int, int]:
        """How many dead letters there are, and the number of the newest."""
        with self._reading() as db:
            count, newest = db.execute(sql.COUNT_LETTERS).fetchone() or (0, 0)
            return count, newest

    # --- forgetting --------------------------------------------------------------------------------------------

    def each_update(self) -> Iterator[tuple[int, str, str, str]]:
        """Place, topic, topic of the event, and JSON of every update."""
        after = 0
        while rows := self._rows(sql.EACH_UPDATE, after):
            yield from rows
            after = rows[-1][0]

    def each_letter(self) -> Iterator[tuple[int, str, bytes]]:
        """Number, reason and body of every dead letter."""
        after = 0
        while rows := self._rows(sql.EACH_LETTER, after):
            yield from rows
            after = rows[-1][0]

    def each_topic(self) -> Iterator[tuple[str, int]]:
        """Every topic of the ledger, whatever became of it, and the place of the update that it carries or carried."""
        after = ""
        while rows := self._rows(sql.EACH_TOPIC, after):
            yield from rows
            after = rows[-1][0]

    def _rows(self, statement: str, *arguments: object) -> list[Any]:
        with self._reading() as db:
            return db.execute(statement.encode(), arguments).fetchall()

    def withhold(self, topics: Sequence[str]) -> None:
        """Have these topics of the ledger neither restored nor taken for standing from now on."""
        with self._in_turn() as db:
            db.execute(sql.WITHHOLD, (list(topics),))

    def erase(self, traces: Traces) -> None:
        """Delete these, in one transaction."""
        with self._in_turn() as db:
            db.execute(sql.ERASE_UPDATES, (list(traces.updates),))
            db.execute(sql.ERASE_LETTERS, (list(traces.letters),))
            db.execute(sql.ERASE_TOPICS, (list(traces.topics),))
            db.execute(sql.DROP_DISCOVERIES, (list(traces.discoveries),))
            for kind, key in traces.learned:
                db.execute(sql.ERASE_LEARNED, (kind, key.encode()))
            if traces.failure:
                db.execute(sql.ERASE_FAILURE)

    def scrub(self) -> None:
        """Write the tables anew; the server's write-ahead log, its archive and its backups are the server's own."""
        with self._storing() as db:
            for table in ("updates", "ledger", "dead_letters", "learned", "discoveries", "facts"):
                db.execute(f"VACUUM FULL {table}".encode())

    # --- below -----------------------------------------------------------------------------------------------

    def _one(self, statement: str, *arguments: object) -> Any:
        with self._reading() as db:
            return first(db.execute(statement.encode(), arguments))

    def _column(self, statement: str, *arguments: object) -> list[Any]:
        with self._reading() as db:
            return [value for (value,) in db.execute(statement.encode(), arguments)]

    @contextlib.contextmanager
    def _in_turn(self) -> Iterator[psycopg.Connection[Any]]:
        """One transaction that is the only one to give places and to change what the ledger holds."""
        with self._storing() as db, db.transaction():
            db.execute(sql.TAKE_TURN)
            yield db

    @contextlib.contextmanager
    def _storing(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection; whatever the server says becomes an error of ours, and nothing is stored."""
        try:
            with self._connection() as db:
                yield db
        except errors.LockNotAvailable as error:
            raise BusyError(f"journal {self._database}: {words(error)}") from error
        except psycopg.Error as error:
            raise self._translated(error) or NotStoredError(f"journal {self._database}: {words(error)}") from error

    @contextlib.contextmanager
    def _reading(self) -> Iterator[psycopg.Connection[Any]]:
        try:
            with self._connection() as db:
                yield db
        except psycopg.Error as error:
            raise self._translated(error) or JournalError(f"journal {self._database}: {words(error)}") from error

    @contextlib.contextmanager
    def _connection(self) -> Iterator[psycopg.Connection[Any]]:
        assert self._pool is not None, "the journal is used before it is opened"  # noqa: S101  (a caller's mistake)
        with self._pool.connection() as db:
            self._why = ""
            try:
                yield db
            except errors.ReadOnlySqlTransaction:
                db.close()  # the next one may lead to the server that takes writes by now
                raise

    def _translated(self, error: psycopg.Error) -> UnreachableError | None:
        """An error that means that the database is away; None: it is another one."""
        if isinstance(error, PoolTimeout):
            return UnreachableError(self._why or f"journal {self._database}: cannot be reached; is it running?")
        if is_away(error):
            return UnreachableError(f"journal {self._database}: {words(error)}")
        return None


class Presence:
    """No bridge runs on a journal while this is open; opened and closed by `with`, for commands.

    Args:
        database: Where the journal is.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._db: psycopg.Connection[Any] | None = None

    def __enter__(self) -> Self:
        """Be alone.

        Raises:
            JournalError: A bridge is there, or the database cannot be reached.
        """
        db = connect(self._database)
        try:
            look(db, self._database)
            self._be_alone(db)
        except BaseException:
            db.close()
            raise
        self._db = db
        return self

    def __exit__(self, *_: object) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _be_alone(self, db: psycopg.Connection[Any]) -> None:
        if not first(db.execute(sql.PRESENT)):
            raise JournalError(f"journal.url: a bridge uses {self._database}; stop it (and all others that do)")


# --- connections -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def connected(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """A connection of one's own.

    Raises:
        UnreachableError: There is none.
    """
    db = connect(database)
    try:
        yield db
    except psycopg.Error as error:
        if is_away(error):
            raise UnreachableError(f"journal {database}: {words(error)}") from error
        raise
    finally:
        db.close()


def connect(database: Database) -> psycopg.Connection[Any]:
    """A connection, for whoever closes it.

    Raises:
        UnreachableError: There is none.
    """
    try:
        return psycopg.connect(database.url, **_parameters(database))
    except psycopg.Error as error:
        raise UnreachableError(f"journal {database}: {words(error)}") from error


def _parameters(database: Database) -> dict[str, Any]:
    """What a connection is made with, beside what the URL says."""
    found: dict[str, Any] = {
        "autocommit": True,
        "connect_timeout": CONNECT_TIMEOUT,
        "tcp_user_timeout": TCP_PATIENCE,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "fallback_application_name": "whatsapp2mqtt",
    }
    if database.password is not None:
        found["password"] = database.password
    return found


def look(db: psycopg.Connection[Any], database: Database) -> None:
    """Configure a new connection, and look whether its server keeps what promise 1 says.

    Raises:
        JournalError: It does not; the message says what to change.
    """
    db.execute(sql.CONFIGURE, {"schema": f'"{database.schema}"'})
    commit, fsync, encoding, version, name, standby = next(db.execute(sql.LOOK))
    trouble = ""
    if version < OLDEST_SERVER:
        trouble = f"PostgreSQL {version // 10_000} is too old; 14 or newer is needed"
    elif encoding != "UTF8":
        trouble = f"has the encoding {encoding}, which does not hold every text; make one with ENCODING 'UTF8'"
    elif fsync != "on":
        trouble = (
            "fsync is off, so that what was answered 200 is lost with the power; "
            "say fsync = on in postgresql.conf, and restart the server"
        )
    elif commit not in ("on", "remote_apply"):
        trouble = (
            f"synchronous_commit is {commit}, so that what was answered 200 can be lost; "
            f'say ALTER DATABASE "{name}" SET synchronous_commit = on, and look at the role\'s own settings'
        )
    if trouble:
        raise JournalError(f"journal {database}: {trouble}")
    if standby:
        raise UnreachableError(
            f"journal {database}: this server is a standby, which takes no writes; "
            "name all servers in journal.url and add target_session_attrs=read-write"
        )


def schema_version(db: psycopg.Connection[Any], database: Database) -> int:
    """Of the journal's schema; 0: there is none.

    Raises:
        JournalError: A schema of this name is another program's, or a journal is still being moved into it.
    """
    version, is_whole = schema_state(db, database)
    if not is_whole:
        raise JournalError(
            f"journal {database}: a journal was not moved into it to the end; run `whatsapp2mqtt migrate-journal` "
            "again, it goes on where it stopped"
        )
    return version


def schema_state(db: psycopg.Connection[Any], database: Database) -> tuple[int, bool]:
    """The version of the journal's schema (0: there is none), and whether all is in it that is to be moved into it.

    Raises:
        JournalError: A schema of this name is another program's.
    """
    if not first(db.execute(sql.SCHEMA_EXISTS, (database.schema,))):
        return 0, True
    said = str(first(db.execute(sql.SCHEMA_VERSION, (database.schema,))) or "")
    program, _, rest = said.partition(" ")
    version, _, state = rest.partition(" ")
    if program != "whatsapp2mqtt" or not version.isdecimal() or state not in ("", UNFINISHED):
        raise JournalError(
            f"journal {database}: the schema {database.schema} there is not the bridge's; "
            "set journal.url to a database of its own"
        )
    return int(version), not state


def bring_up(db: psycopg.Connection[Any], database: Database, version: int) -> None:
    """Make the schema, or bring it from a version to this one, within a transaction.

    Raises:
        JournalError: A newer version of the bridge made it.
    """
    if version > len(sql.MIGRATIONS):
        raise JournalError(
            f"journal {database}: was written by a newer version (schema {version}, this one knows "
            f"{len(sql.MIGRATIONS)}); install that version again, or bring back what pg_dump saved before the upgrade "
            "(docs/postgresql.md), or set journal.url to another database"
        )
    if version == len(sql.MIGRATIONS):
        return
    if version:
        # Unlike a file, a database is not copied: how large it is, and where there is room, its owner knows.
        log.info(
            "the journal's schema is brought to this version; the way back is what pg_dump saved before",
            journal=str(database),
            schema=version,
            now=len(sql.MIGRATIONS),
        )
    else:
        db.execute(f'CREATE SCHEMA "{database.schema}"'.encode())
    for script in sql.MIGRATIONS[version:]:
        db.execute(script.encode())
    note_version(db, database)


def note_version(db: psycopg.Connection[Any], database: Database, state: str = "") -> None:
    """Note that the schema is of this version, and in which state."""
    said = f"whatsapp2mqtt {len(sql.MIGRATIONS)} {state}".rstrip()
    db.execute(f"COMMENT ON SCHEMA \"{database.schema}\" IS '{said}'".encode())


def check_version(version: int, database: Database) -> None:
    """Raise JournalError for a schema that is not this version's."""
    if version != len(sql.MIGRATIONS):
        remedy = "start the bridge" if version < len(sql.MIGRATIONS) else "bring this bridge to the same version"
        raise JournalError(f"journal {database}: has schema {version} instead of {len(sql.MIGRATIONS)}; {remedy}")


def _boot(db: psycopg.Connection[Any]) -> int:
    """The number of this boot of this machine."""
    # Where the kernel does not say, no boot is like another.
    boot = boot_id()
    here = (socket.gethostname(), boot) if boot else (uuid.uuid4().hex, "")
    found = first(db.execute(sql.BOOT, here))
    if found is None:
        db.execute(sql.NEW_BOOT, here)
        found = first(db.execute(sql.BOOT, here))
    return int(found)


def _check(db: psycopg.Connection[Any]) -> None:
    """Raise for a connection that the server has ended: no answer is due, so only its end can be read."""
    poller = select.poll()
    poller.register(db.fileno(), select.POLLIN)
    if poller.poll(0):
        db.close()
        raise psycopg.OperationalError("the server has ended the connection")


# --- rows and words ----------------------------------------------------------------------------------------------


class Json(psycopg.types.json.Json):
    """JSON that is text already."""

    def __init__(self, text: bytes) -> None:
        super().__init__(text, dumps=bytes)


def partition_of(topic: str) -> int:
    """The partition of a retained topic: 0 for buttons and `last/*`, and by their hash the others for statuses.

    So what shares a topic shares a partition, and all clicks, with the discovery that they may have to wait for, are
    published by one replica.
    """
    if topic.startswith(("button/", "last/")):
        return 0
    return 1 + zlib.crc32(topic.encode()) % (sql.PARTITIONS - 1)


def _row(entry: Entry) -> dict[str, object]:
    topic = entry.topic
    return {
        "p": partition_of(topic),
        "k": entry.kind,
        "e": entry.event_id,
        "r": entry.rank,
        "s": entry.timestamp,
        "t": entry.received,
        "o": topic,
        "v": entry.event_topic,
        "d": entry.document,
    }


def dead_rows(dead: Sequence[DeadLetter]) -> bytes:
    """Dead letters as `append` and `SETTLE` take them; no text may hold a NUL there."""
    rows: list[Mapping[str, object]] = [
        {
            "t": letter.received,
            "s": letter.source,
            "r": letter.reason.replace("\0", "\N{SYMBOL FOR NULL}"),
            "q": letter.seq,
            "b": base64.b64encode(letter.body).decode(),
        }
        for letter in dead
    ]
    return orjson.dumps(rows)


def stored_rows(rows: Iterable[tuple[Any, ...]]) -> list[Stored]:
    """Rows of `PENDING`."""
    return [
        Stored(seq, event_id.hex, Kind(kind), topic, event, advances, timestamp, received, up, late, document)
        for seq, event_id, kind, topic, event, advances, timestamp, received, up, late, document in rows
    ]


def retained_rows(rows: Iterable[tuple[Any, ...]]) -> list[Retained]:
    """Rows of `RETAINED`."""
    return [
        Retained(topic, seq, event_id.hex, Kind(kind), late, document)
        for topic, seq, event_id, kind, late, document in rows
    ]


def _kept(rows: Iterable[tuple[Any, ...]]) -> Iterator[Kept]:
    for seq, event_id, kind, topic, event_topic, advances, late, received, stored, document in rows:
        # Of two clocks that do not agree, one cannot tell how long it took.
        told = stored if -1.0 < stored - received < PLAUSIBLE else None
        moment = None if told is None else max(told, received)
        yield Kept(seq, event_id.hex, Kind(kind), topic, event_topic, advances, late, received, moment, document)


def first(cursor: psycopg.Cursor[Any]) -> Any:
    """The first column of the first row; None if there is no row."""
    row = cursor.fetchone()
    return row[0] if row else None


def _usage(db: psycopg.Connection[Any]) -> Usage:
    size, used = db.execute(sql.USAGE).fetchone() or (0, 0)
    return Usage(size, min(size, used), 0)


def is_away(error: Exception) -> bool:
    """Whether an error means that the server is not there, or not the one that takes writes, for now."""
    if isinstance(error, (psycopg.InterfaceError, errors.ReadOnlySqlTransaction)):
        return True
    # Without a code of the server's, it is the connection that broke.
    return isinstance(error, psycopg.OperationalError) and (
        error.sqlstate is None or error.sqlstate.startswith(("57P", "08"))
    )


def words(error: psycopg.Error) -> str:
    """What the server says, in one line, and what to do about it."""
    hints: tuple[tuple[type[psycopg.Error], str], ...] = (
        (errors.DiskFull, "the database's disk is full; make room"),
        (errors.LockNotAvailable, "another one holds it; is a database tool or a migration at work?"),
        (errors.InsufficientPrivilege, "the role may not do this; make it the owner of the database"),
        (errors.UndefinedTable, "its tables are missing; start the bridge, it makes them"),
        (errors.TooManyConnections, "the server takes no more connections; raise max_connections"),
    )
    said = " ".join(str(error).split()) or type(error).__name__
    hint = next((found for kind, found in hints if isinstance(error, kind)), "")
    if not hint and is_away(error):
        hint = "the database cannot be reached; is it running, and are host, user and password right?"
    return f"{hint} ({said})" if hint else said
