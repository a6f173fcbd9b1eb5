"""The webhook: an application of granian and Bottle in a process of its own. It stores, and knows nothing of MQTT.

Requests are coroutines of granian's event loop (its interface RSGI), so that a thousand slow senders cost no thread.
Bottle has the routes, and answers all but callbacks; these pass it by, as it knows no coroutines.

Promises kept here (numbers as in docs/how-it-works.md):
  1. Stored before answered: 200 is said after `GroupCommit.append` returned.
  8. One bad thing harms only itself: a bad entry, or a body that is no callback, goes to the dead letters, and the
     sender is told 200, as it would send the same again for days.

Nothing is written to disk before the sender is known, and no answer repeats what was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import io
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import orjson
import structlog
from bottle import Bottle, HTTPError, HTTPResponse, request, response

from bridge import logs, payload
from bridge.auth import Gate, Header, Verdict, Visitor, is_one_of
from bridge.clicks import Allowed
from bridge.config import Buttons, Log, Webhook
from bridge.crowd import Crowd
from bridge.intake import MOST, MOST_LARGEST, Intake, Source, Trouble, UnreadError
from bridge.journal import BrokenStorageError, Callback, DeadLetter, Household, NotStoredError, Outcome
from bridge.journal.commit import GroupCommit
from bridge.journal.engine import Engine
from bridge.meter import Meter, Meters
from bridge.model import Kind
from bridge.privacy import Veil
from bridge.processes import end_with_parent
from bridge.tap import Hand
from bridge.throttle import Excess, Throttle, network_of
from bridge.topics import entry
from bridge.wakeup import Finger

log = structlog.get_logger()

#: Seconds after which a sender that was told 503 may come again.
RETRY_AFTER = 5

#: So many objects more than were given back have Python look for cycles among them.
GARBAGE = 10_000

#: Seconds between two signs that the event loop takes its turns.
BEAT = 2.0

#: By which the bridge itself asks, every few seconds, whether a receiver answers. It is not counted, as whoever comes
#: through a tunnel on this machine has the same address; and nothing can be guessed by it.
QUESTION = ("HEAD", "/")

_LATER = {"Retry-After": str(RETRY_AFTER)}
_JSON = ("Content-Type", "application/json")


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


def load(settings: ReceiverSettings, parent: int) -> Receiver:
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
    _allow_files(settings.webhook.connections + 64)
    finger = Finger(settings.doorbell)
    commit, committer = _start_committer(settings.journal.journal(), finger.ring)
    meter = settings.meters.claim() if settings.meters is not None else Meter()
    _follow_log_level(meter)
    veil = settings.veil
    # What is there by now stays: the collector need not go through it again and again, nor so often.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE)

    def end() -> None:
        commit.stop()
        committer.join(5)
        # Past the interpreter's own end: threads of granian that still want Python then abort the process.
        sys.stderr.flush()
        os._exit(0)

    return Receiver(
        settings.webhook,
        commit.append,
        encode_dots=settings.encode_dots,
        buttons=settings.buttons,
        veil=veil,
        meter=meter,
        hand=Hand(settings.tap, meter, veil.body if veil is not None else None) if settings.tap is not None else None,
        end=end,
    )


def _follow_log_level(meter: Meter) -> None:
    """Say as much as the main process wants: looked up now, and at each of its SIGUSR1, so that no request waits."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

    def follow() -> None:
        while True:
            if level := meter.log_level():
                logs.set_level(level)
            signal.sigwait({signal.SIGUSR1})

    threading.Thread(target=follow, name="log level", daemon=True).start()


def _allow_files(needed: int) -> None:
    """Each connection is an open file, and a process may have few by default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _start_committer(journal: Household, stored: Callable[[], None]) -> tuple[GroupCommit, threading.Thread]:
    """A thread that stores what requests hand over; its end is the end of the process."""
    ready = threading.Event()
    commit = GroupCommit(journal, stored)

    def run() -> None:
        try:
            with journal:
                ready.set()
                commit.run()
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
    return commit, thread


Append = Callable[[Callback], Awaitable[Outcome]]


class Headers(Protocol):
    """A request's headers, as granian has them: names in any case, and no values that are not ASCII."""

    def get_all(self, name: str, /) -> list[str]: ...
    def __contains__(self, name: str, /) -> bool: ...


class Scope(Protocol):
    """A request without its body, as granian has it (RSGI)."""

    method: str
    path: str
    query_string: str
    client: str
    http_version: str

    @property
    def headers(self) -> Headers: ...


class Exchange(Source, Protocol):
    """A request's body, and where the answer goes (RSGI's protocol object)."""

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes, /) -> None: ...


class Receiver:
    """The application of a receiver process.

    Args:
        webhook: Path, limits and who may post.
        append: Stores a callback, or raises `NotStoredError`; returns when it is on disk.
        encode_dots: As in `mqtt.encode_dots`.
        buttons: Whose clicks fire, and which; None: all.
        veil: Hides numbers before anything is stored; None: they stay.
        now: The clock: epoch seconds.
        uptime: Seconds that never jump.
        meter: Counts answers, and what callbacks hold.
        hand: Shows callbacks to whoever watches; None: nobody ever does.
        end: Called when the last request was answered and the process is to end.
    """

    def __init__(
        self,
        webhook: Webhook,
        append: Append,
        *,
        encode_dots: bool = False,
        buttons: Buttons | None = None,
        veil: Veil | None = None,
        now: Callable[[], float] = time.time,
        uptime: Callable[[], float] = time.monotonic,
        meter: Meter | None = None,
        hand: Hand | None = None,
        end: Callable[[], None] = lambda: None,
    ) -> None:
        self._webhook = webhook
        self._append = append
        self._veil = veil
        self._now = now
        self._meter = meter or Meter()
        self._hand = hand
        self._end = end
        self._gate = Gate(webhook.auth)
        self._throttle = Throttle(webhook.rate_limit, uptime)
        self._refusal = Allowed(buttons).refusal if buttons is not None and buttons != Buttons() else None
        self._project = functools.partial(veil.entry if veil else entry, encode_dots=encode_dots)
        self._crowd = Crowd(webhook.listen.port, webhook.connections)
        self._intake = Intake(webhook.body_timeout, max(MOST, MOST_LARGEST * webhook.max_body))
        self._bottle = Bottle()
        self._bottle.uninstall(True)  # its plugins: nothing here is a template, and our JSON is bytes
        for path in (webhook.path, f"{webhook.path}/<token>"):
            self._bottle.route(path, method="POST", callback=self._receive)
            self._bottle.route(path, method="ANY", callback=self._other)
        self._bottle.default_error_handler = _bottle_error

    async def __rsgi__(self, scope: Scope, exchange: Exchange) -> None:
        """Answer a request."""
        began = time.perf_counter()
        client = scope.client
        self._crowd.begin(client)
        try:
            answer = await self._answer(scope, exchange)
        except Exception as error:
            log.error("a request failed", exc_info=error)
            answer = _fault(500)
        if isinstance(answer, bytes):
            code, headers, body = 200, [_JSON, ("Content-Length", str(len(answer)))], answer
        else:
            code, headers, body = answer.status_code, answer.headerlist, answer.body
            if "Content-Length" not in answer:
                headers.append(("Content-Length", str(len(body))))
            if code >= 400 and "Connection" not in answer:
                headers.append(("Connection", "close"))  # a stranger who stays would keep others out
        self._crowd.end(client)
        exchange.response_bytes(code, headers, body)
        if scope.method != "HEAD":  # by which the bridge itself asks whether a receiver answers
            self._meter.answered(code, time.perf_counter() - began, time.time())

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """The event loop is about to begin."""
        self._beat(loop)
        self._look_around(loop)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        """Show that the event loop takes its turns."""
        self._meter.beat()
        loop.call_later(BEAT, self._beat, loop)

    def _look_around(self, loop: asyncio.AbstractEventLoop) -> None:
        wait, ended = self._crowd.look()
        if ended and self._throttle.crowded() is None:
            log.warning("there are as many connections as webhook.connections allows; those that ask nothing are ended")
        loop.call_later(wait, self._look_around, loop)

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        """The last request was answered."""
        self._end()

    async def _answer(self, scope: Scope, exchange: Exchange) -> HTTPResponse | bytes:
        ambiguous = _ambiguity(scope)
        if ambiguous is not None:
            return ambiguous
        if scope.method == "POST":
            try:
                _, found = self._bottle.match({"REQUEST_METHOD": "POST", "PATH_INFO": scope.path})
            except HTTPError:
                return self._turn_away(_visitor(scope), _not_found())
            return await self._receive(scope, exchange, **found)
        answer = self._ask_bottle(scope)
        if answer.status_code not in (403, 404) or (scope.method, scope.path) == QUESTION:
            return answer
        return self._turn_away(_visitor(scope), answer)

    # --- callbacks -----------------------------------------------------------------------------------------------

    async def _receive(self, scope: Scope, exchange: Exchange, token: str = "") -> HTTPResponse | bytes:
        """What was posted to the webhook's path: let in, read, stored."""
        visitor = _visitor(scope, token)
        verdict = self._gate.before_body(visitor)
        if verdict not in (None, Verdict.WELCOME):
            return self._turn_away(visitor, self._refusal_of(verdict), verdict.value)
        # With None, only the body can tell: until then this is a stranger's.
        if verdict and (excess := self._throttle.sent(self._gate.origin(visitor))):
            return self._hold_back(visitor, excess)
        limit = self._webhook.max_body
        declared = _declared_length(visitor.header, limit)
        if isinstance(declared, HTTPResponse):
            return declared if verdict else self._turn_away(visitor, declared, "unsigned")
        try:
            with self._intake.place(limit, is_known=verdict is not None) as place:
                if not verdict:
                    self._crowd.end(scope.client)  # who is not known by then has no more time than for a head
                body = await place.read(exchange, declared)
                if not verdict:
                    self._crowd.begin(scope.client)
                    found = self._gate.with_body(visitor, body)
                    if found is not Verdict.WELCOME:
                        return self._turn_away(visitor, self._refusal_of(found), found.value)
                    if excess := self._throttle.sent(self._gate.origin(visitor)):
                        return self._hold_back(visitor, excess)
                return await self._store(body)
        except UnreadError as error:
            answer = self._unread(error.trouble)
            # Who had to give way to others did nothing wrong.
            if not verdict and error.trouble is not Trouble.CROWDED:
                return self._turn_away(visitor, answer, error.trouble.value)
            if error.trouble in (Trouble.SLOW, Trouble.CROWDED) and (verdict or self._may_log()):
                log.warning("a body was not read to its end", why=error.trouble.value, address=self._counted(visitor))
            return answer

    async def _store(self, body: bytes) -> HTTPResponse | bytes:
        """Parse and store; the counts, once it is on disk."""
        received = self._now()
        try:
            parsed = payload.parse(body, self._refusal)
            entries = tuple(self._project(update, received) for update in parsed.updates)
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
        if self._veil is not None and dead:
            # Who was refused must be known again when the click is tried once more, which a mask does not allow.
            veils = [self._veil.hashing() if item.refused else self._veil for item in parsed.dead] or [self._veil]
            dead = [replace(letter, body=veil.body(letter.body)) for letter, veil in zip(dead, veils, strict=True)]
        outcome = Outcome(0, 0)
        if entries or dead:
            try:
                outcome = await self._append(Callback(entries, tuple(dead)))
            except NotStoredError as error:
                log.error("a callback could not be stored; the sender is asked to come again", why=str(error))
                return _refuse(503, "it could not be stored", "send it again later", **_LATER)
        clicks = sum(entry.kind is Kind.BUTTON for entry in entries)
        self._meter.counted(clicks, outcome, ignored=parsed.ignored, dead=len(dead) - refused, refused=refused)
        log.debug(
            "callback",
            bytes=len(body),
            stored=outcome.stored,
            duplicate=outcome.duplicate,
            ignored=parsed.ignored,
            dead=len(dead),
        )
        counts = {
            "stored": outcome.stored,
            "duplicate": outcome.duplicate,
            "ignored": parsed.ignored,
            "dead": len(dead),
        }
        if self._hand is not None:
            self._hand.show(body, received, entries, counts)
        return orjson.dumps(counts)

    def _turn_away(self, visitor: Visitor, answer: HTTPResponse, why: str = Verdict.HIDDEN.value) -> HTTPResponse:
        """What a stranger is answered: this, or 429 after too many."""
        excess = self._throttle.failed(self._gate.origin(visitor))
        if excess is None:
            if why != Verdict.HIDDEN.value and self._may_log():
                log.warning("a request was turned away", why=why, address=self._counted(visitor))
            return answer
        self._meter.limited("stranger")
        if excess.is_first and self._may_log():
            address = self._counted(visitor)
            log.warning("an address was turned away too often; it is answered 429 for a while", address=address)
        hint = "compare the address and the credentials with the settings, and come again later"
        return _too_many(excess, "too many requests from here were turned away", hint)

    def _hold_back(self, visitor: Visitor, excess: Excess) -> HTTPResponse:
        """The answer to a sender that sends too many."""
        self._meter.limited("sender")
        if excess.is_first and self._may_log():
            address = self._counted(visitor)
            log.warning("an address sends more than webhook.rate_limit allows; it is answered 429", address=address)
        return _too_many(excess, "too many callbacks from one address", "send them later, or raise webhook.rate_limit")

    def _may_log(self) -> bool:
        """Whether there is room for one more line about those who are turned away."""
        excess = self._throttle.logged()
        if excess is not None and excess.is_first:
            log.warning("more requests are turned away than are logged", seconds=excess.wait)
        return excess is None

    def _counted(self, visitor: Visitor) -> str:
        """The sender's address, as it is counted: nothing else that was sent is in it."""
        return network_of(self._gate.origin(visitor))

    def _refusal_of(self, verdict: Verdict) -> HTTPResponse:
        if verdict is Verdict.HIDDEN:
            return _not_found()
        if verdict is Verdict.FORBIDDEN:
            return _refuse(403, "this address may not post", "list it in webhook.auth.addresses")
        if verdict is Verdict.BROWSER:
            return _refuse(403, "a web page may not post", "set webhook.auth.path_token, and have it know the secret")
        headers = {"WWW-Authenticate": 'Basic realm="webhook"'} if self._webhook.auth.basic else {}
        return _refuse(401, "the credentials are missing or wrong", "compare with webhook.auth", **headers)

    def _unread(self, trouble: Trouble) -> HTTPResponse:
        if trouble is Trouble.TOO_LARGE:
            return _too_large(self._webhook.max_body)
        if trouble is Trouble.CUT_SHORT:
            return _refuse(400, "the body ended early", "send all of it; after chunks, no trailers")
        if trouble is Trouble.SLOW:
            return _refuse(408, "the body came too slowly", "send it faster, or raise webhook.body_timeout")
        return _refuse(503, "too much comes in at once", "send it again later", **_LATER)

    # --- all else ------------------------------------------------------------------------------------------------

    def _ask_bottle(self, scope: Scope) -> HTTPResponse:
        """The answer of Bottle's application (WSGI), which waits for nothing."""
        environ = {
            "REQUEST_METHOD": scope.method,
            "PATH_INFO": scope.path.encode().decode("latin-1"),
            "QUERY_STRING": scope.query_string,
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": sys.stderr,
            "bridge.scope": scope,
        }
        started: list[tuple[str, list[tuple[str, str]]]] = []
        chunks = self._bottle(environ, lambda line, headers, _=None: started.append((line, headers)))
        line, headers = started[-1]
        return HTTPResponse(b"".join(chunks), line, headers)

    def _other(self, token: str = "") -> HTTPResponse:
        """What came to the webhook's path by another method."""
        if not self._gate.finds_path(_visitor(request.environ["bridge.scope"], token)):
            return _not_found()
        verify_tokens = self._webhook.auth.meta_verify_token
        if request.method == "GET" and verify_tokens:
            return _challenge(verify_tokens)
        return _refuse(405, "callbacks are posted", "send POST with a JSON body", Allow="POST")


def _ambiguity(scope: Scope) -> HTTPResponse | None:
    """The answer to a request that another program could read as another one; None if there is but one reading.

    granian sees to the rest, e.g. to two lengths (docs/security.md has the cases). After this answer it hangs up.
    """
    # RFC 9112, 3.2; HTTP/1.0 knows no Host.
    hosts = len(scope.headers.get_all("host"))
    if hosts > 1 or (hosts < 1 and scope.http_version == "1.1"):
        return _refuse(400, "Host is missing, or is there twice", "send one Host header", Connection="close")
    # RFC 9112, 6.1: of several codings granian undoes the last.
    coding = _header(scope.headers, "transfer-encoding")
    if coding is not None and coding.strip().lower() != "chunked":
        return _refuse(
            501, "Transfer-Encoding is not chunked alone", "send chunked, or Content-Length", Connection="close"
        )
    return None


def _declared_length(header: Header, limit: int) -> HTTPResponse | int | None:
    """The declared length of a body that may be read, None for one that comes in chunks; or the answer that refuses."""
    media_type = (header("content-type") or "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not re.fullmatch(r"application/[a-z0-9.+-]+\+json", media_type):
        return _refuse(415, "the body is not declared as JSON", "send Content-Type: application/json")
    coding = header("content-encoding")
    if coding is not None and coding.strip().lower() != "identity":
        return _refuse(415, "the body is compressed", "send it without Content-Encoding")
    declared = header("content-length")
    if declared is None:
        if header("transfer-encoding") is None:
            return _refuse(411, "the body's length is missing", "send Content-Length")
        return None
    if not re.fullmatch(r"[0-9]{1,18}", declared):
        return _refuse(400, "Content-Length is no number", "send the body's length in bytes")
    return _too_large(limit) if int(declared) > limit else int(declared)


def _too_large(limit: int) -> HTTPResponse:
    return _refuse(413, "the body is too large", f"send at most {limit} bytes, or raise webhook.max_body")


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


def _not_found() -> HTTPResponse:
    return _refuse(404, "there is nothing here", "look at the webhook's address")


def _too_many(excess: Excess, error: str, hint: str) -> HTTPResponse:
    return _refuse(429, error, hint, **{"Retry-After": str(excess.wait)})


def _refuse(status: int, error: str, hint: str, **headers: str) -> HTTPResponse:
    return HTTPResponse(
        orjson.dumps({"error": error, "hint": hint}), status, {"Content-Type": "application/json", **headers}
    )


def _fault(status: int) -> HTTPResponse:
    return _refuse(status, "this is a fault of the bridge", "look at its log")


def _bottle_error(error: Any) -> bytes:
    """What Bottle itself has to say (an unknown path, a fault of ours), in our words and without an echo."""
    if error.status_code in (404, 405):
        answer = _not_found()
    else:
        log.error("a request failed", exc_info=error.exception)
        answer = _fault(error.status_code)
    response.status = answer.status
    response.content_type = "application/json"
    return answer.body  # type: ignore[no-any-return]


def _visitor(scope: Scope, token: str = "") -> Visitor:
    """A request as the gate sees it; its address without port, and without the brackets of IPv6."""
    return Visitor(token, functools.partial(_header, scope.headers), scope.client.rpartition(":")[0].strip("[]"))


def _header(headers: Headers, name: str) -> str | None:
    """A header: repeated ones joined by commas; empty where it is there but not ASCII, which granian does not show."""
    found = headers.get_all(name)
    if len(found) == 1:
        return found[0]
    if found:
        return ",".join(found)
    return "" if name in headers else None
