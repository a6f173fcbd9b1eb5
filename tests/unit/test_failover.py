"""Which broker is tried next, with a clock that is set by hand."""

from __future__ import annotations

import itertools
import random

import pytest

from bridge.config import BrokerUrl
from bridge.failover import RETRY_MOST, RETRY_REFUSED, SPREAD, Failover

ONE, TWO, THREE = (BrokerUrl("mqtt", name, 1883) for name in ("one", "two", "three"))


class Hand:
    """A clock."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Trying:
    """Brokers, some of which are away."""

    def __init__(self, *brokers: BrokerUrl, at_random: bool = False, protocols: tuple[str, ...] = ("5",)) -> None:
        self.clock = Hand()
        self.failover = Failover(brokers, protocols, at_random=at_random, monotonic=self.clock)

    def next(self) -> BrokerUrl:
        """The next one that is tried, as soon as one may be."""
        self.clock.now = max(self.clock.now, self.failover.due())
        broker = self.failover.choose()
        assert broker is not None
        return broker

    def fail(self, *, was_ready: bool = False, refused: bool = False, version: bool = False) -> bool:
        if was_ready:
            self.failover.reached()
        return self.failover.lost(was_ready=was_ready, refused=refused, wrong_version=version, other_version=version)


def test_the_first_that_may_be_tried_is_tried_first() -> None:
    """Who names a preferred broker would get any."""
    trying = Trying(ONE, TWO, THREE)
    tried = []
    for _ in range(3):
        tried.append(trying.next())
        trying.fail()
    assert tried == [ONE, TWO, THREE]


def test_a_broker_that_is_away_does_not_hold_up_the_next() -> None:
    """Failing over would take as long as the longest pause."""
    trying = Trying(ONE, TWO)
    for _ in range(20):  # the first one is away for long
        if trying.next() == ONE:
            trying.fail()
    before = trying.clock.now
    assert trying.next() == TWO
    assert trying.clock.now - before < 1


def test_after_a_connection_that_stood_the_preferred_one_is_tried_again() -> None:
    """The bridge would never return to the broker that everybody else uses."""
    trying = Trying(ONE, TWO)
    trying.next()
    trying.fail()
    assert trying.next() == TWO
    trying.clock.now += 60
    trying.fail(was_ready=True)
    assert trying.next() == ONE


def test_those_who_lost_a_broker_do_not_all_come_to_the_next_at_the_same_instant() -> None:
    """A hundred bridges would meet the surviving broker in one millisecond."""
    waits = []
    for _ in range(200):
        trying = Trying(ONE, TWO)
        trying.next()
        trying.fail(was_ready=True)
        lost = trying.clock.now
        trying.next()
        waits.append(trying.clock.now - lost)
    assert max(waits) <= SPREAD
    assert len([wait for wait in waits if wait < SPREAD / 2]) in range(50, 150)


def test_each_broker_has_pauses_of_its_own() -> None:
    """One that says no would keep the bridge from one that is only just starting."""
    trying = Trying(ONE, TWO)
    assert trying.next() == ONE
    trying.fail(refused=True)
    refused = trying.clock.now
    while (tried := trying.next()) == TWO:
        trying.fail()
    assert tried == ONE
    assert trying.clock.now - refused >= RETRY_REFUSED / 2
    assert trying.clock.now - refused <= RETRY_REFUSED + RETRY_MOST


def test_the_pauses_of_a_broker_grow_and_no_further_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log would fill, or the broker be found an hour after it came back."""
    monkeypatch.setattr(random, "uniform", lambda _, most: most)
    trying = Trying(ONE)
    at = []
    for _ in range(8):
        trying.next()
        at.append(trying.clock.now)
        trying.fail()
    assert [later - earlier for earlier, later in itertools.pairwise(at)] == pytest.approx([0.25, 0.5, 1, 2, 4, 5, 5])


def test_at_random_all_of_them_are_used() -> None:
    """A hundred bridges would sit on the first node of the cluster."""
    first = [Trying(ONE, TWO, THREE, at_random=True).next() for _ in range(300)]
    assert min(first.count(one) for one in (ONE, TWO, THREE)) > 50


def test_each_broker_has_a_version_of_its_own() -> None:
    """A cluster of 3.1.1 would make the bridge speak 3.1.1 to the other broker, which knows 5."""
    trying = Trying(ONE, TWO, protocols=("5", "3.1.1"))
    assert (trying.next(), trying.failover.protocol) == (ONE, "5")
    assert trying.fail(version=True)
    assert (trying.next(), trying.failover.protocol) == (ONE, "3.1.1")
    assert not trying.fail(was_ready=True)
    assert (trying.next(), trying.failover.protocol) == (TWO, "5")
    trying.fail()
    trying.clock.now += 60
    assert (trying.next(), trying.failover.protocol) == (ONE, "3.1.1")  # it is known to speak that


def test_nothing_is_tried_before_it_is_due() -> None:
    """The loop would spin."""
    trying = Trying(ONE, TWO)
    for _ in range(2):
        trying.next()
        trying.fail()
    assert trying.failover.choose() is None
    assert trying.failover.due() > trying.clock.now
