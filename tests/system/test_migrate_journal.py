"""A home that moves from SQLITE to PostgreSQL by `migrate-journal`, with a real bridge before and after it."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg.errors
import pytest

from bridge.config import Database
from bridge.journal import Callback, DeadLetter
from bridge.journal.sqlite import SqliteJournal
from bridge.model import StatusUpdate
from bridge.topics import entry
from tests.postgres import Server, running
from tests.system.conftest import MakeBridge
from tests.system.support import COMMAND, PATIENCE, Bridge, Subscriber, clean_environment, free_port, status

GARBAGE = b"no callback"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as opened:
        yield opened


def click(number: int) -> dict[str, object]:
    button = {"payload": "gate", "text": "Open"}
    now = str(int(time.time()))
    message = {"id": f"click{number}", "from": "15550001234", "timestamp": now, "type": "button", "button": button}
    return {"messages": [message]}


def configured(bridge: Bridge, **settings: str) -> None:
    bridge.environment |= {f"WHATSAPP2MQTT_{name.upper()}": value for name, value in settings.items()}


def test_a_home_moves_and_goes_on(make_bridge: MakeBridge, mosquitto: int, server: Server) -> None:
    """All automations fire again, a message's state stands for good, or the click that waited never fires."""
    bridge = make_bridge(mqtt__url=f"mqtt://127.0.0.1:{mosquitto}", homeassistant__discovery="false")
    journal = bridge.state / "journal.db"
    database = server.new_database()
    command = ("migrate-journal", journal, database.url)

    bridge.start()
    pressed = click(1)
    with Subscriber(mosquitto, "whatsapp/#") as before:
        for body in (status("m1"), status("m1", "read"), pressed):
            assert bridge.post(body).status == 200
        bridge.post(GARBAGE)
        before.wait("whatsapp/event/button/gate")
        before.wait("whatsapp/m1/status", lambda heard: heard.json["status"] == "read")
    assert "migrate-journal: a bridge or a command uses" in bridge.run(*command).stderr
    assert bridge.program.end() == 0

    configured(bridge, mqtt__url=f"mqtt://127.0.0.1:{free_port()}")
    bridge.start(wait=False)
    bridge.program.wait_log("ready")
    assert bridge.post(status("m2", "delivered")).status == 200  # it waits for a broker
    bridge.program.end(signal.SIGKILL)

    asked = bridge.run(*command, "--dry-run", "--json")
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)["updates"] == 4
    ended = bridge.run(*command)
    assert ended.returncode == 0, ended.stderr
    assert "4 updates, 5 topics, 1 dead letters" in ended.stdout
    assert bridge.run(*command).stdout.endswith(f"They were moved to {database} before.\n")

    refused = bridge.start(wait=False)
    assert refused.program.wait() == 2
    assert f"was moved to {database}; set journal.url to that" in refused.program.said

    configured(bridge, mqtt__url=f"mqtt://127.0.0.1:{mosquitto}", journal__url=database.url)
    with Subscriber(mosquitto, "whatsapp/#") as after:
        bridge.start()
        for body in (status("m1"), status("m1", "read"), pressed):
            assert bridge.post(body).json["duplicate"] == 1
        assert bridge.post(status("m3")).json["stored"] == 1
        after.wait("whatsapp/event/status/sent", lambda heard: heard.json["message_id"] == "m3")
        after.wait("whatsapp/event/status/delivered", lambda heard: heard.json["message_id"] == "m2")
        # The latest of all are said anew by whoever leads.
        often = ("whatsapp/bridge/", "whatsapp/last/")
        news = [one for one in after.heard if not one.retain and not one.topic.startswith(often)]
        assert {one.json["message_id"] for one in news} == {"m2", "m3"}
        assert len([one for one in news if one.topic.startswith("whatsapp/event/")]) == 2
        standing = {
            one.topic: one.json["message_id"] for one in after.heard if one.retain and "bridge" not in one.topic
        }
        assert standing["whatsapp/m1/status"] == "m1"
        assert standing["whatsapp/button/gate"] == "click1"
    assert "callback" in bridge.run("dead-letters", "list").stdout
    assert bridge.program.end() == 0
    known = bridge.run("clean", "--list").stdout.splitlines()
    assert {f"whatsapp/{name}/status" for name in ("m1", "m2", "m3")} < set(known)
    assert "whatsapp/button/gate" in known


# --- killed ------------------------------------------------------------------------------------------------------

UPDATES = 100_000


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A journal that takes a while."""
    path = tmp_path / "journal.db"
    SqliteJournal(path).create()
    now = time.time()
    with SqliteJournal(path, durable=False) as journal:
        for start in range(0, UPDATES, 5_000):
            updates = (
                StatusUpdate(message_id=f"m{number // 3}", status=f"s{number % 3}")
                for number in range(start, start + 5_000)
            )
            letters = tuple(DeadLetter("callback", "why", bytes(2_000), now) for _ in range(200))
            journal.append([Callback(tuple(entry(update, now) for update in updates), letters)])
        journal.settle(UPDATES - 100)
    return path


def contents(server: Server, database: Database) -> dict[str, object]:
    """All of it, each table as one hash; but for when it was stored by the database's clock."""
    names = ("ledger", "dead_letters", "ticks", "learned", "discoveries", "partitions")
    found: dict[str, object] = {
        name: server.execute(f"SELECT count(*), md5(string_agg(t::text, ',' ORDER BY t)) FROM {name} AS t", database)
        for name in names
    }
    columns = "seq, event_id, kind, topic, event_topic, rank, timestamp, received, uptime, advances, late, document"
    found["updates"] = server.execute(
        f"SELECT count(*), md5(string_agg(t::text, ',')) FROM (SELECT {columns} FROM updates ORDER BY seq) AS t",
        database,
    )
    found["facts"] = server.execute("SELECT * FROM facts WHERE name <> 'move' ORDER BY name", database)
    return found


def test_the_command_may_be_killed_at_any_time(large: Path, server: Server, tmp_path: Path) -> None:
    """Half a history would be taken for all of it, or nothing could be done but to begin anew by hand."""
    whole, database = server.new_database(), server.new_database()
    copy = tmp_path / "copy.db"
    shutil.copy(large, copy)
    environment = clean_environment(tmp_path)

    def start(path: Path, there: Database) -> subprocess.Popen[str]:
        command = [str(COMMAND), "migrate-journal", str(path), there.url, "--json"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    out, err = start(copy, whole).communicate(timeout=PATIENCE)
    assert json.loads(out)["updates"] == UPDATES, err

    chance = random.Random(9)
    cut_off = there = 0
    for _ in range(6):
        process = start(large, database)
        while process.poll() is None:
            if count(server, database) > there:
                time.sleep(chance.random() * 0.2)
                break
        process.kill()
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode in (-signal.SIGKILL, 0), err
        there = count(server, database)
        cut_off += "unfinished" in str(server.execute("SELECT obj_description(oid) FROM pg_namespace", database))
    assert cut_off >= 2, "it was not killed in the middle"
    start(large, database).communicate(timeout=PATIENCE)
    assert contents(server, database) == contents(server, whole)


def count(server: Server, database: Database) -> int:
    """Rows that are there; none where there are no tables yet."""
    with contextlib.suppress(psycopg.errors.UndefinedTable):
        rows = server.execute("SELECT (SELECT count(*) FROM updates) + (SELECT count(*) FROM ledger)", database)
        return int(str(rows[0][0]))
    return 0


# --- refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://u:very-secret-word@127.0.0.1:1/db", "the database cannot be reached"),
        ("postgresql://u:p@very-secret-word@127.0.0.1/db", "must be written %40"),
        ("postgresql://u:p/very-secret-word@127.0.0.1/db", "must be written %40"),
        ("postgresql://u:p#very-secret-word@127.0.0.1/db", "must be written %40"),
        ("postgresql://u:p%very-secret-word@127.0.0.1/db", "must be written %40"),
        ("postgresql://u:p?very-secret-word@127.0.0.1/db", "names no database"),
        ("postgresql://u:very-secret-word@127.0.0.1", "names no database"),
        ("postgresql://u:very-secret-word@localhost:99999/db", "the database cannot be reached"),
        ("postgresql://u:very-secret-word@db.example.org/db", "as that server likes it; add ?sslmode=verify-full"),
        ("mysql://u:very-secret-word@127.0.0.1/db", "is no journal"),
        ("sqlite:///tmp/very-secret-word.db", "the database's address is none"),
    ],
)
def test_a_wrong_address_is_explained_without_its_password(url: str, words: str, tmp_path: Path) -> None:
    """Terminals are recorded, and errors are pasted where all the world reads them."""
    path = tmp_path / "journal.db"
    SqliteJournal(path).create()
    ended = run(tmp_path, path, url)
    assert ended.returncode == 2
    assert words in ended.stderr, ended.stderr
    assert "very-secret-word" not in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """A slip in the path would move an empty journal, and the bridge would begin anew."""
    path = tmp_path / "nowhere" / "journal.db"
    ended = run(tmp_path, path, "postgresql://127.0.0.1/db")
    assert ended.returncode == 2
    assert f"there is no journal {path}" in ended.stderr
    assert not path.parent.exists()


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in (COMMAND, "migrate-journal", *arguments)],
        env=clean_environment(folder),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
