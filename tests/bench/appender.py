"""One process that stores as fast as the journal takes it: `appender URL BATCH SECONDS PLACE`, spoken to by lines."""

from __future__ import annotations

import json
import sys
import time

from bridge.config import Database, journal_url
from bridge.journal import Callback, Household
from bridge.journal.postgresql import PostgresqlJournal
from bridge.journal.sqlite import SqliteJournal
from bridge.payload import parse
from bridge.topics import entry
from tests.bench.load import body

#: Updates that are made ready for each second.
READY = 12_000


def journal_of(url: str) -> Household:
    found = journal_url(url)
    if isinstance(found, Database):
        return PostgresqlJournal(found)
    assert found is not None
    return SqliteJournal(found)


def main(url: str, batch: int, seconds: float, place: int) -> None:
    now = time.time()
    callbacks = []
    for number in range(max(1, int(READY * seconds) // batch)):
        _, content = body(f"appender{place}", number * batch, batch)
        callbacks.append([Callback(tuple(entry(update, now) for update in parse(content).updates))])
    with journal_of(url) as journal:
        journal.settled()  # connected
        print("ready", flush=True)
        sys.stdin.readline()
        stored, used = 0, time.process_time()
        began = time.monotonic()
        for group in callbacks:
            stored += journal.append(group)[0].stored
            if time.monotonic() - began >= seconds:
                break
        found = {"stored": stored, "seconds": time.monotonic() - began, "cpu": time.process_time() - used}
        print(json.dumps(found), flush=True)
        sys.stdin.readline()  # the connection is looked at meanwhile


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
