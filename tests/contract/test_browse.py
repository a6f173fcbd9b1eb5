"""What the page looks at, from each kind of journal alike: newest first, searches, counts, dead letters."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.journal import Browsable, Callback, DeadLetter, shared
from bridge.journal.browse import BrowsableJournal
from bridge.journal.postgresql import PostgresqlJournal
from bridge.journal.sqlite import SqliteJournal
from bridge.model import ButtonClick, StatusUpdate
from bridge.topics import entry
from tests.postgres import Server, running

NOW = round(time.time(), 3)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as opened:
        yield opened


@pytest.fixture(params=["sqlite", "postgresql"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Browsable]:
    if request.param == "sqlite":
        SqliteJournal(tmp_path / "journal.db").create()
        opened: Browsable = BrowsableJournal(tmp_path / "journal.db")
    else:
        database = request.getfixturevalue("server").new_schema()
        PostgresqlJournal(database).create()
        opened = PostgresqlJournal(database, connections=2)
    with opened:
        yield opened


def store(journal: Browsable, *updates: StatusUpdate | ButtonClick, received: float = NOW) -> None:
    for update in updates:
        journal.append([Callback((entry(update, received),))])


def status(message: str, word: str = "sent", recipient: str = "15550001234") -> StatusUpdate:
    return StatusUpdate(message_id=message, status=word, recipient_id=recipient)


def click(number: int, payload: str = "gate") -> ButtonClick:
    return ButtonClick(payload=payload, message_id=f"click{number}", sender="15550005678")


def any_of(*_: object) -> bool:
    return True


def test_the_newest_come_first_and_only_what_is_new(journal: Browsable) -> None:
    """The live view would show the oldest, or everything again and again."""
    store(journal, status("m1"), status("m2"), click(3))
    newest = journal.newest(2)
    assert [one.event_topic for one in newest] == ["event/button/gate", "event/status/sent"]
    assert [one.topic for one in journal.newest(10, after=newest[1].seq)] == ["button/gate"]
    assert journal.newest(10, after=newest[0].seq) == []


def test_an_update_is_shown_as_it_was_stored(journal: Browsable) -> None:
    """A trace would tell another story than the journal."""
    now = time.time()
    store(journal, status("m1", "read"), received=now)
    store(journal, status("m1", "delivered"), received=now)
    read, delivered = (journal.update(one.seq) for one in reversed(journal.newest(2)))
    assert read is not None
    assert delivered is not None
    assert (read.advances, delivered.advances) == (True, False)
    assert read.event_id == status("m1", "read").event_id
    assert read.received == pytest.approx(now, abs=0.001, rel=0)
    assert read.stored is not None
    assert read.stored >= read.received
    assert not read.late
    assert journal.update(10_000) is None


def test_a_moment_that_clocks_do_not_agree_on_is_not_told(journal: Browsable) -> None:
    """The page would say that storing took an hour, or less than nothing."""
    store(journal, status("m1"), received=NOW - 3_600)
    (kept,) = journal.newest(1)
    assert kept.stored is None


@pytest.mark.parametrize("text", ["m1", 'with "quotes" \\ and ünïcödé', "100%_[x]", "\u2028"])
def test_a_search_finds_what_holds_the_text_and_nothing_else(journal: Browsable, text: str) -> None:
    """An id with a character that means something to the database would never be found, or everything with it."""
    store(journal, status(text), status("another"), status(text, "read"), click(1))
    found = journal.search(text, any_of, limit=10)
    assert [one.event_topic for one in found.updates] == ["event/status/read", "event/status/sent"]
    assert found.before is None
    assert [one.seq for one in journal.search("another", lambda _: False, limit=10).updates] == []


def test_a_search_goes_on_where_it_stopped(journal: Browsable, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a large journal a search would hold up everybody, or end before it found anything."""
    monkeypatch.setattr(shared, "AT_ONCE", 3)
    store(journal, *(status(f"m{number}") for number in range(10)))
    first = journal.search("m", any_of, limit=4)
    assert len(first.updates) == 4
    second = journal.search("m", any_of, limit=100, before=first.before)
    assert [one.topic for one in (*first.updates, *second.updates)] == [f"m{n}/status" for n in range(9, -1, -1)]
    assert second.before is None
    hasty = journal.search("m0", any_of, limit=1, patience=-1.0)
    assert hasty.updates == ()
    assert hasty.before is not None
    assert journal.search("m0", any_of, limit=1, before=hasty.before).updates


def test_the_latest_click_on_each_button_is_known(journal: Browsable) -> None:
    """The page would forget a button, or show its first click for ever."""
    store(journal, click(1, "gate"), click(2, "bell"), click(3, "gate"), status("m1"))
    assert [one.topic for one in journal.clicked(10)] == ["button/gate", "button/bell"]
    assert "click3" in journal.clicked(10)[0].document
    assert journal.holder("button/gate") == journal.clicked(1)[0].seq
    assert journal.holder("button/unknown") is None


def test_updates_are_counted_by_minute_and_kind(journal: Browsable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chart would be flat, or count the same twice."""
    minute = int(NOW // 60)
    store(journal, status("m1"), status("m2"), click(1))
    store(journal, status("old"), received=NOW - 7_200)
    counts, upto, is_all = journal.per_minute(NOW - 3_600, 0)
    assert counts == {(minute, "status"): 2, (minute, "button"): 1}
    assert is_all
    store(journal, click(2))
    assert journal.per_minute(NOW - 3_600, upto)[0] == {(minute, "button"): 1}


def test_the_latest_of_all_is_known(journal: Browsable) -> None:
    """The overview would say that no callback ever came."""
    assert journal.latest() == (None, None)
    store(journal, click(1), received=NOW - 50)
    store(journal, status("m1"))
    update, last = journal.latest()
    assert update == pytest.approx(NOW, abs=0.001, rel=0)
    assert last == pytest.approx(NOW - 50, abs=0.001, rel=0)


def test_dead_letters_are_listed_without_their_bodies(journal: Browsable) -> None:
    """A page with 50 bodies of 3 MB would never load."""
    for number in range(5):
        journal.append([Callback((), (DeadLetter("item", f"reason {number}", b"x" * number, NOW),))])
    count, newest = journal.count_letters()
    assert count == 5
    letters = journal.letters(2)
    assert [(one.reason, one.size, one.source) for one in letters] == [("reason 4", 4, "item"), ("reason 3", 3, "item")]
    assert [one.reason for one in journal.letters(2, before=letters[-1].number)] == ["reason 2", "reason 1"]
    assert journal.oldest_letters(0, newest, 2) == sorted(one.number for one in journal.letters(5))[:2]
    assert journal.oldest_letters(newest, newest, 2) == []


def test_it_can_be_tried_whether_something_can_be_stored(journal: Browsable) -> None:
    """/readyz would say no to a journal that is well, or leave something behind each time."""
    for _ in range(3):
        journal.try_to_store()
    assert journal.newest(1) == []
    with journal.turn:
        assert journal.dead_letters() == []
