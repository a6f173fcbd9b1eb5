"""Clocks that are wrong, jump and come right: which age a click has then."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge import clock
from bridge.clock import FIRST_RELEASE, JUMP, PROOF, Clock

NOW = FIRST_RELEASE + 1_000_000.0
UP = 5_000.0


class Machine:
    """A machine's two clocks: the wall clock can be set, the time since boot only passes."""

    def __init__(self, wall: float = NOW, uptime: float = UP) -> None:
        self.wall = wall
        self.uptime = uptime
        self.clock = Clock(lambda: self.wall, lambda: self.uptime)

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.uptime += seconds

    def is_set(self, seconds: float) -> None:
        """The wall clock is put forward, or back if negative."""
        self.wall += seconds

    def age(self, timestamp: float | None, received: float, uptime: float | None) -> float:
        stamp = None if timestamp is None else int(timestamp)
        return self.clock.age(timestamp=stamp, received=received, uptime=uptime)


@pytest.fixture
def machine() -> Machine:
    return Machine()


class TestTrust:
    def test_a_clock_that_runs_is_trusted(self, machine: Machine) -> None:
        """Not trusted, a click that waited at WhatsApp for an hour would fire as if it were new."""
        assert machine.clock.is_trusted()
        machine.passes(86_400)
        assert machine.clock.is_trusted()

    def test_a_clock_before_the_first_release_is_not(self) -> None:
        """A Raspberry Pi without network believes it is 1970: every click would be from the future."""
        assert not Machine(wall=FIRST_RELEASE - 1).clock.is_trusted()
        assert not Machine(wall=0.0).clock.is_trusted()
        assert Machine(wall=FIRST_RELEASE).clock.is_trusted()

    @pytest.mark.parametrize("seconds", [JUMP + 1, -JUMP - 1, 86_400 * 365, -86_400 * 365])
    def test_a_clock_that_was_set_is_not(self, machine: Machine, seconds: float) -> None:
        """What was wrong a moment ago may be wrong still: nobody's garage door opens on its word."""
        machine.passes(10)
        machine.is_set(seconds)
        assert not machine.clock.is_trusted()
        machine.passes(86_400)
        assert not machine.clock.is_trusted()

    def test_a_clock_that_is_corrected_bit_by_bit_stays_trusted(self, machine: Machine) -> None:
        """The time service corrects all the time; losing trust each time would be to have none."""
        for _ in range(100):
            machine.passes(60)
            machine.is_set(JUMP - 1)
            assert machine.clock.is_trusted()

    def test_the_machines_own_clocks_are_the_default(self) -> None:
        """Suspended and woken, a laptop must know how long it slept: this clock counts that as well."""
        before = time.clock_gettime(time.CLOCK_BOOTTIME)
        found = Clock()
        assert before <= found.uptime() <= time.clock_gettime(time.CLOCK_BOOTTIME)
        assert found.wall is time.time
        assert clock.uptime() > 0


class TestProof:
    @pytest.fixture
    def machine(self) -> Machine:
        """One whose clock was set."""
        found = Machine()
        found.is_set(3_600)
        assert not found.clock.is_trusted()
        return found

    def test_a_callback_of_this_moment_proves_the_clock(self, machine: Machine) -> None:
        """After the Pi has asked the time, the first callback makes ages count again."""
        machine.clock.observe(timestamp=int(machine.wall - PROOF + 1), uptime=machine.uptime - PROOF + 1)
        assert machine.clock.is_trusted()

    @pytest.mark.parametrize(
        ("apart", "ago"),
        [
            (PROOF + 1, 0.0),  # the callback says another time
            (-PROOF - 1, 0.0),
            (0.0, PROOF),  # what was received long ago says nothing of now
            (0.0, 3_600.0),
        ],
    )
    def test_no_other_proves_it(self, machine: Machine, apart: float, ago: float) -> None:
        """A late callback beside a wrong clock would make the wrong clock a judge of ages."""
        machine.clock.observe(timestamp=int(machine.wall + apart), uptime=machine.uptime - ago)
        assert not machine.clock.is_trusted()

    def test_a_callback_without_a_time_or_of_an_earlier_boot_proves_nothing(self, machine: Machine) -> None:
        """There is nothing to compare with."""
        machine.clock.observe(timestamp=None, uptime=machine.uptime)
        machine.clock.observe(timestamp=int(machine.wall), uptime=None)
        assert not machine.clock.is_trusted()

    def test_a_proof_holds_until_the_clock_is_set_again(self, machine: Machine) -> None:
        """Each jump asks for a proof of its own."""
        machine.clock.observe(timestamp=int(machine.wall), uptime=machine.uptime)
        machine.passes(3_600)
        assert machine.clock.is_trusted()
        machine.is_set(-3_600)
        assert not machine.clock.is_trusted()

    def test_a_clock_that_is_trusted_needs_no_proof(self) -> None:
        """A callback that is late must not cost the clock its trust."""
        machine = Machine()
        machine.clock.observe(timestamp=0, uptime=machine.uptime)
        assert machine.clock.is_trusted()

    def test_a_jump_is_noticed_before_the_proof_is_weighed(self) -> None:
        """Compared with the offset from before the jump, the proven clock would be doubted at the next look."""
        machine = Machine()
        machine.is_set(3_600)
        machine.clock.observe(timestamp=int(machine.wall), uptime=machine.uptime)
        assert machine.clock.is_trusted()


class TestAge:
    def test_it_is_the_time_since_the_receipt(self, machine: Machine) -> None:
        """The broker was away for an hour: the click is an hour old, whatever it says itself."""
        assert machine.age(None, NOW - 3_600, UP - 3_600) == 3_600
        assert machine.age(NOW, NOW - 3_600, UP - 3_600) == 3_600

    def test_it_is_the_time_since_the_click_where_that_says_more(self, machine: Machine) -> None:
        """It waited at WhatsApp: received just now, and an hour old all the same."""
        assert machine.age(NOW - 3_600, NOW, UP) == 3_600

    def test_a_clock_change_does_not_make_a_new_click_old(self, machine: Machine) -> None:
        """The clock jumps forward by a year at start-up: the click that just came must still fire."""
        machine.is_set(86_400 * 365)
        assert machine.age(NOW, NOW, UP) == 0

    def test_a_clock_change_does_not_make_an_old_click_new(self, machine: Machine) -> None:
        """Set back by an hour, the wall clock would fire what waited for an hour."""
        machine.passes(3_600)
        machine.is_set(-3_600)
        assert machine.age(NOW, NOW, UP) == 3_600

    def test_a_click_from_the_future_is_as_old_as_its_receipt(self, machine: Machine) -> None:
        """A phone's wrong clock must not make a click young for ever."""
        assert machine.age(NOW + 86_400, NOW - 600, UP - 600) == 600

    def test_what_was_received_before_this_boot_is_no_younger_than_it(self, machine: Machine) -> None:
        """After a power cut with a clock that starts with yesterday, the click from before must not look new."""
        assert machine.age(None, NOW + 3_600, None) == UP
        assert machine.age(None, NOW - UP - 60, None) == UP + 60

    def test_after_a_boot_without_a_clock_an_old_click_is_at_least_as_old_as_the_boot(self) -> None:
        """1970 on the wall: what remains is that it came before this boot."""
        machine = Machine(wall=100.0, uptime=100.0)
        assert machine.age(NOW, NOW, None) == 100

    @given(
        st.none() | st.integers(0, 253_402_300_799),
        st.floats(0, 4e9),
        st.none() | st.floats(0, 1e8),
        st.floats(-1e9, 1e9),
    )
    def test_it_is_never_less_than_the_time_since_the_receipt(
        self, timestamp: int | None, received: float, uptime: float | None, jump: float
    ) -> None:
        """Whatever the clocks do, waiting makes a click older: one that waited too long must not fire."""
        machine = Machine(uptime=1e8)
        machine.is_set(jump)
        least = machine.uptime if uptime is None else machine.uptime - uptime
        before = machine.age(timestamp, received, uptime)
        assert before >= least
        machine.passes(600)
        assert machine.age(timestamp, received, uptime) >= least + 600
