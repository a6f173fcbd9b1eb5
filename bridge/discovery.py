"""What Home Assistant is told, and when: kept beside the publisher, in its thread.

The publisher asks for what is to be sent, tells what the broker acknowledged, and asks how long a click must wait.

Promises kept here (numbers as in docs/how-it-works.md):
  5. A click fires once, and now: one on a button that is not known yet waits until Home Assistant had time to know it.
  6. What it put on the broker it can take away: a discovery topic is in the journal before it is on the broker.
  8. One bad thing harms only itself: a broker that takes no discovery gets everything else.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import structlog

from bridge import homeassistant
from bridge.homeassistant import Plan
from bridge.journal import BrokenStorageError, Discoveries, Learned, NotStoredError
from bridge.model import Kind

log = structlog.get_logger()

#: Seconds that Home Assistant has to set up a trigger, from the PUBACK of its discovery to the click.
SETTLING = 1.0
#: Seconds after Home Assistant's birth message in which everything is told again, at random: many do so at once.
AFTER_BIRTH = (1.0, 5.0)
#: Seconds until a broker that refused a discovery is asked again, at the next connect.
BARRED = 600.0
#: Seconds between two looks at what other replicas have learned.
REFRESH_EVERY = 5.0


class Discovery:
    """Told once and again: at each connect, at each birth of Home Assistant, and when something is learned.

    Args:
        plan: The settings.
        journal: The publisher's.
        monotonic: Seconds that never jump.
        pick: A random number between two.
    """

    def __init__(
        self,
        plan: Plan,
        journal: Discoveries,
        monotonic: Callable[[], float] = time.monotonic,
        pick: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._plan = plan
        self._journal = journal
        self._monotonic = monotonic
        self._pick = pick
        self._buttons: dict[str, Learned] = {}  # by payload, in the order in which they were learned
        self._phones: dict[str, Learned] = {}
        self._declared = {button.payload for button in plan.buttons}
        self._remembered: set[str] = set()  # discovery topics that the journal knows
        self._wanted: dict[str, bytes] = {}
        self._queue: dict[str, bytes] = {}  # to be sent; empty: to be taken away
        self._connected = False
        # The first discovery of a connection goes alone, as mosquitto 2.0 hangs up at some that are not allowed: None
        # before it, its topic while it is under way, empty once it was acknowledged.
        self._first: str | None = None
        self._barred_until = -math.inf
        self._awaited: dict[str, set[str]] = {}  # payload: discovery topics that must be acknowledged before its click
        self._ready_at: dict[str, float] = {}
        self._born_at = math.inf  # when everything is told again
        self._unnoted: dict[str, Learned] = {}  # acknowledged, and the journal does not know
        self._said = ""
        self._refreshed_at = -math.inf

    @property
    def enabled(self) -> bool:
        return self._plan.enabled

    @property
    def birth_topic(self) -> str:
        """To be subscribed to."""
        return self._plan.birth_topic

    def start(self) -> None:
        """Read from the journal what was told."""
        for one in self._journal.learned():
            (self._buttons if one.kind == "button" else self._phones)[one.key] = one
        self._remembered = self._journal.discoveries()
        surplus = self._surplus()
        for one in surplus:
            del self._buttons[one.key]
        self._store((), surplus)

    def refresh(self) -> None:
        """Read what others have learned meanwhile, now and then, and tell it."""
        now = self._monotonic()
        if not self._plan.enabled or now - self._refreshed_at < REFRESH_EVERY:
            return
        self._refreshed_at = now
        fresh = [one for one in self._journal.learned() if one.kind == "phone" and one.key not in self._phones]
        if fresh:
            self._phones |= {one.key: one for one in fresh}
            self._change()

    # --- the connection --------------------------------------------------------------------------------------

    def connected(self) -> None:
        """A broker is there: take away what is not wanted any more, and tell everything else."""
        self._wanted = self._discover()
        if self._monotonic() < self._barred_until:
            return
        self._connected = True
        self._first = None
        self._queue = dict.fromkeys(sorted(self._remembered - self._wanted.keys()), b"")
        self._put(self._wanted)
        for payload, one in self._buttons.items():
            if self._plan.enabled and not one.told:
                self._await(payload)

    def lost(self) -> None:
        """The connection is over; on the next one everything is told again."""
        self._connected = False
        self._queue.clear()
        self._born_at = math.inf

    def hear(self, topic: str, payload: bytes) -> bool:
        """Whether Home Assistant was born: it may have forgotten what it was told."""
        if not self._plan.enabled or topic != self._plan.birth_topic or payload != b"online":
            return False
        self._born_at = min(self._born_at, self._monotonic() + self._pick(*AFTER_BIRTH))
        return True

    def next(self) -> tuple[str, bytes] | None:
        """The next discovery to be sent: topic and JSON, retained; an empty one takes it away."""
        if self._monotonic() >= self._born_at:
            self._born_at = math.inf
            self._queue |= self._wanted
        if not self._queue or self._first:
            return None
        topic = next(iter(self._queue))
        if self._first is None:
            self._first = topic
        return topic, self._queue.pop(topic)

    def due(self) -> float:
        """When there will be something to send."""
        return -math.inf if self._queue and not self._first else self._born_at

    def done(self, topic: str, payload: bytes) -> None:
        """The broker has acknowledged a discovery."""
        self._first = ""
        if topic in self._queue:
            return  # a newer one is on its way
        if not payload and topic not in self._wanted:
            self._remembered.discard(topic)
            self._note(taken=[topic])
        self._tell_off(topic)
        if self._unnoted and not self._queue:
            told, self._unnoted = list(self._unnoted.values()), {}
            self._store(told)

    def refused(self, topic: str, why: str) -> None:
        """The broker does not take a discovery; everything else goes on without."""
        if why != self._said:
            log.warning(
                "Home Assistant cannot be told everything",
                topic=topic,
                why=why,
                hint=f"allow the bridge to publish to {self._plan.prefix}/#, or set homeassistant.discovery to false",
            )
            self._said = why
        self._barred_until = self._monotonic() + BARRED
        self.lost()
        self._awaited.clear()

    def _tell_off(self, topic: str) -> None:
        """No click waits for this any more."""
        for payload, topics in list(self._awaited.items()):
            topics.discard(topic)
            if not topics:
                del self._awaited[payload]
                self._ready_at[payload] = self._monotonic() + SETTLING
                if payload in self._buttons:
                    told = self._buttons[payload] = replace(self._buttons[payload], told=True)
                    self._unnoted[payload] = told

    # --- learning --------------------------------------------------------------------------------------------

    def meet(self, updates: Iterable[tuple[int, Kind, dict[str, Any]]]) -> None:
        """Look at updates that are about to be published: place, kind and JSON of each."""
        if not self._plan.enabled:
            return
        seen: dict[tuple[str, str], Learned] = {}
        fresh = False
        room = self._room()
        for seq, kind, document in updates:
            number = homeassistant.phone_number(document.get("business_phone"))
            if number is not None:
                fresh |= self._see(self._phones, "phone", str(number), None, seq, seen, homeassistant.MAX_PHONES)
            if kind is Kind.BUTTON and self._is_shown(document["payload"]):
                # Those that are too many go below: the newest stay.
                most = math.inf if room else 0
                fresh |= self._see(self._buttons, "button", document["payload"], document.get("text"), seq, seen, most)
        surplus = self._surplus()
        for one in surplus:
            self._drop(one)
            seen.pop(("button", one.key), None)
        if seen or surplus:
            self._store(list(seen.values()), surplus)
        if fresh:
            self._change()

    def forget(self, learned: Iterable[tuple[str, str]]) -> None:
        """Let go of buttons and phones, by kind and key; Home Assistant loses what it was told of them."""
        known = {(one.kind, one.key): one for one in (*self._buttons.values(), *self._phones.values())}
        gone = [known[one] for one in learned if one in known]
        for one in gone:
            self._drop(one)
        self._store((), gone)
        self._change()

    def _drop(self, one: Learned) -> None:
        if one.kind == "phone":
            del self._phones[one.key]
            return
        del self._buttons[one.key]
        self._awaited.pop(one.key, None)
        self._ready_at.pop(one.key, None)
        self._unnoted.pop(one.key, None)

    def ready_at(self, payload: str) -> float:
        """When a click on this may be sent; infinity: as soon as the broker has its discovery."""
        if payload in self._awaited:
            return math.inf
        return self._ready_at.get(payload, -math.inf)

    def _see(
        self,
        known: dict[str, Learned],
        kind: str,
        key: str,
        text: str | None,
        seq: int,
        seen: dict[tuple[str, str], Learned],
        most: float,
    ) -> bool:
        """Note that an update names this; whether it is new."""
        before = known.get(key)
        if before is None:
            if len(known) >= most:
                return False
            taken = (*(one.name for one in self._plan.buttons), *(one.name for one in known.values()))
            name = key if kind == "phone" else homeassistant.button_name(key, text, taken)
            seen[kind, key] = known[key] = Learned(kind, key, name, seq, seq)
            return True
        if seq > before.last:
            seen[kind, key] = known[key] = replace(before, last=seq)
        return False

    def _is_shown(self, payload: str) -> bool:
        """Whether a button is one to be learned."""
        return payload not in self._declared and len(payload) <= homeassistant.PAYLOAD_LIMIT

    def _room(self) -> int:
        return max(0, self._plan.max_buttons - len(self._declared))

    def _surplus(self) -> list[Learned]:
        """The learned buttons beyond the bound, those unused longest."""
        by_use = sorted(self._buttons.values(), key=lambda one: one.last)
        return by_use[: max(0, len(by_use) - self._room())]

    def _change(self) -> None:
        """Something was learned: tell what is new, and take away what had to make room."""
        before, self._wanted = self._wanted, self._discover()
        gone = before.keys() - self._wanted.keys()
        changed = {topic: payload for topic, payload in self._wanted.items() if before.get(topic) != payload}
        if self._connected:
            self._queue |= dict.fromkeys(sorted(gone), b"")
            self._put(changed)
        for payload, one in self._buttons.items():
            if self._connected and not one.told and payload not in self._ready_at and payload not in self._awaited:
                self._await(payload)

    def _await(self, payload: str) -> None:
        """A click on this waits until the broker has acknowledged what Home Assistant must know for it."""
        self._ready_at.pop(payload, None)
        self._awaited[payload] = {
            homeassistant.trigger_topic(self._plan, payload),
            homeassistant.button_event_topic(self._plan),
        }

    def _discover(self) -> dict[str, bytes]:
        learned = [(one.key, one.name) for one in self._buttons.values()]
        return homeassistant.discover(self._plan, learned, [int(number) for number in self._phones])

    def _put(self, discoveries: dict[str, bytes]) -> None:
        """Queue discoveries, once the journal knows of them."""
        fresh = [topic for topic in discoveries if topic not in self._remembered]
        if fresh and self._note(put=fresh):
            self._remembered.update(fresh)
        for topic, payload in discoveries.items():
            self._queue.pop(topic, None)
            self._queue[topic] = payload

    # --- the journal -----------------------------------------------------------------------------------------

    def _note(self, *, put: Iterable[str] = (), taken: Iterable[str] = ()) -> bool:
        try:
            self._journal.note_discoveries(put=list(put), taken=list(taken))
        except BrokenStorageError:
            raise
        except NotStoredError as error:
            # At each connect everything is told again, so what is not noted now is noted then.
            log.warning("what Home Assistant is told could not be noted", why=str(error))
            return False
        return True

    def _store(self, learned: Iterable[Learned], forgotten: Iterable[Learned] = ()) -> None:
        learned, forgotten = list(learned), list(forgotten)
        if not learned and not forgotten:
            return
        try:
            self._journal.learn(learned, forgotten)
        except BrokenStorageError:
            raise
        except NotStoredError as error:
            # It is learned again at the next click.
            log.warning("what was learned about buttons could not be noted", why=str(error))


class Learner(Discovery):
    """Learns where another replica tells: Home Assistant must be told everything once."""

    def connected(self) -> None:
        """The one that tells has a connection of its own."""

    def hear(self, topic: str, payload: bytes) -> bool:  # noqa: ARG002  (likewise)
        return False
