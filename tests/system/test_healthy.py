"""Whoever watches the bridge asks `whatsapp2mqtt healthy`: Docker does every 30 seconds."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from bridge.meter import Meters
from tests.system.conftest import MakeBridge
from tests.system.support import Bridge, children, command_line, status
from tests.system.test_admin import ask, until


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"admin__listen": "off"},
        # As within Home Assistant: only its proxy may ask, and the health check is no proxy.
        {"admin__listen": "0.0.0.0:0", "admin__trusted_proxies": "172.30.32.2"},
    ],
    ids=["page", "no page", "behind Home Assistant"],
)
def test_a_bridge_that_runs_is_healthy_and_one_that_hangs_or_is_gone_is_not(
    make_bridge: MakeBridge, settings: dict[str, str]
) -> None:
    """A container that is always healthy is never looked at; one that never is, is started anew for ever."""
    bridge = make_bridge(**settings).start()
    well = bridge.run("healthy")
    assert (well.returncode, well.stdout) == (0, "healthy\n"), well.stderr
    assert bridge.program.end() == 0
    gone = bridge.run("healthy")
    assert (gone.returncode, gone.stdout) == (1, "")
    assert gone.stderr.startswith("whatsapp2mqtt: nothing answers at http://")


def test_a_main_process_that_hangs_is_not_healthy(make_bridge: MakeBridge) -> None:
    """Its receivers still take callbacks, and nothing of them gets to the broker."""
    bridge = make_bridge().start()
    os.kill(bridge.pid, signal.SIGSTOP)
    try:
        hangs = bridge.run("healthy")
        assert (hangs.returncode, "nothing answers" in hangs.stderr) == (1, True)
    finally:
        os.kill(bridge.pid, signal.SIGCONT)
    assert bridge.run("healthy").returncode == 0


def receivers(bridge: Bridge) -> list[int]:
    return [pid for pid in children(bridge.pid) if "spawn_main" in command_line(pid)]


def beats(bridge: Bridge) -> dict[int, float]:
    """What receivers leave in the memory that they share with the main process."""
    files = Path(f"/proc/{bridge.pid}/fd").iterdir()
    memory = next(one for one in files if "memfd:whatsapp2mqtt" in os.path.realpath(one))
    return Meters(2, os.open(memory, os.O_RDWR)).beats()


def impatient(bridge: Bridge) -> Bridge:
    """The same, with less patience with its receivers."""
    script = bridge.folder / "impatient.py"
    script.write_text(
        "from bridge import pulse, service\n"
        "from bridge.cli import main\n"
        "pulse.LATE, pulse.HANGS, service.HEARTBEAT = 5.0, 10.0, 1.0\n"
        "main()\n"
    )
    bridge.command = [sys.executable, script, "run"]
    return bridge


def test_a_receiver_that_hangs_is_told_and_started_anew(make_bridge: MakeBridge) -> None:
    """The kernel still takes connections for it, and no callback ever gets an answer."""
    bridge = make_bridge().start()
    hangs = bridge.receiver
    os.kill(hangs, signal.SIGSTOP)
    ready = until(lambda: (found := ask(bridge, "/readyz")).status == 503 and found)
    assert "nothing answers at" in ready.json["why"][0]
    lamp = until(lambda: (found := ask(bridge, "/api/status").json["webhook"])["state"] == "trouble" and found)
    assert "nothing answers at" in lamp["why"]
    until(lambda: ask(bridge, "/healthz").json == {"alive": False})
    told = bridge.run("healthy")
    assert (told.returncode, "/healthz says 503" in told.stderr) == (1, True)
    assert "the receiver hangs" in ask(bridge, "/api/status").json["webhook"]["why"]
    assert bridge.post(status("m1")).status == 200, "it waits for the new one"
    assert bridge.receiver != hangs
    until(lambda: bridge.run("healthy").returncode == 0)
    until(lambda: ask(bridge, "/readyz").status == 200)
    lines = [line for line in bridge.program.log if "hang" in line["event"]]
    assert [line["pid"] for line in lines] == [hangs]
    assert bridge.program.end() == 0


def test_one_of_several_receivers_that_hangs_is_told_and_started_anew(make_bridge: MakeBridge) -> None:
    """The others answer, so nobody looks; and what this one has accepted gets no answer."""
    bridge = impatient(make_bridge(webhook__workers="2")).start()
    until(lambda: len(beats(bridge)) == 2)
    hangs, well = receivers(bridge)
    os.kill(hangs, signal.SIGSTOP)
    until(lambda: ask(bridge, "/healthz").json == {"alive": False})
    assert "1 of 2 receivers hang" in ask(bridge, "/api/status").json["webhook"]["why"]
    assert bridge.program.wait_log("a receiver hangs; it is ended and started anew")["pid"] == hangs
    until(lambda: ask(bridge, "/healthz").json == {"alive": True})
    until(lambda: len(receivers(bridge)) == 2)
    assert well in receivers(bridge)
    assert hangs not in receivers(bridge)
    assert bridge.program.end() == 0


def test_a_receiver_that_is_only_busy_is_left_alone(make_bridge: MakeBridge) -> None:
    """With it would end every request that it is answering, and the next one would be as busy."""
    bridge = impatient(make_bridge(webhook__connections="16", webhook__body_timeout="60s")).start()
    busy = bridge.receiver
    body = json.dumps(status("m1")).encode()
    head = (
        f"POST {bridge.path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    with contextlib.ExitStack() as stack:
        # All the connections that there may be, each in the middle of a body.
        senders = [stack.enter_context(socket.create_connection(("127.0.0.1", bridge.webhook))) for _ in range(16)]
        for sender in senders:
            sender.sendall(f"{head}\r\n".encode() + body[:9])
        until(lambda: "nothing answers" in str(ask(bridge, "/readyz").json["why"]))
        for _ in range(120):
            assert ask(bridge, "/healthz").json == {"alive": True}
            signal.sigtimedwait([], 0.1)
        for sender in senders:
            sender.sendall(body[9:])
            assert sender.recv(100).startswith(b"HTTP/1.1 200")
    until(lambda: ask(bridge, "/readyz").status == 200)
    assert bridge.receiver == busy
    assert not [line for line in bridge.program.log if "hang" in line["event"]]
