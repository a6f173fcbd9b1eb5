"""Calls a receiver as granian does, from a request that stands as in WSGI: what a test would like to write."""

from __future__ import annotations

import asyncio
import atexit
import io
from collections.abc import AsyncIterator, Callable
from typing import Any

from bridge.receiver import Receiver

#: Coroutines of one receiver belong to one event loop.
LOOP = asyncio.new_event_loop()
atexit.register(LOOP.close)


class Headers:
    """As granian shows them: what is not ASCII is there and has no value."""

    def __init__(self, found: list[tuple[str, str]]) -> None:
        self._found = found

    def get_all(self, name: str) -> list[str]:
        return [value for key, value in self._found if key == name.lower() and value.isascii()]

    def __contains__(self, name: object) -> bool:
        return any(key == str(name).lower() for key, _ in self._found)


class Scope:
    def __init__(self, environ: dict[str, Any]) -> None:
        self.method: str = environ["REQUEST_METHOD"]
        self.path: str = environ["PATH_INFO"].encode("latin-1").decode("utf-8", "replace")
        self.query_string: str = environ.get("QUERY_STRING", "")
        self.http_version: str = environ.get("SERVER_PROTOCOL", "HTTP/1.1").removeprefix("HTTP/")
        address = environ.get("REMOTE_ADDR", "")
        self.client = f"[{address}]:40000" if ":" in address else f"{address}:40000" if address else ""
        names = {"CONTENT_TYPE": "content-type", "CONTENT_LENGTH": "content-length"}
        self.headers = Headers(
            [
                (names.get(key) or key.removeprefix("HTTP_").replace("_", "-").lower(), value)
                for key, value in environ.items()
                if (key in names and value) or key.startswith("HTTP_")
            ]
        )
        self.length = environ.get("CONTENT_LENGTH")


class BrokenOff(io.BytesIO):
    """A chunked body that breaks off behind what is here; granian shows that by a second empty chunk."""


class Exchange:
    """The body comes from `wsgi.input`, and the answer is kept."""

    def __init__(self, scope: Scope, stream: Any) -> None:
        self._length = scope.length
        self._stream = stream
        self.answer: tuple[int, list[tuple[str, str]], bytes] | None = None

    async def __call__(self) -> bytes:
        from granian.rsgi import ProtocolClosed

        body: bytes = self._stream.read(int(self._length or 0))
        if len(body) < int(self._length or 0):
            raise ProtocolClosed
        return body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := self._stream.read(7):
            yield chunk
        yield b""
        if isinstance(self._stream, BrokenOff):
            yield b""

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        assert self.answer is None, "a request is answered once"
        self.answer = (status, headers, body)


def as_wsgi(receiver: Receiver) -> Callable[..., Any]:
    """The same receiver, to be called with an environment and `start_response`."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        scope = Scope(environ)
        exchange = Exchange(scope, environ.get("wsgi.input"))
        LOOP.run_until_complete(receiver.__rsgi__(scope, exchange))
        assert exchange.answer is not None, "a request is answered"
        status, headers, body = exchange.answer
        start_response(f"{status} {'OK' if status == 200 else '-'}", headers)
        return [body]

    return app


__all__ = ["LOOP", "BrokenOff", "as_wsgi"]
