"""Settings: what a user may write, what is refused, and that every refusal says where and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from voluptuous import Invalid

from bridge import config
from bridge.config import (
    Address,
    BrokerUrl,
    ConfigError,
    Loaded,
    Settings,
    leaves,
    load,
    sections,
    state_directory,
)

Check = Callable[[object], Any]
Write = Callable[[str], Path]

SECRET = "Sunflower-Quartz-94"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> Path:
        file = tmp_path / "config.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return written


def problems(file: Path | None = None, environ: Mapping[str, str] | None = None) -> list[str]:
    """What is wrong, line by line, without the folder of the file."""
    with pytest.raises(ConfigError) as caught:
        load(file, environ or {})
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [one.replace(f"{file.parent}/", "") if file else one for one in caught.value.problems]


# --- without anything --------------------------------------------------------------------------------------------


def test_no_settings_at_all_run() -> None:
    """Who just wants to try it would have to read the documents first."""
    loaded = load(None, {})
    settings = loaded.settings
    assert settings == Settings()
    assert str(settings.webhook.listen) == "127.0.0.1:8080"
    assert (settings.webhook.path, settings.webhook.workers, settings.webhook.max_body) == ("/webhook", 1, 3 * 2**20)
    assert settings.mqtt.is_embedded
    assert settings.brokers == (BrokerUrl("mqtt", "127.0.0.1", 1883),)
    assert (settings.mqtt.base_topic, settings.mqtt.protocol, settings.mqtt.encode_dots) == ("whatsapp", "auto", False)
    assert settings.events.max_age == 300
    assert not settings.webhook.auth.is_set
    assert loaded.origins == {}


def test_every_setting_has_a_default_a_check_and_a_sentence() -> None:
    """A setting would be missing from the example and the documents, or its default would be refused when written."""
    for key, metadata in leaves(Settings):
        assert metadata["about"].endswith("."), key
        metadata["check"](metadata["default"])
    for key, about in sections():
        assert about.endswith("."), key


def test_writing_every_default_changes_nothing(write: Write) -> None:
    """A user who copies the example would get another program than one who does not."""
    lines: list[str] = []
    seen: set[config.Key] = set()
    for key, metadata in leaves(Settings):
        for depth in range(1, len(key)):
            if key[:depth] not in seen:
                seen.add(key[:depth])
                lines.append(f"{'  ' * (depth - 1)}{key[depth - 1]}:")
        default = metadata["default"]
        shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else default
        lines.append(f"{'  ' * (len(key) - 1)}{key[-1]}: {shown}")
    loaded = load(write("\n".join(lines)), {})
    assert loaded.settings == load(None, {}).settings
    assert len(loaded.origins) == len(lines)


def test_an_empty_file_and_empty_sections_are_all_defaults(write: Write) -> None:
    """A file in which everything is commented out would be refused."""
    for text in ("", "# nothing\n", "---\n", "webhook:\nmqtt:\n  tls:\n  embedded: {}\n", "{}", "null"):
        assert load(write(text), {}).settings == Settings()


def test_all_that_is_left_out_keeps_its_default(write: Write) -> None:
    """Setting one value would need all of its neighbours."""
    settings = load(write("mqtt: {tls: {dangerously_accept_any_certificate: true}}"), {}).settings
    assert settings.mqtt.tls.dangerously_accept_any_certificate
    assert settings.mqtt.tls.ca is None
    assert settings.mqtt.base_topic == "whatsapp"


def test_what_was_written_and_where_can_be_told(write: Write) -> None:
    """`check` could not say which of file and environment is in force."""
    file = write("webhook:\n  workers: 2\n  connections: 300\n")
    environ = {"WHATSAPP2MQTT_WEBHOOK__CONNECTIONS": "400", "WHATSAPP2MQTT_CONFIG": str(file), "HOME": "/root"}
    loaded = load(file, environ)
    assert isinstance(loaded, Loaded)
    assert (loaded.settings.webhook.workers, loaded.settings.webhook.connections) == (2, 400)
    written = {name: str(loaded.written[name]) for name in ("webhook.workers", "webhook.connections", "webhook.path")}
    assert written == {"webhook.workers": "2", "webhook.connections": "400", "webhook.path": "/webhook"}
    assert set(loaded.written) == {".".join(key) for key, _ in leaves(Settings)}
    assert loaded.origins["webhook.workers"] == f"{file}:2"
    assert loaded.origins["webhook.connections"] == "WHATSAPP2MQTT_WEBHOOK__CONNECTIONS"
    assert "webhook.path" not in loaded.origins


def test_the_process_environment_is_read_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers could not be configured at all."""
    monkeypatch.setenv("WHATSAPP2MQTT_MQTT__BASE_TOPIC", "home/whatsapp")
    assert load(None).settings.mqtt.base_topic == "home/whatsapp"
    assert load(None, {}).settings.mqtt.base_topic == "whatsapp"


# --- checks ------------------------------------------------------------------------------------------------------

ACCEPTED: list[tuple[Check, object, object]] = [
    (config.address, "127.0.0.1:8080", Address("127.0.0.1", 8080)),
    (config.address, "0.0.0.0:0", Address("0.0.0.0", 0)),
    (config.address, "localhost:65535", Address("127.0.0.1", 65535)),
    (config.address, "[::1]:8080", Address("::1", 8080)),
    (config.address, "[::]:8080", Address("::", 8080)),
    (config.duration, "5m", 300.0),
    (config.duration, "1h30m", 5400.0),
    (config.duration, "1h 30m 10s", 5410.0),
    (config.duration, "7d", 604_800.0),
    (config.duration, "2w", 1_209_600.0),
    (config.duration, "250ms", 0.25),
    (config.duration, "1.5h", 5400.0),
    (config.duration, " 10 s ", 10.0),
    (config.duration, "90", 90.0),
    (config.duration, 90, 90.0),
    (config.duration, 0.5, 0.5),
    (config.duration_or_off, "off", None),
    (config.duration_or_off, "OFF", None),
    (config.duration_or_off, False, None),
    (config.duration_or_off, "5m", 300.0),
    (config.size, "3MiB", 3 * 2**20),
    (config.size, "3 mib", 3 * 2**20),
    (config.size, "500kB", 500_000),
    (config.size, "2MB", 2_000_000),
    (config.size, "1GB", 10**9),
    (config.size, "1.5KiB", 1536),
    (config.size, "1GiB", 2**30),
    (config.size, "100b", 100),
    (config.size, "100", 100),
    (config.size, 100, 100),
    (config.whole(1, 16), 1, 1),
    (config.whole(1, 16), "16", 16),
    (config.whole_or_off(1, 16), "16", 16),
    (config.whole_or_off(1, 16), "off", None),
    (config.whole_or_off(1, 16), False, None),
    (config.yes_or_no, True, True),
    (config.yes_or_no, False, False),
    (config.yes_or_no, "yes", True),
    (config.yes_or_no, "On", True),
    (config.yes_or_no, "TRUE", True),
    (config.yes_or_no, "off", False),
    (config.yes_or_no, "no", False),
    (config.yes_or_no, "false", False),
    (config.one_of("auto", "5"), "auto", "auto"),
    (config.one_of("auto", "5"), 5, "5"),
    (config.text, "hello", "hello"),
    (config.text, "", ""),
    (config.text, 5, "5"),
    (config.text, 1.5, "1.5"),
    (config.text_or_none, None, None),
    (config.text_or_none, "x", "x"),
    (config.file_or_none, None, None),
    (config.many(config.text), None, ()),
    (config.many(config.text), [], ()),
    (config.many(config.text), "one", ("one",)),
    (config.many(config.text), ["one", 2], ("one", "2")),
    (config.secret, SECRET, SECRET),
    (config.path_token, "abc-DEF_.~12345", "abc-DEF_.~12345"),
    (config.path_token, "x" * 200, "x" * 200),
    (config.path_token, "x" * 8, "x" * 8),
    (config.pair("user", "password"), "ada:a:b", "ada:a:b"),
    (config.network, "203.0.113.7", "203.0.113.7/32"),
    (config.network, "203.0.113.7/24", "203.0.113.0/24"),
    (config.network, "2001:db8::/32", "2001:db8::/32"),
    (config.header_name, "X-Webhook-Token", "X-Webhook-Token"),
    (config.url_path, "/webhook", "/webhook"),
    (config.url_path, "/a/b-c_d.e~f", "/a/b-c_d.e~f"),
    (config.base_topic, "whatsapp", "whatsapp"),
    (config.base_topic, "home/whats-app_1.x", "home/whats-app_1.x"),
    (config.base_topic, "x" * 100, "x" * 100),
    (config.broker_url, "embedded", BrokerUrl("embedded")),
    (config.broker_url, "mqtt://10.0.0.2", BrokerUrl("mqtt", "10.0.0.2", 1883)),
    (config.broker_url, "mqtt://10.0.0.2/", BrokerUrl("mqtt", "10.0.0.2", 1883)),
    (config.broker_url, "mqtts://Broker.example.org", BrokerUrl("mqtts", "broker.example.org", 8883)),
    (config.broker_url, "ws://broker", BrokerUrl("ws", "broker", 80, "/mqtt")),
    (config.broker_url, "wss://broker:9001/a/b", BrokerUrl("wss", "broker", 9001, "/a/b")),
    (config.broker_url, "mqtt://[::1]:1884", BrokerUrl("mqtt", "::1", 1884)),
    (config.broker_url, "mqtt://ada@broker", BrokerUrl("mqtt", "broker", 1883, "", "ada")),
    (config.broker_url, "mqtt://a%40b:p%40ss%3A@broker", BrokerUrl("mqtt", "broker", 1883, "", "a@b", "p@ss:")),
    (config.broker_url, "mqtt://me@example.org:x@broker", BrokerUrl("mqtt", "broker", 1883, "", "me@example.org", "x")),
    (config.journal_url, "sqlite", None),
    (config.journal_url, "sqlite:///var/lib/j.db", Path("/var/lib/j.db")),
    (config.journal_url, "sqlite:////var/lib/j.db", Path("/var/lib/j.db")),
]


@pytest.mark.parametrize(("check", "written", "used"), ACCEPTED)
def test_what_a_user_may_write_is_what_the_program_uses(check: Check, written: object, used: object) -> None:
    """A setting would mean something else than the documents say."""
    result = check(written)
    assert result == used
    assert type(result) is type(used)


REFUSED: list[tuple[Check, str, list[object]]] = [
    (
        config.address,
        "host:port",
        ["", "8080", 8080, "127.0.0.1", ":8080", "127.0.0.1:", "127.0.0.1:65536", "::1:8080", None],
    ),
    (
        config.address,
        "host:port",
        ["127.0.0.1:8080 ", "127.0.0.1:8080\n", "[::1]", "[::1]:x", "a:b:1", "127.0.0.1:-1", {}],
    ),
    (
        config.address,
        "numeric",
        ["example.org:80", "[abc]:80", "[12345::]:80", "256.0.0.1:80", "LOCALHOST:80", " 127.0.0.1:80"],
    ),
    (
        config.duration,
        "5m",
        ["", "m", "5x", "5 minutes", "-5m", "m5", "5m5", "5m,3s", "1e3", None, True, [], "0x5", "1_000"],
    ),
    (config.duration_or_off, "5m", ["of", True, None, "none", "-1"]),
    (config.size, "3MiB", ["", "MiB", "3TB", "-3", "3k", "3 M B", None, True, [], "1_000"]),
    (
        config.whole(1, 16),
        "from 1 to 16",
        [0, 17, "0", "17", -1, "-1", 1.0, "1.5", "", "one", None, True, [], "1 ", "1\n"],
    ),
    (config.yes_or_no, "neither", ["", "y", 1, 0, "1", None, [], "true "]),
    (config.one_of("auto", "5"), "auto, 5", ["", "AUTO", "5.0", None, [], "3"]),
    (config.text, "no text", [None, True, False, [], {}, ["x"]]),
    (config.text_or_none, "no text", [True, [], {}]),
    (config.file_or_none, "does not exist", ["/nowhere/at/all", "", "/", "a\0b"]),
    (config.file_or_none, "no text", [True, ["/etc/hosts"]]),
    (config.many(config.text), "no text", [[None], ["x", []], {}, True]),
    (config.secret, "is empty", ["", " ", "\t\n"]),
    (config.secret, "no text", [None, True, [], {}]),
    (
        config.path_token,
        "8 to 200",
        ["x" * 7, "x" * 201, "with space", "with/slash", "with%20x", "\u00fcml\u00e4utte", "abcdefgh\n"],
    ),
    (config.path_token, "is empty", [""]),
    (config.pair("user", "password"), "user:password", ["ada", "ada:", ":secret", ":"]),
    (config.pair("user", "password"), "is empty", [""]),
    (config.network, "203.0.113.0/24", ["", "example.org", "203.0.113.7/33", "203.0.113", 5, "203.0.113.0-9"]),
    (config.network, "no text", [None, ["203.0.113.7"]]),
    (
        config.header_name,
        "X-Webhook-Token",
        ["", "X Token", "X:Token", "X_Token", "x" * 101, "X-Token\n", "T\u00f6ken"],
    ),
    (
        config.url_path,
        "/webhook",
        ["", "/", "webhook", "/webhook/", "//webhook", "/web hook", "/w?x=1", "/w#x", "/w%20", "/w\n"],
    ),
    (
        config.base_topic,
        "home/whatsapp",
        ["", "/whatsapp", "whatsapp/", "a//b", "a/+", "#", "$SYS", "a b", "x" * 101, "a\n", "\u00fc"],
    ),
    (
        config.broker_url,
        "is no broker",
        ["", "broker", "http://broker", "mqtt:", "mqtt://", "mqtt://:1883", "EMBEDDED", "tcp://broker"],
    ),
    (config.broker_url, "1 to 65535", ["mqtt://broker:65536", "mqtt://broker:x", "mqtt://broker:-1"]),
    (
        config.broker_url,
        "behind the host",
        ["mqtt://broker/topic", "mqtts://broker/x", "mqtt://broker?x=1", "wss://broker/mqtt#x"],
    ),
    (config.broker_url, "no text", [None, True, ["mqtt://broker"]]),
    (
        config.journal_url,
        "is no journal",
        ["", "journal.db", "/var/journal.db", "sqlite://", "sqlite:///", "sqlite://x/y", "mysql://x", "sqlite:///a\0b"],
    ),
    (config.journal_url, "no text", [None, True]),
]


@pytest.mark.parametrize(
    ("check", "hint", "written"),
    [pytest.param(check, hint, one, id=f"{hint}-{one!r}"[:60]) for check, hint, several in REFUSED for one in several],
)
def test_what_cannot_be_used_is_refused_with_what_to_write(check: Check, hint: str, written: object) -> None:
    """A slip of the pen would be taken for a value, and found out at three in the morning."""
    with pytest.raises(Invalid) as caught:
        check(written)
    assert hint in str(caught.value)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.from_regex(r"[a-z0-9:/@.\[\] %+-]{0,20}"),
    lambda children: st.lists(children, max_size=2) | st.dictionaries(st.text(max_size=3), children, max_size=2),
    max_leaves=4,
)
#: Sizes and files have known holes, each with a test of its own below.
CHECKS = sorted({m["check"] for _, m in leaves(Settings)}, key=str)


@given(st.sampled_from(CHECKS), ANYTHING)
def test_no_check_fails_in_any_other_way(check: Check, written: object) -> None:
    """A setting that nobody thought of would end in a stack of calls instead of a sentence."""
    try:
        check(written)
    except Invalid as error:
        reason = str(error)
        assert reason


@pytest.mark.parametrize("written", ["3ib", "9" * 400])
def test_a_size_without_a_meaning_is_refused(written: str) -> None:
    """A slip of the pen would end in a stack of calls instead of a sentence."""
    with pytest.raises(Invalid):
        config.size(written)


@pytest.mark.parametrize("written", ["~nobody-of-this-name/ca.pem", "x" * 300])
def test_a_file_that_cannot_be_looked_for_is_refused(written: str) -> None:
    """A slip of the pen would end in a stack of calls instead of a sentence."""
    with pytest.raises(Invalid):
        config.file_or_none(written)


def test_a_broker_has_no_port_0() -> None:
    """The bridge would connect to 1883, which nobody wrote."""
    with pytest.raises(Invalid, match="1 to 65535"):
        config.broker_url("mqtt://broker:0")


def test_a_broken_address_of_a_broker_is_not_blamed_on_its_port() -> None:
    """The user would look for a mistake where there is none."""
    with pytest.raises(Invalid) as caught:
        config.broker_url("mqtt://[::1")
    assert "port" not in str(caught.value)


def test_files_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate that is there would be refused."""
    (tmp_path / "ca.pem").write_text("pem")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.file_or_none(str(tmp_path / "ca.pem")) == tmp_path / "ca.pem"
    assert config.file_or_none("~/ca.pem") == tmp_path / "ca.pem"


@given(st.integers(0, 10**6), st.sampled_from(sorted(config._SECONDS)))
def test_a_duration_is_its_number_times_its_unit(number: int, unit: str) -> None:
    """Five minutes would be five months."""
    factor = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}[unit]
    assert config.duration(f"{number}{unit}") == pytest.approx(number * factor)
    assert config.duration(f"{number}{unit} 1s") == pytest.approx(number * factor + 1)


@given(st.integers(0, 10**6), st.sampled_from(["", "B", "kB", "MB", "GB", "KiB", "MiB", "GiB"]))
def test_a_size_is_its_number_times_its_unit(number: int, unit: str) -> None:
    """The largest POST would be refused, or one that fills the memory taken."""
    powers = {"": 1, "B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
    assert config.size(f"{number}{unit}") == config.size(f"{number} {unit}") == number * powers[unit]


@given(st.ip_addresses(), st.integers(0, 65535))
def test_an_address_is_written_as_it_was_read(host: Any, port: int) -> None:
    """The line in the log could not be copied back into the settings."""
    written = f"[{host}]:{port}" if host.version == 6 else f"{host}:{port}"
    if host.version == 6 and host.scope_id:
        return
    address = config.address(written)
    assert str(address) == written
    assert address.is_loopback == config.is_loopback(str(host)) == host.is_loopback


@pytest.mark.parametrize(
    ("host", "own"),
    [
        *((host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.2", "", "example.org")),
        *((host, False) for host in ("localhost.example.org", "127.0.0.1.example.org")),
    ],
)
def test_only_this_machine_is_loopback(host: str, own: bool) -> None:
    """A listener open to the world, or a password sent across it, would be taken for harmless."""
    assert config.is_loopback(host) is own


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("embedded", "embedded"),
        ("mqtt://ada:secret@broker", "mqtt://broker:1883"),
        ("wss://ada:secret@broker/x", "wss://broker:443/x"),
        ("mqtt://ada:secret@[::1]:1884", "mqtt://[::1]:1884"),
    ],
)
def test_a_broker_is_shown_without_user_and_password(written: str, shown: str) -> None:
    """The password would stand in the log and in whatsapp/bridge/info."""
    url = config.broker_url(written)
    assert str(url) == shown
    assert "secret" not in repr(url)


def test_a_broker_knows_whether_it_is_encrypted() -> None:
    """A password would be sent in the clear, or refused where it is safe."""
    encrypted = [config.broker_url(f"{scheme}://broker").is_encrypted for scheme in ("mqtt", "mqtts", "ws", "wss")]
    assert encrypted == [False, True, False, True]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("embedded", "embedded"),
        ("mqtt://broker:1883", "mqtt://broker:1883"),
        ("mqtt://ada@broker:1883", "mqtt://ada@broker:1883"),
        ("mqtt://ada:secret@broker:1883", "mqtt://ada:********@broker:1883"),
        ("wss://ada:sec:ret@broker/mqtt", "wss://ada:********@broker/mqtt"),
        ("mqtt://:secret@broker", "mqtt://:********@broker"),
    ],
)
def test_the_password_in_a_broker_s_address_is_hidden(written: str, shown: str) -> None:
    """`check` would print it, and users post what `check` prints."""
    assert config.hide_password(written) == shown


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("mqtt://me@example.org:secret@broker", "mqtt://me@example.org:********@broker"),
        ("mqtt://ada:s@cret@broker", "mqtt://ada:********@broker"),
        ("ws://broker:80/a:b@c", "ws://broker:80/a:b@c"),
    ],
)
def test_the_password_is_hidden_whatever_stands_around_it(written: str, shown: str) -> None:
    """Where the user's name is an address of e-mail, `check` would print the password."""
    config.broker_url(written)
    assert config.hide_password(written) == shown


def test_secrets_are_hidden_and_still_counted() -> None:
    """`check` would print them, or not say that they are set."""
    assert config.hidden([SECRET, SECRET]) == [config.HIDDEN] * 2
    assert config.hidden(SECRET) == config.HIDDEN
    assert (config.hidden([]), config.hidden(None), config.hidden("")) == ([], None, "")


# --- the file ----------------------------------------------------------------------------------------------------


def test_a_file_is_read(write: Write) -> None:
    """Settings that were written would have no effect."""
    text = """
    webhook:
      listen: 0.0.0.0:8080
      auth:
        path_token: [sunflower-quartz, meadow-granite]
        addresses: 203.0.113.0/24
    mqtt:
      url: mqtts://ada:secret@broker
      encode_dots: yes
      protocol: 5
    events: {max_age: off}
    log:
      level: "debug"
    """
    settings = load(write(text), {}).settings
    assert settings.webhook.listen == Address("0.0.0.0", 8080)
    assert settings.webhook.auth.path_token == ("sunflower-quartz", "meadow-granite")
    assert settings.webhook.auth.addresses == ("203.0.113.0/24",)
    assert settings.mqtt.url == (BrokerUrl("mqtts", "broker", 8883, "", "ada", "secret"),)
    assert (settings.mqtt.encode_dots, settings.mqtt.protocol) == (True, "5")
    assert settings.events.max_age is None
    assert settings.log.level == "debug"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The bridge would start with its defaults, and nobody would know why."""
    missing = tmp_path / "nothing.yaml"
    assert problems(missing) == [
        "nothing.yaml: cannot be read: No such file or directory; name an existing file with --config"
    ]
    assert "cannot be read: Is a directory" in problems(tmp_path)[0]
    (tmp_path / "latin.yaml").write_bytes(b"mqtt: {username: J\xf6rg}")
    assert problems(tmp_path / "latin.yaml") == ["latin.yaml: is not UTF-8; save it as UTF-8"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("webhook:\n\tpath: /x", 2),
        ("webhook:\n  path: [a, b", 2),
        ("log:\n  level: info\n format: json", 3),
        ('log:\n  level: "info', 2),
        ("a: b: c", 1),
        ("log: {}\n---\nlog: {}\n", 2),
        ("log: @info", 1),
    ],
)
def test_what_is_not_yaml_is_told_with_its_line(write: Write, text: str, line: int) -> None:
    """The user would search a whole file for one tab."""
    (problem,) = problems(write(text))
    assert problem.startswith(f"config.yaml:{line}: is not YAML: ")
    assert problem.endswith("; look at indentation and quotes")


def test_characters_that_yaml_forbids_are_told(write: Write) -> None:
    """An editor's stray control character would end in a stack of calls."""
    (problem,) = problems(write("log:\n  level: in\x07fo\n"))
    assert problem.startswith("config.yaml: is not YAML: unacceptable character #x0007")
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("just a text", "config.yaml:1: the file: must hold settings as `name: value`, each on its line"),
        ("- webhook", "config.yaml:1: the file: must hold settings as `name: value`, each on its line"),
        ("\nwebhook: 8080", "config.yaml:2: webhook: must hold settings as `name: value`, each on its line"),
        (
            "webhook:\n  auth:\n    - x",
            "config.yaml:3: webhook.auth: must hold settings as `name: value`, each on its line",
        ),
        ("webhok:\n  path: /x", "config.yaml:1: webhok: is no setting; did you mean webhook?"),
        ("webhook:\n  pth: /x", "config.yaml:2: webhook.pth: is no setting; did you mean webhook.path?"),
        (
            "webhook:\n  path_token: x",
            "config.yaml:2: webhook.path_token: is no setting; did you mean webhook.auth.path_token?",
        ),
        ("encode_dots: true", "config.yaml:1: encode_dots: is no setting; did you mean mqtt.encode_dots?"),
        ("max_age: 5m", "config.yaml:1: max_age: is no setting; did you mean events.max_age?"),
        ("zzzz: 1", "config.yaml:1: zzzz: is no setting; config.example.yaml shows all of them"),
        (
            "webhook: {path: /x}\nlog: {}\nwebhook: {path: /y}",
            "config.yaml:3: webhook: stands twice; the other is at config.yaml:1",
        ),
        (
            "log:\n  level: info\n  level: debug",
            "config.yaml:3: log.level: stands twice; the other is at config.yaml:2",
        ),
        ("log:\n  level: loud", "config.yaml:2: log.level: 'loud' is none of debug, info, warning, error"),
        ("webhook:\n  workers:\n    two", "config.yaml:2: webhook.workers: 'two' is no whole number from 1 to 16"),
        ("webhook: {workers: [x]}", "config.yaml:1: webhook.workers: ['x'] is no whole number from 1 to 16"),
        ("webhook: {path: }", "config.yaml:1: webhook.path: None is no text"),
        (
            "webhook: {auth: {addresses: [a, b]}}",
            (
                "config.yaml:1: webhook.auth.addresses: ['a', 'b'] is no address or network; "
                "write e.g. 203.0.113.7 or 203.0.113.0/24"
            ),
        ),
    ],
)
def test_a_mistake_is_told_with_its_line_its_name_and_its_remedy(write: Write, text: str, problem: str) -> None:
    """The user would be told that something is wrong, and not what, where, or what to write instead."""
    file = write(text)
    assert problems(file) == [problem]


def test_all_mistakes_of_a_file_are_told_at_once(write: Write) -> None:
    """The user would mend one line, start again, and be told the next."""
    text = "webhok: {}\nwebhook:\n  workers: 1\n  workers: 2\n  auth: 5\nlog:\n  levl: info\n"
    told = problems(write(text), {"WHATSAPP2MQTT_LOG__FORMT": "text"})
    assert [problem.split(": is no")[0].split(": must")[0].split(": stands")[0] for problem in told] == [
        "config.yaml:1: webhok",
        "config.yaml:4: webhook.workers",
        "config.yaml:5: webhook.auth",
        "config.yaml:7: log.levl",
        "WHATSAPP2MQTT_LOG__FORMT",
    ]


def test_all_values_that_cannot_be_used_are_told_at_once(write: Write) -> None:
    """The user would mend one line, start again, and be told the next."""
    text = "webhook:\n  path: x\n  workers: 0\n  auth:\n    require: some\nlog:\n  level: loud\n"
    told = problems(write(text), {"WHATSAPP2MQTT_LOG__FORMAT": "xml"})
    assert [problem.split(" ")[:2] for problem in told] == [
        ["config.yaml:2:", "webhook.path:"],
        ["config.yaml:3:", "webhook.workers:"],
        ["config.yaml:5:", "webhook.auth.require:"],
        ["config.yaml:7:", "log.level:"],
        ["WHATSAPP2MQTT_LOG__FORMAT:", "log.format:"],
    ]


def test_a_tag_is_told_with_its_line(write: Write) -> None:
    """Who is used to Home Assistant's `!secret` would get a stack of calls instead of a sentence."""
    (problem,) = problems(write("mqtt:\n  username: !secret mqtt_user\n"))
    assert problem.startswith("config.yaml:2: mqtt.username: ")


@pytest.mark.parametrize("value", ["2026-13-45", "0b_"])
def test_what_yaml_takes_for_a_date_or_a_number_stays_text(write: Write, value: str) -> None:
    """A user's name that looks like a date would keep the bridge from starting, without a word why."""
    assert load(write(f"mqtt:\n  username: {value}\n"), {}).settings.mqtt.username == value


@pytest.mark.parametrize("written", ["012345", "1.10", "1_000", "0x1F", "12:30:45", "1.0e+5"])
def test_a_password_of_digits_is_taken_as_it_stands(write: Write, written: str) -> None:
    """The broker would refuse a password that the user typed correctly."""
    assert load(write(f"mqtt:\n  password: {written}\n"), {}).settings.mqtt.password == written


# --- the environment ---------------------------------------------------------------------------------------------


def test_every_setting_can_come_from_the_environment() -> None:
    """A container could not be given a setting without a file."""
    for key, metadata in leaves(Settings):
        name = "WHATSAPP2MQTT_" + "__".join(key).upper()
        loaded = load(None, {name: ""})
        # Nothing at all is the default, as `${NAME:-}` gives in many a compose file.
        assert loaded.settings == Settings()
        assert loaded.written[".".join(key)] == metadata["default"]
        assert loaded.origins == {".".join(key): name}


def test_the_environment_stands_above_the_file(write: Write) -> None:
    """A container's image could not be adapted without changing its file."""
    file = write("webhook: {path: /from-file, workers: 2}\nlog: {level: loud}")
    environ = {"WHATSAPP2MQTT_WEBHOOK__PATH": "/from-environment", "WHATSAPP2MQTT_LOG__LEVEL": "debug"}
    settings = load(file, environ).settings
    assert (settings.webhook.path, settings.webhook.workers, settings.log.level) == ("/from-environment", 2, "debug")


def test_texts_of_the_environment_are_read_like_those_of_the_file() -> None:
    """`true`, `5m` or `off` would mean something else in a container."""
    environ = {
        "WHATSAPP2MQTT_MQTT__ENCODE_DOTS": "true",
        "WHATSAPP2MQTT_MQTT__PROTOCOL": "5",
        "WHATSAPP2MQTT_EVENTS__MAX_AGE": "off",
        "WHATSAPP2MQTT_WEBHOOK__CONNECTIONS": "800",
        "WHATSAPP2MQTT_MQTT__TLS__DANGEROUSLY_ACCEPT_ANY_CERTIFICATE": "yes",
    }
    settings = load(None, environ).settings
    assert (settings.mqtt.encode_dots, settings.mqtt.protocol, settings.events.max_age) == (True, "5", None)
    assert (settings.webhook.connections, settings.mqtt.tls.dangerously_accept_any_certificate) == (800, True)


@pytest.mark.parametrize(
    ("written", "tokens"),
    [
        ("sunflower-quartz", ("sunflower-quartz",)),
        ("sunflower-quartz,meadow-granite", ("sunflower-quartz", "meadow-granite")),
        (" sunflower-quartz , meadow-granite ,", ("sunflower-quartz", "meadow-granite")),
        (",", ()),
    ],
)
def test_a_list_of_the_environment_is_parted_by_commas(written: str, tokens: tuple[str, ...]) -> None:
    """A second secret could not be given while the first is being replaced."""
    settings = load(None, {"WHATSAPP2MQTT_WEBHOOK__AUTH__PATH_TOKEN": written}).settings
    assert settings.webhook.auth.path_token == tokens


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("WHATSAPP2MQTT_WEBHOOK__PTH", "; did you mean WHATSAPP2MQTT_WEBHOOK__PATH?"),
        ("WHATSAPP2MQTT_WEBHOOK_PATH", "; did you mean WHATSAPP2MQTT_WEBHOOK__PATH?"),
        ("WHATSAPP2MQTT_ENCODE_DOTS", "; did you mean WHATSAPP2MQTT_MQTT__ENCODE_DOTS?"),
        ("WHATSAPP2MQTT_MQTT__PASWORD_FILE", "; did you mean WHATSAPP2MQTT_MQTT__PASSWORD?"),
        ("WHATSAPP2MQTT_ZZZZ", "; config.example.yaml shows all of them"),
        ("WHATSAPP2MQTT_", "; config.example.yaml shows all of them"),
    ],
)
def test_an_unknown_name_of_the_environment_is_refused_with_the_nearest(name: str, hint: str) -> None:
    """A misspelt name would be left out without a word, and the listener stay open."""
    assert problems(None, {name: SECRET}) == [f"{name}: is no setting{hint}"]


def test_a_section_of_the_environment_is_not_advised_to_be_written_as_it_is() -> None:
    """The user would be told to write what was just refused."""
    (problem,) = problems(None, {"WHATSAPP2MQTT_WEBHOOK": "x"})
    assert "did you mean WHATSAPP2MQTT_WEBHOOK?" not in problem


def test_names_of_others_are_left_alone() -> None:
    """The bridge would not start beside another program's variables."""
    assert load(None, {"WHATSAPP_TOKEN": "x", "MQTT__URL": "x", "whatsapp2mqtt_log__level": "x"}).origins == {}


def test_a_problem_of_the_environment_is_told_with_its_name() -> None:
    """The user would look for it in the file."""
    assert problems(None, {"WHATSAPP2MQTT_WEBHOOK__WORKERS": "99"}) == [
        "WHATSAPP2MQTT_WEBHOOK__WORKERS: webhook.workers: '99' is no whole number from 1 to 16"
    ]


# --- secrets -----------------------------------------------------------------------------------------------------

#: Every secret, and whether it is a list.
SECRETS = [(key, metadata["default"] == []) for key, metadata in leaves(Settings) if metadata["show"] is not None]


def test_the_secrets_are_those_that_must_not_be_shown() -> None:
    """A setting that holds a secret would be printed by `check` and quoted in errors."""
    names = {".".join(key) for key, _ in SECRETS}
    assert names >= {"webhook.auth.path_token", "webhook.auth.header_token", "webhook.auth.basic", "mqtt.url"}
    assert names >= {"webhook.auth.meta_app_secret", "webhook.auth.meta_verify_token", "webhook.auth.vendor_secret"}
    assert names >= {"mqtt.password", "mqtt.embedded.password"}
    for key, _ in leaves(Settings):
        assert (
            ".".join(key) in names
            or not re.search("password|secret|token", key[-1].replace("any_certificate", ""))
            or (key[-1] == "allow_password_in_the_clear")
        )


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    """Secrets of Docker and systemd, which are files, could not be used."""
    (tmp_path / "password").write_text(f"{SECRET}\n")
    (tmp_path / "tokens").write_text("sunflower-quartz\nmeadow-granite\n")
    (tmp_path / "basic").write_text("ada:sun flower\n\nbob:meadow")
    (tmp_path / "url").write_text(f"mqtts://ada:{SECRET}@broker\n")
    environ = {
        "WHATSAPP2MQTT_MQTT__PASSWORD_FILE": str(tmp_path / "password"),
        "WHATSAPP2MQTT_WEBHOOK__AUTH__PATH_TOKEN_FILE": str(tmp_path / "tokens"),
        "WHATSAPP2MQTT_WEBHOOK__AUTH__BASIC_FILE": str(tmp_path / "basic"),
        "WHATSAPP2MQTT_MQTT__URL_FILE": str(tmp_path / "url"),
    }
    loaded = load(None, environ)
    assert loaded.settings.mqtt.password == loaded.settings.mqtt.url[0].password == SECRET
    assert loaded.settings.webhook.auth.path_token == ("sunflower-quartz", "meadow-granite")
    assert loaded.settings.webhook.auth.basic == ("ada:sun flower", "bob:meadow")
    assert loaded.origins["mqtt.password"] == "WHATSAPP2MQTT_MQTT__PASSWORD_FILE"


def test_a_secret_s_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """The bridge would start without the secret: open, or unable to connect."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    environ = {
        "WHATSAPP2MQTT_MQTT__PASSWORD_FILE": str(tmp_path / "missing"),
        "WHATSAPP2MQTT_MQTT__URL_FILE": str(tmp_path),
        "WHATSAPP2MQTT_WEBHOOK__AUTH__BASIC_FILE": str(tmp_path / "binary"),
    }
    assert problems(None, environ) == [
        "WHATSAPP2MQTT_MQTT__PASSWORD_FILE: the file it names cannot be read: No such file or directory",
        "WHATSAPP2MQTT_MQTT__URL_FILE: the file it names cannot be read: Is a directory",
        "WHATSAPP2MQTT_WEBHOOK__AUTH__BASIC_FILE: the file it names cannot be read: it is not UTF-8",
    ]


@pytest.mark.parametrize("name", ["MQTT__USERNAME_FILE", "MQTT__CLIENT_ID_FILE", "MQTT__TLS__CA_FILE"])
def test_only_secrets_may_come_from_files(tmp_path: Path, name: str) -> None:
    """The broker would be told that the user is called `/run/secrets/user`."""
    (tmp_path / "user").write_text("ada")
    (problem,) = problems(None, {f"WHATSAPP2MQTT_{name}": str(tmp_path / "user")})
    assert problem.startswith(f"WHATSAPP2MQTT_{name}: is no setting")


@pytest.mark.parametrize("name", ["MQTT__PASSWORD_FILE", "WEBHOOK__AUTH__PATH_TOKEN_FILE"])
def test_a_secret_s_file_without_content_is_refused(tmp_path: Path, name: str) -> None:
    """A secret that failed to be mounted would leave the webhook open, without a word."""
    (tmp_path / "secret").write_text("\n")
    (problem,) = problems(None, {f"WHATSAPP2MQTT_{name}": str(tmp_path / "secret")})
    assert problem.startswith(f"WHATSAPP2MQTT_{name}: ")


def test_a_secret_and_its_file_together_are_refused(tmp_path: Path) -> None:
    """The user would change the one that has no effect."""
    (tmp_path / "password").write_text(SECRET)
    names = {"WHATSAPP2MQTT_MQTT__PASSWORD": "x", "WHATSAPP2MQTT_MQTT__PASSWORD_FILE": str(tmp_path / "password")}
    (problem,) = problems(None, names)
    assert "stands twice" in problem


def test_a_secret_of_a_file_may_hold_a_comma(tmp_path: Path) -> None:
    """Half of the password would be taken for a second one."""
    (tmp_path / "basic").write_text("ada:sun,flower\nbob:meadow\n")
    settings = load(None, {"WHATSAPP2MQTT_WEBHOOK__AUTH__BASIC_FILE": str(tmp_path / "basic")}).settings
    assert settings.webhook.auth.basic == ("ada:sun,flower", "bob:meadow")


#: Ways to write a secret that is refused, in a file.
SLIPS = [
    "[{}",
    "{{{}: 1}}",
    "[[{}]]",
    "{{a: {}}}",
    '"{}',
    "mqtt://ada:{}@broker:x",
    "http://ada:{}@b",
    "{}\n   {}: {}",
    "@{}",
    "[true, {}]",
]
SLIPS += ["{}: {}", "\t{}", "%{}", "- {}", "mqtt://b:1/{}", "mqtt://ada:{}#x@b", "'{}' {}"]


@pytest.mark.parametrize("slip", SLIPS)
@pytest.mark.parametrize("key", [key for key, _ in SECRETS], ids=".".join)
def test_no_error_quotes_a_secret_that_was_written_wrongly(write: Write, key: config.Key, slip: str) -> None:
    """Users paste errors into public issues."""
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(key)]
    # What happens to be right is made wrong by its neighbour.
    file = write(
        "\n".join(lines)
        + f" {slip.replace('{}', SECRET).replace('{{', '{').replace('}}', '}')}\nlog: {{level: loud}}\n"
    )
    for problem in problems(file):
        assert SECRET not in problem


@pytest.mark.parametrize(
    "slip", ["{}:x y\n", "http://{}", "mqtt://ada:{}@broker:x", "{}\0", "\u00fc{}:", " {}", "x" * 201 + "{}"]
)
@pytest.mark.parametrize("key", [key for key, _ in SECRETS], ids=".".join)
def test_no_error_quotes_a_secret_of_the_environment(key: config.Key, slip: str) -> None:
    """The container's log would show it."""
    name = "WHATSAPP2MQTT_" + "__".join(key).upper()
    environ = {name: slip.replace("{}", SECRET), name + "X": SECRET, "WHATSAPP2MQTT_LOG__LEVEL": "loud"}
    for problem in problems(None, environ):
        assert SECRET not in problem
    del environ[name + "X"]
    for problem in problems(None, environ):
        assert SECRET not in problem


def test_no_error_of_yaml_quotes_a_secret(write: Write) -> None:
    """A password that begins with an asterisk would be pasted into a public issue."""
    (problem,) = problems(write(f"mqtt:\n  password: *{SECRET}\n"))
    assert SECRET not in problem


def test_the_settings_can_be_printed_without_secrets(write: Write) -> None:
    """One careless line of logging, or a stack of calls with its values, would publish them all."""
    lists = {key[-1]: f"ada:{SECRET}" for key, many in SECRETS if many and key[-1] != "path_token"}
    auth = "".join(f"    {name}: {value}\n" for name, value in lists.items())
    text = f"webhook:\n  auth:\n    path_token: {SECRET}\n{auth}mqtt:\n  password: {SECRET}\n"
    text += f"  embedded: {{username: a, password: {SECRET}}}\n"
    assert SECRET not in repr(load(write(text), {}).settings)


# --- contradictions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("webhook: {listen: 0.0.0.0:8080}", "webhook.listen: 0.0.0.0:8080 can be reached from other machines"),
        ("webhook: {listen: '[::]:8080'}", "add `webhook: {auth: {path_token: [<a secret>]}}`, or the variable"),
        ("webhook: {listen: 10.0.0.2:8080, auth: {meta_verify_token: x}}", "nothing says who may post"),
        ("webhook: {listen: 10.0.0.2:8080, auth: {proxies: 10.0.0.1}}", "nothing says who may post"),
        ("mqtt: {embedded: {listen: 0.0.0.0:1883}}", "add mqtt.embedded.username and mqtt.embedded.password"),
        ("mqtt: {embedded: {username: ada}}", "mqtt.embedded: username and password go together"),
        ("mqtt: {embedded: {password: x}}", "mqtt.embedded: username and password go together"),
        ("mqtt: {url: 'mqtt://ada:x@broker'}", "mqtt.url: the password would go to broker unencrypted"),
        (
            "mqtt: {url: 'ws://broker', username: ada, password: x}",
            "use mqtts:// (or wss://), or say mqtt.allow_password_in_the_clear: true",
        ),
        ("mqtt: {url: 'mqtts://broker', tls: {certificate: FILE}}", "mqtt.tls: certificate and key go together"),
        ("mqtt: {url: 'mqtts://broker', tls: {key: FILE}}", "mqtt.tls: certificate and key go together"),
        ("mqtt: {keepalive: 4s}", "mqtt.keepalive: must be from 5s to 1h"),
        ("mqtt: {keepalive: 2h}", "mqtt.keepalive: must be from 5s to 1h"),
    ],
)
def test_what_is_right_by_itself_and_wrong_together_is_refused(
    write: Write, tmp_path: Path, text: str, problem: str
) -> None:
    """A door would stand open, or a password be sent in the clear, because each setting alone looks harmless."""
    (tmp_path / "x.pem").write_text("pem")
    (told,) = problems(write(text.replace("FILE", str(tmp_path / "x.pem"))))
    assert problem in told


@pytest.mark.parametrize(
    "text",
    [
        "webhook: {listen: 127.0.0.2:8080}",
        "webhook: {listen: '[::1]:8080'}",
        "webhook: {listen: 0.0.0.0:8080, auth: {anyone_may_post: true}}",
        "webhook: {listen: 0.0.0.0:8080, auth: {path_token: sunflower-quartz}}",
        "webhook: {listen: 0.0.0.0:8080, auth: {header_token: x}}",
        "webhook: {listen: 0.0.0.0:8080, auth: {basic: 'a:b'}}",
        "webhook: {listen: 0.0.0.0:8080, auth: {meta_app_secret: x}}",
        "webhook: {listen: 0.0.0.0:8080, auth: {vendor_secret: 'a:b'}}",
        "webhook: {listen: 0.0.0.0:8080, auth: {addresses: 203.0.113.0/24}}",
        "mqtt: {embedded: {listen: 0.0.0.0:1883, username: ada, password: x}}",
        "mqtt: {url: 'mqtt://broker', embedded: {listen: 0.0.0.0:1883}}",
        "mqtt: {embedded: {username: ada, password: x}}",
        "mqtt: {url: 'mqtt://ada:x@127.0.0.1'}",
        "mqtt: {url: 'mqtt://ada:x@localhost'}",
        "mqtt: {url: 'mqtts://ada:x@broker'}",
        "mqtt: {url: 'wss://ada:x@broker'}",
        "mqtt: {url: 'mqtt://ada@broker'}",
        "mqtt: {url: 'mqtt://ada:x@broker', allow_password_in_the_clear: true}",
        "mqtt: {keepalive: 5s}",
        "mqtt: {keepalive: 1h}",
        "mqtt: {url: 'mqtts://broker', tls: {certificate: FILE, key: FILE, ca: FILE}}",
    ],
)
def test_what_goes_together_is_taken(write: Write, tmp_path: Path, text: str) -> None:
    """The bridge would refuse to start with settings that are safe."""
    (tmp_path / "x.pem").write_text("pem")
    load(write(text.replace("FILE", str(tmp_path / "x.pem"))), {})


def test_all_contradictions_are_told_at_once(write: Write) -> None:
    """The user would mend one, start again, and be told the next."""
    told = problems(
        write("webhook: {listen: 0.0.0.0:8080}\nmqtt: {keepalive: 1s, embedded: {listen: 0.0.0.0:1883, username: a}}")
    )
    assert [problem.split(":")[0] for problem in told] == [
        "webhook.listen",
        "mqtt.embedded.listen",
        "mqtt.embedded",
        "mqtt.keepalive",
    ]


# --- what follows from the settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "user", "password"),
    [
        ("url: mqtts://broker", None, None),
        ("url: mqtts://ada:x@broker", "ada", "x"),
        ("{url: mqtts://broker, username: bob, password: y}", "bob", "y"),
        ("{url: mqtts://ada:x@broker, username: bob, password: y}", "ada", "x"),
        ("{url: mqtts://ada@broker, password: y}", "ada", "y"),
    ],
)
def test_user_and_password_of_the_broker_come_from_wherever_they_were_set(
    write: Write, text: str, user: str | None, password: str | None
) -> None:
    """The bridge would be refused by its broker."""
    (broker,) = load(write(f"mqtt:\n  {text}"), {}).settings.brokers
    assert (broker.scheme, broker.host, broker.port) == ("mqtts", "broker", 8883)
    assert (broker.username, broker.password) == (user, password)


@pytest.mark.parametrize(
    "written",
    [
        "[mqtts://ada:x@one, 'mqtts://two:8884']",
        "'mqtts://ada:x@one,mqtts://two:8884'",
        "'mqtts://ada:x@one , mqtts://two:8884'",
    ],
)
def test_several_brokers_may_be_named(write: Write, written: str) -> None:
    """A bridge could not fail over to the next node of the cluster."""
    settings = load(write(f"mqtt: {{username: bob, password: y, url: {written}}}"), {}).settings
    assert settings.brokers == (
        BrokerUrl("mqtts", "one", 8883, "", "ada", "x"),
        BrokerUrl("mqtts", "two", 8884, "", "bob", "y"),
    )


def test_several_brokers_may_come_from_the_environment_and_from_a_file(tmp_path: Path) -> None:
    """A container has no other way to be told, and a secret's file has one address a line."""
    expected = (BrokerUrl("mqtts", "one", 8883, "", "a,b", "c,d"), BrokerUrl("wss", "two", 443, "/mqtt"))
    assert load(None, {"WHATSAPP2MQTT_MQTT__URL": "mqtts://a,b:c,d@one,wss://two"}).settings.brokers == expected
    (tmp_path / "urls").write_text("mqtts://a,b:c,d@one\nwss://two\n")
    environ = {"WHATSAPP2MQTT_MQTT__URL_FILE": str(tmp_path / "urls")}
    assert load(None, environ).settings.brokers == expected


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("[]", "is an empty list"),
        ("[embedded, 'mqtt://one']", "has embedded beside other brokers"),
        ("['mqtt://ada:tulip-grey@one', 'mqtt://bob:tulip-grey@one:1883']", "has mqtt://one:1883 twice"),
        ("['mqtt://one', 'http://two']", "is no broker"),
        ("['mqtts://one', 'mqtt://ada:tulip-grey@two']", "the password would go to two unencrypted"),
    ],
)
def test_a_list_of_brokers_is_checked_one_by_one(write: Write, written: str, problem: str) -> None:
    """The second address is first used in the night in which the first broker dies."""
    (told,) = problems(write(f"mqtt: {{url: {written}}}"))
    assert problem in told
    assert "tulip" not in told


@pytest.mark.parametrize(
    ("listen", "host"),
    [
        ("127.0.0.1:1884", "127.0.0.1"),
        ("0.0.0.0:1884", "127.0.0.1"),
        ("'[::]:1884'", "::1"),
        ("10.0.0.2:1884", "10.0.0.2"),
    ],
)
def test_the_embedded_broker_is_reached_where_it_listens(write: Write, listen: str, host: str) -> None:
    """The bridge would not find its own broker."""
    text = f"mqtt: {{username: not, password: these, embedded: {{listen: {listen}, username: ada, password: x}}}}"
    assert load(write(text), {}).settings.brokers == (BrokerUrl("mqtt", host, 1884, "", "ada", "x"),)


def test_the_journal_stands_in_the_state_directory_unless_it_is_named(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an update the bridge would open another, empty journal."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    assert load(None, {}).settings.journal_path == tmp_path / "journal.db"
    assert load(write("journal: {url: 'sqlite:///elsewhere/j.db'}"), {}).settings.journal_path == Path(
        "/elsewhere/j.db"
    )


def test_the_state_directory_is_systemd_s_or_that_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal would be written where it may not be, or where nobody looks."""
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("XDG_STATE_HOME", "/home/ada/state")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/one:/var/lib/two")
    assert state_directory() == Path("/var/lib/one")
    monkeypatch.setenv("STATE_DIRECTORY", "")
    assert state_directory() == Path("/home/ada/state/whatsapp2mqtt")
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert state_directory() == Path("/home/ada/.local/state/whatsapp2mqtt")


def test_the_client_id_is_the_same_at_each_start_and_differs_between_bridges(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bridges at one broker would throw each other out for ever; one bridge would leave its session behind."""
    named = load(write("mqtt: {client_id: gate}"), {}).settings
    settings = load(None, {}).settings
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/one")
    first = settings.client_id
    assert first == load(None, {}).settings.client_id
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/two")
    another_journal = settings.client_id
    monkeypatch.setattr("socket.gethostname", lambda: "another-machine")
    another_machine = settings.client_id
    assert named.client_id == "gate"
    assert len({first, another_journal, another_machine}) == 3
    for client_id in (first, another_journal, another_machine):
        assert re.fullmatch(r"whatsapp2mqtt-[0-9a-f]{8}", client_id)


def test_sections_are_listed_outer_before_inner() -> None:
    """The example file and the documents would have them in another order than the settings."""
    names = [".".join(key) for key, _ in sections()]
    assert names.index("webhook") < names.index("webhook.auth") < names.index("mqtt") < names.index("mqtt.tls")
    assert all(key[:-1] == () or ".".join(key[:-1]) in names for key, _ in sections())
