"""Waits on an event loop that end after a time: all with the same patience, so one timer is enough for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Patience(Generic[T]):
    """Gives up what has waited for too long; used by the coroutines of one event loop.

    A timer for each wait would be most of what a quick one costs. Those that began first are due first.

    Args:
        seconds: How long a wait may take.
        give_up: Called, once, with what has waited for so long.
    """

    def __init__(self, seconds: float, give_up: Callable[[T], object]) -> None:
        self._seconds = seconds
        self._give_up = give_up
        self._due: dict[T, float] = {}  # in the order in which they began
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, what: T) -> None:
        """From now on this waits."""
        loop = asyncio.get_running_loop()
        due = self._due[what] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_at(due, self._look, loop)

    def end(self, what: T) -> None:
        """This waits no longer; also of what was given up."""
        self._due.pop(what, None)

    def __iter__(self) -> Iterator[T]:
        """What waits, the longest first."""
        return iter(self._due)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self._timer = None
        while self._due:
            what, due = next(iter(self._due.items()))
            if due > now:
                self._timer = loop.call_at(due, self._look, loop)
                return
            del self._due[what]
            self._give_up(what)
