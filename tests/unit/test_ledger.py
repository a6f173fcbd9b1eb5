"""The ledger of retained topics, the journal's own time, pruning, and what is published again; with a fake clock."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import apsw
import pytest

from bridge.clock import Clock
from bridge.journal import Callback, DeadLetter, JournalError, NotStoredError
from bridge.journal import sqlite as module
from bridge.journal.sqlite import SqliteJournal, suspect_mark
from bridge.model import Kind
from bridge.topics import Entry

NOW = 1_790_000_000.0
DAY = 86_400.0


@dataclass
class Machine:
    """A wall clock, a clock since boot and a boot's name, as a test wants them."""

    wall: float = NOW
    uptime: float = 1_000.0
    boot: str = "first boot"

    def __post_init__(self) -> None:
        self.clock = self._clock()

    def _clock(self) -> Clock:
        return Clock(wall=lambda: self.wall, uptime=lambda: self.uptime)

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.uptime += seconds

    def restarts(self, *, after: float) -> None:
        """Off for so many seconds by the wall clock; a program that starts then has a fresh view of the clocks."""
        self.wall += after
        self.uptime = 10.0
        self.boot += ", another"
        self.clock = self._clock()


def status(number: int, *, message: str | None = None, rank: int = 1, timestamp: int = 1) -> Entry:
    topic = f"{message or f'm{number}'}/status"
    return Entry(f"{number:032x}", Kind.STATUS, topic, "event/status/sent", rank, timestamp, NOW, "{}")


def click(number: int, *, payload: str = "gate", timestamp: int | None = 1, received: float = NOW) -> Entry:
    topic = f"button/{payload}"
    return Entry(f"{number:032x}", Kind.BUTTON, topic, f"event/{topic}", 0, timestamp, received, "{}")


def store(journal: SqliteJournal, *entries: Entry, settled: bool = True) -> None:
    for entry in entries:
        journal.append([Callback((entry,))])
    if settled:
        journal.settle(journal.pending(0, 100_000)[-1].seq)


def states(path: Path) -> dict[str, int]:
    """The state of each topic: 0 stands, 1 to be cleared, 2 cleared, 3 is never retained."""
    db = apsw.Connection(str(path))
    try:
        return dict(db.execute("SELECT topic, state FROM ledger ORDER BY topic"))
    finally:
        db.close()


def seqs(journal: SqliteJournal) -> list[int]:
    return [stored.seq for stored in journal.pending(0, 100_000)]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr(module, "boot_id", lambda: found.boot)
    return found


@pytest.fixture
def path(tmp_path: Path, machine: Machine) -> Path:
    file = tmp_path / "journal.db"
    SqliteJournal(file).create()
    return file


@pytest.fixture
def journal(path: Path) -> Iterator[SqliteJournal]:
    with SqliteJournal(path) as opened:
        yield opened


class TestTime:
    """The journal's own time counts what passed, so that nothing expires early, whatever the wall clock did."""

    def test_it_counts_what_passes(self, journal: SqliteJournal, machine: Machine) -> None:
        """A topic that never came to its age would stand for ever."""
        begin = journal.tick(machine.clock)
        machine.passes(60)
        assert journal.tick(machine.clock) == begin + 60

    @pytest.mark.parametrize("jump", [DAY, -DAY, 30 * DAY, -10 * 365 * DAY])
    def test_a_wall_clock_that_is_set_does_nothing(self, journal: SqliteJournal, machine: Machine, jump: float) -> None:
        """The hour of summer time, or a Pi that learns what year it is, would empty the dashboard."""
        begin = journal.tick(machine.clock)
        machine.wall += jump
        machine.passes(5)
        assert journal.tick(machine.clock) == begin + 5

    def test_a_restart_of_the_machine_counts_by_the_wall_clock(self, journal: SqliteJournal, machine: Machine) -> None:
        """After a holiday with the power off, last month's clicks would stand for another day."""
        begin = journal.tick(machine.clock)
        machine.restarts(after=3 * DAY)
        assert journal.tick(machine.clock) == begin + 3 * DAY

    def test_a_restart_into_a_clock_that_is_wrong_counts_nothing(
        self, journal: SqliteJournal, machine: Machine
    ) -> None:
        """A machine that begins in 1970 knows nothing of how long it was off."""
        begin = journal.tick(machine.clock)
        machine.restarts(after=-machine.wall)
        assert journal.tick(machine.clock) == begin
        machine.wall = NOW  # the network tells the time
        machine.passes(5)
        assert journal.tick(machine.clock) == begin + 5

    def test_a_restart_into_an_earlier_time_never_goes_back(self, journal: SqliteJournal, machine: Machine) -> None:
        """Time that runs backwards would give updates that are stored now an age of yesterday."""
        begin = journal.tick(machine.clock)
        machine.restarts(after=-DAY)
        assert journal.tick(machine.clock) == begin

    def test_a_clock_that_was_a_day_back_and_is_set_right_at_a_restart_expires_nothing_early(
        self, journal: SqliteJournal, machine: Machine
    ) -> None:
        """The day by which it was wrong would count as time that passed."""
        begin = journal.tick(machine.clock)
        machine.wall -= DAY
        machine.passes(60)
        journal.tick(machine.clock)
        machine.restarts(after=DAY + 20)
        assert begin + 60 <= journal.tick(machine.clock) <= begin + 80

    def test_a_clock_that_was_a_day_ahead_only_delays(self, journal: SqliteJournal, machine: Machine) -> None:
        """What the clock was ahead is not counted again: later is harmless, earlier is not."""
        begin = journal.tick(machine.clock)
        machine.wall += DAY
        machine.passes(60)
        journal.tick(machine.clock)
        machine.restarts(after=-DAY + 20)
        assert journal.tick(machine.clock) == begin + 60

    def test_a_tick_remembers_the_newest_place(self, journal: SqliteJournal, machine: Machine) -> None:
        """By this an age becomes a place in the ledger."""
        store(journal, status(1), status(2))
        first = journal.tick(machine.clock)
        machine.passes(100)
        store(journal, status(3))
        second = journal.tick(machine.clock)
        assert journal.stored_before(first - 1) == 0
        assert journal.stored_before(first) == 2
        assert journal.stored_before(second - 1) == 2
        assert journal.stored_before(second) == 3

    def test_ticks_without_anything_new_are_not_kept(
        self, journal: SqliteJournal, machine: Machine, path: Path
    ) -> None:
        """A quiet house would fill its journal with the news that there is none."""
        store(journal, status(1))
        for _ in range(50):
            machine.passes(60)
            journal.tick(machine.clock)
        db = apsw.Connection(str(path))
        assert db.execute("SELECT count(*) FROM ticks").get == 1
        db.close()

    def test_old_ticks_go_but_for_the_one_that_still_says_something(
        self, journal: SqliteJournal, machine: Machine
    ) -> None:
        """Without the newest of the old ones, what is older than all others would have no age."""
        for number in range(1, 5):
            store(journal, status(number))
            journal.tick(machine.clock)
            machine.passes(10)
        now = journal.tick(machine.clock)
        journal.forget_ticks(now - 20)
        assert journal.stored_before(now - 20) == 3
        assert journal.stored_before(now - 25) == 0
        assert journal.stored_before(now) == 4


class TestExpiry:
    def test_a_topic_is_marked_by_the_place_of_what_it_carries(self, journal: SqliteJournal, path: Path) -> None:
        """A message that was read today must not vanish because it was sent last week."""
        store(journal, status(1, message="old"), status(2, message="kept"), status(3, message="kept", rank=2))
        assert journal.expire(Kind.STATUS, 2, 100) == 1
        assert states(path) == {"kept/status": 0, "last/status": 0, "old/status": 1}

    def test_only_the_kind_that_was_asked_for(self, journal: SqliteJournal, path: Path) -> None:
        """Clicks stand for a day and statuses for a week."""
        store(journal, status(1), click(2))
        journal.expire(Kind.BUTTON, 2, 100)
        assert states(path) == {"button/gate": 1, "last/button": 1, "last/status": 0, "m1/status": 0}

    def test_what_is_not_settled_is_not_taken_away(self, journal: SqliteJournal) -> None:
        """It would be published after it was cleared, and stand for ever."""
        store(journal, status(1), settled=False)
        assert journal.expire(Kind.STATUS, 100, 100) == 0

    def test_a_slice_takes_the_oldest(self, journal: SqliteJournal) -> None:
        """Receivers wait while a slice is written, and the dashboard is best served by the newest."""
        store(journal, *(status(number) for number in range(1, 11)))
        assert journal.expire(Kind.STATUS, 10, 4) == 4
        assert journal.clearing(100) == [f"m{number}/status" for number in range(1, 5)]
        assert journal.clearing(2) == ["m1/status", "m2/status"]

    def test_what_was_cleared_is_not_cleared_again(self, journal: SqliteJournal, path: Path) -> None:
        """Each keeper's round would send it again for ever."""
        store(journal, status(1))
        journal.expire(Kind.STATUS, 1, 100)
        journal.cleared(journal.clearing(100))
        assert journal.clearing(100) == []
        assert states(path) == {"last/status": 2, "m1/status": 2}
        assert journal.expire(Kind.STATUS, 1, 100) == 0

    def test_a_topic_that_comes_back_while_it_is_cleared_stands(self, journal: SqliteJournal, path: Path) -> None:
        """The news would be on the broker, and the ledger would not know: never restored, never taken away."""
        store(journal, click(1))
        journal.expire(Kind.BUTTON, 1, 100)
        taken = journal.clearing(100)
        store(journal, click(2, timestamp=2))
        journal.cleared(taken)
        assert states(path) == {"button/gate": 0, "last/button": 0}
        assert journal.clearing(100) == []

    def test_what_a_broker_may_have_forgotten_to_have_cleared_is_cleared_again(
        self, journal: SqliteJournal, path: Path
    ) -> None:
        """A broker that comes back with its memory of an hour ago shows what was taken away since."""
        store(journal, status(1))
        journal.expire(Kind.STATUS, 1, 100)
        journal.cleared(journal.clearing(100))
        store(journal, click(2), click(3, timestamp=2))
        assert journal.clear_again(2) == 0  # it remembers more than that
        assert journal.clear_again(1) == 2
        assert sorted(journal.clearing(100)) == ["last/status", "m1/status"]


class TestSurplus:
    def test_the_oldest_go_first_and_the_latest_of_all_stay(self, journal: SqliteJournal, path: Path) -> None:
        """More topics than the broker bears, or the dashboard's two fixed topics gone in favour of the rest."""
        store(journal, *(status(number) for number in range(1, 11)))
        assert journal.expire_surplus(8, 100) == 3  # ten and `last/status` stand
        assert [topic for topic, state in states(path).items() if state == 1] == ["m1/status", "m2/status", "m3/status"]
        assert journal.expire_surplus(8, 100) == 0

    def test_in_slices(self, journal: SqliteJournal) -> None:
        """Receivers wait while a slice is written."""
        store(journal, *(status(number) for number in range(1, 11)))
        assert journal.expire_surplus(2, 5) == 5
        assert journal.expire_surplus(2, 5) == 4
        assert journal.expire_surplus(2, 5) == 0

    def test_what_is_not_settled_stays(self, journal: SqliteJournal) -> None:
        """It is not on the broker yet."""
        store(journal, *(status(number) for number in range(1, 4)))
        store(journal, *(status(number) for number in range(4, 9)), settled=False)
        assert journal.expire_surplus(0, 100) == 3


class TestNeverRetained:
    """`retain.* : 0`: published, and not kept on the broker."""

    @pytest.fixture
    def journal(self, path: Path) -> Iterator[SqliteJournal]:
        with SqliteJournal(path, never_retained=frozenset({Kind.STATUS})) as opened:
            yield opened

    def test_it_does_not_stand_and_is_not_restored(self, journal: SqliteJournal, path: Path) -> None:
        """A broker that lost its memory would be given what should never have been on it."""
        store(journal, status(1), click(2))
        assert states(path) == {"button/gate": 0, "last/button": 0, "last/status": 3, "m1/status": 3}
        assert [row.topic for row in journal.retained((0, ""), 100, 100)] == ["button/gate", "last/button"]
        assert journal.expire(Kind.STATUS, 100, 100) == 0

    def test_its_rank_still_counts(self, journal: SqliteJournal) -> None:
        """A late `delivered` must not look like news after `read`, retained or not (promise 4)."""
        store(journal, status(1, message="m", rank=3), status(2, message="m", rank=2))
        assert [stored.advances for stored in journal.pending(0, 10)] == [True, False]

    def test_what_stood_before_is_taken_away_with_the_next_update(self, path: Path, journal: SqliteJournal) -> None:
        """After the setting was changed, the last state would stand on the broker for ever."""
        with SqliteJournal(path) as before:
            store(before, status(1, message="m"))
        store(journal, status(2, message="m", rank=2))
        assert states(path) == {"last/status": 1, "m/status": 1}
        journal.cleared(journal.clearing(100))
        store(journal, status(3, message="m", rank=3))
        assert states(path) == {"last/status": 2, "m/status": 2}

    def test_what_is_retained_again_stands(self, path: Path, journal: SqliteJournal) -> None:
        """After the setting was changed back."""
        store(journal, status(1, message="m"))
        with SqliteJournal(path) as after:
            store(after, status(2, message="m", rank=2))
        assert states(path) == {"last/status": 0, "m/status": 0}


class TestClicksUnderAClockThatIsSet:
    """The latest click holds a button's topic, also where our own clock says otherwise."""

    def test_a_click_after_the_clock_was_set_back_is_the_latest(self, journal: SqliteJournal) -> None:
        """For as long as the clock is behind, the dashboard would show the click before."""
        store(journal, click(1, timestamp=int(NOW)))
        store(journal, click(2, timestamp=int(NOW) + 5, received=NOW + 5 - DAY))
        store(journal, click(3, timestamp=int(NOW) + 9, received=NOW + 9 - DAY))
        assert [stored.advances for stored in journal.pending(0, 10)] == [True, True, True]

    def test_one_that_really_came_before_stays_behind_nevertheless(self, journal: SqliteJournal) -> None:
        """A delayed click would take the topic from the one that came after it."""
        store(journal, click(1, timestamp=int(NOW)))
        store(journal, click(2, timestamp=int(NOW) + 5, received=NOW + 5 - DAY))
        store(journal, click(3, timestamp=int(NOW) - 60, received=NOW + 9 - DAY))
        assert [stored.advances for stored in journal.pending(0, 10)] == [True, True, False]

    def test_one_that_claims_to_come_from_the_future_does_not_hold_the_topic_for_ever(
        self, journal: SqliteJournal
    ) -> None:
        """One wrong clock at a sender, and the button shows the same click for years."""
        store(journal, click(1, timestamp=int(NOW + 365 * DAY)))
        store(journal, click(2, timestamp=int(NOW) + 5, received=NOW + 5))
        assert [stored.advances for stored in journal.pending(0, 10)] == [True, True]


class TestPruning:
    def test_what_is_settled_and_held_by_no_topic_goes(self, journal: SqliteJournal) -> None:
        """The journal would grow for ever."""
        store(journal, click(1), click(2, timestamp=2), click(3, timestamp=3))
        assert journal.prune(3, 100) == 2
        assert seqs(journal) == [3]

    def test_what_a_standing_topic_carries_stays(self, journal: SqliteJournal) -> None:
        """A broker that lost its memory could not be given it again (promise 6)."""
        store(journal, status(1), status(2))
        assert journal.prune(2, 100) == 0
        assert [row.topic for row in journal.retained((0, ""), 2, 100)] == ["m1/status", "last/status", "m2/status"]

    def test_what_a_topic_carried_that_is_to_be_cleared_may_go(self, journal: SqliteJournal) -> None:
        """A full journal would wait for the broker to take a thousand topics away."""
        store(journal, status(1), status(2))
        journal.expire(Kind.STATUS, 1, 100)
        assert journal.prune(2, 100) == 1
        assert journal.clearing(100) == ["m1/status"]

    def test_what_is_not_settled_stays(self, journal: SqliteJournal) -> None:
        """It was answered 200, and is nowhere else (promise 2)."""
        store(journal, click(1), click(2, timestamp=2))
        store(journal, click(3, timestamp=3), click(4, timestamp=4), settled=False)
        assert journal.prune(100, 100) == 2
        assert seqs(journal) == [3, 4]

    def test_what_is_younger_stays(self, journal: SqliteJournal) -> None:
        """It is how a duplicate is known again (promise 3)."""
        store(journal, *(click(number, timestamp=number) for number in range(1, 6)))
        assert journal.prune(2, 100) == 2
        assert seqs(journal) == [3, 4, 5]

    def test_in_slices(self, journal: SqliteJournal) -> None:
        """Receivers wait while a slice is written."""
        store(journal, *(click(number, timestamp=number) for number in range(1, 8)))
        assert [journal.prune(7, 4), journal.prune(7, 4), journal.prune(7, 4)] == [4, 2, 0]

    def test_topics_that_are_gone_leave_the_ledger(self, journal: SqliteJournal, path: Path) -> None:
        """A million messages would each leave a row for ever."""
        store(journal, status(1), click(2))
        journal.expire(Kind.STATUS, 1, 100)
        journal.cleared(journal.clearing(100))
        journal.prune(1, 100)  # it was cleared when 2 was settled
        assert "m1/status" in states(path)
        journal.prune(2, 100)
        assert "m1/status" not in states(path)

    def test_places_are_not_given_again(self, journal: SqliteJournal) -> None:
        """A checkpoint on the broker names places: a new update at an old place would not be restored."""
        store(journal, click(1), click(2, timestamp=2))
        journal.expire(Kind.BUTTON, 2, 100)
        journal.prune(2, 100)
        assert seqs(journal) == []
        journal.append([Callback((click(3, timestamp=3),))])
        assert seqs(journal) == [3]


class TestRoom:
    def test_a_full_journal_says_which_setting_and_still_settles_and_prunes(self, path: Path) -> None:
        """`database or disk is full` sends people to look for space that is there."""
        with SqliteJournal(path, max_size=256 * 1024) as receiver, SqliteJournal(path, durable=False) as publisher:
            large = [
                Entry(f"{n:032x}", Kind.BUTTON, "button/gate", "event/button/gate", 0, n, NOW, f'"{"x" * 2000}"')
                for n in range(1, 500)
            ]
            with pytest.raises(NotStoredError, match=r"as large as journal\.max_size allows.*raise journal\.max_size"):
                for entry in large:
                    receiver.append([Callback((entry,))])
            publisher.settle(publisher.pending(0, 1000)[-1].seq)
            assert publisher.prune(1000, 1000) > 40
            receiver.append([Callback((large[-1],))])

    def test_a_full_disk_is_called_a_full_disk(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who raises journal.max_size then has the same error as before."""
        with SqliteJournal(path, max_size=2**30) as journal:
            monkeypatch.setattr(SqliteJournal, "_disk_has_room", lambda _: False)
            with pytest.raises(NotStoredError, match="the disk is full: less than 2 MiB free; make room"):
                journal.append([Callback((status(1),))])
            with pytest.raises(NotStoredError, match="the disk is full; make room"), journal._storing():
                raise apsw.FullError
        with (
            SqliteJournal(path) as journal,
            pytest.raises(NotStoredError, match="the disk is full"),
            journal._storing(),
        ):
            raise apsw.FullError

    def test_usage_counts_what_is_in_use_and_the_log(self, journal: SqliteJournal) -> None:
        """The file never shrinks by itself: by its size it would look full for ever."""
        store(journal, *(click(number, timestamp=number) for number in range(1, 2000)))
        before = journal.usage()
        journal.prune(2000, 10_000)
        after = journal.usage()
        assert after.file >= before.file > 0
        assert after.used < before.used / 2
        assert after.wal > 0
        journal.checkpoint()
        assert journal.usage().wal == 0

    def test_a_log_that_is_not_there_has_no_size(self, journal: SqliteJournal, path: Path) -> None:
        """A health report must not fail over it."""
        path.with_name("journal.db-wal").unlink()
        assert journal.usage().wal == 0

    def test_whoever_writes_brings_a_long_log_into_the_file(
        self, journal: SqliteJournal, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A log that only grows fills the card."""
        monkeypatch.setattr(module, "WAL_PAGES", 100)
        for number in range(1, 300):
            journal.append([Callback((status(number),))])
        assert path.with_name("journal.db-wal").stat().st_size < 200 * 4120

    def test_a_checkpoint_that_fails_ends_the_receiver_although_all_is_stored(
        self, journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """SQLite's own checkpoints keep silent about an fsync that failed, and try it again."""
        monkeypatch.setattr(module, "WAL_PAGES", 0)

        def fails(*_: object) -> None:
            raise apsw.IOError("disk I/O error")

        monkeypatch.setattr(SqliteJournal, "_bring_in", fails)
        with pytest.raises(module.BrokenStorageError, match="the storage failed"):
            journal.append([Callback((status(1),))])
        assert seqs(journal) == [1]

    def test_a_checkpoint_for_which_there_is_no_room_or_no_turn_waits(
        self, journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is in the log is safe there: no reason to refuse, nor to end."""
        for error in (apsw.FullError, apsw.BusyError, apsw.LockedError):
            db = Stubborn(error)
            journal._bring_in(db, apsw.SQLITE_CHECKPOINT_PASSIVE)  # type: ignore[arg-type]
            assert db.asked


class Stubborn:
    """A connection that does not checkpoint."""

    def __init__(self, error: type[apsw.Error]) -> None:
        self.asked = False
        self._error = error

    def wal_checkpoint(self, *, mode: int) -> None:
        self.asked = True
        raise self._error


class TestTheFolder:
    """A log that was just made must be found again after a power cut; SQLite keeps silent if the folder fails."""

    @pytest.fixture
    def fails(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
        codes: list[int] = []

        def fsync(_: int) -> None:
            raise OSError(codes[0], os.strerror(codes[0]))

        monkeypatch.setattr(os, "fsync", fsync)
        return codes

    @pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
    def test_one_that_cannot_be_written_is_an_error(self, path: Path, fails: list[int], code: int) -> None:
        """All that is answered 200 from then on would be in a file that the folder does not know."""
        fails.append(code)
        journal = SqliteJournal(path)
        with pytest.raises(JournalError, match=r"journal .*: the storage failed \("), journal:
            pass
        assert journal._db is None

    def test_a_file_system_that_cannot_do_this_is_none(self, path: Path, fails: list[int]) -> None:
        """Some know no such thing; the bridge must start on them."""
        fails.append(errno.EINVAL)
        with SqliteJournal(path) as journal:
            assert journal.settled() == 0


class TestDamageWhileRunning:
    def test_a_text_that_is_none_leaves_word_for_the_next_start(self, path: Path, journal: SqliteJournal) -> None:
        """SQLite does not mind; the publisher would end over it at each start, for ever."""
        store(journal, status(1), settled=False)
        db = apsw.Connection(str(path))
        db.execute("UPDATE updates SET document = CAST(x'7bff7d' AS TEXT)")
        db.close()
        with pytest.raises(JournalError, match="a row is damaged"):
            journal.pending(0, 10)
        assert suspect_mark(path).exists()

    def test_a_kind_that_there_is_not_leaves_word_as_well(self, path: Path, journal: SqliteJournal) -> None:
        """As above."""
        store(journal, status(1))
        db = apsw.Connection(str(path))
        db.execute("UPDATE ledger SET kind = 'nonsense'")
        db.close()
        with pytest.raises(JournalError, match="a row is damaged"):
            journal.retained((0, ""), 10, 10)
        assert suspect_mark(path).exists()


class TestDeadLetters:
    @pytest.fixture
    def journal(self, path: Path) -> Iterator[SqliteJournal]:
        with SqliteJournal(path) as opened:
            letters = [DeadLetter("callback", f"reason {n}", b"body", NOW + n) for n in range(1, 6)]
            opened.append([Callback((), tuple(letters))])
            yield opened

    def test_newest_first(self, journal: SqliteJournal) -> None:
        """What just went wrong is what one looks for."""
        assert [letter.number for letter in journal.dead_letters()] == [5, 4, 3, 2, 1]
        assert [letter.number for letter in journal.dead_letters(limit=2)] == [5, 4]

    def test_one_by_its_number(self, journal: SqliteJournal) -> None:
        """`dead-letters show 3`."""
        letter = journal.dead_letter(3)
        assert letter is not None
        assert (letter.number, letter.source, letter.reason, letter.body) == (3, "callback", "reason 3", b"body")
        assert journal.dead_letter(99) is None

    def test_dropping_says_whether_there_was_one(self, journal: SqliteJournal) -> None:
        """`dropped` for a number that never was would hide a slip."""
        assert journal.drop_dead_letter(3)
        assert not journal.drop_dead_letter(3)
        assert [letter.number for letter in journal.dead_letters()] == [5, 4, 2, 1]

    @pytest.mark.parametrize(
        ("most", "before", "left"),
        [(10, 0.0, [5, 4, 3, 2, 1]), (2, 0.0, [5, 4]), (10, NOW + 3, [5, 4, 3]), (1, NOW + 3, [5]), (10, NOW + 99, [])],
    )
    def test_they_are_bounded_in_number_and_age(
        self, journal: SqliteJournal, most: int, before: float, left: list[int]
    ) -> None:
        """A sender that is broken would fill the disk with what it sends."""
        assert journal.bound_dead_letters(most=most, received_before=before) == 5 - len(left)
        assert [letter.number for letter in journal.dead_letters()] == left

    def test_numbers_are_not_given_again(self, journal: SqliteJournal) -> None:
        """A script that drops number 5 must not drop what came since."""
        journal.bound_dead_letters(most=1, received_before=NOW + 99)
        journal.append([Callback((), (DeadLetter("item", "new", b"", NOW),))])
        assert [letter.number for letter in journal.dead_letters()] == [6]


class TestPublishingAgain:
    def test_it_becomes_the_newest_with_its_old_identity(self, journal: SqliteJournal) -> None:
        """A new identity would be a second click to whoever drops duplicates."""
        store(journal, click(1, payload="a"), click(2, payload="b"))
        assert journal.publish_again(1)
        again = journal.pending(journal.settled(), 10)
        assert [(stored.seq, stored.event_id) for stored in again] == [(3, f"{1:032x}")]

    def test_its_topic_goes_with_it(self, journal: SqliteJournal) -> None:
        """The ledger would name an update that is not there, and the topic could not be restored."""
        store(journal, click(1, payload="a"), click(2, payload="b"))
        journal.publish_again(1)
        topics = {row.topic: row.seq for row in journal.retained((0, ""), 10, 10)}
        assert topics == {"button/a": 3, "button/b": 2, "last/button": 2}

    def test_the_next_update_comes_behind_it(self, journal: SqliteJournal) -> None:
        """Two at one place: one of them would be refused with an error nobody understands."""
        store(journal, click(1), click(2, timestamp=2))
        journal.publish_again(1)
        journal.append([Callback((click(3, timestamp=3),))])
        assert seqs(journal) == [2, 3, 4]

    def test_what_waits_anyhow_is_not_moved(self, journal: SqliteJournal) -> None:
        """It would be published out of its order."""
        store(journal, click(1), settled=False)
        assert not journal.publish_again(1)

    def test_what_is_not_known_any_more_is_told(self, journal: SqliteJournal) -> None:
        """The dead letter stays then."""
        assert not journal.publish_again(1)
        store(journal, click(1), click(2, timestamp=2))
        journal.prune(2, 100)
        assert not journal.publish_again(1)


class TestStatistics:
    def test_they_count_what_waits_and_what_stands(self, journal: SqliteJournal) -> None:
        """The health report would lie."""
        store(journal, status(1))
        store(journal, status(2), status(3), settled=False)
        journal.append([Callback((), (DeadLetter("item", "why", b"", NOW),))])
        found = journal.statistics(NOW + 30)
        assert (found.backlog, found.oldest_age, found.dead_letters, found.retained_topics) == (2, 30.0, 1, 4)

    def test_nothing_waits_for_less_than_no_time(self, journal: SqliteJournal) -> None:
        """Under a clock that was set back an age would be below zero."""
        store(journal, status(1), settled=False)
        assert journal.statistics(NOW - DAY).oldest_age == 0.0
        journal.settle(1)
        assert journal.statistics(NOW + DAY).oldest_age == 0.0
