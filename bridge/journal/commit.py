"""Group commit: the requests that wait at one moment share one commit, and so one fsync.

Promise kept here (numbers as in docs/how-it-works.md):
  1. Stored before answered: `append` returns when the commit that holds its callback has returned.

Requests are coroutines of one event loop, and a thread stores. What the two hand over is what they fight for Python's
interpreter lock over: a callback is put into a queue, and each commit wakes the loop once, for all that it held.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from time import monotonic, sleep

from bridge.journal import BrokenStorageError, Callback, Journal, NotStoredError, Outcome
from bridge.patience import Patience

#: More than this many updates are not stored in one commit, so that the first does not wait for the last.
MAX_UPDATES = 4_000
#: After a commit that took longer than this many seconds, the next one waits for a tenth of that before it begins, and
#: no longer than the last of these.
SLOW, SHARE, GATHER = 0.005, 0.1, 0.02
#: Seconds a request waits for the disk. Senders give up after about five.
PATIENCE = 4.0


class _Request:
    __slots__ = ("callback", "result", "told")

    def __init__(self, callback: Callback, told: asyncio.Future[Outcome]) -> None:
        self.callback = callback
        self.told = told
        self.result: Outcome | Exception | None = None


class GroupCommit:
    """Hands callbacks of an event loop to the thread that stores them.

    Args:
        journal: Opened by and for the thread that calls `run`.
        stored: Called after each commit that held updates, e.g. to wake the publisher.
        patience: Seconds that an append waits at most.
    """

    def __init__(self, journal: Journal, stored: Callable[[], None], patience: float = PATIENCE) -> None:
        self._journal = journal
        self._stored = stored
        self._waiting: SimpleQueue[_Request | None] = SimpleQueue()
        self._took = 0.0  # seconds, by the last commit
        self._patience: Patience[asyncio.Future[Outcome]] = Patience(patience, _give_up)

    async def append(self, callback: Callback) -> Outcome:
        """Store a callback; it is on disk when this returns.

        Raises:
            NotStoredError: It was not stored, or not in time (then it may be stored a little later; the sender's next
                try is a duplicate).
        """
        told = asyncio.get_running_loop().create_future()
        self._waiting.put(_Request(callback, told))
        self._patience.begin(told)
        try:
            outcome: Outcome = await told
        finally:
            self._patience.end(told)
        return outcome

    def stop(self) -> None:
        """Let `run` return after what waits is stored."""
        self._waiting.put(None)

    def run(self) -> None:
        """Store what comes until `stop`."""
        while self.step():
            pass

    def step(self) -> bool:
        """Wait for a request, and store it with all that wait by then; False once `stop` was called.

        Raises:
            BrokenStorageError: The storage failed. Everyone who waited has been told; nothing more is stored.
        """
        requests: list[_Request] = []
        updates = 0
        request = self._waiting.get()
        if request is not None and self._took > SLOW:
            # On a slow disk, those who were answered just now would else find a commit begun without them, and wait for
            # two: senders would fall into groups that take turns.
            sleep(min(self._took * SHARE, GATHER))
        while request is not None:
            requests.append(request)
            updates += len(request.callback.entries)
            if updates >= MAX_UPDATES or self._waiting.empty():
                break
            request = self._waiting.get()
        if requests:
            self._commit(requests)
        return request is not None

    def _commit(self, requests: list[_Request]) -> None:
        failure: Exception | None = None
        began = monotonic()
        try:
            outcomes = self._journal.append([request.callback for request in requests])
            for request, outcome in zip(requests, outcomes, strict=True):
                request.result = outcome
        except Exception as error:  # whatever it is, those who wait are told
            failure = error
            for request in requests:
                request.result = error
        self._took = monotonic() - began
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
            requests[0].told.get_loop().call_soon_threadsafe(_tell, requests)
        if failure is None:
            if any(request.callback.entries for request in requests):
                self._stored()
        elif isinstance(failure, BrokenStorageError) or not isinstance(failure, NotStoredError):
            raise failure


def _tell(requests: Sequence[_Request]) -> None:
    """Give each its result, on the event loop."""
    for request in requests:
        if request.told.done():
            continue
        if isinstance(request.result, Outcome):
            request.told.set_result(request.result)
        else:
            request.told.set_exception(request.result or NotStoredError("it was left out"))


def _give_up(told: asyncio.Future[Outcome]) -> None:
    if not told.done():
        told.set_exception(NotStoredError("the disk or the database is too slow"))
