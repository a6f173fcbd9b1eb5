"""Group commit: those who wait at one moment share one fsync, and each gets its own answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import pytest

from bridge.journal import BrokenStorageError, Callback, DeadLetter, NotStoredError, Outcome, commit
from bridge.journal.commit import GroupCommit
from bridge.journal.sqlite import SqliteJournal
from bridge.model import Kind
from bridge.topics import Entry

#: Seconds that nothing here ever takes; only a test that fails waits so long.
LONG = 60.0


def callback(*numbers: int) -> Callback:
    return Callback(
        tuple(
            Entry(f"{number:032x}", Kind.BUTTON, f"button/{number}", f"event/button/{number}", 0, 1, 1.0, "{}")
            for number in numbers
        )
    )


class Watched(SqliteJournal):
    """The real journal; its appends are written down, can be held up, and can be made to fail."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.appends: list[list[Callback]] = []
        self.failure: Exception | None = None
        self.outcomes: list[Outcome] | None = None
        self.begun = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def append(self, callbacks: Sequence[Callback]) -> list[Outcome]:
        self.appends.append(list(callbacks))
        self.begun.set()
        assert self.may_go_on.wait(LONG)
        if self.failure is not None:
            raise self.failure
        stored = super().append(callbacks)
        return stored if self.outcomes is None else self.outcomes

    def hold(self) -> None:
        self.begun.clear()
        self.may_go_on.clear()


class Bell:
    """Counts how often it was rung."""

    def __init__(self) -> None:
        self.rung = 0

    def __call__(self) -> None:
        self.rung += 1


class Sender:
    """A request: hands a callback over and keeps what it was told."""

    def __init__(self, group: GroupCommit, what: Callback, loop: asyncio.AbstractEventLoop) -> None:
        self._told = asyncio.run_coroutine_threadsafe(group.append(what), loop)

    @property
    def is_waiting(self) -> bool:
        return not self._told.done()

    @property
    def answer(self) -> Outcome | BaseException:
        return self._told.exception(LONG) or self._told.result()


class Committer(threading.Thread):
    """The thread that stores; what ends it is kept."""

    def __init__(self, group: GroupCommit) -> None:
        super().__init__()
        self._group = group
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._group.run()
        except Exception as error:
            self.error = error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._group.stop()
        self.join()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Watched]:
    SqliteJournal(tmp_path / "journal.db").create()
    with Watched(tmp_path / "journal.db") as opened:
        yield opened


@pytest.fixture
def bell() -> Bell:
    return Bell()


class Queue(SimpleQueue[Any]):
    """Tells when something was put into it."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:  # noqa: FBT002  (its signature)
        super().put(item, block, timeout)
        self.arrived.release()


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The event loop of a receiver, in a thread of its own."""
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


class Grouped(GroupCommit):
    """The real thing; it knows the event loop, and tells when something was handed over."""

    def __init__(self, journal: Watched, bell: Bell, loop: asyncio.AbstractEventLoop, patience: float = LONG) -> None:
        super().__init__(journal, bell, patience)
        self.loop = loop
        self.queue = self._waiting = Queue()


@pytest.fixture
def group(journal: Watched, bell: Bell, loop: asyncio.AbstractEventLoop) -> Grouped:
    return Grouped(journal, bell, loop)


def send(group: Grouped, *callbacks: Callback) -> list[Sender]:
    """Requests that arrive in this order."""
    senders = []
    for what in callbacks:
        senders.append(Sender(group, what, group.loop))
        assert group.queue.arrived.acquire(timeout=LONG)
    return senders


def answers(senders: list[Sender]) -> list[Outcome | BaseException]:
    return [sender.answer for sender in senders]


def stored(journal: SqliteJournal) -> list[int]:
    return [int(one.event_id, 16) for one in journal.pending(0, 1_000)]


class TestSharing:
    def test_those_who_wait_while_one_is_stored_share_the_next_commit(self, group: Grouped, journal: Watched) -> None:
        """A commit each makes a burst of callbacks wait for the sum of all fsyncs, and the senders give up."""
        journal.hold()
        with Committer(group):
            first = send(group, callback(1))
            assert journal.begun.wait(LONG)
            assert group._waiting.qsize() == 0
            others = send(group, *(callback(number) for number in range(2, 22)))
            journal.may_go_on.set()
            assert answers(first + others) == [Outcome(1, 0)] * 21
        assert [len(callbacks) for callbacks in journal.appends] == [1, 20]
        assert stored(journal) == list(range(1, 22))

    def test_what_waits_is_stored_in_its_order(self, group: Grouped, journal: Watched) -> None:
        """On and off clicked in a second must not change places."""
        senders = send(group, *(callback(number) for number in (5, 3, 9, 1)))
        group.stop()
        group.run()
        answers(senders)
        assert stored(journal) == [5, 3, 9, 1]

    def test_each_gets_its_own_counts(self, group: Grouped, journal: Watched) -> None:
        """The answer to one sender must not tell of what another one sent."""
        senders = send(group, callback(1, 2), callback(2), callback(), callback(3, 3, 1))
        group.stop()
        group.run()
        assert answers(senders) == [Outcome(2, 0), Outcome(0, 1), Outcome(0, 0), Outcome(1, 2)]
        assert len(journal.appends) == 1

    def test_a_commit_is_bounded(self, group: Grouped, journal: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a bound the first who waits pays for the last, and runs out of patience."""
        monkeypatch.setattr(commit, "MAX_UPDATES", 3)
        senders = send(group, *(callback(2 * number, 2 * number + 1) for number in range(1, 6)))
        group.stop()
        group.run()
        assert answers(senders) == [Outcome(2, 0)] * 5
        assert [len(callbacks) for callbacks in journal.appends] == [2, 2, 1]

    def test_a_callback_larger_than_the_bound_is_stored(
        self, group: Grouped, journal: Watched, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A bound that refused would refuse the largest callbacks for ever."""
        monkeypatch.setattr(commit, "MAX_UPDATES", 3)
        senders = send(group, callback(*range(1, 10)), callback(10))
        group.stop()
        group.run()
        assert answers(senders) == [Outcome(9, 0), Outcome(1, 0)]

    def test_many_requests_each_hear_of_their_own(self, group: Grouped, journal: Watched) -> None:
        """Answers that got mixed up would say stored to one whose callback is not."""
        told: dict[int, Outcome] = {}

        async def request(first: int) -> None:
            for number in range(first, first + 40):
                told[number] = await group.append(callback(number, 1))

        async def all_of_them() -> None:
            await asyncio.gather(*(request(place * 100 + 1) for place in range(8)))

        with Committer(group):
            asyncio.run_coroutine_threadsafe(all_of_them(), group.loop).result(LONG)
        assert len(told) == 320
        # All name update 1 as well: whoever was first stored it.
        assert sum(outcome.stored for outcome in told.values()) == len(set(told) | {1})
        assert set(stored(journal)) == set(told) | {1}
        assert sum(len(callbacks) for callbacks in journal.appends) == 320


class TestStored:
    def test_an_append_returns_when_it_is_on_disk(self, group: Grouped, journal: Watched, tmp_path: Path) -> None:
        """Promise 1: an answer before the commit is an answer that a power cut makes a lie."""
        journal.hold()
        with Committer(group):
            (sender,) = send(group, callback(1))
            assert journal.begun.wait(LONG)
            assert sender.is_waiting
            journal.may_go_on.set()
            assert answers([sender]) == [Outcome(1, 0)]
            with SqliteJournal(tmp_path / "journal.db") as other:
                assert stored(other) == [1]

    def test_the_publisher_is_woken_once_a_commit(self, group: Grouped, bell: Bell) -> None:
        """Not woken, a click waits for the publisher's next look; woken for each, the publisher does nothing else."""
        senders = send(group, callback(1), callback(2), callback(3))
        group.stop()
        group.run()
        answers(senders)
        assert bell.rung == 1

    def test_the_publisher_is_not_woken_for_dead_letters_alone(self, group: Grouped, bell: Bell) -> None:
        """There is nothing for it to publish."""
        senders = send(group, Callback((), (DeadLetter("callback", "why", b"{", 1.0),)))
        group.stop()
        group.run()
        assert answers(senders) == [Outcome(0, 0)]
        assert bell.rung == 0


class TestFailing:
    def test_everyone_who_waits_is_told_that_nothing_was_stored(
        self, group: Grouped, journal: Watched, bell: Bell
    ) -> None:
        """Whoever is not told waits in vain, or says 200 for what is not there."""
        journal.failure = NotStoredError("the disk is full")
        senders = send(group, callback(1), callback(2), Callback((), ()))
        group.stop()
        group.run()
        assert answers(senders) == [journal.failure] * 3
        assert stored(journal) == []
        assert bell.rung == 0

    def test_it_goes_on_after_a_passing_trouble(self, group: Grouped, journal: Watched) -> None:
        """When there is room again, callbacks must be taken without anyone's help."""
        journal.failure = NotStoredError("the disk is full")
        with Committer(group) as committer:
            assert isinstance(answers(send(group, callback(1)))[0], NotStoredError)
            journal.failure = None
            assert answers(send(group, callback(1))) == [Outcome(1, 0)]
        assert committer.error is None

    @pytest.mark.parametrize("failure", [BrokenStorageError("fsync failed"), RuntimeError("a fault of ours")])
    def test_storage_that_failed_ends_it_after_all_were_told(
        self, group: Grouped, journal: Watched, failure: Exception
    ) -> None:
        """After a failed fsync the next one may lie: nothing more may be stored by this process."""
        journal.failure = failure
        senders = send(group, callback(1), callback(2))
        with pytest.raises(type(failure)) as caught:
            group.run()
        assert caught.value is failure
        assert answers(senders) == [failure, failure]
        assert len(journal.appends) == 1

    def test_answers_that_do_not_match_the_questions_are_nobodys(self, group: Grouped, journal: Watched) -> None:
        """One outcome too few would tell the second sender the count of the third, or leave one waiting."""
        journal.outcomes = [Outcome(1, 0)]
        senders = send(group, callback(1), callback(2))
        with pytest.raises(ValueError, match="zip"):
            group.run()
        assert all(isinstance(answer, ValueError) for answer in answers(senders))

    def test_a_disk_that_is_too_slow_costs_the_sender_its_patience_and_no_update(
        self, journal: Watched, bell: Bell, loop: asyncio.AbstractEventLoop
    ) -> None:
        """The sender hangs up after five seconds: better a 503 that it hears. Its next try is a duplicate."""
        hasty = Grouped(journal, bell, loop, patience=0.0)
        journal.hold()
        with Committer(hasty):
            (answer,) = answers(send(hasty, callback(1)))
            assert isinstance(answer, NotStoredError)
            assert str(answer) == "the disk or the database is too slow"
            journal.may_go_on.set()
        patient = Grouped(journal, bell, loop)
        with Committer(patient):
            assert answers(send(patient, callback(1))) == [Outcome(0, 1)]
        assert stored(journal) == [1]

    def test_a_loop_that_has_ended_is_no_trouble_for_what_is_stored(self, journal: Watched, bell: Bell) -> None:
        """The process ends in this moment: what it took must be on disk, and nobody is left to be told."""
        ended = asyncio.new_event_loop()
        group = GroupCommit(journal, bell)
        waiting = ended.create_task(group.append(callback(1)))
        ended.run_until_complete(asyncio.sleep(0))
        waiting.cancel()
        ended.run_until_complete(asyncio.wait([waiting]))
        ended.close()
        group.stop()
        group.run()
        assert stored(journal) == [1]


class TestStopping:
    def test_what_waits_is_stored_before_it_ends(self, group: Grouped, journal: Watched) -> None:
        """Requests that are being answered while the bridge stops must get their answer."""
        senders = send(group, callback(1), callback(2))
        group.stop()
        group.run()
        assert answers(senders) == [Outcome(1, 0)] * 2
        assert stored(journal) == [1, 2]

    def test_with_nothing_waiting_it_ends_at_once(self, group: Grouped, journal: Watched) -> None:
        """A stop that waits for one more callback lasts until somebody clicks."""
        group.stop()
        assert group.step() is False
        assert journal.appends == []

    def test_a_step_that_stored_says_that_there_may_be_more(self, group: Grouped) -> None:
        """Ending after the first commit would leave the second sender without an answer."""
        senders = send(group, callback(1))
        assert group.step() is True
        answers(senders)


def test_after_a_slow_commit_the_next_one_waits_for_those_who_were_just_answered(
    group: Grouped, journal: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow card each answer would take two commits, and half as many callbacks a second would be stored."""
    senders: list[Sender] = []

    def sleep(seconds: float) -> None:
        assert seconds == pytest.approx(commit.SHARE * 0.02), "no longer than a share of what the last one took"
        senders.extend(send(group, callback(3)))

    monkeypatch.setattr(commit, "sleep", sleep)
    clock = iter((1.0, 1.02, 2.0, 2.001, 3.0, 3.001))
    monkeypatch.setattr(commit, "monotonic", lambda: next(clock))

    for number in (1, 2, 4):
        senders += send(group, callback(number))
        assert group.step()

    assert [len(together) for together in journal.appends] == [1, 2, 1], "and not after a quick one"
    assert stored(journal) == [1, 2, 3, 4]
    assert answers(senders) == [Outcome(1, 0)] * 4
