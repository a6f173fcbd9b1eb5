"""How the bridge is: webhook, journal and broker as lamps with the reason in words, and the figures beside them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import orjson

from bridge import __version__
from bridge.config import Loaded, Settings
from bridge.journal import Browsable, JournalError, NotStoredError, UnreachableError
from bridge.keeper import Keeper
from bridge.meter import Meters
from bridge.model import iso_utc
from bridge.publisher import Publisher
from bridge.pulse import Pulse
from bridge.running import answers

if TYPE_CHECKING:
    from bridge.replicas import Group

#: Seconds for which an answer about the disk or the receiver is good.
FRESH = 3.0
#: Seconds within which the receiver must answer: a load balancer that asks us has little more patience.
ANSWER = 2.0


class Light(StrEnum):
    """The colour of a lamp, by what it means."""

    OK = "ok"
    WAITING = "waiting"
    TROUBLE = "trouble"


@dataclass(frozen=True, slots=True)
class Lamp:
    """One of the three."""

    name: str
    light: Light
    why: str


@dataclass(frozen=True, slots=True)
class Sources:
    """What the page looks at."""

    loaded: Loaded
    publisher: Publisher | Group
    keeper: Keeper
    meters: Meters
    pulse: Pulse
    journal: Browsable
    is_draining: Callable[[], bool] = lambda: False

    @property
    def settings(self) -> Settings:
        return self.loaded.settings


@dataclass(frozen=True, slots=True)
class Status:
    """How the bridge is.

    Attributes:
        health: What `bridge/health` says.
        last_callback, last_click: Epoch seconds; None: never, as far as the journal remembers.
        answers: What posts were answered, by status code.
    """

    lamps: tuple[Lamp, ...]
    alarms: tuple[str, ...]
    health: dict[str, Any]
    last_callback: float | None
    last_click: float | None
    answers: dict[int, int] = field(default_factory=dict)

    @property
    def is_ok(self) -> bool:
        return all(lamp.light is not Light.TROUBLE for lamp in self.lamps) and not self.alarms

    @property
    def has_callbacks(self) -> bool:
        return self.last_callback is not None


class Watch:
    """Asks the sources, and not more often than does good.

    Args:
        sources: What is looked at.
        now: Epoch seconds.
    """

    def __init__(self, sources: Sources, now: Callable[[], float] = time.time) -> None:
        self._sources = sources
        self._now = now
        self._lock = threading.Lock()
        self._answers: dict[str, tuple[float, str | None]] = {}

    def is_alive(self) -> bool:
        """Whether the threads and receivers that carry the bridge take their turns."""
        return self._sources.publisher.is_alive() and self._sources.pulse.trouble() is None

    def not_ready(self) -> list[str]:
        """Why callbacks should go elsewhere, in words; empty: they can be stored."""
        if self._sources.is_draining():
            return ["draining: this bridge is about to stop"]
        found = (self._recently("webhook", self._webhook), self._recently("journal", self._store))
        return [why for why in found if why]

    def status(self) -> Status:
        """How the bridge is now."""
        sources = self._sources
        counted = sources.meters.read()
        health = orjson.loads(sources.keeper.report) if sources.keeper.report else {}
        alarms = tuple(health.get("alarms", ()))
        stored, clicked = self._latest()
        last = max(filter(None, (stored, counted.last)), default=None)
        lamps = (self._webhook_lamp(counted.answers, last), self._journal_lamp(health), self._broker_lamp())
        return Status(lamps, alarms, health, last, clicked, counted.answers)

    def detail(self) -> dict[str, Any]:
        """The same as JSON, for commands and scripts: no secrets and no numbers of people."""
        status = self.status()
        observer = self._sources.publisher.observer
        settings = self._sources.settings
        figures: tuple[dict[str, object], ...] = (
            {
                "listen": str(settings.webhook.listen),
                "last_callback": _iso(status.last_callback),
                "last_click": _iso(status.last_click),
                "answers": {str(code): count for code, count in status.answers.items() if count},
            },
            {"path": str(settings.journal_place)},
            {
                "url": str(self._sources.publisher.broker),
                "embedded": settings.mqtt.is_embedded,
                "protocol": observer.protocol,
                "connected_at": _iso(observer.connected_at),
                "connections": observer.connections,
            },
        )
        lamps: dict[str, object] = {
            lamp.name.lower(): {"state": lamp.light.value, "why": lamp.why, **more}
            for lamp, more in zip(status.lamps, figures, strict=True)
        }
        return {
            "ok": status.is_ok,
            "ready": not self.not_ready(),
            "version": __version__,
            **lamps,
            "home_assistant": {
                "discovery": settings.homeassistant.discovery,
                "heard_at": _iso(observer.home_assistant_at),
            },
            "alarms": list(status.alarms),
            "health": status.health,
        }

    def _latest(self) -> tuple[float | None, float | None]:
        try:
            return self._sources.journal.latest()
        except UnreachableError:  # the journal's lamp says why
            return None, None

    # --- the lamps ---------------------------------------------------------------------------------------------

    def _webhook_lamp(self, answers: dict[int, int], last: float | None) -> Lamp:
        name = "Webhook"
        if why := self._sources.pulse.trouble() or self._recently("webhook", self._webhook):
            return Lamp(name, Light.TROUBLE, why)
        turned_away = answers[401] + answers[403]
        if answers[503] and last is None:
            return Lamp(name, Light.TROUBLE, "callbacks come, and cannot be stored; see the journal")
        if last is None and turned_away:
            return Lamp(
                name,
                Light.TROUBLE,
                f"somebody posts and is turned away ({turned_away} times): compare the sender's credentials with "
                "webhook.auth",
            )
        if last is None:
            return Lamp(name, Light.WAITING, "ready; no callback has come yet")
        return Lamp(name, Light.OK, "callbacks are taken")

    def _journal_lamp(self, health: dict[str, Any]) -> Lamp:
        name = "Journal"
        if why := self._recently("journal", self._store):
            return Lamp(name, Light.TROUBLE, why)
        if alarms := health.get("alarms"):
            return Lamp(name, Light.TROUBLE, "; ".join(alarms))
        if health.get("clock_trusted") is False:
            return Lamp(
                name, Light.WAITING, "all is on disk; the clock was set, and no callback has proved it right yet"
            )
        return Lamp(name, Light.OK, "all is on disk before it is answered")

    def _broker_lamp(self) -> Lamp:
        publisher, settings = self._sources.publisher, self._sources.settings
        name = "Broker"
        if trouble := publisher.trouble:
            return Lamp(name, Light.TROUBLE, f"{trouble}; everything is kept until it can be delivered")
        whose = "the embedded broker" if settings.mqtt.is_embedded else str(publisher.broker)
        if not publisher.connected:
            return Lamp(name, Light.WAITING, f"connecting to {whose}")
        return Lamp(name, Light.OK, f"connected to {whose}, MQTT {publisher.observer.protocol}")

    # --- what costs something to know -----------------------------------------------------------------------------

    def _recently(self, name: str, ask: Callable[[], str | None]) -> str | None:
        with self._lock:
            asked, answer = self._answers.get(name, (float("-inf"), None))
            if time.monotonic() - asked > FRESH:
                answer = ask()
                self._answers[name] = (time.monotonic(), answer)
            return answer

    def _webhook(self) -> str | None:
        listen = self._sources.settings.webhook.listen
        if answers(listen, ANSWER):
            return None
        return (
            f"nothing answers at {listen} for {ANSWER:.0f} seconds; a receiver that ended or hangs is started anew, "
            "and one with as many connections as webhook.connections allows makes room"
        )

    def _store(self) -> str | None:
        try:
            self._sources.journal.try_to_store()
        except (NotStoredError, JournalError) as error:
            return str(error)
        return None


def _iso(epoch: float | None) -> str | None:
    return iso_utc(epoch) if epoch is not None else None
