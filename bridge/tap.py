"""What receivers get, shown while somebody watches: a datagram for each callback, held in memory and nowhere else.

Nobody watches: a receiver looks at one number in shared memory, and that is all. Somebody does: it hands over each
callback without waiting, after it was answered for in the journal; one for which there is no room is not shown. What
is shown has its numbers hidden as `privacy.numbers` says.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import structlog

from bridge.clock import uptime
from bridge.config import Settings
from bridge.meter import Meter, Meters
from bridge.topics import Entry
from bridge.wakeup import sender, short

log = structlog.get_logger()

#: Bytes of a body that are shown, and how many callbacks are remembered.
SHOWN = 60_000
REMEMBERED = 200
#: Seconds for which one look has receivers show what they get, and after which what they showed is forgotten.
WATCHED = 15.0
FORGOTTEN = 600.0
_LARGEST = SHOWN + 140_000


def tap_of(settings: Settings) -> Path:
    """The socket at which a bridge with these settings is watched."""
    return settings.journal_path.with_suffix(".tap")


@dataclass(frozen=True, slots=True)
class Shown:
    """A callback, as the receiver shows it.

    Attributes:
        number: Its place among those that were shown.
        received, stored: Epoch seconds: of its receipt, and when all of it was on disk.
        event_ids: Of the updates in it, as they stand in the journal; the first thousand.
        outcome: How many of its entries were `stored`, `duplicate`, `ignored`, `dead`.
        size: Of the whole body, in bytes.
        body: Its beginning.
    """

    number: int
    received: float
    stored: float
    event_ids: tuple[str, ...]
    outcome: dict[str, int]
    size: int
    body: bytes


class Hand:
    """A receiver's end: shows a callback if somebody watches, and never waits.

    Args:
        path: The watcher's socket.
        meter: Tells whether somebody watches.
        hide: Takes numbers out of a body; None: they stay.
    """

    def __init__(self, path: Path, meter: Meter, hide: Callable[[bytes], bytes] | None = None) -> None:
        self._path = path
        self._meter = meter
        self._hide = hide

    def show(self, body: bytes, received: float, entries: Sequence[Entry], outcome: dict[str, int]) -> None:
        """Show a callback whose entries are on disk, or are not to be stored."""
        if not self._meter.is_watched(uptime()):
            return
        event_ids = [entry.event_id for entry in entries[:1_000]]
        about = (received, time.time(), event_ids, outcome, len(body))
        shown = (self._hide(body) if self._hide is not None else body)[:SHOWN]
        # Nobody there any more, or no room: then it is not shown.
        with contextlib.suppress(OSError), sender() as out, short(self._path) as address:
            out.sendto(orjson.dumps(about) + b"\n" + shown, address)


class Tap:
    """The watcher's end; used by several threads.

    Args:
        path: Where receivers show what they get.
        meters: Tells them that somebody watches.
    """

    def __init__(self, path: Path, meters: Meters) -> None:
        self._path = path
        self._meters = meters
        self._lock = threading.Lock()
        self._until = 0.0
        self._is_open = False
        self._shown: deque[Shown] = deque(maxlen=REMEMBERED)
        self._numbers = itertools.count(1)

    def watch(self) -> None:
        """Somebody looks: have receivers show what they get for the next `WATCHED` seconds."""
        with self._lock:
            self._until = uptime() + WATCHED
            self._meters.watch(self._until)
            if self._is_open:
                return
            try:
                taker = self._bound()
            except OSError as error:
                log.warning("callbacks cannot be shown as they come", why=error.strerror)
                return
            self._is_open = True
            threading.Thread(target=self._take, args=(taker,), name="tap", daemon=True).start()

    def shown(self) -> list[Shown]:
        """What was shown lately, oldest first."""
        limit = time.time() - FORGOTTEN
        with self._lock:
            while self._shown and self._shown[0].stored < limit:
                self._shown.popleft()
            return list(self._shown)

    def forget(self) -> None:
        """Show none of them any more."""
        with self._lock:
            self._shown.clear()

    def _bound(self) -> socket.socket:
        self._path.unlink(missing_ok=True)
        taker = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            taker.settimeout(1.0)
            with short(self._path) as address:
                taker.bind(address)
            self._path.chmod(0o600)
        except OSError:
            taker.close()
            raise
        return taker

    def _take(self, taker: socket.socket) -> None:
        """Its own thread while somebody watches: a socket holds few datagrams by itself."""
        with taker:
            while True:
                with contextlib.suppress(TimeoutError):
                    datagram = taker.recv(_LARGEST)
                    with self._lock:
                        self._shown.append(_read(next(self._numbers), datagram))
                with self._lock:
                    if uptime() > self._until:
                        self._is_open = False
                        self._path.unlink(missing_ok=True)
                        return


def _read(number: int, datagram: bytes) -> Shown:
    about, _, body = datagram.partition(b"\n")
    received, stored, event_ids, outcome, size = orjson.loads(about)
    return Shown(number, received, stored, tuple(event_ids), outcome, size, body)
