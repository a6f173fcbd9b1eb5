"""The journal in one SQLite file, write-ahead log on, shared by the receiver processes and the main process.

Promises kept here (numbers as in docs/how-it-works.md):
  1. Stored before answered: a commit that returns has been fsynced (`synchronous=FULL`).
  3. Stored once: `updates.event_id` is unique.
  4. Never backwards: `ADVANCE` lets an update take a topic over only if it outranks the one that holds it, in the
     transaction that stores it.

apsw brings its own SQLite. Before 3.51.3, two connections that write or checkpoint a write-ahead log at the same
moment can lose committed rows (the WAL-reset bug), and the SQLite of most distributions is older: it is refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import apsw
import orjson

from bridge.clock import Clock, boot_id, uptime
from bridge.journal import (
    BrokenStorageError,
    Buried,
    BusyError,
    Callback,
    DeadLetter,
    JournalError,
    Learned,
    NotStoredError,
    Outcome,
    Retained,
    Statistics,
    Stored,
    Tally,
    Traces,
    Usage,
)
from bridge.journal.shared import FULL, Reckoning, outcomes, tally_of
from bridge.model import Kind

OLDEST_SQLITE = (3, 51, 3)

#: "w2mq" in the file's header: a database that is not ours is not touched.
APPLICATION_ID = 0x77326D71

#: Bytes to which the write-ahead log is cut back once a checkpoint has emptied it.
WAL_LIMIT = 16 * 2**20

#: Bytes on the disk that receivers leave alone: what settling and pruning need while the disk is full.
RESERVE = 2 * 2**20

#: Pages in the write-ahead log after which whoever writes brings it into the file.
WAL_PAGES = 4_000

#: Rows that are read at once by who reads all of them.
SLICE = 1_000

#: How long a writer waits for another one, in milliseconds.
BUSY_TIMEOUT = 5_000

#: The fact that says to which database the journal was moved.
MOVED = "moved"

# Each script brings the schema from the version of its place (0: an empty file) to the next.
MIGRATIONS = (
    """
    -- Everything accepted, in the order of acceptance. AUTOINCREMENT: a place is never given twice, also when
    -- everything was pruned, as checkpoints on the broker name places.
    CREATE TABLE updates (
        seq         INTEGER PRIMARY KEY AUTOINCREMENT,
        event_id    BLOB NOT NULL UNIQUE,           -- 16 bytes
        kind        TEXT NOT NULL,                  -- status, button
        topic       TEXT NOT NULL,                  -- retained, below the base topic
        event_topic TEXT NOT NULL,                  -- not retained, below the base topic
        rank        INTEGER NOT NULL,
        timestamp   INTEGER,                        -- epoch seconds, as the callback says
        received    REAL NOT NULL,                  -- epoch seconds
        uptime      REAL NOT NULL,                  -- seconds since boot
        advances    INTEGER NOT NULL DEFAULT 1,     -- took the topic over when it was stored
        late        INTEGER NOT NULL DEFAULT 0,     -- a click too old to fire
        document    TEXT NOT NULL                   -- the JSON that is published
    ) STRICT;

    -- Every retained topic that stands on the broker or is about to, and the order of what holds it.
    CREATE TABLE ledger (
        topic TEXT PRIMARY KEY,
        kind  TEXT NOT NULL,
        rank  INTEGER NOT NULL,
        stamp REAL NOT NULL,
        tie   BLOB NOT NULL,
        seq   INTEGER NOT NULL,
        state INTEGER NOT NULL,     -- 0 stands, 1 to be cleared, 2 cleared, 3 is never retained
        gone  INTEGER               -- what was settled when it was cleared
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX ledger_standing ON ledger (seq, topic) WHERE state = 0;
    CREATE INDEX ledger_clearing ON ledger (seq) WHERE state = 1;
    CREATE INDEX ledger_gone ON ledger (gone) WHERE state >= 2;

    -- Which place was the newest at which time. The time is the journal's own: it counts what passed, whatever the
    -- wall clock did meanwhile, so nothing expires early.
    CREATE TABLE ticks (elapsed REAL PRIMARY KEY, seq INTEGER NOT NULL) STRICT, WITHOUT ROWID;

    CREATE TABLE dead_letters (
        id       INTEGER PRIMARY KEY AUTOINCREMENT,
        received REAL NOT NULL,
        source   TEXT NOT NULL,                     -- callback, item, publication
        reason   TEXT NOT NULL,
        seq      INTEGER,                           -- of the update, for a publication
        body     BLOB NOT NULL
    ) STRICT;

    -- What Home Assistant was told by itself: buttons and business phones that callbacks named.
    CREATE TABLE learned (
        kind  TEXT NOT NULL,                        -- button, phone
        key   TEXT NOT NULL,                        -- payload, number
        name  TEXT NOT NULL,                        -- told apart from the others, and the same for good
        first INTEGER NOT NULL,                     -- places: the callback that named it first,
        last  INTEGER NOT NULL,                     -- and last
        told  INTEGER NOT NULL DEFAULT 0,           -- the broker has acknowledged its discovery
        PRIMARY KEY (kind, key)
    ) STRICT, WITHOUT ROWID;

    -- Every discovery topic that was ever put on a broker and is not known to have been taken away.
    CREATE TABLE discoveries (topic TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;

    CREATE TABLE facts (name TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID;
    INSERT INTO facts VALUES
        ('journal', lower(hex(randomblob(8)))),     -- tells this journal from one that replaced it
        ('settled', 0),
        ('boot', ''),
        ('boot_first', 1),                          -- the first place of this boot
        ('clean', 1),                               -- closed in order
        ('elapsed', 0.0),                           -- the journal's own time at the last tick, in seconds,
        ('tick_boot', ''), ('tick_uptime', 0.0), ('tick_wall', 0.0);  -- and the clocks then
    """,
)

_APPEND = """
INSERT OR IGNORE INTO updates (event_id, kind, topic, event_topic, rank, timestamp, received, uptime, document)
SELECT unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, ?2, value ->> 7
FROM json_each(?1)
"""

# Statuses: rank, then the callback's timestamp, then the identity, so that no order of arrival makes a difference.
# Clicks rank alike: the later one wins, and one that claims to come from the future counts as received now. But one
# that says that it is later than the holder is so, though it was received before it: our clock was set back since.
# What is never retained has its place in the ledger too, as its rank counts for the next one.
ADVANCE = """
INSERT INTO ledger (topic, kind, rank, stamp, tie, seq, state, gone)
SELECT topic, kind, rank,
       CASE kind WHEN 'button' THEN min(coalesce(timestamp, received), received) ELSE coalesce(timestamp, -1) END,
       CASE kind WHEN 'button' THEN x'' ELSE event_id END,
       seq,
       iif(instr(?2, kind), 3, 0),
       iif(instr(?2, kind), seq, NULL)
FROM updates WHERE seq > ?1 ORDER BY seq
ON CONFLICT (topic) DO UPDATE
SET rank = excluded.rank, tie = excluded.tie, seq = excluded.seq, gone = excluded.gone,
    stamp = iif(excluded.kind = 'button', max(excluded.stamp, ledger.stamp), excluded.stamp),
    state = CASE WHEN excluded.state = 0 THEN 0 WHEN ledger.state >= 2 THEN ledger.state ELSE 1 END
WHERE (excluded.rank, excluded.stamp, excluded.tie) >= (ledger.rank, ledger.stamp, ledger.tie)
   OR (excluded.kind = 'button' AND (SELECT timestamp FROM updates WHERE seq = excluded.seq) >= ledger.stamp)
RETURNING seq
"""

_STAYED = """
UPDATE updates SET advances = 0 WHERE seq > ? AND seq NOT IN (SELECT value FROM json_each(?))
"""

LATEST_OF_ALL = """
INSERT INTO ledger (topic, kind, rank, stamp, tie, seq, state, gone)
SELECT 'last/' || kind, kind, 0, 0, x'', max(seq), iif(instr(?2, kind), 3, 0), iif(instr(?2, kind), max(seq), NULL)
FROM updates WHERE seq > ?1 GROUP BY kind
ON CONFLICT (topic) DO UPDATE
SET seq = excluded.seq, gone = excluded.gone,
    state = CASE WHEN excluded.state = 0 THEN 0 WHEN ledger.state >= 2 THEN ledger.state ELSE 1 END
"""

_PENDING = """
SELECT seq, lower(hex(event_id)), kind, topic, event_topic, advances, timestamp, received,
       CASE WHEN seq >= (SELECT value FROM facts WHERE name = 'boot_first') THEN uptime END,
       late, document
FROM updates WHERE seq > ? ORDER BY seq LIMIT ?
"""

_KINDS = {str(kind): kind for kind in Kind}

_NEWEST = "SELECT coalesce(max(seq), 0) FROM updates"

_RETAINED = """
SELECT ledger.topic, ledger.seq, lower(hex(updates.event_id)), ledger.kind, updates.late, updates.document
FROM ledger JOIN updates ON updates.seq = ledger.seq
WHERE ledger.state = 0 AND (ledger.seq, ledger.topic) > (?, ?) AND ledger.seq <= ?
ORDER BY ledger.seq, ledger.topic LIMIT ?
"""


class SqliteJournal:
    """A connection to the journal's file; opened and closed by `with`, used by one thread at a time.

    Args:
        path: The file; `create` makes it.
        durable: Fsync each commit. The publisher's own notes need not be: losing them only publishes again.
        never_retained: Kinds whose topics are published without being retained.
        max_size: Bytes; appending is refused (`NotStoredError`) before the file grows beyond. None: the disk decides.
    """

    def __init__(
        self,
        path: Path,
        *,
        durable: bool = True,
        never_retained: frozenset[Kind] = frozenset(),
        max_size: int | None = None,
    ) -> None:
        self._path = path
        self._durable = durable
        self._never_retained = " ".join(sorted(never_retained))
        self._max_size = max_size
        self._db: apsw.Connection | None = None
        self._wal_pages = 0

    # --- opening ---------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Make the file if there is none, and bring its schema to this version. Called once, before others open it.

        Raises:
            JournalError: The file is not ours, is newer than this version, or cannot be written.
        """
        check_sqlite()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._connection(apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE) as db:
                self._path.chmod(0o600)  # it holds phone numbers
                self._migrate(db)
                self._check_here(db)
                self._note_boot(db)
        except OSError as error:
            raise JournalError(
                f"journal {self._path}: cannot be made: {error.strerror}; set journal.url to another place"
            ) from error
        except apsw.Error as error:
            raise JournalError(f"journal {self._path}: {_words(error)}") from error

    def __enter__(self) -> Self:
        """Open the file.

        Raises:
            JournalError: There is none, or it has another version's schema.
        """
        check_sqlite()
        try:
            self._db = self._connect(apsw.SQLITE_OPEN_READWRITE)
            version = self._db.pragma("user_version")
            sync_folder(self._path.parent)
        except (apsw.Error, OSError) as error:
            self.__exit__()
            words = _words(error) if isinstance(error, apsw.Error) else f"the storage failed ({error.strerror})"
            raise JournalError(f"journal {self._path}: {words}") from error
        if version != len(MIGRATIONS):
            self.__exit__()
            self._refuse_newer(version)
            raise JournalError(
                f"journal {self._path}: has schema {version} instead of {len(MIGRATIONS)}; start the bridge"
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    @contextlib.contextmanager
    def _connection(self, flags: int) -> Iterator[apsw.Connection]:
        db = self._connect(flags)
        try:
            yield db
        finally:
            db.close()

    def _connect(self, flags: int) -> apsw.Connection:
        db = apsw.Connection(str(self._path), flags=flags)
        db.set_busy_timeout(BUSY_TIMEOUT)
        try:
            self._check_ours(db)
        except BaseException:
            db.close()
            raise
        db.pragma("journal_mode", "wal")
        db.pragma("synchronous", "full" if self._durable else "normal")
        db.pragma("journal_size_limit", WAL_LIMIT)
        # In place of SQLite's own checkpoints, which keep silent about an fsync that failed.
        db.set_wal_hook(self._note_wal)
        if self._max_size is not None:
            db.pragma("max_page_count", max(1, self._max_size // db.pragma("page_size")))
        return db

    def _check_ours(self, db: apsw.Connection) -> None:
        """Raise JournalError for a database of another program, before anything of it is touched."""
        if db.pragma("application_id") == APPLICATION_ID:
            return
        if db.pragma("user_version") or db.execute("SELECT count(*) FROM sqlite_schema").get:
            raise JournalError(
                f"journal {self._path}: is a database of another program; set journal.url to a file of its own"
            )

    def _migrate(self, db: apsw.Connection) -> None:
        with _immediately(db):
            version = db.pragma("user_version")
            self._refuse_newer(version)
            for script in MIGRATIONS[version:]:
                db.execute(script)
            db.pragma("application_id", APPLICATION_ID)
            db.pragma("user_version", len(MIGRATIONS))

    def _refuse_newer(self, version: int) -> None:
        if version > len(MIGRATIONS):
            raise JournalError(
                f"journal {self._path}: was written by a newer version (schema {version}, this one knows "
                f"{len(MIGRATIONS)}); {self._way_back()}"
            )

    def _way_back(self) -> str:
        kept = old_version(self._path, len(MIGRATIONS))
        if not kept.exists():
            return "install that version again, or set journal.url to a new file"
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(kept.stat().st_mtime))
        return (
            f"install that version again, or go back to the journal as it was on {since}, without what came since: "
            f"`whatsapp2mqtt restore {shlex.quote(str(kept))}`"
        )

    def _check_here(self, db: apsw.Connection) -> None:
        """Raise JournalError for what goes on elsewhere: from here, its updates would be told a second time."""
        moved = db.execute("SELECT value FROM facts WHERE name = ?", (MOVED,)).get
        if moved is not None:
            raise JournalError(
                f"journal {self._path}: was moved to {moved}; set journal.url to that, or go back to the journal as it "
                f"was then, without what came since: `whatsapp2mqtt restore {shlex.quote(str(self._path))}`"
            )

    def _note_boot(self, db: apsw.Connection) -> None:
        """Remember where this boot begins (seconds since boot mean nothing across boots), and that it is in use."""
        boot = boot_id()
        with _immediately(db):
            db.execute("UPDATE facts SET value = 0 WHERE name = 'clean'")
            if db.execute("SELECT value FROM facts WHERE name = 'boot'").get != boot or not boot:
                db.execute("UPDATE facts SET value = ? WHERE name = 'boot'", (boot,))
                db.execute(
                    "UPDATE facts SET value = (SELECT coalesce(max(seq), 0) + 1 FROM updates) WHERE name = 'boot_first'"
                )

    # --- the receivers' side ---------------------------------------------------------------------------------

    def append(self, callbacks: Sequence[Callback]) -> list[Outcome]:
        """Store the updates and dead letters of all callbacks in one commit; they are on disk when this returns."""
        entries = [entry for callback in callbacks for entry in callback.entries]
        dead = [letter for callback in callbacks for letter in callback.dead]
        rows = orjson.dumps(
            [(e.event_id, e.kind, e.topic, e.event_topic, e.rank, e.timestamp, e.received, e.document) for e in entries]
        ).decode()
        known: set[str] | None = None
        self._check_room()
        with self._storing() as db:
            if entries:
                before = db.execute("SELECT coalesce(max(seq), 0) FROM updates").get
                db.execute(_APPEND, (rows, uptime()))
                inserted = db.changes()
                if inserted:
                    advancing = [seq for (seq,) in db.execute(ADVANCE, (before, self._never_retained))]
                    if len(advancing) < inserted:
                        db.execute(_STAYED, (before, orjson.dumps(advancing).decode()))
                    db.execute(LATEST_OF_ALL, (before, self._never_retained))
                if inserted < len(entries):
                    fresh = db.execute("SELECT lower(hex(event_id)) FROM updates WHERE seq > ?", (before,))
                    known = {event_id for (event_id,) in fresh}
            _bury(db, dead)
        return outcomes(callbacks, known)

    # --- the publisher's side --------------------------------------------------------------------------------

    def pending(self, after: int, limit: int) -> list[Stored]:
        """Updates with a place after this one, in order."""
        with self._reading() as db:
            return [_stored(row) for row in db.execute(_PENDING, (after, limit))]

    def settled(self) -> int:
        """Everything up to this place was acknowledged by the broker or became a dead letter."""
        return int(self._fact("settled"))

    def settle(
        self, upto: int, *, late: Sequence[int] = (), dead: Sequence[DeadLetter] = (), wait: bool = True
    ) -> None:
        """Note that everything up to this place is done with."""
        with self._storing(wait=wait) as db:
            db.execute("UPDATE facts SET value = ? WHERE name = 'settled' AND value < ?1", (upto,))
            if late:
                db.execute(
                    "UPDATE updates SET late = 1 WHERE seq IN (SELECT value FROM json_each(?))",
                    (orjson.dumps(list(late)).decode(),),
                )
            _bury(db, dead)

    def identity(self) -> str:
        """Tells this journal from another that took its place."""
        return str(self._fact("journal"))

    def retained(self, after: tuple[int, str], upto: int, limit: int) -> list[Retained]:
        """Topics of the ledger in the order of (place, topic), after this one and up to this place."""
        with self._reading() as db:
            return [
                Retained(topic, seq, event_id, Kind(kind), bool(late), document)
                for topic, seq, event_id, kind, late, document in db.execute(_RETAINED, (*after, upto, limit))
            ]

    def place_before(self, moment: float) -> int:
        """The place behind which everything stands that was received from a moment on, in epoch seconds."""
        with self._reading() as db:
            first = db.execute("SELECT min(seq) FROM updates WHERE received >= ?", (moment,)).get
            return int(first) - 1 if first is not None else int(db.execute(_NEWEST).get)

    def backlog(self) -> int:
        """How many updates wait to be settled, at most (places that were skipped count)."""
        with self._reading() as db:
            newest = db.execute(_NEWEST).get
        return max(0, int(newest) - self.settled())

    # --- what stands on the broker, and for how long ---------------------------------------------------------

    def clearing(self, limit: int) -> list[str]:
        """Topics of the ledger that are to be taken off the broker, those that stood longest first."""
        with self._reading() as db:
            rows = db.execute("SELECT topic FROM ledger WHERE state = 1 ORDER BY seq LIMIT ?", (limit,))
            return [topic for (topic,) in rows]

    def cleared(self, topics: Sequence[str]) -> None:
        """Note that these were taken off the broker; one that an update took over meanwhile stands."""
        with self._storing() as db:
            db.execute(
                "UPDATE ledger SET state = 2, gone = (SELECT value FROM facts WHERE name = 'settled') "
                "WHERE state = 1 AND topic IN (SELECT value FROM json_each(?))",
                (orjson.dumps(list(topics)).decode(),),
            )

    def clear_again(self, checkpoint: int) -> int:
        """Have topics cleared once more that the broker may have forgotten to have cleared; how many."""
        with self._storing() as db:
            db.execute("UPDATE ledger SET state = 1 WHERE state = 2 AND gone >= ?", (checkpoint,))
            return db.changes()

    def tick(self, clock: Clock) -> float:
        """Advance the journal's own time, and remember which place is the newest now; the time in seconds.

        It counts the seconds since boot, which no clock change moves; across a restart of the machine the wall
        clock's, if that can be believed.
        """
        with self._storing() as db:
            facts = dict(db.execute("SELECT name, value FROM facts"))
            before = Reckoning(facts["elapsed"], facts["tick_boot"], facts["tick_uptime"], facts["tick_wall"])
            now = before.advanced(clock, boot_id())
            for name, value in (
                ("elapsed", now.elapsed),
                ("tick_boot", now.boot),
                ("tick_uptime", now.uptime),
                ("tick_wall", now.wall),
            ):
                db.execute("UPDATE facts SET value = ? WHERE name = ?", (value, name))
            newest = db.execute("SELECT coalesce(max(seq), 0) FROM updates").get
            if newest != db.execute("SELECT seq FROM ticks ORDER BY elapsed DESC LIMIT 1").get:
                db.execute("INSERT OR REPLACE INTO ticks (elapsed, seq) VALUES (?, ?)", (now.elapsed, newest))
            return now.elapsed

    def stored_before(self, elapsed: float) -> int:
        """The newest place that was stored before this time of the journal's own."""
        with self._reading() as db:
            return int(db.execute("SELECT coalesce(max(seq), 0) FROM ticks WHERE elapsed <= ?", (elapsed,)).get)

    def expire(self, kind: Kind, upto: int, limit: int) -> int:
        """Mark standing topics of a kind for clearing whose update has a place up to this one; how many."""
        return self._clear(
            "SELECT topic FROM ledger WHERE state = 0 AND kind = ? AND seq <= min(?, %s) ORDER BY seq LIMIT ?",
            (kind, upto, limit),
        )

    def expire_surplus(self, most: int, limit: int) -> int:
        """Mark the oldest standing topics for clearing where more than `most` stand; how many."""
        with self._reading() as db:
            surplus = int(db.execute("SELECT count(*) FROM ledger WHERE state = 0").get) - most
        if surplus <= 0:
            return 0
        return self._clear(
            "SELECT topic FROM ledger WHERE state = 0 AND topic NOT GLOB 'last/*' AND seq <= %s ORDER BY seq LIMIT ?",
            (min(surplus, limit),),
        )

    def _clear(self, selection: str, bindings: tuple[Any, ...]) -> int:
        settled = "(SELECT value FROM facts WHERE name = 'settled')"
        with self._storing() as db:
            db.execute(f"UPDATE ledger SET state = 1 WHERE topic IN ({selection % settled})", bindings)  # noqa: S608
            return db.changes()

    # --- what Home Assistant was told --------------------------------------------------------------------------

    def learned(self) -> list[Learned]:
        """Buttons and business phones that callbacks have named, those named first first."""
        with self._reading() as db:
            rows = db.execute("SELECT kind, key, name, first, last, told FROM learned ORDER BY first, kind, key")
            return [Learned(kind, key, name, first, last, bool(told)) for kind, key, name, first, last, told in rows]

    def learn(self, learned: Sequence[Learned], forgotten: Sequence[Learned] = ()) -> None:
        """Note what was learned, or named again; and forget some."""
        with self._storing() as db:
            db.executemany(
                "INSERT INTO learned (kind, key, name, first, last, told) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (kind, key) DO UPDATE SET last = excluded.last, told = excluded.told",
                [(one.kind, one.key, one.name, one.first, one.last, int(one.told)) for one in learned],
            )
            db.executemany("DELETE FROM learned WHERE kind = ? AND key = ?", [(one.kind, one.key) for one in forgotten])

    def discoveries(self) -> set[str]:
        """Discovery topics that may stand on the broker."""
        with self._reading() as db:
            return {topic for (topic,) in db.execute("SELECT topic FROM discoveries")}

    def note_discoveries(self, *, put: Sequence[str] = (), taken: Sequence[str] = ()) -> None:
        """Note discovery topics that are about to be put on the broker, and those that were taken away."""
        with self._storing() as db:
            db.executemany("INSERT OR IGNORE INTO discoveries (topic) VALUES (?)", [(topic,) for topic in put])
            db.executemany("DELETE FROM discoveries WHERE topic = ?", [(topic,) for topic in taken])

    def last_failure(self) -> str | None:
        """The JSON of the last status that said `failed`, as the tally has it; None: none did."""
        kept = self._fact("tally")
        return None if kept is None else tally_of(kept).failed

    def tally(self, day: str) -> Tally:
        """Statuses by name since the journal was made, and on this day.

        Each is counted once, when it was stored; the numbers are kept when what they count is pruned.

        Args:
            day: Today, as the user's calendar has it.
        """
        with self._reading() as db:
            kept = db.execute("SELECT value FROM facts WHERE name = 'tally'").get
            before = tally_of(kept)
            newest = db.execute("SELECT coalesce(max(seq), 0) FROM updates").get
            if newest <= before.upto and before.day == day:
                return before
            rows = db.execute(
                "SELECT event_topic, count(*) FROM updates WHERE seq > ? AND seq <= ? AND kind = 'status' GROUP BY 1",
                (before.upto, newest),
            )
            counts = {topic.removeprefix("event/status/"): count for topic, count in rows}
            failed = db.execute(
                "SELECT document FROM updates WHERE seq > ? AND seq <= ? AND event_topic = 'event/status/failed' "
                "ORDER BY seq DESC LIMIT 1",
                (before.upto, newest),
            ).get
        after = before.counted(counts, day, max(newest, before.upto), failed)
        with self._storing() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES ('tally', ?)", (orjson.dumps(after).decode(),))
        return after

    # --- what stands on the broker at all ------------------------------------------------------------------------

    def standing(self) -> list[str]:
        """Topics of the ledger that stand on the broker, as far as is known."""
        with self._reading() as db:
            return [
                topic for (topic,) in db.execute("SELECT topic FROM ledger WHERE state IN (0, 1) ORDER BY seq, topic")
            ]

    def cleaned(self) -> None:
        """Note that nothing of it stands on the broker any more; what is not settled will be put there again."""
        with self._storing() as db:
            settled = "(SELECT value FROM facts WHERE name = 'settled')"
            db.execute(
                f"UPDATE ledger SET state = 2, gone = {settled} WHERE state IN (0, 1) AND seq <= {settled}"  # noqa: S608
            )
            db.execute("DELETE FROM discoveries")
            db.execute("UPDATE learned SET told = 0")

    # --- care --------------------------------------------------------------------------------------------------

    def prune(self, upto: int, limit: int) -> int:
        """Delete settled updates up to this place that no standing topic needs, a slice of them; how many."""
        is_free = "NOT EXISTS (SELECT 1 FROM ledger WHERE state = 0 AND ledger.seq = updates.seq)"
        # Looked for before the transaction: receivers need not wait while what stands is passed over.
        with self._reading() as db:
            settled = "(SELECT value FROM facts WHERE name = 'settled')"
            found = db.execute(
                f"SELECT seq FROM updates WHERE seq <= min(?, {settled}) AND {is_free} ORDER BY seq LIMIT ?",  # noqa: S608
                (upto, limit),
            )
            seqs = orjson.dumps([seq for (seq,) in found]).decode()
        with self._storing() as db:
            db.execute(f"DELETE FROM updates WHERE seq IN (SELECT value FROM json_each(?)) AND {is_free}", (seqs,))  # noqa: S608
            pruned = db.changes()
            db.execute(
                "DELETE FROM ledger WHERE topic IN (SELECT topic FROM ledger WHERE state >= 2 AND gone <= ? LIMIT ?)",
                (upto, limit),
            )
            return pruned

    def forget_ticks(self, before: float) -> None:
        """Delete ticks older than this, but for the newest of them."""
        with self._storing() as db:
            db.execute(
                "DELETE FROM ticks WHERE elapsed < (SELECT max(elapsed) FROM ticks WHERE elapsed <= ?)", (before,)
            )

    def usage(self) -> Usage:
        """How large the file and its write-ahead log are."""
        with self._reading() as db:
            page = db.pragma("page_size")
            pages, free = db.pragma("page_count"), db.pragma("freelist_count")
        wal = self._path.with_name(self._path.name + "-wal")
        try:
            wal_bytes = wal.stat().st_size
        except OSError:
            wal_bytes = 0
        return Usage(pages * page, (pages - free) * page, wal_bytes)

    def checkpoint(self) -> None:
        """Bring the write-ahead log into the file and cut it back, as far as no other connection is in the way."""
        with self._reading() as db:
            self._bring_in(db, apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def statistics(self, now: float) -> Statistics:
        """Counts for the health report.

        Args:
            now: Epoch seconds.
        """
        settled = self.settled()
        with self._reading() as db:
            oldest = db.execute("SELECT received FROM updates WHERE seq > ? ORDER BY seq LIMIT 1", (settled,)).get
            return Statistics(
                backlog=self.backlog(),
                oldest_age=max(0.0, now - oldest) if oldest is not None else 0.0,
                dead_letters=int(db.execute("SELECT count(*) FROM dead_letters").get),
                retained_topics=int(db.execute("SELECT count(*) FROM ledger WHERE state = 0").get),
            )

    def close_in_order(self) -> None:
        """Note that the bridge ends as it should: the next start need not look for damage."""
        with self._storing() as db:
            db.execute("UPDATE facts SET value = 1 WHERE name = 'clean'")

    # --- dead letters ------------------------------------------------------------------------------------------

    def dead_letters(self, *, limit: int = 1_000) -> list[Buried]:
        """The newest dead letters, newest first."""
        with self._reading() as db:
            return [
                Buried(*row)
                for row in db.execute(
                    "SELECT id, received, source, reason, seq, body FROM dead_letters ORDER BY id DESC LIMIT ?",
                    (limit,),
                )
            ]

    def dead_letter(self, number: int) -> Buried | None:
        """One of them."""
        with self._reading() as db:
            row = db.execute(
                "SELECT id, received, source, reason, seq, body FROM dead_letters WHERE id = ?", (number,)
            ).fetchone()
            return Buried(*row) if row else None

    def drop_dead_letter(self, number: int) -> bool:
        """Delete one; whether there was one."""
        with self._storing() as db:
            db.execute("DELETE FROM dead_letters WHERE id = ?", (number,))
            return db.changes() > 0

    def bound_dead_letters(self, *, most: int, received_before: float) -> int:
        """Delete those received before (epoch seconds), and the oldest beyond `most`; how many."""
        with self._storing() as db:
            db.execute(
                "DELETE FROM dead_letters WHERE received < ?1"
                " OR id <= (SELECT id FROM dead_letters ORDER BY id DESC LIMIT 1 OFFSET ?2)",
                (received_before, most),
            )
            return db.changes()

    def publish_again(self, seq: int) -> bool:
        """Put a settled update at the end of what is pending; whether it is still known.

        It goes out like a new one with its old `event_id`: a click that is too old by now is recorded, not fired.
        Its other dead letters name place 0 from then on: all of it is published, so they have nothing left to try.
        """
        with self._storing() as db:
            place = db.execute("SELECT seq + 1 FROM sqlite_sequence WHERE name = 'updates'").get or 1
            settled = "(SELECT value FROM facts WHERE name = 'settled')"
            db.execute(f"UPDATE updates SET seq = ?1 WHERE seq = ?2 AND seq <= {settled}", (place, seq))  # noqa: S608
            moved = db.changes() > 0
            if moved:
                db.execute("UPDATE ledger SET seq = ?1 WHERE seq = ?2", (place, seq))
                db.execute("UPDATE dead_letters SET seq = 0 WHERE seq = ?", (seq,))
                db.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'updates'", (place,))
            return moved

    # --- forgetting --------------------------------------------------------------------------------------------

    def each_update(self) -> Iterator[tuple[int, str, str, str]]:
        """Place, topic, topic of the event, and JSON of every update."""
        after = 0
        while rows := self._rows(
            "SELECT seq, topic, event_topic, document FROM updates WHERE seq > ? ORDER BY seq LIMIT ?", after, SLICE
        ):
            yield from rows
            after = rows[-1][0]

    def each_letter(self) -> Iterator[tuple[int, str, bytes]]:
        """Number, reason and body of every dead letter."""
        after = 0
        while rows := self._rows("SELECT id, reason, body FROM dead_letters WHERE id > ? ORDER BY id LIMIT 10", after):
            yield from rows
            after = rows[-1][0]

    def each_topic(self) -> Iterator[tuple[str, int]]:
        """Every topic of the ledger, whatever became of it, and the place of the update that it carries or carried."""
        after = ""
        while rows := self._rows("SELECT topic, seq FROM ledger WHERE topic > ? ORDER BY topic LIMIT ?", after, SLICE):
            yield from rows
            after = rows[-1][0]

    def _rows(self, sql: str, *values: object) -> list[Any]:
        with self._reading() as db:
            return list(db.execute(sql, values))

    def withhold(self, topics: Sequence[str]) -> None:
        """Have these topics of the ledger neither restored nor taken for standing from now on."""
        with self._storing() as db:
            db.execute(
                "UPDATE ledger SET state = 2, gone = (SELECT value FROM facts WHERE name = 'settled')"
                " WHERE topic IN (SELECT value FROM json_each(?))",
                (orjson.dumps(list(topics)).decode(),),
            )

    def erase(self, traces: Traces) -> None:
        """Delete these, in one transaction; what is freed is overwritten."""
        lists = {
            "DELETE FROM updates WHERE seq IN (SELECT value FROM json_each(?))": traces.updates,
            "DELETE FROM dead_letters WHERE id IN (SELECT value FROM json_each(?))": traces.letters,
            "DELETE FROM ledger WHERE topic IN (SELECT value FROM json_each(?))": traces.topics,
            "DELETE FROM discoveries WHERE topic IN (SELECT value FROM json_each(?))": traces.discoveries,
            "DELETE FROM learned WHERE (kind, key) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?))": (
                traces.learned
            ),
        }
        with self._storing() as db:
            db.pragma("secure_delete", 1)
            for sql, values in lists.items():
                db.execute(sql, (orjson.dumps(list(values)).decode(),))
            if traces.failure:
                db.execute("UPDATE facts SET value = json_set(value, '$.failed', NULL) WHERE name = 'tally'")

    def scrub(self) -> None:
        """Write the file anew without what is free in it, and cut back its write-ahead log.

        Raises:
            NotStoredError: Another one is at work; nothing of the journal is lost, and it can be tried again.
        """
        db = self._opened()
        try:
            db.execute("VACUUM")
            db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.Error as error:
            raise NotStoredError(_words(error)) from error

    # --- below -----------------------------------------------------------------------------------------------

    def _check_room(self) -> None:
        """Leave the rest of a disk that is nearly full to settling and pruning."""
        if not self._disk_has_room():
            raise NotStoredError(f"the disk is full: less than {RESERVE // 2**20} MiB free; make room")

    def _disk_has_room(self) -> bool:
        disk = os.statvfs(self._path.parent)
        return disk.f_bavail * disk.f_frsize >= RESERVE

    def _fact(self, name: str) -> Any:
        with self._reading() as db:
            return db.execute("SELECT value FROM facts WHERE name = ?", (name,)).get

    @contextlib.contextmanager
    def _storing(self, *, wait: bool = True) -> Iterator[apsw.Connection]:
        """One transaction; whatever SQLite says becomes an error of ours, and nothing is stored."""
        db = self._opened()
        if not wait:
            db.set_busy_timeout(0)
        try:
            with _immediately(db):
                yield db
            if self._wal_pages >= WAL_PAGES:
                # If the storage fails here, all is stored, and told as if it were not: it comes again, a duplicate.
                self._bring_in(db, apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.BusyError as error:
            raise BusyError(_words(error)) from error
        except (apsw.IOError, apsw.CorruptError, apsw.NotADBError, apsw.ReadOnlyError) as error:
            self._note_damage(error)
            raise BrokenStorageError(_words(error)) from error
        except apsw.FullError as error:
            if self._max_size is not None and self._disk_has_room():
                raise NotStoredError(FULL) from error
            raise NotStoredError(_words(error)) from error
        except apsw.Error as error:
            raise NotStoredError(_words(error)) from error
        finally:
            if not wait:
                db.set_busy_timeout(BUSY_TIMEOUT)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[apsw.Connection]:
        try:
            yield self._opened()
        except apsw.Error as error:
            self._note_damage(error)
            raise JournalError(f"journal {self._path}: {_words(error)}") from error
        except (ValueError, KeyError) as error:  # a text that is none, a kind that there is not
            self._note_damage(apsw.CorruptError())
            raise JournalError(f"journal {self._path}: a row is damaged ({error})") from error

    def _bring_in(self, db: apsw.Connection, mode: int) -> None:
        """Bring the write-ahead log into the file as far as possible; it keeps what others or a full disk hold up."""
        with contextlib.suppress(apsw.BusyError, apsw.LockedError, apsw.FullError):
            db.wal_checkpoint(mode=mode)

    def _note_wal(self, _: apsw.Connection, __: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _note_damage(self, error: apsw.Error) -> None:
        """Leave word for the next start: look closely."""
        if isinstance(error, (apsw.CorruptError, apsw.NotADBError)):
            with contextlib.suppress(OSError):
                suspect_mark(self._path).touch()

    def _opened(self) -> apsw.Connection:
        assert self._db is not None, "the journal is used before it is opened"  # noqa: S101  (a caller's mistake)
        return self._db


def sqlite_version() -> str:
    """Of the SQLite that apsw brings along."""
    return apsw.sqlite_lib_version()


def check_sqlite() -> None:
    """Refuse a SQLite that can lose rows.

    Raises:
        JournalError: It is older than 3.51.3.
    """
    version = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    if version < OLDEST_SQLITE:
        raise JournalError(
            f"SQLite {apsw.sqlite_lib_version()} can lose committed rows; 3.51.3 or newer is needed: "
            "`pip install --upgrade apsw`"
        )


def old_version(path: Path, schema: int) -> Path:
    """The copy of a journal that is kept before a newer version changes its schema."""
    return path.with_name(f"{path.name}.schema-{schema}")


def suspect_mark(path: Path) -> Path:
    """The file that says: damage was met while running; look closely at the next start."""
    return path.with_name(path.name + ".suspect")


def sync_folder(folder: Path) -> None:
    """Make sure that a write-ahead log that was just made is found again; SQLite keeps silent if that fails.

    Raises:
        OSError: The storage failed. (Some file systems cannot do this to a folder at all; that is no failure.)
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOSPC):
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def _immediately(db: apsw.Connection) -> Iterator[None]:
    """A transaction that takes the write lock at once, so that what it reads stays true until it commits."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if not db.get_autocommit():
            # A failed commit may have rolled back by itself; what the rollback says adds nothing to what failed.
            with contextlib.suppress(apsw.Error):
                db.execute("ROLLBACK")
        raise


def _bury(db: apsw.Connection, dead: Sequence[DeadLetter]) -> None:
    if dead:
        db.executemany(
            "INSERT INTO dead_letters (received, source, reason, seq, body) VALUES (?, ?, ?, ?, ?)",
            [(letter.received, letter.source, letter.reason, letter.seq, letter.body) for letter in dead],
        )


def _stored(row: tuple[Any, ...]) -> Stored:
    seq, event_id, kind, topic, event_topic, advances, timestamp, received, up, late, document = row
    return Stored(
        seq, event_id, _KINDS[kind], topic, event_topic, advances == 1, timestamp, received, up, late == 1, document
    )


def _words(error: apsw.Error) -> str:
    """What SQLite says, and what to do about it."""
    hints: tuple[tuple[type[apsw.Error], str], ...] = (
        (apsw.FullError, "the disk is full; make room"),
        (apsw.BusyError, "another process holds it; is another bridge or a database tool using the file?"),
        (apsw.ReadOnlyError, "it cannot be written; look at the owner and rights of the file and its folder"),
        (apsw.CantOpenError, "it cannot be opened; look at the owner and rights of the file and its folder"),
        (apsw.NotADBError, "it is not a database; set journal.url to a file of its own, or move it away"),
        (apsw.CorruptError, "it is damaged"),
        (apsw.IOError, "the storage failed; look at the disk or card (dmesg)"),
    )
    hint = next((words for kind, words in hints if isinstance(error, kind)), "")
    return f"{hint} ({error})" if hint else str(error)
