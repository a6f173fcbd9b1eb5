"""The journal as people look at it: newest first, one message's history, what a search finds. Reads, and a test."""

from __future__ import annotations

import threading
from typing import Self

from bridge.journal.sqlite import SqliteJournal

#: Bytes that `try_to_store` has room for: a callback of a usual size, and what comes with it.
A_CALLBACK = 64 * 1024


class BrowsableJournal(SqliteJournal):
    """A connection for the page, whose requests are threads: one after the other uses it."""

    _turn: threading.RLock

    def __enter__(self) -> Self:
        self._turn = threading.RLock()
        return super().__enter__()

    def latest(self) -> tuple[float | None, float | None]:
        """When the newest update, and the newest click, was received (epoch seconds); None: there is none."""
        with self._turn, self._reading() as db:
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
        with self._turn, self._storing() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES ('tried', zeroblob(?))", (A_CALLBACK,))
            db.execute("UPDATE facts SET value = 0 WHERE name = 'tried'")
