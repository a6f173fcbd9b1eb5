"""What the command line says before it asks anybody, and of what cannot be done."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from werkzeug.security import check_password_hash

from bridge import healthy
from bridge.cli import main
from bridge.config import ConfigError, Settings, load


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
