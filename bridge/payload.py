"""Bodies of callbacks to updates: envelopes, one schema per item, bad items told apart. Pure.

Promise kept here (numbers as in docs/how-it-works.md):
  8. One bad thing harms only itself: an item that cannot be understood is set aside whole, with its reason, and
     what stands beside it goes on.

The shapes of the wire (the vendor's specification of the two callbacks, Meta's Cloud API, and what public projects
have seen arriving): a *value* is an object with `statuses` and/or `messages`. It is the whole body (flat), or stands
in `entry[].changes[].value` (Cloud API), or in `value` beside `field` (events such as `account_update`).
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson
from voluptuous import ALLOW_EXTRA, Invalid, Required, Schema

from bridge.model import ButtonClick, StatusUpdate, Update, epoch_seconds
from bridge.topics import document

#: More entries than this in one body are not WhatsApp's: it sends up to 1000 in one POST.
MAX_ITEMS = 10_000
#: Deeper nesting than this is not WhatsApp's; what we pass on verbatim must stay readable for others.
MAX_DEPTH = 32
#: Bytes of JSON. What stands once in a callback, and is passed on with each of its entries, may be no larger: three
#: megabytes would become gigabytes. The longest that is known, Meta's errors, have some hundred.
MAX_SHARED = 4096


class NotUnderstoodError(Exception):
    """The body as a whole is no callback; the message says why."""


@dataclass(frozen=True, slots=True)
class DeadItem:
    """One entry that could not be understood.

    Attributes:
        reason: Why, in words for the user.
        body: The entry in a value of its own (`{"statuses": […]}` or `{"messages": […]}`), as JSON text, so that it
            can be tried again.
        refused: It was understood well: a click that may not fire.
    """

    reason: str
    body: str
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Parsed:
    """What one body held.

    Attributes:
        updates: In the order of the body.
        ignored: How many entries are neither a status nor a click, or values without either.
        dead: Entries that could not be understood.
    """

    updates: tuple[Update, ...]
    ignored: int
    dead: tuple[DeadItem, ...]


#: Why a click may not fire, or None; asked with the click and the sender's user id.
Refusal = Callable[[ButtonClick, str | None], str | None]


def parse(body: bytes, refusal: Refusal | None = None) -> Parsed:
    """Unwrap a callback and read every entry in it.

    Args:
        body: As it came.
        refusal: Asked about each click; one that may not fire is set aside.

    Raises:
        NotUnderstoodError: It is no JSON, nests deeper than 32 levels, holds more than 10,000 entries, or has none
            of the known shapes. The whole body then belongs in the dead letters.
    """
    root = _json(body)
    updates: list[Update] = []
    dead: list[DeadItem] = []
    ignored = 0
    seen = 0
    for values, (value, whole) in enumerate(_values(root), 1):
        if values > MAX_ITEMS:
            raise NotUnderstoodError(f"it holds more than {MAX_ITEMS} entries")
        if not isinstance(value, dict):
            dead.append(DeadItem("the value of a change is not an object", _as_text(whole)))
            continue
        statuses, messages = value.get("statuses"), value.get("messages")
        if statuses is None and messages is None:
            ignored += 1
            continue
        business_phone = _business_phone(value)
        names: dict[str, str] | None = None
        shared: dict[str, Any] | None = None
        for name, items in (("statuses", statuses), ("messages", messages)):
            if items is None:
                continue
            if not isinstance(items, list):
                dead.append(DeadItem(f"{name} is not an array", _as_text({name: items})))
                continue
            seen += len(items)
            if seen > MAX_ITEMS:
                raise NotUnderstoodError(f"it holds more than {MAX_ITEMS} entries")
            for item in items:
                try:
                    if name == "statuses":
                        if shared is None:
                            shared = _shared(value)
                        update: Update = _status(item, shared, business_phone)
                    elif _is_click(item):
                        if names is None:
                            names = _names(value)
                        update = _click(item, names, business_phone)
                    else:
                        ignored += 1
                        continue
                    if root.lenient:
                        _check_text(update)
                except Invalid as error:
                    if shared is None:
                        shared = _shared(value)
                    dead.append(DeadItem(_reason(name, error), _as_text(_alone(name, item, shared))))
                else:
                    if refusal is not None and isinstance(update, ButtonClick):
                        reason = refusal(update, _text(item.get("from_user_id")))
                        if reason is not None:
                            shared = shared if shared is not None else _shared(value)
                            alone = _alone(name, item, shared)
                            if update.name is not None:
                                alone["contacts"] = [{"wa_id": update.sender, "profile": {"name": update.name}}]
                            dead.append(DeadItem(reason, _as_text(alone), refused=True))
                            continue
                    updates.append(update)
    return Parsed(tuple(updates), ignored, tuple(dead))


# --- JSON ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Root:
    json: dict[str, Any]
    lenient: bool  # read by the lenient reader: texts may hold half of a surrogate pair


def _json(body: bytes) -> _Root:
    body = body.removeprefix(codecs.BOM_UTF8)  # RFC 8259, section 8.1: not to be sent, may be ignored
    try:
        root, lenient = orjson.loads(body), False
    except orjson.JSONDecodeError as error:
        # orjson refuses a whole body for half of a surrogate pair in one text. The standard library reads it, and
        # the one entry that has it is set aside.
        root, lenient = _lenient_json(body, error), True
    if not isinstance(root, dict):
        raise NotUnderstoodError("it is JSON, but not an object")
    # So few brackets cannot nest so deep; in most bodies there is no need to look.
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _deeper_than(root, MAX_DEPTH):
        raise NotUnderstoodError(f"it nests deeper than {MAX_DEPTH} levels")
    return _Root(root, lenient)


def _lenient_json(body: bytes, error: orjson.JSONDecodeError) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(word)

    try:
        return json.loads(body.decode("utf-8"), parse_constant=refuse, parse_int=_whole)
    except (ValueError, RecursionError):
        # Position and cause only: the error's own text does not quote the body, and neither do we.
        raise NotUnderstoodError(f"it is not JSON: {error.msg} at character {error.pos}") from None


def _whole(digits: str) -> int | float:
    """An integer as orjson reads it: beyond 64 bits a float."""
    number = float(digits)
    return int(digits) if abs(number) < 2**65 and -(2**63) <= int(digits) < 2**64 else number


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        deeper: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                deeper.extend(child for child in node.values() if isinstance(child, (dict, list)))
            else:
                deeper.extend(child for child in node if isinstance(child, (dict, list)))
        if not deeper:
            return False
        level = deeper
    return True


def _check_text(update: Update) -> None:
    try:
        document(update, 0.0, update.event_id)
    except (orjson.JSONEncodeError, UnicodeEncodeError):
        raise Invalid("a text holds half of a surrogate pair, which no UTF-8 can say") from None


def _shared(value: dict[str, Any]) -> dict[str, Any]:
    """What is passed on with each entry, as far as it is small."""
    keys = ("business_phone", "merchant_phone", "metadata", "errors")
    return {key: value[key] for key in keys if key in value and len(_as_text(value[key])) <= MAX_SHARED}


def _alone(name: str, item: Any, shared: dict[str, Any]) -> dict[str, Any]:
    """An entry as the only one of a value, with what tells the business' number."""
    return {**{key: shared[key] for key in shared if key != "errors"}, name: [item]}


def _as_text(item: Any) -> str:
    """JSON text of anything that was read from JSON; escapes what UTF-8 cannot say."""
    try:
        return orjson.dumps(item).decode()
    except orjson.JSONEncodeError:
        return json.dumps(item)


# --- envelopes -------------------------------------------------------------------------------------------------


def _values(root: _Root) -> Iterator[tuple[Any, Any]]:
    """Every value in the body, whatever the envelope."""
    body = root.json
    known = False
    if "statuses" in body or "messages" in body:
        known = True
        yield body, body
    if isinstance(body.get("entry"), list):
        known = True
        for entry in body["entry"]:
            changes = entry.get("changes") if isinstance(entry, dict) else None
            if not isinstance(changes, list):
                yield entry, entry  # not a Cloud API entry: set aside or ignored as a value of its own
                continue
            for change in changes:
                yield change.get("value") if isinstance(change, dict) else change, change
    if "field" in body and "value" in body:
        known = True
        yield body["value"], body
    if not known:
        raise NotUnderstoodError("it has none of statuses, messages, entry, or field with value")


def _business_phone(value: dict[str, Any]) -> str | None:
    """The business' number, under the names that revisions and vendors gave it."""
    metadata = value.get("metadata")
    for candidate in (
        value.get("business_phone"),
        value.get("merchant_phone"),
        metadata.get("display_phone_number") if isinstance(metadata, dict) else None,
    ):
        text = _text(candidate)
        if text and len(text) <= MAX_SHARED:
            return text
    return None


def _names(value: dict[str, Any]) -> dict[str, str]:
    """Profile names by the contact's id. Contacts are matched by value: their order means nothing."""
    names: dict[str, str] = {}
    contacts = value.get("contacts")
    for contact in contacts if isinstance(contacts, list) else ():
        profile = contact.get("profile") if isinstance(contact, dict) else None
        if not isinstance(profile, dict):
            continue
        name = _text(profile.get("name")) or _text(profile.get("username"))
        if not name or len(name) > MAX_SHARED:
            continue
        for key in ("wa_id", "user_id"):
            number = _text(contact.get(key))
            if number:
                names[number] = name
    return names


# --- items -----------------------------------------------------------------------------------------------------


def _identifier(value: object) -> str:
    """A text that must be there; whole numbers are taken as their digits."""
    text = _text(value)
    if not text:
        raise Invalid("is missing or empty" if value is None or value == "" else "is not a text")
    return text


def _text(value: object) -> str | None:
    """The text itself, a whole number as its digits, None for all else: an optional field never costs its entry."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return None


def _is_plain(item: Any, key: str) -> bool:
    """Whether a text stands there that no schema could object to, as in nearly all there is."""
    return isinstance(item, dict) and type(item.get(key)) is str and item[key] != ""


def _some_object(value: object) -> dict[str, Any] | None:
    return value if isinstance(value, dict) and value else None


def _some_list(value: object) -> list[Any] | None:
    return value if isinstance(value, list) and value else None


def _timestamp_text(value: object) -> str:
    """What stood there, as text; also for values that no vendor would send."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return _as_text(value)


# Strict where a topic needs it (the id, the status); everything else is read as far as it makes sense.
_STATUS = Schema(
    {Required("id", default=None): _identifier, Required("status", default=None): _identifier}, extra=ALLOW_EXTRA
)
_CLICK = Schema({Required("id", default=None): _identifier}, extra=ALLOW_EXTRA)


def _status(item: Any, shared: dict[str, Any], business_phone: str | None) -> StatusUpdate:
    status = item if _is_plain(item, "id") and _is_plain(item, "status") else _STATUS(item)
    word = status["status"].lower()
    message = item.get("message")
    errors = _some_list(item.get("errors"))
    if errors is None and word == "failed":
        # The older shape has the errors beside `statuses`.
        errors = _some_list(shared.get("errors"))
    raw = item.get("timestamp")
    return StatusUpdate(
        message_id=status["id"],
        status=word,
        timestamp=epoch_seconds(raw),
        timestamp_text=_timestamp_text(raw),
        recipient_id=_text(item.get("recipient_id"))
        or (_text(message.get("recipient_id")) if isinstance(message, dict) else None)
        or _text(item.get("recipient_user_id"))
        or None,
        participant_id=_text(item.get("recipient_participant_id"))
        or _text(item.get("recipient_participant_user_id"))
        or None,
        conversation=_some_object(item.get("conversation")),
        errors=errors,
        business_phone=business_phone,
    )


def _is_click(item: Any) -> bool:
    """Whether the entry is a click; what is no object at all goes on to be refused with its reason."""
    if not isinstance(item, dict):
        return True
    if item.get("type") == "interactive":
        reply = item.get("interactive")
        # A flow's answer (`nfm_reply`) is interactive too, but no button.
        return not isinstance(reply, dict) or "button_reply" in reply or "list_reply" in reply
    return item.get("type") == "button"


def _click(item: Any, names: dict[str, str], business_phone: str | None) -> ButtonClick:
    click = item if _is_plain(item, "id") else _CLICK(item)
    if item["type"] == "button":
        payload, text = _template_button(item.get("button"))
    else:
        payload, text = _session_button(item.get("interactive"))
    raw = item.get("timestamp")
    sender = _text(item.get("from")) or None
    user = _text(item.get("from_user_id")) or None
    wa_ext = item.get("wa_ext")
    return ButtonClick(
        payload=payload,
        message_id=click["id"],
        text=text,
        timestamp=epoch_seconds(raw),
        timestamp_text=_timestamp_text(raw),
        sender=sender or user,
        name=names.get(sender or "") or names.get(user or ""),
        context=_some_object(item.get("context")),
        tag_name=_text(item.get("tag_name")),
        wa_ext=wa_ext,
        template=_template(wa_ext),
        business_phone=business_phone,
    )


def _template_button(value: Any) -> tuple[str, str | None]:
    if not isinstance(value, dict):
        raise Invalid("is missing or not an object", ["button"])
    # Real traffic has payloads that are null or absent: then the text stands in.
    text = _text(value.get("text"))
    payload = _text(value.get("payload")) or text
    if not payload:
        raise Invalid("has neither payload nor text", ["button"])
    return payload, text


def _session_button(value: Any) -> tuple[str, str | None]:
    reply = (value.get("button_reply") or value.get("list_reply")) if isinstance(value, dict) else None
    if not isinstance(reply, dict):
        raise Invalid("has neither button_reply nor list_reply", ["interactive"])
    title = _text(reply.get("title"))
    payload = _text(reply.get("id")) or title
    if not payload:
        raise Invalid("has a reply with neither id nor title", ["interactive"])
    return payload, title


def _template(wa_ext: Any) -> dict[str, Any] | None:
    """What `wa_ext` says of the template: text that holds JSON, or the object already; anything else says nothing."""
    if isinstance(wa_ext, str):
        try:
            wa_ext = orjson.loads(wa_ext)
        except orjson.JSONDecodeError:
            return None
    if not isinstance(wa_ext, dict) or _deeper_than(wa_ext, MAX_DEPTH):
        return None
    template: dict[str, Any] = {}
    if wa_ext.get("templateId") is not None:
        template["id"] = wa_ext["templateId"]
    if wa_ext.get("templateName") is not None:
        template["name"] = wa_ext["templateName"]
    components = wa_ext.get("components")
    parameters = [
        parameter.get("text") if isinstance(parameter, dict) and "text" in parameter else parameter
        for component in (components if isinstance(components, list) else ())
        if isinstance(component, dict) and isinstance(component.get("parameters"), list)
        for parameter in component["parameters"]
    ]
    if parameters:
        template["parameters"] = parameters
    return template or None


def _reason(name: str, error: Invalid) -> str:
    """`statuses[]: id is missing or empty`: where and what, never the value itself."""
    # The library goes through the keys in any order; the first by name is the same each time.
    first = min(getattr(error, "errors", [error]), key=lambda one: [str(part) for part in one.path])
    where = ".".join(str(part) for part in first.path if isinstance(part, str))
    what = "is not an object" if first.error_message == "expected a dictionary" else first.error_message
    return f"{name}[]: {where + ' ' if where else ''}{what}"
