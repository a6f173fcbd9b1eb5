"""The doorbell between receiver and publisher: heard, never waited for, and harmless when nobody is there."""

from __future__ import annotations

import os
import select
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.wakeup import Doorbell, Finger


@pytest.fixture(params=["short", "long"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where the bell hangs; an address of more than 107 bytes does not fit into what the kernel takes."""
    if request.param == "short":
        return tmp_path / "bell"
    folder = tmp_path / ("f" * 100) / ("ö" * 60)
    folder.mkdir(parents=True)
    assert len(os.fsencode(folder)) > 200
    return folder / "journal.bell"


@pytest.fixture
def finger(path: Path) -> Iterator[Finger]:
    made = Finger(path)
    yield made
    made._socket.close()


def rings(bell: Doorbell) -> bool:
    return bool(select.select([bell], [], [], 0)[0])


def test_a_ring_is_heard_and_silenced(path: Path, finger: Finger) -> None:
    """Not heard, a click waits for the publisher's next look; not silenced, the publisher never rests."""
    with Doorbell(path) as bell:
        assert not rings(bell)
        for _ in range(3):
            finger.ring()
            assert rings(bell)
        bell.silence()
        assert not rings(bell)
        finger.ring()
        assert rings(bell)


def test_silence_without_a_ring_does_not_wait(path: Path) -> None:
    """A publisher that waits here stops publishing."""
    with Doorbell(path) as bell:
        bell.silence()
        assert not rings(bell)


def test_the_bell_can_ring_itself(path: Path) -> None:
    """Stop must wake whoever waits, at once."""
    with Doorbell(path) as bell:
        bell.ring()
        assert rings(bell)


def test_many_fingers_ring_one_bell(path: Path) -> None:
    """Every receiver process has its own."""
    fingers = [Finger(path) for _ in range(3)]
    with Doorbell(path) as bell:
        for one in fingers:
            one.ring()
            assert rings(bell)
            bell.silence()
            assert not rings(bell)
    for one in fingers:
        one._socket.close()


def test_ringing_never_waits(path: Path, finger: Finger) -> None:
    """The publisher is busy and does not listen: a receiver that waits for it does not answer callbacks."""
    with Doorbell(path) as bell:
        for _ in range(2_000):  # far more than a socket holds
            finger.ring()
            bell.ring()
        assert rings(bell)
        bell.silence()
        assert not rings(bell)
        finger.ring()
        assert rings(bell)


def test_ringing_where_nobody_is_costs_nothing(path: Path, finger: Finger) -> None:
    """The main process is being started anew: what is stored meanwhile is found by the publisher itself."""
    finger.ring()
    with Doorbell(path) as bell:
        finger.ring()
        assert rings(bell)
    finger.ring()
    bell.ring()


def test_ringing_where_not_even_the_folder_is_costs_nothing(tmp_path: Path) -> None:
    """A folder that was taken away must not make answers fail."""
    finger = Finger(tmp_path / "gone" / "bell")
    finger.ring()
    finger._socket.close()


def test_a_finger_finds_the_bell_that_took_the_place_of_another(path: Path, finger: Finger) -> None:
    """The publisher was started anew and the receiver was not: it must be heard again, from the second ring at most."""
    with Doorbell(path) as first:
        finger.ring()
        assert rings(first)
    with Doorbell(path) as second:
        finger.ring()
        finger.ring()
        assert rings(second)


def test_a_bell_that_was_left_behind_is_replaced(path: Path, finger: Finger) -> None:
    """After a kill -9 the old socket is still there; refusing to start because of it would need a human."""
    left = Doorbell(path)
    left.__enter__()
    left._socket.close()
    assert path.exists()
    with Doorbell(path) as bell:
        finger.ring()
        assert rings(bell)
    assert not path.exists()


def test_the_bell_is_for_its_owner_only_and_gone_afterwards(path: Path) -> None:
    """Others on the machine could keep the publisher from ever resting."""
    with Doorbell(path) as bell:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        bell.silence()
    assert not path.exists()


def test_a_bell_that_is_gone_before_it_is_taken_down_is_no_error(path: Path) -> None:
    """Somebody cleaned the folder: that is no reason to end with a failure."""
    with Doorbell(path):
        path.unlink()


def test_no_open_folder_is_left_behind(path: Path, finger: Finger) -> None:
    """One left open a ring, and after a thousand clicks the process can open nothing more."""
    with Doorbell(path) as bell:
        finger.ring()
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(10):
            bell.ring()
            finger._connected = False
            finger.ring()
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_working_directory_stays_where_it_is(path: Path, finger: Finger) -> None:
    """Other threads open files by relative names at the same moment."""
    before = Path.cwd()
    with Doorbell(path) as bell:
        finger.ring()
        assert rings(bell)
    assert Path.cwd() == before


def test_neither_end_is_handed_to_children(path: Path, finger: Finger) -> None:
    """An embedded broker that inherits the socket keeps it open after the bridge has ended."""
    with Doorbell(path) as bell:
        for end in (bell._socket, finger._socket):
            assert isinstance(end, socket.socket)
            assert not end.get_inheritable()
