"""Topics and JSON: what everything that subscribes relies on."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import fields, replace
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from bridge import topics
from bridge.model import ButtonClick, Kind, StatusUpdate, Update
from bridge.topics import (
    LEVEL_LIMIT,
    RESERVED_MESSAGE_IDS,
    RESERVED_PAYLOADS,
    document,
    entry,
    level,
    marked_late,
    message_level,
    payload_level,
    text_of,
)

RECEIVED = 1_767_225_605.25
RECEIVED_AT = "2026-01-01T00:00:05.250Z"

STATUS = StatusUpdate(
    message_id="m1",
    status="failed",
    timestamp=1_767_225_600,
    timestamp_text="1767225600",
    recipient_id="15550001234",
    conversation={"id": "c1"},
    errors=[{"code": 470}],
    business_phone="15550009000",
)
STATUS_KEYS = [
    "message_id",
    "status",
    "timestamp",
    "received_at",
    "recipient_id",
    "conversation",
    "errors",
    "business_phone",
    "event_id",
]
CLICK = ButtonClick(
    payload="go",
    message_id="k1",
    text="Go",
    timestamp=1_767_225_600,
    timestamp_text="1767225600",
    sender="15550001234",
    name="Ada",
    context={"id": "m1"},
    tag_name="vip",
    wa_ext='{"templateId":1}',
    template={"id": 1},
    business_phone="15550009000",
)
CLICK_KEYS = [
    "payload",
    "text",
    "event_type",
    "message_id",
    "from",
    "name",
    "timestamp",
    "received_at",
    "context",
    "tag_name",
    "template",
    "wa_ext",
    "business_phone",
    "event_id",
]

# --- one level ---------------------------------------------------------------------------------------------------

#: Any text, and texts that look like levels, like cut levels, or are just too long for one.
TEXTS = st.one_of(
    st.text(),
    st.text("ab.-_~%/+#$ \x00\x1f\x7f\u00e9\u20ac\U0001f600", max_size=12),
    st.sampled_from([*RESERVED_MESSAGE_IDS, *RESERVED_PAYLOADS, "%62utton", "%73tatus", "%", "%25", ".", ".."]),
    st.builds(lambda text, times: (text * times)[:400], st.text(min_size=1, max_size=3), st.integers(1, 400)),
)


#: Every escape whole; a tilde only before the digest of a level that was cut.
ANY_LEVEL = r"([A-Za-z0-9_.\-]|%[0-9A-F]{2})+(~[0-9a-f]{32})?|%"


@given(TEXTS, st.booleans())
@example("a\nb", False)
@example("\U0001f6aa" * 256, False)
@example("." * 67, True)
def test_whatever_comes_is_one_level_that_every_broker_takes(text: str, encode_dots: bool) -> None:
    """A wildcard, a slash or a control in a topic: the broker hangs up, or someone else's topic is written."""
    for one in (
        level(text, encode_dots=encode_dots),
        message_level(text, encode_dots=encode_dots),
        payload_level(text, encode_dots=encode_dots),
    ):
        assert re.fullmatch(ANY_LEVEL, one, re.ASCII)
        assert len(one.encode()) <= LEVEL_LIMIT
        assert not (encode_dots and "." in one)


@given(TEXTS, st.booleans())
def test_a_level_can_be_read_back_unless_it_was_cut(text: str, encode_dots: bool) -> None:
    """Nobody could tell from a topic which message or button it belongs to."""
    whole = len("".join("xxx"[: 1 if re.fullmatch(r"[A-Za-z0-9_.-]", c) else 3] for c in _bytes(text)))
    whole += 2 * text.count(".") * encode_dots
    for make in (level, message_level, payload_level):
        one = make(text, encode_dots=encode_dots)
        assert text_of(one) == (text if whole <= 200 else None)


def _bytes(text: str) -> str:
    """A character for each byte; those of one byte are themselves."""
    return text.encode().decode("latin-1")


@given(TEXTS, st.data())
def test_two_texts_never_share_a_level(text: str, data: st.DataObject) -> None:
    """The state of one message would stand in the topic of another."""
    other = data.draw(
        st.one_of(
            TEXTS,
            st.sampled_from(
                [
                    level(text),
                    message_level(text),
                    payload_level(text),
                    unquote(text, errors="ignore"),
                    text[:-1],
                    text + "x",
                    text[:160] + "x" + text[161:],
                    text.swapcase(),
                    text.replace(".", "%2E"),
                ]
            ),
        )
    )
    assume(other != text)
    for make in (level, message_level, payload_level):
        for encode_dots in (False, True):
            assert make(text, encode_dots=encode_dots) != make(other, encode_dots=encode_dots)


@given(st.from_regex(r"[A-Za-z0-9_.\-]{1,200}", fullmatch=True))
def test_plain_text_is_its_own_level(text: str) -> None:
    """Users write topics such as whatsapp/button/gate-open by hand; they must not look encoded."""
    assert level(text) == text


@pytest.mark.parametrize("character", [chr(code) for code in range(256)])
def test_all_but_letters_digits_and_three_signs_are_encoded(character: str) -> None:
    """A sign that some broker gives a meaning would slip through."""
    plain = character in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."
    encoded = "".join(f"%{byte:02X}" for byte in character.encode())
    assert level(character) == (character if plain else encoded)
    assert level(f"a{character} ") == f"a{character if plain else encoded}%20"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("x" * 201, "x" * 160),
        ("x" * 100_000, "x" * 160),
        (" " * 67, "%20" * 53),
        ("xx" + " " * 67, "xx" + "%20" * 52),
        ("x" + " " * 67, "x" + "%20" * 53),
        ("\U0001f6aa" * 17, "%F0%9F%9A%AA" * 13 + "%F0"),
    ],
)
def test_a_level_of_more_than_200_bytes_is_cut_between_escapes_and_ends_in_a_digest(text: str, kept: str) -> None:
    """A broker that refuses long topics would hold up all that stands behind; half an escape could not be read."""
    assert level(text) == f"{kept}~{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    assert text_of(level(text)) is None


def test_exactly_200_bytes_are_not_cut() -> None:
    """The border would differ from what the documents say."""
    assert level("x" * 200) == "x" * 200
    assert level("xx" + " " * 66) == "xx" + "%20" * 66
    assert text_of(level("xx" + " " * 66)) == "xx" + " " * 66


@pytest.mark.parametrize("text", ["\ud83d", "x\udc00", "\ud800" * 300])
def test_half_of_a_surrogate_pair_is_no_level(text: str) -> None:
    """A topic would be made of bytes that are no UTF-8, and the broker would hang up."""
    with pytest.raises(UnicodeEncodeError):
        level(text)


def test_a_text_without_content_is_a_level_of_its_own() -> None:
    """An empty level is legal in MQTT, and lost by some brokers."""
    assert level("") == message_level("") == payload_level("") == "%"
    assert text_of("%") == ""


@pytest.mark.parametrize(
    ("text", "plain", "without_dots"),
    [("a.b", "a.b", "a%2Eb"), ("..", "..", "%2E%2E"), ("a. b", "a.%20b", "a%2E%20b"), ("ab", "ab", "ab")],
)
def test_dots_are_encoded_where_the_setting_says_so(text: str, plain: str, without_dots: str) -> None:
    """RabbitMQ would turn the dot of every wamid into a slash, and the topic would be another one."""
    assert (level(text), level(text, encode_dots=True)) == (plain, without_dots)
    assert text_of(plain) == text_of(without_dots) == text


def test_dots_count_encoded_when_a_level_is_measured() -> None:
    """With the setting on, a level of dots would be up to 600 bytes long."""
    assert level("." * 200) == "." * 200
    assert level("." * 67, encode_dots=True).startswith("%2E" * 53 + "~")


# --- our own words -----------------------------------------------------------------------------------------------


def test_the_reserved_words_are_those_of_the_documents() -> None:
    """A topic of our own that is missing here could be written by whoever chooses a message's id."""
    assert {"button", "event", "last", "bridge"} == RESERVED_MESSAGE_IDS
    assert {"status"} == RESERVED_PAYLOADS
    own = {name: topic for name, topic in vars(topics).items() if name.startswith("BRIDGE_")}
    assert own.items() >= {
        ("BRIDGE_STATE", "bridge/state"),
        ("BRIDGE_INFO", "bridge/info"),
        ("BRIDGE_CHECKPOINT", "bridge/checkpoint"),
    }
    assert {topic.split("/")[0] for topic in own.values()} <= RESERVED_MESSAGE_IDS


@pytest.mark.parametrize(
    ("word", "told_apart"),
    [("button", "%62utton"), ("event", "%65vent"), ("last", "%6Cast"), ("bridge", "%62ridge")],
)
@pytest.mark.parametrize("encode_dots", [False, True])
def test_a_message_id_is_told_apart_from_our_own_words(word: str, told_apart: str, encode_dots: bool) -> None:
    """A message with such an id would overwrite a button, or our own state."""
    assert message_level(word, encode_dots=encode_dots) == told_apart
    assert text_of(told_apart) == word
    assert payload_level(word, encode_dots=encode_dots) == word


@pytest.mark.parametrize("encode_dots", [False, True])
def test_a_payload_is_told_apart_from_status(encode_dots: bool) -> None:
    """Who subscribes to whatsapp/+/status would get a click as the state of a message called `button`."""
    assert payload_level("status", encode_dots=encode_dots) == "%73tatus"
    assert text_of("%73tatus") == "status"
    assert message_level("status", encode_dots=encode_dots) == "status"


@pytest.mark.parametrize("text", ["Button", "buttons", "button ", " button", "STATUS", "status.", "last/", "bridge\n"])
def test_only_the_whole_word_is_reserved(text: str) -> None:
    """Ids that merely begin like one of our words would change their topics."""
    assert message_level(text) == payload_level(text) == level(text)


@given(TEXTS, TEXTS)
def test_no_message_and_no_button_reaches_a_topic_of_another_kind(message_id: str, payload: str) -> None:
    """A message's id chosen by a stranger could open a gate, or write our own state."""
    status = entry(replace(STATUS, message_id=message_id), RECEIVED)
    click = entry(replace(CLICK, payload=payload), RECEIVED)
    first, last = status.topic.split("/")
    assert first not in ("button", "event", "last", "bridge", "")
    assert last == "status"
    first, last = click.topic.split("/")
    assert first == "button"
    assert last not in ("status", "")


# --- an entry ----------------------------------------------------------------------------------------------------


def test_what_the_doctor_tries_is_no_updates_topic() -> None:
    """Its empty message would take a button's state away, or fire an automation."""
    for topic, is_retained in topics.PROBES:
        (reserved,) = set(topic.split("/")) - {"button", "last", "event", "status"}
        assert re.fullmatch(ANY_LEVEL, reserved) is None
        assert is_retained is not topic.startswith("event/")
        assert not re.fullmatch("event/[^/]+/[^/]+", topic)


def test_a_status_is_projected_with_all_that_the_journal_needs() -> None:
    """Topics would change under those who subscribed, or the journal would rank by something else."""
    made = entry(replace(STATUS, message_id="a.b/c", status="on.my way"), RECEIVED)
    assert (made.topic, made.event_topic) == ("a.b%2Fc/status", "event/status/on.my%20way")
    assert (made.kind, made.rank, made.timestamp, made.received) == (Kind.STATUS, 0, 1_767_225_600, RECEIVED)
    made = entry(STATUS, RECEIVED)
    assert (made.topic, made.event_topic) == ("m1/status", "event/status/failed")
    assert (made.rank, made.event_id) == (STATUS.rank, STATUS.event_id)
    assert made.document == document(STATUS, RECEIVED, STATUS.event_id).decode()


def test_a_click_is_projected_with_all_that_the_journal_needs() -> None:
    """Topics would change under those who subscribed, or the journal would rank by something else."""
    made = entry(replace(CLICK, payload="a.b/c", timestamp=None), RECEIVED)
    assert (made.topic, made.event_topic) == ("button/a.b%2Fc", "event/button/a.b%2Fc")
    assert (made.kind, made.rank, made.timestamp, made.received) == (Kind.BUTTON, 0, None, RECEIVED)
    made = entry(CLICK, RECEIVED)
    assert (made.topic, made.event_topic, made.event_id) == ("button/go", "event/button/go", CLICK.event_id)
    assert made.document == document(CLICK, RECEIVED, CLICK.event_id).decode()


def test_a_projection_encodes_dots_in_all_its_levels() -> None:
    """With the setting on, half of the topics would still have dots."""
    status = entry(replace(STATUS, message_id="wamid.x", status="on.my.way"), RECEIVED, encode_dots=True)
    assert (status.topic, status.event_topic) == ("wamid%2Ex/status", "event/status/on%2Emy%2Eway")
    click = entry(replace(CLICK, payload="gate.open"), RECEIVED, encode_dots=True)
    assert (click.topic, click.event_topic) == ("button/gate%2Eopen", "event/button/gate%2Eopen")
    assert json.loads(status.document)["message_id"] == "wamid.x"


# --- the JSON ----------------------------------------------------------------------------------------------------


def test_a_status_says_all_in_the_order_of_the_documents() -> None:
    """What reads the JSON by its place, or relies on a key, would break."""
    made = json.loads(document(STATUS, RECEIVED, "0" * 32))
    assert list(made) == STATUS_KEYS
    assert made == {
        "message_id": "m1",
        "status": "failed",
        "timestamp": 1_767_225_600,
        "received_at": RECEIVED_AT,
        "recipient_id": "15550001234",
        "conversation": {"id": "c1"},
        "errors": [{"code": 470}],
        "business_phone": "15550009000",
        "event_id": "0" * 32,
    }


def test_a_click_says_all_in_the_order_of_the_documents() -> None:
    """What reads the JSON by its place, or relies on a key, would break."""
    made = json.loads(document(CLICK, RECEIVED, "0" * 32))
    assert list(made) == CLICK_KEYS
    assert made == {
        "payload": "go",
        "text": "Go",
        "event_type": "go",
        "message_id": "k1",
        "from": "15550001234",
        "name": "Ada",
        "timestamp": 1_767_225_600,
        "received_at": RECEIVED_AT,
        "context": {"id": "m1"},
        "tag_name": "vip",
        "template": {"id": 1},
        "wa_ext": '{"templateId":1}',
        "business_phone": "15550009000",
        "event_id": "0" * 32,
    }


#: The keys that are there whatever the callback brought, and the name that a key has as a field.
ALWAYS = {"message_id", "status", "payload", "event_type", "timestamp", "received_at", "event_id"}
FIELDS = {"from": "sender"}


@given(st.sampled_from([STATUS, CLICK]), st.data())
def test_what_the_callback_did_not_bring_stays_absent(update: Update, data: st.DataObject) -> None:
    """Templates would find null where the documents promise that a key is absent."""
    optional = {field.name for field in fields(update) if field.default is None}
    absent = data.draw(st.sets(st.sampled_from(sorted(optional))))
    brought: Any = dict.fromkeys(absent)
    made = json.loads(document(replace(update, **brought), RECEIVED, "0" * 32))
    keys = STATUS_KEYS if update.kind is Kind.STATUS else CLICK_KEYS
    assert list(made) == [key for key in keys if key in ALWAYS or FIELDS.get(key, key) not in absent]
    assert made["timestamp"] == (None if "timestamp" in absent else update.timestamp)


def test_empty_is_not_absent() -> None:
    """What the vendor sent as an empty text, a zero or false would disappear from the JSON."""
    made = json.loads(document(replace(CLICK, text="", tag_name="", wa_ext=False, timestamp=0), RECEIVED, "0" * 32))
    assert (made["text"], made["tag_name"], made["wa_ext"], made["timestamp"]) == ("", "", False, 0)


@given(st.text(), st.text(), st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
def test_the_raw_text_is_always_in_the_json(message_id: str, payload: str, context: dict[str, Any]) -> None:
    """A level that was cut or encoded could not be traced to its message or button."""
    made = json.loads(entry(replace(STATUS, message_id=message_id, conversation=context), RECEIVED).document)
    assert (made["message_id"], made["conversation"]) == (message_id, context)
    assert list(made) == STATUS_KEYS
    made = json.loads(entry(replace(CLICK, payload=payload, wa_ext=context), RECEIVED).document)
    assert (made["payload"], made["event_type"], made["wa_ext"]) == (payload, payload, context)
    assert list(made) == CLICK_KEYS


@given(st.text(), st.sampled_from([STATUS, CLICK]))
def test_a_late_click_says_so_at_its_end_and_is_the_same_otherwise(text: str, update: Update) -> None:
    """An automation could not tell a click of an hour ago from one of now."""
    on_time = entry(replace(update, business_phone=text), RECEIVED).document
    late = json.loads(marked_late(on_time))
    assert list(late)[-1] == "late"
    assert late.pop("late") is True
    assert json.dumps(late) == json.dumps(json.loads(on_time))
    assert "late" not in json.loads(on_time)
