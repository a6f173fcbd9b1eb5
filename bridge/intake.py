"""Bodies of requests, read within bounds of time and of memory: what is slow harms only itself.

A sender that drips, or never ends, is hung up on when its time is over. Where all bodies together would hold too much,
the one that has been read for longest gives way: an honest sender needs milliseconds, and is not that one.
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
        most: Bytes that all of them may hold together. What is declared counts from the beginning.
    """

    def __init__(self, seconds: float, most: int) -> None:
        self.reading: Patience[Place] = Patience(seconds, Place.give_up)
        self.held = 0
        self._most = most

    def place(self, size: int) -> Place:
        """Room for a body of at most so many bytes; to be held, by `with`, until its request is answered.

        Raises:
            UnreadError: What was read already, and waits to be stored, takes all there is.
        """
        while self.held + size > self._most:
            slowest = self.reading.oldest
            if slowest is None:
                raise UnreadError(Trouble.CROWDED)
            self.reading.end(slowest)
            slowest.give_up()
        return Place(self, size)


class Place:
    """Room for one body."""

    __slots__ = ("_intake", "_size", "_task")

    def __init__(self, intake: Intake, size: int) -> None:
        self._intake = intake
        self._size = size
        self._task: asyncio.Task[object] | None = None

    def __enter__(self) -> Self:
        self._intake.held += self._size
        return self

    def __exit__(self, *_: object) -> None:
        self._intake.held -= self._size
        self._size = 0

    async def read(self, source: Source, *, is_declared: bool) -> bytes:
        """The body.

        Args:
            source: Where it comes from.
            is_declared: Whether its length was: the server sees to it that no more comes.

        Raises:
            UnreadError: It did not come, or not in time, or it is larger than its room.
        """
        self._task = asyncio.current_task()
        self._intake.reading.begin(self)
        try:
            return await source() if is_declared else await self._collect(source)
        except asyncio.CancelledError:
            # By `give_up`; nobody else cancels a request.
            raise UnreadError(Trouble.SLOW) from None
        except ProtocolClosed:
            raise UnreadError(Trouble.CUT_SHORT) from None
        finally:
            self._intake.reading.end(self)

    async def _collect(self, source: Source) -> bytes:
        body = bytearray()
        empty = 0
        async for chunk in source:
            body += chunk
            empty += not chunk
            if len(body) > self._size:
                raise UnreadError(Trouble.TOO_LARGE)
        # granian's last chunk is empty. One more is what it makes of chunks that break off, and of trailers.
        if empty > 1:
            raise UnreadError(Trouble.CUT_SHORT)
        return bytes(body)

    def give_up(self) -> None:
        """Read no further; its room is free at once."""
        if self._task is not None:
            self._task.cancel()
        self.__exit__()
