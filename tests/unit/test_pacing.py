"""Queues whose messages keep their distance and their order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from bridge.pacing import Pacer


def at(moment: float) -> Callable[[], float]:
    return lambda: moment


def drained(pacer: Pacer[str], start: float = 0.0) -> list[tuple[float, str]]:
    """What goes when, if each is taken as soon as it is due."""
    found: list[tuple[float, str]] = []
    now = start
    while len(pacer):
        now = max(now, pacer.due())
        item = pacer.take(now)
        assert item is not None
        found.append((now, item))
    return found


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 2)), max_size=60))
def test_each_topic_keeps_its_order_and_its_distance(items: list[tuple[str, float]]) -> None:
    """Otherwise a click could overtake an older one, or be dropped as one of the same millisecond."""
    pacer: Pacer[str] = Pacer(0.005, 0.05)
    for number, (topic, moment) in enumerate(items):
        pacer.add(topic, f"{topic}{number}", at(moment))
    found = drained(pacer)
    for topic in "abc":
        mine = [(when, int(item[1:])) for when, item in found if item[0] == topic]
        assert [number for _, number in mine] == [n for n, (of, _) in enumerate(items) if of == topic]
        assert all(later - earlier > 0.0049 for (earlier, _), (later, _) in itertools.pairwise(mine))
        assert all(when >= items[number][1] for when, number in mine)


def test_what_waits_for_something_holds_up_its_own_topic_alone() -> None:
    """Otherwise one new button would hold up all the others."""
    pacer: Pacer[str] = Pacer(0.005, 0.05)
    ready = [math.inf]
    pacer.add("a", "first", lambda: ready[0])
    pacer.add("a", "second", at(-math.inf))
    pacer.add("b", "other", at(-math.inf))
    assert pacer.take(1.0) == "other"
    assert pacer.take(1.0) is None
    assert pacer.due() == math.inf
    ready[0] = 2.0
    assert pacer.due() == 2.0
    assert [item for _, item in drained(pacer, 2.0)] == ["first", "second"]


def test_few_keep_more_distance_than_many() -> None:
    """Otherwise a busy Home Assistant would take two of them in the same millisecond, or a burst would take minutes."""
    few: Pacer[str] = Pacer(0.005, 0.05)
    many: Pacer[str] = Pacer(0.005, 0.05)
    for number in range(10):
        few.add("a", str(number), at(0.0))
    for number in range(2_000):
        many.add("a", str(number), at(0.0))
    assert abs(drained(few)[-1][0] - 9 * 0.05) < 1e-6
    assert drained(many)[-1][0] < 2_000 * 0.005 + 6


def test_a_distance_holds_also_when_the_queue_was_empty_meanwhile() -> None:
    """Otherwise a click that comes right after the last one was sent would be dropped."""
    pacer: Pacer[str] = Pacer(0.005, 0.05)
    pacer.add("a", "one", at(0.0))
    assert pacer.take(1.0) == "one"
    assert pacer.take(1.0) is None
    pacer.add("a", "two", at(0.0))
    assert pacer.take(1.049) is None
    assert pacer.take(1.06) == "two"
    assert pacer.take(9.0) is None
    pacer.clear()
    assert (len(pacer), pacer.waiting("a")) == (0, 0)
