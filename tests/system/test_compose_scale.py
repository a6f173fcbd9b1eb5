"""compose.scale.yaml, as far as it goes without Docker: its very scripts, configurations and environments.

Each container is a process with an address of 127.0.0.0/8 for its name, and brokers and haproxy have a root that cannot
be written; PostgreSQL is Debian's.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import itertools
import json
import random
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as paho
import pytest
import yaml
from paho.mqtt.enums import CallbackAPIVersion
from werkzeug.security import generate_password_hash

from bridge.broker import find_program
from bridge.service import PUBLISHER_PATIENCE, RECEIVER_PATIENCE
from tests.postgres import Server, running
from tests.system.containers import start, unescaped
from tests.system.support import (
    COMMAND,
    PATIENCE,
    Answer,
    Heard,
    Program,
    Subscriber,
    clean_environment,
    program,
    status,
)

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "compose.scale.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
BRIDGES, NODES = ("bridge-1", "bridge-2", "bridge-3"), ("nats-1", "nats-2", "nats-3")
PREFIX = "WHATSAPP2MQTT_"


class House:
    """All that compose.scale.yaml starts, here.

    Args:
        folder: For the containers' folders.
        database: The PostgreSQL.
    """

    def __init__(self, folder: Path, database: Server) -> None:
        self.folder = folder
        self._database = database
        net = f"127.{random.randint(64, 250)}.{random.randint(1, 250)}"
        self.address = {name: f"{net}.{number}" for number, name in enumerate(SERVICES, 1)}
        self.secrets = {name: secrets.token_urlsafe(24) for name in COMPOSE["secrets"]}
        # One that NATS could take for a number.
        self.secrets["homeassistant_password"] = f"12{secrets.randbelow(10**8)}"
        self.secrets["page_hash"] = generate_password_hash(secrets.token_urlsafe(24), method="scrypt")
        (folder / "secrets").mkdir()
        for name, value in self.secrets.items():
            (folder / "secrets" / name).write_text(f"{value}\n")
        database.execute(f"CREATE ROLE whatsapp2mqtt LOGIN PASSWORD '{self.secrets['database_password']}'")
        database.ask_password_of("whatsapp2mqtt")
        database.execute("CREATE DATABASE whatsapp2mqtt OWNER whatsapp2mqtt ENCODING 'UTF8' TEMPLATE template0")
        self._running: dict[str, Program] = {}

    def __enter__(self) -> Self:
        return self

    def up(self) -> None:
        """Start all of it, and wait until it takes callbacks and publishes them."""
        for name in SERVICES:
            if name != "postgresql":
                self.start(name)
        for name in (*BRIDGES, "haproxy"):
            self.wait_healthy(name)
        for name in BRIDGES:
            self.program(name).wait_log("connected")

    def __exit__(self, *_: object) -> None:
        for one in self._running.values():
            one.__exit__()

    def here(self, text: str, service: str) -> str:
        """What is said to a container, for its process here."""
        text = re.sub(r"\b((?:bridge|nats)-\d):", lambda found: f"{self.address[found[1]]}:", text)
        # Where it listens; not the name server of Docker's.
        text = re.sub(r"(?<![\d.])(0\.0\.0\.0|127\.0\.0\.1)(?=[:/]\d)", self.address[service], text)
        text = text.replace("bind :", f"bind {self.address[service]}:")
        return text.replace("@postgresql/", f"@127.0.0.1:{self._database.port}/")

    def start(self, name: str) -> None:
        """Start a container; it need not be ready when this returns."""
        here = functools.partial(self.here, service=name)
        if name in BRIDGES:
            self._running[name] = self._start_bridge(name)
        elif name in NODES:
            node = SERVICES[name]
            nats = find_program()
            self._running[name] = start(node, self.folder, here, user=0, program_of=nats, HOSTNAME=node["hostname"])
        else:
            haproxy = Path(program("haproxy"))
            self._running[name] = start(SERVICES[name], self.folder, here, user=99, program_of=haproxy)

    def _start_bridge(self, name: str) -> Program:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        secrets = str(self.folder / "secrets")
        environment = {
            key: self.here(unescaped(value), name).replace("/run/secrets", secrets)
            for key, value in SERVICES[name]["environment"].items()
        }
        # What its host is called, and what the image says.
        environment[f"{PREFIX}JOURNAL__REPLICA"] = SERVICES[name]["hostname"]
        environment[f"{PREFIX}WEBHOOK__LISTEN"] = self.here("0.0.0.0:8080", name)
        environment[f"{PREFIX}WEBHOOK__DRAIN"] = "4s"  # haproxy needs two; the file's own is for busy machines
        return Program([str(COMMAND), "run"], folder, clean_environment(folder) | environment)

    def program(self, name: str) -> Program:
        return self._running[name]

    def is_healthy(self, name: str) -> bool:
        """What the file's own health check says."""
        check = SERVICES[name]["healthcheck"]["test"]
        assert check[0] == "CMD"
        command = [self.here(unescaped(word), name) for word in check[1:]]
        command[0] = {"python3": sys.executable}.get(command[0], command[0])
        return subprocess.run(command, check=False, capture_output=True, timeout=PATIENCE).returncode == 0

    def wait_healthy(self, name: str, *, healthy: bool = True) -> None:
        """As `docker compose up --wait` does."""
        for _ in range(300):
            if self.is_healthy(name) is healthy:
                return
            assert not self.program(name).has_ended, self.program(name).said
            threading.Event().wait(0.1)
        raise AssertionError(self.program(name).said)

    def post(self, body: object, path: str | None = None) -> Answer:
        """What haproxy answers."""
        connection = http.client.HTTPConnection(self.address["haproxy"], 8080, timeout=PATIENCE)
        try:
            where = f"/webhook/{self.secrets['path_token']}" if path is None else path
            connection.request("POST", where, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return Answer(answer.status, answer.read().decode())
        finally:
            connection.close()

    def home_assistant(self, topics: str = "whatsapp/#", at: str = "haproxy", qos: int = 1) -> Subscriber:
        """Home Assistant's user; it may read all of these topics."""
        password = self.secrets["homeassistant_password"]
        return Subscriber(1883, topics, "homeassistant", password, host=self.address[at], qos=qos)

    def retains(self, topic: str, says: Callable[[Heard], object], nodes: Sequence[str] = NODES) -> bool:
        """Whether one of these nodes has this retained: NATS lets the others lag behind (docs/clusters.md).

        With QoS 0, as Home Assistant asks: with 1 it takes NATS seconds, over and over, where a node is away.
        """
        for node in itertools.islice(itertools.cycle(nodes), 30):
            with self.home_assistant(topic, at=node, qos=0) as subscriber, contextlib.suppress(AssertionError):
                subscriber.wait_until(lambda heard: any(says(one) for one in heard), patience=3)
                return True
        return False


class Senders:
    """Threads that post, each status once, until told to stop; some keep their connections, some do not."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._stop = threading.Event()
        self._numbers = itertools.count()
        self._news = threading.Condition()
        self.answers: dict[str, Answer] = {}
        self._threads = [threading.Thread(target=self._send) for _ in range(4)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, more: int) -> None:
        """Until so many more were answered."""
        with self._news:
            wanted = len(self.answers) + more
            assert self._news.wait_for(lambda: len(self.answers) >= wanted, PATIENCE), "callbacks are answered no more"

    def _send(self) -> None:
        while not self._stop.wait(0.05):
            message = f"m{next(self._numbers)}"
            try:
                answer = self._house.post(status(message))
            except (OSError, http.client.HTTPException) as error:
                answer = Answer(0, repr(error))
            with self._news:
                self.answers[message] = answer
                self._news.notify_all()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    program("haproxy")
    with running() as database, House(tmp_path_factory.mktemp("house"), database) as house:
        house.up()
        yield house


def test_callbacks_get_to_home_assistant_which_may_do_only_what_it_must(house: House) -> None:
    """Copied as it is, it must run; and whoever gets at Home Assistant's password must not be able to forge a click."""
    with house.home_assistant() as subscriber, house.home_assistant("homeassistant/#") as other:
        for number in range(6):
            assert house.post(status(f"first{number}")).status == 200
        for number in range(6):
            subscriber.wait(f"whatsapp/first{number}/status")
        for name in BRIDGES:
            assert house.retains(f"whatsapp/bridge/replica/{name}/state", lambda one: one.payload == "online"), name
        other.wait_until(lambda heard: any(one.topic.endswith("/config") for one in heard))
        for topic in ("whatsapp/event/button/open_gate", "$MQTT/msgs/whatsapp/event/button/open_gate"):
            with house.home_assistant() as forger:
                forger.publish(topic, "{}")
        with house.home_assistant() as client:
            client.publish("homeassistant/status", "online")
        other.wait("homeassistant/status")
        assert not [one for one in subscriber.heard if "open_gate" in one.topic]


@pytest.mark.parametrize("password", [None, "a-wrong-password"])
def test_who_has_no_password_is_let_in_nowhere(house: House, password: str | None) -> None:
    """Port 1883 is open to the home network."""
    refused: list[bool] = []
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.username_pw_set("homeassistant" if password else None, password)
    client.on_connect = lambda _, __, ___, code, ____: refused.append(code.is_failure)
    client.connect(house.address["haproxy"], 1883)
    while not refused:
        client.loop(1)
    client.disconnect()
    assert refused == [True]


def test_nothing_but_the_webhook_comes_through(house: House) -> None:
    """The page stands on the bridges' other port, and strangers call at this one."""
    for path in ("/", "/readyz", "/metrics", "/webhook/another", "/webhook/../metrics"):
        assert house.post(status("m"), path).status in (400, 404)


def test_what_is_restarted_or_killed_costs_no_callback(house: House) -> None:
    """That is all that three of each are good for."""
    with house.home_assistant("whatsapp/event/#", at="nats-3") as witness:
        with Senders(house) as senders:
            senders.wait_for(20)
            for name in BRIDGES:
                assert house.program(name).end() == 0
                house.start(name)
                house.wait_healthy(name)
                senders.wait_for(60)  # also of this one
            calm = set(senders.answers)
            witness.wait_until(lambda heard: calm <= {one.json["message_id"] for one in heard})
            counts = Counter(one.json["message_id"] for one in witness.heard)
            assert {message for message in calm if counts[message] != 1} == set()
            house.program("bridge-1").end(signal.SIGKILL)
            senders.wait_for(60)
            house.program("nats-1").end(signal.SIGKILL)
            senders.wait_for(60)
            house.start("bridge-1")
            house.wait_healthy("bridge-1")
            senders.wait_for(60)
        assert {answer.status for answer in senders.answers.values()} == {200}
        wanted = set(senders.answers)
        witness.wait_until(lambda heard: wanted <= {one.json["message_id"] for one in heard})
        assert house.post(status("the-last")).status == 200
        assert house.retains("whatsapp/the-last/status", lambda one: one.retain, NODES[1:])
        with house.home_assistant("whatsapp/bridge/state", qos=0) as late:  # by haproxy, at a node that lives
            late.wait("whatsapp/bridge/state")


def test_haproxy_is_not_well_while_it_has_no_bridge(house: House) -> None:
    """`up --wait` would say that all is ready, and the first callbacks would be refused."""
    house.wait_healthy("haproxy")
    for name in BRIDGES:
        house.program(name).end(signal.SIGKILL)
    house.wait_healthy("haproxy", healthy=False)
    assert house.post(status("m")).status == 503


def test_the_settings_are_safe_as_they_stand(tmp_path: Path) -> None:
    """With the real addresses: a bridge refuses a listener without a password, and a password in the clear."""
    for name, value in {
        **dict.fromkeys(COMPOSE["secrets"], "4cVJ2rmaLq5KkfQrR7Qq"),
        "page_hash": generate_password_hash("x" * 20, method="scrypt"),
    }.items():
        (tmp_path / name).write_text(value)
    settings = SERVICES["bridge-1"]["environment"]
    environment = {key: unescaped(value).replace("/run/secrets", str(tmp_path)) for key, value in settings.items()}
    image = {f"{PREFIX}WEBHOOK__LISTEN": "0.0.0.0:8080"}
    ended = subprocess.run(
        [COMMAND, "check"],
        env=clean_environment(tmp_path) | image | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "0.0.0.0:8081" in ended.stdout


def test_each_container_is_as_hard_as_it_can_be_and_the_bridges_are_alike() -> None:
    """A line that is lost here is seen by nobody."""
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges"], name
        assert service["restart"] == "unless-stopped", name
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"haproxy"}
    assert {one for service in SERVICES.values() for one in service.get("secrets", [])} == set(COMPOSE["secrets"])
    assert set(COMPOSE["networks"]) - {n for n, net in COMPOSE["networks"].items() if net.get("internal")} == {
        "outside"
    }
    assert [name for name, service in SERVICES.items() if "outside" in service["networks"]] == ["haproxy"]
    one, two, three = (SERVICES[name] for name in BRIDGES)
    assert [service["hostname"] for service in (one, two, three)] == list(BRIDGES)


def test_a_bridge_has_the_time_it_needs_to_stop() -> None:
    """Docker kills what takes longer: callbacks that were being answered then are lost to their sender."""
    for name in BRIDGES:
        service = SERVICES[name]
        drain = int(service["environment"][f"{PREFIX}WEBHOOK__DRAIN"].removesuffix("s"))
        needed = drain + RECEIVER_PATIENCE + PUBLISHER_PATIENCE
        assert int(service["stop_grace_period"].removesuffix("s")) > needed + 10


def test_a_command_at_the_head_makes_each_secret() -> None:
    """A file that is missing stops all of it, and each container says something else about it."""
    made = set(re.findall(r"secrets/(\w+)", TEXT.partition("services:")[0]))
    names = set(re.findall(r"for name in ([\w ]+);", TEXT)[0].split())
    assert set(COMPOSE["secrets"]) <= names | made
