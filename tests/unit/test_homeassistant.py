"""Every discovery payload against the rules of Home Assistant, as its sources from 2024.3 to 2026.11 have them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge import homeassistant
from bridge.config import Button
from bridge.homeassistant import Plan, discover
from bridge.model import Kind

PLAN = Plan(
    True, "homeassistant", "whatsapp", "1.2.3", "https://example.org/", (Button("gate", "The gate", "mdi:gate"),)
)

HOSTILE = (
    *("{{ 1+1 }}", "{% raw %}", "{# c #}", "'; --", '"', "a/b", "+", "#", "👍🏽", "x" * 256, "\u202e", "", " ", "$SYS"),
    *("None", "unknown", "status", "\x00", "ß", "\n", "</script>"),
)
TEXTS = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=["Cs"]), max_size=300))

#: Rule: mqtt/discovery.py, TOPIC_MATCHER.
TOPIC = re.compile(r"homeassistant/(\w+)/([a-zA-Z0-9_-]+)/([a-zA-Z0-9_-]+)/config").fullmatch
#: Keys that Home Assistant takes for templates.
TEMPLATES = ("value_template", "json_attributes_template", "payload", "availability_template", "topic")

COMMON = {
    *("name", "unique_id", "object_id", "default_entity_id", "qos", "origin", "device", "availability_topic", "icon"),
    *("entity_category", "device_class", "state_topic", "value_template"),
}
#: What each component takes beside `COMMON`, and what it must have.
ALLOWED: dict[str, set[str]] = {
    "event": {"event_types"},
    "sensor": {
        *("json_attributes_topic", "json_attributes_template", "state_class", "unit_of_measurement"),
        *("suggested_display_precision", "suggested_unit_of_measurement"),
    },
    "binary_sensor": {"payload_on", "payload_off", "json_attributes_topic", "json_attributes_template"},
}
#: `suggested_unit_of_measurement` is taken from 2025.2 on by name; before, keys that are not known are dropped.
DEVICE_CLASSES = {
    "event": {"button"},
    "sensor": {"timestamp", "data_size"},
    "binary_sensor": {"connectivity", "problem"},
}
TRIGGER = {"automation_type", "topic", "type", "subtype", "qos", "origin", "device"}


def told(plan: Plan, learned: list[tuple[str, str]], phones: list[int]) -> dict[str, dict[str, Any]]:
    return {topic: json.loads(payload) for topic, payload in discover(plan, learned, phones).items()}


def check(topic: str, payload: dict[str, Any]) -> None:
    """Raise AssertionError where Home Assistant would refuse a payload or show it badly."""
    match = TOPIC(topic)
    assert match, topic
    component, node, key = match.groups()
    assert node == homeassistant.node("whatsapp")
    device = payload["device"]
    assert set(device) <= {
        *("identifiers", "name", "manufacturer", "model", "sw_version", "configuration_url", "via_device")
    }
    assert {"identifiers", "name", "manufacturer", "model", "sw_version", "configuration_url"} <= set(device)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", one) for one in device["identifiers"])
    assert device["configuration_url"].startswith(("http://", "https://"))
    assert payload["origin"]["name"]
    assert payload["qos"] in (0, 1, 2)
    if component == "device_automation":
        assert set(payload) == TRIGGER
        assert payload["automation_type"] == "trigger"
        assert payload["topic"].startswith("whatsapp/event/button/")
        return
    assert set(payload) <= COMMON | ALLOWED[component]
    for name in ("unique_id", "object_id"):
        assert re.fullmatch(r"[A-Za-z0-9_-]+", payload[name])
    assert re.fullmatch(rf"{component}\.[a-z0-9]+(_[a-z0-9]+)*", payload["default_entity_id"])
    assert payload["default_entity_id"] == f"{component}.{payload['object_id']}"
    assert payload["unique_id"].endswith(key)
    assert not payload["name"].lower().startswith("whatsapp")
    assert payload.get("entity_category") in (None, "diagnostic")
    assert payload.get("device_class") in {None, *DEVICE_CLASSES[component]}
    if payload.get("device_class") == "timestamp":
        assert not set(payload) & {"state_class", "unit_of_measurement", "suggested_display_precision"}
    assert payload.get("state_class") in (None, "measurement", "total_increasing")
    if component == "event":
        assert payload["state_topic"].startswith(("whatsapp/event/", "whatsapp/bridge/event/"))
        assert all(isinstance(one, str) for one in payload["event_types"])
        assert len(set(payload["event_types"])) == len(payload["event_types"])
    if payload.get("device_class") == "connectivity":
        assert "availability_topic" not in payload
    else:
        assert payload["availability_topic"] == "whatsapp/bridge/state"


@given(st.dictionaries(TEXTS, TEXTS, max_size=6), st.sets(st.integers(10_000, 10**17), max_size=3))
def test_whatever_callbacks_bring_home_assistant_takes_every_payload(texts: dict[str, str], phones: set[int]) -> None:
    """Otherwise one odd button would be missing, or would take others with it."""
    taken: list[str] = ["The gate"]
    for payload, text in texts.items():
        taken.append(homeassistant.button_name(payload, text, taken))
    found = told(PLAN, list(zip(texts, taken[1:], strict=True)), sorted(phones))
    for topic, payload in found.items():
        check(topic, payload)
    for key in ("unique_id", "object_id", "default_entity_id"):
        ids = [payload[key] for payload in found.values() if key in payload]
        assert len(set(ids)) == len(ids)
    triggers = [payload for topic, payload in found.items() if "/device_automation/" in topic]
    assert len({one["subtype"] for one in triggers}) == len(triggers) == len({"gate", *texts})
    assert len({one["topic"] for one in triggers}) == len(triggers)
    assert all(one["subtype"] for one in triggers)


@given(st.lists(TEXTS, max_size=6, unique=True), st.sets(st.integers(10_000, 10**17), max_size=3), TEXTS)
def test_no_text_of_others_is_ever_inside_a_template(payloads: list[str], phones: set[int], name: str) -> None:
    """Otherwise whoever can click a button could run code in the house."""
    plain = told(PLAN, [], [])
    mine = {payload[key] for payload in plain.values() for key in TEMPLATES if key in payload}
    buttons = tuple(Button(payload, f"{name} {number}") for number, payload in enumerate(payloads))
    declared = told(Plan(True, "homeassistant", "whatsapp", "1", "https://example.org/", buttons), [], [])
    learned = told(PLAN, [(payload, name) for payload in payloads], sorted(phones))
    for payload in (*learned.values(), *declared.values()):
        for key in TEMPLATES:
            text = payload.get(key)
            if text is None or text in mine:
                continue
            if key == "topic":
                assert "{" not in text
                continue
            template = re.sub(r"'[0-9]{5,18}'", "''", text)
            assert template == (
                "{{ value if value_json.business_phone | default('') | replace('+', '') == '' else '' }}"
            )


@given(TEXTS)
def test_only_a_number_of_a_phone_becomes_one(text: str) -> None:
    """Otherwise a business phone of odd letters would stand in a template."""
    number = homeassistant.phone_number(text)
    assert number is None or str(number) == text.removeprefix("+")


@pytest.mark.parametrize(
    ("text", "number"),
    [("15550009999", 15550009999), ("+15550009999", 15550009999), ("' == '' }}", None), ("", None), (None, None)],
)
def test_phone_numbers(text: str | None, number: int | None) -> None:
    """Otherwise the right business would have no device, or a wrong text would have one."""
    assert homeassistant.phone_number(text) == number


def test_switched_off_nothing_is_wanted() -> None:
    """Otherwise what is switched off would stay."""
    assert (
        discover(Plan(False, "homeassistant", "whatsapp", "1", "https://example.org/"), [("a", "A")], [15550009999])
        == {}
    )


def test_no_subscription_overlaps_another_that_differs_from_it() -> None:
    """Otherwise a broker that sends a message once for each would fire a click twice."""
    found = told(PLAN, [("a", "A"), ("b", "B")], [15550009999])
    filters = {payload.get("state_topic", payload.get("topic")) for payload in found.values()}
    assert not [one for one in filters if "+" in one or "#" in one]


def test_automations_hang_on_nothing_that_is_retained() -> None:
    """Otherwise the gate would open at each restart."""
    found = told(PLAN, [("a", "A")], [15550009999])
    for topic, payload in found.items():
        if "/event/" in topic:
            assert payload["state_topic"].startswith(("whatsapp/event/", "whatsapp/bridge/event/"))
        if "/device_automation/" in topic:
            assert payload["topic"].startswith("whatsapp/event/")


def test_a_phone_stands_under_the_bridge() -> None:
    """Otherwise its device would hang in the air."""
    found = told(PLAN, [], [15550009999])
    phones = [payload["device"] for topic, payload in found.items() if "/15550009999_" in topic]
    assert len(phones) == 2
    assert all(device["via_device"] == homeassistant.node("whatsapp") for device in phones)


def test_a_declared_button_has_an_entity_with_its_name_and_icon() -> None:
    """Otherwise the icon that the user chose would be nowhere."""
    own = [payload for payload in told(PLAN, [], []).values() if payload.get("name") == "The gate"]
    assert [(one["icon"], one["event_types"]) for one in own] == [("mdi:gate", ["clicked"])]
    trigger = next(payload for topic, payload in told(PLAN, [], []).items() if "device_automation" in topic)
    assert own[0]["state_topic"] == trigger["topic"]


@pytest.mark.parametrize("others", [("a/b", "a_b"), ("home", "Home"), ("wa", "wa-"), ("a.b", "a/b")])
def test_bridges_of_base_topics_that_read_alike_do_not_meet(others: tuple[str, str]) -> None:
    """Otherwise one would take the other's entities over."""
    one, other = (discover(Plan(True, "homeassistant", base, "1", "https://example.org/"), [], []) for base in others)
    assert not one.keys() & other.keys()
    ids = [{json.loads(payload)["object_id"] for payload in found.values()} for found in (one, other)]
    assert not ids[0] & ids[1]


@pytest.mark.parametrize(
    ("payload", "text", "taken", "name"),
    [
        ("yes", "Yes", (), "Yes"),
        ("yes_2", "Yes", ("Yes",), "Yes (yes_2)"),
        ("yes", None, (), "yes"),
        ("a\nb", " ", (), "a b"),
        ("\x00", "", (), "Button"),
        ("p", "x" * 100, (), "x" * 59 + "…"),
        ("p", "👩‍👧", (), "👩‍👧"),
    ],
)
def test_names_are_of_one_line_and_told_apart(
    payload: str, text: str | None, taken: tuple[str, ...], name: str
) -> None:
    """Otherwise two buttons would share a trigger, which Home Assistant knows by its name."""
    assert homeassistant.button_name(payload, text, taken) == name


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=8, unique_by=lambda one: one[0]))
def test_a_button_that_comes_later_renames_none(pairs: list[tuple[str, str]]) -> None:
    """Otherwise an automation on an older button would lose its trigger."""
    stored: list[tuple[str, str]] = []
    before: dict[str, str] = {}
    for payload, text in pairs:
        stored.append((payload, homeassistant.button_name(payload, text, [*(name for _, name in stored), "The gate"])))
        now = {button.payload: button.name for button in homeassistant.known_buttons(PLAN, stored)}
        assert before.items() <= now.items()
        before = now


@pytest.mark.parametrize(
    ("word", "event_type"), [("read", "read"), ("failed", "failed"), ("played", "other"), ("{{ 1 }}", "other")]
)
def test_a_status_that_is_not_known_is_other(word: str, event_type: str) -> None:
    """Otherwise Home Assistant would drop it with a warning."""
    document = {"status": word, "message_id": "m", "timestamp": 1, "icon": "mdi:bug", "conversation": {"id": "c"}}
    fed = json.loads(homeassistant.feed_document(Kind.STATUS, "e1", document))
    assert fed == {"event_type": event_type, "status": word, "message_id": "m", "timestamp": 1, "event_id": "e1"}


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 9)))
def test_only_our_own_keys_reach_attributes(more: dict[str, int]) -> None:
    """Otherwise a callback could set an entity's icon, or its id."""
    document = {**more, "payload": "p", "event_type": "p"}
    fed = json.loads(homeassistant.feed_document(Kind.BUTTON, "e", document))
    assert set(fed) <= {"event_type", "event_id", *homeassistant.FEED_KEYS[Kind.BUTTON]}
    assert fed["event_type"] == "p"


@pytest.mark.parametrize(
    ("errors", "code", "title"),
    [
        ([{"code": 1, "title": "T"}], 1, "T"),
        ([{"code": "1", "message": "M"}], "1", "M"),
        ([{"code": [], "title": {}}], None, None),
        (["x"], None, None),
        ([], None, None),
        (None, None, None),
        ({"code": 1}, None, None),
    ],
)
def test_the_last_failure_has_code_and_title_as_far_as_they_can_be_read(errors: Any, code: Any, title: Any) -> None:
    """Otherwise one odd error would end the health report."""
    found = homeassistant.failure({"errors": errors, "message_id": "m", "received_at": "now"})
    assert found == {"code": code, "title": title, "message_id": "m", "at": "now"}


def test_what_failed_is_told_in_few_words() -> None:
    """A title of three megabytes would be published with each health report, each minute, for ever."""
    long = "x" * 3_000_000
    found = homeassistant.failure({"errors": [{"code": long, "title": long}], "message_id": long})
    assert all(value is None or len(value) == 255 for value in found.values())
    assert len(homeassistant.button_name(long, long, ())) == homeassistant.NAME_LIMIT


def test_counts_of_unknown_statuses_are_added_up() -> None:
    """Otherwise a name that callbacks choose would become a key for ever."""
    counts = homeassistant.messages({"read": 1, "x": 2}, {"read": 3, "x": 4, "y": 5})
    assert counts["read"] == {"today": 1, "total": 3}
    assert counts["other"] == {"today": 2, "total": 9}
    assert set(counts) == {"sent", "delivered", "read", "failed", "deleted", "other"}
