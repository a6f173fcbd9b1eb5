"""What a callback says, as values: no I/O, no JSON, no topics.

Promises kept here (numbers as in docs/how-it-works.md):
  3. Stored once: `event_id` is the same whenever the same update is sent again.
  4. Never backwards: the highest (`rank`, timestamp, `event_id`) holds a message's state, whatever the order of
     arrival.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any

import orjson

#: Ranks of the statuses that are known. `failed` and `deleted` are final; a status that is not in the table
#: (warning, pending, captured, whatever comes next) ranks below all of them, so it never hides one.
RANKS = {"sent": 1, "delivered": 2, "read": 3, "played": 4, "failed": 5, "deleted": 6}
RANK_UNKNOWN = 0

#: 9999-12-31T23:59:59Z, the last second that ISO 8601 with four digits can say.
LAST_SECOND = 253_402_300_799


class Kind(StrEnum):
    """The two kinds of update, by the names that stand in the journal and in topics."""

    STATUS = "status"
    BUTTON = "button"


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusUpdate:
    """One entry of `statuses[]`: what became of a message that the business sent.

    Attributes:
        message_id: The sender's or WhatsApp's name for the message; any text.
        status: In lower case; one of `RANKS` or anything else.
        timestamp: Epoch seconds, or None where the callback's own could not be read.
        timestamp_text: What the callback brought as timestamp, as text; part of the update's identity.
        recipient_id: Phone number, masked number, group id or user id; None if absent.
        participant_id: The member of a group whose status this is; None if absent. Part of the identity alone.
        conversation: As it came, or None if absent or empty.
        errors: As they came, or None if absent or empty.
        business_phone: The business' number, or None if the callback does not name it.
    """

    message_id: str
    status: str
    timestamp: int | None = None
    timestamp_text: str = ""
    recipient_id: str | None = None
    participant_id: str | None = None
    conversation: dict[str, Any] | None = None
    errors: list[Any] | None = None
    business_phone: str | None = None

    @property
    def kind(self) -> Kind:
        return Kind.STATUS

    @property
    def rank(self) -> int:
        return rank(self.status)

    @property
    def event_id(self) -> str:
        """Identity: message, status, when, and for whom (a message to a group has a status per recipient)."""
        when = self.timestamp_text if self.timestamp is None else self.timestamp
        whom = (self.recipient_id,) if self.participant_id is None else (self.recipient_id, self.participant_id)
        return digest("status", self.message_id, self.status, when, *whom)


@dataclass(frozen=True, slots=True, kw_only=True)
class ButtonClick:
    """One entry of `messages[]` that is a click on a quick reply, a reply button or a list row.

    Attributes:
        payload: What the button means to the business; the text where the callback brings no payload.
        message_id: The id of the click itself.
        text: What stood on the button, or None if absent.
        timestamp, timestamp_text, business_phone: As in `StatusUpdate`.
        sender: Who clicked: phone number or user id; None if absent.
        name: The sender's profile name, or None if absent.
        context: The message that was answered, as it came, or None if absent or empty.
        tag_name: The vendor's tag, or None if absent.
        wa_ext: What the vendor appended about the template, verbatim (text or JSON value), or None if absent.
        template: `id`, `name` and `parameters` as far as `wa_ext` tells them, or None.
        test: Made by somebody who tries automations; no callback can say so.
    """

    payload: str
    message_id: str
    text: str | None = None
    timestamp: int | None = None
    timestamp_text: str = ""
    sender: str | None = None
    name: str | None = None
    context: dict[str, Any] | None = None
    tag_name: str | None = None
    wa_ext: Any = None
    template: dict[str, Any] | None = None
    business_phone: str | None = None
    test: bool = False

    @property
    def kind(self) -> Kind:
        return Kind.BUTTON

    @property
    def rank(self) -> int:
        """All clicks rank alike: the later one holds the button's topic."""
        return RANK_UNKNOWN

    @property
    def event_id(self) -> str:
        """Identity: the click's own id, who clicked, and what."""
        return digest("button", self.message_id, self.sender, self.payload)


Update = StatusUpdate | ButtonClick


def rank(status: str) -> int:
    """The place of a status in a message's life; the higher one holds the state."""
    return RANKS.get(status, RANK_UNKNOWN)


def digest(*identity: str | int | None) -> str:
    """32 hex digits that stand for these values and no others (the first half of a SHA-256)."""
    # A JSON array keeps the borders between the values, so ("ab", "c") and ("a", "bc") differ.
    return hashlib.sha256(orjson.dumps(identity)).hexdigest()[:32]


def epoch_seconds(value: object) -> int | None:
    """Read a callback's timestamp; None where it cannot be read. Never raises.

    Seen in real traffic: seconds or milliseconds, as integer or text, and ISO 8601. A number too large for
    seconds is taken as milliseconds (then micro-, then nanoseconds); ISO 8601 without zone as UTC.
    """
    if isinstance(value, str):
        try:
            # Whole numbers as such: a float cannot count nanoseconds.
            value = int(value) if value.isdecimal() and len(value) < 40 else float(value)
        except ValueError:
            return _from_iso(str(value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # Integers of JSON have no bound, and isfinite is not for those beyond every float.
    if isinstance(value, float) and not math.isfinite(value):
        return None
    seconds = int(value)
    for _ in range(3):
        # 1e11 seconds are in the year 5138; 1e11 milliseconds were in 1973, before there was WhatsApp.
        if seconds < 100_000_000_000:
            break
        seconds //= 1000
    return seconds if 0 <= seconds <= LAST_SECOND else None


def _from_iso(text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = int(moment.timestamp())
    return seconds if 0 <= seconds <= LAST_SECOND else None


def iso_utc(epoch: float) -> str:
    """ISO 8601 in UTC with milliseconds, e.g. `2026-01-31T12:00:00.123Z`.

    Args:
        epoch: Seconds since 1970.
    """
    seconds = math.floor(epoch)
    micro = round((epoch - seconds) * 1_000_000)
    if micro == 1_000_000:  # 12.9999999 are 13 seconds
        seconds, micro = seconds + 1, 0
    return f"{_second(seconds)}.{micro // 1000:03d}Z"


@lru_cache(4)  # what comes in one second is told the same
def _second(epoch: int) -> str:
    return f"{datetime.fromtimestamp(epoch, UTC):%Y-%m-%dT%H:%M:%S}"
