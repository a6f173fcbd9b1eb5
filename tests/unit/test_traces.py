"""Who is looked for is found however it is written, and nobody else is."""

from __future__ import annotations

import base64
import json
import sqlite3
from pathlib import Path
from urllib.parse import quote

import pytest

from bridge.privacy import Veil
from bridge.simulate import message_id_for
from bridge.traces import Wanted, WantedError

HER, HIM = "15550001234", "15550001235"

#: As people and their telephones write her number.
SPELLINGS = [
    "1 555\u2011000\u20111234",
    "+1 \u2013 555 \u2013 000 \u2013 1234",
    "\u202a+1 555\u2011000\u20111234\u202c",
    "1\u202f555\u200b000\u2060 1234",
    "1,555,000,1234",
    "1_555_000_1234",
    "+1 (0) 555 000-1234",
    "".join(chr(ord("\u0660") + int(digit)) for digit in HER),
    "".join(chr(ord("\uff10") + int(digit)) for digit in HER),
    "".join(chr(ord("\u0966") + int(digit)) + " " for digit in HER),
    "".join(chr(ord("\U0001d7ce") + int(digit)) for digit in HER),
    "".join(f"{digit}\ufe0f\u20e3" for digit in HER),
]


@pytest.mark.parametrize(
    "given",
    [
        *(HER, f"+{HER}", "+1 (555) 000-1234", "001 555 000 1234", "+1.555.000.1234", " +1\u00a0555\u00a00001234 "),
        *("1 555\u2011000\u20111234", "\u202a+1 555\u2011000\u20111234\u202c", "+1 (0)555 000 1234", SPELLINGS[7]),
    ],
)
def test_a_number_is_meant_however_it_is_typed(given: str) -> None:
    """One person would have as many names as there are keyboards."""
    assert Wanted(given).number == HER


@pytest.mark.parametrize(
    "text",
    [
        f'{{"from":"{HER}"}}',
        f'{{"title":"could not reach +{HER}"}}',
        '{"title":"call +1 (555) 000-1234 now"}',
        "+1\u00a0555\u00a0000\u00a01234",
        f"00{HER}",
        f"call_{HER}_6078cdbe15",
        json.dumps({"id": message_id_for(HER)}),
        base64.b64encode(f"x{HER}".encode()).decode(),
        base64.b64encode(f"xx{HER}y".encode()).decode(),
        HER.encode().hex(),
        "".join(f"\\u{ord(digit):04x}" for digit in HER),
        *SPELLINGS,
        *map(json.dumps, SPELLINGS),
        *(json.dumps(json.dumps(one)) for one in SPELLINGS),
        *(f"text={quote(one)}" for one in SPELLINGS),
        "text=%2B1+555+000+1234",
    ],
)
def test_a_number_is_found_however_it_is_stored(text: str) -> None:
    """`forget` would say that nothing is left, and leave what everybody can read."""
    wanted = Wanted(HER)
    assert wanted.is_in(text)
    assert wanted.is_in_bytes(text.encode())
    assert not Wanted(HIM).is_in(text)


@pytest.mark.parametrize(
    "text",
    [
        f'{{"from":"{HIM}"}}',
        f'{{"from":"9{HER}"}}',
        f'{{"from":"{HER}9"}}',
        json.dumps({"id": message_id_for(HIM)}),
        "",
        "15550001 234567",
        "1555, 0001234, 15550001, 234",
        "1 555\u2011000\u20111235",
        "1555:000:1234",
    ],
)
def test_another_number_is_not_taken_for_it(text: str) -> None:
    """A neighbour's history would be gone with hers."""
    assert not Wanted(HER).is_in(text)
    assert not Wanted(HER).is_in_bytes(text.encode())


def test_bytes_that_are_no_utf_8_are_read_as_well() -> None:
    """A body of another encoding is a dead letter, and lies there with the number in it."""
    assert Wanted(HER).is_in_bytes(f'{{"from":"{HER}"}}'.encode("utf-16"))
    assert Wanted(HER).is_in_bytes(b"\xff\xfe " + HER.encode())
    assert Wanted("a/b-message").is_in_bytes(rb'{"id":"a\/b-message"}')


@pytest.mark.parametrize("numbers", ["mask", "hash"])
def test_what_was_hidden_is_found_by_the_number(numbers: str) -> None:
    """Who set `privacy.numbers` could forget nobody any more."""
    veil = Veil(numbers, b"k" * 32)
    text = json.dumps({"from": veil.person(HER), "id": "m"})
    assert Wanted(HER, [veil]).is_in(text)
    assert not Wanted("15550009999", [veil]).is_in(text)
    about = message_id_for(HER)
    hidden = veil.identifier(about)
    assert hidden != about
    assert Wanted(about, [veil]).is_in_topic(f"{hidden}/status")
    assert Wanted(hidden, [veil]).is_in(json.dumps({"id": hidden}))


@pytest.mark.parametrize("identity", ["m1", "a b/c+#", "wamid.äöü-and-more", "x" * 300])
def test_a_message_is_found_as_a_whole_and_by_its_topic(identity: str) -> None:
    """An id with a character that a topic or JSON writes otherwise would never be found; a short one everywhere."""
    wanted = Wanted(identity)
    assert wanted.is_in(json.dumps({"id": identity}, ensure_ascii=False))
    assert wanted.is_in(identity)
    assert not wanted.is_in(json.dumps({"id": identity + "2"}))
    assert not wanted.is_in(json.dumps({"id": "2" + identity}))


def test_a_topic_is_decoded() -> None:
    """The ledger holds topics, not ids."""
    assert Wanted("a b/c+#d").is_in_topic("a%20b%2Fc%2B%23d/status")
    assert not Wanted("a b/c+#d").is_in_topic("a%20b%2Fc%2B%23d2/status")


@pytest.mark.parametrize(
    ("given", "words"),
    [("", "is empty"), ("  ", "is empty"), ("0171 2345678", "no country code")],
)
def test_whom_it_cannot_mean_is_told(given: str, words: str) -> None:
    """It would look for nothing, find nothing, and say that all is gone."""
    with pytest.raises(WantedError, match=words):
        Wanted(given)


def test_a_file_is_named_where_it_stands(tmp_path: Path) -> None:
    """A copy that was set aside would not be named, or every file would be."""
    for number, name in ((HER, "hers"), (HIM, "his")):
        with sqlite3.connect(tmp_path / name) as db:
            db.execute("CREATE TABLE updates (document TEXT)")
            db.execute("INSERT INTO updates VALUES (?)", (json.dumps({"id": message_id_for(number)}),))
        db.close()
    assert Wanted(HER).stands_in((tmp_path / "hers").read_bytes())
    assert not Wanted(HER).stands_in((tmp_path / "his").read_bytes())
    for number, spelt in enumerate(SPELLINGS):
        assert Wanted(HER).stands_in(b"\xff\xd9\0" + f"{number}x{spelt}".encode() + b"\xe2\0"), ascii(spelt)
        assert not Wanted(HIM).stands_in(spelt.encode())
    identity = "m\u20111\u2011\u0661\u0662\u0663"
    assert Wanted(identity).stands_in(b"\0" + identity.encode() + b"\0")
    assert not Wanted(identity).stands_in(b"\0" + identity.encode() + b"4\0")
