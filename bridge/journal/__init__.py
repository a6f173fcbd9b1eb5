"""The journal: what every accepted callback is written to before it is answered, and published from.

This module is the seam: the words, the protocol and the errors. `sqlite.py` keeps the promises on one machine.

Words:
    append   Store the updates of callbacks; they are on disk when it returns.
    settle   Note that the broker has acknowledged everything up to a number.
    ledger   Every retained topic that stands on the broker or is about to, with the update whose JSON it carries.
    dead letter  What could not be understood or delivered, whole and with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bridge.model import Kind
from bridge.topics import Entry


class JournalError(Exception):
    """The journal cannot be used; the message says why and what to do. Starting again does not mend it."""


class NotStoredError(Exception):
    """Nothing of this was stored; the sender is asked to come again. A full disk, a busy database."""


class BusyError(NotStoredError):
    """Another one is writing just now, and the caller did not want to wait."""


class BrokenStorageError(NotStoredError):
    """Nothing of this was stored, and the storage itself failed: only a new process may try again.

    After an fsync that failed, the kernel may have dropped the pages it could not write and call the next fsync a
    success; so it is never repeated in place.
    """


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What could not be understood or delivered.

    Attributes:
        source: `callback` (a whole body), `item` (one entry of it) or `publication`.
        reason: In words for the user.
        body: All of it.
        received: Epoch seconds.
        seq: For a publication, the place of its update.
    """

    source: str
    reason: str
    body: bytes
    received: float
    seq: int | None = None


@dataclass(frozen=True, slots=True)
class Buried:
    """A dead letter in the journal; `number` is its name on the command line."""

    number: int
    received: float
    source: str
    reason: str
    seq: int | None
    body: bytes


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes: of the file, of what is in use in it, and of its write-ahead log."""

    file: int
    used: int
    wal: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts for the health report; `oldest_age` in seconds, of the oldest update that waits."""

    backlog: int
    oldest_age: float
    dead_letters: int
    retained_topics: int


@dataclass(frozen=True, slots=True)
class Callback:
    """What one POST asks to be stored."""

    entries: tuple[Entry, ...]
    dead: tuple[DeadLetter, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the entries of one callback: new ones, and those the journal had already.

    Attributes:
        stored_clicks: How many of the new ones are clicks; None where either all or none of them are new.
    """

    stored: int
    duplicate: int
    stored_clicks: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Stored:
    """An update in the journal, as the publisher needs it.

    Attributes:
        seq: Its place; what was stored later has a higher one.
        advances: Whether it took over its retained topic when it was stored (promise 4: never backwards).
        timestamp: Epoch seconds of the update itself, or None.
        received: Epoch seconds of the receipt.
        uptime: Seconds since boot at the receipt, which no clock change moves; None if this was in an earlier boot.
        late: A click that was recorded as too old to fire.
    """

    seq: int
    event_id: str
    kind: Kind
    topic: str
    event_topic: str
    advances: bool
    timestamp: int | None
    received: float
    uptime: float | None
    late: bool
    document: str


@dataclass(frozen=True, slots=True)
class Retained:
    """A retained topic of the ledger with what it carries.

    Attributes:
        topic: Below the base topic.
        seq: The place of the update it carries.
        late: It carries a click that was too old to fire.
        document: The JSON.
    """

    topic: str
    seq: int
    event_id: str
    kind: Kind
    late: bool
    document: str


@dataclass(frozen=True, slots=True)
class Learned:
    """A button or business phone that callbacks have named.

    Attributes:
        kind: `button` or `phone`.
        key: The payload, or the number.
        name: For people; told apart from the others, and the same for good.
        first, last: Places of the updates that named it first and last.
        told: Whether the broker has acknowledged its discovery.
    """

    kind: str
    key: str
    name: str
    first: int
    last: int
    told: bool = False


@dataclass(frozen=True, slots=True)
class Tally:
    """How many statuses of each name were stored.

    Attributes:
        upto: The place up to which they were counted.
        day: The day that `today` is about.
        total, today: Counts by status, as it stands in a topic.
        failed: The JSON of the last one that said `failed`, or None.
    """

    upto: int = 0
    day: str = ""
    total: dict[str, int] = field(default_factory=dict)
    today: dict[str, int] = field(default_factory=dict)
    failed: str | None = None

    def counted(self, counts: dict[str, int], day: str, upto: int, failed: str | None) -> Tally:
        """This one and what came since; names beyond the first thousand count as the empty one."""
        total, today = dict(self.total), dict(self.today) if day == self.day else {}
        for name, count in counts.items():
            for numbers in (total, today):
                key = name if name in numbers or len(numbers) < 1_000 else ""
                numbers[key] = numbers.get(key, 0) + count
        return Tally(upto, day, total, today, failed or self.failed)


class Discoveries(Protocol):
    """The part of the journal in which it stands what Home Assistant was told.

    All methods may raise `NotStoredError` or, where reading fails, `JournalError`.
    """

    def learned(self) -> list[Learned]:
        """Buttons and business phones that callbacks have named, those named first first."""
        ...

    def learn(self, learned: Sequence[Learned], forgotten: Sequence[Learned] = ()) -> None:
        """Note what was learned, or named again; and forget some."""
        ...

    def discoveries(self) -> set[str]:
        """Discovery topics that may stand on the broker."""
        ...

    def note_discoveries(self, *, put: Sequence[str] = (), taken: Sequence[str] = ()) -> None:
        """Note discovery topics that are about to be put on the broker, and those that were taken away."""
        ...


class Journal(Protocol):
    """One process' or one thread's hold on the journal; opened and closed by `with`.

    All methods may raise `NotStoredError` or, where reading fails, `JournalError`.
    """

    def append(self, callbacks: Sequence[Callback]) -> list[Outcome]:
        """Store the updates and dead letters of all callbacks in one commit; they are on disk when this returns.

        Promise 3: an update whose `event_id` is known changes nothing. Promise 4: whether an update takes over its
        retained topic is decided in the same transaction.
        """
        ...

    def pending(self, after: int, limit: int) -> list[Stored]:
        """Updates with a place after this one, in order."""
        ...

    def settled(self) -> int:
        """Everything up to this place was acknowledged by the broker or became a dead letter."""
        ...

    def settle(
        self, upto: int, *, late: Sequence[int] = (), dead: Sequence[DeadLetter] = (), wait: bool = True
    ) -> None:
        """Note that everything up to this place is done with.

        May be lost in a power cut, never in a crash; what is lost is published again with the same `event_id`.

        Args:
            upto: The place.
            late: Places of clicks that were too old to fire; their retained JSON says so from now on.
            dead: What the broker would not take.
            wait: For another one that is writing; else raises `BusyError` at once.
        """
        ...

    def identity(self) -> str:
        """Tells this journal from another that took its place."""
        ...

    def retained(self, after: tuple[int, str], upto: int, limit: int) -> list[Retained]:
        """Topics of the ledger in the order of (place, topic), after this one and up to this place."""
        ...

    def clearing(self, limit: int) -> list[str]:
        """Topics of the ledger that are to be taken off the broker, those that stood longest first."""
        ...

    def cleared(self, topics: Sequence[str]) -> None:
        """Note that these were taken off the broker; one that an update took over meanwhile stands."""
        ...

    def clear_again(self, checkpoint: int) -> int:
        """Have topics cleared once more that the broker may have forgotten to have cleared; how many.

        Args:
            checkpoint: What the broker remembers; topics cleared since count.
        """
        ...

    def backlog(self) -> int:
        """How many updates wait to be settled, at most (places that were skipped count)."""
        ...
