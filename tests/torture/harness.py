"""What the campaigns share: a bridge as a process, a broker as a process, a load, and an independent subscriber.

Everything runs on loopback and free ports, is bounded, and is ended by its process id.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

if TYPE_CHECKING:
    from bridge.journal.sqlite import SqliteJournal

#: Seconds that anything may take before a campaign gives up.
PATIENCE = 60.0


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(true: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Wait for a condition; AssertionError with `what` if it does not come."""
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, f"not within {patience:.0f} s: {what}"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Process ids of the children of a process."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in task.read_text().split()]
    return found


def command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    return ""


class Bridge:
    """The bridge as its user runs it: one process with its children, settings from the environment.

    Args:
        folder: Its state; survives a restart.
        broker: The port of a broker on loopback; None for the embedded one.
        settings: More settings, by their dotted name.
        wrapper: A command to run it under, e.g. strace.
    """

    #: What Python runs.
    program: tuple[str, ...] = ("-m", "bridge", "run")

    def __init__(
        self,
        folder: Path,
        broker: int | None,
        *,
        settings: dict[str, str] | None = None,
        wrapper: list[str] | None = None,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = folder / "bridge.log"
        self._wrapper = wrapper or []
        self._settings = {
            "webhook.listen": f"127.0.0.1:{self.port}",
            "mqtt.url": f"mqtt://127.0.0.1:{broker}" if broker else "embedded",
            "mqtt.keepalive": "5s",
            "homeassistant.discovery": "false",
            "mqtt.embedded.listen": f"127.0.0.1:{free_port()}",
            "log.level": "info",
            **(settings or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    @property
    def state(self) -> Path:
        return self.folder / "state" / "whatsapp2mqtt"

    @property
    def environment(self) -> dict[str, str]:
        mine = {f"WHATSAPP2MQTT_{name.upper().replace('.', '__')}": value for name, value in self._settings.items()}
        return {**os.environ, **mine, "XDG_STATE_HOME": str(self.folder / "state"), "PYTHONUNBUFFERED": "1"}

    def start(self, *, wait: bool = True) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._wrapper, sys.executable, *self.program], env=self.environment, stdout=log, stderr=log
            )
        self.starts += 1
        if wait:
            wait_until(self.answers, f"the bridge answers\n{self.tail()}")
        return self

    def answers(self) -> bool:
        """Whether a receiver answers, whatever it says; AssertionError if the process ended instead.

        That a connection is taken says less: the main process listens long before it has a receiver.
        """
        assert self.process is not None
        assert self.process.poll() is None, f"the bridge ended by itself: {self.process.returncode}\n{self.tail()}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
        try:
            connection.request("GET", "/")
            return bool(connection.getresponse().status)
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def receiver(self) -> int | None:
        """Process id of the receiver, or None while there is none."""
        assert self.process is not None
        for child in children(self.process.pid):
            if "spawn_main" in command_line(child):
                return child
        return None

    def kill_receiver(self) -> None:
        victim = self.receiver()
        if victim is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)

    def kill(self) -> None:
        """kill -9 of the main process; its children must end by themselves."""
        assert self.process is not None
        family = children(self.process.pid)
        self.process.kill()
        self.process.wait()
        wait_until(lambda: not any(_runs(pid) for pid in family), "the children end with their parent", 15)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(20)

    def end(self) -> None:
        """For clean-up: whatever state it is in."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()

    def post(self, body: dict[str, Any], timeout: float = 10) -> int:
        """The answer's status; 0 if there was none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("POST", "/webhook", json.dumps(body).encode(), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def journal(self) -> SqliteJournal:
        """Its journal, to be looked into; opened by `with`."""
        from bridge.journal.sqlite import SqliteJournal

        return SqliteJournal(self.state / "journal.db", durable=False)

    def backlog(self) -> int:
        """Updates that wait to be settled, from the journal itself."""
        with self.journal() as journal:
            return journal.backlog()

    def tail(self, lines: int = 15) -> str:
        """The end of its log, for an assertion's message."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class Mosquitto:
    """A mosquitto on a port of its own.

    Args:
        folder: Its configuration and data.
        durable: Whether it writes retained messages down at each change; else it forgets them when killed.
        extra: More lines of configuration.
    """

    def __init__(self, folder: Path, *, durable: bool = False, extra: str = "") -> None:
        self.folder = folder
        self.port = free_port()
        self.durable = durable
        self.extra = extra
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        self.folder.mkdir(parents=True, exist_ok=True)
        saving = "autosave_interval 1\nautosave_on_changes true\n" if self.durable else ""
        configuration = self.folder / "mosquitto.conf"
        configuration.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nuser root\n"
            f"persistence {'true' if self.durable else 'false'}\npersistence_location {self.folder}/\n"
            f"{saving}{self.extra}\n"
        )
        with (self.folder / "mosquitto.log").open("ab") as log:
            self.process = subprocess.Popen([program, "-c", str(configuration)], stdout=log, stderr=log)
        wait_until(self.answers, "mosquitto answers")
        return self

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()


class Subscriber:
    """An independent witness: what any client sees below a base topic. Reconnects by itself."""

    def __init__(self, port: int, base: str = "whatsapp") -> None:
        self.events: Counter[str] = Counter()  # by event_id, on event topics
        self.states: dict[str, dict[str, Any]] = {}  # the last content of each other topic; cleared ones are gone
        self.retained: dict[str, dict[str, Any]] = {}  # of those, what came as retained since the last connect
        self.seen: set[str] = set()  # message ids of all events
        self.messages = 0
        self._base = base
        self._port = port
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=f"witness-{os.getpid()}-{id(self)}", clean_session=False
        )
        client.on_connect = self._connected
        client.on_message = self._message
        client.reconnect_delay_set(1, 1)
        self._client = client
        self.subscribed = threading.Event()
        client.on_subscribe = lambda *_: self.subscribed.set()

    def __enter__(self) -> Self:
        self._client.connect_async("127.0.0.1", self._port, keepalive=10)
        self._client.loop_start()
        assert self.subscribed.wait(20), "the witness subscribes"
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _connected(self, client: paho.Client, *_: object) -> None:
        self.retained = {}
        client.subscribe(f"{self._base}/#", 1)

    def _message(self, _: object, __: object, message: paho.MQTTMessage) -> None:
        self.messages += 1
        topic = message.topic.removeprefix(f"{self._base}/")
        if not message.payload:
            self.states.pop(topic, None)
            self.retained.pop(topic, None)
            return
        try:
            content = json.loads(message.payload)
        except ValueError:
            content = {"text": message.payload.decode("utf-8", "replace")}
        if topic.startswith("event/"):
            self.events[content["event_id"]] += 1
            self.seen.add(content["message_id"])
        else:
            self.states[topic] = content
            if message.retain:
                self.retained[topic] = content


def retained_now(port: int, base: str = "whatsapp", patience: float = 30) -> dict[str, dict[str, Any]]:
    """What a client that subscribes now is given as retained."""
    with Subscriber(port, base) as fresh:
        last, since = -1, time.monotonic()
        deadline = since + patience
        # No more for half a second: that was all.
        while time.monotonic() < deadline:
            if fresh.messages != last:
                last, since = fresh.messages, time.monotonic()
            elif time.monotonic() - since > 0.5:
                break
            time.sleep(0.02)
        return dict(fresh.retained)


def status(message_id: str, word: str, timestamp: int | None = None) -> dict[str, Any]:
    """A callback with one status."""
    at = int(time.time()) if timestamp is None else timestamp
    return {"statuses": [{"id": message_id, "status": word, "timestamp": str(at), "recipient_id": "15550001234"}]}


def click(payload: str, message_id: str, timestamp: int | None = None) -> dict[str, Any]:
    """A callback with one click."""
    at = int(time.time()) if timestamp is None else timestamp
    button = {"payload": payload, "text": payload}
    return {
        "messages": [
            {"type": "button", "id": message_id, "from": "15550001234", "timestamp": str(at), "button": button}
        ]
    }


class Load:
    """Posts from several threads without pause, and keeps the ledger of what was answered 200.

    Args:
        bridge: Where to post.
        seed: Of the mix.
        threads: How many.
    """

    def __init__(self, bridge: Bridge, seed: int, threads: int = 4) -> None:
        self._bridge = bridge
        self._random = random.Random(seed)
        self._count = itertools.count()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        self._lock = threading.Lock()
        self.accepted: dict[str, str] = {}  # message id -> last status or payload that was answered 200
        self.refused = 0
        self.false_answers: Counter[int] = Counter()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self) -> None:
        while not self._stop.is_set():
            number = next(self._count)
            name = f"m{number}"
            body = click(f"b{number % 20}", name) if number % 5 == 0 else status(name, "sent")
            answer = self._bridge.post(body)
            with self._lock:
                if answer == 200:
                    self.accepted[name] = body.get("messages", body.get("statuses"))[0].get("status", "click")
                else:
                    self.refused += 1
                    if answer not in (0, 503):
                        self.false_answers[answer] += 1
            if answer != 200:
                time.sleep(0.02)


def event_id(body: dict[str, Any]) -> str:
    """The identity that the bridge gives to the only update of a body."""
    from bridge.payload import parse

    (update,) = parse(json.dumps(body).encode()).updates
    return update.event_id


@contextlib.contextmanager
def ended(*things: Any) -> Iterator[None]:
    """End these in any case, the last first."""
    try:
        yield
    finally:
        for thing in reversed(things):
            thing.end()
