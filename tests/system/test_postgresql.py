"""A bridge whose journal is in PostgreSQL: a database that goes away, crashes and comes back; secrets; and refusals."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.postgres import Server, running
from tests.system.conftest import MakeBridge
from tests.system.support import Bridge, children, command_line, status
from tests.system.test_stop_and_crash import Senders, published


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as opened:
        yield opened


@pytest.fixture
def bridge(make_bridge: MakeBridge, server: Server) -> Bridge:
    """A bridge with a new database, not yet started."""
    return make_bridge(journal__url=server.new_database().url)


def click(number: int) -> dict[str, object]:
    return {
        "messages": [
            {
                "id": f"click{number}",
                "from": "15550001234",
                "timestamp": str(int(time.time())),
                "type": "button",
                "button": {"payload": "gate", "text": "Open"},
            }
        ]
    }


@pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGINT], ids=lambda how: how.name)
def test_a_database_that_crashes_or_restarts_under_load_loses_nothing(
    bridge: Bridge, server: Server, how: signal.Signals
) -> None:
    """What was answered 200 would be gone with the database's memory, or the bridge with its connection."""
    bridge.start()
    family = set(children(bridge.pid))
    with bridge.listen("whatsapp/event/status/#") as subscriber, Senders(bridge) as senders:
        senders.wait_for(100)
        for _ in range(2):
            server.stop(how)
            bridge.program.wait_log("a callback could not be stored; the sender is asked to come again")
            server.start()
            senders.wait_for(100)
    published(bridge, senders.answered)
    # An event twice is allowed where the note that it was acknowledged went with the database's memory, and has one
    # identity; here each was sent by one process that remembers.
    counts = Counter(json.loads(one.payload)["message_id"] for one in subscriber.heard)
    assert {message: count for message, count in counts.items() if count > 1} == {}
    assert set(children(bridge.pid)) == family  # nobody died of it
    assert bridge.program.end() == 0


def test_without_its_database_it_answers_503_tells_why_and_comes_back(bridge: Bridge, server: Server) -> None:
    """A bridge that ends and is started over and over takes the page, the health and the reason with it."""
    bridge.start()
    with bridge.listen() as subscriber:
        assert bridge.post(click(1)).status == 200
        subscriber.wait("whatsapp/event/button/gate")
        server.stop()
        try:
            answer = bridge.post(click(2))
            assert answer.status == 503
            # Nobody publishes without the database: the last will tells of it, and the log says why.
            subscriber.wait("whatsapp/bridge/state", lambda heard: heard.payload == "offline")
            said = bridge.program.wait_log("the database does not answer; nothing is published until it does")
            assert "the database cannot be reached" in said["why"]
        finally:
            server.start()
        subscriber.wait_until(lambda _: subscriber.on("whatsapp/bridge/state")[-1].payload == "online")
        assert bridge.post(click(2)).status == 200
        subscriber.wait("whatsapp/event/button/gate", lambda heard: heard.json["message_id"] == "click2")


def test_it_waits_for_a_database_that_starts_after_it(bridge: Bridge, server: Server) -> None:
    """After a power cut both start at once; a bridge that gives up at the first try may never be started again."""
    server.stop()
    try:
        bridge.start(wait=False)
        bridge.program.wait_log("waiting for the database")
    finally:
        server.start()
    bridge.program.wait_log("ready")
    assert bridge.post(status("m1")).status == 200


def test_a_password_is_shown_nowhere(make_bridge: MakeBridge, server: Server) -> None:
    """`check`, the log, the page and a list of processes are shown to others."""
    database = server.new_database()
    server.execute("CREATE ROLE keeper LOGIN PASSWORD 'very-secret-word'")
    server.execute(f"ALTER DATABASE {database.url.rpartition('/')[2]} OWNER TO keeper")
    url = database.url.replace("tests@", "keeper:very-secret-word@")
    bridge = make_bridge(journal__url=url, log__level="debug").start("--guide")
    assert bridge.post(status("m1")).status == 200
    checked = bridge.run("check").stdout
    assert "url: postgresql://keeper:********@127.0.0.1" in checked
    lists = "".join(command_line(pid) for pid in (bridge.pid, *children(bridge.pid)))
    assert bridge.program.end() == 0
    assert "very-secret-word" not in checked + lists + bridge.program.said
    assert str(database) in bridge.program.said


def test_copies_are_made_by_the_database_and_the_command_says_how(bridge: Bridge) -> None:
    """`backup` would copy a file that has nothing in it."""
    for command, words in ((("backup", "copy.db"), "pg_dump"), (("restore", __file__), "pg_restore")):
        ended = bridge.run(*command)
        assert ended.returncode == 2
        assert words in ended.stderr
        assert "Traceback" not in ended.stderr


def test_what_the_bridge_put_on_the_broker_is_cleaned_while_it_does_not_run(bridge: Bridge) -> None:
    """`clean` must know the database's ledger, and not take topics from under a bridge that runs."""
    bridge.start()
    assert bridge.post(status("m1")).status == 200
    published(bridge, {"m1"})
    assert "clean: a bridge or a command uses" in bridge.run("clean").stderr
    assert bridge.program.end() == 0
    assert bridge.run("clean").stdout.startswith("2 messages and buttons")
    ended = bridge.run("clean", "--yes")
    assert "topics are gone" in ended.stdout, ended.stderr
