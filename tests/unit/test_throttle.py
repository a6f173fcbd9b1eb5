"""How often an address may ask, and that remembering it costs little, whoever asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.throttle import ADDRESSES, FAILURES, WINDOW, Counts, Excess, Throttle, network_of

ADDRESS = "203.0.113.7"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def memory() -> int:
    """Bytes that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", "?"),
        ("unix:", "?"),
        ("203.0.113.7:80", "?"),
        ("\ud800", "?"),
        ("1" * 100_000, "?"),
    ],
)
def test_an_address_counts_as_itself_or_as_its_network(address: str, network: str) -> None:
    """One machine has 2^64 addresses of IPv6; and on a listener of both families all of IPv4 is one such network."""
    assert network_of(address) == network


def test_a_long_text_is_not_kept_to_be_known_again() -> None:
    """Behind a proxy that passes on what it gets, a thousand of them would take megabytes."""
    before = memory()
    for number in range(2_000):
        network_of(f"{number}" + "x" * 100_000)
    assert memory() - before < 20 * 2**20


def test_the_first_one_too_many_is_told_and_when_to_come_again(clock: Clock) -> None:
    """A line for each would be a flood of its own; without the time, a sender comes again at once."""
    throttle = Throttle(1, clock)
    for count, most in ((throttle.failed, FAILURES), (throttle.sent, WINDOW)):
        assert [count(ADDRESS) for _ in range(most)] == [None] * most
        clock.now += 2.5
        first, second = count(ADDRESS), count(ADDRESS)
        assert first is not None
        assert second is not None
        assert (first.is_first, second.is_first) == (True, False)
        assert second.wait == (58 if count == throttle.failed else 8)


def test_a_wait_is_never_nothing(clock: Clock) -> None:
    """Retry-After: 0 has a sender come again before the window is over."""
    throttle = Throttle(1, clock)
    for _ in range(WINDOW):
        throttle.sent(ADDRESS)
    clock.now += WINDOW - 0.001
    assert throttle.sent(ADDRESS) == Excess(1, is_first=True)


def test_without_a_rate_nothing_is_too_many(clock: Clock) -> None:
    """`off` must mean it."""
    throttle = Throttle(None, clock)
    assert {throttle.sent(ADDRESS) for _ in range(1_000)} == {None}


class TestCounts:
    def test_a_counter_starts_anew_when_its_time_is_over(self, clock: Clock) -> None:
        """An address that was once too eager would be held back for ever."""
        counts = Counts(10, clock)
        assert [counts.incr("a", 60), counts.incr("a", 60, 2), counts.get("a")] == [1, 3, 3]
        assert counts.get_expiry("a") == 1_060.0
        clock.now = 1_060.0
        assert counts.get("a") == 0
        assert counts.incr("a", 60) == 1

    def test_the_one_remembered_for_longest_is_forgotten_first(self, clock: Clock) -> None:
        """Whoever just began to guess would be forgotten by the next address, and start anew each time."""
        counts = Counts(3, clock)
        for key in ("a", "b", "c"):
            counts.incr(key, 60)
            clock.now += 1
        clock.now = 1_060.5
        counts.incr("a", 60)  # its time was over: it is the youngest now
        counts.incr("d", 60)
        assert (counts.get("a"), counts.get("b"), counts.get("c"), counts.get("d")) == (1, 0, 1, 1)

    def test_what_the_library_may_ask_is_answered(self, clock: Clock) -> None:
        """Its strategies may clear one counter, or all."""
        counts = Counts(10, clock)
        counts.incr("a", 60)
        counts.incr("b", 60)
        counts.clear("a")
        assert (counts.get("a"), counts.get("b"), len(counts)) == (0, 1, 1)
        assert counts.reset() == 1
        assert len(counts) == 0
        assert counts.check()
        assert counts.base_exceptions == ()


def test_a_million_addresses_take_no_more_memory_than_those_that_are_remembered() -> None:
    """Whoever has a network of IPv6 could fill the memory with one request from each address."""
    throttle = Throttle(10_000)

    def knock(numbers: range) -> None:
        for number in numbers:
            throttle.failed(f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::1")

    knock(range(2 * ADDRESSES))
    before = memory()
    knock(range(2 * ADDRESSES, 1_000_000))
    assert memory() - before < 4 * 2**20
    assert len(throttle._strangers.storage) == ADDRESSES  # type: ignore[arg-type]
