"""Real brokers, an independent subscriber, and peers that misbehave: what integration tests stand on.

Nothing here sleeps to wait for something: each wait is on a condition that whoever did it notifies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bridge.broker import EmbeddedBroker
from bridge.config import Address, BrokerUrl, Embedded

HOST = "127.0.0.1"
#: Seconds until a wait is given up: far more than anything takes on a slow and busy machine.
PATIENCE = float(os.environ.get("TEST_PATIENCE", "40"))
#: Seconds after which what is retained is asked for once more.
ASK_AGAIN = 4.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class Watched:
    """Something that other threads change, and that can be waited for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        with self._changed:
            yield
            self._changed.notify_all()

    def wait_for(self, predicate: Callable[[], Any], timeout: float = PATIENCE) -> Any:
        """Wait until the predicate holds, and return what it returned; fail with all that is known if it never does."""
        with self._changed:
            found = self._changed.wait_for(predicate, timeout)
            assert found, f"did not come within {timeout} s; so far: {self.so_far()}"
            return found

    def so_far(self) -> Any:
        return self.__dict__


# --- mosquitto --------------------------------------------------------------------------------------------------------


class Mosquitto(Watched):
    """A mosquitto with its own configuration, data and port.

    Args:
        program: mosquitto itself.
        folder: Where it keeps everything.
        lines: Settings beside those that every test wants.
        listeners: Of `mqtts`, `ws`, `wss`, beside `mqtt`; each gets a port of its own.
        certificates: For mqtts and wss.
        certificate: Which of them it shows.
        wants_certificate: Whether clients must show a certificate.
        remembers: Whether retained messages outlive a kill -9.
        users: Names and passwords; without, everybody may come in.
        acl: Lines of an ACL file.
    """

    def __init__(
        self,
        program: str,
        folder: Path,
        *,
        lines: Sequence[str] = (),
        listeners: Sequence[str] = (),
        certificates: Path | None = None,
        certificate: str = "server",
        wants_certificate: bool = False,
        remembers: bool = False,
        users: dict[str, str] | None = None,
        acl: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self._program = program
        self._folder = folder
        self._lines = lines
        self._certificates = certificates
        self._certificate = certificate
        self._wants_certificate = wants_certificate
        self._remembers = remembers
        self._users = users
        self.ports = {listener: free_port() for listener in ("mqtt", *listeners)}
        self.said: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        if users:
            self._write_passwords(users)
        if acl is not None:
            self.allow(*acl)
        self._has_acl = acl is not None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def port(self) -> int:
        return self.ports["mqtt"]

    def url(self, scheme: str = "mqtt", username: str | None = None, password: str | None = None) -> BrokerUrl:
        path = "/mqtt" if scheme in ("ws", "wss") else ""
        return BrokerUrl(scheme, HOST, self.ports[scheme], path, username, password)

    def start(self) -> None:
        """Start it; it takes connections when this returns."""
        with self.changing():
            self.said = []
        self._process = subprocess.Popen(
            [self._program, "-c", str(self._configure())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        self.wait_for(lambda: self._has_said(" running") or self._has_said(" ended"))
        assert self._process.poll() is None, f"mosquitto did not start: {self.said}"

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it as its operator would."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Have it hang: its connections stay, and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def forget(self) -> None:
        """Lose all that it kept; only while it is stopped."""
        (self._folder / "mosquitto.db").unlink(missing_ok=True)

    def save(self) -> None:
        """Have it write to disk all that it has so far; it is there once it has answered something else."""
        assert self._process is not None
        before = len(self.said)
        self._process.send_signal(signal.SIGUSR1)
        self.wait_for(lambda: any("Saving in-memory database" in line for line in self.said[before:]))

    def allow(self, *acl: str) -> None:
        """Write the ACL file; heeded at the start and by `reload`."""
        (self._folder / "acl").write_text("\n".join(acl) + "\n")

    def reload(self) -> None:
        """Have it read its configuration again."""
        assert self._process is not None
        before = len(self.said)
        self._process.send_signal(signal.SIGHUP)
        self.wait_for(lambda: any("Reloading config" in line for line in self.said[before:]))

    def _has_said(self, words: str) -> bool:
        return any(words in line for line in self.said)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        process.wait(PATIENCE)
        assert self._reader is not None
        self._reader.join(PATIENCE)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                with self.changing():
                    self.said.append(line.rstrip())
        with self.changing():
            self.said.append("mosquitto ended")

    def _write_passwords(self, users: dict[str, str]) -> None:
        file = self._folder / "passwords"
        file.write_text("")
        file.chmod(0o600)
        hasher = shutil.which("mosquitto_passwd")
        assert hasher, "mosquitto_passwd is missing: it comes with the package mosquitto"
        for name, password in users.items():
            subprocess.run([hasher, "-b", str(file), name, password], check=True, capture_output=True, timeout=PATIENCE)

    def _configure(self) -> Path:
        lines = [
            *(["user root"] if os.geteuid() == 0 else []),
            "log_dest stderr",
            "log_type all",
            "max_queued_messages 0",
            "allow_zero_length_clientid true",
            f"allow_anonymous {'false' if self._users else 'true'}",
            *([f"password_file {self._folder}/passwords"] if self._users else []),
            *([f"acl_file {self._folder}/acl"] if self._has_acl else []),
        ]
        if self._remembers:
            lines += [
                "persistence true",
                f"persistence_location {self._folder}/",
                "autosave_interval 1",
                "autosave_on_changes true",
            ]
        lines += self._lines
        for scheme, port in self.ports.items():
            lines.append(f"listener {port} {HOST}")
            if scheme in ("ws", "wss"):
                lines.append("protocol websockets")
            if scheme in ("mqtts", "wss"):
                lines += [
                    f"cafile {self._certificates}/ca.pem",
                    f"certfile {self._certificates}/{self._certificate}.pem",
                    f"keyfile {self._certificates}/{self._certificate}.key",
                    f"require_certificate {'true' if self._wants_certificate else 'false'}",
                ]
        file = self._folder / "mosquitto.conf"
        file.write_text("\n".join(lines) + "\n")
        return file


# --- the embedded broker ----------------------------------------------------------------------------------------------


class EmbeddedThread:
    """The embedded broker with the thread that keeps it, as the service has it."""

    def __init__(
        self, program: Path, folder: Path, *, username: str | None = None, password: str | None = None
    ) -> None:
        self._program = program
        self._folder = folder
        self.settings = Embedded(listen=Address(HOST, free_port()), username=username, password=password)
        self.broker: EmbeddedBroker = None  # type: ignore[assignment]  # until the start
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        return self.settings.listen.port

    def url(self, username: str | None = None, password: str | None = None) -> BrokerUrl:
        return BrokerUrl("mqtt", HOST, self.port, "", username, password)

    def start(self) -> None:
        self.broker = EmbeddedBroker(self.settings, self._folder, self._program)
        self._thread = threading.Thread(target=self.broker.run, daemon=True)
        self._thread.start()
        self.broker.await_start()

    def stop(self) -> None:
        self.broker.stop()
        assert self._thread is not None
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def forget(self) -> None:
        """Lose all that it kept; only while it is stopped."""
        shutil.rmtree(self._folder / "data", ignore_errors=True)

    def kill(self) -> None:
        """End the child as a power cut would; it is started again."""
        pid = self.broker.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def down(self) -> None:
        """End the child as a power cut would; it stays away."""
        self.kill()
        self.stop()


# --- any of them ------------------------------------------------------------------------------------------------------


@dataclass
class AnyBroker:
    """A broker with the protocol by which it is to be spoken to.

    Attributes:
        down: End it with kill -9; it stays away.
        up: Bring it back with all that it kept.
        forget: Lose all that it kept, while it is down.
    """

    name: str
    protocol: str
    url: BrokerUrl
    down: Callable[[], None]
    up: Callable[[], None]
    forget: Callable[[], None]

    @property
    def port(self) -> int:
        return self.url.port


# --- an independent subscriber ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Received:
    """What a subscriber got."""

    topic: str
    payload: bytes
    retain: bool
    properties: dict[str, Any] = field(default_factory=dict)


class Subscriber(Watched):
    """A client of its own, with paho's own loop on its own thread.

    Args:
        port: The broker's.
        topics: Filters.
        protocol: `5` or `3.1.1`.
        credentials: Name and password.
    """

    _numbers = iter(range(1, 1_000_000))

    def __init__(
        self, port: int, *topics: str, protocol: str = "5", credentials: tuple[str, str] | None = None, qos: int = 1
    ) -> None:
        super().__init__()
        self.messages: list[Received] = []
        self.subscriptions = 0
        self._topics = [*(topics or ("#",)), "marker/#"]
        self._qos = qos
        self._markers = 0
        self._name = f"subscriber-{os.getpid()}-{next(self._numbers)}"
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._name,
            protocol=paho.MQTTv5 if protocol == "5" else paho.MQTTv311,
        )
        self.client.reconnect_delay_set(1, 1)
        if credentials:
            self.client.username_pw_set(*credentials)
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = self._on_subscribe
        self.client.on_message = self._on_message
        self.client.connect(HOST, port, keepalive=60)

    def __enter__(self) -> Self:
        """Subscribed when this returns."""
        self.client.loop_start()
        self.wait_for(lambda: self.subscriptions)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def so_far(self) -> Any:
        return [(message.topic, message.payload[:60], message.retain) for message in self.messages]

    # what came

    def on(self, topic: str) -> list[Received]:
        """What came on this topic; a filter with wildcards may stand for several."""
        return [m for m in self.messages if paho.topic_matches_sub(topic, m.topic)]

    def payloads(self, topic: str) -> list[bytes]:
        return [message.payload for message in self.on(topic)]

    def wait_for_message(self, topic: str, payload: bytes | None = None, *, count: int = 1) -> Received:
        """The message that made it `count` on this topic (with this payload)."""
        return self.wait_for(  # type: ignore[no-any-return]
            lambda: next(
                iter([m for m in self.on(topic) if payload is None or m.payload == payload][count - 1 :]),
                None,
            )
        )

    def catch_up(self) -> None:
        """Until all that was published before this has come: a marker of our own came behind it."""
        self._markers += 1
        mark = f"{self._name}:{self._markers}".encode()
        self.client.publish("marker/subscriber", mark, qos=1)
        self.wait_for_message("marker/subscriber", mark)

    def ask_until(self, holds: Callable[[], Any]) -> None:
        """Subscribe anew every few seconds, to get what is retained once more, until this holds."""
        for _ in range(round(PATIENCE / ASK_AGAIN) - 1):
            with contextlib.suppress(AssertionError):
                self.wait_for(holds, ASK_AGAIN)
                return
            self._subscribe()
        self.wait_for(holds, ASK_AGAIN)

    def forget(self) -> None:
        with self.changing():
            self.messages.clear()

    def _subscribe(self) -> None:
        self.client.subscribe([(topic, self._qos) for topic in self._topics])

    # what paho calls

    def _on_connect(self, _: Any, __: Any, ___: Any, reason: Any, ____: Any) -> None:
        assert not reason.is_failure, reason
        self._subscribe()

    def _on_subscribe(self, *_: Any) -> None:
        with self.changing():
            self.subscriptions += 1

    def _on_message(self, _: Any, __: Any, message: Any) -> None:
        properties = message.properties.json() if message.properties is not None else {}
        received = Received(message.topic, bytes(message.payload), message.retain, properties)
        with self.changing():
            self.messages.append(received)


def publish(port: int, topic: str, payload: bytes, *, retain: bool = False, protocol: str = "3.1.1") -> None:
    """Publish once as somebody else would; acknowledged when this returns."""
    client = paho.Client(
        CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5 if protocol == "5" else paho.MQTTv311, client_id=""
    )
    client.connect(HOST, port)
    client.loop_start()
    try:
        client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(PATIENCE)
    finally:
        client.disconnect()
        client.loop_stop()


# --- peers that misbehave ---------------------------------------------------------------------------------------------


class Peer(Watched):
    """Something that listens, and does with each connection what a test says; not a broker.

    Args:
        treat: Gets each connection, on a thread of its own; the connection is closed when it returns.
    """

    def __init__(self, treat: Callable[[socket.socket], None]) -> None:
        super().__init__()
        self._treat = treat
        self._listener = socket.create_server((HOST, 0))
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.connections = 0

    def __enter__(self) -> Self:
        thread = threading.Thread(target=self._accept, daemon=True)
        self._threads.append(thread)
        thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone does not wake an accept() in another thread.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def url(self, scheme: str = "mqtt") -> BrokerUrl:
        return BrokerUrl(scheme, HOST, self.port, "/mqtt" if scheme in ("ws", "wss") else "")

    def cut(self) -> None:
        """End all connections."""
        for sock in list(self._open):
            _hang_up(sock)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            with self.changing():
                self.connections += 1
                self._open.add(sock)
                self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            self._treat(sock)
        with self.changing():
            self._open.discard(sock)


def _hang_up(sock: socket.socket) -> None:
    """Wakes whoever reads from it, unlike close()."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def read_packet(sock: socket.socket) -> bytes:
    """One MQTT packet, fixed header included; empty at the end (MQTT 5.0, section 2.1)."""
    head = _exactly(sock, 1)
    if not head:
        return b""
    length, shift = 0, 0
    while True:
        byte = _exactly(sock, 1)
        if not byte:
            return b""
        head += byte
        length |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            break
    body = _exactly(sock, length)
    return head + body if len(body) == length else b""


def _exactly(sock: socket.socket, count: int) -> bytes:
    got = bytearray()
    while len(got) < count:
        part = sock.recv(count - len(got))
        if not part:
            return b""
        got += part
    return bytes(got)


CONNACK_5 = bytes.fromhex("20 03 00 00 00")
CONNACK_311 = bytes.fromhex("20 02 00 00")


@dataclass(eq=False)
class Publication:
    """A PUBLISH that passed a tap."""

    connection: int
    topic: str
    payload: bytes
    retain: bool
    dup: bool
    number: int
    forwarded: bool = False
    acknowledged: bool = False

    @property
    def event_id(self) -> str | None:
        """Of the update whose JSON it carries."""
        start = self.payload.find(b'"event_id":"')
        return self.payload[start + 12 : start + 44].decode() if start >= 0 else None


class Tap(Watched):
    """Stands between the bridge and a broker, notes what is published and acknowledged, and can spoil it.

    Args:
        port: The broker's.

    Attributes:
        published: Every PUBLISH that the bridge sent, in order, over all connections.
        takes: Whether a publication is passed on; where not, both sides are hung up.
        acknowledges: Whether the broker's PUBACK for a publication is passed on.
        swallows: Whether a publication is acknowledged and thrown away.
    """

    def __init__(self, port: int) -> None:
        super().__init__()
        self._target = port
        self.published: list[Publication] = []
        self.takes: Callable[[Publication], bool] = lambda _: True
        self.acknowledges: Callable[[Publication], bool] = lambda _: True
        self.swallows: Callable[[Publication], bool] = lambda _: False
        self._peer = Peer(self._serve)
        self._upstream: set[socket.socket] = set()

    def __enter__(self) -> Self:
        self._peer.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._peer.__exit__()

    @property
    def port(self) -> int:
        return self._peer.port

    @property
    def connections(self) -> int:
        return self._peer.connections

    def url(self) -> BrokerUrl:
        return self._peer.url()

    def cut(self) -> None:
        """End all connections that run through here."""
        for sock in list(self._upstream):
            _hang_up(sock)
        self._peer.cut()

    def on(self, topic: str) -> list[Publication]:
        return [p for p in self.published if paho.topic_matches_sub(topic, p.topic)]

    def so_far(self) -> Any:
        return [(p.connection, p.topic, p.payload[:60], p.forwarded, p.acknowledged) for p in self.published]

    def _serve(self, down: socket.socket) -> None:
        connection = self._peer.connections
        with socket.create_connection((HOST, self._target), timeout=PATIENCE) as up:
            up.settimeout(None)
            self._upstream.add(up)
            state = _Passage()
            back = threading.Thread(target=self._pass_back, args=(up, down, state), daemon=True)
            back.start()
            try:
                self._pass_on(down, up, connection, state)
            finally:
                _hang_up(up)
                _hang_up(down)
                back.join(PATIENCE)
                self._upstream.discard(up)

    def _pass_on(self, down: socket.socket, up: socket.socket, connection: int, state: _Passage) -> None:
        """Bridge to broker."""
        while packet := read_packet(down):
            kind = packet[0] >> 4
            if kind == 1:  # CONNECT: its protocol level tells how a PUBLISH looks
                state.level = packet[_body_at(packet) + 6]
            if kind == 3:
                publication = _publication(packet, connection, state.level)
                state.in_flight[publication.number] = publication
                taken = self.takes(publication)
                swallowed = taken and self.swallows(publication)
                publication.forwarded = taken and not swallowed
                with self.changing():
                    self.published.append(publication)
                if not taken:
                    return
                if swallowed:
                    down.sendall(b"\x40\x02" + publication.number.to_bytes(2, "big"))
                    continue
            up.sendall(packet)

    def _pass_back(self, up: socket.socket, down: socket.socket, state: _Passage) -> None:
        """Broker to bridge."""
        with contextlib.suppress(OSError):
            while packet := read_packet(up):
                if packet[0] >> 4 == 4:
                    body = _body_at(packet)
                    publication = state.in_flight[int.from_bytes(packet[body : body + 2], "big")]
                    if not self.acknowledges(publication):
                        continue
                    # Noted first: whoever acts on it in the bridge must find it noted here.
                    with self.changing():
                        publication.acknowledged = True
                down.sendall(packet)
        _hang_up(down)


@dataclass
class _Passage:
    level: int = 4
    in_flight: dict[int, Publication] = dataclasses.field(default_factory=dict)


def _body_at(packet: bytes) -> int:
    """Where the variable header begins."""
    at = 1
    while packet[at] & 0x80:
        at += 1
    return at + 1


def _publication(packet: bytes, connection: int, level: int) -> Publication:
    at = _body_at(packet)
    length = int.from_bytes(packet[at : at + 2], "big")
    topic = packet[at + 2 : at + 2 + length].decode()
    at += 2 + length
    number = 0
    if packet[0] & 0x06:
        number = int.from_bytes(packet[at : at + 2], "big")
        at += 2
    if level >= 5:
        properties = Properties(PacketTypes.PUBLISH)
        _, size = properties.unpack(packet[at:])
        at += size
    return Publication(connection, topic, packet[at:], bool(packet[0] & 1), bool(packet[0] & 8), number)


# --- a cluster --------------------------------------------------------------------------------------------------------


class NatsCluster(Watched):
    """Three nats-servers with MQTT that keep everything three times; each can be killed and come back.

    Args:
        program: The nats-server.
        folder: Where they keep their data.
    """

    SIZE = 3

    def __init__(self, program: Path, folder: Path) -> None:
        super().__init__()
        self._program = program
        self._folder = folder
        self.ports = [free_port() for _ in range(self.SIZE)]
        self._routes = [free_port() for _ in range(self.SIZE)]
        self.said: list[list[str]] = [[] for _ in range(self.SIZE)]
        self._processes: list[subprocess.Popen[str] | None] = [None] * self.SIZE

    def __enter__(self) -> Self:
        for number in range(self.SIZE):
            self.start(number)
        self.await_session(*self.ports)
        return self

    def __exit__(self, *_: object) -> None:
        for number in range(self.SIZE):
            self.kill(number)

    @property
    def urls(self) -> tuple[BrokerUrl, ...]:
        return tuple(BrokerUrl("mqtt", HOST, port) for port in self.ports)

    def start(self, number: int) -> None:
        """Start a node; it listens when this returns, and serves clients once it has found the others."""
        self.said[number] = []
        process = subprocess.Popen(
            [str(self._program), "-c", str(self._configure(number))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._processes[number] = process
        threading.Thread(target=self._read, args=(number, process), daemon=True).start()
        self.wait_for(lambda: any("Server is ready" in line for line in self.said[number]))

    def await_session(self, *ports: int) -> None:
        """Until these nodes take a publication, for which a majority must have found itself."""
        for port in ports:
            publish(port, "marker/cluster", b"up")

    def kill(self, number: int) -> None:
        """End a node as a power cut would."""
        process, self._processes[number] = self._processes[number], None
        if process is not None:
            process.kill()
            process.wait(PATIENCE)

    def forget(self, number: int) -> None:
        """Lose all that a node kept; only while it is killed."""
        shutil.rmtree(self._folder / f"n{number}", ignore_errors=True)

    def _read(self, number: int, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                with self.changing():
                    self.said[number].append(line.rstrip())

    def _configure(self, number: int) -> Path:
        routes = ", ".join(f"nats-route://{HOST}:{port}" for port in self._routes)
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"n{number}.conf"
        file.write_text(
            f"server_name: n{number}\n"
            f"listen: {HOST}:-1\n"
            "ping_interval: 1\n"  # seconds; or a node that froze is believed in for minutes
            f'jetstream {{store_dir: "{self._folder}/n{number}", sync_interval: always}}\n'
            f"cluster {{name: home, listen: {HOST}:{self._routes[number]}, routes: [{routes}], ping_interval: 1}}\n"
            f"mqtt {{listen: {HOST}:{self.ports[number]}, stream_replicas: 3}}\n"
        )
        return file
