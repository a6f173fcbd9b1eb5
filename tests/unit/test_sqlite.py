"""The journal's SQLite file: what is refused at the door, what durable means, and what a failing disk leaves behind."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from bridge.clock import boot_id
from bridge.journal import BrokenStorageError, Callback, DeadLetter, JournalError, NotStoredError, Outcome
from bridge.journal import sqlite as module
from bridge.journal.sqlite import APPLICATION_ID, MIGRATIONS, SqliteJournal
from bridge.model import Kind
from bridge.topics import Entry


def callback(number: int, *, document: str = "{}") -> Callback:
    topic = f"button/{number}"
    return Callback((Entry(f"{number:032x}", Kind.BUTTON, topic, f"event/{topic}", 0, 1, 1.0, document),))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An empty journal's file."""
    file = tmp_path / "journal.db"
    SqliteJournal(file).create()
    return file


@pytest.fixture
def journal(path: Path) -> Iterator[SqliteJournal]:
    with SqliteJournal(path) as opened:
        yield opened


def database(path: Path, sql: str) -> None:
    """Change a file without the journal's knowledge."""
    db = apsw.Connection(str(path))
    try:
        db.execute(sql)
    finally:
        db.close()


class TestOpening:
    @pytest.mark.parametrize("version", ["3.51.2", "3.40.1", "2.99.99"])
    def test_a_sqlite_that_can_lose_rows_is_refused(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, version: str
    ) -> None:
        """With the WAL-reset bug, two processes lose rows that were answered with 200, and nobody notices."""
        monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: version)
        with pytest.raises(JournalError, match=rf"SQLite {version} can lose.*pip install --upgrade apsw"):
            SqliteJournal(path).create()
        with pytest.raises(JournalError, match="can lose"), SqliteJournal(path):
            pass

    @pytest.mark.parametrize("version", ["3.51.3", "3.51.10", "3.100.0", "4.0.0"])
    def test_a_sqlite_that_is_mended_is_taken(self, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
        """A comparison of texts would take 3.100 for older than 3.51, and refuse to start."""
        monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: version)
        module.check_sqlite()

    def test_a_journal_that_does_not_exist_is_not_made_by_opening_it(self, tmp_path: Path) -> None:
        """A receiver that makes its own empty journal stores where nobody publishes from."""
        file = tmp_path / "journal.db"
        with pytest.raises(JournalError, match="cannot be opened; look at the owner and rights"), SqliteJournal(file):
            pass
        assert not file.exists()

    def test_creating_again_changes_nothing(self, path: Path, journal: SqliteJournal) -> None:
        """Every start creates: one that began anew would forget what waits."""
        journal.append([callback(1)])
        identity = journal.identity()
        SqliteJournal(path).create()
        assert journal.identity() == identity
        assert len(journal.pending(0, 10)) == 1

    def test_folders_on_the_way_are_made_and_private(self, tmp_path: Path) -> None:
        """The first start needs no preparation, and others on the machine see no phone numbers."""
        file = tmp_path / "a" / "b" / "journal.db"
        SqliteJournal(file).create()
        assert file.is_file()
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700

    def test_an_empty_file_becomes_a_journal(self, tmp_path: Path) -> None:
        """A file that was made beforehand, with its owner set, is the usual way in a container."""
        file = tmp_path / "journal.db"
        file.touch()
        SqliteJournal(file).create()
        with SqliteJournal(file) as journal:
            assert journal.settled() == 0

    def test_the_files_are_for_their_owner_only(self, path: Path, journal: SqliteJournal) -> None:
        """They hold phone numbers; the log beside the file holds them as well."""
        journal.append([callback(1)])
        files = sorted(path.parent.iterdir())
        assert [file.name for file in files] == ["journal.db", "journal.db-shm", "journal.db-wal"]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}

    def test_a_file_that_others_could_read_is_closed_to_them(self, path: Path) -> None:
        """A journal that was copied back from a backup is often readable by all."""
        path.chmod(0o644)
        SqliteJournal(path).create()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    @pytest.mark.parametrize(
        "sql",
        [
            "CREATE TABLE theirs (a)",
            "PRAGMA user_version = 1",
            "PRAGMA application_id = 1; CREATE TABLE updates (a)",
        ],
    )
    def test_a_database_of_another_program_is_refused(self, tmp_path: Path, sql: str) -> None:
        """A slip in journal.url must not write our tables into somebody's contacts."""
        file = tmp_path / "theirs.db"
        database(file, sql)
        with pytest.raises(JournalError, match=r"is a database of another program; set journal\.url"):
            SqliteJournal(file).create()

    def test_a_database_of_another_program_is_not_touched(self, tmp_path: Path) -> None:
        """Switched to a write-ahead log, with other rights, the other program may no longer get at its own data."""
        file = tmp_path / "theirs.db"
        database(file, "CREATE TABLE theirs (a)")
        file.chmod(0o644)
        before = file.read_bytes(), file.stat().st_mode
        with pytest.raises(JournalError):
            SqliteJournal(file).create()
        assert (file.read_bytes(), file.stat().st_mode) == before

    def test_a_journal_of_a_newer_version_is_refused(self, path: Path) -> None:
        """After a downgrade, rows written in a way this version does not know would lose what is new in them."""
        database(path, f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
        with pytest.raises(JournalError, match=r"was written by a newer version \(schema 2, this one knows 1\)"):
            SqliteJournal(path).create()
        with pytest.raises(JournalError, match="was written by a newer version"), SqliteJournal(path):
            pass

    def test_a_journal_of_another_schema_is_not_left_open(self, path: Path) -> None:
        """A connection that stays behind holds the file against whoever puts it right."""
        database(path, "PRAGMA user_version = 0")
        journal = SqliteJournal(path)
        with pytest.raises(JournalError), journal:
            pass
        assert journal._db is None

    def test_a_file_that_is_no_database_is_refused_and_kept(self, tmp_path: Path) -> None:
        """A slip in journal.url must not cost the file that stands there."""
        file = tmp_path / "notes.txt"
        file.write_text("not a database " * 100)
        for attempt in (SqliteJournal(file).create, SqliteJournal(file).__enter__):
            with pytest.raises(JournalError, match=r"not a database; set journal\.url to a file of its own"):
                attempt()
        assert file.read_text() == "not a database " * 100

    def test_a_folder_that_cannot_be_made_is_named_with_what_to_do(self, tmp_path: Path) -> None:
        """The reason and the setting to change must stand in the message, not a traceback."""
        (tmp_path / "file").touch()
        with pytest.raises(JournalError, match=r"cannot be made: .*; set journal.url to another place"):
            SqliteJournal(tmp_path / "file" / "journal.db").create()

    def test_a_folder_in_the_place_of_the_file_is_named(self, tmp_path: Path) -> None:
        """`journal.url: sqlite:///data` is an easy slip, and needs a message that says so."""
        with pytest.raises(JournalError, match="it cannot be opened; look at the owner and rights"):
            SqliteJournal(tmp_path).create()

    def test_the_file_says_whose_it_is(self, path: Path) -> None:
        """By this, a later version knows its own journal from another program's database."""
        db = apsw.Connection(str(path))
        assert (db.pragma("application_id"), db.pragma("user_version")) == (APPLICATION_ID, len(MIGRATIONS))
        db.close()

    def test_a_migration_that_fails_leaves_the_file_as_it_was(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An update of the bridge that stops half-way must leave a journal that the old version still reads."""
        bad = (*MIGRATIONS, "CREATE TABLE added (a); SELECT nonsense")
        with monkeypatch.context() as patch:
            patch.setattr(module, "MIGRATIONS", bad)
            with pytest.raises(JournalError, match="nonsense"):
                SqliteJournal(path).create()
        with SqliteJournal(path) as journal:
            assert journal.append([callback(1)]) == [Outcome(1, 0)]

    def test_a_migration_starts_from_the_version_of_the_file(
        self, path: Path, journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Run from the beginning again, it would fail on tables that are there, or empty them."""
        journal.append([callback(1)])
        monkeypatch.setattr(module, "MIGRATIONS", (*MIGRATIONS, "ALTER TABLE updates ADD COLUMN more TEXT"))
        SqliteJournal(path).create()
        with SqliteJournal(path) as migrated:
            assert len(migrated.pending(0, 10)) == 1
            assert migrated.append([callback(2)]) == [Outcome(1, 0)]

    def test_use_before_opening_is_a_mistake_that_shows(self, path: Path) -> None:
        """Silently opened by whichever thread came first, one connection would be used by two."""
        with pytest.raises(AssertionError, match="used before it is opened"):
            SqliteJournal(path).settled()


class TestBoot:
    def test_a_restart_within_one_boot_keeps_the_seconds_since_boot(self, path: Path, journal: SqliteJournal) -> None:
        """After a mere restart of the bridge, what just came must still fire."""
        journal.append([callback(1)])
        SqliteJournal(path).create()
        assert journal.pending(0, 1)[0].uptime is not None

    def test_the_boot_is_what_the_kernel_says(self) -> None:
        """Two boots taken for one make old clicks look new."""
        assert boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip() != ""

    def test_a_kernel_that_does_not_say_stops_nothing(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """In a container that hides /proc the bridge must still start."""

        def hidden(*_: object, **__: object) -> str:
            raise PermissionError

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", hidden)
            assert boot_id() == ""
            SqliteJournal(path).create()
        with SqliteJournal(path) as journal:
            assert journal.append([callback(1)]) == [Outcome(1, 0)]

    def test_unknown_boots_are_not_taken_for_one(
        self, path: Path, journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the kernel does not say which boot it is, a click from before a power cut would look new and fire."""
        monkeypatch.setattr(module, "boot_id", lambda: "")
        SqliteJournal(path).create()
        journal.append([callback(1)])
        SqliteJournal(path).create()
        assert journal.pending(0, 1)[0].uptime is None


class Disk(apsw.VFS):
    """What SQLite writes through: each fsync is noted by the kind of file, and may be told to fail."""

    def __init__(self) -> None:
        self.synced: list[str] = []
        self.fails = False
        self._below = apsw.vfs_names()[0]
        super().__init__("watched", self._below, makedefault=True)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802  (apsw's)
        path = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        return WatchedFile(self._below, name, flags, self, path)


class WatchedFile(apsw.VFSFile):
    def __init__(
        self, below: str, name: str | apsw.URIFilename | None, flags: list[int], disk: Disk, path: str
    ) -> None:
        super().__init__(below, name, flags)
        self._disk = disk
        self._kind = "log" if path.endswith("-wal") else "file"

    def xSync(self, flags: int) -> None:  # noqa: N802  (apsw's name)
        if self._disk.fails:
            raise apsw.IOError
        self._disk.synced.append(self._kind)
        super().xSync(flags)


@pytest.fixture
def disk() -> Iterator[Disk]:
    watched = Disk()
    yield watched
    watched.unregister()


class TestDurable:
    def test_append_has_fsynced_the_log_when_it_returns(self, tmp_path: Path, disk: Disk) -> None:
        """Without the fsync, a power cut takes what WhatsApp was told is stored. Promise 1 hangs on this line."""
        SqliteJournal(tmp_path / "journal.db").create()
        with SqliteJournal(tmp_path / "journal.db") as journal:
            for number in (1, 2):
                disk.synced.clear()
                journal.append([callback(number)])
                assert "log" in disk.synced

    def test_one_append_of_many_callbacks_is_one_commit(self, tmp_path: Path, disk: Disk) -> None:
        """A commit each would divide what a memory card can take by the number of those who wait."""
        SqliteJournal(tmp_path / "journal.db").create()
        with SqliteJournal(tmp_path / "journal.db") as journal:
            journal.append([callback(0)])
            disk.synced.clear()
            journal.append([callback(number) for number in range(1, 100)])
            assert disk.synced == ["log"]

    def test_the_publishers_notes_are_not_fsynced_each(self, tmp_path: Path, disk: Disk) -> None:
        """Losing them only publishes again; an fsync each would wear out the card."""
        SqliteJournal(tmp_path / "journal.db").create()
        with SqliteJournal(tmp_path / "journal.db") as receiver:
            receiver.append([callback(number) for number in range(1, 10)])
            with SqliteJournal(tmp_path / "journal.db", durable=False) as publisher:
                disk.synced.clear()
                for place in range(1, 10):
                    publisher.settle(place)
                assert disk.synced == []
                receiver.append([callback(10)])
                assert "log" in disk.synced

    def test_an_fsync_that_fails_is_broken_storage_and_not_stored(self, tmp_path: Path, disk: Disk) -> None:
        """After a failed fsync the next one may lie: whoever tries again in place answers 200 for nothing."""
        SqliteJournal(tmp_path / "journal.db").create()
        with SqliteJournal(tmp_path / "journal.db") as journal:
            journal.append([callback(1)])
            disk.fails = True
            with pytest.raises(BrokenStorageError, match=r"the storage failed; look at the disk or card"):
                journal.append([callback(2)])
            disk.fails = False
        with SqliteJournal(tmp_path / "journal.db") as journal:
            assert len(journal.pending(0, 10)) == 1
            assert journal.append([callback(2)]) == [Outcome(1, 0)]


class TestFailures:
    def test_a_full_disk_stores_nothing_and_says_so(self, journal: SqliteJournal) -> None:
        """Half a callback on a full disk would make the sender's next try a duplicate of what is not there."""
        db = journal._opened()
        db.pragma("max_page_count", db.pragma("page_count") + 2)
        with pytest.raises(NotStoredError, match="the disk is full; make room") as caught:
            journal.append([callback(1), callback(2, document="x" * 100_000)])
        assert not isinstance(caught.value, BrokenStorageError)
        assert journal.pending(0, 10) == []
        assert journal.retained((0, ""), 100, 100) == []

    def test_the_journal_is_usable_after_a_failure(self, journal: SqliteJournal) -> None:
        """When there is room again, the receiver must go on without anyone starting it anew."""
        db = journal._opened()
        pages = db.pragma("max_page_count")
        db.pragma("max_page_count", db.pragma("page_count") + 2)
        with pytest.raises(NotStoredError):
            journal.append([callback(1, document="x" * 100_000)])
        db.pragma("max_page_count", pages)
        assert journal.append([callback(1, document="x" * 100_000)]) == [Outcome(1, 0)]
        journal.settle(1)
        assert (journal.settled(), journal.backlog()) == (1, 0)

    def test_a_failure_of_ours_in_the_middle_rolls_back(self, journal: SqliteJournal) -> None:
        """A transaction that stays open holds the journal against every other process."""
        bad = DeadLetter("callback", "why", object(), 1.0)  # type: ignore[arg-type]  # nothing that SQLite can store
        with pytest.raises(TypeError):
            journal.append([callback(1), Callback((), (bad,))])
        assert journal.append([callback(1)]) == [Outcome(1, 0)]

    def test_a_writer_that_never_ends_is_named_and_waited_out(self, path: Path, journal: SqliteJournal) -> None:
        """A database tool that was left open must not look like a broken disk; the sender comes again."""
        journal._opened().set_busy_timeout(1)
        with SqliteJournal(path) as other, module._immediately(other._opened()):
            with pytest.raises(NotStoredError, match="another process holds it; is another bridge") as caught:
                journal.append([callback(1)])
            assert not isinstance(caught.value, BrokenStorageError)
        assert journal.append([callback(1)]) == [Outcome(1, 0)]

    @pytest.mark.parametrize(
        ("failure", "hint"),
        [
            (apsw.IOError, "the storage failed; look at the disk or card"),
            (apsw.CorruptError, "it is damaged"),
            (apsw.NotADBError, "it is not a database"),
            (apsw.ReadOnlyError, "it cannot be written; look at the owner and rights"),
        ],
    )
    def test_storage_that_failed_is_told_from_a_passing_trouble(
        self, journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch, failure: type[apsw.Error], hint: str
    ) -> None:
        """Only a new process may try again; taken for a full disk, it would be tried in place for ever."""

        def fail(*_: object) -> None:
            raise failure("SQLite's word")

        monkeypatch.setattr(module, "_bury", fail)
        with pytest.raises(BrokenStorageError, match=rf"{hint}.*\(SQLite's word\)"):
            journal.append([callback(1)])
        monkeypatch.undo()
        assert journal.pending(0, 10) == []

    def test_what_sqlite_says_otherwise_is_passed_on(
        self, journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An unforeseen error still needs its words in the log, and the sender must come again."""

        def fail(*_: object) -> None:
            raise apsw.TooBigError("string or blob too big")

        monkeypatch.setattr(module, "_bury", fail)
        with pytest.raises(NotStoredError, match=r"^string or blob too big$") as caught:
            journal.settle(1)
        assert not isinstance(caught.value, BrokenStorageError)
        assert journal.settled() == 0

    def test_a_rollback_that_fails_hides_no_cause(self, journal: SqliteJournal) -> None:
        """The user must read why it was not stored, and not what the clearing up said."""

        class Stubborn:
            def __init__(self, db: apsw.Connection) -> None:
                self.db = db

            def execute(self, sql: str) -> object:
                if sql == "ROLLBACK":
                    raise apsw.SQLError("cannot rollback")
                return self.db.execute(sql)

            def get_autocommit(self) -> bool:
                return self.db.get_autocommit()

        db = journal._opened()
        with pytest.raises(ValueError, match="the cause"), module._immediately(Stubborn(db)):  # type: ignore[arg-type]
            raise ValueError("the cause")
        db.execute("ROLLBACK")

    def test_a_commit_that_rolled_back_by_itself_is_not_rolled_back_again(self, journal: SqliteJournal) -> None:
        """SQLite ends the transaction itself on some failures; an error about that would hide the cause."""
        db = journal._opened()
        with pytest.raises(ValueError, match="the cause"), module._immediately(db):
            db.execute("ROLLBACK")
            raise ValueError("the cause")
        assert journal.append([callback(1)]) == [Outcome(1, 0)]

    def test_a_file_that_cannot_be_read_is_named(self, journal: SqliteJournal) -> None:
        """The publisher ends with this message: it must say which file, and not show a traceback of SQLite."""
        journal._opened().execute("DROP TABLE facts")
        for read in (journal.settled, journal.identity, journal.backlog):
            with pytest.raises(JournalError, match=r"journal .*journal\.db: .*no such table: facts"):
                read()
        journal._opened().execute("DROP TABLE updates")
        for read in (lambda: journal.pending(0, 1), lambda: journal.retained((0, ""), 1, 1), journal.backlog):
            with pytest.raises(JournalError, match="no such table"):
                read()
        with pytest.raises(NotStoredError, match="no such table"):
            journal.append([callback(1)])

    def test_closing_twice_is_no_error(self, path: Path) -> None:
        """Whoever clears up after a failure must not fail again."""
        with SqliteJournal(path) as journal:
            journal.__exit__()
        assert journal._db is None
