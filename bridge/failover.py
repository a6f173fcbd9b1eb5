"""Which of several brokers is tried next, when, and in which version of MQTT.

One broker alone is the same with nothing to choose. Chance is in each pause: when a broker dies, all that were
connected to it look for another one, and must not come at the same instant.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bridge.config import BrokerUrl

#: Seconds between two tries to reach a broker, doubled from the first to the second; and when it said no.
RETRY_FIRST, RETRY_MOST, RETRY_REFUSED = 0.25, 5.0, 10.0
#: Seconds over which those who lost a broker spread before they come to the next one.
SPREAD = 0.5


@dataclass(slots=True, eq=False)
class _Node:
    """One of the brokers.

    Attributes:
        protocol: Index of the version to try.
        proven: Index of the version that worked last, or None.
        failures: So many tries in a row that came to nothing.
        retry_at: When it may be tried again, on the monotonic clock.
    """

    url: BrokerUrl
    protocol: int = 0
    proven: int | None = None
    failures: int = 0
    retry_at: float = 0.0


class Failover:
    """The brokers, and what is known of each.

    Args:
        brokers: In the order in which they are preferred.
        protocols: Versions in the order in which they are tried: `5`, `3.1.1`.
        at_random: Any that may be tried, instead of the first.
        monotonic: Seconds that never jump.
    """

    def __init__(
        self,
        brokers: Sequence[BrokerUrl],
        protocols: Sequence[str],
        *,
        at_random: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nodes = [_Node(url) for url in brokers]
        self._protocols = protocols
        self._at_random = at_random
        self._monotonic = monotonic
        self._node = self._nodes[0]
        self._not_before = 0.0

    @property
    def broker(self) -> BrokerUrl:
        """The one that is connected, or was tried last."""
        return self._node.url

    @property
    def protocol(self) -> str:
        """The version in which it is spoken to."""
        return self._protocols[self._node.protocol]

    def due(self) -> float:
        """When the next try may be made, on the monotonic clock."""
        return max(self._not_before, min(node.retry_at for node in self._nodes))

    def choose(self) -> BrokerUrl | None:
        """The broker to try now; None while none may be tried."""
        now = self._monotonic()
        ready = [node for node in self._nodes if node.retry_at <= now]
        if now < self._not_before or not ready:
            return None
        self._node = random.choice(ready) if self._at_random else ready[0]  # noqa: S311  (spreads, protects nothing)
        return self._node.url

    def hurry(self) -> None:
        """Try again now, whatever was tried just before."""
        self._not_before = 0.0
        for node in self._nodes:
            node.retry_at = 0.0

    def reached(self) -> None:
        """It takes what is published, and gives it back."""
        self._node.proven = self._node.protocol
        self._node.failures = 0

    def lost(self, *, was_ready: bool, refused: bool, wrong_version: bool, other_version: bool) -> bool:
        """The connection is over, or never came about.

        Args:
            was_ready: It was reached before.
            refused: It answered and said no; trying again soon is of no use.
            wrong_version: It said that it does not speak this one.
            other_version: It may work with another one.

        Returns:
            Whether that is no trouble yet: another version is tried at once.
        """
        node = self._node
        # A broker that cuts the line at a CONNECT may not know the version, or may just be going down: where this
        # version has worked before, it is the latter.
        may_change = wrong_version or (other_version and node.proven != node.protocol)
        if not was_ready and may_change and node.protocol + 1 < len(self._protocols):
            node.protocol += 1
            node.retry_at = 0.0
            return True
        now = self._monotonic()
        if was_ready:
            node.failures = 0
            if len(self._nodes) > 1:
                self._not_before = now + random.uniform(0, SPREAD)  # noqa: S311  (likewise)
        else:
            node.protocol = node.proven or 0
        pause = RETRY_REFUSED if refused else min(RETRY_MOST, RETRY_FIRST * 2**node.failures)
        node.failures = min(node.failures + 1, 10)
        # The others come first, also where they have to be waited for.
        node.retry_at = max(now, self._not_before) + pause * random.uniform(0.5, 1.0)  # noqa: S311  (likewise)
        return False
