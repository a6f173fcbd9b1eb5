"""How partitions spread over replicas, and bells."""

from __future__ import annotations

import select
from collections.abc import Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from bridge.config import Database
from bridge.journal.partitions import LEADING, SHARED, Partition
from bridge.journal.partitions import Group as State
from bridge.journal.postgresql import partition_of
from bridge.replicas import CHANGED, Group, share
from bridge.wakeup import Bell

if TYPE_CHECKING:
    from bridge.homeassistant import Plan
    from bridge.replicas import Lane


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


class Server:
    """What the group's thread asks of its session, of which the first answer about a lock says nothing."""

    leased_until = float("inf")

    def __init__(self) -> None:
        self.answers = [False, True]
        self.given: list[tuple[list[tuple[int, int]], bool]] = []

    def retake(self, _: int, __: int) -> bool:
        return self.answers.pop(0)

    def give(self, partitions: Iterable[tuple[int, int]], *, in_order: bool) -> None:
        self.given.append((list(partitions), in_order))

    def tell(self, word: str) -> None:
        assert word == CHANGED


@pytest.mark.parametrize("is_through", [True, False])
def test_what_may_still_reach_the_broker_is_remembered_until_its_partitions_are_given_back(is_through: bool) -> None:
    """The next one would publish beside what waits in a kernel, if the database was away for a moment meanwhile."""
    settings: Any = SimpleNamespace(retain={}, brokers=())
    group = Group(settings, "bridge", "one", Database("postgresql://there/home"), cast("Plan", None))
    session: Any = Server()
    group._session = session
    desk = group._clicks
    desk.held, desk.unsure = {LEADING: 7}, {LEADING}
    desk.lane = cast("Lane", SimpleNamespace(is_leaving=True, has_ended=lambda: True, is_through=is_through))
    nothing = State((), (), {LEADING: Partition(7, 7, 0, ("one",), is_held=True)})

    group._tend(desk, nothing, 0)
    assert session.given == []
    group._tend(desk, nothing, 0)
    assert session.given == [([(LEADING, 7)], is_through)]


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
