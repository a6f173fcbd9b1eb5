"""What every engine of the journal works out alike: outcomes, the journal's own time, and the tally."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import orjson

from bridge.clock import Clock
from bridge.journal import Callback, Found, Kept, Outcome, Tally
from bridge.model import Kind

#: Why nothing more is taken by a journal that is as large as it may be.
FULL = (
    "the journal is as large as journal.max_size allows, and holds what the broker did not take yet; "
    "see that the broker can be reached, or raise journal.max_size"
)

#: Places that a search looks at in one go: others wait for their turn meanwhile.
AT_ONCE = 10_000
#: Seconds from receipt to disk beyond which the clock was set between the two.
PLAUSIBLE = 60.0
#: Updates that are counted for a chart at most.
COUNTED = 100_000


def outcomes(callbacks: Sequence[Callback], fresh: set[str] | None) -> list[Outcome]:
    """What became of each callback.

    Args:
        callbacks: In the order in which they were stored.
        fresh: The `event_id` of each update that was new; None: all of them were.
    """
    if fresh is None:
        return [Outcome(len(callback.entries), 0) for callback in callbacks]
    left = set(fresh)
    return [_outcome(callback, left) for callback in callbacks]


def _outcome(callback: Callback, fresh: set[str]) -> Outcome:
    stored = clicks = 0
    for entry in callback.entries:
        if entry.event_id in fresh:
            stored += 1
            clicks += entry.kind is Kind.BUTTON
            fresh.discard(entry.event_id)  # the same update again, in this or the next callback, is a duplicate
    duplicate = len(callback.entries) - stored
    return Outcome(stored, duplicate, clicks if stored and duplicate else None)


@dataclass(frozen=True, slots=True)
class Reckoning:
    """The journal's own time, and the clocks when it was last looked at.

    Attributes:
        elapsed: Seconds of the journal's own time.
        boot: Of the machine that looked; empty: none ever did.
        uptime: Seconds since that boot.
        wall: Epoch seconds.
    """

    elapsed: float = 0.0
    boot: str = ""
    uptime: float = 0.0
    wall: float = 0.0

    def advanced(self, clock: Clock, boot: str) -> Reckoning:
        """What it is now.

        It counts the seconds since boot, which no clock change moves; across a restart of the machine, or on another
        machine, the wall clock's, if that can be believed.
        """
        uptime, wall = clock.uptime(), clock.wall()
        if self.boot == boot:
            passed = uptime - self.uptime
        elif self.boot and clock.is_trusted():
            passed = wall - self.wall
        else:
            passed = 0.0
        passed = max(0.0, passed)
        # A wall clock that was set back counts as if it had gone on: set right again during a restart of the
        # machine, it would seem that much more had passed.
        return Reckoning(self.elapsed + passed, boot, uptime, max(wall, self.wall + passed) if self.boot else wall)


def tally_of(kept: str | None) -> Tally:
    """A tally as it was kept, in JSON."""
    if kept is None:
        return Tally()
    found = orjson.loads(kept)
    return Tally(found["upto"], found["day"], found["total"], found["today"], found["failed"])


def search_backwards(
    span: tuple[int, int],
    between: Callable[[int, int], Iterable[Kept]],
    fits: Callable[[Kept], bool],
    *,
    limit: int,
    before: int | None,
    patience: float,
) -> Found:
    """What a search finds from the newest update backwards, in slices and for a bounded time.

    Args:
        span: The places of the oldest and the newest update.
        between: The candidates from one place up to before another, newest first.
        fits: As in `Browsable.search`, like the others.
        limit: So many at most.
        before: The place to go back from; None: the newest.
        patience: Seconds.
    """
    first, last = span
    place = last + 1 if before is None else before
    began = time.monotonic()
    found: list[Kept] = []
    while place > first:
        start = max(first, place - AT_ONCE)
        for one in between(start, place):
            if fits(one):
                found.append(one)
                if len(found) == limit:
                    return Found(tuple(found), one.seq if one.seq > first else None)
        place = start
        if time.monotonic() - began > patience:
            break
    return Found(tuple(found), place if place > first else None)
