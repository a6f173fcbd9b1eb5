"""Whose traces are to go, and how they look: a number in any spelling and encoding, or an id of a message. Pure.

What was stored while numbers were hidden (`privacy.numbers`) shows a mask or a hash in place of a number, and an id of
its own in place of a message's; these are looked for as well. Many may share a mask: all of them are found by it.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Iterator
from urllib.parse import unquote

import orjson

from bridge import topics
from bridge.privacy import ANY_WORD, Veil, canonical, decoded, is_phone_like, is_veiled
from bridge.spellings import WIDE_GAP, folded, undisguised

#: A shorter id is looked for as a whole text alone: it may be a word of any other.
SHORT = 8
#: What may stand between two digits of a number that is known.
GAP = f"(?:,|{WIDE_GAP})"
#: Characters around a find in a file that are looked at.
AROUND = 4_096


class WantedError(Exception):
    """Nobody can be meant by this; the message says what to write."""


class Wanted:
    """A person or a message.

    Args:
        given: What a user typed: a number with its country code, an id of a message or user, or what is shown of one.
        veils: Those that may have hidden it.

    Raises:
        WantedError: It is a number without a country code, or empty.
    """

    def __init__(self, given: str, veils: Iterable[Veil] = ()) -> None:
        self.given = given.strip()
        veils = tuple(veils)
        self.number = _number(self.given)
        literals: set[str] = set()
        exact: set[str] = set()
        patterns: list[str] = []
        person = self.number or self.given
        if self.number:
            patterns.append(rf"(?<!\d)(?:00)?{_spelled(self.number)}(?!\d)")
        elif len(self.given) < SHORT:
            exact |= set(_forms(self.given))
        else:
            literals |= set(_forms(self.given))
        if not self.number:
            exact |= {
                topics.message_level(self.given, encode_dots=encode_dots) + "/status" for encode_dots in (False, True)
            }
        if not is_veiled(person):
            literals |= {one for veil in veils for one in (veil.person(person), veil.identifier(self.given))}
        patterns += [rf"(?<![\w*]){re.escape(one)}(?![\w*])" for one in sorted(literals)]
        patterns += [rf'(?<!\\)"{re.escape(one)}"|\A{re.escape(one)}\Z' for one in sorted(exact)]
        self._plain = re.compile("|".join(patterns))
        self._encoded = re.compile("|".join(_fragments(self.number))) if self.number else None
        # The same where a text has no beginning and no end: in a file.
        within = [pattern.replace(r"\A", "(?<![ -~])").replace(r"\Z", "(?![!-~])") for pattern in patterns]
        self._within = re.compile("|".join([*within, *(_fragments(self.number) if self.number else ())]))
        self._run = re.compile(rf"(?<!\d)(?:00)?{self.number}(?!\d)") if self.number else None

    def is_in(self, text: str) -> bool:
        """Whether a text names it."""
        return any(map(self._is_in, _readings(text)))

    def _is_in(self, text: str) -> bool:
        if self._plain.search(text):
            return True
        return self._encoded is not None and bool(self._encoded.search(text)) and self._is_encoded_in(text)

    def is_in_topic(self, topic: str) -> bool:
        """Whether a topic names it, below the base topic; percent-encoded, or as a whole."""
        return self.is_in(topic) or ("%" in topic and self.is_in(unquote(topic, errors="replace")))

    def is_in_bytes(self, body: bytes) -> bool:
        """Whether a body of any encoding names it."""
        return self.is_in(body.replace(b"\0", b"").decode("utf-8", "replace"))  # UTF-16 and UTF-32 of ASCII, too

    def stands_in(self, raw: bytes) -> bool:
        """Whether it stands among a file's bytes."""
        for text in _readings(raw.decode("utf-8", "replace")):
            for found in self._within.finditer(text):
                if self.number is None or self.is_in(text[max(0, found.start() - AROUND) : found.end() + AROUND]):
                    return True
        return False

    def _is_encoded_in(self, text: str) -> bool:
        assert self.number is not None  # noqa: S101  (or there is nothing to be encoded)
        assert self._run is not None  # noqa: S101
        for word in ANY_WORD.findall(text):
            for found in decoded(word):
                if self._run.search(found.decode("latin-1")) or (word.startswith("gB") and self.number in found.hex()):
                    return True
        return False


def _number(given: str) -> str | None:
    if not given:
        raise WantedError("is empty; name a number or the id of a message")
    if not is_phone_like(given):
        return None
    digits = canonical(given)
    if not 7 <= len(digits) <= 15:
        return None
    if digits.startswith("0"):
        raise WantedError("has no country code; write the number as +49 171 2345678")
    return digits


def _spelled(number: str) -> str:
    """A pattern of a number: with what people put between its digits, and `(0)` after a country's code."""
    return rf"{GAP}(?:0\){GAP})?".join(number[:4]) + GAP + GAP.join(number[4:])


def _readings(text: str) -> Iterator[str]:
    """A text as it is, and as whoever reads its escapes and digits would."""
    yield text
    plain = folded(undisguised(text.replace("\\/", "/")))
    if plain != text:
        yield plain


def _forms(text: str) -> Iterator[str]:
    """A text as it stands in JSON, in JSON within JSON, and in a topic."""
    once = orjson.dumps(text)[1:-1].decode()
    yield from (text, once, orjson.dumps(once)[1:-1].decode())
    for encode_dots in (False, True):
        yield topics.level(text, encode_dots=encode_dots)


def _fragments(number: str) -> Iterator[str]:
    """What a number leaves behind in base64, whatever stands before it, and in hex; how its packed decimals begin."""
    for before in range(3):
        first, last = math.ceil(before * 8 / 6), (before + len(number)) * 8 // 6
        yield base64.b64encode(b"\0" * before + number.encode()).decode()[first:last]
    yield number.encode().hex()
    yield "gB[EG]"
