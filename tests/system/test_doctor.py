"""`doctor` against each fault that it names, each of them a real one."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import apsw
import pytest

from bridge import doctor as module
from bridge.doctor import Verdict
from tests.system.conftest import MakeBridge
from tests.system.support import Bridge, Program, Subscriber, free_port, program

Findings = dict[str, list[dict[str, Any]]]
ROOT = os.geteuid() == 0


def examined(bridge: Bridge, *arguments: str, code: int | None = None) -> Findings:
    """What it says, by name."""
    said = bridge.run("doctor", "--json", *arguments)
    assert "Traceback" not in said.stderr, said.stderr
    if code is not None:
        assert said.returncode == code, said.stdout
    found: Findings = {}
    for line in said.stdout.splitlines():
        one = json.loads(line)
        assert one["remedy"] or one["verdict"] in ("ok", "skipped") or one["name"] == "settings", one
        found.setdefault(one["name"], []).append(one)
    return found


def only(found: Findings, name: str, verdict: str) -> dict[str, Any]:
    (one,) = [one for one in found[name] if one["verdict"] == verdict]
    return one


def mosquitto(folder: Path, *lines: str, acl: str | None = None, users: tuple[str, ...] = ()) -> tuple[int, Program]:
    """A broker with these lines in its settings, running when this returns."""
    port = free_port()
    text = [f"listener {port} 127.0.0.1", *lines, *(["user root"] if ROOT else [])]
    if users:
        (folder / "passwords").touch()
        for user in users:
            command = [program("mosquitto_passwd"), "-b", folder / "passwords", user, "right"]
            subprocess.run(command, check=True, capture_output=True)
        text += [f"password_file {folder / 'passwords'}", "allow_anonymous false"]
    else:
        text.append("allow_anonymous true")
    if acl is not None:
        (folder / "acl").write_text(acl)
        text.append(f"acl_file {folder / 'acl'}")
    (folder / "mosquitto.conf").write_text("\n".join(text) + "\n")
    running = Program([program("mosquitto"), "-c", folder / "mosquitto.conf"], folder, dict(os.environ))
    running.wait_said(" running")
    return port, running


# --- nothing is wrong ------------------------------------------------------------------------------------------------


def test_a_bridge_that_runs_and_is_well_is_found_well(bridge: Bridge) -> None:
    """Who gets a clean bill for an ill bridge, or a false alarm for a well one, asks no more."""
    found = examined(bridge, code=0)
    assert not [one for some in found.values() for one in some if one["verdict"] == "trouble"]
    assert only(found, "bridge", "ok")
    assert only(found, "webhook", "ok")
    assert "comes back" in found[f"broker mqtt://127.0.0.1:{bridge.broker}"][-1]["words"]
    with bridge.listen() as subscriber:
        subscriber.wait("whatsapp/bridge/state")
        assert not subscriber.on("whatsapp/bridge/doctor")


def test_it_looks_at_a_bridge_that_does_not_run(make_bridge: MakeBridge) -> None:
    """Before the first start is when one asks."""
    found = examined(make_bridge(), code=0)
    assert only(found, "bridge", "warning")["remedy"] == "start it"
    assert len([one for one in found["port"] if one["verdict"] == "ok"]) == 3
    assert only(found, "broker", "skipped")


def test_for_people_it_says_what_to_do(make_bridge: MakeBridge) -> None:
    """A verdict without a remedy is a riddle."""
    said = make_bridge().run("doctor").stdout
    assert "! warning  authentication: nothing says who may post\n    → set webhook.auth.path_token" in said


# --- settings, files and disk ----------------------------------------------------------------------------------------


def test_wrong_settings_are_trouble(make_bridge: MakeBridge) -> None:
    """Everything else would be looked at with the wrong ones."""
    found = examined(make_bridge(webhook__workers="many"), code=2)
    assert "is no whole number" in only(found, "settings", "trouble")["words"]


def test_a_secret_that_can_be_guessed_is_told_and_not_shown(make_bridge: MakeBridge) -> None:
    """What stands in front of the gate is this secret alone."""
    found = examined(make_bridge(webhook__auth__path_token="swordfish-1"), code=0)
    told = only(found, "authentication", "warning")
    assert "webhook.auth.path_token" in told["words"]
    assert "`whatsapp2mqtt secret`" in told["remedy"]
    assert only(found, "authentication", "ok")
    assert "swordfish" not in str(found)


def test_settings_that_all_can_read_are_told(make_bridge: MakeBridge, tmp_path: Path) -> None:
    """They hold the broker's password."""
    file = tmp_path / "config.yaml"
    file.write_text("log: {level: info}\n")
    file.chmod(0o644)
    assert "chmod o-rwx" in only(examined(make_bridge(), "--config", str(file)), "settings", "warning")["remedy"]


def test_a_database_of_another_program_is_trouble(make_bridge: MakeBridge, tmp_path: Path) -> None:
    """The bridge refuses to start with it."""
    other = apsw.Connection(str(tmp_path / "other.db"))
    other.execute("CREATE TABLE theirs (a)")
    other.close()
    found = examined(make_bridge(journal__url=f"sqlite://{tmp_path}/other.db"), code=1)
    assert "another program" in only(found, "journal", "trouble")["words"]


@pytest.mark.skipif(not ROOT, reason="only root can take rights away from itself, by becoming nobody")
def test_a_folder_that_cannot_be_written_is_trouble(make_bridge: MakeBridge, tmp_path: Path) -> None:
    """The start would end with an error that names a file and no user."""
    bridge = make_bridge()
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/") and folder.stat().st_uid == os.geteuid():
            folder.chmod(folder.stat().st_mode | 0o755)
    said = subprocess.run(
        [
            *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
            sys.executable,
            "-m",
            "bridge",
            "doctor",
            "--json",
        ],
        env=bridge.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "cannot be written by this user" in said.stdout, said.stderr


@pytest.mark.skipif(not ROOT, reason="only root can mount a small disk")
def test_a_full_disk_is_trouble(make_bridge: MakeBridge, tmp_path: Path) -> None:
    """Callbacks are answered 503, and nobody knows why."""
    (tmp_path / "small").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", tmp_path / "small"], check=True)
    try:
        (tmp_path / "small" / "filling").write_bytes(b"x" * (3 * 2**20))
        found = examined(make_bridge(journal__url=f"sqlite://{tmp_path}/small/journal.db"), code=1)
        assert only(found, "disk", "trouble")["remedy"] == "make room"
    finally:
        subprocess.run(["umount", tmp_path / "small"], check=True)


def test_a_disk_with_little_space_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before it is full is the time to hear of it."""
    monkeypatch.setattr(module, "LITTLE_SPACE", 2**62)
    found = module._space(tmp_path)
    assert (found.verdict, found.remedy) == (Verdict.WARNING, "make room, before callbacks are answered 503")


def test_a_journal_that_others_can_read_is_told(bridge: Bridge) -> None:
    """It holds phone numbers."""
    (bridge.state / "journal.db").chmod(0o644)
    assert "chmod 600" in only(examined(bridge), "journal", "warning")["remedy"]


def test_a_network_file_system_is_trouble(make_bridge: MakeBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal on it gets damaged; the kernel's own table is what tells, here a made-up one."""
    from bridge.config import load
    from bridge.journal import care

    monkeypatch.setattr(care, "file_system", lambda *_: "nfs4")
    found = list(module._journal(load(None, environ={}).settings))
    assert found[-1].verdict is Verdict.TROUBLE
    assert "network file system (nfs4)" in found[-1].words


# --- the clock -------------------------------------------------------------------------------------------------------


def test_a_clock_before_this_program_is_trouble() -> None:
    """A Raspberry Pi without network starts in 1970, and no click fires."""
    found = module._clock(lambda: dt.datetime(2020, 1, 1, tzinfo=dt.UTC).timestamp())
    assert found.verdict is Verdict.TROUBLE
    assert "2020-01-01" in found.words


@pytest.mark.parametrize(("state", "verdict"), [(True, Verdict.OK), (False, Verdict.WARNING), (None, Verdict.OK)])
def test_a_clock_that_nothing_keeps_right_is_told(
    monkeypatch: pytest.MonkeyPatch, state: bool | None, verdict: Verdict
) -> None:
    """It drifts, until clicks seem too old."""
    monkeypatch.setattr(module, "_is_synchronised", lambda: state)
    assert module._clock().verdict is verdict


def test_the_kernel_says_whether_it_keeps_the_clock_right() -> None:
    """A wrong reading of its answer would be a false alarm on every machine."""
    if shutil.which("adjtimex"):
        said = subprocess.run(["adjtimex", "--print"], capture_output=True, text=True, check=False).stdout
        assert module._is_synchronised() is ("return value = 5" not in said)
    else:
        assert module._is_synchronised() in (True, False, None)


# --- listeners -------------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_trouble(make_bridge: MakeBridge) -> None:
    """The start would end with it."""
    bridge = make_bridge()
    with HTTPServer(("127.0.0.1", bridge.webhook), BaseHTTPRequestHandler):
        found = examined(bridge, code=1)
    assert "webhook.listen" in only(found, "port", "trouble")["words"]


class Other(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<h1>Welcome to nginx</h1>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stranger() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_a_public_address_that_leads_elsewhere_is_told(make_bridge: MakeBridge, stranger: int) -> None:
    """WhatsApp would post to a welcome page, which answers 200 and keeps nothing."""
    bridge = make_bridge(webhook__public_url=f"http://127.0.0.1:{stranger}").start()
    assert "is not the bridge" in only(examined(bridge), "public address", "warning")["words"]


def test_a_public_address_where_nobody_answers_is_told(make_bridge: MakeBridge) -> None:
    """The tunnel is down, and nobody looks there."""
    bridge = make_bridge(webhook__public_url=f"http://127.0.0.1:{free_port()}").start()
    assert "nothing answers" in only(examined(bridge), "public address", "warning")["words"]


def test_a_public_address_that_leads_here_is_found_well(make_bridge: MakeBridge) -> None:
    """A false alarm at the one thing that is hardest to try."""
    port = free_port()
    bridge = make_bridge(webhook__listen=f"127.0.0.1:{port}", webhook__public_url=f"http://127.0.0.1:{port}")
    bridge.start()
    assert only(examined(bridge), "public address", "ok")


# --- brokers ---------------------------------------------------------------------------------------------------------


def test_a_broker_that_is_not_there_is_trouble(make_bridge: MakeBridge) -> None:
    """The first thing that goes wrong in most homes."""
    url = f"mqtt://127.0.0.1:{free_port()}"
    assert "no connection to" in only(examined(make_bridge(mqtt__url=url), code=1), f"broker {url}", "trouble")["words"]


def test_a_wrong_password_is_trouble(make_bridge: MakeBridge, tmp_path: Path) -> None:
    """The second."""
    port, running = mosquitto(tmp_path, users=("bridge",))
    with running:
        url = f"mqtt://127.0.0.1:{port}"
        found = examined(make_bridge(mqtt__url=url, mqtt__username="bridge", mqtt__password="mistyped"), code=1)
        one = only(found, f"broker {url}", "trouble")
        assert "mqtt.username and mqtt.password" in one["remedy"]
        assert "mistyped" not in json.dumps(found)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize(
    "acl",
    ["user bridge\ntopic read whatsapp/#\n", "user bridge\ntopic write whatsapp/#\n"],
    ids=["may not publish", "may not read"],
)
def test_rights_that_lack_are_trouble(make_bridge: MakeBridge, tmp_path: Path, acl: str, protocol: str) -> None:
    """With MQTT 3.1.1 the broker acknowledges it all the same, and nothing ever arrives."""
    port, running = mosquitto(tmp_path, users=("bridge",), acl=acl)
    with running:
        url = f"mqtt://127.0.0.1:{port}"
        bridge = make_bridge(mqtt__url=url, mqtt__username="bridge", mqtt__password="right", mqtt__protocol=protocol)
        one = only(examined(bridge, code=1), f"broker {url}", "trouble")
        assert "allow the bridge to publish to whatsapp/#" in one["remedy"]


def test_a_broker_that_keeps_nothing_is_trouble(make_bridge: MakeBridge, tmp_path: Path) -> None:
    """Dashboards would be empty after each restart."""
    port, running = mosquitto(tmp_path, "retain_available false")
    with running:
        url = f"mqtt://127.0.0.1:{port}"
        found = examined(make_bridge(mqtt__url=url, mqtt__protocol="5"), code=1)
        assert "keeps no retained messages" in only(found, f"broker {url}", "trouble")["words"]


def test_a_discovery_that_is_not_allowed_is_trouble(make_bridge: MakeBridge, tmp_path: Path) -> None:
    """No device ever appears in Home Assistant."""
    port, running = mosquitto(tmp_path, users=("bridge",), acl="user bridge\ntopic readwrite whatsapp/#\n")
    with running:
        bridge = make_bridge(
            mqtt__url=f"mqtt://127.0.0.1:{port}", mqtt__username="bridge", mqtt__password="right", mqtt__protocol="5"
        )
        found = examined(bridge, code=1)
        assert [one for some in found.values() for one in some if "homeassistant" in one["remedy"]], found


def test_home_assistants_presence_is_seen(make_bridge: MakeBridge, tmp_path: Path) -> None:
    """'Is it at the same broker?' is the question when no device appears."""
    port, running = mosquitto(tmp_path)
    with running:
        bridge = make_bridge(mqtt__url=f"mqtt://127.0.0.1:{port}").start()
        assert "discovery prefix" in only(examined(bridge, code=0), "Home Assistant", "warning")["remedy"]
        with Subscriber(port, "homeassistant/#") as house:
            house.publish("homeassistant/status", "online")
        assert only(examined(bridge, code=0), "Home Assistant", "ok")


Certificate = Callable[[int], tuple[Path, Path]]


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    """Makes a certificate for 127.0.0.1 that holds for so many days, and its key; it is its own CA."""

    def make(days: int) -> tuple[Path, Path]:
        key, found = tmp_path / f"key{days}.pem", tmp_path / f"certificate{days}.pem"
        ends = (dt.datetime.now(dt.UTC) + dt.timedelta(days=days)).strftime("%Y%m%d%H%M%SZ")
        begins = (dt.datetime.now(dt.UTC) - dt.timedelta(days=30)).strftime("%Y%m%d%H%M%SZ")
        folder = tmp_path / f"ca{days}"
        folder.mkdir()
        (folder / "index").touch()
        (folder / "serial").write_text("01\n")
        (folder / "openssl.cnf").write_text(
            f"[ca]\ndefault_ca=d\n[d]\ndatabase={folder}/index\nserial={folder}/serial\nnew_certs_dir={folder}\n"
            "default_md=sha256\npolicy=p\nx509_extensions=e\n[p]\ncommonName=supplied\n"
            "[e]\nsubjectAltName=IP:127.0.0.1\nbasicConstraints=critical,CA:true\n"
            "[req]\ndistinguished_name=n\n[n]\n"
        )
        openssl, config = program("openssl"), ["-config", folder / "openssl.cnf"]
        request = folder / "request"
        asks = [
            "req",
            "-new",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=127.0.0.1",
            "-keyout",
            key,
            "-out",
            request,
        ]
        signs = ["ca", "-batch", "-selfsign", "-notext", "-startdate", begins, "-enddate", ends, "-keyfile", key]
        for command in ([*asks, "-out", request], [*signs, "-in", request, "-out", found]):
            subprocess.run([openssl, command[0], *config, *command[1:]], check=True, capture_output=True)
        return found, key

    return make


@pytest.mark.parametrize(
    ("days", "verdict", "words"),
    [(90, "ok", "holds for 9"), (5, "warning", "holds for"), (-1, "trouble", "expired")],
)
def test_the_end_of_a_brokers_certificate_is_told_before(
    make_bridge: MakeBridge, tmp_path: Path, certificate: Certificate, days: int, verdict: str, words: str
) -> None:
    """One morning nothing works any more."""
    found, key = certificate(days)
    port, running = mosquitto(tmp_path, f"certfile {found}", f"keyfile {key}")
    with running:
        url = f"mqtts://127.0.0.1:{port}"
        seen = examined(make_bridge(mqtt__url=url, mqtt__tls__ca=str(found)))[f"broker {url}"]
        assert [one for one in seen if one["verdict"] == verdict and words in one["words"]], seen


def test_a_public_address_whose_certificate_is_not_trusted_is_trouble(
    make_bridge: MakeBridge, certificate: Certificate
) -> None:
    """WhatsApp wants a real one, and says only that it cannot connect."""
    found, key = certificate(90)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(found, key)
    with HTTPServer(("127.0.0.1", 0), Other) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        bridge = make_bridge(webhook__public_url=f"https://127.0.0.1:{server.server_address[1]}")
        one = only(examined(bridge, code=1), "public address", "trouble")
        server.shutdown()
    assert "not trusted" in one["words"]
