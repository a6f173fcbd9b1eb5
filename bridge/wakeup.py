"""The datagram with which a receiver tells the publisher that something was stored.

A lost one costs nothing but a moment: the publisher also looks by itself.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self


class Doorbell:
    """The publisher's end: readable when a receiver rang. Opened and closed by `with`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    def __enter__(self) -> Self:
        self._path.unlink(missing_ok=True)
        with short(self._path) as address:
            self._socket.bind(address)
        self._path.chmod(0o600)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def fileno(self) -> int:
        return self._socket.fileno()

    def ring(self) -> None:
        """Ring from within the process, e.g. to stop whoever waits."""
        with contextlib.suppress(OSError), short(self._path) as address, sender() as out:
            out.sendto(b"!", address)

    def silence(self) -> None:
        """Take away all rings so far."""
        with contextlib.suppress(BlockingIOError):
            while self._socket.recv(16):
                pass


class Bell:
    """A doorbell within one process."""

    def __init__(self) -> None:
        self._handle = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()

    def fileno(self) -> int:
        return self._handle

    def ring(self) -> None:
        """Ring, from any thread; nobody minds when it is closed already."""
        with self._lock:
            if self._handle >= 0:
                os.eventfd_write(self._handle, 1)

    def silence(self) -> None:
        """Take away all rings so far."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._handle)

    def close(self) -> None:
        with self._lock:
            os.close(self._handle)
            self._handle = -1


class Finger:
    """A receiver's end: rings without waiting, and does not mind if nobody is there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = sender()
        self._connected = False

    def ring(self) -> None:
        try:
            if not self._connected:
                with short(self._path) as address:
                    self._socket.connect(address)
                self._connected = True
            self._socket.send(b"!")
        except BlockingIOError:
            pass  # enough rings wait already
        except OSError:
            # The publisher is away or was started anew: next time, look for its socket again.
            self._connected = False


def sender() -> socket.socket:
    """A socket that sends datagrams without waiting."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


@contextlib.contextmanager
def short(path: Path) -> Iterator[str]:
    """The socket's address through an open folder: a socket's own path may have no more than 107 bytes."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
