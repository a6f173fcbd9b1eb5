"""The keeper: what it marks, prunes, bounds and reports, step by step and under a fake clock."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import orjson
import pytest
from structlog.testing import capture_logs

from bridge import keeper as module
from bridge.clock import Clock
from bridge.config import Journal as Limits
from bridge.config import Retain
from bridge.homeassistant import messages
from bridge.journal import BrokenStorageError, Callback, DeadLetter, NotStoredError, sqlite
from bridge.journal.sqlite import RESERVE, SqliteJournal
from bridge.keeper import CLEARING, HURRY, LOOK_EVERY, ROOM, ROUND_EVERY, SLICE, Keeper
from bridge.model import Kind
from bridge.topics import Entry
from scripts.reference import HEALTH_KEYS

NOW = 1_790_000_000.0
HOUR, DAY = 3_600.0, 86_400.0


class House:
    """A keeper with everything it looks after, and hands on its clocks.

    Args:
        folder: Of the journal.
        retain: Lifetimes and `max_topics`, as in the settings.
        limits: Of the journal, likewise.
    """

    def __init__(self, folder: Path, retain: dict[str, Any], limits: dict[str, Any], alarms: tuple[str, ...]) -> None:
        self.path = folder / "journal.db"
        self.wall, self.uptime, self.turns = NOW, 1_000.0, 500.0
        self.connected = True
        self.marked = 0
        self.reports: list[dict[str, Any]] = []
        SqliteJournal(self.path).create()
        self.journal = SqliteJournal(self.path)
        self.clock = Clock(wall=lambda: self.wall, uptime=lambda: self.uptime)
        self.keeper = Keeper(
            Retain(**{"status": 7 * DAY, "button": DAY, "max_topics": 100_000} | retain),
            Limits(**limits),
            self.journal,
            self.path,
            self.clock,
            is_connected=lambda: self.connected,
            announce=lambda report: self.reports.append(orjson.loads(report)),
            mark_made=self._mark_made,
            alarms=alarms,
        )

    def _mark_made(self) -> None:
        self.marked += 1

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.uptime += seconds
        self.turns += seconds

    def store(self, *entries: Entry, settled: bool = True) -> None:
        self.journal.append([Callback(entries)])
        if settled:
            self.journal.settle(self.journal.settled() + self.journal.backlog())

    def rounds(self) -> int:
        """Steps until there is nothing more to do at once."""
        for number in range(1, 1_000):
            if not self.keeper.step():
                return number
        raise AssertionError("the keeper never comes to an end")

    def states(self) -> dict[str, int]:
        """The state of each topic: 0 stands, 1 to be cleared."""
        db = apsw.Connection(str(self.path))
        try:
            return dict(db.execute("SELECT topic, state FROM ledger"))
        finally:
            db.close()

    def standing(self) -> set[str]:
        return {topic for topic, state in self.states().items() if state == 0}


def status(number: int, *, size: int = 0) -> Entry:
    document = orjson.dumps("x" * size).decode()
    return Entry(f"{number:032x}", Kind.STATUS, f"m{number}/status", "event/status/sent", 1, 1, NOW, document)


def click(number: int, *, payload: str = "gate", size: int = 0) -> Entry:
    document = orjson.dumps("x" * size).decode()
    topic = f"button/{payload}"
    return Entry(f"{number:032x}", Kind.BUTTON, topic, f"event/{topic}", 0, number, NOW + DAY, document)


MakeHouse = Callable[..., House]


@pytest.fixture
def make_house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeHouse]:
    houses: list[House] = []

    def make(*, retain: dict[str, Any] | None = None, alarms: tuple[str, ...] = (), **limits: Any) -> House:
        house = House(tmp_path, retain or {}, limits, alarms)
        house.journal.__enter__()
        houses.append(house)
        monkeypatch.setattr(module.time, "monotonic", lambda: house.turns)
        return house

    yield make
    for house in houses:
        house.journal.__exit__()


@pytest.fixture
def house(make_house: MakeHouse) -> House:
    return make_house()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The disk, as full as a test wants it."""
    found = SimpleNamespace(f_bavail=10 * 2**20, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    return found


class TestExpiry:
    def test_a_topic_is_marked_when_its_time_is_over_and_not_before(self, house: House) -> None:
        """Last week's click would stand on the dashboard as if it were news, or today's would vanish."""
        house.keeper.step()
        house.store(click(1), status(2))
        house.passes(60)
        house.keeper.step()  # only now it is known that they are there
        house.passes(DAY - 61)
        house.rounds()
        assert house.standing() == {"button/gate", "last/button", "m2/status", "last/status"}
        assert house.marked == 0
        house.passes(2 * ROUND_EVERY)
        house.rounds()
        assert house.standing() == {"m2/status", "last/status"}
        assert house.marked == 1
        house.passes(6 * DAY + ROUND_EVERY)
        house.rounds()
        assert house.standing() == set()

    @pytest.mark.parametrize("jump", [DAY, -DAY, 400 * DAY])
    def test_a_wall_clock_that_is_set_marks_nothing(self, house: House, jump: float) -> None:
        """A Pi that learns what day it is would empty the dashboard."""
        house.store(click(1), status(2))
        house.keeper.step()
        house.wall += jump
        house.passes(ROUND_EVERY)
        house.rounds()
        assert len(house.standing()) == 4

    def test_thousands_go_in_slices_one_after_the_other_at_once(self, house: House) -> None:
        """New callbacks wait while a slice is written; and a slice a minute would take days."""
        house.store(*(click(number, payload=f"b{number}") for number in range(2 * SLICE + 10)))
        house.keeper.step()
        house.passes(DAY + ROUND_EVERY)
        assert house.keeper.step()
        assert sum(house.states().values()) == SLICE
        assert house.keeper.step()
        assert not house.keeper.step()
        assert house.standing() == set()

    def test_what_was_published_a_moment_ago_is_safe_while_the_rest_goes(self, house: House) -> None:
        """A slice that takes too much takes news."""
        house.store(click(1, payload="old"))
        house.keeper.step()
        house.passes(DAY)
        house.store(click(2, payload="new"))
        house.passes(1)
        house.rounds()
        assert house.standing() == {"button/new", "last/button"}

    def test_rounds_come_each_minute(self, house: House) -> None:
        """Each second would wear the card out."""
        house.keeper.step()
        before = house.journal.usage().wal
        for _ in range(50):
            house.passes(1)
            house.keeper.step()
        assert house.journal.usage().wal == before
        house.passes(10)
        house.keeper.step()
        assert house.journal.usage().wal > before

    def test_short_lifetimes_are_looked_after_more_often(self, make_house: MakeHouse) -> None:
        """`retain.button: 10s` would stand for a minute."""
        house = make_house(retain={"button": 10.0})
        house.store(click(1))
        house.keeper.step()
        house.passes(11)
        house.rounds()
        assert house.standing() == set()

    def test_never_retained_takes_away_what_stood_before(self, make_house: MakeHouse) -> None:
        """After `retain.status: 0`, the states of last week would stand for ever."""
        house = make_house(retain={"status": 0.0, "button": 0.0})
        house.store(status(1), click(2))
        house.rounds()
        assert house.standing() == set()
        assert house.marked == 1

    def test_the_oldest_go_when_there_are_too_many(self, make_house: MakeHouse) -> None:
        """A broker with a million retained topics is slow for everybody in the house."""
        house = make_house(retain={"max_topics": 10})
        house.store(*(status(number) for number in range(1, 30)))
        house.rounds()
        assert house.standing() == {"last/status"} | {f"m{number}/status" for number in range(21, 30)}


class TestPruning:
    def test_what_was_published_goes_after_its_time(self, make_house: MakeHouse) -> None:
        """A Pi's card would be full after a year."""
        house = make_house(keep=2 * DAY)
        house.store(click(1), click(2), click(3))
        house.keeper.step()
        house.passes(DAY)
        house.store(click(4))
        house.keeper.step()
        house.passes(DAY + ROUND_EVERY)
        house.rounds()
        assert [stored.seq for stored in house.journal.pending(0, 10)] == [4]

    def test_what_waits_stays_for_any_time(self, make_house: MakeHouse) -> None:
        """The broker may be away for longer than journal.keep: promise 2 has no end."""
        house = make_house(keep=DAY)
        house.store(click(1), click(2), settled=False)
        house.keeper.step()
        house.passes(300 * DAY)
        house.rounds()
        assert [stored.seq for stored in house.journal.pending(0, 10)] == [1, 2]

    def test_a_long_log_is_brought_into_the_file(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """Readers keep receivers from doing it; a log that only grows fills the card."""
        house.store(*(click(number, size=2_000) for number in range(1, 200)))
        assert house.journal.usage().wal > 100_000
        monkeypatch.setattr(module, "WAL_HIGH", 100_000)
        house.keeper.step()
        assert house.journal.usage().wal < 50_000


class TestRoom:
    """A journal that is nearly as large as journal.max_size allows."""

    SIZE = 2 * ROOM

    def fill(self, house: House, entry: Callable[..., Entry], *, settled: bool = True) -> int:
        number = house.journal.settled() + house.journal.backlog()
        while house.journal.usage().used <= self.SIZE - ROOM:
            house.store(*(entry(number + one, size=10_000) for one in range(1, 51)), settled=settled)
            number += 50
        return number

    def test_what_was_published_goes_whatever_its_age(self, make_house: MakeHouse) -> None:
        """Callbacks would be refused because of what was published an hour ago."""
        house = make_house(max_size=self.SIZE)
        newest = self.fill(house, click)
        house.rounds()
        assert [stored.seq for stored in house.journal.pending(0, 10_000)] == [newest]

    def test_it_does_not_wait_for_the_next_round(self, make_house: MakeHouse) -> None:
        """A burst fills a small journal within seconds."""
        house = make_house(max_size=self.SIZE)
        house.rounds()
        self.fill(house, click)
        house.passes(1)
        house.keeper.step()
        assert house.journal.usage().used < self.SIZE - ROOM

    def test_then_the_topics_that_stood_longest_go(self, make_house: MakeHouse) -> None:
        """All is published and stands: without this, every callback would be refused for a week."""
        house = make_house(max_size=self.SIZE)
        newest = self.fill(house, status)
        for _ in range(20):
            house.passes(1)
            house.keeper.step()
            house.journal.cleared(house.journal.clearing(10_000))
        assert house.marked
        assert house.journal.usage().used < self.SIZE - ROOM
        assert f"m{newest}/status" not in {topic for topic, state in house.states().items() if state == 1}
        assert "last/status" in house.standing()

    def test_no_topic_goes_while_the_broker_is_away(self, make_house: MakeHouse) -> None:
        """Nothing would be gained: what fills the journal is what waits."""
        house = make_house(max_size=self.SIZE)
        house.connected = False
        self.fill(house, status)
        house.rounds()
        assert not [topic for topic, state in house.states().items() if state]

    def test_no_more_are_marked_while_many_wait(self, make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
        """A slow broker would lose the whole dashboard to one burst."""
        house = make_house(max_size=self.SIZE)
        self.fill(house, status)
        asked: list[int] = []
        monkeypatch.setattr(house.journal, "clearing", lambda limit: asked.append(limit) or ["topic"] * CLEARING)
        house.rounds()
        assert asked
        assert not [topic for topic, state in house.states().items() if state]

    def test_it_hurries_only_while_it_makes_room(self, make_house: MakeHouse) -> None:
        """Ten looks a second for a week would keep the processor of a Pi warm."""
        house = make_house(max_size=self.SIZE)
        waits: list[float] = []

        class Stopping(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                assert timeout is not None
                waits.append(timeout)
                return len(waits) == 4

        house.keeper._stopping = Stopping()
        self.fill(house, click)
        house.keeper.run()
        assert waits == [HURRY, LOOK_EVERY, LOOK_EVERY, LOOK_EVERY]

    def test_there_is_more_to_do_at_once_after_a_full_slice(self, make_house: MakeHouse) -> None:
        """Many small updates: a slice each tenth of a second might be too slow."""
        house = make_house(max_size=self.SIZE)
        house.rounds()
        while house.journal.usage().used <= self.SIZE - ROOM:
            start = house.journal.settled()
            house.store(*(click(start + one, size=500) for one in range(1, 1_001)))
        assert house.keeper.step()

    def test_what_cannot_go_raises_the_alarm(self, make_house: MakeHouse) -> None:
        """The user should know before callbacks are refused."""
        house = make_house(max_size=self.SIZE)
        house.connected = False
        self.fill(house, click, settled=False)
        house.rounds()
        assert house.reports[-1]["alarms"] == [
            "the journal is nearly as large as journal.max_size allows, and holds nothing that may go"
        ]


class TestDisk:
    def test_room_is_held_while_there_is_plenty(self, house: House) -> None:
        """Deleting needs room as well: on a disk that is full to the last byte, nothing would help any more."""
        house.keeper.step()
        assert house.path.with_suffix(".ballast").stat().st_size == 8 * 2**20

    def test_it_is_given_up_when_the_disk_is_full_and_taken_again(self, house: House, disk: SimpleNamespace) -> None:
        """A ballast that is never given up only makes the disk smaller."""
        ballast = house.path.with_suffix(".ballast")
        house.keeper.step()
        assert ballast.exists()
        disk.f_bavail = RESERVE // 4096 - 1
        with capture_logs() as logs:
            house.keeper.step()
            house.keeper.step()
        assert not ballast.exists()
        assert [line["event"] for line in logs if line["log_level"] == "error"] == [
            "the disk is full; the ballast is given up so that old rows can be deleted"
        ]
        disk.f_bavail = RESERVE // 4096
        house.keeper.step()
        assert not ballast.exists()  # the bridge itself would be the next to fill it
        disk.f_bavail = 10 * 2**20
        house.keeper.step()
        assert ballast.exists()

    def test_a_full_disk_prunes_and_brings_the_log_into_the_file(self, house: House, disk: SimpleNamespace) -> None:
        """What can be done to make room is done at once, not after 30 days."""
        house.store(click(1), click(2), click(3))
        disk.f_bavail = 0
        house.keeper.step()
        assert [stored.seq for stored in house.journal.pending(0, 10)] == [3]
        assert "the disk is full" in house.reports[-1]["alarms"]
        assert house.reports[-1]["ok"] is False


class TestTrouble:
    def test_what_cannot_be_stored_is_told_once_and_tried_again(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A line each second would hide everything else in the log."""
        with monkeypatch.context() as patch, capture_logs() as logs:

            def fails(_: object) -> float:
                raise NotStoredError("the disk is full")

            patch.setattr(house.journal, "tick", fails)
            for _ in range(3):
                assert not house.keeper.step()
                house.passes(1)
        assert [line["why"] for line in logs if line["log_level"] == "warning"] == ["the disk is full"]
        assert house.reports[-1]["alarms"] == ["the disk is full"]
        house.keeper.step()
        assert house.reports[-1]["alarms"] == []
        assert house.reports[-1]["ok"] is True

    def test_a_storage_that_failed_ends_it(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """After an fsync that failed, the next one may lie: only a new process may try again."""

        def fails(_: object) -> float:
            raise BrokenStorageError("the storage failed")

        monkeypatch.setattr(house.journal, "tick", fails)
        with pytest.raises(BrokenStorageError):
            house.keeper.step()

    def test_stop_ends_it_at_once(self, house: House) -> None:
        """A stop that waits for the next minute is killed by whoever stops it."""
        house.journal.__exit__()

        def run() -> None:
            with house.journal:
                house.keeper.run()

        thread = threading.Thread(target=run)
        thread.start()
        house.keeper.stop()
        thread.join(10)
        assert not thread.is_alive()
        house.journal.__enter__()


class TestDeadLetters:
    def letters(self, house: House, *received: float) -> None:
        letters = tuple(DeadLetter("item", "why", b"", when) for when in received)
        house.journal.append([Callback((), letters)])

    def test_they_are_bounded_in_number(self, make_house: MakeHouse) -> None:
        """A sender that is broken would fill the disk."""
        house = make_house(dead_letters_max=3)
        self.letters(house, *[NOW] * 10)
        house.keeper.step()
        assert [letter.number for letter in house.journal.dead_letters()] == [10, 9, 8]

    def test_they_are_bounded_in_age(self, make_house: MakeHouse) -> None:
        """They hold phone numbers."""
        house = make_house(dead_letters_keep=DAY)
        self.letters(house, NOW - DAY - 1, NOW - DAY + 1)
        house.keeper.step()
        assert [letter.number for letter in house.journal.dead_letters()] == [2]

    def test_their_age_does_not_count_under_a_clock_that_was_set(self, make_house: MakeHouse) -> None:
        """A clock a year ahead for a minute would cost all of them."""
        house = make_house(dead_letters_keep=DAY)
        self.letters(house, NOW)
        house.keeper.step()
        house.wall += 365 * DAY
        house.passes(ROUND_EVERY)
        house.keeper.step()
        assert len(house.journal.dead_letters()) == 1


class TestHealth:
    def test_it_says_how_things_are(self, house: House) -> None:
        """What stands in docs for dashboards and alarms must be there."""
        house.store(click(1))
        house.store(click(2), settled=False)
        house.journal.append([Callback((), (DeadLetter("item", "why", b"", NOW),))])
        house.passes(30)
        house.keeper.step()
        (report,) = house.reports
        assert set(report) == set(HEALTH_KEYS) - {"replicas"}, "explain each key in scripts/reference.py"
        sizes = {name: report.pop(name) for name in ("journal_bytes", "wal_bytes", "memory_bytes")}
        assert all(size > 0 for size in sizes.values())
        assert report == {
            "ok": True,
            "connected": True,
            "backlog": 1,
            "oldest_age": 0.0,  # its receipt lies in this test's future
            "dead_letters": 1,
            "retained_topics": 2,
            "messages": messages({}, {}),
            "last_failure": None,
            "alarms": [],
            "clock_trusted": True,
            "started_at": "2026-09-21T14:13:20.000Z",
            "uptime": 30,
            "at": "2026-09-21T14:13:50.000Z",
        }

    def test_it_comes_at_first_and_then_each_minute(self, house: House) -> None:
        """Silence would look like health; each second would be noise on the broker."""
        house.keeper.step()
        house.keeper.step()
        assert len(house.reports) == 1
        house.passes(ROUND_EVERY - 1)
        house.keeper.step()
        assert len(house.reports) == 1
        house.passes(1)
        house.keeper.step()
        assert len(house.reports) == 2

    def test_what_is_essential_comes_at_once(self, house: House) -> None:
        """A dead letter that is reported a minute later is a minute of looking in the wrong place."""
        house.keeper.step()
        house.connected = False
        house.keeper.step()
        assert house.reports[-1]["connected"] is False
        assert house.reports[-1]["ok"] is False
        house.connected = True
        house.keeper.step()
        house.journal.append([Callback((), (DeadLetter("item", "why", b"", NOW),))])
        house.keeper.step()
        assert house.reports[-1]["dead_letters"] == 1
        assert len(house.reports) == 4

    def test_a_backlog_alone_is_no_reason_to_speak(self, house: House) -> None:
        """Each callback would be a report."""
        house.keeper.step()
        house.store(click(1), settled=False)
        house.keeper.step()
        assert len(house.reports) == 1

    def test_the_alarm_of_the_start_stays(self, make_house: MakeHouse) -> None:
        """A journal that was damaged: who looks a day later must still see it."""
        house = make_house(alarms=("the journal was damaged",))
        for _ in range(3):
            house.keeper.step()
            house.passes(ROUND_EVERY)
        assert [report["alarms"] for report in house.reports] == [["the journal was damaged"]] * 3
        assert not any(report["ok"] for report in house.reports)

    def test_a_clock_that_was_set_is_told(self, house: House) -> None:
        """It explains why old clicks fire, or new ones are called late."""
        house.keeper.step()
        house.wall += DAY
        house.passes(ROUND_EVERY)
        house.keeper.step()
        assert house.reports[-1]["clock_trusted"] is False


def test_the_restart_of_a_machine_is_survived(make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock since boot begins anew: what is older than the boot must still come to its age, and no sooner."""
    monkeypatch.setattr(sqlite, "boot_id", lambda: "one")
    house = make_house()
    house.store(click(1))
    house.keeper.step()
    house.passes(HOUR)
    house.keeper.step()
    monkeypatch.setattr(sqlite, "boot_id", lambda: "two")
    house.uptime = 5.0
    house.wall += HOUR
    # A new process.
    house.keeper._clock = Clock(wall=lambda: house.wall, uptime=lambda: house.uptime)
    house.keeper._next_round = 0.0
    house.rounds()
    assert house.standing() == {"button/gate", "last/button"}
    house.passes(22 * HOUR + ROUND_EVERY)
    house.rounds()
    assert house.standing() == set()


class TestAmongOthers:
    """Several bridges on one journal: one keeps house."""

    def test_who_does_not_lead_keeps_no_house_and_reports_to_nobody(self, house: House) -> None:
        """Each replica would publish a health report of its own, and expire what another one is about to restore."""
        leads = False
        house.keeper._leads = lambda: leads
        house.keeper._members = lambda: ("one", "two")
        house.store(status(1))
        house.passes(8 * DAY)
        house.keeper.step()
        assert house.reports == []
        assert house.marked == 0
        # Its own page still shows how it is.
        assert orjson.loads(house.keeper.report)["replicas"] == ["one", "two"]

        leads = True
        house.keeper.step()
        (report,) = house.reports
        assert report["replicas"] == ["one", "two"]
