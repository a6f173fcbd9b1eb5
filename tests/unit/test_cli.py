"""What the command line says before it asks anybody, and of what cannot be done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from paho.mqtt.client import Client
from werkzeug.security import check_password_hash

from bridge import healthy, service
from bridge.cli import main
from bridge.cli.letters import _drop_all
from bridge.config import ConfigError, Settings, load
from bridge.journal import Household
from bridge.tail import wrong_with


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where no bridge ever ran."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    return tmp_path


def said(*arguments: str, given: str = "") -> Result:
    return CliRunner().invoke(main, arguments, input=given)


def test_the_list_of_commands_is_read_at_a_glance() -> None:
    """Sentences that break off are of no help in choosing: give a command a `short_help` of 56 characters at most."""
    lines = said("--help").output.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == list(main.commands), "one that is used daily would stand anywhere"
    assert not [line for line in lines if line.endswith("...")]


@pytest.mark.parametrize("deed", ["replay", "drop"])
@pytest.mark.parametrize("which", [(), ("3", "--all")], ids=["none", "both"])
def test_dead_letters_are_touched_only_if_it_is_said_which(deed: str, which: tuple[str, ...]) -> None:
    """With none, a script would believe that all had been tried again; with both, all would be dropped for one."""
    found = said("dead-letters", deed, *which)
    assert found.exit_code == 2
    assert "say which: their numbers" in found.output


@pytest.mark.parametrize(
    ("topic", "remedy"),
    [
        ("a/#/b", "# stands alone, as the last level; write e.g. whatsapp/#"),
        ("a#", "# stands alone, as the last level"),
        ("a/b+", "+ stands for a whole level; write e.g. whatsapp/+/status"),
        ("+a/b", "+ stands for a whole level"),
        ("", "it has 1 to 65535 bytes, as UTF-8"),
        ("ü" * 32_768, "it has 1 to 65535 bytes"),
        ("a\0b", "it has 1 to 65535 bytes"),
        ("a\udcff", "as UTF-8"),
    ],
    ids=range(8),
)
def test_a_slip_in_a_filter_of_topics_is_one_of_the_options(topic: str, remedy: str) -> None:
    """It would end in a traceback, when a broker is reached at last."""
    found = said("tail", "--count", "1", "--topic", topic)
    assert found.exit_code == 2
    assert found.output.startswith("whatsapp2mqtt: --topic: is no filter of topics: ")
    assert found.output.count("\n") == 1
    assert remedy in found.output


@pytest.mark.parametrize("topic", ["#", "+", "/", "a//b", "+/+/#", "a/+/b", "$share/house/a/#", "a" * 65_535])
def test_a_filter_that_a_broker_takes_is_none(topic: str) -> None:
    """What the broker would have shown is refused by us."""
    assert wrong_with(topic) is None
    assert Client._filter_wildcard_len_check(topic.encode()) == 0


def test_a_replay_without_a_beginning_is_told_how_one_is_written() -> None:
    """ "Missing option" leaves open what to write."""
    found = said("replay")
    assert found.exit_code == 2
    assert found.output == (
        "whatsapp2mqtt: --since: is missing; write from when on, e.g. 2h, 7d, 2026-01-31 or 2026-01-31T12:00\n"
    )


@pytest.mark.parametrize("command", [["clean"], ["restore", __file__], ["forget", "15550001234"]], ids=" ".join)
def test_a_command_that_a_bridge_stands_in_the_way_of_says_what_to_do_about_it(state: Path, command: list[str]) -> None:
    """A journal of its own, as for a second bridge, would have it clean up after nobody."""
    (state / "journal.db").touch()
    with service.alone(state / "journal.db"):
        found = said(*command)
    assert found.exit_code == 2
    assert found.output == (
        f"whatsapp2mqtt: {command[0]}: a bridge or a command uses {state}/journal.db; stop it, and try again\n"
    )


def test_a_dead_letter_that_comes_while_all_are_dropped_stays() -> None:
    """It would be gone before anybody saw it."""
    there = [2, 1]

    class Busy:
        def dead_letters(self, *, limit: int) -> list[SimpleNamespace]:
            found = [SimpleNamespace(number=number) for number in there[:limit]]
            there.insert(0, 3)
            return found

        def drop_dead_letter(self, number: int) -> bool:
            was_there = number in there
            there.remove(number)
            return was_there

    _drop_all(cast("Household", Busy()), yes=True)
    assert there == [3]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "iso8859-15", "koi8-r"])
def test_a_terminal_that_knows_few_letters_gets_what_it_can_show(encoding: str) -> None:
    """The doctor would end in a traceback at its first tick, on the machine that needs it most."""
    ended = subprocess.run(
        [sys.executable, "-m", "bridge", "doctor"],
        env={**os.environ, "PYTHONIOENCODING": encoding, "WHATSAPP2MQTT_LOG__LEVEL": "大"},
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert b" trouble  settings: WHATSAPP2MQTT_LOG__LEVEL: log.level: '?' is none of debug," in ended.stdout
    assert not ended.stderr


@pytest.mark.parametrize("command", ["dead-letters list", "dead-letters drop 1", "forget 15550001234"])
def test_other_settings_than_the_bridges_are_suspected_where_no_journal_is(state: Path, command: str) -> None:
    """The user would look at owners and rights of a file that is not there."""
    found = said(*command.split())
    assert found.exit_code == 2
    assert f"journal {state}/journal.db: does not exist; is this the configuration" in found.output


def test_a_slip_in_what_is_simulated_is_one_of_the_options() -> None:
    """A script could not tell it from a bridge that refused."""
    found = said("simulate", "sent", "opened")
    assert found.exit_code == 2
    assert "opened is no kind; choose from sent" in found.output


def test_the_shell_knows_what_can_be_simulated() -> None:
    """Nobody remembers a dozen words."""
    shell = ShellComplete(main, {}, "whatsapp2mqtt", "_WHATSAPP2MQTT_COMPLETE")
    assert [one.value for one in shell.get_completions(["simulate"], "cloud-d")] == ["cloud-delivered", "cloud-deleted"]


def test_a_script_makes_the_pages_password(tmp_path: Path) -> None:
    """Who sets up machines by a program has no terminal."""
    found = said("password", given="correct horse\n")
    assert found.exit_code == 0
    file = tmp_path / "config.yaml"
    file.write_text(found.stdout)
    assert check_password_hash(load(file).settings.admin.password or "", "correct horse")
    assert "10 characters or more" in said("password", given="short\n").output


def test_a_file_of_another_user_is_not_taken_for_one_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings with secrets belong to root: the user would look for a slip in the path."""

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)  # root may read all
    with pytest.raises(ConfigError, match=r"config.yaml: cannot be read: Permission denied; be its owner, or root"):
        load(tmp_path / "config.yaml")


def test_whether_it_is_well_is_not_guessed_where_one_may_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watchdog that runs as another user would print a traceback, or believe the webhook alone."""

    def refuse(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert str(healthy.unwell(Settings())).endswith("cannot be read: Permission denied; ask as the bridge's user")
