"""Slow clients, and an honest one beside them. `python -m tests.system.slow` measures what docs/security.md says."""

from __future__ import annotations

import csv
import hashlib
import hmac
import itertools
import json
import os
import resource
import signal
import socket
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.system.support import PATIENCE, Bridge, Program, program, status

HEAD = b"POST /webhook HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
#: Of slowhttptest, by what is slow: slow heads, slow bodies, slow reading.
MODES = {
    "heads": ("-H",),
    "bodies": ("-B", "-t", "POST", "-f", "application/json", "-s", "8192"),
    "reading": ("-X", "-t", "POST", "-k", "10", "-n", "5", "-w", "1", "-y", "64", "-z", "1"),
}

numbers = itertools.count()


def resident(pid: int) -> float:
    """MB of memory that a process has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


class Honest:
    """Posts one callback after the other, each on a connection of its own, for as long as it is held by `with`.

    Args:
        bridge: To whom.
        secret: Of Meta's signature; None: they are not signed.
    """

    def __init__(self, bridge: Bridge, secret: str | None = None) -> None:
        self._bridge = bridge
        self._secret = secret
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        #: Of each: its status, and the seconds to it.
        self.answers: list[tuple[int, float]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        while not self._done.is_set():
            began = time.monotonic()
            body = json.dumps(status(f"honest-{next(numbers)}")).encode()
            try:
                code = self._bridge.post(body, headers=self._signed(body)).status
            except OSError:
                code = 0
            self.answers.append((code, time.monotonic() - began))
            self._done.wait(0.01)

    def _signed(self, body: bytes) -> dict[str, str]:
        if self._secret is None:
            return {}
        return {"X-Hub-Signature-256": "sha256=" + hmac.new(self._secret.encode(), body, hashlib.sha256).hexdigest()}


class Dripping:
    """Clients on connections of their own, each of which sends a byte now and then, or reads none.

    Args:
        bridge: Whom they visit.
        heads, bodies, readers: How many of each.
    """

    def __init__(self, bridge: Bridge, heads: int, bodies: int, readers: int) -> None:
        self.ended = 0
        self._port = bridge.webhook
        self._kinds = [self._head] * heads + [self._body] * bodies + [self._reader] * readers
        self._sockets: dict[socket.socket, bytes] = {}

    def __enter__(self) -> Self:
        for kind in self._kinds:
            sock = socket.socket()
            self._sockets[sock] = kind(sock)
            sock.setblocking(False)
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets:
            sock.close()

    def _connect(self, sock: socket.socket, text: bytes) -> None:
        sock.connect(("127.0.0.1", self._port))
        sock.sendall(text)

    def _head(self, sock: socket.socket) -> bytes:
        self._connect(sock, HEAD + b"X-Drip: ")
        return b"x"

    def _body(self, sock: socket.socket) -> bytes:
        self._connect(sock, HEAD + b'Content-Length: 1000000\r\n\r\n{"x": "')
        return b"x"

    def _reader(self, sock: socket.socket) -> bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the smallest there is
        body = json.dumps(status("wamid.reader")).encode()
        self._connect(sock, b"")
        return (HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body) * 50

    def drip(self) -> int:
        """Each that still can sends a bit more; how many connections are still there."""
        for sock, bit in list(self._sockets.items()):
            try:
                if len(bit) == 1 and not sock.recv(1000):
                    raise ConnectionResetError
            except BlockingIOError:
                pass
            except ConnectionError:
                self._end(sock)
                continue
            try:
                sock.send(bit)
            except BlockingIOError:
                pass
            except ConnectionError:
                self._end(sock)
        return len(self._sockets)

    def _end(self, sock: socket.socket) -> None:
        sock.close()
        del self._sockets[sock]
        self.ended += 1


class SlowHttpTest:
    """Debian's slowhttptest, in one of its modes.

    Args:
        bridge: Whom it visits.
        mode: One of `MODES`.
        connections: How many it opens, 200 a second.
        seconds: How long it goes on.
    """

    def __init__(self, bridge: Bridge, mode: str, connections: int, seconds: int) -> None:
        self._results = bridge.folder / f"slow-{mode}"
        url = f"http://127.0.0.1:{bridge.webhook}/webhook"
        numbers = ("-c", connections, "-r", 200, "-l", seconds, "-i", 1, "-p", round(PATIENCE))
        command = [program("slowhttptest"), *MODES[mode], *numbers, "-u", url, "-g", "-o", self._results, "-v", 1]
        self._program = Program(command, bridge.folder, {**os.environ, "TERM": "dumb"})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._program.end(signal.SIGKILL)

    def wait(self) -> list[dict[str, str]]:
        """Until it is done; what it noted each second."""
        self._program.wait()
        file = self._results.with_suffix(".csv")
        assert file.exists(), self._program.said
        with file.open(newline="") as lines:
            return list(csv.DictReader(lines))


def measure(connections: int, seconds: int) -> None:
    """A row for each of slowhttptest's modes."""
    for mode in MODES:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            bridge = stack.enter_context(Bridge(folder)).start()
            receiver, main = resident(bridge.receiver), resident(bridge.pid)
            with Honest(bridge) as honest:
                notes = stack.enter_context(SlowHttpTest(bridge, mode, connections, seconds)).wait()
            codes = sorted({code for code, _ in honest.answers})
            print(
                f"| {mode} | {connections:,} | {seconds} s | {len(honest.answers):,}, {codes} "
                f"| {max(took for _, took in honest.answers):.2f} s "
                f"| +{resident(bridge.receiver) - receiver:.1f} MB | +{resident(bridge.pid) - main:.1f} MB "
                f"| {notes[-1]}",
                flush=True,
            )


if __name__ == "__main__":
    measure(int(os.environ.get("CONNECTIONS", "800")), int(os.environ.get("SECONDS_EACH", "30")))
