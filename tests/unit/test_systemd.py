"""What systemd is told, over real sockets."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge import systemd


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The end at which systemd listens, named in the environment as systemd names it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@whatsapp2mqtt-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as listening:
        listening.bind(name.replace("@", "\0") if request.param == "abstract" else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield listening


def heard(manager: socket.socket) -> bytes:
    return manager.recv(65_536)


def test_a_state_is_one_datagram_of_lines(manager: socket.socket) -> None:
    """READY not understood, and systemd ends the bridge after its start-up time, again and again."""
    systemd.notify(READY=1, STATUS="connected to wss://hörn.example")
    assert heard(manager) == b"READY=1\nSTATUS=connected to wss://h\xc3\xb6rn.example"
    with pytest.raises(BlockingIOError):
        heard(manager)


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\r", "\x0b", "\x85", "\u2028"])
def test_text_from_outside_stays_one_line(manager: socket.socket, separator: str) -> None:
    """A broker's own words stand in STATUS: with a line break it could give systemd orders."""
    systemd.notify(STATUS=f"refused:{separator}MAINPID=1{separator}", WATCHDOG=1)
    assert heard(manager) == b"STATUS=refused: MAINPID=1\nWATCHDOG=1"


def test_text_that_is_none_is_told_as_far_as_it_goes(manager: socket.socket) -> None:
    """A file name with odd bytes in a status must not end the heartbeat."""
    systemd.notify(STATUS="a\udcffb")
    assert heard(manager) == b"STATUS=a?b"


@pytest.mark.parametrize("address", [None, "", "/nowhere/at/all", "@nobody-listens-here", "/" + "x" * 200, "vsock:2:1"])
def test_where_nobody_listens_nothing_happens(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    """In a container or a terminal there is no systemd: that is no reason to stop."""
    if address is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    systemd.notify(READY=1)


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        ("30000000", None, 30.0),
        ("30000000", "", 30.0),
        ("30000000", "self", 30.0),
        ("500000", "self", 0.5),
        ("30000000", "1", None),  # meant for another process
        (None, None, None),
        ("", "self", None),
        ("-1", None, None),
        ("infinity", None, None),
        ("²", None, None),
    ],
)
def test_the_watchdogs_interval_is_in_seconds(
    monkeypatch: pytest.MonkeyPatch, microseconds: str | None, pid: str | None, seconds: float | None
) -> None:
    """Too seldom a sign of life, and systemd kills a healthy bridge; taken for another's, none is given."""
    for name, value in (("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, str(os.getpid()) if value == "self" else value)
    assert systemd.watchdog_interval() == seconds
