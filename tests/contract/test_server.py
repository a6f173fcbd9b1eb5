"""What a PostgreSQL must keep to hold a journal, and how often it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.config import Database
from bridge.journal import Callback, JournalError
from bridge.journal.postgresql import PostgresqlJournal
from bridge.model import StatusUpdate
from bridge.topics import entry
from tests.postgres import Server, running


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running("log_statement=all") as opened:
        yield opened


def refused(database: Database, words: str) -> None:
    with pytest.raises(JournalError, match=words):
        PostgresqlJournal(database).create()


def test_a_server_that_answers_before_it_has_written_is_refused(server: Server) -> None:
    """What was answered 200 would be lost with the server's power."""
    database = server.new_database()
    name = database.url.rpartition("/")[2]
    PostgresqlJournal(database).create()
    for commit in ("off", "local", "remote_write"):
        server.execute(f"ALTER DATABASE {name} SET synchronous_commit = {commit}")
        refused(database, f'synchronous_commit is {commit}, .* say ALTER DATABASE "{name}" SET synchronous_commit = on')
    server.execute(f"ALTER DATABASE {name} SET synchronous_commit = remote_apply")
    PostgresqlJournal(database).create()


def test_a_server_that_never_waits_for_its_disk_is_refused() -> None:
    """Likewise, whatever is said of commits."""
    with running("fsync=off") as careless:
        refused(careless.new_database(), "fsync is off, .* say fsync = on in postgresql.conf")


def test_a_database_that_does_not_hold_every_text_is_refused(server: Server) -> None:
    """The first name with a letter that it does not know would be answered 503, over and over."""
    server.execute("CREATE DATABASE narrow ENCODING LATIN1 TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    refused(Database(server.url("narrow")), "has the encoding LATIN1, .* make one with ENCODING 'UTF8'")


def test_a_group_of_requests_is_stored_by_one_statement(server: Server) -> None:
    """Each more is one more way to the server and back, for which a hundred senders wait."""
    database = server.new_schema()
    PostgresqlJournal(database).create()
    log = Path(server.folder) / "log"
    with PostgresqlJournal(database) as journal:
        journal.append([callback("first")])
        before = len(log.read_bytes())
        outcomes = journal.append([callback(f"m{number % 80}") for number in range(100)])
        said = log.read_bytes()[before:].decode()
    assert (sum(one.stored for one in outcomes), sum(one.duplicate for one in outcomes)) == (80, 20)
    asked = [line for line in said.splitlines() if "execute" in line or "statement:" in line]
    assert len(asked) == 1, asked
    assert "SELECT append(" in asked[0]


def callback(message: str) -> Callback:
    update = StatusUpdate(message_id=message, status="sent", timestamp=1_780_315_200, recipient_id="15550001234")
    return Callback((entry(update, 1_780_315_200.0),))
