"""Which engine keeps the journal, as the settings say: a file of SQLite's, or a PostgreSQL database.

An engine is a value: receivers get it and open the journal by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bridge.config import Database, Settings
from bridge.journal import Browsable, Household, JournalError
from bridge.model import Kind

if TYPE_CHECKING:
    from bridge.journal.postgresql import PostgresqlJournal, Presence

#: Connections to a database for the page, whose requests are threads.
PAGE_CONNECTIONS = 2


class Engine(Protocol):
    """Makes and opens a journal."""

    def prepare(self) -> str | None:
        """Make the journal ready for this start; an alarm in words for the user, or None if all is well.

        Raises:
            JournalError: It cannot be used.
        """
        ...

    def journal(self, *, durable: bool = True) -> Household:
        """A hold on it, not yet opened.

        Args:
            durable: Fsync each commit. The publisher's own notes need not be: losing them only publishes again.
        """
        ...

    def browsable(self) -> Browsable:
        """One for the page."""
        ...

    def presence(self) -> Presence | None:
        """Keeps bridges on other machines from running meanwhile; None: there are none."""
        ...


@dataclass(frozen=True, slots=True)
class SqliteEngine:
    """The journal in one file.

    Args:
        path: The file.
        never_retained: Kinds whose topics are published without being retained.
        max_size: Bytes.
    """

    path: Path
    never_retained: frozenset[Kind] = frozenset()
    max_size: int | None = None

    def prepare(self) -> str | None:
        from bridge.journal.care import prepare

        return prepare(self.path)

    def journal(self, *, durable: bool = True) -> Household:
        from bridge.journal.sqlite import SqliteJournal

        return SqliteJournal(
            self.path, durable=durable, never_retained=self.never_retained, max_size=self.max_size if durable else None
        )

    def browsable(self) -> Browsable:
        from bridge.journal.browse import BrowsableJournal

        return BrowsableJournal(self.path, never_retained=self.never_retained, max_size=self.max_size)

    def presence(self) -> Presence | None:
        return None


@dataclass(frozen=True, slots=True)
class PostgresqlEngine:
    """The journal in a database.

    Args:
        database: Where it is.
        never_retained, max_size: As in `SqliteEngine`.
    """

    database: Database
    never_retained: frozenset[Kind] = frozenset()
    max_size: int | None = None

    def prepare(self) -> str | None:
        self._journal().create()
        return None

    def journal(self, *, durable: bool = True) -> Household:  # noqa: ARG002  (all of it is)
        return self._journal()

    def browsable(self) -> Browsable:
        return self._journal(PAGE_CONNECTIONS)

    def presence(self) -> Presence | None:
        from bridge.journal.postgresql import Presence

        return Presence(self.database)

    def _journal(self, connections: int = 1) -> PostgresqlJournal:
        try:
            from bridge.journal.postgresql import PostgresqlJournal
        except ImportError as error:
            raise JournalError(
                "journal.url: psycopg, which speaks to PostgreSQL, is not installed or finds no libpq; install it with "
                "`pip install 'whatsapp2mqtt[postgresql]'` (on armv7 also `apt-get install libpq5`)"
            ) from error

        return PostgresqlJournal(
            self.database, never_retained=self.never_retained, max_size=self.max_size, connections=connections
        )


def engine_of(settings: Settings) -> Engine:
    """The engine that these settings ask for."""
    lifetimes = {Kind.STATUS: settings.retain.status, Kind.BUTTON: settings.retain.button}
    never_retained = frozenset(kind for kind, lifetime in lifetimes.items() if not lifetime)
    if settings.database is not None:
        return PostgresqlEngine(settings.database, never_retained, settings.journal.max_size)
    return SqliteEngine(settings.journal_path, never_retained, settings.journal.max_size)
