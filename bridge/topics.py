"""Updates to topics and JSON: the contract with everything that subscribes. Pure.

Promises kept here (numbers as in docs/how-it-works.md):
  7. Hostile text stays text: whatever a callback brings becomes one topic level without `+ # /`, NUL or controls,
     and the JSON has our own keys in our own order.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, unquote

import orjson

from bridge.model import ButtonClick, Kind, StatusUpdate, Update, iso_utc

#: A level longer than this many bytes keeps its first `LEVEL_KEPT` and ends in `~` and a digest.
LEVEL_LIMIT = 200
LEVEL_KEPT = 160

#: Levels of our own that a message id must not look like, so that `<base>/+/status` never meets a button
#: whose payload reads `status`, nor our own topics.
RESERVED_MESSAGE_IDS = frozenset({"button", "event", "last", "bridge"})
RESERVED_PAYLOADS = frozenset({"status"})

#: Topics about the bridge itself, below the base topic.
BRIDGE_STATE = "bridge/state"
BRIDGE_INFO = "bridge/info"
BRIDGE_CHECKPOINT = "bridge/checkpoint"
BRIDGE_HEALTH = "bridge/health"
BRIDGE_REQUEST = "bridge/request"
BRIDGE_RESPONSE = "bridge/response"
BRIDGE_DOCTOR = "bridge/doctor"
BRIDGE_REPLICA = "bridge/replica"

#: One topic of each family in which updates are published, and whether they are retained there. Updates never stand on
#: them, as no text becomes this level; and `event/button/+`, on which automations hang, does not match.
PROBES = (("%doctor/status", True), ("button/%doctor", True), ("last/%doctor", True), ("event/%doctor", False))

_NOT_PLAIN = re.compile(r"[^A-Za-z0-9_.\-]+").sub
_CUT_ESCAPE = re.compile(r"%[0-9A-F]?$")


@dataclass(frozen=True, slots=True)
class Entry:
    """An update made ready to be stored and published: topics stand below the base topic.

    Attributes:
        event_id: 32 hex digits, the same whenever the same update comes again.
        kind: Status or button.
        topic: The retained topic, e.g. `wamid.x%3D/status`.
        event_topic: The topic of the event, never retained, e.g. `event/status/read`.
        rank: The higher one holds the retained topic.
        timestamp: Epoch seconds of the update itself, or None; decides between equal ranks.
        received: Epoch seconds of the receipt.
        document: The JSON, as text.
    """

    event_id: str
    kind: Kind
    topic: str
    event_topic: str
    rank: int
    timestamp: int | None
    received: float
    document: str


def entry(update: Update, received: float, *, encode_dots: bool = False, event_id: str | None = None) -> Entry:
    """Project an update: its topics and its JSON.

    Args:
        update: What the callback said.
        received: Epoch seconds of its receipt.
        encode_dots: Also encode `.`, for brokers that give it a meaning.
        event_id: Its identity where that is not its own: once numbers were replaced, two updates may look alike.
    """
    if isinstance(update, StatusUpdate):
        topic = f"{message_level(update.message_id, encode_dots=encode_dots)}/status"
        event_topic = f"event/status/{level(update.status, encode_dots=encode_dots)}"
    else:
        button = payload_level(update.payload, encode_dots=encode_dots)
        topic = f"button/{button}"
        event_topic = f"event/button/{button}"
    event_id = event_id or update.event_id
    return Entry(
        event_id=event_id,
        kind=update.kind,
        topic=topic,
        event_topic=event_topic,
        rank=update.rank,
        timestamp=update.timestamp,
        received=received,
        document=document(update, received, event_id).decode(),
    )


def level(text: str, *, encode_dots: bool = False) -> str:
    """One topic level from any text: reversible by `text_of` as long as it is not cut.

    Percent-encodes the UTF-8 of all but `A-Z a-z 0-9 - _ .`; an empty text is `%`, as a level of no length is
    legal in MQTT but not everywhere.

    Raises:
        UnicodeEncodeError: The text holds half of a surrogate pair.
    """
    encoded = _NOT_PLAIN(_escaped, text)
    if encode_dots:
        encoded = encoded.replace(".", "%2E")
    if len(encoded) > LEVEL_LIMIT:
        kept = _CUT_ESCAPE.sub("", encoded[:LEVEL_KEPT])
        return f"{kept}~{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    return encoded or "%"


def _escaped(found: re.Match[str]) -> str:
    return _quoted(found[0])


@lru_cache(256)
def _quoted(text: str) -> str:
    return quote(text, safe="").replace("~", "%7E")


def message_level(message_id: str, *, encode_dots: bool = False) -> str:
    """The level of a message id, told apart from our own words."""
    return _told_apart(message_id, RESERVED_MESSAGE_IDS, encode_dots=encode_dots)


def payload_level(payload: str, *, encode_dots: bool = False) -> str:
    """The level of a button's payload, told apart from our own words."""
    return _told_apart(payload, RESERVED_PAYLOADS, encode_dots=encode_dots)


def _told_apart(text: str, reserved: frozenset[str], *, encode_dots: bool) -> str:
    if text in reserved:
        return f"%{ord(text[0]):02X}{text[1:]}"
    return level(text, encode_dots=encode_dots)


def text_of(encoded: str) -> str | None:
    """The text behind a level, or None if the level was cut and only the JSON has it."""
    if "~" in encoded:
        return None
    return "" if encoded == "%" else unquote(encoded, errors="strict")


def document(update: Update, received: float, event_id: str) -> bytes:
    """The JSON of an update, own keys in own order; what the callback did not bring stays absent.

    Raises:
        orjson.JSONEncodeError: A text holds half of a surrogate pair.
    """
    came = iso_utc(received)
    keys = _status_keys(update, came) if isinstance(update, StatusUpdate) else _click_keys(update, came)
    brought = {key: value for key, value in keys.items() if value is not None or key == "timestamp"}
    brought["event_id"] = event_id
    return orjson.dumps(brought)


def _status_keys(update: StatusUpdate, received: str) -> dict[str, object]:
    return {
        "message_id": update.message_id,
        "status": update.status,
        "timestamp": update.timestamp,
        "received_at": received,
        "recipient_id": update.recipient_id,
        "conversation": update.conversation,
        "errors": update.errors,
        "business_phone": update.business_phone,
    }


def _click_keys(click: ButtonClick, received: str) -> dict[str, object]:
    return {
        "payload": click.payload,
        "text": click.text,
        # Under this name Home Assistant's event entity looks for what happened.
        "event_type": click.payload,
        "message_id": click.message_id,
        "from": click.sender,
        "name": click.name,
        "timestamp": click.timestamp,
        "received_at": received,
        "context": click.context,
        "tag_name": click.tag_name,
        "template": click.template,
        "wa_ext": click.wa_ext,
        "business_phone": click.business_phone,
        "test": click.test or None,
    }


def marked_late(document: str) -> str:
    """The same JSON with `"late": true` at its end: a click that was too old to fire."""
    return f'{document[:-1]},"late":true}}'
