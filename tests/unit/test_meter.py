"""What receivers count, across processes."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from bridge.journal import Outcome
from bridge.meter import Meter, Meters

SPAWN = multiprocessing.get_context("spawn")
PATIENCE = 60


def receiver(meters: Meters, times: int, may_end: object) -> None:
    """As a receiver: in a process of its own, counts, and lives on until it may end."""
    meter = meters.claim()
    for _ in range(times):
        meter.answered(200, 0.004, 1_000.0 + times)
        meter.counted(1, Outcome(2, 0), ignored=1, dead=0)
    may_end.wait(PATIENCE)  # type: ignore[attr-defined]


def in_process(meters: Meters, times: int) -> tuple[multiprocessing.process.BaseProcess, object]:
    may_end = SPAWN.Event()
    process = SPAWN.Process(target=receiver, args=(meters, times, may_end))
    process.start()
    return process, may_end


def test_what_several_receivers_count_adds_up_and_outlives_them() -> None:
    """Otherwise a receiver that is started anew would take its counts with it, or overwrite another's."""
    meters = Meters(2)
    first, second = in_process(meters, 3), in_process(meters, 5)
    for process, may_end in (first, second):
        may_end.set()  # type: ignore[attr-defined]
        process.join(PATIENCE)
    third, may_end = in_process(meters, 9)
    may_end.set()  # type: ignore[attr-defined]
    third.join(PATIENCE)
    counted = meters.read()
    assert counted.answers[200] == 17
    assert counted.entries["button", "stored"] == 17
    assert counted.entries["status", "stored"] == 17
    assert counted.entries["other", "ignored"] == 17
    assert sum(counted.buckets) == 17
    assert counted.seconds == pytest.approx(17 * 0.004)
    assert counted.last == 1_009.0


def test_a_receiver_that_was_killed_leaves_its_row_to_the_next() -> None:
    """Otherwise a receiver that dies again and again would use up all rows, and nothing would be counted."""
    meters = Meters(1)
    for _ in range(8):
        process, _ = in_process(meters, 1)
        counted_before = meters.read().answers[200]
        while meters.read().answers[200] == counted_before and process.is_alive():
            process.join(0.01)
        process.kill()
        process.join(PATIENCE)
    assert meters.read().answers[200] == 8


@pytest.mark.parametrize(
    ("clicks", "outcome", "expected"),
    [
        (0, Outcome(3, 0), (3, 0, 0, 0)),
        (3, Outcome(3, 0), (0, 0, 3, 0)),
        (1, Outcome(0, 3), (0, 2, 0, 1)),
        (2, Outcome(2, 2, stored_clicks=1), (1, 1, 1, 1)),
    ],
)
def test_entries_are_told_apart_by_kind_and_outcome(
    clicks: int, outcome: Outcome, expected: tuple[int, int, int, int]
) -> None:
    """A dashboard of clicks would show statuses."""
    meters = Meters(1)
    meters.claim().counted(clicks, outcome, ignored=0, dead=0)
    assert tuple(meters.read().entries.values())[:4] == expected


def test_a_receiver_shows_that_it_takes_its_turns() -> None:
    """One that hangs could not be told from one that has nothing to do."""
    meters = Meters(2)
    assert meters.beats() == {}
    meter = meters.claim()
    first = meters.beats()
    assert list(first) == [os.getpid()]
    while meters.beats() == first:
        meter.beat()
    assert meters.beats()[os.getpid()] > first[os.getpid()]


def test_an_answer_nobody_thought_of_is_counted_too() -> None:
    """It would end the request with an error instead."""
    meters = Meters(1)
    meters.claim().answered(418, 0.1, 0.0)
    assert meters.read().answers[0] == 1


def test_whoever_watches_is_seen_until_the_time_is_over() -> None:
    """Receivers would go on showing what they get when nobody looks any more."""
    meters = Meters(1)
    meter = meters.claim()
    assert not meter.is_watched(10.0)
    meters.watch(15.0)
    assert meter.is_watched(10.0)
    assert not meter.is_watched(15.0)


def test_a_meter_without_shared_memory_counts_for_itself() -> None:
    """A receiver must not fail because nobody reads its counts."""
    Meter().answered(200, 0.1, 0.0)
    assert not Meter().is_watched(0.0)
