"""The app (add-on) of Home Assistant, from its options to a click; in its container: scripts/test-image."""

from __future__ import annotations

import http.client
import json
import sys
from pathlib import Path

from tests.integration.brokers import Mosquitto
from tests.system.support import Program, Subscriber, clean_environment, free_port, program
from tests.unit.test_homeassistant_app import Answering

#: The app with the places of this test for those of a container; it stays the user that it is.
START = """
import functools, pathlib, sys
from bridge import homeassistant_app as app
options, settings, supervisor, webhook, page = sys.argv[1:]
app.OPTIONS, app.SETTINGS = pathlib.Path(options), pathlib.Path(settings)
app.GIVEN = {**app.GIVEN, "webhook.listen": webhook, "admin.listen": page, "admin.trusted_proxies": "127.0.0.1"}
app.Supervisor = functools.partial(app.Supervisor, url=supervisor, pause=0.0)
app._give_up_root = lambda state: None
sys.argv[1:] = []
app.main()
"""


def test_it_needs_nothing_but_a_broker_that_home_assistant_knows(tmp_path: Path) -> None:
    """It is installed by a click and started by another; all else must come by itself."""
    options, settings = tmp_path / "options.json", tmp_path / "whatsapp2mqtt.yaml"
    options.write_text(json.dumps({"require": "all", "discovery": True, "numbers": "keep", "log_level": "info"}))
    settings.write_text("retain: {status: 1h}\n")
    webhook, page = free_port(), free_port()
    users = {"addons": "from-the-supervisor"}
    with (
        Mosquitto(program("mosquitto"), tmp_path / "mosquitto", users=users) as broker,
        Answering() as supervisor,
    ):
        supervisor.broker = {
            "host": "127.0.0.1",
            "port": broker.port,
            "username": "addons",
            "password": users["addons"],
        }
        environment = clean_environment(tmp_path) | {"STATE_DIRECTORY": str(tmp_path), "SUPERVISOR_TOKEN": "the-token"}
        places = [
            *(options, settings, f"http://127.0.0.1:{supervisor.server_address[1]}"),
            *(f"127.0.0.1:{webhook}", f"127.0.0.1:{page}"),
        ]
        with Program([sys.executable, "-c", START, *places], tmp_path, environment) as bridge:
            bridge.wait_log("ready")
            bridge.wait_log("connected")
            token = supervisor.asked[0][2]["options"]["path_token"]
            assert b"the-token" not in Path(f"/proc/{bridge.pid}/environ").read_bytes()
            with Subscriber(broker.port, "whatsapp/#", "addons", users["addons"]) as subscriber:
                post(webhook, f"/webhook/{token}")
                subscriber.wait("whatsapp/m1/status")
            assert look(page, "/api/status", {"X-Ingress-Path": "/api/hassio_ingress/abc"}) == 200
            assert bridge.end() == 0
        supervisor.shutdown()


def test_without_a_broker_it_ends_with_what_to_do(tmp_path: Path) -> None:
    """The log is the only place where the user looks."""
    options = tmp_path / "options.json"
    options.write_text("{}")
    with Answering() as supervisor:
        supervisor.broker = None
        url = f"http://127.0.0.1:{supervisor.server_address[1]}"
        places = [options, tmp_path / "none.yaml", url, "127.0.0.1:1", "127.0.0.1:2"]
        with Program([sys.executable, "-c", START, *places], tmp_path, clean_environment(tmp_path)) as app:
            assert app.wait() == 1
            assert app.said.startswith("whatsapp2mqtt: Home Assistant knows no MQTT broker; install the app")
        supervisor.shutdown()


def post(port: int, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"statuses": [{"id": "m1", "status": "sent"}]})
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["stored"]) == (200, 1)
    connection.close()


def look(port: int, path: str, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers=headers)
    status = connection.getresponse().status
    connection.close()
    return status
