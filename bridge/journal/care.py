"""What happens to a journal at the start: refuse a network file system, look for damage, save what can be saved.

One that an older version wrote is copied before its schema is brought to this version's.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import orjson
import structlog

from bridge.clock import boot_id
from bridge.journal import JournalError, carve
from bridge.journal import sqlite as journal
from bridge.model import Kind

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

#: A schema's version beyond this one is no newer version's, but damage.
LAST_VERSION = 1_000

#: What SQLite says when the storage does not give back what stands on it. Its other troubles with the storage, such
#: as no room for the log's index, are no damage of the file.
UNREADABLE = frozenset(
    (apsw.SQLITE_IOERR_READ, apsw.SQLITE_IOERR_SHORT_READ, apsw.SQLITE_IOERR_CORRUPTFS, apsw.SQLITE_IOERR_DATA)
)

_SUFFIXES = ("", "-wal", "-shm")
_KINDS = frozenset(Kind)


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
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
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
    _make_room(path)
    alarm = mend(path)
    keep_old_version(path)
    journal.SqliteJournal(path).create()
    with contextlib.suppress(OSError):
        _started_mark(path).write_text(boot_id(), encoding="ascii")
    return alarm


def _make_room(path: Path) -> None:
    """Give up the ballast if the disk is full: a start needs room as well."""
    room = os.statvfs(path.parent)
    if room.f_bavail * room.f_frsize < journal.RESERVE:
        ballast(path).give_up()


# --- damage ------------------------------------------------------------------------------------------------------


def mend(path: Path) -> str | None:
    """Look at a journal that may be damaged; set a damaged one aside, and save what can be saved into a new one.

    The damaged one is only read, and moved when the new one is complete: whatever interrupts this, the next start
    finds one of them.

    Returns:
        What happened, in words for the user; None if all is well.

    Raises:
        JournalError: It is damaged, and a new one cannot be made.
    """
    fresh = path.with_name(path.name + ".mending")
    if not path.exists():
        if not fresh.exists():
            return None
        _set_aside(path, "corrupt")  # the rest of it: another journal's log beside this one would damage it
        fresh.replace(path)
        return "the journal was damaged; it was set aside, and what could be saved of it was"
    damage = _damage(path)
    for suffix in _SUFFIXES:  # of a start that was interrupted
        fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)
    if damage is None:
        journal.suspect_mark(path).unlink(missing_ok=True)
        return None
    try:
        journal.SqliteJournal(fresh).create()
        saved = _save(path, fresh)
        aside = _set_aside(path, "corrupt")
        fresh.replace(path)
    except (apsw.Error, OSError, JournalError) as error:
        raise JournalError(f"journal {path}: is damaged ({damage}), and a new one cannot be made: {error}") from error
    journal.suspect_mark(path).unlink(missing_ok=True)
    name = aside.name if aside else ""
    words = f"the journal was damaged ({damage}); it is kept as {name}, and {saved} updates of it were saved"
    log.error("the journal was damaged", why=damage, kept_as=str(aside), updates_saved=saved)
    return words


def _damage(path: Path) -> str | None:
    """What is wrong with the file, or None. Looks closely only if the bridge did not end in order."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError:
        return None  # why it cannot be opened is told when it is opened
    was_started = _started_mark(path).exists()
    if not header:
        return "it is empty" if was_started else None
    if not was_started and header[68:72] != journal.APPLICATION_ID.to_bytes(4):
        return None  # another program's: that is told apart when the schema is looked at
    # After a crash of the bridge alone, the log's index tells how much the log must hold.
    frames = carve.frames_written(path) if _is_of_this_boot(path) else 0
    try:
        with _opened(path, apsw.SQLITE_OPEN_READWRITE) as db:
            db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # what is looked at stays as it is
            return _flaw(db, frames, is_suspect=journal.suspect_mark(path).exists())
    except apsw.InterruptError:
        return None
    except (apsw.NotADBError, apsw.CorruptError, apsw.SQLError, UnicodeDecodeError) as error:
        return str(error)
    except apsw.IOError as error:
        return str(error) if getattr(error, "extendedresult", 0) in UNREADABLE else None
    except apsw.Error:
        return None  # as above


def _flaw(db: apsw.Connection, frames: int, *, is_suspect: bool) -> str | None:
    """What is wrong with a journal that can be opened, or None.

    Args:
        db: The journal.
        frames: How many pages its write-ahead log must hold at least.
        is_suspect: Damage was met while running: look closely, as long as it takes.

    Raises:
        apsw.Error, UnicodeDecodeError: This is wrong with it.
    """
    version = db.pragma("user_version")
    if db.pragma("application_id") != journal.APPLICATION_ID or not 0 < version < LAST_VERSION:
        return "its header is damaged"
    if version > len(journal.MIGRATIONS):
        return None  # a newer version's: that is told apart when the schema is looked at
    facts = dict(db.execute("SELECT name, value FROM facts"))
    if frames and db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)[0] < frames:
        return "its write-ahead log is damaged"
    if facts.get("clean") == 1 and not is_suspect:
        return None
    highest = db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence").get
    if not isinstance(facts.get("settled"), int) or not 0 <= facts["settled"] <= highest:
        return "more is settled than was stored"
    if "tally" in facts and not (isinstance(facts["tally"], str) and _is_tally(facts["tally"])):
        return "its counts are damaged"
    deadline = None if is_suspect else time.monotonic() + LOOK
    db.set_progress_handler(lambda: deadline is not None and time.monotonic() > deadline, 1_000)
    found = db.execute("PRAGMA quick_check(1)").get
    if found != "ok":
        return str(found)
    # SQLite does not mind what a text is made of; whoever reads it does.
    for *_, is_json, kind in db.execute(
        "SELECT topic, event_topic, document, json_valid(document), kind FROM updates"
        " UNION ALL SELECT topic, NULL, NULL, 1, kind FROM ledger"
        " UNION ALL SELECT source, reason, NULL, 1, 'status' FROM dead_letters"
        " UNION ALL SELECT key, name, NULL, 1, 'status' FROM learned"
        " UNION ALL SELECT topic, NULL, NULL, 1, 'status' FROM discoveries"
    ):
        if not is_json or kind not in _KINDS:
            return "its rows are damaged"
    return None


def _started_mark(path: Path) -> Path:
    """The file that says: a journal of ours stands here. In it, the boot in which it was started last."""
    return path.with_name(path.name + ".started")


def _is_of_this_boot(path: Path) -> bool:
    boot = boot_id()
    with contextlib.suppress(OSError):
        return bool(boot) and _started_mark(path).read_text(encoding="ascii", errors="replace") == boot
    return False


# --- salvage -----------------------------------------------------------------------------------------------------

#: The ledger as it was found, beside the one that follows from the updates that were saved.
_FOUND = """
CREATE TEMP TABLE found (
    topic TEXT PRIMARY KEY, kind TEXT NOT NULL, rank INTEGER NOT NULL, stamp REAL NOT NULL, tie BLOB NOT NULL,
    seq INTEGER NOT NULL, state INTEGER NOT NULL, gone INTEGER
) STRICT, WITHOUT ROWID
"""

# The found one wins where it holds as much or more: it knows what was cleared, and of updates that were lost that
# they had their topic, so that an older one does not take it back (promise 4).
_TAKE_OVER = """
INSERT INTO ledger SELECT * FROM found WHERE kind IN ('status', 'button') AND state BETWEEN 0 AND 3
ON CONFLICT (topic) DO UPDATE
SET kind = excluded.kind, rank = excluded.rank, stamp = excluded.stamp, tie = excluded.tie, seq = excluded.seq,
    state = excluded.state, gone = excluded.gone
WHERE (excluded.rank, excluded.stamp, excluded.tie, excluded.seq) >=
      (ledger.rank, ledger.stamp, ledger.tie, ledger.seq)
"""


def _save(damaged: Path, path: Path) -> int:
    """Copy what can be read of a damaged journal into a new one; how many updates."""
    facts: dict[str, carve.Value] = {}
    saved = 0
    with carve.Pages(damaged) as pages, _opened(path, apsw.SQLITE_OPEN_READWRITE) as target:
        target.pragma("temp_store", "memory")
        with target:
            target.execute(_FOUND)
            for row in pages.rows():
                with contextlib.suppress(apsw.ConstraintError, apsw.MismatchError):
                    _save_row(target, row, facts)
            list(target.execute(journal.ADVANCE, (0, "")))
            target.execute(journal.LATEST_OF_ALL, (0, ""))
            target.execute(_TAKE_OVER)
            _save_facts(target, facts)
            saved = int(target.execute("SELECT count(*) FROM updates").get)
    return saved


def _save_row(target: apsw.Connection, row: carve.Row, facts: dict[str, carve.Value]) -> None:
    """Tell by its shape which table a row is of, and keep it."""
    key, values = row.key, row.values
    match key, values:
        case int(), (None, bytes() as event_id, kind, str(), str(), *_, str() as document) if len(values) == 12:
            if key > 0 and len(event_id) == 16 and kind in _KINDS and _is_json(document):
                target.execute(
                    "INSERT OR IGNORE INTO updates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (key, *values[1:])
                )
        case int(), (None, _, str(), str(), _, bytes()):
            target.execute("INSERT OR IGNORE INTO dead_letters VALUES (?, ?, ?, ?, ?, ?)", (key, *values[1:]))
        case int(), ("updates", int() as highest):  # of sqlite_sequence
            facts["highest"] = highest
        case None, (str(), _, _, _, _, _, _, _):
            target.execute("INSERT OR IGNORE INTO found VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        case None, (int() | float(), int()):
            target.execute("INSERT OR IGNORE INTO ticks VALUES (?, ?)", values)
        case None, (("button" | "phone"), str(), str(), int(), int(), int()):
            target.execute("INSERT OR IGNORE INTO learned VALUES (?, ?, ?, ?, ?, ?)", values)
        case None, (str(),):
            target.execute("INSERT OR IGNORE INTO discoveries VALUES (?)", values)
        case None, (str() as name, value):
            facts.setdefault(name, value)


def _save_facts(target: apsw.Connection, facts: dict[str, carve.Value]) -> None:
    """Set what the new journal says of itself by what the old one said, as far as that can be."""
    newest = target.execute("SELECT coalesce(max(seq), 0) FROM updates").get
    settled, highest = facts.get("settled"), facts.get("highest")
    if not isinstance(settled, int) or not 0 <= settled <= max(newest, highest if isinstance(highest, int) else 0):
        settled = target.execute(
            "SELECT coalesce(max(seq), 0) FROM updates WHERE received + ? < (SELECT max(received) FROM updates)",
            (UNSETTLED,),
        ).get
    # Places that were lost are given again, so they must not count as settled. The broker's checkpoint may name them:
    # it bears the old journal's identity.
    kept: dict[str, carve.Value] = {"settled": min(settled, newest)}
    # Seconds since boot mean something for updates of this boot only; what boot they are of, if that is lost, too.
    boot_first = facts.get("boot_first")
    is_this_boot = facts.get("boot") == boot_id() and isinstance(boot_first, int)
    kept["boot_first"] = boot_first if is_this_boot else newest + 1
    clocks = ("elapsed", "tick_boot", "tick_uptime", "tick_wall")
    if isinstance(facts.get("tick_boot"), str) and all(
        isinstance(facts.get(name), (str, int, float)) for name in clocks
    ):
        kept |= {name: facts[name] for name in clocks}
    else:
        kept["elapsed"] = target.execute("SELECT coalesce(max(elapsed), 0.0) FROM ticks").get
    for name, value in kept.items():
        target.execute("UPDATE facts SET value = ? WHERE name = ?", (value, name))
    tally = facts.get("tally")
    if isinstance(tally, str) and _is_tally(tally):
        # It must not count on from a place that is given again.
        target.execute(
            "INSERT INTO facts VALUES ('tally', json_set(?1, '$.upto', min(?1 ->> '$.upto', ?2)))", (tally, newest)
        )


def _is_tally(text: str) -> bool:
    match orjson.loads(text) if _is_json(text) else None:
        case {"upto": int(), "day": str(), "total": dict(), "today": dict(), "failed": str() | None}:
            return True
    return False


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


# --- copies ------------------------------------------------------------------------------------------------------


def check_there(path: Path) -> None:
    """Refuse to look into a journal that no bridge has made.

    Raises:
        JournalError: There is none. (One that may not be seen is told of when it is opened.)
    """
    try:
        path.stat()
    except FileNotFoundError:
        raise JournalError(f"journal {path}: does not exist; is this the configuration the bridge runs with?") from None
    except OSError:
        return


def backup(path: Path, copy: Path) -> int:
    """Copy a journal while it is in use, consistent as of one moment; the copy's size in bytes.

    Raises:
        JournalError: There is no journal, it cannot be read to its end, or the copy cannot be written.
    """
    check_there(path)
    if not copy.parent.is_dir():
        raise JournalError(f"backup {copy}: there is no folder {copy.parent}; make it first")
    if copy.resolve() in {path.resolve().with_name(path.name + suffix) for suffix in _SUFFIXES}:
        raise JournalError(f"backup {copy}: is the journal itself; name another file")
    if not os.access(path, os.R_OK):
        raise _not_for_you(path)
    unfinished = copy.with_name(copy.name + ".unfinished")
    try:
        with _opened(path, apsw.SQLITE_OPEN_READONLY) as source:
            try:
                source.pragma("schema_version")
            except (apsw.ReadOnlyError, apsw.CantOpenError) as error:  # its log's index may not be made beside it
                raise _not_for_you(path) from error
            _copy(source, unfinished)
        unfinished.replace(copy)
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise JournalError(f"journal {path}: is damaged ({error}); start the bridge, it mends it") from error
    except (apsw.Error, OSError) as error:
        raise JournalError(
            f"backup {copy}: cannot be written: {_why(error)}; name a file where you may write and there is room"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return copy.stat().st_size


def _not_for_you(path: Path) -> JournalError:
    return JournalError(f"journal {path}: cannot be read; make the backup as the bridge's user")


def _why(error: apsw.Error | OSError) -> str:
    return str(getattr(error, "strerror", None) or error)


def restore(copy: Path, path: Path) -> Path | None:
    """Put a copy in the journal's place; the bridge must not run. The old journal's new name, or None.

    The journal becomes a new one to the broker, so that every retained topic of it is published again.

    Raises:
        JournalError: The copy is no journal of this or an older version, is damaged, or cannot be read; or the
            journal's place cannot be written.
    """
    fresh = path.with_name(path.name + ".restoring")
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
            _copy(source, fresh)
        with _opened(fresh, apsw.SQLITE_OPEN_READWRITE) as target:
            target.execute("UPDATE facts SET value = lower(hex(randomblob(8))) WHERE name = 'journal'")
            target.execute("DELETE FROM facts WHERE name = ?", (journal.MOVED,))
        aside = _set_aside(path, "before-restore")
        fresh.replace(path)
    except apsw.NotADBError as error:
        raise JournalError(f"restore: {copy} is no journal of this program") from error
    except (apsw.ReadOnlyError, apsw.CantOpenError) as error:
        raise JournalError(
            f"restore: {copy} cannot be opened; copy it, and {copy.name}-wal if there is one, to a folder "
            "where you may write, and restore that"
        ) from error
    except (apsw.Error, OSError) as error:
        raise JournalError(
            f"restore: {copy} cannot be put in place of {path}: {_why(error)}; mend that, and try again"
        ) from error
    return aside


def keep_old_version(path: Path) -> Path | None:
    """Copy a journal that an older version wrote, e.g. to `journal.db.schema-1`, from which there is a way back to it.

    The copy is on disk, whole, when this returns: only then may the schema be changed. Whatever interrupts this, the
    next start finds the old journal, and copies it anew.

    Returns:
        The copy; None where nothing is to be changed.

    Raises:
        JournalError: There is no room for the copy, or it cannot be written; the journal is as it was.
    """
    version = _older_schema(path)
    if version is None:
        return None
    try:
        with _opened(path, apsw.SQLITE_OPEN_READWRITE) as source:
            needed = source.pragma("page_count") * source.pragma("page_size") + journal.RESERVE
            disk = os.statvfs(path.parent)
            if disk.f_bavail * disk.f_frsize < needed:
                raise JournalError(
                    f"journal {path}: an older version wrote it, and for a copy of it, as the way back, "
                    f"{needed // 2**20 + 1} MiB must be free on its disk; make room, and start again"
                )
            copy = journal.old_version(path, version)
            unfinished = copy.with_name(copy.name + ".unfinished")
            _copy(source, unfinished)
        unfinished.replace(copy)
        journal.sync_folder(path.parent)
    except (apsw.Error, OSError) as error:
        raise JournalError(
            f"journal {path}: an older version wrote it, and no copy of it can be kept beside it: {_why(error)}"
        ) from error
    log.info("the journal's schema is new; the journal as it was is kept", kept_as=str(copy))
    return copy


def _older_schema(path: Path) -> int | None:
    """The schema of a journal that an older version wrote; None for all else, which is told when it is opened."""
    if not path.exists():
        return None
    with contextlib.suppress(apsw.Error), _opened(path, apsw.SQLITE_OPEN_READWRITE) as db:
        db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # what is looked at stays as it is
        version = int(db.pragma("user_version"))
        if db.pragma("application_id") == journal.APPLICATION_ID and 0 < version < len(journal.MIGRATIONS):
            return version
    return None


def old_versions(path: Path) -> list[Path]:
    """Copies of this journal as older versions wrote it; they hold phone numbers, too."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.schema-*"))


def drop_old_versions(path: Path, before: float) -> None:
    """Delete copies that were made before then (epoch seconds): nobody goes back so far, and numbers are not kept."""
    for copy in old_versions(path):
        with contextlib.suppress(OSError):
            if copy.stat().st_mtime < before:
                copy.unlink()
                log.info("the copy of an older version's journal is deleted", copy=str(copy))


def _copy(source: apsw.Connection, copy: Path) -> None:
    """Copy a journal into one file, which is on disk when this returns, and for its owner only."""
    copy.unlink(missing_ok=True)
    # It holds phone numbers. Where no file can be made, the system says why; SQLite would not.
    copy.touch(mode=0o600, exist_ok=False)
    with _opened(copy, apsw.SQLITE_OPEN_READWRITE) as target:
        with target.backup("main", source, "main") as copying:
            copying.step()
        # Without a write-ahead log beside it.
        target.pragma("journal_mode", "delete")
    with copy.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[apsw.Connection]:
    db = apsw.Connection(str(path), flags=flags)
    try:
        db.set_busy_timeout(journal.BUSY_TIMEOUT)
        yield db
    finally:
        db.close()


def _set_aside(path: Path, why: str) -> Path | None:
    """Rename a journal with what belongs to it; its new name, or None if there was none."""
    moment = time.strftime("%Y%m%dT%H%M%S")
    names = (
        f"{path.name}.{why}-{moment}{suffix}" for suffix in itertools.chain([""], map("-{}".format, itertools.count(2)))
    )
    aside = next(place for place in map(path.with_name, names) if not place.exists())
    found = None
    for suffix in _SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
            found = found or aside
    return found


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


def ballast(path: Path) -> Ballast:
    """The ballast of a journal."""
    return Ballast(path.with_suffix(".ballast"))
