"""How people write the digits of a number, and how programs write those again in text that nobody parsed. Pure."""

from __future__ import annotations

import re
from urllib.parse import quote

#: Dashes (Unicode's category Pd), and the minus.
_DASHES = (
    "-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u2e5d\u301c\u3030\u30a0"
    "\ufe31\ufe32\ufe58\ufe63\uff0d\U00010ead\u2212"
).replace("-", r"\-", 1)
#: Spaces (Zs), and what has no width: joiners, marks of direction, as WhatsApp puts them around numbers, soft hyphens,
#: and what makes a digit a key of an emoji.
_SPACES = (
    " \u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
    "\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufe0f\u20e3"
)
#: Dots, brackets and slashes, also as wide as a Chinese character.
_SIGNS = r"().\/·" + "\uff08\uff09\uff0e\uff0f"
#: As a class of characters in a pattern.
SEPARATORS = _SPACES + _SIGNS + _DASHES
PLUS = "[+\uff0b]"

#: What may stand before the first one.
BEFORE = f"[({_SPACES}]{{0,3}}"

#: So many of them may stand between two digits.
GAP = f"[{SEPARATORS}]{{0,4}}"
#: Where it does no harm if more is taken for a number, or only one is looked for.
WIDE_GAP = f"[_{SEPARATORS}]{{0,4}}"

_is_part = re.compile(rf"[\d,_{SEPARATORS}]|{PLUS}").fullmatch
_ESCAPES = re.compile(
    r"\\+u(?P<high>d[89ab][0-9a-f]{2})\\+u(?P<low>d[c-f][0-9a-f]{2})|\\+(?:u(?P<one>[0-9a-f]{4})|x(?P<small>[0-9a-f]{2}))"
    r"|(?P<quoted>(?:%[0-9a-f]{2})+)",
    re.IGNORECASE,
)
_FORM_SPACE = re.compile(r"(?<=\d)\+(?=\d)")
_OTHERS = re.compile(r"[^\x00-\x7f\ufffd]+")
_is_separator = re.compile(f"[{SEPARATORS}]").fullmatch


def undisguised(text: str) -> str:
    """A text in which no digit, and nothing that stands between digits, is an escape: JSON's, Python's or a form's.

    All other escapes stay as they are.
    """
    if "\\" not in text and "%" not in text:
        return text
    return _FORM_SPACE.sub(" ", _ESCAPES.sub(_plain, text))


def _plain(found: re.Match[str]) -> str:
    if quoted := found["quoted"]:
        characters = bytes.fromhex(quoted.replace("%", "")).decode("utf-8", "surrogateescape")
        return "".join(one if _is_part(one) else quote(one, safe="", errors="surrogateescape") for one in characters)
    if found["high"]:
        one = chr(0x10000 + ((int(found["high"], 16) & 0x3FF) << 10) + (int(found["low"], 16) & 0x3FF))
    else:
        one = chr(int(found["one"] or found["small"], 16))
    return one if _is_part(one) else found[0]


def folded(text: str) -> str:
    """A text with the digits of all scripts as ASCII's, and other scripts' separators as spaces."""
    return text if text.isascii() else _OTHERS.sub(_in_ascii, text)


def _in_ascii(found: re.Match[str]) -> str:
    return "".join(
        str(int(one)) if one.isdecimal() else " " if _is_separator(one) else "+" if one == "\uff0b" else one
        for one in found[0]
    )
