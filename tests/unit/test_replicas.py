"""How partitions spread over replicas, and bells."""

from __future__ import annotations

import select

import pytest

from bridge.journal.partitions import SHARED
from bridge.journal.postgresql import partition_of
from bridge.replicas import share
from bridge.wakeup import Bell


@pytest.mark.parametrize("replicas", range(1, 20))
def test_partitions_spread_evenly_and_all_of_them_fall_to_somebody(replicas: int) -> None:
    """Updates of a partition that falls to nobody would never be published; and who has most would be the limit."""
    names = [f"replica-{number}" for number in range(replicas)]
    shares = [share(reversed(names), name, len(SHARED)) for name in names]
    assert sum(shares) == len(SHARED)
    assert max(shares) - min(shares) <= 1


def test_a_replica_that_does_not_count_yet_gets_nothing() -> None:
    """It would take what falls to others, and give it back at the next look."""
    assert share(("a", "b"), "c", len(SHARED)) == 0


def test_when_one_goes_nobody_gives_anything_up() -> None:
    """Each move costs a pause: those that stay should only get more."""
    before = {name: share("abc", name, 15) for name in "abc"}
    after = {name: share("bc", name, 15) for name in "bc"}
    assert all(after[name] >= before[name] for name in after)


def test_what_shares_a_topic_shares_a_partition_and_clicks_are_with_the_leader() -> None:
    """Two publishers of a topic would overtake each other; and a click waits for what the leader tells."""
    assert partition_of("button/gate") == partition_of("last/status") == partition_of("last/button") == 0
    seen = {partition_of(f"wamid.{number}/status") for number in range(2_000)}
    assert seen == set(SHARED)
    assert partition_of("wamid.7/status") == partition_of("wamid.7/status")


def test_a_bell_wakes_who_waits_until_it_is_silenced() -> None:
    """A publisher would sleep over what was stored, or never sleep."""
    bell = Bell()
    poller = select.poll()
    poller.register(bell, select.POLLIN)
    assert not poller.poll(0)
    bell.ring()
    bell.ring()
    assert poller.poll(0)
    bell.silence()
    assert not poller.poll(0)
    bell.silence()
    bell.close()
    bell.ring()  # nobody minds
