"""Room for bodies: how much all of them hold, and who gives way where that is too much."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack
from typing import Any, Self

import pytest

from bridge.intake import SMALL, Intake, Place, Trouble, UnreadError

#: Bytes of a chunk here: large enough that two of them are no small body.
CHUNK = SMALL
#: Seconds that nothing here ever takes.
LONG = 60.0


class Sender:
    """A body that comes chunk by chunk, as the test says."""

    def __init__(self) -> None:
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()

    def send(self, *chunks: bytes) -> Self:
        for chunk in chunks:
            self._chunks.put_nowait(chunk)
        return self

    def end(self, empty: int = 1) -> Self:
        """As granian: with an empty chunk, and one more where it broke off."""
        return self.send(*[b""] * empty).stop()

    def stop(self) -> Self:
        self._chunks.put_nowait(None)
        return self

    async def __call__(self) -> bytes:
        return b"".join([chunk async for chunk in self])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (chunk := await self._chunks.get()) is not None:
            yield chunk


class Reading:
    """A body that is being read, by a coroutine of its own."""

    def __init__(self, intake: Intake, declared: int | None, *, is_known: bool = False, largest: int = 2**20) -> None:
        self.sender = Sender()
        self.place = intake.place(largest, is_known=is_known)
        self._task = asyncio.create_task(self._read(declared))

    async def _read(self, declared: int | None) -> bytes | Trouble:
        with self.place as place:
            try:
                return await place.read(self.sender, declared)
            except UnreadError as error:
                return error.trouble

    async def get(self, *chunks: bytes) -> Self:
        """These come, and are looked at."""
        self.sender.send(*chunks)
        for _ in range(20):
            await asyncio.sleep(0)
        return self

    @property
    def trouble(self) -> Trouble | None:
        """Why it was given up; None while it is read."""
        if not self._task.done():
            return None
        found = self._task.result()
        assert isinstance(found, Trouble)
        return found

    async def end(self) -> bytes | Trouble:
        self.sender.end()
        return await self.wait()

    async def wait(self) -> bytes | Trouble:
        return await asyncio.wait_for(self._task, LONG)


def on_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())

    run.__doc__ = test.__doc__
    return run


@on_a_loop
async def test_a_promise_takes_no_room() -> None:
    """A head of 120 bytes would take the room of 3 MB, and twenty of them all there is."""
    intake = Intake(LONG, 3 * CHUNK)
    strangers = [await Reading(intake, 2**20).get() for _ in range(100)]
    assert intake.held == 0
    honest = await Reading(intake, 5).get(b"hello")
    assert await honest.end() == b"hello"
    assert {one.trouble for one in strangers} == {None}


@on_a_loop
async def test_what_has_come_counts_until_it_is_answered() -> None:
    """Memory is what this is about: also a body that waits to be stored has some."""
    intake = Intake(LONG, 10 * CHUNK)
    large = await Reading(intake, 3 * CHUNK).get(b"x" * CHUNK)
    chunked = await Reading(intake, None).get(b"x" * CHUNK, b"x")
    assert intake.held == 2 * CHUNK + 1
    with intake.place(100, is_known=True) as place:
        assert await place.read(Sender().send(b"stored").stop(), 6) == b"stored"
        assert intake.held == 2 * CHUNK + 1 + 6
    assert await (await large.get(b"x" * 2 * CHUNK)).end() == b"x" * 3 * CHUNK
    assert await chunked.end() == b"x" * (CHUNK + 1)
    assert intake.held == 0


@on_a_loop
async def test_the_largest_gives_way_and_no_small_one() -> None:
    """Strangers who send megabytes would otherwise shut out the sender of a click, of which nobody knows yet."""
    intake = Intake(LONG, 4 * CHUNK)
    honest = await Reading(intake, 100).get(b"x" * 50)
    smaller = await Reading(intake, 2**20).get(b"x" * CHUNK)
    largest = await Reading(intake, 2**20).get(b"x" * 2 * CHUNK)
    latest = await Reading(intake, 2**20).get(b"x" * (CHUNK + 1))
    assert largest.trouble is Trouble.CROWDED
    assert intake.held == 100 + CHUNK + CHUNK + 1
    assert honest.trouble is smaller.trouble is latest.trouble is None
    assert await (await honest.get(b"x" * 50)).end() == b"x" * 100


@on_a_loop
async def test_the_newest_gives_way_if_it_is_the_largest() -> None:
    """Whoever comes last could throw out everybody."""
    intake = Intake(LONG, 4 * CHUNK)
    others = [await Reading(intake, 2**20).get(b"x" * CHUNK) for _ in range(3)]
    newest = await Reading(intake, 2**20).get(b"x" * CHUNK, b"x")
    assert newest.trouble is Trouble.CROWDED
    assert {one.trouble for one in others} == {None}
    assert intake.held == 3 * CHUNK


@on_a_loop
async def test_strangers_give_way_before_known_senders() -> None:
    """Where a token or a signature lets in, those who sign nothing could throw out those who have the token."""
    intake = Intake(LONG, 4 * CHUNK)
    known = await Reading(intake, 2**20, is_known=True).get(b"x" * 3 * CHUNK)
    stranger = await Reading(intake, 100).get(b"x" * 50)
    other = await Reading(intake, 2**20, is_known=True).get(b"x" * CHUNK)
    assert stranger.trouble is Trouble.CROWDED
    assert known.trouble is other.trouble is None
    await other.get(b"x")
    assert known.trouble is Trouble.CROWDED, "with no stranger left, it is as among them"


@on_a_loop
async def test_what_was_read_stays() -> None:
    """Half of what waits to be stored would be thrown away, and come again."""
    intake = Intake(LONG, 100)
    with ExitStack() as stack:
        for _ in range(2):
            place = stack.enter_context(intake.place(100, is_known=True))
            assert await place.read(Sender().send(b"x" * 50).stop(), 50) == b"x" * 50
        assert (await Reading(intake, 1, is_known=True).get()).trouble is Trouble.CROWDED
        assert intake.held == 100
    assert await (await Reading(intake, 1).get(b"x")).end() == b"x"


@on_a_loop
async def test_a_body_that_does_not_come_in_time_is_given_up() -> None:
    """It would hold its connection, and its room, for ever."""
    intake = Intake(0.01, 10 * CHUNK)
    slow = [Reading(intake, declared) for declared in (100, 2**20, None)]
    assert [await one.wait() for one in slow] == [Trouble.SLOW] * 3
    assert intake.held == 0
    assert not list(intake.reading)


@pytest.mark.parametrize(
    ("declared", "chunks", "empty"),
    [(CHUNK + 2, CHUNK + 1, 1), (CHUNK + 2, CHUNK + 1, 2), (None, 5, 2)],
    ids=["shorter than declared", "broken off", "chunks broken off"],
)
def test_a_body_that_ends_early_is_none(declared: int | None, chunks: int, empty: int) -> None:
    """Half a callback would be taken for a whole one that nobody understands, and be answered 200."""

    async def read() -> None:
        with Intake(LONG, 10 * CHUNK).place(2**20, is_known=True) as place, pytest.raises(UnreadError) as caught:
            await place.read(Sender().send(b"x" * chunks).end(empty), declared)
        assert caught.value.trouble is Trouble.CUT_SHORT

    asyncio.run(read())


def test_a_body_has_no_more_than_it_may() -> None:
    """One that does not say how long it is could be without an end."""

    async def read(place: Place, size: int) -> bytes:
        with place:
            return await place.read(Sender().send(b"x" * size).end(), None)

    intake = Intake(LONG, 2**30)
    assert len(asyncio.run(read(intake.place(CHUNK, is_known=True), CHUNK))) == CHUNK
    with pytest.raises(UnreadError, match=Trouble.TOO_LARGE.value):
        asyncio.run(read(intake.place(CHUNK, is_known=True), CHUNK + 1))
    assert intake.held == 0
