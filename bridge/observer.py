"""What the publisher did, for whoever looks: counts, times, and the ways of the latest updates.

The publisher's thread writes, others read; each note is an append or an addition, so it costs next to nothing when
nobody looks. No text from outside is kept but topics, and those are bounded.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass

#: What a publication is for, by the words that stand in metrics.
PURPOSES = ("event", "state", "last", "feed", "bridge", "restore", "clear", "discovery")
#: Seconds from storing an update to the last PUBACK it waits for; one more bucket is for what took longer.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
#: So many publications are remembered.
REMEMBERED = 2_000


@dataclass(frozen=True, slots=True)
class Published:
    """A publication of an update that is over.

    Attributes:
        seq: The update's place.
        topic: Its full topic.
        sent, acknowledged: Epoch seconds.
        trouble: Why the broker did not take it, or None.
    """

    seq: int
    topic: str
    retain: bool
    sent: float
    acknowledged: float
    trouble: str | None = None


class Observer:
    """The publisher's notebook."""

    def __init__(self) -> None:
        self.acknowledged = dict.fromkeys(PURPOSES, 0)
        self.refused = dict.fromkeys(PURPOSES, 0)
        self.buckets = {kind: [0] * (len(SECONDS) + 1) for kind in ("status", "button")}
        self.seconds = dict.fromkeys(self.buckets, 0.0)
        self.late = 0
        self.connections = 0
        self.protocol = ""
        self.connected_at: float | None = None  # epoch seconds
        self.home_assistant_at: float | None = None  # when it last said that it is there
        # As `Published`, but with times of the monotonic clock: made into one when somebody looks.
        self._published: deque[tuple[int, str, bool, float, float, str | None]] = deque(maxlen=REMEMBERED)

    def taken(self, purpose: str, seq: int | None, topic: str, sent: float, *, retain: bool) -> None:
        """The broker acknowledged a publication.

        Args:
            purpose: One of `PURPOSES`.
            seq: The update's place; None for what is not an update's.
            topic: Its full topic.
            sent: When it was sent, on the monotonic clock.
            retain: Whether it is retained.
        """
        self.acknowledged[purpose] += 1
        if seq is not None:
            self._note(seq, topic, sent, retain=retain)

    def given_up(self, purpose: str, seq: int | None, topic: str, sent: float, why: str, *, retain: bool) -> None:
        """The broker does not take a publication, and never will; the rest as in `taken`."""
        self.refused[purpose] += 1
        if seq is not None:
            self._note(seq, topic, sent, why, retain=retain)

    def finished(self, kind: str, seconds: float) -> None:
        """Everything an update waited for was acknowledged, so long after it was stored."""
        self.buckets[kind][bisect_left(SECONDS, seconds)] += 1
        self.seconds[kind] += max(0.0, seconds)

    def connected(self, protocol: str) -> None:
        """Updates flow to the broker."""
        self.connections += 1
        self.protocol = protocol
        self.connected_at = time.time()

    def heard_home_assistant(self) -> None:
        """Home Assistant said that it is there."""
        self.home_assistant_at = time.time()

    def published(self) -> list[Published]:
        """The latest publications of updates, oldest first; from any thread."""
        ahead = time.time() - time.monotonic()
        return [
            Published(seq, topic, retain, sent + ahead, acknowledged + ahead, trouble)
            for seq, topic, retain, sent, acknowledged, trouble in list(self._published)
        ]

    def _note(self, seq: int, topic: str, sent: float, trouble: str | None = None, *, retain: bool) -> None:
        now = time.monotonic()
        # What was never sent (it is too large) counts as sent now.
        self._published.append((seq, topic, retain, sent or now, now, trouble))


class SharedObserver(Observer):
    """The notebook of several publishers, each a thread."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def taken(self, purpose: str, seq: int | None, topic: str, sent: float, *, retain: bool) -> None:
        with self._lock:
            super().taken(purpose, seq, topic, sent, retain=retain)

    def given_up(self, purpose: str, seq: int | None, topic: str, sent: float, why: str, *, retain: bool) -> None:
        with self._lock:
            super().given_up(purpose, seq, topic, sent, why, retain=retain)

    def finished(self, kind: str, seconds: float) -> None:
        with self._lock:
            super().finished(kind, seconds)

    def connected(self, protocol: str) -> None:
        with self._lock:
            super().connected(protocol)
