"""What `whatsapp2mqtt dead-letters` does: look at what could not be understood or delivered, try it again, drop it."""

from __future__ import annotations

import contextlib
import functools
import time
from pathlib import Path

import orjson

from bridge import payload
from bridge.clicks import Allowed
from bridge.config import Settings
from bridge.journal import Buried, Callback, Household
from bridge.journal.care import check_there
from bridge.journal.engine import engine_of
from bridge.logs import printable
from bridge.model import iso_utc
from bridge.secret import veil_of
from bridge.topics import entry
from bridge.wakeup import Finger


def journal_of(settings: Settings) -> Household:
    """A hold on the journal that the bridge with these settings uses."""
    return engine_of(settings).journal()


def journal_there(settings: Settings) -> Household:
    """The same, where a bridge has made it already.

    Raises:
        JournalError: None has.
    """
    if settings.database is None:
        check_there(settings.journal_path)
    return journal_of(settings)


def listed(letters: list[Buried]) -> list[tuple[str, str, str, str]]:
    """A row for each: number, when, what, why."""
    return [
        (str(letter.number), iso_utc(letter.received), letter.source, printable(letter.reason)) for letter in letters
    ]


def shown(letter: Buried) -> str:
    """All of one; what is no text, as far as it reads as text."""
    body = letter.body.decode("utf-8", "backslashreplace")
    # What is no JSON, or is nested more deeply than can be written again, stands as it is.
    with contextlib.suppress(orjson.JSONDecodeError, orjson.JSONEncodeError):
        body = orjson.dumps(orjson.loads(letter.body), option=orjson.OPT_INDENT_2).decode()
    tame = "\n".join(printable(line) for line in body.split("\n"))
    return (
        f"number:   {letter.number}\nreceived: {iso_utc(letter.received)}\nsource:   {letter.source}\n"
        f"reason:   {printable(letter.reason)}\nbody:\n{tame}"
    )


def replay(settings: Settings, journal: Household, letter: Buried) -> tuple[bool, str]:
    """Try a dead letter again by the way that everything takes; it is dropped only if that worked.

    A body or an entry is parsed and stored as if it had just come, a publication is published again with its old
    `event_id`. A click that is older than `events.max_age` is recorded as late, not fired.

    Returns:
        Whether it worked, and what happened in words.
    """
    if letter.source == "publication":
        if letter.seq == 0:
            words = "it was published again with the rest of its update"
        elif letter.seq is None or not journal.publish_again(letter.seq):
            return False, "its update is not in the journal any more"
        else:
            words = "it is published again"
    else:
        veil = veil_of(settings, make=True)
        try:
            parsed = payload.parse(letter.body, Allowed(settings.buttons, veil).refusal)
        except payload.NotUnderstoodError as error:
            return False, f"still not understood: {error}"
        if parsed.dead:
            first = parsed.dead[0]
            return False, f"still {'refused' if first.refused else 'not understood'}: {first.reason}"
        now = time.time()
        project = functools.partial(veil.entry if veil else entry, encode_dots=settings.mqtt.encode_dots)
        entries = tuple(project(update, now) for update in parsed.updates)
        (outcome,) = journal.append([Callback(entries)])
        words = f"stored {outcome.stored}, duplicate {outcome.duplicate}, ignored {parsed.ignored}"
    journal.drop_dead_letter(letter.number)
    _finger(settings.journal_path.with_suffix(".bell")).ring()
    return True, words


@functools.cache
def _finger(bell: Path) -> Finger:
    """One for all letters of a run."""
    return Finger(bell)
