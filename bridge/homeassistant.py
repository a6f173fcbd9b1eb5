"""What Home Assistant is told through MQTT discovery: settings and known buttons to topics and JSON. Pure.

Promises kept here (numbers as in docs/how-it-works.md):
  5. A click fires once: no two subscriptions that follow from here overlap, as a broker may send a message once for
     each that matches (mosquitto does under MQTT 5); and what automations hang on is never retained.
  7. Hostile text stays text: what callbacks bring reaches names and lists, never a template; ids have hashes.

Rules of Home Assistant that this follows, as its sources say from 2024.3 to 2026.11:
  - One JSON for each component under `<prefix>/<component>/<node>/<object>/config`, ids of `[A-Za-z0-9_-]` only.
    Discovery of a whole device in one JSON is not understood before 2024.11.
  - `object_id` proposes the entity id in 2024.3, `default_entity_id` from 2026.4 on. Each ignores the other.
  - The topic of a device trigger is itself taken for a template, as are its `payload` and `value_template`: our levels
    have no brace, and the other two are not used.
  - An event entity wants JSON with `event_type`, one of its `event_types`; a retained message is no event to it.
  - A state has no more than 255 characters; a timestamp sensor of 2024.3 has no word for none.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from bridge import topics
from bridge.config import Button
from bridge.model import Kind

#: Topics of events for Home Assistant's event entities, below the base topic: each takes all events of its kind. They
#: are not those of `event/...`: an entity's wildcard and a trigger's exact topic would overlap there.
FEEDS = {Kind.BUTTON: "bridge/event/button", Kind.STATUS: "bridge/event/message"}

#: Statuses with a name in Home Assistant; all others are `other`.
STATUSES = ("sent", "delivered", "read", "failed", "deleted")
OTHER = "other"

#: Business phones that get a device; more do not.
MAX_PHONES = 20
#: A name longer than this is cut, and a text in `bridge/health` that is longer than what a state may be.
NAME_LIMIT = 60
STATE_LIMIT = 255
#: A button with a longer payload is not shown: all of them stand in one JSON, which a broker must take. WhatsApp allows
#: the id of a reply button 256 characters, and none a longer one.
PAYLOAD_LIMIT = 256

#: Keys of our JSON that entities show; what is not named here does not reach Home Assistant's attributes.
FEED_KEYS = {
    Kind.STATUS: ("status", "message_id", "timestamp", "received_at", "recipient_id", "errors", "business_phone"),
    Kind.BUTTON: (
        *("payload", "text", "message_id", "from", "name", "timestamp", "received_at", "context", "tag_name"),
        *("template", "business_phone", "test"),
    ),
}

_PHONE = re.compile(r"\+?([1-9][0-9]{4,17})").fullmatch


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be shown, as far as settings say.

    Attributes:
        enabled: Whether anything is shown at all.
        prefix: Home Assistant's discovery prefix.
        base_topic: Of the bridge; ids follow from it.
        version: Of the bridge.
        link: Web address on the device's page.
        buttons: Those declared.
        max_buttons: So many are shown.
        encode_dots: As for all topics.
    """

    enabled: bool
    prefix: str
    base_topic: str
    version: str
    link: str
    buttons: tuple[Button, ...] = ()
    max_buttons: int = 100
    encode_dots: bool = False

    @property
    def birth_topic(self) -> str:
        """Where Home Assistant says `online` when it starts."""
        return f"{self.prefix}/status"


# --- names and ids -----------------------------------------------------------------------------------------------


def slug(text: str, fallback: str) -> str:
    """Lower-case letters, digits and single underscores, from any text."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", plain)[:32].strip("_") or fallback


def short_hash(text: str) -> str:
    """10 hex digits that tell texts apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def node(base_topic: str) -> str:
    """The id of the bridge's device; bridges with other base topics have another."""
    return f"whatsapp2mqtt_{short_hash(base_topic)}"


def _entity_prefix(base_topic: str) -> str:
    """What entity ids start with: the base topic, told apart from one that reads alike."""
    plain = slug(base_topic, "whatsapp")
    return plain if plain == base_topic else f"{plain}_{short_hash(base_topic)}"


def readable(text: str) -> str:
    """A name of one line from any text."""
    # Format characters (category Cf) join emoji, but could also turn the direction of what stands beside them.
    visible = "".join(char if char.isprintable() or char == "\u200d" else " " for char in text)
    line = " ".join(visible.split())
    return line if len(line) <= NAME_LIMIT else f"{line[: NAME_LIMIT - 1]}…"


def button_name(payload: str, text: str | None, taken: Iterable[str]) -> str:
    """A name for a button that nobody declared, told apart from those that are taken."""
    used = set(taken)
    # Longer ones are cut in any case, and to look at each character of three million takes its time.
    name = readable((text or "")[:1_000]) or readable(payload) or "Button"
    if name in used:
        name = f"{name} ({readable(payload)})"
    if name in used:
        name = f"{name} {short_hash(payload)}"
    return name


def phone_number(text: object) -> int | None:
    """A business phone as a number, which is all that ever reaches a template; None if it is none."""
    match = _PHONE(text) if isinstance(text, str) else None
    return int(match[1]) if match else None


def known_buttons(plan: Plan, learned: Sequence[tuple[str, str]]) -> list[Button]:
    """The declared buttons and then the learned ones (payload, name), names told apart."""
    known = list(plan.buttons)
    payloads = {button.payload for button in known}
    names = {button.name for button in known}
    for payload, name in learned:
        if payload in payloads:
            continue
        told_apart = button_name(payload, name, names)
        known.append(Button(payload, told_apart))
        names.add(told_apart)
    return known


# --- the events for event entities -------------------------------------------------------------------------------


def feed_document(kind: Kind, event_id: str, document: dict[str, Any]) -> bytes:
    """The JSON of an update as an event entity takes it: `event_type`, and the keys it may show as attributes."""
    if kind is Kind.BUTTON:
        event_type = document["payload"]
    else:
        event_type = document["status"] if document["status"] in STATUSES else OTHER
    shown = {key: document[key] for key in FEED_KEYS[kind] if key in document}
    return orjson.dumps({"event_type": event_type, **shown, "event_id": event_id})


def failure(document: dict[str, Any]) -> dict[str, Any]:
    """What `bridge/health` says about the last message that failed: code and title of its first error."""
    errors = document.get("errors")
    first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
    return {
        "code": _short(first.get("code"), int),
        "title": _short(first.get("title") or first.get("message")),
        "message_id": _short(document.get("message_id")),
        "at": document.get("received_at"),
    }


def _short(value: object, also: type = str) -> object:
    """A text of an attribute's length, or a value of another type that is good as it is; None for all else."""
    if isinstance(value, str):
        return value if len(value) <= STATE_LIMIT else f"{value[: STATE_LIMIT - 1]}…"
    return value if isinstance(value, also) else None


def messages(today: dict[str, int], total: dict[str, int]) -> dict[str, dict[str, int]]:
    """What `bridge/health` says about statuses: how many of each, today and since the journal was made."""
    counts = {status: {"today": today.get(status, 0), "total": total.get(status, 0)} for status in STATUSES}
    known = set(STATUSES)
    counts[OTHER] = {
        "today": sum(count for status, count in today.items() if status not in known),
        "total": sum(count for status, count in total.items() if status not in known),
    }
    return counts


# --- discovery ---------------------------------------------------------------------------------------------------


def trigger_topic(plan: Plan, payload: str) -> str:
    """The discovery topic of a button's device trigger."""
    return _config_topic(plan, "device_automation", f"{slug(payload, 'button')}_{short_hash(payload)}")


def button_event_topic(plan: Plan) -> str:
    """The discovery topic of the event entity that takes all clicks."""
    return _config_topic(plan, "event", "button")


def is_ours(plan: Plan, topic: str) -> bool:
    """Whether a topic is one of this bridge's discovery topics."""
    levels = topic.removeprefix(f"{plan.prefix}/").split("/")
    return topic.startswith(f"{plan.prefix}/") and len(levels) == 4 and levels[1] == node(plan.base_topic)


def discover(plan: Plan, learned: Sequence[tuple[str, str]], phones: Sequence[int]) -> dict[str, bytes]:
    """Everything Home Assistant is to be told: discovery topics and their JSON; nothing if it is switched off.

    Args:
        plan: The settings.
        learned: Payload and name of the buttons that were learned.
        phones: The business phones that callbacks have named.
    """
    if not plan.enabled:
        return {}
    buttons = known_buttons(plan, learned)
    found: dict[str, bytes] = {}
    for entity in (*_of_the_bridge(plan, buttons), *_of_phones(plan, buttons, phones)):
        found[_config_topic(plan, entity.component, entity.key)] = orjson.dumps(_entity(plan, entity))
    for button in buttons:
        found[trigger_topic(plan, button.payload)] = orjson.dumps(_trigger(plan, button))
    return found


@dataclass(frozen=True, slots=True)
class _Entity:
    """An entity to be told about: `key` is its name in ids, `rest` what is its own."""

    component: str
    key: str
    name: str
    rest: dict[str, Any]
    phone: int | None = None


def _config_topic(plan: Plan, component: str, key: str) -> str:
    return f"{plan.prefix}/{component}/{node(plan.base_topic)}/{key}/config"


def _entity(plan: Plan, entity: _Entity) -> dict[str, Any]:
    object_id = f"{_entity_prefix(plan.base_topic)}_{entity.key}"
    document = {
        "name": entity.name,
        "unique_id": f"{node(plan.base_topic)}_{entity.key}",
        "object_id": object_id,
        "default_entity_id": f"{entity.component}.{object_id}",
        "qos": 1,
        "origin": _origin(plan),
        "device": _device(plan, entity.phone),
        **entity.rest,
    }
    if entity.component != "binary_sensor" or entity.rest["state_topic"] != f"{plan.base_topic}/{topics.BRIDGE_STATE}":
        document["availability_topic"] = f"{plan.base_topic}/{topics.BRIDGE_STATE}"
    return document


def _origin(plan: Plan) -> dict[str, str]:
    return {"name": "whatsapp2mqtt", "sw_version": plan.version, "support_url": plan.link}


def _device(plan: Plan, phone: int | None) -> dict[str, Any]:
    bridge = node(plan.base_topic)
    name = "WhatsApp" if plan.base_topic == "whatsapp" else f"WhatsApp {plan.base_topic}"
    common = {"manufacturer": "whatsapp2mqtt", "sw_version": plan.version, "configuration_url": plan.link}
    if phone is None:
        return {"identifiers": [bridge], "name": name, "model": "WhatsApp to MQTT bridge", **common}
    return {
        "identifiers": [f"{bridge}_{phone}"],
        "name": f"{name} {phone}",
        "model": "WhatsApp business phone",
        "via_device": bridge,
        **common,
    }


def _trigger(plan: Plan, button: Button) -> dict[str, Any]:
    level = topics.payload_level(button.payload, encode_dots=plan.encode_dots)
    return {
        "automation_type": "trigger",
        "topic": f"{plan.base_topic}/event/button/{level}",
        # Home Assistant has words for this type in every language: "Open the gate" pressed.
        "type": "button_short_press",
        "subtype": button.name,
        "qos": 1,
        "origin": _origin(plan),
        "device": _device(plan, None),
    }


def _only(phone: int) -> str:
    """A template that lets the events of one business phone through; nothing is no event."""
    return f"{{{{ value if value_json.business_phone | default('') | replace('+', '') == '{phone:d}' else '' }}}}"


def _attributes(*keys: str) -> str:
    """A template that gives these keys of the JSON, where they are there, as attributes."""
    listed = ", ".join(f"'{key}'" for key in keys)
    return (
        "{% set found = namespace(keys={}) %}{% set value_json = value_json | default({}) %}"
        f"{{% for key in [{listed}] if key in value_json %}}"
        "{% set found.keys = dict(found.keys, **{key: value_json[key]}) %}{% endfor %}{{ found.keys | to_json }}"
    )


def _events(plan: Plan, buttons: Sequence[Button], phone: int | None) -> list[_Entity]:
    """The two event entities of the bridge, or of one business phone."""
    prefix = "" if phone is None else f"{phone}_"
    mine: dict[str, Any] = {} if phone is None else {"value_template": _only(phone)}
    button_topic, status_topic = (f"{plan.base_topic}/{FEEDS[kind]}" for kind in (Kind.BUTTON, Kind.STATUS))
    clicks = {"state_topic": button_topic, "event_types": [button.payload for button in buttons]}
    statuses = {"state_topic": status_topic, "event_types": [*STATUSES, OTHER]}
    return [
        _Entity("event", f"{prefix}button", "Button", {**clicks, "device_class": "button", **mine}, phone),
        _Entity(
            "event",
            f"{prefix}message_status",
            "Message status",
            {**statuses, "icon": "mdi:message-check", **mine},
            phone,
        ),
    ]


def _of_phones(plan: Plan, buttons: Sequence[Button], phones: Sequence[int]) -> list[_Entity]:
    return [entity for phone in phones for entity in _events(plan, buttons, phone)]


def _of_declared(plan: Plan, button: Button) -> _Entity:
    """An event entity of its own for a declared button; its topic is its trigger's, so they share a subscription."""
    level = topics.payload_level(button.payload, encode_dots=plan.encode_dots)
    # No attributes but our own: the click's JSON has more than a recorder should keep.
    rest = {
        "state_topic": f"{plan.base_topic}/event/button/{level}",
        "event_types": ["clicked"],
        "value_template": _CLICKED,
        "device_class": "button",
        **({"icon": button.icon} if button.icon else {}),
    }
    key = f"button_{slug(button.payload, 'button')}_{short_hash(button.payload)}"
    return _Entity("event", key, button.name, rest)


def _of_the_bridge(plan: Plan, buttons: Sequence[Button]) -> list[_Entity]:
    base = plan.base_topic
    health, state = f"{base}/{topics.BRIDGE_HEALTH}", f"{base}/{topics.BRIDGE_STATE}"
    last_status, last_button = f"{base}/last/status", f"{base}/last/button"
    return [
        *_events(plan, buttons, None),
        *(_of_declared(plan, button) for button in plan.buttons),
        _Entity(
            "sensor",
            "last_status",
            "Last message status",
            {
                "state_topic": last_status,
                "value_template": "{{ (value_json.status if value_json is defined else 'none')[:255] }}",
                "json_attributes_topic": last_status,
                "json_attributes_template": _STATUS_ATTRIBUTES,
                "icon": "mdi:message-check-outline",
            },
        ),
        _timestamp("last_status_at", "Last message status at", last_status, _RECEIVED_AT),
        _Entity(
            "sensor",
            "last_button",
            "Last button",
            {
                "state_topic": last_button,
                "value_template": "{{ (value_json.payload if value_json is defined else 'none')[:255] }}",
                "json_attributes_topic": last_button,
                "json_attributes_template": _CLICK_ATTRIBUTES,
                "icon": "mdi:gesture-tap-button",
            },
        ),
        _timestamp("last_button_at", "Last button at", last_button, _RECEIVED_AT),
        _Entity(
            "sensor",
            "last_failure",
            "Last failure",
            {
                "state_topic": health,
                "value_template": _FAILURE,
                "json_attributes_topic": health,
                "json_attributes_template": "{{ (value_json.last_failure or {}) | to_json }}",
                "icon": "mdi:message-alert-outline",
            },
        ),
        *(_count(health, status, span) for status in (*STATUSES, OTHER) for span in ("today", "total")),
        _diagnosis("backlog", "Waiting for the broker", health, "{{ value_json.backlog }}", "mdi:tray-full"),
        _diagnosis("dead_letters", "Dead letters", health, "{{ value_json.dead_letters }}", "mdi:email-off-outline"),
        _Entity(
            "sensor",
            "journal_size",
            "Journal",
            {
                "state_topic": health,
                "value_template": "{{ value_json.journal_bytes }}",
                "device_class": "data_size",
                "unit_of_measurement": "B",
                "suggested_unit_of_measurement": "MiB",
                "suggested_display_precision": 1,
                "state_class": "measurement",
                "entity_category": "diagnostic",
            },
        ),
        _timestamp("started_at", "Started at", health, "{{ value_json.started_at }}", diagnostic=True),
        _Entity(
            "binary_sensor",
            "connectivity",
            "Connectivity",
            {
                "state_topic": state,
                "payload_on": "online",
                "payload_off": "offline",
                "device_class": "connectivity",
                "entity_category": "diagnostic",
            },
        ),
        _Entity(
            "binary_sensor",
            "problem",
            "Problem",
            {
                "state_topic": health,
                "value_template": "{{ 'OFF' if value_json.ok else 'ON' }}",
                "json_attributes_topic": health,
                "json_attributes_template": "{{ {'alarms': value_json.alarms} | to_json }}",
                "device_class": "problem",
                "entity_category": "diagnostic",
            },
        ),
    ]


def _timestamp(key: str, name: str, topic: str, template: str, *, diagnostic: bool = False) -> _Entity:
    category = {"entity_category": "diagnostic"} if diagnostic else {}
    rest = {"state_topic": topic, "value_template": template, "device_class": "timestamp", **category}
    return _Entity("sensor", key, name, rest)


def _diagnosis(key: str, name: str, topic: str, template: str, icon: str) -> _Entity:
    rest = {
        "state_topic": topic,
        "value_template": template,
        "state_class": "measurement",
        "suggested_display_precision": 0,
        "entity_category": "diagnostic",
        "icon": icon,
    }
    return _Entity("sensor", key, name, rest)


_ICONS = {
    "sent": "mdi:check",
    "delivered": "mdi:check-all",
    "read": "mdi:eye-check-outline",
    "failed": "mdi:alert-circle-outline",
    "deleted": "mdi:delete-outline",
    OTHER: "mdi:help-circle-outline",
}


def _count(topic: str, status: str, span: str) -> _Entity:
    rest = {
        "state_topic": topic,
        "value_template": f"{{{{ value_json.messages.{status}.{span} }}}}",
        "state_class": "total_increasing",
        "suggested_display_precision": 0,
        "icon": _ICONS[status],
        **({"entity_category": "diagnostic"} if span == "total" else {}),
    }
    return _Entity("sensor", f"messages_{status}_{span}", f"Messages {status} {span}", rest)


#: A topic that was taken away brings no JSON.
_RECEIVED_AT = "{{ value_json.received_at if value_json is defined else '' }}"
#: Templates in one piece: no text of others is ever put into one.
_STATUS_ATTRIBUTES = _attributes(*FEED_KEYS[Kind.STATUS], "event_id")
_CLICK_ATTRIBUTES = _attributes(*FEED_KEYS[Kind.BUTTON], "event_id", "late")
_CLICKED = (
    "{{ {'event_type': 'clicked', 'text': value_json.text | default(none), 'from': value_json['from'] | default(none), "
    "'message_id': value_json.message_id, 'event_id': value_json.event_id} | to_json }}"
)
_FAILURE = (
    "{% set last = value_json.last_failure %}"
    "{{ ((last.title or last.code or 'failed') | string)[:255] if last else 'none' }}"
)
