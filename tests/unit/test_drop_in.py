"""What `systemctl edit` gives the service is found; scripts/test-systemd asks a real systemd for it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from bridge import drop_in, install
from bridge.cli import main
from bridge.drop_in import DropInError, variables

IN_CREDENTIALS = "/run/credentials/whatsapp2mqtt.service"


class Systemd:
    """It answers as systemd 252 and 257 did, and decrypts.

    Args:
        environment: The assignments that the unit has.
    """

    def __init__(self, *environment: str) -> None:
        self.environment = environment
        self.decrypted: list[str] = []

    def __call__(self, command: Sequence[str]) -> bytes:
        if command[0] == "systemd-creds":
            self.decrypted.append(" ".join(command))
            return b"an-encrypted-secret\n"
        assert command[0] == "busctl"
        plain = [["config.yaml", "/etc/whatsapp2mqtt/config.yaml"], ["path_token", "/etc/whatsapp2mqtt/path_token"]]
        encrypted = [["mqtt_password", "/etc/whatsapp2mqtt/mqtt_password.cred"]]
        answers = (("as", self.environment), ("a(ss)", plain), ("a(ss)", encrypted))
        return "".join(json.dumps({"type": kind, "data": data}) + "\n" for kind, data in answers).encode()


def test_the_bridges_variables_are_taken_as_they_are() -> None:
    """A command that looked at other settings than the service has would say what is not so."""
    given = variables(Systemd("PATH=/bin", "WHATSAPP2MQTT_LOG__LEVEL=debug", 'WHATSAPP2MQTT_MQTT__USERNAME=a "b=$c d'))
    assert given == {"WHATSAPP2MQTT_LOG__LEVEL": "debug", "WHATSAPP2MQTT_MQTT__USERNAME": 'a "b=$c d'}


def test_a_credential_is_read_where_it_comes_from() -> None:
    """Its copy is there only while the service runs, and `restore` is for when it does not."""
    assert variables(
        Systemd(
            f"WHATSAPP2MQTT_WEBHOOK__AUTH__PATH_TOKEN_FILE={IN_CREDENTIALS}/path_token",
            f"WHATSAPP2MQTT_MQTT__TLS__CA={IN_CREDENTIALS}/of_the_unit_itself",
            "WHATSAPP2MQTT_JOURNAL__PASSWORD_FILE=/etc/password",
        )
    ) == {
        "WHATSAPP2MQTT_WEBHOOK__AUTH__PATH_TOKEN_FILE": "/etc/whatsapp2mqtt/path_token",
        "WHATSAPP2MQTT_MQTT__TLS__CA": f"{IN_CREDENTIALS}/of_the_unit_itself",
        "WHATSAPP2MQTT_JOURNAL__PASSWORD_FILE": "/etc/password",
    }


def test_an_encrypted_credential_is_decrypted_into_memory_alone() -> None:
    """A secret that is encrypted on the disk would lie on it in the clear."""
    systemd = Systemd(f"WHATSAPP2MQTT_MQTT__PASSWORD_FILE={IN_CREDENTIALS}/mqtt_password")
    file = Path(variables(systemd)["WHATSAPP2MQTT_MQTT__PASSWORD_FILE"])
    assert systemd.decrypted == [
        "systemd-creds decrypt --name=mqtt_password /etc/whatsapp2mqtt/mqtt_password.cred -",
    ]
    assert [file.read_text(), file.read_text()] == ["an-encrypted-secret\n"] * 2
    assert str(file.readlink()).startswith("/memfd:")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["no-such-program"], "no-such-program: No such file or directory"),
        (["sh", "-c", "echo so >&2; exit 3"], "sh: so"),
    ],
)
def test_what_cannot_be_asked_says_why(command: Sequence[str], words: str) -> None:
    """Otherwise a command works with half of the settings, and nobody knows why."""
    with pytest.raises(DropInError, match=words):
        drop_in.run(command)
    assert drop_in.run(["echo", "yes"]) == b"yes\n"


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The settings file of a service, and a drop-in with a password."""
    file = tmp_path / "config.yaml"
    file.write_text("mqtt: {url: 'mqtts://broker'}\n")
    monkeypatch.setattr(install, "SETTINGS", file)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return file


def test_a_command_has_the_services_settings_and_options(service: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`whatsapp2mqtt-service` is this: without them it would look at another broker, and be refused by the webhook."""
    monkeypatch.setattr(drop_in, "variables", lambda: {"WHATSAPP2MQTT_MQTT__PASSWORD": "of-the-drop-in"})
    said = CliRunner().invoke(main, ["as-service", "--", "check"])
    assert said.exit_code == 0, said.output
    assert str(service) in said.output
    assert "# WHATSAPP2MQTT_MQTT__PASSWORD" in said.output
    assert os.environ["STATE_DIRECTORY"] == "/var/lib/whatsapp2mqtt"
    helped = CliRunner().invoke(main, ["as-service", "--", "check", "--help"])
    assert helped.output.startswith("Usage: main check [OPTIONS]")


def test_without_an_answer_the_settings_file_alone_counts_and_it_is_told(
    service: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a rescue system, where no systemd runs, a backup must still be restored."""

    def fails() -> dict[str, str]:
        raise DropInError("busctl: no bus")

    monkeypatch.setattr(drop_in, "variables", fails)
    said = CliRunner().invoke(main, ["as-service", "check"])
    assert said.exit_code == 0, said.output
    assert said.stderr == (
        "whatsapp2mqtt: what `systemctl edit` gives the service is not known here, so the settings file alone counts: "
        "busctl: no bus\n"
    )
