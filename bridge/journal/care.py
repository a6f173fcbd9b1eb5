"""What happens to a journal at the start: refuse a network file system, look for damage, save what can be saved."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import structlog

from bridge.journal import JournalError
from bridge.journal import sqlite as journal

log = structlog.get_logger()

#: File systems on which a write-ahead log corrupts: they share no memory between machines, and their locks lie.
NETWORK_FILE_SYSTEMS = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "ncpfs", "davfs"),
        *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone", "fuse.davfs", "fuse.curlftpfs"),
    )
)

#: Seconds that the look for damage may take after the bridge did not end in order; when damage was met, as long as
#: it takes.
LOOK = 5.0

#: Seconds; if it is not known any more what was settled, what was received earlier than this before the damage is
#: taken for settled, and the rest is published again.
UNSETTLED = 300.0


def refuse_network_file_system(folder: Path) -> None:
    """Raise JournalError if this folder lies on a network file system.

    Raises:
        JournalError: It does.
    """
    kind = file_system(folder)
    if kind in NETWORK_FILE_SYSTEMS:
        raise JournalError(
            f"journal.url: {folder} is on a network file system ({kind}), where a journal gets damaged; "
            "choose a folder on a disk of this machine"
        )


def file_system(folder: Path, mountinfo: str | None = None) -> str:
    """The kind of file system that a folder lies on, as the kernel names it; empty if it does not say.

    Args:
        folder: Exists.
        mountinfo: What `/proc/self/mountinfo` says (proc(5)), read if None.
    """
    if mountinfo is None:
        try:
            mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return ""
    where = str(folder.resolve())
    best, kind = "", ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:
            continue
        point = fields[4].encode("latin-1", "surrogateescape").decode("unicode_escape")
        inside = where == point or where.startswith(point.rstrip("/") + "/")
        # The last of equal ones lies on top.
        if inside and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind


def prepare(path: Path) -> str | None:
    """Make a journal ready for this start: made, whole, and of this version's schema.

    Returns:
        An alarm in words for the user, if the old one was damaged; None if all is well.

    Raises:
        JournalError: It cannot be used, e.g. on a network file system.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise JournalError(
            f"journal {path}: cannot be made: {error.strerror}; set journal.url to another place"
        ) from error
    refuse_network_file_system(path.parent)
    alarm = mend(path)
    journal.SqliteJournal(path).create()
    return alarm


def mend(path: Path) -> str | None:
    """Look at a journal that may be damaged; set a damaged one aside, and save what can be saved into a new one.

    Returns:
        What happened, in words for the user; None if all is well.
    """
    if not path.exists():
        return None
    damage = _damage(path)
    if damage is None:
        journal.suspect_mark(path).unlink(missing_ok=True)
        return None
    aside = _set_aside(path, "corrupt")
    journal.SqliteJournal(path).create()
    saved = _save(aside, path)
    journal.suspect_mark(path).unlink(missing_ok=True)
    words = f"the journal was damaged ({damage}); it is kept as {aside.name}, and {saved} updates of it were saved"
    log.error("the journal was damaged", why=damage, kept_as=str(aside), updates_saved=saved)
    return words


def _damage(path: Path) -> str | None:
    """What is wrong with the file, or None. Looks closely only if the bridge did not end in order."""
    suspect = journal.suspect_mark(path).exists()
    try:
        db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            db.set_busy_timeout(journal.BUSY_TIMEOUT)
            if db.pragma("application_id") != journal.APPLICATION_ID:
                # Empty, or another program's: that is told apart when the schema is looked at.
                return None
            clean = db.execute("SELECT value FROM facts WHERE name = 'clean'").get
            if clean and not suspect:
                return None
            deadline = None if suspect else time.monotonic() + LOOK
            db.set_progress_handler(lambda: deadline is not None and time.monotonic() > deadline, 10_000)
            found = db.execute("PRAGMA quick_check(1)").get
            return None if found == "ok" else str(found)
        finally:
            db.close()
    except apsw.InterruptError:
        return None
    except apsw.NotADBError:
        # A lock beside it shows that it was a journal; without one, it may be anybody's file.
        return "it is no database any more" if path.with_suffix(".lock").exists() else None
    except (apsw.CorruptError, apsw.SQLError, apsw.IOError) as error:
        return str(error)


def _save(damaged: Path, path: Path) -> int:
    """Copy what can be read of a damaged journal into the new one; how many updates."""
    try:
        source = apsw.Connection(str(damaged), flags=apsw.SQLITE_OPEN_READWRITE)
    except apsw.Error:
        return 0
    target = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    saved = 0
    settled: Any = None
    try:
        with contextlib.suppress(apsw.Error):
            settled = source.execute("SELECT value FROM facts WHERE name = 'settled'").get
        with target:
            for row in _readable(source, "updates", "seq", 11):
                with contextlib.suppress(apsw.ConstraintError, apsw.MismatchError):
                    target.execute(f"INSERT INTO updates VALUES ({', '.join('?' * 12)})", row)  # noqa: S608
                    saved += 1
            for row in _readable(source, "dead_letters", "id", 5):
                with contextlib.suppress(apsw.ConstraintError, apsw.MismatchError):
                    target.execute("INSERT INTO dead_letters VALUES (?, ?, ?, ?, ?, ?)", row)
            for row in _all_readable(source, "SELECT kind, key, name, first, last, told FROM learned"):
                target.execute("INSERT INTO learned VALUES (?, ?, ?, ?, ?, ?)", row)
            for row in _all_readable(source, "SELECT topic FROM discoveries"):
                target.execute("INSERT INTO discoveries VALUES (?)", row)
            for row in _all_readable(source, "SELECT name, value FROM facts WHERE name = 'tally'"):
                target.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", row)
            list(target.execute(journal.ADVANCE, (0, "")))
            target.execute(journal.LATEST_OF_ALL, (0, ""))
            newest = target.execute("SELECT coalesce(max(seq), 0) FROM updates").get
            if not isinstance(settled, int):
                settled = target.execute(
                    "SELECT coalesce(max(seq), 0) FROM updates"
                    " WHERE received + ? < (SELECT max(received) FROM updates)",
                    (UNSETTLED,),
                ).get
            # Places that were lost are given again, so they must not count as settled. The broker's checkpoint may
            # name them: it bears the old journal's identity.
            target.execute("UPDATE facts SET value = ? WHERE name = 'settled'", (min(settled, newest),))
    finally:
        target.close()
        with contextlib.suppress(apsw.Error):
            source.close()
    return saved


def _readable(db: apsw.Connection, table: str, key: str, columns: int) -> Iterator[tuple[object, ...]]:
    """Rows of a table as far as they can be read: around each place that cannot, it tries further on."""
    after, step = 0, 1
    limit = 2**62
    failures = 0
    while failures < 10_000:
        try:
            cursor = db.execute(f"SELECT * FROM {table} WHERE {key} > ? ORDER BY {key}", (after,))  # noqa: S608
            for row in cursor:
                if isinstance(row[0], int) and after < row[0] < limit and len(row) == columns + 1:
                    after, step = row[0], 1
                    yield row
            return
        except apsw.Error:
            # Somewhere behind `after` lies a page that cannot be read: step over it, wider each time.
            failures += 1
            after += step
            step = min(step * 2, 1_000_000)
            try:
                newest = db.execute(f"SELECT max({key}) FROM {table}").get  # noqa: S608
            except apsw.Error:
                newest = None
            if newest is None and step >= 1_000_000:
                return
            if newest is not None and after > newest:
                return


def _all_readable(db: apsw.Connection, query: str) -> list[tuple[object, ...]]:
    """The rows of a small table, or none if one of them cannot be read."""
    with contextlib.suppress(apsw.Error):
        return [tuple(row) for row in db.execute(query)]
    return []


def backup(path: Path, copy: Path) -> int:
    """Copy a journal while it is in use, consistent as of one moment; the copy's size in bytes.

    Raises:
        JournalError: There is no journal, or the copy cannot be written.
    """
    if not path.exists():
        raise JournalError(f"journal {path}: does not exist; is this the configuration the bridge runs with?")
    unfinished = copy.with_name(copy.name + ".unfinished")
    try:
        unfinished.unlink(missing_ok=True)
        with _opened(path, apsw.SQLITE_OPEN_READONLY) as source:
            flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
            with _opened(unfinished, flags) as target:
                with target.backup("main", source, "main") as copying:
                    copying.step()
                # One file, without a write-ahead log beside it.
                target.pragma("journal_mode", "delete")
        unfinished.chmod(0o600)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(copy)
    except (apsw.Error, OSError) as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise JournalError(f"backup {copy}: {getattr(error, 'strerror', None) or error}") from error
    return copy.stat().st_size


def restore(copy: Path, path: Path) -> Path | None:
    """Put a copy in the journal's place; the bridge must not run. The old journal's new name, or None.

    The journal becomes a new one to the broker, so that every retained topic of it is published again.

    Raises:
        JournalError: The copy is no journal of this or an older version, or is damaged.
    """
    try:
        with _opened(copy, apsw.SQLITE_OPEN_READONLY) as source:
            if source.pragma("application_id") != journal.APPLICATION_ID:
                raise JournalError(f"restore: {copy} is no journal of this program")
            if source.pragma("user_version") > len(journal.MIGRATIONS):
                raise JournalError(f"restore: {copy} was written by a newer version; install that one first")
            found = source.execute("PRAGMA quick_check(1)").get
            if found != "ok":
                raise JournalError(f"restore: {copy} is damaged: {found}")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = path.with_name(path.name + ".restoring")
        shutil.copyfile(copy, fresh)
        with _opened(fresh, apsw.SQLITE_OPEN_READWRITE) as target:
            target.execute("UPDATE facts SET value = lower(hex(randomblob(8))) WHERE name = 'journal'")
        fresh.chmod(0o600)
        aside = _set_aside(path, "before-restore") if path.exists() else None
        fresh.replace(path)
    except apsw.Error as error:
        raise JournalError(f"restore: {copy}: {error}") from error
    except OSError as error:
        raise JournalError(f"restore: {copy}: {error.strerror}") from error
    return aside


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[apsw.Connection]:
    db = apsw.Connection(str(path), flags=flags)
    try:
        db.set_busy_timeout(journal.BUSY_TIMEOUT)
        yield db
    finally:
        db.close()


def _set_aside(path: Path, why: str) -> Path:
    """Rename a journal with what belongs to it; its new name."""
    aside = path.with_name(f"{path.name}.{why}-{time.strftime('%Y%m%dT%H%M%S')}")
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside


class Ballast:
    """A file that holds room on the disk, to be given up when the disk is full: deleting needs room as well.

    Args:
        path: Of the file.
        size: Bytes.
    """

    def __init__(self, path: Path, size: int = 8 * 2**20) -> None:
        self._path = path
        self._size = size

    @property
    def held(self) -> bool:
        return self._path.exists()

    def hold(self) -> None:
        """Take the room, if there is plenty."""
        room = os.statvfs(self._path.parent)
        if self.held or room.f_bavail * room.f_frsize < 4 * self._size:
            return
        try:
            with self._path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, self._size)
        except OSError:
            self.give_up()

    def give_up(self) -> None:
        """Give the room back."""
        self._path.unlink(missing_ok=True)
