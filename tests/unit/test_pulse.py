"""Which receivers hang, by their beats."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from bridge.pulse import HANGS, LATE, STARTS, Pulse

LOOK = 5.0


@dataclass
class Ward:
    """Receivers whose beats a test leaves, and a clock that it turns."""

    pids: list[int]
    now: float = 1_000.0
    last: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pulse = Pulse(self, lambda: self.pids, lambda: self.now)  # type: ignore[arg-type]
        self.pass_by(0.0)

    def beats(self) -> dict[int, float]:
        return dict(self.last)

    def pass_by(self, seconds: float, *, silent: tuple[int, ...] = ()) -> None:
        self.now += seconds
        self.last |= {pid: self.now for pid in self.pids if pid not in silent}

    def looks(self, count: int, *, silent: tuple[int, ...] = ()) -> list[int | None]:
        """What it finds, look by look."""
        found = []
        for _ in range(count):
            self.pass_by(LOOK, silent=silent)
            found.append(self.pulse.look(LOOK))
        return found


def test_receivers_that_take_their_turns_are_left_alone() -> None:
    """Each that is ended takes the requests with it that it was answering."""
    ward = Ward([1, 2])
    assert set(ward.looks(50)) == {None}
    assert ward.pulse.trouble() is None


def test_one_that_hangs_is_told_and_ended_once() -> None:
    """It holds its connections, and no sender gets an answer."""
    ward = Ward([1])
    ward.looks(1)
    assert ward.looks(2, silent=(1,)) == [None, None]
    assert ward.pulse.trouble() is None, "no longer than is usual"
    found = ward.looks(10, silent=(1,))
    assert ward.pulse.trouble() == "the receiver hangs; it is ended and started anew"
    assert found.count(1) == 1
    assert (found.index(1) + 3) * LOOK >= HANGS


@pytest.mark.parametrize(("silent", "words"), [((1,), "1 of 3 receivers hang"), ((1, 3), "2 of 3 receivers hang")])
def test_several_are_ended_one_after_the_other(silent: tuple[int, ...], words: str) -> None:
    """granian may miss one of two that end in the same instant, and would never start another in its place."""
    ward = Ward([1, 2, 3])
    ward.looks(1)
    found = ward.looks(20, silent=silent)
    assert [pid for pid in found if pid] == list(silent)
    assert str(ward.pulse.trouble()).startswith(words)


def test_the_one_that_comes_in_its_place_is_given_as_much_time() -> None:
    """granian ends the whole bridge when a new receiver ends at once."""
    ward = Ward([1])
    ward.looks(20, silent=(1,))
    ward.pids = [2]
    assert ward.pulse.trouble() is None, "it starts, and has no beat yet"
    assert set(ward.looks(10, silent=(2,))) == {None}
    ward.looks(1)
    assert ward.looks(3, silent=(2,)) == [None, None, None]
    assert 2 in ward.looks(10, silent=(2,))


def test_one_that_never_comes_to_its_first_beat_is_ended_too() -> None:
    """It would be missing for ever, and with it the only one that many have."""
    ward = Ward([1])
    ward.pids = [2]
    found = ward.looks(50, silent=(2,))
    assert [pid for pid in found if pid] == [2]
    assert found.index(2) * LOOK >= STARTS


def test_after_the_machine_stood_still_nobody_is_ended() -> None:
    """A container that was paused, or a virtual machine that was moved, wakes up with all beats old."""
    ward = Ward([1])
    ward.looks(2)
    ward.now += 100 * LATE
    assert ward.pulse.look(LOOK) is None
    assert set(ward.looks(20)) == {None}
