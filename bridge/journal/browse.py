"""The journal as people look at it: newest first, one message's history, what a search finds. Reads, and a test.

Nothing here has an index of its own, as receivers would have to keep it: a search reads backwards from the newest
update, for a bounded time, and says where to go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import orjson

from bridge.clock import uptime
from bridge.journal import SEARCHING, Found, Kept, Letter
from bridge.journal.shared import COUNTED, PLAUSIBLE, search_backwards
from bridge.journal.sqlite import SqliteJournal
from bridge.model import Kind

#: Bytes that `try_to_store` has room for: a callback of a usual size, and what comes with it.
A_CALLBACK = 64 * 1024

_KEPT = """
SELECT seq, lower(hex(event_id)), kind, topic, event_topic, advances, late, received,
       CASE WHEN seq >= (SELECT value FROM facts WHERE name = 'boot_first') THEN uptime END, document
FROM updates
"""

_HOLDING = f"{_KEPT} WHERE seq >= ? AND seq < ? AND instr(document, ?) ORDER BY seq DESC"

# '0' follows '/' in ASCII.
_CLICKED = f"""
{_KEPT}
WHERE seq IN (SELECT seq FROM ledger WHERE topic > 'button/' AND topic < 'button0') AND kind = 'button'
ORDER BY seq DESC LIMIT ?
"""  # noqa: S608


class BrowsableJournal(SqliteJournal):
    """A connection for the page, whose requests are threads: one after the other uses it, by `turn` or by a method."""

    turn: threading.RLock

    def __enter__(self) -> Self:
        self.turn = threading.RLock()
        return super().__enter__()

    def latest(self) -> tuple[float | None, float | None]:
        """When the newest update, and the newest click, was received (epoch seconds); None: there is none."""
        with self.turn, self._reading() as db:
            update = db.execute("SELECT received FROM updates ORDER BY seq DESC LIMIT 1").get
            click = db.execute(
                "SELECT received FROM updates WHERE seq = (SELECT seq FROM ledger WHERE topic = 'last/button')"
            ).get
            return update, click

    def try_to_store(self) -> None:
        """Store something as large as a callback and take it back, fsynced like one.

        Raises:
            NotStoredError: Callbacks cannot be stored just now either; it says why.
        """
        self._check_room()
        with self.turn, self._storing() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES ('tried', zeroblob(?))", (A_CALLBACK,))
            db.execute("UPDATE facts SET value = 0 WHERE name = 'tried'")

    # --- updates -------------------------------------------------------------------------------------------------

    def newest(self, limit: int, *, after: int = 0) -> list[Kept]:
        """The newest updates with a place after this one, newest first."""
        with self.turn, self._reading() as db:
            return list(_kept(db.execute(f"{_KEPT} WHERE seq > ? ORDER BY seq DESC LIMIT ?", (after, limit))))

    def update(self, seq: int) -> Kept | None:
        """The update at a place."""
        with self.turn, self._reading() as db:
            return next(_kept(db.execute(f"{_KEPT} WHERE seq = ?", (seq,))), None)

    def span(self) -> tuple[int, int]:
        """The places of the oldest and the newest update; zeros: there is none."""
        with self.turn, self._reading() as db:
            # Two statements: of `min` and `max` in one, SQLite reads the whole table.
            first = db.execute("SELECT coalesce(min(seq), 0) FROM updates").get
            return int(first), int(db.execute("SELECT coalesce(max(seq), 0) FROM updates").get)

    def search(
        self,
        text: str,
        fits: Callable[[Kept], bool],
        *,
        limit: int,
        before: int | None = None,
        patience: float = SEARCHING,
    ) -> Found:
        """Updates whose JSON holds a text, newest first.

        Args:
            text: What must stand somewhere in the JSON.
            fits: Decides about each that does.
            limit: So many at most.
            before: Only updates with a place before this one; None: all.
            patience: Seconds after which to stop and say where to go on.
        """
        written = orjson.dumps(text).decode()[1:-1]

        def between(start: int, before: int) -> Iterator[Kept]:
            with self.turn, self._reading() as db:
                yield from _kept(db.execute(_HOLDING, (start, before, written)))

        return search_backwards(self.span(), between, fits, limit=limit, before=before, patience=patience)

    def clicked(self, limit: int) -> list[Kept]:
        """The latest click on each button that the ledger knows, newest first."""
        with self.turn, self._reading() as db:
            return list(_kept(db.execute(_CLICKED, (limit,))))

    def holder(self, topic: str) -> int | None:
        """The place of the update that a retained topic carries, or carried last."""
        with self.turn, self._reading() as db:
            found = db.execute("SELECT seq FROM ledger WHERE topic = ?", (topic,)).get
            return int(found) if found is not None else None

    def per_minute(self, since: float, after: int) -> tuple[dict[tuple[int, str], int], int, bool]:
        """How many updates of each kind were received in each minute.

        Args:
            since: Epoch seconds; older ones do not count.
            after: Only updates with a place after this one.

        Returns:
            Counts by minute (epoch seconds divided by 60) and kind; the newest place; whether all were counted.
        """
        with self.turn, self._reading() as db:
            newest = int(db.execute("SELECT coalesce(max(seq), 0) FROM updates").get)
            start = max(after, newest - COUNTED)
            rows = db.execute(
                "SELECT CAST(received / 60 AS INTEGER), kind, count(*) FROM updates "
                "WHERE seq > ? AND seq <= ? AND received >= ? GROUP BY 1, 2",
                (start, newest, since),
            )
            return {(minute, kind): count for minute, kind, count in rows}, newest, start == after

    # --- dead letters --------------------------------------------------------------------------------------------

    def letters(self, limit: int, *, before: int | None = None) -> list[Letter]:
        """Dead letters with a number below this one, newest first."""
        with self.turn, self._reading() as db:
            rows = db.execute(
                "SELECT id, received, source, reason, length(body) FROM dead_letters "
                "WHERE ?1 IS NULL OR id < ?1 ORDER BY id DESC LIMIT ?2",
                (before, limit),
            )
            return [Letter(*row) for row in rows]

    def oldest_letters(self, after: int, upto: int, limit: int) -> list[int]:
        """Numbers of dead letters after one and up to another, oldest first."""
        with self.turn, self._reading() as db:
            rows = db.execute(
                "SELECT id FROM dead_letters WHERE id > ? AND id <= ? ORDER BY id LIMIT ?", (after, upto, limit)
            )
            return [number for (number,) in rows]

    def count_letters(self) -> tuple[int, int]:
        """How many dead letters there are, and the number of the newest."""
        with self.turn, self._reading() as db:
            count = db.execute("SELECT count(*) FROM dead_letters").get
            return int(count), int(db.execute("SELECT coalesce(max(id), 0) FROM dead_letters").get)


def _kept(rows: Iterable[tuple[Any, ...]]) -> Iterator[Kept]:
    since_boot = time.time() - uptime()
    return (_one(row, since_boot) for row in rows)


def _one(row: tuple[Any, ...], since_boot: float) -> Kept:
    seq, event_id, kind, topic, event_topic, advances, late, received, up, document = row
    stored = since_boot + up if up is not None else None
    if stored is not None and not -1.0 < stored - received < PLAUSIBLE:
        stored = None
    return Kept(
        seq,
        event_id,
        Kind(kind),
        topic,
        event_topic,
        bool(advances),
        bool(late),
        received,
        None if stored is None else max(stored, received),
        document,
    )
