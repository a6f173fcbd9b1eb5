"""What disks, cards, power and clocks do to a bridge: the campaigns of tests/torture in their short form.

The long form is `scripts/torture`. Where a machine cannot run a fault, the test is skipped with the name of what is
missing; a program that is missing in CI is a failure.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.torture import clock_jumps, corruption, io_faults, power_cut

#: Of all that is left to chance.
SEED = 1

pytestmark = pytest.mark.timeout(300)


def need(missing: str | None) -> None:
    """Skip, or in CI fail, if something is missing that the fault needs."""
    if missing is None and shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
        missing = "mosquitto"
    if missing is None:
        return
    of_the_machine = ("root", "/dev/fuse", "loop devices", "strace that may trace")
    if os.environ.get("CI") == "true" and missing not in of_the_machine:
        pytest.fail(f"this fault needs {missing}")
    pytest.skip(f"this fault needs {missing}")


def test_a_power_cut_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    """The lights go out for a second, and the callbacks of the last minute are gone: nobody sends them again.

    The same without fsync must lose some, else this test would show nothing.
    """
    need(power_cut.missing_means())
    print(power_cut.run(tmp_path, seed=SEED, count=30))


def test_a_call_to_the_disk_that_fails_makes_no_false_200(tmp_path: Path) -> None:
    """A worn card that fails at one write, and a callback that was answered 200 is nowhere."""
    need(io_faults.missing_means())
    print(io_faults.calls(tmp_path, seed=SEED, count=30))


def test_a_receiver_whose_disk_failed_says_503_and_makes_place_for_a_new_one(tmp_path: Path) -> None:
    """After an fsync that failed, the next one may lie: a receiver that goes on answers 200 for what is not stored."""
    need(io_faults.missing_means())
    print(io_faults.attached(tmp_path))


def test_a_full_disk_is_answered_503_and_the_bridge_comes_back_by_itself(tmp_path: Path) -> None:
    """Somebody's video fills the disk: callbacks must come again later, and no one should have to restart a thing."""
    need(io_faults.missing_means())
    print(io_faults.full_disk(tmp_path, seed=SEED, rounds=1))


def test_a_journal_that_is_full_of_what_waits_refuses_more_and_drains(tmp_path: Path) -> None:
    """A broker that is away for a week must not fill the disk, nor cost what was accepted before it was too much."""
    need(None)
    print(io_faults.full_journal(tmp_path, seed=SEED))


def test_history_makes_place_before_anything_is_refused(tmp_path: Path) -> None:
    """With a small journal and all in order, callbacks would be refused because of what was published long ago."""
    need(None)
    print(io_faults.pruning(tmp_path, rounds=1))


def test_a_damaged_journal_is_kept_reported_and_replaced_within_seconds(tmp_path: Path) -> None:
    """A card mixes up its blocks, and the bridge does not start any more, or hides that something is lost."""
    need(None)
    print(corruption.run(tmp_path, seed=SEED, count=20))


def test_a_clock_that_is_set_makes_no_click_late_and_no_topic_vanish(tmp_path: Path) -> None:
    """A Pi that learns what day it is ignores who stands before the gate, or opens it for yesterday's click."""
    need(None)
    print(clock_jumps.run(tmp_path, seed=SEED, count=20))
