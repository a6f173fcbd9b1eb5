"""The thread that answers at `admin.listen`: waitress, in the main process."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import orjson
from waitress.server import create_server

from bridge.admin.app import application
from bridge.admin.door import Door
from bridge.admin.status import Sources
from bridge.config import Address

#: Requests that are answered at once; a browser opens up to six connections.
THREADS = 4
#: Bytes of a request's body; a form has a few.
MAX_BODY = 64 * 1024


class Listener:
    """Answers until it is stopped; `run` is its thread.

    Args:
        listen: Where.
        sources: What it shows.
        key: The file that tells commands on this machine where it is, and lets them look; for its owner alone.
    """

    def __init__(self, listen: Address, sources: Sources, key: Path) -> None:
        self._listen = listen
        self._sources = sources
        self._key = key
        self._token = secrets.token_urlsafe(32)
        # One more than it may have to say is told by the browser waiting, not by a line in the log.
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)
        self._server = create_server(
            application(sources, Door(sources.settings.admin, self._token)),
            host=listen.host,
            port=listen.port,
            threads=THREADS,
            ident=None,
            clear_untrusted_proxy_headers=False,  # door.py looks who sends them
            max_request_body_size=MAX_BODY,
            connection_limit=100,
            channel_timeout=30,
            asyncore_use_poll=True,
        )
        self.address = Address(listen.host, int(self._server.effective_port))

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        return f"http://{Address(self.address.nearby, self.address.port)}/"

    def run(self) -> None:
        """Answer until `stop`."""
        with self._sources.journal, self._key_file():
            self._server.run()
            self._server.task_dispatcher.shutdown(timeout=2)

    def stop(self) -> None:
        """Let `run` return, from any thread."""
        with contextlib.suppress(OSError):
            self._server.trigger.pull_trigger(self._close)

    def _close(self) -> None:
        """In its thread: with nothing left to listen to, its loop ends."""
        for connection in list(self._server._map.values()):  # noqa: SLF001  (it has no other end)
            connection.close()

    @contextlib.contextmanager
    def _key_file(self) -> Iterator[None]:
        self._key.unlink(missing_ok=True)
        descriptor = os.open(self._key, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(orjson.dumps({"url": self.url, "token": self._token}))
        try:
            yield
        finally:
            self._key.unlink(missing_ok=True)
