"""What a round stands on: folders, brokers without memory, and journals that were filled before."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from bridge.journal import Callback
from bridge.journal.sqlite import SqliteJournal
from bridge.model import Kind
from bridge.topics import Entry
from tests.bench.load import name_of
from tests.bench.peers import MeasuredBridge
from tests.bench.writer import by_socket
from tests.torture.harness import Mosquitto

#: Topics that stand on the broker, of a journal with many more updates: what `retain.max_topics` allows by itself.
STANDING = 100_000
#: A message has so many statuses.
STATUSES = ("sent", "delivered", "read")
#: Settings with which a journal may be as large as we like.
LARGE = {"journal.max_size": "20GiB", "retain.max_topics": "10000000"}


@contextlib.contextmanager
def ground(extra: str = "") -> Iterator[tuple[Path, Mosquitto]]:
    """A folder and an empty broker: old retained topics would flood each new subscriber."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    broker = Mosquitto(folder / "broker", extra=extra).start()
    try:
        yield folder, broker
    finally:
        broker.end()
        shutil.rmtree(folder, ignore_errors=True)


class Shelf:
    """Journals that take long to fill, kept for all rounds; made and thrown away by `with`."""

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="bench-journals-"))
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def journal(self, updates: int, standing: int = STANDING) -> tuple[Path, bytes]:
        """A bridge's folder whose journal holds so many updates, all of them settled; and its checkpoint.

        Args:
            updates: How many; each message has three of them.
            standing: How many topics stand on the broker; the others were taken off it.
        """
        folder = self._folder / f"{updates}-{standing}"
        path = MeasuredBridge(folder, None).state / "journal.db"
        is_new = not path.exists()
        if is_new:
            SqliteJournal(path).create()
        with SqliteJournal(path, durable=False) as journal:
            if is_new:
                _fill(journal, updates, standing)
            checkpoint = {"seq": journal.settled(), "journal": journal.identity()}
        return folder, json.dumps(checkpoint).encode()


def remember(broker: Mosquitto, checkpoint: bytes) -> None:
    """Have a broker look as if it had all that a journal put on it."""
    by_socket(broker.port, [("whatsapp/bridge/checkpoint", checkpoint, True)])


def _fill(journal: SqliteJournal, updates: int, standing: int) -> None:
    entries = _entries()

    def append(count: int) -> None:
        while chunk := tuple(itertools.islice(entries, min(5_000, count))):
            journal.append([Callback(chunk)])
            count -= len(chunk)

    append(updates - len(STATUSES))
    journal.settle(updates - len(STATUSES))
    journal.expire_surplus(standing, updates)  # and one for the last message, one for the latest of all
    while gone := journal.clearing(10_000):
        journal.cleared(gone)
    # What was taken off after the checkpoint would be taken off once more.
    append(len(STATUSES))
    journal.settle(updates)


def _entries() -> Iterator[Entry]:
    """As callbacks bring them: the ids in no order, so that indices are used as they are in life."""
    now = time.time()
    for number in itertools.count():
        name = name_of("filled", number // len(STATUSES))
        word = STATUSES[number % len(STATUSES)]
        event_id = hashlib.sha256(f"{name}-{word}".encode()).hexdigest()[:32]
        document = {
            "message_id": name,
            "status": word,
            "timestamp": int(now),
            "received_at": "2026-01-31T12:00:00.123Z",
            "recipient_id": "15550001234",
            "conversation": {"id": "72569257438b471cae074da84bed1b83", "origin": {"type": "business_initiated"}},
            "business_phone": "15550009999",
            "event_id": event_id,
        }
        yield Entry(
            event_id=event_id,
            kind=Kind.STATUS,
            topic=f"{name.replace('=', '%3D')}/status",
            event_topic=f"event/status/{word}",
            rank=number % len(STATUSES) + 1,
            timestamp=int(now),
            received=now,
            document=json.dumps(document, separators=(",", ":")),
        )


__all__ = ["LARGE", "STANDING", "Shelf", "ground", "remember"]
