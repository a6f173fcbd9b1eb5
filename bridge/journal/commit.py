"""Group commit: the requests that wait at one moment share one commit, and so one fsync.

Promise kept here (numbers as in docs/how-it-works.md):
  1. Stored before answered: `append` returns when the commit that holds its callback has returned.

One raw lock a request is all that is handed over: Python's interpreter lock is what a busy receiver fights over, and
an Event or a Future costs several turns of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

from bridge.journal import BrokenStorageError, Callback, Journal, NotStoredError, Outcome

#: More than this many updates are not stored in one commit, so that the first does not wait for the last.
MAX_UPDATES = 4_000


class _Request:
    __slots__ = ("callback", "done", "result")

    def __init__(self, callback: Callback) -> None:
        self.callback = callback
        self.result: Outcome | Exception | None = None
        self.done = threading.Lock()
        self.done.acquire()


class GroupCommit:
    """Hands callbacks of many threads to one that stores them.

    Args:
        journal: Opened by and for the thread that calls `run`.
        stored: Called after each commit that held updates, e.g. to wake the publisher.
    """

    def __init__(self, journal: Journal, stored: Callable[[], None]) -> None:
        self._journal = journal
        self._stored = stored
        self._waiting: SimpleQueue[_Request | None] = SimpleQueue()

    def append(self, callback: Callback, patience: float) -> Outcome:
        """Store a callback; it is on disk when this returns.

        Args:
            callback: What to store.
            patience: Seconds to wait at most.

        Raises:
            NotStoredError: It was not stored, or not in time (then it may be stored a little later; the sender's next
                try is a duplicate).
        """
        request = _Request(callback)
        self._waiting.put(request)
        if not request.done.acquire(timeout=patience):
            raise NotStoredError("the disk is too slow")
        if isinstance(request.result, Outcome):
            return request.result
        raise request.result or NotStoredError("the receiver is stopping")

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
        try:
            outcomes = self._journal.append([request.callback for request in requests])
            for request, outcome in zip(requests, outcomes, strict=True):
                request.result = outcome
        except Exception as error:  # whatever it is, those who wait are told
            failure = error
            for request in requests:
                request.result = error
        for request in requests:
            request.done.release()
        if failure is None:
            if any(request.callback.entries for request in requests):
                self._stored()
        elif isinstance(failure, BrokenStorageError) or not isinstance(failure, NotStoredError):
            raise failure
