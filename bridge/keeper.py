"""Expiry of retained topics, pruning, bounds, and the health report: a thread of the main process.

It only marks what is to be taken off the broker; the publisher, which owns the connection, does it.

Promises kept here (numbers as in docs/how-it-works.md):
  6. What it put on the broker it can take away: a topic whose time is over is marked, and stays marked until the
     broker has acknowledged that it is gone.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson
import structlog

from bridge import homeassistant
from bridge.clock import Clock
from bridge.config import Journal as JournalSettings
from bridge.config import Retain
from bridge.journal import BrokenStorageError, Household, NotStoredError, Statistics, Tally, UnreachableError, Usage
from bridge.journal.care import ballast, drop_old_versions
from bridge.journal.sqlite import RESERVE
from bridge.model import Kind, iso_utc

log = structlog.get_logger()

#: Seconds between two looks at the disk and the health, and between two rounds of expiry and pruning at most.
LOOK_EVERY = 1.0
ROUND_EVERY = 60.0
#: Seconds between two reports that differ in counts alone.
COUNTS_EVERY = 5.0
#: Seconds between two looks while room is being made in a full journal.
HURRY = 0.1
#: Rows touched in one transaction: receivers wait meanwhile.
SLICE = 500
#: While so many topics wait to be cleared, no more are marked to make room.
CLEARING = 5_000
#: A file with less room than this share of `journal.max_size`, or than so many bytes, is pruned whatever its age.
ROOM_SHARE = 0.1
ROOM = 4 * 2**20
#: Bytes of write-ahead log after which it is brought into the file from here.
WAL_HIGH = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Report:
    """What `bridge/health` says."""

    payload: bytes
    #: Changes worth publishing before the minute is over; not each count.
    essence: tuple[object, ...]
    #: Changes worth publishing within `COUNTS_EVERY`.
    counts: tuple[object, ...]


class Keeper:
    """Keeps house; `run` is its thread.

    Args:
        retain, limits: The settings.
        journal: Opened by and for the thread that calls `run`.
        path: The journal's file; None: it is in a database, whose disk is not ours to look after.
        clock: Wall clock and time since boot.
        is_connected: Whether the publisher reaches the broker.
        announce: Hands a health report to the publisher.
        mark_made: Called when topics wait to be cleared.
        alarms: What the start had to say.
        leads: Whether the house is ours to keep: of several bridges on one journal, one keeps it.
        members: Who these are, by name; empty: it is alone.
    """

    def __init__(
        self,
        retain: Retain,
        limits: JournalSettings,
        journal: Household,
        path: Path | None,
        clock: Clock,
        *,
        is_connected: Callable[[], bool],
        announce: Callable[[bytes], None],
        mark_made: Callable[[], None],
        alarms: tuple[str, ...] = (),
        leads: Callable[[], bool] = lambda: True,
        members: Callable[[], tuple[str, ...]] = lambda: (),
    ) -> None:
        self._leads = leads
        self._members = members
        self._lifetimes = {Kind.STATUS: retain.status, Kind.BUTTON: retain.button}
        self._max_topics = retain.max_topics
        self._limits = limits
        self._journal = journal
        self._path = path
        self._clock = clock
        self._is_connected = is_connected
        self._announce = announce
        self._mark_made = mark_made
        self._alarms = alarms
        self._ballast = ballast(path) if path is not None else None
        self._full = limits.max_size - max(int(limits.max_size * ROOM_SHARE), ROOM)
        self._hurries = False
        self._stopping = threading.Event()
        self._started = clock.uptime()
        self._next_round = 0.0
        self._started_at = clock.wall()
        self._reported: tuple[object, ...] | None = None
        self._counted: tuple[object, ...] | None = None
        self._reported_at = 0.0
        self._trouble = ""
        self._tally = Tally()
        self._measured = Statistics(0, 0.0, 0, 0), Usage(0, 0, 0)
        self.report = b""  # the newest health report, also between those that are published

    def run(self) -> None:
        """Keep house until `stop`."""
        while True:
            busy = self.step()
            if self._stopping.wait(0 if busy else HURRY if self._hurries else LOOK_EVERY):
                return

    def stop(self) -> None:
        """Let `run` return, from any thread."""
        self._stopping.set()

    def step(self) -> bool:
        """One look, and one slice of each work that is due; whether there is more to do at once."""
        busy = False
        if not self._leads():
            self._trouble, self._reported = "", None
            self.report = self._health().payload
            return False
        try:
            self._look_at_disk()
            busy = self._make_room()
            if self._clock.uptime() >= self._next_round:
                has_more = self._round()
                if not has_more:
                    self._next_round = self._clock.uptime() + self._pause()
                busy |= has_more
            self._trouble = ""
        except BrokenStorageError:
            raise
        except NotStoredError as error:
            if self._trouble != str(error):
                log.warning("the journal cannot be kept in order; it is tried again", why=str(error))
            self._trouble = str(error)
        self._report()
        return busy

    def _pause(self) -> float:
        """Seconds to the next round: short lifetimes are looked after more often."""
        shortest = min((seconds for seconds in self._lifetimes.values() if seconds), default=ROUND_EVERY * 10)
        return min(ROUND_EVERY, max(LOOK_EVERY, shortest / 10))

    # --- what goes -----------------------------------------------------------------------------------------------

    def _round(self) -> bool:
        """One slice of everything that expires; whether one of them was full."""
        journal = self._journal
        elapsed = journal.tick(self._clock)
        marked = 0
        most = 0
        for kind, lifetime in self._lifetimes.items():
            # 0: never retained from now on; what still stands from before goes.
            upto = journal.stored_before(elapsed - lifetime) if lifetime else journal.settled()
            count = journal.expire(kind, upto, SLICE)
            marked += count
            most = max(most, count)
        count = journal.expire_surplus(self._max_topics, SLICE)
        marked += count
        if marked:
            self._mark_made()
        pruned = journal.prune(journal.stored_before(elapsed - self._limits.keep), SLICE)
        if journal.usage().wal > WAL_HIGH:
            journal.checkpoint()
        if pruned:
            log.debug("pruned", updates=pruned)
        journal.bound_dead_letters(
            most=self._limits.dead_letters_max,
            received_before=self._clock.wall() - self._limits.dead_letters_keep if self._clock.is_trusted() else 0.0,
        )
        if self._clock.is_trusted() and self._path is not None:
            drop_old_versions(self._path, self._clock.wall() - self._limits.keep)
        longest = max(self._limits.keep, *self._lifetimes.values())
        journal.forget_ticks(elapsed - longest)
        return max(most, count, pruned) >= SLICE

    def _make_room(self) -> bool:
        """Prune a journal that is nearly as large as it may be; whether there is more to do at once.

        First goes what was published, whatever its age. Where standing topics hold nearly all of it, those that stood
        longest are taken off the broker: nothing that is answered for is lost by that, and refusing callbacks would.
        """
        journal = self._journal
        self._hurries = False
        if journal.usage().used <= self._full:
            return False
        pruned = journal.prune(journal.settled(), SLICE)
        marked = 0
        if pruned < SLICE and self._is_connected() and len(journal.clearing(CLEARING)) < CLEARING:
            standing = journal.statistics(self._clock.wall()).retained_topics
            marked = journal.expire_surplus(max(0, standing - SLICE), SLICE)
            if marked:
                self._mark_made()
        self._hurries = bool(pruned or marked)
        return pruned >= SLICE

    def _look_at_disk(self) -> None:
        """Hold room while there is plenty; give it up, and prune, when the disk is full."""
        free = self._free()
        if self._ballast is None or free is None:
            return
        if free >= RESERVE:
            self._ballast.hold()
            return
        if self._ballast.held:
            log.error("the disk is full; the ballast is given up so that old rows can be deleted", free_bytes=free)
            self._ballast.give_up()
        self._journal.prune(self._journal.settled(), SLICE)
        self._journal.checkpoint()

    def _free(self) -> int | None:
        """Bytes on the journal's disk; None: it is not ours to look after."""
        if self._path is None:
            return None
        disk = os.statvfs(self._path.parent)
        return disk.f_bavail * disk.f_frsize

    # --- health --------------------------------------------------------------------------------------------------

    def _report(self) -> None:
        """Hand over a report each minute, and at once when something essential changed."""
        now = time.monotonic()
        report = self._health()
        self.report = report.payload
        waited = now - self._reported_at
        if (
            report.essence != self._reported
            or waited >= ROUND_EVERY
            or (waited >= COUNTS_EVERY and report.counts != self._counted)
        ):
            self._announce(report.payload)
            self._reported, self._counted, self._reported_at = report.essence, report.counts, now

    def _health(self) -> Report:
        wall = self._clock.wall()
        statistics, usage = self._measure(wall)
        tally = self._tallied(wall)
        failed = homeassistant.failure(orjson.loads(tally.failed)) if tally.failed else None
        free = self._free()
        connected = self._is_connected()
        alarms = [*self._alarms, *([self._trouble] if self._trouble else [])]
        if free is not None and free < RESERVE:
            alarms.append("the disk is full")
        if usage.used > self._full and not self._hurries:
            alarms.append("the journal is nearly as large as journal.max_size allows, and holds nothing that may go")
        payload = orjson.dumps(
            {
                "ok": connected and not alarms,
                "connected": connected,
                "backlog": statistics.backlog,
                "oldest_age": round(statistics.oldest_age, 1),
                "dead_letters": statistics.dead_letters,
                "retained_topics": statistics.retained_topics,
                "messages": homeassistant.messages(tally.today, tally.total),
                "last_failure": failed,
                "journal_bytes": usage.file,
                "wal_bytes": usage.wal,
                "alarms": alarms,
                **({"replicas": list(self._members())} if self._members() else {}),
                "clock_trusted": self._clock.is_trusted(),
                "started_at": iso_utc(self._started_at),
                "uptime": round(self._clock.uptime() - self._started),
                "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "at": iso_utc(wall),
            }
        )
        essence = (connected, tuple(alarms), statistics.dead_letters, tally.failed)
        return Report(payload, essence, (tally, statistics.backlog))

    def _measure(self, wall: float) -> tuple[Statistics, Usage]:
        """The counts and sizes; while the journal cannot be reached, those before."""
        try:
            self._measured = self._journal.statistics(wall), self._journal.usage()
        except UnreachableError as error:
            self._trouble = str(error)
        return self._measured

    def _tallied(self, wall: float) -> Tally:
        """The counts of statuses; while the journal cannot take them down, those before."""
        try:
            self._tally = self._journal.tally(time.strftime("%Y-%m-%d", time.localtime(wall)))
        except BrokenStorageError:
            raise
        except NotStoredError as error:
            self._trouble = str(error)
        return self._tally
