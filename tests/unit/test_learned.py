"""What the journal keeps for Home Assistant: buttons, discovery topics, counts; and the settings about it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bridge.config import Button, ConfigError, load
from bridge.journal import Callback, Learned
from bridge.journal.sqlite import SqliteJournal
from bridge.model import ButtonClick, StatusUpdate
from bridge.topics import entry


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "journal.db"
    SqliteJournal(found).create()
    return found


def store(journal: SqliteJournal, *statuses: tuple[str, str]) -> None:
    now = time.time()
    updates = [StatusUpdate(message_id=name, status=word, timestamp=1) for name, word in statuses]
    journal.append([Callback(tuple(entry(update, now) for update in updates))])


def test_what_was_learned_is_read_again_in_the_order_in_which_it_was(path: Path) -> None:
    """Otherwise names would be told apart anew after a restart, and triggers change theirs."""
    one, two = Learned("button", "b", "B", 5, 5), Learned("button", "a", "A", 7, 7)
    with SqliteJournal(path) as journal:
        journal.learn([two, one])
        journal.learn([Learned("button", "b", "another name", 9, 9, told=True)])
        assert journal.learned() == [Learned("button", "b", "B", 5, 9, told=True), two]
        journal.learn([], [two])
        assert [found.key for found in journal.learned()] == ["b"]


def test_discovery_topics_are_remembered_until_they_are_taken(path: Path) -> None:
    """Otherwise what is switched off would stay in Home Assistant."""
    with SqliteJournal(path) as journal:
        journal.note_discoveries(put=["a", "b"])
        journal.note_discoveries(put=["b"], taken=["a"])
        assert journal.discoveries() == {"b"}


def test_statuses_are_counted_once_and_by_day(path: Path) -> None:
    """Otherwise the numbers in Home Assistant would be wrong after a restart or at midnight."""
    with SqliteJournal(path) as journal:
        store(journal, ("m1", "sent"), ("m2", "sent"), ("m1", "read"))
        store(journal, ("m1", "sent"))  # a duplicate
        first = journal.tally("2026-01-01")
        assert (first.total, first.today, first.failed) == ({"sent": 2, "read": 1}, {"sent": 2, "read": 1}, None)
        assert journal.tally("2026-01-01") == first
        store(journal, ("m3", "failed"))
        assert journal.tally("2026-01-01").today == {"sent": 2, "read": 1, "failed": 1}
    with SqliteJournal(path) as journal:
        next_day = journal.tally("2026-01-02")
        assert (next_day.today, next_day.total) == ({}, {"sent": 2, "read": 1, "failed": 1})
        assert next_day.failed is not None
        assert '"message_id":"m3"' in next_day.failed


def test_names_of_statuses_that_callbacks_invent_do_not_pile_up(path: Path) -> None:
    """Otherwise odd callbacks would make the journal's counts grow without end."""
    with SqliteJournal(path) as journal:
        store(journal, *((f"m{number}", f"s{number}") for number in range(1_500)))
        tally = journal.tally("d")
        assert len(tally.total) <= 1_001
        assert sum(tally.total.values()) == 1_500


def test_after_clean_only_what_is_not_settled_stands(path: Path) -> None:
    """Otherwise the next start would put back what was taken away, or forget what it has yet to publish."""
    with SqliteJournal(path) as journal:
        store(journal, ("m1", "sent"))
        click = ButtonClick(payload="b", message_id="c", timestamp=1)
        journal.append([Callback((entry(click, time.time()),))])
        journal.settle(1)
        journal.note_discoveries(put=["t"])
        journal.cleaned()
        assert set(journal.standing()) == {"button/b", "last/button"}
        assert journal.discoveries() == set()


@pytest.mark.parametrize(
    ("written", "buttons"),
    [
        ("a,b", (Button("a", "a"), Button("b", "b"))),
        ('[{"payload": "a", "name": "A", "icon": "mdi:gate"}]', (Button("a", "A", "mdi:gate"),)),
        ("[a, {payload: b}]", (Button("a", "a"), Button("b", "b"))),
        ("", ()),
    ],
)
def test_buttons_can_be_declared_in_the_environment(written: str, buttons: tuple[Button, ...]) -> None:
    """Otherwise a container could not be set up without a file."""
    assert load(None, {"WHATSAPP2MQTT_HOMEASSISTANT__BUTTONS": written}).settings.homeassistant.buttons == buttons


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("buttons: [{name: A}]", "no button"),
        ("buttons: [{payload: a, colour: red}]", "no button"),
        ("buttons: [{payload: yes}]", "in quotes"),
        ("buttons: [a, a]", "same payload"),
        ("buttons: [{payload: a, name: N}, {payload: b, name: N}]", "same name"),
        ("buttons: [{payload: a, icon: gate}]", "mdi:gate"),
        ("buttons: [[a]]", "in quotes"),
        ("prefix: whatsapp", "mqtt.base_topic"),
        ("prefix: a/#", "no topic"),
        ("link: javascript:alert(1)", "no web address"),
        ("max_buttons: 1001", "from 0 to 1000"),
    ],
)
def test_a_wrong_setting_says_what_to_write(tmp_path: Path, lines: str, words: str) -> None:
    """Otherwise the user would guess."""
    file = tmp_path / "config.yaml"
    file.write_text(f"homeassistant:\n  {lines}\n")
    with pytest.raises(ConfigError, match=words):
        load(file, {})
