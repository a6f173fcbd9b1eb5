"""The addresses of the page, the health checks and the metrics: a Bottle application."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import structlog
from bottle import Bottle, HTTPResponse, request

from bridge.admin import metrics
from bridge.admin.door import Door, Refusal, caller_of, headers
from bridge.admin.status import Sources, Watch

log = structlog.get_logger()

_CODES = {
    Refusal.NAME: 421,
    Refusal.ADDRESS: 403,
    Refusal.ORIGIN: 403,
    Refusal.PASSWORD: 401,
    Refusal.LIMIT: 429,
}


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

    def answer(
        path: str, handler: Callable[..., HTTPResponse], *, method: str = "GET", is_public: bool = False
    ) -> None:
        """Answer at a path, to whom the door lets in."""

        def guarded(**arguments: str) -> HTTPResponse:
            caller = caller_of(request)
            refusal = door.look(caller, is_change=method == "POST", is_public=is_public)
            found = handler(**arguments) if refusal is None else _refuse(refusal)
            for name, value in headers(framed=door.is_trusted(caller)).items():
                found.headers.setdefault(name, value)
            return found

        app.route(path, method=[method, "HEAD"] if method == "GET" else method, callback=guarded)

    def healthz() -> HTTPResponse:
        alive = watch.is_alive()
        return _json({"alive": alive}, 200 if alive else 503)

    def readyz() -> HTTPResponse:
        why = watch.not_ready()
        return _json({"ready": not why, "why": why}, 503 if why else 200)

    answer("/healthz", healthz, is_public=True)
    answer("/readyz", readyz, is_public=True)
    answer("/api/status", lambda: _json(watch.detail()))
    answer("/metrics", lambda: HTTPResponse(measured.text(), 200, {"Content-Type": metrics.CONTENT_TYPE}))
    app.default_error_handler = _bottle_error
    return app


def _json(document: object, code: int = 200) -> HTTPResponse:
    return HTTPResponse(orjson.dumps(document), code, {"Content-Type": "application/json"})


def _refuse(refusal: Refusal) -> HTTPResponse:
    found = _json({"error": refusal.value}, _CODES[refusal])
    if refusal is Refusal.PASSWORD:
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
