"""Dead letters as a user meets them: in a list, in full, and tried again; and their way into and out of the journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from bridge import config, dead_letters
from bridge.config import Settings
from bridge.dead_letters import journal_of, listed, replay, shown
from bridge.journal import Buried, Callback, DeadLetter
from bridge.journal.sqlite import SqliteJournal
from bridge.model import Kind
from bridge.topics import Entry
from bridge.wakeup import Doorbell

NOW = 1_790_000_000.0

MakeSettings = Callable[..., Settings]


@pytest.fixture
def make_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeSettings:
    """Settings as the environment gives them."""

    def make(**settings: str) -> Settings:
        monkeypatch.setenv("WHATSAPP2MQTT_JOURNAL__URL", f"sqlite://{tmp_path}/journal.db")
        for name, value in settings.items():
            monkeypatch.setenv(f"WHATSAPP2MQTT_{name.upper()}", value)
        return config.load(None).settings

    return make


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings()


@pytest.fixture
def journal(settings: Settings) -> Iterator[SqliteJournal]:
    opened = journal_of(settings)
    opened.create()
    with opened:
        yield opened


def bury(journal: SqliteJournal, source: str, body: bytes, seq: int | None = None) -> Buried:
    journal.append([Callback((), (DeadLetter(source, "why", body, NOW, seq),))])
    return journal.dead_letters()[0]


def numbers(journal: SqliteJournal) -> list[int]:
    return [letter.number for letter in journal.dead_letters()]


class TestReading:
    def test_a_line_says_when_what_and_why(self) -> None:
        """A list that does not say why sends its reader through all of them."""
        letters = [
            Buried(12, NOW, "callback", "no JSON", None, b""),
            Buried(7, NOW + 1, "publication", "refused", 5, b""),
        ]
        assert listed(letters) == [
            ("12", "2026-09-21T14:13:20.000Z", "callback", "no JSON"),
            ("7", "2026-09-21T14:13:21.000Z", "publication", "refused"),
        ]

    def test_all_of_one_is_shown_json_readable(self) -> None:
        """To see what is wrong with it, one must see it."""
        text = shown(Buried(12, NOW, "item", "id is missing", None, b'{"statuses":[{"status":"read"}]}'))
        assert text == (
            "number:   12\nreceived: 2026-09-21T14:13:20.000Z\nsource:   item\nreason:   id is missing\nbody:\n"
            '{\n  "statuses": [\n    {\n      "status": "read"\n    }\n  ]\n}'
        )

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            (b"no JSON {", "no JSON {"),
            ("grün\nund blau".encode(), "grün\nund blau"),
            (b"\x1b[2J\x07 beep \x00", "\\x1b[2J\\x07 beep \\x00"),
            (b"\xff\xfe\x80", "\\xff\\xfe\\x80"),
            ("turned \u202e round".encode(), "turned \\u202e round"),
            (b'"\\u001b[31m red"', '"\\u001b[31m red"'),
            (b"", ""),
        ],
    )
    def test_what_is_hostile_stays_text(self, body: bytes, text: str) -> None:
        """What a stranger posted must not steer the terminal of who looks at it (promise 7)."""
        assert shown(Buried(1, NOW, "callback", "why", None, body)).partition("body:\n")[2] == text


class TestJournalOf:
    def test_it_is_the_one_of_the_bridge(self, settings: Settings, tmp_path: Path) -> None:
        """Another one would be empty, and look as if all were well."""
        assert settings.journal_path == tmp_path / "journal.db"
        opened = journal_of(settings)
        opened.create()
        assert (tmp_path / "journal.db").exists()

    def test_what_is_never_retained_is_not_by_this_way_either(self, make_settings: MakeSettings) -> None:
        """A replayed status would stand on the broker for ever, against the setting."""
        settings = make_settings(retain__status="0")
        journal = journal_of(settings)
        journal.create()
        with journal:
            letter = bury(journal, "callback", b'{"statuses":[{"id":"m","status":"read","timestamp":"1790000000"}]}')
            assert replay(settings, journal, letter)[0]
            assert journal.retained((0, ""), 10, 10) == []


class TestReplay:
    def test_a_body_is_understood_now_and_stored_like_a_new_one(
        self, settings: Settings, journal: SqliteJournal
    ) -> None:
        """A newer version that understands more must be able to make good what was missed."""
        body = {"statuses": [{"id": "m", "status": "read", "timestamp": "1790000000"}, {"id": "m", "status": "sent"}]}
        letter = bury(journal, "callback", orjson.dumps(body))
        before = time.time()
        assert replay(settings, journal, letter) == (True, "stored 2, duplicate 0, ignored 0")
        first, second = journal.pending(0, 10)
        assert (first.topic, first.event_topic, first.advances) == ("m/status", "event/status/read", True)
        assert second.advances is False
        assert before <= first.received <= time.time()
        assert numbers(journal) == []

    def test_an_entry_likewise(self, settings: Settings, journal: SqliteJournal) -> None:
        """It was buried in a value of its own for this."""
        letter = bury(journal, "item", b'{"statuses":[{"id":"m","status":"read","timestamp":"1790000000"}]}')
        assert replay(settings, journal, letter) == (True, "stored 1, duplicate 0, ignored 0")
        assert numbers(journal) == []

    def test_twice_is_once(self, settings: Settings, journal: SqliteJournal) -> None:
        """Whoever replays what the sender has sent again meanwhile must not open the gate twice (promise 3)."""
        body = b'{"statuses":[{"id":"m","status":"read","timestamp":"1790000000"}]}'
        for words in ("stored 1, duplicate 0, ignored 0", "stored 0, duplicate 1, ignored 0"):
            assert replay(settings, journal, bury(journal, "callback", body)) == (True, words)
        assert len(journal.pending(0, 10)) == 1

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (b"no JSON", "still not understood: "),
            (b'{"statuses":[{"status":"read"}]}', "still not understood: statuses[]: id is missing or empty"),
        ],
    )
    def test_what_is_still_not_understood_stays(
        self, settings: Settings, journal: SqliteJournal, body: bytes, words: str
    ) -> None:
        """Dropped after a vain try, it would be gone for good."""
        letter = bury(journal, "callback", body)
        worked, said = replay(settings, journal, letter)
        assert not worked
        assert said.startswith(words)
        assert numbers(journal) == [letter.number]
        assert journal.pending(0, 10) == []

    def test_dots_are_encoded_where_the_bridge_encodes_them(self, make_settings: MakeSettings) -> None:
        """On RabbitMQ the replayed message would have two topics."""
        settings = make_settings(mqtt__encode_dots="true")
        journal = journal_of(settings)
        journal.create()
        with journal:
            letter = bury(journal, "callback", b'{"statuses":[{"id":"wamid.m","status":"read"}]}')
            replay(settings, journal, letter)
            assert [stored.topic for stored in journal.pending(0, 10)] == ["wamid%2Em/status"]

    def test_a_publication_goes_out_again_with_its_old_identity(
        self, settings: Settings, journal: SqliteJournal
    ) -> None:
        """After the broker's limit was raised."""
        entry = Entry("0" * 31 + "1", Kind.BUTTON, "button/b", "event/button/b", 0, 1, NOW, "{}")
        journal.append([Callback((entry,))])
        journal.settle(1)
        letter = bury(journal, "publication", b"{}", seq=1)
        assert replay(settings, journal, letter) == (True, "it is published again")
        (again,) = journal.pending(journal.settled(), 10)
        assert again.event_id == entry.event_id
        assert numbers(journal) == []

    def test_the_letters_of_one_update_are_one_try(self, settings: Settings, journal: SqliteJournal) -> None:
        """An update has up to three publications; each of them tried by itself would fire a click three times."""
        journal.append([Callback((Entry("0" * 32, Kind.BUTTON, "button/b", "event/button/b", 0, 1, NOW, "{}"),))])
        journal.settle(1)
        first, second = bury(journal, "publication", b"{}", seq=1), bury(journal, "publication", b"{}", seq=1)
        assert replay(settings, journal, first) == (True, "it is published again")
        journal.settle(2)
        again = journal.dead_letter(second.number)
        assert again is not None
        assert replay(settings, journal, again) == (True, "it was published again with the rest of its update")
        assert journal.pending(2, 10) == []
        assert numbers(journal) == []

    @pytest.mark.parametrize("seq", [None, 77])
    def test_a_publication_whose_update_is_gone_stays(
        self, settings: Settings, journal: SqliteJournal, seq: int | None
    ) -> None:
        """It is all that is left of it."""
        letter = bury(journal, "publication", b"{}", seq=seq)
        assert replay(settings, journal, letter) == (False, "its update is not in the journal any more")
        assert numbers(journal) == [letter.number]

    def test_the_publisher_is_woken(self, settings: Settings, journal: SqliteJournal, tmp_path: Path) -> None:
        """A replay that shows its effect a moment later looks as if it had none."""
        with Doorbell(tmp_path / "journal.bell") as bell:
            letter = bury(journal, "callback", b'{"statuses":[{"id":"m","status":"read"}]}')
            dead_letters.replay(settings, journal, letter)
            assert bell._socket.recv(16)
