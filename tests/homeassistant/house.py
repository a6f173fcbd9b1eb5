"""A real Home Assistant as a process, watched and asked through MQTT."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import yaml

from tests.torture.harness import free_port, wait_until

BLUEPRINTS = Path(__file__).parents[2] / "docs" / "home-assistant"

#: Seconds: the first start installs what Home Assistant wants.
START = 300.0

#: Answers `probe/ask` with what is there; the word before the JSON keeps it a text.
_ANSWER = """\
answer {% set found = namespace(list=[]) %}{% for entity in integration_entities('mqtt') %}\
{% set found.list = found.list + [{'entity': entity, 'state': states(entity), 'device': device_id(entity),\
 'device_name': device_attr(device_id(entity), 'name'), 'name': state_attr(entity, 'friendly_name'),\
 'event_type': state_attr(entity, 'event_type'), 'event_types': state_attr(entity, 'event_types'),\
 'title': state_attr(entity, 'title'), 'message_id': state_attr(entity, 'message_id')}] %}\
{% endfor %}{{ {'question': trigger.payload, 'entities': found.list} | to_json }}"""

PROBES: list[dict[str, Any]] = [
    {
        "id": "probe",
        "alias": "probe",
        "mode": "queued",
        "trigger": [{"platform": "mqtt", "topic": "probe/ask"}],
        "action": [{"service": "mqtt.publish", "data": {"topic": "probe/answer", "payload": _ANSWER}}],
    },
    {
        "id": "reload",
        "alias": "reload",
        "trigger": [{"platform": "mqtt", "topic": "probe/reload"}],
        "action": [{"service": "automation.reload"}],
    },
]


def fires(name: str, trigger: dict[str, Any]) -> dict[str, Any]:
    """An automation that says on `fired/<name>` each time it ran."""
    said = {"topic": f"fired/{name}", "payload": "fired by {{ trigger.platform }}"}
    return {
        "id": name,
        "alias": name,
        "mode": "queued",
        "max": 500,
        "trigger": [trigger],
        "action": [{"service": "mqtt.publish", "data": said}],
    }


def says(name: str, what: str = "done") -> list[dict[str, Any]]:
    """Actions for a blueprint that say on `fired/<name>` that they ran."""
    return [{"service": "mqtt.publish", "data": {"topic": f"fired/{name}", "payload": f"said {what}"}}]


class HomeAssistant:
    """Home Assistant on a port of its own.

    Args:
        folder: Its configuration; survives a restart.
        broker: Port on loopback.
        ask: Publishes a text and gives back what came on `probe/answer`.
    """

    def __init__(self, folder: Path, broker: int) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = folder / "hass.log"
        self.process: subprocess.Popen[bytes] | None = None
        (folder / ".storage").mkdir(parents=True)
        blueprints = folder / "blueprints" / "automation" / "whatsapp"
        blueprints.mkdir(parents=True)
        for blueprint in BLUEPRINTS.glob("*.yaml"):
            shutil.copy(blueprint, blueprints)
        here = f"http://127.0.0.1:{self.port}"
        place = {"latitude": 0, "longitude": 0, "elevation": 0, "country": "NL", "currency": "EUR"}
        configuration = {
            "homeassistant": {
                "name": "Test",
                "time_zone": "UTC",
                "unit_system": "metric",
                "internal_url": here,
                "external_url": here,
                **place,
            },
            "http": {"server_host": "127.0.0.1", "server_port": self.port},
            "logger": {"default": "warning"},
        }
        written = yaml.safe_dump(configuration) + "automation: !include automations.yaml\n"
        (folder / "configuration.yaml").write_text(written)
        entry = {
            "entry_id": "0123456789abcdef0123456789abcdef",
            "version": 1,
            "minor_version": 1,
            "domain": "mqtt",
            "title": "MQTT",
            "data": {"broker": "127.0.0.1", "port": broker, "discovery": True},
            "options": {},
            "pref_disable_new_entities": False,
            "pref_disable_polling": False,
            "source": "user",
            "unique_id": None,
            "disabled_by": None,
        }
        entries = {"version": 1, "minor_version": 1, "key": "core.config_entries", "data": {"entries": [entry]}}
        (folder / ".storage" / "core.config_entries").write_text(json.dumps(entries))
        self.write([])

    def write(self, automations: list[dict[str, Any]]) -> None:
        """What its editor would write down."""
        (self.folder / "automations.yaml").write_text(yaml.safe_dump([*PROBES, *automations], allow_unicode=True))

    def start(self) -> None:
        program = os.environ["HOME_ASSISTANT_COMMAND"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([program, "-c", str(self.folder)], stdout=log, stderr=log)

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def complaints(self) -> list[str]:
        """What it found wrong, but for a broker that was away and words about its own age."""
        expected = ("Failed to connect to MQTT", "Disconnected from MQTT", "Python version", "not been tested")
        found: list[str] = []
        with contextlib.suppress(OSError):
            found = self.log.read_text(errors="replace").splitlines()
        return [
            line
            for line in found
            if (" ERROR " in line or " WARNING " in line) and not any(words in line for words in expected)
        ]


def asked(publish: Any, answers: Any, patience: float = 30.0) -> list[dict[str, Any]]:
    """What Home Assistant has: its MQTT entities.

    Args:
        publish: Publishes a payload on a topic.
        answers: Gives the payloads that came on `probe/answer` so far.
        patience: Seconds.
    """
    question = f"q{time.monotonic_ns()}"
    asked_at = 0.0
    found: list[list[dict[str, Any]]] = []

    def answered() -> bool:
        nonlocal asked_at
        # It may still be starting, and then does not hear the question.
        if time.monotonic() - asked_at > 3:
            publish("probe/ask", question)
            asked_at = time.monotonic()
        for payload in answers():
            text = payload.decode().removeprefix("answer ")
            answer = json.loads(text)
            if answer["question"] == question:
                found.append(answer["entities"])
                return True
        return False

    wait_until(answered, "Home Assistant answers", patience)
    return found[0]
