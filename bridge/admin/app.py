"""The addresses of the page, the health checks and the metrics: a Bottle application."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import structlog
from bottle import Bottle, HTTPResponse, request

from bridge.admin import metrics
from bridge.admin.door import COOKIE, COOKIE_LASTS, COOKIE_OF_HTTPS, Caller, Door, Refusal, caller_of, headers
from bridge.admin.pages import NAVIGATION, Go, MissingError, Pages, Visit
from bridge.admin.status import Sources, Watch
from bridge.again import topics_since
from bridge.config import ConfigError
from bridge.journal import JournalError, NotStoredError

log = structlog.get_logger()

_CODES = {
    Refusal.NAME: 421,
    Refusal.ADDRESS: 403,
    Refusal.ORIGIN: 403,
    Refusal.PROXY: 403,
    Refusal.PASSWORD: 401,
    Refusal.WRONG: 401,
    Refusal.LIMIT: 429,
}

#: Seconds that a browser keeps a script or a style; their addresses change when they do.
KEPT = 7 * 86_400

#: Seconds that the publisher may take to forget something.
PATIENCE = 4.0

Shown = Callable[..., str | Go | HTTPResponse]


def application(sources: Sources, door: Door) -> Bottle:
    """The Bottle application.

    Args:
        sources: What it shows.
        door: Who may see it.
    """
    app = Bottle()
    app.uninstall(True)
    watch = Watch(sources)
    measured = metrics.Metrics(sources)
    pages = Pages(sources, watch, asks=door.asks)

    def visit(caller: Caller, *, is_part: bool = False) -> Visit:
        def field(name: str) -> str:
            return request.forms.getunicode(name) or request.query.getunicode(name) or ""

        return Visit(door.prefix(caller), field, is_part)

    def note(caller: Caller, refusal: Refusal | None) -> None:
        """Say who is turned away and why; not who has yet to log in, nor each attempt of who is limited already."""
        if refusal not in (None, Refusal.PASSWORD, Refusal.LIMIT) and door.is_worth_a_line():
            log.warning("the page turned somebody away", why=refusal.value, address=door.origin(caller))

    def answer(
        path: str,
        handler: Callable[..., HTTPResponse],
        *,
        method: str = "GET",
        is_public: bool = False,
        refuse: Callable[[Caller, Refusal], HTTPResponse] = lambda _, refusal: _refuse(refusal),
    ) -> None:
        """Answer at a path, to whom the door lets in."""

        def guarded(**arguments: str) -> HTTPResponse:
            caller = caller_of(request)
            refusal = door.look(caller, is_change=method == "POST", is_public=is_public)
            note(caller, refusal)
            found = handler(**arguments) if refusal is None else refuse(caller, refusal)
            for name, value in headers(framed=door.is_trusted(caller)).items():
                found.headers.setdefault(name, value)
            return found

        app.route(path, method=[method, "HEAD"] if method == "GET" else method, callback=guarded)

    def turned_away(caller: Caller, refusal: Refusal) -> HTTPResponse:
        """A browser that is not let in: to the login, or told in words."""
        if refusal is not Refusal.PASSWORD:
            return _html(pages.refused(visit(caller), refusal.value), _CODES[refusal])
        to = caller.path.strip("/").partition("/")[0]
        login = f"{door.prefix(caller)}/login" + (f"?to={to}" if to in NAVIGATION and to else "")
        if caller.header("hx-request"):
            return HTTPResponse("", 200, {"HX-Redirect": login})
        return HTTPResponse("", 303, {"Location": login})

    def page(path: str, show: Shown, *, method: str = "GET", is_part: bool = False, **fixed: Any) -> None:
        """Answer with a page, or a part of one."""

        def shown(**arguments: str) -> HTTPResponse:
            caller = caller_of(request)
            try:
                found = show(visit(caller, is_part=is_part), **arguments, **fixed)
            except MissingError as missing:
                return _html(pages.refused(visit(caller), str(missing)), 404)
            except (JournalError, NotStoredError, ConfigError) as error:
                return _html(pages.refused(visit(caller), str(error)), 503)
            return _found(found, caller)

        answer(path, shown, method=method, refuse=turned_away)

    def _found(found: str | Go | HTTPResponse, caller: Caller) -> HTTPResponse:
        if isinstance(found, Go):
            return HTTPResponse("", 303, {"Location": door.prefix(caller) + found.path})
        return _html(found) if isinstance(found, str) else found

    # --- for machines ------------------------------------------------------------------------------------------------

    def healthz() -> HTTPResponse:
        alive = watch.is_alive()
        return _json({"alive": alive}, 200 if alive else 503)

    def readyz() -> HTTPResponse:
        why = watch.not_ready()
        return _json({"ready": not why, "why": why}, 503 if why else 200)

    answer("/healthz", healthz, is_public=True)
    answer("/readyz", readyz, is_public=True)

    def replay() -> HTTPResponse:
        try:
            moment = float(orjson.loads(request.body.read())["since"])
        except (ValueError, KeyError, TypeError):
            return _json({"error": "since: is no number; send epoch seconds"}, 400)
        try:
            with sources.journal.turn:
                after = sources.journal.place_before(moment)
                topics = sum(1 for _ in topics_since(sources.journal, moment))
        except (JournalError, NotStoredError) as error:
            return _json({"error": str(error)}, 503)
        if not sources.publisher.connected:
            return _json({"error": f"the broker is not reached: {sources.publisher.trouble}"}, 503)
        sources.publisher.replay(after)
        return _json({"topics": topics})

    def forget() -> HTTPResponse:
        try:
            learned = [(str(kind), str(key)) for kind, key in orjson.loads(request.body.read())["learned"]]
        except (ValueError, KeyError, TypeError):
            return _json({"error": "learned: is no list of pairs; send kinds and keys"}, 400)
        pages.forget()
        if not sources.publisher.forget(learned, PATIENCE):
            return _json({"error": f"the broker is not reached: {sources.publisher.trouble}"}, 503)
        return _json({"learned": len(learned)})

    answer("/api/forget", forget, method="POST")
    answer("/api/status", lambda: _json(watch.detail()))
    answer("/api/replay", replay, method="POST")
    answer("/metrics", lambda: HTTPResponse(measured.text(), 200, {"Content-Type": metrics.CONTENT_TYPE}))

    # --- for people --------------------------------------------------------------------------------------------------

    page("/", pages.overview)
    page("/overview", pages.overview, is_part=True)
    page("/live", pages.live)
    page("/live", pages.live, method="POST", is_part=True)
    page("/callbacks/<number>", pages.arrival, is_part=True, plain=False)
    page("/callbacks/<number>", pages.arrival, method="POST", is_part=True, plain=True)
    page("/updates/<seq>", pages.update, plain=False)
    page("/updates/<seq>", pages.update, method="POST", plain=True)
    page("/updates/<seq>/part", pages.update, is_part=True, plain=False)
    page("/updates/<seq>/part", pages.update, method="POST", is_part=True, plain=True)
    page("/messages", pages.messages)
    page("/messages", pages.messages, method="POST")
    page("/messages/more", pages.messages, method="POST", is_part=True)
    page("/messages/<seq>", pages.history, plain=False)
    page("/messages/<seq>", pages.history, method="POST", plain=True)
    page("/buttons", pages.buttons)
    page("/buttons/click", pages.click, method="POST")
    page("/dead-letters", pages.dead_letters)
    page("/dead-letters/replay", pages.replay_all, method="POST")
    page("/dead-letters/<number>", pages.dead_letter, plain=False)
    page("/dead-letters/<number>", pages.dead_letter, method="POST", plain=True)
    page("/dead-letters/<number>/replay", pages.replay, method="POST")
    page("/dead-letters/<number>/drop", pages.drop, method="POST")
    page("/setup", pages.setup, plain=False)
    page("/setup", pages.setup, method="POST", plain=True)

    # --- in and out --------------------------------------------------------------------------------------------------

    def wanted(here: Visit) -> str:
        """Where somebody wanted to be before the login."""
        to = here.field("to")
        return to if to in NAVIGATION else ""

    def login() -> HTTPResponse:
        caller = caller_of(request)
        here = visit(caller)
        if door.look(caller) is None:
            return HTTPResponse("", 303, {"Location": f"{here.root}/{wanted(here)}"})
        return _html(pages.login(here))

    def log_in() -> HTTPResponse:
        caller = caller_of(request)
        here = visit(caller)
        cookie = door.log_in(caller, request.forms.getunicode("password") or "")
        if isinstance(cookie, Refusal):
            note(caller, cookie)
            why = "This password is not right." if cookie is Refusal.WRONG else f"{cookie.value.capitalize()}."
            return _html(pages.login(here, why), _CODES[cookie])
        log.info("somebody logged in to the page", address=door.origin(caller))
        found = HTTPResponse("", 303, {"Location": f"{here.root}/{wanted(here)}"})
        _give_cookie(found, cookie, here.root, is_encrypted=door.is_encrypted(caller))
        return found

    def log_out() -> HTTPResponse:
        caller = caller_of(request)
        door.log_out(caller)
        found = HTTPResponse("", 303, {"Location": f"{door.prefix(caller)}/login"})
        _give_cookie(found, "", door.prefix(caller), is_encrypted=door.is_encrypted(caller))
        return found

    answer("/login", login, is_public=True, refuse=turned_away)
    answer("/login", log_in, method="POST", is_public=True, refuse=turned_away)
    answer("/logout", log_out, method="POST", is_public=True, refuse=turned_away)

    def static(name: str) -> HTTPResponse:
        file = pages.files.get(name)
        if file is None:
            return _json({"error": "there is nothing here"}, 404)
        kept = {"Cache-Control": f"private, max-age={KEPT}"}
        return HTTPResponse(file.content, 200, {"Content-Type": f"{file.media_type}; charset=utf-8", **kept})

    answer("/static/<name:path>", static, is_public=True)
    app.default_error_handler = _bottle_error
    return app


def _give_cookie(found: HTTPResponse, cookie: str, root: str, *, is_encrypted: bool) -> None:
    found.set_cookie(
        COOKIE_OF_HTTPS if is_encrypted and not root else COOKIE,
        cookie,
        path=f"{root}/",
        httponly=True,
        samesite="strict",
        secure=is_encrypted,
        max_age=COOKIE_LASTS if cookie else 0,
    )


def _html(text: str, code: int = 200) -> HTTPResponse:
    return HTTPResponse(text.encode("utf-8", "backslashreplace"), code, {"Content-Type": "text/html; charset=utf-8"})


def _json(document: object, code: int = 200) -> HTTPResponse:
    return HTTPResponse(orjson.dumps(document), code, {"Content-Type": "application/json"})


def _refuse(refusal: Refusal) -> HTTPResponse:
    found = _json({"error": refusal.value}, _CODES[refusal])
    if refusal in (Refusal.PASSWORD, Refusal.WRONG):
        found.headers["WWW-Authenticate"] = 'Basic realm="whatsapp2mqtt"'
    return found


def _bottle_error(error: Any) -> bytes:
    """What Bottle itself has to say: no echo of what was asked, no traceback."""
    if error.status_code >= 500:
        log.error("the page could not be made", exc_info=error.exception)
    found: bytes = orjson.dumps(
        {"error": "there is nothing here" if error.status_code in (404, 405) else "look at the log"}
    )
    for name, value in headers(framed=False).items():
        error.headers[name] = value
    error.content_type = "application/json"
    return found
