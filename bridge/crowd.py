"""Connections of a receiver: where it has nearly all that it may, those that ask nothing make way for those that wait.

granian opens `webhook.connections` and no more, and gives each of them ten seconds for the head of a request: enough
for a sender on a bad line. So whoever opens more of them than that, says nothing, and comes again, has everybody wait.
It has no shorter time for when there are many; but its connections are files of this process, to be looked through.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterator

#: With so many of the connections that there may be, there is a crowd.
CROWD = 0.9
#: Seconds between two looks; in a crowd, a connection has once to twice as long for the head of a request.
CALM = 1.0
BRISK = 0.25

#: Where a process finds its own files.
FILES = "/proc/self/fd"

#: The other end of a connection: its address, and its port.
Peer = tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]


class Crowd:
    """The connections of one receiver; used by the coroutines of one event loop.

    Args:
        port: Where it listens.
        most: Connections that it may have open.
    """

    def __init__(self, port: int, most: int) -> None:
        self._port = port
        self._enough = int(most * CROWD)
        self._busy: set[str] = set()  # clients, as granian writes them
        self._asked: set[str] = set()  # since the last look
        self._idle: set[Peer] = set()  # at the last look

    def begin(self, client: str) -> None:
        """A request of this client is being answered."""
        self._busy.add(client)

    def end(self, client: str) -> None:
        """It was answered."""
        self._busy.discard(client)
        self._asked.add(client)

    def look(self) -> tuple[float, int]:
        """Where there is a crowd, hang up on those that have asked nothing since the last look.

        Returns:
            Seconds until the next look, and on how many it hung up.
        """
        asked, self._asked = self._asked, set()
        stale, self._idle = self._idle, set()
        try:
            # Not all of its files are connections, but all of its connections are files.
            if len(_files()) < self._enough:
                return CALM, 0
            found = {peer for peer, _ in self._connections()}
            if len(found) < self._enough:
                return CALM, 0
            self._idle = found - {_peer(*client.rsplit(":", 1)) for client in asked | self._busy}
            return BRISK, self._hang_up(stale & self._idle)
        except OSError:  # it has as many files as it may: not one more, to look at them
            return BRISK, 0

    def _hang_up(self, peers: set[Peer]) -> int:
        ended = 0
        for peer, connection in self._connections() if peers else ():
            if peer in peers:
                with contextlib.suppress(OSError):  # it is gone by itself
                    connection.shutdown(socket.SHUT_RDWR)
                    ended += 1
        return ended

    def _connections(self) -> Iterator[tuple[Peer, socket.socket]]:
        """Each that is open, with its other end; for this one step."""
        for file in _files():
            with contextlib.suppress(OSError), _copied(file) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.getsockname()[1] == self._port:
                    yield _peer(*connection.getpeername()[:2]), connection


def _files() -> list[int]:
    """The numbers of this process' files."""
    with os.scandir(FILES) as files:
        return [int(file.name) for file in files]


def _copied(file: int) -> socket.socket:
    """The same socket as another file: granian may close its own, and open another one by the same number.

    Raises:
        OSError: It is gone by now, or no socket.
    """
    copy = os.dup(file)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


def _peer(host: str, port: str | int) -> Peer:
    return ipaddress.ip_address(host.strip("[]").partition("%")[0]), int(port)
