"""Who makes way where a receiver has nearly all the connections that it may, seen by real ones."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bridge.crowd import BRISK, CALM, FILES, Crowd

#: Connections that there may be here.
MOST = 20


class Place:
    """A listener, and connections to it whose both ends are files of this process."""

    def __init__(self, stack: ExitStack, host: str = "127.0.0.1") -> None:
        self._stack = stack
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = stack.enter_context(socket.create_server((host, 0), family=family))
        self.port: int = self._listener.getsockname()[1]
        self.crowd = Crowd(self.port, MOST)

    def connect(self, count: int = 1) -> list[socket.socket]:
        """So many more; the ends of those who ask."""
        asking = []
        for _ in range(count):
            asking.append(self._stack.enter_context(socket.create_connection(self._listener.getsockname()[:2])))
            self._stack.enter_context(self._listener.accept()[0])
        return asking

    def look(self) -> int:
        """How many were hung up on."""
        return self.crowd.look()[1]


def client(asking: socket.socket) -> str:
    """As granian writes it."""
    host, port = asking.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def hung_up(asking: list[socket.socket]) -> list[socket.socket]:
    return select.select(asking, [], [], 0)[0]


@pytest.fixture
def place() -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(stack)


def test_with_room_for_more_nobody_makes_way(place: Place) -> None:
    """A connection that rests spares the sender a new one for each callback."""
    asking = place.connect(MOST // 2)
    assert [place.crowd.look() for _ in range(3)] == [(CALM, 0)] * 3
    assert hung_up(asking) == []


def test_in_a_crowd_who_asks_nothing_makes_way(place: Place) -> None:
    """Strangers who hold all connections would have the sender of a click wait for ten seconds, or for ever."""
    asking = place.connect(MOST)
    assert place.crowd.look() == (BRISK, 0), "each has the time from one look to the next"
    assert place.crowd.look() == (BRISK, MOST)
    assert hung_up(asking) == asking


def test_who_came_since_the_last_look_has_time_for_a_head(place: Place) -> None:
    """A head may be behind its connection by a moment."""
    place.connect(MOST)
    place.look()
    late = place.connect(3)
    assert place.look() == MOST
    assert hung_up(late) == []


def test_whose_request_is_answered_is_left_in_peace(place: Place) -> None:
    """A slow disk, or a large callback of a known sender, is no reason to lose the callback."""
    asking = place.connect(MOST)
    busy, asks_again = asking[:2]
    place.crowd.begin(client(busy))
    for _ in range(4):
        place.crowd.begin(client(asks_again))
        place.crowd.end(client(asks_again))
        place.look()
        place.connect(MOST)
    assert hung_up([busy, asks_again]) == []
    place.crowd.end(client(busy))
    place.look()
    place.look()
    assert hung_up([busy]) == []
    place.connect(MOST)
    place.look()
    place.look()
    assert hung_up([busy]) == [busy], "it asks nothing any more"


def test_it_knows_addresses_of_both_families() -> None:
    """A sender whose address is written in another way than expected would be cut off in the middle."""
    with ExitStack() as stack:
        place = Place(stack, "::1")
        asking = place.connect(MOST)
        place.crowd.begin(client(asking[0]))
        place.look()
        assert place.look() == MOST - 1
        assert hung_up(asking[:1]) == []


def test_other_connections_of_the_process_are_left_in_peace(place: Place) -> None:
    """The receiver's own connections, to PostgreSQL say, would be cut."""
    with ExitStack() as stack:
        others = Place(stack).connect(3 * MOST)
        pair = socket.socketpair()
        for one in pair:
            stack.enter_context(one)
        place.connect(MOST)
        place.look()
        assert place.look() == MOST
        assert hung_up([*others, *pair]) == []


def test_looking_leaves_no_file_open(place: Place) -> None:
    """A file each time, and after some minutes the receiver could take no connection any more."""
    place.connect(MOST)
    before = len(list(Path(FILES).iterdir()))
    for _ in range(5):
        place.look()
    assert len(list(Path(FILES).iterdir())) == before


def test_with_no_file_to_spare_it_looks_later(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process may have fewer files than connections, looking would fail for ever after."""
    monkeypatch.setattr("bridge.crowd.FILES", "/nowhere")
    assert place.crowd.look() == (BRISK, 0)
    monkeypatch.undo()
    place.connect(MOST)
    place.look()
    assert place.look() == MOST
