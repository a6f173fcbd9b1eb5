"""What an update is: who it is the same as, which one wins, and when it happened."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.model import (
    LAST_SECOND,
    RANK_UNKNOWN,
    RANKS,
    ButtonClick,
    Kind,
    StatusUpdate,
    digest,
    epoch_seconds,
    iso_utc,
    rank,
)

READ = StatusUpdate(message_id="m1", status="read", timestamp=1_767_225_600, recipient_id="15550001234")
CLICK = ButtonClick(payload="go", message_id="k1", sender="15550001234", timestamp=1_767_225_600)


# --- rank --------------------------------------------------------------------------------------------------------


def test_the_statuses_rank_as_a_message_lives() -> None:
    """A late `sent` or `delivered` would overwrite what the user already saw as read or failed."""
    words = ["warning", "sent", "delivered", "read", "played", "failed", "deleted"]
    ranks = [rank(word) for word in words]
    assert ranks == sorted(set(ranks))


@pytest.mark.parametrize("word", ["warning", "pending", "captured", "", "READ", "read "])
def test_an_unknown_status_ranks_below_all_known_ones(word: str) -> None:
    """Whatever WhatsApp invents next would hide that a message was read."""
    assert rank(word) == RANK_UNKNOWN < min(RANKS.values())
    assert replace(READ, status=word).rank == RANK_UNKNOWN


def test_an_update_ranks_as_its_status() -> None:
    """The journal would keep another state than the table of ranks says."""
    assert [replace(READ, status=word).rank for word in RANKS] == list(RANKS.values())


def test_all_clicks_rank_alike() -> None:
    """An earlier click could hold a button's topic against a later one."""
    assert CLICK.rank == replace(CLICK, payload="stop", timestamp=None).rank


def test_the_kinds_have_the_names_that_stand_in_topics_and_journal() -> None:
    """Rows of an older journal would no longer be understood."""
    assert (READ.kind, CLICK.kind) == (Kind.STATUS, Kind.BUTTON)
    assert [str(kind) for kind in Kind] == ["status", "button"]


Order = tuple[int, int, str]


def order(update: StatusUpdate) -> Order:
    return (update.rank, -1 if update.timestamp is None else update.timestamp, update.event_id)


def retained(arrivals: list[StatusUpdate]) -> StatusUpdate:
    """What a journal keeps that lets an arrival in only if it is higher than what it holds."""
    held = arrivals[0]
    for arrival in arrivals[1:]:
        if order(arrival) > order(held):
            held = arrival
    return held


STATUSES = st.builds(
    StatusUpdate,
    message_id=st.just("m1"),
    status=st.sampled_from([*RANKS, "warning", "pending"]),
    timestamp=st.none() | st.integers(0, 3),
    timestamp_text=st.sampled_from(["", "TIMESTAMP"]),
    recipient_id=st.sampled_from([None, "15550001234", "15550005678"]),
)


@given(st.data())
def test_any_order_and_any_repetition_end_in_the_same_state(data: st.DataObject) -> None:
    """Two replicas, or a broker restored from the journal, would show different states of one message."""
    updates = data.draw(st.lists(STATUSES, min_size=1, max_size=8))
    repeated = updates + data.draw(st.lists(st.sampled_from(updates), max_size=8))
    arrivals = data.draw(st.permutations(repeated))
    state = retained(arrivals)
    assert order(state) == order(retained(updates)) == max(map(order, updates))
    assert state.rank == max(update.rank for update in updates)


@given(st.lists(STATUSES, min_size=1, max_size=6), STATUSES)
def test_no_late_arrival_takes_the_state_backwards(updates: list[StatusUpdate], late: StatusUpdate) -> None:
    """A message that was read would be shown as merely delivered."""
    before, after = retained(updates), retained([*updates, late])
    assert after.rank >= before.rank
    if late.rank < before.rank:
        assert after == before


@given(STATUSES, STATUSES)
def test_updates_of_one_order_are_the_same_update(one: StatusUpdate, other: StatusUpdate) -> None:
    """With a tie between different updates the order of arrival would decide after all."""
    assert (order(one) == order(other)) == (one.event_id == other.event_id)


# --- event_id ----------------------------------------------------------------------------------------------------


def test_the_event_id_stays_the_same_for_ever() -> None:
    """After an upgrade every callback that is sent again would be stored and fired a second time."""

    def expected(*identity: str | int | None) -> str:
        text = json.dumps(identity, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    assert READ.event_id == expected("status", "m1", "read", 1_767_225_600, "15550001234")
    assert CLICK.event_id == expected("button", "k1", "15550001234", "go")
    assert READ.event_id == "ea93fde9a8c1b6df355cb237ad53b145"
    assert CLICK.event_id == "de711cae9472f4be4f46fd3dead64c3f"


@pytest.mark.parametrize(
    "other",
    [
        {"conversation": {"id": "c1"}},
        {"errors": [{"code": 1}]},
        {"business_phone": "15550009000"},
        {"timestamp_text": "1767225600"},
        {"timestamp_text": "2026-01-01T00:00:00Z"},
    ],
)
def test_the_same_status_sent_again_has_the_same_event_id(other: dict[str, Any]) -> None:
    """A resend with a detail more, or with its time spelled otherwise, would be a second event."""
    assert replace(READ, **other).event_id == READ.event_id


@pytest.mark.parametrize(
    "other",
    [
        {"message_id": "m2"},
        {"status": "delivered"},
        {"timestamp": 1_767_225_601},
        {"timestamp": None},
        {"timestamp": None, "timestamp_text": "TIMESTAMP"},
        {"recipient_id": "15550005678"},
        {"recipient_id": None},
    ],
)
def test_another_status_has_another_event_id(other: dict[str, Any]) -> None:
    """An update would be taken for a duplicate and lost."""
    assert replace(READ, **other).event_id != READ.event_id


def test_times_that_cannot_be_read_are_told_apart_by_their_text() -> None:
    """Two updates with times in a form we do not know would be taken for one."""
    unread = [replace(READ, timestamp=None, timestamp_text=text) for text in ("", "TIMESTAMP", "yesterday", "today")]
    assert len({update.event_id for update in unread}) == len(unread)
    # Nor is a text that cannot be read taken for a number that can.
    assert replace(READ, timestamp=5).event_id != replace(READ, timestamp=None, timestamp_text="5").event_id


@pytest.mark.parametrize(
    "other",
    [
        {"timestamp": None},
        {"timestamp_text": "x"},
        {"text": "Go"},
        {"name": "Ada"},
        {"context": {"id": "m1"}},
        {"tag_name": "vip"},
        {"wa_ext": "{}"},
        {"template": {"id": 1}},
        {"business_phone": "15550009000"},
    ],
)
def test_the_same_click_sent_again_has_the_same_event_id(other: dict[str, Any]) -> None:
    """A click that is sent again with a detail more would open the gate twice."""
    assert replace(CLICK, **other).event_id == CLICK.event_id


@pytest.mark.parametrize(
    "other", [{"message_id": "k2"}, {"sender": "15550005678"}, {"sender": None}, {"payload": "stop"}]
)
def test_another_click_has_another_event_id(other: dict[str, Any]) -> None:
    """A second click would be taken for a duplicate and not fire."""
    assert replace(CLICK, **other).event_id != CLICK.event_id


def test_a_click_is_never_taken_for_a_status() -> None:
    """An update of the one kind would hide one of the other."""
    status = StatusUpdate(message_id="a", status="b", timestamp_text="c")
    assert status.event_id != digest("button", "a", "b", "c", None)
    assert ButtonClick(message_id="a", sender="b", payload="c").event_id != digest("status", "a", "b", "c")


TEXT = st.text(max_size=6)
IDENTITY = st.lists(TEXT | st.none() | st.integers(0, 2**63), max_size=4).map(tuple)


@given(IDENTITY, IDENTITY)
@example(("ab", "c"), ("a", "bc"))
@example(("a", None), ("a", "null"))
@example(("5",), (5,))
@example(('a","b',), ("a", "b"))
@example((), ("",))
def test_a_digest_stands_for_its_values_and_no_others(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    """Values that only look alike when put side by side would be one update."""
    assert (digest(*one) == digest(*other)) == (one == other)
    assert len(digest(*one)) == 32
    assert set(digest(*one)) <= set("0123456789abcdef")


# --- when --------------------------------------------------------------------------------------------------------

#: From 2001 to 2286: the seconds whose milliseconds, micro- and nanoseconds cannot be taken for seconds.
SECONDS = st.integers(1_000_000_000, 9_999_999_999)
ZONES = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(SECONDS, st.integers(0, 999))
def test_a_moment_is_the_same_in_seconds_and_in_their_parts(seconds: int, part: int) -> None:
    """A vendor that counts in milliseconds would have its clicks thrown away as thousands of years late."""
    milliseconds = seconds * 1000 + part
    for unit in (1, 1000):
        assert epoch_seconds(milliseconds * unit) == epoch_seconds(str(milliseconds * unit)) == seconds
    assert epoch_seconds(milliseconds * 1_000_000) == seconds
    assert epoch_seconds(seconds) == epoch_seconds(str(seconds)) == epoch_seconds(f" {seconds} ") == seconds
    assert epoch_seconds(seconds + 0.5) == epoch_seconds(f"{seconds}.{part:03}") == seconds


def test_nanoseconds_are_the_same_moment_as_integer_and_as_text() -> None:
    """The same update in two spellings would be two updates, a second apart."""
    assert epoch_seconds(5_740_431_157_000_000_000) == epoch_seconds("5740431157000000000")


@given(SECONDS, ZONES)
def test_a_moment_is_the_same_in_every_zone(seconds: int, zone: timezone) -> None:
    """A click would be hours late or hours early wherever the vendor's clock has a zone."""
    assert epoch_seconds(datetime.fromtimestamp(seconds, zone).isoformat()) == seconds
    without_zone = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()
    assert epoch_seconds(without_zone) == epoch_seconds(without_zone + "Z") == seconds


@pytest.fixture
def far_from_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine's own clock nine hours ahead."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX-9")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("far_from_utc")
def test_the_zone_of_the_machine_means_nothing() -> None:
    """Every click would be hours late on a machine that does not stand in Greenwich."""
    for text in ("2026-01-01T00:00:00", "2026-01-01", "2026-01-01 00:00", "2026-01-01T00:00:00Z"):
        assert epoch_seconds(text) == 1_767_225_600
    assert iso_utc(1_767_225_600) == "2026-01-01T00:00:00.000Z"


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (0, 0),
        ("0", 0),
        (99_999_999_999, 99_999_999_999),
        (100_000_000_000, 100_000_000),
        ("1970-01-01", 0),
        ("9999-12-31T23:59:59Z", LAST_SECOND),
        (LAST_SECOND * 1_000_000_000, LAST_SECOND),
        ((LAST_SECOND + 1) * 1_000_000_000, None),
        ("9999-12-31T23:59:59-23:59", None),
        ("0001-01-01T00:00:00+23:59", None),
        (-1, None),
        ("-1", None),
        (-1_767_225_600_000, None),
        (10**40, None),
        (1e300, None),
        (float("inf"), None),
        (float("nan"), None),
        ("inf", None),
        ("-Infinity", None),
        ("nan", None),
        ("1e999", None),
        ("9" * 400, None),
        (True, None),
        (False, None),
        (None, None),
        ("", None),
        (" ", None),
        ("TIMESTAMP", None),
        ("now", None),
        ("0x10", None),
        ("2026-02-30", None),
        ("2026-13-01T00:00:00Z", None),
        ("2026-01-01T25:00:00Z", None),
        ("\ud800", None),
        ("1767225600\x00", None),
        ([1_767_225_600], None),
        ({}, None),
        (b"1767225600", None),
    ],
)
def test_what_can_be_read_as_a_moment_is_and_nothing_else(value: object, read: int | None) -> None:
    """A time that means nothing would make a click late, or an old state the newest."""
    assert epoch_seconds(value) == read


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**1000), 2**1000) | st.floats() | st.text(st.characters()),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=5,
)
ALMOST_TIMES = st.from_regex(r"[+-]?[0-9]{1,20}([.eE:T +-][0-9]{0,4}){0,4}Z?", fullmatch=True)


@given(JSON_VALUES | ALMOST_TIMES)
def test_no_timestamp_at_all_can_raise(value: object) -> None:
    """One odd timestamp would cost its whole POST, again at each resend."""
    read = epoch_seconds(value)
    assert read is None or (type(read) is int and 0 <= read <= LAST_SECOND)


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_an_integer_beyond_every_float_is_no_moment(value: int) -> None:
    """One absurd number would cost its whole POST, again at each resend."""
    assert epoch_seconds(value) is None


@pytest.mark.parametrize(
    ("epoch", "iso"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_767_225_600, "2026-01-01T00:00:00.000Z"),
        (1_767_225_600.123456, "2026-01-01T00:00:00.123Z"),
        (1_767_225_600.0625, "2026-01-01T00:00:00.062Z"),
        (1_767_225_599.9996, "2025-12-31T23:59:59.999Z"),
        (LAST_SECOND, "9999-12-31T23:59:59.000Z"),
    ],
)
def test_a_moment_is_written_in_utc_with_milliseconds(epoch: float, iso: str) -> None:
    """`received_at` would change its form, and templates that read it would fail."""
    assert iso_utc(epoch) == iso


@given(st.floats(0, 9_999_999_999))
def test_a_moment_that_was_written_can_be_read(epoch: float) -> None:
    """`received_at` would tell another time than that of the receipt."""
    written = iso_utc(epoch)
    assert len(written) == len("2026-01-01T00:00:00.000Z")
    assert written.endswith("Z")
    assert abs(datetime.fromisoformat(written).timestamp() - epoch) <= 0.001_01
    assert epoch_seconds(written) in (int(epoch), int(epoch + 0.000_001))
