"""What older versions left on a disk is taken over: journals and settings files, as `tests/upgrades` keeps them."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import apsw
import pytest
from click.testing import CliRunner

from bridge import __version__, config
from bridge.cli import main
from bridge.cli.common import EXIT_SETTINGS
from bridge.config import ConfigError, Settings, leaves, load
from bridge.journal import JournalError, care
from bridge.journal import sqlite as module
from bridge.journal.care import drop_old_versions, old_versions, prepare, restore
from bridge.journal.sqlite import MIGRATIONS, SqliteJournal
from bridge.migrate import migrate
from tests.upgrades import make
from tests.upgrades.contents import contents
from tests.upgrades.make import lacking, means

KEPT = Path(__file__).parents[1] / "upgrades"
RELEASES = sorted(folder.name for folder in KEPT.iterdir() if (folder / "journal.db").exists())

#: What a later version might do to the schema: one more column, and rows of another shape.
NEXT = """
ALTER TABLE updates ADD COLUMN more TEXT;
CREATE TABLE added (seq INTEGER PRIMARY KEY, word TEXT NOT NULL) STRICT;
INSERT INTO added SELECT seq, topic FROM updates;
UPDATE updates SET more = 'migrated';
"""


def schema(path: Path) -> int:
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return int(db.pragma("user_version"))
    finally:
        db.close()


@pytest.fixture(params=RELEASES)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A journal that an older version wrote."""
    return Path(shutil.copy(KEPT / request.param / "journal.db", tmp_path / "journal.db"))


@pytest.fixture
def next_schema(monkeypatch: pytest.MonkeyPatch) -> int:
    """Let this version have one schema more than it has."""
    monkeypatch.setattr(module, "MIGRATIONS", (*MIGRATIONS, NEXT))
    return len(MIGRATIONS) + 1


class TestJournals:
    def test_the_journal_of_every_release_opens_with_all_that_is_in_it(self, old: Path) -> None:
        """Whoever upgrades would lose what the broker did not have yet, and what tells a duplicate."""
        assert prepare(old) is None
        found = contents(SqliteJournal(old))
        assert [one.event_topic for one in found["updates"]] == [
            *(f"event/status/{word}" for word in ("sent", "delivered", "read", "failed")),
            *("event/button/open_gate", "event/button/open_gate", "event/button/light_on"),
        ]
        assert found["settled"] == found["updates"][-1].seq
        assert "wamid.upgrade/status" in {one.topic for one in found["retained"]}
        assert [one.body for one in found["dead letters"]] == [b"this is no callback"]
        assert {one.key for one in found["learned"]} >= {"open_gate", "light_on"}
        assert found["discoveries"]

    def test_one_more_schema_finds_everything_in_it_and_keeps_the_old_one(self, old: Path, next_schema: int) -> None:
        """A migration that goes wrong, or a release that is worse, must leave a way back."""
        before = schema(old)
        assert prepare(old) is None
        assert schema(old) == next_schema
        kept = old.with_name(f"journal.db.schema-{before}")
        assert old_versions(old) == [kept]
        assert schema(kept) == before
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        now = contents(SqliteJournal(old))
        db = apsw.Connection(str(old), flags=apsw.SQLITE_OPEN_READONLY)
        rows = list(db.execute("SELECT added.seq, word, topic, more FROM added JOIN updates USING (seq)"))
        db.close()
        assert len(rows) == len(now["updates"])
        assert all(word == topic and more == "migrated" for _, word, topic, more in rows)

    def test_a_journal_of_this_version_is_not_copied(self, old: Path, next_schema: int) -> None:
        """Each start would write the whole journal once more."""
        prepare(old)
        (kept,) = old_versions(old)
        made = kept.stat().st_mtime_ns
        prepare(old)
        assert (old_versions(old), kept.stat().st_mtime_ns) == ([kept], made)

    def test_a_new_journal_is_not_copied(self, tmp_path: Path, next_schema: int) -> None:
        """There is nothing to go back to."""
        prepare(tmp_path / "journal.db")
        assert old_versions(tmp_path / "journal.db") == []

    def test_the_way_back_is_named_and_leads_back(
        self, old: Path, next_schema: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After a downgrade, the message is all that the user has."""
        prepare(old)
        after = contents(SqliteJournal(old))
        (kept,) = old_versions(old)
        monkeypatch.setattr(module, "MIGRATIONS", (*MIGRATIONS[: schema(kept)],))
        with pytest.raises(JournalError) as refused:
            prepare(old)
        assert f"was written by a newer version (schema {next_schema}, this one knows {schema(kept)})" in str(
            refused.value
        )
        assert "install that version again, or go back to the journal as it was on 20" in str(refused.value)
        assert f"`whatsapp2mqtt restore {kept}`" in str(refused.value)
        assert schema(old) == next_schema  # it is as it was
        aside = restore(kept, old)
        assert aside is not None
        assert schema(aside) == next_schema
        assert prepare(old) is None
        restored = contents(SqliteJournal(old))
        assert {**restored, "identity": ""} == {**after, "identity": ""}

    def test_without_room_for_the_copy_nothing_is_changed(
        self, old: Path, next_schema: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A disk that runs full half-way would leave neither the old journal nor the new one."""
        before = old.read_bytes()
        size = old.stat().st_size
        room = SimpleNamespace(f_bavail=module.RESERVE + size - 1, f_frsize=1)
        monkeypatch.setattr(os, "statvfs", lambda _: room)
        with pytest.raises(JournalError, match=r"an older version wrote it.*3 MiB must be free on its disk; make room"):
            prepare(old)
        assert (old.read_bytes(), old_versions(old)) == (before, [])
        room.f_bavail += 1
        prepare(old)
        assert schema(old) == next_schema

    def test_a_copy_that_cannot_be_written_stops_the_upgrade(
        self, old: Path, next_schema: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Then there is no way back yet."""
        before = schema(old)

        def fails(_: int) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fails)
            with pytest.raises(JournalError, match="no copy of it can be kept beside it: Input/output error"):
                care.keep_old_version(old)
        assert schema(old) == before
        assert old_versions(old) == [old.with_name(f"journal.db.schema-{before}.unfinished")]
        prepare(old)
        assert old_versions(old) == [old.with_name(f"journal.db.schema-{before}")]

    def test_a_copy_goes_when_it_is_as_old_as_what_is_kept(self, old: Path, next_schema: int) -> None:
        """It holds phone numbers, and journal.keep says how long they stay."""
        prepare(old)
        (kept,) = old_versions(old)
        drop_old_versions(old, kept.stat().st_mtime)
        assert old_versions(old) == [kept]
        drop_old_versions(old, kept.stat().st_mtime + 1)
        assert old_versions(old) == []
        assert old.exists()


class TestSettings:
    @pytest.mark.parametrize("release", RELEASES)
    def test_the_settings_of_every_release_mean_what_they_meant(self, release: str) -> None:
        """A bridge that does not start after an upgrade loses what WhatsApp does not send again."""
        meant = json.loads((KEPT / release / "means.json").read_text())
        now = means(KEPT / release)
        assert set(now) == set(meant)
        assert all(now[file].items() >= meaning.items() for file, meaning in meant.items())

    def test_the_newest_ones_name_every_setting(self) -> None:
        """What none of them names may lose its meaning in a later version, and no test would tell."""
        assert lacking(means(KEPT / RELEASES[-1])) == []

    def test_for_a_release_it_is_said_which_are_to_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever releases would read a stack of Python errors, and leave an empty folder behind."""
        monkeypatch.setattr(make, "KEPT", tmp_path)
        with pytest.raises(SystemExit, match=r"write .*/9.9.9/config.yaml first.* not: webhook.listen, "):
            make.main("9.9.9")
        assert list(tmp_path.iterdir()) == []
        shutil.copytree(KEPT / RELEASES[-1], tmp_path / "9.9.9")
        file = tmp_path / "9.9.9/config.yaml"
        file.write_text(file.read_text().replace("  drain: 5s\n", ""))
        with pytest.raises(SystemExit, match=r"these are not: webhook.drain$"):
            make.main("9.9.9")

    def test_a_name_of_an_older_version_goes_on_to_work_and_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise the bridge does not start after an upgrade, or nobody ever learns of the new name."""
        renames(monkeypatch)
        file = written(tmp_path)
        loaded = load(file, environ={"WHATSAPP2MQTT_MQTT__TOPIC": "house", "WHATSAPP2MQTT_MQTT__PASS_FILE": str(file)})
        assert loaded.settings.mqtt.base_topic == "house"
        assert str(loaded.settings.mqtt.url) == "mqtts://broker:8883"
        assert loaded.origins["mqtt.url"] == f"{file}:3"
        assert list(loaded.outdated) == [
            f"{file}:3: mqtt.server: is called mqtt.url now; please write that",
            f"{file}:4: mqtt.topic: is called mqtt.base_topic now; please write that",
            "WHATSAPP2MQTT_MQTT__PASS_FILE: mqtt.pass: is called mqtt.password now; please write that",
            "WHATSAPP2MQTT_MQTT__TOPIC: mqtt.topic: is called mqtt.base_topic now; please write that",
        ]
        said = CliRunner().invoke(main, ["check", "--config", str(file)])
        assert (said.exit_code, "mqtt.server: is called mqtt.url now" in said.stderr) == (0, True)

    def test_the_old_name_beside_the_new_one_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Which of them holds, nobody could say."""
        renames(monkeypatch)
        file = tmp_path / "config.yaml"
        file.write_text("mqtt:\n  url: mqtt://a\n  server: mqtt://b\n")
        with pytest.raises(ConfigError, match=r"config.yaml:3: mqtt.url: stands twice; the other is at .*yaml:2"):
            load(file, environ={})

    def test_the_file_is_written_anew_and_kept_as_it_was(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Comments and order are the user's; and the older version must find its own file again."""
        renames(monkeypatch)
        file = written(tmp_path)
        before = file.read_bytes()
        said = CliRunner().invoke(main, ["migrate-settings", "--config", str(file)])
        kept = tmp_path / f"config.yaml.before-{__version__}"
        assert said.exit_code == 0, said.output
        assert said.output.splitlines() == [
            f"{file}:3: mqtt.server is mqtt.url now",
            f"{file}:4: mqtt.topic is mqtt.base_topic now",
            f"the file as it was is kept as {kept}",
        ]
        assert file.read_bytes() == before.replace(b"server:", b"url:").replace(b"topic:", b"base_topic:")
        assert kept.read_bytes() == before
        assert {stat.S_IMODE(one.stat().st_mode) for one in (file, kept)} == {0o640}
        assert load(file, environ={}).outdated == ()
        again = CliRunner().invoke(main, ["migrate-settings", "--config", str(file)])
        assert again.output == f"{file}: all names in it are today's\n"
        assert CliRunner().invoke(main, ["migrate-settings"]).exit_code == EXIT_SETTINGS
        assert kept.read_bytes() == before
        assert sorted(one.name for one in tmp_path.iterdir()) == [file.name, kept.name]

    def test_one_that_moved_to_another_section_is_moved_by_hand(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever stands around it would be torn apart."""
        renames(monkeypatch, {("mqtt", "level"): ("log", "level")})
        file = tmp_path / "config.yaml"
        file.write_text("mqtt:\n  level: debug\n")
        assert load(file, environ={}).settings.log.level == "debug"
        with pytest.raises(ConfigError, match=r"yaml:2: mqtt.level: stands in another section now; move .* log.level"):
            migrate(file)
        assert file.read_text() == "mqtt:\n  level: debug\n"

    def test_a_folder_that_cannot_be_written_leaves_the_file_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A container's settings are often mounted read-only: the message says what is left to do."""
        renames(monkeypatch)
        file = written(tmp_path)
        before = file.read_bytes()

        def fails(*_: object) -> int:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(os, "open", fails)
        with pytest.raises(ConfigError, match="Read-only file system; change the names in it by hand"):
            migrate(file)
        assert file.read_bytes() == before

    def test_every_name_of_today_leads_somewhere(self) -> None:
        """A name that leads to none would stop those who follow what the bridge says."""
        known = {key for key, _ in leaves(Settings)}
        assert set(config.RENAMED.values()) <= known
        assert not set(config.RENAMED) & known


def renames(monkeypatch: pytest.MonkeyPatch, table: Mapping[config.Key, config.Key] | None = None) -> None:
    """Let settings have had other names."""
    monkeypatch.setattr(
        config,
        "RENAMED",
        table
        or {
            ("mqtt", "server"): ("mqtt", "url"),
            ("mqtt", "topic"): ("mqtt", "base_topic"),
            ("mqtt", "pass"): ("mqtt", "password"),
        },
    )


def written(folder: Path) -> Path:
    """A settings file of an older version, with line ends of Windows."""
    file = folder / "config.yaml"
    file.write_bytes(b"# ours\r\nmqtt:\r\n  server: mqtts://broker  # in the cellar\r\n  topic: home/whatsapp\r\n")
    file.chmod(0o640)
    return file
