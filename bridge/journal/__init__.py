"""The journal: what every accepted callback is written to before it is answered, and published from.

This module is the seam: the words, the protocols and the errors. `sqlite.py` keeps the promises on one machine,
`postgresql.py` on a database that several bridges share; `engine.py` says which of them the settings ask for.

Words:
    append   Store the updates of callbacks; they are on disk when it returns.
    settle   Note that the broker has acknowledged everything up to a number.
    ledger   Every retained topic that stands on the broker or is about to, with the update whose JSON it carries.
    dead letter  What could not be understood or delivered, whole and with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self

from bridge.clock import Clock
from bridge.model import Kind
from bridge.topics import Entry

#: Seconds that one search takes at most.
SEARCHING = 0.5


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


class UnreachableError(NotStoredError, JournalError):
    """The database cannot be reached just now, so that nothing is read either; it may be there again any moment.

    What was being stored may have been stored all the same: the sender's next try is then a duplicate.
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
class Traces:
    """What of a journal is to be erased, by the keys of its parts.

    Attributes:
        updates: Places.
        letters: Numbers of dead letters.
        learned: Kind and key.
        discoveries: Topics at which Home Assistant was told something.
        topics: Of the ledger.
        failure: The last failure that is remembered.
    """

    updates: tuple[int, ...] = ()
    letters: tuple[int, ...] = ()
    learned: tuple[tuple[str, str], ...] = ()
    discoveries: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    failure: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes: of the file or the tables, of what is in use in it, and of its write-ahead log."""

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


class Stored(NamedTuple):
    """An update in the journal, as the publisher needs it; a tuple, as these come by the thousand.

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
class Kept:
    """An update in the journal, as the page shows it.

    Attributes:
        seq: Its place.
        topic, event_topic: Below the base topic.
        advances: Whether it took over its retained topic.
        late: A click that was too old to fire.
        received: Epoch seconds.
        stored: Epoch seconds at which it was written; None where that cannot be told any more.
        document: The JSON that is published.
    """

    seq: int
    event_id: str
    kind: Kind
    topic: str
    event_topic: str
    advances: bool
    late: bool
    received: float
    stored: float | None
    document: str


@dataclass(frozen=True, slots=True)
class Found:
    """What a search has found: newest first, and the place before which to search on; None: there is no more."""

    updates: tuple[Kept, ...]
    before: int | None


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter without its body; `size` in bytes."""

    number: int
    received: float
    source: str
    reason: str
    size: int


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


class Household(Journal, Discoveries, Protocol):
    """All that the main process and the commands do with a journal, beside what stands in the other protocols.

    All methods may raise `NotStoredError` or, where reading fails, `JournalError`.
    """

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def tick(self, clock: Clock) -> float:
        """Advance the journal's own time, and remember which place is the newest now; the time in seconds."""
        ...

    def stored_before(self, elapsed: float) -> int:
        """The newest place that was stored before this time of the journal's own."""
        ...

    def forget_ticks(self, before: float) -> None:
        """Delete ticks older than this, but for the newest of them."""
        ...

    def expire(self, kind: Kind, upto: int, limit: int) -> int:
        """Mark standing topics of a kind for clearing whose update has a place up to this one; how many."""
        ...

    def expire_surplus(self, most: int, limit: int) -> int:
        """Mark the oldest standing topics for clearing where more than `most` stand; how many."""
        ...

    def place_before(self, moment: float) -> int:
        """The place behind which everything stands that was received from a moment on, in epoch seconds."""
        ...

    def standing(self) -> list[str]:
        """Topics of the ledger that stand on the broker, as far as is known."""
        ...

    def cleaned(self) -> None:
        """Note that nothing of it stands on the broker any more; what is not settled will be put there again."""
        ...

    def prune(self, upto: int, limit: int) -> int:
        """Delete settled updates up to this place that no standing topic needs, a slice of them; how many."""
        ...

    def usage(self) -> Usage:
        """How large it is."""
        ...

    def checkpoint(self) -> None:
        """Bring the write-ahead log into the file, where there is one of the journal's own."""
        ...

    def statistics(self, now: float) -> Statistics:
        """Counts for the health report; `now` in epoch seconds."""
        ...

    def tally(self, day: str) -> Tally:
        """Statuses by name since the journal was made, and on this day."""
        ...

    def last_failure(self) -> str | None:
        """The JSON of the last status that said `failed`, as the tally has it; None: none did."""
        ...

    def close_in_order(self) -> None:
        """Note that the bridge ends as it should."""
        ...

    def dead_letters(self, *, limit: int = 1_000) -> list[Buried]:
        """The newest dead letters, newest first."""
        ...

    def dead_letter(self, number: int) -> Buried | None:
        """One of them."""
        ...

    def drop_dead_letter(self, number: int) -> bool:
        """Delete one; whether there was one."""
        ...

    def bound_dead_letters(self, *, most: int, received_before: float) -> int:
        """Delete those received before (epoch seconds), and the oldest beyond `most`; how many."""
        ...

    def publish_again(self, seq: int) -> bool:
        """Put a settled update at the end of what is pending; whether it is still known."""
        ...

    def each_update(self) -> Iterator[tuple[int, str, str, str]]:
        """Place, topic, topic of the event, and JSON of every update."""
        ...

    def each_letter(self) -> Iterator[tuple[int, str, bytes]]:
        """Number, reason and body of every dead letter."""
        ...

    def each_topic(self) -> Iterator[tuple[str, int]]:
        """Every topic of the ledger, whatever became of it, and the place of the update that it carries or carried."""
        ...

    def withhold(self, topics: Sequence[str]) -> None:
        """Have these topics of the ledger neither restored nor taken for standing from now on."""
        ...

    def erase(self, traces: Traces) -> None:
        """Delete these, in one transaction."""
        ...

    def scrub(self) -> None:
        """Have the bytes of what was deleted go from the storage, as far as it is ours to say.

        Raises:
            NotStoredError: Another one is at work; nothing of the journal is lost, and it can be tried again.
        """
        ...


class Browsable(Household, Protocol):
    """What the page looks at; its requests are threads, and use it by these methods, or by others within `turn`."""

    @property
    def turn(self) -> AbstractContextManager[Any]:
        """For as long as it is held, no other thread uses the journal, where it can be used by one alone."""
        ...

    def latest(self) -> tuple[float | None, float | None]:
        """When the newest update, and the newest click, was received (epoch seconds); None: there is none."""
        ...

    def try_to_store(self) -> None:
        """Store something and take it back, durable like a callback."""
        ...

    def newest(self, limit: int, *, after: int = 0) -> list[Kept]:
        """The newest updates with a place after this one, newest first."""
        ...

    def update(self, seq: int) -> Kept | None:
        """The update at a place."""
        ...

    def search(
        self,
        text: str,
        fits: Callable[[Kept], bool],
        *,
        limit: int,
        before: int | None = None,
        patience: float = SEARCHING,
    ) -> Found:
        """Updates whose JSON holds a text, newest first.

        Args:
            text: What must stand somewhere in the JSON.
            fits: Decides about each that does.
            limit: So many at most.
            before: Only updates with a place before this one; None: all.
            patience: Seconds after which to stop and say where to go on.
        """
        ...

    def clicked(self, limit: int) -> list[Kept]:
        """The latest click on each button that the ledger knows, newest first."""
        ...

    def holder(self, topic: str) -> int | None:
        """The place of the update that a retained topic carries, or carried last."""
        ...

    def per_minute(self, since: float, after: int) -> tuple[dict[tuple[int, str], int], int, bool]:
        """How many updates of each kind were received in each minute.

        Args:
            since: Epoch seconds; older ones do not count.
            after: Only updates with a place after this one.

        Returns:
            Counts by minute (epoch seconds divided by 60) and kind; the newest place; whether all were counted.
        """
        ...

    def letters(self, limit: int, *, before: int | None = None) -> list[Letter]:
        """Dead letters with a number below this one, newest first."""
        ...

    def oldest_letters(self, after: int, upto: int, limit: int) -> list[int]:
        """Numbers of dead letters after one and up to another, oldest first."""
        ...

    def count_letters(self) -> tuple[int, int]:
        """How many dead letters there are, and the number of the newest."""
        ...
