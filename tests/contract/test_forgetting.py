"""What `forget` asks of each kind of journal: to be shown everything, and to lose what it names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.journal import Callback, DeadLetter, Household, Learned, Traces
from bridge.journal.postgresql import PostgresqlJournal
from bridge.journal.sqlite import SqliteJournal
from bridge.model import ButtonClick, StatusUpdate
from bridge.topics import entry
from tests.postgres import Server, running

NOW = 1_790_000_000.0
#: More than are read at once.
MANY = 1_201


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as opened:
        yield opened


@pytest.fixture(params=["sqlite", "postgresql"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Household]:
    if request.param == "sqlite":
        opened: SqliteJournal | PostgresqlJournal = SqliteJournal(tmp_path / "journal.db")
    else:
        opened = PostgresqlJournal(request.getfixturevalue("server").new_schema())
    opened.create()
    with opened:
        yield opened


def status(message: str, word: str = "sent") -> Callback:
    return Callback((entry(StatusUpdate(message_id=message, status=word, recipient_id="1555"), NOW),))


def letter(reason: str) -> Callback:
    return Callback((), (DeadLetter("item", reason, reason.encode(), NOW),))


def test_everything_is_shown_once(journal: Household) -> None:
    """Whoever stands behind the first thousand could not be found."""
    journal.append([status(f"m{number}") for number in range(MANY)])
    journal.append([letter(f"why {number}") for number in range(25)])
    updates = list(journal.each_update())
    assert [topic for _, topic, _, _ in updates] == [f"m{number}/status" for number in range(MANY)]
    assert {event_topic for _, _, event_topic, _ in updates} == {"event/status/sent"}
    assert '"message_id":"m7"' in updates[7][3]
    letters = list(journal.each_letter())
    assert [(reason, body) for _, reason, body in letters] == [(f"why {n}", f"why {n}".encode()) for n in range(25)]
    held = dict(journal.each_topic())
    assert held.keys() == {*(f"m{number}/status" for number in range(MANY)), "last/status"}
    assert held["last/status"] == updates[-1][0]


def test_what_is_named_goes_and_the_rest_stays(journal: Household) -> None:
    """A person would stay in one of the tables, or somebody else would be gone."""
    click = ButtonClick(payload="gate", message_id="click", sender="1555")
    journal.append([status("hers", "failed"), status("his"), Callback((entry(click, NOW),))])
    journal.append([letter("hers"), letter("his")])
    journal.learn([Learned("button", "hers", "Hers", 1, 1), Learned("button", "his", "His", 1, 1)])
    journal.note_discoveries(put=["discovery/hers", "discovery/his"])
    journal.tally("2026-09-21")
    failed = journal.last_failure()
    assert failed is not None
    assert '"message_id":"hers"' in failed
    hers = next(seq for seq, topic, _, _ in journal.each_update() if topic == "hers/status")
    number = next(number for number, reason, _ in journal.each_letter() if reason == "hers")
    journal.erase(
        Traces(
            updates=(hers,),
            letters=(number,),
            learned=(("button", "hers"),),
            discoveries=("discovery/hers",),
            topics=("hers/status",),
            failure=True,
        )
    )
    journal.scrub()
    assert [topic for _, topic, _, _ in journal.each_update()] == ["his/status", "button/gate"]
    assert [reason for _, reason, _ in journal.each_letter()] == ["his"]
    assert [one.key for one in journal.learned()] == ["his"]
    assert journal.discoveries() == {"discovery/his"}
    assert "hers/status" not in dict(journal.each_topic())
    assert journal.last_failure() is None
    assert journal.tally("2026-09-21").failed is None
    assert journal.tally("2026-09-21").total == {"failed": 1, "sent": 1}
    # What comes afterwards is new, and has a higher place than all before.
    journal.append([status("hers", "failed")])
    assert list(journal.each_update())[-1][1] == "hers/status"


def test_a_topic_that_is_withheld_stands_no_more(journal: Household) -> None:
    """A broker that lost its memory meanwhile would be given back what is being removed."""
    journal.append([status("hers"), status("his")])
    journal.settle(2)
    assert set(journal.standing()) >= {"hers/status", "his/status"}
    journal.withhold(["hers/status"])
    assert "hers/status" not in set(journal.standing())
    assert "his/status" in set(journal.standing())
    assert "hers/status" not in [one.topic for one in journal.retained((0, ""), 2**62, 100)]
