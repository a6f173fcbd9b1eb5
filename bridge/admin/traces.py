"""The way of an update through the bridge: received, stored, published to which topics, acknowledged, and when."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from bridge.admin.mask import Mask
from bridge.homeassistant import FEEDS
from bridge.journal import Kept
from bridge.model import Kind
from bridge.observer import Published
from bridge.tap import Shown


class State(StrEnum):
    """How far an update has come."""

    WAITING = "waiting"
    DONE = "done"
    LATE = "late"
    REFUSED = "refused"


WORDS = {
    State.WAITING: "waits for the broker",
    State.DONE: "acknowledged",
    State.LATE: "too old to fire; recorded as late",
    State.REFUSED: "the broker did not take all of it; see the dead letters",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One of the four; `at` in epoch seconds, `after` in seconds since the receipt; None: not yet, or not known."""

    name: str
    is_done: bool
    at: float | None
    after: float | None


@dataclass(frozen=True, slots=True)
class Publication:
    """One topic that an update went to; times in epoch seconds."""

    topic: str
    retain: bool
    sent: float
    acknowledged: float
    trouble: str | None


@dataclass(frozen=True, slots=True)
class Trace:
    """An update and its way.

    Attributes:
        shown: Its JSON, numbers hidden or not.
        publications: Those that are remembered.
        size, body: Of the callback that brought it, if somebody watched; else None.
    """

    kept: Kept
    shown: dict[str, Any]
    state: State
    steps: tuple[Step, ...]
    publications: tuple[Publication, ...]
    size: int | None
    body: bytes | None

    @property
    def seq(self) -> int:
        return self.kept.seq

    @property
    def is_click(self) -> bool:
        return self.kept.kind is Kind.BUTTON

    @property
    def is_test(self) -> bool:
        return bool(self.shown.get("test"))

    @property
    def words(self) -> str:
        return WORDS[self.state]

    @property
    def title(self) -> str:
        """What stands on the button, or the message's id."""
        if self.is_click:
            return self._text("text") or self._text("payload") or "?"
        return self._text("message_id") or "?"

    @property
    def status(self) -> str:
        return self._text("status") or "?"

    @property
    def who(self) -> str | None:
        """Who clicked, or got the message."""
        return self._text("from" if self.is_click else "recipient_id")

    @property
    def name(self) -> str | None:
        return self._text("name")

    @property
    def business(self) -> str | None:
        return self._text("business_phone")

    @property
    def about(self) -> str | None:
        """The message that this is about: a status' own, or the one that a click answers."""
        if not self.is_click:
            return self._text("message_id")
        context = self.shown.get("context")
        found = context.get("id") if isinstance(context, dict) else None
        return found if isinstance(found, str) and found else None

    @property
    def errors(self) -> list[str]:
        """Why a message failed, a line for each reason."""
        found = self.shown.get("errors")
        return [_error(one) for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    def _text(self, key: str) -> str | None:
        found = self.shown.get(key)
        return found if isinstance(found, str) else None


def _error(error: dict[str, Any]) -> str:
    more = error.get("error_data")
    details = more.get("details") if isinstance(more, dict) else error.get("details")
    title = error.get("title") or error.get("message")
    head = " ".join(str(one) for one in (error.get("code"), title) if isinstance(one, (str, int)))
    return f"{head}: {details}" if isinstance(details, str) and details != title else head


class Tracer:
    """Makes traces of what the sources know just now.

    Args:
        base_topic: That stands before all topics.
        mask: Hides numbers.
        settled: Up to which place everything is done with.
        published: What the publisher remembers.
        shown: What receivers have shown.
    """

    def __init__(
        self, base_topic: str, mask: Mask, settled: int, published: Iterable[Published], shown: Iterable[Shown]
    ) -> None:
        self._base = base_topic
        self._mask = mask
        self._settled = settled
        self._published: dict[int, list[Published]] = {}
        for one in published:
            self._published.setdefault(one.seq, []).append(one)
        self._shown = {event_id: one for one in shown for event_id in one.event_ids}

    def traces(self, updates: Sequence[Kept], *, plain: bool = False) -> list[Trace]:
        return [self.trace(one, plain=plain) for one in updates]

    def trace(self, kept: Kept, *, plain: bool = False) -> Trace:
        """The way of one.

        Args:
            kept: The update.
            plain: Whether numbers are shown.
        """
        document = orjson.loads(kept.document) if plain else self._mask.document(kept.document)
        if kept.late and "late" not in document:
            document = {**document, "late": True}
        notes = self._published.get(kept.seq, [])
        came = self._shown.get(kept.event_id)
        state = self._state(kept, notes)
        body = None
        if came is not None:
            body = came.body if plain else self._mask.body(came.body)
        return Trace(
            kept,
            document,
            state,
            self._steps(kept, notes, came, state),
            tuple(self._publication(kept, one, document, plain=plain) for one in notes),
            came.size if came is not None else None,
            body,
        )

    def _state(self, kept: Kept, notes: list[Published]) -> State:
        if any(one.trouble for one in notes):
            return State.REFUSED
        if kept.seq > self._settled:
            return State.WAITING
        return State.LATE if kept.late else State.DONE

    def _steps(self, kept: Kept, notes: list[Published], came: Shown | None, state: State) -> tuple[Step, ...]:
        taken = [one for one in notes if not one.trouble]
        stored = max(came.stored, kept.received) if came is not None else kept.stored
        sent = min((one.sent for one in notes), default=None)
        acknowledged = max((one.acknowledged for one in taken), default=None) if state is not State.WAITING else None
        is_over = state is not State.WAITING

        def step(name: str, at: float | None, *, is_done: bool) -> Step:
            return Step(name, is_done, at, at - kept.received if at is not None else None)

        return (
            step("received", kept.received, is_done=True),
            step("stored", stored, is_done=True),
            step("published", sent, is_done=bool(notes) or is_over),
            step("acknowledged", acknowledged, is_done=is_over and state is not State.REFUSED),
        )

    def _publication(self, kept: Kept, note: Published, shown: dict[str, Any], *, plain: bool) -> Publication:
        below = note.topic.removeprefix(f"{self._base}/")
        # Only topics whose texts are known are shown as they are.
        known = (kept.topic, kept.event_topic, f"last/{kept.kind}", *FEEDS.values())
        if not plain:
            below = self._mask.topic(below, kept.kind, shown) if below in known else "…"
        return Publication(f"{self._base}/{below}", note.retain, note.sent, note.acknowledged, note.trouble)
