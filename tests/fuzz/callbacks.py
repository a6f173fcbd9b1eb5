"""Callbacks as a fuzzer makes them: real ones of every shape, changed where it hurts, as the bytes of a body.

A callback is built as it really arrives, flat or in Meta's envelope, and then a few of its places are changed: another
type, a level deeper, larger, other characters, a key twice, text that no JSON library writes; at last its bytes are cut
or bent. Few draws make one, so that twenty thousand take no minute.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

from tests import hostile

#: Epoch seconds; some of the clicks are new enough to fire.
NOW = 1_780_315_200


class Raw(str):
    """JSON as it stands in the body, also such as is none."""

    __slots__ = ()


class Twice(list[tuple[str, Any]]):
    """An object that has keys more than once."""


def text_of(node: Any) -> str:
    """The JSON of a callback: what the standard library cannot write stands as `Raw` or `Twice`."""
    if isinstance(node, Raw):
        return str(node)
    if isinstance(node, dict):
        node = node.items()
    elif not isinstance(node, Twice):
        if isinstance(node, list):
            return f"[{','.join(map(text_of, node))}]"
        return json.dumps(node, ensure_ascii=False)
    return f"{{{','.join(f'{json.dumps(key, ensure_ascii=False)}:{text_of(value)}' for key, value in node)}}}"


# --- what stands in a place -------------------------------------------------------------------------------------------

SHORT = [text for text in hostile.TEXTS.values() if len(text) < 1_000]

#: Texts that mean something in a callback: statuses, ids, numbers, times.
KNOWN = [
    *("sent", "delivered", "read", "failed", "deleted", "played", "READ", "", " "),
    *("15550001234", "+1 555 000 1234", "1555***", "US.13491208655302741918", "120363041234567890@g.us"),
    *("wamid.HBgLMTU1NTAwMDEyMzQVAgARGBI0", "wamid." + "A" * 82, "gBGGFlAAEjQvAgm", "41", "gate", "open/gate"),
    *(str(NOW), str(NOW * 1000), "2026-06-01T12:00:00Z", "TIMESTAMP", "-1", "1e400", "٣", "0x10", "1_000"),
]

#: What may stand where a text is expected.
WRONG: list[Any] = [
    *(None, True, False, 0, -1, 41, NOW, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**30, 0.5, -0.0, 1e308),
    *([], {}, [[]], [{}], [None], {"": ""}, {"id": {"id": {}}}, ["a", 1, None], "[]", "{}", '{"a":', "null"),
    *(Raw("1e999"), Raw("-1e999"), Raw("NaN"), Raw("Infinity"), Raw("01"), Raw("1."), Raw("-"), Raw("1" * 400)),
    *(Raw('"\\ud800"'), Raw('"\\udc00\\ud800x"'), Raw('"\\u0000"'), Raw('"a\x00b"'), Raw('"tab\there"'), Raw('"\\x"')),
    *(Raw("[" * 33 + "]" * 33), Raw("[" * 5_000), Raw('{"a":' * 31 + "1" + "}" * 31), Raw("undefined"), Raw("")),
    *(Raw("'single'"), Raw("/* a remark */1"), Raw("1,"), Raw("tru"), Raw('"\\ud83d\\ude00"'), Raw("1E+2")),
    *("x" * 201, "é" * 150, "x" * 5_000, "\U0001f600" * 300, ["x"] * 300, {str(n): n for n in range(300)}),
]

#: Keys that are added, or put around something.
NAMES = [
    *("id", "status", "type", "button", "payload", "from", "timestamp", "statuses", "messages", "entry", "value"),
    *("contacts", "profile", "errors", "context", "conversation", "é", "a/b", "\U0001f600", *hostile.KEYS),
]

texts = st.one_of(st.sampled_from([*KNOWN, *SHORT]), st.text(max_size=40))
values = st.one_of(st.sampled_from([*WRONG, *KNOWN, *SHORT, *hostile.KEYS.values()]), st.text(max_size=40))


# --- callbacks as they arrive -----------------------------------------------------------------------------------------


def status(number: int, word: str, text: str) -> dict[str, Any]:
    return {
        "id": text if number % 3 == 0 else f"wamid.{number}",
        "status": word,
        "timestamp": str(NOW - number % 7) if number % 2 else NOW - 40,
        "recipient_id": "15550001234",
        "conversation": {"id": "c", "origin": {"type": "utility"}, "expiration_timestamp": str(NOW)},
        "errors": [{"code": 131_026, "title": "Undeliverable", "error_data": {"details": text}}],
        "pricing": {"billable": True},
    }


def click(number: int, text: str) -> dict[str, Any]:
    return {
        "id": f"wamid.c{number}",
        "from": "15550001234",
        "timestamp": str(NOW - number % 900),
        "type": "button",
        "button": {"payload": text if number % 2 else f"gate{number % 5}", "text": text},
        "context": {"from": "15550009999", "id": "wamid.1"},
        "tag_name": text,
        "wa_ext": json.dumps({"templateId": number, "templateName": text, "components": [{"parameters": [text]}]}),
    }


def reply(number: int, text: str) -> dict[str, Any]:
    kind = ("button_reply", "list_reply", "nfm_reply")[number % 3]
    inner = {"id": text, "title": "Open", "description": text}
    return {
        "id": f"wamid.r{number}",
        "from_user_id": "US.13491208655302741918",
        "timestamp": NOW,
        "type": "interactive",
        "interactive": {"type": kind, kind: inner},
    }


def message(number: int, text: str) -> dict[str, Any]:
    return {"id": f"wamid.t{number}", "from": "15550001234", "type": "text", "text": {"body": text}}


def flat(value: dict[str, Any]) -> dict[str, Any]:
    return {"business_phone": "15550009999", "app_id": "a", "channel": "whatsapp", **value}


def cloud(value: dict[str, Any]) -> dict[str, Any]:
    metadata = {"display_phone_number": "15550009999", "phone_number_id": "1"}
    change = {"field": "messages", "value": {"messaging_product": "whatsapp", "metadata": metadata, **value}}
    return {"object": "whatsapp_business_account", "entry": [{"id": "0", "changes": [change]}]}


def event(value: dict[str, Any]) -> dict[str, Any]:
    return {"field": "account_update", "value": value}


@st.composite
def callbacks(draw: st.DrawFn) -> dict[str, Any]:
    """A callback with one to four entries, and nothing wrong about it but its texts."""
    number = draw(st.integers(0, 2**31))
    text = draw(texts)
    word = draw(st.sampled_from(["sent", "delivered", "read", "failed", "deleted", "warning", "Played", text]))
    makers: list[Callable[[int, str], dict[str, Any]]] = [click, reply, message]
    statuses = [status(number + more, word, text) for more in range(number % 3)]
    messages = [makers[(number + more) % 3](number + more, text) for more in range(number // 3 % 3)]
    value: dict[str, Any] = {"contacts": [{"wa_id": "15550001234", "profile": {"name": text}}]}
    if statuses or not messages:
        value["statuses"] = statuses
    if messages:
        value["messages"] = messages
    return (flat, cloud, event, flat, cloud)[number // 9 % 5](value)


# --- changes ----------------------------------------------------------------------------------------------------------


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document: what it stands in, and its key or index there."""
    waiting = [node]
    while waiting:
        holder = waiting.pop()
        for key, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
            yield holder, key
            if isinstance(value, (dict, list)) and not isinstance(value, Twice):
                waiting.append(value)


def _replace(holder: Any, key: Any, value: Any, _: str) -> None:
    holder[key] = value


def _remove(holder: Any, key: Any, _: Any, __: str) -> None:
    del holder[key]


def _wrap(holder: Any, key: Any, _: Any, name: str) -> None:
    holder[key] = {name: holder[key]} if len(name) % 2 else [holder[key]]


def _deepen(holder: Any, key: Any, value: Any, name: str) -> None:
    inner = holder[key]
    for _ in range(24 + len(name)):
        inner = [inner]
    holder[key] = inner if value else {name: inner}


def _repeat(holder: Any, key: Any, value: Any, _: str) -> None:
    holder[key] = [holder[key]] * (2 if value else 40)


def _add(holder: Any, _: Any, value: Any, name: str) -> None:
    if isinstance(holder, dict):
        holder[name] = value
    else:
        holder.append(value)


def _twice(holder: Any, key: Any, value: Any, _: str) -> None:
    inner = holder[key]
    pairs = list(inner.items()) if isinstance(inner, dict) and inner else [("id", inner)]
    holder[key] = Twice([*pairs, (pairs[0][0], value), pairs[-1]])


def _swap(holder: Any, key: Any, _: Any, __: str) -> None:
    """A text as a number, a number as a text, an object as JSON in a text."""
    inner = holder[key]
    if isinstance(inner, str):
        holder[key] = int(inner) if inner.isascii() and inner.isdigit() else inner.encode().hex()
    elif isinstance(inner, (dict, list)):
        holder[key] = text_of(inner)
    else:
        holder[key] = str(inner)


CHANGES: list[Callable[[Any, Any, Any, str], None]] = [
    *(_replace, _replace, _replace, _remove, _wrap, _deepen, _repeat, _add, _twice, _swap),
]


def _cut(body: bytes, at: int, _: bytes) -> bytes:
    return body[: at % (len(body) + 1)]


def _insert(body: bytes, at: int, more: bytes) -> bytes:
    at %= len(body) + 1
    return body[:at] + more + body[at:]


def _overwrite(body: bytes, at: int, more: bytes) -> bytes:
    at %= len(body) + 1
    return body[:at] + more + body[at + len(more) :]


def _twofold(body: bytes, _: int, more: bytes) -> bytes:
    return body + more + body


def _marked(body: bytes, at: int, _: bytes) -> bytes:
    return (b"\xef\xbb\xbf", b"\xff\xfe", b"\xef\xbb\xbf\xef\xbb\xbf", b")]}',\n")[at % 4] + body


def _utf_16(body: bytes, _: int, __: bytes) -> bytes:
    return body.decode("utf-8", "replace").encode("utf-16")


BENT: list[Callable[[bytes, int, bytes], bytes]] = [_cut, _insert, _overwrite, _twofold, _marked, _utf_16]

PIECES = [
    *(b"\x00", b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf", b"\xe2\x80\xa8", b"\x7f"),
    *(b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\\u", b"\\ud800", b"\r\n", b" " * 1_000, b"[" * 1_000, b"-"),
]


changes = st.lists(st.tuples(st.integers(0, 100_000), st.sampled_from(CHANGES), values), max_size=3)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """The body of a POST: a callback with up to three changes, one in five with bent bytes, few that are none."""
    kind = draw(st.integers(0, 19))
    if kind == 0:
        return draw(st.binary(max_size=200))
    document: Any = draw(callbacks())
    for at, change, value in draw(changes):
        found = list(places(document))
        if found:
            holder, key = found[at % len(found)]
            name = NAMES[at % len(NAMES)]
            change(holder, key, copy.deepcopy(value), name)  # a later change must not reach the next example
    if kind == 1:
        document = draw(st.sampled_from([[document], [], None, "text", 1, {}, {"entry": document}, {"value": {}}]))
    body = text_of(document).encode("utf-8", "surrogatepass")
    if kind < 6:
        bend = draw(st.sampled_from(BENT))
        body = bend(body, draw(st.integers(0, 20_000)), draw(st.sampled_from(PIECES)))
    return body
