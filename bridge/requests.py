"""Requests by MQTT: what is asked on `bridge/request/<what>` is answered on `bridge/response/<what>`.

Whoever may publish there is trusted with no more than to look and to hurry things along. None can fire a click that
was not posted, read what was posted, lose anything, or hide anything: there is no request for that.

The publisher's thread hears them and sends the answers; what is asked is done on a thread of their own, as it may take
long. Hearing is bounded whatever comes: in size, in number, and in how many wait.

Promise kept here (numbers as in docs/how-it-works.md):
  7. Hostile text stays text: of a request only a word from a list, numbers, and the transaction are used, and the
     transaction is repeated within JSON alone.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import structlog

from bridge.mqtt import Connection, ConnectionEndedError
from bridge.topics import BRIDGE_REQUEST, BRIDGE_RESPONSE

log = structlog.get_logger()

#: Bytes of a request.
LARGEST = 4_096
#: So many requests in so many seconds are heard; a flood costs no more than reading it.
HEARD, HEARD_WITHIN = 10, 10.0
#: Requests that wait for their turn.
WAITING = 10
#: Seconds in which the same transaction is the same request: QoS 1 may bring it twice.
SAME = 30.0
#: Characters of a transaction.
TRANSACTION = 100
#: Seconds between two that were carried out.
GAPS = {"dead_letters": 10.0, "reconnect": 60.0}
#: How often the broker must hang up at the subscription before it is left out.
STRIKES = 3

#: Carries out a request: what it says beside the transaction, to what is answered.
Deed = Callable[[Mapping[str, Any]], dict[str, Any]]


class RefusedError(Exception):
    """What was asked is not done; the message says why."""


class Requests:
    """Hears requests and answers them; `run` is the thread that carries them out.

    Args:
        deeds: What can be asked for.
        allowed: Of these, what the settings allow.
        answer: Publishes a text on a topic below the base topic, not retained; from any thread.
        now: Seconds that never jump.
    """

    def __init__(
        self,
        deeds: Mapping[str, Deed],
        allowed: frozenset[str],
        answer: Callable[[str, bytes], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deeds = deeds
        self._allowed = allowed
        self._answer = answer
        self._now = now
        self._heard: deque[float] = deque(maxlen=HEARD)
        self._seen: dict[tuple[str, object], float] = {}
        self._done: dict[str, float] = {}
        self._waiting: queue.Queue[tuple[str, bytes] | None] = queue.Queue(WAITING)
        self._strikes = 0
        self._number: int | None = None  # of the subscription, on this connection

    # --- the publisher's thread --------------------------------------------------------------------------------------

    def subscribe(self, connection: Connection, base_topic: str) -> None:
        """Hear requests on this connection; one that the broker does not allow is never heard, and matters no further.

        QoS 0: who asks and gets no answer asks again, and no flood has to be acknowledged.
        """
        if self._allowed and self._strikes < STRIKES:
            self._number = connection.subscribe(f"{base_topic}/{BRIDGE_REQUEST}/#", qos=0)

    def lost(self, connection: Connection, error: ConnectionEndedError) -> None:
        """A connection ended: where that is the broker's answer to the subscription, live without."""
        unanswered = self._number is not None and self._number not in connection.subscribed
        self._number = None
        if not (unanswered and error.hung_up):
            return
        self._strikes += 1
        if self._strikes == STRIKES:
            log.warning("the broker hangs up at the subscription to requests; they are not heard until the next start")

    def hear(self, topic: str, payload: bytes, *, retained: bool) -> bool:
        """Take a request, if it is one.

        Args:
            topic: Below the base topic.
            payload: Its content.
            retained: The broker had kept it: it was meant for another time, and would come at each connection.

        Returns:
            Whether it was one.
        """
        above, slash, what = topic.partition(f"{BRIDGE_REQUEST}/")
        if above or not slash:
            return False
        # Without a payload it takes a retained request away.
        if retained or not payload:
            return True
        now = self._now()
        if len(self._heard) == HEARD and now - self._heard[0] < HEARD_WITHIN:
            return True
        self._heard.append(now)
        try:
            self._waiting.put_nowait((what, payload[: LARGEST + 1]))
        except queue.Full:
            log.debug("too many requests wait; one is dropped")
        return True

    # --- the thread of its own ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Carry out what is asked until `stop`."""
        while (request := self._waiting.get()) is not None:
            self.carry_out(*request)

    def stop(self) -> None:
        """Let `run` return, from any thread."""
        while True:
            try:
                self._waiting.put_nowait(None)
                return
            except queue.Full:
                try:
                    self._waiting.get_nowait()
                except queue.Empty:
                    continue

    def carry_out(self, what: str, payload: bytes) -> None:
        """Do what is asked, and answer."""
        if what not in self._deeds:
            what = ""
        answer: dict[str, Any] = {"status": "ok"}
        try:
            asked = _read(payload)
            if "transaction" in asked:
                answer["transaction"] = transaction = _transaction(asked)
                if self._is_seen(what, transaction):
                    return
            answer["data"] = self._do(what, asked)
        except RefusedError as error:
            answer["status"], answer["error"] = "error", str(error)
        except Exception as error:  # a fault of ours: it must not end the bridge
            log.error("a request failed", what=what, exc_info=error)
            answer["status"], answer["error"] = "error", "it failed; look at the log"
        if what in GAPS or what == "log_level":
            log.info("a request by MQTT", what=what, status=answer["status"], error=answer.get("error"))
        self._answer(f"{BRIDGE_RESPONSE}/{what or 'error'}", orjson.dumps(answer))

    def _do(self, what: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        if not what:
            raise RefusedError(f"there is no such request; ask for {', '.join(self._deeds)}")
        if what not in self._allowed:
            raise RefusedError(f"the settings do not allow it; set mqtt.requests.{what} to true")
        now = self._now()
        gap = GAPS.get(what, 0.0)
        if now - self._done.get(what, -gap) < gap:
            raise RefusedError(f"it was asked for just now; wait {gap:.0f} seconds")
        self._done[what] = now
        return self._deeds[what](asked)

    def _is_seen(self, what: str, transaction: object) -> bool:
        now = self._now()
        self._seen = {key: at for key, at in self._seen.items() if now - at < SAME}
        seen = (what, transaction) in self._seen
        self._seen.setdefault((what, transaction), now)
        return seen


def _read(payload: bytes) -> dict[str, Any]:
    if len(payload) > LARGEST:
        raise RefusedError(f"the request is larger than {LARGEST} bytes")
    try:
        asked = orjson.loads(payload)
    except orjson.JSONDecodeError:
        asked = None
    if not isinstance(asked, dict):
        raise RefusedError('the request is no JSON object; send e.g. {"transaction": "1"}, or {}')
    return asked


def _transaction(asked: Mapping[str, Any]) -> str | int:
    found = asked["transaction"]
    if isinstance(found, bool) or not isinstance(found, (str, int)) or len(str(found)) > TRANSACTION:
        raise RefusedError(f"transaction: is no text of {TRANSACTION} characters at most, and no whole number")
    return found
