"""What must not stand in the logs, as logs are kept, copied and shown to others."""

from __future__ import annotations

import base64
import stat

import pytest

from bridge.simulate import click, in_cloud_envelope
from tests.system.conftest import MakeBridge
from tests.system.support import status

SECRETS = {
    "webhook__auth__path_token": "token-in-the-path",
    "webhook__auth__header_token": "token-in-a-header",
    "webhook__auth__basic": "user:password-of-user",
    "webhook__auth__meta_app_secret": "secret-of-the-app",
    "webhook__auth__vendor_secret": "vendor-key:vendor-secret",
    "mqtt__embedded__username": "broker-user",
    "mqtt__embedded__password": "password-of-broker",
}
SENDER = "15550001234"


def test_no_number_no_body_and_no_secret_reaches_the_log(make_bridge: MakeBridge) -> None:
    """Logs are sent to others when something does not work; phone numbers and tokens would go with them."""
    bridge = make_bridge(**SECRETS, webhook__auth__require="any").start("--guide")
    path = f"/webhook/{SECRETS['webhook__auth__path_token']}"
    body = click(payload="a-payload-of-mine", text="a text of mine", sender=SENDER)
    assert bridge.post(body, path).status == 200
    assert bridge.post(in_cloud_envelope(status("m1", recipient_id=SENDER) | {"business_phone": SENDER}), path).json
    assert bridge.post(b'{"from": "15550001234", "text": "a text of mine"}', path).json["dead"] == 1
    assert bridge.post({"statuses": [{"id": None, "recipient_id": SENDER}]}, path).json["dead"] == 1
    assert bridge.post(body, "/webhook/a-wrong-token-in-the-path").status == 404
    assert bridge.post(body, "/webhook", {"X-Webhook-Token": "a-wrong-token-in-a-header"}).status == 401
    assert bridge.run("simulate", "button").returncode == 0
    assert bridge.program.end() == 0
    said = bridge.program.said
    events = {one["event"] for one in bridge.program.log}
    assert {"starting", "ready", "connected", "a request was turned away", "stopped"} <= events
    for secret in (SENDER, "a-payload-of-mine", "a text of mine", "wrong-token", "wamid", "Somebody"):
        assert secret not in said
    for value in SECRETS.values():
        assert value.rpartition(":")[2] not in said


def test_an_unknown_path_and_a_wrong_token_look_the_same(make_bridge: MakeBridge) -> None:
    """Whoever tries addresses must not learn that there is a webhook."""
    bridge = make_bridge(webhook__auth__path_token="token-in-the-path").start()
    answers = {
        (answer.status, answer.text)
        for path in ("/webhook/a-wrong-token", "/webhook", "/no/such/path", "/")
        for answer in [bridge.post(status("m1"), path)]
    }
    assert len(answers) == 1
    assert answers.pop()[0] == 404


def test_what_is_stored_can_be_read_by_its_owner_alone(make_bridge: MakeBridge) -> None:
    """Other users of the machine could read all phone numbers, and the broker's password."""
    bridge = make_bridge().start()
    assert bridge.post(status("m1")).status == 200
    for file in ("journal.db", "broker/nats.conf"):
        assert stat.S_IMODE((bridge.state / file).stat().st_mode) == 0o600
    for folder in ("", "broker"):
        assert stat.S_IMODE((bridge.state / folder).stat().st_mode) == 0o700


@pytest.mark.parametrize("numbers", ["mask", "hash"])
def test_hidden_numbers_are_nowhere_on_the_broker_and_on_the_disk(make_bridge: MakeBridge, numbers: str) -> None:
    """Who asks for it must find none: in topics, JSON, journal, dead letters, and the broker's own files."""
    bridge = make_bridge(privacy__numbers=numbers).start()
    wamid = f"wamid.{base64.b64encode(b'xx' + SENDER.encode() + b'0123456789abcdef').decode()}"
    with bridge.listen("#") as everything:
        for body in (
            status(wamid, recipient_id=SENDER, errors=[{"details": f"+{SENDER}"}]),
            click(payload=f"ask {SENDER}", text="Ask", sender=SENDER),
        ):
            counts = [bridge.post(body).json for _ in range(2)]
            assert [(one["stored"], one["duplicate"]) for one in counts] == [(1, 0), (0, 1)]
        assert bridge.post({"statuses": [{"id": None, "recipient_id": SENDER}]}).json["dead"] == 1
        assert bridge.post(f"from={SENDER}".encode()).json["dead"] == 1
        everything.wait("whatsapp/last/button")
        everything.wait("whatsapp/last/status")
        everything.wait("whatsapp/bridge/health", lambda one: one.json["dead_letters"] == 2)
    assert bridge.run("dead-letters", "replay", "--all").returncode == 1
    assert bridge.program.end() == 0
    encoded = wamid.removeprefix("wamid.")[:16]
    for heard in everything.heard:
        assert SENDER not in heard.topic + heard.payload
        assert encoded not in heard.topic + heard.payload
    files = [file for file in bridge.state.rglob("*") if file.is_file()]
    assert {"journal.db", "privacy.key"} <= {file.name for file in files}
    for file in files:
        content = file.read_bytes()
        assert SENDER.encode() not in content, file
        assert encoded.encode() not in content, file
    assert stat.S_IMODE((bridge.state / "privacy.key").stat().st_mode) == 0o600


def test_a_key_that_is_none_stops_the_start(make_bridge: MakeBridge) -> None:
    """With another key, nobody's hash would be what automations compare with."""
    bridge = make_bridge(privacy__numbers="hash")
    bridge.state.mkdir(parents=True)
    (bridge.state / "privacy.key").write_text("torn")
    ended = bridge.run("run")
    assert ended.returncode == 2
    assert "privacy.key holds no key; put it back from a copy, or delete it" in ended.stderr
