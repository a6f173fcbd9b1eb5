"""Numbers out of sight on the page, until somebody asks for them; what the journal holds stays as it is."""

from __future__ import annotations

import functools
import secrets
from typing import Any

import orjson

from bridge import topics
from bridge.model import Kind
from bridge.privacy import Veil


class Mask:
    """Hides numbers in what is shown: the last four digits of a person's stay, ids with one in them are replaced.

    The same id is replaced the same way as long as the bridge runs, so that one can be told from another.

    Args:
        encode_dots: As in `mqtt.encode_dots`.
    """

    def __init__(self, *, encode_dots: bool) -> None:
        self._veil = Veil("mask", secrets.token_bytes(32))
        self._encode_dots = encode_dots
        self._document = functools.lru_cache(1_000)(self._masked)

    def document(self, document: str) -> dict[str, Any]:
        """The JSON of an update."""
        return self._document(document)

    def _masked(self, document: str) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(self._veil.body(document.encode()))
        # A hash, whose digits are no number.
        return found | {"event_id": orjson.loads(document)["event_id"]}

    def body(self, body: bytes) -> bytes:
        """What came in, or a part of it."""
        return self._veil.body(body)

    def topic(self, topic: str, kind: Kind, shown: dict[str, Any]) -> str:
        """A topic below the base topic, with the levels that what is shown of the update would have.

        Args:
            topic: As it stands in the journal.
            kind: Of the update.
            shown: Its JSON as `document` gives it.
        """
        if kind is Kind.BUTTON and topic.startswith(("button/", "event/button/")):
            head = topic.removesuffix(topic.rpartition("/")[2])
            return head + topics.payload_level(shown["payload"], encode_dots=self._encode_dots)
        if kind is Kind.STATUS and topic.endswith("/status") and topic.count("/") == 1 and topic != "last/status":
            return topics.message_level(shown["message_id"], encode_dots=self._encode_dots) + "/status"
        return topic
