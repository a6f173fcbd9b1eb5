"""`doctor` against each fault that it names, each of them a real one; the last test holds that none is left out."""

from __future__ import annotations

import ast
import contextlib
import datetime as dt
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import apsw
import paho.mqtt.client as paho
import pytest

from bridge import doctor as module
from bridge import mqtt
from bridge.broker import find_program
from bridge.config import Settings, load
from bridge.doctor import Finding, Verdict
from bridge.journal import care
from bridge.service import alone
from tests.integration.brokers import EmbeddedThread
from tests.system.conftest import MakeBridge
from tests.system.support import Bridge, Program, Subscriber, children, free_port, program, wait_for_end

Findings = dict[str, list[dict[str, Any]]]
ROOT = os.geteuid() == 0


def examined(bridge: Bridge, *arguments: str, code: int | None = None) -> Findings:
    """What it says, by name."""
    said = bridge.run("doctor", "--json", *arguments)
    assert "Traceback" not in said.stderr, said.stderr
    if code is not None:
        assert said.returncode == code, said.stdout
    return found_in(said.stdout)


def found_in(said: str) -> Findings:
    found: Findings = {}
    for line in said.splitlines():
        one = json.loads(line)
        assert one["remedy"] or one["verdict"] in ("ok", "skipped") or one["name"] == "settings", one
        found.setdefault(one["name"], []).append(one)
    return found


def only(found: Findings, name: str, verdict: str) -> dict[str, Any]:
    (one,) = [one for one in found[name] if one["verdict"] == verdict]
    return one


def told(found: Findings, what: str, says: str = "", *, verdict: str, remedy: str) -> None:
    """One finding is this one.

    Args:
        found: All of them.
        what: Its name and words as in bridge/doctor.py, `…` for what is put in.
        says: Also stands in its words.
        verdict: It is this.
        remedy: Stands in what it says to do.
    """
    pattern = re.compile(".*".join(re.escape(part) for part in what.split("…")), re.DOTALL)
    ill = [one for some in found.values() for one in some if one["verdict"] not in ("ok", "skipped")]
    fits = [one for one in ill if pattern.fullmatch(f"{one['name']}: {one['words']}") and says in one["words"]]
    assert [one["verdict"] for one in fits] == [verdict], ill
    assert remedy in fits[0]["remedy"], fits


def seen(*findings: Finding) -> Findings:
    """The same of what it found in this process."""
    found: Findings = {}
    for one in findings:
        found.setdefault(one.name, []).append(asdict(one))
    return found


def settings(**values: str) -> Settings:
    return load(None, environ={f"WHATSAPP2MQTT_{name.upper()}": value for name, value in values.items()}).settings


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
    told(found, "bridge: it does not run; all else is looked at without it", verdict="warning", remedy="start it")
    assert len([one for one in found["port"] if one["verdict"] == "ok"]) == 3
    assert only(found, "broker", "skipped")


def test_a_bridge_that_hangs_is_not_taken_for_one_that_does_not_run(bridge: Bridge) -> None:
    """'Start it' is no help, and to move its ports away from itself even less."""
    os.kill(bridge.pid, signal.SIGSTOP)
    try:
        found = examined(bridge, code=1)
    finally:
        os.kill(bridge.pid, signal.SIGCONT)
    told(found, "bridge: it hangs: …", "nothing answers at", verdict="trouble", remedy="look at its log, and start it")
    assert "port" not in found


def test_a_receiver_that_hangs_is_trouble(bridge: Bridge) -> None:
    """The page answers, and no callback does."""
    os.kill(bridge.receiver, signal.SIGSTOP)
    found = examined(bridge, code=1)
    told(found, "webhook: …", "nothing answers at http", verdict="trouble", remedy="look at the bridge's log")


def test_a_bridge_of_which_a_part_hangs_is_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its page answers, and says that it is not alive (tests/system/test_healthy.py has it in earnest)."""
    monkeypatch.setattr(module, "ask", lambda *_: (503, {"alive": False}))
    found = seen(module._bridge(settings())[0])
    told(found, "bridge: it hangs: /healthz says …", "503", verdict="trouble", remedy="look at its log, and start it")


def test_a_bridge_that_was_killed_does_not_run(bridge: Bridge) -> None:
    """It left its page's address behind, where nobody answers; that it hangs would be a false track."""
    family = children(bridge.pid)
    bridge.program.end(signal.SIGKILL)
    wait_for_end(family)
    found = examined(bridge, code=0)
    told(found, "bridge: it does not run; all else is looked at without it", verdict="warning", remedy="start it")


def test_a_bridge_without_its_page_is_seen_to_run(make_bridge: MakeBridge) -> None:
    """Its own ports would be found taken, by itself."""
    found = examined(make_bridge(admin__listen="off").start(wait=True), code=0)
    assert "admin.listen off" in only(found, "bridge", "ok")["words"]
    assert only(found, "webhook", "ok")
    assert "port" not in found


def test_a_journal_that_a_command_holds_is_told(make_bridge: MakeBridge) -> None:
    """While `forget` or a start is at work, to start the bridge fails, and the answer is to wait."""
    bridge = make_bridge()
    bridge.state.mkdir(parents=True)
    with alone(bridge.state / "journal.db"):
        found = examined(bridge, code=0)
    what = "bridge: its journal is in use, and it has no page to be asked: it starts, or a command is at work"
    told(found, what, verdict="warning", remedy="come again in a moment")


def as_nobody(bridge: Bridge, tmp_path: Path) -> Findings:
    """What it says to another user, who gets to the folder of the test and no further."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/") and folder.stat().st_uid == os.geteuid():
            folder.chmod(folder.stat().st_mode | 0o755)
    (bridge.state.parent).chmod(0o755)
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    # Whatever else counts what was run cannot write where this user may not.
    unseen = {name: value for name, value in bridge.environment.items() if not name.startswith("COVERAGE_")}
    said = subprocess.run(
        [*user, sys.executable, "-m", "bridge", "doctor", "--json"],
        env=unseen,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not said.stderr
    return found_in(said.stdout)


@pytest.mark.skipif(not ROOT, reason="only root can take rights away from itself, by becoming nobody")
def test_what_only_the_bridges_own_user_can_see_is_told(bridge: Bridge, tmp_path: Path) -> None:
    """Asked by another user, it would say that a bridge that is well does not run, and holds its own ports."""
    found = as_nobody(bridge, tmp_path)
    told(found, "bridge: …", "cannot be read", verdict="warning", remedy="ask as the bridge's user")
    assert only(found, "port", "skipped")


def test_for_people_it_says_what_to_do(make_bridge: MakeBridge) -> None:
    """A verdict without a remedy is a riddle."""
    said = make_bridge().run("doctor").stdout
    assert "! warning  authentication: nothing says who may post\n    → set webhook.auth.path_token" in said


# --- settings, files and disk ----------------------------------------------------------------------------------------


def test_a_webhook_that_anybody_may_post_to_is_told(make_bridge: MakeBridge) -> None:
    """Once it is reached from outside, anybody opens the gate."""
    found = examined(make_bridge())
    what = "authentication: nothing says who may post"
    told(found, what, verdict="warning", remedy="set webhook.auth.path_token before")


def test_wrong_settings_are_trouble(make_bridge: MakeBridge) -> None:
    """Everything else would be looked at with the wrong ones."""
    found = examined(make_bridge(webhook__workers="many"), code=2)
    assert "is no whole number" in only(found, "settings", "trouble")["words"]


def test_a_secret_that_can_be_guessed_is_told_and_not_shown(make_bridge: MakeBridge) -> None:
    """What stands in front of the gate is this secret alone."""
    found = examined(make_bridge(webhook__auth__path_token="swordfish-1"), code=0)
    what, remedy = "authentication: …", "`whatsapp2mqtt secret`"
    told(found, what, "webhook.auth.path_token", verdict="warning", remedy=remedy)
    assert only(found, "authentication", "ok")
    assert "swordfish" not in str(found)


def test_settings_that_all_can_read_are_told(make_bridge: MakeBridge, tmp_path: Path) -> None:
    """They hold the broker's password."""
    file = tmp_path / "config.yaml"
    file.write_text("log: {level: info}\n")
    file.chmod(0o644)
    found = examined(make_bridge(), "--config", str(file))
    what = "settings: … can be read by everybody on this machine"
    told(found, what, str(file), verdict="warning", remedy=f"chmod o-rwx {file}")


def test_a_database_of_another_program_is_trouble(make_bridge: MakeBridge, tmp_path: Path) -> None:
    """The bridge refuses to start with it."""
    other = apsw.Connection(str(tmp_path / "other.db"))
    other.execute("CREATE TABLE theirs (a)")
    other.close()
    found = examined(make_bridge(journal__url=f"sqlite://{tmp_path}/other.db"), code=1)
    told(found, "journal: …", "another program", verdict="trouble", remedy="set journal.url to a file of its own")


def test_an_old_sqlite_is_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """It can lose what was stored, and the bridge refuses to start with it."""
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.40.1")
    found = seen(*module._journal(settings()))
    told(found, "journal: …", "SQLite 3.40.1 can lose", verdict="trouble", remedy="pip install --upgrade apsw")


def test_a_database_that_does_not_answer_is_trouble(make_bridge: MakeBridge) -> None:
    """Callbacks are answered 503, and nobody knows why."""
    found = examined(make_bridge(journal__url=f"postgresql://bridge@127.0.0.1:{free_port()}/bridge"), code=1)
    told(found, "journal: …", "127.0.0.1", verdict="trouble", remedy="is it running, and are host, user and")


@pytest.mark.skipif(not ROOT, reason="only root can take rights away from itself, by becoming nobody")
def test_a_folder_that_cannot_be_written_is_trouble(make_bridge: MakeBridge, tmp_path: Path) -> None:
    """The start would end with an error that names a file and no user."""
    bridge = make_bridge()
    bridge.state.mkdir(parents=True)
    found = as_nobody(bridge, tmp_path)
    told(
        found, "journal: … cannot be written by this user", verdict="trouble", remedy="set journal.url to another place"
    )


@pytest.mark.skipif(not ROOT, reason="only root can mount a small disk")
def test_a_full_disk_is_trouble(make_bridge: MakeBridge, tmp_path: Path) -> None:
    """Callbacks are answered 503, and nobody knows why."""
    (tmp_path / "small").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", tmp_path / "small"], check=True)
    try:
        (tmp_path / "small" / "filling").write_bytes(b"x" * (3 * 2**20))
        found = examined(make_bridge(journal__url=f"sqlite://{tmp_path}/small/journal.db"), code=1)
        told(found, "disk: …: callbacks are answered 503", verdict="trouble", remedy="make room")
    finally:
        subprocess.run(["umount", tmp_path / "small"], check=True)


def test_a_disk_with_little_space_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before it is full is the time to hear of it."""
    monkeypatch.setattr(module, "LITTLE_SPACE", 2**62)
    what = "disk: … MiB are free at …"
    told(seen(module._space(tmp_path)), what, verdict="warning", remedy="make room, before callbacks are answered 503")


def test_a_journal_that_others_can_read_is_told(bridge: Bridge) -> None:
    """It holds phone numbers."""
    (bridge.state / "journal.db").chmod(0o644)
    told(examined(bridge), "journal: … can be read by others", verdict="warning", remedy="chmod 600")


def test_a_network_file_system_is_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal on it gets damaged; the kernel's own table is what tells, here a made-up one."""
    monkeypatch.setattr(care, "file_system", lambda *_: "nfs4")
    found = seen(*module._journal(settings()))
    told(found, "journal: …", "network file system (nfs4)", verdict="trouble", remedy="choose a folder on a disk")


# --- the clock -------------------------------------------------------------------------------------------------------


def test_a_clock_before_this_program_is_trouble() -> None:
    """A Raspberry Pi without network starts in 1970, and no click fires."""
    found = seen(module._clock(lambda: dt.datetime(2020, 1, 1, tzinfo=dt.UTC).timestamp()))
    told(found, "clock: it says …, before this program was made", "2020-01-01", verdict="trouble", remedy="timedatectl")


def test_a_clock_that_nothing_keeps_right_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It drifts, until clicks seem too old."""
    monkeypatch.setattr(module, "_is_synchronised", lambda: False)
    what = "clock: nothing keeps it right, and clicks that seem too old do not fire"
    told(seen(module._clock()), what, verdict="warning", remedy="timedatectl set-ntp true")


@pytest.mark.parametrize("state", [True, None])
def test_a_clock_that_is_kept_right_or_may_be_is_no_trouble(
    monkeypatch: pytest.MonkeyPatch, state: bool | None
) -> None:
    """Within a container the kernel may not be asked, which says nothing about the clock."""
    monkeypatch.setattr(module, "_is_synchronised", lambda: state)
    assert module._clock().verdict is Verdict.OK


@pytest.mark.parametrize(("state", "means"), [(0, True), (1, True), (2, True), (4, True), (5, False), (-1, None)])
def test_what_the_kernel_says_about_the_clock_is_understood(state: int, means: bool | None) -> None:
    """A wrong reading of adjtimex(2) would be a false alarm on every machine: only 5 is TIME_ERROR."""
    assert module._is_synchronised(lambda: state) is means


@pytest.mark.parametrize("error", [OSError, AttributeError])
def test_a_kernel_that_cannot_be_asked_is_no_trouble(error: type[Exception]) -> None:
    """Not every C library has the call."""

    def adjtimex() -> int:
        raise error

    assert module._is_synchronised(adjtimex) is None


def test_the_kernel_is_asked() -> None:
    """A call that never works would hide every clock that drifts; in a container it may be forbidden (-1)."""
    assert module._adjtimex() in range(-1, 6)


# --- listeners -------------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_trouble(make_bridge: MakeBridge) -> None:
    """The start would end with it."""
    bridge = make_bridge()
    with HTTPServer(("127.0.0.1", bridge.webhook), BaseHTTPRequestHandler):
        found = examined(bridge, code=1)
    told(found, "port: …", "webhook.listen", verdict="trouble", remedy="set webhook.listen to another address or port")


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
    remedy = "have the proxy or tunnel pass this path on"
    told(examined(bridge), "public address: …", "is not the bridge", verdict="warning", remedy=remedy)


def test_a_webhook_that_is_another_programs_is_trouble(bridge: Bridge, stranger: int) -> None:
    """The settings were changed, and the bridge was not started anew: the proxy already follows them."""
    bridge.environment["WHATSAPP2MQTT_WEBHOOK__LISTEN"] = f"127.0.0.1:{stranger}"
    remedy = "if webhook.listen was changed, start the bridge anew"
    told(examined(bridge, code=1), "webhook: …", "is not the bridge", verdict="trouble", remedy=remedy)


def test_a_public_address_where_nobody_answers_is_told(make_bridge: MakeBridge) -> None:
    """The tunnel is down, and nobody looks there."""
    bridge = make_bridge(webhook__public_url=f"http://127.0.0.1:{free_port()}").start()
    remedy = "look at the proxy or tunnel"
    told(examined(bridge), "public address: …", "nothing answers", verdict="warning", remedy=remedy)


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
    found = examined(make_bridge(mqtt__url=url), code=1)
    told(found, "…: …", "no connection to", verdict="trouble", remedy="see that it runs, and look at mqtt.url")


def test_a_wrong_password_is_trouble(make_bridge: MakeBridge, tmp_path: Path) -> None:
    """The second."""
    port, running = mosquitto(tmp_path, users=("bridge",))
    with running:
        url = f"mqtt://127.0.0.1:{port}"
        found = examined(make_bridge(mqtt__url=url, mqtt__username="bridge", mqtt__password="mistyped"), code=1)
        told(found, "…: …", "refuses us", verdict="trouble", remedy="mqtt.username and mqtt.password")
        assert "mistyped" not in json.dumps(found)


def with_rights(make_bridge: MakeBridge, port: int, protocol: str) -> Bridge:
    url = f"mqtt://127.0.0.1:{port}"
    return make_bridge(mqtt__url=url, mqtt__username="bridge", mqtt__password="right", mqtt__protocol=protocol)


RIGHTS = "allow the bridge to publish to whatsapp/#"


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_bridge_that_may_not_publish_is_trouble(make_bridge: MakeBridge, tmp_path: Path, protocol: str) -> None:
    """With MQTT 3.1.1 the broker acknowledges it all the same, and nothing ever arrives."""
    port, running = mosquitto(tmp_path, users=("bridge",), acl="user bridge\ntopic read whatsapp/#\n")
    with running:
        found = examined(with_rights(make_bridge, port, protocol), code=1)
    if protocol == "5":
        told(found, "…: it does not allow … (0x…)", "(0x87)", verdict="trouble", remedy=RIGHTS)
    else:
        told(found, "…: what is published to … does not come back", verdict="trouble", remedy=RIGHTS)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_bridge_that_may_not_read_is_trouble(make_bridge: MakeBridge, tmp_path: Path, protocol: str) -> None:
    """It never sees whether the broker gives back what it took."""
    port, running = mosquitto(tmp_path, users=("bridge",), acl="user bridge\ntopic write whatsapp/#\n")
    with running:
        found = examined(with_rights(make_bridge, port, protocol), code=1)
    told(
        found, "…: what is published to … does not come back", verdict="trouble", remedy="and to read whatsapp/bridge/"
    )


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize(
    ("allowed", "denied"),
    [
        ((), "%doctor/status, button/%doctor, last/%doctor, event/%doctor"),
        (("+/status", "button/+", "last/+"), "event/%doctor"),
        (("+/status", "event/#", "last/+"), "button/%doctor"),
        (("button/+", "event/#", "last/+"), "%doctor/status"),
        (("+/status", "button/+", "event/#"), "last/%doctor"),
    ],
    ids=["nothing", "no events", "no buttons", "no statuses", "nothing latest"],
)
def test_a_bridge_that_may_publish_only_about_itself_is_trouble(
    make_bridge: MakeBridge, tmp_path: Path, allowed: tuple[str, ...], denied: str, protocol: str
) -> None:
    """All looks well, and no update is ever delivered, or none of one kind."""
    topics = [f"whatsapp/{one}" for one in ("bridge/#", *allowed)] + ["homeassistant/#"]
    acl = "".join(f"topic readwrite {topic}\n" for topic in topics)
    port, running = mosquitto(tmp_path, users=("bridge",), acl=f"user bridge\n{acl}")
    with running:
        found = examined(with_rights(make_bridge, port, protocol), code=1)
    what = "…: it does not allow … below …/"
    told(found, what, f"it does not allow {denied} below whatsapp/", verdict="trouble", remedy=RIGHTS)


def test_a_look_at_the_rights_fires_nothing(make_bridge: MakeBridge, tmp_path: Path) -> None:
    """An automation that does not look at the payload would open the gate whenever somebody asks the doctor."""
    port, running = mosquitto(tmp_path)
    with running, Subscriber(port, "whatsapp/#") as subscriber:
        found = examined(make_bridge(mqtt__url=f"mqtt://127.0.0.1:{port}"))
        assert "may publish updates" in found[f"broker mqtt://127.0.0.1:{port}"][-1]["words"]
        subscriber.publish("whatsapp/end", "end")
        subscriber.wait("whatsapp/end")
        came = [(one.topic, one.payload) for one in subscriber.heard if not one.topic.startswith("whatsapp/bridge/")]
        families = ("%doctor/status", "button/%doctor", "last/%doctor", "event/%doctor")
        assert came == [*((f"whatsapp/{one}", "") for one in families), ("whatsapp/end", "end")]
        assert not any(paho.topic_matches_sub("whatsapp/event/+/+", topic) for topic, _ in came)
        with Subscriber(port, "whatsapp/#") as later:
            later.publish("whatsapp/end", "end")
            later.wait("whatsapp/end")
            assert [one.topic for one in later.heard] == ["whatsapp/end"], "nothing is left on the broker"


def test_a_broker_that_speaks_the_old_version_alone_cannot_say(make_bridge: MakeBridge, tmp_path: Path) -> None:
    """'All is well' would be a guess: by MQTT 3.1.1 what is not allowed is acknowledged."""
    with EmbeddedThread(find_program(), tmp_path) as broker:
        url = f"mqtt://127.0.0.1:{broker.port}"
        found = examined(make_bridge(mqtt__url=url), code=0)
    assert "MQTT 3.1.1 alone" in only(found, f"broker {url}", "skipped")["words"]
    assert RIGHTS in only(found, f"broker {url}", "skipped")["remedy"]


def test_a_broker_that_keeps_nothing_is_trouble(make_bridge: MakeBridge, tmp_path: Path) -> None:
    """Dashboards would be empty after each restart."""
    port, running = mosquitto(tmp_path, "retain_available false")
    with running:
        found = examined(make_bridge(mqtt__url=f"mqtt://127.0.0.1:{port}", mqtt__protocol="5"), code=1)
    told(found, "…: it keeps no retained messages", verdict="trouble", remedy="mosquitto: retain_available")


@contextlib.contextmanager
def silent_broker(*, hangs_up: bool) -> Iterator[int]:
    """A broker of MQTT 3.1.1 that lets everybody in, and answers nothing more; at its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    line, _ = listener.accept()
                    with line:
                        line.recv(1_000)
                        line.sendall(b"\x20\x02\x00\x00")
                        line.recv(1_000)
                        while not hangs_up and line.recv(1_000):
                            pass

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


def at_once(monkeypatch: pytest.MonkeyPatch, port: int) -> Findings:
    """What is found at a broker that nobody waits for."""
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    monkeypatch.setattr(mqtt, "CONNACK_TIMEOUT", 0.5)
    found = settings(mqtt__url=f"mqtt://127.0.0.1:{port}", mqtt__protocol="3.1.1", homeassistant__discovery="false")
    return seen(*module._brokers(found, is_running=False))


def test_a_broker_that_acknowledges_nothing_is_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes everything and keeps nothing; the bridge sends the same again and again."""
    with silent_broker(hangs_up=False) as port:
        found = at_once(monkeypatch, port)
    told(found, "…: it acknowledges nothing", verdict="trouble", remedy="its disk may be full")


def test_a_broker_that_hangs_up_at_what_it_does_not_allow_is_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some do: to the bridge it looks like a broken line, again and again."""
    with silent_broker(hangs_up=True) as port:
        found = at_once(monkeypatch, port)
    told(found, "…: …, while it was tried", "ended the connection", verdict="trouble", remedy=RIGHTS)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_discovery_that_is_not_allowed_is_trouble(make_bridge: MakeBridge, tmp_path: Path, protocol: str) -> None:
    """No device ever appears in Home Assistant."""
    port, running = mosquitto(tmp_path, users=("bridge",), acl="user bridge\ntopic readwrite whatsapp/#\n")
    with running:
        found = examined(with_rights(make_bridge, port, protocol), code=1)
    what = "Home Assistant: the broker does not allow … (0x…)"
    told(found, what, "homeassistant/sensor/", verdict="trouble", remedy="publish to homeassistant/#, or set")


def test_home_assistants_presence_is_seen(make_bridge: MakeBridge, tmp_path: Path) -> None:
    """'Is it at the same broker?' is the question when no device appears."""
    port, running = mosquitto(tmp_path)
    with running:
        bridge = make_bridge(mqtt__url=f"mqtt://127.0.0.1:{port}").start()
        what = "Home Assistant: it has not said on this broker that it is there, which it does when it starts"
        told(examined(bridge, code=0), what, verdict="warning", remedy="with the discovery prefix homeassistant")
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


@contextlib.contextmanager
def encrypted(folder: Path, found: Path, key: Path) -> Iterator[str]:
    """A mosquitto with this certificate; at its address."""
    port, running = mosquitto(folder, f"certfile {found}", f"keyfile {key}")
    with running:
        yield f"mqtts://127.0.0.1:{port}"


def test_a_brokers_certificate_that_holds_is_no_trouble(
    make_bridge: MakeBridge, tmp_path: Path, certificate: Certificate
) -> None:
    """Who is told to renew it for nothing does not look when it is time."""
    found, key = certificate(90)
    with encrypted(tmp_path, found, key) as url:
        seen = examined(make_bridge(mqtt__url=url, mqtt__tls__ca=str(found)), code=0)[f"broker {url}"]
    assert {one["verdict"] for one in seen} == {"ok"}
    assert "holds for 9" in seen[0]["words"]


def test_the_end_of_a_brokers_certificate_is_told_before(
    make_bridge: MakeBridge, tmp_path: Path, certificate: Certificate
) -> None:
    """One morning nothing works any more."""
    found, key = certificate(5)
    with encrypted(tmp_path, found, key) as url:
        seen = examined(make_bridge(mqtt__url=url, mqtt__tls__ca=str(found)), code=0)
    told(seen, "…: its certificate holds for … days", verdict="warning", remedy="renew it")


@pytest.mark.parametrize(
    ("days", "host", "knows", "words", "remedy"),
    [
        (-1, "127.0.0.1", True, "expired", "renew it at the broker, or set this machine's clock"),
        (90, "127.0.0.1", False, "self-signed", "set mqtt.tls.ca to the file of the CA"),
        (90, "localhost", True, "mismatch", "write a name that stands in it in mqtt.url"),
    ],
    ids=["expired", "self-signed", "another name"],
)
def test_a_brokers_certificate_that_is_not_trusted_is_trouble(
    make_bridge: MakeBridge,
    tmp_path: Path,
    certificate: Certificate,
    days: int,
    host: str,
    knows: bool,
    words: str,
    remedy: str,
) -> None:
    """To renew a certificate that is signed by itself, or has another name, mends nothing."""
    found, key = certificate(days)
    with encrypted(tmp_path, found, key) as url:
        more = {"mqtt__tls__ca": str(found)} if knows else {}
        seen = examined(make_bridge(mqtt__url=url.replace("127.0.0.1", host), **more), code=1)
    told(seen, "…: …", words, verdict="trouble", remedy=remedy)


@pytest.mark.parametrize("knows", [True, False])
def test_a_brokers_certificate_that_is_not_checked_is_told(
    make_bridge: MakeBridge, tmp_path: Path, certificate: Certificate, knows: bool
) -> None:
    """The bridge connects, so it is no trouble; and anyone on the way reads the password."""
    found, key = certificate(90)
    unchecked = "set mqtt.tls.dangerously_accept_any_certificate to false"
    with encrypted(tmp_path, found, key) as url:
        more = {"mqtt__tls__ca": str(found)} if knows else {}
        bridge = make_bridge(mqtt__url=url, mqtt__tls__dangerously_accept_any_certificate="true", **more)
        seen = examined(bridge, code=0)
    if knows:
        told(seen, "…: its certificate is trusted, and not checked", verdict="warning", remedy=unchecked)
    else:
        what, remedy = "…: its certificate is not trusted (…), and not checked", f"signed it; then {unchecked}"
        told(seen, what, "self-signed", verdict="warning", remedy=remedy)


@pytest.mark.parametrize(
    ("days", "host", "words", "remedy"),
    [
        (-1, "127.0.0.1", "expired", "renew it, or set this machine's clock"),
        (90, "127.0.0.1", "self-signed", "get one from a public authority"),
        (90, "localhost", "mismatch", "write a name that stands in it in webhook.public_url"),
    ],
    ids=["expired", "self-signed", "another name"],
)
def test_a_public_address_whose_certificate_is_not_trusted_is_trouble(
    make_bridge: MakeBridge, certificate: Certificate, days: int, host: str, words: str, remedy: str
) -> None:
    """WhatsApp wants a real one, and says only that it cannot connect."""
    found, key = certificate(days)
    with served(make_bridge, found, key, host) as bridge:
        if words != "self-signed":
            bridge.environment["SSL_CERT_FILE"] = str(found)  # this machine trusts it, as to who signed it
        seen = examined(bridge, code=1)
    what = "public address: its certificate is not trusted: …"
    told(seen, what, words, verdict="trouble", remedy=remedy)


def test_a_public_address_that_leaves_out_who_signed_it_is_trouble(
    make_bridge: MakeBridge, certificate: Certificate, tmp_path: Path
) -> None:
    """Browsers know the authority between from elsewhere, so it looks well; WhatsApp does not."""
    authority, its_key = certificate(90)
    found, key = tmp_path / "leaf.pem", tmp_path / "leaf.key"
    asks = [
        "req",
        "-x509",
        "-new",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=leaf",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    signs = ["-CA", authority, "-CAkey", its_key, "-keyout", key, "-out", found]
    subprocess.run([program("openssl"), *asks, *signs], check=True, capture_output=True)
    with served(make_bridge, found, key, "127.0.0.1") as bridge:
        seen = examined(bridge, code=1)
    what = "public address: its certificate is not trusted: …"
    told(seen, what, "unable to get local issuer", verdict="trouble", remedy="send the whole chain (fullchain.pem)")


@contextlib.contextmanager
def served(make_bridge: MakeBridge, found: Path, key: Path, host: str) -> Iterator[Bridge]:
    """A bridge whose public address has this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(found, key)
    with HTTPServer(("127.0.0.1", 0), Other) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield make_bridge(webhook__public_url=f"https://{host}:{server.server_address[1]}")
        server.shutdown()


# --- none is left out ------------------------------------------------------------------------------------------------


def text(node: ast.expr, known: dict[str, ast.expr]) -> str:
    """A text of the source, `…` for what is put in; of a name, what was given to it last."""
    if isinstance(node, ast.Name) and node.id in known:
        return text(known[node.id], {})
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "…"


def calls(function: ast.FunctionDef) -> Iterator[tuple[ast.Call, dict[str, ast.expr]]]:
    """Each call in a function, and what its names stand for there."""
    known: dict[str, ast.expr] = {}
    for node in sorted((one for one in ast.walk(function) if hasattr(one, "lineno")), key=lambda one: one.lineno):
        if isinstance(node, ast.Assign):
            names, values = node.targets[0], node.value
            if isinstance(names, ast.Tuple):
                count = len(names.elts)
                pairs = zip(names.elts, values.elts if isinstance(values, ast.Tuple) else [values] * count, strict=True)
            else:
                pairs = zip([names], [values], strict=True)
            known |= {name.id: value for name, value in pairs if isinstance(name, ast.Name)}
        if isinstance(node, ast.Call):
            yield node, dict(known)


def functions(file: str | Path) -> list[ast.FunctionDef]:
    return [one for one in ast.walk(ast.parse(Path(file).read_text())) if isinstance(one, ast.FunctionDef)]


def findings_in_source() -> Counter[str]:
    """Each place where something is found that is not well."""
    found: Counter[str] = Counter()
    for function in functions(module.__file__):
        for call, known in calls(function):
            made = call.func
            if isinstance(made, ast.Attribute) and made.attr == "_trouble":
                found[f"…: {text(call.args[0], known)}"] += 1
            elif isinstance(made, ast.Name) and made.id == "Finding" and function.name != "_trouble":
                name, verdict, words = call.args[:3]
                assert isinstance(verdict, ast.Attribute)
                if verdict.attr in ("WARNING", "TROUBLE"):
                    found[f"{text(name, known)}: {text(words, known)}"] += 1
    return found


def findings_in_tests() -> Counter[str]:
    found: Counter[str] = Counter()
    for function in functions(__file__):
        for call, known in calls(function):
            if isinstance(call.func, ast.Name) and call.func.id == "told":
                found[text(call.args[1], known)] += 1
    return found


def test_each_finding_has_a_test() -> None:
    """A fault that nobody has seen it find is one that it may not find, or whose remedy is wrong."""
    source, tests = findings_in_source(), findings_in_tests()
    assert len(source) > 25, "they are not recognised any more"
    assert source - tests == Counter()
    assert set(tests) - set(source) == set(), "tests of what is no longer said"
