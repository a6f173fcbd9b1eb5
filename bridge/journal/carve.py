"""Rows out of the raw pages of a journal that SQLite does not read any more, or not to its end. Reads, changes nothing.

A damaged page takes away what stood on it, and where it was a page that leads to others, SQLite finds none of those
either. Each page with rows tells by itself what it holds, so here all of them are looked at, in the file and in its
write-ahead log, whatever still leads to them.

Sources: sqlite.org/fileformat2.html (sections 1.5 freelist, 1.6 b-tree pages and overflow, 2.1 records, 4.1 log) and
sqlite.org/walformat.html (section 2.1, the log's index).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

#: Of the journal; every journal is made with it.
PAGE = 4096
#: Bytes before the pages of the write-ahead log, and before each of them.
LOG_HEADER, FRAME_HEADER = 32, 24
#: Kinds of pages: those with rows of a table, and those of an index or a table WITHOUT ROWID.
TABLE_LEAF, INDEX_LEAF, INDEX_INTERIOR = 0x0D, 0x0A, 0x02

Value = int | float | str | bytes | None


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it stands on its page.

    Attributes:
        key: Its rowid; None in an index or a table WITHOUT ROWID.
        values: Of its columns; an INTEGER PRIMARY KEY is None, as it is the key.
    """

    key: int | None
    values: tuple[Value, ...]


class UnreadableError(Exception):
    """What should be a row is none."""


class Pages:
    """The pages of a journal, each in all versions that the file and its write-ahead log hold.

    Args:
        path: The journal's file; its log is looked for beside it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = contextlib.ExitStack()
        self._file: int | None = None
        self._log: int | None = None
        self._frames: dict[int, list[int]] = {}
        self._numbers: list[int] = []

    def __enter__(self) -> Self:
        """Open both; one that cannot be opened holds nothing."""
        self._file, size = self._open(self._path)
        self._log, log_size = self._open(self._path.with_name(self._path.name + "-wal"))
        for number, offset in self._last_turn(log_size):
            self._frames.setdefault(number, []).append(offset)
        self._numbers = sorted({*range(1, size // PAGE + 1), *self._frames})
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, path: Path) -> tuple[int | None, int]:
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None, 0
        self._stack.callback(os.close, file)
        return file, os.fstat(file).st_size

    def _last_turn(self, size: int) -> Iterator[tuple[int, int]]:
        """Number and place of each page in the write-ahead log that was written since it began anew."""
        places = range(LOG_HEADER, size - FRAME_HEADER - PAGE + 1, FRAME_HEADER + PAGE)
        headers = [_read(self._log, 16, place) for place in places]
        # Each turn of the log has its salts, in the log's header and in each page's; what is behind is of an earlier
        # turn. The first two that are equal are those of the last turn, also if the log's beginning is damaged.
        salts = [_read(self._log, 8, 16), *(header[8:] for header in headers)]
        last = next((one for one, other in itertools.pairwise(salts) if one == other and any(one)), None)
        for place, header in zip(places, headers, strict=True):
            if header[8:] == last:
                yield int.from_bytes(header[:4]), place + FRAME_HEADER

    def versions(self, number: int) -> Iterator[bytes]:
        """A page, the newest version first."""
        places = [(self._log, offset) for offset in reversed(self._frames.get(number, []))]
        for file, offset in [*places, (self._file, (number - 1) * PAGE)]:
            page = _read(file, PAGE, offset)
            if len(page) == PAGE:
                yield page

    def rows(self) -> Iterator[Row]:
        """Every row that can be read, of all tables and indexes, in no order; a few may come twice."""
        free = self._free()
        for number in self._numbers:
            if number in free:
                continue
            for page in self.versions(number):
                is_whole = yield from self._rows_of(page, 100 if number == 1 else 0)
                if is_whole:
                    break

    def _free(self) -> set[int]:
        """Pages that are not in use: what they hold was deleted."""
        free: set[int] = set()
        first = next(self.versions(1), b"")
        if not first.startswith(b"SQLite format 3\0"):
            return free
        trunk = int.from_bytes(first[32:36])
        while trunk and trunk not in free and (page := next(self.versions(trunk), b"")):
            free.add(trunk)
            trunk, leaves = struct.unpack_from(">II", page)
            if leaves > PAGE // 4 - 2:
                break
            free.update(struct.unpack_from(f">{leaves}I", page, 8))
        return free

    def _rows_of(self, page: bytes, start: int) -> Generator[Row, None, bool]:
        """The rows of a page; whether all of it could be read."""
        kind, _, cells = struct.unpack_from(">BHH", page, start)
        if kind not in (TABLE_LEAF, INDEX_LEAF, INDEX_INTERIOR):
            return True
        pointers = start + (12 if kind == INDEX_INTERIOR else 8)
        if pointers + 2 * cells > PAGE:
            return False
        is_whole = True
        for (offset,) in struct.iter_unpack(">H", page[pointers : pointers + 2 * cells]):
            try:
                yield self._row(page, offset, kind)
            except (UnreadableError, IndexError, struct.error, UnicodeDecodeError):
                is_whole = False
        return is_whole

    def _row(self, page: bytes, offset: int, kind: int) -> Row:
        if kind == INDEX_INTERIOR:
            offset += 4
        size, offset = _varint(page, offset)
        key: int | None = None
        if kind == TABLE_LEAF:
            key, offset = _varint(page, offset)
            key = key if key < 2**63 else key - 2**64
        most = PAGE - 35 if kind == TABLE_LEAF else (PAGE - 12) * 64 // 255 - 23
        if size <= most:
            record = page[offset : offset + size]
        else:
            least = (PAGE - 12) * 32 // 255 - 23
            here = least + (size - least) % (PAGE - 4)
            here = here if here <= most else least
            (following,) = struct.unpack_from(">I", page, offset + here)
            record = page[offset : offset + here] + self._overflow(following, size - here)
        if len(record) != size:
            raise UnreadableError
        return Row(key, _values(record))

    def _overflow(self, number: int, size: int) -> bytes:
        parts: list[bytes] = []
        while size > 0:
            page = next(self.versions(number), None)
            if page is None:
                raise UnreadableError
            part = page[4 : 4 + min(size, PAGE - 4)]
            parts.append(part)
            size -= len(part)
            (number,) = struct.unpack_from(">I", page)
        return b"".join(parts)


def frames_written(path: Path) -> int:
    """How many pages the index of a write-ahead log says that the log holds; 0 if it does not say.

    The index lives in memory that is shared while a database is in use: after a crash of all who used it, it is right;
    after a crash of the machine, it may be anything.
    """
    try:
        with path.with_name(path.name + "-shm").open("rb") as file:
            index = file.read(96)
    except OSError:
        return 0
    # Two copies, so that one who reads knows whether one who writes was interrupted; its own byte order.
    if len(index) < 96 or index[:48] != index[48:] or index[12] != 1:
        return 0
    (frames,) = struct.unpack_from("=I", index, 16)
    return int(frames)


def _read(file: int | None, size: int, offset: int) -> bytes:
    """Bytes of a file; none where the storage does not give them."""
    try:
        return os.pread(file, size, offset) if file is not None else b""
    except OSError:
        return b""


def _values(record: bytes) -> tuple[Value, ...]:
    end, offset = _varint(record, 0)
    types: list[int] = []
    while offset < end:
        one, offset = _varint(record, offset)
        types.append(one)
    values: list[Value] = []
    for one in types:
        value, offset = _value(record, one, offset)
        values.append(value)
    if offset != len(record):
        raise UnreadableError
    return tuple(values)


def _value(record: bytes, kind: int, offset: int) -> tuple[Value, int]:
    if kind == 0:
        return None, offset
    if kind in (8, 9):
        return kind - 8, offset
    if kind == 7:
        return struct.unpack_from(">d", record, offset)[0], offset + 8
    if kind < 7:
        size = (0, 1, 2, 3, 4, 6, 8)[kind]
        return int.from_bytes(record[offset : offset + size], signed=True), offset + size
    if kind < 12:
        raise UnreadableError
    end = offset + (kind - 12) // 2
    if end > len(record):
        raise UnreadableError
    return (record[offset:end].decode() if kind % 2 else record[offset:end]), end


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    value = 0
    for place in range(offset, offset + 8):
        byte = data[place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + 1
    return value << 8 | data[offset + 8], offset + 9
