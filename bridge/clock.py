"""What time it is, how long ago something was, and whether the wall clock can be believed.

A Raspberry Pi has no clock of its own: it starts with yesterday's time, and jumps when the network tells it. The
time since boot never jumps, so ages are measured by it wherever possible.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

#: Before this, a clock is certainly wrong: this program did not exist (2026-01-01T00:00:00Z).
FIRST_RELEASE = 1_767_225_600
#: A wall clock that gains or loses this many seconds against the time since boot was set, not corrected.
JUMP = 30.0
#: A callback that came with a timestamp no further away than this many seconds proves the wall clock.
PROOF = 60.0


def uptime() -> float:
    """Seconds since boot, suspension included; no clock change moves it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """What tells this boot from another; empty where the kernel does not say (then no boot is like another)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


class Clock:
    """The wall clock and the time since boot, watched against each other.

    Args:
        wall: Epoch seconds.
        uptime: Seconds since boot.
    """

    def __init__(self, wall: Callable[[], float] = time.time, uptime: Callable[[], float] = uptime) -> None:
        self.wall = wall
        self.uptime = uptime
        self._offset = wall() - uptime()
        self._trusted = wall() >= FIRST_RELEASE

    def is_trusted(self) -> bool:
        """Whether the wall clock can be believed: not once it was set, until a callback proves it right."""
        offset = self.wall() - self.uptime()
        if abs(offset - self._offset) > JUMP:
            self._trusted = False
        self._offset = offset
        return self._trusted

    def observe(self, *, timestamp: int | None, uptime: float | None) -> None:
        """Compare with WhatsApp's clock: an update that just came and says now proves ours.

        Args:
            timestamp: The update's own, in epoch seconds.
            uptime: Of its receipt, in seconds since boot; None if in an earlier boot.
        """
        if self.is_trusted() or timestamp is None or uptime is None:
            return
        if self.uptime() - uptime < PROOF and abs(self.wall() - timestamp) < PROOF:
            self._trusted = True

    def age(self, *, timestamp: int | None, received: float, uptime: float | None) -> float:
        """Seconds since the update happened, as far as can be known.

        By its receipt on the clock since boot, and by its own timestamp if the wall clock is to be trusted,
        whichever says more.

        Args:
            timestamp: The update's own, in epoch seconds, or None.
            received: Of its receipt, in epoch seconds.
            uptime: Of its receipt, in seconds since boot; None if in an earlier boot.
        """
        # What was received before this boot is no younger than that.
        age = max(self.wall() - received, self.uptime()) if uptime is None else self.uptime() - uptime
        if timestamp is not None and self.is_trusted():
            age = max(age, self.wall() - timestamp)
        return age
