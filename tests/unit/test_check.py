"""`whatsapp2mqtt check`: the settings in force, where each was set, and no secret among them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bridge.check import report
from bridge.config import HIDDEN, Loaded, Settings, leaves, load

SECRETS = """\
webhook:
  auth:
    path_token: [swordfish-1, swordfish-2]
    header_token: swordfish
    basic: [user:swordfish]
    meta_app_secret: [swordfish]
    meta_verify_token: [swordfish]
    vendor_secret: [key:swordfish]
mqtt:
  url: mqtts://someone:swordfish@broker.example
  password: swordfish
  embedded:
    username: someone
    password: swordfish
"""


def loaded(tmp_path: Path, text: str = "", **environ: str) -> Loaded:
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return load(file, environ)


def line_of(text: str, name: str) -> str:
    (line,) = [line.strip() for line in text.splitlines() if line.strip().startswith(f"{name}:")]
    return line


class TestSecrets:
    def test_no_secret_is_printed(self, tmp_path: Path) -> None:
        """The output is what users send along when they ask for help."""
        text = report(loaded(tmp_path, SECRETS))
        assert "swordfish" not in text
        assert text.count(HIDDEN) == 10

    def test_how_many_there_are_is_shown(self, tmp_path: Path) -> None:
        """While a secret is changed, one looks here whether both are in force."""
        auth = yaml.safe_load(report(loaded(tmp_path, SECRETS)))["webhook"]["auth"]
        assert auth["path_token"] == [HIDDEN, HIDDEN]
        assert auth["basic"] == [HIDDEN]
        assert auth["header_token"] == HIDDEN

    def test_of_a_url_only_the_password_is_hidden(self, tmp_path: Path) -> None:
        """Host and user are what one looks for when the broker refuses."""
        text = report(loaded(tmp_path, SECRETS))
        assert f"  url: mqtts://someone:{HIDDEN}@broker.example  #" in text

    @pytest.mark.parametrize(
        "url",
        [
            "mqtts://someone:sword@fish@broker.example",
            "mqtts://some@one:swordfish@broker.example",
            "mqtts://:swordfish@broker.example",
            "mqtts://someone:swordfish:more@broker.example:8883",
            "wss://someone:swordfish@broker.example/mqtt",
            "mqtts://someone:swordfish@broker.example,mqtts://else:goldfish@other.example",
        ],
    )
    def test_a_password_of_any_form_is_hidden(self, tmp_path: Path, url: str) -> None:
        """Passwords hold @ and colons; what stands behind the first of them must be hidden as well."""
        text = report(loaded(tmp_path, f"mqtt: {{url: '{url}'}}"))
        assert "fish" not in text
        assert "broker.example" in text

    def test_it_is_hidden_in_each_of_several_addresses(self, tmp_path: Path) -> None:
        """A cluster's settings would be pasted into a public issue with a password in them."""
        text = report(loaded(tmp_path, "mqtt: {url: ['mqtts://a:swordfish@one', 'mqtts://b:goldfish@two']}"))
        assert f"  url: ['mqtts://a:{HIDDEN}@one', 'mqtts://b:{HIDDEN}@two']  #" in text

    def test_one_from_the_environment_is_hidden_as_well(self, tmp_path: Path) -> None:
        """Containers get their secrets this way."""
        secret = tmp_path / "secret"
        secret.write_text("swordfish\n")
        found = loaded(
            tmp_path,
            WHATSAPP2MQTT_WEBHOOK__AUTH__BASIC="a:swordfish,b:swordfish",
            WHATSAPP2MQTT_MQTT__PASSWORD_FILE=str(secret),
        )
        text = report(found)
        assert "swordfish" not in text
        assert line_of(text, "basic").startswith(f"basic: ['{HIDDEN}', '{HIDDEN}']  # WHATSAPP2MQTT_WEBHOOK__AUTH__")

    def test_what_is_not_set_is_not_hidden(self, tmp_path: Path) -> None:
        """Asterisks would say that there is a password where there is none."""
        text = report(loaded(tmp_path))
        assert HIDDEN not in text
        assert yaml.safe_load(text)["mqtt"]["password"] is None


class TestOrigins:
    def test_each_that_is_not_the_default_says_where_it_was_set(self, tmp_path: Path) -> None:
        """`Why is it still the old value?` is answered by the line and the variable that won."""
        text = report(
            loaded(
                tmp_path,
                "webhook:\n  path: /hook\n  workers: 2\nevents: {max_age: 10m}\n",
                WHATSAPP2MQTT_WEBHOOK__WORKERS="3",
            )
        )
        file = tmp_path / "config.yaml"
        assert line_of(text, "path") == f"path: /hook  # {file}:2"
        assert line_of(text, "workers") == "workers: '3'  # WHATSAPP2MQTT_WEBHOOK__WORKERS"
        assert line_of(text, "max_age") == f"max_age: 10m  # {file}:4"
        assert line_of(text, "base_topic") == "base_topic: whatsapp"
        assert text.count("#") == 3


class TestForm:
    def test_it_shows_every_setting(self, tmp_path: Path) -> None:
        """What is left out here is a setting that nobody can look up."""
        root = yaml.safe_load(report(loaded(tmp_path)))
        for key, metadata in leaves(Settings):
            found = root
            for name in key:
                found = found[name]
            assert found == metadata["default"], key

    def test_it_can_be_used_as_a_settings_file(self, tmp_path: Path) -> None:
        """Copied into a file and started with, it must mean the same."""
        first = loaded(tmp_path, "webhook: {path: /hook, auth: {addresses: [10.0.0.0/8, '2001:db8::/32']}}")
        (tmp_path / "again").mkdir()
        assert loaded(tmp_path / "again", report(first)).settings == first.settings

    def test_a_long_list_stays_on_its_line(self, tmp_path: Path) -> None:
        """The origin behind it would stand behind the last line of it only."""
        addresses = [f"203.0.{number}.0/24" for number in range(200)]
        text = report(loaded(tmp_path, yaml.safe_dump({"webhook": {"auth": {"addresses": addresses}}})))
        assert "203.0.199.0/24" in line_of(text, "addresses")
        assert yaml.safe_load(text)["webhook"]["auth"]["addresses"] == addresses

    @given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
    def test_any_text_is_readable_and_harmless(self, text: str) -> None:
        """Promise 7: a setting with a line break or an escape code in it must not become another setting."""
        found = load(None, {})
        written = {**found.written, "mqtt.username": text}
        shown = report(Loaded(found.settings, written, {"mqtt.username": "WHATSAPP2MQTT_MQTT__USERNAME"}))
        assert yaml.safe_load(shown)["mqtt"]["username"] == text
        assert len(shown.split("\n")) == len(report(found).split("\n"))
        assert all(line.isprintable() for line in shown.split("\n"))
