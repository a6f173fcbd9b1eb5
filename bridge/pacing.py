"""A queue for each topic whose messages must not follow each other too closely, or have to wait for something. Pure.

The order on a topic is the order in which its messages came, whatever waits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Pacer(Generic[T]):
    """Queues by topic.

    Args:
        least: Seconds between two messages of a topic, however many wait.
        most: Seconds between them where few wait; more, and they come closer, so that what waits takes a second.
    """

    def __init__(self, least: float, most: float) -> None:
        self._least = least
        self._most = most
        self._queues: dict[str, deque[tuple[T, Callable[[], float]]]] = {}
        self._sent: dict[str, float] = {}
        self._count = 0

    def add(self, topic: str, item: T, not_before: Callable[[], float]) -> None:
        """Queue a message.

        Args:
            topic: Its topic.
            item: The message.
            not_before: Tells each time it is asked when the message may go; infinity: not yet known.
        """
        self._queues.setdefault(topic, deque()).append((item, not_before))
        self._count += 1

    def take(self, now: float) -> T | None:
        """The next message that may go now, or None."""
        for topic, queue in self._queues.items():
            if self._due(topic, queue) <= now:
                item, _ = queue.popleft()
                self._count -= 1
                self._sent[topic] = now
                if not queue:
                    del self._queues[topic]
                return item
        if not self._queues:
            # A gap that has passed need not be remembered.
            self._sent = {topic: at for topic, at in self._sent.items() if at + self._most > now}
        return None

    def due(self) -> float:
        """When the next message may go; infinity if none can tell."""
        return min((self._due(topic, queue) for topic, queue in self._queues.items()), default=math.inf)

    def waiting(self, topic: str) -> int:
        """How many messages of a topic wait."""
        return len(self._queues.get(topic, ()))

    def clear(self) -> None:
        self._queues.clear()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def _due(self, topic: str, queue: deque[tuple[T, Callable[[], float]]]) -> float:
        gap = max(self._least, min(self._most, 1.0 / len(queue)))
        return max(queue[0][1](), self._sent.get(topic, -math.inf) + gap)
