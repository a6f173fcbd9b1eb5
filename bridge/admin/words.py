"""What templates make of values: times, spans, sizes, and texts from outside that must stay texts."""

from __future__ import annotations

import contextlib
import re
import time
from datetime import UTC, datetime
from typing import Any

import orjson
from markupsafe import Markup, escape

from bridge.model import iso_utc

#: Characters of a text from outside that a line shows.
A_LINE = 120
#: Bytes of a body that the page shows.
SHOWN = 64 * 1024


def tame(text: object) -> str:
    """A text of several lines with what cannot be seen, or would turn the direction of what follows, as its escape."""
    return "".join(char if char.isprintable() or char == "\n" else _escaped(char) for char in str(text))


def line(text: object) -> str:
    """The same as one line of bounded length."""
    found = str(text)
    cut = found if len(found) <= A_LINE else f"{found[: A_LINE - 1]}…"
    return "".join(char if char.isprintable() else _escaped(char) for char in cut)


def sentence(text: str) -> Markup:
    """What stands behind a colon in a log, as a sentence of its own; a command in backticks looks like one."""
    shown = tame(text)
    is_word = shown.partition(" ")[0].rstrip(",;").isalpha()
    whole = f"{shown[:1].upper() if is_word else shown[:1]}{shown[1:]}{'' if shown.endswith('.') else '.'}"
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(whole))))  # noqa: S704  (escaped before)


def _escaped(char: str) -> str:
    number = ord(char)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{{{number:x}}}"


def pretty(document: Any) -> str:
    """JSON for people."""
    return tame(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())


def text_of(body: bytes) -> str:
    """A body for people: as JSON where it is, else as text, what is none escaped; of a long one the beginning."""
    shown = body
    if len(body) <= SHOWN:
        with contextlib.suppress(orjson.JSONDecodeError, orjson.JSONEncodeError):
            shown = orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2)
    return tame(shown[: SHOWN * 2].decode("utf-8", "backslashreplace"))


def when(epoch: float | None, style: str = "full") -> Markup:
    """A moment; the browser shows it in its own time zone.

    Args:
        epoch: Seconds since 1970; None: never.
        style: `full` (day and time), `clock` (time with milliseconds), `ago` (how long since).
    """
    if epoch is None:
        return Markup("never")
    moment = datetime.fromtimestamp(epoch, UTC)
    if style == "clock":
        said = f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03d} UTC"
    elif style == "ago":
        said = ago(epoch)
    else:
        said = f"{moment:%Y-%m-%d %H:%M:%S} UTC"
    return Markup('<time datetime="{}" data-as="{}">{}</time>').format(iso_utc(epoch), style, said)


def ago(epoch: float) -> str:
    seconds = time.time() - epoch
    return "just now" if seconds < 2 else f"{span(seconds) if seconds >= 10 else f'{seconds:.0f} s'} ago"


def span(seconds: float | None) -> str:
    """A length of time in one unit, as one says it."""
    if seconds is None:
        return "?"
    if seconds < 0.0095:
        return f"{max(0.0, seconds) * 1000:.1f} ms"
    if seconds < 0.95:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.5:
        return f"{seconds:.1f} s"
    for limit, unit, name in ((90, 1, "s"), (5_400, 60, "min"), (129_600, 3_600, "h"), (float("inf"), 86_400, "days")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    raise AssertionError


def size(count: float) -> str:
    """Bytes as one says them."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def number(count: float) -> str:
    """A count with its thousands apart."""
    return f"{count:,.0f}".replace(",", "\u202f")


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 message`, `2 messages`."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def is_number(text: str) -> bool:
    """Whether somebody who searches for this means a phone number: four digits or more, as people write them."""
    digits = sum(char.isdecimal() for char in text)
    return digits >= 4 and all(char.isdecimal() or char in "+ ()-./\u00a0" for char in text)
