"""`status`, `replay` and `completion`: what a running bridge says of itself, and does when asked."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from tests.system.conftest import MakeBridge
from tests.system.support import Bridge, free_port, status


def click(number: int = 1) -> dict[str, object]:
    """A callback with a click that is made now."""
    message = {
        "id": f"c{number}",
        "type": "button",
        "from": "15550001234",
        "timestamp": str(int(time.time())),
        "button": {"payload": "open_gate", "text": "Open the gate"},
    }
    return {"messages": [message]}


class TestStatus:
    def test_all_is_well(self, bridge: Bridge) -> None:
        """The first question of whoever looks after it."""
        assert bridge.post(status("m1", "read", recipient_id="15550001234")).status == 200
        with bridge.listen() as subscriber:
            subscriber.wait("whatsapp/m1/status")
        said = bridge.run("status")
        assert said.returncode == 0
        for words in ("✓ ok", "webhook: callbacks are taken", "connected to the embedded broker", "last callback:"):
            assert words in said.stdout
        assert "15550001234" not in said.stdout

    def test_for_scripts_it_is_json(self, bridge: Bridge) -> None:
        """A script would have to read words that may change."""
        found = json.loads(bridge.run("status", "--json").stdout)
        assert (found["ok"], found["running"], found["broker"]["state"]) == (True, True, "ok")

    def test_a_broker_that_is_away_is_an_exit_code(self, make_bridge: MakeBridge) -> None:
        """A cron job would never send its mail."""
        bridge = make_bridge(mqtt__url=f"mqtt://127.0.0.1:{free_port()}").start(wait=False)
        bridge.program.wait_log("nothing reaches the broker; everything is kept until it does")
        said = bridge.run("status")
        assert said.returncode == 1
        assert "✗ trouble" in said.stdout
        assert "no connection to" in said.stdout

    def test_a_bridge_that_does_not_run_is_another(self, make_bridge: MakeBridge) -> None:
        """'Is it ill or is it not there' decides what to do next."""
        bridge = make_bridge()
        said = bridge.run("status")
        assert (said.returncode, said.stdout) == (3, "")
        assert "the bridge does not run here" in said.stderr
        found = json.loads(bridge.run("status", "--json").stdout)
        assert (found["ok"], found["running"]) == (False, False)

    def test_one_that_was_killed_does_not_seem_to_run(self, bridge: Bridge) -> None:
        """What it left beside its journal would be taken for a sign of life."""
        bridge.program.end(9)
        said = bridge.run("status")
        assert said.returncode == 3
        assert "nothing answers" in said.stderr

    def test_without_a_page_it_says_which_setting(self, make_bridge: MakeBridge) -> None:
        """The user would look for a fault where there is a choice."""
        said = make_bridge(admin__listen="off").run("status")
        assert said.returncode == 3
        assert "admin.listen is off" in said.stderr

    def test_on_a_terminal_it_has_colours(self, bridge: Bridge) -> None:
        """Green and red are seen before words are read; a file full of escape codes is read by nobody."""
        terminal = subprocess.run(
            ["script", "-qec", f"{sys.executable} -m bridge status", "/dev/null"],
            env=bridge.environment | {"TERM": "xterm-256color"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "\x1b[32m✓ ok\x1b[0m" in terminal.stdout
        assert "\x1b" not in bridge.run("status").stdout


class TestReplay:
    @pytest.fixture
    def filled(self, bridge: Bridge) -> Bridge:
        assert bridge.post(status("m1", "read")).status == 200
        assert bridge.post(click()).status == 200
        with bridge.listen() as subscriber:
            subscriber.wait("whatsapp/event/button/open_gate")
            subscriber.wait("whatsapp/m1/status")
        return bridge

    def test_retained_topics_are_published_again_and_no_event(self, filled: Bridge) -> None:
        """A gate would open because somebody repaired a dashboard."""
        with filled.listen() as subscriber:
            subscriber.wait("whatsapp/m1/status")
            before = len([one for one in subscriber.heard if not one.retain])
            said = filled.run("replay", "--since", "1h")
            assert (said.returncode, said.stdout) == (0, "4 topics are published again.\n")
            live = ("whatsapp/m1/status", "whatsapp/button/open_gate", "whatsapp/last/status", "whatsapp/last/button")
            for topic in live:
                subscriber.wait(topic, lambda one: not one.retain)
            fresh = [one.topic for one in subscriber.heard if not one.retain][before:]
            assert not [topic for topic in fresh if "/event/" in topic]

    def test_a_dry_run_says_which_and_publishes_nothing(self, filled: Bridge) -> None:
        """One wants to know before a dashboard with 10,000 topics flickers."""
        with filled.listen("whatsapp/m1/#") as subscriber:
            said = filled.run("replay", "--since", "1h", "--dry-run")
            assert "whatsapp/m1/status\n" in said.stdout
            assert "4 topics would be published again." in said.stderr
            assert filled.post(status("m1", "played")).status == 200
            subscriber.wait("whatsapp/m1/status", lambda one: one.json["status"] == "played")
            assert [one.json["status"] for one in subscriber.heard if not one.retain] == ["played"]

    def test_what_is_older_is_left_alone(self, filled: Bridge) -> None:
        """`--since` would mean nothing."""
        tomorrow = time.strftime("%Y-%m-%dT%H:%M", time.localtime(time.time() + 86_400))
        assert filled.run("replay", "--since", tomorrow).stdout == "0 topics are published again.\n"

    @pytest.mark.parametrize("since", ["yesterday", "2026-13-01", "", "0001-01-01", f"{10**400}d"])
    def test_what_is_no_time_is_told(self, make_bridge: MakeBridge, since: str) -> None:
        """It would publish all or nothing."""
        said = make_bridge().run("replay", "--since", since)
        assert said.returncode == 2
        assert "write e.g. 2h" in said.stderr

    def test_without_a_bridge_nothing_is_published(self, make_bridge: MakeBridge) -> None:
        """It would say that it is done, and nothing was."""
        assert make_bridge().run("replay", "--since", "1h").returncode == 3

    def test_without_a_broker_it_is_told(self, make_bridge: MakeBridge) -> None:
        """It would say that it is done, and nothing was."""
        bridge = make_bridge(mqtt__url=f"mqtt://127.0.0.1:{free_port()}").start(wait=False)
        bridge.program.wait_log("nothing reaches the broker; everything is kept until it does")
        said = bridge.run("replay", "--since", "1h")
        assert said.returncode == 1
        assert "the broker is not reached" in said.stderr


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (["--kind", "button", "--events"], ["whatsapp/event/button/open_gate"]),
        (["--status", "failed", "--events"], ["whatsapp/event/status/failed"]),
        (["--about", "15550001234", "--events"], ["whatsapp/event/button/open_gate"]),
        (["--about", "m2", "--kind", "status", "--events"], ["whatsapp/event/status/failed"]),
        (["--button", "open_gate", "--events"], ["whatsapp/event/button/open_gate"]),
    ],
    ids=" ".join,
)
def test_tail_shows_what_is_asked_for(bridge: Bridge, options: list[str], shown: list[str]) -> None:
    """In a busy house the one message could not be seen."""
    with bridge.follow("tail", "--json", "--count", "1", *options) as tail:
        # When the broker has its subscription nobody says, so it is posted until one was seen.
        for number in range(600):
            if tail.has_ended:
                break
            for body in (status("m1", "read", number), status("m2", "failed", number), click(number)):
                assert bridge.post(body).status == 200
        assert tail.wait() == 0
        assert [json.loads(line)["topic"] for line in tail.out] == shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_each_shell(make_bridge: MakeBridge, shell: str) -> None:
    """Whoever likes the Tab key would have to find out how click does it."""
    said = make_bridge().run("completion", shell)
    assert said.returncode == 0
    assert f"_WHATSAPP2MQTT_COMPLETE={shell}_complete" in said.stdout


def test_completion_knows_commands_and_options(make_bridge: MakeBridge) -> None:
    """A completion that completes nothing is worse than none."""
    bridge = make_bridge()

    def completed(words: str, at: int) -> str:
        environment = {"COMP_WORDS": words, "COMP_CWORD": str(at), "_WHATSAPP2MQTT_COMPLETE": "bash_complete"}
        bridge.environment.update(environment)
        return bridge.run().stdout

    assert "plain,dead-letters" in completed("whatsapp2mqtt dea", 1)
    assert "plain,--since" in completed("whatsapp2mqtt replay --si", 2)
