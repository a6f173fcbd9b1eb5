"""How often one address may ask: callbacks of a known sender by the second, requests of strangers by the minute.

A request counts as a stranger's when it did not show who it comes from: wrong or missing credentials, and paths that
do not exist. After a few of them in a minute, further ones are answered 429 whatever they ask. The right credentials
are let in all the same: behind a tunnel, or a proxy that is not listed, everybody has one address, and one stranger
could shut out the sender. So this keeps strangers from filling the log and from learning what is wrong with their
tries; what cannot be guessed is kept from them by its length alone (`strength.py`).

Each address counts by itself; of IPv6 the network of 64 bits, as one machine has all of it. What is remembered is
bounded, however many addresses ask.
"""

from __future__ import annotations

import functools
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from limits import RateLimitItem, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter

#: Requests of strangers in a minute, from one address, that are told what is wrong.
FAILURES = 10
#: Lines of the log in a minute, about all strangers together.
LINES = 60
#: Lines of the log in a minute, about too many connections.
CROWDS = 1
#: Seconds over which `webhook.rate_limit` is a mean: a burst after a pause is no flood.
WINDOW = 10
#: Addresses that are remembered at once; the one remembered for longest is forgotten first.
ADDRESSES = 10_000

#: What addresses that cannot be read are counted as, all together.
UNREADABLE = "?"


def network_of(address: str) -> str:
    """What an address is counted as: itself, or of IPv6 the network of 64 bits; `?` where it is none."""
    return _network_of(address[:64])


@functools.lru_cache(maxsize=1024)
def _network_of(address: str) -> str:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return UNREADABLE
    # On a listener of both families, all of IPv4 is one such network.
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return f"{ipaddress.IPv6Address(int(found) >> 64 << 64)}/64"
    return str(getattr(found, "ipv4_mapped", None) or found)


class Counts(Storage):
    """Counters of `limits` for one thread: so many, and no more.

    The one that comes with the library has no bound, and a thread of its own that looks at each of them.

    Args:
        most: Counters that are remembered at once.
        now: Seconds that never jump.
    """

    STORAGE_SCHEME = None

    def __init__(self, most: int = ADDRESSES, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._most = most
        self._now = now
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()  # and until when each holds, soonest first

    def __len__(self) -> int:
        return len(self._counts)

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        count, until = self._counts.get(key, (0, 0.0))
        now = self._now()
        if until > now:
            self._counts[key] = count + amount, until
            return count + amount
        if until:
            self._counts.move_to_end(key)
        elif len(self._counts) >= self._most:
            self._counts.popitem(last=False)
        self._counts[key] = amount, now + expiry
        return amount

    def get(self, key: str) -> int:
        count, until = self._counts.get(key, (0, 0.0))
        return count if until > self._now() else 0

    def get_expiry(self, key: str) -> float:
        return self._counts.get(key, (0, self._now()))[1]

    def clear(self, key: str) -> None:
        self._counts.pop(key, None)

    def reset(self) -> int:
        forgotten = len(self._counts)
        self._counts.clear()
        return forgotten

    def check(self) -> bool:
        return True

    @property
    def base_exceptions(self) -> tuple[type[Exception], ...]:
        return ()


@dataclass(frozen=True, slots=True)
class Excess:
    """A request that is one too many.

    Attributes:
        wait: Seconds until another one is not.
        is_first: Whether it is the first one too many since the last that was not.
    """

    wait: int
    is_first: bool


class Throttle:
    """Counts the requests of one receiver; used by the coroutines of one event loop.

    Args:
        rate: Callbacks a second that one address may send; None: any number.
        now: Seconds that never jump.
    """

    def __init__(self, rate: int | None, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._rate = RateLimitItemPerSecond(rate * WINDOW, WINDOW) if rate is not None else None
        self._failures = RateLimitItemPerMinute(FAILURES)
        self._lines = RateLimitItemPerMinute(LINES)
        self._crowds = RateLimitItemPerMinute(CROWDS)
        # Apart, so that no number of strangers makes a sender forgotten, or the other way round.
        self._senders = FixedWindowRateLimiter(Counts(now=now))
        self._strangers = FixedWindowRateLimiter(Counts(now=now))
        self._log = FixedWindowRateLimiter(Counts(now=now))

    def sent(self, address: str) -> Excess | None:
        """Count a callback of a known sender from this address; None: it is not too many."""
        return self._count(self._senders, self._rate, network_of(address)) if self._rate is not None else None

    def failed(self, address: str) -> Excess | None:
        """Count a request of a stranger at this address; None: it is not too many."""
        return self._count(self._strangers, self._failures, network_of(address))

    def logged(self) -> Excess | None:
        """Count a line of the log about any of them; None: it is not too many."""
        return self._count(self._log, self._lines, "")

    def crowded(self) -> Excess | None:
        """Count a line of the log about too many connections; None: it is not too many."""
        return self._count(self._log, self._crowds, "crowd")

    def _count(self, limiter: FixedWindowRateLimiter, item: RateLimitItem, key: str) -> Excess | None:
        if limiter.hit(item, key):
            return None
        counter = item.key_for(key)
        wait = math.ceil(limiter.storage.get_expiry(counter) - self._now())
        return Excess(max(1, wait), limiter.storage.get(counter) == item.amount + 1)
