"""Logs: one line a fact, in text and in JSON, with nothing in it that a stranger could write there."""

from __future__ import annotations

import io
import json
import logging
import logging.config
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn
from urllib.parse import unquote

import pytest
import structlog

from bridge import logs

#: A line break, a terminal's "clear the screen", a line that looks like ours, and marks that turn text around.
EVIL = "x\n12:00:00 [info     ] all is well\r\x1b[2J\x9b2J\x00\u2028\u202e"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """What `configure` sets is the whole process': it is put back."""
    root, granian = logging.getLogger(), logging.getLogger("_granian")
    before = root.handlers, root.level
    yield
    root.handlers, level = before[0], before[1]
    root.setLevel(level)
    granian.setLevel(logging.NOTSET)
    structlog.reset_defaults()


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Callable[..., io.StringIO]:
    """Sets up the logs on a standard error of its own, which it returns."""

    def configure(level: str = "info", style: str = "json", *, terminal: bool = False) -> io.StringIO:
        stream = Terminal() if terminal else io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        logs.configure(level, style)
        return stream

    return configure


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def stumble(text: str) -> NoReturn:
    raise ValueError(text)


def fault(text: str) -> Exception:
    """An exception that was raised."""
    with pytest.raises(ValueError) as caught:
        stumble(text)
    return caught.value


class TestJson:
    def test_each_fact_is_one_object_on_one_line(self, written: Callable[..., io.StringIO]) -> None:
        """What collects the logs reads line by line: half an object is lost."""
        stream = written()
        log = structlog.get_logger()
        log.info("published", seq=7, topic="a/b")
        log.warning("refused", why=EVIL, other={"a": [EVIL, None]}, é="ö")
        first, second = lines_of(stream)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", first.pop("timestamp"))
        assert first == {"event": "published", "level": "info", "seq": 7, "topic": "a/b"}
        assert (second["why"], second["other"]) == (EVIL, {"a": [EVIL, None]})

    def test_nothing_from_outside_is_written_as_it_is(self, written: Callable[..., io.StringIO]) -> None:
        """Promise 7: a log that is shown on a terminal would obey a stranger's escape codes."""
        stream = written()
        structlog.get_logger().error(EVIL, why=EVIL, exc_info=fault(EVIL))
        assert stream.getvalue().count("\n") == 1
        assert stream.getvalue().rstrip("\n").isprintable()

    def test_what_json_does_not_know_is_written_as_text(self, written: Callable[..., io.StringIO]) -> None:
        """A path or an error as value must not end the thread that logs it."""
        stream = written()
        structlog.get_logger().info("found", what={1, 2}, why=ValueError("no"), half="\ud800")
        (line,) = lines_of(stream)
        assert (line["what"], line["why"], line["half"]) == ("{1, 2}", "ValueError('no')", "\ud800")

    def test_a_failure_brings_its_stack(self, written: Callable[..., io.StringIO]) -> None:
        """Without it, a fault that happened once at night is never found."""
        stream = written()
        structlog.get_logger().error("failed", exc_info=fault("why"))
        (line,) = lines_of(stream)
        assert line["exception"].startswith("Traceback")
        assert line["exception"].endswith("ValueError: why")


class TestText:
    def test_it_reads_well(self, written: Callable[..., io.StringIO]) -> None:
        """A line on a terminal is read by a human."""
        stream = written(style="text")
        structlog.get_logger().info("published", seq=7, topic="a/b")
        assert re.fullmatch(r"\d\d:\d\d:\d\d \[info     \] published +seq=7 topic='a/b'\n", stream.getvalue())

    def test_nothing_from_outside_is_written_as_it_is(self, written: Callable[..., io.StringIO]) -> None:
        """Promise 7: the terminal would obey a stranger's escape codes, and a forged line look like ours."""
        stream = written(style="text")
        log = structlog.get_logger()
        log.error(EVIL, why=EVIL, word="\x1b[2J", other={"a": [EVIL]}, name=ValueError(EVIL))
        (line, rest) = stream.getvalue().split("\n")
        assert rest == ""
        assert line.isprintable()
        assert "\\x1b[2J" in line

    def test_letters_stay_letters(self, written: Callable[..., io.StringIO]) -> None:
        """Names are in all scripts, and a log full of escapes is read by nobody."""
        stream = written(style="text")
        structlog.get_logger().info("größer", name="Zoë 名 😀")
        assert "größer" in stream.getvalue()
        assert "'Zoë 名 😀'" in stream.getvalue()

    def test_an_exceptions_lines_are_marked(self, written: Callable[..., io.StringIO]) -> None:
        """Its text may come from outside: a line of it must not be taken for one of ours."""
        stream = written(style="text")
        structlog.get_logger().error("failed", exc_info=fault(EVIL))
        first, *others = stream.getvalue().removesuffix("\n").split("\n")
        assert "failed" in first
        assert all(line.startswith("  | ") for line in others)
        assert all(line.isprintable() for line in others)
        assert others[0] == "  | Traceback (most recent call last):"
        assert "  | 12:00:00 [info     ] all is well\\r\\x1b[2J\\x9b2J\\x00\\u2028\\u202e" in others

    def test_half_a_surrogate_pair_is_written(self, written: Callable[..., io.StringIO]) -> None:
        """Text that UTF-8 cannot say must not make the logging fail."""
        stream = written(style="text")
        structlog.get_logger().info("a\ud800", why="b\udfff")
        assert "a\\ud800" in stream.getvalue()
        assert "b\\udfff" in stream.getvalue()


class TestSecrets:
    @pytest.mark.parametrize("style", ["json", "text"])
    @pytest.mark.parametrize("key", sorted(logs.SECRET_KEYS))
    def test_their_values_are_hidden(self, written: Callable[..., io.StringIO], style: str, key: str) -> None:
        """Logs are sent to others for help: no secret and no body may go with them, whoever logged it."""
        stream = written(style=style)
        structlog.get_logger().info("event", **{key: "swordfish", "other": "kept"})
        assert "swordfish" not in stream.getvalue()
        assert "********" in stream.getvalue()
        assert "kept" in stream.getvalue()

    def test_what_must_be_hidden_is_listed(self) -> None:
        """Taken from the list by accident, a password would stand in the log from then on."""
        assert {"password", "token", "secret", "authorization", "body"} <= logs.SECRET_KEYS

    def test_those_that_are_bound_are_hidden_as_well(self, written: Callable[..., io.StringIO]) -> None:
        """Bound once, a secret would stand in every line that follows."""
        stream = written()
        with structlog.contextvars.bound_contextvars(token="swordfish"):
            structlog.get_logger().bind(password="swordfish").info("event", seq=1)
        (line,) = lines_of(stream)
        assert (line["token"], line["password"], line["seq"]) == ("********", "********", 1)


class TestLevels:
    @pytest.mark.parametrize(
        ("level", "shown"),
        [
            ("debug", ["debug", "info", "warning", "error"]),
            ("info", ["info", "warning", "error"]),
            ("warning", ["warning", "error"]),
            ("error", ["error"]),
        ],
    )
    def test_only_what_was_asked_for_is_written(
        self, written: Callable[..., io.StringIO], level: str, shown: list[str]
    ) -> None:
        """Too much wears out a memory card; too little hides why nothing arrives."""
        stream = written(level=level)
        log = structlog.get_logger()
        for name in ("debug", "info", "warning", "error"):
            getattr(log, name)("event")
        assert [line["level"] for line in lines_of(stream)] == shown

    @pytest.mark.parametrize(
        ("style", "terminal", "is_text"),
        [("auto", True, True), ("auto", False, False), ("text", False, True), ("json", True, False)],
    )
    def test_auto_is_text_on_a_terminal_and_json_otherwise(
        self, written: Callable[..., io.StringIO], style: str, terminal: bool, is_text: bool
    ) -> None:
        """What is collected must be JSON without anyone saying so, and what is read must be readable."""
        stream = written(style=style, terminal=terminal)
        structlog.get_logger().info("event", key="value")
        assert stream.getvalue().startswith("{") != is_text

    def test_colours_are_for_terminals_only(self, written: Callable[..., io.StringIO]) -> None:
        """In a file, colours are the escape codes that nobody wants there."""
        for terminal in (True, False):
            stream = written(style="text", terminal=terminal)
            structlog.reset_defaults()
            logs.configure("info", "text")
            structlog.get_logger().info("event", why="\x1b[2J")
            assert ("\x1b[" in stream.getvalue()) == terminal
            assert "\x1b[2J" not in stream.getvalue()


class TestLibraries:
    @pytest.mark.parametrize("style", ["json", "text"])
    def test_their_lines_go_the_same_way(self, written: Callable[..., io.StringIO], style: str) -> None:
        """A line in another form is one that the collector cannot read, and that nobody escaped."""
        stream = written(style=style)
        try:
            stumble(EVIL)
        except ValueError:
            logging.getLogger("some.library").exception("failed: %s", EVIL)
        if style == "json":
            (line,) = lines_of(stream)
            assert (line["event"], line["level"]) == (f"failed: {EVIL}", "error")
            assert line["exception"].startswith("Traceback")
        else:
            assert all(line.isprintable() for line in stream.getvalue().split("\n"))
            assert "failed: x\\n12:00:00" in stream.getvalue()

    def test_their_chatter_is_left_out(self, written: Callable[..., io.StringIO]) -> None:
        """At debug we want to read what the bridge does, not what every library does."""
        stream = written(level="debug")
        for name in ("debug", "info", "warning"):
            getattr(logging.getLogger("some.library"), name)(name)
        assert [line["event"] for line in lines_of(stream)] == ["warning"]
        stream = written(level="error")
        logging.getLogger("some.library").warning("warning")
        assert lines_of(stream) == []

    def test_granians_errors_come_and_its_greetings_do_not(self, written: Callable[..., io.StringIO]) -> None:
        """granian sets up logging anew in each process: its errors must still go to our handler, once."""
        stream = written()
        logging.config.dictConfig(logs.GRANIAN_LOGGING)
        granian = logging.getLogger("_granian")
        granian.info("Starting granian")
        granian.error("Unexpected exit from worker-1")
        assert [line["event"] for line in lines_of(stream)] == ["Unexpected exit from worker-1"]

    def test_setting_up_twice_writes_once(self, written: Callable[..., io.StringIO]) -> None:
        """Each line twice is the first thing that users report."""
        written()
        stream = written()
        logging.getLogger("some.library").error("once")
        assert len(lines_of(stream)) == 1


@pytest.mark.parametrize("style", ["json", "text"])
def test_no_number_reaches_a_log_whoever_logs_it(written: Callable[..., io.StringIO], style: str) -> None:
    """Logs are copied, kept and shown to others, whatever `privacy.numbers` says of everything else."""
    number, wamid = "15550001234", "wamid.HQQYCzE1NTUwMDAxMjM0FQIAERgSODk4NDczMDc4RDQ2NEVDNkNFAA=="
    stream = written(style=style)
    log = structlog.get_logger()
    places = (
        number,
        wamid,
        wamid.replace("=", "%3D"),
        wamid.removeprefix("wamid."),
        f"/button/{number}/x",
        "+1 555 000-1234",
        "whatsapp/button/Call%20555.000.1234",
        "whatsapp/button/Call_1_555_000_1234",
        "whatsapp/button/%D9%A1%D9%A5%D9%A5%D9%A5%D9%A0%D9%A0%D9%A0%D9%A1%D9%A2%D9%A3%D9%A4",
        "whatsapp/button/1%E2%80%91555%E2%80%91000%E2%80%911234",
        "(555) 000-1234",
        "555.000.1234",
        "1/555/000/1234",
        "1-555-000-1234",
        "1,555,000,1234",
        "1 555\u2011000\u20111234",
        "555\u2013000\u20131234",
        "1\u00a0555\u00a0000\u00a01234",
        "\u202a+1 555\u2011000\u20111234\u202c",
        "+1-5-5-5-0-0-0-1-2-3-4",
        "\u0661\u0665\u0665\u0665\u0660\u0660\u0660\u0661\u0662\u0663\u0664",
        "\uff11\uff15\uff15\uff15\uff10\uff10\uff10\uff11\uff12\uff13\uff14",
    )
    for place in places:
        log.info("said", why=place, several=[place, {"key": place, place: 1}, (place,)], thing=ValueError(place))
        log.info(place)
        logging.getLogger("library").error("of a library: %s", place)
        try:
            stumble(place)
        except ValueError:
            log.exception("stumbled")
    said = stream.getvalue()
    assert said.count("said") >= len(places)
    for hidden in (number, "15550001", "0001234", wamid[6:30], "000-1234"):
        assert hidden not in said
    # Whatever is between the digits, and whatever they are of.
    plain = re.sub(r"\d", lambda one: str(int(one[0])), unquote(re.sub(r"\\+u([0-9a-f]{4})", r"%u\1", said)))
    plain = re.sub(r"%u([0-9a-f]{4})", lambda one: chr(int(one[1], 16)), plain)
    plain = re.sub(r"\d", lambda one: str(int(one[0])), plain)
    assert not re.search(r"5\W{0,4}0[\W_]{0,4}0[\W_]{0,4}0[\W_]{0,4}1[\W_]{0,4}2[\W_]{0,4}3[\W_]{0,4}4", plain)


def test_the_running_bridge_loads_no_library_for_tables_and_a_command_that_prints_them_does() -> None:
    """Five megabytes in each of its processes, for nothing; or a list of dead letters that cannot be shown."""
    loads = "import sys, bridge.service, bridge.receiver; print(sys.modules.get('rich'))"
    prints = (
        "import sys, bridge.logs; from bridge.cli import show; show._bring_rich(); import rich.table; print('there')"
    )
    found = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.strip()
        for code in (loads, prints)
    ]
    assert found == ["None", "there"]
