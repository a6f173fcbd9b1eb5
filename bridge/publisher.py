"""Pending updates to the broker: fetch, project, publish, settle; restore what the broker forgot.

One thread owns the connection, the window of what is in flight, and the notes in the journal.

Promises kept here (numbers as in docs/how-it-works.md):
  2. Delivered at least once, settled only by the broker: an update is settled when each of its publications was
     acknowledged with a reason code below 0x80, or became a dead letter.
  4. Never backwards: an older state is not sent again once a newer one of its topic was acknowledged.
  5. A click fires once, and now: what was acknowledged is not sent again, and each time a click is about to be sent,
     its age is looked at anew.
  6. What it put on the broker it can restore: `bridge/checkpoint` tells what the broker remembers; what was settled
     after it is published again from the ledger.
  8. One bad thing harms only itself: what the broker will not take becomes a dead letter.
"""

from __future__ import annotations

import itertools
import math
import random
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum

import orjson
import structlog

from bridge import topics
from bridge.again import LAST_TOPIC
from bridge.clock import Clock
from bridge.config import BrokerUrl, Tls
from bridge.discovery import Discovery
from bridge.failover import Failover
from bridge.homeassistant import FEEDS, feed_document
from bridge.journal import (
    BrokenStorageError,
    BusyError,
    DeadLetter,
    Journal,
    NotStoredError,
    Retained,
    Stored,
    UnreachableError,
)
from bridge.model import Kind, iso_utc
from bridge.mqtt import HOLDING_CODES, Ack, Connection, ConnectionEndedError
from bridge.observer import Observer
from bridge.pacing import Pacer
from bridge.requests import Requests
from bridge.wakeup import Bell, Doorbell

log = structlog.get_logger()

#: How many QoS 1 publications may wait for their PUBACK, unless the broker's Receive Maximum is smaller.
WINDOW = 500
#: How many updates are read from the journal at once.
FETCH = 250
#: Seconds between two notes of what is settled, and between two checkpoints on the broker, under load.
SETTLE_EVERY = 0.1
CHECKPOINT_EVERY = 1.0
#: Seconds after which a note of what is settled waits for its turn to write.
SETTLE_OVERDUE = 1.0
#: How often the broker must hang up at a publication that is alone in flight before it becomes a dead letter.
STRIKES = 3
#: Seconds to wait for our own retained message to come back before asking again, and before giving up.
CANARY_AGAIN, CANARY_GIVE_UP = 1.0, 5.0
#: Seconds in which a missing checkpoint may still come, once the broker has shown that it serves retained messages.
CHECKPOINT_GRACE = 1.0
#: Seconds for what is in flight when the bridge stops.
STOP_PATIENCE = 3.0
#: A turn of the publisher's loop takes no longer than this many seconds, a connection that hangs included.
ALIVE = 30.0
#: Seconds between two clicks on a topic, and two events on a topic for Home Assistant's event entities: older ones
#: stamp an event to the millisecond, and drop the second in it. The least is for bursts; where few wait there is more,
#: as a broker or Home Assistant that is busy with the first hands on the next ones together.
EVENT_GAP, EVENT_GAP_AT_REST = 0.005, 0.05
#: So many statuses may wait for Home Assistant's event entity, which takes no more than 200 a second; when there are
#: more, it sees the failed ones only. All of them stand on their own topics at full speed.
FEED_MOST = 1_000
#: While so many events wait their turn, no more updates are read from the journal.
PACED_MOST = 5_000
#: Bytes of a message to us; what we have to hear is much smaller.
LARGEST_HEARD = 65_536
#: Answers to requests that wait to be sent; more are dropped.
ANSWERS = 20
#: Seconds between two looks at what other publishers did.
LOOK_EVERY = 0.2
#: Seconds until a journal that could not be reached is read again.
READ_AGAIN = 1.0
#: The publisher also looks into the journal by itself this often, should a ring be lost, in seconds.
POLL = 1.0


@dataclass(frozen=True, slots=True)
class Part:
    """What of the whole one publisher does; a bridge alone does all of it.

    Attributes:
        state: Where it says `online`, and its last will `offline`; below the base topic, as all topics here.
        info: What it is; comes back to it, so that it knows that the broker takes and gives.
        checkpoints: How far the broker is up to date, of each partition that it publishes.
        has_all: It publishes every update, and so the latest of all along with it.
        ahead: A place up to which some of its partitions were published before it began.
        will_delay: Seconds for which the broker keeps the will to itself, where it can: somebody may take its place.
        follows: Topics that it hears for somebody else.
    """

    state: str = topics.BRIDGE_STATE
    info: str = topics.BRIDGE_INFO
    checkpoints: tuple[str, ...] = (topics.BRIDGE_CHECKPOINT,)
    has_all: bool = True
    ahead: int = 0
    will_delay: float = 0.0
    follows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PublisherSettings:
    """What the publisher needs to know.

    Attributes:
        brokers: In the order in which they are preferred, or any of them `at_random`.
        protocols: In the order in which they are tried: `5`, `3.1.1`.
        keepalive: Seconds.
        max_age: Seconds after which a click is late; None: never.
        retain: Seconds that a retained topic of each kind stands; 0: it is published without being retained.
        info: What `bridge/info` says beside broker and protocol.
        part: What of the whole it does.
    """

    brokers: tuple[BrokerUrl, ...]
    tls: Tls
    protocols: tuple[str, ...]
    client_id: str
    keepalive: float
    base_topic: str
    max_age: float | None
    at_random: bool = False
    retain: dict[Kind, float] = field(default_factory=lambda: {Kind.STATUS: 604_800.0, Kind.BUTTON: 86_400.0})
    info: dict[str, object] = field(default_factory=dict)
    part: Part = Part()


class Role(StrEnum):
    """What a publication of an update is for; texts, whose hashes cost nothing."""

    EVENT = "event"
    STATE = "state"
    LAST = "last"
    FEED = "feed"  # the event once more, for Home Assistant's event entity


@dataclass(slots=True, eq=False)
class Flight:
    """One publication on its way.

    Attributes:
        topic: Its full topic.
        role: Of an update's publication; None for the bridge's own and for what is restored.
        progress: Of the update; None likewise.
    """

    topic: str
    payload: bytes
    retain: bool
    expiry: float | None = None
    event_id: str | None = None
    role: Role | None = None
    progress: Progress | None = None
    clears: str | None = None  # the topic of the ledger that this takes off the broker
    restores: bool = False  # what the broker may have forgotten
    discovers: bool = False  # tells Home Assistant something
    answers: bool = False  # a request: who asked may ask again
    sent_at: float = 0.0  # on the monotonic clock

    @property
    def purpose(self) -> str:
        """In one of the words of `observer.PURPOSES`."""
        if self.role is not None:
            return self.role.value
        if self.progress is not None:
            return Role.FEED.value
        if self.restores:
            return "restore"
        if self.clears is not None:
            return "clear"
        return "discovery" if self.discovers else "bridge"

    @property
    def seq(self) -> int | None:
        """The place of the update that it is of."""
        return self.progress.stored.seq if self.progress is not None else None

    @property
    def is_own(self) -> bool:
        """Whether it is about the bridge itself, and below the base topic: nothing from outside is in it."""
        return self.progress is None and not self.restores and self.clears is None and not self.discovers


@dataclass(slots=True, eq=False)
class Progress:
    """An update that was read from the journal and is not settled: what is still to be acknowledged."""

    stored: Stored
    waiting: set[Role]
    holds_last: bool = False
    feed: bytes | None = None  # what Home Assistant's event entity is given
    held_for: str | None = None  # the payload of a click, as its events may have to wait

    @property
    def done(self) -> bool:
        return not self.waiting


class Greeting(Enum):
    """How far a new connection has come."""

    CONNECTING = "connecting"
    ANNOUNCING = "announcing"  # state and info sent, not yet acknowledged
    PROBING = "probing"  # waiting for our own retained message to come back
    READY = "ready"


class Publisher:
    """Publishes what the journal holds; `run` is its thread.

    Args:
        settings: What to do.
        journal: Opened by and for the thread that calls `run`.
        doorbell: Rings when something was stored, or to stop.
        clock: Wall clock and time since boot.
        connect: Makes a connection; tests pass their own.
        monotonic: Seconds that never jump, for patience and pace.
        discovery: What Home Assistant is told; None: nothing ever was.
        observer: Is told what was published.
        heard: Is told what came on the topics that it follows: the topic, and the payload.
        last: What `last/*` are to carry, where this does not have all updates; None: somebody else tells, or it has.
    """

    def __init__(
        self,
        settings: PublisherSettings,
        journal: Journal,
        doorbell: Doorbell | Bell,
        clock: Clock,
        connect: Callable[..., Connection] = Connection,
        monotonic: Callable[[], float] = time.monotonic,
        discovery: Discovery | None = None,
        observer: Observer | None = None,
        heard: Callable[[str, bytes], None] = lambda _, __: None,
        last: Callable[[], list[Retained]] | None = None,
    ) -> None:
        self._settings = settings
        self._part = settings.part
        self._journal = journal
        self._doorbell = doorbell
        self._clock = clock
        self._connect = connect
        self._monotonic = monotonic
        self._discovery = discovery
        self.observer = observer or Observer()
        self._failover = Failover(
            settings.brokers, settings.protocols, at_random=settings.at_random, monotonic=monotonic
        )
        self._heard = heard
        self._last = last
        self._stopping = threading.Event()
        self._goodbye = True
        self._turn = monotonic()
        #: Whether it ended with nothing on its way that may still reach the broker, but for words about itself.
        self.is_through = False
        self._may_arrive = False  # something that was sent on a connection that broke, and had no successor yet

        # The connection and what is in flight on it, by the number that its PUBACK will bear.
        self._connection: Connection | None = None
        self._greeting = Greeting.CONNECTING
        self._flights: dict[int, Flight] = {}
        self._waiting: deque[Flight] = deque()
        self._paced: Pacer[Flight] = Pacer(EVENT_GAP, EVENT_GAP_AT_REST)
        self.requests: Requests | None = None
        self._answers: deque[tuple[str, bytes]] = deque(maxlen=ANSWERS)
        self._has_answered = False  # the last thing that the broker acknowledged was an answer
        self._answer_strikes = 0
        self._renews = False  # the connection, as soon as nothing is in flight
        self._replay: int | None = None  # the place after which retained topics are wanted once more
        self._forgets: deque[tuple[Sequence[tuple[str, str]], threading.Event]] = deque()  # what was learned; done
        self._reports: deque[bytes] = deque(maxlen=1)  # the health report that waits to be sent
        self._report = b""  # the newest one
        self._sayings: deque[tuple[str, bytes]] = deque()  # what others have it say once
        self._shown: dict[str, tuple[int, bool]] | None = None  # what it put on `last/*` on this connection
        self._looked_at = 0.0
        self._cleared: list[str] = []  # acknowledged, and not yet noted
        self._is_clearing = True  # whether the ledger may have something to be cleared
        self._last_ack = 0.0
        self._trouble: str | None = None  # why nothing flows
        self._told: set[str] = set()  # what was logged since something flowed
        self._held = False  # by a broker that does not allow what we publish
        self._denial: ConnectionEndedError | None = None  # of it, while other acknowledgements are still to come

        # Updates between what is settled and what was fetched, in order.
        self._window: dict[int, Progress] = {}
        self._settled = 0
        self._fetched = 0
        self._exhausted = False
        self._unread = ""  # why the journal could not be read last,
        self._read_at = 0.0  # and when it is tried again
        self._noted = 0  # what the journal knows to be settled
        self._noted_at = 0.0
        self._late: set[int] = set()
        self._dead: list[DeadLetter] = []
        self._unnoted = ""  # why the journal did not take the last note

        # What the broker hung up at.
        self._cautious = 0  # so many acknowledgements until the window opens again
        self._strikes: dict[str, int] = {}

        # What the broker remembers.
        self._identity = ""
        self._announcement = b""
        self._asked_at = 0.0
        self._probing_since = 0.0
        self._ready_at = 0.0
        self._listening = False  # for the checkpoint
        self._checkpoints: dict[str, int] = {}  # the broker's, by topic
        self._former: int | None = None  # that of a bridge alone, before there were several
        self._checkpointed = -1  # ours
        self._checkpointed_at = 0.0
        self._restore: tuple[int, str] | None = None  # the ledger is being restored, up to here so far
        self._untaken: set[str] = set()  # topics that were given up: not restored either
        self._restoring = 0  # topics that were sent again and are not acknowledged
        self._restore_upto = 0
        self._restored = 0
        self._broken_off = False  # the bridge stops in the middle of it

    # --- the thread ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Publish until `stop`; then let what is in flight end, and say goodbye to the broker."""
        while not self._stopping.is_set():
            try:
                self.start()
                break
            except UnreachableError as error:
                self.take_turn()
                self._await_journal(error)
                self._wait()
        while not self._stopping.is_set():
            if not self.step():
                self._wait()
        self._finish()

    def stop(self, *, goodbye: bool = True) -> None:
        """Let `run` return, from any thread.

        Args:
            goodbye: Say `offline`; else somebody takes its place.
        """
        self._goodbye = goodbye
        self._stopping.set()
        self._doorbell.ring()

    def announce(self, report: bytes) -> None:
        """Publish a health report, from any thread; a newer one takes its place."""
        self._report = report
        self._reports.append(report)
        self._doorbell.ring()

    def say(self, topic: str, payload: bytes) -> None:
        """Publish something once, retained, on a topic below the base topic; from any thread."""
        self._sayings.append((topic, payload))
        self._doorbell.ring()

    def clear_expired(self) -> None:
        """Topics of the ledger wait to be cleared; from any thread."""
        self._is_clearing = True
        self._doorbell.ring()

    def answer(self, topic: str, payload: bytes) -> None:
        """Publish the answer to a request, not retained, on a topic below the base topic; from any thread."""
        if self._answer_strikes < STRIKES:
            self._answers.append((topic, payload))
            self._doorbell.ring()

    def reconnect(self) -> None:
        """Make a new connection to the broker, once nothing is in flight on this one; from any thread."""
        self._renews = True
        self._doorbell.ring()

    def replay(self, after: int) -> None:
        """Publish retained topics once more, as to a broker that forgot them; never events. From any thread.

        Args:
            after: The place behind which they are.
        """
        self._replay = after
        self._doorbell.ring()

    def forget(self, learned: Sequence[tuple[str, str]], patience: float) -> bool:
        """Let go of what was learned, by kind and key; from any other thread.

        Args:
            learned: As in the journal's `Traces`.
            patience: Seconds that it may take.

        Returns:
            Whether nothing here remembers it any more.
        """
        done = threading.Event()
        self._forgets.append((learned, done))
        self._doorbell.ring()
        return done.wait(patience)

    @property
    def broker(self) -> BrokerUrl:
        """The one that it is connected to, or tried last."""
        return self._failover.broker

    @property
    def connected(self) -> bool:
        """Whether updates can flow to the broker."""
        return self._connection is not None and self._greeting is Greeting.READY

    @property
    def trouble(self) -> str | None:
        """Why updates do not flow, in words, or None."""
        return None if self.connected and not self._held else self._trouble

    def is_alive(self) -> bool:
        """Whether its thread took a turn lately: a publisher that hangs must not look well."""
        return self._monotonic() - self._turn < ALIVE

    def take_turn(self) -> None:
        """Its thread does not hang; also said by whoever has it wait for something else."""
        self._turn = self._monotonic()

    def start(self) -> None:
        """Read where the journal stands."""
        self._identity = self._journal.identity()
        self._settled = self._fetched = self._noted = self._journal.settled()
        if self._discovery is not None:
            self._discovery.start()

    def step(self) -> bool:
        """Do what can be done without waiting; whether anything was."""
        self.take_turn()
        if self._connection is None:
            did = self._open_if_due()
        else:
            try:
                did = self._talk()
            except ConnectionEndedError as error:
                self._lose(error)
                return True
            except UnreachableError as error:
                self._await_journal(error)
                did = False
        return self._settle() or did

    def _await_journal(self, error: UnreachableError) -> None:
        """Nothing can be read: what is in flight goes on, and after a pause it is tried again."""
        self._is_clearing = True
        self._read_at = self._monotonic() + READ_AGAIN
        if self._unread != str(error):
            log.warning("the journal cannot be read; it is tried again", why=str(error))
            self._unread = str(error)

    def _talk(self) -> bool:
        """Hear the broker, and tell it what is due; whether anything was said."""
        did = self._exchange()
        if self._denial is not None:
            return did  # nothing more is sent on this connection
        if self._renews and not self._answers:
            self._renews = False
            self._denial = ConnectionEndedError(f"a new connection to {self.broker} was asked for")
            return True
        if self._greeting is not Greeting.READY:
            did |= self._greet()
        if self._greeting is Greeting.READY:
            did |= self._fill()
        return did

    def _wait(self) -> None:
        """Until the broker, a receiver or `stop` has something, or something is due."""
        poller = select.poll()
        poller.register(self._doorbell.fileno(), select.POLLIN)
        patience = POLL
        if self._connection is None:
            patience = max(0.0, min(POLL, self._failover.due() - self._monotonic()))
        else:
            self._connection.poll(poller)
            unfinished = self._listening or self._denial is not None or self._settled > self._noted or self._cleared
            if self._greeting is not Greeting.READY or unfinished:
                patience = SETTLE_EVERY
            if self._greeting is Greeting.READY and len(self._flights) < self._room():
                due = min(self._paced.due(), self._discovery.due() if self._discovery is not None else math.inf)
                patience = max(0.0, min(patience, due - self._monotonic()))
        poller.poll(patience * 1000)
        self._doorbell.silence()
        self._exhausted = False

    # --- the connection --------------------------------------------------------------------------------------

    def _open_if_due(self) -> bool:
        if self._renews:
            self._renews = False
            self._failover.hurry()
        broker = self._failover.choose()
        if broker is None:
            return False
        settings = self._settings
        self._connection = self._connect(
            broker,
            settings.tls,
            protocol=self._failover.protocol,
            client_id=settings.client_id,
            keepalive=settings.keepalive,
            will=(self._full(self._part.state), b"offline"),
            will_delay=self._part.will_delay,
            largest=LARGEST_HEARD,
        )
        self._greeting = Greeting.CONNECTING
        try:
            self._connection.open()
        except ConnectionEndedError as error:
            self._lose(error)
        return True

    def _exchange(self) -> bool:
        connection = self._connected()
        ended: ConnectionEndedError | None = None
        try:
            connection.exchange()
        except ConnectionEndedError as error:
            ended = error  # what was acknowledged before the end counts, or it would be sent again
        acks, connection.acks = connection.acks, []
        now = self._monotonic()
        for ack in acks:
            self._acknowledge(ack)
        if acks and self._flights and now - next(iter(self._flights.values())).sent_at > self._settings.keepalive:
            # Others are acknowledged, and the oldest never.
            ended = ended or ConnectionEndedError(f"{self.broker} does not acknowledge everything any more")
        for message in connection.messages:
            self._hear(message.topic, message.payload, retained=message.retain)
        connection.messages.clear()
        if ended is not None or (self._denial is not None and not self._flights):
            # Only now, with every other acknowledgement noted: what was taken must not be sent again.
            raise self._denial or ended  # type: ignore[misc]  # one of them is an error
        if acks or not self._flights:
            self._last_ack = now
        elif now - self._last_ack > self._settings.keepalive:
            raise self._denial or ConnectionEndedError(f"{self.broker} acknowledges nothing any more")
        return bool(acks)

    def _lose(self, error: ConnectionEndedError) -> None:
        """The connection is over: remember what was in flight, and when to try again."""
        connection = self._connected()
        connection.close()
        self._connection = None
        if self.requests is not None:
            self.requests.lost(connection, error)
        was_ready = self._greeting is Greeting.READY
        in_flight = len(self._flights)
        if error.hung_up and (self._has_answered or any(flight.answers for flight in self._flights.values())):
            self._suspect_answers()
        if was_ready and in_flight and error.hung_up:
            self._suspect()
        self._denial = None
        self._may_arrive |= was_ready and in_flight > 0
        self._flights.clear()
        self._waiting.clear()
        self._paced.clear()
        if self._discovery is not None:
            self._discovery.lost()
        self._restore, self._restoring = None, 0
        if self._failover.lost(
            was_ready=was_ready,
            refused=error.refused,
            wrong_version=error.wrong_version,
            other_version=error.other_version,
        ):
            return
        self._held |= was_ready and error.refused
        self._trouble = str(error)
        if self._trouble not in self._told:
            log.warning("nothing reaches the broker; everything is kept until it does", why=self._trouble)
            self._told.add(self._trouble)

    def _suspect_answers(self) -> None:
        """Mosquitto 2.0 hangs up at some publications that are not allowed; no answer is worth a connection each."""
        self._answer_strikes += 1
        self._has_answered = False
        if self._answer_strikes == STRIKES:
            log.warning(
                "the broker hangs up at answers to requests; none is given until the next start",
                hint=f"allow the bridge to publish to {self._full(topics.BRIDGE_RESPONSE)}/#",
            )

    def _suspect(self) -> None:
        """Something in flight may be what the broker hung up at: send alone what was."""
        suspects = [flight for flight in self._flights.values() if not flight.is_own]
        self._cautious = max(self._cautious, len(suspects))
        if len(suspects) != 1:
            return
        flight = suspects[0]
        strikes = self._strikes[flight.topic] = self._strikes.get(flight.topic, 0) + 1
        if strikes >= STRIKES:
            del self._strikes[flight.topic]
            self._give_up(flight, f"the broker ended the connection {STRIKES} times when it got this")

    def _connected(self) -> Connection:
        assert self._connection is not None, "there is no connection"  # noqa: S101  (a fault of ours)
        return self._connection

    # --- the greeting: say who is there, and ask what the broker remembers ------------------------------------

    def _greet(self) -> bool:
        connection = self._connected()
        now = self._monotonic()
        if self._greeting is Greeting.CONNECTING and connection.connected:
            self._announce()
            return True
        if self._greeting is Greeting.ANNOUNCING and not self._flights:
            self._greeting = Greeting.PROBING
            self._probing_since = now
            self._ask(now)
            return True
        if self._greeting is Greeting.PROBING:
            if now - self._probing_since > CANARY_GIVE_UP:
                # Under 3.1.1 a publication that is not allowed is acknowledged and dropped: this is how it shows.
                raise ConnectionEndedError(
                    f"{self.broker} does not give back what is published to it; allow the bridge to publish "
                    f"and to read {self._settings.base_topic}/#",
                    refused=True,
                )
            if now - self._asked_at > CANARY_AGAIN:
                self._ask(now)
        return False

    def _announce(self) -> None:
        """Say who is there, in a text of its own each time, so that it is known again when it comes back."""
        self._greeting = Greeting.ANNOUNCING
        self._checkpoints, self._former, self._listening = {}, None, True
        self._announcement = orjson.dumps(
            {
                **self._settings.info,
                "broker": str(self.broker),
                "protocol": self._connected().protocol,
                "connected_at": iso_utc(self._clock.wall()),
                "connection": f"{random.getrandbits(64):016x}",
            }
        )
        # First what has to come back: a NATS cluster that had only just made its streams acknowledged the first
        # publication, and did not keep it.
        self._send(Flight(self._full(self._part.info), self._announcement, retain=True))
        self._send(Flight(self._full(self._part.state), b"online", retain=True))

    def _ask(self, now: float) -> None:
        self._asked_at = now
        # A bridge alone may have had this journal before: what it told the broker holds for each partition.
        checkpoints = dict.fromkeys(
            (*self._part.checkpoints, topics.BRIDGE_CHECKPOINT) if self._part.checkpoints else ()
        )
        # QoS 0: what gets lost is asked for again. For a subscription with QoS 1 a NATS cluster sets up a consumer on
        # several nodes, and where one has just died that took longer than the patience here, over and over.
        self._connected().subscribe(*map(self._full, (*checkpoints, self._part.info)), qos=0)

    def _hear(self, topic: str, payload: bytes, *, retained: bool) -> None:
        """What the broker has for us: our announcement, the last checkpoint, a sign of Home Assistant, a request."""
        below = topic.removeprefix(f"{self._settings.base_topic}/")
        if below == self._part.info:
            if self._greeting is Greeting.PROBING and payload == self._announcement:
                self._be_ready()
        elif below == topics.BRIDGE_CHECKPOINT or below in self._part.checkpoints:
            if self._listening:
                self._note_checkpoint(below, payload)
        elif below in self._part.follows:
            self._heard(below, payload)
        elif self._discovery is not None and self._discovery.hear(topic, payload):
            self.observer.heard_home_assistant()
        elif self.requests is not None:
            self.requests.hear(below, payload, retained=retained)

    def _note_checkpoint(self, topic: str, payload: bytes) -> None:
        try:
            checkpoint = orjson.loads(payload)
            place = int(checkpoint["seq"])
            if checkpoint["journal"] == self._identity and 0 <= place <= max(self._fetched, self._part.ahead):
                if topic in self._part.checkpoints:
                    self._checkpoints[topic] = place
                else:
                    self._former = place
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            pass  # not one of ours: as good as none

    @property
    def _checkpoint(self) -> int | None:
        """Up to which place the broker is up to date, with all that is ours; None where it does not say."""
        if not self._part.checkpoints:
            return self._fetched  # nothing is ours
        return min(self._checkpoints.values()) if len(self._checkpoints) == len(self._part.checkpoints) else None

    def _be_ready(self) -> None:
        """The broker takes and gives back: what was not acknowledged goes out again, then what is new."""
        self._greeting = Greeting.READY
        self._may_arrive = False  # a broker ends the older connection of a name
        self._ready_at = self._monotonic()
        self._failover.reached()
        if self._held:
            log.debug("trying again what was not allowed")
        else:
            self._flows()
        if self._discovery is not None:
            self._discovery.connected()
            if self._discovery.enabled:
                self._connected().subscribe(self._discovery.birth_topic, qos=0)
        if self.requests is not None:
            self.requests.subscribe(self._connected(), self._settings.base_topic)
        if self._part.follows:
            self._connected().subscribe(*map(self._full, self._part.follows), qos=0)
        self._shown = None
        newest = {progress.stored.topic: seq for seq, progress in self._window.items() if progress.stored.advances}
        latest = {progress.stored.kind: seq for seq, progress in self._window.items() if progress.holds_last}
        for seq, progress in self._window.items():
            # The broker may have a newer one already, though it did not say so: an older one is not sent over it.
            if seq < newest.get(progress.stored.topic, 0):
                progress.waiting.discard(Role.STATE)
            if seq < latest.get(progress.stored.kind, 0):
                progress.waiting.discard(Role.LAST)
            self._launch(progress, again=True)
        self._checkpointed = -1  # on this broker
        self._restore_upto = self._fetched
        self._restored = 0

    def _flows(self) -> None:
        self._held, self._trouble = False, None
        self._told.clear()
        self.observer.connected(self._connected().protocol)
        log.info("connected", broker=str(self.broker), protocol=self._connected().protocol)

    def _find_checkpoint(self) -> bool:
        """Decide what has to be restored; a checkpoint that is not there has a moment to turn up.

        An embedded broker that has just started was seen to hand out retained messages late.
        """
        now = self._monotonic()
        if self._checkpoint is None and now - self._ready_at < CHECKPOINT_GRACE:
            if now - self._asked_at > CHECKPOINT_GRACE / 2:
                self._ask(now)
            return False
        self._listening = False
        checkpoint = self._checkpoint
        if checkpoint is None and self._former is not None:
            checkpoint = min((self._former, *self._checkpoints.values()))
        self._restore = (checkpoint or 0, LAST_TOPIC)
        if self._checkpoint is not None:
            self._checkpointed = self._checkpoint
        if self._report and not self._reports:
            self._reports.append(self._report)
        try:
            # What was taken off the broker since may stand there again.
            self._journal.clear_again(checkpoint or 0)
            self._is_clearing = True
        except BrokenStorageError:
            raise
        except NotStoredError as error:
            log.warning("what the broker may have forgotten to clear could not be noted", why=str(error))
        return True

    # --- sending ---------------------------------------------------------------------------------------------

    def _fill(self) -> bool:
        """Fill the window: with what waits, then new updates, then what is to be restored."""
        did = self._listening and self._find_checkpoint()
        while self._forgets:
            learned, done = self._forgets.popleft()
            if self._discovery is not None:
                self._discovery.forget(learned)
            done.set()
        if self._replay is not None and not self._listening:
            self._restore = min((self._replay, LAST_TOPIC), self._restore or (self._replay, LAST_TOPIC))
            self._restore_upto, self._replay = self._fetched, None
        while (room := self._room() - len(self._flights)) > 0:
            if self._discover_next():
                pass
            elif self._answers:
                topic, payload = self._answers.popleft()
                self._send(Flight(self._full(topic), payload, retain=False, answers=True))
            elif self._waiting:
                for _ in range(min(room, len(self._waiting))):
                    self._send(self._waiting.popleft())
            elif self._reports:
                # Before the journal is read: that it cannot be is what a report may have to say.
                self._send(Flight(self._full(topics.BRIDGE_HEALTH), self._reports.popleft(), retain=True))
            elif self._sayings:
                topic, payload = self._sayings.popleft()
                self._send(Flight(self._full(topic), payload, retain=True))
            elif self._release() or (self._may_fetch and self._fetch()):
                pass
            elif not self._restore_more() and not self._clear_more() and not self._show_last():
                break
            did = True
        return did

    def _room(self) -> int:
        return min(1 if self._cautious > 0 else WINDOW, self._connected().limits.in_flight)

    @property
    def _may_fetch(self) -> bool:
        may = not self._stopping.is_set() and not self._exhausted and len(self._paced) < PACED_MOST
        return may and self._may_read

    @property
    def _may_read(self) -> bool:
        """Not for a moment after the journal could not be reached: all else goes on meanwhile."""
        return not self._unread or self._monotonic() >= self._read_at

    def _fetch(self) -> bool:
        updates = self._journal.pending(self._fetched, FETCH)
        self._unread = ""
        if not updates:
            self._exhausted = True
            return False
        newest = {stored.kind: stored.seq for stored in updates}
        fetched: list[Progress] = []
        for stored in updates:
            self._clock.observe(timestamp=stored.timestamp, uptime=stored.uptime)
            holds_last = newest[stored.kind] == stored.seq and self._part.has_all
            progress = Progress(stored, {Role.EVENT}, holds_last=holds_last)
            if stored.advances:
                progress.waiting.add(Role.STATE)
            if progress.holds_last:
                progress.waiting.add(Role.LAST)
            fetched.append(progress)
        self._meet(fetched)
        for progress in fetched:
            self._window[progress.stored.seq] = progress
            self._launch(progress)
        self._fetched = updates[-1].seq
        return True

    def _discover_next(self) -> bool:
        """Tell Home Assistant the next thing; whether there was one."""
        found = self._discovery.next() if self._discovery is not None else None
        if found is None:
            return False
        topic, payload = found
        self._send(Flight(topic, payload, retain=True, discovers=True))
        return True

    def _meet(self, fetched: list[Progress]) -> None:
        """Have new updates looked at for what Home Assistant must know before it gets them."""
        if self._discovery is None or not self._discovery.enabled:
            return
        documents = [orjson.loads(progress.stored.document) for progress in fetched]
        self._discovery.meet(
            (progress.stored.seq, progress.stored.kind, document)
            for progress, document in zip(fetched, documents, strict=True)
        )
        for progress, document in zip(fetched, documents, strict=True):
            stored = progress.stored
            progress.feed = feed_document(stored.kind, stored.event_id, document)
            if stored.kind is Kind.BUTTON:
                progress.held_for = document["payload"]
            # What Home Assistant must not miss: all clicks, and what failed.
            if stored.kind is Kind.BUTTON or document["status"] == "failed":
                progress.waiting.add(Role.FEED)

    def _launch(self, progress: Progress, *, again: bool = False) -> None:
        """Queue what an update still has to be acknowledged for; again on a new connection."""
        stored = progress.stored
        document = stored.document
        if self._is_late(stored):
            self._record_late(progress)
        if stored.late or stored.seq in self._late:
            document = topics.marked_late(document)
        payload = document.encode()
        lifetime = self._settings.retain[stored.kind]
        expiry = lifetime if lifetime > 0 else None

        def flight(role: Role, topic: str, *, retain: bool) -> Flight:
            return Flight(
                self._full(topic), payload, retain, expiry if retain else None, stored.event_id, role, progress
            )

        waiting = progress.waiting
        if Role.STATE in waiting:
            self._waiting.append(flight(Role.STATE, stored.topic, retain=lifetime > 0))
        if Role.LAST in waiting:
            self._waiting.append(flight(Role.LAST, f"last/{stored.kind}", retain=lifetime > 0))
        if Role.EVENT in waiting:
            event = flight(Role.EVENT, stored.event_topic, retain=False)
            if stored.kind is Kind.BUTTON:
                self._pace(event, progress)
            else:
                self._waiting.append(event)
        self._feed(progress, again=again)

    def _feed(self, progress: Progress, *, again: bool) -> None:
        """Queue an event for Home Assistant's event entity."""
        stored = progress.stored
        if progress.feed is None or stored.late or stored.seq in self._late:
            progress.waiting.discard(Role.FEED)
            return
        topic = self._full(FEEDS[stored.kind])
        flight = Flight(topic, progress.feed, retain=False, event_id=stored.event_id, progress=progress)
        if Role.FEED in progress.waiting:
            flight.role = Role.FEED
        elif again or stored.kind is Kind.BUTTON or self._paced.waiting(topic) >= FEED_MOST:
            return
        self._pace(flight, progress)

    def _pace(self, flight: Flight, progress: Progress) -> None:
        """Queue an event behind those of its topic, and behind the discovery of its button."""
        discovery, payload = self._discovery, progress.held_for
        self._paced.add(
            flight.topic,
            flight,
            lambda: discovery.ready_at(payload) if discovery is not None and payload is not None else -math.inf,
        )

    def _release(self) -> bool:
        """Send the next event that had to wait; whether there was one."""
        flight = self._paced.take(self._monotonic())
        if flight is None:
            return False
        self._send_in_time(flight)
        return True

    def _remaining(self, stored: Stored) -> float | None:
        """Seconds in which a click may still fire; None for what is never too old."""
        if stored.kind is not Kind.BUTTON or self._settings.max_age is None:
            return None
        return self._settings.max_age - self._clock.age(
            timestamp=stored.timestamp, received=stored.received, uptime=stored.uptime
        )

    def _is_late(self, stored: Stored) -> bool:
        remaining = self._remaining(stored)
        return remaining is not None and remaining < 0

    def _record_late(self, progress: Progress) -> None:
        """A click is too old to fire: no event, and its retained JSON says so, also where it stood without."""
        progress.waiting.discard(Role.FEED)
        if Role.EVENT not in progress.waiting:
            return  # it has fired
        stored = progress.stored
        self.observer.late += stored.seq not in self._late
        self._late.add(stored.seq)
        for flight in (*self._flights.values(), *self._waiting):
            if flight.progress is progress:
                flight.role = None  # an acknowledgement of what does not say so proves nothing
        newer = [other for seq, other in self._window.items() if seq > stored.seq]
        progress.waiting = set()
        if stored.advances and not any(o.stored.topic == stored.topic and o.stored.advances for o in newer):
            progress.waiting.add(Role.STATE)
        if progress.holds_last and not any(o.stored.kind is stored.kind and o.holds_last for o in newer):
            progress.waiting.add(Role.LAST)

    def _send_in_time(self, flight: Flight) -> None:
        """Send an event that waited for its turn; a click's only if it is not too old by now."""
        progress = flight.progress
        if progress is not None and flight.role is not None:
            if flight.role not in progress.waiting:
                return  # it was recorded as late meanwhile
            flight.expiry = self._remaining(progress.stored)
            if flight.expiry is not None and flight.expiry < 0:
                if flight.role is Role.FEED:
                    progress.waiting.discard(Role.FEED)  # its event decides whether it is recorded as late
                else:
                    self._record_late(progress)
                    self._launch(progress)
                return
        self._send(flight)

    def _send(self, flight: Flight) -> None:
        connection = self._connected()
        # Fixed header, topic, packet identifier; properties under MQTT 5.
        size = len(flight.topic) + len(flight.payload) + 160
        if size > connection.limits.packet:
            self._give_up(
                flight, f"it is larger than the broker's maximum packet size of {connection.limits.packet} bytes"
            )
            return
        number = connection.publish(
            flight.topic,
            flight.payload,
            retain=flight.retain,
            expiry=flight.expiry,
            properties=(("event_id", flight.event_id),) if flight.event_id else (),
        )
        flight.sent_at = self._monotonic()
        self._flights[number] = flight

    def _restore_more(self) -> bool:
        """Publish the next topics of the ledger that the broker may have forgotten; whether there were any."""
        if self._restore is None or not self._may_read:
            return False
        room = self._room() - len(self._flights)
        rows = self._journal.retained(self._restore, self._restore_upto, room)
        if not rows:
            if self._restored:
                log.info("retained topics restored", topics=self._restored)
            self._restore = None
            return False
        for row in rows:
            progress = self._window.get(row.seq)
            role = Role.LAST if row.topic.startswith("last/") else Role.STATE
            on_its_way = progress is not None and role in progress.waiting
            if not on_its_way and self._full(row.topic) not in self._untaken:
                self._send(self._restored_flight(row))
                self._restored += 1
                self._restoring += 1
        self._restore = (rows[-1].seq, rows[-1].topic)
        return True

    def _clear_more(self) -> bool:
        """Take the next expired topics off the broker; whether there were any."""
        if not self._is_clearing or self._stopping.is_set() or not self._may_read:
            return False
        under_way = {flight.clears for flight in self._flights.values() if flight.clears}
        if under_way or self._cleared:
            return False  # one slice after the other, so that none is sent twice
        self._is_clearing = False  # before the look: what is marked during it sets this again
        expired = self._journal.clearing(self._room() - len(self._flights))
        for topic in expired:
            self._send(Flight(self._full(topic), b"", retain=True, clears=topic))
        self._is_clearing |= bool(expired)
        return bool(expired)

    def _show_last(self) -> bool:
        """Look around for what others have stored and published; whether something is to be told of it."""
        now = self._monotonic()
        if self._last is None or now - self._looked_at < LOOK_EVERY or self._stopping.is_set() or not self._may_read:
            return False
        self._looked_at = now
        if self._discovery is not None:
            self._discovery.refresh()
        is_first, before = self._shown is None, self._shown or {}
        rows = self._last()
        self._shown = {row.topic: (row.seq, row.late or row.seq in self._late) for row in rows}
        did = False
        for row in rows:
            retain = self._settings.retain[row.kind] > 0
            is_known = before.get(row.topic) == self._shown[row.topic] or (is_first and not retain)
            if not is_known and self._full(row.topic) not in self._untaken:
                self._send(self._restored_flight(row, retain=retain))
                self._restoring += 1
                did = True
        return did

    def _restored_flight(self, row: Retained, *, retain: bool = True) -> Flight:
        late = row.late or row.seq in self._late
        document = topics.marked_late(row.document) if late else row.document
        return Flight(
            self._full(row.topic),
            document.encode(),
            retain=retain,
            expiry=self._settings.retain[row.kind] if retain else None,
            event_id=row.event_id,
            restores=True,
        )

    # --- settling --------------------------------------------------------------------------------------------

    def _acknowledge(self, ack: Ack) -> None:
        """Note a PUBACK."""
        flight = self._flights.pop(ack.number, None)
        if flight is None:
            return
        self._has_answered = flight.answers
        if ack.code in HOLDING_CODES and not flight.discovers and not flight.answers:
            # Not this message's fault: nothing is given up, everything waits until the broker allows it.
            self._denial = self._denial or ConnectionEndedError(
                self._permission_wanted(flight.topic, ack.code), refused=True
            )
            return
        if self._cautious and not flight.is_own:
            self._cautious -= 1
        if self._strikes:
            self._strikes.pop(flight.topic, None)
        if ack.code >= 0x80:
            self._give_up(flight, f"the broker refused it with reason code 0x{ack.code:02X}")
        else:
            self._done(flight)
            self.observer.taken(flight.purpose, flight.seq, flight.topic, flight.sent_at, retain=flight.retain)
            if flight.retain and self._untaken:
                self._untaken.discard(flight.topic)
            if self._held and not flight.is_own:
                self._flows()

    def _done(self, flight: Flight) -> None:
        if flight.discovers and self._discovery is not None:
            self._discovery.done(flight.topic, flight.payload)
        if flight.clears is not None:
            self._cleared.append(flight.clears)
        if flight.restores:
            self._restoring -= 1
        if flight.progress is not None and flight.role is not None:
            flight.progress.waiting.discard(flight.role)
            stored = flight.progress.stored
            if flight.progress.done and stored.uptime is not None:
                self.observer.finished(stored.kind, self._clock.uptime() - stored.uptime)

    def _give_up(self, flight: Flight, why: str) -> None:
        """A publication becomes a dead letter, whole and with its reason; its update goes on without it."""
        self.observer.given_up(flight.purpose, flight.seq, flight.topic, flight.sent_at, why, retain=flight.retain)
        if flight.discovers and self._discovery is not None:
            self._discovery.refused(flight.topic, why)
            return
        if flight.answers:
            log.warning("the broker does not take the answer to a request", topic=flight.topic, why=why)
            return
        log.error(
            "the broker does not take a publication; it is in the dead letters", why=why, bytes=len(flight.payload)
        )
        body = orjson.dumps(
            {"topic": flight.topic, "retain": flight.retain, "payload": flight.payload.decode("utf-8", "replace")}
        )
        if flight.retain:
            self._untaken.add(flight.topic)
        self._dead.append(DeadLetter("publication", why, body, self._clock.wall(), flight.seq))
        self._done(flight)

    def _permission_wanted(self, topic: str, code: int) -> str:
        if code == 0x97:
            return f"{self.broker} says that a quota is exceeded (0x97); raise it"
        return (
            f"{self.broker} does not allow the bridge to publish to {topic} (0x87); "
            f"allow it {self._settings.base_topic}/#"
        )

    def _settle(self, *, last: bool = False) -> bool:
        """Move on over what is done, and note it: in the journal, and on the broker as a checkpoint.

        Args:
            last: There is no later time to note it.

        Returns:
            Whether something was noted.
        """
        did = False
        done = list(itertools.takewhile(lambda seq: not self._window[seq].waiting, self._window))
        for seq in done:
            del self._window[seq]
            self._settled = seq
        now = self._monotonic()
        idle = not self._flights and not self._waiting
        if (self._settled > self._noted or self._dead or self._cleared) and (
            idle or last or now - self._noted_at >= SETTLE_EVERY
        ):
            did = self._note(now)
        if (
            self._greeting is Greeting.READY
            and self._connection is not None
            and self._denial is None
            and self._is_restored
            and self._part.checkpoints
            and self._noted != self._checkpointed
            and not (self._cautious and self._flights)  # what is suspected goes alone
            and now - self._checkpointed_at >= CHECKPOINT_EVERY
        ):
            self._publish_checkpoint(now)
            did = True
        return did

    @property
    def _is_restored(self) -> bool:
        return not self._listening and self._restore is None and not self._restoring and not self._broken_off

    def _note(self, now: float) -> bool:
        """Write to the journal what is settled; whether it took it."""
        late = sorted(seq for seq in self._late if seq <= self._settled)
        try:
            # Waiting for a receiver that is writing would hold up what is to be published; not for ever, though.
            overdue = now - self._noted_at > SETTLE_OVERDUE or self._stopping.is_set()
            if self._settled > self._noted or self._dead:
                self._journal.settle(self._settled, late=late, dead=self._dead, wait=overdue)
                self._noted = self._settled
                self._late.difference_update(late)
                self._dead = []
            if self._cleared:
                self._journal.cleared(self._cleared)
                self._cleared = []
        except BrokenStorageError:
            raise
        except BusyError:
            return False
        except NotStoredError as error:
            self._noted_at = now
            # Publishing goes on; what is not noted would only be published again after a restart.
            if self._unnoted != str(error):
                log.warning("what was published could not be noted; it is tried again", why=str(error))
                self._unnoted = str(error)
            return False
        self._noted_at = now
        self._unnoted = ""
        return True

    def _publish_checkpoint(self, now: float) -> None:
        checkpoint = orjson.dumps({"seq": self._noted, "journal": self._identity})
        for topic in self._part.checkpoints:
            self._send(Flight(self._full(topic), checkpoint, retain=True))
        self._checkpointed, self._checkpointed_at = self._noted, now

    # --- the end ---------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Let what is in flight end, bounded; note what is settled; go offline."""
        deadline = self._monotonic() + STOP_PATIENCE
        said_goodbye = False
        is_restored = self._is_restored
        self._broken_off = not is_restored
        self._restore, self._listening = None, False
        while self._connection is not None and self._monotonic() < deadline:
            if self._greeting is not Greeting.READY:
                break
            if not self._flights and not self._waiting and not self._paced:
                if said_goodbye:
                    break
                self._settle()
                if is_restored:
                    self._publish_checkpoint(self._monotonic())
                while self._sayings:
                    topic, payload = self._sayings.popleft()
                    self._send(Flight(self._full(topic), payload, retain=True))
                if self._goodbye:
                    self._send(Flight(self._full(self._part.state), b"offline", retain=True))
                said_goodbye = True
            self.step()
            if self._connection is not None and (self._flights or self._paced):
                poller = select.poll()
                self._connection.poll(poller)
                poller.poll(50 if self._flights else 5)
        self._settle(last=True)
        waits = any(not flight.is_own for flight in self._flights.values())
        self.is_through = not waits if self.connected else not self._may_arrive
        if self._connection is not None:
            self._connection.close(politely=said_goodbye)
            self._connection = None

    def _full(self, topic: str) -> str:
        return f"{self._settings.base_topic}/{topic}"
