"""Sessions, locks and epochs in a real PostgreSQL: who may publish what."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from bridge.config import Database
from bridge.journal import Callback, DeadLetter, UnreachableError
from bridge.journal import partitions as module
from bridge.journal.partitions import LEADING, NameTakenError, Session, Share
from bridge.journal.postgresql import PostgresqlJournal, Presence, partition_of
from bridge.model import ButtonClick, StatusUpdate, Update
from bridge.topics import entry
from bridge.wakeup import Bell
from tests.postgres import PATIENCE, Server, running

NOON = 1_780_315_200


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as opened:
        yield opened


@pytest.fixture
def database(server: Server) -> Database:
    """A journal that is made, and empty."""
    found = server.new_schema()
    PostgresqlJournal(found).create()
    return found


@pytest.fixture
def session(database: Database) -> Iterator[Callable[[str], Session]]:
    """Opens sessions of this name."""
    opened: list[Session] = []

    def one(name: str) -> Session:
        found = Session(database, name)
        found.open()
        opened.append(found)
        return found

    yield one
    for found in opened:
        found.close()


@pytest.fixture
def bell() -> Iterator[Bell]:
    found = Bell()
    yield found
    found.close()


def store(database: Database, *updates: Update) -> None:
    with PostgresqlJournal(database) as journal:
        journal.append([Callback(tuple(entry(update, float(NOON)) for update in updates))])


def message(name: str, word: str = "sent") -> StatusUpdate:
    return StatusUpdate(message_id=name, status=word, timestamp=NOON, recipient_id="15550001234")


def click(name: str = "c1") -> ButtonClick:
    return ButtonClick(payload="gate", message_id=name, timestamp=NOON, sender="15550001234")


def named_in(partition: int) -> str:
    """A message that falls into a partition."""
    return next(name for name in map(str, range(1_000)) if partition_of(f"{name}/status") == partition)


def end(session: Session, other: Session) -> None:
    """Without giving anything back, and until the server has noticed."""
    session.close()
    deadline = time.monotonic() + PATIENCE
    while session.name in other.beat().members:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def share_of(database: Database, epochs: dict[int, int]) -> Share:
    return Share(database, epochs, never_retained=frozenset())


def test_a_partition_is_held_by_one_session_and_each_taking_counts(session: Callable[[str], Session]) -> None:
    """Two publishers of one partition would send everything twice, and states in any order."""
    one, other = session("one"), session("other")
    assert one.beat().members == ("one", "other")
    assert one.take(3, 0) == 1
    assert other.take(3, 1) is None
    seen = other.beat().partitions[3]
    assert (seen.epoch, seen.turns, seen.owners, seen.is_held) == (1, 1, ("one",), True)
    one.give([(3, 1)])
    seen = other.beat().partitions[3]
    assert (seen.owners, seen.is_held) == ((), False)
    assert other.take(3, 0) is None  # it is not as it was seen any more
    assert not one.beat().partitions[3].is_held
    assert other.take(3, 1) == 2


def test_what_a_session_held_is_had_again_unless_somebody_took_it(session: Callable[[str], Session]) -> None:
    """A restart of the database would repeat what was published and not noted; or two would publish the same."""
    one, other = session("one"), session("other")
    assert one.take(3, 0) == 1
    assert one.take(4, 0) == 1
    end(one, other)
    assert (other.beat().partitions[3].owners, other.beat().partitions[3].is_held) == (("one",), False)
    assert other.take(4, 1) == 2
    one.open()
    assert one.retake(3, 1) is True
    assert one.retake(4, 1) is None
    other.give([(4, 2)])
    assert one.retake(4, 1) is None
    assert not one.beat().partitions[4].is_held


def test_a_session_that_is_not_heard_is_ended_by_the_server(
    session: Callable[[str], Session], monkeypatch: pytest.MonkeyPatch, bell: Bell
) -> None:
    """A paused process keeps its connection: what it holds would be published by nobody for as long."""
    monkeypatch.setattr(module, "IDLE", 1.0)
    paused, other = session("paused"), session("other")
    assert paused.take(LEADING, 0) == 1
    deadline = time.monotonic() + PATIENCE
    while other.beat().partitions[LEADING].is_held:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert other.beat().members == ("other",)
    with pytest.raises(UnreachableError):
        paused.beat()
    with pytest.raises(UnreachableError):
        paused.wait(bell.fileno(), 0.0)


def test_the_lease_is_shorter_than_what_others_wait() -> None:
    """One that was cut off would still publish when another begins."""
    assert module.BEAT * 3 <= module.LEASE < module.PATIENCE
    assert module.LEASE < module.IDLE
    # kill -9 of a machine: idle, a look, the wait, another look; the rest is for connecting.
    assert module.IDLE + module.BEAT + module.PATIENCE + module.BEAT < 9


def test_two_of_one_name_are_refused_and_commands_want_to_be_alone(
    session: Callable[[str], Session], database: Database
) -> None:
    """Each would displace the other at the broker, for ever; `clean` would take topics from under a bridge."""
    one = session("one")
    with pytest.raises(NameTakenError, match=r"another bridge on .* calls itself one"):
        session("one")
    with pytest.raises(module.JournalError, match="a bridge uses"), Presence(database):
        pass
    one.close()
    time.sleep(0.2)
    with Presence(database), pytest.raises(NameTakenError, match="a command is at work"):
        session("one")


def test_who_leaves_counts_no_more_and_hears_who_is_left(session: Callable[[str], Session]) -> None:
    """The last one has to say that the group is offline, and no other one."""
    one, other = session("one"), session("other")
    assert one.leave() == ("other",)
    assert other.beat().members == ("other",)
    assert other.leave() == ()


def test_one_that_is_gone_is_not_alive_by_the_number_of_anothers_process(
    session: Callable[[str], Session], database: Database, server: Server
) -> None:
    """After a restart of a server in a container numbers come again: a share would fall to one that is not there."""
    one = session("one")
    end(session("gone"), one)
    server.execute(
        "UPDATE replicas SET pid = (SELECT pid FROM replicas WHERE name = 'one') WHERE name = 'gone'", database
    )
    assert one.beat().members == ("one",)


def test_who_does_not_reach_the_broker_is_known_to_all(session: Callable[[str], Session]) -> None:
    """What falls to it would wait, though others could publish it."""
    one, other = session("one"), session("other")
    assert one.beat().reaching == ("one", "other")
    other.note_reach(False)
    assert (one.beat().members, one.beat().reaching) == (("one", "other"), ("one",))
    end(other, one)
    other.open()
    assert one.beat().reaching == ("one", "other")


def test_who_was_not_displaced_yet_is_not_forgotten(session: Callable[[str], Session]) -> None:
    """Whoever takes a partition next would publish beside one that was paused, and goes on."""
    paused, one, other = session("paused"), session("one"), session("other")
    assert paused.take(3, 0) == 1
    end(paused, one)
    assert one.take(3, 1) == 2
    one.give([(3, 2)])
    assert other.beat().partitions[3].owners == ("paused",)
    assert one.take(3, 2) == 3
    end(one, other)  # killed, before it displaced the other one
    assert other.beat().partitions[3].owners == ("paused", "one")
    assert other.take(3, 3) == 4
    other.own([(3, 4)])
    assert other.beat().partitions[3].owners == ("other",)
    other.give([(3, 4)], in_order=False)
    seen = other.beat().partitions[3]
    assert (seen.owners, seen.is_held) == (("other",), False)


def test_what_is_stored_or_told_wakes_every_session(
    session: Callable[[str], Session], database: Database, bell: Bell
) -> None:
    """An update that another replica has received would wait for the next look."""
    one, other = session("one"), session("other")
    store(database, message("m1"))
    assert one.wait(bell.fileno(), PATIENCE) == other.wait(bell.fileno(), PATIENCE) == [""]
    one.tell("changed")
    assert other.wait(bell.fileno(), PATIENCE) == ["changed"]
    other.beat()  # what is heard during a statement counts too
    one.tell("clear")
    time.sleep(0.1)
    other.beat()
    assert other.wait(bell.fileno(), 0.0) == ["clear"]
    bell.ring()
    assert one.wait(bell.fileno(), PATIENCE) == ["changed", "clear"]


def test_replicas_that_are_gone_for_long_are_told_and_forgotten(
    session: Callable[[str], Session], database: Database, server: Server
) -> None:
    """Every restart of a container leaves a name: what is said of it would stand on the broker for ever."""
    one = session("one")
    session("other").close()
    assert one.note_seen(one.beat().members, 60) == []
    server.execute("UPDATE replicas SET seen = seen - 100", database)
    assert one.note_seen(one.beat().members, 60) == ["other"]
    one.forget(["one", "other"], 60)
    assert server.execute("SELECT name FROM replicas", database) == [("one",)]


def test_a_share_has_its_partitions_alone_in_order_and_notes_what_is_its_own(
    session: Callable[[str], Session], database: Database
) -> None:
    """Updates of others would be published twice; and what they did not publish yet would be passed over."""
    one, two = named_in(1), named_in(2)
    store(database, message(one), click("c1"), message(two), message(one, "read"), click("c2"))
    holder = session("one")
    epochs = {number: holder.take(number, 0) or 0 for number in (0, 1)}
    with share_of(database, epochs) as ours, share_of(database, {2: holder.take(2, 0) or 0}) as theirs:
        assert ours.settled() == 0
        assert [stored.seq for stored in ours.pending(0, 10)] == [1, 2, 4, 5]
        assert [stored.seq for stored in ours.pending(0, 3)] == [1, 2, 4]
        assert [stored.seq for stored in ours.pending(2, 10)] == [4, 5]
        assert theirs.settled() == 2
        assert [stored.seq for stored in theirs.pending(0, 10)] == [3]
        ours.settle(4)
        assert ours.settled() == 4
        assert theirs.settled() == 2
        theirs.settle(3)
        assert [stored.seq for stored in ours.pending(0, 10)] == [5]
        # What is settled of one partition is restored, though another one of the share is further behind.
        with share_of(database, epochs | {2: 1}) as both:
            assert both.settled() == 4
            standing = [row.topic for row in both.retained((0, ""), 0, 10)]
            assert standing == [f"{two}/status", f"{one}/status", "last/status"]
            # What it has published itself since is not: the broker would get it twice.
            both.settle(5)
            assert [row.topic for row in both.retained((0, ""), 0, 10)] == standing
        assert [row.topic for row in ours.retained((0, ""), 9, 10)] == [
            f"{one}/status",
            "last/status",
            "button/gate",
            "last/button",
        ]
        assert [row.topic for row in theirs.retained((0, ""), 9, 10)] == [f"{two}/status"]
        assert {row.topic: row.seq for row in ours.last()} == {"last/status": 4, "last/button": 5}


def test_older_states_of_what_another_one_may_have_published_are_not_published_over_newer_ones(
    session: Callable[[str], Session], database: Database
) -> None:
    """It was killed before it noted that `read` is on the broker: after it, `sent` would stand there for a moment."""
    one = named_in(1)
    store(database, message(one), message(one, "delivered"), message(one, "read"))
    epoch = session("one").take(1, 0) or 0
    with share_of(database, {1: epoch}) as ours:
        ours.settled()
        store(database, message(one, "played"))
        assert [stored.advances for stored in ours.pending(0, 10)] == [False, False, False, True]
    other = named_in(2)
    with share_of(database, {2: 0}) as theirs:
        theirs.settled()
        store(database, message(other), message(other, "read"))
        assert [stored.advances for stored in theirs.pending(0, 10)] == [True, True]


def test_notes_of_one_that_was_overtaken_count_for_nothing(
    session: Callable[[str], Session], database: Database, server: Server
) -> None:
    """A process that was paused would mark as published what the one in its place has not sent yet."""
    one, two = named_in(1), named_in(2)
    store(database, message(one), message(two), click())
    holder, other = session("one"), session("other")
    epochs = {number: holder.take(number, 0) or 0 for number in (0, 1, 2)}
    end(holder, other)
    assert other.take(0, 1) == other.take(1, 1) == 2
    with share_of(database, epochs) as paused:
        letters = [DeadLetter("publication", "why", b"{}", 1.0, 1), DeadLetter("publication", "why", b"{}", 1.0, 2)]
        paused.settle(3, late=(3,), dead=letters)
    assert server.execute("SELECT settled FROM partitions WHERE partition < 3 ORDER BY partition", database) == [
        (0,),
        (0,),
        (3,),
    ]
    assert server.execute("SELECT seq FROM dead_letters", database) == [(2,)]
    assert server.execute("SELECT seq FROM updates WHERE late", database) == []


def test_each_takes_its_own_topics_off_the_broker(database: Database, server: Server) -> None:
    """One that another replica publishes may be new again: it would be taken away from under it."""
    one, two = named_in(1), named_in(2)
    store(database, message(one), message(two), click())
    with PostgresqlJournal(database) as journal:
        journal.settle(3)
    server.execute("UPDATE ledger SET state = 1", database)
    with share_of(database, {1: 0}) as ours, share_of(database, {0: 0, 2: 0}) as theirs, share_of(database, {}) as none:
        assert ours.clearing(10) == [f"{one}/status"]
        assert theirs.clearing(10) == [f"{two}/status", "last/status", "button/gate", "last/button"]
        assert theirs.clearing(1) == [f"{two}/status"]
        ours.cleared(ours.clearing(10))
        assert ours.clearing(10) == none.clearing(10) == []
        assert none.clear_again(0) == 0
        assert (none.pending(0, 10), none.settled(), none.retained((0, ""), 9, 9)) == ([], 0, [])
        assert ours.clear_again(4) == 0
        assert ours.clear_again(3) == 1
