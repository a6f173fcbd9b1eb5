"""What receivers get is shown while somebody watches, and only then."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge import tap as module
from bridge.meter import Meters
from bridge.tap import Hand, Tap
from bridge.topics import Entry, entry
from tests.unit.test_payloads import RECEIVED

from bridge.model import StatusUpdate  # isort: skip

OUTCOME = {"stored": 1, "duplicate": 0, "ignored": 0, "dead": 0}


@pytest.fixture
def meters() -> Meters:
    return Meters(1)


@pytest.fixture
def tap(tmp_path: Path, meters: Meters, monkeypatch: pytest.MonkeyPatch) -> Tap:
    monkeypatch.setattr(module, "WATCHED", 3.0)
    return Tap(tmp_path / "journal.tap", meters)


def an_entry(number: int = 1) -> Entry:
    return entry(StatusUpdate(message_id=f"m{number}", status="sent"), RECEIVED)


def wait_for(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_callback_is_shown_while_somebody_watches(tmp_path: Path, meters: Meters, tap: Tap) -> None:
    """The live view would never show what came in."""
    tap.watch()
    Hand(tmp_path / "journal.tap", meters.claim()).show(b'{"in": 1}', RECEIVED, [an_entry()], OUTCOME)
    wait_for(tap.shown)
    (shown,) = tap.shown()
    assert (shown.body, shown.size, shown.outcome) == (b'{"in": 1}', 9, OUTCOME)
    assert shown.event_ids == (an_entry().event_id,)
    assert shown.received == RECEIVED


def test_nothing_is_shown_while_nobody_watches(tmp_path: Path, meters: Meters, tap: Tap) -> None:
    """Each callback would cost a datagram, and stay in memory, for nobody."""
    hand = Hand(tmp_path / "journal.tap", meters.claim())
    hand.show(b"unseen", RECEIVED, [], OUTCOME)
    assert not (tmp_path / "journal.tap").exists()
    tap.watch()
    hand.show(b"seen", RECEIVED, [], OUTCOME)
    wait_for(tap.shown)
    assert [one.body for one in tap.shown()] == [b"seen"]
    wait_for(lambda: not (tmp_path / "journal.tap").exists())  # nobody looked again
    hand.show(b"unseen", RECEIVED, [], OUTCOME)
    assert [one.body for one in tap.shown()] == [b"seen"]


def test_numbers_are_hidden_as_the_settings_say(tmp_path: Path, meters: Meters, tap: Tap) -> None:
    """privacy.numbers would hold for the journal, and not for who looks over a shoulder."""
    tap.watch()
    hand = Hand(tmp_path / "journal.tap", meters.claim(), lambda body: body.replace(b"15550001234", b"*******1234"))
    hand.show(b"from 15550001234", RECEIVED, [], OUTCOME)
    wait_for(tap.shown)
    assert tap.shown()[0].body == b"from *******1234"


def test_of_a_large_body_the_beginning_is_shown(tmp_path: Path, meters: Meters, tap: Tap) -> None:
    """3 MB in a datagram would be refused, and the callback not shown at all."""
    tap.watch()
    many = [an_entry(number) for number in range(1_500)]
    Hand(tmp_path / "journal.tap", meters.claim()).show(b"x" * 3_000_000, RECEIVED, many, OUTCOME)
    wait_for(tap.shown)
    (shown,) = tap.shown()
    assert (len(shown.body), shown.size, len(shown.event_ids)) == (module.SHOWN, 3_000_000, 1_000)


def test_a_watcher_that_is_gone_holds_nobody_up(tmp_path: Path, meters: Meters, tap: Tap) -> None:
    """A callback would fail because somebody closed a browser."""
    tap.watch()
    hand = Hand(tmp_path / "journal.tap", meters.claim())
    (tmp_path / "journal.tap").unlink()
    hand.show(b"unseen", RECEIVED, [], OUTCOME)
    assert tap.shown() == []


def test_only_its_owner_may_show_something(tmp_path: Path, tap: Tap) -> None:
    """Another user of the machine could put made-up callbacks before somebody's eyes."""
    tap.watch()
    assert (tmp_path / "journal.tap").stat().st_mode & 0o777 == 0o600


def test_what_was_shown_is_forgotten_after_a_while(
    tmp_path: Path, meters: Meters, tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers would stay in memory for as long as the bridge runs."""
    tap.watch()
    Hand(tmp_path / "journal.tap", meters.claim()).show(b"seen", RECEIVED, [], OUTCOME)
    wait_for(tap.shown)
    monkeypatch.setattr(module, "FORGOTTEN", -1.0)
    assert tap.shown() == []
