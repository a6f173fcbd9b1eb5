"""A real publisher on a real journal, on a thread of its own as the service has it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import apsw
from brokers import PATIENCE, Watched

from bridge.clock import Clock
from bridge.config import BrokerUrl, Tls
from bridge.journal import Callback, DeadLetter
from bridge.journal.sqlite import SqliteJournal
from bridge.model import ButtonClick, StatusUpdate, Update
from bridge.publisher import Publisher, PublisherSettings
from bridge.topics import entry
from bridge.wakeup import Doorbell, Finger

#: 2026-06-01T12:00:00Z: the wall clock of these tests, wherever the machine's own stands.
NOON = 1_780_315_200
NOON_ISO = "2026-06-01T12:00:00.000Z"


def status(word: str = "sent", *, message: str = "m1", timestamp: int | None = NOON, **more: Any) -> StatusUpdate:
    return StatusUpdate(message_id=message, status=word, timestamp=timestamp, recipient_id="15550001234", **more)


def click(payload: str = "gate", *, message: str = "c1", timestamp: int | None = NOON, **more: Any) -> ButtonClick:
    return ButtonClick(payload=payload, message_id=message, timestamp=timestamp, sender="15550001234", **more)


class Logbook(Watched):
    """What the bridge logged, as structlog's only processor."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []

    def so_far(self) -> Any:
        return self.lines

    def said(self, event: str, **keys: Any) -> list[dict[str, Any]]:
        """The lines with this event and with these words in these keys."""
        return [
            line
            for line in self.lines
            if line["event"] == event and all(str(words) in str(line.get(key)) for key, words in keys.items())
        ]

    def wait_for_line(self, event: str, *, count: int = 1, **keys: Any) -> dict[str, Any]:
        return self.wait_for(lambda: self.said(event, **keys)[count - 1 :])[0]  # type: ignore[no-any-return]


class WatchedJournal(SqliteJournal):
    """The publisher's own hold on the journal; tells what it was asked to settle."""

    def __init__(self, path: Path, watched: Watched) -> None:
        super().__init__(path, durable=False)
        self._watched = watched
        self.noted = 0
        self.dead: list[DeadLetter] = []
        #: Raised by the next settle, once each.
        self.refusals: list[Exception] = []
        self.refused = 0

    def settle(self, upto: int, *, late: Sequence[int] = (), dead: Sequence[DeadLetter] = (), **more: Any) -> None:
        if self.refusals:
            with self._watched.changing():
                self.refused += 1
                refusal = self.refusals.pop(0)
            raise refusal
        super().settle(upto, late=late, dead=dead, **more)
        with self._watched.changing():
            self.noted = upto
            self.dead += dead


@dataclass
class Running:
    """One run of the publisher."""

    publisher: Publisher
    journal: WatchedJournal
    thread: threading.Thread
    doorbell: Doorbell
    died_of: list[BaseException] = field(default_factory=list)


class Bridge(Watched):
    """A journal, and a publisher that can be started and stopped.

    Args:
        folder: Where the journal is.
        url: The broker's, or those of several.
        protocols: In the order in which they are tried.
        settings: What else `PublisherSettings` takes.
    """

    def __init__(self, folder: Path, url: BrokerUrl | tuple[BrokerUrl, ...], *protocols: str, **settings: Any) -> None:
        super().__init__()
        self.path = folder / "journal.db"
        self.settings = PublisherSettings(
            **{  # type: ignore[arg-type]
                "brokers": url if isinstance(url, tuple) else (url,),
                "tls": Tls(),
                "protocols": protocols,
                "client_id": f"bridge-{folder.name}"[:60],
                "keepalive": 30.0,
                "base_topic": "whatsapp",
                "max_age": 300.0,
                "info": {"version": "1.2.3"},
                **settings,
            }
        )
        started = time.monotonic()
        self.clock = Clock(wall=lambda: NOON + time.monotonic() - started)
        self.running: Running | None = None
        SqliteJournal(self.path).create()
        self._appending = SqliteJournal(self.path)
        self._appending.__enter__()
        self._finger = Finger(self.path.with_suffix(".bell"))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self._appending.__exit__()
            self._finger._socket.close()

    def so_far(self) -> Any:
        assert self.running is not None
        journal, died_of = self.running.journal, self.running.died_of
        return {"settled": journal.noted, "refused": journal.refused, "dead": journal.dead, "died of": died_of}

    def wait_for(self, predicate: Callable[[], Any], timeout: float = PATIENCE) -> Any:
        """Wait until the predicate holds; a publisher that died is not waited for."""
        found = super().wait_for(lambda: predicate() or (self.running and self.running.died_of), timeout)
        assert self.running is None or not self.running.died_of, f"the publisher died: {self.running.died_of!r}"
        return found

    def start(self) -> None:
        journal = WatchedJournal(self.path, self)
        doorbell = Doorbell(self.path.with_suffix(".bell"))
        publisher = Publisher(self.settings, journal, doorbell, self.clock)
        ready = threading.Event()

        def run() -> None:
            try:
                with doorbell, journal:
                    ready.set()
                    publisher.run()
            except BaseException as error:
                with self.changing():
                    self.running.died_of.append(error)  # type: ignore[union-attr]

        thread = threading.Thread(target=run, daemon=True, name="publisher")
        self.running = Running(publisher, journal, thread, doorbell)
        thread.start()
        assert ready.wait(PATIENCE)

    def stop(self) -> None:
        """Stop the publisher as the service does; fails if it had died of something."""
        running, self.running = self.running, None
        if running is None:
            return
        running.publisher.stop()
        running.thread.join(PATIENCE)
        assert not running.thread.is_alive(), "the publisher does not stop"
        assert not running.died_of, f"the publisher died: {running.died_of!r}"

    @property
    def publisher(self) -> Publisher:
        assert self.running is not None
        return self.running.publisher

    @property
    def journal(self) -> WatchedJournal:
        assert self.running is not None
        return self.running.journal

    def accept(self, *updates: Update, received: float | None = None) -> int:
        """Store updates as a receiver does, and ring; returns the place of the last."""
        at = self.clock.wall() if received is None else received
        self._appending.append([Callback(tuple(entry(update, at) for update in updates))])
        self._finger.ring()
        return self.newest()

    def newest(self) -> int:
        return int(self._ask("SELECT coalesce(max(seq), 0) FROM updates")[0][0])

    def settled(self) -> int:
        return self._appending.settled()

    def wait_settled(self, upto: int | None = None) -> None:
        """Until the journal knows everything up to this place (all there is now) to be settled."""
        wanted = self.newest() if upto is None else upto
        self.wait_for(lambda: self.settled() >= wanted)

    def wait_dead(self, count: int = 1) -> list[tuple[str, str, bytes]]:
        """Until there are so many dead letters: source, reason, body of each."""
        self.wait_for(lambda: len(self.dead_letters()) >= count)
        return self.dead_letters()

    def dead_letters(self) -> list[tuple[str, str, bytes]]:
        return self._ask("SELECT source, reason, body FROM dead_letters ORDER BY id")

    def late(self) -> list[int]:
        """Places of the clicks that are recorded as late."""
        return [seq for (seq,) in self._ask("SELECT seq FROM updates WHERE late ORDER BY seq")]

    def _ask(self, question: str) -> list[Any]:
        db = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            db.set_busy_timeout(5000)
            return list(db.execute(question))
        finally:
            db.close()
