"""An upgrade that is killed at any moment leaves the journal of before or the one of after, and never half of one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from bridge.journal import sqlite
from bridge.journal.care import prepare
from tests.system.support import program

KEPT = Path(__file__).parents[1] / "upgrades" / "0.1.0" / "journal.db"

#: Brings the schema one further than this version knows, as a later version might, and touches every row.
NEXT = """
CREATE TABLE added (seq INTEGER PRIMARY KEY, word TEXT NOT NULL) STRICT;
INSERT INTO added SELECT seq, topic FROM updates;
ALTER TABLE updates ADD COLUMN more TEXT;
UPDATE updates SET more = 'migrated', document = document || printf('%3000s', '');
"""
UPGRADE = f"""
import sys
from pathlib import Path
from bridge.journal import sqlite
sqlite.MIGRATIONS = (*sqlite.MIGRATIONS, {NEXT!r})
from bridge.journal.care import prepare
sys.stderr.write("upgrading\\n")
prepare(Path(sys.argv[1]))
sys.stderr.write("upgraded\\n")
"""
#: What changes a disk.
CALLS = "pwrite64,ftruncate,fsync,fdatasync,rename,unlink,fchmod,chmod"


def upgrade(path: Path, *strace: str) -> subprocess.CompletedProcess[str]:
    command = [program("strace"), "-f", "-e", f"trace={CALLS},write", *strace, sys.executable, "-c", UPGRADE, path]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def state(path: Path) -> tuple[int, int, bool]:
    """Schema, updates, and whether the next version's table is there and filled."""
    db = apsw.Connection(str(path))
    try:
        assert db.execute("PRAGMA integrity_check").get == "ok"
        count = db.execute("SELECT count(*) FROM updates").get
        has_table = bool(db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'added'").get)
        filled = has_table and db.execute("SELECT count(*) FROM added").get == count
        columns = {name for (_, name, *_) in db.execute("PRAGMA table_info(updates)")}
        assert ("more" in columns) == has_table == filled
        return db.pragma("user_version"), count, filled
    finally:
        db.close()


def moments(traced: str) -> Iterator[tuple[str, int]]:
    """What changed the disk during the upgrade: calls by their numbers among those of their name; not each write."""
    start, _, rest = traced.partition('"upgrading')
    during = rest.partition('"upgraded')[0]
    for call in CALLS.split(","):
        before, count = (len(re.findall(rf"\b{call}\(", part)) for part in (start, during))
        yield from ((call, number) for number in range(before + 1, before + count + 1, 5 if call == "pwrite64" else 1))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copy(KEPT, tmp_path / "journal.db"))


def test_killed_at_any_change_of_the_disk_it_is_one_or_the_other(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Pi that loses its power during an upgrade would have a journal that no version can read."""
    whole = upgrade(old)
    assert whole.returncode == 0, whole.stderr
    newest, updates, _ = state(old)
    seen = set()
    for call, number in moments(whole.stderr):
        for rest in old.parent.glob("journal.db*"):
            rest.unlink()
        shutil.copy(KEPT, old)
        ended = upgrade(old, "-e", f"inject={call}:signal=KILL:when={number}")
        assert ended.returncode != 0, (call, number)
        version, count, filled = state(old)
        seen.add(version)
        assert count == updates, (call, number)
        assert filled == (version == newest), (call, number)
        if filled:
            kept = old.with_name(f"journal.db.schema-{newest - 1}")
            assert state(kept) == (newest - 1, updates, False), (call, number)  # the way back was there before it began
        with monkeypatch.context() as patch:
            patch.setattr(sqlite, "MIGRATIONS", (*sqlite.MIGRATIONS, NEXT))
            assert prepare(old) is None, (call, number)
        assert state(old) == (newest, updates, True), (call, number)
    assert seen == {newest - 1, newest}
