"""What stops the start: exit code 2 and one clear line, never a traceback."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import apsw
import pytest

from tests.system.conftest import MakeBridge
from tests.system.support import Bridge, children, command_line, free_port


def refusal(bridge: Bridge, *arguments: object) -> str:
    """The one line with which the start is refused."""
    ended = bridge.run("run", *arguments)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("whatsapp2mqtt: ")
    return lines[0].removeprefix("whatsapp2mqtt: ")


@pytest.fixture
def stranger() -> Iterator[int]:
    """The port of something that is no broker."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield int(server.getsockname()[1])


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("webhook:\n  listne: 127.0.0.1:8080\n", 2, "webhook.listne: is no setting; did you mean webhook.listen?"),
        ("events:\n  max_age: soon\n", 2, "events.max_age: 'soon' is no duration; write a number with s, m, h or d"),
        ("mqtt:\n  url: http://10.0.0.2\n", 2, "mqtt.url: is no broker; write embedded, or mqtt://"),
        ("log: loud\n", 1, "log: must hold settings as `name: value`"),
        ("webhook:\n  path: [\n", 3, "is not YAML"),
        ("log:\n  level: info\n  level: debug\n", 3, "log.level: stands twice; the other is at "),
    ],
)
def test_a_wrong_file_is_refused_with_file_and_line(
    make_bridge: MakeBridge, text: str, line: int, complaint: str
) -> None:
    """The user would have to guess which line of which file is meant, and what would be right."""
    bridge = make_bridge()
    file = bridge.folder / "settings.yaml"
    file.write_text(text)
    said = refusal(bridge, "--config", file)
    assert said.startswith(f"{file}:{line}: ")
    assert complaint in said


def test_a_file_that_is_not_there_is_refused(make_bridge: MakeBridge) -> None:
    """A misspelled path would start a bridge with defaults, unprotected."""
    assert "nowhere.yaml: cannot be read" in refusal(make_bridge(), "--config", "nowhere.yaml")


def test_a_wrong_variable_is_refused_with_its_name(make_bridge: MakeBridge) -> None:
    """In a container the environment is the only place to look."""
    said = refusal(make_bridge(mqtt__ulr="embedded"))
    assert said == "WHATSAPP2MQTT_MQTT__ULR: is no setting; did you mean WHATSAPP2MQTT_MQTT__URL?"
    assert refusal(make_bridge(log__level="loud")).startswith("WHATSAPP2MQTT_LOG__LEVEL: log.level: 'loud' is none of")


def test_two_mistakes_are_told_at_once(make_bridge: MakeBridge) -> None:
    """Otherwise the user starts once per mistake."""
    ended = make_bridge(log__level="loud", events__max_age="soon").run("run")
    assert ended.returncode == 2
    assert {line.split(":")[1].strip() for line in ended.stderr.splitlines()} == {
        "WHATSAPP2MQTT_EVENTS__MAX_AGE",
        "WHATSAPP2MQTT_LOG__LEVEL",
    }


def test_a_webhook_open_to_the_network_without_authentication_is_refused(make_bridge: MakeBridge) -> None:
    """Anyone who finds the port could open the gate."""
    said = refusal(make_bridge(webhook__listen="0.0.0.0:0"))
    assert "webhook.listen: 0.0.0.0:0 can be reached from other machines" in said
    assert "add `webhook: {auth: {path_token: [<a secret>]}}`" in said


def test_an_embedded_broker_open_to_the_network_without_a_password_is_refused(make_bridge: MakeBridge) -> None:
    """Anyone in the network could read all phone numbers, and play the bridge."""
    said = refusal(make_bridge(mqtt__embedded__listen="0.0.0.0:0"))
    assert "add mqtt.embedded.username and mqtt.embedded.password" in said


def test_a_password_in_the_clear_to_another_machine_is_refused(make_bridge: MakeBridge) -> None:
    """Anyone on the way could read it; and the message must not repeat it."""
    said = refusal(make_bridge(mqtt__url="mqtt://me:my-secret@203.0.113.7"))
    assert "mqtt.allow_password_in_the_clear: true" in said
    assert "my-secret" not in said


def test_mqtt_5_on_the_embedded_broker_is_refused(make_bridge: MakeBridge) -> None:
    """It would be tried for ever and never connect."""
    assert refusal(make_bridge(mqtt__protocol="5")).startswith("mqtt.protocol: the embedded broker speaks 3.1.1 only")


def test_a_webhook_port_that_is_taken_is_named_with_its_setting(make_bridge: MakeBridge, stranger: int) -> None:
    """granian shares ports: half of all callbacks would go to someone else, unnoticed."""
    said = refusal(make_bridge(webhook__listen=f"127.0.0.1:{stranger}"))
    assert said.startswith(f"webhook.listen: 127.0.0.1:{stranger} cannot be used: address already in use; ")
    assert "set webhook.listen to another address or port" in said


def test_a_broker_that_is_there_already_is_offered(make_bridge: MakeBridge, mosquitto: int) -> None:
    """Most people have a mosquitto on 1883; this message is how they learn to use it."""
    said = refusal(make_bridge(mqtt__embedded__listen=f"127.0.0.1:{mosquitto}"))
    assert f"to use that one, set `mqtt.url: mqtt://127.0.0.1:{mosquitto}`" in said


def test_the_setting_that_it_offers_works(make_bridge: MakeBridge, mosquitto: int) -> None:
    """Advice that does not work is worse than none."""
    bridge = make_bridge(mqtt__url=f"mqtt://127.0.0.1:{mosquitto}").start()
    assert bridge.program.wait_log("connected")["protocol"] == "5"
    assert not [pid for pid in children(bridge.pid) if "nats-server" in command_line(pid)]


def test_a_broker_port_taken_by_something_else_is_named_with_its_setting(
    make_bridge: MakeBridge, stranger: int
) -> None:
    """Pointing mqtt.url at something that is no broker would send the user in circles."""
    said = refusal(make_bridge(mqtt__embedded__listen=f"127.0.0.1:{stranger}"))
    assert said.startswith(f"mqtt.embedded.listen: 127.0.0.1:{stranger} cannot be used: address already in use; ")
    assert "mqtt.url" not in said


def test_a_second_bridge_on_the_same_journal_is_refused(bridge: Bridge, make_bridge: MakeBridge) -> None:
    """Two bridges on one journal would publish every click twice."""
    second = make_bridge()
    second.environment["XDG_STATE_HOME"] = bridge.environment["XDG_STATE_HOME"]
    said = refusal(second)
    assert said.startswith(f"journal.url: another bridge uses {bridge.state / 'journal.db'}; ")
    assert bridge.post(b"{}").status == 200  # and the first one did not mind


def test_a_journal_of_a_newer_version_is_refused_and_left_alone(make_bridge: MakeBridge) -> None:
    """An older program would ruin what the newer one has stored."""
    bridge = make_bridge().start()
    bridge.program.end()
    journal = bridge.state / "journal.db"
    with apsw.Connection(str(journal)) as database:
        database.pragma("user_version", 99)
    before = journal.read_bytes()
    assert "was written by a newer version (schema 99" in refusal(bridge)
    assert journal.read_bytes() == before


def test_a_database_of_another_program_is_refused_and_left_alone(make_bridge: MakeBridge) -> None:
    """A slip in journal.url would put our tables into someone's photos."""
    bridge = make_bridge()
    other = bridge.folder / "photos.db"
    with apsw.Connection(str(other)) as database:
        database.execute("CREATE TABLE photos (name)")
    before = other.read_bytes()
    bridge.environment["WHATSAPP2MQTT_JOURNAL__URL"] = f"sqlite://{other}"
    assert "is a database of another program" in refusal(bridge)
    assert other.read_bytes() == before


def test_a_file_that_is_no_database_is_refused(make_bridge: MakeBridge) -> None:
    """A traceback would tell the user nothing about which file is meant."""
    bridge = make_bridge()
    other = bridge.folder / "letter.txt"
    other.write_text("Dear Sir or Madam, " * 100)
    bridge.environment["WHATSAPP2MQTT_JOURNAL__URL"] = f"sqlite://{other}"
    assert "it is not a database; set journal.url to a file of its own" in refusal(bridge)


def test_a_state_directory_that_cannot_be_made_is_refused(make_bridge: MakeBridge) -> None:
    """The first start in a container with a read-only root ends here."""
    bridge = make_bridge()
    (bridge.folder / "state").write_text("a file where a folder should be")
    assert "set STATE_DIRECTORY or XDG_STATE_HOME" in refusal(bridge)


def test_without_nats_server_the_message_names_mosquitto(make_bridge: MakeBridge) -> None:
    """On armv7 there is no embedded broker; the user must learn what to install instead."""
    bridge = make_bridge()
    script = bridge.folder / "without_nats.py"
    script.write_text(
        "from importlib import metadata\n"
        "from bridge.cli import main\n"
        "def files(package):\n"
        "    raise metadata.PackageNotFoundError(package)\n"
        "metadata.files = files\n"
        "main()\n"
    )
    ended = subprocess.run(
        [sys.executable, script, "run"], env=bridge.environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "whatsapp2mqtt: mqtt.url: there is no embedded broker on this machine" in ended.stderr
    assert "mosquitto, with `mqtt.url: mqtt://127.0.0.1:1883`" in ended.stderr


def test_a_broker_that_is_away_does_not_stop_the_start(make_bridge: MakeBridge) -> None:
    """After a power cut the bridge is often up before the broker: callbacks must be taken all the same."""
    bridge = make_bridge(mqtt__url=f"mqtt://127.0.0.1:{free_port()}")
    bridge.start(wait=False)
    bridge.program.wait_log("ready")
    bridge.program.wait_log("nothing reaches the broker; everything is kept until it does")
    assert bridge.post(b'{"statuses": [{"id": "m1", "status": "sent"}]}').json["stored"] == 1
    assert bridge.program.end() == 0
