"""Bodies of every size and kind: whatever arrives is understood, set aside or refused, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.model import ButtonClick, StatusUpdate, Update
from bridge.payload import MAX_DEPTH, MAX_ITEMS, DeadItem, NotUnderstoodError, Parsed, parse
from bridge.topics import document, entry

HALF = "\ud83d"  # of a surrogate pair


def body(root: object) -> bytes:
    return json.dumps(root).encode()


def status(number: int, **more: Any) -> dict[str, Any]:
    return {"id": f"m{number}", "status": "sent", "timestamp": str(1_767_225_600 + number), **more}


def click(number: int, **more: Any) -> dict[str, Any]:
    return {"id": f"k{number}", "type": "button", "button": {"payload": f"go {number}"}, **more}


def in_changes(*values: object) -> dict[str, Any]:
    return {"object": "whatsapp_business_account", "entry": [{"changes": [{"value": value} for value in values]}]}


def ids(parsed: Parsed) -> list[str]:
    return [update.message_id for update in parsed.updates]


# --- size --------------------------------------------------------------------------------------------------------


def only_entry(dead: DeadItem) -> Any:
    """The entry that a dead item holds, alone in a value."""
    value = json.loads(dead.body)
    (array,) = [value[name] for name in ("statuses", "messages") if name in value]
    (entry,) = array
    return entry


def test_a_thousand_updates_in_one_post_are_all_read_in_their_order() -> None:
    """WhatsApp sends up to a thousand in one POST; what is left behind is never sent again."""
    parsed = parse(body({"statuses": [status(n) for n in range(1000)]}))
    assert ids(parsed) == [f"m{n}" for n in range(1000)]
    assert [update.timestamp for update in parsed.updates] == [1_767_225_600 + n for n in range(1000)]
    assert (parsed.ignored, parsed.dead) == (0, ())
    assert len({update.event_id for update in parsed.updates}) == 1000


def test_a_thousand_updates_over_many_entries_are_all_read_in_their_order() -> None:
    """A relay that bundles what it had to hold back would lose all but the first of it."""
    entries = [{"changes": [{"value": {"statuses": [status(5 * e + c)]}} for c in range(5)]} for e in range(200)]
    parsed = parse(body({"object": "whatsapp_business_account", "entry": entries}))
    assert ids(parsed) == [f"m{n}" for n in range(1000)]
    assert (parsed.ignored, parsed.dead) == (0, ())


def test_bad_items_among_a_thousand_cost_only_themselves() -> None:
    """One item that the vendor's own software got wrong would cost the 999 beside it."""
    items: list[Any] = [status(n) if n % 10 else {"id": f"m{n}", "n": n} for n in range(1000)]
    parsed = parse(body({"statuses": items}))
    assert ids(parsed) == [f"m{n}" for n in range(1000) if n % 10]
    assert [only_entry(item) for item in parsed.dead] == [items[n] for n in range(0, 1000, 10)]


@pytest.mark.parametrize("escaped", [True, False])
def test_a_body_of_three_megabytes_is_read(escaped: bool) -> None:
    """The largest POST that WhatsApp sends would be refused again and again, for days."""
    filler = "\U0001f4e6" * (250 if escaped else 750)
    root = {"statuses": [status(n, biz_opaque_callback_data=filler, errors=[{"code": n}]) for n in range(1000)]}
    sent = json.dumps(root, ensure_ascii=escaped).encode()
    assert 3_000_000 < len(sent) < 3 * 2**20
    parsed = parse(sent)
    assert ids(parsed) == [f"m{n}" for n in range(1000)]
    assert (parsed.ignored, parsed.dead) == (0, ())


def test_one_id_of_three_megabytes_is_read_and_has_a_short_topic() -> None:
    """A single absurd update would hang up the broker, and with it all that waits behind."""
    (update,) = parse(body({"statuses": [status(1, id="x" * 3_000_000)]})).updates
    made = entry(update, 0.0)
    assert len(made.topic) == 160 + len("~") + 32 + len("/status")
    assert json.loads(made.document)["message_id"] == "x" * 3_000_000


def test_as_many_items_as_are_allowed_are_read() -> None:
    """The border would differ from what the documents say."""
    assert len(parse(body({"statuses": [status(1)] * MAX_ITEMS})).updates) == MAX_ITEMS == 10_000


@pytest.mark.parametrize(
    "root",
    [
        {"statuses": [{}] * 10_001},
        {"messages": [{}] * 10_001},
        {"statuses": [{}] * 5_000, "messages": [{}] * 5_001},
        in_changes({"statuses": [{}] * 5_000}, {"statuses": [{}] * 5_001}),
        {"statuses": [{}] * 10_000, "field": "messages", "value": {"statuses": [{}]}},
    ],
)
def test_a_body_with_more_items_than_anyone_sends_is_refused_as_a_whole(root: object) -> None:
    """A stranger's single POST would become millions of dead letters and fill the disk."""
    with pytest.raises(NotUnderstoodError, match="it holds more than 10000 entries"):
        parse(body(root))


@pytest.mark.parametrize("root", [{"entry": [0] * 10_001}, in_changes(*[0] * 10_001), in_changes(*[{}] * 10_001)])
def test_a_body_with_more_values_than_anyone_sends_is_refused_as_a_whole(root: object) -> None:
    """A stranger's single POST would become millions of dead letters and fill the disk."""
    with pytest.raises(NotUnderstoodError, match="it holds more than 10000 entries"):
        parse(body(root))


# --- depth -------------------------------------------------------------------------------------------------------


def nested(levels: int, *, arrays: bool) -> Any:
    value: Any = [] if arrays else {}
    for _ in range(levels - 1):
        value = [value] if arrays else {"a": value}
    return value


@pytest.mark.parametrize("arrays", [True, False])
def test_nesting_is_allowed_to_32_levels_and_no_further(arrays: bool) -> None:
    """What we pass on would break the JSON readers of those who subscribed."""
    assert MAX_DEPTH == 32
    assert len(parse(body({"statuses": [status(1)], "more": nested(31, arrays=arrays)})).updates) == 1
    with pytest.raises(NotUnderstoodError, match="it nests deeper than 32 levels"):
        parse(body({"statuses": [status(1)], "more": nested(32, arrays=arrays)}))


@pytest.mark.parametrize("levels", [33, 900, 1_100, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [(b'{"statuses":', b"}"), (b"[", b"]")])
def test_nesting_of_any_depth_is_refused_and_does_not_end_the_process(
    levels: int, opening: bytes, closing: bytes
) -> None:
    """Two hundred kilobytes of brackets would take the receiver down."""
    with pytest.raises(NotUnderstoodError):
        parse(opening * levels + b"0" + closing * levels)


# --- one bad thing harms only itself -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "array"),
    [
        ({"id": HALF, "status": "sent"}, "statuses"),
        ({"id": "m", "status": HALF}, "statuses"),
        ({"id": "m", "status": "sent", "timestamp": HALF}, "statuses"),
        ({"id": "m", "status": "sent", "recipient_id": HALF}, "statuses"),
        ({"id": "m", "status": "sent", "conversation": {"id": HALF}}, "statuses"),
        ({"id": "m", "status": "sent", "conversation": {HALF: "c"}}, "statuses"),
        ({"id": "m", "status": "failed", "errors": [{"title": HALF}]}, "statuses"),
        ({"id": HALF, "type": "button", "button": {"payload": "go"}}, "messages"),
        ({"id": "k", "type": "button", "button": {"payload": HALF}}, "messages"),
        ({"id": "k", "type": "button", "button": {"payload": "go", "text": HALF}}, "messages"),
        ({**click(3), "from": HALF}, "messages"),
        ({**click(3), "tag_name": HALF}, "messages"),
        ({**click(3), "wa_ext": HALF}, "messages"),
        ({**click(3), "context": {"id": HALF}}, "messages"),
    ],
)
def test_half_of_a_surrogate_pair_costs_only_the_item_that_has_it(bad: dict[str, Any], array: str) -> None:
    """An emoji that the vendor cut in two would cost the whole POST, again at each resend."""
    root: dict[str, list[Any]] = {"statuses": [status(1)], "messages": [click(2)]}
    root[array].insert(0, bad)
    parsed = parse(body(root))
    assert ids(parsed) == ["m1", "k2"]
    (item,) = parsed.dead
    assert item.reason == f"{array}[]: a text holds half of a surrogate pair, which no UTF-8 can say"
    assert only_entry(item) == bad
    # It can be stored and shown, because the half is escaped.
    assert item.body.encode()


def test_half_of_a_surrogate_pair_in_a_name_costs_only_the_clicks_of_that_name() -> None:
    """A profile name with half an emoji would cost other people's clicks."""
    contacts = [
        {"wa_id": "15550001234", "profile": {"name": HALF}},
        {"wa_id": "15550005678", "profile": {"name": "Bob"}},
    ]
    messages = [click(1, **{"from": "15550001234"}), click(2, **{"from": "15550005678"}), click(3)]
    parsed = parse(body({"contacts": contacts, "messages": messages}))
    assert ids(parsed) == ["k2", "k3"]
    assert len(parsed.dead) == 1


def test_half_of_a_surrogate_pair_in_what_is_not_passed_on_costs_nothing() -> None:
    """Half an emoji in the sender's private data would cost the status that carries it."""
    parsed = parse(
        body({"app_id": HALF, HALF: 1, "statuses": [status(1, biz_opaque_callback_data=HALF, **{HALF: HALF})]})
    )
    assert (ids(parsed), parsed.dead) == (["m1"], ())


def test_an_absurd_timestamp_beside_half_of_a_surrogate_pair_costs_nothing() -> None:
    """Two odd items in one POST would be answered with an error, and resent for days."""
    sent = b'{"statuses":[{"id":"m1","status":"sent","timestamp":1%s},{"id":"\\ud83d","status":"sent"}]}' % (b"0" * 400)
    parsed = parse(sent)
    assert (ids(parsed), len(parsed.dead)) == (["m1"], 1)


@pytest.mark.parametrize("digits", [20, 400, 5_000])
def test_a_long_number_is_read_alike_by_both_readers(digits: int) -> None:
    """An item would be good by itself, and set aside because of what stands beside it."""
    good = b'{"id":"m1","status":"sent","conversation":{"id":%s}}' % (b"9" * digits)
    alone = parse(b'{"statuses":[%s]}' % good)
    beside = parse(b'{"statuses":[%s,{"id":"\\ud83d","status":"sent"}]}' % good)
    assert ids(alone) == ids(beside) == ["m1"]
    assert entry(alone.updates[0], 0.0) == entry(beside.updates[0], 0.0)


@pytest.mark.parametrize("item", [{}, {"timestamp": "1"}, {"id": None, "status": ""}])
def test_an_item_that_lacks_all_that_is_needed_is_set_aside(item: dict[str, Any]) -> None:
    """It would be counted as handled, and nobody would ever see it."""
    (dead,) = parse(body({"statuses": [item]})).dead
    assert dead.reason in ("statuses[]: id is missing or empty", "statuses[]: status is missing or empty")
    assert only_entry(dead) == item


@pytest.mark.parametrize("item", [None, 7, 7.5, "sent", ["sent"], True, [{"id": "m1", "status": "sent"}]])
@pytest.mark.parametrize("array", ["statuses", "messages"])
def test_an_item_that_is_no_object_is_set_aside_whole(array: str, item: object) -> None:
    """It would take the good ones beside it along, or vanish."""
    parsed = parse(body({array: [item], "field": "messages", "value": {"statuses": [status(1)]}}))
    assert ids(parsed) == ["m1"]
    (dead,) = parsed.dead
    assert dead.reason.startswith(f"{array}[]: ")
    assert only_entry(dead) == item


@pytest.mark.parametrize("array", ["statuses", "messages"])
def test_what_should_be_an_array_is_set_aside_with_its_name(array: str) -> None:
    """Nobody could tell from the dead letter what it was meant to be."""
    (dead,) = parse(body({array: {"id": "m1"}})).dead
    assert (dead.reason, json.loads(dead.body)) == (f"{array} is not an array", {array: {"id": "m1"}})


@pytest.mark.parametrize(
    ("root", "whole"),
    [
        ({"entry": [{"changes": [{"field": "messages", "values": {"statuses": [status(1)]}}]}]}, "values"),
        ({"entry": [{"changes": [{"field": "messages", "value": None}]}]}, "field"),
        ({"field": "messages", "value": "statuses"}, "field"),
    ],
)
def test_a_change_without_a_value_is_set_aside_whole(root: object, whole: str) -> None:
    """The dead letter would say `null`, and what the vendor meant would be gone."""
    (dead,) = parse(body(root)).dead
    assert whole in json.loads(dead.body)


def test_reasons_never_quote_what_was_sent() -> None:
    """A phone number, or a line that was made to look like another log line, would stand in the logs."""
    hostile = "15550001234\nlevel=error"
    roots: list[Any] = [
        {
            "statuses": [{"id": [hostile], "status": "sent"}, {"id": "m1", "status": {hostile: 1}}, hostile],
            "messages": hostile,
        },
        {
            "messages": [
                click(1, button=hostile),
                {"id": hostile, "type": "interactive", "interactive": {hostile: hostile}},
            ]
        },
        in_changes(hostile),
    ]
    for root in roots:
        for item in parse(body(root)).dead:
            assert "1555" not in item.reason
            assert "\n" not in item.reason
    for sent in (hostile.encode(), body({hostile: hostile}), body(hostile), b'{"' + hostile.encode() + b'":'):
        with pytest.raises(NotUnderstoodError) as caught:
            parse(sent)
        assert "1555" not in str(caught.value)
        assert "\n" not in str(caught.value)


# --- identity ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "item", [status(1, recipient_id="15550001234"), status(1, timestamp="TIMESTAMP"), status(1, timestamp=None)]
)
def test_the_same_status_in_another_post_has_the_same_event_id(item: dict[str, Any]) -> None:
    """Everything that the sender resends would be stored and published again."""
    others = [
        {"statuses": [status(2), item]},
        {"statuses": [{**item, "pricing": {"billable": True}}], "business_phone": "15550009000"},
        in_changes({"statuses": [item]}),
        {"field": "messages", "value": {"statuses": [item]}},
    ]
    (update,) = parse(body({"statuses": [item]})).updates
    for other in others:
        assert update.event_id in [again.event_id for again in parse(body(other)).updates]


def test_the_same_moment_in_another_spelling_has_the_same_event_id() -> None:
    """A relay that writes times in its own way would double every update."""
    spellings: list[Any] = ["1767225600", 1_767_225_600, "1767225600000", 1_767_225_600_000, "2026-01-01T00:00:00Z"]
    parsed = parse(body({"statuses": [status(1, timestamp=spelling) for spelling in spellings]}))
    assert len({update.event_id for update in parsed.updates}) == 1


@pytest.mark.parametrize("one", [5.5, True, {"a": 1}, [1], "yesterday"])
def test_moments_that_cannot_be_read_are_told_apart(one: object) -> None:
    """Two updates with times in a form we do not know would be taken for one."""
    parsed = parse(
        body({"statuses": [status(1, timestamp=one), status(1, timestamp={"b": 2}), status(1, timestamp="today")]})
    )
    assert len({update.event_id for update in parsed.updates}) == 3


def test_the_same_click_twice_in_one_post_has_the_same_event_id() -> None:
    """A gate would open twice."""
    first, second = parse(body({"messages": [click(1), click(1, timestamp="5")]})).updates
    assert first.event_id == second.event_id


def test_two_members_of_a_group_who_read_at_the_same_second_are_two_updates() -> None:
    """Of a group's members only the first to read would ever be seen."""
    group = {"recipient_id": "120363000000000001@g.us", "recipient_type": "group", "status": "read"}
    items = [status(1, **group, recipient_participant_id=number) for number in ("15550001234", "15550005678")]
    first, second = parse(body({"statuses": items})).updates
    assert first.event_id != second.event_id


# --- anything at all ---------------------------------------------------------------------------------------------


def check(parsed: Parsed) -> None:
    """What must hold of every body that was understood."""
    for update in parsed.updates:
        check_update(update)
    assert parsed.ignored >= 0
    for item in parsed.dead:
        assert item.reason
        json.loads(item.body.encode().decode())


STATUS_KEYS = ["message_id", "status", "timestamp", "received_at", "recipient_id", "conversation", "errors"]
CLICK_KEYS = ["payload", "text", "event_type", "message_id", "from", "name", "timestamp", "received_at", "context"]
CLICK_KEYS += ["tag_name", "template", "wa_ext"]
LAST_KEYS = ["business_phone", "event_id"]


def check_update(update: Update) -> None:
    keys = (STATUS_KEYS if isinstance(update, StatusUpdate) else CLICK_KEYS) + LAST_KEYS
    for encode_dots in (False, True):
        made = entry(update, 1.0, encode_dots=encode_dots)
        document = json.loads(made.document)
        assert list(document) == [key for key in keys if key in document]
        assert made.document.encode()
        assert made.topic.count("/") == 1
        assert made.event_topic.count("/") == 2
    if isinstance(update, ButtonClick):
        assert document["event_type"] == document["payload"] != ""
    else:
        assert document["status"] == document["status"].lower() != ""
    assert document["message_id"] != ""


@given(st.binary() | st.text().map(str.encode))
@example(b"\xef\xbb\xbf{}")
@example(b'{"statuses":[{"id":"\\ud83d"}]}')
@example(b"1" * 5000)
@example(b'{"statuses":[' + b"1" * 5000 + b',"\\ud83d"]}')
def test_any_bytes_are_understood_or_refused_and_nothing_else(sent: bytes) -> None:
    """Bytes that nobody thought of would be answered with an error, and resent for days."""
    try:
        parsed = parse(sent)
    except NotUnderstoodError as error:
        reason = str(error)
        assert reason
    else:
        check(parsed)


WORDS = st.text(st.characters(), max_size=6) | st.sampled_from([HALF, "a/b", "\x00"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS
ODD = st.recursive(
    LEAVES,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(WORDS, children, max_size=3),
    max_leaves=6,
)


#: Rare enough that most items come through whole, and most bodies have something odd.
SELDOM = st.integers(0, 15).map(lambda drawn: drawn == 15)


def seldom(odd: st.SearchStrategy[Any], usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return SELDOM.flatmap(lambda now: odd if now else usual)


def odd_or(*usual: Any) -> st.SearchStrategy[Any]:
    return seldom(ODD, st.sampled_from(usual))


@st.composite
def an_object(draw: st.DrawFn, /, **keys: st.SearchStrategy[Any]) -> dict[str, Any]:
    """An object that may lack any of its keys, and have others; seldom none at all."""
    made: dict[str, Any] = draw(st.dictionaries(WORDS, LEAVES, max_size=1)) if draw(SELDOM) else {}
    for key, values in keys.items():
        if not draw(SELDOM):
            made[key] = draw(seldom(LEAVES, values))
    return made


def lists_of(items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(seldom(LEAVES, items), max_size=4)


NUMBERS = odd_or("15550001234", "15550005678", "", None)
TIMES = odd_or("1767225600", 1_767_225_600_000, "TIMESTAMP", "2026-01-01T00:00:00Z")
STATUS_ITEMS = an_object(
    id=odd_or("m1", 41, "button"),
    status=odd_or("sent", "READ", "failed", "warning"),
    timestamp=TIMES,
    recipient_id=NUMBERS,
    recipient_user_id=NUMBERS,
    message=an_object(recipient_id=NUMBERS),
    conversation=odd_or({"id": "c1"}, {}),
    errors=odd_or([{"code": 470}], []),
)
REPLIES = an_object(id=odd_or("go", None), title=odd_or("Go", None))
MESSAGE_ITEMS = an_object(
    id=odd_or("k1"),
    type=odd_or("button", "interactive", "text"),
    button=an_object(payload=odd_or("go", "status", None), text=odd_or("Go", None)),
    interactive=st.one_of(an_object(button_reply=REPLIES), an_object(list_reply=REPLIES), an_object(nfm_reply=ODD)),
    **{"from": NUMBERS},
    from_user_id=NUMBERS,
    timestamp=TIMES,
    context=odd_or({"id": "m1"}, {}),
    tag_name=odd_or("a/b"),
    wa_ext=odd_or('{"templateId":1,"components":[{"parameters":[{"text":"x"},{}]}]}', "{", "")
    | an_object(
        templateId=ODD,
        templateName=ODD,
        components=lists_of(an_object(parameters=lists_of(an_object(text=ODD)))),
    ),
)
CONTACTS = an_object(profile=an_object(name=odd_or("Ada"), username=WORDS), wa_id=NUMBERS, user_id=NUMBERS)
VALUES = an_object(
    statuses=lists_of(STATUS_ITEMS),
    messages=lists_of(MESSAGE_ITEMS),
    contacts=lists_of(CONTACTS),
    business_phone=NUMBERS,
    merchant_phone=NUMBERS,
    metadata=an_object(display_phone_number=NUMBERS),
    errors=odd_or([{"code": 1}]),
)
CHANGES = lists_of(an_object(value=VALUES, field=LEAVES))
BODIES = (
    VALUES
    | st.builds(lambda entries: {"entry": entries}, lists_of(an_object(changes=CHANGES)))
    | st.builds(lambda value: {"field": "messages", "value": value}, seldom(LEAVES, VALUES))
)


@given(ODD)
def test_any_json_is_understood_or_refused_and_nothing_else(root: object) -> None:
    """JSON that nobody thought of would be answered with an error, and resent for days."""
    try:
        check(parse(body(root)))
    except NotUnderstoodError as error:
        reason = str(error)
        assert reason


@given(BODIES)
def test_any_callback_is_understood_or_refused_and_nothing_else(root: Any) -> None:
    """A callback with one odd value would be answered with an error, and resent for days."""
    try:
        check(parse(body(root)))
    except NotUnderstoodError as error:
        reason = str(error)
        assert "it has none of" in reason
        assert not {"statuses", "messages"} & set(root)


@given(VALUES)
def test_every_item_is_accounted_for(value: Any) -> None:
    """The counts in the answer would not add up, and an item could vanish unseen."""
    items = sum(len(value[name]) for name in ("statuses", "messages") if isinstance(value.get(name), list))
    wrong = sum(not isinstance(value.get(name), (list, type(None))) for name in ("statuses", "messages"))
    neither = value.get("statuses") is None and value.get("messages") is None
    parsed = parse(body(in_changes(value)))
    assert len(parsed.updates) + parsed.ignored + len(parsed.dead) == items + wrong + neither


@given(VALUES, VALUES)
def test_a_value_is_read_alike_in_every_envelope(value: Any, other: Any) -> None:
    """The same callback through another relay would say something else."""
    assert parse(body({"field": "messages", "value": value})) == (alone := parse(body(in_changes(value))))
    both, second = parse(body(in_changes(value, other))), parse(body(in_changes(other)))
    assert both.updates == alone.updates + second.updates
    assert both.dead == alone.dead + second.dead
    assert both.ignored == alone.ignored + second.ignored


@given(VALUES)
def test_what_a_value_says_does_not_depend_on_a_bad_one_beside_it(value: Any) -> None:
    """Half an emoji in one item would change, or cost, what stands beside it."""
    bad = {"statuses": [{"id": HALF, "status": "sent"}]}
    alone, beside = parse(body(in_changes(value))), parse(body(in_changes(value, bad)))
    assert beside.updates == alone.updates
    assert beside.ignored == alone.ignored
    assert len(beside.dead) == len(alone.dead) + 1
    assert [item.reason for item in beside.dead[:-1]] == [item.reason for item in alone.dead]


@pytest.mark.parametrize("where", ["business_phone", "metadata", "errors", "contacts"])
@pytest.mark.parametrize("item", [{"id": "1", "status": "failed"}, {"id": "1"}], ids=["good", "bad"])
def test_what_stands_once_is_not_multiplied_by_the_entries(where: str, item: dict[str, Any]) -> None:
    """Three megabytes would fill the memory, as each entry is stored and published with all that belongs to it."""
    large = "x" * 5_000
    once: dict[str, Any] = {
        "business_phone": large,
        "metadata": {"display_phone_number": large},
        "errors": [{"title": large}],
        "contacts": [{"wa_id": "1", "profile": {"name": large}}],
    }
    click = {"id": "1", "from": "1", "type": "button", "button": {"text": "a"}}
    parsed = parse(orjson.dumps({"statuses": [item] * 100, "messages": [click] * 100, where: once[where]}))
    documents = [document(update, 0.0, "") for update in parsed.updates]
    assert len(documents) + len(parsed.dead) == 200
    assert sum(map(len, documents)) + sum(len(one.body) for one in parsed.dead) < 100_000
