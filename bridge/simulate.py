"""Realistic callbacks with fresh ids, posted to a running bridge as WhatsApp and its vendors would."""

from __future__ import annotations

import base64
import http.client
import secrets
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import orjson

from bridge.auth import credentials
from bridge.config import Address, Settings

STATUSES = ("sent", "delivered", "read", "failed", "deleted")
CLOUD = "cloud-"
KINDS = tuple(f"{envelope}{kind}" for envelope in ("", CLOUD) for kind in (*STATUSES, "button"))
BUSINESS_PHONE = "15550009999"


class SimulationError(Exception):
    """The callback could not be posted, or was not taken; the message says why."""


class UnknownKindError(SimulationError):
    """There is no such callback to post."""


def post(
    settings: Settings,
    kinds: tuple[str, ...],
    *,
    url: str | None = None,
    message_id: str | None = None,
    payload: str = "open_gate",
    text: str = "Open the gate",
    sender: str = "15550001234",
) -> Iterator[str]:
    """Post a callback of each kind; yields a line about each.

    Raises:
        UnknownKindError: One of them is none; nothing was posted.
        SimulationError: Nobody listens, or the bridge did not answer 200.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise UnknownKindError(f"{unknown[0]} is no kind; choose from {', '.join((*STATUSES, 'button'))}, or {CLOUD}…")
    about = message_id or message_id_for(sender)
    for kind in kinds:
        value = (
            click(payload=payload, text=text, sender=sender)
            if kind.removeprefix(CLOUD) == "button"
            else status(kind.removeprefix(CLOUD), message_id=about, recipient=sender)
        )
        body = orjson.dumps(in_cloud_envelope(value) if kind.startswith(CLOUD) else value)
        yield f"{kind}: {_send(settings, body, url)}"


def message_id_for(number: str) -> str:
    """A fresh message id of WhatsApp's form: `wamid.` and base64 around the number and 18 random digits."""
    digits = number.encode("utf-8", "replace")[:255]
    inside = b"\x1d\x04" + bytes([0x18, len(digits)]) + digits + b"\x15\x02\x00\x11\x18\x12"
    inside += secrets.token_hex(9).upper().encode() + b"\x00"
    return "wamid." + base64.b64encode(inside).decode()


def status(kind: str, *, message_id: str, recipient: str) -> dict[str, Any]:
    """A value with one status, as the vendor's specification of the status callback has it."""
    now = int(time.time())
    item: dict[str, Any] = {
        "id": message_id,
        "status": kind,
        "timestamp": str(now),
        "recipient_id": recipient,
    }
    if kind in ("sent", "delivered"):
        item["conversation"] = {"id": secrets.token_hex(16), "origin": {"type": "business_initiated"}}
    if kind == "sent":
        item["conversation"]["expiration_timestamp"] = str(now + 86_400)
    if kind == "failed":
        item["errors"] = [{"code": 131_026, "title": "Message undeliverable"}]
    if kind == "deleted":
        item |= {"type": "message", "message": {"recipient_id": recipient}}
    return {"business_phone": BUSINESS_PHONE, "messaging_product": "whatsapp", "statuses": [item]}


def click(*, payload: str, text: str, sender: str) -> dict[str, Any]:
    """A value with one click, as the vendor's specification of the button callback has it."""
    template = {
        "templateId": 1,
        "templateName": "somebody_is_at_the_gate",
        "components": [{"type": "body", "parameters": [{"type": "text", "text": "the garden gate"}]}],
    }
    return {
        "business_phone": BUSINESS_PHONE,
        "contacts": [{"profile": {"name": "Somebody"}, "wa_id": sender}],
        "messages": [
            {
                "button": {"payload": payload, "text": text},
                "context": {"from": BUSINESS_PHONE, "id": message_id_for(sender)},
                "from": sender,
                "id": message_id_for(sender),
                "timestamp": str(int(time.time())),
                "type": "button",
                "tag_name": "simulated",
                "wa_ext": orjson.dumps(template).decode(),
            }
        ],
        "messaging_product": "whatsapp",
    }


def in_cloud_envelope(value: dict[str, Any]) -> dict[str, Any]:
    """The same value as Meta's Cloud API sends it."""
    value = dict(value)
    number = value.pop("business_phone")
    value["metadata"] = {"display_phone_number": number, "phone_number_id": "100000000000001"}
    change = {"field": "messages", "value": value}
    return {"object": "whatsapp_business_account", "entry": [{"id": "100000000000002", "changes": [change]}]}


def _send(settings: Settings, body: bytes, url: str | None) -> str:
    suffix, headers = credentials(settings.webhook.auth, body, time.time())
    listen = settings.webhook.listen
    nearby = Address(listen.nearby, listen.port)
    try:
        target = urlsplit(url or f"http://{nearby}")
        port = target.port
    except ValueError as error:
        raise SimulationError(f"the url is none ({error}); write e.g. http://127.0.0.1:8080/webhook") from error
    if target.scheme not in ("http", "https") or not target.hostname:
        raise SimulationError("the url names no host or no protocol; write e.g. http://127.0.0.1:8080/webhook")
    kind = http.client.HTTPSConnection if target.scheme == "https" else http.client.HTTPConnection
    connection = kind(target.hostname, port, timeout=10)
    path = target.path or "/"
    if path in ("/", settings.webhook.path):
        # So that nobody has to write the secret where everybody on this machine can read it.
        path = settings.webhook.path + suffix
    path += f"?{target.query}" if target.query else ""
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        said = answer.read().decode("utf-8", "replace")
    except OSError as error:
        raise SimulationError(
            f"nobody answers at {target.hostname}:{connection.port}: {error.strerror or error}; "
            "is the bridge running? start it with `whatsapp2mqtt run`"
        ) from error
    except (ValueError, http.client.InvalidURL):
        # What Python says here quotes the header, and so the secret.
        raise SimulationError("the url, or a secret sent in a header, holds characters that HTTP cannot send") from None
    except http.client.HTTPException as error:
        raise SimulationError(f"what answers at {target.hostname}:{port} does not speak HTTP") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise SimulationError(f"the bridge answered {answer.status}: {said}")
    return said
