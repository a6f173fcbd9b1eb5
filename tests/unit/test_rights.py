"""The rights at the broker that docs/security.md gives for EMQX: its Erlang is whole, and says what mosquitto's says.

mosquitto's are tried with a mosquitto, in tests/system/test_acl.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

DOCUMENT = (Path(__file__).parents[2] / "docs/security.md").read_text(encoding="utf-8")
(EMQX,) = re.findall(r"```erlang\n(.*?)```", DOCUMENT, re.DOTALL)
(MOSQUITTO,) = re.findall(r"```text\n(user whatsapp2mqtt.*?)```", DOCUMENT, re.DOTALL)

TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[a-z]\w*|[{}\[\],.])')
ENDS = {"{": "}", "[": "]"}


def terms(text: str) -> list[Any]:
    """Erlang's terms, each with its full stop (the form of `file:consult`): tuples, lists, strings and atoms."""
    tokens, at = [], 0
    while text[at:].strip():
        found = TOKEN.match(text, at)
        assert found, f"no Erlang: {text[at : at + 40]!r}"
        tokens.append(found[1])
        at = found.end()
    tokens.reverse()

    def term() -> Any:
        first = tokens.pop()
        if first not in ENDS:
            assert first[0] not in "}],.", f"{first} is too early"
            return first.strip('"')
        items = []
        while tokens[-1] != ENDS[first]:
            items.append(term())
            assert tokens[-1] in (",", ENDS[first]), f"{tokens[-1]} after {items[-1]}"
            if tokens[-1] == ",":
                tokens.pop()
                assert tokens[-1] != ENDS[first], "a comma too many"
        tokens.pop()
        return tuple(items) if first == "{" else items

    found = []
    while tokens:
        found.append(term())
        assert tokens.pop() == ".", "a term without its full stop"
    return found


def granted_by_emqx() -> set[tuple[str, str, str]]:
    """Who may do what where: rules are tried from the first on (EMQX, "Use ACL File")."""
    *rules, last = terms(EMQX)
    assert last == ("deny", "all")
    granted = set()
    for permission, (by, user), action, topics in rules:
        assert (permission, by) == ("allow", "user")
        assert action in ("publish", "subscribe", "all")
        assert isinstance(topics, list)
        for one in ("publish", "subscribe") if action == "all" else (action,):
            granted |= {(user, one, topic) for topic in topics}
    return granted


def granted_by_mosquitto() -> set[tuple[str, str, str]]:
    actions = {"write": ("publish",), "read": ("subscribe",), "readwrite": ("publish", "subscribe")}
    granted, user = set(), ""
    for line in filter(None, MOSQUITTO.splitlines()):
        what, _, rest = line.partition(" ")
        if what == "user":
            user = rest
            continue
        access, _, topic = rest.partition(" ")
        granted |= {(user, action, topic) for action in actions[access]}
    return granted


def test_both_brokers_are_told_the_same() -> None:
    """Who runs EMQX would find the bridge mute, or able to write what it must not."""
    assert granted_by_emqx() == granted_by_mosquitto()
    assert len(granted_by_mosquitto()) == 10


@pytest.mark.parametrize(
    "text",
    [
        EMQX.replace("}.", "}", 1),
        EMQX.replace("]}", "}", 1),
        EMQX.replace('"whatsapp/#"', '"whatsapp/#', 1),
        EMQX.replace(", publish", " publish", 1),
        EMQX.replace('"whatsapp/#",', '"whatsapp/#",,', 1),
        EMQX.replace("{deny, all}", "{deny, all,}"),
        EMQX.replace("allow", "Allow", 1),
    ],
)
def test_what_erlang_would_refuse_is_refused_here(text: str) -> None:
    """EMQX does not start with a file that it cannot read, and a check that takes everything would not see it."""
    assert text != EMQX
    with pytest.raises((AssertionError, IndexError)):
        terms(text)
