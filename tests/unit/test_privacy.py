"""Numbers out of sight: in what is stored and published as the setting says, in logs always."""

from __future__ import annotations

import base64
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge import payload
from bridge.model import ButtonClick, StatusUpdate
from bridge.payload import NotUnderstoodError, parse
from bridge.privacy import NOT_KEPT, Veil, is_opaque, masked
from bridge.topics import Entry, entry, text_of

KEY = bytes(range(32))
NUMBER = "15550001234"
BUSINESS = "15550009000"
FILES = sorted((Path(__file__).parent.parent / "payloads").glob("*.json"))


def wamid(number: str = NUMBER, tail: str = "0123456789ABCDEF") -> str:
    """As WhatsApp makes them (seen by decoding public examples): lengths before the number and before the rest."""
    raw = b"\x1d\x18" + bytes([len(number)]) + number.encode() + b"\x15\x02\x00\x11\x18\x12" + tail.encode() + b"\x00"
    return f"wamid.{base64.b64encode(raw).decode()}"


def readings(text: str) -> Iterator[str]:
    """A text, and all that whoever has it may decode from it."""
    yield text
    yield unquote(text)
    for word in re.findall(r"[A-Za-z0-9+/_\-]{10,}", text):
        for start in range(4):
            part = word[start:].replace("-", "+").replace("_", "/")
            for cut in range(4):
                try:
                    raw = base64.b64decode(part[: len(part) - cut] + "=" * (-(len(part) - cut) % 4))
                except ValueError:
                    continue
                yield raw.decode("latin-1")
                yield raw.hex()
        if re.fullmatch(r"([0-9a-fA-F]{2})+", word):
            yield bytes.fromhex(word).decode("latin-1")


def tells(text: str, number: str = NUMBER) -> bool:
    """Whether a number can be read from a text, whatever stands between its digits."""
    return any(number in "".join(map(digit_or_other, reading)) for reading in readings(text))


def digit_or_other(one: str) -> str:
    """A digit of any script as ASCII's, nothing for what people put between digits, and anything else as it is."""
    if one in "().,_/" or unicodedata.category(one) in ("Pd", "Zs", "Cf", "Mn", "Me"):
        return ""
    return str(unicodedata.decimal(one, one))


def told(made: Entry) -> str:
    """All of an entry that leaves the process, levels of topics decoded."""
    levels = [text_of(level) or level for level in f"{made.topic}/{made.event_topic}".split("/")]
    return "\n".join((*levels, made.topic, made.document, made.event_id))


@pytest.fixture(params=["mask", "hash"])
def veil(request: pytest.FixtureRequest) -> Veil:
    return Veil(request.param, KEY)


def status(**keys: Any) -> StatusUpdate:
    return StatusUpdate(**({"message_id": "m1", "status": "read", "recipient_id": NUMBER} | keys))


def click(**keys: Any) -> ButtonClick:
    return ButtonClick(**({"payload": "go", "message_id": "m1", "sender": NUMBER} | keys))


#: As people and their telephones write one number.
SPELLINGS = [
    "1 555\u2011000\u20111234",
    "1 555\u2013000\u20131234",
    "\u202a+1 555\u2011000\u20111234\u202c",
    "1\u202f555\u202f000\u202f1234",
    "1\u200b555\u200b000\u200b1234",
    "1,555,000,1234",
    "1_555_000_1234",
    "+1 (555) - 000 1234",
    "1.555.000.1234",
    "\u0661\u0665\u0665\u0665\u0660\u0660\u0660\u0661\u0662\u0663\u0664",
    "\uff11\uff15\uff15\uff15\uff10\uff10\uff10\uff11\uff12\uff13\uff14",
    "\uff0b\uff11\uff0d\uff15\uff15\uff15\uff0d\uff10\uff10\uff10\uff0d\uff11\uff12\uff13\uff14",
    "1\ufe0f\u20e35\ufe0f\u20e35\ufe0f\u20e35\ufe0f\u20e30\ufe0f\u20e30\ufe0f\u20e30\ufe0f\u20e31\ufe0f\u20e32\ufe0f\u20e33\ufe0f\u20e34",
]

#: Where a number turned up in real callbacks, or could.
UPDATES = [
    status(message_id=wamid()),
    status(message_id=wamid().rstrip("=")),
    status(message_id=wamid().replace("+", "-").replace("/", "_").rstrip("=")),
    status(message_id=wamid().removeprefix("wamid.")),
    status(message_id=f"mine-{NUMBER}-7"),
    status(message_id=f"a{NUMBER}b", recipient_id=None),
    status(message_id="+1 555 000-1234", recipient_id=None),
    status(message_id=NUMBER.encode().hex(), recipient_id=None),
    status(message_id=base64.b64encode(NUMBER.encode()).decode(), recipient_id=None),
    status(message_id=base64.urlsafe_b64encode(b"\x80\x11\x86\x16\x50\x79\x62\x38\x6f" + b"\x99" * 10).decode()),
    status(recipient_id=f"+{NUMBER}"),
    status(recipient_id="+1 (555) 000-1234"),
    status(recipient_id=f"{NUMBER}@s.whatsapp.net"),
    status(recipient_id=f"{NUMBER}-1600000000@g.us"),
    status(participant_id=NUMBER, recipient_id="120363000000000001@g.us", errors=[{"title": f"no {NUMBER}"}]),
    status(errors=[{"code": 131026, "title": "x", "error_data": {"details": "+1 555 000 1234 is not on WhatsApp"}}]),
    status(errors=[f"sent to 00{NUMBER}"], recipient_id=None),
    status(errors=[{"to": int(NUMBER)}], recipient_id=None),
    status(errors=[{NUMBER: "as a key"}], recipient_id=None),
    status(errors=[{"details": f"https://wa.me/{NUMBER}"}], recipient_id=None),
    status(errors=[{"details": f"of {wamid()}, again"}], recipient_id=None),
    status(errors=[{"details": f'{{"to": "{NUMBER}"}}'}], recipient_id=None),
    status(errors=[{"details": f"****{NUMBER}"}], recipient_id=None),
    status(errors=[{"timestamp": NUMBER}]),
    status(conversation={"id": f"c-{NUMBER}", "origin": {"type": "utility", "user": NUMBER}}),
    status(status=f"sent-{NUMBER}"),
    click(payload=f"confirm:{NUMBER}"),
    click(payload="call +1 555 000 1234", sender=None),
    click(payload=f"open {wamid()}", sender=None),
    click(text=f"Ring {NUMBER}"),
    click(name=f"Ada {NUMBER}"),
    click(name="+1 555 000 1234", sender=None),
    click(context={"from": NUMBER, "id": wamid()}, sender=None),
    click(context={"id": wamid(), "forwarded": True, "mentions": [NUMBER]}),
    click(tag_name=f"vip/{NUMBER}"),
    click(wa_ext=json.dumps({"templateId": 1, "components": [{"parameters": [{"text": NUMBER}]}]})),
    click(wa_ext={"to": NUMBER}, template={"id": 1, "parameters": [NUMBER, {"deep": [NUMBER]}]}),
    click(wa_ext=f"not JSON {NUMBER}"),
    *(status(errors=[{"details": f"could not reach {one}, sorry"}], recipient_id=None) for one in SPELLINGS),
    *(click(name=one, sender=None) for one in SPELLINGS),
    click(name="https://wa.me/?phone=%2B1%20555%20000%201234", sender=None),
    click(payload="call \uff0b1\u2011555\u2011000\u20111234", sender=None),
]


@pytest.mark.parametrize("update", UPDATES, ids=lambda one: one.kind)
def test_no_number_is_left_in_topics_json_and_identity(update: StatusUpdate | ButtonClick, veil: Veil) -> None:
    """Whoever reads the broker or the journal would know who wrote."""
    number = "16507962386" if "gBG" in update.message_id else NUMBER
    assert tells(told(entry(update, 0.0)), number), "the case itself has no number in it"
    assert not tells(told(veil.entry(update, 0.0)), number)


@pytest.mark.parametrize("update", UPDATES, ids=lambda one: one.kind)
def test_what_was_hidden_stays_as_it_is(update: StatusUpdate | ButtonClick, veil: Veil) -> None:
    """A dead letter that is tried again would speak of somebody else."""
    once = veil.update(update)
    assert veil.update(once) == once


@pytest.mark.parametrize("file", [pytest.param(file, id=file.stem) for file in FILES])
def test_no_case_of_the_contract_shows_a_number(file: Path, veil: Veil) -> None:
    """Each shape of callback has its own places for a number; also those that become dead letters."""
    case = json.loads(file.read_text(encoding="utf-8"))
    if "body" in case:
        body = json.dumps(case["body"]).encode()
    else:
        body = base64.b64decode(case["body_base64"]) if "body_base64" in case else case["body_text"].encode()
    for number in (NUMBER, "15550001235"):
        assert not tells(veil.body(body).decode(), number)
    try:
        parsed = parse(body)
    except NotUnderstoodError:
        return
    assert not any(tells(told(veil.entry(update, 0.0))) for update in parsed.updates)
    again = parse(veil.body(body))
    assert (len(again.updates), again.ignored, len(again.dead)) == (
        len(parsed.updates),
        parsed.ignored,
        len(parsed.dead),
    )


LEFT_ALONE = [
    status(recipient_id=None, message_id="wamid.fedcba9876543210fedcba9876543210"),
    status(recipient_id=None, message_id="0b7c3a52-1111-4222-8333-123456789012"),
    status(recipient_id=None, message_id="41"),
    status(recipient_id=None, conversation={"id": "0" * 24 + "abcdef12", "expiration_timestamp": "1767225600"}),
    status(recipient_id=None, conversation={"expiration_timestamp": 1_767_225_600}),
    status(recipient_id=None, errors=[{"code": 131026, "href": "https://developers.facebook.com/docs/error-codes/"}]),
    status(recipient_id=None, errors=[{"details": "on 2026-11-24 18:30:00 UTC, for 25 hours, 131049"}]),
    status(recipient_id=None, errors=[{"details": "1,234,567.89 or 12,345.67 or 12.345,67 EUR, 65,536 bytes"}]),
    status(recipient_id=None, errors=[{"details": "see https://example.com/a%20b%2Fc?at=52.5200,13.4050"}]),
    status(recipient_id=None, business_phone=BUSINESS),
    click(sender=None, payload="order_20261124183000_1", text="No. 123456789"),
    click(sender=None, context={"from": BUSINESS, "id": "m0"}, business_phone=BUSINESS),
    click(sender=None, wa_ext='{ "templateId": 123456789012345,  "templateName": "gate" }'),
    click(sender=None, template={"id": 123456789012345, "name": "gate", "parameters": ["7 pm"]}, name="Ada"),
]


@pytest.mark.parametrize("update", LEFT_ALONE, ids=lambda one: one.kind)
def test_what_is_no_number_stays_verbatim(update: StatusUpdate | ButtonClick, veil: Veil) -> None:
    """An automation would wait for an order, a template or an id that has become another."""
    assert veil.update(update) == update


def test_a_mask_keeps_the_last_four_digits() -> None:
    """A person should recognise a number that they know."""
    veil = Veil("mask", KEY)
    spellings = (NUMBER, f"+{NUMBER}", "+1 (555) 000-1234")
    assert {veil.update(status(recipient_id=one)).recipient_id for one in spellings} == {"*******1234"}  # type: ignore[union-attr]
    assert veil.person("1234567") == "*******"
    assert veil.person("41") == "***"


def test_a_hash_is_the_same_for_a_person_and_another_with_another_key() -> None:
    """Automations compare it; and nobody may try all numbers against it without the key."""
    veil, other = Veil("hash", KEY), Veil("hash", bytes(32))
    assert veil.hashed(NUMBER) == veil.hashed("+1 (555) 000-1234") == veil.hashed(f"00{NUMBER}")
    assert re.fullmatch(r"h-[0-9a-f]{16}", veil.hashed(NUMBER))
    spelt = [click(name=one, sender=None) for one in SPELLINGS]
    assert {veil.hashed(NUMBER) in told(veil.entry(one, 0.0)) for one in spelt} == {True}
    assert veil.hashed("+49 (0)171 2345678") == veil.hashed("491712345678")
    assert len({veil.hashed(NUMBER), veil.hashed("15550001235"), other.hashed(NUMBER)}) == 3


def test_messages_and_updates_stay_told_apart(veil: Veil) -> None:
    """One message would take another's topic, and one person's status would count as a duplicate of another's."""
    people = ("15550001234", "25550001234", "35550001234")
    made = [veil.entry(status(message_id=wamid(one), recipient_id=one), 0.0) for one in people]
    made += [
        veil.entry(status(message_id="to-a-group", participant_id=one, recipient_id="1@g.us"), 0.0) for one in people
    ]
    assert len({one.event_id for one in made}) == 6
    assert len({one.topic for one in made}) == 4
    payloads = {veil.entry(click(payload=f"for {one}", sender=one), 0.0).topic for one in people}
    assert len(payloads) == 3


def test_an_answer_still_names_the_message_it_answers(veil: Veil) -> None:
    """Whoever waits for the answer to a message finds it by its id."""
    sent = veil.update(status(message_id=wamid()))
    answer = veil.update(click(context={"from": BUSINESS, "id": wamid()}))
    assert isinstance(answer, ButtonClick)
    assert answer.context is not None
    assert answer.context["id"] == sent.message_id != wamid()


def test_the_identity_is_the_same_whatever_is_shown() -> None:
    """After a change of the setting the same callback would count as new, and a click fire again."""
    ids = {Veil(numbers, KEY).entry(click(), 0.0).event_id for numbers in ("keep", "mask", "hash")}
    assert len(ids) == 1
    assert Veil("keep", KEY).update(click()) == click()
    assert Veil("keep", KEY).body(NUMBER.encode()) == NUMBER.encode()
    # Nobody can try all numbers against it.
    assert ids != {click().event_id}
    assert ids != {Veil("mask", bytes(32)).entry(click(), 0.0).event_id}


def test_a_late_callback_is_not_altered_by_the_one_before(veil: Veil) -> None:
    """What is known of one callback's people must not reach the next one."""
    veil.update(status(recipient_id="go-go-go"))
    assert veil.update(click(payload="go-go-go")).payload == "go-go-go"  # type: ignore[union-attr]


BODIES = [
    f'{{"statuses": [{{"id": null, "recipient_id": "{NUMBER}"}}]}}',
    f'{{"statuses": [{{"id": null, "recipient_id": {NUMBER}}}]}}',
    f'{{"messages": [{{"from": "{NUMBER}", "text": {{"body": "I am {NUMBER}',
    "from=%2B" + "".join(f"%3{digit}" for digit in NUMBER),
    '{"from": "' + "".join(f"\\u003{digit}" for digit in NUMBER),
    f"<xml to='{NUMBER}'/>",
    '{"from": "1 555\\u2011000\\u20111234',
    '{"from": "\\u0661\\u0665\\u0665\\u0665\\u0660\\u0660\\u0660\\u0661\\u0662\\u0663\\u0664',
    "from=%2B1+555+000+1234",
    "from=1%20555%E2%80%91000%E2%80%911234",
    *(f"{{'from': '{one}'" for one in SPELLINGS),
    "[" * 2_000 + f'"{NUMBER}"' + "]" * 2_000,
    "[" * 900 + f'"{NUMBER}"' + "]" * 900,
    f'["{NUMBER}"]',
    NUMBER,
    f'"{wamid()}"',
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_no_number_is_left_in_a_dead_letter(body: str, veil: Veil) -> None:
    """Whole bodies are kept there for a month."""
    hidden = veil.body(body.encode())
    assert not tells(hidden.decode())
    assert veil.body(hidden) == hidden


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_a_body_that_cannot_be_searched_is_not_kept(encoding: str, veil: Veil) -> None:
    """A number could stand in it, and nobody would find it again to forget it."""
    body = f"é {NUMBER}".encode(encoding)
    assert veil.body(body).decode() == NOT_KEPT.format(len(body))


def test_a_dead_letter_without_numbers_can_be_tried_again(veil: Veil) -> None:
    """Whatever made it a dead letter may be mended by a new version."""
    body = orjson.dumps({"statuses": [{"id": wamid(), "status": "read", "recipient_id": NUMBER}]})
    (update,) = parse(veil.body(body)).updates
    assert update == veil.update(parse(body).updates[0])
    assert veil.update(update) == update


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.just(NUMBER)
    | st.just(wamid()),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["from", "id", "errors", "x", NUMBER]), inner),
    max_leaves=20,
)


@given(value=JSON, numbers=st.sampled_from(["mask", "hash"]))
def test_any_json_can_be_hidden(value: Any, numbers: str) -> None:
    """A callback that makes this fail would be a dead letter with its numbers, or an answer of 500."""
    hidden = Veil(numbers, KEY).body(json.dumps(value).encode())
    assert not tells(hidden.decode())


@given(body=st.binary(max_size=200), numbers=st.sampled_from(["mask", "hash"]))
def test_any_bytes_can_be_hidden(body: bytes, numbers: str) -> None:
    """Whatever a stranger posts is stored as a dead letter."""
    Veil(numbers, KEY).body(body)


@given(before=st.text(max_size=10), after=st.text(max_size=10))
def test_any_text_around_a_number_can_be_logged(before: str, after: str) -> None:
    """Logs are copied and shown to others."""
    assert NUMBER not in masked(f"{before} {NUMBER} {after}")
    assert wamid() not in masked(f"{before} {wamid()} {after}")


def test_logs_stay_readable() -> None:
    """A log that hides what happened is of no use."""
    for line in (
        "mqtt://192.168.100.200:18830 does not allow the bridge to publish to whatsapp/button/open_gate (0x87)",
        "/home/you/.local/state/whatsapp2mqtt/journal.db.corrupt-20261124T180000",
        "[12345] 2026/11/24 18:00:00.123456 [INF] Server is ready",
        "it is larger than the broker's maximum packet size of 268435 bytes",
        "wamid.fedcba9876543210fedcba9876543210",
        "whatsapp2mqtt-0a1b2c3d",
        "2026-11-24T18:00:00.123Z",
        "2026-11-24 18:00:00,123 and 2026-11-24, at 18:00:00 2026/11/24 of backup-2026-11-24-2",
        "mqtt://10.20.30.40:18830 or https://172.16.254.100/whatsapp, from 192.168.100.200:40000",
        "Linux-6.12.43+deb13-amd64, 5.15.0-1065-raspi, 6.11.10-1065-aws, Python 3.11.2, certifi 2025.11.12",
        "mosquitto 2.0.11-1.2+deb12u1, OpenSSL 3.0.17 1 Jul 2025, nats-server 2.10.29-beta.12",
        "1,048,576 bytes of 65,536; 131026 of 131049 in 12.345 s",
        "whatsapp/button/a%20b%2Fc/20%25",
    ):
        assert masked(line) == line
    topic = wamid().replace("=", "%3D")
    assert re.fullmatch(
        r"publish to whatsapp/wamid\.~[0-9a-f]{6}/status \(0x87\)", masked(f"publish to whatsapp/{topic}/status (0x87)")
    )
    assert masked(f"from {NUMBER} to +1 555 000 1234") == "from ***34 to ***34"


def test_ids_that_cannot_hold_a_number_are_known() -> None:
    """Most vendors' ids stay as they are."""
    assert is_opaque("wamid.fedcba9876543210fedcba9876543210")
    assert is_opaque("0b7c3a52-1111-4222-8333-123456789012")
    assert not is_opaque((NUMBER.encode() + b"\0" * 5).hex())
    assert not is_opaque(wamid())


def test_dead_items_are_hidden_with_the_business_told_apart(veil: Veil) -> None:
    """The business' number is on everything it sends; who wrote to it is not."""
    body = orjson.dumps({"business_phone": BUSINESS, "statuses": [{"status": "read", "recipient_id": NUMBER}]})
    (dead,) = payload.parse(body).dead
    hidden = veil.body(dead.body.encode()).decode()
    assert BUSINESS in hidden
    assert NUMBER not in hidden


@pytest.mark.parametrize(
    "text",
    [
        "1,2" * 100_000,
        "\u2011(1" * 100_000,
        "%31" * 100_000,
        "\\u0031" * 50_000,
        "*" * 300_000 + "abcdef",
        "h-0123456789abcdef@" + "." * 300_000 + "_",
        "1 " * 300_000,
        "x" + "1" * 300_000,
        "(1" * 300_000,
    ],
    ids=["commas", "dashes", "quoted", "escaped", "stars", "hash", "spaces", "digits", "brackets"],
)
def test_no_text_takes_more_than_one_look(text: str) -> None:
    """A receiver that searches one callback for minutes answers no other; where this is slow, the test never ends."""
    veil = Veil("mask", KEY)
    assert veil.body(orjson.dumps({"name": text}))
    assert masked(f"{text}T123456")


def test_many_people_in_one_body_are_all_hidden() -> None:
    """Each of them is looked for in each text; where all places are tried for all of them, this never ends."""
    body = orjson.dumps(
        {"who": [{"from": f"{10_000 + i}", "about": f"it is {10_000 + i}, no?"} for i in range(50_000)]}
    )
    hidden = Veil("hash", KEY).body(body).decode()
    assert not re.search(r"\b\d{5}\b", hidden)
    assert len(set(re.findall(r"h-[0-9a-f]{16}", hidden))) == 50_000
