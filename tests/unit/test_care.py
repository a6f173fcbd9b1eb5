"""A journal at the start: where it may lie, whether it is whole, what is saved of it; and its copies."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import apsw
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from bridge.journal import Callback, DeadLetter, JournalError, Learned, care, carve, sqlite
from bridge.journal.care import Ballast, backup, ballast, file_system, mend, prepare, restore
from bridge.journal.sqlite import MIGRATIONS, RESERVE, SqliteJournal, suspect_mark
from bridge.model import Kind
from bridge.topics import Entry

NOW = 1_790_000_000.0
PAGE = 4096


def status(number: int, *, message: str | None = None, rank: int = 1, size: int = 0, received: float = NOW) -> Entry:
    topic = f"{message or f'm{number}'}/status"
    document = orjson.dumps({"n": number, "filling": "ü" * size}).decode()
    return Entry(f"{number:032x}", Kind.STATUS, topic, "event/status/sent", rank, number, received, document)


def click(number: int, *, received: float = NOW) -> Entry:
    return Entry(f"{number:032x}", Kind.BUTTON, "button/gate", "event/button/gate", 0, None, received, "{}")


def fill(path: Path, *entries: Entry, settled: int = 0, dead: int = 0) -> None:
    with SqliteJournal(path) as journal:
        letters = tuple(DeadLetter("callback", f"reason {n}", b"\0" * 9_000, NOW) for n in range(dead))
        journal.append([Callback(entries, letters)])
        journal.settle(settled)


def close_in_order(path: Path) -> None:
    with SqliteJournal(path) as journal:
        journal.close_in_order()


def crashed(path: Path, *entries: Entry) -> None:
    """Store these, and leave files as they are when all who used them are killed."""
    with SqliteJournal(path) as journal:
        for entry in entries:
            journal.append([Callback((entry,))])
        kept = {suffix: path.with_name(path.name + suffix).read_bytes() for suffix in ("", "-wal", "-shm")}
    for suffix, content in kept.items():
        path.with_name(path.name + suffix).write_bytes(content)


def change(path: Path, sql: str) -> None:
    db = apsw.Connection(str(path))
    try:
        db.pragma("writable_schema", 1)
        db.execute(sql)
    finally:
        db.close()


def ask(path: Path, sql: str) -> list[tuple[object, ...]]:
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return list(db.execute(sql))
    finally:
        db.close()


def overwrite(path: Path, page: int, content: bytes = b"\xa5" * PAGE, offset: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE + offset)
        file.write(content)


def pages_of(path: Path, table: str) -> list[int]:
    return [page for (page,) in ask(path, f"SELECT pageno FROM dbstat WHERE name = '{table}'")]  # type: ignore[misc]


def known(path: Path) -> set[int]:
    """The numbers of the updates that a journal holds."""
    with SqliteJournal(path) as journal:
        return {int(stored.event_id, 16) for stored in journal.pending(0, 1_000_000)}


def aside(path: Path, why: str = "corrupt") -> list[Path]:
    return [one for one in path.parent.glob(f"{path.name}.{why}-*") if not one.name.endswith(("-wal", "-shm"))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal as its first start leaves it."""
    file = tmp_path / "state" / "journal.db"
    assert prepare(file) is None
    return file


# --- where it lies --------------------------------------------------------------------------------------------------

MOUNTS = """\
22 28 0:21 / /proc rw,nosuid - proc proc rw
28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 28 0:40 / /mnt/nas rw - nfs4 nas:/export rw
31 30 8:1 / /mnt/nas/local rw - ext4 /dev/sda1 rw
32 28 0:41 / /mnt/with\\040space\\134and\\040backslash rw - cifs //nas/share rw
33 28 0:42 / /mnt/twice rw - nfs nas:/a rw
34 33 8:2 / /mnt/twice rw - btrfs /dev/sdb rw
35 28 0:43 / /mnt/データ rw - fuse.sshfs me@there:/ rw
this line is none
36 28 - -
"""


class TestWhere:
    @pytest.mark.parametrize(
        ("folder", "kind"),
        [
            ("/var/lib", "ext4"),
            ("/mnt/nas/bridge", "nfs4"),
            ("/mnt/nas", "nfs4"),
            ("/mnt/nasty", "ext4"),
            ("/mnt/nas/local/bridge", "ext4"),
            ("/mnt/with space\\and backslash/x", "cifs"),
            ("/mnt/twice/x", "btrfs"),
            ("/mnt/データ/x", "fuse.sshfs"),
        ],
    )
    def test_the_mount_that_a_folder_lies_on_is_found(self, folder: str, kind: str) -> None:
        """A journal on the NAS gets damaged; one on a disk below the NAS' mount must not be refused."""
        assert file_system(Path(folder), MOUNTS) == kind

    @pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs", "fuse.rclone"])
    def test_a_network_file_system_is_refused_with_what_to_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        """It shares no memory between machines: rows that were answered 200 would be lost there."""
        monkeypatch.setattr(care, "file_system", lambda _: kind)
        with pytest.raises(JournalError, match=rf"is on a network file system \({kind}\).*choose a folder on a disk"):
            prepare(tmp_path / "state" / "journal.db")
        assert not (tmp_path / "state" / "journal.db").exists()

    def test_this_machine_says_what_it_is(self, tmp_path: Path) -> None:
        """By this it is asked in earnest."""
        assert file_system(tmp_path)
        assert file_system(Path("/proc")) == "proc"

    def test_a_machine_that_does_not_say_is_believed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A container without /proc must start as well."""

        def fails(*_: object, **__: object) -> str:
            raise OSError(errno.ENOENT, "no such file")

        monkeypatch.setattr(Path, "read_text", fails)
        assert file_system(tmp_path) == ""

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        """The reason and the setting must stand in the message."""
        (tmp_path / "file").touch()
        with pytest.raises(JournalError, match=r"cannot be made: .*; set journal\.url to another place"):
            prepare(tmp_path / "file" / "journal.db")


# --- room -----------------------------------------------------------------------------------------------------------


class TestBallast:
    @pytest.fixture
    def disk(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        found = SimpleNamespace(f_bavail=2**20, f_frsize=4096)
        monkeypatch.setattr(os, "statvfs", lambda _: found)
        return found

    def test_it_really_takes_the_room(self, tmp_path: Path) -> None:
        """A file with a hole in it holds no room at all."""
        held = Ballast(tmp_path / "ballast", 2**20)
        assert not held.held
        held.hold()
        assert held.held
        assert (tmp_path / "ballast").stat().st_blocks * 512 >= 2**20
        held.hold()
        held.give_up()
        assert not held.held
        held.give_up()

    def test_it_is_not_taken_where_room_is_scarce(self, tmp_path: Path, disk: SimpleNamespace) -> None:
        """It would be the bridge that fills the disk."""
        disk.f_bavail = 4 * 256 - 1
        held = Ballast(tmp_path / "ballast", 2**20)
        held.hold()
        assert not held.held
        disk.f_bavail = 4 * 256
        held.hold()
        assert held.held

    def test_half_of_it_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It would never be completed."""

        def fails(*_: object) -> None:
            raise OSError(errno.ENOSPC, "no space")

        monkeypatch.setattr(os, "posix_fallocate", fails)
        held = Ballast(tmp_path / "ballast", 2**20)
        held.hold()
        assert not held.held

    def test_a_start_on_a_full_disk_gives_it_up(self, path: Path, disk: SimpleNamespace) -> None:
        """After a reboot of a machine whose disk is full, there would be no bridge to say 503."""
        ballast(path).hold()
        disk.f_bavail = RESERVE // 4096
        prepare(path)
        assert ballast(path).held
        disk.f_bavail -= 1
        prepare(path)
        assert not ballast(path).held


# --- damage ---------------------------------------------------------------------------------------------------------


class TestWhole:
    """What is in order stays as it is, and what is not ours is nobody's business."""

    def test_a_first_start_is_no_alarm(self, tmp_path: Path) -> None:
        """An alarm that means nothing teaches not to read them."""
        assert prepare(tmp_path / "journal.db") is None

    def test_a_journal_that_was_closed_in_order(self, path: Path) -> None:
        """Each restart."""
        fill(path, status(1))
        close_in_order(path)
        assert prepare(path) is None
        assert known(path) == {1}

    def test_one_that_was_not_closed_with_all_that_is_in_its_log(self, path: Path) -> None:
        """Each kill and each power cut: what is in the log was answered 200."""
        crashed(path, *(status(number) for number in range(1, 200)))
        assert prepare(path) is None
        assert known(path) == set(range(1, 200))
        assert not aside(path)

    def test_a_log_whose_end_was_never_answered(self, path: Path) -> None:
        """Torn by the power cut, in another boot: it is normal, and no alarm."""
        crashed(path, *(status(number) for number in range(1, 100)))
        log = path.with_name("journal.db-wal")
        os.truncate(log, log.stat().st_size - 5_000)
        path.with_name("journal.db.started").write_text("another boot")
        assert prepare(path) is None
        assert known(path) >= set(range(1, 90))

    def test_a_suspicion_that_proves_wrong_is_forgotten(self, path: Path) -> None:
        """Each start would look closely, for as long as that takes."""
        suspect_mark(path).touch()
        assert prepare(path) is None
        assert not suspect_mark(path).exists()

    def test_the_look_takes_no_longer_than_it_may(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a kill, a journal of a gigabyte on a slow card would keep the bridge away for minutes."""
        fill(path, *(status(number, size=500) for number in range(1, 5_000)))
        overwrite(path, pages_of(path, "updates")[5])  # SQLite begins at the other end
        monkeypatch.setattr(care, "LOOK", -1.0)
        assert mend(path) is None
        suspect_mark(path).touch()
        assert mend(path) is not None

    def test_an_empty_file_that_was_made_beforehand(self, tmp_path: Path) -> None:
        """In a container, with its owner set."""
        (tmp_path / "journal.db").touch()
        assert prepare(tmp_path / "journal.db") is None
        assert known(tmp_path / "journal.db") == set()

    @pytest.mark.parametrize("content", [b"my diary\n" * 1000, b"\0" * 9000, b"SQLite format 3\0" + b"\xff" * 9000])
    def test_somebody_elses_file_is_refused_and_not_touched(self, tmp_path: Path, content: bytes) -> None:
        """A slip in journal.url must not rename somebody's diary."""
        file = tmp_path / "diary.txt"
        file.write_bytes(content)
        with pytest.raises(JournalError, match=r"it is not a database; set journal\.url to a file of its own"):
            prepare(file)
        assert file.read_bytes() == content
        assert [one.name for one in tmp_path.iterdir()] == ["diary.txt"]

    def test_somebody_elses_database_is_refused_and_not_touched(self, tmp_path: Path) -> None:
        """Nor somebody's contacts."""
        file = tmp_path / "contacts.db"
        change(file, "CREATE TABLE contacts (name); INSERT INTO contacts VALUES ('Ann')")
        with pytest.raises(JournalError, match="is a database of another program"):
            prepare(file)
        assert ask(file, "SELECT * FROM contacts") == [("Ann",)]

    def test_a_newer_versions_journal_is_refused_and_not_touched(self, path: Path) -> None:
        """After a downgrade: it is whole, and the version it is for reads it."""
        fill(path, status(1))
        change(path, f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
        with pytest.raises(JournalError, match="was written by a newer version"):
            prepare(path)
        assert not aside(path)

    @pytest.mark.parametrize("error", [apsw.CantOpenError("unable to open"), apsw.BusyError("locked")])
    def test_what_is_no_damage_is_left_to_who_opens_it(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, error: apsw.Error
    ) -> None:
        """Wrong rights would cost the journal."""
        fill(path, status(1))

        def fails(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(care, "_flaw", fails)
        assert mend(path) is None

    @pytest.mark.parametrize(
        ("code", "is_damage"),
        [
            (apsw.SQLITE_IOERR_READ, True),
            (apsw.SQLITE_IOERR_CORRUPTFS, True),
            (apsw.SQLITE_IOERR_SHMSIZE, False),
            (apsw.SQLITE_IOERR_WRITE, False),
        ],
    )
    def test_a_disk_that_is_full_is_no_damage_and_one_that_cannot_be_read_is(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, code: int, is_damage: bool
    ) -> None:
        """A start on a full disk would set the journal aside with all that waits in it."""
        fill(path, status(1))

        def fails(*_: object, **__: object) -> None:
            error = apsw.IOError("disk I/O error")
            error.extendedresult = code  # type: ignore[attr-defined]
            raise error

        monkeypatch.setattr(care, "_flaw", fails)
        assert (mend(path) is not None) is is_damage
        assert known(path) == {1}

    def test_a_folder_in_the_place_of_the_file(self, tmp_path: Path) -> None:
        """`journal.url: sqlite:///data` is an easy slip."""
        with pytest.raises(JournalError, match="it cannot be opened; look at the owner and rights"):
            prepare(tmp_path)

    def test_a_machine_that_does_not_tell_its_boots(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Then no boot is like another: what its log's index says counts for nothing."""
        monkeypatch.setattr(care, "boot_id", lambda: "")
        monkeypatch.setattr(sqlite, "boot_id", lambda: "")
        prepare(path)
        crashed(path, *(status(number) for number in range(1, 50)))
        os.truncate(path.with_name("journal.db-wal"), 0)
        assert prepare(path) is None

    def test_a_mark_that_cannot_be_written_is_no_reason_not_to_start(self, tmp_path: Path) -> None:
        """A full disk."""
        (tmp_path / "journal.db.started").mkdir()
        assert prepare(tmp_path / "journal.db") is None
        assert prepare(tmp_path / "journal.db") is None


def _overwrite_page_1(path: Path) -> None:
    overwrite(path, 1)


def _overwrite_rows(path: Path) -> None:
    overwrite(path, pages_of(path, "updates")[-1])


def _overwrite_what_leads_to_rows(path: Path) -> None:
    overwrite(path, pages_of(path, "updates")[0])


def _overwrite_an_index(path: Path) -> None:
    overwrite(path, pages_of(path, "sqlite_autoindex_updates_1")[-1], b"\0" * PAGE)


def _lose_the_schemas_version(path: Path) -> None:
    overwrite(path, 1, b"\0\0\0\0", 60)


def _garble_the_schemas_version(path: Path) -> None:
    overwrite(path, 1, b"\x7f\xff\xff\xff", 60)


def _garble_whose_it_is(path: Path) -> None:
    overwrite(path, 1, b"what", 68)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // PAGE // 2 * PAGE)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _no_text(path: Path) -> None:
    change(path, "UPDATE updates SET document = CAST(x'7bff7d' AS TEXT) WHERE seq = 7")


def _no_json(path: Path) -> None:
    change(path, "UPDATE updates SET document = 'nonsense' WHERE seq = 7")


def _no_kind(path: Path) -> None:
    change(path, "UPDATE ledger SET kind = 'nonsense' WHERE topic = 'm7/status'")


def _settled_beyond(path: Path) -> None:
    change(path, "UPDATE facts SET value = 1000000 WHERE name = 'settled'")


def _settled_is_no_number(path: Path) -> None:
    change(path, "UPDATE facts SET value = 'many' WHERE name = 'settled'")


def _lose_a_table(path: Path) -> None:
    change(path, "DELETE FROM sqlite_schema WHERE name = 'facts'")


DAMAGES: list[tuple[Callable[[Path], None], int]] = [
    (_overwrite_page_1, 500),
    (_overwrite_rows, 480),
    (_overwrite_what_leads_to_rows, 500),
    (_overwrite_an_index, 500),
    (_lose_the_schemas_version, 500),
    (_garble_the_schemas_version, 500),
    (_garble_whose_it_is, 500),
    (_cut, 150),
    (_empty, 0),
    (_no_text, 499),
    (_no_json, 499),
    (_no_kind, 500),
    (_settled_beyond, 500),
    (_settled_is_no_number, 500),
    (_lose_a_table, 500),
]


class TestDamage:
    @pytest.mark.parametrize(("damage", "saved"), DAMAGES, ids=lambda one: getattr(one, "__name__", None))
    def test_it_is_noticed_kept_told_and_mended(self, path: Path, damage: Callable[[Path], None], saved: int) -> None:
        """A bridge that does not start any more, or one that starts anew and keeps silent about what it lost."""
        fill(path, *(status(number, size=100) for number in range(1, 501)))
        damage(path)
        content = path.read_bytes()
        with capture_logs() as logs:
            alarm = prepare(path)
        (kept,) = aside(path)
        assert kept.read_bytes() == content
        found = known(path)
        assert len(found) >= saved
        assert alarm is not None
        assert f"it is kept as {kept.name}, and {len(found)} updates of it were saved" in alarm
        assert [line["updates_saved"] for line in logs if line["event"] == "the journal was damaged"] == [len(found)]
        fill(path, status(1_000))
        assert 1_000 in known(path)
        close_in_order(path)
        assert prepare(path) is None

    def test_a_second_time_keeps_both(self, path: Path) -> None:
        """The first one may hold what somebody still wants to have."""
        for number in (1, 2, 3):
            fill(path, status(number))
            _garble_whose_it_is(path)
            prepare(path)
        assert len(aside(path)) == 3

    def test_damage_met_while_running_is_looked_for_although_all_ended_in_order(self, path: Path) -> None:
        """The bridge would meet it again at each start."""
        fill(path, *(status(number) for number in range(1, 100)))
        close_in_order(path)
        _overwrite_rows(path)
        assert mend(path) is None
        suspect_mark(path).touch()
        assert mend(path) is not None
        assert not suspect_mark(path).exists()

    def test_a_log_that_lost_its_middle_after_a_crash_of_the_bridge_alone(self, path: Path) -> None:
        """SQLite stops reading there and says nothing: what came after was answered 200."""
        crashed(path, *(status(number) for number in range(1, 100)))
        with path.with_name("journal.db-wal").open("r+b") as log:
            log.seek(32 + 50 * (24 + PAGE))
            log.write(b"\xa5" * 500)
        alarm = prepare(path)
        assert alarm is not None
        assert "its write-ahead log is damaged" in alarm
        assert len(known(path)) >= 98

    def test_an_index_of_the_log_that_says_nothing(self, path: Path) -> None:
        """It may be anything: then it is as if there was none."""
        crashed(path, status(1))
        index = path.with_name("journal.db-shm")
        good = index.read_bytes()
        assert carve.frames_written(path) > 0
        for bad in (b"", good[:50], b"\0" * 200, good[:16] + b"\xff" + good[17:]):
            index.write_bytes(bad)
            assert carve.frames_written(path) == 0
        index.unlink()
        assert carve.frames_written(path) == 0

    def test_no_room_for_a_new_one_leaves_the_damaged_one_in_its_place(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Set aside, with nothing in its place, the next start would begin with an empty journal and no alarm."""
        fill(path, status(1))
        _garble_whose_it_is(path)
        content = path.read_bytes()

        def fails(*_: object) -> int:
            raise apsw.FullError("database or disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(care, "_save", fails)
            with pytest.raises(JournalError, match=r"is damaged .*, and a new one cannot be made: .*full"):
                prepare(path)
        assert path.read_bytes() == content
        assert prepare(path) is not None
        assert known(path) == {1}

    def test_a_start_that_was_cut_off_between_the_two_files_is_completed(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The power went in that moment: what was saved must not stay in a file that nobody reads."""
        crashed(path, status(1), status(2))
        _garble_whose_it_is(path)

        def cut_off(_: Path, __: Path) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", cut_off)
            with pytest.raises(KeyboardInterrupt):
                prepare(path)
        assert not path.exists()
        # A log that stayed behind belongs to the old one.
        path.with_name("journal.db-wal").write_bytes(
            aside(path)[0].with_name(f"{aside(path)[0].name}-wal").read_bytes()
        )
        alarm = prepare(path)
        assert alarm is not None
        assert "was damaged" in alarm
        assert known(path) == {1, 2}
        assert len(list(path.parent.glob("journal.db.corrupt-*-wal"))) == 2
        assert not path.with_name("journal.db.mending").exists()

    def test_what_a_start_that_was_cut_off_left_behind_is_tidied_away(self, path: Path) -> None:
        """Half a journal beside the journal: the next damage would begin with it."""
        left = path.with_name("journal.db.mending")
        left.write_bytes(b"half")
        prepare(path)
        assert not left.exists()

    @given(seed=st.integers(0, 2**32))
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    def test_whatever_stands_in_the_file_it_starts(self, tmp_path: Path, seed: int) -> None:
        """Any other error at the start is a bridge that stays away until somebody looks."""
        chance = random.Random(seed)
        path = tmp_path / f"{seed}" / "journal.db"
        prepare(path)
        fill(path, *(status(number, size=chance.choice((1, 50, 4_000))) for number in range(1, 60)), dead=2)
        size = path.stat().st_size
        with path.open("r+b") as file:
            for _ in range(chance.randint(1, 8)):
                file.seek(chance.randrange(size))
                file.write(chance.choice((chance.randbytes, bytes))(chance.randint(1, 5_000)))
        try:
            prepare(path)
            fill(path, status(1_000))
            known(path)
        except JournalError:
            # A damage that is met only by reading; the next start looks closely.
            assert suspect_mark(path).exists()
            prepare(path)
            fill(path, status(1_000))
            assert 1_000 in known(path)
        shutil.rmtree(path.parent)


# --- salvage --------------------------------------------------------------------------------------------------------


class TestSalvage:
    def mended(self, path: Path) -> None:
        _garble_whose_it_is(path)
        assert prepare(path) is not None

    def test_rows_come_back_as_they_were(self, path: Path) -> None:
        """A publisher that finds something else than was stored sends something else than was sent to it."""
        fill(path, status(1, size=20), status(2, message="long", size=9_000), click(3), settled=1, dead=2)
        tables = ("updates", "dead_letters", "ledger", "ticks")
        before = [ask(path, f"SELECT * FROM {table}") for table in tables]
        self.mended(path)
        assert [ask(path, f"SELECT * FROM {table}") for table in tables] == before

    def test_what_was_settled_is_not_sent_again(self, path: Path) -> None:
        """A damaged card would fire every click of the last month."""
        fill(path, *(status(number) for number in range(1, 10)), settled=7)
        self.mended(path)
        with SqliteJournal(path) as journal:
            assert journal.settled() == 7

    @pytest.mark.parametrize("settled", ["'many'", "-1", "1000000"])
    def test_where_that_is_lost_the_last_minutes_are_sent_again(self, path: Path, settled: str) -> None:
        """Rather twice with the same event_id than never; but not the whole month."""
        old = [status(number, received=NOW - 1_000) for number in range(1, 6)]
        fill(path, *old, *(status(number) for number in range(6, 10)), settled=8)
        change(path, f"UPDATE facts SET value = {settled} WHERE name = 'settled'")
        self.mended(path)
        with SqliteJournal(path) as journal:
            assert journal.settled() == 5

    def test_places_that_are_given_again_do_not_count_as_settled(self, path: Path) -> None:
        """The next updates would take those places, and never be published."""
        fill(path, *(status(number) for number in range(1, 10)), settled=9)
        change(path, "DELETE FROM updates WHERE seq > 5; UPDATE sqlite_sequence SET seq = 9")
        self.mended(path)
        with SqliteJournal(path) as journal:
            assert journal.settled() == 5
            journal.append([Callback((status(50),))])
            assert [stored.seq for stored in journal.pending(journal.settled(), 10)] == [6]

    def test_it_is_another_journal_to_the_broker(self, path: Path) -> None:
        """The broker's checkpoint names places of the old one: topics would not be restored."""
        fill(path, status(1), settled=1)
        with SqliteJournal(path) as journal:
            before = journal.identity()
        self.mended(path)
        with SqliteJournal(path) as journal:
            assert journal.identity() != before

    def test_what_was_taken_off_the_broker_does_not_stand_again(self, path: Path) -> None:
        """Last month's states would be back on the dashboard."""
        fill(path, status(1), status(2), status(3), settled=3)
        with SqliteJournal(path) as journal:
            journal.expire(Kind.STATUS, 2, 100)
            journal.cleared(["m1/status"])
        before = dict(ask(path, "SELECT topic, state FROM ledger"))
        self.mended(path)
        assert dict(ask(path, "SELECT topic, state FROM ledger")) == before
        assert before == {"last/status": 0, "m1/status": 2, "m2/status": 1, "m3/status": 0}

    def test_an_update_that_is_lost_is_not_replaced_by_an_older_one(self, path: Path) -> None:
        """`read` stands on the broker; `delivered`, which could be saved, must not go over it (promise 4)."""
        fill(path, status(1, message="m", rank=2), status(2, message="m", rank=3), click(3), settled=3)
        change(path, "DELETE FROM updates WHERE seq = 2")
        self.mended(path)
        with SqliteJournal(path) as journal:
            assert [row.topic for row in journal.retained((0, ""), 10, 10)] == ["button/gate", "last/button"]
            journal.append([Callback((status(4, message="m", rank=2),))])
            assert [stored.advances for stored in journal.pending(3, 10)] == [False]
            # Its time comes nevertheless.
            assert journal.expire(Kind.STATUS, 2, 10) == 1
            assert journal.clearing(10) == ["m/status"]

    def test_topics_stand_where_the_ledger_is_lost(self, path: Path) -> None:
        """They could not be restored, nor taken away."""
        fill(path, status(1, message="m", rank=2), status(2, message="m", rank=3), click(3), settled=3)
        change(path, "DELETE FROM ledger")
        self.mended(path)
        with SqliteJournal(path) as journal:
            rows = {row.topic: row.seq for row in journal.retained((0, ""), 10, 10)}
        assert rows == {"button/gate": 3, "last/button": 3, "last/status": 2, "m/status": 2}

    def test_nonsense_in_the_ledger_does_not_come_along(self, path: Path) -> None:
        """A state that there is not would never be cleared; and it must not cost the rest."""
        fill(path, status(1), status(2), settled=2)
        change(path, "UPDATE ledger SET state = 77 WHERE topic = 'm1/status'")
        change(path, "UPDATE ledger SET kind = 'nonsense' WHERE topic = 'm2/status'")
        self.mended(path)
        assert dict(ask(path, "SELECT topic, state FROM ledger")) == {"last/status": 0, "m1/status": 0, "m2/status": 0}

    def test_time_goes_on(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Topics would stand for another week from the day of the damage on."""
        fill(path, status(1), settled=1)
        change(path, "UPDATE facts SET value = 5000.5 WHERE name = 'elapsed'; INSERT INTO ticks VALUES (4000, 1)")
        change(path, "UPDATE facts SET value = 'a boot' WHERE name = 'tick_boot'")
        self.mended(path)
        assert ask(path, "SELECT value FROM facts WHERE name IN ('elapsed', 'tick_boot') ORDER BY name") == [
            (5000.5,),
            ("a boot",),
        ]
        with SqliteJournal(path) as journal:
            assert journal.stored_before(4000) == 1

    def test_what_home_assistant_was_told_comes_along(self, path: Path) -> None:
        """Buttons would change their names, and what stands on the broker would never be taken away."""
        fill(path, status(1), click(2), settled=2)
        with SqliteJournal(path) as journal:
            journal.learn(
                [Learned("button", "gate", "Open the gate", 2, 2, True), Learned("phone", "1555", "1555", 1, 1)]
            )
            journal.note_discoveries(put=["homeassistant/device_automation/one/config"])
            counted = journal.tally("2026-09-21")
            before = journal.learned()
        self.mended(path)
        with SqliteJournal(path) as journal:
            assert journal.learned() == before
            assert journal.discoveries() == {"homeassistant/device_automation/one/config"}
            assert journal.tally("2026-09-21") == counted
            assert counted.total

    def test_places_that_are_given_again_are_counted(self, path: Path) -> None:
        """The counts of statuses would stand still until the lost places are reached."""
        fill(path, status(1), settled=1)
        with SqliteJournal(path) as journal:
            journal.tally("2026-09-21")
        change(path, "UPDATE facts SET value = json_set(value, '$.upto', 77) WHERE name = 'tally'")
        self.mended(path)
        with SqliteJournal(path) as journal:
            assert journal.tally("2026-09-21").upto == 1

    @pytest.mark.parametrize(
        "tally", ["no JSON", "[]", '{"upto":1}', '{"upto":"x","day":"","total":{},"today":{},"failed":1}']
    )
    def test_counts_of_no_sense_begin_anew(self, path: Path, tally: str) -> None:
        """A bridge that cannot read its counts would not start."""
        fill(path, status(1), settled=1)
        change(path, f"INSERT INTO facts VALUES ('tally', '{tally}')")
        self.mended(path)
        with SqliteJournal(path) as journal:
            assert journal.tally("2026-09-21").upto == 1

    def test_time_that_is_lost_begins_with_the_last_tick(self, path: Path) -> None:
        """Before it, nothing would come to its age until the new time had caught up."""
        fill(path, status(1), settled=1)
        change(path, "DELETE FROM facts WHERE name = 'tick_boot'; INSERT INTO ticks VALUES (4000, 1)")
        self.mended(path)
        assert ask(path, "SELECT value FROM facts WHERE name = 'elapsed'") == [(4000.0,)]

    def test_seconds_since_boot_count_in_their_own_boot_only(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Taken for this boot's, an old click would seem to have come just now: the gate opens."""
        fill(path, click(1))
        self.mended(path)
        with SqliteJournal(path) as journal:
            assert [stored.uptime is None for stored in journal.pending(0, 10)] == [False]
        monkeypatch.setattr(care, "boot_id", lambda: "another")
        monkeypatch.setattr(sqlite, "boot_id", lambda: "another")
        self.mended(path)
        with SqliteJournal(path) as journal:
            assert [stored.uptime is None for stored in journal.pending(0, 10)] == [True]

    def test_rows_of_no_sense_are_left_out(self, path: Path) -> None:
        """One bad row must not cost the others (promise 8), nor come along."""
        fill(path, *(status(number) for number in range(1, 8)))
        # Of its rows, some break what the schema or the program takes for granted.
        for seq, broken in {
            1: "kind = 'nonsense'",
            2: "document = 'no JSON'",
            3: "document = CAST(x'ff' AS TEXT)",
            4: "event_id = x'00'",
            5: "seq = -5",
        }.items():
            change(path, f"UPDATE updates SET {broken} WHERE seq = {seq}")
        self.mended(path)
        assert known(path) == {6, 7}
        assert ask(path, "SELECT min(seq) FROM updates") == [(6,)]

    def test_types_that_the_schema_does_not_allow_are_left_out(self, path: Path) -> None:
        """As damage may well make an integer of a text."""
        fill(path, status(1), status(2), settled=2)
        change(path, "UPDATE sqlite_schema SET sql = replace(sql, ') STRICT', ')') WHERE name = 'updates'")
        change(path, "UPDATE updates SET rank = 'high' WHERE seq = 1")
        self.mended(path)
        assert known(path) == {2}


# --- rows out of raw pages ------------------------------------------------------------------------------------------


def carved(path: Path) -> list[carve.Row]:
    with carve.Pages(path) as pages:
        return list(pages.rows())


def carved_updates(path: Path) -> dict[int | None, tuple[carve.Value, ...]]:
    return {row.key: row.values[1:] for row in carved(path) if len(row.values) == 12}


class TestCarving:
    def test_nothing_is_there(self, tmp_path: Path) -> None:
        """A journal that vanished in the meantime."""
        assert carved(tmp_path / "journal.db") == []

    @given(sizes=st.lists(st.integers(0, 20_000), min_size=1, max_size=12))
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    def test_rows_of_any_size_are_read_as_sqlite_reads_them(self, tmp_path: Path, sizes: list[int]) -> None:
        """A long text goes over many pages, and where it is cut follows from its length."""
        path = tmp_path / "journal.db"
        for suffix in ("", "-wal", "-shm", ".started"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        prepare(path)
        fill(path, *(status(number, size=size) for number, size in enumerate(sizes, 1)))
        wanted = {row[0]: row[1:] for row in ask(path, "SELECT * FROM updates")}
        assert carved_updates(path) == wanted

    def test_long_topics_in_the_ledger_as_well(self, path: Path) -> None:
        """What does not fit on an index' page goes over several of them, by another rule."""
        fill(path, *(status(number, message="x" * (700 + 300 * number)) for number in range(1, 12)))
        wanted = set(ask(path, "SELECT * FROM ledger"))
        assert {row.values for row in carved(path) if len(row.values) == 8} == wanted

    def test_numbers_of_all_lengths(self, tmp_path: Path) -> None:
        """Each has a shape of its own on the page."""
        path = tmp_path / "numbers.db"
        numbers = [sign * (2**bits - one) for bits in range(63) for one in (0, 1) for sign in (1, -1)] + [0.5, None, ""]
        db = apsw.Connection(str(path))
        db.pragma("page_size", PAGE)
        db.execute("CREATE TABLE t (a)")
        db.executemany("INSERT INTO t VALUES (?)", [(number,) for number in numbers])
        db.execute("INSERT INTO t (rowid, a) VALUES (-1, 'last'), (9223372036854775807, 'first')")
        wanted = set(db.execute("SELECT rowid, a FROM t"))
        db.close()
        assert {(row.key, row.values[0]) for row in carved(path) if len(row.values) == 1} >= wanted

    def test_the_newest_version_of_a_page_counts(self, path: Path) -> None:
        """The log holds a page many times over: an old one would undo what came after."""
        crashed(path, *(status(number) for number in range(1, 100)))
        assert {int(row[0].hex(), 16) for row in carved_updates(path).values()} == set(range(1, 100))  # type: ignore[union-attr]

    def test_an_older_version_helps_out_where_the_newest_is_damaged(self, path: Path) -> None:
        """What stood on the page before is better than nothing."""
        crashed(path, *(status(number) for number in range(1, 4)))
        log = path.with_name("journal.db-wal")
        content = bytearray(log.read_bytes())
        # The last version of the page with all three.
        place = content.rfind(status(3).document.encode())
        page = 32 + (place - 32) // (24 + PAGE) * (24 + PAGE) + 24
        content[page + 8 : page + 14] = b"\xff" * 6  # where its rows are
        log.write_bytes(content)
        with carve.Pages(path) as pages:
            assert len(pages._frames[int.from_bytes(content[page - 24 : page - 20])]) == 3
        assert {int(row[0].hex(), 16) for row in carved_updates(path).values()} == {1, 2}  # type: ignore[union-attr]

    def test_what_was_deleted_stays_deleted(self, path: Path) -> None:
        """Pages that are not in use still hold what was pruned: it must not rise again."""
        fill(path, *(click(number) for number in range(1, 3_000)), settled=2_999)
        with SqliteJournal(path) as journal:
            journal.prune(2_999, 10_000)
        assert len(carved_updates(path)) < 50

    def test_a_list_of_free_pages_that_is_damaged_costs_nothing(self, path: Path) -> None:
        """It leads in circles, or to where there is nothing."""
        fill(path, *(status(number) for number in range(1, 100)))
        for first in (3, 1, 10**6):
            overwrite(path, 1, first.to_bytes(4), 32)
            assert len(carved_updates(path)) > 50

    def test_the_last_turn_of_the_log_is_known_without_its_header(self, path: Path) -> None:
        """The beginning of a file is what is overwritten most often."""
        crashed(path, *(status(number) for number in range(1, 60)))
        log = path.with_name("journal.db-wal")
        with log.open("r+b") as file:
            file.write(b"\xa5" * 32)
        os.truncate(path, 0)
        assert len(carved_updates(path)) == 59

    def test_what_is_behind_the_last_turn_of_the_log_is_history(self, path: Path) -> None:
        """It was brought into the file before, and is older than what stands there."""
        with SqliteJournal(path) as journal:
            for number in range(1, 100):
                journal.append([Callback((status(number),))])
            journal._opened().wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
            journal.append([Callback((status(100),))])
            log = path.with_name("journal.db-wal").read_bytes()
            assert len(log) > 50 * PAGE
            with carve.Pages(path) as pages:
                assert 0 < sum(map(len, pages._frames.values())) < 20

    @given(data=st.binary(max_size=PAGE), start=st.integers(0, PAGE - 1), kind=st.sampled_from([0x0D, 0x0A, 0x02]))
    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    def test_nonsense_is_never_an_error(self, tmp_path: Path, data: bytes, start: int, kind: int) -> None:
        """One page of it, and nothing at all would be saved."""
        path = tmp_path / "nonsense.db"
        page = bytearray(random.Random(len(data)).randbytes(PAGE))
        page[start : start + len(data)] = data
        page[0] = kind
        path.write_bytes((b"\0" * PAGE + bytes(page[:PAGE])) * 2 + b"\x0d")
        carved(path)

    @pytest.mark.parametrize("record", [b"\x02\x0a", b"\x02\x0b", b"\x02\x01\x05\x05", b"\x02\x17ab", b"\x03\x01\x01"])
    def test_what_is_no_record_is_told(self, record: bytes) -> None:
        """A shape that SQLite never writes, more or less than there should be: taken at its word, it would mislead."""
        with pytest.raises((carve.UnreadableError, IndexError)):
            carve._values(record)

    def test_a_text_that_goes_on_where_nothing_is(self, path: Path) -> None:
        """The row is lost, and no other."""
        fill(path, status(1, size=9_000), status(2))
        (first, *_) = ask(path, "SELECT pageno FROM dbstat WHERE name = 'updates' AND pagetype = 'overflow'")
        os.truncate(path, (first[0] - 1) * PAGE)  # type: ignore[operator]
        assert set(carved_updates(path)) == {2}

    def test_a_storage_that_does_not_give_a_page_gives_the_others(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A worn card has places that cannot be read any more."""
        fill(path, *(status(number) for number in range(1, 300)))
        bad = pages_of(path, "updates")[-1]
        read = os.pread

        def worn(file: int, size: int, offset: int) -> bytes:
            if offset == (bad - 1) * PAGE:
                raise OSError(errno.EIO, "Input/output error")
            return read(file, size, offset)

        monkeypatch.setattr(os, "pread", worn)
        assert 250 < len(carved_updates(path)) < 299


# --- copies ---------------------------------------------------------------------------------------------------------


class TestBackup:
    def test_a_copy_is_whole_and_for_its_owner_only(self, path: Path, tmp_path: Path) -> None:
        """It holds phone numbers, and is the only thing left when the card dies."""
        fill(path, *(status(number) for number in range(1, 50)), settled=20)
        copy = tmp_path / "copy.db"
        assert backup(path, copy) == copy.stat().st_size
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
        assert ask(copy, "PRAGMA integrity_check") == [("ok",)]
        assert len(ask(copy, "SELECT * FROM updates")) == 49
        assert sorted(one.name for one in tmp_path.iterdir()) == ["copy.db", "state"]

    def test_it_is_of_one_moment_while_somebody_writes(self, path: Path, tmp_path: Path) -> None:
        """A copy with half of an update would be refused on the day it is needed."""
        stop, begun = threading.Event(), threading.Event()
        stored = [0]

        def write() -> None:
            with SqliteJournal(path) as journal:
                while not stop.is_set():
                    number = stored[0] + 1
                    journal.append([Callback((status(number, message="m", rank=number),))])
                    stored[0] = number
                    begun.set()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            assert begun.wait(20)
            for number in range(5):
                before = stored[0]
                copy = tmp_path / f"copy{number}.db"
                backup(path, copy)
                assert ask(copy, "PRAGMA integrity_check") == [("ok",)]
                ((newest,),) = ask(copy, "SELECT max(seq) FROM updates")
                ((holder,),) = ask(copy, "SELECT seq FROM ledger WHERE topic = 'm/status'")
                assert newest == holder
                assert before <= newest <= stored[0] + 1  # type: ignore[operator]
        finally:
            stop.set()
            writer.join()

    def test_an_older_copy_is_replaced_at_once_or_not_at_all(
        self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A disk that is full in the middle would cost yesterday's copy."""
        copy = tmp_path / "copy.db"
        copy.write_bytes(b"yesterday's")
        with monkeypatch.context() as patch:

            def fails(_: int) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(os, "fsync", fails)
            with pytest.raises(
                JournalError, match=r"backup .*copy\.db: cannot be written: No space left on device; name"
            ):
                backup(path, copy)
        assert copy.read_bytes() == b"yesterday's"
        assert not (tmp_path / "copy.db.unfinished").exists()
        backup(path, copy)
        assert ask(copy, "PRAGMA integrity_check") == [("ok",)]

    @pytest.mark.parametrize("name", ["journal.db", "journal.db-wal", "../state/journal.db", "link.db"])
    def test_the_journal_is_no_place_for_its_own_copy(self, path: Path, name: str) -> None:
        """The bridge would go on with a file that is not there any more, and all that it answers 200 is lost."""
        path.with_name("link.db").symlink_to(path)
        inode = path.stat().st_ino
        with pytest.raises(JournalError, match="is the journal itself; name another file"):
            backup(path, path.parent / name)
        assert path.stat().st_ino == inode

    def test_a_journal_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        """Backups that fail in silence are found out on the worst day."""
        with pytest.raises(JournalError, match="does not exist; is this the configuration the bridge runs with"):
            backup(tmp_path / "journal.db", tmp_path / "copy.db")

    def test_a_place_that_cannot_be_written_is_named(self, path: Path, tmp_path: Path) -> None:
        """As above."""
        with pytest.raises(JournalError, match=r"backup .*: there is no folder .*nowhere; make it first"):
            backup(path, tmp_path / "nowhere" / "copy.db")

    def test_a_place_where_no_file_can_be_made_is_told_in_the_systems_words(self, path: Path) -> None:
        """SQLite's "unable to open database file" leaves open which one, and why."""
        with pytest.raises(JournalError, match=r"backup /proc/x\.db: cannot be written: No such file .*; name a file"):
            backup(path, Path("/proc/x.db"))

    def test_who_may_read_the_journals_folder_alone_is_told_that_it_is_the_journal(self, path: Path) -> None:
        """SQLite has to write beside what it reads; the user would look at the rights of the copy's folder."""
        fill(path, status(1))
        with tempfile.TemporaryDirectory() as folder:
            readable = Path(folder) / "journal.db"
            shutil.copyfile(path, readable)
            Path(folder).chmod(0o555)
            with (
                as_nobody(),
                pytest.raises(JournalError, match=r"journal .*: cannot be read; make the backup as the bridge's user"),
            ):
                backup(readable, Path("/tmp/copy-of-nobody.db"))
            with as_nobody(), pytest.raises(JournalError, match=r"restore: .* cannot be opened; copy it, and journal"):
                restore(readable, Path("/tmp/journal-of-nobody.db"))
            Path(folder).chmod(0o700)

    def test_a_journal_that_is_damaged_is_no_fault_of_the_copys_place(self, path: Path, tmp_path: Path) -> None:
        """The user would look for another disk for the copy, while the journal's own fails."""
        path.write_bytes(b"\xff" * 10_000)
        with pytest.raises(JournalError, match=r"journal .*: is damaged .*; start the bridge, it mends it"):
            backup(path, tmp_path / "copy.db")

    def test_another_user_is_told_that_it_is_the_journal_which_cannot_be_read(
        self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They would look at the rights of the copy's folder, in vain."""
        monkeypatch.setattr(os, "access", lambda *_: False)  # root may read all
        with pytest.raises(JournalError, match=r"journal .*: cannot be read; make the backup as the bridge's user"):
            backup(path, tmp_path / "copy.db")


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write everywhere; whoever is not root already may not."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(was)


class TestRestore:
    @pytest.fixture
    def copy(self, path: Path, tmp_path: Path) -> Path:
        file = tmp_path / "copy.db"
        fill(path, status(1), status(2), settled=1)
        backup(path, file)
        return file

    def test_it_takes_the_journals_place_and_the_one_before_is_kept(self, path: Path, copy: Path) -> None:
        """Whoever restores the wrong copy must be able to go back."""
        crashed(path, status(3))
        before = restore(copy, path)
        assert before is not None
        assert before.name.startswith("journal.db.before-restore-")
        assert known(path) == {1, 2}
        assert known(before) == {1, 2, 3}
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert prepare(path) is None
        assert not path.with_name("journal.db.restoring").exists()

    def test_it_is_another_journal_to_the_broker(self, path: Path, copy: Path) -> None:
        """The broker's checkpoint would say that all of it stands there already."""
        with SqliteJournal(path) as journal:
            identity = journal.identity()
        restore(copy, path)
        with SqliteJournal(path) as journal:
            assert journal.identity() != identity
            assert journal.settled() == 1

    def test_on_a_new_machine(self, copy: Path, tmp_path: Path) -> None:
        """There is no journal yet, nor its folder."""
        path = tmp_path / "new" / "state" / "journal.db"
        assert restore(copy, path) is None
        assert prepare(path) is None
        assert known(path) == {1, 2}

    def test_a_log_that_stayed_behind_is_not_taken_for_its_own(self, path: Path, copy: Path) -> None:
        """Who deletes journal.db and forgets journal.db-wal would have the old log written into the new journal."""
        crashed(path, *(status(number) for number in range(3, 50)))
        path.unlink()
        restore(copy, path)
        assert known(path) == {1, 2}
        assert ask(path, "PRAGMA integrity_check") == [("ok",)]

    def test_a_copy_made_by_hand_with_its_log_beside_it_is_whole(self, path: Path, tmp_path: Path) -> None:
        """`cp journal.db*` of a bridge that was killed: the last updates are in the log."""
        crashed(path, *(status(number) for number in range(1, 50)))
        byhand = tmp_path / "byhand"
        shutil.copytree(path.parent, byhand)
        restore(byhand / "journal.db", path)
        assert known(path) == set(range(1, 50))

    def test_what_is_no_copy_is_refused(self, path: Path, tmp_path: Path) -> None:
        """The journal would be replaced by somebody's photo."""
        fill(path, status(1))
        for name, content, words in (
            ("photo.jpg", b"\xff\xd8" * 5_000, "is no journal of this program"),
            ("empty.db", b"", "is no journal of this program"),
        ):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(JournalError, match=words):
                restore(tmp_path / name, path)
        change(tmp_path / "theirs.db", "CREATE TABLE theirs (a)")
        with pytest.raises(JournalError, match="is no journal of this program"):
            restore(tmp_path / "theirs.db", path)
        with pytest.raises(JournalError, match=r"nothing\.db cannot be opened; copy it"):
            restore(tmp_path / "nothing.db", path)
        assert known(path) == {1}
        assert not aside(path, "before-restore")

    def test_one_of_a_newer_version_is_refused(self, path: Path, copy: Path) -> None:
        """This version would not know what is in it."""
        change(copy, f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
        with pytest.raises(JournalError, match="was written by a newer version; install that one first"):
            restore(copy, path)
        assert not aside(path, "before-restore")

    def test_a_damaged_one_is_refused(self, path: Path, copy: Path) -> None:
        """It would be in the place of one that works."""
        overwrite(copy, pages_of(copy, "sqlite_autoindex_updates_1")[0])
        with pytest.raises(JournalError, match="is damaged"):
            restore(copy, path)
        assert not aside(path, "before-restore")

    def test_a_disk_that_fails_leaves_the_journal_in_its_place(
        self, path: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A restore that fails must not cost what was there."""

        def fails(_: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fails)
            with pytest.raises(JournalError, match=r"copy\.db cannot be put in place of .*: Input/output error; mend"):
                restore(copy, path)
        assert known(path) == {1, 2}


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    """Connections that are left open hold locks on files that others want."""
    handles = Path("/proc/self/fd")
    before = len(list(handles.iterdir()))
    yield
    assert len(list(handles.iterdir())) <= before
