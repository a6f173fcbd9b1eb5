"""The webhook: a Bottle application in granian's worker process. It stores, and knows nothing of MQTT.

Promises kept here (numbers as in docs/how-it-works.md):
  1. Stored before answered: 200 is said after `GroupCommit.append` returned.
  8. One bad thing harms only itself: a bad entry, or a body that is no callback, goes to the dead letters, and the
     sender is told 200, as it would send the same again for days.

Nothing is written to disk before the sender is known, and no answer repeats what was sent.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import structlog
from bottle import Bottle, HTTPResponse, request, response

from bridge import logs, payload
from bridge.auth import Gate, Verdict, Visitor, is_one_of
from bridge.clicks import Allowed
from bridge.config import Buttons, Log, Webhook
from bridge.journal import BrokenStorageError, Callback, DeadLetter, Household, NotStoredError, Outcome
from bridge.journal.commit import GroupCommit
from bridge.journal.engine import Engine
from bridge.meter import Meter, Meters
from bridge.model import Kind, Update
from bridge.privacy import Veil
from bridge.processes import end_with_parent
from bridge.tap import Hand
from bridge.topics import Entry, entry
from bridge.wakeup import Finger

log = structlog.get_logger()

#: Seconds a request waits for the disk. Senders give up after about five.
PATIENCE = 4.0
#: Seconds after which a sender that was told 503 may come again.
RETRY_AFTER = 5


@dataclass(frozen=True, slots=True)
class ReceiverSettings:
    """All that a receiver needs to know; no MQTT credentials among it."""

    webhook: Webhook
    journal: Engine
    doorbell: Path
    encode_dots: bool
    log: Log
    buttons: Buttons | None = None
    veil: Veil | None = None
    meters: Meters | None = None
    tap: Path | None = None


def load(settings: ReceiverSettings, parent: int) -> Callable[..., Any]:
    """Make the application of a worker process: called there, by granian.

    Args:
        settings: What to do.
        parent: Process id of the supervisor; the worker ends when that one does.
    """
    # Nobody is left to wait for a polite end; and granian's own can hang when its signal comes twice.
    end_with_parent(parent, by=signal.SIGKILL)
    # Ctrl+C reaches every process of a terminal; when to stop is the supervisor's to say, and once.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    logs.configure(settings.log.level, settings.log.format)
    finger = Finger(settings.doorbell)
    commit = _start_committer(settings.journal.journal(), finger.ring)
    meter = settings.meters.claim() if settings.meters is not None else Meter()
    _follow_log_level(meter)
    veil = settings.veil
    hand = Hand(settings.tap, meter, veil.body if veil is not None else None) if settings.tap is not None else None
    app = application(
        settings.webhook,
        commit.append,
        encode_dots=settings.encode_dots,
        buttons=settings.buttons,
        veil=veil,
        meter=meter,
        hand=hand,
    )
    return metered(app, meter)


def _follow_log_level(meter: Meter) -> None:
    """Say as much as the main process wants: looked up now, and at each of its SIGUSR1, so that no request waits."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

    def follow() -> None:
        while True:
            if level := meter.log_level():
                logs.set_level(level)
            signal.sigwait({signal.SIGUSR1})

    threading.Thread(target=follow, name="log level", daemon=True).start()


def _start_committer(journal: Household, stored: Callable[[], None]) -> GroupCommit:
    """A thread that stores what requests hand over; its end is the end of the process."""
    ready = threading.Event()
    made: list[GroupCommit] = []

    def run() -> None:
        try:
            with journal:
                made.append(GroupCommit(journal, stored))
                ready.set()
                made[0].run()
        except BrokenStorageError as error:
            log.error("the journal's storage failed; the receiver ends and is started anew", why=str(error))
        except Exception as error:
            log.error("the journal's thread failed; the receiver ends and is started anew", exc_info=error)
        else:
            return
        # Those who waited have their 503 in hand: a moment to send it. Then no more is accepted on this storage.
        time.sleep(0.2)
        os._exit(1)

    thread = threading.Thread(target=run, name="committer", daemon=True)
    thread.start()
    ready.wait()

    @atexit.register
    def finish() -> None:
        made[0].stop()
        thread.join(5)

    return made[0]


Append = Callable[[Callback, float], Outcome]


def metered(app: Callable[..., Any], meter: Meter) -> Callable[..., Any]:
    """The same WSGI application, its answers counted and timed."""

    def answer(environ: Any, start_response: Callable[..., Any]) -> Any:
        began = time.perf_counter()
        code = 0

        def note(status: str, *rest: Any) -> Any:
            nonlocal code
            code = int(status[:3])
            return start_response(status, *rest)

        body = app(environ, note)
        meter.answered(code, time.perf_counter() - began, time.time())
        return body

    return answer


def application(
    webhook: Webhook,
    append: Append,
    *,
    encode_dots: bool = False,
    buttons: Buttons | None = None,
    veil: Veil | None = None,
    now: Callable[[], float] = time.time,
    meter: Meter | None = None,
    hand: Hand | None = None,
) -> Bottle:
    """The Bottle application.

    Args:
        webhook: Path, limits and who may post.
        append: Stores a callback, or raises `NotStoredError`; returns when it is on disk.
        encode_dots: As in `mqtt.encode_dots`.
        buttons: Whose clicks fire; None: everybody's.
        veil: Hides numbers before anything is stored; None: they stay.
        now: The clock: epoch seconds.
        meter: Counts what callbacks hold.
        hand: Shows callbacks to whoever watches; None: nobody ever does.
    """
    meter = meter or Meter()
    app = Bottle()
    app.uninstall(True)  # its plugins: nothing here is a template, and our JSON is bytes
    gate = Gate(webhook.auth)
    verify_tokens = webhook.auth.meta_verify_token
    project = functools.partial(veil.entry if veil else entry, encode_dots=encode_dots)
    refusal = Allowed(buttons).refusal if buttons is not None and buttons != Buttons() else None

    def receive(token: str = "") -> Any:
        visitor = Visitor(token, _header, request.environ.get("REMOTE_ADDR", ""))
        if not gate.finds_path(visitor):
            return _not_found()
        if request.method == "GET" and verify_tokens:
            return _challenge(verify_tokens)
        if request.method != "POST":
            return _refuse(405, "callbacks are posted", "send POST with a JSON body", Allow="POST")
        verdict = gate.before_body(visitor)
        if verdict not in (None, Verdict.WELCOME):
            return _turn_away(verdict, webhook)
        body = _body(webhook.max_body)
        if isinstance(body, HTTPResponse):
            return body
        if verdict is None:
            verdict = gate.with_body(visitor, body)
            if verdict is not Verdict.WELCOME:
                return _turn_away(verdict, webhook)
        return _store(body, append, now(), refusal, project, veil, meter, hand)

    app.route(webhook.path, method="ANY", callback=receive)
    app.route(f"{webhook.path}/<token>", method="ANY", callback=receive)
    app.default_error_handler = _bottle_error
    return app


def _store(
    body: bytes,
    append: Append,
    received: float,
    refusal: payload.Refusal | None,
    project: Callable[[Update, float], Entry],
    veil: Veil | None,
    meter: Meter,
    hand: Hand | None,
) -> Any:
    """Parse and store; the counts, once it is on disk."""
    try:
        parsed = payload.parse(body, refusal)
        entries = tuple(project(update, received) for update in parsed.updates)
    except payload.NotUnderstoodError as error:
        log.warning("a callback was not understood; it is in the dead letters", why=str(error), bytes=len(body))
        parsed, entries = payload.Parsed((), 0, ()), ()
        dead = [DeadLetter("callback", str(error), body, received)]
    except Exception as error:  # a fault of ours: kept whole, as the sender's next try would meet the same one
        log.error("a callback could not be read; it is in the dead letters", exc_info=error, bytes=len(body))
        parsed, entries = payload.Parsed((), 0, ()), ()
        dead = [DeadLetter("callback", f"a fault of the bridge: {type(error).__name__}", body, received)]
    else:
        dead = [DeadLetter("item", item.reason, item.body.encode(), received) for item in parsed.dead]
        for item in parsed.dead:
            if item.refused:
                log.warning("a click was refused; it is in the dead letters", why=item.reason)
            else:
                log.warning("an entry of a callback was not understood; it is in the dead letters", why=item.reason)
    refused = sum(item.refused for item in parsed.dead)
    if veil is not None and dead:
        # Who was refused must be known again when the click is tried once more, which a mask does not allow.
        veils = [veil.hashing() if item.refused else veil for item in parsed.dead] or [veil]
        dead = [replace(letter, body=veil.body(letter.body)) for letter, veil in zip(dead, veils, strict=True)]
    outcome = Outcome(0, 0)
    if entries or dead:
        try:
            outcome = append(Callback(entries, tuple(dead)), PATIENCE)
        except NotStoredError as error:
            log.error("a callback could not be stored; the sender is asked to come again", why=str(error))
            return _refuse(503, "it could not be stored", "send it again later", **{"Retry-After": str(RETRY_AFTER)})
    clicks = sum(entry.kind is Kind.BUTTON for entry in entries)
    meter.counted(clicks, outcome, ignored=parsed.ignored, dead=len(dead) - refused, refused=refused)
    log.debug(
        "callback",
        bytes=len(body),
        stored=outcome.stored,
        duplicate=outcome.duplicate,
        ignored=parsed.ignored,
        dead=len(dead),
    )
    counts = {"stored": outcome.stored, "duplicate": outcome.duplicate, "ignored": parsed.ignored, "dead": len(dead)}
    if hand is not None:
        hand.show(body, received, entries, counts)
    response.content_type = "application/json"
    return orjson.dumps(counts)


def _body(limit: int) -> bytes | HTTPResponse:
    """The raw body, or the answer that refuses it."""
    environ = request.environ
    media_type = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not re.fullmatch(r"application/[a-z0-9.+-]+\+json", media_type):
        return _refuse(415, "the body is not declared as JSON", "send Content-Type: application/json")
    if environ.get("HTTP_CONTENT_ENCODING", "identity").strip().lower() != "identity":
        return _refuse(415, "the body is compressed", "send it without Content-Encoding")
    declared = environ.get("CONTENT_LENGTH") or None
    if declared is None and "chunked" not in environ.get("HTTP_TRANSFER_ENCODING", "").lower():
        return _refuse(411, "the body's length is missing", "send Content-Length")
    if declared is not None and not re.fullmatch(r"[0-9]{1,18}", declared):
        return _refuse(400, "Content-Length is no number", "send the body's length in bytes")
    too_large = f"send at most {limit} bytes, or raise webhook.max_body"
    if declared is not None and int(declared) > limit:
        return _refuse(413, "the body is too large", too_large)
    body: bytes = environ["wsgi.input"].read(limit + 1 if declared is None else int(declared))
    if len(body) > limit:
        return _refuse(413, "the body is too large", too_large)
    if declared is not None and len(body) != int(declared):
        return _refuse(400, "the body ended early", "send as many bytes as Content-Length says")
    return body


def _challenge(verify_tokens: tuple[str, ...]) -> HTTPResponse:
    """Meta's question whether this webhook is the one that was registered (its webhook documents, "Verification")."""
    query = request.query
    challenge = query.get("hub.challenge", "")
    # Bottle hands out a query's bytes as Latin-1 unless asked for text.
    given = query.getunicode("hub.verify_token", "")
    if query.get("hub.mode") != "subscribe" or not is_one_of(given, verify_tokens):
        return _refuse(403, "the verify token is not the one expected", "use the one in webhook.auth.meta_verify_token")
    if not re.fullmatch(r"[A-Za-z0-9._~-]{1,200}", challenge):
        return _refuse(400, "hub.challenge is missing or no plain word", "send 1 to 200 of A-Z a-z 0-9 - _ . ~")
    return HTTPResponse(
        challenge, 200, {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}
    )


def _turn_away(verdict: Verdict | None, webhook: Webhook) -> HTTPResponse:
    log.warning(
        "a request was turned away", why=verdict.value if verdict else "", address=request.environ.get("REMOTE_ADDR")
    )
    if verdict is Verdict.FORBIDDEN:
        return _refuse(403, "this address may not post", "list it in webhook.auth.addresses")
    headers = {"WWW-Authenticate": 'Basic realm="webhook"'} if webhook.auth.basic else {}
    return _refuse(401, "the credentials are missing or wrong", "compare with webhook.auth", **headers)


def _not_found() -> HTTPResponse:
    return _refuse(404, "there is nothing here", "look at the webhook's address")


def _refuse(status: int, error: str, hint: str, **headers: str) -> HTTPResponse:
    return HTTPResponse(
        orjson.dumps({"error": error, "hint": hint}), status, {"Content-Type": "application/json", **headers}
    )


def _bottle_error(error: Any) -> bytes:
    """What Bottle itself has to say (an unknown path, a fault of ours), in our words and without an echo."""
    if error.status_code in (404, 405):
        answer = _not_found()
    else:
        log.error("a request failed", exc_info=error.exception)
        answer = _refuse(error.status_code, "this is a fault of the bridge", "look at its log")
    response.status = answer.status
    response.content_type = "application/json"
    return answer.body  # type: ignore[no-any-return]


def _header(name: str) -> str | None:
    """A header as WSGI has it: repeated ones joined by commas, empty where it is not ASCII (granian's ways).

    WSGI cannot tell a name with an underscore from the one with a dash: proxies must drop the former.
    """
    value = request.environ.get(f"HTTP_{name.upper().replace('-', '_')}")
    return value if isinstance(value, str) else None
