"""A journal in PostgreSQL that an older version left, as `tests/upgrades` keeps it; and the way back by pg_dump."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bridge.config import Database
from bridge.journal import JournalError, statements
from bridge.journal.postgresql import PostgresqlJournal
from tests.postgres import Server, running
from tests.upgrades.contents import contents
from tests.upgrades.make import dump

ROOT = Path(__file__).parents[2]
RELEASES = sorted(file.parent.name for file in (ROOT / "tests/upgrades").glob("*/journal.sql"))
MIGRATIONS = statements.MIGRATIONS

#: What a later version might do to the schema: one more column, and a table that a dump of before does not know.
NEXT = """
ALTER TABLE updates ADD COLUMN more text;
CREATE TABLE added (seq bigint PRIMARY KEY, word text NOT NULL);
INSERT INTO added SELECT seq, topic FROM updates;
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as opened:
        yield opened


@pytest.fixture(params=RELEASES)
def old(request: pytest.FixtureRequest, server: Server) -> Database:
    """A database that an older version wrote."""
    database = server.new_database()
    shell(server, f"psql -q -v ON_ERROR_STOP=1 -f {ROOT}/tests/upgrades/{request.param}/journal.sql {database.url}")
    return database


def shell(server: Server, commands: str, folder: Path | None = None) -> None:
    ended = subprocess.run(
        ["sh", "-ec", commands], env={"PATH": server.path}, cwd=folder, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def documented() -> list[str]:
    """The shell's lines of the section about upgrades: what saves the journal, and what brings it back."""
    section = (ROOT / "docs/postgresql.md").read_text().partition("## Before an upgrade\n")[2].partition("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


def test_the_journal_of_every_release_opens_with_all_that_is_in_it(old: Database) -> None:
    """Whoever upgrades would lose what the broker did not have yet, and what tells a duplicate."""
    PostgresqlJournal(old).create()
    found = contents(PostgresqlJournal(old))
    assert [one.event_topic for one in found["updates"]] == [
        *(f"event/status/{word}" for word in ("sent", "delivered", "read", "failed")),
        *("event/button/open_gate", "event/button/open_gate", "event/button/light_on"),
    ]
    assert found["settled"] == found["updates"][-1].seq
    assert "wamid.upgrade/status" in {one.topic for one in found["retained"]}
    assert [one.body for one in found["dead letters"]] == [b"this is no callback"]
    assert {one.key for one in found["learned"]} >= {"open_gate", "light_on"}
    assert found["discoveries"]


def test_it_has_the_schema_of_a_new_one_afterwards(old: Database, server: Server) -> None:
    """A schema that was changed without a migration works for those alone who begin anew."""
    new = server.new_database()
    for database in (old, new):
        PostgresqlJournal(database).create()
    # A migration adds its columns at the end.
    upgraded, fresh = (
        sorted(line.rstrip(",") for line in dump(server, database, "--schema-only").splitlines())
        for database in (old, new)
    )
    assert upgraded == fresh, "write a migration; for a version not yet released: python -m tests.upgrades.make"


def test_what_was_saved_before_an_upgrade_leads_back_as_the_documents_say(
    old: Database, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that is worse would have to be kept, or the journal given up."""
    PostgresqlJournal(old).create()
    before = contents(PostgresqlJournal(old))
    save, bring_back = (
        text.replace("postgresql://whatsapp2mqtt@db.example.org/whatsapp2mqtt", old.url) for text in documented()
    )
    tmp_path.chmod(0o777)
    shell(server, save, tmp_path)

    monkeypatch.setattr(statements, "MIGRATIONS", (*MIGRATIONS, NEXT))
    with capture_logs() as logs:
        PostgresqlJournal(old).create()
    (said,) = [one for one in logs if "brought to this version" in one["event"]]
    assert said["event"].endswith("the way back is what pg_dump saved before")
    assert (said["schema"], said["now"]) == (len(MIGRATIONS), len(MIGRATIONS) + 1)
    assert server.execute("SELECT count(*) FROM added", old) == [(len(before["updates"]),)]

    monkeypatch.setattr(statements, "MIGRATIONS", MIGRATIONS)
    with pytest.raises(JournalError, match=r"bring back what pg_dump saved before the upgrade \(docs/postgresql\.md\)"):
        PostgresqlJournal(old).create()
    shell(server, bring_back, tmp_path)
    PostgresqlJournal(old).create()
    assert contents(PostgresqlJournal(old)) == before


def test_a_new_journal_has_no_way_back_and_none_is_told(server: Server) -> None:
    """A line about dumps at the first start would send a beginner to look for one."""
    with capture_logs() as logs:
        PostgresqlJournal(server.new_database()).create()
    assert logs == []
