"""The contract of the journal: what `bridge.journal.Journal` promises, checked on each implementation.

A new implementation brings a `Place` and its line in `IMPLEMENTATIONS`; the tests stay as they are.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import apsw
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.clock import uptime
from bridge.journal import Callback, DeadLetter, Journal, Outcome, Retained, Stored
from bridge.journal.postgresql import PostgresqlJournal
from bridge.journal.sqlite import SqliteJournal
from bridge.model import Kind
from bridge.topics import Entry
from tests.postgres import Server, running


class Place(Protocol):
    """Where one journal is kept: what an implementation brings to be held to the contract.

    Attributes:
        recipe: How another process comes to this journal: Python that leaves it, not yet opened, in `journal`.
    """

    recipe: str

    def open(self) -> AbstractContextManager[Journal]:
        """Another connection, as durable as a receiver's."""
        ...

    def dead_letters(self) -> list[DeadLetter]:
        """All of them, in the order in which they were stored."""
        ...

    def prune(self) -> None:
        """Take away all updates and retained topics, as if their time were over."""
        ...

    def reboot(self) -> None:
        """The machine was started anew, and the bridge with it."""
        ...


class SqlitePlace:
    """One file."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "journal.db"
        self.recipe = (
            "from pathlib import Path\n"
            "from bridge.journal.sqlite import SqliteJournal\n"
            f"journal = SqliteJournal(Path({str(self._path)!r}))\n"
        )
        SqliteJournal(self._path).create()

    def open(self) -> SqliteJournal:
        return SqliteJournal(self._path)

    def dead_letters(self) -> list[DeadLetter]:
        rows = self._execute("SELECT source, reason, body, received FROM dead_letters ORDER BY id")
        return [DeadLetter(*row) for row in rows]

    def prune(self) -> None:
        self._execute("DELETE FROM ledger; DELETE FROM updates")

    def reboot(self) -> None:
        self._execute("UPDATE facts SET value = 'the boot before' WHERE name = 'boot'")
        SqliteJournal(self._path).create()

    def _execute(self, sql: str) -> list[tuple[object, ...]]:
        db = apsw.Connection(str(self._path))
        try:
            return list(db.execute(sql))
        finally:
            db.close()


class PostgresqlPlace:
    """One schema of a database of a real server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._database = server.new_schema()
        self.recipe = (
            "from bridge.config import Database\n"
            "from bridge.journal.postgresql import PostgresqlJournal\n"
            f"journal = PostgresqlJournal(Database({self._database.url!r}, schema={self._database.schema!r}))\n"
        )
        PostgresqlJournal(self._database).create()

    def open(self) -> PostgresqlJournal:
        return PostgresqlJournal(self._database)

    def dead_letters(self) -> list[DeadLetter]:
        rows = self._execute("SELECT source, reason, body, received FROM dead_letters ORDER BY id")
        return [DeadLetter(*row) for row in rows]

    def prune(self) -> None:
        self._execute("DELETE FROM ledger")
        self._execute("DELETE FROM updates")

    def reboot(self) -> None:
        self._execute("UPDATE boots SET boot = 'an earlier one: ' || id")
        self._execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        PostgresqlJournal(self._database).create()

    def _execute(self, statement: str) -> list[tuple[object, ...]]:
        return self._server.execute(statement, self._database)


@contextlib.contextmanager
def sqlite_places() -> Iterator[Callable[[], Place]]:
    root = Path(tempfile.mkdtemp(prefix="journals-"))
    yield lambda: SqlitePlace(Path(tempfile.mkdtemp(dir=root)))
    shutil.rmtree(root)


@contextlib.contextmanager
def postgresql_places() -> Iterator[Callable[[], Place]]:
    with running() as server:
        yield lambda: PostgresqlPlace(server)


IMPLEMENTATIONS = {"postgresql": postgresql_places, "sqlite": sqlite_places}


@pytest.fixture(scope="session", params=sorted(IMPLEMENTATIONS))
def journal_factory(request: pytest.FixtureRequest) -> Iterator[Callable[[], Place]]:
    """Makes a new, empty journal each time it is called."""
    with IMPLEMENTATIONS[request.param]() as make:
        yield make


@pytest.fixture
def place(journal_factory: Callable[[], Place]) -> Place:
    """A new, empty journal."""
    return journal_factory()


@pytest.fixture
def journal(place: Place) -> Iterator[Journal]:
    """A connection to it."""
    with place.open() as opened:
        yield opened


# --- what is stored ----------------------------------------------------------------------------------------------

NOW = 1_767_225_600.5
SECOND = int(NOW)


def event_id(number: int) -> str:
    """32 hex digits; in their order."""
    return f"{number:032x}"


def status(number: int, *, message: str = "m", rank: int = 1, timestamp: int | None = SECOND) -> Entry:
    return Entry(
        event_id=event_id(number),
        kind=Kind.STATUS,
        topic=f"{message}/status",
        event_topic=f"event/status/{rank}",
        rank=rank,
        timestamp=timestamp,
        received=NOW,
        document=f'{{"event_id":"{event_id(number)}"}}',
    )


def click(number: int, *, payload: str = "go", timestamp: int | None = SECOND, received: float = NOW) -> Entry:
    return Entry(
        event_id=event_id(number),
        kind=Kind.BUTTON,
        topic=f"button/{payload}",
        event_topic=f"event/button/{payload}",
        rank=0,
        timestamp=timestamp,
        received=received,
        document=f'{{"event_id":"{event_id(number)}"}}',
    )


def one(*entries: Entry) -> Callback:
    return Callback(entries)


def letter(text: str = "why", body: bytes = b"{}") -> DeadLetter:
    return DeadLetter("callback", text, body, NOW)


def everything(journal: Journal) -> list[Stored]:
    return journal.pending(0, 1_000_000)


def ledger(journal: Journal) -> list[Retained]:
    return journal.retained((0, ""), 1_000_000, 1_000_000)


def holders(journal: Journal) -> dict[str, str]:
    """Which update holds each retained topic."""
    return {held.topic: held.event_id for held in ledger(journal)}


def at_once(*acts: Callable[[], None]) -> None:
    """Run them in threads that set out at the same moment; what one raises, this raises."""
    start = threading.Barrier(len(acts))
    failures: list[BaseException] = []

    def run(act: Callable[[], None]) -> None:
        try:
            start.wait()
            act()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


class TestStored:
    """Promise 1: what append took is on disk when it returns."""

    def test_what_was_appended_is_seen_by_another_connection(self, place: Place, journal: Journal) -> None:
        """The publisher reads with a connection of its own: an update it cannot see is never published."""
        journal.append([one(status(1), click(2))])
        with place.open() as other:
            assert [stored.event_id for stored in everything(other)] == [event_id(1), event_id(2)]

    def test_every_field_comes_back_as_it_was(self, journal: Journal) -> None:
        """A topic or a time that changed on its way through the journal is published wrong."""
        before = uptime()
        update = replace(status(7, rank=3), document='{"text":"\\u0000 \\"é\\" 😀"}')
        journal.append([one(update)])
        (stored,) = everything(journal)
        assert stored.uptime is not None
        assert before <= stored.uptime <= uptime()
        assert stored == Stored(
            seq=stored.seq,
            event_id=update.event_id,
            kind=Kind.STATUS,
            topic=update.topic,
            event_topic=update.event_topic,
            advances=True,
            timestamp=SECOND,
            received=NOW,
            uptime=stored.uptime,
            late=False,
            document=update.document,
        )

    @given(
        text=st.text(st.characters(exclude_categories=["Cs"])), timestamp=st.none() | st.integers(0, 253_402_300_799)
    )
    @settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
    def test_any_text_comes_back_as_it_was(self, place: Place, text: str, timestamp: int | None) -> None:
        """A payload with a quote, a NUL or an emoji would arrive as another one, or stop all that is behind it."""
        update = replace(click(0, timestamp=timestamp), document=orjson.dumps({"text": text}).decode())
        with place.open() as journal:
            update = replace(update, event_id=event_id(len(everything(journal)) + 1))
            assert journal.append([one(update)]) == [Outcome(1, 0)]
            stored = everything(journal)[-1]
            assert (stored.document, stored.timestamp) == (update.document, timestamp)

    def test_a_process_that_is_killed_right_after_append_has_lost_nothing(self, place: Place) -> None:
        """A receiver that is killed -9 after its 200 would lose a click that WhatsApp never sends again."""
        script = (
            f"{place.recipe}\n"
            "import os, signal\n"
            "from bridge.journal import Callback\n"
            "from bridge.model import Kind\n"
            "from bridge.topics import Entry\n"
            "entry = Entry('0' * 31 + '1', Kind.BUTTON, 'button/go', 'event/button/go', 0, 1, 1.0, '{}')\n"
            "with journal:\n"
            "    journal.append([Callback((entry,))])\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        killed = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        with place.open() as journal:
            assert [stored.event_id for stored in everything(journal)] == [event_id(1)]

    def test_nothing_of_a_transaction_that_was_cut_off_is_seen(self, place: Place) -> None:
        """Half a callback would be published, and the other half be lost when the sender's next try is a duplicate."""
        script = (
            f"{place.recipe}\n"
            "import os, signal\n"
            "from bridge.journal import DeadLetter\n"
            "def deadly():\n"
            "    yield DeadLetter('callback', 'the first', b'', 1.0)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "class Letters(tuple):\n"
            "    def __iter__(self): return deadly()\n"
            "with journal:\n"
            "    journal.settle(5, dead=Letters(['one']))\n"
        )
        killed = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        with place.open() as journal:
            assert journal.settled() == 0
        assert place.dead_letters() == []

    def test_an_empty_append_stores_nothing(self, place: Place, journal: Journal) -> None:
        """A callback in which all is ignored must cost nothing and wake nobody."""
        assert journal.append([]) == []
        assert journal.append([one()]) == [Outcome(0, 0)]
        assert everything(journal) == []
        assert place.dead_letters() == []

    def test_dead_letters_are_stored_whole_with_their_reason(self, place: Place, journal: Journal) -> None:
        """What could not be understood is kept so that nothing is lost: also bytes that are no text."""
        letters = (letter("a", bytes(range(256))), DeadLetter("item", "b 😀", b"", NOW + 1))
        assert journal.append([Callback((status(1),), letters[:1]), Callback((), letters[1:])]) == [
            Outcome(1, 0),
            Outcome(0, 0),
        ]
        assert place.dead_letters() == list(letters)
        assert len(everything(journal)) == 1


class TestOnce:
    """Promise 3: the same update again changes nothing."""

    def test_a_repetition_within_a_callback_is_a_duplicate(self, journal: Journal) -> None:
        """WhatsApp repeats itself within one POST: the gate would open twice."""
        assert journal.append([one(click(1), click(1), click(2))]) == [Outcome(2, 1)]
        assert [stored.event_id for stored in everything(journal)] == [event_id(1), event_id(2)]

    def test_a_repetition_in_another_callback_of_the_same_commit_is_a_duplicate(self, journal: Journal) -> None:
        """Two tries that arrive together share a commit, and only one of them may count."""
        assert journal.append([one(click(1)), one(click(1)), one(click(2), click(1))]) == [
            Outcome(1, 0),
            Outcome(0, 1),
            Outcome(1, 1),
        ]
        assert len(everything(journal)) == 2

    def test_a_repetition_in_a_later_commit_is_a_duplicate(self, place: Place, journal: Journal) -> None:
        """The usual case: the sender did not see our answer, and comes again hours later."""
        journal.append([one(click(1))])
        journal.settle(1)
        assert journal.append([one(click(1), click(2))]) == [Outcome(1, 1)]
        with place.open() as other:
            assert other.append([one(click(2), click(1))]) == [Outcome(0, 2)]
        assert [stored.event_id for stored in everything(journal)] == [event_id(1), event_id(2)]

    def test_a_repetition_changes_neither_content_nor_retained_topic(self, journal: Journal) -> None:
        """A second try with another time of receipt would move the state, and look new to whoever compares."""
        journal.append([one(status(1, rank=2)), one(click(2))])
        before = everything(journal), ledger(journal)
        journal.append([one(replace(status(1, rank=6), document="{}"), replace(click(2), received=NOW + 9))])
        assert (everything(journal), ledger(journal)) == before

    def test_the_same_at_the_same_moment_through_two_connections_is_stored_once(self, place: Place) -> None:
        """Two receivers that get the same POST at one moment must not make two clicks of it."""
        outcomes: list[Outcome] = []
        callbacks = [one(*(click(10 * round_ + number) for number in range(10))) for round_ in range(1, 16)]

        def receive(seed: int) -> None:
            shuffled = random.Random(seed).sample(callbacks, len(callbacks))
            with place.open() as journal:
                for callback in shuffled:
                    outcomes.extend(journal.append([callback]))

        at_once(*(lambda seed=seed: receive(seed) for seed in range(3)))
        with place.open() as journal:
            ids = [stored.event_id for stored in everything(journal)]
        assert len(ids) == len(set(ids)) == 150
        assert sum(outcome.stored for outcome in outcomes) == 150
        assert sum(outcome.duplicate for outcome in outcomes) == 300

    def test_two_connections_lose_nothing_of_each_other(self, place: Place) -> None:
        """Rows that one connection overwrites in the other's log were answered with 200 and are gone."""

        def receive(first: int) -> None:
            with place.open() as journal:
                for number in range(first, first + 60):
                    assert journal.append([one(click(number, payload=f"p{number}"))]) == [Outcome(1, 0)]

        at_once(lambda: receive(1), lambda: receive(1001))
        with place.open() as journal:
            assert {stored.event_id for stored in everything(journal)} == {
                event_id(first + offset) for first in (1, 1001) for offset in range(60)
            }
            assert len(holders(journal)) == 121  # each button, and the latest of all


# --- promise 4: never backwards ----------------------------------------------------------------------------------


@dataclass
class Model:
    """The rules as sentences: the highest holds, and what is known changes nothing."""

    holder: dict[str, tuple[tuple[object, ...], str]] = field(default_factory=dict)
    known: list[str] = field(default_factory=list)
    advances: list[bool] = field(default_factory=list)
    latest: dict[str, str] = field(default_factory=dict)

    def append(self, callback: Callback) -> Outcome:
        stored = 0
        for entry in callback.entries:
            if entry.event_id in self.known:
                continue
            stored += 1
            self.known.append(entry.event_id)
            self.latest[f"last/{entry.kind.value}"] = entry.event_id
            if entry.kind is Kind.STATUS:
                timestamp = -1 if entry.timestamp is None else entry.timestamp
                order: tuple[object, ...] = (entry.rank, timestamp, entry.event_id)
            else:
                claimed = entry.received if entry.timestamp is None else entry.timestamp
                order = (min(claimed, entry.received),)
            held = self.holder.get(entry.topic)
            takes_over = held is None or order >= held[0]
            if held is not None and entry.kind is Kind.BUTTON:
                # One that says that it is later than the holder is so, though our clock was set back since.
                takes_over |= entry.timestamp is not None and (entry.timestamp,) >= held[0]
                order = max(order, held[0])
            self.advances.append(takes_over)
            if takes_over:
                self.holder[entry.topic] = order, entry.event_id
        return Outcome(stored, len(callback.entries) - stored)

    @property
    def holders(self) -> dict[str, str]:
        return {topic: holder for topic, (_, holder) in self.holder.items()} | self.latest


statuses = st.builds(
    status,
    st.integers(1, 2**127),
    message=st.sampled_from(["m", "n"]),
    rank=st.integers(0, 6),
    timestamp=st.none() | st.integers(0, 3),
)
clicks = st.builds(
    click,
    st.integers(1, 2**127),
    payload=st.sampled_from(["go", "stop"]),
    timestamp=st.none() | st.integers(0, 5),
    received=st.sampled_from([0.5, 1.0, 2.0, 4.5]),
)


@st.composite
def commits(draw: st.DrawFn) -> list[list[Callback]]:
    """What receivers append one after the other: any order, any repetition, any grouping."""
    updates = draw(st.lists(statuses | clicks, min_size=1, max_size=12, unique_by=lambda entry: entry.event_id))
    arrivals = draw(st.lists(st.sampled_from(updates), min_size=1, max_size=25))
    rest = iter(arrivals)
    grouped: list[list[Callback]] = []
    while entries := list(itertools.islice(rest, draw(st.integers(0, 5)))) or list(itertools.islice(rest, 1)):
        callback = Callback(tuple(entries))
        if grouped and draw(st.booleans()):
            grouped[-1].append(callback)
        else:
            grouped.append([callback])
    return grouped


class TestNeverBackwards:
    """Promise 4: a retained status follows the rank, not the arrival; a button shows its latest click."""

    @given(appends=commits())
    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    def test_holders_flags_and_counts_are_those_of_the_rules(
        self, journal_factory: Callable[[], Place], appends: list[list[Callback]]
    ) -> None:
        """Whatever the order, the repetition and the grouping: the state on the dashboard would be a wrong one."""
        model = Model()
        with journal_factory().open() as journal:
            for callbacks in appends:
                assert journal.append(callbacks) == [model.append(callback) for callback in callbacks]
            assert [stored.event_id for stored in everything(journal)] == model.known
            assert [stored.advances for stored in everything(journal)] == model.advances
            assert holders(journal) == model.holders

    @given(
        updates=st.lists(statuses, min_size=1, max_size=7, unique_by=lambda entry: entry.event_id),
        order=st.randoms(use_true_random=False),
    )
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    def test_the_order_of_arrival_makes_no_difference(
        self, journal_factory: Callable[[], Place], updates: list[Entry], order: random.Random
    ) -> None:
        """Two bridges that got the same callbacks in another order would show different states for ever."""
        again = updates + order.sample(updates, order.randint(0, len(updates)))
        order.shuffle(again)
        found = []
        for arrivals in (updates, again):
            with journal_factory().open() as journal:
                for update in arrivals:
                    journal.append([one(update)])
                found.append({topic: held for topic, held in holders(journal).items() if not topic.startswith("last")})
        assert found[0] == found[1]

    def test_a_late_delivered_leaves_read_alone(self, journal: Journal) -> None:
        """The everyday case: `delivered` overtaken by `read` would turn the message unread again."""
        journal.append([one(status(1, rank=3))])
        journal.append([one(status(2, rank=2, timestamp=SECOND + 60))])
        assert [stored.advances for stored in everything(journal)] == [True, False]
        assert holders(journal)["m/status"] == event_id(1)

    def test_of_one_rank_the_later_moment_holds_and_any_moment_is_later_than_none(self, journal: Journal) -> None:
        """Of two failures the newer must be shown, and one without a time cannot be called newer."""
        journal.append([one(status(9, timestamp=None))])
        journal.append([one(status(1, timestamp=0))])
        assert holders(journal)["m/status"] == event_id(1)
        journal.append([one(status(8, timestamp=None), status(2, timestamp=5), status(7, timestamp=4))])
        assert holders(journal)["m/status"] == event_id(2)
        journal.append([one(status(3, timestamp=5))])
        assert holders(journal)["m/status"] == event_id(3)

    def test_a_click_that_claims_to_come_from_the_future_does_not_hold_its_button_for_ever(
        self, journal: Journal
    ) -> None:
        """A phone with a wrong clock would freeze the button on the dashboard."""
        journal.append([one(click(1, timestamp=SECOND + 10**6))])
        journal.append([one(click(2, timestamp=SECOND + 1, received=NOW + 1))])
        assert holders(journal)["button/go"] == event_id(2)

    def test_of_two_clicks_of_one_moment_the_later_arrival_holds(self, journal: Journal) -> None:
        """The seconds of WhatsApp are coarse: the second of two quick clicks is the one that was meant."""
        journal.append([one(click(9), click(1))])
        assert holders(journal)["button/go"] == event_id(1)

    def test_connections_at_the_same_moment_agree_on_who_holds(self, place: Place) -> None:
        """Decided outside the transaction, the lower rank of one receiver would overwrite the other's higher."""
        updates = [status(number, rank=number % 7, timestamp=number) for number in range(1, 43)]

        def receive(part: Sequence[Entry]) -> None:
            with place.open() as journal:
                for update in part:
                    journal.append([one(update)])

        at_once(lambda: receive(updates[::2]), lambda: receive(updates[1::2]))
        with place.open() as journal:
            stored = everything(journal)
            assert holders(journal)["m/status"] == event_id(41)  # the later one of rank 6
        held = (-1, -1)
        for update in stored:
            number = int(update.event_id, 16)
            assert update.advances == ((number % 7, number) > held)
            held = max(held, (number % 7, number))

    def test_the_latest_of_all_follow_the_arrival(self, journal: Journal) -> None:
        """`last/status` shows what happened last, also where it changed no state; duplicates are no news."""
        journal.append([one(status(1, rank=3)), one(click(2))])
        journal.append([one(status(3, rank=1), status(4, message="other", rank=1))])
        journal.append([one(status(3, rank=1)), one(click(5, timestamp=1))])
        held = holders(journal)
        assert (held["last/status"], held["last/button"]) == (event_id(4), event_id(5))
        assert held["button/go"] == event_id(2)

    def test_a_kind_that_never_came_has_no_latest(self, journal: Journal) -> None:
        """A retained topic without anything to say would have to be made up."""
        journal.append([one(click(1))])
        assert set(holders(journal)) == {"button/go", "last/button"}


class TestPublisher:
    """What the publisher reads and notes."""

    def test_pending_comes_in_the_order_of_acceptance_and_no_more_than_asked(self, journal: Journal) -> None:
        """The order on the broker is this order; without the limit a backlog would fill the memory."""
        for number in (5, 3, 9, 1):
            journal.append([one(status(number))])
        places = [stored.seq for stored in everything(journal)]
        assert places == sorted(places)
        assert [stored.event_id for stored in journal.pending(0, 2)] == [event_id(5), event_id(3)]
        assert [stored.event_id for stored in journal.pending(places[1], 2)] == [event_id(9), event_id(1)]
        assert [stored.event_id for stored in journal.pending(places[2], 10)] == [event_id(1)]
        assert journal.pending(places[3], 10) == []

    def test_settled_begins_at_nothing(self, journal: Journal) -> None:
        """A new journal that took its first updates for settled would never publish them."""
        assert journal.settled() == 0

    def test_settle_is_kept_and_never_goes_back(self, place: Place, journal: Journal) -> None:
        """Going back would fire settled clicks again."""
        journal.settle(5)
        journal.settle(3)
        assert journal.settled() == 5
        journal.settle(6)
        with place.open() as other:
            assert other.settled() == 6

    def test_settling_takes_nothing_away(self, journal: Journal) -> None:
        """Duplicates are known by what was settled, and a broker that forgot is given it again."""
        journal.append([one(click(1))])
        before = everything(journal), ledger(journal)
        journal.settle(everything(journal)[-1].seq)
        assert (everything(journal), ledger(journal)) == before

    def test_a_late_click_is_marked_where_it_is_read(self, journal: Journal) -> None:
        """Restored after the broker lost its memory, it must still say that it did not fire."""
        journal.append([one(click(1, payload="a"), click(2, payload="b"), click(3, payload="c"))])
        first, second, third = everything(journal)
        journal.settle(second.seq, late=[first.seq, second.seq])
        assert [stored.late for stored in everything(journal)] == [True, True, False]
        assert {held.topic: held.late for held in ledger(journal)} == {
            "button/a": True,
            "button/b": True,
            "button/c": False,
            "last/button": False,
        }
        assert third.seq > journal.settled()

    def test_dead_letters_are_kept_with_what_is_settled(self, place: Place, journal: Journal) -> None:
        """What the broker would not take is shown to the user instead of being gone."""
        journal.settle(4, dead=[letter("a"), letter("b")])
        assert place.dead_letters() == [letter("a"), letter("b")]
        assert journal.settled() == 4

    def test_the_identity_stays_with_the_journal_and_is_no_other_ones(
        self, journal_factory: Callable[[], Place], place: Place, journal: Journal
    ) -> None:
        """A checkpoint of a journal that was replaced must not be taken for this one's: nothing would be restored."""
        with place.open() as again, journal_factory().open() as other:
            assert journal.identity() == again.identity() != other.identity()
            assert journal.identity()

    def test_backlog_counts_what_waits(self, journal: Journal) -> None:
        """Shown as health: a bridge that falls behind must say so, and one that does not must not."""
        assert journal.backlog() == 0
        journal.append([one(*(status(number) for number in range(1, 6)))])
        assert journal.backlog() == 5
        journal.settle(journal.pending(0, 2)[-1].seq)
        assert journal.backlog() == 3
        journal.settle(everything(journal)[-1].seq)
        assert journal.backlog() == 0

    def test_backlog_is_never_less_than_nothing(self, place: Place, journal: Journal) -> None:
        """After everything was pruned, a negative number would stand on the health page."""
        journal.append([one(status(1), status(2))])
        journal.settle(everything(journal)[-1].seq)
        place.prune()
        assert journal.backlog() == 0

    def test_a_place_is_never_given_twice(self, place: Place, journal: Journal) -> None:
        """The broker's checkpoint names a place: given again, what is new would be taken for published."""
        journal.append([one(status(1), status(2), click(3))])
        highest = everything(journal)[-1].seq
        place.prune()
        with place.open() as other:
            other.append([one(status(4))])
            assert everything(other)[0].seq > highest
        place.prune()
        place.reboot()
        journal.append([one(click(5))])
        (stored,) = everything(journal)
        assert stored.seq > highest + 1
        assert stored.uptime is not None

    def test_a_pruned_update_may_come_again(self, place: Place, journal: Journal) -> None:
        """Its retained topic went with it: it must be able to stand there anew."""
        journal.append([one(status(1, rank=6))])
        place.prune()
        assert journal.append([one(status(1, rank=6))]) == [Outcome(1, 0)]
        assert [stored.advances for stored in everything(journal)] == [True]
        assert set(holders(journal)) == {"m/status", "last/status"}

    def test_seconds_since_boot_count_only_within_one_boot(self, place: Place, journal: Journal) -> None:
        """A click from before a power cut would look new, and open the gate when the power comes back."""
        journal.append([one(click(1))])
        place.reboot()
        journal.append([one(click(2))])
        first, second = everything(journal)
        assert first.uptime is None
        assert second.uptime is not None
        place.reboot()
        assert [stored.uptime for stored in everything(journal)] == [None, None]


class TestRetained:
    """The ledger: what a broker that forgot is given again."""

    def test_it_says_what_each_topic_carries(self, journal: Journal) -> None:
        """Restored with another update's JSON, the topic would say what never was."""
        update, press = status(1), click(2)
        journal.append([one(update, press)])
        first, second = everything(journal)
        assert ledger(journal) == [
            Retained("last/status", first.seq, update.event_id, Kind.STATUS, False, update.document),
            Retained(update.topic, first.seq, update.event_id, Kind.STATUS, False, update.document),
            Retained(press.topic, second.seq, press.event_id, Kind.BUTTON, False, press.document),
            Retained("last/button", second.seq, press.event_id, Kind.BUTTON, False, press.document),
        ]

    def test_a_topic_that_was_taken_over_stands_at_its_new_place(self, journal: Journal) -> None:
        """Found at its old place only, it would be missing after a restore from the checkpoint."""
        journal.append([one(status(1, rank=1), status(2, message="n"))])
        journal.append([one(status(3, rank=2))])
        assert [held.topic for held in ledger(journal)] == ["n/status", "last/status", "m/status"]

    @given(
        updates=st.lists(statuses | clicks, max_size=10, unique_by=lambda entry: entry.event_id),
        limit=st.integers(1, 6),
        after=st.integers(0, 12),
        upto=st.integers(0, 12),
    )
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    def test_page_by_page_it_shows_each_topic_once_and_in_order(
        self, journal_factory: Callable[[], Place], updates: list[Entry], limit: int, after: int, upto: int
    ) -> None:
        """A topic that falls between two pages stays missing on the broker."""
        with journal_factory().open() as journal:
            for update in updates:
                journal.append([one(update)])
            whole = ledger(journal)
            assert [(held.seq, held.topic) for held in whole] == sorted((held.seq, held.topic) for held in whole)
            assert len({held.topic for held in whole}) == len(whole)
            pages: list[Retained] = []
            position = (after, "")
            while page := journal.retained(position, upto, limit):
                assert len(page) <= limit
                assert position < (page[0].seq, page[0].topic)
                pages += page
                position = page[-1].seq, page[-1].topic
            # What stands at the place itself, with a topic, is behind (place, "").
            assert pages == [held for held in whole if after <= held.seq <= upto]

    def test_an_empty_journal_has_nothing_to_restore(self, journal: Journal) -> None:
        """A restore must end at once on the first start."""
        assert ledger(journal) == []


def test_readers_and_writers_of_several_processes_share_the_journal(place: Place) -> None:
    """Receivers are processes: what one of them stores, the main process must publish while the others write."""
    script = (
        f"{place.recipe}\n"
        "import sys\n"
        "from bridge.journal import Callback\n"
        "from bridge.model import Kind\n"
        "from bridge.topics import Entry\n"
        "first = int(sys.argv[1])\n"
        "with journal:\n"
        "    for number in range(first, first + 40):\n"
        "        entry = Entry(f'{number:032x}', Kind.BUTTON, 'button/go', 'event/button/go', 0, 1, 1.0, '{}')\n"
        "        journal.append([Callback((entry,))])\n"
    )
    seen: list[int] = []
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(first)], stderr=subprocess.PIPE, text=True)
        for first in (1, 1001)
    ]
    with place.open() as journal:
        while True:
            ended = all(writer.poll() is not None for writer in writers)
            fresh = journal.pending(seen[-1] if seen else 0, 7)
            seen += [stored.seq for stored in fresh]
            journal.settle(seen[-1] if seen else 0)
            if ended and not fresh:
                break
            os.sched_yield()
        ids = {int(stored.event_id, 16) for stored in everything(journal)}
    for writer in writers:
        assert writer.communicate()[1] == ""
        assert writer.returncode == 0
    assert len(seen) == 80
    assert ids == {*range(1, 41), *range(1001, 1041)}
