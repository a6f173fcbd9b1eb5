"""The wall clock jumps by a day, forward and back, while the bridge runs.

The clock since boot goes on, as it does on a machine whose time is set. Promise 5: a click that just came fires once
and is not late, one that is really old does not fire. Promise 6: no retained topic goes before its time.

`time.time` of main process and receivers is replaced when Python starts; the difference stands in a file. libfaketime
(0.9.10) will not do: with the clock since boot left alone, every `time.sleep` of Python 3.11 fails under it (EINVAL).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho

from tests.torture.harness import (
    Bridge,
    Mosquitto,
    Subscriber,
    click,
    ended,
    event_id,
    retained_now,
    status,
    wait_until,
)
from tests.torture.proxy import Proxy

DAY = 86_400
#: Seconds that a status stands in this campaign, so that the keeper looks every second; clicks stand for a day.
STATUS_STANDS = 12.0
#: Seconds after which a click is late in this campaign.
MAX_AGE = 5.0
#: One round of so many has a broker outage that is longer than that.
OUTAGE_EVERY = 20


#: `sitecustomize.py`, which Python runs before anything else.
FALSE_CLOCK = """
import os, time

true, place = time.time, os.environ["FALSE_CLOCK"]

def false():
    with open(place) as file:
        return true() + float(file.read())

time.time = false
time.time_ns = lambda: int(false() * 1e9)
"""


class Witness(Subscriber):
    """Also knows when which topic was taken off the broker."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.cleared: dict[str, float] = {}

    def _message(self, client: object, data: object, message: paho.MQTTMessage) -> None:
        if not message.payload:
            self.cleared.setdefault(message.topic.removeprefix("whatsapp/"), time.monotonic())
        super()._message(client, data, message)


def run(folder: Path, *, seed: int, count: int, say: Callable[[str], None] = print) -> dict[str, object]:
    """Jump `count` times; returns the figures."""
    chance = random.Random(seed)
    campaign = Campaign(folder)
    with ended(campaign.broker, campaign.proxy, campaign.bridge):
        campaign.broker.start()
        campaign.proxy.start()
        campaign.bridge.start()
        with Witness(campaign.broker.port) as witness:
            campaign.witness = witness
            campaign.fresh("first")
            for number in range(count):
                offset = chance.choice([days for days in (-1, 0, 1) if days != campaign.offset])
                campaign.jump(number, offset, chance)
                if number % 10 == 9:
                    say(f"{number + 1} jumps: {campaign.figures}")
            campaign.outages(chance, max(1, count // OUTAGE_EVERY))
            campaign.look_back()
        campaign.set(0)
        code = campaign.bridge.stop()
        assert code == 0, f"it stops in order, not with {code}\n{campaign.bridge.tail(40)}"
    return {"jumps": count, **campaign.figures}


class Campaign:
    """The bridge under a false clock, and what is expected of it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._clock = folder / "clock"
        self.set(0)
        self.broker = Mosquitto(folder / "broker")
        # It sees what the broker acknowledged, also while no subscriber is connected.
        self.proxy = Proxy(self.broker.port)
        customized = folder / "customized"
        customized.mkdir()
        (customized / "sitecustomize.py").write_text(FALSE_CLOCK)
        places = os.pathsep.join([str(customized), *filter(None, [os.environ.get("PYTHONPATH")])])
        false_clock = ["env", f"PYTHONPATH={places}", f"FALSE_CLOCK={self._clock}"]
        settings = {
            "retain.status": f"{STATUS_STANDS:.0f}s",
            "retain.button": "1d",
            "events.max_age": f"{MAX_AGE:.0f}s",
        }
        self.bridge = Bridge(folder / "bridge", self.proxy.port, settings=settings, wrapper=false_clock)
        self.witness: Witness
        self._events: dict[str, int] = {}  # event_id -> how often it must have come
        self._stands: dict[str, str] = {}  # button topic -> the click that it must carry
        self._statuses: dict[str, float] = {}  # topic -> when it was posted
        self.figures = {"fresh_clicks": 0, "old_clicks": 0, "late_after_an_outage": 0, "statuses": 0, "cleared": 0}

    def set(self, days: int) -> None:
        """Set the wall clock; a file that is replaced is never half written."""
        self.offset = days
        fresh = self._clock.with_name("clock.new")
        fresh.write_text(str(days * DAY))
        fresh.replace(self._clock)

    def jump(self, number: int, days: int, chance: random.Random) -> None:
        """Clicks right before, during and after a jump: all of them fire, once and in time."""
        before = self._post_click("gate", f"before{number}")
        time.sleep(chance.choice((0, chance.uniform(0, 0.3))))
        self.set(days)
        after = self._post_click("gate", f"after{number}")
        self._post_status(f"s{number}")
        self._await_events(before, after)
        wait_until(
            lambda: self._state("button/gate").get("message_id") == f"after{number}",
            f"the latest click stands, at {days:+d} days: {self._state('button/gate')}",
            5,
        )
        state = self._state("button/gate")
        received = datetime.fromisoformat(state["received_at"]).timestamp()
        assert abs(received - time.time() - days * DAY) < DAY / 2, "the bridge runs on the false clock"
        self.fresh(f"own{number}")
        if days == 0:
            # A callback that is right about the time has just proven the clock: what claims to be old is old.
            self._old(f"old{number}")

    def fresh(self, name: str) -> None:
        """A click on a button of its own."""
        self._await_events(self._post_click(f"button-{name}", name))
        wait_until(lambda: self._is_recorded(f"button-{name}"), "its state stands as well", 5)

    def outages(self, chance: random.Random, rounds: int) -> None:
        """Clicks that waited too long for a broker are late, whatever the wall clock did meanwhile."""
        for number in range(rounds):
            self.broker.kill()
            name = f"waits{number}"
            body = click(f"button-{name}", name)
            assert self.bridge.post(body) == 200
            time.sleep(chance.uniform(0, 1))
            self.set(chance.choice([days for days in (-1, 0, 1) if days != self.offset]))
            time.sleep(MAX_AGE)
            self.broker.start()
            wait_until(lambda: self._is_recorded(f"button-{name}"), f"it is recorded\n{self.bridge.tail()}", 30)  # noqa: B023
            state = self._state(f"button/button-{name}")
            assert state.get("late") is True, f"a click that waited for {MAX_AGE} s is late: {state}"
            self._events[event_id(body)] = 0
            self._stands[f"button/button-{name}"] = name
            self.figures["late_after_an_outage"] += 1
            self.fresh(f"again{number}")

    def _missing(self) -> set[str]:
        standing = retained_now(self.broker.port)
        return {topic for topic, name in self._stands.items() if standing.get(topic, {}).get("message_id") != name}

    def look_back(self) -> None:
        """What must hold at the end."""
        wait_until(
            lambda: all(self._fired(identity) >= times for identity, times in self._events.items()),
            f"everything arrives\n{self.bridge.tail()}",
        )
        # Each status is taken off in its time, not before.
        wait_until(
            lambda: self._statuses.keys() <= self.witness.cleared.keys(),
            f"statuses are taken off the broker\n{self.bridge.tail()}",
            STATUS_STANDS + 30,
        )
        stood = [self.witness.cleared[topic] - posted for topic, posted in self._statuses.items()]
        assert min(stood) >= STATUS_STANDS, f"a status stood for {min(stood):.1f} s instead of {STATUS_STANDS}"
        self.figures["cleared"] = len(stood)
        fired = {identity: self._fired(identity) for identity in self._events}
        wrong = {identity: times for identity, times in fired.items() if times != self._events[identity]}
        assert not wrong, f"{len(wrong)} clicks did not come as often as they must: {wrong}"
        early = [topic for topic in self._stands if topic in self.witness.cleared]
        assert not early, f"{len(early)} clicks were taken off a day too early: {early}"
        # A broker that was away at the end is being given everything back just now.
        wait_until(lambda: not self._missing(), f"every click stands\n{self.bridge.tail()}")

    def _post_click(self, payload: str, name: str) -> str:
        body = click(payload, name)  # with WhatsApp's time, which is right
        assert self.bridge.post(body) == 200
        identity = event_id(body)
        self._events[identity] = 1
        self._stands[f"button/{payload}"] = name
        self.figures["fresh_clicks"] += 1
        return identity

    def _post_status(self, name: str) -> None:
        assert self.bridge.post(status(name, "sent")) == 200
        self._statuses[f"{name}/status"] = time.monotonic()
        self.figures["statuses"] += 1

    def _old(self, name: str) -> None:
        body = click(f"button-{name}", name, int(time.time()) - 3600)
        assert self.bridge.post(body) == 200
        wait_until(lambda: self._is_recorded(f"button-{name}"), f"it is recorded\n{self.bridge.tail()}", 20)
        assert self._state(f"button/button-{name}").get("late") is True, "a click an hour old is late"
        self._events[event_id(body)] = 0
        self._stands[f"button/button-{name}"] = name
        self.figures["old_clicks"] += 1

    def _await_events(self, *identities: str) -> None:
        wait_until(
            lambda: all(self._fired(identity) for identity in identities),
            f"a click fires at {self.offset:+d} days\n{self.bridge.tail()}",
            20,
        )

    def _fired(self, identity: str) -> int:
        return self.proxy.acknowledged[identity]

    def _is_recorded(self, button: str) -> bool:
        return bool(self._state(f"button/{button}"))

    def _state(self, topic: str) -> dict[str, Any]:
        return self.witness.states.get(topic, {})
