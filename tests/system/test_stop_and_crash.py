"""Stops, crashes and kills: what was answered 200 is published, and no process is left behind."""

from __future__ import annotations

import http.client
import itertools
import os
import re
import signal
import sys
import threading
import urllib.error
import urllib.request
from typing import Self

import pytest

from bridge.broker import find_program
from tests.system.conftest import MakeBridge
from tests.system.support import (
    PATIENCE,
    Bridge,
    Heard,
    Program,
    Subscriber,
    children,
    command_line,
    free_port,
    program,
    status,
    wait_for_end,
)

SIGNALS = [signal.SIGTERM, signal.SIGINT]


class Senders:
    """Post statuses of new messages without a pause, and remember which were answered 200.

    Args:
        bridge: Where to.
        count: How many post at once.
    """

    def __init__(self, bridge: Bridge, count: int = 4) -> None:
        self.answered: set[str] = set()
        self._bridge = bridge
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self._news = threading.Condition()
        self._threads = [threading.Thread(target=self._post) for _ in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _post(self) -> None:
        while not self._stop.is_set():
            message = f"m{next(self._numbers)}"
            try:
                answer = self._bridge.post(status(message))
            except (OSError, http.client.HTTPException):
                self._stop.wait(0.01)  # nobody is there; a sender comes again
                continue
            if answer.status == 200:
                with self._news:
                    self.answered.add(message)
                    self._news.notify_all()

    def wait_for(self, more: int) -> None:
        """Until so many more were answered 200."""
        with self._news:
            enough = len(self.answered) + more
            assert self._news.wait_for(lambda: len(self.answered) >= enough, PATIENCE), "no more are answered"


def published(bridge: Bridge, messages: set[str]) -> None:
    """Wait until the retained state of each message can be had."""

    def topics(heard: list[Heard]) -> set[str]:
        return {one.topic for one in heard}

    with bridge.listen("whatsapp/+/status") as subscriber:
        wanted = {f"whatsapp/{message}/status" for message in messages}
        subscriber.wait_until(lambda heard: len(heard) >= len(wanted) and wanted <= topics(heard))


def test_the_disk_has_it_before_200_is_sent(bridge: Bridge) -> None:
    """A power cut right after the answer would lose what the sender believes to be safe."""
    trace = bridge.folder / "trace"
    calls = "trace=pwrite64,fsync,fdatasync,write,writev,sendto,sendmsg"
    watch = [program("strace"), "-f", "-y", "-e", calls, "-o", trace, "-p", bridge.receiver]
    with Program(watch, bridge.folder, dict(os.environ)) as strace:
        strace.wait_said("attached")
        assert bridge.post(status("m1")).status == 200
        strace.end(signal.SIGINT)
    done = trace.read_text().splitlines()
    written = max(at for at, line in enumerate(done) if "pwrite64(" in line and "journal.db-wal>" in line)
    synced = max(at for at, line in enumerate(done) if re.search(r"(fsync|fdatasync)\b.*\) += 0$", line))
    answered = next(at for at, line in enumerate(done) if "HTTP/1.1 200" in line)
    assert written < synced < answered


@pytest.mark.parametrize("how", SIGNALS, ids=lambda how: how.name)
def test_a_signal_ends_it_with_exit_code_0_and_says_offline(
    make_bridge: MakeBridge, mosquitto: int, how: signal.Signals
) -> None:
    """systemd would call the stop a failure, and Home Assistant would show old states as if they were fresh."""
    bridge = make_bridge(mqtt__url=f"mqtt://127.0.0.1:{mosquitto}").start()
    family = children(bridge.pid)
    with Subscriber(mosquitto, "whatsapp/bridge/state") as subscriber:
        subscriber.wait("whatsapp/bridge/state", lambda heard: heard.payload == "online")
        assert bridge.program.end(how) == 0
        subscriber.wait("whatsapp/bridge/state", lambda heard: heard.payload == "offline")
    with Subscriber(mosquitto, "whatsapp/bridge/state") as late:
        assert late.wait("whatsapp/bridge/state") == Heard("whatsapp/bridge/state", "offline", retain=True)
    assert bridge.program.log[-1]["event"] == "stopped"
    assert not [one for one in bridge.program.log if one["level"] in ("warning", "error")]
    wait_for_end(family)


def test_a_bridge_that_drains_says_so_first_and_takes_callbacks_until_it_stops(make_bridge: MakeBridge) -> None:
    """A load balancer would send callbacks to a bridge that is gone already; each would come to nothing for a while."""
    page = free_port()
    bridge = make_bridge(webhook__drain="3s", admin__listen=f"127.0.0.1:{page}").start()

    def ready() -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{page}/readyz", timeout=PATIENCE) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code if b"draining" in error.read() else 0

    assert ready() == 200
    os.kill(bridge.pid, signal.SIGTERM)
    bridge.program.wait_log("draining: callbacks are still taken, and /readyz says no")
    assert ready() == 503
    assert bridge.post(status("m1")).status == 200
    assert bridge.program.wait() == 0


def test_a_second_signal_ends_a_bridge_that_drains_at_once(make_bridge: MakeBridge) -> None:
    """Who is in a hurry would have to kill it."""
    bridge = make_bridge(webhook__drain="1h").start()
    os.kill(bridge.pid, signal.SIGTERM)
    bridge.program.wait_log("draining: callbacks are still taken, and /readyz says no")
    assert bridge.program.end() == 0


def test_ctrl_c_reaches_all_processes_and_still_ends_well(make_bridge: MakeBridge) -> None:
    """A terminal sends Ctrl+C to every process of the bridge at once: the broker must outlive the last word."""
    bridge = make_bridge(log__level="debug").start()
    family = children(bridge.pid)
    for pid in [pid for pid in family if os.getpgid(pid) == os.getpgid(bridge.pid)]:
        os.kill(pid, signal.SIGINT)
    assert bridge.program.end(signal.SIGINT) == 0
    assert "Traceback" not in bridge.program.said
    assert not [one for one in bridge.program.log if one["level"] in ("warning", "error")]
    wait_for_end(family)
    # What the broker has on its disk, it shows when it runs again.
    again = [find_program(), "-c", bridge.state / "broker" / "nats.conf"]
    with Program(again, bridge.folder, bridge.environment) as broker:
        broker.wait_said("Server is ready")
        with bridge.listen("whatsapp/bridge/state") as subscriber:
            assert subscriber.wait("whatsapp/bridge/state").payload == "offline"


def test_a_stop_under_load_loses_nothing_that_was_answered_200(make_bridge: MakeBridge) -> None:
    """Every update of the system would lose some callbacks, for good: the sender was told that all is well."""
    bridge = make_bridge().start()
    with Senders(bridge) as senders:
        senders.wait_for(300)
        assert bridge.program.end() == 0
    bridge.start()
    published(bridge, senders.answered)


def test_a_receiver_that_is_killed_is_started_again_and_loses_nothing(make_bridge: MakeBridge) -> None:
    """A crash of the receiver would be the end of the webhook, or of what it had just accepted."""
    bridge = make_bridge().start()
    with Senders(bridge) as senders:
        senders.wait_for(100)
        first = bridge.receiver
        os.kill(first, signal.SIGKILL)
        wait_for_end([first])
        # More than were on their way: these were answered by the new one.
        senders.wait_for(100)
    assert bridge.receiver != first
    published(bridge, senders.answered)
    assert bridge.program.end() == 0


def test_a_bridge_that_is_killed_leaves_no_process_behind_and_loses_nothing(make_bridge: MakeBridge) -> None:
    """A receiver left behind would accept callbacks for nobody; a broker left behind would hold the port."""
    bridge = make_bridge().start()
    with Senders(bridge) as senders:
        senders.wait_for(300)
        family = children(bridge.pid)
        assert any("nats-server" in command_line(pid) for pid in family)
        assert bridge.program.end(signal.SIGKILL) == -signal.SIGKILL
        wait_for_end(family)
    bridge.start()
    published(bridge, senders.answered)


def test_an_embedded_broker_that_is_killed_is_started_again_and_nothing_is_lost(make_bridge: MakeBridge) -> None:
    """The broker takes memory like any program: the kernel may choose it when there is none left."""
    bridge = make_bridge().start()
    with Senders(bridge) as senders:
        senders.wait_for(100)
        first = bridge.nats
        os.kill(first, signal.SIGKILL)
        wait_for_end([first])
        senders.wait_for(100)
    bridge.program.wait_log("the embedded broker ended; it is started again")
    bridge.program.wait_until(lambda: sum(one["event"] == "connected" for one in bridge.program.log) == 2)
    assert bridge.nats != first
    published(bridge, senders.answered)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("Publisher.step = fail", "publisher: the disk is gone"),
        ("Publisher.run = lambda self: None", "publisher: ended unasked"),
        ("EmbeddedBroker.run = fail", "broker: the disk is gone"),
        ("_Bridge._beat = fail", "heartbeat: the disk is gone"),
    ],
)
def test_a_thread_that_dies_takes_the_process_down_with_its_reason(
    make_bridge: MakeBridge, change: str, why: str
) -> None:
    """A bridge without its publisher would look well and publish nothing, for days."""
    bridge = make_bridge()
    script = bridge.folder / "dying.py"
    script.write_text(
        "from bridge.broker import EmbeddedBroker\n"
        "from bridge.cli import main\n"
        "from bridge.journal import JournalError\n"
        "from bridge.publisher import Publisher\n"
        "from bridge.service import _Bridge\n"
        "def fail(self):\n"
        "    raise JournalError('the disk is gone')\n"
        f"{change}\n"
        "main()\n"
    )
    bridge.command = [sys.executable, script, "run"]
    bridge.start(wait=False)
    assert bridge.program.wait() == 1
    assert bridge.program.wait_log("the bridge ends", why=why)


def test_a_bridge_whose_receivers_cannot_start_ends_with_its_reason(make_bridge: MakeBridge) -> None:
    """A bridge that takes no callbacks must not look well: whoever supervises it could not tell."""
    bridge = make_bridge()
    script = bridge.folder / "dying.py"
    script.write_text(
        "import functools, sys\n"
        "from bridge import receiver, service\n"
        "from bridge.cli import main\n"
        "service._Bridge._receiver = property(lambda self: functools.partial(sys.exit, 3))\n"
        "main()\n"
    )
    bridge.command = [sys.executable, script, "run"]
    bridge.start(wait=False)
    assert bridge.program.wait() == 1
    assert "the receivers ended" in bridge.program.wait_log("the bridge ends")["why"]


def test_after_a_kill_the_same_folder_starts_as_if_nothing_was(make_bridge: MakeBridge) -> None:
    """Locks and sockets that a killed bridge left would stop the next start."""
    bridge = make_bridge()
    for _ in range(3):
        bridge.start()
        family = children(bridge.pid)
        assert bridge.post(b"{}").status == 200
        bridge.program.end(signal.SIGKILL)
        wait_for_end(family)
    assert bridge.start().program.end() == 0


def test_who_connects_while_the_receiver_is_away_waits(bridge: Bridge) -> None:
    """A refused connection is an error at the sender, and WhatsApp comes again when it likes."""
    first = bridge.receiver
    os.kill(first, signal.SIGKILL)
    wait_for_end([first])
    assert bridge.post(status("m1")).status == 200
