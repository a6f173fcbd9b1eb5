"""Keep what a version leaves on a disk and in a database, for later ones: `python -m tests.upgrades.make 0.2.0`.

Run for each release with a schema or settings of its own, before its tag: the journals are made by the real bridge from
real callbacks. The settings files beside them, `config.yaml` and others, are written by hand before, as users write
theirs; what they mean to this version is kept, too.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bridge import __version__
from bridge.config import Database, Settings, leaves, load
from tests.postgres import Server, running
from tests.system.support import Bridge

KEPT = Path(__file__).parent


@contextlib.contextmanager
def used(**settings: str) -> Iterator[Bridge]:
    """A bridge that had callbacks of every kind, and has ended."""
    with tempfile.TemporaryDirectory() as place:
        bridge = Bridge(Path(place), **settings)
        try:
            bridge.start()
            with bridge.listen() as subscriber:
                kinds = ("sent", "delivered", "read", "failed", "button", "cloud-sent", "cloud-button")
                bridge.run("simulate", "--message-id", "wamid.upgrade", *kinds).check_returncode()
                bridge.run("simulate", "--payload", "light_on", "--text", "Light on", "button").check_returncode()
                assert bridge.post(b"this is no callback").status == 200
                subscriber.wait("whatsapp/button/light_on")
            assert bridge.program.end() == 0
            yield bridge
        finally:
            bridge.__exit__()


def dump(server: Server, database: Database, *options: str) -> str:
    """A journal in a database, as `pg_dump` writes it for any server to read."""
    command = ["pg_dump", "--no-owner", f"--schema={database.schema}", *options, database.url]
    ended = subprocess.run(command, env={"PATH": server.path}, capture_output=True, text=True, check=True)
    # What a pg_dump of this day adds for the psql of this day.
    return re.sub(r"(?m)^\\(un)?restrict .*\n|^--.*\n|^SET .*_timeout = .*\n|^\n(?=\n)", "", ended.stdout)


def means(folder: Path) -> dict[str, dict[str, str]]:
    """Every setting that the files there name, as this version understands it."""
    found = {}
    with contextlib.chdir(folder):
        for file in sorted(Path().glob("*.yaml")):
            loaded = load(file, environ={})
            found[file.name] = {
                name: str(functools.reduce(getattr, name.split("."), loaded.settings))
                for name in map(".".join, (key for key, _ in leaves(Settings)))
                if name in loaded.origins
            }
    return found


def lacking(meanings: dict[str, dict[str, str]]) -> list[str]:
    """The settings of this version that none of the files names."""
    named = {name for one in meanings.values() for name in one}
    return [name for key, _ in leaves(Settings) if (name := ".".join(key)) not in named]


def main(version: str) -> None:
    folder = KEPT / version
    meanings = means(folder) if folder.is_dir() else {}
    if missing := lacking(meanings):
        sys.exit(
            f"write {folder}/config.yaml first, as a user would, and another *.yaml beside it for what excludes each "
            "other; those of the last release, copied, are a beginning. All settings of this version are to be in "
            f"them, and these are not: {', '.join(missing)}"
        )
    (folder / "means.json").write_text(json.dumps(meanings, indent=2, sort_keys=True) + "\n")
    with used() as bridge:
        bridge.run("backup", folder / "journal.db").check_returncode()
    with running() as server:
        database = server.new_database()
        with used(journal__url=database.url):
            (folder / "journal.sql").write_text(dump(server, database))
    for file in sorted(folder.glob("journal.*")):
        print(file, file.stat().st_size, "bytes")


if __name__ == "__main__":
    main((sys.argv[1:] or [__version__])[0])
