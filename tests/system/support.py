"""The installed command as a process, and a subscriber that shares no code with it."""

from __future__ import annotations

import http.client
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

COMMAND = Path(sys.executable).parent / "whatsapp2mqtt"

#: Seconds after which something that should have happened has not; never a measure of speed.
PATIENCE = 60.0
#: Seconds after which a subscriber asks again for what is retained: the embedded broker can leave out what is
#: published in the very moment of a subscription.
ASK_AGAIN = 3.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def program(name: str) -> str:
    """The path of a program that a test starts; without it the test is skipped, and fails in CI."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        reason = f"{name} is not installed; scripts/test installs it"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return found


def clean_environment(folder: Path, **settings: str) -> dict[str, str]:
    """This process' environment without what would steer a bridge, and with a state folder of its own.

    Args:
        folder: Where its state goes.
        settings: `webhook__listen="127.0.0.1:8080"` for WHATSAPP2MQTT_WEBHOOK__LISTEN.
    """
    ours = {"STATE_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}
    kept = {k: v for k, v in os.environ.items() if k not in ours and not k.startswith("WHATSAPP2MQTT_")}
    settings = {f"WHATSAPP2MQTT_{name.upper()}": value for name, value in settings.items()}
    return kept | {"XDG_STATE_HOME": str(folder / "state")} | settings


def wait_for_end(pids: Iterable[int]) -> None:
    """Until none of these processes runs, whoever started them."""
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            poller = select.poll()
            poller.register(handle, select.POLLIN)
            assert poller.poll(PATIENCE * 1000), f"process {pid} is still there: {command_line(pid)}"
        finally:
            os.close(handle)


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except FileNotFoundError:
        return ""


def children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


@dataclass
class Answer:
    status: int
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Program:
    """A running program; what it says is read as it comes, line by line.

    Args:
        command: The program and its arguments.
        folder: Its working directory.
        environment: All of it.
        pass_fds: Files of ours that it gets.
    """

    def __init__(
        self, command: Iterable[object], folder: Path, environment: dict[str, str], pass_fds: tuple[int, ...] = ()
    ) -> None:
        self.out: list[str] = []
        self.err: list[str] = []
        self._news = threading.Condition()
        self._reading = 2
        self._process = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            env=environment,
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(self._process.stdout, self.out)),
            threading.Thread(target=self._read, args=(self._process.stderr, self.err)),
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGKILL)

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        with stream:
            for line in stream:
                with self._news:
                    lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._reading -= 1
            self._news.notify_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def log(self) -> list[dict[str, Any]]:
        """What it logged, as JSON."""
        return [json.loads(line) for line in self.err if line.startswith("{")]

    @property
    def said(self) -> str:
        return "\n".join([*self.out, *self.err])

    def wait_until(self, holds: Callable[[], Any]) -> Any:
        """Until this returns something true of what was said; fails if the program ends before it."""
        with self._news:
            self._news.wait_for(lambda: holds() or not self._reading, PATIENCE)
            found = holds()
        assert found, f"it never said so, but:\n{self.said}"
        return found

    def wait_log(self, event: str, **keys: object) -> dict[str, Any]:
        """The first line of the log that says this."""
        wanted = {"event": event, **keys}.items()
        found: dict[str, Any] = self.wait_until(lambda: next((one for one in self.log if wanted <= one.items()), None))
        return found

    def wait_said(self, text: str) -> None:
        self.wait_until(lambda: text in self.said)

    def send_hangup(self) -> None:
        """Have it read its files anew."""
        self._process.send_signal(signal.SIGHUP)

    def wait(self) -> int:
        """Until it has ended and all that it said is read; its exit code."""
        code = self._process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        return code

    def end(self, with_signal: int = signal.SIGTERM) -> int:
        """Send a signal and wait; its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(with_signal)
        return self.wait()


class Bridge:
    """`whatsapp2mqtt run` on free ports, and the other commands with the same settings.

    Args:
        folder: Its state and its working directory.
        command: What is started instead of the installed command.
        settings: As in `clean_environment`.
    """

    def __init__(self, folder: Path, *, command: Iterable[object] = (), **settings: str) -> None:
        self.folder = folder
        self.webhook = free_port()
        self.broker = free_port()
        self.environment = clean_environment(
            folder,
            **{
                "webhook__listen": f"127.0.0.1:{self.webhook}",
                "mqtt__embedded__listen": f"127.0.0.1:{self.broker}",
                "admin__listen": "127.0.0.1:0",
                **settings,
            },
        )
        self.state = folder / "state" / "whatsapp2mqtt"
        self.command: list[object] = [*command] or [COMMAND, "run"]
        self.path = "/webhook"
        self.pass_fds: tuple[int, ...] = ()
        self._program: Program | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._program is not None:
            self._program.__exit__()

    @property
    def program(self) -> Program:
        assert self._program is not None, "not started"
        return self._program

    def start(self, *arguments: str, wait: bool = True) -> Self:
        """Start it, and wait until it says that it is ready and connected."""
        self._program = Program([*self.command, *arguments], self.folder, self.environment, self.pass_fds)
        if wait:
            self._program.wait_log("ready")
            self._program.wait_log("connected")
        return self

    @property
    def pid(self) -> int:
        return self.program.pid

    @property
    def receiver(self) -> int:
        """Process id of the receiver."""
        return next(pid for pid in children(self.pid) if "spawn_main" in command_line(pid))

    @property
    def nats(self) -> int:
        """Process id of the embedded broker."""
        return next(pid for pid in children(self.pid) if "nats-server" in command_line(pid))

    def post(self, body: object, path: str | None = None, headers: dict[str, str] | None = None) -> Answer:
        """Post to the webhook; a body that is no bytes is sent as JSON."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.webhook, timeout=PATIENCE)
        try:
            connection.request("POST", path or self.path, raw, {"Content-Type": "application/json"} | (headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, answer.read().decode())
        finally:
            connection.close()

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Another command with the same settings."""
        return subprocess.run(
            [str(part) for part in (COMMAND, *arguments)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def follow(self, *arguments: object) -> Program:
        """Another command that goes on until it is ended."""
        return Program([COMMAND, *arguments], self.folder, self.environment)

    def listen(self, topics: str = "whatsapp/#") -> Subscriber:
        return Subscriber(self.broker, topics)


@dataclass(frozen=True)
class Heard:
    topic: str
    payload: str
    retain: bool

    @property
    def json(self) -> Any:
        return json.loads(self.payload)


@dataclass
class Subscriber:
    """An MQTT client of its own; subscribed when `with` has entered."""

    port: int
    topics: str
    username: str | None = None
    password: str | None = None
    heard: list[Heard] = field(default_factory=list)
    host: str = "127.0.0.1"
    qos: int = 1

    def __post_init__(self) -> None:
        self._news = threading.Condition()
        self._subscribed = False
        self._client = client = paho.Client(CallbackAPIVersion.VERSION2)
        client.username_pw_set(self.username, self.password)
        client.on_connect = lambda *_: client.subscribe(self.topics, qos=self.qos)
        client.on_subscribe = lambda *_: self._note(None)
        client.on_message = lambda _, __, message: self._note(
            Heard(message.topic, message.payload.decode(), message.retain)
        )

    def __enter__(self) -> Self:
        self._client.connect(self.host, self.port)
        self._client.loop_start()
        with self._news:
            assert self._news.wait_for(lambda: self._subscribed, PATIENCE), "the broker never answered"
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, payload: str, *, retain: bool = False) -> None:
        """With QoS 1, and until it is acknowledged; a broker that does not allow it may hang up instead."""
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(PATIENCE)

    def _note(self, heard: Heard | None) -> None:
        with self._news:
            if heard is None:
                self._subscribed = True
            else:
                self.heard.append(heard)
            self._news.notify_all()

    def on(self, topic: str) -> list[Heard]:
        return [one for one in self.heard if one.topic == topic]

    def wait(self, topic: str, says: Callable[[Heard], object] = bool) -> Heard:
        """The first message on a topic of which `says` holds."""
        found: Heard = self.wait_until(lambda heard: next((x for x in heard if x.topic == topic and says(x)), None))
        return found

    def wait_until(self, holds: Callable[[list[Heard]], Any], *, patience: float = PATIENCE) -> Any:
        """Until this returns something true of everything heard."""
        with self._news:
            for _ in range(round(patience / ASK_AGAIN)):
                if found := self._news.wait_for(lambda: holds(self.heard), ASK_AGAIN):
                    return found
                self._client.subscribe(self.topics, qos=self.qos)
        raise AssertionError(f"not among the {len(self.heard)} heard, on {sorted({one.topic for one in self.heard})}")


def status(message_id: str, word: str = "sent", timestamp: int = 1_660_019_986, **more: object) -> dict[str, object]:
    """A callback with one status."""
    return {"statuses": [{"id": message_id, "status": word, "timestamp": str(timestamp), **more}]}
