"""What receivers count, in memory that they share with the main process: callbacks, answers, and how long they took.

Beside it stands when the receiver last took a turn.

A receiver is another process, and may be killed at any moment. Each has a row of numbers of its own in a piece of
shared memory, so counting is an addition: no lock between processes, no file, nothing to clean up, and nothing that a
full disk could hurt. A receiver that takes the place of a dead one goes on with its row, so no number ever falls.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from bisect import bisect_left
from dataclasses import dataclass, field
from multiprocessing.reduction import DupFd
from typing import Any

from bridge.journal import Outcome

#: Answers that are told apart; another one counts as 0.
CODES = (200, 400, 401, 403, 404, 405, 408, 411, 413, 415, 429, 500, 503, 0)
#: What may become of an entry of a callback: of which kind it was, and the outcome.
ENTRIES = (
    ("status", "stored"),
    ("status", "duplicate"),
    ("button", "stored"),
    ("button", "duplicate"),
    ("other", "ignored"),
    ("unknown", "dead"),
    ("button", "refused"),
)
#: Whose requests are told apart where they were too many: senders', by `webhook.rate_limit`, and those of all others.
LIMITS = ("sender", "stranger")
#: Seconds from a request's head to its answer; one more bucket is for what took longer.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

#: Of receivers; the first: as the settings say.
LOG_LEVELS = (None, "debug", "info", "warning", "error")

_CODE = {code: place for place, code in enumerate(CODES)}
_ENTRIES_AT = len(CODES)
_SECONDS_AT = _ENTRIES_AT + len(ENTRIES)
_SUM_AT = _SECONDS_AT + len(SECONDS) + 1
_LAST_AT = _SUM_AT + 1
_LIMITS_AT = _LAST_AT + 1
_PID_AT = _LIMITS_AT + len(LIMITS)
_BEAT_AT = _PID_AT + 1
_ROW = _BEAT_AT + 1
#: The shared memory begins with numbers that the main process writes: until when somebody watches, and the place of
#: the log level in `LOG_LEVELS`.
_HEAD = 2
#: Rows beyond one for each receiver: for a new one that starts while the old one still ends.
_SPARE = 4


@dataclass(frozen=True, slots=True)
class Counted:
    """All that receivers have counted since the start.

    Attributes:
        answers: By status code, in the order of `CODES`.
        entries: By kind and outcome, in the order of `ENTRIES`.
        buckets: Answers 200 by how long they took: in each of `SECONDS`, and beyond.
        seconds: The sum of those times.
        last: When a callback was last answered 200, in epoch seconds; 0.0: none was.
        limited: Requests that were one too many, in the order of `LIMITS`.
    """

    answers: dict[int, int] = field(default_factory=dict)
    entries: dict[tuple[str, str], int] = field(default_factory=dict)
    buckets: tuple[int, ...] = ()
    seconds: float = 0.0
    last: float = 0.0
    limited: dict[str, int] = field(default_factory=dict)


class Meters:
    """The shared memory: made in the main process, handed to each receiver as it is started.

    Args:
        receivers: How many there are at once.
        handle: Of shared memory that another process made; None makes it.
    """

    def __init__(self, receivers: int, handle: int | None = None) -> None:
        self._rows = receivers + _SPARE
        size = 8 * (_HEAD + self._rows * _ROW)
        if handle is None:
            handle = os.memfd_create("whatsapp2mqtt")
            os.ftruncate(handle, size)
        self._handle = handle
        self._cells: memoryview[float] = memoryview(mmap.mmap(handle, size)).cast("d")

    def __reduce__(self) -> tuple[Any, ...]:
        """Only for a process that is being started: it gets the same memory."""
        return _handed_over, (self._rows - _SPARE, DupFd(self._handle))

    def claim(self) -> Meter:
        """A row for this process, which nobody else alive writes."""
        for row in range(self._rows):
            try:
                # Held until this process ends, however it ends.
                fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, row)
            except OSError:
                continue
            start = _HEAD + row * _ROW
            meter = Meter(self._cells[start : start + _ROW], self._cells[:_HEAD])
            meter.beat()
            return meter
        return Meter()  # never seen; counting is not worth a receiver

    def read(self) -> Counted:
        """What all receivers have counted together."""
        rows = [self._cells[at : at + _ROW].tolist() for at in range(_HEAD, _HEAD + self._rows * _ROW, _ROW)]
        total = [sum(column) for column in zip(*rows, strict=True)]
        return Counted(
            answers={code: int(total[place]) for code, place in _CODE.items()},
            entries={what: int(total[_ENTRIES_AT + place]) for place, what in enumerate(ENTRIES)},
            buckets=tuple(int(count) for count in total[_SECONDS_AT:_SUM_AT]),
            seconds=total[_SUM_AT],
            last=max(row[_LAST_AT] for row in rows),
            limited={who: int(total[_LIMITS_AT + place]) for place, who in enumerate(LIMITS)},
        )

    def beats(self) -> dict[int, float]:
        """When each receiver last took a turn (seconds that never jump), by its process id; also those of dead ones."""
        rows = [self._cells[at : at + _ROW] for at in range(_HEAD, _HEAD + self._rows * _ROW, _ROW)]
        return {int(row[_PID_AT]): row[_BEAT_AT] for row in rows if row[_PID_AT]}

    def watch(self, until: float) -> None:
        """Have receivers also show what they get, up to this time (seconds since boot)."""
        self._cells[0] = until

    def set_log_level(self, level: str) -> None:
        """Have receivers say more or less; they look when SIGUSR1 reaches them, and when they start."""
        self._cells[1] = float(LOG_LEVELS.index(level))


def _handed_over(receivers: int, handle: Any) -> Meters:
    return Meters(receivers, handle.detach())


def _alone(size: int) -> memoryview[float]:
    return memoryview(bytearray(8 * size)).cast("d")


class Meter:
    """One receiver's row, written by one thread.

    Args:
        row: Where it counts; by itself memory of its own.
        head: What the main process writes.
    """

    def __init__(self, row: memoryview[float] | None = None, head: memoryview[float] | None = None) -> None:
        self._row: memoryview[float] = row if row is not None else _alone(_ROW)
        self._head: memoryview[float] = head if head is not None else _alone(_HEAD)

    def answered(self, code: int, seconds: float, now: float) -> None:
        """Count an answer.

        Args:
            code: Its status code.
            seconds: How long it took.
            now: Epoch seconds.
        """
        row = self._row
        row[_CODE.get(code, len(CODES) - 1)] += 1.0
        if code == 200:
            row[_SECONDS_AT + bisect_left(SECONDS, seconds)] += 1.0
            row[_SUM_AT] += seconds
            row[_LAST_AT] = now

    def counted(self, clicks: int, outcome: Outcome, *, ignored: int, dead: int, refused: int = 0) -> None:
        """Count the entries of a callback.

        Args:
            clicks: How many of those that could be stored are clicks; the others are statuses.
            outcome: What became of them.
            ignored: How many were left out.
            dead: How many were not understood.
            refused: How many are clicks that may not fire.
        """
        stored_clicks = outcome.stored_clicks
        if stored_clicks is None:
            stored_clicks = clicks if outcome.stored else 0
        stored = outcome.stored - stored_clicks
        duplicate_clicks = clicks - stored_clicks
        # In the order of `ENTRIES`.
        counts = (stored, outcome.duplicate - duplicate_clicks, stored_clicks, duplicate_clicks, ignored, dead, refused)
        for place, count in enumerate(counts, _ENTRIES_AT):
            if count:
                self._row[place] += count

    def beat(self) -> None:
        """Note that this process takes its turns."""
        self._row[_BEAT_AT] = time.monotonic()
        self._row[_PID_AT] = os.getpid()

    def limited(self, who: str) -> None:
        """Count a request that was one too many, of one of `LIMITS`."""
        self._row[_LIMITS_AT + LIMITS.index(who)] += 1.0

    def is_watched(self, uptime: float) -> bool:
        """Whether somebody wants to see what comes.

        Args:
            uptime: Seconds since boot.
        """
        return self._head[0] > uptime

    def log_level(self) -> str | None:
        """How much to say; None: what the settings say."""
        return LOG_LEVELS[int(self._head[1])]
