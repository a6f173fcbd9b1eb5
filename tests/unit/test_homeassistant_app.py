"""The app (add-on) of Home Assistant: its options are settings, and the broker comes from the Supervisor."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import voluptuous as vol
import yaml

from bridge import __version__, config
from bridge.config import load
from bridge.homeassistant_app import AUTHENTICATION, GIVEN, SETTING_OF, AppError, Supervisor, named_in, settle

ROOT = Path(__file__).parents[2]
APP = ROOT / "addon"
CONFIG: dict[str, Any] = yaml.safe_load((APP / "config.yaml").read_text())
KNOWN = dict(config.leaves(config.Settings))

BROKER = {
    "host": "core-mosquitto",
    "port": 1883,
    "ssl": False,
    "username": "addons",
    "password": "pa:ss@word",
    "protocol": "3.1.1",
}


class Answering(HTTPServer):
    """A Supervisor that knows one broker, or none."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.broker: dict[str, Any] | None = BROKER
        self.takes_options = True
        self.fails = 0
        self.asked: list[tuple[str, str, Any]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def client(self) -> Supervisor:
        return Supervisor("the-token", f"http://127.0.0.1:{self.server_address[1]}", pause=0.0)


class _Handler(BaseHTTPRequestHandler):
    server: Answering

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: Any) -> None:
        server = self.server
        server.asked.append((self.path, self.headers["Authorization"], body))
        if server.fails:
            server.fails -= 1
            return self._say(502, {"result": "error"})
        if self.path == "/services/mqtt" and server.broker:
            return self._say(200, {"result": "ok", "data": server.broker})
        if self.path == "/addons/self/options" and server.takes_options:
            return self._say(200, {"result": "ok", "data": {}})
        return self._say(400, {"result": "error", "message": "Service not enabled"})

    def _say(self, code: int, document: object) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def supervisor() -> Iterator[Answering]:
    with Answering() as server:
        yield server
        server.shutdown()


def options(**more: object) -> dict[str, Any]:
    return {**CONFIG["options"], **more}


class TestOptions:
    def test_with_nothing_entered_there_is_a_broker_and_a_secret_that_the_user_sees(
        self, supervisor: Answering
    ) -> None:
        """It must run at the first click on Start, and nobody else may post to it."""
        environment = settle(options(), supervisor.client, frozenset())
        settings = load(None, environ=environment).settings
        assert str(settings.mqtt.url) == "mqtt://core-mosquitto:1883"
        assert (settings.brokers[0].username, settings.brokers[0].password) == ("addons", "pa:ss@word")
        assert str(settings.webhook.listen) == "0.0.0.0:8080"
        assert str(settings.admin.listen) == "0.0.0.0:8099"
        assert settings.admin.trusted_proxies == ("172.30.32.2/32",)
        (token,) = settings.webhook.auth.path_token
        assert len(token) >= 32
        path, authorization, body = supervisor.asked[0]
        assert (path, authorization) == ("/addons/self/options", "Bearer the-token")
        assert body == {"options": options(path_token=token)}

    def test_everything_that_can_be_entered_arrives(self, supervisor: Answering) -> None:
        """An option that does nothing is worse than none."""
        entered = options(
            path_token="a-path-token", meta_app_secret="app-secret", meta_verify_token="verify",
            vendor_secret="key:secret",
            header_name="X-Ours", header_token="header-token", addresses=["203.0.113.0/24", "198.51.100.7"],
            proxies=["172.30.33.0/24"], require="any", public_url="https://hook.example.org",
            mqtt_url="mqtts://broker.example.org:8884", mqtt_username="me", mqtt_password="12345", base_topic="wa",
            max_age="off", retain_status="3d", retain_button="0", discovery=False,
            buttons=[{"payload": "open_gate", "name": "Öffnen", "icon": "mdi:gate"}, {"payload": "x"}],
            numbers="mask", log_level="debug",
        )  # fmt: skip
        assert set(entered) == set(CONFIG["schema"]) == set(SETTING_OF)
        environment = settle(entered, supervisor.client, frozenset())
        loaded = load(None, environ=environment)
        assert {SETTING_OF[name] for name in entered} <= set(loaded.origins)
        found = loaded.settings
        assert found.webhook.auth.addresses == ("203.0.113.0/24", "198.51.100.7/32")
        assert [one.name for one in found.homeassistant.buttons] == ["Öffnen", "x"]
        assert (found.homeassistant.discovery, found.events.max_age, found.retain.button) == (False, None, 0.0)
        assert (found.brokers[0].username, found.brokers[0].password, found.brokers[0].port) == ("me", "12345", 8884)
        assert supervisor.asked == []  # nothing was missing

    def test_what_stands_in_a_file_is_not_made_up_again(self, supervisor: Answering, tmp_path: Path) -> None:
        """A secret or a broker of the file would be overruled by one that nobody chose."""
        file = tmp_path / "whatsapp2mqtt.yaml"
        file.write_text("webhook: {auth: {basic: ['me:secret']}}\nmqtt:\n  url: mqtts://other.example\nretain:\n")
        assert named_in(file) >= {"webhook.auth.basic", "mqtt.url"}
        environment = settle(options(), supervisor.client, named_in(file))
        loaded = load(file, environ=environment)
        assert str(loaded.settings.mqtt.url) == "mqtts://other.example:8883"
        assert loaded.settings.webhook.auth.path_token == ()
        assert supervisor.asked == []

    @pytest.mark.parametrize("content", [None, b"", b"- a\n", b"a: [\n", b"\xff"])
    def test_a_file_that_cannot_be_read_names_nothing(self, tmp_path: Path, content: bytes | None) -> None:
        """What is wrong with it, the bridge says, with its line."""
        file = tmp_path / "whatsapp2mqtt.yaml"
        if content is not None:
            file.write_bytes(content)
        assert named_in(file) == frozenset()

    def test_a_user_of_ones_own_at_the_shared_broker(self, supervisor: Answering) -> None:
        """Whoever gave the bridge rights of its own would connect as somebody else."""
        environment = settle(options(mqtt_username="me", mqtt_password="mine"), supervisor.client, frozenset())
        broker = load(None, environ=environment).settings.brokers[0]
        assert (broker.host, broker.username, broker.password) == ("core-mosquitto", "me", "mine")

    def test_a_broker_with_tls(self, supervisor: Answering) -> None:
        """`ssl` is what the Supervisor calls it."""
        supervisor.broker = {**BROKER, "ssl": True, "port": 8883}
        assert (
            settle(options(), supervisor.client, frozenset())["WHATSAPP2MQTT_MQTT__URL"]
            == "mqtts://core-mosquitto:8883"
        )


class TestSupervisor:
    def test_without_a_broker_it_says_what_to_install(self, supervisor: Answering) -> None:
        """Most who see this never heard of a broker."""
        supervisor.broker = None
        with pytest.raises(AppError, match=r"install the app 'Mosquitto broker' and start it, or enter .* as mqtt_url"):
            settle(options(), supervisor.client, frozenset())

    def test_one_that_starts_itself_is_asked_again(self, supervisor: Answering) -> None:
        """At boot everything starts at once."""
        supervisor.fails = 3
        assert supervisor.client.mqtt() == BROKER

    def test_one_that_does_not_answer_is_told(self, supervisor: Answering) -> None:
        """It must end with a reason, and not hang."""
        supervisor.fails = 100
        with pytest.raises(AppError, match="Supervisor does not answer: HTTP Error 502"):
            supervisor.client.mqtt()
        supervisor.server_close()
        with pytest.raises(AppError, match=r"Supervisor does not answer: .*Connection refused"):
            supervisor.client.mqtt()

    def test_a_secret_that_cannot_be_shown_is_not_made(self, supervisor: Answering) -> None:
        """The bridge would run, and nobody would know the webhook's address."""
        supervisor.takes_options = False
        with pytest.raises(AppError, match="enter one in the app's options"):
            settle(options(), supervisor.client, frozenset())


# --- what stands in addon/ ------------------------------------------------------------------------------------------

_ELEMENT = vol.Match(
    r"^(?:bool|email|url|port|device(?:\(subsystem=[a-z]+\))?|(?:str|password|int)(?:\(-?\d*,-?\d*\))?"
    r"|float(?:\([-\d.]*,[-\d.]*\))?|match\(.*\)|list\(.+\))\??$"
)
#: What the Supervisor takes as an app's config.yaml, of which this one uses a part (developers.home-assistant.io/docs/
#: apps/configuration, seen in November 2026); a key that is not here is a slip, or needs a look at the documentation.
PUBLISHED = vol.Schema(
    {
        vol.Required("name"): str,
        vol.Required("version"): vol.All(str, vol.Match(r"^\d+\.\d+\.\d+$")),
        vol.Required("slug"): vol.Match(r"^[-_.A-Za-z0-9]+$"),
        vol.Required("description"): str,
        vol.Required("arch"): [vol.In(("aarch64", "amd64"))],
        "url": vol.Url(),
        "startup": vol.In(("initialize", "system", "services", "application", "once")),
        "boot": vol.In(("auto", "manual", "manual_only")),
        "init": bool,
        "timeout": vol.All(int, vol.Range(min=10, max=300)),
        "ingress": bool,
        "ingress_port": vol.All(int, vol.Range(min=0, max=65_535)),
        "panel_icon": vol.Match(r"^mdi:[a-z0-9-]+$"),
        "panel_title": str,
        "watchdog": vol.Match(r"^(?:https?|\[PROTO:\w+\]|tcp)://\[HOST\]:(?:\[PORT:\d+\]|\d+).*$"),
        "services": [vol.Match(r"^(?:mqtt|mysql):(?:provide|want|need)$")],
        "ports": {vol.Match(r"^\d+/(?:tcp|udp)$"): vol.Any(None, vol.All(int, vol.Range(min=1, max=65_535)))},
        "map": [
            {
                vol.Required("type"): vol.In(
                    ("data", "ssl", "backup", "share", "media", "homeassistant_config", "addon_config")
                ),
                "read_only": bool,
                "path": str,
            }
        ],
        "backup": vol.In(("hot", "cold")),
        "options": dict,
        "schema": {str: vol.Any(_ELEMENT, [vol.Any(_ELEMENT, {str: _ELEMENT})], {str: _ELEMENT})},
    }
)  # fmt: skip


def test_the_app_is_as_home_assistant_publishes_that_it_must_be() -> None:
    """An app with a mistake in it is not shown in the store, without a word to the user."""
    PUBLISHED(CONFIG)
    for wrong in ({"init": "no"}, {"services": ["mqtt:wants"]}, {"schema": {"a": "string"}}, {"archs": ["amd64"]}):
        with pytest.raises(vol.Invalid):
            PUBLISHED({**CONFIG, **wrong})
    PUBLISHED_REPOSITORY(yaml.safe_load((ROOT / "repository.yaml").read_text()))


PUBLISHED_REPOSITORY = vol.Schema({vol.Required("name"): str, "url": vol.Url(), "maintainer": str})


def test_every_option_is_a_setting_and_has_words() -> None:
    """An option without a setting does nothing; one without words is a riddle."""
    assert set(CONFIG["schema"]) == set(SETTING_OF)
    assert {tuple(name.split(".")) for name in SETTING_OF.values()} <= set(KNOWN)
    assert {tuple(name.split(".")) for name in (*GIVEN, *AUTHENTICATION)} <= set(KNOWN)
    for language in ("en", "de"):
        words = yaml.safe_load((APP / "translations" / f"{language}.yaml").read_text())
        assert set(words) == {"configuration", "network"}
        assert list(words["configuration"]) == list(CONFIG["schema"])
        assert set(words["configuration"]["buttons"]["fields"]) == set(CONFIG["schema"]["buttons"][0])
        assert set(words["network"]) == set(CONFIG["ports"])
        assert all(one["name"] for one in words["configuration"].values())


def test_what_can_be_chosen_is_what_the_settings_take() -> None:
    """A choice that the bridge refuses stops it at its start."""
    for name, kind in CONFIG["schema"].items():
        check = KNOWN[tuple(SETTING_OF[name].split("."))]["check"]
        if chosen := re.fullmatch(r"list\((.+)\)", str(kind)):
            assert [check(word) for word in chosen[1].split("|")]
            with pytest.raises(vol.Invalid):
                check("something else")
    for name, value in CONFIG["options"].items():
        assert name in CONFIG["schema"]
        default = KNOWN[tuple(SETTING_OF[name].split("."))]["default"]
        assert value == default, name


def test_secrets_are_entered_as_passwords() -> None:
    """They would stand on the screen for everyone to read."""
    for name, setting in SETTING_OF.items():
        hides = KNOWN[tuple(setting.split("."))]["show"] is config.hidden
        assert hides == str(CONFIG["schema"][name]).startswith("password"), name


def test_version_and_packages_are_those_of_the_bridge() -> None:
    """The Supervisor would build an app of another version, or with other packages than were tried."""
    assert CONFIG["version"] == __version__
    assert (APP / "requirements.txt").read_text() == (ROOT / "requirements.txt").read_text(), "run scripts/lock"
    assert (APP / "CHANGELOG.md").read_text() == (ROOT / "CHANGELOG.md").read_text()


def test_the_store_has_pictures_of_the_sizes_it_shows() -> None:
    """Others are cut or stretched."""
    for name, size in (("icon", (128, 128)), ("logo", (250, 100))):
        head = (APP / f"{name}.png").read_bytes()[:24]
        assert head.startswith(b"\x89PNG")
        assert (int.from_bytes(head[16:20]), int.from_bytes(head[20:24])) == size


def test_the_documentation_names_every_option() -> None:
    """It is all that the user sees of us within Home Assistant."""
    text = (APP / "DOCS.md").read_text()
    assert all(f"`{name}`" in text for name in CONFIG["schema"])
