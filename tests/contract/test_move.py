"""A journal that was moved from its file into PostgreSQL answers every question as the file does, and goes on alike."""

from __future__ import annotations

import dataclasses
import inspect
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest

from bridge.clock import Clock
from bridge.config import Database
from bridge.journal import Browsable, Callback, DeadLetter, JournalError, Kept, Learned, NotStoredError, Traces, sqlite
from bridge.journal import move as module
from bridge.journal.browse import BrowsableJournal
from bridge.journal.care import prepare, restore
from bridge.journal.move import STAYS, Move
from bridge.journal.postgresql import PostgresqlJournal, Presence
from bridge.journal.sqlite import SqliteJournal
from bridge.model import ButtonClick, Kind, StatusUpdate
from bridge.topics import Entry, entry
from tests.postgres import Server, running

#: When all began, in epoch seconds; anew for each test.
NOW = 0.0
DAY = "2026-11-26"
#: Seconds by which two clocks that are read one after the other may differ.
A_MOMENT = 1.0


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored a minute after it was received does not tell when it was stored."""
    monkeypatch.setattr(sys.modules[__name__], "NOW", round(time.time(), 3))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as opened:
        yield opened


@pytest.fixture
def database(server: Server) -> Database:
    return server.new_schema()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal that has lived."""
    file = tmp_path / "journal.db"
    live(file)
    return file


def status(number: int, word: str = "sent", *, at: float = 0.0, recipient: str = "15550001234") -> Entry:
    update = StatusUpdate(message_id=f"m{number}", status=word, timestamp=int(NOW + at), recipient_id=recipient)
    return entry(update, NOW + at)


def click(number: int, payload: str = "gate", *, at: float = 0.0) -> Entry:
    update = ButtonClick(payload=payload, message_id=f"c{number}", timestamp=int(NOW + at), sender="15550001234")
    return entry(update, NOW + at)


def stored(*entries: Entry) -> list[Callback]:
    return [Callback((one,)) for one in entries]


class Machine:
    """Clocks that a test sets."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.clock = Clock(lambda: NOW + self.passed, lambda: 1_000.0 + self.passed)


def live(path: Path) -> None:
    """All that may happen to a journal."""
    machine = Machine()
    SqliteJournal(path).create()
    with SqliteJournal(path, durable=False, never_retained=frozenset([Kind.BUTTON])) as journal:
        journal.append(stored(click(1, "unkept")))
    with SqliteJournal(path, durable=False) as journal:
        journal.tick(machine.clock)
        journal.append(stored(*(status(number) for number in range(30)), status(3, "read"), status(3, "delivered")))
        journal.append(stored(click(2), click(3, 'a "quote", ünï \\ \t + # /'), click(4, at=-90_000)))
        journal.append([Callback((), (DeadLetter("callback", "a NUL \0 and more", b"\0\xff", NOW),))])
        newest = journal.pending(0, 100)[-1].seq
        journal.settle(newest, late=[newest], dead=[DeadLetter("publication", "refused", b"{}", NOW, 5)])
        machine.passed += 100.0
        journal.tick(machine.clock)
        journal.expire(Kind.STATUS, 6, 3)  # cleared, and cleared again
        journal.cleared(journal.clearing(2))
        journal.publish_again(8)
        journal.drop_dead_letter(1)
        journal.tally(DAY)
        journal.prune(4, 10)
        journal.learn([Learned("button", "with\0NUL", "Name\0", 2, 3, True), Learned("phone", "1555", "Us", 1, 9)])
        journal.note_discoveries(put=["homeassistant/a/config", "homeassistant/ü/config"])
        journal.append([Callback((status(3, "failed"), click(5)), (DeadLetter("item", "odd", b"[]", NOW),))])
        machine.passed += 100.0
        journal.tick(machine.clock)
        journal.append(stored(status(40), click(6, at=200.0)))
        journal.close_in_order()


def moved(path: Path, database: Database) -> int:
    """Move it; so many rows were told as moved."""
    told: list[int] = []
    with Move(path, database) as move:
        move.run(told.append)
    return sum(told)


# --- every question ----------------------------------------------------------------------------------------------

#: What only changes something, or is a name of Python's or of the connection's; it is asked about below.
DEEDS = {
    *("append", "settle", "cleared", "clear_again", "learn", "note_discoveries", "tick", "forget_ticks", "expire"),
    *("expire_surplus", "cleaned", "prune", "checkpoint", "close_in_order", "drop_dead_letter", "bound_dead_letters"),
    *("publish_again", "try_to_store", "withhold", "erase", "scrub"),
}
#: How large it is differs, and should.
OF_ITS_OWN = {"usage", "turn"}


def seqs(journal: Browsable) -> list[int]:
    return [one.seq for one in journal.pending(0, 10_000)]


def any_of(_: Kept) -> bool:
    return True


def without_stored(kept: Sequence[Kept | None]) -> list[tuple[Kept | None, bool]]:
    """Two clocks tell the moment of storing; whether it is known at all is alike."""
    return [(one and dataclasses.replace(one, stored=None), bool(one and one.stored)) for one in kept]


QUESTIONS: dict[str, Callable[[Browsable], object]] = {
    "pending": lambda j: j.pending(0, 10_000),
    "settled": lambda j: j.settled(),
    "identity": lambda j: j.identity(),
    "retained": lambda j: [j.retained((0, ""), 10_000, 10_000), j.retained((9, "m9/status"), 20, 5)],
    "clearing": lambda j: j.clearing(100),
    # Of skipped places the file counts all, and a database none.
    "backlog": lambda j: j.backlog() > 0,
    "stored_before": lambda j: [j.stored_before(elapsed) for elapsed in (-1.0, 0.0, 50.0, 99.9, 100.0, 150.0, 1e9)],
    "place_before": lambda j: [j.place_before(NOW + at) for at in (-100_000, -1, 0, 1, 199, 201)],
    "standing": lambda j: j.standing(),
    "statistics": lambda j: dataclasses.replace(j.statistics(NOW + 500), backlog=0),
    "tally": lambda j: j.tally(DAY),
    "last_failure": lambda j: j.last_failure(),
    "each_update": lambda j: list(j.each_update()),
    "each_letter": lambda j: [(number, tame(reason), body) for number, reason, body in j.each_letter()],
    "each_topic": lambda j: list(j.each_topic()),
    "dead_letters": lambda j: [dataclasses.replace(one, reason=tame(one.reason)) for one in j.dead_letters()],
    "dead_letter": lambda j: [j.dead_letter(number) is not None for number in range(5)],
    "learned": lambda j: j.learned(),
    "discoveries": lambda j: j.discoveries(),
    "latest": lambda j: j.latest(),
    "newest": lambda j: without_stored(j.newest(1_000)),
    "update": lambda j: without_stored([j.update(seq) for seq in range(60)]),
    "search": lambda j: without_stored(j.search("m3", any_of, limit=10).updates),
    "clicked": lambda j: without_stored(j.clicked(10)),
    "holder": lambda j: [
        j.holder(topic) for topic in ("m3/status", "button/gate", "button/unkept", "last/button", "?")
    ],
    "per_minute": lambda j: j.per_minute(NOW - 100_000, 0),
    "letters": lambda j: [dataclasses.replace(one, reason=tame(one.reason)) for one in j.letters(10)],
    "oldest_letters": lambda j: j.oldest_letters(0, 100, 10),
    "count_letters": lambda j: j.count_letters(),
}


def tame(reason: str) -> str:
    """A NUL is shown as its sign in a database."""
    return reason.replace("\0", "\N{SYMBOL FOR NULL}")


def test_no_question_is_left_out() -> None:
    """A question that the protocol learns later would be answered otherwise after a move, and nobody would know."""
    asked = {name for name, _ in inspect.getmembers(Browsable) if not name.startswith("_")}
    assert asked - DEEDS - OF_ITS_OWN == set(QUESTIONS)


@pytest.fixture
def both(path: Path, database: Database) -> Iterator[tuple[Browsable, Browsable]]:
    """The journal as it was, and as it is after the move."""
    before = path.with_name("before.db")
    shutil.copy(path, before)
    moved(path, database)
    with BrowsableJournal(before) as old, PostgresqlJournal(database) as new:
        yield old, new


def assert_alike(old: Browsable, new: Browsable) -> None:
    answers = [{name: ask(journal) for name, ask in QUESTIONS.items()} for journal in (old, new)]
    for name in QUESTIONS:
        assert answers[0][name] == answers[1][name], name


def test_it_answers_every_question_as_the_file_does(both: tuple[Browsable, Browsable]) -> None:
    """What it forgot is gone, published again, or stands on the broker for good."""
    old, new = both
    assert old.pending(0, 100)
    assert old.clearing(10)
    assert [one for one in old.newest(100) if one.stored], "an update of this boot tells when it was stored"
    assert_alike(old, new)
    for one, other in zip(old.newest(100), new.newest(100), strict=True):
        assert other.stored == pytest.approx(one.stored, abs=A_MOMENT)


def test_both_go_on_alike(both: tuple[Browsable, Browsable]) -> None:
    """A rank, a place or a moment that was lost shows only later: a topic goes backwards, or expires at once."""
    old, new = both
    machine = Machine()
    machine.passed = 200.0

    def passes(journal: Browsable, seconds: float) -> float:
        return journal.tick(Clock(lambda: NOW + 200 + seconds, lambda: 1_200.0 + seconds))

    acts: list[Callable[[Browsable], object]] = [
        lambda j: j.append(stored(status(1), status(3, "read"), click(2), status(40))),  # all duplicates
        lambda j: j.append(stored(status(3, "deleted"), status(4, "delivered"), status(9), click(7, at=-5.0))),
        # Of the same rank and second: the identity decides, once this way and once that.
        lambda j: j.append(stored(*(status(number, recipient="15550009999") for number in range(10, 20)))),
        lambda j: j.append(stored(click(8, "unkept"), click(9, 'a "quote", ünï \\ \t + # /', at=300.0))),
        lambda j: j.publish_again(12),
        lambda j: j.settle(seqs(j)[-2], late=[seqs(j)[-3]], dead=[DeadLetter("item", "late", b"1", NOW)]),
        lambda j: round(passes(j, 1_000.0), 6),
        lambda j: j.expire(Kind.STATUS, j.stored_before(1_200.0 - 1_050.0), 100),
        lambda j: j.expire(Kind.BUTTON, j.stored_before(1_200.0 - 999.0), 100),
        lambda j: j.cleared(j.clearing(5)),
        lambda j: j.clear_again(seqs(j)[0]),
        lambda j: j.expire_surplus(5, 100),
        lambda j: j.prune(20, 7),
        lambda j: j.forget_ticks(150.0),
        lambda j: j.tally("2026-11-27"),
        lambda j: j.learn([Learned("button", "with\0NUL", "?", 9, 99)], [Learned("phone", "1555", "Us", 1, 9)]),
        lambda j: j.note_discoveries(put=["homeassistant/new/config"], taken=["homeassistant/a/config"]),
        lambda j: j.drop_dead_letter(2),
        lambda j: j.bound_dead_letters(most=2, received_before=0.0),
        lambda j: j.withhold(["m20/status", "m21/status"]),
        lambda j: j.erase(
            Traces(updates=(22,), letters=(3,), learned=(("button", "with\0NUL"),), topics=("m22/status",))
        ),
        lambda j: j.settle(seqs(j)[-1]),
        lambda j: j.cleaned(),
    ]
    for number, act in enumerate(acts):
        assert act(old) == act(new), number
        here, there = (without_uptime(journal) for journal in both)
        assert here == there, number
        assert_except_uptime(old, new)


def without_uptime(journal: Browsable) -> list[Any]:
    return [(one._replace(uptime=None), one.uptime is None) for one in journal.pending(0, 10_000)]


def assert_except_uptime(old: Browsable, new: Browsable) -> None:
    """What was stored since the move was stored at two moments."""
    for name, ask in QUESTIONS.items():
        if name != "pending":
            assert ask(old) == ask(new), name


def test_everything_that_a_journal_keeps_is_moved(path: Path, server: Server, database: Database) -> None:
    """A table, a column or a fact that a later version adds would stay behind."""
    with_rows = apsw.Connection(str(path))
    tables = {name for (name,) in with_rows.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    facts = dict(with_rows.execute("SELECT name, value FROM facts"))
    columns = {name: {row[1] for row in with_rows.execute(f"PRAGMA table_info({name})")} for name in tables}
    with_rows.close()
    known = {table.name for table in (*module._LARGE, *module._SMALL)}
    assert tables - {"facts", "sqlite_sequence"} == known
    for table in (*module._LARGE, *module._SMALL):
        there = set(table.columns.split(", "))
        assert columns[table.name] <= there, table.name
    moved(path, database)
    found = server.execute("SELECT table_name, column_name FROM information_schema.columns", database)
    ours = {(table, column) for table, column in found if table in known}
    assert {
        (one.name, column) for one in (*module._LARGE, *module._SMALL) for column in one.columns.split(", ")
    } >= ours
    kept = dict(server.execute("SELECT name, value FROM facts", database))
    assert {name: str(value) for name, value in facts.items() if name not in STAYS}.items() <= kept.items()


def test_a_click_of_an_earlier_boot_is_of_one_there_too(path: Path, database: Database) -> None:
    """Its age would be measured by a clock that began anew: an old click opens the gate."""
    db = apsw.Connection(str(path))
    db.execute("UPDATE facts SET value = 'the boot before' WHERE name = 'boot'")
    db.close()
    moved(path, database)
    with PostgresqlJournal(database) as journal:
        assert {one.uptime for one in journal.pending(0, 1_000)} == {None}
        assert {one.stored for one in journal.newest(1_000)} == {None}


def test_another_machine_knows_how_old_an_update_is(path: Path, server: Server, database: Database) -> None:
    """The bridge itself may move with its journal: a fresh click would count as stale, or a stale one as fresh."""
    with SqliteJournal(path) as journal:
        here = {one.seq: one.uptime for one in journal.pending(0, 1_000)}
    moved(path, database)
    server.execute("UPDATE boots SET machine = 'elsewhere', boot = id::text", database)
    with PostgresqlJournal(database) as journal:
        there = {one.seq: one.uptime for one in journal.pending(0, 1_000)}
    assert there == pytest.approx(here, abs=A_MOMENT)


def test_an_empty_journal_is_moved(tmp_path: Path, database: Database) -> None:
    """Who has just begun would have to begin anew."""
    SqliteJournal(tmp_path / "journal.db").create()
    with SqliteJournal(tmp_path / "journal.db") as journal:
        identity = journal.identity()
    moved(tmp_path / "journal.db", database)
    with PostgresqlJournal(database) as journal:
        assert journal.identity() == identity
        assert (journal.settled(), journal.backlog()) == (0, 0)
        journal.append(stored(status(1)))
        assert seqs(journal) == [1]


# --- cut off -----------------------------------------------------------------------------------------------------

#: A move that kills itself, or is stopped by an error, at the n-th of certain moments.
SCRIPT = """
import os, signal, sys
from pathlib import Path
from bridge.config import Database
from bridge.journal import move, postgresql
path, url, schema, moment, count = sys.argv[1:]
left = int(count)
def at(name):
    global left
    if name == moment:
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
def before(owner, name, moment):
    real = getattr(owner, name)
    def wrapped(*arguments, **named):
        at(moment)
        return real(*arguments, **named)
    setattr(owner, name, wrapped)
move.SLICE = 7
before(move.Move, "_begin", "begin")
before(move, "note_version", "version")
before(move, "partition_of", "row")
before(move.Move, "_copy", "slice")
before(move.Move, "_finish", "finish")
before(move._Source, "mark", "mark")
with move.Move(Path(path), Database(url, schema=schema)) as one:
    one.run(lambda _: at("moved"))
"""

MOMENTS = [
    *(("begin", 0), ("version", 0), ("version", 1), ("finish", 0), ("mark", 0)),
    *(("row", 0), ("row", 20), ("slice", 7), ("slice", 11), ("moved", 2), ("moved", 9)),
]


def killed(path: Path, database: Database, moment: str, count: int) -> None:
    arguments = [str(path), database.url, database.schema, moment, str(count)]
    ended = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, check=False, text=True)
    assert ended.returncode == -signal.SIGKILL, f"{moment} {count}: {ended.stderr or 'it came to its end'}"


def rows_there(server: Server, database: Database) -> dict[str, object]:
    names = [table.name for table in (*module._LARGE, *module._SMALL)]
    found: dict[str, object] = {name: server.execute(f"SELECT * FROM {name} ORDER BY 1", database) for name in names}
    found["facts"] = server.execute("SELECT * FROM facts WHERE name <> 'move' ORDER BY 1", database)
    found["partitions"] = server.execute("SELECT * FROM partitions ORDER BY 1", database)
    found["places"] = server.execute("SELECT last_value, is_called FROM places", database)
    return found


def test_a_move_that_is_killed_at_any_moment_goes_on_to_the_same_end(
    path: Path, server: Server, database: Database
) -> None:
    """A power cut in the middle of it would leave half a history, or all of it twice."""
    whole = server.new_schema()
    copy = path.with_name("copy.db")
    shutil.copy(path, copy)
    total = moved(copy, whole)
    again = path.with_name("again.db")
    shutil.copy2(path, again)
    for moment, count in MOMENTS:
        fresh = server.new_schema()
        killed(again, fresh, moment, count)
        if moment != "mark" and (moment, count) not in (("begin", 0), ("version", 0)):
            with pytest.raises(JournalError, match="was not moved into it to the end"):
                PostgresqlJournal(fresh).create()
        with Move(again, fresh) as move:
            there = move.there
            told: list[int] = []
            move.run(told.append)
        if moment != "mark":
            assert there + sum(told) == total, (moment, count)
        assert same(rows_there(server, fresh), rows_there(server, whole)), (moment, count)
        again.unlink()
        shutil.copy2(path, again)


def test_one_that_is_killed_over_and_over_comes_to_its_end(path: Path, server: Server, database: Database) -> None:
    """On a machine that loses its power each few minutes a long move would begin anew each time."""
    whole = server.new_schema()
    copy = path.with_name("copy.db")
    shutil.copy(path, copy)
    moved(copy, whole)
    before: list[int] = []
    for _ in range(4):
        killed(path, database, "moved", 1)  # two slices are there
        with Move(path, database) as move:
            before.append(move.there)
    assert before == sorted(set(before))
    assert before[0] > 0
    moved(path, database)
    assert same(rows_there(server, database), rows_there(server, whole))


def same(one: dict[str, object], other: dict[str, object]) -> bool:
    """Whether two databases hold the same, but for when the database's clock says that it was stored."""

    def plain(found: dict[str, object]) -> str:
        return repr({name: rows for name, rows in found.items() if name not in ("updates", "places")})

    def updates(found: dict[str, object]) -> list[tuple[object, ...]]:
        rows = found["updates"]
        assert isinstance(rows, list)
        return [(*row[:10], row[11:]) for row in rows]

    return plain(one) == plain(other) and updates(one) == updates(other)


def test_a_database_that_goes_away_leaves_what_can_go_on(
    path: Path, server: Server, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks after an hour, and the hour is lost."""
    monkeypatch.setattr(module, "SLICE", 7)
    cuts = iter([0, 1])

    def cut(_: int) -> None:
        if next(cuts, None) == 1:
            server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    with pytest.raises(JournalError, match="the database cannot be reached"), Move(path, database) as move:
        move.run(cut)
    with Move(path, database) as move:
        assert move.there == 14
        move.run(lambda _: None)
    with PostgresqlJournal(database) as journal:
        assert journal.settled() > 0


def test_a_journal_that_went_on_since_it_was_cut_off_is_moved_anew(path: Path, database: Database) -> None:
    """What came between the two tries would be missing, or what was pruned since would be there."""
    killed(path, database, "finish", 0)
    with SqliteJournal(path) as journal:
        journal.append(stored(status(50)))
        journal.drop_dead_letter(2)
        journal.prune(10, 3)
    before = path.with_name("before.db")
    shutil.copy(path, before)
    with Move(path, database) as move:
        assert move.there == 0
        move.run(lambda _: None)
    with BrowsableJournal(before) as old, PostgresqlJournal(database) as new:
        assert_alike(old, new)


# --- refused -----------------------------------------------------------------------------------------------------


def refused(path: Path, database: Database, words: str) -> None:
    held = path.read_bytes() if path.exists() else b""
    with pytest.raises(JournalError, match=words), Move(path, database) as move:
        move.run(lambda _: None)
    assert (path.read_bytes() if path.exists() else b"") == held


def test_a_database_that_holds_a_journal_is_not_written_to(path: Path, server: Server, database: Database) -> None:
    """Two histories in one: places collide, and one of the two is lost."""
    PostgresqlJournal(database).create()
    with PostgresqlJournal(database) as journal:
        journal.append(stored(status(1)))
    rows = rows_there(server, database)
    refused(path, database, "holds a journal already; take it away")
    assert repr(rows_there(server, database)) == repr(rows)


def test_one_that_a_bridge_has_only_prepared_is_taken(path: Path, database: Database) -> None:
    """Who first tried whether the database works would have to delete it by hand."""
    PostgresqlJournal(database).create()
    with PostgresqlJournal(database) as journal:
        journal.tick(Machine().clock)
        journal.try_to_store()
    before = path.with_name("before.db")
    shutil.copy(path, before)
    moved(path, database)
    with BrowsableJournal(before) as old, PostgresqlJournal(database) as new:
        assert_alike(old, new)


def test_a_part_of_another_journal_is_not_taken_for_ours(path: Path, tmp_path: Path, database: Database) -> None:
    """Two homes would be mixed."""
    other = tmp_path / "other.db"
    live(other)
    killed(other, database, "moved", 2)
    refused(path, database, "holds a part of another journal; move that one to its end")
    moved(other, database)


def test_a_database_that_a_bridge_uses_is_refused(path: Path, database: Database) -> None:
    """It would publish what is only half there."""
    PostgresqlJournal(database).create()
    with Presence(database):
        refused(path, database, "a bridge uses .*; stop it")


def test_nobody_uses_the_database_meanwhile(path: Path, database: Database) -> None:
    """A bridge that is started in the middle of it would publish half of the history, and add to it."""
    looks = iter([1])
    with Move(path, database) as move:

        def look(_: int) -> None:
            if next(looks, None) is None:
                return
            with pytest.raises(JournalError, match="was not moved into it to the end"):
                PostgresqlJournal(database).create()
            with PostgresqlJournal(database) as journal, pytest.raises(JournalError, match="not moved into it"):
                journal.append(stored(status(60)))
            with pytest.raises(JournalError, match="a bridge uses"), Presence(database):
                pass

        move.run(look)


def test_nobody_writes_to_the_file_meanwhile(path: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead letter that is replayed in the middle of it would stay behind."""
    with Move(path, database):
        monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 10)
        with SqliteJournal(path) as journal, pytest.raises(NotStoredError, match="another process holds it"):
            journal.append(stored(status(60)))


def test_a_file_that_something_else_reads_is_refused(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands in its log only would not be told apart from what is written later."""
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 10)
    with SqliteJournal(path) as writer:
        writer.append(stored(status(60)))
        reader = apsw.Connection(str(path))
        rows = reader.execute("SELECT * FROM updates")
        next(rows)
        writer.append(stored(status(61)))
        with pytest.raises(JournalError, match="another process holds it"), Move(path, database):
            pass
        reader.close()


@pytest.mark.parametrize(
    ("version", "words"), [(0, "start the bridge"), (99, "was written by a newer version .*install that version again")]
)
def test_a_file_of_another_version_is_refused(path: Path, database: Database, version: int, words: str) -> None:
    """Rows of a form that this version does not know would be moved wrong."""
    db = apsw.Connection(str(path))
    db.pragma("user_version", version)
    db.close()
    with pytest.raises(JournalError, match=words), Move(path, database):
        pass


def test_a_database_of_a_newer_version_is_refused(path: Path, server: Server, database: Database) -> None:
    """An older program would undo what the newer one made."""
    PostgresqlJournal(database).create()
    server.execute(f"COMMENT ON SCHEMA {database.schema} IS 'whatsapp2mqtt 99'", database)
    refused(path, database, "was written by a newer version")


def test_a_database_of_another_program_is_refused(path: Path, server: Server, database: Database) -> None:
    """A schema of the same name may be anybody's."""
    PostgresqlJournal(database).create()
    server.execute(f"COMMENT ON SCHEMA {database.schema} IS 'ours'", database)
    refused(path, database, "is not the bridge's")


def test_what_is_no_journal_is_refused(tmp_path: Path, database: Database) -> None:
    """Any file can be named by mistake."""
    file = tmp_path / "journal.db"
    file.write_bytes(b"something else " * 100)
    refused(file, database, "it is not a database")
    file.unlink()
    db = apsw.Connection(str(file))
    db.execute("CREATE TABLE songs (name TEXT)")
    db.close()
    refused(file, database, "is a database of another program")


def test_a_damaged_file_is_refused_before_anything_is_moved(path: Path, server: Server, database: Database) -> None:
    """The half that can be read would be taken for the whole."""
    content = bytearray(path.read_bytes())
    for page in range(3, len(content) // 4096):
        content[page * 4096 : page * 4096 + 200] = random.Random(page).randbytes(200)
    path.write_bytes(content)
    with pytest.raises(JournalError, match=r"damaged"), Move(path, database):
        pass
    assert server.execute(f"SELECT 1 FROM pg_namespace WHERE nspname = '{database.schema}'", None) == []


def test_rows_that_somebody_else_wrote_are_found(path: Path, server: Server, database: Database) -> None:
    """A count that is not what it must be would be called a success."""

    def add(_: int) -> None:
        server.execute("INSERT INTO dead_letters VALUES (1000, 0, 'callback', 'x', NULL, '')", database)
        server.execute("INSERT INTO ledger VALUES ('zz', 'status', 0, 0, gen_random_uuid(), 1, 2, 1)", database)

    added: list[int] = []

    def once(more: int) -> None:
        if not added:
            added.append(more)
            add(more)

    with pytest.raises(JournalError, match="instead of"), Move(path, database) as move:
        move.run(once)


# --- afterwards --------------------------------------------------------------------------------------------------


def test_the_file_says_where_it_went_and_is_not_gone_on_with(path: Path, database: Database) -> None:
    """Settings that still name the file would let a second bridge of the same identity tell everything twice."""
    moved(path, database)
    with pytest.raises(JournalError, match=f"was moved to {database}; set journal.url to that"):
        prepare(path)
    with Move(path, database) as move:
        assert move.is_done
        move.run(lambda _: pytest.fail("there is nothing to move"))


def test_one_that_was_moved_is_not_moved_elsewhere(path: Path, server: Server, database: Database) -> None:
    """Two databases would have the same past, and each a future of its own."""
    moved(path, database)
    elsewhere = server.new_database()
    refused(path, elsewhere, "was moved to .* already")
    server.execute(f"DROP SCHEMA {database.schema} CASCADE", database)
    refused(path, database, "was moved to .* already")


def test_there_is_a_way_back_to_the_file(path: Path, server: Server, database: Database) -> None:
    """Who does not like it there would be without history."""
    moved(path, database)
    restore(path, path)
    assert prepare(path) is None
    with SqliteJournal(path) as journal:
        assert journal.append(stored(status(20)))[0].duplicate == 1
    assert moved(path, server.new_database()) > 0
