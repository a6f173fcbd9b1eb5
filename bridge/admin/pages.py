"""The pages as HTML: what each shows, and what its buttons do. Everything is escaped by the templates.

Numbers are hidden unless a POST asks for them, so none stands in an address, a history or a page that nobody asked
to show them.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from jinja2 import Environment, PackageLoader, StrictUndefined

from bridge import __version__, dead_letters, homeassistant
from bridge.admin import trial, words
from bridge.admin.mask import Mask
from bridge.admin.rates import Rates
from bridge.admin.setup import addresses, checklist
from bridge.admin.status import Light, Sources, Status, Watch
from bridge.admin.traces import Trace, Tracer
from bridge.check import report
from bridge.config import Button
from bridge.journal import Found, Kept
from bridge.meter import SECONDS as ANSWER_SECONDS
from bridge.model import Kind
from bridge.observer import SECONDS as DELIVERY_SECONDS
from bridge.privacy import canonical
from bridge.secret import veil_of
from bridge.tap import Shown, Tap, tap_of
from bridge.topics import payload_level

#: Rows of a list.
ROWS = 50
#: Newest updates that a filter of the live view looks through.
FILTERED = 500
#: Updates of one message's history at most.
HISTORY = 100
#: Buttons that are listed at most.
BUTTONS = 200
#: Seconds for which one request replays dead letters; the browser asks to go on.
REPLAYING = 2.0
#: What was said to somebody whose browser never asked for it is forgotten after so many others.
NOTES = 50

STATIC = Path(__file__).parent / "static"
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

#: The pages, by the last part of their addresses: what stands in the navigation.
NAVIGATION = {
    "": "Overview",
    "live": "Live",
    "messages": "Messages",
    "buttons": "Buttons",
    "dead-letters": "Dead letters",
    "setup": "Setup",
}

#: What an answer of the webhook means, by its status code.
ANSWERS = {
    200: "taken, and on disk",
    400: "not readable as a request",
    401: "credentials missing or wrong",
    403: "from an address that may not post",
    404: "another path, or a wrong secret in it",
    405: "not a POST",
    408: "too slow",
    411: "without a length",
    413: "too large",
    415: "not JSON",
    429: "too many",
    500: "a fault of the bridge",
    503: "could not be stored; the sender comes again",
    0: "anything else",
}


class MissingError(Exception):
    """There is no such thing any more; the message says what."""


@dataclass(frozen=True, slots=True)
class Visit:
    """A request, as far as a page looks at it.

    Attributes:
        root: What stands before every path of ours.
        field: A field of the form, or of the query; empty if there is none.
        is_part: Whether only the part of the page is wanted that changes.
    """

    root: str
    field: Callable[[str], str]
    is_part: bool = False

    def number(self, name: str) -> int:
        """A field that is a whole number; 0 if it is none."""
        return whole(self.field(name)) or 0


@dataclass(frozen=True, slots=True)
class Go:
    """Where the browser goes next: a path of ours."""

    path: str


@dataclass(frozen=True, slots=True)
class File:
    """A file that does not change while the bridge runs."""

    content: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class KnownButton:
    """A button on the page; `key` is its name in forms."""

    key: str
    button: Button
    topic: str
    origin: str
    last: Trace | None


class Pages:
    """Makes the pages; used by several threads.

    Args:
        sources: What they show.
        watch: How the bridge is.
        asks: Whether there is a password, and so a way to log out.
    """

    def __init__(self, sources: Sources, watch: Watch, *, asks: bool) -> None:
        self._sources = sources
        self._settings = settings = sources.settings
        self._watch = watch
        self._tap = Tap(tap_of(settings), sources.meters)
        self._mask = Mask(encode_dots=settings.mqtt.encode_dots)
        self._rates = Rates(sources.journal)
        self._notes: OrderedDict[str, tuple[str, bool]] = OrderedDict()
        self._lock = threading.Lock()
        self.files = {path.relative_to(STATIC).as_posix(): _file(path) for path in STATIC.rglob("*.*")}
        env = Environment(
            loader=PackageLoader("bridge.admin"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        names = ("tame", "line", "sentence", "pretty", "when", "span", "size", "number", "counted")
        env.filters |= {name: getattr(words, name) for name in names}
        env.globals |= {
            "navigation": NAVIGATION,
            "version": __version__,
            "asks": asks,
            "Light": Light,
            # A page of an older version must not meet a script of a newer one.
            "edition": hashlib.sha256(b"".join(file.content for _, file in sorted(self.files.items()))).hexdigest()[:8],
            "settings": settings,
            "command": "whatsapp2mqtt" if shutil.which("whatsapp2mqtt") else str(Path(sys.argv[0]).absolute()),
        }
        self._env = env

    def _render(self, template: str, visit: Visit, here: str | None = None, **shown: Any) -> str:
        page = self._env.get_template(template)
        return page.render(root=visit.root, here=here, note=self._taken(visit), letters=self._count(), **shown)

    # --- what is said once, on the next page ---------------------------------------------------------------------

    def _said(self, path: str, text: str, *, worked: bool = True) -> Go:
        with self._lock:
            token = secrets.token_urlsafe(8)
            self._notes[token] = (text, worked)
            while len(self._notes) > NOTES:
                self._notes.popitem(last=False)
        return Go(f"{path}?note={token}")

    def _taken(self, visit: Visit) -> tuple[str, bool] | None:
        with self._lock:
            return self._notes.pop(visit.field("note"), None)

    def _count(self) -> int:
        health = self._health()
        return int(health.get("dead_letters", 0))

    def _health(self) -> dict[str, Any]:
        report = self._sources.keeper.report
        found: dict[str, Any] = orjson.loads(report) if report else {}
        return found

    # --- overview --------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Show none of the callbacks any more that came until now."""
        self._tap.forget()

    def overview(self, visit: Visit) -> str:
        status = self._watch.status()
        counted = self._sources.meters.read()
        observer = self._sources.publisher.observer
        delivered = [sum(both) for both in zip(*observer.buckets.values(), strict=True)]
        series = self._rates.series()
        return self._render(
            "_overview.html" if visit.is_part else "overview.html",
            visit,
            "",
            part=visit.is_part,
            status=status,
            summary=_summary(status),
            health=status.health,
            messages=status.health.get("messages", {}),
            series=series,
            points=orjson.dumps([series.minutes, series.statuses, series.clicks]).decode(),
            answered=typical("answers", ANSWER_SECONDS, counted.buckets),
            delivered=typical("deliveries", DELIVERY_SECONDS, delivered),
            answers=[(code, count, ANSWERS[code]) for code, count in status.answers.items() if count],
            setup=checklist(self._sources, status),
        )

    # --- live --------------------------------------------------------------------------------------------------------

    def live(self, visit: Visit) -> str:
        """The whole page; rows since `after` if only a part is wanted."""
        self._tap.watch()
        after = visit.number("after")
        kind, text = visit.field("kind"), visit.field("text").strip()
        newest = self._sources.journal.newest(FILTERED if kind or text else ROWS, after=after)
        cursor = newest[0].seq if newest else after
        rows = [one for one in newest if _fits(one, kind, text)][:ROWS]
        shown = self._tap.shown()
        tracer = self._tracer(shown)
        traces = tracer.traces(rows)
        seen = visit.number("seen")
        arrivals: list[Trace | Shown] = list(traces)
        if not kind and not text:
            arrivals += [one for one in shown if one.number > seen and not one.outcome["stored"]]
        arrivals.sort(key=lambda one: one.received if isinstance(one, Shown) else one.kept.received, reverse=True)
        waiting = [seq for one in visit.field("waiting").split(",")[:ROWS] if (seq := whole(one)) is not None]
        changed = [
            tracer.trace(kept)
            for kept in map(self._sources.journal.update, waiting)
            if kept is not None and after and not any(kept.seq == one.seq for one in traces)
        ]
        still = [one.seq for one in (*traces, *changed) if one.state == "waiting"]
        return self._render(
            "_rows.html" if visit.is_part else "live.html",
            visit,
            "live",
            arrivals=arrivals,
            changed=[one for one in changed if one.state != "waiting"],
            cursor=cursor,
            seen=max((one.number for one in shown), default=seen),
            waiting=",".join(map(str, still[:ROWS])),
            kind=kind,
            text=text,
        )

    def arrival(self, visit: Visit, number: str, *, plain: bool) -> str:
        """What came in with a callback that brought nothing new."""
        for one in self._tap.shown():
            if str(one.number) == number:
                body = one.body if plain else self._mask.body(one.body)
                return self._render("_arrival.html", visit, came=one, body=words.text_of(body), plain=plain)
        raise MissingError("this callback is not remembered any more")

    def update(self, visit: Visit, seq: str, *, plain: bool) -> str:
        """All about one update."""
        kept = self._update(seq)
        trace = self._tracer().trace(kept, plain=plain)
        body = words.text_of(trace.body) if trace.body is not None else None
        template = "_detail.html" if visit.is_part else "update.html"
        return self._render(template, visit, "live", trace=trace, body=body, plain=plain)

    def _update(self, seq: str) -> Kept:
        place = whole(seq)
        kept = self._sources.journal.update(place) if place is not None else None
        if kept is None:
            raise MissingError("this update is not in the journal any more")
        return kept

    def _tracer(self, shown: list[Shown] | None = None) -> Tracer:
        sources = self._sources
        return Tracer(
            self._settings.mqtt.base_topic,
            self._mask,
            sources.journal.settled(),
            sources.publisher.observer.published(),
            self._tap.shown() if shown is None else shown,
        )

    # --- messages ----------------------------------------------------------------------------------------------------

    def messages(self, visit: Visit) -> str:
        """What a search finds; the newest without one."""
        text = visit.field("text").strip()[:1_000]
        before = visit.number("before") or None
        began = time.monotonic()
        found = self._search(text, before)
        return self._render(
            "_found.html" if visit.is_part else "messages.html",
            visit,
            "messages",
            traces=self._tracer().traces(found.updates),
            before=found.before,
            text=text,
            continued=before is not None,
            took=time.monotonic() - began,
            hidden=self._settings.privacy.numbers,
        )

    def _search(self, text: str, before: int | None) -> Found:
        journal = self._sources.journal
        if text:
            needle, fits = self._wanted(text)
            return journal.search(needle, fits, limit=ROWS, before=before)
        return journal.search("", lambda _: True, limit=ROWS, before=before)

    def _wanted(self, text: str) -> tuple[str, Callable[[Kept], bool]]:
        """What to look for in the JSON, and what it must be there: a number or an id."""
        digits = canonical(text).lstrip("+") if words.is_number(text) else ""
        if not digits:
            return text, lambda kept: any(text in one for one in _ids(orjson.loads(kept.document)))
        veil = veil_of(self._settings)
        if veil is not None and self._settings.privacy.numbers != "keep":
            digits = veil.person(digits)
        return digits, lambda kept: any(digits in one for one in _ids(orjson.loads(kept.document)))

    def history(self, visit: Visit, seq: str, *, plain: bool) -> str:
        """All that is known about the message that an update is about, and the clicks that answer it."""
        kept = self._update(seq)
        tracer = self._tracer()
        message = tracer.trace(kept, plain=True).about
        updates: Sequence[Kept] = (kept,)
        before = None
        if message:
            found = self._sources.journal.search(
                message,
                lambda one: message in _ids(orjson.loads(one.document)),
                limit=HISTORY,
                before=visit.number("before") or None,
            )
            updates, before = found.updates or updates, found.before
        traces = tracer.traces(updates, plain=plain)
        states = [one for one in traces if not one.is_click]
        holder = self._sources.journal.holder(states[0].kept.topic) if states else None
        return self._render(
            "history.html",
            visit,
            "messages",
            seq=kept.seq,
            traces=traces,
            about=tracer.trace(kept, plain=plain).about,
            some=(states or traces)[0],
            state=next((one for one in states if one.seq == holder), None),
            before=before,
            plain=plain,
        )

    # --- buttons -----------------------------------------------------------------------------------------------------

    def buttons(self, visit: Visit) -> str:
        return self._render("buttons.html", visit, "buttons", buttons=self._buttons())

    def _buttons(self) -> list[KnownButton]:
        """Declared ones first, then those that callbacks have named, the latest click first."""
        homes = self._settings.homeassistant
        declared = {button.payload for button in homes.buttons}
        journal = self._sources.journal
        clicked = {orjson.loads(kept.document)["payload"]: kept for kept in journal.clicked(BUTTONS)}
        with journal.turn:
            learned = {one.key: one.name for one in journal.learned() if one.kind == "button"}
        for payload, kept in clicked.items():
            learned.setdefault(payload, orjson.loads(kept.document).get("text") or payload)
        tracer = self._tracer()
        found = []
        encode_dots = self._settings.mqtt.encode_dots
        plan = homeassistant.Plan(True, homes.prefix, "", "", "", homes.buttons, homes.max_buttons, encode_dots)
        for button in homeassistant.known_buttons(plan, list(learned.items())):
            last = clicked.get(button.payload)
            level = payload_level(button.payload, encode_dots=encode_dots)
            found.append(
                KnownButton(
                    hashlib.sha256(button.payload.encode()).hexdigest()[:20],
                    button,
                    f"{self._settings.mqtt.base_topic}/event/button/{level}",
                    "named in the settings" if button.payload in declared else "learned from a click",
                    tracer.trace(last) if last is not None else None,
                )
            )
        found.sort(key=lambda one: (one.button.payload not in declared, -(one.last.seq if one.last else 0)))
        return found[: BUTTONS + len(declared)]

    def click(self, visit: Visit) -> Go:
        """Fire a test click, if that was confirmed."""
        found = next((one for one in self._buttons() if one.key == visit.field("button")), None)
        if found is None:
            raise MissingError("this button is not known any more")
        if visit.field("sure") != "yes":
            return self._said("/buttons", "Nothing was clicked: tick that automations may fire.", worked=False)
        text = orjson.loads(found.last.kept.document).get("text") if found.last is not None else None
        with self._sources.journal.turn:
            trial.click(
                self._settings,
                self._sources.journal,
                payload=found.button.payload,
                text=text or found.button.name,
                sender=visit.field("sender").strip()[:50] or None,
            )
        return self._said(
            "/buttons", f"Clicked “{words.line(found.button.name)}” as a test. Its way stands under Live."
        )

    # --- dead letters ------------------------------------------------------------------------------------------------

    def dead_letters(self, visit: Visit) -> str:
        letters = self._sources.journal.letters(ROWS + 1, before=visit.number("before") or None)
        count, newest = self._sources.journal.count_letters()
        more = letters[ROWS - 1].number if len(letters) > ROWS else None
        return self._render(
            "letters.html", visit, "dead-letters", found=letters[:ROWS], count=count, newest=newest, more=more
        )

    def dead_letter(self, visit: Visit, number: str, *, plain: bool) -> str:
        letter = self._letter(number)
        body = letter.body[: words.SHOWN] if len(letter.body) > words.SHOWN else letter.body
        text = words.text_of(body if plain else self._mask.body(body))
        return self._render(
            "letter.html", visit, "dead-letters", letter=letter, body=text, plain=plain, most=words.SHOWN
        )

    def _letter(self, number: str) -> Any:
        with self._sources.journal.turn:
            place = whole(number)
            found = self._sources.journal.dead_letter(place) if place is not None else None
        if found is None:
            raise MissingError("this dead letter is not there any more")
        return found

    def replay(self, visit: Visit, number: str) -> Go:
        del visit
        letter = self._letter(number)
        with self._sources.journal.turn:
            worked, said = dead_letters.replay(self._settings, self._sources.journal, letter)
        if worked:
            return self._said("/dead-letters", f"Dead letter {number} was tried again: {said}.")
        return self._said(f"/dead-letters/{number}", f"It was tried again, and stays here: {said}.", worked=False)

    def drop(self, visit: Visit, number: str) -> Go:
        del visit
        with self._sources.journal.turn:
            place = whole(number)
            was_there = place is not None and self._sources.journal.drop_dead_letter(place)
        if not was_there:
            raise MissingError("this dead letter is not there any more")
        return self._said("/dead-letters", f"Dead letter {number} was deleted.")

    def replay_all(self, visit: Visit) -> Go | str:
        """Replay from the oldest on, for a moment; the page that comes back has the browser ask for the rest."""
        journal = self._sources.journal
        after, upto = visit.number("after"), visit.number("upto")
        worked, failed = visit.number("worked"), visit.number("failed")
        began = time.monotonic()
        while time.monotonic() - began < REPLAYING:
            numbers = journal.oldest_letters(after, upto, 1)
            if not numbers:
                stay = f"; {words.counted(failed, 'letter stays', 'letters stay')}" if failed else ""
                done = words.counted(worked, "dead letter was tried again", "dead letters were tried again")
                return self._said("/dead-letters", f"{done}{stay}.", worked=not failed)
            after = numbers[0]
            with journal.turn:
                letter = journal.dead_letter(after)
                if letter is not None:
                    is_gone, _ = dead_letters.replay(self._settings, journal, letter)
                    worked, failed = worked + is_gone, failed + (not is_gone)
        return self._render(
            "replaying.html", visit, "dead-letters", after=after, upto=upto, worked=worked, failed=failed
        )

    # --- setup -------------------------------------------------------------------------------------------------------

    def setup(self, visit: Visit, *, plain: bool) -> str:
        status = self._watch.status()
        return self._render(
            "setup.html",
            visit,
            "setup",
            items=checklist(self._sources, status),
            addresses=addresses(self._settings, plain=plain),
            status=status,
            report=report(self._sources.loaded),
            plain=plain,
        )

    # --- doors -------------------------------------------------------------------------------------------------------

    def login(self, visit: Visit, why: str = "") -> str:
        to = visit.field("to")
        return self._render("login.html", visit, why=why, to=to if to in NAVIGATION else "")

    def refused(self, visit: Visit, why: str) -> str:
        return self._render("refused.html", visit, why=why)


def whole(written: str) -> int | None:
    """A whole number as it is written in an address or a form, small enough for the journal; None if it is none."""
    return int(written) if written.isascii() and written.isdigit() and len(written) < 19 else None


def _file(path: Path) -> File:
    return File(path.read_bytes(), TYPES.get(path.suffix, "text/plain"))


def _fits(kept: Kept, kind: str, text: str) -> bool:
    """Whether the live view's filter lets an update through."""
    is_kind = {
        "status": kept.kind is Kind.STATUS,
        "button": kept.kind is Kind.BUTTON,
        "failed": kept.event_topic == "event/status/failed",
    }.get(kind, True)
    return is_kind and (not text or text.casefold() in kept.document.casefold())


def _ids(document: dict[str, Any]) -> list[str]:
    """Who and what an update is about: what Messages is searched by."""
    context = document.get("context")
    found = [document.get(key) for key in ("message_id", "recipient_id", "from", "event_id")]
    if isinstance(context, dict):
        found.append(context.get("id"))
    return [one for one in found if isinstance(one, str)]


def _summary(status: Status) -> str:
    troubled = [lamp.name for lamp in status.lamps if lamp.light is Light.TROUBLE]
    if troubled:
        return f"{' and '.join(troubled)} {'needs' if len(troubled) == 1 else 'need'} a look"
    if not status.is_ok:
        return "Something needs a look"
    if not status.has_callbacks:
        return "Ready for the first callback"
    if any(lamp.light is Light.WAITING for lamp in status.lamps):
        return "Nearly there"
    return "All is well"


def typical(what: str, bounds: Sequence[float], counts: Sequence[int]) -> str | None:
    """How long nine of ten took, as far as a histogram tells; None: there were none.

    Args:
        what: Was counted, as a plural.
        bounds: Seconds, of all but the last.
        counts: How many took no more than a bound and more than the one before; in the last, more than all bounds.
    """
    total = sum(counts)
    if not total:
        return None
    so_far = 0
    for bound, count in zip(bounds, counts, strict=False):
        so_far += count
        if so_far >= 0.9 * total:
            return f"9 of 10 {what} took {words.span(bound)} or less"
    return f"more than 1 of 10 {what} took over {words.span(bounds[-1])}"
