"""Which receivers take their turns. One that ends is started anew by granian; one that hangs has to be ended for that.

A receiver's event loop leaves a beat in the shared memory every other second (`bridge.meter`). However many requests
there are, and however slow the disk is, it comes round; so one whose beats stop does not come back.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bridge.meter import Meters

#: Seconds without a beat after which a receiver looks ill, and after which it is ended. granian gives up when a new one
#: ends within 5.5 seconds, which this is well beyond.
LATE, HANGS = 10.0, 20.0
#: Seconds that a new one may take to its first beat: a Raspberry Pi with a slow card needs ten of them.
STARTS = 120.0


class Pulse:
    """Looks after the beats.

    Args:
        meters: Where they stand.
        pids: The process ids of the receivers that there should be.
        now: Seconds that never jump.
    """

    def __init__(
        self, meters: Meters, pids: Callable[[], list[int]], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._meters = meters
        self._pids = pids
        self._now = now
        #: By process id: its last beat, and for how many seconds of ours it has been the last.
        self._waited: dict[int, tuple[float, float]] = {}
        self._given_up: set[int] = set()

    def trouble(self) -> str | None:
        """How many receivers seem to hang, in words; None: none does."""
        pids, beats, now = self._pids(), self._meters.beats(), self._now()
        late = sum(now - beats.get(pid, now) > LATE for pid in pids)
        if not late:
            return None
        if len(pids) == 1:
            return "the receiver hangs; it is ended and started anew"
        return f"{late} of {len(pids)} receivers hang; each is ended and started anew"

    def look(self, seconds: float) -> int | None:
        """The process id of a receiver that hangs and is to be ended, each only once; None: all is well.

        Only time counts in which this process itself was awake: when the whole machine stood still, nobody is to blame.
        One at a time, as granian may miss one of two that end in the same instant.

        Args:
            seconds: Since the last look.
        """
        beats = self._meters.beats()
        waited: dict[int, tuple[float, float]] = {}
        for pid in self._pids():
            beat = beats.get(pid, 0.0)
            last, since = self._waited.get(pid, (beat, -seconds))
            waited[pid] = beat, since + seconds if beat == last else 0.0
        self._waited = waited
        self._given_up.intersection_update(waited)
        for pid, (beat, since) in waited.items():
            if since >= (HANGS if beat else STARTS) and pid not in self._given_up:
                self._given_up.add(pid)
                return pid
        return None
