"""Several bridges on one journal: each publishes its share of the partitions, and what is done once is done by one.

Who holds what is settled by the database's locks (journal/partitions.py). A replica has two publishers, each with its
own connection: one for its share of the statuses, which also says that the replica is there; and, if it leads, one for
all clicks and what belongs to the whole: `last/*`, `bridge/state`, health, discovery, requests. A publisher's
partitions never change: when the share does, one ends in order, and another begins.

How one that may not publish any more is kept from it:
  - Its connection looks at the session's lease before anything is sent. Without the database nothing new is sent at
    once; a process that was paused finds the lease over, and has the kernel drop what it was given.
  - A pause may also fall between that look and the sending. So whoever takes a partition that was not given back
    first connects under the name of the one that had it: a broker has to end the older connection of a name
    ([MQTT-3.1.4-3]), and what comes on it later goes nowhere. The leader's connection has the group's name, and so
    does that by itself. Until it is done, the database remembers whom to displace, whoever takes the partition next.

Who does not reach the broker gives its share to those that do. `offline` is said for one that is gone by the leader,
too: one that was killed between two connections had no last will at the broker.
"""

from __future__ import annotations

import contextlib
import random
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import orjson
import structlog

from bridge import topics
from bridge.clock import Clock, uptime
from bridge.config import BrokerUrl, Database
from bridge.discovery import Discovery, Learner
from bridge.homeassistant import Plan
from bridge.journal import JournalError, UnreachableError
from bridge.journal.partitions import BEAT, LEADING, LEASE, PATIENCE, SHARED, NameTakenError, Partition, Session, Share
from bridge.journal.partitions import Group as State
from bridge.journal.postgresql import PostgresqlJournal
from bridge.mqtt import Connection, ConnectionEndedError, Limits
from bridge.observer import SharedObserver
from bridge.publisher import Part, Publisher, PublisherSettings
from bridge.requests import Requests
from bridge.wakeup import Bell

log = structlog.get_logger()

#: Seconds between two tries to reach the database again, and to reach a broker under another's name.
AGAIN = 0.25
#: Seconds that another replica of the same name may take to be gone, at the start.
NAME_PATIENCE = 10.0
#: Seconds that a publisher waits within one try to connect for the database.
PERMISSION_PATIENCE = 20.0
#: Seconds after which one that is not connected counts as one that does not reach the broker; and for which others have
#: to reach it alone until they get its share: after a restart of the broker all come back within moments.
REACH_PATIENCE, UNEVEN_PATIENCE = 5.0, 5.0
#: Seconds that all publishers have to end; and after which a turn of the group's thread counts as hung.
STOP_PATIENCE, ALIVE = 4.0, 30.0
#: Seconds for which the broker keeps the group's last will to itself: by then another one leads.
WILL_DELAY = 15.0
#: Seconds between two looks at which replicas are gone, and after which one that is gone is taken off the broker.
LOOK_EVERY, GONE = 60.0, 3_600.0

_NOTHING = Limits(in_flight=0)

#: What replicas tell each other.
CHANGED, CLEAR, REPLAY, FORGET = "changed", "clear", "replay ", "forget "
#: Names that are forgotten with one word: the server takes no longer ones than 8,000 bytes.
FORGOTTEN_AT_ONCE = 5


def share(members: Iterable[str], name: str, partitions: int) -> int:
    """How many of the partitions fall to one of the group: all get as many, but for one more to the first ones."""
    ordered = sorted(members)
    if name not in ordered:
        return 0
    return partitions // len(ordered) + (ordered.index(name) < partitions % len(ordered))


class Lane:
    """A publisher of some partitions, its thread, and whether it may publish.

    Args:
        name: Of the thread.
        partitions: What it publishes, for good.
        until: Until when these are ours, in seconds since boot.
        make: Makes the publisher, given what makes its connections, and its bell.
        journal: Opened by its thread.
        before: Done first on its thread; whether to go on.
        ended: Called when it has ended.
    """

    def __init__(
        self,
        name: str,
        partitions: Iterable[int],
        until: float,
        make: Callable[[Callable[..., Connection], Bell], Publisher],
        journal: Share,
        before: Callable[[Lane], bool],
        ended: Callable[[], None],
    ) -> None:
        self.partitions = frozenset(partitions)
        self.failure: Exception | None = None
        self.is_leaving = False
        self.is_held = True
        self._is_lost = False
        self._has_begun = False
        self._until = until
        self._journal = journal
        self._before = before
        self._ended = ended
        self._bell = Bell()
        self.publisher = make(self._connect, self._bell)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # --- the group's thread --------------------------------------------------------------------------------------

    def hold(self, until: float) -> None:
        """Its partitions are ours until then."""
        self._until = until
        if not self.is_held:
            self.is_held = True
            self.ring()

    def release(self) -> None:
        """Whether its partitions are ours is not known: it sends nothing new, and hears what was sent."""
        self.is_held = False

    def lose(self) -> None:
        """Another one publishes some of its partitions: nothing is sent any more."""
        self.is_held = False
        self._is_lost = True
        self.stop()

    def ring(self) -> None:
        self._bell.ring()

    def stop(self, *, goodbye: bool = False) -> None:
        """Have it end; what is in flight is still heard, while it may be.

        Args:
            goodbye: It says `offline`.
        """
        self.is_leaving = True
        self.publisher.stop(goodbye=goodbye)

    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    @property
    def is_through(self) -> bool:
        """Whether nothing that it sent can still reach the broker; said of one that has ended."""
        return not self._has_begun or self.publisher.is_through

    # --- its own thread ------------------------------------------------------------------------------------------

    def may_send(self) -> bool:
        """Whether nobody else may publish this, at this moment."""
        return not self._is_lost and uptime() < self._until

    def _run(self) -> None:
        try:
            if self._before(self):
                self._has_begun = True
                with self._journal:
                    self.publisher.run()
        except Exception as error:  # the group's thread ends the process with it
            log.error("a publisher ended", why=str(error), exc_info=error)
            self.failure = error
        finally:
            self._bell.close()
            self._ended()

    def _connect(self, *arguments: Any, **settings: Any) -> Connection:
        return _Fenced(self, *arguments, **settings)


class _Fenced(Connection):
    """A connection on which nothing is sent while another replica may publish the same."""

    def __init__(self, lane: Lane, *arguments: Any, **settings: Any) -> None:
        self._lane = lane
        super().__init__(*arguments, **settings)

    @property
    def limits(self) -> Limits:
        """Nothing is to be in flight while the database is not there; acknowledgements are heard."""
        return self._limits if self._lane.is_held else _NOTHING

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits

    def open(self) -> None:
        deadline = time.monotonic() + PERMISSION_PATIENCE
        while not (self._lane.is_held and self._lane.may_send()):
            if self._lane.is_leaving or time.monotonic() > deadline:
                raise _not_ours()
            time.sleep(AGAIN / 5)
        super().open()

    def exchange(self) -> None:
        if not self._lane.may_send():
            self.hear()  # what was acknowledged is not to be published again
            raise _not_ours()
        super().exchange()

    def close(self, *, politely: bool = False, at_once: bool = False) -> None:
        may_send = self._lane.may_send()
        super().close(politely=politely and may_send, at_once=at_once or not may_send)


def _not_ours() -> ConnectionEndedError:
    return ConnectionEndedError("the database did not answer in time, and another replica may publish this by now")


@dataclass(slots=True, eq=False)
class Desk:
    """One of a replica's two publishers, and the partitions that are its own.

    Attributes:
        name: Of its thread.
        candidates: Partitions that may become its own.
        is_always_there: Also without any.
        held: Partition and epoch: ours by a lock, or until somebody else took it.
        unsure: Of these, those whose lock the present session does not have.
        displaced: Replicas that had one of them and did not give it back, and are still to be displaced.
        inherits: Whether the database still names such ones.
        is_through: Whether nothing that its last publisher sent can still reach the broker.
    """

    name: str
    candidates: Sequence[int]
    is_always_there: bool
    held: dict[int, int] = field(default_factory=dict)
    unsure: set[int] = field(default_factory=set)
    displaced: set[str] = field(default_factory=set)
    inherits: bool = False
    is_through: bool = True
    lane: Lane | None = None


class Group:
    """This replica among the others; `run` is its thread. To the service and the page it is what a publisher is.

    Args:
        settings: As for a publisher alone; its `client_id` is ours only if the user has chosen it.
        client_id: The group's name at the broker; None: after the journal.
        name: The replica's.
        database: Where the journal is.
        plan: What Home Assistant is to be shown.
    """

    def __init__(
        self, settings: PublisherSettings, client_id: str | None, name: str, database: Database, plan: Plan
    ) -> None:
        self._settings = settings
        self._client_id = client_id or ""
        self._name = name
        self._database = database
        self._plan = plan
        self._never_retained = frozenset(kind for kind, lifetime in settings.retain.items() if not lifetime)
        self._session = Session(database, name)
        self._clicks = Desk("clicks", (LEADING,), is_always_there=False)
        self._statuses = Desk("statuses", SHARED, is_always_there=True)
        self._desks = (self._clicks, self._statuses)
        self._free: dict[int, tuple[int, float]] = {}  # partitions that nobody gave back: turns, and seen so since
        self._looked_at = float("-inf")
        self._beat_at = float("-inf")
        self._bell = Bell()
        self._words: deque[str] = deque()  # to be told to all
        self._stopping = threading.Event()
        self._turn = time.monotonic()
        self._trouble: str | None = None
        self._gone: list[str] = []
        self._gone_at = float("-inf")
        self._left: set[str] = set()  # who was there, and has not come back
        self._reached_at = time.monotonic()
        self._is_noted_reaching = True
        self._uneven_since = float("inf")
        self.members: tuple[str, ...] = ()
        self.observer = SharedObserver()
        self.requests: Requests | None = None

    def __enter__(self) -> Self:
        """Be one of the group.

        Raises:
            JournalError: Another one has this name, or the database cannot be reached.
        """
        if not self._client_id:
            with PostgresqlJournal(self._database) as journal:
                self._client_id = f"whatsapp2mqtt-{journal.identity()[:8]}"
        deadline = time.monotonic() + NAME_PATIENCE
        while True:
            try:
                self._session.open()
                return self
            except NameTakenError as error:
                # A server needs a moment to notice that one that was killed is gone.
                if time.monotonic() > deadline:
                    raise JournalError(str(error)) from error
                time.sleep(AGAIN)

    def __exit__(self, *_: object) -> None:
        self._session.close()

    # --- what the service and the page ask --------------------------------------------------------------------

    @property
    def broker(self) -> BrokerUrl:
        """The one that is connected to, or was tried last."""
        publishers = self._publishers()
        return publishers[0].broker if publishers else self._settings.brokers[0]

    @property
    def connected(self) -> bool:
        """Whether all that this replica publishes can flow to the broker."""
        lanes = self._lanes()
        return bool(lanes) and all(lane.is_held and lane.publisher.connected for lane in lanes)

    @property
    def trouble(self) -> str | None:
        """Why updates do not flow, in words, or None."""
        return self._trouble or next(filter(None, (publisher.trouble for publisher in self._publishers())), None)

    @property
    def leads(self) -> bool:
        """Whether it does what is done once."""
        lane = self._clicks.lane
        return lane is not None and lane.is_held and lane.may_send()

    def is_alive(self) -> bool:
        """Whether all its threads took a turn lately."""
        return time.monotonic() - self._turn < ALIVE and all(one.is_alive() for one in self._publishers())

    def announce(self, report: bytes) -> None:
        """Publish a health report, if this replica leads."""
        lane = self._clicks.lane
        if lane is not None:
            lane.publisher.announce(report)

    def answer(self, topic: str, payload: bytes) -> None:
        """Publish the answer to a request, which whoever leads has heard."""
        lane = self._clicks.lane
        if lane is not None:
            lane.publisher.answer(topic, payload)

    def reconnect(self) -> None:
        """Make new connections to the broker, once nothing is in flight on these."""
        for publisher in self._publishers():
            publisher.reconnect()

    def clear_expired(self) -> None:
        """Topics of the ledger wait to be cleared, by whoever publishes them."""
        self._tell(CLEAR)

    def replay(self, after: int) -> None:
        """Have all replicas publish retained topics once more; see `Publisher.replay`."""
        self._tell(f"{REPLAY}{after}")

    def forget(self, learned: Sequence[tuple[str, str]], patience: float) -> bool:
        """Have all replicas let go of what was learned; see `Publisher.forget`. Of the others nobody waits for."""
        for at in range(0, len(learned), FORGOTTEN_AT_ONCE):
            some = orjson.dumps([self._name, *learned[at : at + FORGOTTEN_AT_ONCE]]).decode()
            self._tell(FORGET + some)
        return all(publisher.forget(learned, patience) for publisher in self._publishers())

    def _tell(self, word: str) -> None:
        self._words.append(word)
        self._bell.ring()

    def _lanes(self) -> list[Lane]:
        return [lane for desk in self._desks if (lane := desk.lane) is not None]

    def _publishers(self) -> list[Publisher]:
        return [lane.publisher for lane in self._lanes()]

    # --- the thread --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Publish what falls to this replica until `stop`.

        Raises:
            JournalError: The database is not as it must be.
            Exception: Whatever a publisher died of.
        """
        try:
            while not self._stopping.is_set():
                self._turn = time.monotonic()
                try:
                    self._go_on()
                except UnreachableError as error:
                    self._lose(error)
                    self._stopping.wait(AGAIN)
        finally:
            self._end()

    def stop(self) -> None:
        """Let `run` return, from any thread."""
        self._stopping.set()
        self._bell.ring()

    def _go_on(self) -> None:
        session = self._session
        if not session.is_open:
            session.open()
            log.info("the database is there again", replica=self._name)
            self._trouble = None
            # Without it nobody had a connection; a new session counts as one that reaches the broker.
            self._reached_at, self._is_noted_reaching = time.monotonic(), True
            self._ring()  # what was stored meanwhile was not heard
        self.step()
        while (left := self._beat_at + BEAT - time.monotonic()) > 0 and not self._stopping.is_set():
            heard = session.wait(self._bell.fileno(), left)
            self._bell.silence()
            while self._words:
                session.tell(self._words[0])
                self._words.popleft()  # told: where the database did not hear it, it is told to the next session
            self._hear(heard)
            if CHANGED in heard or any(lane.is_leaving and lane.has_ended() for lane in self._lanes()):
                return

    def _hear(self, heard: list[str]) -> None:
        if "" in heard:
            self._ring()
        for word in heard:
            for publisher in self._publishers():
                if word == CLEAR:
                    publisher.clear_expired()
                elif word.startswith(REPLAY):
                    publisher.replay(int(word.removeprefix(REPLAY)))
                elif word.startswith(FORGET):
                    whose, *learned = orjson.loads(word.removeprefix(FORGET))
                    if whose != self._name:
                        publisher.forget([(kind, key) for kind, key in learned], 0.0)

    def step(self) -> None:
        """Say that we are there, and see to it that we publish our share."""
        self._beat_at = time.monotonic()
        state = self._beat()
        self._note_reach()
        self._look(state)
        able = self._able(state)
        self._tend(self._clicks, state, int(self._name in able))
        self._tend(self._statuses, state, share(able, self._name, len(SHARED)))
        self._say_who_left()
        if self.leads and time.monotonic() - self._gone_at > LOOK_EVERY:
            self._gone_at = time.monotonic()
            self._take_away()

    def _beat(self) -> State:
        state = self._session.beat()
        self._left |= set(self.members)
        self._left -= set(state.members)
        self.members = state.members
        for lane in self._lanes():
            if lane.failure is not None:
                raise lane.failure
            if lane.is_held:
                lane.hold(self._session.leased_until)
        return state

    def _note_reach(self) -> None:
        """Have the others see whether we reach the broker."""
        now = time.monotonic()
        if self.connected:
            self._reached_at = now
        reaches = now - self._reached_at < REACH_PATIENCE
        if reaches != self._is_noted_reaching:
            self._session.note_reach(reaches)
            self._is_noted_reaching = reaches
            self._session.tell(CHANGED)

    def _able(self, state: State) -> tuple[str, ...]:
        """Among whom the partitions are shared: where all reach the broker or nobody does, nothing has to move."""
        now = time.monotonic()
        is_uneven = 0 < len(state.reaching) < len(state.members)
        self._uneven_since = min(self._uneven_since, now) if is_uneven else float("inf")
        return state.reaching if now - self._uneven_since >= UNEVEN_PATIENCE else state.members

    def _say_who_left(self) -> None:
        """One that was killed between two connections could not; one that is there again corrects it."""
        lane = self._clicks.lane
        if lane is not None and not lane.is_leaving:
            for name in sorted(self._left):
                lane.publisher.say(f"{topics.BRIDGE_REPLICA}/{name}/state", b"offline")
            self._left.clear()

    def _look(self, state: State) -> None:
        """Note which partitions are free though nobody gave them back."""
        now = uptime()
        if now - self._looked_at > LEASE / 2:
            self._free.clear()  # what was between is not known
        self._looked_at = now
        for number, partition in state.partitions.items():
            turns, _ = self._free.get(number, (-1, 0.0))
            if partition.is_held or not partition.owners:
                self._free.pop(number, None)
            elif turns != partition.turns:
                self._free[number] = (partition.turns, now)

    def _may_take(self, number: int, partition: Partition) -> bool:
        if partition.is_held or not partition.owners:
            return not partition.is_held
        return number in self._free and uptime() - self._free[number][1] >= PATIENCE

    def _tend(self, desk: Desk, state: State, wanted: int) -> None:
        """Take partitions up to what is wanted, and give up those beyond it; see that they have their publisher."""
        if desk.lane is not None and desk.lane.is_leaving and desk.lane.has_ended():
            desk.is_through = desk.lane.is_through
            desk.lane = None
        self._regain(desk)
        if desk.unsure:
            return
        self._take(desk, state, wanted)
        if desk.inherits and not desk.displaced:
            self._session.own(desk.held.items())
            desk.inherits = False
        keep = sorted(desk.held)[:wanted]
        if desk.lane is not None:
            if not desk.lane.is_leaving and desk.lane.partitions != set(keep):
                desk.lane.stop()
            return
        surplus = [(number, epoch) for number, epoch in desk.held.items() if number not in keep]
        if surplus:
            self._session.give(surplus, in_order=desk.is_through)
            for number, _ in surplus:
                del desk.held[number]
            if not desk.held:
                desk.displaced.clear()
                desk.inherits = False
            self._session.tell(CHANGED)
        if keep or desk.is_always_there:
            desk.lane = self._open(desk)
            log.info("publishing", desk=desk.name, partitions=keep, replicas=len(state.members))

    def _regain(self, desk: Desk) -> None:
        """Get back what was ours when the session ended, if nobody else has it by now."""
        is_lost = False
        for number in sorted(desk.unsure):
            found = self._session.retake(number, desk.held[number])
            if found is not False:
                desk.unsure.discard(number)
            if found is None:
                del desk.held[number]
                is_lost = True
        if desk.lane is None:
            return
        if is_lost:
            desk.lane.lose()
        elif not desk.unsure and not desk.lane.is_leaving:
            desk.lane.hold(self._session.leased_until)

    def _take(self, desk: Desk, state: State, wanted: int) -> None:
        free = [
            number
            for number in desk.candidates
            if number not in desk.held and self._may_take(number, state.partitions[number])
        ]
        random.shuffle(free)  # two that look at once should not look at the same
        for number in free:
            if len(desk.held) >= wanted:
                break
            partition = state.partitions[number]
            epoch = self._session.take(number, partition.turns)
            if epoch is not None:
                desk.held[number] = epoch
                others = set(partition.owners) - {self._name}
                desk.displaced |= others
                desk.inherits |= bool(others)

    def _lose(self, error: UnreachableError) -> None:
        """The session is over, and with it all that we held."""
        self._session.close()
        self._free.clear()
        for desk in self._desks:
            desk.unsure = set(desk.held)
            if desk.lane is not None:
                desk.lane.release()
        if self._trouble is None:
            log.warning("the database does not answer; nothing is published until it does", why=str(error))
        self._trouble = str(error)

    def _ring(self) -> None:
        for lane in self._lanes():
            lane.ring()

    def _take_away(self) -> None:
        """Take what is said of replicas that are gone for long off the broker."""
        lane = self._clicks.lane
        if self._gone:
            self._session.forget(self._gone, GONE)
        self._gone = self._session.note_seen(self.members, GONE)
        for name in self._gone:
            for what in ("state", "info"):
                if lane is not None:
                    lane.publisher.say(f"{topics.BRIDGE_REPLICA}/{name}/{what}", b"")

    # --- publishers ------------------------------------------------------------------------------------------------

    def _open(self, desk: Desk) -> Lane:
        state = self._beat()
        ahead = max((state.partitions[number].settled for number in desk.held), default=0)
        leads = desk is self._clicks
        journal = Share(self._database, desk.held, never_retained=self._never_retained)
        part = self._part(desk, ahead)
        settings = replace(
            self._settings,
            client_id=self._client_id if leads else self._name_at_broker(self._name),
            part=part,
            info={**self._settings.info, "replica": self._name, "partitions": sorted(desk.held)},
        )

        def make(connect: Callable[..., Connection], bell: Bell) -> Publisher:
            publisher = Publisher(
                settings,
                journal,
                bell,
                Clock(),
                connect=connect,
                discovery=(Discovery if leads else Learner)(self._plan, journal),
                observer=self.observer,
                heard=self._correct,
                last=journal.last if leads else None,
            )
            publisher.requests = self.requests if leads else None
            return publisher

        if leads:
            desk.displaced.clear()  # its own connection does that
        return Lane(
            desk.name,
            desk.held,
            self._session.leased_until,
            make,
            journal,
            before=lambda lane: self._displace_all(desk, lane),
            ended=self._bell.ring,
        )

    def _part(self, desk: Desk, ahead: int) -> Part:
        checkpoints = tuple(f"{topics.BRIDGE_CHECKPOINT}/{number}" for number in sorted(desk.held))
        if desk is self._clicks:
            return Part(checkpoints=checkpoints, has_all=False, ahead=ahead, will_delay=WILL_DELAY)
        place = f"{topics.BRIDGE_REPLICA}/{self._name}"
        return Part(
            state=f"{place}/state",
            info=f"{place}/info",
            checkpoints=checkpoints,
            has_all=False,
            ahead=ahead,
            follows=(topics.BRIDGE_STATE, f"{place}/state"),
        )

    def _name_at_broker(self, replica: str) -> str:
        return f"{self._client_id}-{replica}"

    def _displace_all(self, desk: Desk, lane: Lane) -> bool:
        for name in sorted(desk.displaced):
            if not self._displace(lane, name):
                return False
            desk.displaced.discard(name)
        return True

    def _displace(self, lane: Lane, name: str) -> bool:
        """Have the broker end the connection of one that may still believe that it publishes; whether to go on."""
        client_id = self._name_at_broker(name)
        said = False
        while not lane.is_leaving:
            for broker in self._settings.brokers:
                for protocol in self._settings.protocols:
                    lane.publisher.take_turn()
                    try:
                        self._connect_as(client_id, broker, protocol)
                    except ConnectionEndedError as error:
                        if error.refused:
                            log.warning("another replica's connection cannot be ended", why=str(error))
                            return True  # its lease is over by its own clock
                        if not said:
                            log.warning("another replica's connection is to be ended first", why=str(error))
                            said = True
                    else:
                        log.info("took over from a replica that is gone", client_id=client_id)
                        return True
            time.sleep(AGAIN)
        return False

    def _connect_as(self, client_id: str, broker: BrokerUrl, protocol: str) -> None:
        connection = Connection(
            broker, self._settings.tls, protocol=protocol, client_id=client_id, keepalive=self._settings.keepalive
        )
        try:
            connection.open()
            while not connection.connected:
                poller = select.poll()
                connection.poll(poller)
                poller.poll(100)
                connection.exchange()  # ends by itself where no answer comes
        finally:
            connection.close(politely=True)

    def _correct(self, topic: str, said: bytes) -> None:
        """A last will, or the leader, says that the group or this replica is offline, and it is not."""
        lane = self._statuses.lane
        if said == b"offline" and lane is not None and not self._stopping.is_set():
            lane.publisher.say(topic, b"online")

    # --- the end ---------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Stop everything in order, so that others go on at once."""
        others: tuple[str, ...] = ()  # who is there and hears a wrong `offline` mends it
        with contextlib.suppress(JournalError):
            others = tuple(name for name in self._session.leave() if name != self._name)
        if not others and self._clicks.lane is None and self._statuses.lane is not None:
            self._statuses.lane.publisher.say(topics.BRIDGE_STATE, b"offline")
        for desk in self._desks:
            if desk.lane is not None:
                desk.lane.stop(goodbye=desk is self._statuses or not others)
        deadline = time.monotonic() + STOP_PATIENCE
        with contextlib.suppress(JournalError):
            while time.monotonic() < deadline and not all(lane.has_ended() for lane in self._lanes()):
                self._session.beat()
                for lane in self._lanes():
                    if lane.is_held:
                        lane.hold(self._session.leased_until)
                self._session.wait(self._bell.fileno(), BEAT)
                self._bell.silence()
            for desk in self._desks:
                if desk.lane is None or desk.lane.has_ended():
                    held = [(number, desk.held[number]) for number in desk.held.keys() - desk.unsure]
                    self._session.give(held, in_order=desk.is_through if desk.lane is None else desk.lane.is_through)
            self._session.tell(CHANGED)
        self._session.close()
