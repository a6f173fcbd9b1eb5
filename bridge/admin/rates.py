"""Updates per minute in the last hour, for the chart: counted once, and then only what is new."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from bridge.journal import Browsable

MINUTES = 60


@dataclass(frozen=True, slots=True)
class Series:
    """A point for each minute, oldest first; None: not known.

    Attributes:
        minutes: Their beginnings, in epoch seconds.
    """

    minutes: list[int]
    statuses: list[int | None]
    clicks: list[int | None]

    @property
    def total(self) -> int:
        return sum(filter(None, (*self.statuses, *self.clicks)))

    @property
    def most(self) -> int:
        both = zip(self.statuses, self.clicks, strict=True)
        return max(((statuses or 0) + (clicks or 0) for statuses, clicks in both), default=0)


class Rates:
    """Counts what the journal holds; used by several threads.

    Args:
        journal: Where it looks.
        now: Epoch seconds.
    """

    def __init__(self, journal: Browsable, now: Callable[[], float] = time.time) -> None:
        self._journal = journal
        self._now = now
        self._lock = threading.Lock()
        self._counts: dict[tuple[int, str], int] = {}
        self._upto = 0
        self._known = 0  # the first minute of which all is counted

    def series(self) -> Series:
        """The last hour, this minute included."""
        with self._lock:
            last = int(self._now() // 60)
            first = last - MINUTES + 1
            counts, self._upto, is_all = self._journal.per_minute(first * 60.0, self._upto)
            if not is_all:  # too many came since the last look: what was counted before has a gap behind it
                self._counts.clear()
                self._known = min((minute for minute, _ in counts), default=last) + 1
            for key, count in counts.items():
                self._counts[key] = self._counts.get(key, 0) + count
            self._counts = {key: count for key, count in self._counts.items() if key[0] >= first}
            minutes = range(first, last + 1)

            def line(kind: str) -> list[int | None]:
                return [self._counts.get((one, kind), 0) if one >= self._known else None for one in minutes]

            return Series([one * 60 for one in minutes], line("status"), line("button"))
