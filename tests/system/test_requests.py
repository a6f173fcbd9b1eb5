"""Requests by MQTT and the log level, with the real bridge and its own broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import Any

from tests.system.conftest import MakeBridge
from tests.system.support import PATIENCE, Bridge, Subscriber, program, status, wait_for_end


def ask(bridge: Bridge, there: Subscriber, what: str, **asked: Any) -> Any:
    """The answer to a request."""
    asked = {"transaction": f"{what} {time.monotonic()}", **asked}
    there._client.publish(f"whatsapp/bridge/request/{what}", json.dumps(asked), qos=1).wait_for_publish(PATIENCE)
    return there.wait(
        f"whatsapp/bridge/response/{what}", lambda heard: heard.json.get("transaction") == asked["transaction"]
    ).json


def debug_lines(bridge: Bridge) -> list[dict[str, Any]]:
    """What receivers said about callbacks, which only debug does."""
    return [line for line in bridge.program.log if line["level"] == "debug" and "stored" in line]


def post_until(bridge: Bridge, said: bool, name: str) -> None:
    """Post callbacks until the receiver does (or does not) say anything about them."""
    for number in range(600):
        before = len(debug_lines(bridge))
        assert bridge.post(status(f"{name}{number}")).status == 200
        # A line that is written is written before the answer; it may take a moment until it is read here.
        time.sleep(0.1)
        if (len(debug_lines(bridge)) > before) is said:
            return
    raise AssertionError(bridge.program.said)


def test_what_can_be_asked_for_is_done_and_answered(bridge: Bridge) -> None:
    """Home Assistant or Node-RED can look after the bridge without a login on its machine."""
    with bridge.listen() as there:
        there.wait("whatsapp/bridge/health", lambda heard: heard.json["connected"])
        health = ask(bridge, there, "health")
        assert health["status"] == "ok"
        assert health["data"]["connected"] is True

        assert bridge.post(b"nothing that is understood").status == 200
        letters = ask(bridge, there, "dead_letters")
        assert letters["data"] == {"worked": 0, "failed": 1, "left": 1}

        post_until(bridge, said=False, name="quiet")
        assert ask(bridge, there, "log_level", level="debug")["data"] == {"level": "debug"}
        post_until(bridge, said=True, name="loud")
        assert "less said" in ask(bridge, there, "log_level", level="error")["error"]
        assert ask(bridge, there, "log_level", level="info")["data"] == {"level": "info"}
        post_until(bridge, said=False, name="quiet again")

        assert ask(bridge, there, "reconnect")["status"] == "ok"
        bridge.program.wait_until(lambda: len([x for x in bridge.program.log if x["event"] == "connected"]) == 2)
        assert bridge.post(status("after")).status == 200
        there.wait("whatsapp/after/status")


def test_each_request_can_be_refused_by_its_setting(make_bridge: MakeBridge) -> None:
    """On a broker that many use, the bridge's owner decides."""
    refused = ("health", "dead_letters", "log_level", "reconnect")
    bridge = make_bridge(**{f"mqtt__requests__{what}": "false" for what in refused[1:]}).start()
    with bridge.listen() as there:
        there.wait("whatsapp/bridge/checkpoint")
        for what in refused[1:]:
            answer = ask(bridge, there, what)
            assert answer["error"] == f"the settings do not allow it; set mqtt.requests.{what} to true"
        assert ask(bridge, there, "health")["status"] == "ok"


def test_a_client_that_shares_no_code_gets_its_answer(bridge: Bridge) -> None:
    """The example in the documents is for mosquitto's commands."""
    client = [
        program("mosquitto_rr"),
        "-V",
        "mqttv311",
        "-p",
        str(bridge.broker),
        "-t",
        "whatsapp/bridge/request/health",
        "-m",
        "{}",
    ]
    said = subprocess.run(
        [*client, "-e", "whatsapp/bridge/response/health", "-W", "30"], capture_output=True, text=True, check=False
    )
    assert json.loads(said.stdout)["status"] == "ok"


def test_a_signal_turns_debug_on_and_off_in_every_process(bridge: Bridge) -> None:
    """Whoever looks for a fault must not have to restart what shows it."""
    receiver = bridge.receiver
    os.kill(bridge.pid, signal.SIGUSR1)
    bridge.program.wait_log("the log level is changed", to="debug")
    post_until(bridge, said=True, name="loud")
    # A receiver that takes another's place says as much.
    os.kill(receiver, signal.SIGKILL)
    wait_for_end([receiver])
    wait_for_webhook(bridge)
    assert bridge.receiver != receiver
    post_until(bridge, said=True, name="loud again")
    os.kill(bridge.pid, signal.SIGUSR1)
    bridge.program.wait_log("the log level is changed", to="info")
    post_until(bridge, said=False, name="quiet")
    assert bridge.program.end() == 0


def test_a_signal_to_every_process_harms_none(bridge: Bridge) -> None:
    """`systemctl kill -s USR1` sends it to all of the service's processes."""
    everything = (bridge.pid, bridge.receiver, bridge.nats)
    for pid in everything:
        os.kill(pid, signal.SIGUSR1)
    bridge.program.wait_log("the log level is changed", to="debug")
    post_until(bridge, said=True, name="loud")
    assert (bridge.pid, bridge.receiver, bridge.nats) == everything


def wait_for_webhook(bridge: Bridge) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            bridge.post(b"{}")
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(bridge.program.said)


def test_the_first_line_of_the_log_names_what_runs_where(make_bridge: MakeBridge) -> None:
    """It is the first that whoever helps asks for."""
    bridge = make_bridge().start()
    said = bridge.program.wait_log("starting")
    assert said["webhook"] == f"http://127.0.0.1:{bridge.webhook}/webhook"
    assert said["broker"] == f"mqtt://127.0.0.1:{bridge.broker} (embedded)"
    assert said["journal"] == str(bridge.state / "journal.db")
    assert said["page"].startswith("http://127.0.0.1:")
    assert said["version"]
