"""compose.yaml, as far as it goes without Docker: its broker's script, configuration and ACL, and its environment."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
import yaml
from paho.mqtt.enums import CallbackAPIVersion

from tests.system.conftest import MakeBridge
from tests.system.containers import start, unescaped
from tests.system.support import Subscriber, free_port, program

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
BRIDGE, BROKER = COMPOSE["services"]["whatsapp2mqtt"], COMPOSE["services"]["mosquitto"]


class House:
    """The secrets, and a port in the place of 1883."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.secrets = {name: secrets.token_urlsafe(24) for name in COMPOSE["secrets"]}
        for name, value in self.secrets.items():
            file = folder / "secrets" / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"{value}\n")

    def here(self, text: str) -> str:
        """The port here."""
        return re.sub(r"\b1883\b", str(self.port), text)

    def client(self, username: str | None, password: str | None) -> Subscriber:
        return Subscriber(self.port, "#", username, password)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """With the broker running, as compose.yaml starts it."""
    house = House(tmp_path)
    broker = Path(program("mosquitto"))
    with start(BROKER, tmp_path, house.here, user=int(BROKER["user"].partition(":")[0]), program_of=broker) as running:
        running.wait_said(" running")
        yield house


def settings(house: House) -> dict[str, str]:
    """What compose.yaml tells the bridge."""
    prefix, secrets = "WHATSAPP2MQTT_", str(house.folder / "secrets")
    return {
        name.removeprefix(prefix).lower(): house.here(unescaped(value))
        .replace("/run/secrets", secrets)
        .replace("mosquitto:", "127.0.0.1:")
        for name, value in BRIDGE["environment"].items()
    }


def test_a_click_gets_to_home_assistant_and_each_may_do_only_what_it_must(
    house: House, make_bridge: MakeBridge
) -> None:
    """Copied as it is, it must run; and whoever gets at Home Assistant's password must not be able to forge a click."""
    bridge = make_bridge(**settings(house)).start()
    token = house.secrets["path_token"]
    with house.client("homeassistant", house.secrets["homeassistant_password"]) as subscriber:
        assert bridge.post({"statuses": [{"id": "m1", "status": "sent"}]}, f"/webhook/{token}").status == 200
        subscriber.wait("whatsapp/m1/status")
        subscriber.wait_until(lambda heard: any(one.topic.startswith("homeassistant/") for one in heard))
        # Denied is what is published nowhere: under MQTT 3.1.1 the broker acknowledges it all the same, or hangs up.
        with house.client("homeassistant", house.secrets["homeassistant_password"]) as forger:
            forger.publish("whatsapp/event/button/open_gate", "{}")
        with house.client("homeassistant", house.secrets["homeassistant_password"]) as client:
            client.publish("homeassistant/status", "online")
            subscriber.wait("homeassistant/status")
        assert not subscriber.on("whatsapp/event/button/open_gate")


@pytest.mark.parametrize("password", [None, "a-wrong-password"])
def test_who_has_no_password_is_let_in_nowhere(house: House, password: str | None) -> None:
    """Port 1883 is open to the home network."""
    refused: list[bool] = []
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.username_pw_set("homeassistant" if password else None, password)
    client.on_connect = lambda _, __, ___, code, ____: refused.append(code.is_failure)
    client.connect("127.0.0.1", house.port)
    while not refused:
        client.loop(1)
    client.disconnect()
    assert refused == [True]


def test_both_containers_are_as_hard_as_they_can_be() -> None:
    """A line that is lost here is seen by nobody."""
    for service in (BRIDGE, BROKER):
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges"]
    assert BRIDGE["ports"] == ["127.0.0.1:8080:8080"]
    assert BRIDGE["volumes"] == ["state:/data"]
    used = {*BRIDGE["secrets"], *BROKER["secrets"]}
    assert used == set(COMPOSE["secrets"])
