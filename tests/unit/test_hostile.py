"""Promise 7 against the corpus: hostile text stays text, wherever the pure parts of the bridge put it."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import orjson
import pytest
import structlog

from bridge import dead_letters, homeassistant, logs, payload
from bridge.discovery import Discovery
from bridge.homeassistant import Plan
from bridge.journal import Buried
from bridge.journal.sqlite import SqliteJournal
from bridge.model import ButtonClick, Kind
from bridge.privacy import Veil
from bridge.topics import Entry, entry, text_of
from tests import hostile

PLAN = Plan(True, "homeassistant", "whatsapp", "1.2.3", "https://example.org/")

TEXTS = pytest.mark.parametrize("text", hostile.TEXTS.values(), ids=hostile.TEXTS)

#: One level of a topic, as every broker takes it.
LEVEL = r"(?:[A-Za-z0-9_.\-]|%[0-9A-F]{2})+(?:~[0-9a-f]{32})?|%"
TOPICS = re.compile(rf"(?:{LEVEL})/status|button/(?:{LEVEL})").fullmatch
EVENTS = re.compile(rf"event/(?:status|button)/(?:{LEVEL})").fullmatch
OURS = frozenset(
    (
        *("message_id", "status", "timestamp", "received_at", "recipient_id", "conversation", "errors", "event_id"),
        *("business_phone", "payload", "text", "event_type", "from", "name", "context", "tag_name", "template"),
        "wa_ext",
    )
)


def entries(text: str, veil: Veil | None = None) -> list[Entry]:
    """What the corpus' callbacks with this text become."""
    found = []
    for callback in hostile.callbacks(text):
        parsed = payload.parse(orjson.dumps(callback))
        assert not parsed.dead
        project = veil.entry if veil else entry
        found += [project(update, 1_790_000_000.0) for update in parsed.updates]
    assert len(found) == 4
    return found


@TEXTS
def test_a_text_is_one_level_of_a_topic_and_can_be_read_back(text: str) -> None:
    """A payload that names another topic would open another gate, or none."""
    for one in entries(text):
        assert TOPICS(one.topic), one.topic
        assert EVENTS(one.event_topic), one.event_topic
        assert one.topic not in ("bridge/status", "last/status", "event/status", "button/status")
        assert len(one.topic) < 220
        level = one.topic.removeprefix("button/").removesuffix("/status")
        assert text_of(level) in (text, None)
        assert text_of(level) is not None or len(text.encode()) > 60


@TEXTS
def test_the_json_has_our_keys_alone_and_the_text_verbatim(text: str) -> None:
    """`entity_id`, `icon` or `event_types` of a stranger would be read by Home Assistant as ours."""
    for one in entries(text):
        said = json.loads(one.document)
        assert set(said) <= OURS
        assert said["event_id"] == one.event_id != "0" * 32
        assert said["received_at"].startswith("2026-")
        if one.kind is Kind.BUTTON:
            assert said["payload"] == said["text"] == said["event_type"] == text
            assert said.get("name") == (text if len(text) <= payload.MAX_SHARED else None)
        else:
            assert said["message_id"] == text


@TEXTS
@pytest.mark.parametrize("numbers", ["mask", "hash"])
def test_hiding_numbers_makes_no_text_worse(text: str, numbers: str) -> None:
    """What replaces a number must not open what was closed."""
    for one in entries(text, Veil(numbers, bytes(32))):
        assert TOPICS(one.topic), one.topic
        assert EVENTS(one.event_topic), one.event_topic
        assert set(json.loads(one.document)) <= OURS


@TEXTS
def test_home_assistant_is_told_names_and_no_templates(text: str) -> None:
    """A template that a stranger writes would run in Home Assistant with all its rights."""
    [click] = payload.parse(orjson.dumps(hostile.click(text))).updates
    assert isinstance(click, ButtonClick)
    name = homeassistant.button_name(click.payload, click.text, ())
    assert name.isprintable() or "\u200d" in name
    assert 0 < len(name) <= homeassistant.NAME_LIMIT + 20

    told = homeassistant.discover(PLAN, [(text, name)], [])
    without = homeassistant.discover(PLAN, [], [])

    for topic, document in told.items():
        assert re.fullmatch(r"homeassistant/\w+/[A-Za-z0-9_-]+/[A-Za-z0-9_-]+/config", topic)
        said, before = json.loads(document), json.loads(without.get(topic, b"null"))
        if said.get("automation_type") == "trigger":
            assert said.pop("subtype") == name
            assert re.fullmatch(rf"whatsapp/event/button/(?:{LEVEL})", said.pop("topic"))
            assert text not in json.dumps(said) or text in (
                "+",
                "#",
                " ",
                "button",
                "bridge",
                "event",
                "status",
                "last",
            )
        else:
            types = said.get("event_types", [])
            assert not types or before["event_types"] == [one for one in types if one != text]
            said.pop("event_types", None)
            before.pop("event_types", None)
            assert said == before, "the text is nowhere but among the types of events"


def test_buttons_of_any_length_leave_room_for_the_others(tmp_path: Path) -> None:
    """All buttons stand in one JSON; a payload of megabytes in it, and no broker takes it any more."""
    path = tmp_path / "journal.db"
    SqliteJournal(path).create()
    with SqliteJournal(path) as journal:
        discovery = Discovery(PLAN, journal)
        discovery.start()
        clicks = [("é" * 256, "as long as WhatsApp allows"), ("x" * 257, "longer"), ("gate", "x" * 100_000)]
        discovery.meet(
            (seq, Kind.BUTTON, {"payload": word, "text": text}) for seq, (word, text) in enumerate(clicks, 1)
        )
        assert [(one.key, len(one.name)) for one in journal.learned()] == [("é" * 256, 26), ("gate", 60)]


@TEXTS
@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize("colours", [False, True])
def test_a_log_line_stays_one_line(text: str, style: str, *, colours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forged line hides an attack or accuses somebody else; an escape code takes over the terminal that shows it."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: colours)
    monkeypatch.setattr(sys, "stderr", stream)
    before = structlog.get_config()
    try:
        logs.configure("debug", style)
        structlog.get_logger().info(text, why=text, deep={text: [text]}, topic=text)
    finally:
        structlog.configure(**before)
    written = re.sub(r"\x1b\[\d*m", "", stream.getvalue()) if style == "text" and colours else stream.getvalue()
    assert written.endswith("\n")
    line = written[:-1]
    assert line.isprintable(), ascii(line[:300])
    if style == "json":
        assert "event" in json.loads(line)


@TEXTS
def test_a_dead_letter_cannot_steer_the_terminal(text: str) -> None:
    """Whoever looks what went wrong would run what an attacker sent for that purpose."""
    for body in (text.encode(), orjson.dumps([text]), orjson.dumps({text: text}), json.dumps([text]).encode("utf-16")):
        letter = Buried(7, 1_790_000_000.0, "callback", text, None, body)
        assert dead_letters.shown(letter).replace("\n", "").isprintable()
        [row] = dead_letters.listed([letter])
        assert "".join(row).isprintable()


@pytest.mark.parametrize("depth", [32, 200, 255, 500, 1_025, 10_000])
@pytest.mark.parametrize("brackets", ["[]", '{"a":}'])
def test_a_dead_letter_of_any_depth_can_be_shown(depth: int, brackets: str) -> None:
    """A body that nests deeply is refused, and kept; a look at it must not fail."""
    opening, closing = brackets[:-1], brackets[-1]
    body = (opening * depth + "1" + closing * depth).encode()
    shown = dead_letters.shown(Buried(1, 1_790_000_000.0, "callback", "why", None, body))
    assert shown.count(opening[0]) == depth


@pytest.mark.parametrize("half", hostile.HALF_PAIRS)
def test_half_a_surrogate_pair_in_any_place_harms_only_its_entry(half: str) -> None:
    """One emoji cut in two, and a thousand statuses of the same callback would be lost."""
    for callback in hostile.callbacks("TEXT"):
        beside = {"id": "x", "status": "sent"}
        more = {"business_phone": "15550001111", "statuses": [*callback.get("statuses", []), beside]}
        parsed = payload.parse(json.dumps(callback | more).replace("TEXT", half).encode())
        assert "x" in [update.message_id for update in parsed.updates]
        for item in parsed.dead:
            item.body.encode()
