"""Whose clicks fire: the lists, the receiver that asks them, and a second try when they have changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from bridge import config
from bridge.clicks import Allowed
from bridge.config import Buttons, ConfigError, Settings, Webhook
from bridge.dead_letters import journal_of, replay
from bridge.journal import Callback, Outcome
from bridge.journal.sqlite import SqliteJournal
from bridge.meter import Meters
from bridge.model import ButtonClick
from bridge.payload import parse
from bridge.receiver import Receiver
from bridge.secret import veil_of
from bridge.simulate import click, in_cloud_envelope
from tests.unit.callers import as_wsgi
from tests.unit.test_receiver import NOW, call

FRIEND, STRANGER = "15550001234", "15550007777"


def clicked(**parts: Any) -> ButtonClick:
    return ButtonClick(**{"payload": "open_gate", "message_id": "m1", "sender": FRIEND} | parts)


class TestTheLists:
    def test_with_no_list_every_click_fires(self) -> None:
        """The default; who wants no list need not know of it."""
        assert Allowed(Buttons()).refusal(clicked(sender=None), None) is None

    @pytest.mark.parametrize("written", ["15550001234", "+1 555 000-1234", "+1 (555) 000 1234", "0015550001234"])
    @pytest.mark.parametrize("came", ["15550001234", "+15550001234", "+1 555 0001234"])
    def test_numbers_are_compared_by_their_digits(self, written: str, came: str) -> None:
        """A number is written in as many ways as there are people, and one way only opens the gate otherwise."""
        assert Allowed(Buttons(allow_from=(written,))).refusal(clicked(sender=came), None) is None

    @pytest.mark.parametrize(
        "sender", [STRANGER, None, "", "1555000123", "155500012345", "5550001234", "*******1234", "h-3f2a9c0b1d4e5f60"]
    )
    def test_all_others_are_refused(self, sender: str | None) -> None:
        """The gate opens to a stranger, or to a number that only looks like the right one."""
        allowed = Allowed(Buttons(allow_from=(FRIEND,)))
        assert allowed.refusal(clicked(sender=sender), None) == "who clicked is not in buttons.allow_from"

    def test_user_ids_are_compared_as_they_are(self) -> None:
        """WhatsApp gives some people an id in the number's place or beside it."""
        allowed = Allowed(Buttons(allow_from=("US.13491208655302741918",)))
        assert allowed.refusal(clicked(sender="US.13491208655302741918"), "US.13491208655302741918") is None
        assert allowed.refusal(clicked(sender=STRANGER), "US.13491208655302741918") is None
        assert allowed.refusal(clicked(sender=STRANGER), "us.13491208655302741918") is not None
        assert allowed.refusal(clicked(sender="13491208655302741918"), None) is not None

    @pytest.mark.parametrize("template", [{"name": "gate_open"}, {"id": "42"}, {"id": 42, "name": "another"}])
    def test_templates_are_known_by_name_or_id(self, template: dict[str, Any]) -> None:
        """Vendors tell one or the other."""
        assert Allowed(Buttons(templates=("gate_open", "42"))).refusal(clicked(template=template), None) is None

    @pytest.mark.parametrize("template", [None, {}, {"name": "other"}, {"name": None}, {"name": ["gate_open"]}])
    def test_a_click_of_no_listed_template_is_refused(self, template: dict[str, Any] | None) -> None:
        """A button of the same payload in somebody's else template would fire."""
        allowed = Allowed(Buttons(templates=("gate_open",)))
        assert allowed.refusal(clicked(template=template), None) == "the button's template is not in buttons.templates"

    def test_payloads_are_compared_to_the_letter(self) -> None:
        """So are topics and automations."""
        allowed = Allowed(Buttons(payloads=("open_gate",)))
        assert allowed.refusal(clicked(), None) is None
        refusal = "the button's payload is not in buttons.payloads"
        assert allowed.refusal(clicked(payload="Open_gate"), None) == refusal

    def test_all_lists_that_are_set_must_hold(self) -> None:
        """One that is set for more safety must not open what another closed."""
        allowed = Allowed(Buttons(allow_from=(FRIEND,), templates=("t",), payloads=("open_gate",)))
        assert allowed.refusal(clicked(template={"name": "t"}), None) is None
        for wrong in ({"sender": STRANGER}, {"template": {"name": "u"}}, {"payload": "x"}):
            assert allowed.refusal(clicked(**{"template": {"name": "t"}} | wrong), None) is not None


class TestTheSettings:
    @pytest.mark.parametrize("written", ["0170 1234567", "1234", "+", "not a number", "ü", ""])
    def test_what_is_no_number_with_its_country_is_refused_at_start(
        self, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It would match nobody, and the owner stand before a closed gate."""
        file = tmp_path / "config.yaml"
        file.write_text(f"buttons: {{allow_from: [{json.dumps(written)}]}}")
        with pytest.raises(ConfigError, match=r"buttons\.allow_from: .*write e\.g\."):
            config.load(file, {})

    def test_numbers_need_no_quotes(self, tmp_path: Path) -> None:
        """YAML takes them for numbers, and 0049 for one to the base of eight."""
        file = tmp_path / "config.yaml"
        file.write_text("buttons: {allow_from: [15550001234, +15550001235, 0015550001236], payloads: [007]}")
        buttons = config.load(file, {}).settings.buttons
        assert buttons.allow_from == ("15550001234", "+15550001235", "0015550001236")
        assert buttons.payloads == ("007",)

    def test_an_unquoted_yes_is_told(self, tmp_path: Path) -> None:
        """YAML takes it for true, which is the payload of no button."""
        file = tmp_path / "config.yaml"
        file.write_text("buttons: {payloads: [yes]}")
        with pytest.raises(ConfigError, match="put it in quotes"):
            config.load(file, {})


SHAPES = {"flat": lambda body: body, "cloud": in_cloud_envelope}
MODES = ("keep", "mask", "hash")


class Home:
    """A journal, and settings that may change."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._set = monkeypatch.setenv
        self._set("STATE_DIRECTORY", str(folder))
        self._set("WHATSAPP2MQTT_JOURNAL__URL", f"sqlite://{folder}/journal.db")
        self.meters = Meters(1)
        self._meter = self.meters.claim()
        self.asked: list[Callback] = []

    def settings(self, numbers: str, **buttons: str) -> Settings:
        self._set("WHATSAPP2MQTT_PRIVACY__NUMBERS", numbers)
        for name, value in buttons.items():
            self._set(f"WHATSAPP2MQTT_BUTTONS__{name.upper()}", value)
        return config.load(None).settings

    def post(self, journal: SqliteJournal, settings: Settings, body: object) -> dict[str, int]:
        async def append(callback: Callback) -> Outcome:
            self.asked.append(callback)
            (outcome,) = journal.append([callback])
            return outcome

        receiver = Receiver(
            Webhook(),
            append,
            buttons=settings.buttons,
            veil=veil_of(settings, make=True),
            now=lambda: NOW,
            meter=self._meter,
        )
        answer: dict[str, int] = call(as_wsgi(receiver), orjson.dumps(body)).json
        return answer


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    return Home(tmp_path, monkeypatch)


@pytest.fixture
def journal(home: Home) -> Iterator[SqliteJournal]:
    opened = journal_of(home.settings("keep"))
    opened.create()
    with opened:
        yield opened


@pytest.mark.parametrize("numbers", MODES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_strangers_click_becomes_a_dead_letter_and_no_update(
    home: Home, journal: SqliteJournal, shape: Callable[[Any], Any], numbers: str
) -> None:
    """Whatever is an update is published, fires, and teaches Home Assistant a button."""
    settings = home.settings(numbers, allow_from="+1 555 000-1234")
    answer = home.post(journal, settings, shape(click(payload="open_gate", text="Open", sender=STRANGER)))
    assert answer == {"stored": 0, "duplicate": 0, "ignored": 0, "dead": 1}
    assert journal.pending(0, 10) == []
    (letter,) = journal.dead_letters()
    assert (letter.source, letter.reason) == ("item", "who clicked is not in buttons.allow_from")
    assert (STRANGER.encode() in letter.body) is (numbers == "keep")
    counted = home.meters.read().entries
    assert counted["button", "refused"] == 1
    assert counted["unknown", "dead"] == 0
    assert home.post(journal, settings, shape(click(payload="open_gate", text="Open", sender=FRIEND)))["stored"] == 1
    assert home.meters.read().entries["button", "stored"] == 1


@pytest.mark.parametrize("numbers", MODES)
def test_it_is_tried_again_when_the_list_has_changed_and_not_before(
    home: Home, journal: SqliteJournal, numbers: str
) -> None:
    """A member of the family was forgotten in the list; a stranger must not come in by a second try."""
    friend, twin = "15550001234", "25550001234"  # whose masks are the same
    settings = home.settings(numbers, allow_from=STRANGER)
    body = click(payload="open_gate", text="Open", sender=friend)
    body["contacts"] = [
        {"wa_id": friend, "profile": {"name": "Somebody"}},
        {"wa_id": twin, "profile": {"name": "Other"}},
    ]
    home.post(journal, settings, body)
    (letter,) = journal.dead_letters()
    assert b"Other" not in letter.body
    for others in (STRANGER, f"{STRANGER},{twin}"):
        worked, words = replay(home.settings(numbers, allow_from=others), journal, letter)
        assert not worked
        assert words == "still refused: who clicked is not in buttons.allow_from"
        assert [one.number for one in journal.dead_letters()] == [letter.number]
    worked, words = replay(home.settings(numbers, allow_from=f"{STRANGER},+1 (555) 000-1234"), journal, letter)
    assert worked
    assert words == "stored 1, duplicate 0, ignored 0"
    assert journal.dead_letters() == []
    (stored,) = journal.pending(0, 10)
    document = orjson.loads(stored.document)
    assert document["name"] == "Somebody"
    assert (document["from"] == friend) is (numbers == "keep")


@pytest.mark.parametrize("numbers", MODES)
def test_user_ids_go_the_same_way(home: Home, journal: SqliteJournal, numbers: str) -> None:
    """Who has no number to show is no less a stranger, and no less a friend."""
    message = {"from_user_id": "US.13491208655302741918", "type": "button", "id": "m1", "button": {"payload": "x"}}
    body = {"messages": [message]}
    home.post(journal, home.settings(numbers, allow_from=FRIEND), body)
    (letter,) = journal.dead_letters()
    assert not replay(home.settings(numbers), journal, letter)[0]
    assert replay(home.settings(numbers, allow_from="US.13491208655302741918"), journal, letter)[0]
    again = {"messages": [message | {"id": "m2"}]}
    assert home.post(journal, home.settings(numbers), again)["stored"] == 1


def test_what_stands_beside_a_refused_click_goes_on(home: Home, journal: SqliteJournal) -> None:
    """A stranger's click in the same POST must cost nobody else's, and no status."""
    settings = home.settings("mask", allow_from=FRIEND)
    body: dict[str, Any] = click(payload="a", text="A", sender=FRIEND)
    body["messages"] += click(payload="b", text="B", sender=STRANGER)["messages"]
    body["messages"].append({"type": "button", "id": None})
    body["statuses"] = [{"id": "m1", "status": "read", "recipient_id": STRANGER}]
    assert home.post(journal, settings, body) == {"stored": 2, "duplicate": 0, "ignored": 0, "dead": 2}
    counted = home.meters.read().entries
    assert counted["button", "refused"] == counted["unknown", "dead"] == 1


def test_a_hash_in_a_callback_is_nobodys(home: Home, journal: SqliteJournal) -> None:
    """The hash of a number can be read on the broker; posted in its place, it must open nothing."""
    settings = home.settings("hash", allow_from=FRIEND)
    veil = veil_of(settings, make=True)
    assert veil is not None
    body = {"messages": [{"from": veil.hashed(FRIEND), "type": "button", "id": "m1", "button": {"payload": "x"}}]}
    assert home.post(journal, settings, body)["dead"] == 1


def test_nobody_is_asked_where_there_is_no_list() -> None:
    """The way of every callback stays as short as it was."""
    body = orjson.dumps(click(payload="a", text="A", sender=STRANGER))
    assert len(parse(body).updates) == 1
