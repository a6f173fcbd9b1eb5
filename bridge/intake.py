"""Bodies of requests, read within bounds of time and of memory: what is slow or large harms only itself.

A sender that drips, or never ends, is hung up on when its time is over. Of memory, a body takes what of it has come,
not what its head promises: a promise costs a stranger nothing. Where all bodies together would hold too much, the
largest gives way, those of strangers before those of known senders. Callbacks are small, so no number of large bodies
keeps one out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from enum import Enum
from typing import Protocol, Self

from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined]  # not in its list of exports

from bridge.patience import Patience

#: Bytes that the bodies of a receiver may hold together, each from its head to its answer; and so many of the largest.
MOST = 64 * 2**20
MOST_LARGEST = 4
#: Bytes up to which a body is read in one go, as almost every callback is. It counts as a whole from the beginning.
SMALL = 64 * 2**10


class Trouble(Enum):
    """Why a body was not read."""

    SLOW = "slow"
    CROWDED = "crowded"
    CUT_SHORT = "cut short"
    TOO_LARGE = "too large"


class UnreadError(Exception):
    """The body was not read, for this reason."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.value)
        self.trouble = trouble


class Source(Protocol):
    """Where a body comes from (the protocol object of RSGI, a request's)."""

    def __call__(self) -> Awaitable[bytes]:
        """All of it."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]:
        """All of it, as it comes."""
        ...


class Intake:
    """The bodies of one receiver, as far as they are not answered; used by the coroutines of one event loop.

    Args:
        seconds: How long a body may take to come.
        most: Bytes that all of them may hold together.
    """

    def __init__(self, seconds: float, most: int) -> None:
        self.reading: Patience[Place] = Patience(seconds, Place.give_up)
        self.held = 0
        self.most = most

    def place(self, largest: int, *, is_known: bool) -> Place:
        """Room for a body; to be held, by `with`, until its request is answered.

        Args:
            largest: Bytes that it may have.
            is_known: Whether its sender is known without it.
        """
        return Place(self, largest, is_known=is_known)

    def make_room(self) -> None:
        """Give up bodies that are being read until all of them hold no more than they may.

        The one for which there is no room is among them. What was read already, and waits to be stored, stays.
        """
        while self.held > self.most:
            max(self.reading, key=Place.rank).give_up(Trouble.CROWDED)


class Place:
    """Room for one body."""

    __slots__ = ("_intake", "_is_known", "_largest", "_size", "_task", "_trouble")

    def __init__(self, intake: Intake, largest: int, *, is_known: bool) -> None:
        self._intake = intake
        self._largest = largest
        self._is_known = is_known
        self._size = 0
        self._task: asyncio.Task[object] | None = None
        self._trouble: Trouble | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._intake.held -= self._size
        self._size = 0

    async def read(self, source: Source, declared: int | None) -> bytes:
        """The body.

        Args:
            source: Where it comes from.
            declared: Its length, as its head says: the server sees to it that no more comes. None: it comes in chunks.

        Raises:
            UnreadError: It did not come, or not in time, or it is larger than it may be, or there is no room for it.
        """
        self._task = asyncio.current_task()
        self._intake.reading.begin(self)
        try:
            if declared is None or declared > SMALL:
                return await self._collect(source, declared)
            self._grow(declared)
            return await source()
        except asyncio.CancelledError:
            # By `give_up`; nobody else cancels a request.
            raise UnreadError(self._trouble or Trouble.SLOW) from None
        except ProtocolClosed:
            raise UnreadError(Trouble.CUT_SHORT) from None
        finally:
            self._intake.reading.end(self)

    async def _collect(self, source: Source, declared: int | None) -> bytes:
        body = bytearray()
        empty = 0
        async for chunk in source:
            body += chunk
            empty += not chunk
            if len(body) > self._largest:
                raise UnreadError(Trouble.TOO_LARGE)
            self._grow(len(chunk))
        # granian's last chunk is empty. One more is what it makes of bodies that break off, and of trailers.
        if empty > 1 or declared not in (None, len(body)):
            raise UnreadError(Trouble.CUT_SHORT)
        return bytes(body)

    def _grow(self, size: int) -> None:
        """So many bytes more have come."""
        intake = self._intake
        self._size += size
        intake.held += size
        if intake.held > intake.most:
            intake.make_room()
            if self._trouble is not None:
                raise UnreadError(self._trouble)

    def rank(self) -> tuple[bool, int]:
        """Who gives way first has the highest."""
        return not self._is_known, self._size

    def give_up(self, trouble: Trouble = Trouble.SLOW) -> None:
        """Read no further; its room is free at once."""
        self._trouble = trouble
        self._intake.reading.end(self)
        self.__exit__()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
