"""`dead-letters`, `backup` and `restore` as commands of their own, beside a bridge that runs."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bridge.journal import Callback, DeadLetter
from bridge.journal.sqlite import SqliteJournal
from tests.torture.harness import Bridge, Mosquitto, Subscriber, click, status, wait_until

pytestmark = pytest.mark.timeout(180)


@dataclass
class Home:
    """A bridge, its broker, and somebody at a terminal."""

    broker: Mosquitto
    bridge: Bridge

    def run(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """`whatsapp2mqtt` with these arguments and the settings of the bridge."""
        return subprocess.run(
            [sys.executable, "-m", "bridge", *map(str, arguments)],
            env={**self.bridge.environment, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def said(self, *arguments: object, code: int = 0) -> str:
        done = self.run(*arguments)
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout + done.stderr

    def post_bytes(self, body: bytes) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.bridge.port, timeout=10)
        try:
            connection.request("POST", "/webhook", body, {"Content-Type": "application/json"})
            return connection.getresponse().status
        finally:
            connection.close()

    @property
    def journal(self) -> Path:
        return self.bridge.state / "journal.db"

    def bury(self, *letters: tuple[str, bytes]) -> None:
        """As an older version would have, that understood less."""
        with SqliteJournal(self.journal) as journal:
            dead = tuple(
                DeadLetter(source, "an older version did not understand it", body, time.time() - 86_400)
                for source, body in letters
            )
            journal.append([Callback((), dead)])

    def letters(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.said("dead-letters", "list", "--json").splitlines()]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    broker = Mosquitto(tmp_path / "broker")
    bridge = Bridge(tmp_path / "bridge", broker.port)
    try:
        broker.start()
        bridge.start()
        yield Home(broker, bridge)
    finally:
        bridge.end()
        broker.end()


def test_what_was_not_understood_is_listed_shown_and_dropped(home: Home) -> None:
    """A callback that is answered 200 and shown nowhere is lost to whoever waits for it."""
    assert home.said("dead-letters", "list") == "There are no dead letters.\n"
    hostile = b'{"no": "callback", "text": "\x1b[2Jgr\xc3\xbcn"} trailing'
    assert home.post_bytes(hostile) == 200
    assert home.post_bytes(b'{"statuses": [{"status": "read"}]}') == 200
    names, *listed = home.said("dead-letters", "list").splitlines()
    assert names.split() == ["number", "received", "source", "reason"]
    assert [line.split()[0] for line in listed] == ["2", "1"]
    assert listed[0].endswith("item      statuses[]: id is missing or empty")
    assert " callback " in listed[1]
    assert len(home.said("dead-letters", "list", "--limit", "1").splitlines()) == 2
    assert home.said("dead-letters", "list", "--source", "callback").splitlines()[1].startswith("1 ")
    assert [(letter["number"], letter["source"]) for letter in home.letters()] == [(2, "item"), (1, "callback")]
    shown = home.said("dead-letters", "show", "1")
    assert '\\x1b[2Jgrün"} trailing' in shown
    assert "\x1b" not in shown
    assert '"status": "read"' in home.said("dead-letters", "show", "2")
    assert home.said("dead-letters", "drop", "1") == "dropped 1\n"
    assert [letter["number"] for letter in home.letters()] == [2]
    assert home.said("dead-letters", "drop", "--all", "--yes") == "dropped 1\n"
    assert home.letters() == []


def test_all_are_dropped_only_by_who_said_yes(home: Home) -> None:
    """What was not understood is kept nowhere else: one line too quickly sent would have cost it."""
    for _ in range(2):
        assert home.post_bytes(b"no callback") == 200
    assert home.said("dead-letters", "drop", "--all") == (
        "2 dead letters\nNothing was dropped; `dead-letters drop --all --yes` deletes them for good.\n"
    )
    assert len(home.letters()) == 2
    assert home.said("dead-letters", "drop", "--all", "--yes") == "dropped 2\n"
    assert home.letters() == []
    assert home.said("dead-letters", "drop", "--all").startswith("0 dead letters\n")


@pytest.mark.parametrize("command", ["show", "drop", "replay"])
def test_a_number_that_there_is_not_is_told(home: Home, command: str) -> None:
    """Silence would look like success."""
    assert home.said("dead-letters", command, "77", code=1) == (
        "whatsapp2mqtt: there is no dead letter 77; `dead-letters list` shows them\n"
    )


def test_a_replay_reaches_the_broker_at_once(home: Home) -> None:
    """The update of the bridge that understands more must make good what was missed, without a restart."""
    with Subscriber(home.broker.port) as witness:
        missed = status("missed", "read")
        home.bury(("callback", json.dumps(missed).encode()), ("item", json.dumps(click("gate", "clicked")).encode()))
        start = time.monotonic()
        assert home.said("dead-letters", "replay", "--all").splitlines() == [
            "1: stored 1, duplicate 0, ignored 0",
            "2: stored 1, duplicate 0, ignored 0",
        ]
        wait_until(lambda: {"missed", "clicked"} <= witness.seen, f"it is published\n{home.bridge.tail()}", 10)
        assert time.monotonic() - start < 10
        wait_until(lambda: "button/gate" in witness.states, "its state as well", 5)
        assert witness.states["missed/status"]["status"] == "read"
        assert home.letters() == []
        # What the sender sends again meanwhile is a duplicate, and no second event.
        assert home.bridge.post(missed) == 200
        assert home.bridge.post(status("another", "sent")) == 200
        wait_until(lambda: "another" in witness.seen, "the next one is published", 10)
        assert set(witness.events.values()) == {1}


def test_an_old_click_that_is_replayed_is_recorded_and_opens_nothing(home: Home) -> None:
    """Tidying up the dead letters of last week must not open the gate."""
    with Subscriber(home.broker.port) as witness:
        old = click("gate", "last-week", int(time.time()) - 7 * 86_400)
        home.bury(("callback", json.dumps(old).encode()))
        # What just came proves the clock.
        assert home.bridge.post(status("fresh", "sent")) == 200
        home.said("dead-letters", "replay", "1")
        wait_until(lambda: "button/gate" in witness.states, f"it is recorded\n{home.bridge.tail()}", 10)
        assert witness.states["button/gate"]["late"] is True
        assert "last-week" not in witness.seen


def test_a_replay_that_fails_says_so_and_keeps_the_letter(home: Home) -> None:
    """A script must see it, and the letter must not be gone."""
    home.bury(("callback", b"still no JSON"))
    assert home.said("dead-letters", "replay", "1", code=1).startswith("1: still not understood: ")
    assert len(home.letters()) == 1


def test_a_publication_the_broker_did_not_take_goes_out_when_it_does(tmp_path: Path) -> None:
    """A broker with a small limit: after it was raised, what it refused must not have to be typed in again."""
    broker = Mosquitto(tmp_path / "broker", extra="max_packet_size 2000")
    bridge = Bridge(tmp_path / "bridge", broker.port)
    home = Home(broker, bridge)
    large = click("gate", "large")
    large["messages"][0]["button"]["text"] = "x" * 3_000
    try:
        broker.start()
        bridge.start()
        assert bridge.post(large) == 200
        wait_until(
            lambda: any(letter["source"] == "publication" for letter in home.letters()), "it is a dead letter", 20
        )
        assert bridge.stop() == 0
        broker.end()
        broker.extra = ""
        broker.start()
        bridge.start()
        with Subscriber(broker.port) as witness:
            said = home.said("dead-letters", "replay", "--all").splitlines()
            assert said[0].endswith("it is published again")
            assert all(line.endswith("it was published again with the rest of its update") for line in said[1:])
            wait_until(lambda: "large" in witness.seen, f"it is published\n{bridge.tail()}", 10)
            assert bridge.post(status("next", "sent")) == 200
            wait_until(lambda: "next" in witness.seen, "the next one as well", 10)
            assert set(witness.events.values()) == {1}
        assert home.letters() == []
    finally:
        bridge.end()
        broker.end()


def test_a_backup_of_a_running_bridge_can_be_restored(home: Home, tmp_path: Path) -> None:
    """A card dies: what was saved must be there again, on the broker as well; and nothing of it by accident."""
    copy = tmp_path / "copy.db"
    with Subscriber(home.broker.port) as witness:
        for number in range(50):
            assert home.bridge.post(status(f"m{number}", "sent")) == 200
        wait_until(lambda: len(witness.seen) == 50, "all is published")
        said = home.said("backup", copy)
        assert said == f"{copy}: {copy.stat().st_size} bytes\n"
        assert home.bridge.post(status("later", "sent")) == 200
        wait_until(lambda: "later" in witness.seen, "it goes on", 10)
        # Not while it runs: it would go on with a file that is not there any more.
        refused = home.said("restore", copy, code=2)
        assert "restore: a bridge or a command uses" in refused
        assert home.bridge.stop() == 0
    home.broker.kill()
    home.broker.start()  # it forgot everything
    restored = home.said("restore", copy)
    assert f"{home.journal} is restored; the one before is kept as journal.db.before-restore-" in restored
    home.bridge.start()
    with Subscriber(home.broker.port) as witness:
        wanted = {f"m{number}/status" for number in range(50)}
        wait_until(lambda: wanted <= witness.states.keys(), f"its topics stand again\n{home.bridge.tail()}", 20)
        assert "later/status" not in witness.states
        assert not [identity for identity, times in witness.events.items() if times > 1]
        assert home.bridge.post(status("after", "sent")) == 200
        wait_until(lambda: "after" in witness.seen, "it works", 10)
    assert home.bridge.stop() == 0


def test_a_backup_that_cannot_be_made_is_an_error(home: Home, tmp_path: Path) -> None:
    """The nightly job must mail it."""
    assert "backup" in home.said("backup", tmp_path / "nowhere" / "copy.db", code=2)
    assert "is the journal itself" in home.said("backup", home.journal, code=2)
    assert home.bridge.post(status("m", "sent")) == 200


def test_what_is_no_backup_is_not_restored(home: Home, tmp_path: Path) -> None:
    """The journal would be replaced by somebody's photo."""
    assert home.bridge.post(status("m", "sent")) == 200
    assert home.bridge.stop() == 0
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"\xff\xd8" * 5_000)
    before = home.journal.read_bytes()
    assert "restore" in home.said("restore", photo, code=2)
    assert home.journal.read_bytes() == before
