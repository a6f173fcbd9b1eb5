"""The bridge as an app (formerly add-on) of Home Assistant: options to settings, and the broker from the Supervisor.

The container starts here, as root: `python -m bridge.homeassistant_app`. What the user set in Home Assistant becomes
environment variables, above a settings file of the user's own, if there is one. The bridge itself then takes the
place of this program, as a user without rights, and knows nothing of the Supervisor's token.

Source: developers.home-assistant.io/docs/apps (configuration, communication) and /docs/api/supervisor/endpoints.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from bridge.config import ENV_CONFIG, ENV_PREFIX
from bridge.strength import make

OPTIONS = Path("/data/options.json")
#: Written by the user, in the folder that Home Assistant calls `addon_configs/<repository>_whatsapp2mqtt`.
SETTINGS = Path("/config/whatsapp2mqtt.yaml")
#: Whose the journal is, and as whom the bridge runs.
USER = 10001

#: Each option of addon/config.yaml, and the setting that it is.
SETTING_OF = {
    "path_token": "webhook.auth.path_token",
    "meta_app_secret": "webhook.auth.meta_app_secret",
    "meta_verify_token": "webhook.auth.meta_verify_token",
    "vendor_secret": "webhook.auth.vendor_secret",
    "header_name": "webhook.auth.header_name",
    "header_token": "webhook.auth.header_token",
    "addresses": "webhook.auth.addresses",
    "proxies": "webhook.auth.proxies",
    "require": "webhook.auth.require",
    "public_url": "webhook.public_url",
    "mqtt_url": "mqtt.url",
    "mqtt_username": "mqtt.username",
    "mqtt_password": "mqtt.password",
    "base_topic": "mqtt.base_topic",
    "max_age": "events.max_age",
    "retain_status": "retain.status",
    "retain_button": "retain.button",
    "discovery": "homeassistant.discovery",
    "buttons": "homeassistant.buttons",
    "numbers": "privacy.numbers",
    "log_level": "log.level",
}
#: What a container of Home Assistant's is given whatever the user says: it is reached by the ports of the Supervisor's
#: network, and the page by its proxy alone, which has asked who it is.
GIVEN = {
    "webhook.listen": "0.0.0.0:8080",
    "admin.listen": "0.0.0.0:8099",
    "admin.trusted_proxies": "172.30.32.2",
}
#: Settings that say who may post.
AUTHENTICATION = frozenset(
    f"webhook.auth.{name}"
    for name in (
        *("path_token", "header_token", "basic", "meta_app_secret", "vendor_secret", "addresses"),
        "anyone_may_post",
    )
)

#: Times that the Supervisor is asked, seconds between them, and seconds that an answer may take.
ATTEMPTS, PAUSE, PATIENCE = 5, 2.0, 10.0


class AppError(Exception):
    """The app cannot start as it is set up; the message says what to do."""


class Supervisor:
    """Home Assistant's Supervisor, asked over HTTP.

    Args:
        token: Of this app, from its environment.
        url: Where it is.
        pause: Seconds between two attempts.
    """

    def __init__(self, token: str, url: str = "http://supervisor", pause: float = PAUSE) -> None:
        self._token = token
        self._url = url
        self._pause = pause

    def mqtt(self) -> dict[str, Any] | None:
        """The broker that Home Assistant's apps share: host, port, username, password, ssl; None if there is none.

        Raises:
            AppError: The Supervisor does not answer.
        """
        return self._ask("/services/mqtt")

    def set_options(self, options: Mapping[str, object]) -> None:
        """Replace this app's options, as if the user had entered these.

        Raises:
            AppError: The Supervisor does not answer, or refuses them.
        """
        if self._ask("/addons/self/options", {"options": options}) is None:
            raise AppError("Home Assistant did not take the path_token that was made; enter one in the app's options")

    def _ask(self, path: str, body: object = None) -> dict[str, Any] | None:
        """What it answers; None where it says no."""
        request = urllib.request.Request(  # noqa: S310  (the Supervisor's own address)
            self._url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
        )
        why: object = None
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self._pause)
            try:
                with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
                    found = json.load(answer)
                return dict(found.get("data") or {}) if found.get("result") == "ok" else None
            except urllib.error.HTTPError as error:
                error.close()
                if error.code < 500:
                    return None
                why = error
            except (OSError, ValueError) as error:
                why = error
        raise AppError(f"Home Assistant's Supervisor does not answer: {why}; restart the app, then Home Assistant")


def settle(options: dict[str, Any], supervisor: Supervisor, in_file: frozenset[str]) -> dict[str, str]:
    """Everything that the bridge is told by its environment.

    Where nothing says who may post, a path token is made, and put among the options, where the user sees it.

    Args:
        options: What the user set in Home Assistant.
        supervisor: Knows the broker, and takes the token.
        in_file: The settings that stand in a file of the user's own.

    Raises:
        AppError: There is no broker, or the Supervisor does not answer.
    """
    set_by_user = {name: value for name, value in options.items() if name in SETTING_OF and value not in (None, "", [])}
    named = in_file | {SETTING_OF[name] for name in set_by_user}
    if not named & AUTHENTICATION:
        set_by_user["path_token"] = make()
        supervisor.set_options({**options, "path_token": set_by_user["path_token"]})
    found = {SETTING_OF[name]: _written(value) for name, value in set_by_user.items()}
    if "mqtt.url" not in named:
        found |= _broker(supervisor, named)
    return {ENV_PREFIX + name.upper().replace(".", "__"): value for name, value in (found | GIVEN).items()}


def named_in(file: Path) -> frozenset[str]:
    """The settings that stand in a file; whatever is wrong with it, the bridge itself says when it reads it."""
    try:
        root = yaml.safe_load(file.read_bytes())
    except (OSError, ValueError, yaml.YAMLError):
        return frozenset()
    return frozenset(_names(root, ""))


def _names(found: object, above: str) -> Iterator[str]:
    if isinstance(found, dict):
        for name, value in found.items():
            yield f"{above}{name}"
            yield from _names(value, f"{above}{name}.")


def _broker(supervisor: Supervisor, named: frozenset[str]) -> dict[str, str]:
    """The settings of the broker that Home Assistant's apps share."""
    service = supervisor.mqtt()
    if not service or not service.get("host"):
        raise AppError(
            "Home Assistant knows no MQTT broker; install the app 'Mosquitto broker' and start it, or enter the "
            "address of another one as mqtt_url"
        )
    scheme = "mqtts" if service.get("ssl") else "mqtt"
    broker = {"mqtt.url": f"{scheme}://{service['host']}:{service.get('port') or 1883}"}
    if service.get("username") and "mqtt.username" not in named:
        broker |= {"mqtt.username": str(service["username"]), "mqtt.password": str(service.get("password") or "")}
    # The password stays on this machine, in the network of its containers.
    return broker | {"mqtt.allow_password_in_the_clear": "true"}


def _written(value: object) -> str:
    """An option as it is written in an environment variable."""
    if isinstance(value, list):
        return json.dumps(value) if isinstance(value[0], dict) else ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def main() -> NoReturn:
    """Become the bridge."""
    try:
        options = json.loads(OPTIONS.read_bytes())
        supervisor = Supervisor(os.environ.pop("SUPERVISOR_TOKEN", ""))
        environment = settle(options, supervisor, named_in(SETTINGS))
    except (AppError, OSError, ValueError) as error:
        sys.exit(f"whatsapp2mqtt: {error}")
    os.environ.pop("HASSIO_TOKEN", None)  # the same, by its old name
    os.environ.update(environment)
    if SETTINGS.exists():
        os.environ[ENV_CONFIG] = str(SETTINGS)
    _give_up_root(Path(os.environ.get("STATE_DIRECTORY", "/data")))
    os.execv(sys.executable, [sys.executable, "-m", "bridge", "run"])  # noqa: S606  (itself)


def _give_up_root(state: Path) -> None:
    """Go on as a user that owns the journal and nothing else."""
    if os.geteuid() != 0:
        return
    for folder, folders, files in os.walk(state):
        for name in (".", *folders, *files):
            path = f"{folder}/{name}"
            if path != f"{state}/{OPTIONS.name}":
                os.lchown(path, USER, USER)
    os.setgroups([])
    os.setgid(USER)
    os.setuid(USER)


if __name__ == "__main__":
    main()
